"""Testing an app.

An actor is a function: call it. What happens around it, retries, routes, delays, is tested by running the app in the test: on
queues in memory and in virtual time, where an hour passes at once. pytest finds and runs the functions below as they are.
"""

import time

from oncue import App, Context, Retry
from oncue.testing import AppTest, app_test

app = App("sqlite:///jobs.db")  # not touched by the tests


@app.actor
async def order(item: str, context: Context) -> str:
    context.send(remind, f"Did the {item} arrive?", delay=3600)
    return item


@app.actor
def ship(item: str) -> str:
    if item == "anvil":
        raise ValueError("too heavy")
    return f"{item} is on its way"


@app.actor(retry=Retry(max_attempts=3, base=600))
async def remind(text: str, context: Context) -> str:
    if context.attempt < 3:
        raise ConnectionError("nobody is at home")
    return text


def test_the_function_alone() -> None:
    assert ship("lamp") == "lamp is on its way"


@app_test(app)
async def test_a_route(test: AppTest) -> None:
    message_id = await order.send("lamp", route=[ship])
    await test.idle()  # until nothing waits any more
    assert test.result(message_id) == "lamp is on its way"


@app_test(app)
async def test_a_reminder_comes_after_an_hour_and_does_not_give_up(test: AppTest) -> None:
    await order.send("lamp")
    await test.idle()  # an hour, and the waits between the attempts
    assert [result.actor for result in test.results] == ["order", "remind"]


@app_test(app, expect_failures=True)
async def test_what_cannot_be_shipped_is_set_aside(test: AppTest) -> None:
    await order.send("anvil", route=[ship])
    await test.idle()
    letter = test.dead(ship)[0]
    assert (letter.type, letter.message) == ("ValueError", "too heavy")


@app_test(app)
async def test_that_fails_on_purpose(test: AppTest) -> None:
    await ship.send("anvil")
    await test.idle()  # without expect_failures, this raises the actor's own exception


if __name__ == "__main__":
    started = time.monotonic()
    for name, function in list(globals().items()):
        if name.startswith("test_"):
            try:
                function()
                print(f"{name}: passed")
            except ValueError as error:
                print(f"{name}: {type(error).__name__}: {error}")
    print(f"hours of waiting took {time.monotonic() - started:.0f} s")
