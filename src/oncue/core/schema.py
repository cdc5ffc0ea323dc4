"""The schema of the settings: every setting of every command, with its kind, default, names and description.

`oncue.core.settings` reads them; documentation and `oncue doctor` are made of them.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from oncue.core.kinds import (
    ACTOR,
    ADDRESS,
    CUSTOM_METRICS,
    FILE_NAME,
    FLAG,
    FOLDER,
    HTTP_URL,
    METRIC,
    OPTIONAL_URL,
    PREFIX,
    RESULTS_URL,
    URL,
    CustomMetric,
    Kind,
    choice,
    duration,
    whole,
)
from oncue.core.redact import redact_url

VARIABLES = "ONCUE_"
"""What the names of settings in the environment begin with."""


class _Schema(msgspec.Struct, frozen=True):
    kind: Kind
    option: str | None = None
    aliases: tuple[str, ...] = ()
    secret: bool = False


def _doc(description: str, kind: Kind, option: str | None = None, *, aliases: tuple[str, ...] = ()) -> Meta:
    secret = kind in (URL, OPTIONAL_URL, RESULTS_URL, HTTP_URL)
    return Meta(description=description, extra={"schema": _Schema(kind, option, aliases, secret)})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings with their values in force; made by `load_settings`, or from values that are right already."""

    url: Annotated[
        str, _doc("Where the queues are. The scheme of the URL chooses the transport.", URL, "--transport")
    ] = "sqlite:///.oncue/oncue.db"
    prefix: Annotated[
        str, _doc("What the queue names of actors begin with: actor `x` takes its work from `<prefix>x`.", PREFIX)
    ] = "asya-"
    log_level: Annotated[
        str,
        _doc(
            "The least important log lines that are written.",
            choice("debug", "info", "warning", "error", aliases={"warn": "warning", "critical": "error"}),
            aliases=("ASYA_LOG_LEVEL",),
        ),
    ] = "info"
    log_format: Annotated[
        str,
        _doc(
            "How log lines look: `text` for people, `json` for machines, `auto` for text on a terminal and else JSON.",
            choice("auto", "text", "json"),
        ),
    ] = "auto"
    log_payloads: Annotated[
        bool, _doc("Whether payloads may appear in the logs. They may hold what nobody else should read.", FLAG)
    ] = False
    metrics: Annotated[
        str,
        _doc("Where metrics and health are served over HTTP: `HOST:PORT`. Empty: nowhere.", ADDRESS, "--metrics"),
    ] = ""
    grace: Annotated[
        float,
        _doc("How long a worker that was told to stop may finish the work it has begun.", duration(), "--grace"),
    ] = 30.0
    results: Annotated[
        str,
        _doc(
            "Where results are kept: `sqlite:///PATH`, or `s3://BUCKET/PREFIX`. Empty: they are not.",
            RESULTS_URL,
            "--results",
        ),
    ] = ""
    result_retention: Annotated[float, _doc("How long a result is kept.", duration(1.0))] = 7 * 86400.0
    processes: Annotated[
        int, _doc("How many processes a worker runs, each with all actors.", whole(1, 1024), "--processes")
    ] = 1


