"""The same verbs for programs without asyncio: an event loop in a background thread, and calls that wait for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent import futures
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from oncue.context import Named
from oncue.core.errors import ConfigError, TransportClosedError

if TYPE_CHECKING:
    from oncue.app import App

T = TypeVar("T")

_SLICE = 0.5
"""Seconds between looks at whether the program was interrupted."""
_ENDING = 10.0
"""Seconds that the background thread has to end."""


class BlockingApp:
    """An app's verbs, each of which blocks until it is done; any thread may use them.

    Open it with `with`, or with `open` and `close`. It belongs to the process that opened it: after a fork, the child
    opens one of its own.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect; raise what `async with app` raises. Opened again: nothing."""
        with self._lock:
            if self._loop is not None and self._process == os.getpid():
                return
            self._process = os.getpid()
            loop = asyncio.new_event_loop()
            # A daemon, so that a program that forgot to close can still end.
            thread = threading.Thread(target=_serve, args=(loop,), name="oncue-blocking", daemon=True)
            thread.start()
            try:
                _wait(self._app.__aenter__(), loop)
            except BaseException:
                _end(loop, thread)
                raise
            self._loop, self._thread = loop, thread

    def close(self) -> None:
        """Disconnect and end the background thread; calls that still wait in other threads end with an error. May be
        called twice."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._process != os.getpid():
            return
        try:
            _wait(self._app.__aexit__(None, None, None), loop)
        finally:
            _end(loop, thread)

    def send(
        self,
        actor: str | Named,
        payload: Any = None,
        *,
        delay: float = 0.0,
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """As `App.send`: returns the message's id once it is stored."""
        return self._run(
            lambda: self._app.send(actor, payload, delay=delay, id=id, key=key, route=route, headers=headers)
        )

    def send_many(
        self,
        actor: str | Named,
        payloads: Iterable[Any],
        *,
        delay: float = 0.0,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """As `App.send_many`; `payloads` is gone through in the caller's thread."""
        collected = list(payloads)
        return self._run(lambda: self._app.send_many(actor, collected, delay=delay, route=route, headers=headers))

    def call(
        self,
        actor: str | Named,
        payload: Any = None,
        *,
        timeout: float | None = None,
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> Any:
        """As `App.call`: returns the result, or raises `ActorFailedError` or `CallTimeoutError`."""
        return self._run(
            lambda: self._app.call(actor, payload, timeout=timeout, id=id, key=key, route=route, headers=headers)
        )

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._loop
        if loop is None:
            raise ConfigError("the blocking app is not open: use it inside of `with app.blocking() as jobs:`")
        if self._process != os.getpid():
            raise ConfigError("this process was forked from the one that opened the blocking app: open one here")
        if threading.current_thread() is self._thread:
            raise ConfigError("the blocking app was used inside of its own event loop, which would wait for itself")
        return _wait(work(), loop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels what is left and closes the loop
            runner.get_loop()


def _wait(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """What `work` returns in `loop`; interrupted, as by Ctrl-C, it is cancelled there before the interruption goes on.

    Raise `TransportClosedError` when another thread closes the app meanwhile.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # the loop is closed
        work.close()
        raise TransportClosedError from None
    try:
        # In slices, since a signal that comes just before a thread falls asleep does not wake it.
        while not futures.wait([future], _SLICE).done:
            if loop.is_closed():
                work.close()
                raise TransportClosedError
        return future.result()
    except futures.CancelledError:
        raise TransportClosedError from None
    except BaseException:
        future.cancel()
        raise


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_ENDING)
