"""Sending from inside a handler.

What a handler sends through its context goes out in the same transaction that finishes its message: all of it, or, when the
attempt fails, none of it. So an order is paid once and packed once, though the handler runs twice.
"""

import asyncio

from oncue import App, Context, Retry

app = App("sqlite:///jobs.db")


@app.actor(retry=Retry(base=0.1))
async def order(item: str, context: Context) -> str:
    context.send("pack", item)  # not awaited: it goes out when this function has returned
    print(f"ordering {item}, attempt {context.attempt} of message {context.id}")
    if context.attempt == 1:
        raise ConnectionError("the shop did not answer")
    context.send("mail", f"Your {item} is on its way.", delay=0.5)
    return item


@app.actor
async def pack(item: str) -> None:
    print(f"packing {item}")


@app.actor
async def mail(text: str) -> None:
    print(f"mailing: {text}")


async def main() -> None:
    async with app.working():
        await order.call("lamp", timeout=10, id="order-1")
        await asyncio.sleep(1)  # the mail goes out half a second after the order


asyncio.run(main())
