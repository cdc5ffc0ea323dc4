"""What a person sees when something goes wrong: one line on standard error, a hint, an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from oncue.cli.session import Session

FAILED = 1
MISUSED = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
"""As a shell reports a program that ended because nobody read its output any more (128 + SIGPIPE)."""


class Failed(click.ClickException):
    """A verb that has to end here: its text is shown, its exit code is 1 unless said otherwise."""

    def __init__(self, text: str, *, hint: str = "", code: int = FAILED) -> None:
        super().__init__(text)
        self.hint = hint
        self.code = code


def exit_code(command: Callable[[], Any], session: Session) -> int:
    """Call `command`; say in one line each what went wrong, and return the exit code. Never raises."""
    try:
        result = command()
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        return PIPE_CLOSED
    except (click.Abort, KeyboardInterrupt):
        if sys.stderr.isatty():
            click.echo(err=True)  # behind the ^C that the terminal shows
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if session.verbose:
            _show_traceback(error)
        return _explain(error)
    return result if isinstance(result, int) else 0


def say(text: str, hint: str = "") -> None:
    """One line on standard error under the program's name; a hint goes behind it."""
    line = "oncue: " + text.translate(_UNPRINTABLE) + (f" ({hint})" if hint else "")
    try:
        click.echo(line, err=True)
    except BrokenPipeError:
        silence(sys.stderr)


def _explain(error: Exception) -> int:
    if isinstance(error, Failed):
        say(error.message, error.hint)
        return error.code
    if isinstance(error, click.UsageError):
        where = f"see {error.ctx.command_path} --help" if error.ctx is not None else ""
        say(_plain(error.format_message()), where)
        return MISUSED
    if isinstance(error, click.ClickException):
        say(_plain(error.format_message()))
        return FAILED
    from oncue.core.errors import ConfigError, OnCueError, SettingsError, UnknownActorError

    if isinstance(error, SettingsError):
        for fault in error.faults:
            say(fault)
        return MISUSED
    if isinstance(error, OnCueError):
        say(_one_line(str(error)), hint_for(error))
        return MISUSED if isinstance(error, ConfigError | UnknownActorError) else FAILED
    say(f"unexpected {type(error).__name__}: {_one_line(str(error))}", "-v shows where")
    return FAILED


def hint_for(error: Exception) -> str:
    """What a person can do about an error of ours; empty where its text says it already."""
    from oncue.core import errors

    match error:
        case errors.StorageFullError():
            return "make room, then try again"
        case errors.ConnectionLostError():
            return "oncue doctor checks the connection"
        case errors.QueueNotFoundError():
            return "oncue queue list shows what there is"
        case errors.QueueMismatchError():
            return (
                f"give the actor what the queue has, or, once it is empty, remove it: oncue queue delete {error.queue}"
            )
        case errors.CallTimeoutError():
            return "is a worker running? The message is still in its queue or in work"
        case _:
            return ""


def _plain(text: str) -> str:
    """A message of click as part of our line: no capital, no full stop at its end."""
    text = _one_line(text)
    head = text[:1].lower() + text[1:] if text[1:2].islower() else text
    return head.removesuffix(".")


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _show_traceback(error: Exception) -> None:
    if isinstance(error, click.ClickException) and error.__cause__ is None:
        return
    import traceback

    from oncue.core.redact import redact_urls

    click.echo(redact_urls("".join(traceback.format_exception(error))), err=True, nl=False)


def silence(stream: TextIO) -> None:
    """Let the interpreter's last flush go nowhere: there is nobody to read it, nor a complaint about it."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


_UNPRINTABLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))}
