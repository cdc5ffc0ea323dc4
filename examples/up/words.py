"""Handlers of the actors in actors.yaml: plain functions, which know nothing of queues."""

import time


def split(text):
    """A list of results is one message for each of them."""
    return [line for line in text.splitlines() if line.strip()]


def count(line):
    if not isinstance(line, str):
        raise TypeError(f"expected a text, got {type(line).__name__}")
    return {"line": line, "words": len(line.split())}


class Slow:
    """A class is made once in each replica, before it takes its first message: the place for what takes long to load."""

    def __init__(self):
        self.greeting = "Hello"

    def greet(self, name):
        time.sleep(0.5)
        return f"{self.greeting}, {name}!"
