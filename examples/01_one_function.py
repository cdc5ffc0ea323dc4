"""One function, one message.

An actor is a plain function with a queue. `send` puts a message into the queue and returns when it is on disk; a worker
takes it out and calls the function with it. Here both are one program; they need not be.
"""

import asyncio

from oncue import App

app = App("sqlite:///jobs.db")  # the file is made at first use, beside this program's working folder


@app.actor
async def greet(name: str) -> None:
    print(f"Hello, {name}!")


async def main() -> None:
    async with app:  # connects, and makes the queue if it is not there yet
        await greet.send("Ada")
        print("Ada's message is on disk; nobody has worked on it yet.")

    async with app.working():  # a worker in the background of this block
        await greet.call("Grace", timeout=10)  # sends, and waits until it is done
        print("Both are done.")

    await greet("Edsger")  # and it is still a function, which can be called without any queue


asyncio.run(main())
