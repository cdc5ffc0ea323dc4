"""Sending and receiving."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from oncue.core.errors import InvalidValueError, MessageTooLargeError, PartialSendError, QueueNotFoundError
from oncue.core.message import Message, Send
from oncue.testing.conformance.suite import TransportCases, case, message, need, now, sends
from oncue.transports.base import QueueSpec, Transport

_LARGE = 16 * 2**20
_TURNS = range(8)
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02)


class Basics(TransportCases):
    """What is sent comes out once, unchanged, to those who wait for it."""

    @case("T1")
    async def test_a_message_comes_back_byte_for_byte(self) -> None:
        """T1: bodies of any bytes, ids and keys come back as they were sent."""
        transport = await self.connect()
        queue = await self.declare(transport)
        bodies = [b"", b"x" * 1024, bytes(range(256)), b"\xff\xfe\x00", "grüße ✓".encode(), b" spaces \r\n"]
        sent = [Message(body, f"id-{index} ✓", key=key) for index, body in enumerate(bodies) for key in (None, "k", "")]
        await transport.send(*(Send(queue, each) for each in sent))
        received = []
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for _ in sent:
                lease = await self.receive(subscription)
                received.append((lease.message.id, lease.message.body, lease.message.key))
                assert lease.attempt == 1
                await lease.ack()
        assert sorted(received, key=str) == sorted(((each.id, each.body, each.key) for each in sent), key=str)

    @case("T1")
    async def test_headers_come_back_as_they_were_sent(self) -> None:
        """T1: headers are text to text, any text."""
        transport = await self.connect()
        need(transport.features.headers, "this transport carries no headers")
        queue = await self.declare(transport)
        headers = {
            "plain": "value",
            "empty": "",
            "unicode": "grüße ✓ 🎉",
            "lines": "a\r\nb",
            "quotes": "\"'\\",
            "n": "1",
        }
        await transport.send(Send(queue, Message(b"with", "1", headers)), Send(queue, Message(b"without", "2")))
        found = {}
        async with transport.subscribe(queue, prefetch=2) as subscription:
            for lease in await self.receive_all(subscription, 2):
                found[lease.message.body] = dict(lease.message.headers)
                await lease.ack()
        assert found == {b"with": headers, b"without": {}}

    @case("T2")
    async def test_a_body_of_the_largest_size_comes_back(self) -> None:
        """T2: the limit that the transport declares is one that it keeps."""
        transport = await self.connect()
        largest = transport.features.max_body
        need(largest is None or largest <= _LARGE, "the largest body is too large to be tried in a test")
        queue = await self.declare(transport)
        body = bytes(range(256)) * ((largest or 2**20) // 256)
        await transport.send(Send(queue, message(body)))
        assert await self.contents(transport, queue, 1) == [body]

    @case("T2")
    async def test_a_body_over_the_limit_is_refused_before_anything_is_stored(self) -> None:
        """T2: also when it is one of several, or goes out with an acknowledgement, which then does not happen."""
        transport = await self.connect()
        largest = transport.features.max_body
        need(largest is not None, "the transport declares no largest body")
        queue, other = await self.declare(transport), await self.declare(transport, "other")
        over = Send(other, message(bytes((largest or 0) + 1)))
        with pytest.raises(MessageTooLargeError):
            await transport.send(Send(other, message("small")), over)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            with pytest.raises(MessageTooLargeError):
                await lease.ack(over)
            await lease.ack()
        assert await self.contents(transport, other, 0) == []

    @case("T3", real_time=True)
    async def test_waiting_for_a_message_uses_no_processor_time(self) -> None:
        """T3: an idle consumer waits to be told; it does not ask in a loop."""
        transport = await self.connect()
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=4) as subscription:
            await self.expect_nothing(subscription, seconds=0.05)  # what is done once, such as connecting, is done
            used = time.process_time()
            await self.expect_nothing(subscription, seconds=0.5)
            used = time.process_time() - used
        # On a busy machine one who asks in a loop gets little time as well, so what counts is the share of what could be had.
        assert used < 0.1 * _processor_share(), f"{used:.2f} s of processor time in 0.5 s of waiting"

    @case("T3")
    async def test_a_waiting_consumer_gets_a_message_when_it_is_sent(self) -> None:
        """T3: a message that arrives ends the waiting, in any connection."""
        transport, sender = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for word in ("first", "second", "third"):
                waiting = asyncio.ensure_future(self.receive(subscription))
                await asyncio.sleep(self.quiet)
                sent = now()
                await sender.send(Send(queue, message(word)))
                lease = await waiting
                assert now() - sent <= self.tolerance
                assert lease.message.body == word.encode()
                await lease.ack()

    @case("T4")
    async def test_queues_do_not_leak_into_each_other(self) -> None:
        """T4: each queue hands out its own messages only."""
        transport = await self.connect()
        names = [await self.declare(transport, label) for label in ("one", "two", "one.two")]
        await transport.send(*(Send(name, message(f"{name} {index}")) for name in names for index in range(5)))
        contents = await asyncio.gather(*(self.contents(transport, name, 5) for name in names))
        assert contents == [[f"{name} {index}".encode() for index in range(5)] for name in names]

    @case("T5")
    async def test_consumers_of_one_queue_share_its_messages(self) -> None:
        """T5: with several subscriptions over two connections each message is handed out once."""
        connections = [await self.connect(), await self.connect()]
        queue = await self.declare(connections[0])
        wanted = [f"{index:03}" for index in range(200)]
        seen: Counter[str] = Counter()
        complete = asyncio.Event()

        async def consume(transport: Transport) -> None:
            async with transport.subscribe(queue, prefetch=5) as subscription:
                while True:
                    lease = await subscription.receive()
                    await asyncio.sleep(0)
                    seen[lease.message.body.decode()] += 1
                    await lease.ack()
                    if len(seen) == len(wanted):
                        complete.set()

        async with self.running(*(consume(connections[index % 2]) for index in range(4))):
            for start in range(0, 200, 20):
                await connections[start // 20 % 2].send(*sends(queue, wanted[start : start + 20]))
            async with asyncio.timeout(self.soon):
                await complete.wait()
            await asyncio.sleep(self.quiet)
        assert seen == Counter(wanted)

    @case("T6")
    async def test_a_consumer_that_comes_late_gets_what_was_sent_before(self) -> None:
        """T6: messages wait for their first consumer, and outlive their sender's connection."""
        transport, sender = await self.connect(), await self.connect()
        queue = await self.declare(sender)
        await sender.send(*sends(queue, ["a", "b", "c"]))
        await sender.close()
        assert await self.contents(transport, queue, 3) == [b"a", b"b", b"c"]

    @case("T6")
    async def test_a_second_connection_sees_the_same_queue(self) -> None:
        """T6: queues, messages and depth are the store's, not the connection's."""
        first, second = await self.connect(), await self.connect()
        queue = await self.declare(first)
        await second.send(Send(queue, message("hello")))
        await self.assert_depth(first, queue, ready=1, leased=0, delayed=0)
        assert queue in [spec.name for spec in await second.queues()]
        assert await self.contents(first, queue, 1) == [b"hello"]

    @case("T7")
    async def test_a_batch_is_stored_whole(self) -> None:
        """T7: batches of none, one and many, over several queues."""
        transport = await self.connect()
        one, two = await self.declare(transport, "one"), await self.declare(transport, "two")
        await transport.send()
        for size in (1, 2, 11, 300):
            bodies = [f"{index:03}" for index in range(size)]
            await transport.send(*sends(one, bodies), *sends(two, bodies))
            contents = await asyncio.gather(*(self.contents(transport, queue, size) for queue in (one, two)))
            assert contents == [[body.encode() for body in bodies]] * 2

    @case("T7")
    async def test_messages_sent_at_the_same_moment_are_all_stored(self) -> None:
        """T7: what many coroutines send at once may go out together, and each of them is told of its own."""
        transport = await self.connect()
        queue = await self.declare(transport)
        bodies = [f"{index:03}" for index in range(300)]
        results = await asyncio.gather(
            *(transport.send(Send(queue, message(body))) for body in bodies),
            transport.send(Send(self.name("missing"), message())),
            return_exceptions=True,
        )
        assert isinstance(results[-1], QueueNotFoundError)
        assert results[:-1] == [None] * 300
        assert await self.contents(transport, queue, 300) == [body.encode() for body in bodies]

    @case("T7")
    async def test_a_batch_with_one_bad_message_stores_none_or_says_which(self) -> None:
        """T7: all, none, or an error that names exactly those that are not stored."""
        transport = await self.connect()
        queue = await self.declare(transport)
        batch = [*sends(queue, ["0"]), Send(self.name("missing"), message("1")), *sends(queue, ["2"])]
        try:
            await transport.send(*batch)
        except QueueNotFoundError:
            failed = set(range(len(batch)))
        except PartialSendError as error:
            failed = set(error.failed)
        else:
            pytest.fail("a message for a queue that is not there was accepted")
        assert 1 in failed, "the error does not name the message that was at fault"
        stored = [send.message.body for index, send in enumerate(batch) if index not in failed]
        assert await self.contents(transport, queue, len(stored)) == stored

    @case("T8")
    async def test_every_allowed_name_is_a_queue_of_its_own(self) -> None:
        """T8: names that differ in case, dots, hyphens, underscores or at the 128th letter are different queues."""
        transport = await self.connect()
        labels = ["a", "A", "a.b", "a-b", "a_b", "a__b", "a--b", "ab", "0", "a.", "a-dlq"]
        names = [await self.declare(transport, label) for label in labels]
        for end in "xy":
            names.append(self.name("long-").ljust(127, "-") + end)
            self._declared.append(names[-1])
            await transport.declare(QueueSpec(name=names[-1]))
        for _ in range(2):
            await transport.send(*(Send(name, message(name)) for name in names))
        for name in (*reversed(names), *names):
            async with transport.subscribe(name, prefetch=1) as subscription:
                lease = await self.receive(subscription)
                assert lease.message.body == name.encode()
                await lease.ack()
        assert await asyncio.gather(*(self.contents(transport, name, 0) for name in names)) == [[]] * len(names)

    @case("T8")
    async def test_a_name_that_is_not_allowed_is_refused(self) -> None:
        """T8: rather than be changed into one that another queue may have."""
        transport = await self.connect()
        for name in ("", " ", "a b", "a/b", "ü", "a\n", "x" * 129, "-a", ".a", "a:b", "a*"):
            with pytest.raises(InvalidValueError):
                await transport.declare(QueueSpec(name=name))

    @case("T8")
    async def test_queues_are_listed_with_their_settings(self) -> None:
        """T8: by name, each as it was declared."""
        transport = await self.connect()
        specs = [QueueSpec(name=self.name(label), lease=30.0 + index) for index, label in enumerate("cab")]
        for spec in specs:
            await transport.declare(spec)
        listed = [spec for spec in await transport.queues() if spec.name.startswith(self._prefix)]
        assert listed == sorted(specs, key=lambda spec: spec.name)

    @case("T41")
    async def test_a_cancelled_send_is_whole_or_not_at_all(self) -> None:
        """T41: whatever the moment; and what others sent at the same time is stored all the same."""
        transport = await self.connect()
        queue, other = await self.declare(transport), await self.declare(transport, "other")
        for turns in _TURNS:
            sending = asyncio.ensure_future(transport.send(*sends(queue, ["0", "1", "2"])))
            beside = asyncio.ensure_future(transport.send(*sends(other, ["beside"])))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending, beside])
            beside.result()
            stored = sorted(each.body for each in await self.drain(transport, queue))
            assert stored == [b"0", b"1", b"2"] or (stored == [] and sending.cancelled())
        assert await self.contents(transport, other, len(_TURNS)) == [b"beside"] * len(_TURNS)

    @case("T41")
    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        """T41: a message on its way to a caller that is cancelled goes to the next one, whatever the moment."""
        transport = await self.connect()
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for moment in (*_TURNS, *_PAUSES):
                waiting = asyncio.ensure_future(subscription.receive())
                await asyncio.sleep(0.001)
                await transport.send(Send(queue, message(f"at {moment}")))
                if isinstance(moment, float):
                    await asyncio.sleep(moment)
                else:
                    for _ in range(moment):
                        await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                lease = await self.receive(subscription) if waiting.cancelled() else waiting.result()
                assert lease.message.body == f"at {moment}".encode()
                assert lease.attempt == 1 or not transport.features.free_release
                await lease.ack()


def _processor_share() -> float:
    """How much of a processor this process gets at the moment when it wants all of it; blocks for a moment."""
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() < began + 0.2:
        pass
    return (time.process_time() - used) / (time.monotonic() - began)
