"""Runs a user's Python function beside a sidecar: one file, the standard library alone, CPython 3.7 and later.

`python runtime.py` is all there is to start; the settings are environment variables. A small parent owns the socket and
never runs users' code: it passes requests to worker processes, ends those that hang, and answers for those that died.
What goes over the socket is in docs/protocol-runtime.md, what to set in docs/runtime.md.
"""

from __future__ import annotations

import collections
import errno
import faulthandler
import gc
import heapq
import importlib
import inspect
import itertools
import json
import logging
import math
import os
import re
import resource
import select
import selectors
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from typing import Any, NoReturn, Union

    Piece = Union[bytes, bytearray, memoryview]
    Written = Union[bytes, str]
    Frame = tuple[Piece, Union[Piece, str]]
    Found = tuple[int, int, int, bytes, list[memoryview]]
    Fault = dict[str, Any]
    Passed = tuple[list[str], int]

PROTOCOL = 1
LOG = logging.getLogger("oncue.runtime")

# ---- Settings --------------------------------------------------------------------------------------------------------


class SettingsFault(Exception):  # noqa: N818  # "error" would promise a class of the library's tree
    """Settings or files that cannot be used; each line of the text is one fault."""


def _word(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError("one of " + ", ".join(words))
        return text.lower()

    return read


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        raise ValueError("true or false")
    return text.lower() in ("true", "yes", "on", "1")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.match(r"[0-9]{1,12}$", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return read


def _mode_bits(text: str) -> int:
    if not re.match(r"(0o)?[0-7]{1,4}$", text):
        raise ValueError("octal digits such as 0o660")
    return int(text, 8)


def _duration(text: str) -> float:
    units = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?)(ms|s|m|h|$)", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or not 0.001 <= seconds <= 4e6:
        raise ValueError("a duration such as 90, 30s, 5m or 1h30m")
    return seconds


def _size(text: str) -> int:
    units = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    found = re.match(r"([0-9]{1,12})(k|M|G|Ki|Mi|Gi|)$", text)
    if found is None or int(found.group(1)) == 0:
        raise ValueError("a size such as 500M, 512Mi or 2Gi")
    return int(found.group(1)) * units[found.group(2)]


def _frame_size(text: str) -> int:
    size = _size(text)
    if size >= 2**32 - 64:
        raise ValueError("a size under 4Gi")
    return size


def _level(text: str) -> str:
    level = _word("debug", "info", "warn", "warning", "error", "critical")(text)
    return "WARNING" if level == "warn" else level.upper()


# Name after ONCUE_ or ASYA_, default, reader. Those of the second table are ours alone.
_SHARED: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "HANDLER": (None, str),
    "HANDLER_MODE": ("payload", _word("payload", "envelope")),
    "SOCKET_DIR": ("/var/run/asya", str),
    "SOCKET_NAME": ("asya-runtime.sock", str),
    "SOCKET_CHMOD": (0o666, _mode_bits),
    "CHUNK_SIZE": (65536, _whole(1, 2**30)),
    "ENABLE_VALIDATION": (True, _flag),
    "LOG_LEVEL": ("INFO", _level),
    "RUNTIME_TIMEOUT": (None, _duration),
}
_OWN: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "PROCESSES": (1, _whole(1, 256)),
    "CONCURRENCY": (1, _whole(1, 10000)),
    "MEMORY_LIMIT": (None, _size),
    "FRAME_LIMIT": (256 * 2**20, _frame_size),
}


class Settings:
    """The settings in force, as attributes in lower case. Raise `SettingsFault` with all faults of `environ` at once."""

    if TYPE_CHECKING:
        handler: str
        handler_mode: str
        socket_dir: str
        socket_name: str
        socket_chmod: int | None
        chunk_size: int
        enable_validation: bool
        log_level: str
        runtime_timeout: float | None
        processes: int
        concurrency: int
        memory_limit: int | None
        frame_limit: int

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.faults: list[str] = []
        for name, (default, reader) in {**_SHARED, **_OWN}.items():
            places = ["ONCUE_" + name] + (["ASYA_" + name] if name in _SHARED else [])
            setattr(self, name.lower(), self._read(environ, places, default, reader))
        self._suspect(environ)
        if not self.handler:
            self.faults.append(
                "ONCUE_HANDLER (or ASYA_HANDLER) is not set: expected module.function or module.Class.method"
            )
        if "/" in self.socket_name:
            self.faults.append(f"ONCUE_SOCKET_NAME {self.socket_name!r}: expected a file name without '/'")
        if self.faults:
            raise SettingsFault("\n".join(self.faults))

    def _read(self, environ: Mapping[str, str], places: list[str], default: Any, reader: Callable[[str], Any]) -> Any:
        given = [(place, environ[place].strip()) for place in places if place in environ]
        if given and places[0].endswith("_CHMOD") and not given[0][1]:
            return None
        given = [(place, text) for place, text in given if text]
        if not given:
            return default
        if len({text for _, text in given}) > 1:
            (one, text), (other, differs) = given
            self.faults.append(f"{one} is {text!r} but {other} is {differs!r}: set one of them")
        try:
            return reader(given[0][1])
        except ValueError as error:
            self.faults.append(f"{given[0][0]} is {given[0][1]!r}: expected {error}")
            return default

    def _suspect(self, environ: Mapping[str, str]) -> None:
        """Settings of ours that are only nearly spelt like one; other ONCUE_ variables belong to other programs."""
        known = ["ONCUE_" + name for name in [*_SHARED, *_OWN]]
        strangers = [name for name in environ if name.startswith("ONCUE_") and name not in known]
        for name in strangers:
            import difflib

            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                self.faults.append(f"{name} is no setting, did you mean {close[0]}?")

    @property
    def socket_path(self) -> str:
        return os.path.join(self.socket_dir, self.socket_name)

    @property
    def ready_file(self) -> str:
        return os.path.join(self.socket_dir, "runtime-ready")

    @property
    def error_file(self) -> str:
        return os.path.join(self.socket_dir, "runtime-error")


# ---- The wire --------------------------------------------------------------------------------------------------------

LENGTH = struct.Struct(">I")
SLICE = 2**20
SLACK = 256
"""What a frame takes more than it has: then its text, read from a copy, fits where the frame was."""
HEAD = struct.Struct(">IBIII")
"""Length of all that follows, kind, id, number, length of the JSON head that precedes the body."""
REST = HEAD.size - LENGTH.size

CALL, ENVELOPE, CANCEL, PING = 1, 2, 3, 4
ITEM, RESULT, END, ERROR, PONG, STOPPING = 16, 17, 18, 19, 20, 21
ONE_SHOT, REPLY, READY, FAILED = 32, 33, 34, 35  # between parent and worker only

CONNECTION_ERROR = "connection_error"
PARSING_ERROR = "msg_parsing_error"
PROCESSING_ERROR = "processing_error"
TIMEOUT_ERROR = "timeout_error"
CRASH_ERROR = "crash_error"
EXIT_ERROR = "exit_error"
MEMORY_ERROR = "oom_error"
CANCELLED_ERROR = "cancelled_error"
STOPPING_ERROR = "stopping_error"


def frame(kind: int, id: int, number: int = 0, head: bytes = b"", body: Piece | str = b"") -> Frame:
    """The pieces of one frame, to be written one after the other."""
    return HEAD.pack(REST + len(head) + len(body), kind, id, number, len(head)) + head, body


