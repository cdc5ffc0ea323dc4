"""The verb `oncue send`: one payload, the same one many times, or JSON lines from standard input; perhaps with the results."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import click
import msgspec
from msgspec import Raw

from oncue.cli.failure import FAILED, Failed, say
from oncue.cli.group import Verb
from oncue.cli.lines import Faults, checked, lines_of, read_lines, read_payload
from oncue.cli.options import COUNT, DURATION, PAIR
from oncue.cli.output import plural, write_json
from oncue.cli.progress import Progress, progress_bar
from oncue.cli.session import Session, connect
from oncue.core.envelope import Envelope, decode_envelope
from oncue.core.errors import ActorFailedError, CallTimeoutError, InvalidValueError
from oncue.core.message import Send, new_id
from oncue.core.settings import Loaded, did_you_mean
from oncue.dead import dead_queue_name, is_dead_queue
from oncue.outgoing import Outgoing, message_of
from oncue.transports.base import QueueSpec, Transport

_AT_ONCE = 1000
"""How many copies go out together."""
_CALLS = 64
"""How many results are waited for at the same time."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say about every message."""

    actor: str
    route: tuple[str, ...] = ()
    delay: float = 0.0
    id: str | None = None
    key: str | None = None
    headers: Mapping[str, Any] = {}
    create: bool = False
    timeout: float | None = None

    @property
    def actors(self) -> tuple[str, ...]:
        """Everyone on the route."""
        return (self.actor, *self.route)


@click.command(
    cls=Verb,
    epilog="Standard input is read twice: every line is checked before anything is sent, so that a mistake in the last one "
    "sends nothing at all. What comes through a pipe is kept in a temporary file meanwhile; memory stays small "
    "however much it is. With --skip-invalid lines are sent as they arrive, and those that are not JSON are "
    "named and left out.",
)
@click.argument("actor")
@click.argument("payload", metavar="[JSON or -]", required=False)
@click.option("--route", metavar="A,B", help="The actors that come after ACTOR, in order.")
@click.option("--wait", is_flag=True, help="Wait for the end of the route and print the result as JSON.")
@click.option(
    "--timeout", type=DURATION, metavar="DURATION", help="How long to wait for each result (default: until Ctrl-C)."
)
@click.option(
    "--delay",
    type=DURATION,
    metavar="DURATION",
    default=0.0,
    help="Hand it out no sooner than this from now, such as 10m.",
)
@click.option("--id", metavar="ID", help="The id of the message (default: a new one).")
@click.option("--key", metavar="KEY", help="The ordering key, for queues that keep an order.")
@click.option(
    "--header",
    "headers",
    type=PAIR,
    multiple=True,
    metavar="NAME=VALUE",
    help="A header of the envelope, as JSON or text; may be repeated.",
)
@click.option("--count", type=COUNT, metavar="N", help="Send the payload this many times.")
@click.option("--skip-invalid", is_flag=True, help="Leave out lines that are not JSON, and send the others.")
@click.option("--create", is_flag=True, help="Make the queue of an actor even if there is one of a similar name.")
@click.pass_obj
def send(session: Session, /, *, actor: str, payload: str | None, wait: bool, count: int | None, skip_invalid: bool, **options: Any) -> None:  # fmt: skip
    """Send ACTOR a payload: a JSON value (null when there is none), or - for JSON lines from standard input.

    Returns when the messages are stored, and prints the id of a single one. The queue of an actor that nobody knows yet
    is made, unless there is an actor of a similar name.
    """
    loaded = session.load()
    order = _order(actor, **options)
    many = payload == "-"
    if options["timeout"] is not None and not wait:
        raise click.UsageError("--timeout goes with --wait", click.get_current_context())
    if order.delay and wait:
        raise click.UsageError("--delay and --wait do not go together", click.get_current_context())
    if order.id is not None and (many or (count or 1) > 1):
        raise click.UsageError("--id is for a single message", click.get_current_context())
    if many and count is not None:
        raise click.UsageError("--count is for a single payload, not for lines", click.get_current_context())
    if skip_invalid and not many:
        raise click.UsageError("--skip-invalid is for lines from standard input", click.get_current_context())
    if many:
        if sys.stdin.isatty():
            click.echo("Reading JSON lines; Ctrl-D ends.", err=True)
        failed = session.run(_send_lines(loaded, order, wait=wait, skip_invalid=skip_invalid), loaded.settings)
    else:
        failed = session.run(_send_copies(loaded, order, _argument(payload), count, wait=wait), loaded.settings)
    if failed:
        click.get_current_context().exit(FAILED)