class SidecarSettings(Settings, frozen=True, kw_only=True):
    """The settings of `oncue sidecar`: those of all commands, and its own."""

    metrics: Annotated[
        str,
        _doc(
            "Where the sidecar serves metrics and health over HTTP: `HOST:PORT`. Empty: nowhere.",
            ADDRESS,
            "--metrics",
            aliases=("ASYA_METRICS_ADDR",),
        ),
    ] = ":8080"
    metrics_enabled: Annotated[
        bool,
        _doc("Whether the sidecar serves metrics and health at all.", FLAG, aliases=("ASYA_METRICS_ENABLED",)),
    ] = True
    metrics_namespace: Annotated[
        str,
        _doc(
            "What the names of Asya's metrics begin with, before an underscore.",
            METRIC,
            aliases=("ASYA_METRICS_NAMESPACE",),
        ),
    ] = "asya_actor"
    custom_metrics: Annotated[
        tuple[CustomMetric, ...],
        _doc(
            "Metrics that are served beside the sidecar's own. As in Asya nothing changes them.",
            CUSTOM_METRICS,
            aliases=("ASYA_CUSTOM_METRICS",),
        ),
    ] = ()
    actor_name: Annotated[
        str, _doc("The actor whose sidecar this is. It has to be given.", ACTOR, aliases=("ASYA_ACTOR_NAME",))
    ] = ""
    happy_end: Annotated[
        str, _doc("The actor to which finished routes go.", ACTOR, aliases=("ASYA_ACTOR_HAPPY_END",))
    ] = "happy-end"
    error_end: Annotated[
        str, _doc("The actor to which failed messages go.", ACTOR, aliases=("ASYA_ACTOR_ERROR_END",))
    ] = "error-end"
    end_actor: Annotated[
        bool,
        _doc(
            "Whether this is an end actor: its runtime gets whole envelopes, and nothing is sent on.",
            FLAG,
            aliases=("ASYA_IS_END_ACTOR",),
        ),
    ] = False
    built_in: Annotated[
        bool,
        _doc(
            "Whether the sidecar does the work of the end actor itself, without a runtime: it keeps results where `results` "
            "says so, and answers whoever waits.",
            FLAG,
        ),
    ] = False
    socket_dir: Annotated[
        str, _doc("The folder of the runtime's socket and of its ready file.", FOLDER, aliases=("ASYA_SOCKET_DIR",))
    ] = "/var/run/asya"
    socket_name: Annotated[
        str, _doc("The file name of the runtime's socket.", FILE_NAME, aliases=("ASYA_SOCKET_NAME",))
    ] = "asya-runtime.sock"
    runtime_timeout: Annotated[
        float,
        _doc("How long the runtime may work on one message.", duration(0.001), aliases=("ASYA_RUNTIME_TIMEOUT",)),
    ] = 300.0
    runtime_ready_timeout: Annotated[
        float,
        _doc(
            "How long the sidecar waits for its runtime at the start before it gives up.",
            duration(0.001),
            aliases=("ASYA_RUNTIME_READY_TIMEOUT",),
        ),
    ] = 300.0
    attempts: Annotated[
        int,
        _doc(
            "How many attempts at a message may fail by the handler's own fault. One, as in Asya: it is not repeated.",
            whole(1, 1000),
        ),
    ] = 1
    crash_attempts: Annotated[
        int,
        _doc(
            "How many attempts there are in all when a runtime crashes or a connection breaks; at least `attempts`.",
            whole(1, 1000),
        ),
    ] = 5
    backoff: Annotated[
        float, _doc("The wait before the second attempt. It doubles from one attempt to the next.", duration())
    ] = 1.0
    backoff_cap: Annotated[float, _doc("The longest wait between two attempts.", duration())] = 300.0
    lease: Annotated[
        float,
        _doc("How long a message is kept from other replicas once its sidecar has died.", duration(1.0)),
    ] = 60.0
    gateway_url: Annotated[
        str,
        _doc("The gateway that is told how far each message is. Empty: none.", HTTP_URL, aliases=("ASYA_GATEWAY_URL",)),
    ] = ""
    queue_retry_max_attempts: Annotated[
        int,
        _doc(
            "Taken from Asya and without effect: a queue that is missing is made, and a transport that is away is waited for.",
            whole(1, 10**6),
            aliases=("ASYA_QUEUE_RETRY_MAX_ATTEMPTS",),
        ),
    ] = 10
    queue_retry_backoff: Annotated[
        float,
        _doc(
            "Taken from Asya and without effect, as the one above.",
            duration(),
            aliases=("ASYA_QUEUE_RETRY_BACKOFF",),
        ),
    ] = 1.0


RUNTIME = (
    "HANDLER",
    "HANDLER_MODE",
    "SOCKET_CHMOD",
    "CHUNK_SIZE",
    "ENABLE_VALIDATION",
    "CONCURRENCY",
    "MEMORY_LIMIT",
    "FRAME_LIMIT",
)
"""The settings of `runtime.py` that no command of ours has: an environment may serve both."""


class Setting(msgspec.Struct, frozen=True):
    """What is to be known about one setting; documentation and `oncue doctor` are made of these."""

    name: str
    kind: Kind
    default: Any
    description: str
    option: str | None
    aliases: tuple[str, ...]
    secret: bool

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return VARIABLES + self.name.upper()

    @property
    def variables(self) -> tuple[str, ...]:
        """All its names in the environment, the main one first."""
        return (self.variable, *self.aliases)

    def show(self, value: Any) -> str:
        """The value as a person would write it, without secrets."""
        text = self.kind.show(value)
        return redact_url(text) if self.secret else text


@cache
def describe(schema: type[Settings] = Settings) -> tuple[Setting, ...]:
    """Every setting of `schema`, in its order."""
    hints = get_type_hints(schema, include_extras=True)
    return tuple(_setting(field, hints[field.name]) for field in msgspec.structs.fields(schema))


@cache
def known_variables() -> frozenset[str]:
    """The settings of all commands, and of the runtime, by their names in the environment: several may share one."""
    own = [name for schema in (Settings, SidecarSettings) for each in describe(schema) for name in each.variables]
    return frozenset((*own, *(VARIABLES + name for name in RUNTIME)))


@cache
def known_names() -> frozenset[str]:
    """The settings of all commands by their names in a file."""
    return frozenset(each.name for schema in (Settings, SidecarSettings) for each in describe(schema))


def _setting(field: msgspec.structs.FieldInfo, hint: Any) -> Setting:
    meta: Meta = get_args(hint)[1]
    schema: _Schema = (meta.extra or {})["schema"]
    description = meta.description or ""
    return Setting(field.name, schema.kind, field.default, description, schema.option, schema.aliases, schema.secret)