def split(buffer: bytes | bytearray, limit: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield `(start, kind, id, number, head length, end)` of each whole frame in `buffer`, then stop.

    Raise `OverflowError` for one that is over `limit`, `ValueError` for one that is none.
    """
    start, size = 0, len(buffer)
    while size - start >= HEAD.size:
        length, kind, id, number, head = HEAD.unpack_from(buffer, start)
        if length > limit + REST:
            raise OverflowError(f"a frame of {length} bytes is over the limit of {limit}")
        if head > length - REST:
            raise ValueError(f"a frame of {length} bytes cannot have a head of {head}")
        end = start + LENGTH.size + length
        if end > size:
            return
        yield start, kind, id, number, head, end
        start = end


def fault(code: str, type: str, message: str, trace: str = "", **more: Any) -> Fault:
    """An error in Asya's shape. Keys of `more` go into the details."""
    return {"error": code, "details": dict({"message": message, "type": type, "traceback": trace}, **more)}


def cut(text: str, most: int) -> str:
    """Text that can be written as UTF-8, and no longer than `most`."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}… ({len(text) - most} characters left out) …{text[-most // 2 :]}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


decode = json.JSONDecoder(parse_constant=_no_constant).decode
_plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_escaped = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode(value: Any) -> bytes:
    """`value` as JSON bytes; a lone surrogate is written as its escape."""
    try:
        return _plain(value).encode("utf-8")
    except UnicodeEncodeError:
        return _escaped(value).encode("utf-8")


def _large(text: str) -> Written:
    """`text` as bytes; but when it is large and plain, as it is, to be turned into bytes piece by piece on its way out."""
    return text if len(text) >= SLICE and text.isascii() else text.encode("utf-8")


def as_bytes(written: Written) -> bytes:
    return written.encode("ascii") if isinstance(written, str) else written


# ---- The handler: load, check, call, results -------------------------------------------------------------------------


class LoadFault(Exception):  # noqa: N818
    """A handler that cannot be loaded; the text is one line, `trace` the user's part of the traceback."""

    trace = ""


class InvalidResultError(ValueError):
    """A result that cannot be written as JSON, or is too large. Trying again does not help."""

    dead = True


class RetryRequestedError(Exception):
    """Raised by `Context.retry`."""

    def __init__(self, reason: str, retry_after: float | None) -> None:
        super().__init__(reason or "the handler asked for another attempt")
        self.retry_after = retry_after


class GiveUpError(Exception):
    """Raised by `Context.dead`."""

    dead = True


def users_frames(error: BaseException) -> Any:
    """The traceback of `error` without the outermost frames, which are of this file."""
    found = error.__traceback__
    while found is not None and (found.tb_frame.f_code.co_filename == __file__ or _imports(found)):
        found = found.tb_next
    return found


def _imports(frames: Any) -> bool:
    return "importlib" in frames.tb_frame.f_code.co_filename


def trace_of(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, users_frames(error))
    except Exception as broken:
        return f"<traceback could not be formatted: {type(broken).__name__}>"
    return cut("".join(lines), 60000)


def text_of(error: BaseException) -> str:
    try:
        return cut(str(error), 16000)
    except Exception as broken:
        return f"<{type(error).__name__} whose text raised {type(broken).__name__}>"


def signals_of(error: BaseException) -> dict[str, Any]:
    """What an exception says by attribute about further attempts."""
    found: dict[str, Any] = {}
    try:
        wait, dead = getattr(error, "retry_after", None), getattr(error, "dead", None)
    except Exception as broken:
        LOG.debug("a property of %s raised %s", type(error).__name__, type(broken).__name__)
        return found
    if isinstance(wait, (int, float)) and not isinstance(wait, bool) and math.isfinite(wait) and wait >= 0:
        found["retry_after"] = wait
    if dead is True:
        found["dead"] = True
    return found


def failure(error: BaseException, code: str = PROCESSING_ERROR) -> Fault:
    """`error` in Asya's shape, with `oom_error` and `cuda_oom_error` told apart."""
    name = type(error).__name__
    if code == PROCESSING_ERROR and isinstance(error, MemoryError):
        code = MEMORY_ERROR
    elif code == PROCESSING_ERROR and (name == "OutOfMemoryError" or "CUDA out of memory" in text_of(error)):
        code = "cuda_oom_error"
    bases = [each.__name__ for each in type(error).__mro__[1:-1]]
    return fault(code, name, text_of(error), trace_of(error), bases=bases, **signals_of(error))


def place_of(error: BaseException) -> str:
    """Where in the user's code `error` came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(users_frames(error))
    own = [each for each in frames if "importlib" not in each.filename]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else "no line of your code"


def load(name: str) -> Callable[..., Any]:
    """The function named `module.function` or `module.Class.method`. Raise `LoadFault`."""
    try:
        return _resolve(name)  # type: ignore[no-any-return]
    except LoadFault as error:
        error.args = (f"Cannot load handler {name!r}: {error}",)
        raise
    except BaseException as error:
        told = f"Cannot load handler {name!r}: {type(error).__name__}: {text_of(error)} ({place_of(error)})"
        fault = LoadFault(told)
        fault.trace = trace_of(error)
        raise fault from error


def _resolve(name: str) -> Any:
    if not re.match(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+\Z", name):
        raise LoadFault("expected module.function or module.Class.method")
    parts = name.split(".")
    module, rest = _import(parts)
    if len(rest) > 2:
        raise LoadFault(
            f"{module.__name__!r} is a module; after it come a function, or a class and a method, not {'.'.join(rest)!r}"
        )
    where = f"module {module.__name__!r} ({getattr(module, '__file__', None) or 'built in'})"
    found = _attribute(module, rest[0], where)
    if len(rest) == 2:
        if not isinstance(found, type):
            raise LoadFault(f"{rest[0]!r} in {where} is no class")
        _attribute(found, rest[1], f"class {rest[0]!r}")
        found = getattr(_instance(found), rest[1])
    if isinstance(found, type):
        raise LoadFault(f"{rest[-1]!r} is a class; name a method of it, as in {name}.process")
    if not callable(found):
        raise LoadFault(f"{rest[-1]!r} is no function but a {type(found).__name__}")
    return found


def _import(parts: list[str]) -> tuple[Any, list[str]]:
    """The longest importable module of the dotted name, and what is left. An error inside of a module is raised."""
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        try:
            return importlib.import_module(name), parts[count:]
        except ModuleNotFoundError as error:
            if error.name != name and not name.startswith(str(error.name) + "."):
                raise
    places = ", ".join(path or "." for path in sys.path if not path.endswith((".zip", "lib-dynload")))
    raise LoadFault(f"there is no module {parts[0]!r} (looked in {places})")


def _attribute(owner: Any, name: str, where: str) -> Any:
    if hasattr(owner, name):
        return getattr(owner, name)
    import difflib

    close = difflib.get_close_matches(name, [each for each in dir(owner) if not each.startswith("_")], n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise LoadFault(f"{where} has no {name!r}{hint}")


def _instance(found: Any) -> Any:
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # one written in C, which does not say
        parameters = []
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise LoadFault(f"class {found.__name__!r} needs an argument for {parameter.name!r}: give it a default")
    return found()


def check(envelope: Any, passed: Passed | None = None) -> None:
    """Raise `ValueError` with Asya's text unless `envelope` is one. `passed` is the actors and the position of the input, for outputs."""
    if not isinstance(envelope, dict) or "payload" not in envelope:
        raise ValueError("Missing required field 'payload' in envelope")
    if "route" not in envelope:
        raise ValueError("Missing required field 'route' in envelope")
    route = envelope["route"]
    if not isinstance(route, dict):
        raise ValueError("Field 'route' must be a dict")
    if "actors" not in route:
        raise ValueError("Missing required field 'actors' in route")
    actors, current = route["actors"], route.setdefault("current", 0)
    if not isinstance(actors, list):
        raise ValueError("Field 'route.actors' must be a list")
    if not isinstance(current, int) or isinstance(current, bool):
        raise ValueError("Field 'route.current' must be an integer")
    if not actors:
        raise ValueError("Field 'route.actors' cannot be empty")
    for index, actor in enumerate(actors):
        if not isinstance(actor, str):
            raise ValueError(f"Field 'route.actors[{index}]' must be a string")
    if not 0 <= current <= len(actors):
        raise ValueError(f"Invalid route.current={current}: out of bounds for actors of length {len(actors)}")
    if not isinstance(envelope.get("headers", {}), dict):
        raise ValueError("Field 'headers' must be a dict")
    if passed is not None:
        _check_passed(actors, *passed)
    if not isinstance(envelope.get("id", ""), str):
        raise ValueError("Field 'id' must be a string")


def _check_passed(actors: list[Any], before: list[str], position: int) -> None:
    kept, found = before[: position + 1], actors[: len(before[: position + 1])]
    if found != kept:
        raise ValueError(
            f"Route modification error: already-processed actors cannot be erased. Input route had {kept} "
            f"(actors 0-{position}), but output route starts with {found}. Runtimes can add future actors but must "
            "preserve all actors up to current."
        )


class Context:
    """What a handler may know about its attempt. It gets it as a second parameter that is named or annotated so."""

    def __init__(self, envelope: Any, head: dict[str, Any], limited: bool) -> None:
        self.id = envelope.get("id")
        self.parent_id = envelope.get("parent_id")
        self.headers = envelope.get("headers") or {}
        self.actor = head.get("actor")
        self.attempt = head.get("attempt", 1)
        self.last_attempt = head.get("last_attempt", False)
        self._deadline = envelope.get("deadline")
        self._route = envelope.get("route") or {}
        self._limited = limited
        self.sent: list[dict[str, Any]] = []

    @property
    def deadline(self) -> datetime | None:
        """The moment after which the work has lost its use, with its time zone; None when there is none."""
        from datetime import datetime

        text = re.sub(r"[zZ]$", "+00:00", str(self._deadline or ""))
        text = re.sub(r"\.(\d{1,6})\d*", lambda found: "." + found.group(1).ljust(6, "0"), text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return moment if moment.tzinfo is not None else None

    def send(
        self,
        actor: Any,
        payload: Any = None,
        *,
        delay: float = 0.0,
        id: str | None = None,
        key: str | None = None,
        route: Any = (),
        headers: Any = None,
    ) -> str:
        """Send with this message's end, and not at all if the attempt fails. Return the id. Never blocks."""
        actor = getattr(actor, "name", actor)
        if not isinstance(actor, str) or not actor:
            raise ValueError(f"{actor!r}: expected the name of an actor")
        if self._limited and (delay or id or key or headers):
            raise ValueError("delay, id, key and headers of a send need OnCue's own sidecar")
        if id is None:
            import uuid

            names = uuid.UUID("6b1c1b0e-4a34-5c0b-9a53-0e0d3f6b7c11")
            id = str(uuid.uuid5(names, f"{self.id}\n{self._route.get('current', 0)}\n{actor}\n{len(self.sent)}"))
        sent = {
            "actor": actor,
            "route": list(route),
            "payload": payload,
            "id": id,
            "delay": delay,
            "key": key,
            "headers": headers,
        }
        encode(sent)
        self.sent.append(sent)
        return id

    def retry(self, after: float | None = None, reason: str = "") -> NoReturn:
        """End the attempt and ask for another, after `after` seconds or as the actor's policy says."""
        raise RetryRequestedError(reason, after)

    def dead(self, reason: str) -> NoReturn:
        """End the attempt and let no other follow."""
        raise GiveUpError(reason)


class Call:
    """One request, read and checked: what the handler is called with, and what its results are checked against."""

    __slots__ = ("argument", "context", "count", "envelope", "items", "one_shot", "passed", "seq")

    def __init__(self, seq: int, one_shot: bool, envelope: Any) -> None:
        self.seq, self.one_shot, self.envelope = seq, one_shot, envelope
        self.argument = envelope
        self.context: Context | None = None
        self.passed: Passed | None = None
        self.items: list[tuple[bytes, Written]] = []
        self.count = 0


class Handler:
    """The user's function, how to call it, and what its results become. Made once in each worker process."""

    def __init__(self, settings: Settings) -> None:
        self.limit = settings.frame_limit
        self.validate = settings.enable_validation
        self.whole = settings.handler_mode == "envelope"
        self.function = load(settings.handler)
        self.in_loop, self.context = self._inspect(self.function)

    @staticmethod
    def _inspect(function: Callable[..., Any]) -> tuple[bool, str | None]:
        inner = function
        while hasattr(inner, "func") and hasattr(inner, "keywords"):  # functools.partial, without importing it
            inner = inner.func
        candidates = [inner] if inspect.isroutine(inner) else [inner, type(inner).__call__]
        in_loop = any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in candidates)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # one written in C, which does not say
            parameters = []
        for parameter in parameters[1:]:
            annotation = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
            if parameter.name == "context" or re.search(r"\bContext\b", annotation):
                if parameter.kind == parameter.KEYWORD_ONLY:
                    return in_loop, parameter.name
                if parameter is parameters[1] and parameter.kind != parameter.VAR_POSITIONAL:
                    return in_loop, ""
        return in_loop, None

    def open(self, kind: int, seq: int, head: bytes, body: list[memoryview]) -> Call:
        """Read a request. Raise `ValueError` or `RecursionError` when it is no message."""
        fields = decode(str(head, "utf-8")) if head else {}
        text = str(body.pop(), "utf-8")  # the frame is not needed beside its text, and may be large
        value = decode(text)
        del text
        envelope = dict(fields.get("message") or {}, payload=value) if kind == CALL else value
        call = Call(seq, kind == ONE_SHOT, envelope)
        if self.validate and (self.whole or kind != CALL):
            check(envelope)
            if self.whole:
                call.passed = list(envelope["route"]["actors"]), envelope["route"]["current"]
        if self.context is not None:
            call.context = Context(envelope if isinstance(envelope, dict) else {}, fields, call.one_shot)
        return call

    def start(self, call: Call) -> Any:
        """Call the function and return what it returns."""
        argument = call.argument if self.whole else call.argument["payload"]
        call.argument = None
        if not self.whole and call.context is None:  # the payload may be large, and nobody else needs it now
            call.envelope = {name: each for name, each in call.envelope.items() if name != "payload"}
        if self.context is None:
            return self.function(argument)
        if self.context == "":
            return self.function(argument, call.context)
        return self.function(argument, **{self.context: call.context})

    def pack(self, call: Call, value: Any, index: int, total: int | str) -> tuple[bytes, Written]:
        """Head and payload of one item of the result, as JSON. Raise `InvalidResultError` or `ValueError`."""
        head = {}
        if not self.whole:
            payload = self._write(value)
            if call.one_shot:
                head["route"] = dict(call.envelope["route"], current=call.envelope["route"]["current"] + 1)
                head.update({"headers": call.envelope["headers"]} if "headers" in call.envelope else {})
        else:
            if call.passed is not None:
                try:
                    check(value, call.passed)
                except ValueError as error:
                    raise ValueError(f"Invalid output envelope[{index}/{total}]: {error}") from None
            elif not isinstance(value, dict):
                raise ValueError(f"Invalid output envelope[{index}/{total}]: expected a dict")
            head = {name: each for name, each in value.items() if name != "payload"}
            payload = self._write(value.get("payload"))
        return as_bytes(self._write(head)) if head else b"", payload

    def _write(self, value: Any) -> Written:
        try:
            written = _large(_plain(value))
        except UnicodeEncodeError:
            written = encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidResultError(f"the result cannot be written as JSON: {text_of(error)}") from None
        if len(written) > self.limit - 4096:
            raise InvalidResultError(f"the result has {len(written)} bytes, over the limit of {self.limit}")
        return written


# ---- The worker process ----------------------------------------------------------------------------------------------


class Channel:
    """The worker's end of the pair of sockets to its parent. Reading is for one thread at a time, writing for all."""

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self.sock = sock
        self.limit = limit + 8192
        self._buffer: bytes | bytearray = b""
        self._writing = threading.Lock()

    def take(self) -> Found | None:
        """Wait for a frame: `(kind, seq, number, head, [body])`; None when the parent is gone."""
        while True:
            found = self._first()
            if found is not None:
                return found
            if not (self._fill() if self._missing() > LARGE else self._more()):
                return None

    def pending(self) -> Iterator[Found | None]:
        """All frames that are there, without waiting; ends with None when the parent is gone."""
        while True:
            try:
                data = self.sock.recv(262144, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                yield None
                return
            if len(self._buffer) >= LARGE and isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
            found = self._first()
            while found is not None:
                yield found
                found = self._first()

    def _first(self) -> Found | None:
        buffer = self._buffer
        for start, kind, seq, number, head, end in split(buffer, self.limit):
            view = memoryview(buffer)
            middle = start + HEAD.size + head
            found = kind, seq, number, bytes(view[start + HEAD.size : middle]), [view[middle:end]]
            self._buffer = buffer[end:] if end < len(buffer) else b""
            return found
        return None

    def _missing(self) -> int:
        if len(self._buffer) < LENGTH.size:
            return 0
        (length,) = LENGTH.unpack_from(self._buffer)
        return int(length) + LENGTH.size - len(self._buffer)

    def _more(self) -> bool:
        data = self.sock.recv(4 * LARGE)
        self._buffer = self._buffer + data if self._buffer else data
        return bool(data)

    def _fill(self) -> bool:
        """Read the rest of a large frame into the one place where it stays."""
        filled = len(self._buffer)
        whole = bytearray(filled + self._missing() + SLACK)
        del whole[-SLACK:]  # which stays allocated
        whole[:filled] = self._buffer
        self._buffer = whole
        with memoryview(whole) as view:
            while filled < len(whole):
                got = self.sock.recv_into(view[filled:])
                if not got:
                    return False
                filled += got
        return True

    def send(self, *frames: Frame) -> None:
        """Write frames, each a pair of pieces, whole and before anything of another thread."""
        pieces = [piece for each in frames for piece in each if piece]
        if sum(map(len, pieces)) < SLICE:
            pieces = [b"".join(pieces)]  # type: ignore[arg-type]  # texts are larger
        with self._writing:
            for piece in pieces:
                if not isinstance(piece, str):
                    self.sock.sendall(piece)
                    continue
                for start in range(0, len(piece), SLICE):
                    self.sock.sendall(piece[start : start + SLICE].encode("ascii"))


class Worker:
    """What runs in a worker process: takes requests, calls the handler, sends what comes of it."""

    def __init__(self, settings: Settings, channel: Channel, handler: Handler) -> None:
        self.channel = channel
        self.handler = handler
        self.concurrency = settings.concurrency
        self.pid = os.getpid()
        self._reading = threading.Lock()
        self._local = threading.local()

    def serve(self) -> None:
        """Work until the parent hangs up. Each thread takes its next request itself, so none is handed over."""
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(self.concurrency - 1)]
        for thread in threads:
            thread.start()
        self._loop()
        for thread in threads:
            thread.join()

    def _loop(self) -> None:
        try:
            while self._step():
                continue
        except (BrokenPipeError, ConnectionResetError):
            LOG.debug("the parent is gone")
        finally:
            if hasattr(self._local, "loop"):
                self._local.loop.close()

    def _step(self) -> bool:
        with self._reading:
            found = self.channel.take()
        if found is None:
            return False
        call = self.open(found)
        del found
        if call is not None:
            self._process(call)
        return True

    def _process(self, call: Call) -> None:
        try:
            result = self.handler.start(call)
            if hasattr(result, "__await__") or hasattr(result, "__aiter__"):
                loop = self._own_loop()
                result = loop.run_until_complete(self.gather(call, result))
            else:
                self.collect(call, result)
            del result
            self.end(call)
        except BaseException as error:
            self.failed(call, error)

    def _own_loop(self) -> Any:
        """An event loop for what a plain function returned and only a loop can finish; one a thread."""
        if not hasattr(self._local, "loop"):
            import asyncio

            self._local.loop = asyncio.new_event_loop()
        return self._local.loop

    def open(self, found: Any) -> Call | None:
        """The call that a frame asks for; None when it is none and has been answered so."""
        kind, seq, _, head, body = found
        try:
            return self.handler.open(kind, seq, head, body)
        except BaseException as error:
            parsing = isinstance(error, (ValueError, RecursionError))
            if isinstance(error, RecursionError):
                error = ValueError("the message is nested too deeply")
            text = failure(error, PARSING_ERROR if parsing else PROCESSING_ERROR)
            LOG.warning("a message was refused: %s", type(error).__name__)
            self._tell(seq, kind == ONE_SHOT, text)
            return None

    def collect(self, call: Call, result: Any) -> None:
        """Take in what a function returned. What is yielded goes out at once where the sidecar can take it so."""
        if result is None:
            return
        if isinstance(result, (list, tuple)):
            call.items = [self.handler.pack(call, value, index, len(result)) for index, value in enumerate(result)]
        elif hasattr(result, "__next__"):
            for value in result:
                self.item(call, value)
        else:
            call.items = [self.handler.pack(call, result, 0, 1)]

    async def gather(self, call: Call, result: Any) -> None:
        """As `collect`, for what has to be awaited first."""
        if hasattr(result, "__await__"):
            result = await result
        if hasattr(result, "__aiter__"):
            async for value in result:
                self.item(call, value)
        else:
            self.collect(call, result)

    def item(self, call: Call, value: Any) -> None:
        packed = self.handler.pack(call, value, call.count, "?")
        if call.one_shot:
            call.items.append(packed)
        else:
            self.channel.send(frame(ITEM, call.seq, call.count, *packed))
        call.count += 1

    def end(self, call: Call) -> None:
        """Send the rest of the answer, which is then complete."""
        self._guard()
        sent = call.context.sent if call.context is not None else []
        if call.one_shot:
            self._reply(call, sent)
            return
        if len(call.items) == 1 and not sent and not call.count:
            self.channel.send(frame(RESULT, call.seq, 1, *call.items[0]))
            return
        frames = [frame(ITEM, call.seq, call.count + number, *each) for number, each in enumerate(call.items)]
        head = encode({"sends": sent}) if sent else b""
        self.channel.send(*frames, frame(END, call.seq, call.count + len(call.items), head))

    def _reply(self, call: Call, sent: list[Any]) -> None:
        """The array of the one-shot protocol. What was sent besides becomes items with routes of their own."""
        items = [
            b'{"payload":%s%s}' % (as_bytes(payload), b"," + head[1:-1] if head else b"")
            for head, payload in call.items
        ]
        if sent and not items:  # an empty array ends the route, and so does a position beyond it
            actors = call.envelope["route"]["actors"]
            items = [encode({"payload": call.envelope["payload"], "route": {"actors": actors, "current": len(actors)}})]
        for each in sent:
            actors = [each["actor"]] + each["route"]
            items.append(encode({"payload": each["payload"], "route": {"actors": actors, "current": 0}}))
        call.items = []
        body = b"[" + b",".join(items) + b"]"
        if len(body) > self.handler.limit:
            raise InvalidResultError(f"the result has {len(body)} bytes, over the limit of {self.handler.limit}")
        self.channel.send(frame(REPLY, call.seq, 0, b"", body))

    def failed(self, call: Call, error: BaseException) -> None:
        self._guard()
        text = failure(error)
        frames = traceback.extract_tb(users_frames(error))
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "its call"
        LOG.warning("the handler failed: %s at %s", type(error).__name__, where)
        self._tell(call.seq, call.one_shot, text)

    def _tell(self, seq: int, one_shot: bool, text: Fault) -> None:
        if one_shot:
            self.channel.send(frame(REPLY, seq, 0, b"", encode([text])))
        else:
            self.channel.send(frame(ERROR, seq, 0, encode(text)))

    def _guard(self) -> None:
        if os.getpid() != self.pid:  # the handler forked, and this is its child: nobody waits for a second answer
            os._exit(0)


class LoopWorker(Worker):
    """A worker for `async def` handlers: up to `concurrency` of them in one event loop."""

    def serve(self) -> None:
        import asyncio

        modern = sys.version_info >= (3, 10)
        self.loop = asyncio.new_event_loop() if modern else asyncio.get_event_loop()
        asyncio.set_event_loop(self.loop)
        self.tasks: dict[int, Any] = {}
        self.waiting: collections.deque[Found] = collections.deque()
        self.reasons: dict[int, int] = {}
        self.loop.add_reader(self.channel.sock, self._read)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.remove_reader(self.channel.sock)
            asyncio.set_event_loop(None)
            self.loop.close()

    def _read(self) -> None:
        for found in self.channel.pending():
            if found is None:
                self.loop.stop()
                return
            if found[0] == CANCEL:
                self._cancel(found[1], found[2])
            else:
                self.waiting.append(found)
        self._start()

    def _start(self) -> None:
        while self.waiting and len(self.tasks) < self.concurrency:
            found = self.waiting.popleft()
            self.tasks[found[1]] = self.loop.create_task(self._run(found))

    def _cancel(self, seq: int, reason: int) -> None:
        task = self.tasks.get(seq)
        if task is not None and not task.done():
            self.reasons[seq] = reason
            task.cancel()
            return
        for found in self.waiting:
            if found[1] == seq:
                self.waiting.remove(found)
                self._tell(
                    seq, found[0] == ONE_SHOT, fault(CANCELLED_ERROR, "CancelledError", "cancelled before it began")
                )
                return

    async def _run(self, found: Found) -> None:
        seq, call = found[1], self.open(found)
        del found
        if call is not None:
            await self._handle(call)
        del self.tasks[seq]
        self.reasons.pop(seq, None)
        self._start()

    async def _handle(self, call: Call) -> None:
        try:
            await self.gather(call, self.handler.start(call))
            if call.seq not in self.reasons:
                self.end(call)
                return
            raise RuntimeError("the handler went on although it was cancelled")
        except BaseException as error:
            reason = self.reasons.get(call.seq)
            if reason is None:
                self.failed(call, error)
                return
            code, text = (TIMEOUT_ERROR, "not finished in time") if reason else (CANCELLED_ERROR, "cancelled")
            kind = "TimeoutError" if reason else "CancelledError"
            self._tell(call.seq, call.one_shot, fault(code, kind, text, trace_of(error)))


def keep_memory() -> None:
    """Have memory for large payloads used again, here and in processes forked later, where it is glibc that manages it.

    To get it anew from the kernel takes longer than to read their JSON. What grows stays where it is, while glibc's own way
    is to move it to another kind of memory at a size that depends on what was freed before.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD
    except (ImportError, OSError, AttributeError):
        LOG.debug("memory is managed as the system likes")


def settle_in(settings: Settings, parent: int) -> None:
    """Make a process of the fork: its own group, no inherited signals, the limits, and an end when `parent` ends."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number, action in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, action)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        LOG.debug("the end of the parent is noticed by its socket alone")
    if os.getppid() != parent:
        os._exit(0)
    if settings.memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (settings.memory_limit, settings.memory_limit))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.getcwd()] + [path for path in sys.path if os.path.abspath(path or ".") not in (here, os.getcwd())]
    if not os.path.exists(os.path.join(here, "__init__.py")):  # as part of a package, its neighbours are not the user's
        sys.path.append(here)


