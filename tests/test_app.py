"""The app: settings, connecting, what can be sent and what is said about what cannot."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue import App, Stop
from oncue.core.errors import (
    ConfigError,
    InvalidValueError,
    MessageTooLargeError,
    PartialSendError,
    QueueMismatchError,
    QueueNotFoundError,
    SettingsError,
    TransportError,
    UnknownActorError,
)
from oncue.core.message import Send
from oncue.core.outcome import Outcome
from oncue.core.settings import load_settings
from oncue.health import Health
from oncue.middleware import Handler
from oncue.testing import run_app, run_in_virtual_time
from oncue.transports.base import QueueSpec
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there is no oncue.yaml, and nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("ONCUE_URL", "ONCUE_PREFIX", "ONCUE_RESULTS"):
        monkeypatch.delenv(name, raising=False)


def greeting_app(url: str = "memory:", **options: Any) -> App:
    app = App(url, **options)

    @app.actor
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    return app


@asynccontextmanager
async def connected(app: App, **features: Any) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(MemoryStore(), msgspec.structs.replace(FEATURES, **features))
    async with app.connected(transport):
        yield transport
    await transport.close()


async def messages(transport: MemoryTransport, queue: str = "asya-greet") -> list[Any]:
    return [json.loads(message.body) for message in await transport.peek(queue, limit=100)]


# Settings


def test_making_an_app_reads_and_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_URL", "no url at all")
    app = greeting_app("sqlite:///jobs.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="ONCUE_URL"):
        _ = app.settings


def test_what_the_app_was_given_goes_before_every_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_URL", "memory:environment")
    monkeypatch.setenv("ONCUE_PREFIX", "env-")
    loaded = App("memory:own").settings
    assert (loaded.settings.url, loaded.settings.prefix) == ("memory:own", "env-")
    shown = {each.name: each.source for each in loaded.in_force()}
    assert (shown["url"], shown["prefix"], shown["grace"]) == ("App(url=…)", "environment ONCUE_PREFIX", "default")
    assert App(prefix="").settings.settings.prefix == ""
    assert App().settings.settings.url == "memory:environment"


def test_settings_can_be_given_as_a_whole() -> None:
    app = App("memory:own")
    app.settings = load_settings(environ={}, options={"url": "memory:other", "grace": 3})
    assert app.settings.settings.url == "memory:other"


@pytest.mark.parametrize("options", [{"url": "jobs.db"}, {"url": 5}, {"prefix": "a b"}, {"prefix": "-"}])
def test_a_bad_url_or_prefix_is_refused_where_it_is_written(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidValueError, match=f"App {name} is .*, expected"):
        App(**options)


def test_no_secret_is_shown_when_a_url_is_refused() -> None:
    with pytest.raises(InvalidValueError) as caught:
        App("//user:hunter2@host/")
    assert "hunter2" not in str(caught.value)


# Connecting


async def test_an_app_that_is_not_connected_says_how_to_connect_it() -> None:
    app = greeting_app()
    for verb in (app.send("greet", 1), app.send_many("greet", [1]), app.call("greet", 1), app.work(Stop())):
        with pytest.raises(ConfigError, match="use it inside of `async with app:`"):
            await verb


async def test_an_app_can_be_entered_again_but_not_twice_at_the_same_time() -> None:
    app = greeting_app("memory:again")
    for _ in range(2):
        async with app as same:
            assert same is app
            await app.send("greet", "Ada")
            with pytest.raises(ConfigError, match="connected already"):
                await app.__aenter__()
            with pytest.raises(ConfigError, match="connected already"):
                async with connected(app):
                    raise AssertionError
            await app.send("greet", "Ada")
    with pytest.raises(ConfigError, match="not connected"):
        await app.send("greet", "Ada")


def test_an_app_is_used_from_one_event_loop_at_a_time_and_from_others_later() -> None:
    app = greeting_app()

    async def from_another() -> None:
        with pytest.raises(ConfigError, match="in another event loop"):
            await app.send("greet", "Ada")
        with pytest.raises(ConfigError, match="connected already"):
            await app.__aenter__()

    async def main() -> None:
        async with app:
            await asyncio.to_thread(lambda: asyncio.run(from_another()))

    asyncio.run(main())
    asyncio.run(main())


def test_an_app_whose_event_loop_died_in_a_block_can_be_connected_again() -> None:
    app = greeting_app()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(app.__aenter__())
    loop.close()

    async def main() -> None:
        async with app:
            await app.send("greet", "Ada")

    asyncio.run(main())


async def test_connecting_makes_the_queues_of_all_actors_and_of_their_dead_letters() -> None:
    app = greeting_app(prefix="p-")
    app.actor(name="other", lease=5, fifo=True)(lambda payload: payload)
    async with connected(app) as transport:
        assert await transport.queues() == [
            QueueSpec(name="p-greet"),
            QueueSpec(name="p-greet-dlq"),
            QueueSpec(name="p-other", lease=5, fifo=True),
            QueueSpec(name="p-other-dlq"),
        ]
        app.actor(name="late")(lambda payload: payload)
        await app.send("late", 1)
        assert await messages(transport, "p-late")


async def test_a_queue_with_other_settings_is_an_error_and_leaves_nothing_open() -> None:
    app = greeting_app()
    transport = MemoryTransport(MemoryStore())
    await transport.declare(QueueSpec(name="asya-greet", lease=5))
    with pytest.raises(QueueMismatchError):
        async with app.connected(transport):
            raise AssertionError
    async with connected(app):
        pass


# Sending


async def test_a_message_is_stored_when_send_returns() -> None:
    app = greeting_app()
    async with connected(app) as transport:
        id = await app.actors["greet"].send("Ada", route=["store", app.actors["greet"]], headers={"a": [1]})
        assert await messages(transport) == [
            {
                "id": id,
                "route": {"actors": ["greet", "store", "greet"], "current": 0},
                "headers": {"a": [1]},
                "payload": "Ada",
            }
        ]


async def test_a_message_can_have_an_id_a_key_and_a_delay() -> None:
    app = greeting_app()
    async with connected(app) as transport:
        assert await app.send(app.actors["greet"], "Ada", id="photo-7", key="k", delay=60) == "photo-7"
        (message,) = await transport.peek("asya-greet", limit=2)
        assert (message.id, message.key) == ("photo-7", "k")
        assert (await transport.depth("asya-greet")).delayed == 1


class Counting(MemoryTransport):
    calls = 0

    async def send(self, *sends: Send) -> None:
        self.calls += 1
        await super().send(*sends)


async def test_many_messages_are_one_round_trip() -> None:
    app = greeting_app()
    transport = Counting(MemoryStore())
    async with app.connected(transport):
        ids = await app.send_many("greet", (str(number) for number in range(100)), route=["a"], headers={"b": 1})
        assert transport.calls == 1
        stored = await messages(transport)
        assert [body["id"] for body in stored] == ids
        assert [body["payload"] for body in stored] == [str(number) for number in range(100)]
        assert len(set(ids)) == 100
        assert await app.send_many("greet", []) == []
        assert transport.calls == 1


BAD = [
    ({"delay": -1}, "delay -1"),
    ({"delay": math.nan}, "delay nan"),
    ({"delay": "5"}, "delay '5'"),
    ({"route": ["a b"]}, "actor name 'a b'"),
    ({"route": "store"}, "route 'store': expected a list"),
    ({"route": [5]}, "5: expected an actor or the name of one"),
    ({"headers": {"a": math.inf}}, "header 'a' cannot be written as JSON: inf"),
    ({"headers": {1: 2}}, "headers .* expected a mapping with text keys"),
    ({"headers": "x"}, "headers 'x'"),
    ({"payload": math.nan}, "payload.* cannot be written as JSON: nan"),
    ({"payload": {"a": object()}}, r"payload.* cannot be written as JSON: .*object - at `\$\.a`"),
]


@pytest.mark.parametrize(
    ("options", "text"), [*BAD, ({"id": ""}, "id ''"), ({"id": "a\nb"}, "id"), ({"key": 5}, "key 5")]
)
async def test_what_cannot_be_sent_is_refused_before_anything_goes_out(options: dict[str, Any], text: str) -> None:
    app = greeting_app()
    async with connected(app) as transport:
        with pytest.raises(InvalidValueError, match=text):
            await app.send("greet", **options)
        if "delay" not in options:
            with pytest.raises(InvalidValueError, match=text):
                await app.call("greet", **options)
        assert await messages(transport) == []


@pytest.mark.parametrize(("options", "text"), BAD)
async def test_of_many_either_all_or_none_can_be_sent(options: dict[str, Any], text: str) -> None:
    app = greeting_app()
    options = dict(options)
    payload = options.pop("payload", 0)
    async with connected(app) as transport:
        with pytest.raises(InvalidValueError, match=text):
            await app.send_many("greet", ["Ada", payload], **options)
        assert await messages(transport) == []


@pytest.mark.parametrize("payloads", ["Ada", b"Ada", {"name": "Ada"}, 5])
async def test_one_payload_is_not_many(payloads: Any) -> None:
    app = greeting_app()
    async with connected(app) as transport:
        with pytest.raises(InvalidValueError, match="expected a list of payloads"):
            await app.send_many("greet", payloads)
        assert await messages(transport) == []


async def test_one_bad_payload_of_many_is_named_by_its_number() -> None:
    app = greeting_app()
    async with connected(app) as transport:
        with pytest.raises(InvalidValueError, match="^payload 2 cannot be written"):
            await app.send_many("greet", [1, 2, math.nan])
        assert await messages(transport) == []


async def test_an_unknown_actor_is_an_error_that_knows_a_similar_one() -> None:
    app = greeting_app()
    async with connected(app) as transport:
        await transport.declare(QueueSpec(name="asya-resize"))
        await transport.declare(QueueSpec(name="asya-resize-dlq"))
        with pytest.raises(
            UnknownActorError, match="no actor 'gret': no queue 'asya-gret' exists, did you mean 'greet'"
        ):
            await app.send("gret", 1)
        with pytest.raises(UnknownActorError, match="did you mean 'resize'"):
            await app.send_many("resise", [1, 2])
        with pytest.raises(UnknownActorError, match="exists$"):
            await app.call("something-else", 1)


async def test_actors_of_other_programs_can_be_sent_to_by_name() -> None:
    app = greeting_app()
    async with connected(app) as transport:
        await transport.declare(QueueSpec(name="asya-resize"))
        await app.send("resize", 1)
        assert len(await messages(transport, "asya-resize")) == 1


class Partial(MemoryTransport):
    reasons: dict[int, TransportError]

    async def send(self, *sends: Send) -> None:
        raise PartialSendError(self.reasons, len(sends))


async def test_a_partly_stored_batch_says_which_are_missing_and_one_without_a_queue_is_an_unknown_actor() -> None:
    app = greeting_app()
    transport = Partial(MemoryStore())
    async with app.connected(transport):
        transport.reasons = {1: QueueNotFoundError("asya-greet")}
        with pytest.raises(PartialSendError):
            await app.send_many("greet", [1, 2])
        transport.reasons = {0: QueueNotFoundError("asya-greet"), 1: QueueNotFoundError("asya-greet")}
        with pytest.raises(UnknownActorError):
            await app.send_many("greet", [1, 2])


async def test_a_message_over_the_limit_of_the_transport_is_refused_by_name() -> None:
    app = greeting_app()
    async with connected(app, max_body=1000) as transport:
        with pytest.raises(MessageTooLargeError):
            await app.send("greet", "x" * 1000)
        with pytest.raises(MessageTooLargeError):
            await app.send_many("greet", ["x", "x" * 1000])
        assert await messages(transport) == []


# Working


def test_actors_work_in_the_background_of_a_block_and_are_stopped_gently_at_its_end() -> None:
    app = App("memory:")
    begun, done = [], []

    @app.actor
    async def slow(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(5)
        done.append(number)

    async def main() -> None:
        async with app.working() as same:
            assert same is app
            await app.send_many("slow", [1, 2, 3])
            await asyncio.sleep(1)

    run_in_virtual_time(main)
    assert begun == sorted(done) == [1, 2, 3]


def test_an_exception_in_the_block_gives_messages_back_at_once() -> None:
    app = App("memory:")
    done = []

    @app.actor
    async def slow(number: int) -> None:
        await asyncio.sleep(5)
        done.append(number)

    async def main() -> None:
        async with connected(app) as transport:
            with pytest.raises(ZeroDivisionError) as caught:
                async with app.working():
                    await app.send("slow", 1)
                    await asyncio.sleep(1)
                    1 / 0  # noqa: B018
            assert caught.value.__context__ is None
            assert asyncio.get_running_loop().time() < 2
            assert (await transport.depth("asya-slow")).ready == 1

    run_in_virtual_time(main)
    assert done == []


def test_work_ends_when_its_stop_says_so_and_tells_its_health() -> None:
    app, reasons = greeting_app(), []

    async def main() -> None:
        async with connected(app):
            stop, health = Stop(), Health(clock=asyncio.get_running_loop().time)
            async with asyncio.TaskGroup() as group:
                work = group.create_task(app.work(stop, health=health))
                await asyncio.sleep(1)
                reasons.extend(health.ready())
                stop.gently(1)
            assert work.done()

    run_in_virtual_time(main)
    assert reasons == []


def test_a_queue_that_cannot_be_worked_on_ends_all_actors_with_its_own_error() -> None:
    app = greeting_app()
    app.actor(name="other")(lambda payload: payload)

    async def main() -> None:
        async with connected(app) as transport:
            await transport.delete("asya-other")
            await transport.declare(QueueSpec(name="asya-other", lease=5))
            with pytest.raises(QueueMismatchError) as caught:
                async with app.working():
                    await asyncio.sleep(100)
            assert caught.value.__cause__ is None
            assert asyncio.get_running_loop().time() < 50

    run_in_virtual_time(main)


def test_middleware_is_around_every_handler_and_the_first_is_outermost() -> None:
    order: list[str] = []

    def named(name: str) -> Any:
        def wrap(handler: Handler) -> Handler:
            async def handle(message: Any, attempt: int) -> Outcome:
                order.append(name)
                return await handler(message, attempt)

            return handle

        return wrap

    app = greeting_app(middleware=[named("outer"), named("inner")])

    async def scenario(test: Any) -> str:
        return await app.call("greet", "Ada")

    assert run_app(app, scenario, finish=False) == "Hello, Ada!"
    assert order[:2] == ["outer", "inner"]


def test_listeners_hear_what_happens() -> None:
    app, names = greeting_app(), []
    app.events.subscribe(lambda event: names.append(event.name))

    async def scenario(test: Any) -> None:
        await app.send("greet", "Ada")

    run_app(app, scenario)
    assert "pump.started" in names
    assert "message.done" in names


def test_a_route_to_a_queue_that_is_not_there_ends_in_the_dead_letters_at_once() -> None:
    app = greeting_app()

    async def scenario(test: Any) -> Any:
        await app.send("greet", "Ada", route=["nowhere"])
        await test.idle()
        return test.dead("greet")

    (letter,) = run_app(app, scenario, expect_failures=True)
    assert (letter.reason, letter.type, letter.attempts) == ("routing_error", "QueueNotFoundError", 1)
