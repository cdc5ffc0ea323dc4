"""How the transport works: what it writes and counts, how much it takes, and what it does with messages that it may not keep."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from brokers.rabbitmq_server import RabbitMQServer, path_of
from transports.rabbitmq.support import make_queue, opened, raw, settled_down, taken
from transports.words import receive, sends

from oncue.core.errors import LeaseLostError
from oncue.core.failure import Failure
from oncue.core.message import Message, Send
from oncue.dead import DeadFilter, dead_letter, discard, list_dead, redrive
from oncue.transports.base import Lease, QueueSpec, Subscription
from oncue.transports.rabbitmq.amqp import decode_properties
from oncue.transports.rabbitmq.subscription import RabbitMQSubscription

KINDS = pytest.mark.parametrize("options", ["", "?queues=classic"], ids=["quorum", "classic"])


async def lose_all(url: str, count: int, times: int = 1, queue: str = "work") -> None:
    """Take messages and go away without a word, so that the server counts them."""
    for _ in range(times):
        async with raw(url.partition("?")[0]) as channel:
            for _ in range(count):
                assert await channel.get(queue) is not None


# Settling


@KINDS
async def test_an_acknowledgement_of_many_takes_along_none_that_goes_another_way(url: str, options: str) -> None:
    async with opened(url + options) as transport:
        await transport.send(*sends(9))
        async with transport.subscribe("work", prefetch=9) as subscription:
            assert isinstance(subscription, RabbitMQSubscription)
            leases = [await subscription.receive() for _ in range(9)]
            for number in (0, 1, 3, 6, 7, 8):  # in one turn of the loop, and so in as few frames as there can be
                await leases[number].ack()
            subscription.requeue(leases[4])  # as the end of its lease does
            subscription.requeue(leases[2])
            await leases[5].nack()
            found = {}
            for _ in range(3):
                lease = await receive(subscription)
                found[lease.message.id] = lease.attempt
                await lease.ack()
        assert found == {"2": 2, "4": 2, "5": 2}
        assert (await transport.depth("work")).ready == 0


async def test_many_acknowledgements_are_few_frames(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from oncue.transports.rabbitmq.amqp import Channel

    written: list[tuple[int, bool]] = []
    ack = Channel.ack

    def count(self: Channel, tag: int, multiple: bool = False) -> None:
        written.append((tag, multiple))
        ack(self, tag, multiple)

    monkeypatch.setattr(Channel, "ack", count)
    async with opened(url) as transport:
        await transport.send(*sends(100))
        async with transport.subscribe("work", prefetch=100) as subscription:
            leases = [await receive(subscription) for _ in range(100)]
            written.clear()
            await asyncio.gather(*(lease.ack() for lease in [*leases[50:], *leases[:40]]))
            assert written[0] == (40, True)
            assert len(written) == 1 + 50
            written.clear()
            await asyncio.gather(*(lease.ack() for lease in leases[40:50]))
            assert written in ([(100, True)], [(50, True)])
        assert (await transport.depth("work")).ready == 0


async def test_what_goes_out_with_an_acknowledgement_may_be_stored_twice_but_never_lost(url: str) -> None:
    async with opened(url, "work", "next") as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            settling = asyncio.ensure_future(lease.ack(*sends(1, "next")))
            await asyncio.sleep(0)
            settling.cancel()
            await asyncio.wait([settling])
            with pytest.raises(LeaseLostError):
                await lease.ack()
        assert await taken(transport) == []
        assert await taken(transport, "next") == ["0"]


async def test_what_is_acknowledged_in_the_moment_of_leaving_is_not_forgotten(url: str) -> None:
    async with opened(url) as transport:
        for _ in range(3):
            await transport.send(*sends(1000))
            async with transport.subscribe("work", prefetch=1000) as subscription:
                leases = [await receive(subscription) for _ in range(1000)]
                await asyncio.gather(*(lease.ack() for lease in leases[1::2]))
            left = Counter(await taken(transport))
            assert left == Counter(lease.message.id for lease in leases[::2])


# Counting


@KINDS
async def test_what_a_server_counts_is_written_down_before_it_counts_far(url: str, options: str) -> None:
    async with opened(url + options) as transport:
        await transport.send(*sends(1))
        await lose_all(url, 1, times=7)
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            # A queue that counts has seen seven; one that only knows that there were some counts one.
            assert lease.attempt == (8 if not options else 2)
            assert not lease.delivery.redelivered  # type: ignore[attr-defined]
            headers = decode_properties(lease.delivery.properties).headers  # type: ignore[attr-defined]
            assert headers == {"x-oncue-attempts": lease.attempt - 1, "x-oncue-lost": lease.attempt - 1}
            await lease.ack()


async def test_a_limit_on_deliveries_drops_nothing(url: str) -> None:
    await make_queue(url, "work", queue_type="quorum", delivery_limit=8)
    async with opened(url) as transport:
        await transport.send(*sends(1))
        for _ in range(6):
            await lose_all(url, 1, times=4)
            async with transport.subscribe("work", prefetch=1) as subscription:
                await (await receive(subscription)).release()
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 25)
            await lease.ack()


async def test_messages_that_are_given_back_again_and_again_keep_their_age(url: str) -> None:
    async with opened(url, "other") as transport:
        await transport.declare(QueueSpec(name="work", retention=2.5))
        began = time.monotonic()
        await transport.send(*sends(1))
        count = 0
        async with transport.subscribe("work", prefetch=1) as subscription:
            while True:
                try:
                    lease = await receive(subscription, within=1.0)
                except TimeoutError:
                    break
                await asyncio.sleep(0.1)
                await (lease.release() if count % 2 else lease.nack())
                count += 1
        assert 1.4 < time.monotonic() - began - 1.0 < 4.0
        assert count > 10


# Suspects


async def test_many_suspects_are_worked_off_one_after_the_other_without_a_pause(url: str) -> None:
    total = 300
    async with opened(url) as transport:
        await transport.send(*sends(total))
        await lose_all(url, total, times=2)
        began = time.monotonic()
        at_once: list[int] = []
        attempts: Counter[int] = Counter()
        held = 0

        async def work(subscription: Subscription) -> None:
            nonlocal held
            while True:
                lease = await subscription.receive()
                held += 1
                at_once.append(held)
                await asyncio.sleep(0)
                attempts[lease.attempt] += 1
                held -= 1
                await lease.ack()

        async with transport.subscribe("work", prefetch=50) as subscription:
            tasks = [asyncio.create_task(work(subscription)) for _ in range(50)]
            while attempts.total() < total:
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    assert max(at_once) == 1
    assert attempts == {3: total}
    assert time.monotonic() - began < 10


async def test_a_suspect_that_takes_long_keeps_nobody_from_working_on_others(url: str) -> None:
    async with opened(url) as transport, opened(url) as sender:
        await transport.send(*sends(2))
        await lose_all(url, 2, times=2)
        async with transport.subscribe("work", prefetch=20) as subscription:
            suspect = await receive(subscription)
            assert suspect.attempt == 3
            await sender.send(*sends(60, first=100))
            for _ in range(4):
                leases = [await receive(subscription) for _ in range(15)]
                assert {lease.attempt for lease in leases} == {1}
                await asyncio.gather(*(lease.ack() for lease in leases))
            await suspect.ack()
            second = await receive(subscription)
            assert second.attempt == 3
            await second.ack()


# Room


async def test_what_lies_fetched_for_too_long_goes_to_others_uncounted(url: str) -> None:
    async with opened(url, lease=1.0) as transport, opened(url, lease=1.0) as other:
        await transport.send(*sends(4))
        async with transport.subscribe("work", prefetch=4) as subscription:
            await (await receive(subscription)).ack()
            async with other.subscribe("work", prefetch=4) as free:
                leases = [await receive(free, within=2.0) for _ in range(3)]
            assert {lease.attempt for lease in leases} == {1}
            assert (await receive(subscription)).attempt == 1


async def test_room_grows_and_shrinks_as_often_as_is_asked(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(200))
        async with transport.subscribe("work", prefetch=1) as subscription:
            assert isinstance(subscription, RabbitMQSubscription)
            held: list[Lease] = []
            for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 30, 50):
                subscription.resize(size)
                while len(held) < size:
                    held.append(await receive(subscription))
                with pytest.raises(TimeoutError):
                    await receive(subscription, within=0.01)
                assert len(subscription._intake._consumers) <= 9
            subscription.resize(5)
            for lease in held[:45]:
                await lease.ack()
            with pytest.raises(TimeoutError):
                await receive(subscription, within=0.1)
            await held[45].ack()
            again = await receive(subscription)
            assert again.attempt == 1
            for lease in [*held[46:], again]:
                await lease.ack()
            for _ in range(200 - 51):
                lease = await receive(subscription)
                assert lease.attempt == 1
                await lease.ack()
        assert (await transport.depth("work")).ready == 0


async def test_a_consumer_that_leaves_a_queue_full_of_work_counts_nothing(url: str) -> None:
    """Also what the server hands out in the moment of leaving, unless it is so busy that this takes it long."""
    attempts: Counter[int] = Counter()
    async with opened(url) as transport:
        await transport.send(*sends(2000))
        done = 0
        while done < 2000:
            async with transport.subscribe("work", prefetch=40) as subscription:
                for _ in range(min(100, 2000 - done)):
                    lease = await receive(subscription)
                    attempts[lease.attempt] += 1
                    await lease.ack()
                    done += 1
    assert attempts[1] >= 2000 - 40, attempts  # of twenty who leave one at most


async def test_twenty_subscriptions_of_one_transport_share_two_connections(server: RabbitMQServer, url: str) -> None:
    async with opened(url) as transport:
        async with asyncio.TaskGroup() as group:

            async def work() -> None:
                async with transport.subscribe("work", prefetch=2) as subscription:
                    for _ in range(10):
                        lease = await receive(subscription)
                        await lease.ack()

            for _ in range(20):
                group.create_task(work())
            await transport.send(*sends(200))
        connections = server.request("GET", f"vhosts/{path_of(url.rpartition('/')[2])}/connections")
        assert len(connections) <= 2


# Looking, and dead letters


@KINDS
async def test_dead_letters_that_were_looked_at_often_can_all_be_put_back(url: str, options: str) -> None:
    failure = Failure("processing_error", "ValueError", "no")
    async with opened(url + options, "work", "work-dlq") as transport:
        await transport.send(*(dead_letter("work", Message(b"", str(number)), failure, 3) for number in range(40)))
        for _ in range(3):
            letters = await list_dead(transport, "work-dlq")
            assert sorted(letter.id for letter in letters) == sorted(map(str, range(40)))
        assert (await discard(transport, "work-dlq", DeadFilter(ids=frozenset({"7"})))).count == 1
        swept = 0
        async with asyncio.timeout(30):
            while swept < 39:
                swept += (await redrive(transport, "work-dlq")).count
        await settled_down(transport, "work-dlq")
        assert sorted(await taken(transport)) == sorted(str(number) for number in range(40) if number != 7)


# Other loops and large things


async def test_large_and_many_messages_pass(url: str) -> None:
    body = bytes(range(256)) * (4 * 1024 * 4)  # 4 MiB
    async with opened(url) as transport:
        await transport.send(*(Send("work", Message(body, str(number))) for number in range(6)))
        await transport.send(*sends(5000, first=6))
        assert (await transport.depth("work")).ready == 5006
        async with transport.subscribe("work", prefetch=700) as subscription:
            for number in range(5006):
                lease = await receive(subscription)
                assert lease.message.body == (body if int(lease.message.id) < 6 else b"body"), number
                await lease.ack()
        assert (await transport.depth("work")).ready == 0
