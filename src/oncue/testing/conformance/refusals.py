"""What is refused, and how: with an error of `oncue.core.errors` that fits, and without an effect."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from oncue.core.errors import ConfigError, InvalidValueError, QueueMismatchError, QueueNotFoundError
from oncue.core.message import Message, Send, new_id
from oncue.testing.conformance.suite import LONG_LEASE, TransportCases, case, longest, message, need, sends
from oncue.transports.base import Features, QueueSpec, Transport

_DEPTHS = {"ready", "leased", "delayed"}


class Refusals(TransportCases):
    """What a transport cannot do it refuses; what it says that it can do it does."""

    @case("T40")
    async def test_a_queue_with_other_settings_is_reported_and_left_as_it_is(self) -> None:
        """T40: the error names each setting that differs, with what there is and what was asked."""
        transport, other = await self.connect(), await self.connect()
        features = transport.features
        spec = QueueSpec(name=self.name("work"), lease=longest(transport, LONG_LEASE), tags={"team": "a"})
        await transport.declare(spec)
        await transport.send(*sends(spec.name, ["kept"]))
        changes: dict[str, object] = {"lease": spec.lease / 2, "tags": {"team": "b"}}
        if features.fifo:
            changes["fifo"] = True
        if features.retention:
            changes["retention"] = 3600.0
        for field, value in changes.items():
            with pytest.raises(QueueMismatchError) as caught:
                await other.declare(msgspec.structs.replace(spec, **{field: value}))
            assert caught.value.differences == {field: (getattr(spec, field), value)}
        with pytest.raises(QueueMismatchError) as caught:
            await other.declare(msgspec.structs.replace(spec, **changes))
        assert set(caught.value.differences) == set(changes)
        assert [each for each in await other.queues() if each.name == spec.name] == [spec]
        assert await self.contents(other, spec.name, 1) == [b"kept"]

    @case("T40")
    async def test_declaring_an_equal_queue_changes_nothing(self) -> None:
        """T40: also when many do it at the same time, and messages are there already."""
        connections = [await self.connect(), await self.connect()]
        spec = QueueSpec(name=self.name("work"), lease=longest(connections[0], LONG_LEASE))
        await asyncio.gather(*(connections[index % 2].declare(spec) for index in range(20)))
        await connections[0].send(*sends(spec.name, ["kept"]))
        await asyncio.gather(*(connections[index % 2].declare(spec) for index in range(20)))
        assert [each for each in await connections[1].queues() if each.name == spec.name] == [spec]
        assert await self.contents(connections[1], spec.name, 1) == [b"kept"]

    @case("T44")
    async def test_a_queue_that_is_not_there_is_an_error(self) -> None:
        """T44: for everything but deleting it, and nothing makes it come into being."""
        transport = await self.connect()
        missing = self.name("missing")

        async def subscribe() -> None:
            async with transport.subscribe(missing, prefetch=1) as subscription:
                await self.receive(subscription)

        asked: list[Callable[[], Awaitable[object]]] = [
            lambda: transport.send(Send(missing, message())),
            lambda: transport.peek(missing, limit=1),
            lambda: transport.purge(missing),
            subscribe,
        ]
        for ask in asked:
            with pytest.raises(QueueNotFoundError):
                await ask()
        await transport.delete(missing)
        assert missing not in [spec.name for spec in await transport.queues()]

    @case("T44")
    async def test_a_deleted_queue_is_gone_with_its_messages(self) -> None:
        """T44: and may be declared anew, with other settings."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["old"]))
        await transport.delete(queue)
        await transport.delete(queue)
        with pytest.raises(QueueNotFoundError):
            await transport.send(*sends(queue, ["nowhere"]))
        await transport.declare(QueueSpec(name=queue, lease=2 * self.lease))
        assert await self.contents(transport, queue, 0) == []

    @case("T44")
    async def test_times_that_are_none_are_refused(self) -> None:
        """T44: leases and retentions of no time, less, or without an end."""
        transport = await self.connect()
        name = self.name("work")
        for seconds in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(InvalidValueError):
                await transport.declare(QueueSpec(name=name, lease=seconds))
            with pytest.raises(InvalidValueError):
                await transport.declare(QueueSpec(name=name, retention=seconds))
        assert name not in [spec.name for spec in await transport.queues()]

    @case("T1", "T44")
    async def test_text_that_cannot_be_written_is_refused_or_kept(self) -> None:
        """T1, T44: half of a character, a zero byte: it comes back as it was, or nothing of it is stored."""
        transport = await self.connect()
        queue = await self.declare(transport)
        odd = ["\ud800", "a\x00b", "\udcff end"]
        tried = [*(Message(b"id", text) for text in odd), *(Message(b"key", new_id(), key=text) for text in odd)]
        if transport.features.headers:
            tried += [Message(b"name", new_id(), {text: "value"}) for text in odd]
            tried += [Message(b"value", new_id(), {"name": text}) for text in odd]
        stored = []
        for each in tried:
            try:
                await transport.send(Send(queue, each))
                stored.append(each)
            except InvalidValueError:
                continue
        assert sorted(await self.drain(transport, queue), key=repr) == sorted(stored, key=repr)

    @case("T45")
    async def test_what_the_transport_says_of_itself_is_possible(self) -> None:
        """T45: limits are more than nothing, depths are known words, and all connections say the same."""
        transport, other = await self.connect(), await self.connect()
        features = transport.features
        assert other.features == features
        assert features.depth <= _DEPTHS
        assert features.longest_delay is None or features.longest_delay >= 0
        assert features.lease_cap is None or features.lease_cap >= self.lease
        assert features.max_body is None or features.max_body > 0
        for field in msgspec.structs.fields(Features):
            if field.type is bool:
                assert isinstance(getattr(features, field.name), bool), field.name

    @case("T45")
    async def test_what_the_transport_cannot_do_it_refuses(self) -> None:
        """T45: order, retention, headers: who asks for what is not there is told, at once."""
        transport = await self.connect()
        features = transport.features
        denied = [name for name in ("fifo", "retention", "headers") if not getattr(features, name)]
        need(denied, "this transport can do all of it")
        queue = await self.declare(transport)
        asked: dict[str, Callable[[Transport], Awaitable[object]]] = {
            "fifo": lambda transport: transport.declare(QueueSpec(name=self.name("fifo"), fifo=True)),
            "retention": lambda transport: transport.declare(QueueSpec(name=self.name("kept"), retention=60.0)),
            "headers": lambda transport: transport.send(Send(queue, Message(b"", new_id(), {"name": "value"}))),
        }
        for name in denied:
            with pytest.raises(ConfigError):
                await asked[name](transport)
        assert await self.contents(transport, queue, 0) == []
