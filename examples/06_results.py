"""Results: wait for them, or ask later.

`call` sends and waits. When nobody wants to wait, a result store keeps what comes out at the end of each route, under the id
of the message, for a week or as long as you say.
"""

import asyncio
import os
import subprocess

from oncue import App, CallTimeoutError, Retry

os.environ["ONCUE_URL"] = "sqlite:///jobs.db"
os.environ["ONCUE_RESULTS"] = "sqlite:///results.db"  # or `results:` in oncue.yaml
app = App()


@app.actor
async def add(numbers: list[int]) -> int:
    return sum(numbers)


@app.actor(retry=Retry(max_attempts=1))
async def divide(numbers: list[int]) -> float:
    return numbers[0] / numbers[1]


async def main() -> None:
    async with app:
        try:
            await add.call([1, 2], timeout=0.2)
        except CallTimeoutError:
            print("Nobody works yet, so nobody answered in time. The message is still there.")

    async with app.working():
        print("3 + 4 =", await add.call([3, 4], timeout=10))

        message_id = await add.send([20, 22], id="the-answer")
        await divide.send([1, 0], id="no-answer", headers={"asked-by": "Ada"})
        print("sent", message_id)

        await asyncio.sleep(1)  # other work; nobody waits for these two


def show(message_id: str) -> None:
    """Run a command, as you would in a shell."""
    print(f"$ oncue result show {message_id}", flush=True)
    subprocess.run(["oncue", "result", "show", message_id], check=True)


asyncio.run(main())
show("the-answer")
show("no-answer")
