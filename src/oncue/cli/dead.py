"""The verbs `oncue dead …`, on any transport: what was set aside, why, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

from oncue.cli.failure import FAILED, Failed, say
from oncue.cli.group import Group
from oncue.cli.names import find_dead_queue, queue_names, warn_of_looking
from oncue.cli.options import COUNT, DURATION, confirm, yes_option
from oncue.cli.output import (
    Column,
    age,
    as_json_option,
    body_as_json,
    body_as_text,
    plural,
    write_fields,
    write_json,
    write_json_list,
    write_table,
)
from oncue.cli.progress import Progress, progress_bar
from oncue.cli.session import Session, connect
from oncue.core.settings import Settings
from oncue.core.times import timestamp
from oncue.dead import DeadFilter, DeadLetter, Swept, discard, find_dead, is_dead_queue, list_dead, redrive
from oncue.transports.base import Transport

_NONE = "There are no dead letters."
_SHOWN_REFUSALS = 5

Sweep = Callable[[Transport, str, DeadFilter, int | None, Callable[[int], None] | None], Awaitable[Swept]]


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which dead letters are meant; all that are given must hold."""
    for option in (
        click.option(
            "--older-than", type=DURATION, metavar="DURATION", help="Only what died longer ago than this, such as 7d."
        ),
        click.option(
            "--error", "errors", multiple=True, metavar="TYPE", help="Only with this type of error; may be repeated."
        ),
        click.option(
            "--id", "ids", multiple=True, metavar="ID", help="Only the message with this id; may be repeated."
        ),
    ):
        command = option(command)
    return command


def chosen(ids: Sequence[str], errors: Sequence[str], older_than: float | None) -> DeadFilter:
    """The filter that the options of `choosing` mean."""
    before = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    return DeadFilter(ids=frozenset(ids), errors=frozenset(errors), died_before=before)


@click.group(cls=Group)
def dead() -> None:
    """List, show, redrive and discard dead letters.

    NAME is an actor's name or the name of a queue; the actor's queue is looked for first.
    """


