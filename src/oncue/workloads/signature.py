"""What a handler takes, read once from its signature: a payload of some type, and perhaps a `Context`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from typing import Any, get_type_hints

import msgspec

from oncue.context import Context
from oncue.core.errors import ConfigError
from oncue.workloads.values import reader

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Signature(msgspec.Struct, frozen=True):
    """How to call `function`: `bind(payload, context)` passes what it takes. `payload` is the annotation, or `Any`.

    `in_loop` says that the call returns at once and the rest happens in the event loop.
    """

    function: Callable[..., Any]
    payload: Any
    bind: Callable[[Any, Context], Any]
    in_loop: bool


def read_signature(function: Callable[..., Any], local_names: Mapping[str, Any] | None = None) -> Signature:
    """Read what `function` takes; annotations that are texts may also name what is in `local_names`.

    Raise `ConfigError` with the reason when it cannot be called with one payload, or no JSON could be one.
    """
    if not callable(function):
        raise ConfigError(f"{function!r} cannot be called: an actor is made of a function")
    where = place_of(function)
    if isinstance(function, type):
        raise ConfigError(f"{where} is a class: an actor is made of a function, or of an object with __call__")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = [Parameter("payload", Parameter.POSITIONAL_ONLY)]  # one written in C, which does not say
    payload, rest = _payload(parameters, where)
    annotation = _resolve(function, payload, local_names, where)
    if annotation is Context:
        raise ConfigError(f"{where}: the first parameter is the payload, the Context comes second")
    _check_readable(annotation, where)
    context = _context(function, rest, local_names, where)
    bind: Callable[[Any, Context], Any]
    if context is None:
        bind = lambda value, _context: function(value)  # noqa: E731  # the shortest way to make the call
    elif context.kind is Parameter.KEYWORD_ONLY:
        name = context.name
        bind = lambda value, found: function(value, **{name: found})  # noqa: E731
    else:
        bind = function
    return Signature(function, annotation, bind, _in_loop(function))


def place_of(function: Callable[..., Any]) -> str:
    """A function's name and where it is: `greet (jobs.py:12)`."""
    inner = inspect.unwrap(function)
    while isinstance(inner, partial):
        inner = inner.func
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    if not hasattr(inner, "__code__"):
        inner = type(inner).__call__
    code = getattr(inner, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if isinstance(code, types.CodeType) else name


def _in_loop(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    candidates = [function]
    if not inspect.isroutine(function):
        candidates.append(type(function).__call__)
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in candidates)


def _payload(parameters: list[Parameter], where: str) -> tuple[Parameter, list[Parameter]]:
    if not parameters:
        raise ConfigError(f"{where} takes no parameter: an actor is called with the payload")
    first, *rest = parameters
    if first.kind in _POSITIONAL:
        return first, rest
    sign = "*" if first.kind is Parameter.VAR_POSITIONAL else "**" if first.kind is Parameter.VAR_KEYWORD else "*, "
    raise ConfigError(
        f"{where} begins with {sign}{first.name}: an actor is called with the payload as its first argument, "
        "so give that a parameter of its own (a decorator around it needs functools.wraps)"
    )


def _context(
    function: Callable[..., Any], rest: list[Parameter], local_names: Mapping[str, Any] | None, where: str
) -> Parameter | None:
    """The parameter for the context; raise `ConfigError` for another one that needs an argument."""
    found = None
    for number, parameter in enumerate(rest):
        second = number == 0 and parameter.kind in _POSITIONAL
        fits = second or parameter.kind is Parameter.KEYWORD_ONLY
        if fits and found is None and _is_context(function, parameter, local_names):
            found = parameter
        elif parameter.default is Parameter.empty and parameter.kind in (*_POSITIONAL, Parameter.KEYWORD_ONLY):
            hint = "; annotate it with oncue.Context if that is what it is" if "c" in parameter.name.lower()[:1] else ""
            raise ConfigError(
                f"{where} needs an argument for {parameter.name!r}: an actor is called with the payload, and with the "
                f"Context if its second parameter is annotated so{hint}"
            )
    return found


def _is_context(function: Callable[..., Any], parameter: Parameter, local_names: Mapping[str, Any] | None) -> bool:
    if parameter.annotation is Parameter.empty:
        return False
    try:
        return _evaluate(function, parameter, local_names) is Context
    except NameError:
        # A name that only the type checker imports. Called so, it can hardly be anything else.
        return isinstance(parameter.annotation, str) and parameter.annotation.rpartition(".")[2] == Context.__name__
    except Exception:
        return False


def _resolve(
    function: Callable[..., Any], parameter: Parameter, local_names: Mapping[str, Any] | None, where: str
) -> Any:
    if parameter.annotation is Parameter.empty:
        return Any
    try:
        return _evaluate(function, parameter, local_names)
    except Exception as error:
        raise ConfigError(
            f"{where}: the annotation {parameter.annotation!r} of {parameter.name!r} cannot be evaluated: {error}"
        ) from error


def _check_readable(annotation: Any, where: str) -> None:
    try:
        reader(annotation)
    except ConfigError as error:
        if isinstance(error.__cause__, NameError):
            return  # a class that is defined further below; it is looked for again when the worker starts
        raise ConfigError(f"{where}: {error}") from error


def _evaluate(function: Callable[..., Any], parameter: Parameter, local_names: Mapping[str, Any] | None) -> Any:
    """The annotation as a type, with what is a text in it, or in parts of it, looked up."""
    inner = inspect.unwrap(function)
    while isinstance(inner, partial):
        inner = inspect.unwrap(inner.func)
    if not hasattr(inner, "__globals__"):
        inner = type(inner).__call__
    names = getattr(inner, "__globals__", {})
    holder = types.SimpleNamespace(__annotations__={"payload": parameter.annotation})
    return get_type_hints(holder, names, {**names, **(local_names or {})}, include_extras=True)["payload"]
