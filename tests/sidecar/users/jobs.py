"""Handlers as people write them, for sidecars to be tested with."""

import os
import signal
import time


def echo(payload):
    return payload


def double(payload):
    return payload * 2


def work(task):
    """Does what the payload says."""
    what = task.get("do", "echo")
    if what == "echo":
        return task
    if what == "nothing":
        return None
    if what == "none_of_them":
        return []
    if what == "fan":
        return list(range(task["n"]))
    if what == "fail":
        raise ValueError(task.get("text", "no"))
    if what == "hang":
        time.sleep(task.get("seconds", 3600))
    if what == "pause":
        time.sleep(task["seconds"])
    if what == "nan":
        return float("nan")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kill_all":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if what == "wait":
        with open(task["gate"]) as gate:
            gate.read()
        return "waited"
    return task


def route(envelope):
    """In envelope mode: goes on as the payload says."""
    wanted = envelope["payload"].get("route", {})
    route = {**envelope["route"], **wanted}
    if "current" not in wanted:
        route["current"] = envelope["route"]["current"] + 1
    return {**envelope, "route": route, "payload": envelope["payload"].get("result")}


def end(envelope):
    """An end actor of the user's own."""
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(envelope["id"] + "\n")
    if envelope["payload"] == "crash":
        raise ValueError("the end failed")
    return {}
