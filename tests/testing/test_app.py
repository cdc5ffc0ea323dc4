"""An app in a test: virtual time, what came of each message, and failures as the handlers raised them."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

from oncue import App, Context, Retry
from oncue.core.errors import ActorFailedError
from oncue.testing import AppTest, app_test, run_app

app = App("sqlite:///never-made.db")
error = LookupError("not there")


@app.actor
async def double(number: int) -> int:
    return 2 * number


@app.actor(retry=Retry(max_attempts=2, base=3600, cap=3600))
async def fail(_payload: Any) -> None:
    raise error


@app.actor(retry=Retry(max_attempts=3, base=60, jitter=0))
def third_time(number: int, context: Context) -> int:
    if context.attempt < 3:
        raise ValueError("not yet")
    return number


@app.actor(timeout=30, retry=Retry(max_attempts=1))
async def hang(_payload: Any) -> None:
    await asyncio.Event().wait()


@app.actor
async def later(payload: Any, context: Context) -> None:
    context.send("double", payload, delay=3600)


@app.actor
async def pass_on(payload: Any, context: Context) -> None:
    context.send("elsewhere", payload, route=["beyond"])


def test_a_scenario_returns_its_value_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    async def scenario(test: AppTest) -> int:
        assert test.app is app
        id = await double.send(4)
        await test.idle()
        assert test.result(id) == 8
        assert [result.status for result in test.results] == ["succeeded"]
        return await double.call(21)

    assert run_app(app, scenario) == 42
    assert list(tmp_path.iterdir()) == []


def test_idle_jumps_over_delays_and_retries() -> None:
    async def scenario(test: AppTest) -> None:
        id = await third_time.send(5)
        await later.send(3)
        await test.idle()
        assert test.result(id) == 5
        assert asyncio.get_running_loop().time() >= 3600
        assert len(test.results) == 3

    run_app(app, scenario)


def test_the_handlers_own_exception_is_raised_with_its_traceback_and_a_note() -> None:
    async def scenario(test: AppTest) -> None:
        await fail.send(1, id="m")
        with pytest.raises(LookupError) as caught:
            await test.idle()
        assert caught.value is error
        assert caught.value.__notes__ == ["actor 'fail' gave up message 'm' at attempt 2"]
        shown = traceback.extract_tb(caught.value.__traceback__)
        assert (shown[-1].name, shown[-1].line) == ("fail", "raise error")
        await test.idle()

    error.__notes__ = []
    run_app(app, scenario)


def test_a_failure_that_the_scenario_does_not_wait_for_is_raised_at_its_end() -> None:
    async def scenario(_test: AppTest) -> None:
        await fail.send(1)

    with pytest.raises(LookupError) as caught:
        run_app(app, scenario)
    assert caught.value is error
    assert caught.value.__context__ is None


def test_failures_that_are_expected_can_be_looked_at() -> None:
    async def scenario(test: AppTest) -> None:
        await fail.send({"n": 1}, id="m")
        await test.idle()
        (letter,) = test.dead(fail)
        assert (letter.id, letter.type, letter.attempts) == ("m", "LookupError", 2)
        assert test.dead("double") == []
        assert test.failures == [error]
        with pytest.raises(LookupError, match="'m' has brought no result"):
            test.result("m")

    run_app(app, scenario, expect_failures=True)


def test_several_failures_are_one_with_a_note() -> None:
    async def scenario(_test: AppTest) -> None:
        await hang.send_many([1, 2, 3])

    with pytest.raises(TimeoutError, match="not finished within 30s") as caught:
        run_app(app, scenario)
    assert caught.value.__notes__[-1] == "and 2 more messages failed"


def test_a_failure_without_an_exception_is_one_of_ours() -> None:
    async def scenario(test: AppTest) -> None:
        await double.send("no number", id="m")
        await test.idle()

    with pytest.raises(ActorFailedError, match="Expected `int`, got `str`") as caught:
        run_app(app, scenario)
    assert caught.value.actor == "double"
    assert caught.value.__notes__ == ["actor 'double' gave up message 'm' at attempt 1"]


def test_what_goes_to_other_programs_can_be_looked_at() -> None:
    async def scenario(test: AppTest) -> None:
        await pass_on.send({"n": 1})
        await test.idle()
        assert test.sent("elsewhere") == [{"n": 1}]
        (envelope,) = test.waiting("elsewhere")
        assert envelope.route.actors == ("elsewhere", "beyond")

    run_app(app, scenario, outside=["elsewhere"])
    with pytest.raises(ActorFailedError, match="queue 'asya-elsewhere' does not exist"):
        run_app(app, scenario)


def test_an_app_that_never_becomes_idle_is_told_so_with_what_keeps_it() -> None:
    own = App()

    @own.actor
    async def forever(_payload: Any) -> None:
        await asyncio.Event().wait()

    async def scenario(test: AppTest) -> None:
        await forever.send(1)
        await test.idle(within=600)

    with pytest.raises(
        TimeoutError, match="not idle after 10m of virtual time: forever has 0 ready, 1 leased, 0 delayed"
    ):
        run_app(own, scenario)


def test_a_scenario_may_end_before_the_work_does() -> None:
    own = App()

    @own.actor
    async def tick(number: int, context: Context) -> None:
        context.send("tick", number + 1, delay=60)

    async def scenario(test: AppTest) -> None:
        await tick.send(0)
        await asyncio.sleep(150)
        assert test.sent("tick") == [3]

    run_app(own, scenario, finish=False)


def test_a_failure_is_raised_at_the_end_also_when_the_rest_of_the_work_is_not_waited_for() -> None:
    async def scenario(_test: AppTest) -> None:
        await hang.send(1)
        await asyncio.sleep(100)

    with pytest.raises(TimeoutError, match="not finished within 30s"):
        run_app(app, scenario, finish=False)


def test_what_the_scenario_raises_is_raised() -> None:
    async def scenario(_test: AppTest) -> None:
        await double.send(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run_app(app, scenario)
    assert caught.value.__context__ is None


def test_handlers_in_threads_take_real_time() -> None:
    own, free = App(), threading.Event()

    @own.actor(timeout=30)
    def waits(number: int) -> int:
        assert free.wait(10)
        return number

    async def scenario(test: AppTest) -> None:
        await waits.send(1)
        threading.Timer(0.05, free.set).start()
        await test.idle()
        assert len(test.results) == 1

    run_app(own, scenario)


def test_the_app_can_be_used_again_and_hears_nothing_of_the_test_any_more() -> None:
    async def scenario(_test: AppTest) -> None:
        assert await double.call(1) == 2

    for _ in range(2):
        run_app(app, scenario)
    assert not app.events


@app_test(app)
async def test_a_decorated_test_gets_the_app_and_its_fixtures(test: AppTest, tmp_path: Path) -> None:
    assert tmp_path.exists()
    assert await double.call(2) == 4
    await test.idle()


class TestInAClass:
    @app_test(app, expect_failures=True)
    async def test_a_method_can_be_decorated_too(self, test: AppTest) -> None:
        assert isinstance(self, TestInAClass)
        await fail.send(1)
        await test.idle()
        assert len(test.dead("fail")) == 1


def test_a_decorated_test_shows_runners_only_what_they_should_give() -> None:
    assert list(inspect.signature(test_a_decorated_test_gets_the_app_and_its_fixtures).parameters) == ["tmp_path"]
    assert not inspect.iscoroutinefunction(test_a_decorated_test_gets_the_app_and_its_fixtures)
