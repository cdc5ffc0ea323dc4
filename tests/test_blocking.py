"""The blocking face: from any thread, in no event loop, across a fork, and interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oncue import App, BlockingApp, Retry
from oncue.core.errors import (
    ActorFailedError,
    CallTimeoutError,
    ConfigError,
    InvalidValueError,
    TransportClosedError,
    UnknownActorError,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


def greeting_app(url: str) -> App:
    app = App(url)

    @app.actor
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    @app.actor(retry=Retry(max_attempts=1))
    def fail(payload: Any) -> None:
        raise LookupError("not there")

    return app


@contextmanager
def worker(url: str) -> Iterator[None]:
    """The actors at work in another thread's event loop."""
    ready, loops, ends = threading.Event(), [], []

    async def work() -> None:
        ended = asyncio.Event()
        async with greeting_app(url).working():
            loops.append(asyncio.get_running_loop())
            ends.append(ended)
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loops[0].call_soon_threadsafe(ends[0].set)
        thread.join(30)


def background_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "oncue-blocking"]


def test_the_same_verbs_without_asyncio(url: str) -> None:
    app = greeting_app(url)
    with worker(url), app.blocking() as jobs:
        assert isinstance(jobs, BlockingApp)
        assert jobs.send("greet", "Ada", id="m") == "m"
        assert len(jobs.send_many(app.actors["greet"], (name for name in ("Grace", "Edsger")))) == 2
        assert jobs.call("greet", "Barbara", timeout=30) == "Hello, Barbara!"
        with pytest.raises(ActorFailedError, match="not there"):
            jobs.call("fail", 1, timeout=30)
    assert background_threads() == []


def test_errors_are_raised_where_the_verb_was_called(url: str) -> None:
    with greeting_app(url).blocking() as jobs:
        with pytest.raises(UnknownActorError, match="did you mean 'greet'"):
            jobs.send("gret", 1)
        with pytest.raises(InvalidValueError, match="delay -1"):
            jobs.send("greet", 1, delay=-1)
        with pytest.raises(CallTimeoutError):
            jobs.call("greet", "Ada", timeout=0.05)


def test_many_threads_may_use_it(url: str) -> None:
    app = greeting_app(url)
    with worker(url), app.blocking() as jobs, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: jobs.call("greet", str(number), timeout=30), range(40)))
    assert results == [f"Hello, {number}!" for number in range(40)]


def test_it_can_be_opened_and_closed_again_and_again(url: str) -> None:
    jobs = greeting_app(url).blocking()
    for _ in range(2):
        jobs.open()
        jobs.open()
        jobs.send("greet", "Ada")
        jobs.close()
        jobs.close()
        with pytest.raises(ConfigError, match="not open"):
            jobs.send("greet", "Ada")
    assert background_threads() == []


def test_a_failure_to_connect_is_raised_and_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Exception, match="file"), greeting_app(f"sqlite:///{tmp_path}/file/jobs.db").blocking():
        raise AssertionError
    assert background_threads() == []
    with pytest.raises(InvalidValueError, match="unknown scheme"), greeting_app("other:x").blocking():
        raise AssertionError


def test_a_call_that_waits_when_another_thread_closes_ends_with_an_error(url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with greeting_app(url).blocking() as jobs:
            jobs.send("greet", "first")
            call = pool.submit(jobs.call, "greet", "Ada")
            while not any(name.startswith("oncue-reply-") for name in queue_names(jobs)):
                assert not call.done()
        with pytest.raises(TransportClosedError):
            call.result(30)


def queue_names(jobs: BlockingApp) -> list[str]:
    async def names() -> list[str]:
        connection = jobs._app._connection
        assert connection is not None
        return [spec.name for spec in await connection.transport.queues()]

    return jobs._run(names)


def test_it_is_not_used_from_inside_of_its_own_event_loop(url: str) -> None:
    with greeting_app(url).blocking() as jobs:

        async def inside() -> None:
            with pytest.raises(ConfigError, match="would wait for itself"):
                jobs.send("greet", "Ada")

        jobs._run(inside)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_after_a_fork_the_child_is_told_to_open_its_own(url: str) -> None:
    program = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from oncue import App, ConfigError
app = App({url!r})
app.actor(name="greet")(len)
jobs = app.blocking()
jobs.open()
jobs.send("greet", 1)
child = os.fork()
if not child:
    try:
        jobs.send("greet", 2)
    except ConfigError as error:
        print(error, flush=True)
    with App({url!r}).blocking() as own:
        own.send("greet", 3)
    jobs.open()
    jobs.send("greet", 3)
    jobs.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
jobs.send("greet", 4)
jobs.close()
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "was forked from the one that opened" in shown.stdout


@pytest.mark.skipif(os.name == "nt", reason="this platform sends no SIGINT to one process")
def test_ctrl_c_cancels_what_waits_and_leaves_no_mess(url: str) -> None:
    program = f"""
from oncue import App
app = App({url!r})
app.actor(name="greet")(len)
with app.blocking() as jobs:
    print("waiting", flush=True)
    jobs.call("greet", 1)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    # Once its reply queue is there it waits for nothing but the reply.
    with App(url).blocking() as jobs:
        while not any(name.startswith("oncue-reply-") for name in queue_names(jobs)):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert "never awaited" not in errors
        assert "destroyed" not in errors
        assert not any(name.startswith("oncue-reply-") for name in queue_names(jobs)), "its reply queue is gone"
