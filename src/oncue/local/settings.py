"""What one replica's pump is told: as settings in this process, or as the environment of a sidecar of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oncue.core.settings import Settings
from oncue.core.times import format_duration
from oncue.local.plan import Plan
from oncue.local.replica import SOCKET
from oncue.outgoing import ERROR_END, HAPPY_END
from oncue.sidecar.actor import ActorSettings


def actor_settings(plan: Plan, place: Path, prefix: str) -> ActorSettings:
    """The settings of a replica whose runtime has its socket in the folder `place`."""
    return ActorSettings(
        name=plan.name,
        socket=place / SOCKET,
        prefix=prefix,
        timeout=plan.timeout,
        happy_end=plan.sidecar.get("ASYA_ACTOR_HAPPY_END") or HAPPY_END,
        error_end=plan.sidecar.get("ASYA_ACTOR_ERROR_END") or ERROR_END,
        is_end=plan.is_end,
    )


def sidecar_environment(plan: Plan, place: Path, settings: Settings) -> Mapping[str, str]:
    """The environment in which `oncue sidecar` does the same."""
    given = {
        "ASYA_ACTOR_NAME": plan.name,
        "ASYA_SOCKET_DIR": str(place),
        "ASYA_RUNTIME_TIMEOUT": format_duration(plan.timeout),
        "ASYA_IS_END_ACTOR": "true" if plan.is_end else "false",
        "ASYA_METRICS_ENABLED": "false",
        "ONCUE_URL": settings.url,
        "ONCUE_PREFIX": settings.prefix,
        "ONCUE_LOG_LEVEL": settings.log_level,
        "ONCUE_GRACE": format_duration(plan.grace),
    }
    return {**given, **plan.sidecar}
