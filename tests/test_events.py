"""Events: who hears them, what is logged of them, and that their table is whole. Middleware: what wraps what."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

import oncue.events
from oncue.core.message import Message
from oncue.core.outcome import Done, Outcome, Release
from oncue.core.settings import Settings
from oncue.events import EVENTS, Event, Events, MessageDead, MessageDone, PumpStarted, log_events
from oncue.logs import configure_logs
from oncue.middleware import Handler, compose

DONE = MessageDone("q", "a", 1, 0.25, 2)
DEAD = MessageDead("q", "a", 3, 0.25, "ValueError: cannot reach redis://u:hunter2@h\nTraceback")


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def subclasses(event: type[Event]) -> Iterator[type[Event]]:
    for below in event.__subclasses__():
        yield below
        yield from subclasses(below)


def test_the_table_has_every_event_once_with_a_name_a_level_and_a_docstring() -> None:
    ours = [event for event in subclasses(Event) if event.__module__ == oncue.events.__name__]
    assert set(EVENTS) == set(ours) and len(EVENTS) == len(set(EVENTS))
    assert len({event.name for event in EVENTS}) == len(EVENTS)
    for event in EVENTS:
        assert event.__doc__ and event.__doc__.endswith("."), event
        assert event.level in {logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR}
        assert event.__struct_fields__[0] == "queue"
        assert event.__struct_config__.frozen
        for field in event.__struct_fields__:
            assert field not in {"time", "level", "logger", "message", "name"}, "a log line has its own of this name"


def test_every_listener_hears_every_event_in_order_of_subscription() -> None:
    heard: list[tuple[str, Event]] = []
    events = Events()
    assert not events
    events.emit(DONE)
    for name in ("first", "second"):
        events.subscribe(lambda event, name=name: heard.append((name, event)))
    assert events
    events.emit(DONE)
    events.emit(DEAD)
    assert heard == [("first", DONE), ("second", DONE), ("first", DEAD), ("second", DEAD)]


def test_who_unsubscribes_hears_no_more_and_may_do_so_twice() -> None:
    heard: list[Event] = []
    events = Events()
    hear = heard.append
    once, again = events.subscribe(hear), events.subscribe(hear)
    events.emit(DONE)
    assert heard == [DONE, DONE], "who subscribes twice hears twice"
    once()
    once()
    events.emit(DEAD)
    assert heard == [DONE, DONE, DEAD]
    again()
    assert not events


def test_a_listener_may_unsubscribe_or_subscribe_others_while_it_listens() -> None:
    heard: list[str] = []
    events = Events()

    def first(_event: Event) -> None:
        heard.append("first")
        leave()
        events.subscribe(lambda _event: heard.append("late"))

    leave = events.subscribe(first)
    events.subscribe(lambda _event: heard.append("second"))
    events.emit(DONE)
    assert heard == ["first", "second"]
    events.emit(DONE)
    assert heard == ["first", "second", "second", "late"]


def test_a_listener_that_fails_is_logged_and_the_others_still_hear(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    events = Events()

    def broken(_event: Event) -> None:
        raise ValueError("bad listener")

    events.subscribe(broken)
    events.subscribe(heard.append)
    events.emit(DONE)
    assert heard == [DONE]
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "oncue.events",
        "ERROR",
        "a listener failed on message.done",
    )
    assert record.exc_info is not None and str(record.exc_info[1]) == "bad listener"


def lines(level: str, *events: Event) -> list[dict[str, object]]:
    stream = io.StringIO()
    configure_logs(Settings(log_format="json", log_level=level), stream)
    for event in events:
        log_events(event)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_event_is_one_log_record_with_its_fields_and_no_secret() -> None:
    (line,) = lines("error", DONE, DEAD)
    assert line.pop("time")
    assert line == {
        "level": "error",
        "logger": "oncue",
        "message": "message.dead",
        "queue": "q",
        "id": "a",
        "attempt": 3,
        "seconds": 0.25,
        "error": "ValueError: cannot reach redis://u:***@h\nTraceback",
    }


def test_the_level_of_the_logs_chooses_the_events() -> None:
    started = PumpStarted("q", 4)
    assert [line["message"] for line in lines("debug", started, DONE, DEAD)] == [
        "pump.started",
        "message.done",
        "message.dead",
    ]
    assert [line["message"] for line in lines("info", started, DONE, DEAD)] == ["pump.started", "message.dead"]


async def test_the_first_middleware_is_the_outermost() -> None:
    order: list[str] = []

    def named(name: str):
        def wrap(handler: Handler) -> Handler:
            async def wrapped(message: Message, attempt: int) -> Outcome:
                order.append(f"{name} in")
                outcome = await handler(message, attempt)
                order.append(f"{name} out")
                return outcome

            return wrapped

        return wrap

    async def handler(message: Message, attempt: int) -> Outcome:
        order.append(f"{message.id} {attempt}")
        return Done()

    message = Message(b"", "a")
    assert await compose(handler, [named("x"), named("y")])(message, 2) == Done()
    assert order == ["x in", "y in", "a 2", "y out", "x out"]
    assert await compose(handler, [])(message, 1) == Done()


async def test_a_middleware_may_answer_itself() -> None:
    async def handler(message: Message, attempt: int) -> Outcome:
        raise AssertionError("is not called")

    def closed(_handler: Handler) -> Handler:
        async def answer(message: Message, attempt: int) -> Outcome:
            return Release()

        return answer

    assert await compose(handler, iter([closed]))(Message(b"", "a"), 1) == Release()
