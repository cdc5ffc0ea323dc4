"""The kinds of values that options take, and questions to the person at the terminal."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from oncue.cli.failure import Failed


class Duration(click.ParamType[float]):
    """Seconds, or a text such as `90s`, `5m` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from oncue.core.times import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, sign, text = str(value).partition("=")
        if not sign or not name:
            self.fail(f"{value!r}: expected NAME=VALUE", param, ctx)
        return name, text


DURATION = Duration()
PAIR = Pair()
COUNT = click.IntRange(min=1)

yes_option = click.option("--yes", is_flag=True, help="Do not ask; needed where standard input is no terminal.")


def confirm(question: str, *, yes: bool) -> None:
    """Return when the person agrees, or has said `--yes`; raise `Failed` otherwise. Never asks where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        what = question.removesuffix("?")
        raise Failed(f"not without --yes: {what[:1].lower()}{what[1:]}", code=2)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # an event loop's would wait for the answer
    try:
        click.echo(f"{question} [y/N] ", err=True, nl=False)
        answer = sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, earlier)
    if answer.strip().lower() not in {"y", "yes"}:
        raise Failed("nothing was changed")
