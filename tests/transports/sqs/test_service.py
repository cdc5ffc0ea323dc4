"""What the service may answer on a bad day: too much, not now, this entry not, no such queue yet. Nothing is lost or said wrongly."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import Any

import pytest
from brokers.sqs_server import SQSServer
from transports.sqs.front import Asked, Front, failed, refusal
from transports.sqs.support import opened, taken
from transports.words import receive, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    PartialSendError,
    QueueNotFoundError,
    ThrottledError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec

BATCHES = ("SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")


@pytest.mark.parametrize(("code", "status"), [("ThrottlingException", 400), ("ServiceUnavailable", 503)])
async def test_what_is_refused_now_and_then_is_asked_again_and_nobody_notices(
    sqs_server: SQSServer, code: str, status: int
) -> None:
    turns = count()
    async with Front(sqs_server.endpoint) as front, opened(front.url("&depth=approximate")) as (transport, queue):
        front.refuse = lambda _: refusal(code, status) if next(turns) % 3 == 0 else None
        await transport.send(*sends(50, queue))
        seen: Counter[str] = Counter()
        async with transport.subscribe(queue, prefetch=20) as subscription:
            while len(seen) < 50:
                lease = await receive(subscription)
                seen[lease.message.id] += 1
                await lease.ack()
        front.refuse = lambda _: None
        assert await taken(transport, queue) == []
    assert set(seen.values()) == {1}


async def test_what_is_refused_for_as_long_as_it_may_take_is_throttled(sqs_server: SQSServer) -> None:
    async with (
        Front(sqs_server.endpoint) as front,
        opened(front.url("&timeout=1.5")) as (transport, queue),
        transport.subscribe(queue, prefetch=1) as subscription,
    ):
        front.refuse = lambda _: refusal("ThrottlingException")
        with pytest.raises(ThrottledError, match="asked too often"):
            await transport.send(*sends(1, queue))
        with pytest.raises(ThrottledError):
            async with asyncio.timeout(10):
                await subscription.receive()
        assert len(front.operations("SendMessageBatch")) < 12, "the pauses between attempts grow"
        front.refuse = lambda _: None
        await transport.send(*sends(1, queue))
        assert (await receive(subscription)).message.id == "0"


async def test_a_page_of_html_that_something_between_answers_with_is_one_line(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url("&timeout=3")) as (transport, queue):
        page = "<html>\n  <h1>Bad gateway</h1>\n" + "<p>sorry</p>\n" * 1000
        front.refuse = lambda _: (502, {"__type": "502", "message": page})
        with pytest.raises(ConnectionLostError, match="Bad gateway") as caught:
            await transport.send(*sends(1, queue))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        front.refuse = lambda _: None


async def test_too_many_messages_under_way_is_waited_for(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url()) as (transport, queue):
        await transport.send(*sends(1, queue))
        refused = iter(range(3))
        front.refuse = lambda asked: (
            refusal("OverLimit", 403)
            if asked.operation == "ReceiveMessage" and next(refused, None) is not None
            else None
        )
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await subscription.receive()
            assert next(refused, None) is None
            await lease.ack()


async def test_an_acknowledgement_is_not_asked_for_again_when_its_lease_is_over(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url(), lease=1.5) as (transport, queue):
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            front.refuse = lambda asked: refusal("ThrottlingException") if asked.operation == BATCHES[1] else None
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises((ThrottledError, LeaseLostError)):
                await lease.ack()
            assert loop.time() - began < 1.6
            front.refuse = lambda _: None
            lease = await receive(subscription)
            assert lease.attempt == 2
            await lease.ack()


class Some:
    """Has the service fail some entries of a batch: they are taken out of what is asked, and answered as failed."""

    def __init__(self, operation: str, code: str, *, fault: bool = False, times: int = 1, silent: bool = False) -> None:
        self.operation, self.code, self.fault, self.silent = operation, code, fault, silent
        self.left = times
        self.out: dict[int, list[Any]] = {}
        self.hit: Counter[str] = Counter()

    def __call__(self, asked: Asked, answer: dict[str, Any] | None) -> None:
        if asked.operation != self.operation:
            return
        if answer is None:
            out = self.out[id(asked)] = asked.what["Entries"][1::2] if self.left > 0 else []
            self.left -= bool(out)
            asked.what["Entries"] = [entry for entry in asked.what["Entries"] if entry not in out]
            self.hit.update(entry.get("MessageBody", "") for entry in out)
        elif not self.silent:
            out = [failed(entry, self.code, fault=self.fault) for entry in self.out[id(asked)]]
            answer["Failed"] = [*answer.get("Failed", []), *out]


async def test_entries_that_fail_for_now_are_sent_again_and_the_others_are_not(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url("&depth=approximate")) as (transport, queue):
        for code in ("InternalError", "ThrottlingException"):
            front.change = some = Some("SendMessageBatch", code, times=3)
            await transport.send(*sends(20, queue))
            assert some.left == 0
            assert Counter(await taken(transport, queue)) == Counter(map(str, range(20)))


async def test_entries_that_fail_for_good_are_named_and_the_others_are_stored(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url("&depth=approximate")) as (transport, queue):
        front.change = some = Some("SendMessageBatch", "InvalidMessageContents", fault=True)
        with pytest.raises(PartialSendError, match="InvalidMessageContents") as caught:
            await transport.send(*(Send(queue, Message(str(number).encode(), str(number))) for number in range(25)))
        assert {str(position) for position in caught.value.failed} == set(some.hit)
        assert len(some.hit) == 5
        stored = set(await taken(transport, queue))
        assert stored == {str(number) for number in range(25)} - set(some.hit)


async def test_entries_that_are_not_answered_are_not_said_to_be_stored(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url("&depth=approximate")) as (transport, queue):
        front.change = some = Some("SendMessageBatch", "", silent=True)
        with pytest.raises(PartialSendError) as caught:
            await transport.send(*sends(10, queue))
        assert {type(error) for error in caught.value.failed.values()} == {ConnectionLostError}
        assert some.left == 0
        assert set(await taken(transport, queue)) == {str(number) for number in range(0, 10, 2)}


async def test_acknowledgements_that_fail_in_part_are_told_apart(sqs_server: SQSServer) -> None:
    async with (
        Front(sqs_server.endpoint) as front,
        opened(front.url("&depth=approximate"), lease=30.0) as (transport, queue),
    ):
        await transport.send(*sends(10, queue))
        async with transport.subscribe(queue, prefetch=10) as subscription:
            leases = [await receive(subscription) for _ in range(10)]
            front.change = Some("ChangeMessageVisibilityBatch", "InternalError")
            await asyncio.gather(*(lease.extend(40) for lease in leases))
            front.change = Some("DeleteMessageBatch", "InternalError")
            await asyncio.gather(*(lease.ack() for lease in leases[:4]))
            front.change = Some("DeleteMessageBatch", "ReceiptHandleIsInvalid", fault=True)
            ended = await asyncio.gather(*(lease.ack() for lease in leases[4:]), return_exceptions=True)
            assert [type(error) for error in ended] == [type(None), LeaseLostError] * 3
            front.change = lambda _asked, _answer: None
        place = await transport.desk.queues.place(queue)
        words = {"QueueUrl": place.url, "AttributeNames": ["ApproximateNumberOfMessagesNotVisible"]}
        left = await transport.desk.calls.ask("get_queue_attributes", **words)
        assert left["Attributes"]["ApproximateNumberOfMessagesNotVisible"] == "3"


async def test_a_batch_that_is_too_large_as_a_whole_is_sent_one_by_one(sqs_server: SQSServer) -> None:
    """As where a queue takes less than we were told: `size` is a mebibyte here, and what is there takes a quarter."""
    url = sqs_server.url.replace("&size=262144", "")
    async with opened(f"{url}&depth=approximate") as (transport, queue):
        fits = [Send(queue, Message(b"x" * 100_000, str(number))) for number in range(5)]
        with pytest.raises(PartialSendError, match="over the limit") as caught:
            await transport.send(*fits, Send(queue, Message(b"x" * 300_000, "large")))
        assert list(caught.value.failed) == [5]
        assert Counter(await taken(transport, queue)) == Counter("01234")


async def test_a_queue_that_was_just_made_may_not_be_known_everywhere_yet(sqs_server: SQSServer) -> None:
    made: list[float] = []
    async with Front(sqs_server.endpoint) as front:
        loop = asyncio.get_running_loop()

        def refuse(asked: Asked) -> tuple[int, Any] | None:
            if asked.operation == "CreateQueue":
                made.append(loop.time())
            young = made and loop.time() - made[-1] < 0.7
            return refusal("QueueDoesNotExist") if young and "QueueUrl" in asked.what else None

        front.refuse = refuse
        async with opened(front.url()) as (transport, queue):
            await transport.send(*sends(1, queue))
            async with transport.subscribe(queue, prefetch=1) as subscription:
                await (await receive(subscription)).ack()
            made.clear()
            await transport.delete(queue)
            began = loop.time()
            with pytest.raises(QueueNotFoundError):
                await transport.send(*sends(1, queue))
            assert loop.time() - began < 2, "one that was deleted is not waited for"


async def test_a_queue_that_was_just_deleted_is_made_again_when_that_is_allowed(
    sqs_server: SQSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncue.transports.sqs.queues._PAUSE", 0.1)
    refused = iter(range(3))
    async with Front(sqs_server.endpoint) as front:
        front.refuse = lambda asked: (
            refusal("QueueDeletedRecently")
            if asked.operation == "CreateQueue" and next(refused, None) is not None
            else None
        )
        async with opened(front.url()) as (transport, queue):
            await transport.send(*sends(1, queue))
    assert len(front.operations("CreateQueue")) == 4


async def test_credentials_that_run_out_are_told_and_new_ones_are_used(sqs_server: SQSServer) -> None:
    async with (
        Front(sqs_server.endpoint) as front,
        opened(front.url()) as (transport, queue),
        transport.subscribe(queue, prefetch=1) as subscription,
    ):
        front.refuse = lambda _: refusal("ExpiredToken", 403)
        with pytest.raises(AccessDeniedError, match="ExpiredToken"):
            await transport.send(*sends(1, queue))
        with pytest.raises(AccessDeniedError):
            async with asyncio.timeout(10):
                await subscription.receive()
        front.refuse = lambda _: None
        await transport.send(*sends(1, queue))
        await (await receive(subscription)).ack()


async def test_a_worker_needs_no_rights_but_those_of_the_page(sqs_server: SQSServer) -> None:
    """Tags, attributes and lists may be forbidden to one who uses queues that others made."""
    needed = {"GetQueueUrl", "ReceiveMessage", *BATCHES}
    async with opened(sqs_server.url) as (_, queue), Front(sqs_server.endpoint) as front:
        front.refuse = lambda asked: None if asked.operation in needed else refusal("AccessDeniedException", 403)
        async with opened(front.url(), queue) as (transport, _):
            await transport.send(*sends(2, queue))
            async with transport.subscribe(queue, prefetch=1) as subscription:
                await (await receive(subscription)).nack()
                await (await receive(subscription)).ack(*sends(1, queue, first=7))
            with pytest.raises(AccessDeniedError, match="denied"):
                await transport.queues()
            front.refuse = lambda _: None


async def test_what_no_message_may_hold_is_refused_before_it_is_asked(url: str) -> None:
    async with opened(url) as (transport, queue):
        before = transport.desk.calls.count.total()
        with pytest.raises(InvalidValueError, match="Unicode"):
            await transport.send(Send(queue, Message(b"", "\ud800")))
        with pytest.raises(InvalidValueError, match="lease"):
            await transport.declare(QueueSpec(name=f"{queue}-x", lease=43_200.0))
        assert transport.desk.calls.count.total() == before
