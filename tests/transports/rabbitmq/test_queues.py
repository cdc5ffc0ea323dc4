"""Queues that others made, queues that are asked for in two ways, and Asya's gateways and sidecars on the same server."""

from __future__ import annotations

import asyncio

import pytest
from brokers.rabbitmq_server import RabbitMQServer, path_of
from pamqp import commands
from transports.rabbitmq.support import get, make_queue, opened, publish, raw, taken
from transports.words import receive, sends

from oncue.core.errors import (
    AccessDeniedError,
    InvalidValueError,
    PartialSendError,
    QueueMismatchError,
    QueueNotFoundError,
)
from oncue.core.message import Message, Send
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec

ENVELOPE = b'{"id":"1","route":{"actors":["greet"],"current":0},"payload":{}}'


def described(server: RabbitMQServer, url: str, queue: str) -> dict[str, object]:
    """What the server says of a queue."""
    found: dict[str, object] = server.request(
        "GET", f"queues/{path_of(url.rpartition('/')[2].partition('?')[0], queue)}"
    )
    return found


# Settings


async def test_queues_are_durable_and_quorum_unless_classic_ones_are_asked_for(
    server: RabbitMQServer, url: str
) -> None:
    async with opened(url, "one"), opened(f"{url}?queues=classic", "two"):
        one, two = described(server, url, "one"), described(server, url, "two")
        assert (one["type"], one["durable"]) == ("quorum", True)
        assert (two["type"], two["durable"]) == ("classic", True)


async def test_two_may_declare_the_first_queue_of_a_server_at_once(server: RabbitMQServer) -> None:
    """The server breaks the connection of one who reads a stream that another is just making; that is nobody's concern."""
    for _ in range(15):
        url, both = server.vhost(), asyncio.Barrier(2)

        async def declare(url: str = url, both: asyncio.Barrier = both) -> None:
            transport = await open_transport(url)
            try:
                await both.wait()
                await transport.declare(QueueSpec(name="work"))
            finally:
                await transport.close()

        await asyncio.gather(declare(), declare())


async def test_of_two_who_ask_for_other_settings_at_once_one_is_told(url: str) -> None:
    specs = [QueueSpec(name="work", lease=lease, tags={"by": str(lease)}) for lease in (10.0, 20.0)]
    async with opened(url, "other") as first, opened(url, "other") as second:
        results = await asyncio.gather(first.declare(specs[0]), second.declare(specs[1]), return_exceptions=True)
        (mismatch,) = [result for result in results if result is not None]
        assert isinstance(mismatch, QueueMismatchError)
        assert set(mismatch.differences) == {"lease", "tags"}
        (stored,) = [spec for spec in await first.queues() if spec.name == "work"]
        assert stored == specs[results.index(None)]
        assert await second.queues() == await first.queues()


@pytest.mark.parametrize("options", ["", "?queues=classic"])
async def test_another_retention_is_shown_with_both_values(url: str, options: str) -> None:
    async with opened(f"{url}{options}", "other") as transport:
        await transport.declare(QueueSpec(name="work", retention=60))
        with pytest.raises(QueueMismatchError) as caught:
            await transport.declare(QueueSpec(name="work", retention=30))
        assert caught.value.differences == {"retention": (60.0, 30.0)}


@pytest.mark.parametrize(
    "arguments",
    [
        {"queue_type": "classic"},
        {"queue_type": "quorum", "delivery_limit": 50},
        {"queue_type": "classic", "dead_letter_exchange": "dead", "dead_letter_routing_key": "x", "queue_mode": "lazy"},
    ],
)
async def test_a_queue_that_others_made_is_taken_as_it_is(
    server: RabbitMQServer, url: str, arguments: dict[str, object]
) -> None:
    await make_queue(url, "work", **arguments)
    await publish(url, "", "work", b"theirs")
    async with opened(url) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=2) as subscription:
            assert [(await receive(subscription)).message.body for _ in range(2)] == [b"theirs", b"body"]
        assert described(server, url, "work")["type"] == arguments["queue_type"]
        assert [spec.name for spec in await transport.queues()] == ["work"]


