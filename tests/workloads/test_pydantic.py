"""Pydantic models as payloads and results, where pydantic is installed."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from msgspec import Raw

from oncue.core.errors import ConfigError, InvalidPayloadError, InvalidResultError
from oncue.workloads.values import reader, write

pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")


class Pet(pydantic.BaseModel):
    name: str
    born: date
    weight: float = 1.0


class Strict(pydantic.BaseModel, strict=True):
    born: date


@dataclass
class Owner:
    pets: list[Pet]


REX = Pet(name="Rex", born=date(2020, 1, 2))
TEXT = '{"name": "Rex", "born": "2020-01-02"}'


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Pet, TEXT, REX),
        (list[Pet], f"[{TEXT}]", [REX]),
        (Pet | None, TEXT, REX),
        (Owner, f'{{"pets": [{TEXT}]}}', Owner([REX])),
        (Strict, '{"born": "2020-01-02"}', Strict(born=date(2020, 1, 2))),
    ],
)
def test_a_payload_becomes_a_model(annotation: Any, text: str, value: Any) -> None:
    assert reader(annotation)(Raw(text.encode())) == value


@pytest.mark.parametrize(
    ("annotation", "text", "path"),
    [
        (Pet, '{"name": "Rex", "born": "secret"}', r"\$\.born"),
        (list[Pet], '[{"name": 1, "born": "2020-01-02"}]', r"\$\[0\]\.name"),
        (Owner, '{"pets": [{"name": "secret"}]}', r"\$\.born.*\$\.pets\[0\]"),
    ],
)
def test_a_bad_field_is_named_by_its_path_and_its_value_is_not_shown(annotation: Any, text: str, path: str) -> None:
    with pytest.raises(InvalidPayloadError, match=path) as caught:
        reader(annotation)(Raw(text.encode()))
    assert "secret" not in str(caught.value)


def test_a_model_beside_a_type_that_nobody_can_read_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"a payload cannot be .*Pet \| .*socket: Unable to generate pydantic-core schema"
    ):
        reader(Pet | socket.socket)


def test_a_model_becomes_json_and_its_nan_is_noticed() -> None:
    assert bytes(write({"pet": REX}, "it", InvalidResultError)) == (
        b'{"pet":{"name":"Rex","born":"2020-01-02","weight":1.0}}'
    )
    with pytest.raises(InvalidResultError, match=r"nan is no JSON number - at `\$\.weight`"):
        write(REX.model_copy(update={"weight": math.nan}), "it", InvalidResultError)


def test_nobody_has_to_import_pydantic() -> None:
    code = "import sys, oncue.app, oncue.testing.app; print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
