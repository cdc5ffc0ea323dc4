"""What the service says and the emulator never does: throttling, missing permissions, trouble with one settlement of many.

A server of this process answers as the service is documented to do.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from transports.words import receive, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    LeaseLostError,
    QueueNotFoundError,
    ThrottledError,
)
from oncue.transports.base import QueueSpec
from oncue.transports.pubsub import calls, open_pubsub, wire

Answer = Callable[[Any], Any]
OPERATIONS = {
    f"/google.pubsub.v1.{each.service}/{each.name}": each
    for each in vars(calls).values()
    if isinstance(each, calls.Operation)
}


class Refused(Exception):
    """What the server is to say instead of an answer."""

    def __init__(self, code: Any, text: str = "", ids: dict[str, str] | None = None) -> None:
        self.code, self.text, self.ids = code, text, ids


class Service(grpc.GenericRpcHandler):
    """Answers each operation by what is in `answers`, one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.asked: dict[str, list[Any]] = defaultdict(list)

    def service(self, details: Any) -> Any:
        operation = OPERATIONS[details.method]

        async def handle(request: Any, context: Any) -> Any:
            self.asked[operation.name].append(request)
            waiting = self.answers[operation.name]
            try:
                return (waiting.pop(0) if len(waiting) > 1 else waiting[0])(request)
            except Refused as refusal:
                if refusal.ids is not None:
                    info = ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", metadata=refusal.ids)
                    packed = Packed()
                    packed.Pack(info)
                    status = Status(code=refusal.code.value[0], details=[packed])
                    context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
                await context.abort(refusal.code, refusal.text)

        return grpc.unary_unary_rpc_method_handler(
            handle, operation.request.FromString, operation.answer.SerializeToString
        )


def says(code: Any, text: str = "", ids: dict[str, str] | None = None) -> Answer:
    def answer(_: Any) -> Any:
        raise Refused(code, text, ids)

    return answer


def with_(message: Any) -> Answer:
    return lambda _: message


