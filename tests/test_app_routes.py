"""Routes and fan-outs of any shape give exactly the leaves they should, also when messages are handled twice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncue import App, Context
from oncue.actors import ActorHandler
from oncue.core.message import Message, Send
from oncue.core.outcome import Done, Outcome
from oncue.ends import Ends
from oncue.outgoing import Outgoing
from oncue.testing import run_app
from oncue.transports import open_transport
from oncue.workloads.function import FunctionWorkload
from oncue.workloads.signature import read_signature

END = "asya-happy-end"

# What an actor makes of a value: it passes it on, or fans out into as many.
widths = st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=4)


def expected_leaves(widths: list[int | None]) -> list[str]:
    """The values at the ends of the routes, in the order of the tree; an early end is 'nothing'."""
    leaves = [""]
    for width in widths:
        if width is None:
            leaves = [leaf if leaf == "nothing" else leaf + "." for leaf in leaves]
        else:
            grown: list[str] = []
            for leaf in leaves:
                items = [f"{leaf}{index}" for index in range(width)]
                grown += [leaf] if leaf == "nothing" else items or ["nothing"]
            leaves = grown
    return leaves


def actor_of(number: int, width: int | None) -> Any:
    async def passes(text: str, context: Context) -> Any:
        context.send("log", f"{number}{text}")
        return text + "." if width is None else [f"{text}{index}" for index in range(width)]

    return passes


def run_without_broker(widths: list[int | None], chance: random.Random) -> list[Send]:
    """Handle every message once or twice, and in any order; what came to the end. What is sent besides has its own ids."""
    outgoing = Outgoing("asya-")
    handlers = {
        f"asya-a{number}": ActorHandler(
            f"a{number}",
            FunctionWorkload(read_signature(actor_of(number, width)), name="a"),
            outgoing,
            max_attempts=3,
            ends=Ends(END, "asya-error-end"),
        )
        for number, width in enumerate(widths)
    }
    route = [f"a{number}" for number in range(1, len(widths))]
    waiting = [outgoing.compose("a0", "", id="root", route=route)]
    ends: list[Send] = []
    logged: list[str] = []
    seen: set[tuple[str, str]] = set()

    async def run() -> None:
        while waiting:
            send = waiting.pop(chance.randrange(len(waiting)))
            if send.queue == END:
                ends.append(send)
            elif send.queue == "asya-log":
                logged.append(send.message.id)
            else:
                for attempt in range(1, chance.choice((2, 3))):
                    outcome = await handlers[send.queue](send.message, attempt)
                    assert isinstance(outcome, Done)
                    waiting.extend(outcome.sends)
                seen.add((send.queue, send.message.id))

    asyncio.run(run())
    assert len(set(logged)) == len(seen)
    return ends


@given(widths, st.integers())
def test_messages_handled_twice_make_the_same_children_under_the_same_ids(widths: list[int | None], seed: int) -> None:
    ends = run_without_broker(widths, random.Random(seed))
    by_id: dict[str, Any] = {}
    for send in ends:
        payload = json.loads(send.message.body)["payload"]
        assert by_id.setdefault(send.message.id, payload) == payload, "two leaves have one id"
    found = Counter("nothing" if payload is None else payload for payload in by_id.values())
    assert found == Counter(expected_leaves(widths))


def routed_app(widths: list[int | None]) -> App:
    app = App("memory:", middleware=[twice])
    for number, width in enumerate(widths):
        app.actor(name=f"a{number}")(actor_of(number, width))

    @app.actor
    async def log(text: str) -> None: ...

    return app


def twice(handler: Any) -> Any:
    """A middleware that calls every handler twice, as after a crash, and takes what the second made."""

    async def handle(message: Message, attempt: int) -> Outcome:
        await handler(message, attempt)
        return await handler(message, attempt + 1)  # type: ignore[no-any-return]

    return handle


def called(widths: list[int | None]) -> Any:
    """What a call returns: the leaves as a list after any fan-out, else the only one."""
    leaves = [None if leaf == "nothing" else leaf for leaf in expected_leaves(widths)]
    fans_out = False
    for width in widths:
        if width == 0 and not fans_out:
            break
        fans_out = fans_out or width is not None
    return leaves if fans_out else leaves[0]


@settings(max_examples=30, deadline=None)
@given(widths)
def test_a_call_brings_exactly_the_leaves_in_order(widths: list[int | None]) -> None:
    app = routed_app(widths)
    route = [f"a{number}" for number in range(1, len(widths))]

    async def scenario(_test: Any) -> Any:
        return await app.call("a0", "", route=route, timeout=60)

    assert run_app(app, scenario) == called(widths)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(widths)
def test_the_same_on_a_file(tmp_path: Path, widths: list[int | None]) -> None:
    app = routed_app(widths)
    route = [f"a{number}" for number in range(1, len(widths))]

    async def run() -> Any:
        transport = await open_transport(f"sqlite:///{tmp_path}/jobs-{random.getrandbits(64):x}.db")
        try:
            async with app.connected(transport), app.working():
                return await app.call("a0", "", route=route, timeout=50)
        finally:
            await transport.close()

    assert asyncio.run(run()) == called(widths)


@pytest.mark.parametrize("url", ["memory:", "file"])
async def test_a_wide_fan_out_and_many_calls_at_once(url: str, tmp_path: Path) -> None:
    app = App(f"sqlite:///{tmp_path}/jobs.db" if url == "file" else url)

    @app.actor
    async def count(number: int) -> list[int]:
        return list(range(number))

    @app.actor
    def square(number: int) -> int:
        return number**2

    async with app.working():
        results = await asyncio.gather(*(app.call("count", 50, route=[square], timeout=50) for _ in range(10)))
    assert results == [[number**2 for number in range(50)]] * 10