@pytest.mark.parametrize(
    ("durable", "arguments", "named"),
    [
        (False, {}, "durable"),
        (True, {"message_ttl": 1000}, "retention"),
        (True, {"max_length": 10}, "x-max-length"),
        (True, {"queue_type": "stream"}, "x-queue-type"),
    ],
)
async def test_a_queue_that_others_made_so_that_messages_would_be_lost_is_refused(
    url: str, durable: bool, arguments: dict[str, object], named: str
) -> None:
    await make_queue(url, "work", durable=durable, **arguments)
    async with opened(url, "other") as transport:
        with pytest.raises(QueueMismatchError) as caught:
            await transport.declare(QueueSpec(name="work"))
        assert set(caught.value.differences) == {named}
        assert [spec.name for spec in await transport.queues()] == ["other"]


async def test_a_type_that_was_asked_for_is_insisted_on(url: str) -> None:
    await make_queue(url, "work")
    async with opened(url, "other") as transport, opened(f"{url}?queues=quorum", "other") as strict:
        await transport.declare(QueueSpec(name="work"))
        with pytest.raises(QueueMismatchError) as caught:
            await strict.declare(QueueSpec(name="work"))
        assert caught.value.differences == {"x-queue-type": ("classic", "quorum")}


async def test_a_queue_that_somebody_deleted_may_be_declared_with_other_settings(url: str) -> None:
    async with opened(url, lease=10.0) as transport:
        async with raw(url) as channel:
            await channel.call(commands.Queue.Delete(queue="work"))
        assert await transport.queues() == []
        await transport.declare(QueueSpec(name="work", lease=20.0))
        assert await transport.queues() == [QueueSpec(name="work", lease=20.0)]


async def test_the_list_of_queues_may_be_deleted_and_grows_again(url: str) -> None:
    async with opened(url, "one", "two") as transport:
        async with raw(url) as channel:
            await channel.call(commands.Queue.Delete(queue="oncue.queues"))
        await transport.declare(QueueSpec(name="one"))
        assert [spec.name for spec in await transport.queues()] == ["one"]
        async with transport.subscribe("two", prefetch=1) as subscription:
            await transport.send(*sends(1, "two"))
            await (await receive(subscription)).ack()


async def test_a_lease_that_the_server_would_cut_short_is_refused(url: str) -> None:
    async with opened(f"{url}?consumer_timeout=100") as transport:
        assert transport.features.lease_cap == 95
        with pytest.raises(InvalidValueError, match="consumer_timeout"):
            await transport.declare(QueueSpec(name="long", lease=96))
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            with pytest.raises(InvalidValueError):
                await lease.extend(96)


async def test_some_of_a_batch_may_be_stored_and_the_error_says_which_are_not(url: str) -> None:
    async with opened(url) as transport:
        with pytest.raises(PartialSendError) as caught:
            await transport.send(*sends(1), *sends(1, "nowhere"), *sends(1, first=1), *sends(1, "nowhere"))
        assert caught.value.failed.keys() == {1, 3}
        assert all(isinstance(error, QueueNotFoundError) for error in caught.value.failed.values())
        assert sorted(await taken(transport)) == ["0", "1"]


async def test_names_that_the_server_keeps_for_itself_are_refused(url: str) -> None:
    async with opened(url) as transport:
        with pytest.raises(AccessDeniedError):
            await transport.declare(QueueSpec(name="amq.work"))


# Delays