@dead.command("list")
@click.argument("name", required=False)
@choosing
@click.option(
    "--limit", type=COUNT, metavar="N", default=100, show_default=True, help="How many at most, of each queue."
)
@as_json_option
@click.pass_obj
def list_letters(
    session: Session,
    *,
    name: str | None,
    ids: tuple[str, ...],
    errors: tuple[str, ...],
    older_than: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """List dead letters, oldest first: those of NAME, or of all queues."""
    settings = session.load().settings
    letters = session.run(_letters(settings, name, chosen(ids, errors, older_than), limit), settings)
    if as_json:
        write_json_list([_as_json(letter) for letter in letters])
        return
    now = datetime.now(UTC)
    columns: list[Column[DeadLetter]] = [
        Column("ID", lambda letter: letter.id),
        Column("QUEUE", lambda letter: letter.queue),
        Column("DIED", lambda letter: age(letter.last, now), right=True),
        Column("ATTEMPTS", lambda letter: str(letter.attempts or ""), right=True),
        Column("ERROR", lambda letter: letter.type or letter.reason),
        Column("MESSAGE", lambda letter: letter.message, cut=True),
    ]
    if name is not None and len({letter.queue for letter in letters}) == 1:
        columns = [column for column in columns if column.heading != "QUEUE"]
    write_table(letters, columns, empty=_NONE)
    if len(letters) == limit:
        click.echo(f"The first {limit}; --limit shows more.", err=True)


async def _letters(settings: Settings, name: str | None, which: DeadFilter, limit: int) -> Sequence[DeadLetter]:
    async with connect(settings) as transport:
        found: list[DeadLetter] = []
        warn_of_looking(transport)
        for each in await _queues(transport, settings.prefix, name):
            found.extend(await list_dead(transport, each, which, limit))
        return found


async def _queues(transport: Transport, prefix: str, name: str | None) -> Sequence[str]:
    """The dead queues that are meant: that of `name`, or all."""
    if name is None:
        return [each for each in await queue_names(transport) if is_dead_queue(each)]
    found = await find_dead_queue(transport, prefix, name)
    return [found] if found else []


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    fields = msgspec.structs.asdict(letter)
    original = letter.original
    del fields["stored"]
    return {
        "id": letter.id,
        **fields,
        "key": original.key,
        "headers": original.headers,
        **body_as_json(original.body),
    }


@dead.command()
@click.argument("name")
@click.argument("id")
@as_json_option
@click.pass_obj
def show(session: Session, *, name: str, id: str, as_json: bool) -> None:
    """Show the dead letter ID of NAME, whole: reason, traceback, headers and body."""
    settings = session.load().settings
    letter = session.run(_letter(settings, name, id), settings)
    if as_json:
        write_json(_as_json(letter))
        return
    original = letter.original
    write_fields(
        [
            ("id", letter.id),
            ("queue", letter.queue),
            ("reason", letter.reason),
            ("error", f"{letter.type}: {letter.message}" if letter.type else letter.message),
            ("attempts", str(letter.attempts or "")),
            ("sent", _moment(letter.first)),
            ("died", _moment(letter.last)),
            ("key", original.key or ""),
            ("headers", "\n".join(f"{key}: {value}" for key, value in original.headers.items())),
            ("body", body_as_text(original.body)),
            ("traceback", letter.traceback),
        ]
    )


async def _letter(settings: Settings, name: str, id: str) -> DeadLetter:
    async with connect(settings) as transport:
        warn_of_looking(transport)
        for each in await _queues(transport, settings.prefix, name):
            letter = await find_dead(transport, each, id)
            if letter is not None:
                return letter
    raise Failed(f"{name} has no dead letter with the id {id!r}", hint=f"oncue dead list {name} shows what there is")


def _moment(moment: datetime | None) -> str:
    return f"{timestamp(moment)} ({age(moment)} ago)" if moment else ""


@dead.command("redrive")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="The dead letters of all queues.")
@choosing
@click.option("--limit", type=COUNT, metavar="N", help="How many at most, of each queue.")
@as_json_option
@click.pass_obj
def redrive_letters(
    session: Session,
    *,
    name: str | None,
    every: bool,
    ids: tuple[str, ...],
    errors: tuple[str, ...],
    older_than: float | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Put dead letters back into the queue they came from, with the same id and all their attempts.

    Those of NAME that fit the options, or all of them. Interrupting it loses nothing: what was not put back stays.
    """
    _one_or_all(name, every)
    settings = session.load().settings
    which = chosen(ids, errors, older_than)
    swept = session.run(_sweep(settings, name, which, limit, redrive, "Put back"), settings)
    session_end(swept, "Put back", as_json=as_json)


@dead.command("discard")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="The dead letters of all queues.")
@choosing
@click.option("--limit", type=COUNT, metavar="N", help="How many at most, of each queue.")
@yes_option
@as_json_option
@click.pass_obj
def discard_letters(
    session: Session,
    *,
    name: str | None,
    every: bool,
    ids: tuple[str, ...],
    errors: tuple[str, ...],
    older_than: float | None,
    limit: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete dead letters for good: those of NAME that fit the options, or all of them. Asks first."""
    _one_or_all(name, every)
    settings = session.load().settings
    which = chosen(ids, errors, older_than)
    swept = session.run(_sweep(settings, name, which, limit, discard, "Discarded", ask=not yes), settings)
    session_end(swept, "Discarded", as_json=as_json)


def _one_or_all(name: str | None, every: bool) -> None:
    if (name is None) != every:
        raise click.UsageError("say either NAME or --all", click.get_current_context())


def session_end(swept: dict[str, Swept], done: str, *, as_json: bool) -> None:
    """Say what became of the dead letters; raise `Failed` when some had to stay."""
    if as_json:
        write_json_list(
            [
                {"queue": queue, "count": one.count, "refused": one.refused, "gave_up": one.gave_up}
                for queue, one in swept.items()
            ]
        )
    else:
        for queue, one in swept.items():
            if one.count or len(swept) == 1:
                click.echo(f"{done} {plural(one.count, 'dead letter')} of {queue}.", err=True)
        if not swept:
            click.echo(_NONE, err=True)
    refused = {id: reason for one in swept.values() for id, reason in one.refused.items()}
    for id, reason in list(refused.items())[:_SHOWN_REFUSALS]:
        say(f"dead letter {id} stays: {reason}")
    if len(refused) > _SHOWN_REFUSALS:
        say(f"and {len(refused) - _SHOWN_REFUSALS} more stay")
    gave_up = [queue for queue, one in swept.items() if one.gave_up]
    for queue in gave_up:
        say(f"there are more dead letters in {queue}, which were not handed out for some seconds", "try again")
    if refused or gave_up:
        click.get_current_context().exit(FAILED)


async def _sweep(
    settings: Settings,
    name: str | None,
    which: DeadFilter,
    limit: int | None,
    sweep: Sweep,
    done: str,
    *,
    ask: bool = False,
) -> dict[str, Swept]:
    """Sweep each dead queue that is meant. When it is cancelled, say how many had gone."""
    async with connect(settings) as transport:
        queues = await _queues(transport, settings.prefix, name)
        present = {each: (await transport.depth(each)).ready for each in queues}
        if ask and queues:
            confirm(_question(present, which, limit), yes=False)
        swept: dict[str, Swept] = {}
        for each in queues:
            total = present[each] if limit is None else min(limit, present[each] or limit)
            with progress_bar(f"{done} from {each}", total) as bar:
                try:
                    swept[each] = await sweep(transport, each, which, limit, bar)
                except BaseException as error:
                    _say_how_far(done, each, bar, error)
                    raise
        return swept


def _question(present: dict[str, int | None], which: DeadFilter, limit: int | None) -> str:
    where = next(iter(present)) if len(present) == 1 else f"{len(present)} queues"
    counts = [count for count in present.values() if count is not None]
    total = "all" if len(counts) < len(present) else str(sum(counts))
    if which:
        return f"Discard the dead letters that fit, of {total} in {where}, for good?"
    if limit is not None:
        return f"Discard the oldest {limit} of {total} dead letters in {where} for good?"
    return f"Discard {total} dead letters in {where} for good?"


def _say_how_far(done: str, queue: str, bar: Progress, error: BaseException) -> None:
    bar.stop()
    how = "interrupted" if isinstance(error, asyncio.CancelledError) else "ended early"
    say(f"{how}: {done.lower()} {plural(bar.count, 'dead letter')} of {queue}; the others stay where they were")