def _order(actor: str, *, route: str | None, headers: Sequence[tuple[str, str]], **options: Any) -> Order:  # fmt: skip
    followers = tuple(name.strip() for name in route.split(",")) if route else ()
    return Order(actor=actor, route=followers, headers={name: _value(text) for name, text in headers}, **options)


def _value(text: str) -> Any:
    try:
        return read_payload(text.encode())
    except InvalidValueError:
        return text


def _argument(text: str | None) -> Raw:
    if text is None:
        return Raw(b"null")
    try:
        return read_payload(text.encode("utf-8", "surrogateescape"))
    except InvalidValueError as error:
        shown = text if len(text) <= 60 else text[:59] + "…"
        bare = text.isidentifier() or not any(sign in text for sign in '{}[]":')
        hint = f"""a text needs quotes of its own: '"{shown}"'""" if bare else ""
        raise Failed(f"payload {shown!r} is {error}", hint=hint, code=2) from None


async def _send_copies(loaded: Loaded, order: Order, payload: Raw, count: int | None, *, wait: bool) -> int:
    """Send one message, or `count` of the same payload; return how many failed."""
    compose = Composer(order, loaded.settings.prefix)
    async with connect(loaded.settings, make=True) as transport:
        await _make_queues(transport, loaded, order)
        if wait:
            return await _call_all(transport, loaded, order, _copies(payload, count or 1), count)
        if count is None:
            message = compose(payload)
            await transport.send(message)
            click.echo(message.message.id)
            return 0
        batches = _copies(payload, count)
        with progress_bar(f"Sending to {order.actor}", count) as bar:
            await _send_batches(transport, order, compose, batches, bar)
        click.echo(f"Sent {plural(count, 'message')} to {order.actor}.", err=True)
        return 0


async def _copies(payload: Raw, count: int) -> AsyncIterator[Sequence[Raw]]:
    for start in range(0, count, _AT_ONCE):
        yield [payload] * min(_AT_ONCE, count - start)


async def _send_lines(loaded: Loaded, order: Order, *, wait: bool, skip_invalid: bool) -> int:
    """Send a message for each line of standard input; return how many failed."""
    file = sys.stdin.fileno()
    compose = Composer(order, loaded.settings.prefix)
    async with connect(loaded.settings, make=True) as transport:
        await _make_queues(transport, loaded, order)
        faults = Faults()
        if skip_invalid:
            payloads = _payloads(file, faults)
            try:
                if wait:
                    return await _call_all(transport, loaded, order, payloads, None)
                with progress_bar(f"Sending to {order.actor}", None) as bar:
                    await _send_batches(transport, order, compose, payloads, bar)
                click.echo(f"Sent {plural(bar.count, 'message')} to {order.actor}.", err=True)
                return 0
            finally:
                for fault in faults.texts():
                    say(f"{fault}; left out")
        async with checked(file) as found:
            if found.faults.count:
                for fault in found.faults.texts():
                    say(fault)
                raise Failed("nothing was sent", hint="--skip-invalid sends the other lines")
            payloads = _payloads(found.file, faults, strict=True)
            if wait:
                return await _call_all(transport, loaded, order, payloads, found.payloads)
            with progress_bar(f"Sending to {order.actor}", found.payloads) as bar:
                await _send_batches(transport, order, compose, payloads, bar)
            click.echo(f"Sent {plural(bar.count, 'message')} to {order.actor}.", err=True)
            return 0


async def _payloads(file: int, faults: Faults, *, strict: bool = False) -> AsyncIterator[Sequence[Raw]]:
    async for lines in lines_of(file):
        payloads = read_lines(lines, faults)
        if strict and faults.count:
            raise Failed(f"standard input changed while it was read: {faults.first[0]}")
        yield payloads


