"""How a process of OnCue lives: in which event loop, with which signals, and how it ends also when something does not.

For programs that are nothing but OnCue; it changes settings of the whole process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

_log = logging.getLogger("oncue.worker")
_T = TypeVar("_T")

_LAST_WORDS = 3.0
"""Seconds that threads which cannot be ended get once the work is over, before the process ends without them."""
_NOTICE = 0.5
"""Seconds that the event loop may take to hear of a signal."""
SAME = 0.3
"""Seconds within which a second signal is taken for the first one, passed on."""
_COLLECTED = (10_000, 10, 10)
"""New objects that may stay before the youngest are looked through, and how often that goes before older ones are."""


def run_in_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` in the fastest event loop there is; when it is over, the process has a few seconds to end.

    Threads of handlers that never return would keep it for ever; after these seconds it ends without them.
    """
    _collect_garbage_rarely()
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        code = 1
        try:
            result = runner.run(work)
            code = result if isinstance(result, int) else 0
            return result
        finally:
            threading.Thread(target=_end_anyway, args=(code, _LAST_WORDS), daemon=True).start()


def _collect_garbage_rarely() -> None:
    """Messages come and go by the thousand without cycles: looking for such costs a fifth of the time of small jobs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _end_anyway(code: int, seconds: float) -> None:
    time.sleep(seconds)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)


def _insist(code: int, heard: Callable[[], bool]) -> None:
    """End the process in a few seconds, and say so if it does not seem to have heard that it should."""
    time.sleep(_NOTICE)
    if not heard():  # in another thread, for a lock of the log may be what blocks
        threading.Thread(target=_say_blocked, daemon=True).start()
    _end_anyway(code, 2 * _LAST_WORDS - _NOTICE)


def _say_blocked() -> None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  # the only way to ask
    at = (
        ""
        if frame is None
        else f"{os.path.relpath(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
    )
    _log.error("worker.blocked", extra={"fields": {"at": at, "ends_in": 2 * _LAST_WORDS}})


@contextmanager
def signals(act: Callable[[int], None], *, insist: bool = False) -> Iterator[None]:
    """Inside the block SIGINT, SIGTERM and SIGHUP call `act` in the event loop's thread.

    A signal right after another counts as the same: programs that start others pass on what a terminal has sent to all. A
    terminal that goes away (SIGHUP) is a wish to stop like any other, unless the process was told to ignore it (nohup).
    With `insist` the second signal ends the process after a few seconds, even if user code has blocked the event loop, and
    says where it is blocked.
    """
    loop = asyncio.get_running_loop()
    acting, hearing = _Apart(), _Apart()

    def once(number: int) -> None:
        if acting.passes():
            act(number)

    def hear(number: int, _frame: object) -> None:
        if hearing.passes() and hearing.count == 2 and insist:
            heard = partial(acting.passed, 2)
            threading.Thread(target=_insist, args=(128 + number, heard), daemon=True).start()

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    wanted = [each for each in wanted if signal.getsignal(each) is not signal.SIG_IGN]
    earlier = {each: signal.getsignal(each) for each in wanted}
    for number in wanted:
        try:
            loop.add_signal_handler(number, once, int(number))
            signal.signal(number, hear)  # the loop is told all the same, and this even when the loop cannot be
        except NotImplementedError:  # Windows
            signal.signal(number, lambda caught, _frame: _act_soon(loop, once, caught))
    try:
        yield
    finally:
        for number in wanted:
            try:
                loop.remove_signal_handler(number)
            except NotImplementedError:
                signal.signal(number, earlier[number])


class _Apart:
    """Counts what happens, leaving out what comes right after another."""

    def __init__(self) -> None:
        self.count = 0
        self._last = -SAME

    def passes(self) -> bool:
        moment = time.monotonic()
        if moment - self._last < SAME:
            return False
        self._last = moment
        self.count += 1
        return True

    def passed(self, times: int) -> bool:
        return self.count >= times


def _act_soon(loop: asyncio.AbstractEventLoop, act: Callable[[int], None], number: int) -> None:
    loop.call_soon_threadsafe(act, number)
