"""What every verb shares: the global options, the settings in force, and a connection to the transport."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from oncue.cli.failure import Failed

if TYPE_CHECKING:
    from oncue.core.settings import Loaded, Settings
    from oncue.transports.base import Transport

_T = TypeVar("_T")


class Session:
    """What the global options say, wherever in the line they stood."""

    def __init__(self) -> None:
        self.transport: str | None = None
        self.config: str | None = None
        self.verbose = False

    def load(self, **options: object) -> Loaded:
        """The settings in force, with `options` of a verb laid over them; raises `SettingsError` with all faults."""
        from oncue.core.settings import load_settings

        return load_settings(config=self.config, options={"url": self.transport, **options})

    def run(self, work: Coroutine[Any, Any, _T], settings: Settings) -> _T:
        """Run `work` to its end in an event loop of its own; warnings go to standard error as text."""
        import asyncio

        import msgspec

        from oncue.logs import configure_logs

        level = "debug" if self.verbose else "warning"
        form = "text" if settings.log_format == "auto" else settings.log_format
        configure_logs(msgspec.structs.replace(settings, log_level=level, log_format=form), sys.stderr)
        return asyncio.run(work)


def global_options(*, hidden: bool) -> Callable[[Any], Any]:
    """Adds the global options to a command or to a function that becomes one; what is given there overrides."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value and parameter.name is not None:
            setattr(context.ensure_object(Session), parameter.name, value)

    options = [
        click.Option(
            ["--transport"],
            metavar="URL",
            help="Where the queues are, such as sqlite:///jobs.db (default: ONCUE_URL, then oncue.yaml, then "
            "sqlite:///.oncue/oncue.db).",
        ),
        click.Option(["--config"], metavar="FILE", help="Settings file (default: ONCUE_CONFIG, then oncue.yaml)."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Show more, and stack traces of errors."),
    ]
    for option in options:
        option.expose_value = False
        option.callback = keep
        option.hidden = hidden

    def add(target: Any) -> Any:
        if isinstance(target, click.Command):
            target.params.extend(options)
        else:
            own = target.__dict__.setdefault("__click_params__", [])
            own.extend(reversed(options))
        return target

    return add


@asynccontextmanager
async def connect(settings: Settings, *, make: bool = False) -> AsyncIterator[Transport]:
    """An open transport for one command. Without `make`, a store that is not there yet is an error and is not made."""
    from oncue.core.redact import redact_url
    from oncue.transports import open_transport

    if not make:
        _check_there(settings.url)
    transport = await open_transport(settings.url)
    try:
        if not transport.features.shared:
            raise Failed(
                f"transport {redact_url(settings.url)}: its queues live and end with one process, so a command of its "
                "own has nothing to do with them",
                hint="choose one that is shared, such as --transport sqlite:///jobs.db",
                code=2,
            )
        yield transport
    finally:
        await transport.close()


def _check_there(url: str) -> None:
    if url.partition(":")[0].lower() != "sqlite":
        return
    from oncue.transports.sqlite.file import path_of

    path = path_of(url)
    if not path.exists():
        raise Failed(
            f"there is no store at {path} yet", hint="oncue send or oncue run makes one; --transport chooses another"
        )