class Composer:
    """Makes the messages of an order, which is checked once."""

    def __init__(self, order: Order, prefix: str) -> None:
        first = Outgoing(prefix).compose(
            order.actor, None, delay=order.delay, id=order.id, key=order.key, route=order.route, headers=order.headers
        )
        self._order = order
        self._queue = first.queue
        self._pattern = decode_envelope(first.message.body)

    def __call__(self, payload: Raw) -> Send:
        """The message with this payload."""
        order, pattern = self._order, self._pattern
        envelope = Envelope(order.id or new_id(), pattern.route, payload, pattern.headers)
        return Send(self._queue, message_of(envelope, order.key), order.delay)


async def _send_batches(
    transport: Transport,
    order: Order,
    compose: Composer,
    batches: AsyncIterator[Sequence[Raw]],
    bar: Progress,
) -> None:
    """Send batch after batch, preparing the next while one is on its way. When it ends early, say how many are stored."""
    sent, on_the_way = 0, 0
    sending: asyncio.Task[None] | None = None
    try:
        async with aclosing(batches):  # type: ignore[type-var]  # both sources are generators
            async for batch in batches:
                messages = [compose(payload) for payload in batch]
                if sending is not None:
                    await sending
                    sent += on_the_way
                    bar(sent)
                sending, on_the_way = asyncio.create_task(_send(transport, messages)), len(messages)
        if sending is not None:
            await sending
            bar(sent + on_the_way)
    except BaseException as error:
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        bar.stop()
        how = "interrupted" if isinstance(error, asyncio.CancelledError) else "ended early"
        unknown = f", and perhaps some of the next {on_the_way}" if on_the_way else ""
        say(f"{how}: {plural(sent, 'message')} sent to {order.actor}{unknown}")
        raise


async def _send(transport: Transport, messages: Sequence[Send]) -> None:
    await transport.send(*messages)


async def _make_queues(transport: Transport, loaded: Loaded, order: Order) -> None:
    """Make the queues of actors that nobody has declared; one that looks like a slip of the pen is refused."""
    prefix = loaded.settings.prefix
    known = [spec.name for spec in await transport.queues()]
    actors = [name[len(prefix) :] for name in known if name.startswith(prefix) and not is_dead_queue(name)]
    for actor in dict.fromkeys(order.actors):
        if actor in actors:
            continue
        close = did_you_mean(actor, actors)
        if close and not order.create:
            raise Failed(f"there is no actor {actor!r}{close}", hint="--create makes its queue all the same", code=2)
        queue = prefix + actor
        await transport.declare(QueueSpec(name=queue))
        await transport.declare(QueueSpec(name=dead_queue_name(queue)))
        say(f"made the queue {queue}: no worker has declared it yet")


async def _call_all(
    transport: Transport,
    loaded: Loaded,
    order: Order,
    batches: AsyncIterator[Sequence[Raw]],
    total: int | None,
) -> int:
    """Call the actor with each payload, many at a time; print the results in order; return how many failed."""
    from oncue.app import App

    app = App()
    app.settings = loaded
    pending: deque[asyncio.Task[Any]] = deque()
    failed = number = 0
    single = total is None or total == 1
    async with app.connected(transport):
        try:
            async for batch in batches:
                for payload in batch:
                    if len(pending) == _CALLS:
                        number += 1
                        failed += not await _told(pending.popleft(), 0 if single else number)
                    pending.append(asyncio.create_task(_call(app, order, payload)))
            while pending:
                number += 1
                failed += not await _told(pending.popleft(), 0 if single else number)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
    return failed


async def _call(app: Any, order: Order, payload: Raw) -> Any:
    return await app.call(
        order.actor,
        msgspec.json.decode(payload),
        timeout=order.timeout,
        route=order.route,
        headers=order.headers,
        id=order.id,
        key=order.key,
    )


async def _told(task: asyncio.Task[Any], number: int) -> bool:
    """Print the result of a call, or what went wrong; whether it went well. `number` 0: there is only one."""
    from oncue.cli.failure import hint_for

    try:
        result = await task
    except (ActorFailedError, CallTimeoutError) as error:
        if not number:
            raise
        say(f"message {number}: {error}", hint_for(error))
        return False
    if number:
        click.echo(msgspec.json.encode(result).decode())
    else:
        write_json(result)
    return True
