"""Subscriptions that share a connection and have plenty waiting ask in turn."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

import msgspec
from transports.nats.support import Wire, depth, opened, other_program, settled_down
from transports.words import receive

from oncue.core.errors import ConnectionLostError, LeaseLostError
from oncue.core.message import Message, Send
from oncue.transports.base import Subscription
from oncue.transports.nats.turns import AT_ONCE, Turns


class Party:
    """Somebody who takes turns."""

    def __init__(self, turns: Turns, began: list[Party]) -> None:
        self.turns, self.began = turns, began

    def begin(self) -> None:
        self.began.append(self)


async def test_turns_are_had_in_the_order_of_asking_and_so_many_at_a_time() -> None:
    turns, began = Turns(), []
    begins = [Party(turns, began).begin for _ in range(AT_ONCE + 3)]
    parties = [begin.__self__ for begin in begins]
    for begin in begins + begins:  # asking twice does not matter
        turns.ask(begin)
    assert began == parties[:AT_ONCE]
    turns.over(begins[-2])  # does not want it any more
    turns.over(begins[0])
    turns.ask(begins[0])  # once more, behind the others
    turns.over(begins[1])
    turns.over(begins[2])
    assert began == [*parties[:AT_ONCE], parties[-3], parties[-1], parties[0]]


async def test_whoever_takes_long_keeps_nobody_waiting() -> None:
    turns, began = Turns(), []
    begins = [Party(turns, began).begin for _ in range(3 * AT_ONCE)]
    for begin in begins:
        turns.ask(begin)
    async with asyncio.timeout(10):
        while len(began) < len(begins):
            await asyncio.sleep(0.01)


async def test_many_full_queues_are_drained_with_few_requests_and_each_has_its_turn(url: str) -> None:
    queues, jobs, hands = [f"work{number}" for number in range(30)], 600, 200
    asked: list[int] = []
    order: list[str] = []

    async def work(subscription: Subscription, queue: str) -> None:
        for _ in range(jobs // hands):
            lease = await receive(subscription)
            order.append(queue)
            await lease.ack()

    async with opened(url, *queues) as transport, other_program(url) as stream, AsyncExitStack() as stack:
        for queue in queues:
            await transport.send(*(Send(queue, Message(b"", str(number))) for number in range(jobs)))
        client = stream._nc

        async def hear(request: object) -> None:
            asked.append(msgspec.json.decode(request.data)["batch"])  # type: ignore[attr-defined]

        await client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=hear)
        await client.flush()
        subscriptions = [
            await stack.enter_async_context(transport.subscribe(queue, prefetch=hands)) for queue in queues
        ]
        async with asyncio.TaskGroup() as group:
            for queue, subscription in zip(queues, subscriptions, strict=True):
                for _ in range(hands):
                    group.create_task(work(subscription, queue))
        await client.flush()
        assert [await depth(transport, queue) for queue in queues] == [(0, 0, 0)] * len(queues)
    assert Counter(order) == dict.fromkeys(queues, jobs)
    assert len(asked) < jobs * len(queues) / 50, Counter(asked)
    assert {*order[: len(order) // 2]} == {*queues}


async def test_connections_that_are_cut_and_receivers_that_are_cancelled_lose_nothing_and_no_turn(url: str) -> None:
    queues, jobs, hands = [f"work{number}" for number in range(20)], 300, 200
    rng = random.Random(9)
    done: Counter[tuple[str, str]] = Counter()

    async def work(subscription: Subscription, queue: str) -> None:
        while True:
            try:
                lease = await receive(subscription, within=rng.uniform(0.05, 1.0))
                await lease.ack()
            except (TimeoutError, ConnectionLostError, LeaseLostError):
                await asyncio.sleep(0.02)
            else:
                done[queue, lease.message.id] += 1

    async with (
        Wire(url) as wire,
        opened(url, *queues, lease=2.0) as observer,
        opened(wire.url, *queues, lease=2.0) as transport,
    ):
        for queue in queues:
            await observer.send(*(Send(queue, Message(b"", str(number))) for number in range(jobs)))
        async with AsyncExitStack() as stack:
            subscriptions = [
                await stack.enter_async_context(transport.subscribe(queue, prefetch=hands)) for queue in queues
            ]
            tasks = [
                asyncio.create_task(work(subscription, queue))
                for queue, subscription in zip(queues, subscriptions, strict=True)
                for _ in range(20)
            ]
            for _ in range(6):
                wire.answers = rng.randrange(20_000, 200_000)
                await asyncio.sleep(0.15)
            wire.answers = None
            await settled_down(observer, *queues)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert wire.cuts > 3
    # What was acknowledged just before a cut may have been done all the same: it never comes again, and nobody heard of that.
    assert len(done) > 0.9 * jobs * len(queues)
