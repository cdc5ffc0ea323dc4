"""The wire, byte for byte, as docs/protocol-runtime.md shows it."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from runtime.beside import NEWEST, OLDEST, Beside

FRAMES = Path(__file__).parent / "frames"
PAGE = Path(__file__).parents[2] / "docs/protocol-runtime.md"
HELLO = b'{"oncue":1}'
KINDS = {
    "CALL": 1, "ENVELOPE": 2, "CANCEL": 3, "PING": 4,
    "ITEM": 16, "RESULT": 17, "END": 18, "ERROR": 19, "PONG": 20, "STOPPING": 21,
}  # fmt: skip
CASES = sorted(FRAMES.glob("*.json"))


def compact(value: Any) -> bytes:
    return b"" if value == "" else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def written(frame: dict[str, Any]) -> bytes:
    body = frame["body"].encode()
    if "kind" not in frame:
        return struct.pack(">I", len(body)) + body
    head = compact(frame["head"])
    fields = (13 + len(head) + len(body), KINDS[frame["kind"]], frame["id"], frame["number"], len(head))
    return struct.pack(">IBIII", *fields) + head + body


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_bytes_of_a_frame_are_what_its_fields_say(path: Path) -> None:
    for frame in json.loads(path.read_text())["exchange"]:
        assert written(frame).hex() == frame["bytes"]


def test_the_page_shows_every_case() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in CASES:
        assert f"../tests/runtime/frames/{path.name}" in page, path.name
    for name, number in KINDS.items():
        assert f"| {number} | `{name}` |" in page


@pytest.mark.parametrize("python", [OLDEST, NEWEST], ids=["oldest", "newest"])
async def test_the_runtime_answers_each_case_to_the_byte(python: Path) -> None:
    for path in CASES:
        case = json.loads(path.read_text())
        exchange = case["exchange"]
        asked = b"".join(bytes.fromhex(frame["bytes"]) for frame in exchange if frame["from"] == "sidecar")
        expected = b"".join(bytes.fromhex(frame["bytes"]) for frame in exchange if frame["from"] == "runtime")
        async with Beside(python, case["handler"], **case["settings"]) as beside:
            reader, writer = await asyncio.open_unix_connection(beside.socket)
            if "kind" in exchange[0]:
                writer.write(struct.pack(">I", len(HELLO)) + HELLO)
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                hello = json.loads(await reader.readexactly(length))
                assert list(hello)[:5] == ["oncue", "python", "handler", "mode", "processes"]
            writer.write(asked)
            assert await reader.readexactly(len(expected)) == expected, path.stem
            writer.close()
            await writer.wait_closed()
