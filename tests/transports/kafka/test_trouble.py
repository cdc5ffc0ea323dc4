"""What can go wrong between a client and its servers: each ends in an error that fits, or passes without a loss."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from brokers.kafka_server import KafkaServer
from transports.flow import flow
from transports.kafka.support import Wire, opened, settled_down, taken
from transports.words import receive, send_surely, sends

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    MessageTooLargeError,
    QueueNotFoundError,
    TransportError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec, Subscription
from oncue.transports.kafka import open_kafka
from oncue.transports.kafka.lease import KafkaLease


def within(seconds: float, began: float) -> None:
    took = time.monotonic() - began
    assert took < seconds, f"it took {took:.1f} s"


# Servers that are frozen, or away


async def test_a_send_to_a_frozen_server_is_an_error_in_time_and_its_repetition_is_stored(mortal: KafkaServer) -> None:
    async with opened(f"{mortal.url}&timeout=1") as transport:
        await transport.send(*sends(1))
        mortal.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(ConnectionLostError, match="in time"):
                await transport.send(*sends(1, first=1))
            within(3, began)
            with pytest.raises(ConnectionLostError):
                await transport.depth("work")
        finally:
            mortal.thaw()
        await send_surely(transport, *sends(1, first=1))
        assert set(await taken(transport)) == {"0", "1"}


async def test_senders_that_repeat_while_a_server_is_away_do_not_fill_it_with_copies(mortal: KafkaServer) -> None:
    async with opened(f"{mortal.url}&timeout=0.5") as transport:
        await transport.send(*sends(1))
        mortal.freeze()
        try:
            for _ in range(6):
                with pytest.raises(ConnectionLostError):
                    await transport.send(*sends(1, first=1))
        finally:
            mortal.thaw()
        await send_surely(transport, *sends(1, first=1))
        assert Counter(await taken(transport))["1"] <= 3, "what was given up was sent all the same"


async def test_an_acknowledgement_that_cannot_be_written_ends_in_time_and_may_be_repeated(mortal: KafkaServer) -> None:
    async with opened(f"{mortal.url}&timeout=1", "work", "next") as transport:
        await transport.send(*sends(4))
        async with transport.subscribe("work", prefetch=4) as subscription:
            leases = {lease.message.id: lease for lease in [await receive(subscription) for _ in range(4)]}
            mortal.freeze()
            try:
                began = time.monotonic()
                settling = (
                    leases["0"].ack(),
                    leases["1"].ack(*sends(1, "next", 1)),
                    leases["2"].nack(),
                    leases["3"].release(),
                )
                results = await asyncio.gather(*settling, return_exceptions=True)
                within(4, began)
            finally:
                mortal.thaw()
            assert {type(each) for each in results} == {ConnectionLostError}
            await acknowledged(leases["0"].ack)
            await acknowledged(lambda: leases["1"].ack(*sends(1, "next", 1)))
            back = {lease.message.id: lease for lease in [await receive(subscription) for _ in range(2)]}
            assert {id: lease.attempt for id, lease in back.items()} == {"2": 2, "3": 1}
            for lease in back.values():
                await lease.ack()
        assert await taken(transport) == []
        assert set(await taken(transport, "next")) == {"1"}


async def test_what_was_sent_with_an_acknowledgement_that_failed_is_not_sent_again(url: str) -> None:
    async with opened(f"{url}&timeout=1", "work", "next") as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert isinstance(lease, KafkaLease)
            async with lease.member.committing:  # as while partitions are shared out
                with pytest.raises(ConnectionLostError):
                    await lease.ack(*sends(1, "next", 7))
            await acknowledged(lambda: lease.ack(*sends(1, "next", 7)))
        assert await taken(transport) == []
        assert await taken(transport, "next") == ["7"]


async def test_what_was_not_acknowledged_for_sure_comes_again(mortal: KafkaServer) -> None:
    async with opened(f"{mortal.url}&timeout=1", lease=3.0) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            await asyncio.to_thread(mortal.kill)
            try:
                with pytest.raises(ConnectionLostError):
                    await lease.ack()
            finally:
                await asyncio.to_thread(mortal.start)
            again = await receive(subscription, within=30)
            assert (again.message.id, again.attempt) == ("0", 2)
            with pytest.raises(LeaseLostError):
                await lease.ack()
            await acknowledged(again.ack)
        assert await taken(transport) == []


async def acknowledged(ack: object) -> None:
    """Repeat it until the server has it."""
    assert callable(ack)
    async with asyncio.timeout(20):
        while True:
            try:
                await ack()
                return
            except ConnectionLostError:
                await asyncio.sleep(0.05)


@pytest.mark.timeout(120)
async def test_thousands_of_messages_outlive_servers_that_are_killed(mortal: KafkaServer) -> None:
    url = f"{mortal.url}&session=4"
    async with (
        opened(url, lease=5.0) as sender,
        opened(url, "other", lease=5.0) as transport,
        transport.subscribe("work", prefetch=50) as subscription,
    ):
        seen = await flow(sender, subscription, 6000, {2000: mortal.restart, 3000: mortal.restart})
    assert len(seen) == 6000
    # What is seen twice was under way when the server went away: sent twice, or acknowledged without an answer.
    assert seen.total() - len(seen) <= 2 * (100 + 50 + 50) * 2


# Connections


async def test_a_send_that_is_cut_off_is_repeated_and_stored_once(mortal: KafkaServer) -> None:
    async with Wire(mortal) as proxy, opened(f"{proxy.url}&timeout=3") as transport:
        await transport.send(*sends(1, first=1000))
        for number in range(30):
            if number % 2:
                proxy.requests = number * 7
            else:
                proxy.answers = number
            await send_surely(transport, *sends(1, first=number))
            proxy.requests = proxy.answers = None
        assert proxy.cuts >= 25
        assert Counter(await taken(transport)) == Counter(map(str, [*range(30), 1000]))


async def test_leases_outlive_the_connections_that_they_came_by(mortal: KafkaServer) -> None:
    async with Wire(mortal) as proxy, opened(proxy.url, "work", "next") as transport:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=3) as subscription:
            leases = [await receive(subscription) for _ in range(3)]
            proxy.cut()
            await leases[0].ack(*sends(1, "next"))
            await leases[1].extend(60)
            proxy.cut()
            await leases[2].nack()
            again = await receive(subscription)
            assert (again.message.id, again.attempt) == (leases[2].message.id, 2)
            await again.ack()
            await leases[1].ack()
        assert await taken(transport) == []
        assert await taken(transport, "next") == ["0"]


async def test_connections_that_are_dead_without_a_word_are_noticed(mortal: KafkaServer) -> None:
    async with (
        Wire(mortal) as proxy,
        opened(mortal.url, "other") as sender,
        opened(f"{proxy.url}&timeout=1") as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(receive(subscription, within=30))
        await asyncio.sleep(1.0)  # until it has joined
        proxy.mute = True
        await sender.send(*sends(1))
        with pytest.raises(ConnectionLostError):
            await transport.send(*sends(1, first=1))
        proxy.mute = False
        assert (await waiting).message.id in {"0", "1"}


async def test_cancelled_calls_and_cut_connections_together_lose_nothing(mortal: KafkaServer) -> None:
    total = 1000
    moved = asyncio.Semaphore(0)
    async with (
        Wire(mortal) as proxy,
        opened(f"{mortal.url}&session=4", "work", "next", lease=2.0) as observer,
        opened(f"{proxy.url}&timeout=2", "other") as transport,
    ):
        await observer.send(*sends(total))

        async def hop(subscription: Subscription) -> None:
            try:
                lease = await subscription.receive()
                await lease.ack(Send("next", lease.message))
            except (ConnectionLostError, LeaseLostError):
                return
            moved.release()

        async def work(subscription: Subscription, place: int) -> None:
            turn = 0
            while True:
                turn += 1
                going = asyncio.ensure_future(hop(subscription))
                await asyncio.wait([going], timeout=(None, 0.0, 0.001, 0.01)[(turn + place) % 4])
                going.cancel()
                await asyncio.wait([going])

        async def cut() -> None:
            while True:
                for _ in range(60):  # not by the clock: on a busy machine nothing would ever get on
                    await moved.acquire()
                proxy.cut()

        async with transport.subscribe("work", prefetch=20) as subscription:
            tasks = [asyncio.create_task(work(subscription, place)) for place in range(20)]
            tasks.append(asyncio.create_task(cut()))
            await settled_down(observer, "work")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert set(await taken(observer, "next")) == {str(number) for number in range(total)}


# Refusals that must not break anything else


async def test_what_a_topic_does_not_take_is_refused_and_the_next_message_is_stored(url: str) -> None:
    async with opened(url) as transport:
        topic, cluster = "work-small", transport.desk.cluster
        await cluster.delete(topic)
        assert await cluster.create(topic, 1, {"max.message.bytes": "2000"})
        while topic not in await cluster.topics(topic):
            await asyncio.sleep(0.02)
        try:
            for number in range(3):
                await transport.send(Send(topic, Message(b"fits", str(number))))
                with pytest.raises(MessageTooLargeError):
                    await transport.send(Send(topic, Message(b"x" * 5000, "large")))
            assert await taken(transport, topic) == ["0", "1", "2"]
        finally:
            await cluster.delete(topic)


async def test_a_session_that_servers_do_not_allow_is_told_with_its_reason(url: str) -> None:
    async with (
        opened(url),
        opened(url.replace("session=4", "session=0.1"), "other") as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        with pytest.raises(TransportError, match="session"):
            await receive(subscription)


async def test_opening_that_is_cancelled_waits_for_nobody(mortal: KafkaServer) -> None:
    mortal.freeze()
    try:
        opening = asyncio.create_task(open_kafka(mortal.url))
        await asyncio.sleep(0.2)  # it has asked, or is about to
        opening.cancel()
        done, _ = await asyncio.wait([opening], timeout=3)
        assert done and opening.cancelled()
    finally:
        mortal.thaw()


async def test_a_queue_whose_topic_somebody_deleted_is_made_anew_by_declaring_it(url: str) -> None:
    async with opened(url) as transport, opened(url, "other") as administrator:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await receive(subscription)
        await administrator.desk.cluster.delete("work")
        with pytest.raises(QueueNotFoundError):
            await transport.depth("work")
        await transport.declare(QueueSpec(name="work"))
        await transport.send(*sends(1, first=7))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("7", 1)
            await lease.ack()