async def test_what_is_delayed_for_a_queue_that_goes_away_is_kept_aside_and_holds_up_nobody(url: str) -> None:
    async with opened(url, "work", "gone", "gone.too") as transport:
        await transport.send(*(Send("gone", Message(b"", str(number)), 0.2) for number in range(100)))
        await transport.send(Send("gone.too", Message(b"", "too"), 0.2))
        await transport.delete("gone")
        await transport.send(Send("work", Message(b"", "after"), 0.2))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await (await receive(subscription)).ack()
        async with transport.subscribe("gone.too", prefetch=1) as subscription:
            assert (await receive(subscription)).message.id == "too"
        async with asyncio.timeout(10):
            while (await transport.depth("oncue.undeliverable")).ready != 100:
                await asyncio.sleep(0.02)


async def test_a_delay_in_a_queue_that_is_not_there_is_refused(url: str) -> None:
    async with opened(url) as transport:
        with pytest.raises(QueueNotFoundError):
            await transport.send(Send("nowhere", Message(b"", "1"), 0.2))
        with pytest.raises(QueueNotFoundError):
            await transport.send(*sends(1), Send("nowhere", Message(b"", "1"), 0.2))
        assert (await transport.depth("work")).ready == 0


async def test_delays_go_on_working_when_somebody_tidied_up(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(Send("work", Message(b"", "1"), 0.016))
        async with raw(url) as channel:
            for request in (
                commands.Queue.Delete(queue="oncue.delay.4"),
                commands.Exchange.Delete(exchange="oncue.delay"),
                commands.Exchange.Delete(exchange="oncue.due"),
            ):
                await channel.call(request)
        async with transport.subscribe("work", prefetch=5) as subscription:
            for number in range(2, 20):
                try:
                    await transport.send(Send("work", Message(b"", str(number)), 0.016))
                except Exception:  # the first ones find out
                    continue
                while (await receive(subscription)).message.id != str(number):
                    pass
                return
    pytest.fail("no delay works any more")


# Asya


async def test_what_asya_publishes_to_its_exchange_arrives_with_an_id_that_stays(url: str) -> None:
    async with opened(url, "asya-greet", "own") as transport:
        await publish(url, "asya", "greet", ENVELOPE, content_type="application/json", delivery_mode=2, timestamp=1)
        await publish(url, "asya", "own", b"{}")
        async with transport.subscribe("asya-greet", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.body, lease.message.headers, lease.attempt) == (ENVELOPE, {}, 1)
            id = lease.message.id
            await lease.nack()
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == (id, 2)
            await lease.ack()
        assert (await transport.depth("own")).ready == 1


async def test_what_is_sent_to_a_queue_of_asyas_arrives_there_without_a_binding(url: str) -> None:
    await make_queue(url, "asya-theirs")
    async with opened(url, "asya-greet") as transport:
        await transport.send(Send("asya-theirs", Message(ENVELOPE, "1")))
    delivery = await get(url, "asya-theirs")
    assert delivery is not None
    assert delivery.body == ENVELOPE


async def test_asyas_sidecar_finds_the_queues_as_it_expects_them(url: str) -> None:
    async with opened(url, "asya-greet"), raw(url) as channel:
        await channel.call(commands.Exchange.Declare(exchange="asya", exchange_type="topic", durable=True))
        await channel.call(commands.Queue.Declare(queue="asya-greet", passive=True, durable=True))


async def test_another_exchange_or_none_may_be_named(url: str) -> None:
    async with opened(f"{url}?exchange=jobs", "asya-one"), opened(f"{url}?exchange=", "asya-two") as transport:
        await publish(url, "jobs", "one", ENVELOPE)
        await publish(url, "jobs", "two", ENVELOPE)
        assert (await transport.depth("asya-one")).ready == 1
        assert (await transport.depth("asya-two")).ready == 0


async def test_an_exchange_of_another_type_is_an_error_only_if_it_was_asked_for(url: str) -> None:
    async with raw(url) as channel:
        await channel.call(commands.Exchange.Declare(exchange="asya", exchange_type="direct", durable=True))
    async with opened(url) as transport:
        await transport.send(*sends(1))
    transport = await open_transport(f"{url}?exchange=asya")
    with pytest.raises(QueueMismatchError, match="exchange"):
        await transport.declare(QueueSpec(name="other"))
    await transport.close()