@asynccontextmanager
async def service() -> AsyncIterator[tuple[Service, str]]:
    """One whose project has the queue `work`; and its URL."""
    found = Service()
    root = "projects/my-project"
    queue = wire.Subscription(
        name=f"{root}/subscriptions/work",
        topic=f"{root}/topics/work",
        ack_deadline_seconds=60,
        enable_exactly_once_delivery=True,
    )
    missing = says(grpc.StatusCode.NOT_FOUND, "Resource not found (resource=oncue-is-anybody-there).")
    found.answers["GetSubscription"] = [lambda asked: queue if asked.subscription.endswith("/work") else missing(asked)]
    server = aio.server()
    server.add_generic_rpc_handlers((found,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield found, f"pubsub://my-project?emulator=127.0.0.1:{port}&timeout=2&wait=0.3"
    finally:
        await server.stop(None)


async def test_what_is_throttled_is_asked_again_for_a_while() -> None:
    async with service() as (found, url):
        transport = await open_pubsub(url)
        much = says(grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded for quota metric 'Publisher throughput'.")
        found.answers["Publish"] = [much, much, with_(wire.PublishResponse(message_ids=["1"]))]
        await transport.send(*sends(1))
        assert len(found.asked["Publish"]) == 3
        found.answers["Publish"] = [much]
        with pytest.raises(ThrottledError, match="asked too often: RESOURCE_EXHAUSTED: Quota exceeded") as caught:
            await transport.send(*sends(1))
        assert "\n" not in str(caught.value)
        await transport.close()


@pytest.mark.parametrize(
    ("code", "text", "error", "says_"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "User not authorized to perform this action.", AccessDeniedError, "denied"),
        (grpc.StatusCode.UNAUTHENTICATED, "Request had invalid credentials.", AccessDeniedError, "denied"),
        (grpc.StatusCode.UNAVAILABLE, "The service was unable to fulfill your request.", ConnectionLostError, "unable"),
        (grpc.StatusCode.INTERNAL, "token=hunter2 \n more", ConnectionLostError, "INTERNAL"),
        (grpc.StatusCode.NOT_FOUND, "Resource not found (resource=work).", QueueNotFoundError, "'work' does not exist"),
        (grpc.StatusCode.FAILED_PRECONDITION, "The topic is being moved.", IncompatibleStoreError, "moved"),
    ],
)
async def test_each_refusal_is_an_error_of_ours(code: Any, text: str, error: type[Exception], says_: str) -> None:
    async with service() as (found, url):
        transport = await open_pubsub(url)
        found.answers["Publish"] = [says(code, text)]
        with pytest.raises(error, match=says_) as caught:
            await transport.send(*sends(1))
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)
        await transport.close()


async def test_a_project_that_is_not_there_is_said() -> None:
    async with service() as (found, url):
        found.answers["GetSubscription"] = [
            says(
                grpc.StatusCode.NOT_FOUND, "Requested project not found or user does not have access to it (project=x)."
            )
        ]
        with pytest.raises(AccessDeniedError, match="no such project"):
            await open_pubsub(url)


async def test_credentials_that_may_not_look_are_good_enough_to_open() -> None:
    async with service() as (found, url):
        found.answers["GetSubscription"] = [says(grpc.StatusCode.PERMISSION_DENIED, "pubsub.subscriptions.get")]
        transport = await open_pubsub(url)
        with pytest.raises(AccessDeniedError):
            await transport.send(*sends(1))
        await transport.close()


async def test_a_settlement_that_cannot_be_done_at_the_moment_is_asked_for_again() -> None:
    async with service() as (found, url):
        pulled = wire.PullResponse()
        for number in range(3):
            pulled.received_messages.add(ack_id=f"handle-{number}").message.message_id = str(number)
        found.answers["Pull"] = [with_(pulled), with_(wire.PullResponse())]
        found.answers["Acknowledge"] = [
            says(
                grpc.StatusCode.INVALID_ARGUMENT,
                ids={
                    "handle-0": "TRANSIENT_FAILURE_SERVICE_UNAVAILABLE",
                    "handle-1": "PERMANENT_FAILURE_INVALID_ACK_ID",
                },
            ),
            with_(Empty()),
        ]
        transport = await open_pubsub(url)
        async with transport.subscribe("work", prefetch=3) as subscription:
            leases = [await receive(subscription) for _ in range(3)]
            outcomes = await asyncio.gather(*(lease.ack() for lease in leases), return_exceptions=True)
        assert [type(each) for each in outcomes] == [type(None), LeaseLostError, type(None)]
        assert [list(asked.ack_ids) for asked in found.asked["Acknowledge"]] == [
            ["handle-0", "handle-1", "handle-2"],
            ["handle-0"],
        ]
        await transport.close()


async def test_a_pull_without_an_answer_is_no_error_while_the_service_answers() -> None:
    async with service() as (found, url):
        late = says(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        pulled = wire.PullResponse()
        pulled.received_messages.add(ack_id="handle").message.message_id = "1"
        found.answers["Pull"] = [late, late, with_(pulled), with_(wire.PullResponse())]
        found.answers["Acknowledge"] = [with_(Empty())]
        transport = await open_pubsub(url)
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert lease.message.id == "1"
            await lease.ack()
        assert len(found.asked["Pull"]) >= 3
        await transport.close()


async def test_a_message_that_somebody_else_has_by_now_is_not_handed_out() -> None:
    async with service() as (found, url):
        pulled = wire.PullResponse()
        for number in range(2):
            pulled.received_messages.add(ack_id=f"handle-{number}").message.message_id = str(number)
        found.answers["Pull"] = [with_(pulled), with_(wire.PullResponse())]
        refused = says(grpc.StatusCode.INVALID_ARGUMENT, ids={"handle-1": "PERMANENT_FAILURE_INVALID_ACK_ID"})
        found.answers["ModifyAckDeadline"] = [refused, with_(Empty())]
        found.answers["Acknowledge"] = [with_(Empty())]
        transport = await open_pubsub(url)
        await transport.declare(QueueSpec(name="work", lease=20))  # shorter than the deadline there, which is changed
        async with transport.subscribe("work", prefetch=2) as subscription:
            lease = await receive(subscription)
            assert lease.message.id == "0"
            async with asyncio.timeout(5):
                while not found.asked["ModifyAckDeadline"]:
                    await asyncio.sleep(0.01)
            await lease.ack()  # which is answered later
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await subscription.receive()
        await transport.close()
