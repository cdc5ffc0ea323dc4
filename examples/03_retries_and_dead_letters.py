"""What happens when a handler raises.

The message is tried again, after a wait that grows. When its attempts are used up, or when trying again makes no sense, it
becomes a dead letter: kept whole, with the reason, until somebody puts it back or throws it away.
"""

import asyncio
import os
import subprocess

from oncue import App, Context, Retry

os.environ["ONCUE_URL"] = "sqlite:///jobs.db"  # for this app, and for the command line below
app = App()

unlocked: set[str] = set()


@app.actor(retry=Retry(max_attempts=3, base=0.1))
async def fetch(page: str, context: Context) -> str:
    print(f"fetch {page}: attempt {context.attempt}")
    if context.attempt < 3:
        raise ConnectionError("the line was busy")
    return f"the text of {page}"


@app.actor(retry=Retry(never=[PermissionError]))  # an error that no second attempt mends
async def enter(room: str) -> str:
    if room not in unlocked:
        raise PermissionError(f"the door to {room} is locked")
    return f"inside {room}"


def oncue(*words: str) -> None:
    """Run a command, as you would in a shell."""
    print(f"$ oncue {' '.join(words)}", flush=True)
    subprocess.run(["oncue", *words], check=True, stderr=subprocess.STDOUT)


async def main() -> None:
    async with app.working():
        print(await fetch.call("news", timeout=10))
        try:
            await enter.call("the cellar", timeout=10, id="cellar-1")
        except Exception as error:
            print(f"{type(error).__name__}: {error}")

    oncue("dead", "list", "enter")
    print("Somebody unlocks the doors, and the dead letter goes back to its queue.")
    unlocked.update(["the cellar", "the attic"])
    oncue("dead", "redrive", "enter")
    oncue("queue", "list")

    async with app.working():
        print(await enter.call("the attic", timeout=10))  # the letter was first in the queue, so it is done by now
    oncue("queue", "list")


asyncio.run(main())
