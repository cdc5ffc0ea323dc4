"""What one replica's pump is told, from its manifest: as settings in this process, or as the environment of a sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oncue.core.asya import load_sidecar_settings
from oncue.core.settings import Settings, SidecarSettings
from oncue.sidecar.actor import ActorSettings
from oncue.sidecar.process import actor_settings as settings_of_actor

if TYPE_CHECKING:
    from oncue.local.plan import Plan

SOCKET = "asya-runtime.sock"

ELSEWHERE = (
    *("ASYA_TRANSPORT", "ASYA_RABBITMQ_", "ASYA_SQS_", "ASYA_AWS_", "ASYA_S3_", "ASYA_QUEUE_RETRY_", "ONCUE_URL"),
    *("ASYA_SOCKET_", "ONCUE_SOCKET_", "ASYA_METRICS_", "ONCUE_METRICS", "ASYA_CUSTOM_METRICS", "ONCUE_CUSTOM_METRICS"),
)
"""How the variables of a sidecar begin that have no effect here: there is one transport for all, and no port for each."""
_TIMEOUTS = ("ASYA_RUNTIME_TIMEOUT", "ONCUE_RUNTIME_TIMEOUT")


def actor_settings(plan: Plan, place: Path, settings: Settings) -> ActorSettings:
    """The settings of a replica whose runtime has its socket in the folder `place`.

    Raise `ConfigError`, with all faults, for what the manifest sets wrongly.
    """
    return settings_of_actor(_load(plan, place, settings)[0])


def gateway_url(plan: Plan, place: Path, settings: Settings) -> str:
    """The gateway that is told about the actor's messages; empty for none. Raises as `actor_settings`."""
    return _load(plan, place, settings)[0].gateway_url


def sidecar_environment(plan: Plan, place: Path, settings: Settings) -> Mapping[str, str]:
    """The environment in which `oncue sidecar` does the same."""
    found, given = _load(plan, place, settings)
    return {f"ONCUE_{name.upper()}": _text(getattr(found, name)) for name in given}


def _load(plan: Plan, place: Path, settings: Settings) -> tuple[SidecarSettings, Mapping[str, str]]:
    environ = {name: text for name, text in plan.sidecar.items() if not name.startswith(ELSEWHERE)}
    if not any(name in environ for name in _TIMEOUTS):
        environ[_TIMEOUTS[0]] = str(plan.timeout)
    options = {
        "actor_name": plan.name,
        "end_actor": plan.is_end,
        "socket_dir": str(place),
        "socket_name": SOCKET,
        "metrics_enabled": False,
        "url": settings.url,
        "prefix": settings.prefix,
        "log_level": settings.log_level,
        "grace": plan.grace,
    }
    found, loaded = load_sidecar_settings(environ=environ, options=options)
    return found, loaded.sources


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
