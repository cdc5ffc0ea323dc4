"""What all groups of cases share: the hooks that a transport's author fills in, and the words that cases are written in."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import pytest

from oncue.core.errors import LeaseLostError
from oncue.core.message import Message, Send, new_id
from oncue.testing.clock import VirtualTimeLoop
from oncue.transports.base import Lease, QueueSpec, Subscription, Transport

LONG_LEASE = 600.0
"""Seconds; for cases in which no lease is meant to run out, however slow the machine."""

_LONG = 3600.0

EARLY = 0.01
"""Seconds by which clocks that are not the same may differ over one wait."""

Self = TypeVar("Self", bound="TransportCases")
Body = Callable[[Self], Coroutine[Any, Any, None]]
Test = Callable[[Self], None]


def case(*numbers: str, real_time: bool = False) -> Callable[[Body[Self]], Test[Self]]:
    """Make a coroutine method a test that needs no plugin: it runs in an event loop of its own."""

    def make(body: Body[Self]) -> Test[Self]:
        @functools.wraps(body)
        def test(self: Self) -> None:
            self.run(functools.partial(body, self), real_time=real_time)

        test.numbers = numbers  # type: ignore[attr-defined]
        return test

    return make


class TransportCases:
    """The hooks. Only `open` has to be written.

    lease: the shortest lease, in seconds, that the transport keeps well; the cases wait for several of them.
    tolerance: how late, in seconds, something that is due at a moment may happen.
    quiet: for how many seconds nothing may happen before a case believes that nothing will.
    soon: how many seconds a case waits for what has to happen at once, before it fails.
    patience: how many seconds one case may take in all; an hour in virtual time.
    silence: for how many seconds a case leaves a consumer without messages before it sends one. Where connections die of
        silence, as behind most firewalls, let a slow run of the suite take longer than that.
    virtual_time: whether all waiting of the transport is the event loop's, so that the cases can run in virtual time.
    """

    lease: ClassVar[float] = 1.0
    tolerance: ClassVar[float] = 0.5
    quiet: ClassVar[float] = 0.3
    soon: ClassVar[float] = 10.0
    patience: ClassVar[float] = 120.0
    silence: ClassVar[float] = 1.0
    virtual_time: ClassVar[bool] = False

    async def open(self) -> Transport:
        """A new connection; all connections of one test lead to the same store."""
        raise NotImplementedError("a transport's suite has to say how to open it")

    async def restart(self) -> None:
        """Stop the store or broker and start it again, while connections are open; return when it takes connections.

        Leave it out where nothing can be restarted: the cases that need it then say so.
        """
        raise NotImplementedError

    def run(self, body: Callable[[], Coroutine[Any, Any, None]], *, real_time: bool = False) -> None:
        """Run one case in an event loop of its own, and clean up after it."""
        factory = VirtualTimeLoop if self.virtual_time and not real_time else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._run(body))

    async def _run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._prefix = f"conformance-{uuid.uuid4().hex[:8]}"
        self._opened: list[Transport] = []
        self._declared: list[str] = []
        try:
            async with asyncio.timeout(_LONG if self.virtual_time else self.patience):
                await body()
        except BaseException as error:
            try:
                await self._clean_up()
            except Exception as second:
                error.add_note(f"cleaning up after it failed as well: {second!r}")
            raise
        await self._clean_up()

    async def _clean_up(self) -> None:
        async with asyncio.timeout(self.patience):
            cleaner = await self.connect()
            for queue in self._declared:
                await cleaner.delete(queue)
            for transport in reversed(self._opened):
                await transport.close()

    async def connect(self) -> Transport:
        """A new connection, closed at the end of the case."""
        transport = await self.open()
        self._opened.append(transport)
        return transport

    def name(self, label: str) -> str:
        """A queue name that no other run uses; the queue is deleted at the end of the case."""
        name = f"{self._prefix}-{label}"
        self._declared.append(name)
        return name

    async def declare(
        self,
        transport: Transport,
        label: str = "work",
        *,
        lease: float | None = None,
        fifo: bool = False,
        retention: float | None = None,
    ) -> str:
        """Declare a queue of this case, whose leases are long unless told otherwise; its name."""
        name = self.name(label)
        seconds = longest(transport, LONG_LEASE) if lease is None else lease
        await transport.declare(QueueSpec(name=name, lease=seconds, fifo=fifo, retention=retention))
        return name

    async def receive(self, *subscriptions: Subscription, within: float | None = None) -> Lease:
        """The next lease of any of `subscriptions`."""
        seconds = self.soon if within is None else within
        waiting = [asyncio.ensure_future(subscription.receive()) for subscription in subscriptions]
        try:
            done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            assert done, f"no message came within {seconds:g} s"
            return done.pop().result()
        finally:
            for task in waiting:
                task.cancel()
            late = await asyncio.gather(*waiting, return_exceptions=True)
            assert sum(not isinstance(result, BaseException) for result in late) <= 1, "one message came twice"

    async def receive_all(self, subscription: Subscription, count: int) -> list[Lease]:
        """The next `count` leases, all held at the same time."""
        return [await self.receive(subscription) for _ in range(count)]

    async def expect_nothing(self, *subscriptions: Subscription, seconds: float | None = None) -> None:
        """Fail if any message comes."""
        waiting = [asyncio.ensure_future(subscription.receive()) for subscription in subscriptions]
        done, _ = await asyncio.wait(
            waiting, timeout=self.quiet if seconds is None else seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        came = [lease.message.body for lease in results if not isinstance(lease, BaseException)]
        assert not came, f"{came} came, and nothing should have"
        for task in done:
            task.result()

    async def contents(self, transport: Transport, queue: str, count: int) -> list[bytes]:
        """Take `count` messages out of the queue, make sure that it holds no other, and return the bodies, sorted."""
        async with transport.subscribe(queue, prefetch=8) as subscription:
            bodies = []
            for _ in range(count):
                lease = await self.receive(subscription)
                bodies.append(lease.message.body)
                await lease.ack()
            await self.expect_nothing(subscription)
        return sorted(bodies)

    async def drain(self, transport: Transport, queue: str) -> list[Message]:
        """Take whatever is in the queue."""
        messages: list[Message] = []
        async with transport.subscribe(queue, prefetch=64) as subscription:
            while True:
                try:
                    async with asyncio.timeout(self.quiet):
                        lease = await subscription.receive()
                except TimeoutError:
                    return messages
                messages.append(lease.message)
                await lease.ack()

    async def run_out(self, subscription: Subscription, count: int) -> None:
        """Take `count` messages, at once if they are there, and let their leases run out, as a consumer does that dies."""
        await self.receive_all(subscription, count)
        await asyncio.sleep(self.lease + self.tolerance)

    @asynccontextmanager
    async def running(self, *consumers: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run `consumers` for as long as the block does, and cancel them at its end; fail if one of them failed."""
        tasks = [asyncio.create_task(consumer) for consumer in consumers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [error for error in results if not isinstance(error, asyncio.CancelledError | None)]
        assert not failed, f"a consumer failed: {failed[0]!r}"

    async def assert_depth(self, transport: Transport, queue: str, **expected: int) -> None:
        """Compare what the transport says that it can tell exactly; what it cannot has to be None."""
        depth = await transport.depth(queue)
        exact = transport.features.depth
        for field, count in expected.items():
            assert getattr(depth, field) == (count if field in exact else None), f"{field} is wrong in {depth}"


def longest(transport: Transport, seconds: float) -> float:
    """`seconds`, or less where leases cannot be that long."""
    cap = transport.features.lease_cap
    return seconds if cap is None else min(seconds, cap)


def need_delay(transport: Transport, seconds: float) -> None:
    """Skip the case where the transport says that it cannot delay a message for so long."""
    limit = transport.features.longest_delay
    need(limit is None or seconds <= limit, f"this transport delays a message by {limit} s at most")


def now() -> float:
    """The event loop's time, in seconds."""
    return asyncio.get_running_loop().time()


def message(body: str | bytes = b"", *, key: str | None = None) -> Message:
    """A message with a new id."""
    return Message(body.encode() if isinstance(body, str) else body, new_id(), key=key)


def sends(queue: str, bodies: Iterable[str], *, delay: float = 0.0, key: str | None = None) -> Sequence[Send]:
    """One send for each body."""
    return [Send(queue, message(body, key=key), delay) for body in bodies]


def need(available: object, reason: str) -> None:
    """Skip the case, visibly and with the reason, where the transport says that it cannot do what the case is about."""
    if not available:
        pytest.skip(reason)


async def finish(leases: Iterable[Lease]) -> None:
    """Acknowledge many at the same time."""
    await asyncio.gather(*(lease.ack() for lease in leases))


async def refused(settling: Coroutine[Any, Any, None]) -> None:
    """Fail unless the lease is refused as lost."""
    with pytest.raises(LeaseLostError):
        await settling
