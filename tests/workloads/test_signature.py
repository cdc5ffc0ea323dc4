"""What a handler may take, and what is said about one that cannot be called with a payload."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import pytest
from msgspec import Raw

import oncue
from oncue import Context
from oncue.core.errors import ConfigError
from oncue.workloads.signature import place_of, read_signature
from oncue.workloads.values import reader

if TYPE_CHECKING:
    from oncue.context import Context as Unseen

MARK: Any = object()


@dataclass
class Photo:
    path: str


def test_the_first_parameter_is_the_payload_and_its_annotation_the_type() -> None:
    def handler(photo: Photo) -> None: ...

    assert read_signature(handler).payload is Photo


def test_no_annotation_means_any_json_value() -> None:
    def handler(photo): ...

    assert read_signature(handler).payload is Any


def test_an_annotation_may_name_what_is_local_to_the_place_of_definition() -> None:
    @dataclass
    class Local:
        path: str

    def handler(photo: list[Local]) -> None: ...

    assert read_signature(handler, locals()).payload == list[Local]


def called(handler: Callable[..., Any]) -> Any:
    return read_signature(handler).bind(1, MARK)


def test_the_context_is_passed_where_it_is_asked_for() -> None:
    def plain(payload):
        return payload

    def second(payload, context: Context):
        return payload, context

    def dotted(payload, context: oncue.Context):
        return payload, context

    def keyword(payload, *, context: Context):
        return payload, context

    def unseen(payload, context: Unseen):
        return payload, context

    def optional(payload, size: int = 5):
        return payload, size

    def rest(payload, *rest, **options):
        return payload, rest, options

    assert called(plain) == 1
    assert called(second) == called(dotted) == called(keyword) == (1, MARK)
    assert called(optional) == (1, 5)
    assert called(rest) == (1, (), {})
    with pytest.raises(ConfigError, match="needs an argument for 'context'"):
        called(unseen)


def test_a_context_of_another_kind_is_none_of_ours_but_one_only_seen_by_the_type_checker_is() -> None:
    def other(payload, context: click.Context): ...

    with pytest.raises(ConfigError, match="needs an argument for 'context'"):
        read_signature(other)
    names: dict[str, Any] = {}
    exec("from __future__ import annotations\ndef handler(payload, context: Context): return context", names)
    assert called(names["handler"]) is MARK


def test_objects_partials_methods_and_builtins_are_handlers_too() -> None:
    class Scale:
        def __call__(self, payload: int, context: Context) -> tuple[int, Context]:
            return payload, context

        def method(self, payload: int) -> int:
            return payload

    def two(factor: int, payload: float) -> float:
        return factor * payload

    assert called(Scale()) == (1, MARK)
    assert called(Scale().method) == 1
    assert called(functools.partial(two, 3)) == 3
    assert read_signature(functools.partial(two, 3)).payload is float
    assert read_signature(len).bind("abc", MARK) == 3
    assert read_signature(Scale()).payload is int


def test_only_what_returns_at_once_is_called_in_the_event_loop() -> None:
    async def coroutine(payload): ...
    async def generator(payload):
        yield payload

    def plain(payload): ...
    def yields(payload):
        yield payload

    class Object:
        async def __call__(self, payload): ...

    assert read_signature(coroutine).in_loop
    assert read_signature(generator).in_loop
    assert read_signature(Object()).in_loop
    assert read_signature(functools.partial(coroutine)).in_loop
    assert not read_signature(plain).in_loop
    assert not read_signature(yields).in_loop


def nothing() -> None: ...
def star(*args: Any) -> None: ...
def only_keywords(**options: Any) -> None: ...
def keyword_only(*, payload: int) -> None: ...
def two(payload: int, size: int) -> None: ...
def bare_context(payload: int, context) -> None: ...
def needed_keyword(payload: int, *, size: int) -> None: ...
def context_first(context: Context) -> None: ...
def third(payload: int, size: int, context: Context) -> None: ...
def unknown(payload: Missing) -> None: ...  # noqa: F821


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (nothing, "takes no parameter"),
        (star, r"begins with \*args"),
        (only_keywords, r"begins with \*\*options"),
        (keyword_only, r"begins with \*, payload"),
        (two, "needs an argument for 'size'"),
        (bare_context, "needs an argument for 'context'.*annotate it with oncue.Context"),
        (needed_keyword, "needs an argument for 'size'"),
        (context_first, "the first parameter is the payload"),
        (third, "needs an argument for 'size'"),
        (unknown, "annotation 'Missing' of 'payload' cannot be evaluated: name 'Missing' is not defined"),
        (42, "cannot be called"),
        (Photo, "is a class"),
    ],
)
def test_a_handler_that_cannot_take_a_payload_is_refused_with_the_reason(handler: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_signature(handler)


def test_an_error_says_where_the_handler_is() -> None:
    with pytest.raises(ConfigError, match=rf"two \({__file__}:\d+\)"):
        read_signature(two)


def test_the_place_of_anything_callable_can_be_told() -> None:
    class Object:
        def __call__(self, payload): ...

    assert "Object" in place_of(Object())
    assert __file__ in place_of(Object())
    assert place_of(len) == "len"
    assert "two" in place_of(functools.partial(two, 1))


class Stranger:
    pass


@pytest.mark.parametrize("annotation", [Stranger, list[Stranger], list[int] | set[int]])
def test_a_payload_that_json_cannot_be_read_into_is_refused_with_the_place_of_the_function(annotation: Any) -> None:
    def handler(payload) -> None: ...

    handler.__annotations__["payload"] = annotation
    with pytest.raises(ConfigError, match=rf"handler \({__file__}:\d+\): a payload cannot be "):
        read_signature(handler)


@dataclass
class Tree:
    fruit: Fruit  # noqa: F821  # it is defined once the handler is there


def test_a_payload_may_hold_a_class_that_is_defined_later() -> None:
    def handler(tree: Tree) -> None: ...

    signature = read_signature(handler)
    globals()["Fruit"] = Photo
    try:
        assert reader(signature.payload)(Raw(b'{"fruit": {"path": "p"}}')) == Tree(Photo("p"))
    finally:
        del globals()["Fruit"]
