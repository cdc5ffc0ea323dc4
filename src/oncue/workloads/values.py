"""Payloads and results: JSON to what a handler's annotation asks for, and any value a handler returns to JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import msgspec
from msgspec import Raw

from oncue.core.errors import ConfigError, InvalidPayloadError, OnCueError

Read = Callable[[Raw], Any]
"""JSON to a value; raises `InvalidPayloadError` with the path of the bad field, or whatever a user's type raises."""

_DEEPEST = 64


def reader(annotation: Any) -> Read:
    """What reads payloads of the type `annotation`, made once for an actor. `Any` takes every JSON value.

    Raise `ConfigError` when JSON cannot be read into this type.
    """
    if annotation is Any or annotation is object:
        return _guarded(msgspec.json.Decoder().decode)
    models = _pydantic()
    if models is not None and _mentions_model(annotation, models):
        try:
            return _model_reader(annotation, models)
        except (models.PydanticUserError, NameError) as error:
            first = str(error).partition("\n")[0]
            raise ConfigError(f"a payload cannot be {_name(annotation)}: {first}") from error
    try:
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(annotation, dec_hook=_read_foreign)
        strangers = list(_strangers(annotation))
    except (TypeError, NameError) as error:
        raise ConfigError(f"a payload cannot be {_name(annotation)}: {error}") from error
    if strangers:
        raise ConfigError(
            f"a payload cannot be {_name(annotation)}: {_name(strangers[0])} is no type that JSON can be read into; "
            "use a dataclass, a msgspec Struct, a TypedDict, a pydantic model or built-in types"
        )
    return _guarded(decoder.decode)


def write(value: Any, what: str, error: type[OnCueError]) -> Raw:
    """`value` as JSON; a `Raw` is that already. Raise `error` with a text that begins with `what` when JSON cannot hold it, NaN
    included."""
    if type(value) is Raw:
        return value
    try:
        text = _encode(value)
    except Exception as problem:
        raise error(f"{what} cannot be written as JSON: {_explain(value, problem)}") from None
    # msgspec writes NaN and infinity as null, and a number that silently became nothing is worse than an error.
    if b"null" in text and value is not None:
        found = _not_finite(msgspec.to_builtins(value, enc_hook=_write_foreign))
        if found is not None:
            raise error(f"{what} cannot be written as JSON: {found}")
    return Raw(text)


def _guarded(decode: Callable[[Raw], Any]) -> Read:
    def read(raw: Raw) -> Any:
        try:
            return decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidPayloadError(f"payload: {error}") from None

    return read


# Pydantic, for those who have imported it. It is never imported here.


def _pydantic() -> Any:
    return sys.modules.get("pydantic")


def _is_model(kind: object, models: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, models.BaseModel)


def _mentions_model(annotation: Any, models: Any) -> bool:
    return _is_model(annotation, models) or any(_mentions_model(part, models) for part in get_args(annotation))


def _model_reader(annotation: Any, models: Any) -> Read:
    validate = models.TypeAdapter(annotation).validate_json

    def read(raw: Raw) -> Any:
        try:
            return validate(bytes(raw))
        except models.ValidationError as error:
            raise InvalidPayloadError(f"payload: {_model_faults(error)}") from None

    return read


def _model_faults(error: Any) -> str:
    """The faults with their paths; pydantic's own text has the values too, which nobody else should read."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{fault['msg']} - at `{_path(fault['loc'])}`" for fault in faults)


def _read_foreign(kind: type, value: Any) -> Any:
    models = _pydantic()
    if models is None or not _is_model(kind, models):
        raise NotImplementedError
    try:
        # As JSON again, since pydantic reads dates and the like from texts in JSON only.
        return kind.model_validate_json(msgspec.json.encode(value))  # type: ignore[attr-defined]
    except models.ValidationError as error:
        raise ValueError(_model_faults(error)) from None


def _write_foreign(value: Any) -> Any:
    models = _pydantic()
    if models is None or not isinstance(value, models.BaseModel):
        raise TypeError(f"a {_name(type(value))} is not")
    return value.model_dump(mode="json")


_encode = msgspec.json.Encoder(enc_hook=_write_foreign).encode


def _strangers(annotation: Any) -> Iterator[type]:
    """The classes inside `annotation` that msgspec does not know and that are no pydantic models."""
    import msgspec.inspect  # only programs with annotated actors need it

    seen: set[int] = set()
    waiting: list[object] = [msgspec.inspect.type_info(annotation)]
    models = _pydantic()
    while waiting:
        info = waiting.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, msgspec.inspect.CustomType):
            if models is None or not _is_model(info.cls, models):
                yield info.cls
        elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
            waiting += [getattr(info, name) for name in info.__struct_fields__]
        elif isinstance(info, tuple):
            waiting += info


# Saying what is wrong with a value


def _explain(value: Any, problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "it is nested too deeply, or holds itself"
    path: list[str | int] = []
    while len(path) < _DEEPEST:
        for key, child in _children(value):
            fault = _fault(child)
            if fault is not None:
                path.append(key)
                value, problem = child, fault
                break
        else:
            break
    return f"{_reason(value, problem)} - at `{_path(path)}`"


def _fault(value: Any) -> Exception | None:
    try:
        _encode(value)
    except Exception as problem:
        return problem
    return None


def _reason(value: Any, problem: Exception) -> str:
    if isinstance(problem, UnicodeEncodeError):
        return "a text holds half a character (a lone surrogate)"
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, str | int | float)]
        if strange:
            return f"a key is of type {_name(type(strange[0]))}"
    if isinstance(problem, TypeError):
        return f"found a value of type {_name(type(value))}"
    return f"{type(problem).__name__}: {problem}"


def _children(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    if isinstance(value, list | tuple | AbstractSet):
        return list(enumerate(value))
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name, None)) for name in value.__struct_fields__]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return ()


def _not_finite(plain: Any) -> str | None:
    """What the first NaN or infinity in `plain` is and where, or None."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), plain)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value} is no JSON number - at `{_path(path)}`"
        waiting += [((*path, key), child) for key, child in _children(value)]
    return None


def _path(keys: Iterable[str | int]) -> str:
    return "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def _name(kind: Any) -> str:
    if not isinstance(kind, type) or get_args(kind):
        return str(kind)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