def work(settings: Settings, sock: socket.socket, dump: int, parent: int) -> int:
    """The life of a worker process; return its exit code."""
    settle_in(settings, parent)
    faulthandler.enable(file=dump, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=dump, all_threads=True)
    channel = Channel(sock, settings.frame_limit)
    with sock:
        return serve(settings, channel)


def serve(settings: Settings, channel: Channel) -> int:
    try:
        handler = Handler(settings)
    except LoadFault as error:
        channel.send(frame(FAILED, 0, 0, encode(fault("load_error", "LoadError", cut(str(error), 16000), error.trace))))
        return 1
    kind = LoopWorker if handler.in_loop else Worker
    worker = kind(settings, channel, handler)
    channel.send(frame(READY, 0, int(handler.in_loop)))
    try:
        worker.serve()
    except (BrokenPipeError, ConnectionResetError):
        LOG.debug("the parent is gone")
    return 0


# ---- The parent: sockets, supervision --------------------------------------------------------------------------------

PREFETCH = 32
"""Requests that a quick handler's process is sent ahead of its turn, so that it need not wait for the parent."""
QUICK = 0.002
LARGE = 65536
CANCEL_GRACE = 1.0
ABANDONED_GRACE = 10.0
IDLE = 60.0
CLOGGED = 16 * 2**20
HELD = 64 * 2**20
NEVER = float("inf")


