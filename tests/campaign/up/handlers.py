"""The handlers of the campaign's actors, run by `oncue up`; a message is `{"sender": …, "number": …, "item": …}`.
Standard library only.

What becomes of a message hangs on its number, and for some on chance. Item -1 has not passed its first actor yet.
"""

import asyncio
import os
import random
import signal
import time

ITEMS = 3


class LaterError(Exception):
    """Asks for another attempt."""

    retry_after = 0.05


def fans_out(number):
    return number % 10 == 3


def is_bad(number):
    return number % 10 == 7


def ends_early(number):
    return number % 10 == 5


def is_shaky(number):
    return number % 10 == 1


def is_poison(number):
    return number % 300 == 99


def carry(note):
    """The first of every route."""
    number = note["number"]
    time.sleep(random.choice((0.0, 0.0, 0.001, 0.01)))
    if is_bad(number):
        raise ValueError("on purpose")
    if is_shaky(number) and random.random() < 0.5:
        raise RuntimeError("by chance")
    if random.random() < 0.02:
        raise LaterError("by chance")
    return [{**note, "item": item} for item in range(ITEMS if fans_out(number) else 1)]


def slow(note):
    time.sleep(random.uniform(0.0, 0.04))
    return None if ends_early(note["number"]) else note


def crash(note):
    """Ends its own process at random, and always for a poisonous message."""
    time.sleep(random.choice((0.0, 0.002, 0.01)))
    chance = random.random()
    if chance < 0.005 or (is_poison(note["number"]) and chance < 0.5):
        os.kill(os.getpid(), signal.SIGSEGV)
    if chance < 0.01 or is_poison(note["number"]):
        os._exit(3)
    return note


class Wide:
    """Many at a time in one process."""

    async def wait(self, note):
        await asyncio.sleep(random.uniform(0.0, 0.1))
        return note
