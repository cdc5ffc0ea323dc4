"""JSON lines from a file or a pipe: read as they come, checked, and kept for a second pass, all in bounded memory."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
from msgspec import Raw

from oncue.core.errors import InvalidValueError

_READ = 64 * 1024
_AHEAD = 4
"""How many pieces may have been read and not yet been asked for."""
_BOM = b"\xef\xbb\xbf"
_SHOWN_FAULTS = 5

_decode = msgspec.json.Decoder().decode


class Line(NamedTuple):
    """A line that is not blank, and its number from 1."""

    number: int
    text: bytes


class Faults:
    """What is wrong with lines: the first few, and how many in all."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, fault: str) -> None:
        self.count += 1
        if len(self.first) < _SHOWN_FAULTS:
            self.first.append(fault)

    def texts(self) -> Iterator[str]:
        """A line for each of the first, and one for the rest."""
        yield from self.first
        if self.count > len(self.first):
            yield f"and {self.count - len(self.first)} more lines that are not JSON"


def read_payload(text: bytes) -> Raw:
    """`text` as a payload; raise `InvalidValueError` when it is no JSON value."""
    try:
        _decode(text)
    except RecursionError:
        raise InvalidValueError("not JSON: nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise InvalidValueError(f"not JSON: {reason}") from None
    return Raw(text)


def read_lines(lines: Iterable[Line], faults: Faults) -> list[Raw]:
    """The payloads of `lines`; what is wrong with the others goes to `faults`."""
    payloads = []
    for line in lines:
        try:
            payloads.append(read_payload(line.text))
        except InvalidValueError as error:
            faults.add(f"line {line.number}: {error}")
    return payloads


async def lines_of(file: int) -> AsyncIterator[Sequence[Line]]:
    """The lines of the open file `file`, some at a time, as soon as they are there.

    A thread of its own does the reading, a bounded piece ahead; when nobody asks any more it is left behind, since a read
    from a terminal or a pipe cannot be ended. Raise what reading raises.
    """
    number, rest = 0, bytearray()
    async for piece in _pieces(file):
        rest += piece.removeprefix(_BOM) if number == 0 and not rest else piece
        *whole, last = rest.split(b"\n") if b"\n" in piece else (rest,)
        rest = last
        lines = []
        for text in whole:
            number += 1
            if text and not text.isspace():
                lines.append(Line(number, bytes(text)))
        if lines:
            yield lines
    if rest and not rest.isspace():
        yield [Line(number + 1, bytes(rest))]


async def _pieces(file: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD)
    left = threading.Event()

    def put(item: bytes | OSError) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def read() -> None:
        while room.acquire() and not left.is_set():
            try:
                piece = os.read(file, _READ)
            except OSError as error:
                put(error)
                return
            put(piece)
            if not piece:
                return

    threading.Thread(target=read, name="oncue-lines", daemon=True).start()
    try:
        while True:
            item = await queue.get()
            if isinstance(item, OSError):
                raise item
            if not item:
                return
            yield item
            room.release()
    finally:
        left.set()
        room.release()


class Checked(NamedTuple):
    """A file that was read once: how many payloads it has, what is wrong with others, and where to read it again."""

    payloads: int
    faults: Faults
    file: int


@asynccontextmanager
async def checked(file: int) -> AsyncIterator[Checked]:
    """Read all of `file` and check it. A regular file is read again from where it stood; a pipe is kept in a temporary file."""
    faults = Faults()
    count = 0
    with tempfile.TemporaryFile() as kept:
        start = os.lseek(file, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(file).st_mode) else None
        async for lines in lines_of(file):
            count += len(read_lines(lines, faults))
            if start is None:
                kept.writelines(line.text + b"\n" for line in lines)
        if start is None:
            kept.flush()
            os.lseek(kept.fileno(), 0, os.SEEK_SET)
            yield Checked(count, faults, kept.fileno())
        else:
            os.lseek(file, start, os.SEEK_SET)
            yield Checked(count, faults, file)
