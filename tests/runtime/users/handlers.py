"""What users write: handlers for the tests. Runs on every Python that the runtime runs on."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time

LOG = logging.getLogger("users")


def echo(payload):
    return payload


def nothing(payload):
    return None


def empty(payload):
    return []


def fan(payload):
    return list(range(payload))


def pair(payload):
    return (payload, payload)


def count(payload):
    yield from range(payload)


def count_then_fail(payload):
    yield from range(payload)
    raise RuntimeError("after %d" % payload)


def unwritable(payload):
    return {1, 2}


def not_a_number(payload):
    return {"value": float("nan")}


def circular(payload):
    payload = []
    payload.append(payload)
    return {"value": payload}


def huge(payload):
    return "x" * payload


def surrogate(payload):
    return "\ud800"


class Wait(Exception):
    retry_after = 2.5


class Useless(Exception):
    dead = True


class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")


def fail(payload):
    if payload == "wait":
        raise Wait("again please")
    if payload == "useless":
        raise Useless("never again")
    if payload == "mute":
        raise Mute
    if payload == "long":
        raise ValueError("x" * 100000)
    if payload == "exit":
        sys.exit(3)
    if payload == "interrupt":
        raise KeyboardInterrupt
    if payload == "memory":
        raise MemoryError
    if payload == "recursion":
        return fail(payload)
    raise KeyError(payload)


def act(payload):
    """Do what the payload says, to whatever ends it."""
    what, value = payload if isinstance(payload, list) else (payload, None)
    if what == "segfault":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(value)
    elif what == "kill":
        os.kill(os.getpid(), getattr(signal, value))
    elif what == "abort":
        os.abort()
    elif what == "sleep":
        time.sleep(value)
    elif what == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    elif what == "allocate":
        return len(bytearray(value))
    elif what == "fill":
        rest = [bytearray(b"x" * 2**20) for _ in range(value)]
        return len(rest)
    elif what == "exit in thread":
        thread = threading.Thread(target=os._exit, args=(value,))
        thread.start()
        thread.join()
        time.sleep(60)
    elif what == "fork":
        if os.fork() == 0:
            return "child"
        return "parent"
    elif what == "pid":
        return os.getpid()
    elif what == "orphan":
        pid = os.fork()
        if pid == 0:
            time.sleep(value)
            os._exit(0)
        os._exit(9)
    elif what == "close":
        os.closerange(3, 100)
        time.sleep(60)
    return value


def meet(payload):
    """Say that one is there, and wait until `payload` are, all at the same moment."""
    folder, wanted = payload
    name = os.path.join(folder, "%d-%d" % (os.getpid(), threading.get_ident()))
    open(name, "w").close()
    until = time.monotonic() + 20
    while len(os.listdir(folder)) < wanted and time.monotonic() < until:
        time.sleep(0.005)
    return len(os.listdir(folder))


async def greet(payload):
    await asyncio.sleep(0)
    return "Hello, %s!" % payload


async def act_in_loop(payload):
    what, value = payload
    if what == "sleep":
        await asyncio.sleep(value)
    elif what == "block":
        time.sleep(value)
    elif what == "stubborn":
        for _ in range(100):
            try:
                await asyncio.sleep(value)
            except asyncio.CancelledError:
                continue
    elif what == "tell":
        open(value + ".begun", "w").close()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            open(value, "w").close()
            raise
    elif what == "raise":
        raise SystemExit(value)
    elif what == "cancelled":
        raise asyncio.CancelledError
    return value


_waiting = []


async def meet_in_loop(payload):
    """Return once `payload` calls are here at the same time."""
    _waiting.append(None)
    while len(_waiting) < payload:
        await asyncio.sleep(0.005)
    return len(_waiting)


async def count_in_loop(payload):
    for number in range(payload):
        await asyncio.sleep(0)
        yield number


def plain_that_awaits(payload):
    return greet(payload)


def plain_that_awaits_many(payload):
    return count_in_loop(payload)


class Model:
    """State that is kept."""

    def __init__(self, start=0):
        self.calls = start

    def process(self, payload):
        self.calls += 1
        return self.calls


class Bare:
    def process(self, payload):
        return "bare"


class Open:
    def __init__(self, *args, **kwargs):
        self.args = args

    def process(self, payload):
        return "open"


class Needy:
    def __init__(self, name):
        self.name = name

    def process(self, payload):
        return self.name


class Broken:
    def __init__(self):
        raise OSError("no model here")

    def process(self, payload):
        return payload


value = 7


# Envelope mode


def advance(envelope):
    """In place, as the example of Asya's own documentation has it."""
    envelope["route"]["current"] += 1
    return envelope


def rewrite_route(envelope):
    envelope["route"]["actors"][0] = "z"
    return envelope


def replace_route(envelope):
    envelope["route"]["actors"] = ["z"]
    return envelope


def split_envelope(envelope):
    route = dict(envelope["route"], current=envelope["route"]["current"] + 1)
    return [dict(envelope, payload=each, route=route) for each in envelope["payload"]]


def return_as_told(envelope):
    return envelope["payload"]


# With a context


def told(payload, context):
    return {
        "id": context.id,
        "parent_id": context.parent_id,
        "actor": context.actor,
        "attempt": context.attempt,
        "last_attempt": context.last_attempt,
        "headers": context.headers,
        "deadline": context.deadline and context.deadline.isoformat(),
    }


def annotated(payload, about: Context, unused=1):  # noqa: F821
    return about.id


def by_name(payload, *, context):
    return context.id


def control(payload, context):
    if payload == "retry":
        context.retry(after=4, reason="not yet")
    if payload == "dead":
        context.dead("never")
    return [context.send("mail", {"to": payload}), context.send("log", 1)]


async def sends_only(payload, context):
    context.send("mail", payload)


def logs(payload):
    LOG.info("users' lines are shown")
    print("printed")
    return payload


def pids(payload):
    time.sleep(payload)
    return os.getpid()


def length(payload):
    return len(payload)


def produce(payload):
    return "x" * payload


def count_large(payload):
    for _ in range(payload):
        yield "x" * 10**6


def call_by_name(payload):
    name, argument = payload
    return globals()[name](argument)


def touch(payload):
    with open(payload + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(payload + ".new", payload)
    while not os.path.exists(payload + ".go"):
        time.sleep(0.001)
    return "done"
