"""Groups whose verbs are imported when they are used, and verbs that take the global options as well."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from oncue.cli.failure import PIPE_CLOSED, exit_code, silence
from oncue.cli.session import Session, global_options


class Verb(click.Command):
    """A command that takes the global options too, so that they may stand after it; its help does not repeat them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        global_options(hidden=True)(self)


class Group(click.Group):
    """A group that explains itself when it is called without a verb, and knows verbs that are nearly right."""

    command_class = Verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(name, known, 1)
            hint = f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group of verbs by name, each with `module:attribute` and its line in the help; none is imported for the help."""

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = dict(verbs or {})

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        place, _ = self._verbs.get(cmd_name, ("", ""))
        if not place:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        verbs = [
            CompletionItem(name, help=line) for name, (_, line) in self._verbs.items() if name.startswith(incomplete)
        ]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


class Program(LazyGroup):
    """The group at the top: it turns whatever goes wrong below into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None
        except BrokenPipeError:
            silence(sys.stdout)
            raise click.exceptions.Exit(PIPE_CLOSED) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        inner: Callable[..., Any] = super().main
        name = prog_name or "oncue"
        if not standalone_mode:
            return inner(args, name, complete_var, False, windows_expand_args, **extra)
        _fill_standard_streams()
        session = extra.setdefault("obj", Session())
        sys.exit(exit_code(lambda: inner(args, name, complete_var, False, windows_expand_args, **extra), session))


def _fill_standard_streams() -> None:
    """Open what the caller has closed, so that no file of a store gets the number of a standard stream."""
    if sys.stdin is not None and sys.stdout is not None and sys.stderr is not None:
        return
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(free)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115  # open as long as the process runs
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
