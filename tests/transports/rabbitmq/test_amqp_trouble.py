"""A server that refuses, falls silent, breaks off, says things at the wrong moment or takes nothing more."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from pamqp import body, commands, frame, header, heartbeat
from transports.rabbitmq.amqp_peer import Peer, connected, listening
from transports.rabbitmq.amqp_support import on_each_loop, soon

from oncue.transports.rabbitmq.amqp import (
    Channel,
    ChannelClosed,
    ClosedError,
    Connection,
    ConnectionClosed,
    Delivery,
    connect,
)


def deliver(peer: Peer, tag: int, payload: bytes = b"body", consumer: str = "1") -> None:
    described = header.ContentHeader(0, len(payload), commands.Basic.Properties())
    method = commands.Basic.Deliver(consumer, tag, False, "", "queue")
    peer.say(method, described, body.ContentBody(payload), channel=1)


# Opening


async def close_at_once(peer: Peer) -> None:
    peer.writer.close()


async def speak_another_version(peer: Peer) -> None:
    peer.writer.write(b"AMQP\0\0\x09\x00")


async def take_no_passwords(peer: Peer) -> None:
    await peer.begin("EXTERNAL")


async def challenge(peer: Peer) -> None:
    await peer.begin()
    await peer.hear("Connection.StartOk")
    peer.say(commands.Connection.Secure("who are you?"))


async def refuse(peer: Peer) -> None:
    await peer.begin()
    await peer.hear("Connection.StartOk")
    peer.say(commands.Connection.Close(403, "ACCESS_REFUSED", 0, 0))


async def welcome_and_refuse(peer: Peer) -> None:
    await peer.greet(beat=1)
    peer.say(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0))


async def cut_it(peer: Peer) -> None:
    peer.writer.write(frame.marshal(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"), 0)[:20])
    await peer.writer.drain()
    peer.writer.transport.abort()


@pytest.mark.parametrize(
    ("behave", "code", "text"),
    [
        (close_at_once, 0, "the connection was lost"),
        (speak_another_version, 501, "not AMQP 0-9-1"),
        (take_no_passwords, 0, "no passwords, only EXTERNAL"),
        (challenge, 501, "Connection.Secure"),
        (refuse, 403, "ACCESS_REFUSED"),
        (welcome_and_refuse, 320, "CONNECTION_FORCED"),
        (cut_it, 0, "the connection was lost"),
    ],
)
@on_each_loop
async def test_a_server_that_cannot_be_used_is_told_by_a_word(behave: Callable[..., Any], code: int, text: str) -> None:
    async with listening() as (endpoint, accepted):
        connecting = asyncio.create_task(connect(msgspec.structs.replace(endpoint, heartbeat=1)))
        await behave(await soon(accepted))
        with pytest.raises(ConnectionClosed, match=text) as caught:
            await soon(connecting)
        assert caught.value.code == code
        assert "guest" not in str(caught.value)


@on_each_loop
async def test_a_server_that_says_nothing_is_not_waited_for_longer_than_asked() -> None:
    async with listening() as (endpoint, accepted):
        with pytest.raises(TimeoutError):
            await soon(connect(msgspec.structs.replace(endpoint, timeout=0.2)))
        assert await soon((await accepted).reader.read()) == b"AMQP\0\0\x09\x01"


@on_each_loop
async def test_nobody_there_is_an_error_of_the_system() -> None:
    async with listening() as (endpoint, _):
        pass
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await soon(connect(endpoint))


@pytest.mark.parametrize("steps", range(8))
@on_each_loop
async def test_opening_may_be_cancelled_at_any_step(steps: int) -> None:
    async with listening() as (endpoint, accepted):
        connecting = asyncio.create_task(connect(endpoint))
        if steps:
            peer = await soon(accepted)
            greeting = asyncio.create_task(peer.greet())
        for _ in range(steps):
            await asyncio.sleep(0)
        if not connecting.done():
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(connecting)
        else:
            connecting.result().abort()
        if steps:
            await asyncio.gather(greeting, return_exceptions=True)
            await soon(peer.over())


def test_the_password_is_not_shown() -> None:
    from oncue.transports.rabbitmq.amqp import Endpoint

    assert "sesame" not in repr(Endpoint("host", 5672, "ali", "sesame"))


# Heartbeats


@on_each_loop
async def test_a_server_that_falls_silent_is_given_up() -> None:
    async with connected(heartbeat=1) as (connection, _):
        channel_closed = asyncio.create_task(connection.channel())
        began = time.monotonic()
        fault = await soon(connection.closed)
        assert 1.9 < time.monotonic() - began < 5
        assert (fault.code, fault.text) == (0, "nothing was heard from the server for 2 s")
        with pytest.raises(ConnectionClosed, match="nothing was heard"):
            await channel_closed


@on_each_loop
async def test_a_server_that_beats_is_kept_and_beaten_to() -> None:
    async with connected(heartbeat=1) as (connection, peer):
        heard = 0
        for _ in range(10):
            peer.writer.write(heartbeat.Heartbeat().marshal())
            assert isinstance(await soon(peer.any()), heartbeat.Heartbeat)
            heard += 1
        assert heard == 10  # three a second
        assert not connection.closed.done()


@on_each_loop
async def test_no_heartbeat_asked_is_none() -> None:
    async with connected(heartbeat=0) as (connection, _):
        assert connection.heartbeat == 0
        assert connection._timer is None


async def test_the_rest_of_a_heartbeat_that_went_out_in_part_goes_first() -> None:
    class Narrow:
        """A socket with room for three bytes."""

        def send(self, data: bytes) -> int:
            sent.append(data[:3])
            return 3

        def close(self) -> None:
            """There is nothing behind it."""

    sent: list[bytes] = []
    async with connected(heartbeat=60) as (connection, peer):
        assert isinstance(await soon(peer.any()), heartbeat.Heartbeat)
        assert connection._line is not None
        connection._line.close()
        connection._line = Narrow()
        connection._ran -= 100
        assert connection.beat()
        assert connection.beat()
        assert b"".join(sent) == b"\x08\0\0\0\0\0"
        channel = asyncio.create_task(connection.channel())
        peer.reader.feed_data(b"".join(sent))
        while not isinstance(found := await soon(peer.any()), commands.Channel.Open):
            assert isinstance(found, heartbeat.Heartbeat)
        channel.cancel()


# Closing


@on_each_loop
async def test_closing_says_goodbye_and_waits_for_the_answer() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        calling = asyncio.create_task(channel.confirm())
        await soon(peer.hear("Confirm.Select"))
        closing = asyncio.create_task(connection.close(60))
        assert (await soon(peer.hear("Connection.Close"))).reply_code == 200
        assert not closing.done()
        with pytest.raises(ConnectionClosed):
            await soon(calling)
        with pytest.raises(ConnectionClosed):
            channel.publish("", "queue", b"\0\0", b"")
        peer.say(commands.Connection.CloseOk())
        await soon(closing)
        assert connection.closed.result().code == 200
        await soon(peer.over())
        await soon(connection.close(10))
        with pytest.raises(ConnectionClosed):
            await connection.channel()
        with pytest.raises(ConnectionClosed):
            await connection.writable()


@on_each_loop
async def test_closing_ends_without_an_answer_too() -> None:
    async with connected() as (connection, peer):
        await soon(connection.close(0.1))
        assert connection.closed.result().code == 200
        await soon(peer.hear("Connection.Close"))
        await soon(peer.over())


@on_each_loop
async def test_closing_may_be_cancelled_and_closes_at_once_then() -> None:
    async with connected() as (connection, peer):
        closing = asyncio.create_task(connection.close(100))
        await soon(peer.hear("Connection.Close"))
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(closing)
        assert connection.closed.done()
        await soon(peer.over())


@on_each_loop
async def test_aborting_tells_everyone_at_once() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        calls = [asyncio.create_task(channel.call(commands.Confirm.Select())) for _ in range(3)]
        await soon(peer.hear("Confirm.Select"))
        connection.abort()
        connection.abort()
        assert channel.closed.result().code == connection.closed.result().code == 200
        errors = [
            error
            for error in await asyncio.gather(*calls, return_exceptions=True)
            if isinstance(error, ConnectionClosed)
        ]
        assert len(errors) == len({id(error) for error in errors}) == 3
        await soon(peer.over())


@on_each_loop
async def test_the_servers_reason_reaches_everyone() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        call = asyncio.create_task(channel.call(commands.Confirm.Select()))
        await soon(peer.hear("Confirm.Select"))
        peer.say(commands.Connection.Close(320, "CONNECTION_FORCED - shutdown", 85, 10))
        fault = await soon(connection.closed)
        assert (fault.code, fault.text, fault.class_id, fault.method_id) == (
            320,
            "CONNECTION_FORCED - shutdown",
            85,
            10,
        )
        assert (await channel.closed).code == 320
        with pytest.raises(ConnectionClosed, match="shutdown"):
            await soon(call)
        with pytest.raises(ConnectionClosed, match="shutdown"):
            channel.publish("", "queue", b"\0\0", b"")
        await soon(peer.hear("Connection.CloseOk"))
        await soon(peer.over())


@on_each_loop
async def test_a_future_that_somebody_cancelled_keeps_nothing_from_ending() -> None:
    troubles: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        connection.closed.cancel()
        channel.closed.cancel()
        peer.writer.transport.abort()
        with pytest.raises(ConnectionClosed, match="lost"):
            await soon(channel.call(commands.Confirm.Select()))
        with pytest.raises(ConnectionClosed, match="lost"):
            await connection.channel()
    assert troubles == []


@on_each_loop
async def test_a_connection_that_breaks_in_a_frame_is_lost() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        peer.writer.write(frame.marshal(commands.Basic.Ack(1), 1)[:-4])
        peer.writer.close()
        assert (await soon(connection.closed)).code == 0
        assert (await channel.closed).code == 0


@on_each_loop
async def test_nonsense_ends_the_connection_on_both_sides() -> None:
    async with connected() as (connection, peer):
        await peer.open(connection)
        peer.writer.write(b"\1\0\1\0\0\0\4NOPE\xce")
        assert (await soon(connection.closed)).code == 501
        await soon(peer.over())


# Channels


@on_each_loop
async def test_the_server_closes_a_channel_and_its_number_is_used_again() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        calls = [asyncio.create_task(channel.call(commands.Queue.Declare(queue="q", passive=True))) for _ in range(2)]
        await soon(peer.hear("Queue.Declare"))
        peer.say(commands.Channel.Close(404, "NOT_FOUND - no queue 'q'", 50, 10), channel=1)
        fault = await soon(channel.closed)
        assert (fault.code, fault.text, fault.class_id, fault.method_id) == (404, "NOT_FOUND - no queue 'q'", 50, 10)
        for call in calls:
            with pytest.raises(ChannelClosed, match="no queue 'q'"):
                await soon(call)
        with pytest.raises(ChannelClosed, match="no queue 'q'"):
            channel.publish("", "queue", b"\0\0", b"")
        await soon(peer.hear("Channel.CloseOk"))
        assert (await soon(peer.open(connection))).number == 1
        assert not connection.closed.done()


@on_each_loop
async def test_both_sides_close_a_channel_at_the_same_time() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        closing = asyncio.create_task(channel.close())
        await soon(peer.hear("Channel.Close"))
        peer.say(commands.Channel.Close(404, "NOT_FOUND", 50, 10), channel=1)
        await soon(closing)
        await soon(peer.hear("Channel.CloseOk"))
        # The answer to ours is under way, and must not meet a new channel of the number.
        opening = asyncio.create_task(connection.channel())
        await soon(peer.hear("Channel.Open"))
        peer.say(commands.Channel.CloseOk(), channel=1)
        peer.say(commands.Channel.OpenOk(), channel=2)
        assert (await soon(opening)).number == 2
        assert (await soon(peer.open(connection))).number == 1


@on_each_loop
async def test_a_closed_channel_hears_nothing_more() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        said: list[Any] = []
        channel.on_confirm = channel.on_return = lambda *what: said.append(what)
        await soon(consuming(peer, channel, said, said))
        calls = [asyncio.create_task(channel.confirm()) for _ in range(2)]
        await soon(peer.hear("Confirm.Select"))
        channel.leave()
        await soon(peer.hear("Channel.Close"))
        deliver(peer, 2)
        peer.say(commands.Basic.Ack(1), commands.Basic.Cancel("1"), commands.Confirm.SelectOk(), channel=1)
        peer.say(commands.Channel.CloseOk(), channel=1)
        await soon(channel.close())
        assert said == []
        assert {type(end) for end in await asyncio.gather(*calls, return_exceptions=True)} == {ChannelClosed}
        await soon(peer.open(connection))  # and nothing else was said before
        for use in (lambda: channel.ack(1), lambda: channel.nack(1), lambda: channel.publish("", "q", b"\0\0", b"")):
            with pytest.raises(ChannelClosed, match="closed by this side"):
                use()


@on_each_loop
async def test_closing_a_channel_may_be_cancelled_and_it_closes_all_the_same() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        closing = asyncio.create_task(channel.close())
        await soon(peer.hear("Channel.Close"))
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(closing)
        peer.say(commands.Channel.CloseOk(), channel=1)
        await soon(channel.close())
        assert (await soon(peer.open(connection))).number == 1


@on_each_loop
async def test_opening_a_channel_may_be_cancelled_and_leaves_none() -> None:
    async with connected() as (connection, peer):
        opening = asyncio.create_task(connection.channel())
        await soon(peer.hear("Channel.Open"))
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(opening)
        await soon(peer.hear("Channel.Close"))
        peer.say(commands.Channel.OpenOk(), commands.Channel.CloseOk(), channel=1)
        opening = asyncio.create_task(connection.channel())
        await soon(peer.hear("Channel.Open"))
        peer.say(commands.Channel.OpenOk(), channel=peer.number)
        channel = await soon(opening)
        assert connection.channels == {channel.number: channel}


@on_each_loop
async def test_an_answer_that_nobody_waits_for_any_more_is_dropped_in_its_order() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        calls = [
            asyncio.create_task(channel.call(commands.Queue.Declare(queue=queue, passive=True))) for queue in "abcd"
        ]
        assert (await soon(peer.hear("Queue.Declare"))).queue == "a"
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        peer.say(commands.Queue.DeclareOk("a", 0, 0), channel=1)
        assert (await soon(peer.hear("Queue.Declare"))).queue == "b"
        calls[2].cancel()  # it has to wait, and is not made at all
        await asyncio.wait([calls[2]])
        peer.say(commands.Queue.DeclareOk("b", 0, 0), channel=1)
        assert (await soon(calls[1])).queue == "b"
        assert (await soon(peer.hear("Queue.Declare"))).queue == "d"
        peer.say(commands.Queue.DeclareOk("d", 0, 0), channel=1)
        assert (await soon(calls[3])).queue == "d"


@on_each_loop
async def test_consuming_may_be_cancelled_and_what_was_on_its_way_goes_back() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        got: list[Delivery] = []
        consuming = asyncio.create_task(channel.consume("queue", got.append, got.append, prefetch=5))
        assert (await soon(peer.hear("Basic.Qos"))).prefetch_count == 5
        peer.say(commands.Basic.QosOk(), channel=1)
        await soon(peer.hear("Basic.Consume"))
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(consuming)
        peer.say(commands.Basic.ConsumeOk("1"), channel=1)
        deliver(peer, 7)
        deliver(peer, 8)
        # They do not go back before it is over: they would come again.
        heard = asyncio.Event()
        connection.on_blocked = lambda _: heard.set()
        peer.say(commands.Connection.Blocked("so that they are known to have come"))
        await soon(heard.wait())
        channel.ack(99)
        await soon(peer.hear("Basic.Cancel"))
        assert (await soon(peer.hear("Basic.Ack"))).delivery_tag == 99
        peer.say(commands.Basic.CancelOk("1"), channel=1)
        assert (await soon(peer.hear("Basic.Nack"))).delivery_tag == 7
        assert (await soon(peer.hear("Basic.Nack"))).delivery_tag == 8
        assert got == []


@on_each_loop
async def test_consumers_that_begin_at_the_same_time_get_each_their_own_prefetch() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        tasks = [asyncio.create_task(channel.consume("queue", print, print, prefetch=count)) for count in (5, 7)]
        for count in (5, 7):
            assert (await soon(peer.hear("Basic.Qos"))).prefetch_count == count
            peer.say(commands.Basic.QosOk(), channel=1)
            tag = (await soon(peer.hear("Basic.Consume"))).consumer_tag
            peer.say(commands.Basic.ConsumeOk(tag), channel=1)
        assert len(set(await soon(asyncio.gather(*tasks)))) == 2


@pytest.mark.parametrize("how", ["refused", "lost"])
@on_each_loop
async def test_consuming_that_fails_says_why(how: str) -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        task = asyncio.create_task(channel.consume("queue", print, print, prefetch=5))
        await soon(peer.hear("Basic.Qos"))
        if how == "lost":
            peer.writer.close()
        else:
            peer.say(commands.Basic.QosOk(), channel=1)
            await soon(peer.hear("Basic.Consume"))
            peer.say(commands.Channel.Close(404, "NOT_FOUND - no queue", 60, 20), channel=1)
        with pytest.raises(ClosedError, match="no queue" if how == "refused" else "lost"):
            await soon(task)


@on_each_loop
async def test_what_nobody_waits_for_any_more_ends_without_a_complaint() -> None:
    troubles: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        tag = await soon(consuming(peer, channel, [], []))
        tasks = [asyncio.create_task(channel.cancel(tag)), asyncio.create_task(channel.confirm())]
        tasks += [asyncio.create_task(channel.consume("queue", print, print, prefetch=1))]
        await soon(peer.hear("Basic.Cancel"))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        connection.abort()
    await asyncio.sleep(0)
    del channel, connection, tasks, task
    gc.collect()
    assert troubles == []


async def consuming(peer: Peer, channel: Channel, got: list[Any], ended: list[str]) -> str:
    task = asyncio.create_task(channel.consume("queue", got.append, ended.append, prefetch=5))
    await peer.hear("Basic.Qos")
    peer.say(commands.Basic.QosOk(), channel=1)
    await peer.hear("Basic.Consume")
    peer.say(commands.Basic.ConsumeOk("1"), channel=1)
    return await task


@on_each_loop
async def test_a_message_that_comes_with_the_answer_is_delivered() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        got: list[Delivery] = []
        task = asyncio.create_task(channel.consume("queue", got.append, got.append, prefetch=5))
        await soon(peer.hear("Basic.Qos"))
        peer.say(commands.Basic.QosOk(), channel=1)
        await soon(peer.hear("Basic.Consume"))
        peer.say(commands.Basic.ConsumeOk("1"), channel=1)
        deliver(peer, 7)
        await soon(task)
        peer.say(commands.Basic.CancelOk("1"), channel=1)
        await soon(channel.cancel("1"))
        assert [delivery.tag for delivery in got] == [7]


@pytest.mark.parametrize("nowait", [True, False])
@on_each_loop
async def test_the_server_ends_a_consumer(nowait: bool) -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        ended: list[str] = []
        tag = await soon(consuming(peer, channel, [], ended))
        peer.say(commands.Basic.Cancel(tag, nowait), channel=1)
        if not nowait:
            assert (await soon(peer.hear("Basic.CancelOk"))).consumer_tag == tag
        deliver(peer, 9)
        assert (await soon(peer.hear("Basic.Nack"))).delivery_tag == 9
        assert ended == [tag]


@on_each_loop
async def test_until_the_answer_to_a_cancel_messages_are_delivered_and_then_go_back() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        got: list[Delivery] = []
        tag = await soon(consuming(peer, channel, got, []))
        calling = asyncio.create_task(channel.confirm())
        ending = asyncio.create_task(channel.cancel(tag))
        gone = asyncio.create_task(channel.cancel(tag))
        await soon(peer.hear("Confirm.Select"))
        gone.cancel()  # it has to wait for the others, and is made all the same
        await asyncio.wait([gone])
        peer.say(commands.Confirm.SelectOk(), channel=1)
        await soon(calling)
        await soon(peer.hear("Basic.Cancel"))
        deliver(peer, 1)
        peer.say(commands.Basic.CancelOk(tag), channel=1)
        deliver(peer, 2)
        await soon(ending)
        await soon(peer.hear("Basic.Cancel"))
        assert (await soon(peer.hear("Basic.Nack"))).delivery_tag == 2
        assert [delivery.tag for delivery in got] == [1]


@on_each_loop
async def test_one_message_is_got_or_none() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        getting = asyncio.create_task(channel.get("queue"))
        await soon(peer.hear("Basic.Get"))
        peer.say(commands.Basic.GetOk(1, True, "", "queue", 0), channel=1)
        peer.say(header.ContentHeader(0, 4, commands.Basic.Properties()), body.ContentBody(b"body"), channel=1)
        found = await soon(getting)
        assert found is not None
        assert (found.tag, found.redelivered, found.routing_key, found.body) == (1, True, "queue", b"body")
        getting = asyncio.create_task(channel.get("queue"))
        await soon(peer.hear("Basic.Get"))
        peer.say(commands.Basic.GetEmpty(), channel=1)
        assert await soon(getting) is None


@pytest.mark.parametrize("late", [True, False])
@on_each_loop
async def test_a_message_that_nobody_waits_for_any_more_goes_back(late: bool) -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        heard = asyncio.Event()
        connection.on_blocked = lambda _: heard.set()
        getting = asyncio.create_task(channel.get("queue"))
        await soon(peer.hear("Basic.Get"))
        if not late:
            getting.cancel()
        peer.say(commands.Basic.GetOk(2, False, "", "queue", 0), channel=1)
        peer.say(commands.Connection.Blocked("so that the first part is known to have come"))
        await soon(heard.wait())
        getting.cancel()
        peer.say(header.ContentHeader(0, 4, commands.Basic.Properties()), body.ContentBody(b"body"), channel=1)
        assert (await soon(peer.hear("Basic.Nack"))).delivery_tag == 2
        selecting = asyncio.create_task(channel.confirm())
        await soon(peer.hear("Confirm.Select"))
        peer.say(commands.Confirm.SelectOk(), channel=1)
        await soon(selecting)


@on_each_loop
async def test_a_connection_that_ends_amid_an_answer_leaves_nobody_waiting() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        getting = asyncio.create_task(channel.get("queue"))
        await soon(peer.hear("Basic.Get"))
        peer.say(commands.Basic.GetOk(2, False, "", "queue", 0), channel=1)
        peer.say(header.ContentHeader(0, 4, commands.Basic.Properties()), channel=1)
        peer.writer.close()
        with pytest.raises(ConnectionClosed, match="lost"):
            await soon(getting)


@on_each_loop
async def test_too_many_channels_are_refused_and_closed_ones_make_room() -> None:
    async with listening() as (endpoint, accepted):
        connecting = asyncio.create_task(connect(endpoint))
        peer = await soon(accepted)
        await soon(peer.greet(channels=1))
        connection = await soon(connecting)
        channel = await soon(peer.open(connection))
        with pytest.raises(ChannelClosed, match="all 1 channels"):
            await connection.channel()
        closing = asyncio.create_task(channel.close())
        await soon(peer.hear("Channel.Close"))
        peer.say(commands.Channel.CloseOk(), channel=1)
        await soon(closing)
        await soon(peer.open(connection))
        connection.abort()


# Flow


@on_each_loop
async def test_blocked_and_unblocked() -> None:
    async with connected() as (connection, peer):
        said: asyncio.Queue[str | None] = asyncio.Queue()
        connection.on_blocked = said.put_nowait
        peer.say(commands.Connection.Blocked("low on memory"))
        assert await soon(said.get()) == connection.blocked == "low on memory"
        peer.say(commands.Connection.Unblocked())
        assert await soon(said.get()) is connection.blocked is None


async def fill(connection: Connection, channel: Channel) -> int:
    """Publish until no more is taken; how many."""
    published = 0
    while True:
        waiting = asyncio.ensure_future(connection.writable())
        await asyncio.sleep(0)
        if not waiting.done():
            waiting.cancel()
            return published
        published = channel.publish("", "queue", b"\0\0", bytes(10_000))


@on_each_loop
async def test_who_publishes_waits_for_a_server_that_does_not_read() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        peer.writer.transport.pause_reading()
        published = await soon(fill(connection, channel))
        assert 10 < published < 10_000
        waiting = [asyncio.create_task(connection.writable()) for _ in range(3)]
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert not any(task.done() for task in waiting[1:])
        peer.writer.transport.resume_reading()
        for _ in range(published):
            await soon(peer.hear("Basic.Publish"))
            await soon(peer.hear("ContentHeader"))
            for _ in range(3):
                await soon(peer.hear("ContentBody"))
        await soon(asyncio.gather(*waiting[1:]))


@on_each_loop
async def test_who_waits_to_publish_hears_of_the_end() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        peer.writer.transport.pause_reading()
        await soon(fill(connection, channel))
        waiting = asyncio.create_task(connection.writable())
        await asyncio.sleep(0)
        connection.abort()
        with pytest.raises(ConnectionClosed):
            await soon(waiting)


@on_each_loop
async def test_whoever_publishes_without_a_pause_is_held_up_as_well() -> None:
    async with connected() as (connection, peer):
        channel = await peer.open(connection)
        peer.writer.transport.pause_reading()

        async def publish() -> None:
            while True:
                await connection.writable()
                channel.publish("", "queue", b"\0\0", bytes(10_000))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await publish()
        assert channel._published < 10_000
