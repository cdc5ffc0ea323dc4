"""Looks at the server: which it is, whether it takes messages at the moment, and what is taken for granted about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oncue.core.errors import TransportError
from oncue.transports.examination import Remark
from oncue.transports.rabbitmq.address import Address
from oncue.transports.rabbitmq.management import Management

_OLDEST = (3, 10)


async def examine(server: Mapping[str, Any], address: Address, management: Management | None) -> Sequence[Remark]:
    """What `server`, the properties that it introduced itself with, and its management tell."""
    found = [_server(server), _hold(address)]
    if management is None:
        text = "not given, so messages that are held are not counted: see `management=` for the URL"
        return [*found, Remark("management", "note", text)]
    try:
        alarms = await management.alarms()
    except TransportError as error:
        return [*found, Remark("management", "bad", str(error))]
    found.append(Remark("management", "ok", management.shown))
    if alarms:
        text = (
            f"{', '.join(alarms)}: it takes no messages until there is room again, and what is there can be worked off"
        )
        return [*found, Remark("alarms", "bad", text)]
    return [*found, Remark("alarms", "ok", "none")]


def _server(server: Mapping[str, Any]) -> Remark:
    product, version = _text(server.get("product")), _text(server.get("version"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if product == "RabbitMQ" and numbers < _OLDEST:
        return Remark("server", "bad", f"RabbitMQ {version}: {'.'.join(map(str, _OLDEST))} or newer is needed")
    return Remark("server", "ok", f"{product} {version}")


def _hold(address: Address) -> Remark:
    text = f"taken to be {address.consumer_timeout:g} s: no message can be held longer; see `consumer_timeout=` for the URL"
    return Remark("consumer timeout", "ok", text)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value or "?")
