"""What Asya's variables say of a sidecar that the settings have no single name for: where its queues and its results are.

They count where no URL is given. `load_sidecar_settings` is what `oncue sidecar` reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from oncue.core.errors import SettingsError
from oncue.core.kinds import ACTOR, FOLDER, HTTP_URL, URL, Kind, choice, whole
from oncue.core.redact import redact, redact_url
from oncue.core.settings import Loaded, SidecarSettings, load_settings

_TEXT = Kind("a text", lambda raw: str(raw).strip())
_SECRET = Kind("a text", str)
_REGION = Kind("the name of a region such as eu-central-1", ACTOR.read)

_RABBITMQ: Mapping[str, tuple[Kind, Any]] = {
    "ASYA_RABBITMQ_URL": (URL, ""),
    "ASYA_RABBITMQ_HOST": (_TEXT, "localhost"),
    "ASYA_RABBITMQ_PORT": (whole(1, 65535), 5672),
    "ASYA_RABBITMQ_USERNAME": (_TEXT, "guest"),
    "ASYA_RABBITMQ_PASSWORD": (_SECRET, "guest"),
    "ASYA_RABBITMQ_EXCHANGE": (_TEXT, "asya"),
    "ASYA_RABBITMQ_PREFETCH": (whole(1, 65535), 1),
}
_SQS: Mapping[str, tuple[Kind, Any]] = {
    "ASYA_AWS_REGION": (_REGION, "us-east-1"),
    "ASYA_SQS_ENDPOINT": (HTTP_URL, ""),
    "ASYA_SQS_VISIBILITY_TIMEOUT": (whole(0, 43200), 0),
    "ASYA_SQS_WAIT_TIME_SECONDS": (whole(0, 20), 20),
}
_S3: Mapping[str, tuple[Kind, Any]] = {
    "ASYA_S3_BUCKET": (ACTOR, ""),
    "ASYA_S3_ENDPOINT": (HTTP_URL, ""),
    "ASYA_S3_RESULTS_PREFIX": (FOLDER, ""),
    "ASYA_S3_ERRORS_PREFIX": (FOLDER, ""),
}
_TRANSPORT = choice("rabbitmq", "sqs")


def load_sidecar_settings(
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | str | None = None,
    options: Mapping[str, object] | None = None,
    folder: Path | str = ".",
) -> tuple[SidecarSettings, Loaded]:
    """The settings of a sidecar, as `load_settings` finds them, with Asya's parts where no URL is given.

    Raise `SettingsError` with every fault found, a missing name of the actor among them.
    """
    environ = os.environ if environ is None else environ
    faults: list[str] = []
    loaded: Loaded | None = None
    try:
        loaded = load_settings(environ=environ, config=config, options=options, folder=folder, schema=SidecarSettings)
    except SettingsError as error:
        faults += error.faults
    url, name = _transport_url(environ, faults)
    results = _results_url(environ, faults)
    if not environ.get("ASYA_ACTOR_NAME") and not environ.get("ONCUE_ACTOR_NAME") and _unnamed(loaded):
        faults.append("environment: ASYA_ACTOR_NAME is required (or ONCUE_ACTOR_NAME): the actor whose sidecar this is")
    if url and name == "ASYA_RABBITMQ_URL" and environ.get("ONCUE_URL", url) not in {url, ""}:
        shown = f"ONCUE_URL={redact_url(environ['ONCUE_URL'])} and {name}={redact_url(url)}"
        faults.append(f"environment: {shown} are two names of one setting and differ: keep one of them")
    if faults or loaded is None:
        raise SettingsError(faults)
    found: dict[str, Any] = {}
    sources = dict(loaded.sources)
    for field, value, source in (("url", url, name), ("results", results, "ASYA_S3_BUCKET")):
        if value and field not in sources:
            found[field], sources[field] = value, f"environment {source}"
    settings = msgspec.structs.replace(loaded.settings, **found)
    assert isinstance(settings, SidecarSettings)
    return settings, Loaded(settings, sources, loaded.config)


def _unnamed(loaded: Loaded | None) -> bool:
    return loaded is not None and isinstance(loaded.settings, SidecarSettings) and not loaded.settings.actor_name


def _transport_url(environ: Mapping[str, str], faults: list[str]) -> tuple[str, str]:
    """The URL of the transport that the parts name, and the variable that chose it; nothing when none is set."""
    rabbitmq, sqs = _read(environ, _RABBITMQ, faults), _read(environ, _SQS, faults)
    kind = _read(environ, {"ASYA_TRANSPORT": (_TRANSPORT, "")}, faults)["ASYA_TRANSPORT"]
    chosen = "ASYA_TRANSPORT" if kind else next((name for name in _RABBITMQ if environ.get(name)), "")
    if kind == "sqs":
        parameters = {
            "endpoint": sqs["ASYA_SQS_ENDPOINT"],
            "visibility": sqs["ASYA_SQS_VISIBILITY_TIMEOUT"] or "",
            "wait": sqs["ASYA_SQS_WAIT_TIME_SECONDS"] if environ.get("ASYA_SQS_WAIT_TIME_SECONDS") else "",
        }
        return f"sqs://{sqs['ASYA_AWS_REGION']}{_query(parameters)}", chosen
    if not chosen:
        return "", ""
    if rabbitmq["ASYA_RABBITMQ_URL"]:
        return rabbitmq["ASYA_RABBITMQ_URL"], "ASYA_RABBITMQ_URL"
    user = f"{quote(rabbitmq['ASYA_RABBITMQ_USERNAME'], '')}:{quote(rabbitmq['ASYA_RABBITMQ_PASSWORD'], '')}"
    exchange = rabbitmq["ASYA_RABBITMQ_EXCHANGE"]
    place = f"{rabbitmq['ASYA_RABBITMQ_HOST']}:{rabbitmq['ASYA_RABBITMQ_PORT']}"
    return f"amqp://{user}@{place}/{_query({'exchange': '' if exchange == 'asya' else exchange})}", chosen


def _results_url(environ: Mapping[str, str], faults: list[str]) -> str:
    """The URL of the bucket that Asya's end actors would write to; nothing when none is named."""
    found = _read(environ, _S3, faults)
    if not found["ASYA_S3_BUCKET"]:
        return ""
    parameters = {
        "endpoint": found["ASYA_S3_ENDPOINT"],
        "region": environ.get("AWS_REGION", ""),
        "succeeded": found["ASYA_S3_RESULTS_PREFIX"],
        "failed": found["ASYA_S3_ERRORS_PREFIX"],
    }
    return f"s3://{found['ASYA_S3_BUCKET']}{_query(parameters)}"


def _query(parameters: Mapping[str, object]) -> str:
    given = {name: value for name, value in parameters.items() if value not in {"", None}}
    return "?" + urlencode(given, safe=":/") if given else ""


def _read(environ: Mapping[str, str], table: Mapping[str, tuple[Kind, Any]], faults: list[str]) -> dict[str, Any]:
    found = {}
    for name, (kind, default) in table.items():
        raw = environ.get(name, "")
        try:
            found[name] = kind.read(raw) if raw else default
        except ValueError:
            faults.append(f"environment: {name} is {redact_url(redact(repr(raw)))}, expected {kind.expected}")
            found[name] = default
    return found