class Forked(BaseException):
    """Raised in the child of a fork, so that it leaves all that is the parent's behind."""

    def __init__(self, sock: socket.socket, dump: int) -> None:
        super().__init__()
        self.sock, self.dump = sock, dump


_ARRIVING = memoryview(bytearray(4 * LARGE))
"""Where all links read into, so that nothing stands behind a large inbox in memory, and it grows where it is."""


class Link:
    """A non-blocking socket, with what came in and what has still to go out."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.inbox, self.owed = bytearray(), 0
        self.outbox: collections.deque[Piece] = collections.deque()
        self.reads, self.mask, self.closed = True, 0, False
        self.react: Callable[[int], None] | None = None

    def receive(self, size: int) -> bool:
        """Take in what is there; False when the other end has hung up."""
        try:
            got = self.sock.recv_into(_ARRIVING, min(size, len(_ARRIVING)))
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self.inbox += _ARRIVING[:got]
        return bool(got)

    def cut(self, start: int, end: int) -> bytes | memoryview:
        """What is in the inbox from `start` to `end`; the inbox itself, without a copy, when that is large and the last."""
        if end == len(self.inbox) and end - start >= LARGE:
            whole, self.inbox = self.inbox, bytearray()
            return memoryview(whole)[start:]
        return memoryview(self.inbox)[start:end].tobytes()

    def put(self, *pieces: Piece) -> None:
        for piece in pieces:
            self.outbox.append(piece)
            self.owed += len(piece)

    def flush(self) -> None:
        """Write as much as goes without waiting. Raise `OSError` when nobody can read it any more."""
        out = self.outbox
        while out:
            if len(out) > 1 and len(out[0]) < LARGE:
                pieces, size = [], 0
                while out and size < 4 * LARGE and len(out[0]) < LARGE:
                    pieces.append(out.popleft())
                    size += len(pieces[-1])
                out.appendleft(b"".join(pieces))
            try:
                sent = self.sock.send(out[0])
            except (BlockingIOError, InterruptedError):
                return
            self.owed -= sent
            if sent < len(out[0]):
                out[0] = memoryview(out[0])[sent:]
            else:
                out.popleft()


class Client(Link):
    """Who connected: `lasting` is None until the first frame tells which protocol it speaks."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        super().__init__(sock)
        self.held, self.touched, self.kill = 0, now, False
        self.lasting: bool | None = None
        self.requests: dict[int, Request] = {}
        self.timeout: float | None = None
        self.ending: bool | str = False


