"""Dead letters, which `oncue.dead` makes out of the contract and which therefore have to work on every transport."""

from __future__ import annotations

import asyncio

from oncue.core.failure import Failure
from oncue.core.message import Message, Send, new_id
from oncue.core.times import timestamp
from oncue.dead import (
    SENT_AT,
    DeadFilter,
    DeadLetter,
    dead_letter,
    dead_queue_name,
    discard,
    find_dead,
    list_dead,
    redrive,
)
from oncue.testing.conformance.suite import TransportCases, case, need
from oncue.transports.base import QueueSpec, Transport

_FAILURES = tuple(
    Failure("processing_error", type, f"{type} ✓", traceback="first\nlast") for type in ("ValueError", "KeyError")
)


class DeadLetters(TransportCases):
    """What is given up is kept whole with its reason, can be looked at, and can be put back."""

    @case("T12")
    async def test_a_rejected_message_is_set_aside_with_its_reason(self) -> None:
        """T12: with the acknowledgement of its last attempt: reason, origin, attempts, times, and the message as it was."""
        transport, queue, dead = await self._queues()
        sent = Message(b"\x00work", new_id(), {"a": "b", SENT_AT: timestamp()}, "k")
        await transport.send(Send(queue, sent))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await (await self.receive(subscription)).nack()
            lease = await self.receive(subscription)
            await lease.ack(dead_letter(queue, lease.message, _FAILURES[0], lease.attempt))
            await self.expect_nothing(subscription)
        async with transport.subscribe(dead, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            letter = DeadLetter.parse(dead, lease.message)
            assert lease.attempt == 1
            assert letter.original == sent
            assert (letter.queue, letter.attempts) == (queue, 2)
            assert (letter.reason, letter.type, letter.message) == ("processing_error", "ValueError", "ValueError ✓")
            assert letter.traceback == "first\nlast"
            assert letter.first is not None
            assert letter.last is not None
            await lease.ack()

    @case("T26")
    async def test_looking_at_dead_letters_changes_nothing(self) -> None:
        """T26: they are shown oldest first, as often as one likes, and neither counted, hidden nor moved by it."""
        transport, _, dead = await self._queues()
        need(transport.features.peek, "this transport cannot show messages without hiding them for a moment")
        bodies = await self._bury(transport, 30)
        for _ in range(3):
            letters = await list_dead(transport, dead)
            assert [letter.stored.body for letter in letters] == bodies
        assert [letter.stored.body for letter in await list_dead(transport, dead, limit=3)] == bodies[:3]
        found = await find_dead(transport, dead, letters[7].id)
        assert found == letters[7]
        await self.assert_depth(transport, dead, ready=30, leased=0, delayed=0)
        async with transport.subscribe(dead, prefetch=30) as subscription:
            leases = await self.receive_all(subscription, 30)
            assert {lease.attempt for lease in leases} == {1}
            assert len(await transport.peek(dead, limit=100)) in {0, 30}  # whether what is leased is shown is left open
            for lease in leases:
                await lease.extend(10)

    @case("T26")
    async def test_dead_letters_that_were_looked_at_are_still_there(self) -> None:
        """T26: they are shown whole, oldest first, and can be taken afterwards, also where a look hides them for a moment."""
        transport, _, dead = await self._queues()
        bodies = await self._bury(transport, 30)
        letters = await list_dead(transport, dead)
        assert [(letter.stored.body, letter.attempts) for letter in letters] == [(body, 3) for body in bodies]
        assert await self.contents(transport, dead, 30) == sorted(bodies)

    @case("T26")
    async def test_redriven_messages_start_anew_with_their_id(self) -> None:
        """T26: body, id, key, headers and sending time as they were, the reason gone, attempts from 1."""
        transport, queue, dead = await self._queues()
        sent = Message(b"work", new_id(), {"a": "b", SENT_AT: timestamp()}, "k")
        await transport.send(Send(queue, sent))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for _ in range(2):
                await (await self.receive(subscription)).nack()
            lease = await self.receive(subscription)
            await lease.ack(dead_letter(queue, lease.message, _FAILURES[0], lease.attempt))
            assert (await redrive(transport, dead)).count == 1
            lease = await self.receive(subscription)
            assert lease.message == sent
            assert lease.attempt == 1
            await lease.ack()
        assert await self.contents(transport, dead, 0) == []

    @case("T26")
    async def test_redrive_takes_as_many_as_asked_and_those_that_match(self) -> None:
        """T26: the rest stay as they are, uncounted where releasing is free."""
        transport, queue, dead = await self._queues()
        bodies = await self._bury(transport, 20)
        assert (await redrive(transport, dead, limit=3)).count == 3
        redriven = [each.body for each in await self.drain(transport, queue)]
        assert len(redriven) == 3
        errors = DeadFilter(errors=frozenset({"KeyError"}))
        expected = [body for body in bodies if body.startswith(b"KeyError") and body not in redriven]
        assert (await redrive(transport, dead, errors)).count == len(expected)
        assert await self.contents(transport, queue, len(expected)) == sorted(expected)
        async with transport.subscribe(dead, prefetch=20) as subscription:
            left = await self.receive_all(subscription, 20 - 3 - len(expected))
            assert {lease.attempt for lease in left} == {1} or not transport.features.free_release
            assert sorted([*redriven, *expected, *(lease.message.body for lease in left)]) == sorted(bodies)
            await self.expect_nothing(subscription)

    @case("T26")
    async def test_an_interrupted_redrive_loses_none(self) -> None:
        """T26: each message is in its queue or with the dead letters; in both at most where acks are not atomic."""
        transport, queue, dead = await self._queues()
        for interrupted_at in (1, 5, 20):
            bodies = await self._bury(transport, 40)
            going: list[asyncio.Task[object]] = []

            def count(gone: int, at: int = interrupted_at, going: list[asyncio.Task[object]] = going) -> None:
                if gone == at:
                    going[0].cancel()

            going.append(asyncio.ensure_future(redrive(transport, dead, progress=count)))
            await asyncio.wait(going)
            found = [each.body for name in (queue, dead) for each in await self.drain(transport, name)]
            assert set(found) == set(bodies)
            assert len(found) == len(bodies) or not transport.features.atomic_ack

    @case("T26")
    async def test_discarded_letters_are_gone_and_no_others(self) -> None:
        """T26: by id, and then all."""
        transport, queue, dead = await self._queues()
        bodies = await self._bury(transport, 10)
        async with transport.subscribe(dead, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            chosen = lease.message
            await lease.release()
        assert (await discard(transport, dead, DeadFilter(ids=frozenset({chosen.id})))).count == 1
        assert await self.contents(transport, queue, 0) == []
        await self.assert_depth(transport, dead, ready=9)
        assert (await discard(transport, dead)).count == len(bodies) - 1
        assert await self.contents(transport, dead, 0) == []

    async def _queues(self) -> tuple[Transport, str, str]:
        transport = await self.connect()
        need(transport.features.headers, "this transport carries no headers, and so no reasons")
        queue = await self.declare(transport)
        dead = dead_queue_name(queue)
        self._declared.append(dead)
        await transport.declare(QueueSpec(name=dead))
        return transport, queue, dead

    async def _bury(self, transport: Transport, count: int) -> list[bytes]:
        """Make dead letters with the two failures in turn; their bodies in order, which begin with the error's name."""
        queue = self._declared[0]
        letters = []
        for index in range(count):
            failure = _FAILURES[index % 2]
            body = f"{failure.type} {index:03}".encode()
            letters.append(dead_letter(queue, Message(body, new_id()), failure, 3))
        await transport.send(*letters)
        return [letter.message.body for letter in letters]
