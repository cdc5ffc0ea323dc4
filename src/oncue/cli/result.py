"""The verbs `oncue result …`: what is kept of routes that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

from oncue.cli.failure import Failed
from oncue.cli.group import Group
from oncue.cli.options import COUNT, DURATION
from oncue.cli.output import (
    Column,
    age,
    as_json_option,
    body_as_text,
    write_fields,
    write_json,
    write_json_list,
    write_table,
)
from oncue.cli.session import Session
from oncue.core.envelope import decode_envelope
from oncue.core.errors import InvalidEnvelopeError
from oncue.core.settings import Settings
from oncue.core.times import timestamp
from oncue.results import STATUSES, Result, ResultStore, Status, open_results
from oncue.results.sqlite import has_results, path_of

results_option = click.option("--results", metavar="URL", help="Where results are kept, such as sqlite:///results.db.")


@click.group(cls=Group)
def result() -> None:
    """List and show the results that are kept, where the setting `results` says, or where `oncue up` keeps them."""


@result.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that ended so.")
@click.option(
    "--older-than", type=DURATION, metavar="DURATION", help="Only what ended longer ago than this, such as 1h."
)
@click.option("--limit", type=COUNT, metavar="N", default=100, show_default=True, help="How many at most.")
@results_option
@as_json_option
@click.pass_obj
def list_results(
    session: Session, *, status: Status | None, older_than: float | None, limit: int, results: str | None, as_json: bool
) -> None:
    """List results, newest first."""
    settings = session.load(results=results).settings
    before = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    found = session.run(_list(_store(settings), status, limit, before), settings)
    if as_json:
        write_json_list([_as_json(each) for each in found])
        return
    now = datetime.now(UTC)
    columns: list[Column[Result]] = [
        Column("ID", lambda each: each.id),
        Column("STATUS", lambda each: each.status),
        Column("ACTOR", lambda each: each.actor),
        Column("ENDED", lambda each: age(each.finished_at, now), right=True),
        Column("RESULT", _short, cut=True),
    ]
    write_table(found, columns, empty="There are no results.")


def _store(settings: Settings) -> ResultStore:
    results = settings.results or _beside(settings)
    if not results:
        raise Failed(
            "no results are kept: the setting results is empty",
            hint="give --results sqlite:///results.db, ONCUE_RESULTS, or results: in oncue.yaml",
            code=2,
        )
    return open_results(results, settings.result_retention)


def _beside(settings: Settings) -> str:
    """The file of the queues, where `oncue up` has kept results in it."""
    is_file = settings.url.lower().startswith("sqlite:")
    return settings.url if is_file and has_results(path_of(settings.url)) else ""


async def _list(store: ResultStore, status: Status | None, limit: int, before: datetime | None) -> Sequence[Result]:
    try:
        return await store.list(status=status, limit=limit, before=before)
    finally:
        await store.close()


@result.command()
@click.argument("id")
@results_option
@as_json_option
@click.pass_obj
def show(session: Session, *, id: str, results: str | None, as_json: bool) -> None:
    """Show one result, whole, by the id of the message."""
    settings = session.load(results=results).settings
    found = session.run(_get(_store(settings), id), settings)
    if found is None:
        raise Failed(f"there is no result with the id {id!r}", hint="oncue result list shows what there is")
    if as_json:
        write_json(_as_json(found))
        return
    failure = found.failure
    write_fields(
        [
            ("id", found.id),
            ("parent", found.parent_id or ""),
            ("status", found.status),
            ("actor", found.actor),
            ("ended", f"{timestamp(found.finished_at)} ({age(found.finished_at)} ago)"),
            ("error", f"{failure.type}: {failure.message}" if failure else ""),
            ("payload", body_as_text(_payload(found))),
            ("traceback", failure.traceback if failure else ""),
        ]
    )


async def _get(store: ResultStore, id: str) -> Result | None:
    try:
        return await store.get(id)
    finally:
        await store.close()


def _payload(found: Result) -> bytes:
    try:
        return bytes(decode_envelope(found.envelope).payload)
    except InvalidEnvelopeError:
        return found.envelope


def _short(found: Result) -> str:
    if found.failure is not None:
        return f"{found.failure.type}: {found.failure.message}"
    return body_as_text(_payload(found), 200)


def _as_json(found: Result) -> dict[str, Any]:
    fields = msgspec.structs.asdict(found)
    del fields["envelope"]
    try:
        return {**fields, "payload": decode_envelope(found.envelope).payload}
    except InvalidEnvelopeError:
        return {**fields, "envelope": body_as_text(found.envelope)}