class Child(Link):
    """A worker process as its parent sees it. `running` may have begun; `piped` was sent ahead and has not."""

    def __init__(self, sock: socket.socket, pid: int, dump: int, now: float) -> None:
        super().__init__(sock)
        self.pid, self.dump, self.born = pid, dump, now
        self.running: dict[int, Request] = {}
        self.piped: collections.deque[Request] = collections.deque()
        self.verdicts: dict[int, Fault] = {}
        self.ready, self.in_loop, self.doomed, self.answered, self.window = False, False, False, 0, 0
        self.blocker: Client | None = None
        self.state = "loading"


class Request:
    """One message on its way to an answer. `client` is None when nobody waits for that any more."""

    __slots__ = ("began", "client", "deadline", "head", "id", "kind", "rest", "seq", "size", "timeout", "warned")

    def __init__(
        self, client: Client, kind: int, id: int, head: int, rest: bytes | memoryview, timeout: float | None
    ) -> None:
        self.client: Client | None = client
        self.rest: bytes | memoryview | None = rest
        self.kind, self.id, self.head, self.timeout = kind, id, head, timeout
        self.size, self.deadline, self.warned, self.seq, self.began = len(rest), NEVER, False, 0, 0.0


def oom_kills() -> int:
    """How often the kernel has killed in this process's memory cgroup; 0 where that cannot be told."""
    paths = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
    try:
        with open("/proc/self/cgroup") as lines:
            for _, names, path in (line.rstrip("\n").split(":", 2) for line in lines):
                if not names:
                    paths.insert(0, f"/sys/fs/cgroup{path}/memory.events")
                elif "memory" in names.split(","):
                    paths.insert(0, f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    except (OSError, ValueError):
        return 0
    for path in paths:
        try:
            with open(path) as events:
                found = re.search(r"^oom_kill (\d+)$", events.read(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found.group(1))
    return 0


def claim(settings: Settings) -> None:
    """Make sure that a socket can be made at its path. Raise `SettingsFault` in one line."""
    path = settings.socket_path
    if len(os.fsencode(path)) > (107 if sys.platform == "linux" else 103):
        raise SettingsFault(f"the socket's path is too long ({len(os.fsencode(path))} bytes, 107 at most): {path}")
    try:
        os.makedirs(settings.socket_dir, exist_ok=True)
        if not os.access(settings.socket_dir, os.W_OK | os.X_OK):
            raise SettingsFault(f"cannot listen at {path}: the folder cannot be written")
        kind = os.lstat(path).st_mode
        if not stat.S_ISSOCK(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a file that is no socket"
            raise SettingsFault(f"cannot listen at {path}: there is {what}")
        with socket.socket(socket.AF_UNIX) as probe:
            found = probe.connect_ex(path)
        if found == 0:
            raise SettingsFault(f"cannot listen at {path}: another process does")
        if found != errno.ECONNREFUSED:
            raise OSError(found, os.strerror(found))
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingsFault(f"cannot listen at {path}: {error.strerror}") from None


def listen(settings: Settings) -> socket.socket:
    claim(settings)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(settings.socket_path)
        if settings.socket_chmod is not None:
            os.chmod(settings.socket_path, settings.socket_chmod)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise SettingsFault(f"cannot listen at {settings.socket_path}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def write_whole(path: str, text: str) -> None:
    """Write a file so that nobody reads half of it."""
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".new", path)
    except OSError as error:
        raise SettingsFault(f"cannot write {path}: {error.strerror}") from None


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        LOG.warning("cannot remove %s: %s", path, error.strerror)


class Supervisor:
    """The parent: one thread, one loop, no code of users."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.selector = selectors.DefaultSelector()
        self.listener: socket.socket | None = None
        self.clients: dict[Client, None] = {}
        self.children: dict[int, Child] = {}
        self.queue: collections.deque[Request] = collections.deque()
        self.dirty: set[Link] = set()
        self.now, self.next_deadline = time.monotonic(), NEVER
        self.timers: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self.ticks, self.seqs = itertools.count(), itertools.count(1)
        self.code: int | None = None
        self.stopping, self.failures, self.ready_told, self.ending, self.left = False, 0, False, False, False
        self.ooms = oom_kills()
        self.wake, self.waker = socket.socketpair()
        self.files = resource.getrlimit(resource.RLIMIT_NOFILE)

    # The loop

    def run(self) -> int:
        """Run until told to stop; return the exit code."""
        self.wake.setblocking(False)
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self.selector.register(self.wake, selectors.EVENT_READ, self._signalled)
        gc.collect()
        gc.freeze()
        for _ in range(self.settings.processes):
            self._spawn()
        try:
            while self.code is None:
                self._turn()
        finally:
            if not self.left:
                self._leave()
        return self.code

    def _turn(self) -> None:
        for key, mask in self.selector.select(self._patience()):
            key.data(mask)
        self.now = time.monotonic()
        while self.timers and self.timers[0][0] <= self.now:
            _, _, action, argument = heapq.heappop(self.timers)
            action(argument)
        if self.next_deadline <= self.now:
            self._expire()
        self._dispatch()
        while self.dirty:
            self._flush(self.dirty.pop())
        if (
            self.stopping
            and not self.queue
            and not any(child.running or child.piped for child in self.children.values())
        ):
            self._end()

    def _patience(self) -> float | None:
        until = min(self.next_deadline, self.timers[0][0] if self.timers else NEVER)
        return None if until == NEVER else max(0.0, until - time.monotonic())

    def _later(self, seconds: float, action: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self.timers, (self.now + seconds, next(self.ticks), action, argument))

    def _send(self, link: Link, *pieces: Piece) -> None:
        link.put(*pieces)
        self.dirty.add(link)

    def _flush(self, link: Link) -> None:
        if link.closed:
            return
        try:
            link.flush()
        except OSError:
            if isinstance(link, Client):
                self._drop(link)
            else:
                link.outbox.clear()  # its death is told in another way
            return
        if isinstance(link, Client):
            if link.ending and not link.outbox:
                self._hang_up(link)
                return
            if link.owed < CLOGGED // 4:
                self._unblock(link)
        self._watch(link)

    def _watch(self, link: Link) -> None:
        """Let the selector tell what is wanted of `link` now."""
        mask = (selectors.EVENT_READ if link.reads else 0) | (selectors.EVENT_WRITE if link.outbox else 0)
        if mask == link.mask or link.closed:
            return
        if not mask:
            self.selector.unregister(link.sock)
        elif not link.mask:
            self.selector.register(link.sock, mask, link.react)
        else:
            self.selector.modify(link.sock, mask, link.react)
        link.mask = mask

    def _close(self, link: Link) -> None:
        if link.mask:
            self.selector.unregister(link.sock)
        link.mask, link.closed, link.react = 0, True, None
        link.sock.close()
        link.inbox, link.outbox, link.owed = bytearray(), collections.deque(), 0

    # Clients

    def _accept(self, _mask: int) -> None:
        if self.listener is None:
            return
        for _ in range(256):
            try:
                sock, _ = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                LOG.warning("cannot accept a connection: %s", error.strerror)
                self._make_room()
                return
            client = Client(sock, self.now)
            client.react = lambda mask, client=client: self._client_event(client, mask)
            self.clients[client] = None
            self._watch(client)
            if len(self.clients) == 1:
                self._later(IDLE / 6, self._sweep, None)

    def _make_room(self) -> None:
        """There is no file descriptor left: hang up on who has been silent for longest, or wait a little."""
        if not self._drop_silent(1) and self.listener is not None:
            self.selector.unregister(self.listener)
            self._later(0.2, self._accept_again, None)

    def _drop_silent(self, count: int) -> int:
        silent = (each for each in self.clients if each.lasting is None and not each.inbox)
        dropped = list(itertools.islice(silent, count))
        for client in dropped:
            self._drop(client)
        return len(dropped)

    def _accept_again(self, _argument: Any) -> None:
        if self.listener is not None:
            self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _sweep(self, _argument: Any) -> None:
        """Hang up on who has been in the middle of a frame, or silent from the start, for too long."""
        for client in list(self.clients):
            unfinished = client.inbox or client.lasting is None
            if unfinished and client.reads and self.now - client.touched > IDLE:
                if client.inbox and not client.ending:
                    self._refuse(client, f"no whole frame within {IDLE:g} seconds")
                else:
                    self._drop(client)
        if self.clients:
            self._later(IDLE / 6, self._sweep, None)

    def _client_event(self, client: Client, mask: int) -> None:
        if client.closed:
            return
        if mask & selectors.EVENT_WRITE:
            self.dirty.add(client)
        if not mask & selectors.EVENT_READ:
            return
        client.touched = self.now
        alive = client.receive(self.settings.chunk_size)
        if client.ending or client.lasting is False:
            client.inbox.clear()  # nothing more is wanted of it
        elif client.inbox:
            self._read(client)
        if not alive and not client.closed:
            self._ended(client)

    def _ended(self, client: Client) -> None:
        """The client sends no more. It may still wait for its one answer, if it closed but one direction."""
        poll = select.poll()
        poll.register(client.sock, 0)
        gone = any(found & (select.POLLHUP | select.POLLERR) for _, found in poll.poll(0))
        if client.lasting is None and client.inbox and not gone and not client.ending:
            self._refuse(client, f"the connection ended within a frame, after {len(client.inbox)} bytes")
        if gone or client.lasting or not (client.requests or client.outbox):
            self._drop(client)
            return
        client.reads = False
        self._watch(client)

    def _read(self, client: Client) -> None:
        try:
            if client.lasting is None:
                self._greet(client)
            if client.lasting:
                self._frames(client)
        except (ValueError, OverflowError) as error:
            self._refuse(client, text_of(error))

    def _greet(self, client: Client) -> None:
        """Read the first frame, which tells the protocols apart: ours begins with `{"oncue":`."""
        inbox = client.inbox
        if len(inbox) < LENGTH.size:
            return
        (length,) = LENGTH.unpack_from(inbox)
        if length > self.settings.frame_limit:
            raise OverflowError(f"a frame of {length} bytes is over the limit of {self.settings.frame_limit}")
        end = LENGTH.size + length
        if len(inbox) < end:
            return
        if not inbox.startswith(b'{"oncue":', LENGTH.size):
            client.lasting = False
            body = client.cut(LENGTH.size, end)
            client.inbox = bytearray()
            self._take(client, Request(client, ONE_SHOT, 0, 0, body, self.settings.runtime_timeout))
            return
        if length > LARGE:
            raise OverflowError(f"a hello of {length} bytes")
        hello = decode(str(client.cut(LENGTH.size, end), "utf-8"))
        timeout = hello.get("timeout")
        if not isinstance(hello["oncue"], int) or hello["oncue"] < 1:
            raise ValueError(f"protocol {hello['oncue']!r} is not spoken here")
        if timeout is not None and (not isinstance(timeout, (int, float)) or not 0 < timeout < 4e6):
            raise ValueError(f"timeout {timeout!r}: expected seconds")
        client.lasting, client.timeout, client.kill = True, timeout, hello.get("kill") is True
        del client.inbox[:end]
        answer = encode(self._about())
        self._send(client, LENGTH.pack(len(answer)) + answer)

    def _about(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "oncue": PROTOCOL,
            "python": ".".join(map(str, sys.version_info[:3])),
            "handler": settings.handler,
            "mode": settings.handler_mode,
            "processes": settings.processes,
            "concurrency": settings.processes * settings.concurrency,
            "timeout": settings.runtime_timeout,
            "frame_limit": settings.frame_limit,
            "pid": os.getpid(),
        }

    def _frames(self, client: Client) -> None:
        done = 0
        for start, kind, id, number, head, end in split(client.inbox, self.settings.frame_limit):
            whole = client.inbox
            if kind in (CALL, ENVELOPE):
                if id in client.requests:
                    raise ValueError(f"request {id} is already under way")
                timeout = number / 1000.0 or client.timeout or self.settings.runtime_timeout
                self._take(client, Request(client, kind, id, head, client.cut(start + HEAD.size, end), timeout))
            elif kind == CANCEL:
                self._cancel(client, id, kill=number == 1)
            elif kind == PING:
                self._send(client, frame(PONG, id, len(client.requests))[0])
            else:
                raise ValueError(f"frames of kind {kind} are not for a runtime")
            if client.closed:
                return
            if whole is not client.inbox:  # it was handed over, and that was the last
                return
            done = end
        del client.inbox[:done]

    def _take(self, client: Client, request: Request) -> None:
        client.requests[request.id] = request
        if self.stopping and client.lasting:
            self._answer(
                request, fault(STOPPING_ERROR, "Stopping", "the runtime is stopping; the handler was not called")
            )
            return
        client.held += request.size
        if client.held > HELD:
            client.reads = False
            self._watch(client)
        self.queue.append(request)

    def _cancel(self, client: Client, id: int, kill: bool) -> None:
        request = client.requests.get(id)
        if request is None:
            return
        for child in self.children.values():
            if child.running.get(request.seq) is request:
                if kill and not child.in_loop:
                    self._condemn(
                        child, request, fault(CANCELLED_ERROR, "CancelledError", "cancelled, and its process ended")
                    )
                elif child.in_loop:
                    self._send(child, frame(CANCEL, request.seq)[0])
                return
            if request in child.piped:
                return  # it cannot be called back, and is short
        self._answer(request, fault(CANCELLED_ERROR, "CancelledError", "cancelled before it began"))

    def _refuse(self, client: Client, text: str) -> None:
        """Answer what is no frame, then hang up."""
        answer = fault(CONNECTION_ERROR, "ProtocolError", text)
        LOG.warning("a connection was refused: %s", text)
        if client.lasting:
            self._send(client, frame(ERROR, 0, 0, encode(answer))[0])
        else:
            body = encode([answer])
            self._send(client, LENGTH.pack(len(body)) + body)
        client.ending = True
        client.inbox = bytearray()

    def _hang_up(self, client: Client) -> None:
        """All is said. What the client still sends is read for a moment: closing over it would take the answer away."""
        if client.ending == "lingering":
            return
        if client.lasting is False:
            self._drop(client)
            return
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(client)
            return
        client.ending, client.reads = "lingering", True
        self._watch(client)
        self._later(2.0, self._drop, client)

    def _drop(self, client: Client) -> None:
        """The connection is over, and so are its requests as far as that can be."""
        if client.closed:
            return
        self._close(client)
        del self.clients[client]
        self._unblock(client)
        left = set()
        for request in client.requests.values():
            request.client = None
            left.add(request.seq)
        client.requests = {}
        for child in self.children.values() if left else ():
            for seq in child.running.keys() & left:
                self._abandon(child, child.running[seq], client)

    def _abandon(self, child: Child, request: Request, client: Client) -> None:
        if child.in_loop:
            self._send(child, frame(CANCEL, request.seq)[0])
        if client.kill or not client.lasting:
            grace = CANCEL_GRACE if child.in_loop or client.kill else ABANDONED_GRACE
            request.deadline = min(request.deadline, self.now + grace)
            request.warned = child.in_loop
            self.next_deadline = min(self.next_deadline, request.deadline)

    def _unblock(self, client: Client) -> None:
        for child in self.children.values():
            if child.blocker is client:
                child.blocker, child.reads = None, True
                self._watch(child)

    # Requests

    def _dispatch(self) -> None:
        queue = self.queue
        while queue:
            request = queue[0]
            if request.client is None:
                queue.popleft()
                continue
            child = self._roomy(request.size)
            if child is None:
                return
            queue.popleft()
            request.seq = next(self.seqs) & 0xFFFFFFFF
            head = HEAD.pack(REST + request.size, request.kind, request.seq, 0, request.head)
            self._send(child, head, request.rest or b"")
            if len(child.running) < self.settings.concurrency:
                self._begin(child, request)
            else:
                child.piped.append(request)

    def _roomy(self, size: int) -> Child | None:
        """The least busy worker that may get one more request."""
        found, least = None, NEVER
        for child in self.children.values():
            busy = len(child.running) + len(child.piped)
            room = child.window if size < LARGE else self.settings.concurrency
            if child.ready and busy < room and busy < least:
                found, least = child, busy
        return found

    def _begin(self, child: Child, request: Request) -> None:
        """From now on the handler may be running with it."""
        child.running[request.seq] = request
        request.began = self.now
        if request.timeout is not None:
            request.deadline = self.now + request.timeout
            self.next_deadline = min(self.next_deadline, request.deadline)
        self._let_go(request)

    def _let_go(self, request: Request) -> None:
        """The request is not kept any more, so its client may send others."""
        request.rest, client = None, request.client
        if client is not None:
            client.held -= request.size
            if not client.reads and client.held <= HELD // 2 and client.lasting and not client.closed:
                client.reads = True
                self._watch(client)

    def _answer(self, request: Request, text: Fault) -> None:
        """Answer for a handler that cannot."""
        client = request.client
        if client is None:
            return
        if request.rest is not None:
            self._let_go(request)
        request.client = None
        del client.requests[request.id]
        if client.lasting:
            self._send(client, frame(ERROR, request.id, 0, encode(text))[0])
        else:
            body = encode([text])
            self._send(client, LENGTH.pack(len(body)) + body)
            client.ending = True

    def _expire(self) -> None:
        """End what has run for too long. A coroutine is cancelled first, and its process ended if that does not help."""
        self.next_deadline = NEVER
        for child in list(self.children.values()):
            for request in list(child.running.values()):
                if request.deadline <= self.now and not child.doomed:
                    if child.in_loop and not request.warned:
                        request.warned, request.deadline = True, self.now + CANCEL_GRACE
                        self._send(child, frame(CANCEL, request.seq, 1)[0])
                    else:
                        self._time_out(child, request)
                if not child.doomed:
                    self.next_deadline = min(self.next_deadline, request.deadline)

    def _time_out(self, child: Child, request: Request) -> None:
        for each in child.running.values():
            if each.deadline <= self.now or each is request:
                what = (
                    "abandoned by its client" if each.client is None else f"not finished within {each.timeout or 0:g} s"
                )
                self._condemn(child, each, fault(TIMEOUT_ERROR, "TimeoutError", what))

    def _condemn(self, child: Child, request: Request, verdict: Fault) -> None:
        """End a worker because of `request`. It tells first where it is: that is what the trace of the error says."""
        child.verdicts[request.seq] = verdict
        if child.doomed:
            return
        child.doomed, child.ready = True, False
        LOG.warning("worker %d is ended: a request was %s", child.pid, verdict["details"]["message"])
        try:
            os.kill(child.pid, signal.SIGUSR2)
        except ProcessLookupError:
            return
        self._later(0.1, self._kill, child)

    def _kill(self, child: Child) -> None:
        if not child.closed:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    # Workers

    def _spawn(self, _argument: Any = None) -> None:
        if self.stopping and not self.queue:
            return
        files: list[int] = []
        try:
            files += os.pipe()
            pair = socket.socketpair()
            files += (end.detach() for end in pair)
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            pid = os.fork()
        except OSError as error:
            LOG.warning("no worker can be started now: %s", error.strerror)
            for file in files:
                os.close(file)
            self._later(0.1 if self._drop_silent(8) else 1.0, self._spawn, None)
            return
        dump, far_dump, sock, far = files[0], files[1], socket.socket(fileno=files[2]), socket.socket(fileno=files[3])
        for file in (dump, far_dump):
            os.set_blocking(file, False)  # a dump that does not fit must not hold a dying process back
        if pid == 0:
            sock.close()
            os.close(dump)
            self._forget()
            raise Forked(far, far_dump)
        try:
            os.setpgid(pid, pid)
        except OSError:
            LOG.debug("worker %d was quicker", pid)
        far.close()
        os.close(far_dump)
        child = Child(sock, pid, dump, self.now)
        child.react = lambda mask: self._child_event(child, mask)
        child.window = self.settings.concurrency
        self.children[pid] = child
        self._watch(child)

    def _forget(self) -> None:
        """In a child: close all that is the parent's."""
        self.left = True
        self.selector.close()
        for link in [*self.clients, *self.children.values()]:
            link.sock.close()
        for child in self.children.values():
            os.close(child.dump)
        for sock in (self.listener, self.wake, self.waker):
            if sock is not None:
                sock.close()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, self.files)
        except (ValueError, OSError) as error:  # somebody has lowered it meanwhile
            LOG.warning("the limit of open files stays as it is: %s", error)

    def _child_event(self, child: Child, mask: int) -> None:
        if child.closed:
            return
        if mask & selectors.EVENT_WRITE:
            self.dirty.add(child)
        if mask & selectors.EVENT_READ:
            alive = child.receive(4 * LARGE)
            self._results(child)
            if not alive and not child.closed:
                child.ready = child.reads = False
                self._watch(child)
                self._later(1.0, self._kill, child)  # it is about to end, or has closed a file that was not its own

    def _results(self, child: Child) -> None:
        done = 0
        try:
            for start, kind, seq, number, head, end in split(child.inbox, self.settings.frame_limit + 8192):
                whole = child.inbox
                if kind in (READY, FAILED):
                    self._loaded(child, kind, number, child.cut(start + HEAD.size, end))
                elif seq in child.running:
                    self._pass_on(child, kind, child.running[seq], number, head, child.cut(start + HEAD.size, end))
                if child.closed or whole is not child.inbox:
                    return
                done = end
        except (ValueError, OverflowError) as error:  # the handler has written into a file that is not its own
            LOG.warning("worker %d sent what is no frame: %s", child.pid, error)
            self._kill(child)
            return
        del child.inbox[:done]

    def _pass_on(
        self, child: Child, kind: int, request: Request, number: int, head: int, rest: bytes | memoryview
    ) -> None:
        client = request.client
        if client is not None:
            if kind == REPLY:
                self._send(client, LENGTH.pack(len(rest)), rest)
            else:
                self._send(client, HEAD.pack(REST + len(rest), kind, request.id, number, head), rest)
            if client.owed > CLOGGED and child.blocker is None:
                child.blocker, child.reads = client, False
                self._watch(child)
        if kind == ITEM:
            return
        del child.running[request.seq]
        child.answered += 1
        quick = self.now - request.began < QUICK
        ahead = (PREFETCH if self.settings.processes == 1 else PREFETCH // 8) if quick else 0
        child.window = self.settings.concurrency + ahead
        if child.piped:
            self._begin(child, child.piped.popleft())
        if client is not None:
            request.client = None
            del client.requests[request.id]
            client.ending = client.ending or kind == REPLY

    def _loaded(self, child: Child, kind: int, in_loop: int, rest: bytes | memoryview) -> None:
        child.state = "failed" if kind == FAILED else "loaded"
        if kind == FAILED:
            self._unloadable(decode(str(rest, "utf-8"))["details"])
            return
        child.ready, child.in_loop = True, bool(in_loop)
        LOG.info("worker %d has loaded %s", child.pid, self.settings.handler)
        if self.listener is None and not self.stopping:
            if sum(each.ready for each in self.children.values()) < self.settings.processes:
                return
            self.listener = listen(self.settings)
            self.files = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.files[1], self.files[1]))
            self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        if not self.ready_told and not self.stopping:
            write_whole(self.settings.ready_file, f"ready\n{encode(self._about()).decode('utf-8')}\n")
            remove(self.settings.error_file)
            self.ready_told = True
            LOG.info("ready at %s", self.settings.socket_path)

    def _unloadable(self, details: dict[str, Any]) -> None:
        """Say why there is no handler. Before readiness that is the end; afterwards it is tried again, ever more rarely."""
        told = {"handler": self.settings.handler, "error": "load_error", "details": details}
        write_whole(self.settings.error_file, encode(told).decode("utf-8") + "\n")
        remove(self.settings.ready_file)
        self.ready_told = False
        LOG.critical("%s%s", details["message"], "\n" + details["traceback"].rstrip() if details["traceback"] else "")
        if self.listener is None:
            self.code = 1

    def _signalled(self, _mask: int) -> None:
        try:
            numbers = self.wake.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        self.now = time.monotonic()
        for number in numbers:
            if number == signal.SIGCHLD:
                self._reap()
            elif self.stopping:
                LOG.warning("stopping at once")
                self.code = 128 + number
            else:
                self._stop(number)

    def _reap(self) -> None:
        for child in list(self.children.values()):
            try:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = child.pid, 0
            if pid:
                self._bury(child, status)

    def _bury(self, child: Child, status: int) -> None:
        """A worker has died: pass on what it still said, answer what it did not, and start another."""
        self._drain(child)
        self._kill(child)  # what it started, and is left of its group
        trace = self._dumped(child)
        others = dict(child.running)
        del self.children[child.pid]
        self._close(child)
        os.close(child.dump)
        if child.state == "loading" and self.code is None and not self.stopping:
            text = f"Cannot load handler {self.settings.handler!r}: its process was {how(status)} while loading"
            self._unloadable({"message": text, "type": "LoadError", "traceback": trace})
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed:
            before, self.ooms = self.ooms, oom_kills()
            killed = self.ooms > before
        for seq, request in others.items():
            verdict = child.verdicts.get(seq) or self._verdict(child, status, killed, len(others))
            verdict["details"]["traceback"] = verdict["details"]["traceback"] or trace
            self._answer(request, verdict)
        self.queue.extendleft(reversed(child.piped))
        if self.code is not None or (self.stopping and not self.queue):
            return
        lived = child.doomed or child.answered or others or self.now - child.born > 10
        self.failures = 0 if lived else self.failures + 1
        delay = 0.0 if lived else min(30.0, 0.1 * 2**self.failures)
        LOG.warning(
            "worker %d has ended (%s); another one starts%s",
            child.pid,
            how(status),
            f" in {delay:g} s" if delay else "",
        )
        self._later(delay, self._spawn, None)

    def _drain(self, child: Child) -> None:
        before = -1
        while len(child.inbox) != before:
            before = len(child.inbox)
            if not child.receive(4 * LARGE):
                return
            self._results(child)

    def _dumped(self, child: Child) -> str:
        """What `faulthandler` wrote: where each thread was when the process died or was ended."""
        try:
            text = os.read(child.dump, 65536)
        except (BlockingIOError, InterruptedError):
            return ""
        lines = text.decode("utf-8", "replace").splitlines(keepends=True)
        return "".join(line for line in lines if __file__ not in line)

    def _verdict(self, child: Child, status: int, out_of_memory: bool, count: int) -> Fault:
        """The error for a request that was running in a worker when it died."""
        if child.doomed:
            text = "its process was ended because of another request in it"
            return fault(CRASH_ERROR, "Bystander", text, bystander=True)
        more: dict[str, Any] = {"suspects": count} if count > 1 else {}
        if out_of_memory:
            return fault(
                MEMORY_ERROR, "MemoryError", "memory ran out, and the kernel killed the handler's process", **more
            )
        if os.WIFSIGNALED(status):
            name = signal_name(os.WTERMSIG(status))
            return fault(CRASH_ERROR, name, "the handler's process was killed by " + name, signal=name, **more)
        code = os.WEXITSTATUS(status)
        text = f"the handler ended its process with exit status {code}"
        return fault(EXIT_ERROR, "SystemExit", text, exit_status=code, **more)

    # The end

    def _stop(self, number: int) -> None:
        """Take nothing more, finish what runs. What has not begun goes back to a sidecar that understands it."""
        LOG.info(
            "%s: stopping once %d running requests are finished",
            signal_name(number),
            sum(len(each.running) for each in self.children.values()),
        )
        self.stopping = True
        if self.listener is None:
            self.code = 0
            return
        self._unlisten(self.listener)
        for client in list(self.clients):
            if client.lasting:
                self._send(client, frame(STOPPING, 0)[0])
            elif not client.requests and not client.outbox:
                self._drop(client)
        text = "the runtime is stopping; the handler was not called"
        for request in self.queue:
            if request.client is not None and request.client.lasting:
                self._answer(request, fault(STOPPING_ERROR, "Stopping", text))
        self.queue = collections.deque(request for request in self.queue if request.client is not None)

    def _unlisten(self, listener: socket.socket) -> None:
        if listener.fileno() in self.selector.get_map():
            self.selector.unregister(listener)
        listener.close()
        remove(self.settings.socket_path)
        remove(self.settings.ready_file)

    def _end(self) -> None:
        """All requests are answered: when the answers are written, the workers may go, and then we."""
        if any(client.outbox for client in self.clients) and not self.ending:
            return
        if not self.ending:
            self.ending = True
            for child in self.children.values():
                child.ready = False
                child.sock.shutdown(socket.SHUT_WR)
            self._later(3.0, self._finish, None)
        if not self.children:
            self.code = 0

    def _finish(self, _argument: Any) -> None:
        self.code = 0

    def _leave(self) -> None:
        """Leave nothing behind: no worker, no socket, no file that says there is one."""
        for child in self.children.values():
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                LOG.debug("worker %d is gone already", child.pid)
            os.waitpid(child.pid, 0)
        if self.listener is not None and not self.stopping:
            self._unlisten(self.listener)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "killed by " + signal_name(os.WTERMSIG(status))
    return f"ended with exit status {os.WEXITSTATUS(status)}"


# ---- Main ------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run until told to stop. Return the exit code: 0 after a signal, 1 when it cannot start."""
    try:
        settings = Settings(os.environ)
        layout = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
        logging.basicConfig(level=settings.log_level, format=layout, stream=sys.stderr)
        claim(settings)
        remove(settings.ready_file)
        remove(settings.error_file)
        keep_memory()
        parent = os.getpid()
        return Supervisor(settings).run()
    except SettingsFault as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"oncue runtime: {line}\n")
        return 1
    except Forked as forked:
        sock, dump = forked.sock, forked.dump
    return work(settings, sock, dump, parent)


if __name__ == "__main__":
    sys.exit(main())
