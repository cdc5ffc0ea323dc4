"""The verbs `oncue queue …`, on any transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

from oncue.cli.failure import say
from oncue.cli.group import Group
from oncue.cli.names import find_queue, warn_of_looking
from oncue.cli.options import COUNT, DURATION, PAIR, confirm, yes_option
from oncue.cli.output import (
    Column,
    age,
    as_json_option,
    body_as_json,
    body_as_text,
    count_of,
    plural,
    write_fields,
    write_json,
    write_json_list,
    write_table,
)
from oncue.cli.session import Session, connect
from oncue.core.envelope import decode_envelope
from oncue.core.errors import InvalidEnvelopeError
from oncue.core.message import Message, check_queue_name
from oncue.core.settings import Settings
from oncue.core.times import format_duration, parse_timestamp
from oncue.dead import SENT_AT, dead_queue_name, is_dead_queue
from oncue.transports.base import Depth, QueueSpec, Transport

_NO_QUEUES = "There are no queues yet: oncue send or oncue run makes them."


class Row(msgspec.Struct, frozen=True):
    """A queue, how much is in it, and how many dead letters it has."""

    spec: QueueSpec
    depth: Depth
    dead: int | None


@click.group(cls=Group)
def queue() -> None:
    """List, show, create, delete, purge and peek into queues.

    NAME is an actor's name or the name of a queue; the actor's queue is looked for first.
    """


@queue.command("list")
@click.option("--all", "every", is_flag=True, help="The queues of dead letters too, each in a line of its own.")
@as_json_option
@click.pass_obj
def list_queues(session: Session, *, every: bool, as_json: bool) -> None:
    """List all queues: how many messages are ready, leased, delayed, and dead."""
    settings = session.load().settings
    rows = session.run(_rows(settings, every=every), settings)
    if as_json:
        write_json_list([_as_json(row) for row in rows])
        return
    columns: list[Column[Row]] = [
        Column("QUEUE", lambda row: row.spec.name),
        Column("READY", lambda row: count_of(row.depth.ready), right=True),
        Column("LEASED", lambda row: count_of(row.depth.leased), right=True),
        Column("DELAYED", lambda row: count_of(row.depth.delayed), right=True),
        Column("DEAD", lambda row: "" if is_dead_queue(row.spec.name) else count_of(row.dead), right=True),
    ]
    write_table(rows, columns, empty=_NO_QUEUES)


async def _rows(settings: Settings, *, every: bool) -> Sequence[Row]:
    async with connect(settings) as transport:
        specs = await transport.queues()
        depths = await asyncio.gather(*(transport.depth(spec.name) for spec in specs))
        by_name = {spec.name: depth for spec, depth in zip(specs, depths, strict=True)}
        return [
            Row(spec, by_name[spec.name], _dead_count(spec.name, by_name))
            for spec in specs
            if every or not _belongs_to_another(spec.name, by_name)
        ]


def _dead_count(name: str, depths: dict[str, Depth]) -> int | None:
    found = depths.get(dead_queue_name(name))
    return 0 if found is None else found.ready


def _belongs_to_another(name: str, known: dict[str, Depth]) -> bool:
    return is_dead_queue(name) and any(name == dead_queue_name(other) for other in known)


def _as_json(row: Row) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(row.spec),
        **msgspec.structs.asdict(row.depth),
        "dead": row.dead,
    }


@queue.command()
@click.argument("name")
@as_json_option
@click.pass_obj
def show(session: Session, *, name: str, as_json: bool) -> None:
    """Show one queue: its settings, what is in it, and how old the oldest message is."""
    settings = session.load().settings
    row, oldest = session.run(_row(settings, name), settings)
    sent = parse_timestamp(oldest.headers.get(SENT_AT)) if oldest else None
    if as_json:
        write_json({**_as_json(row), "oldest": sent})
        return
    write_fields(_fields(row, sent))


async def _row(settings: Settings, name: str) -> tuple[Row, Message | None]:
    async with connect(settings) as transport:
        found = await find_queue(transport, settings.prefix, name)
        specs = {spec.name: spec for spec in await transport.queues()}
        names = [each for each in (found, dead_queue_name(found)) if each in specs]
        depths = {each: await transport.depth(each) for each in names}
        oldest = await transport.peek(found, limit=1) if transport.features.peek else ()
        return Row(specs[found], depths[found], _dead_count(found, depths)), oldest[0] if oldest else None


def _fields(row: Row, oldest: datetime | None) -> list[tuple[str, str]]:
    spec, depth = row.spec, row.depth
    return [
        ("queue", spec.name),
        ("ready", count_of(depth.ready)),
        ("leased", count_of(depth.leased)),
        ("delayed", count_of(depth.delayed)),
        ("dead", count_of(row.dead)),
        ("oldest", f"sent {age(oldest)} ago" if oldest else ""),
        ("lease", format_duration(spec.lease)),
        ("order", "messages of one key stay in order" if spec.fifo else "none promised"),
        ("retention", "for ever" if spec.retention is None else format_duration(spec.retention)),
        ("tags", ", ".join(f"{name}={value}" for name, value in spec.tags.items())),
    ]


@queue.command()
@click.argument("name")
@click.option(
    "--lease",
    type=DURATION,
    metavar="DURATION",
    default=60.0,
    show_default="60s",
    help="How long a message is held before it comes again.",
)
@click.option("--fifo", is_flag=True, help="Keep messages of one key in order.")
@click.option("--retention", type=DURATION, metavar="DURATION", help="Drop messages that wait longer than this.")
@click.option("--tag", "tags", type=PAIR, multiple=True, help="A tag to keep with the queue; may be repeated.")
@click.pass_obj
def create(
    session: Session, *, name: str, lease: float, fifo: bool, retention: float | None, tags: tuple[tuple[str, str], ...]
) -> None:
    """Create a queue of exactly this NAME, with its queue of dead letters.

    A queue that exists with the same settings is left as it is. Actors' queues begin with the prefix (asya-) and are made by
    sending to the actor or running it.
    """
    settings = session.load().settings
    spec = QueueSpec(name=check_queue_name(name), lease=lease, fifo=fifo, retention=retention, tags=dict(tags))
    session.run(_create(settings, spec), settings)
    click.echo(f"Queue {name} is there.", err=True)
    if settings.prefix and not name.startswith(settings.prefix) and not is_dead_queue(name):
        say(f"no actor takes from {name}: the queue of an actor {name!r} is {settings.prefix}{name}")


async def _create(settings: Settings, spec: QueueSpec) -> None:
    async with connect(settings, make=True) as transport:
        await transport.declare(spec)
        if not is_dead_queue(spec.name):
            await transport.declare(QueueSpec(name=dead_queue_name(spec.name)))


@queue.command()
@click.argument("name")
@click.option("--with-dead-letters", is_flag=True, help="Delete its dead letters too; otherwise they are kept.")
@yes_option
@click.pass_obj
def delete(session: Session, *, name: str, with_dead_letters: bool, yes: bool) -> None:
    """Delete a queue with the messages in it. Asks first."""
    settings = session.load().settings
    session.run(_delete(settings, name, with_dead_letters=with_dead_letters, yes=yes), settings)


async def _delete(settings: Settings, name: str, *, with_dead_letters: bool, yes: bool) -> None:
    async with connect(settings) as transport:
        found = await find_queue(transport, settings.prefix, name)
        dead = dead_queue_name(found)
        there = dead in {spec.name for spec in await transport.queues()}
        letters = (await transport.depth(dead)).ready if there else 0
        both = there and (with_dead_letters or letters == 0)
        also = f" and its {plural(letters, 'dead letter')}" if both and letters else ""
        confirm(f"Delete queue {found} with {await _contents(transport, found)}{also}?", yes=yes)
        await transport.delete(found)
        if both:
            await transport.delete(dead)
        click.echo(f"Queue {found} is deleted.", err=True)
        if there and not both:
            click.echo(f"Kept {plural(letters or 0, 'dead letter')} in {dead}.", err=True)


async def _contents(transport: Transport, name: str) -> str:
    depth = await transport.depth(name)
    counts = (depth.ready, depth.leased, depth.delayed)
    return "its messages" if None in counts else plural(sum(count or 0 for count in counts), "message")


@queue.command()
@click.argument("name")
@yes_option
@click.pass_obj
def purge(session: Session, *, name: str, yes: bool) -> None:
    """Drop what waits in a queue, ready or delayed; what is in work stays. Asks first."""
    settings = session.load().settings
    found, count = session.run(_purge(settings, name, yes=yes), settings)
    click.echo(f"Dropped {plural(count, 'message')} of {found}.", err=True)


async def _purge(settings: Settings, name: str, *, yes: bool) -> tuple[str, int]:
    async with connect(settings) as transport:
        found = await find_queue(transport, settings.prefix, name)
        depth = await transport.depth(found)
        waiting = None if None in (depth.ready, depth.delayed) else (depth.ready or 0) + (depth.delayed or 0)
        shown = "all waiting messages" if waiting is None else plural(waiting, "waiting message")
        confirm(f"Drop {shown} of {found} for good?", yes=yes)
        return found, await transport.purge(found)


@queue.command()
@click.argument("name")
@click.option("--limit", type=COUNT, metavar="N", default=10, show_default=True, help="How many at most.")
@as_json_option
@click.pass_obj
def peek(session: Session, *, name: str, limit: int, as_json: bool) -> None:
    """Look at the oldest messages of a queue, without taking them.

    They are not counted either, but for brokers that cannot show a message without handing it out; then a line says so.
    """
    settings = session.load().settings
    messages = session.run(_peek(settings, name, limit), settings)
    if as_json:
        write_json_list(
            [{"id": each.id, "key": each.key, "headers": each.headers, **body_as_json(each.body)} for each in messages]
        )
        return
    columns: list[Column[Message]] = [
        Column("ID", lambda each: each.id),
        Column("SENT", lambda each: age(parse_timestamp(each.headers.get(SENT_AT))), right=True),
        Column("KEY", lambda each: each.key or ""),
        Column("BYTES", lambda each: str(len(each.body)), right=True),
        Column("ROUTE", _route),
        Column("PAYLOAD", _payload, cut=True),
    ]
    columns = [each for each in columns if each.heading not in {"KEY", "ROUTE"} or any(map(each.text, messages))]
    write_table(messages, columns, empty="There are no messages.")


def _route(message: Message) -> str:
    """The route of an envelope with more than one actor, the one whose turn it is in brackets."""
    try:
        route = decode_envelope(message.body).route
    except InvalidEnvelopeError:
        return ""
    marked = [f"[{name}]" if place == route.current else name for place, name in enumerate(route.actors)]
    return " ".join(marked) if len(marked) > 1 else ""


def _payload(message: Message) -> str:
    try:
        return body_as_text(bytes(decode_envelope(message.body).payload), 200)
    except InvalidEnvelopeError:
        return body_as_text(message.body, 200)


async def _peek(settings: Settings, name: str, limit: int) -> Sequence[Message]:
    async with connect(settings) as transport:
        found = await find_queue(transport, settings.prefix, name)
        warn_of_looking(transport)
        return await transport.peek(found, limit=limit)
