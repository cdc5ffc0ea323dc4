"""Messages a second through AMQP clients: `python -m bench.amqp [--messages N] [--rounds N] [--peers PYTHON]`, alone on the machine.

Each contender is a process of its own under uvloop: it publishes small persistent messages in groups, each of which waits until all
of it is confirmed, then takes them again and acknowledges each for itself or many together. `--peers` names a Python that has
aiormq and uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
OURS, PEERS = ("ours",), ("aiormq",)
GROUP, PREFETCH, TOGETHER = 500, 1000, 100
BODY = b"x" * 100
HEADERS = {"attempt": 1, "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

Measured = dict[str, tuple[float, float]]
Publish = Callable[[str, int], Awaitable[None]]
"""A group to a queue, the first of which has this number; returns when all is confirmed."""
Take = Callable[[str, int, int], Awaitable[None]]
"""So many from a queue, so many acknowledged at a time."""


class Meter:
    """Seconds of the clock and of the processor."""

    def __init__(self) -> None:
        self.parts: Measured = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        began, used = time.perf_counter(), time.process_time()
        yield
        self.parts[part] = (time.perf_counter() - began, time.process_time() - used)


async def ours(url: str, run: Callable[[Publish, Take], Awaitable[None]]) -> None:
    from pamqp import commands

    from oncue.transports.rabbitmq.amqp import Delivery, Endpoint, connect, decode_properties, encode_properties

    parts = urlsplit(url)
    user, password, vhost = (unquote(part or "") for part in (parts.username, parts.password, parts.path[1:]))
    connection = await connect(Endpoint(parts.hostname or "", parts.port or 5672, user, password, vhost or "/"))
    channel = await connection.channel()
    await channel.confirm()
    for kind in ("classic", "quorum"):
        await channel.call(commands.Queue.Declare(queue=kind, durable=True, arguments={"x-queue-type": kind}))
    unconfirmed, all_confirmed, first = set[int](), asyncio.Event(), 1

    def confirmed(tag: int, multiple: bool, acknowledged: bool) -> None:
        nonlocal first
        assert acknowledged
        unconfirmed.difference_update(range(first, tag + 1) if multiple else (tag,))
        first = tag + 1 if multiple else first
        if not unconfirmed:
            all_confirmed.set()

    channel.on_confirm = confirmed

    async def publish(queue: str, first: int) -> None:
        all_confirmed.clear()
        for number in range(first, first + GROUP):
            properties = encode_properties(message_id=str(number), headers=HEADERS, delivery_mode=2)
            unconfirmed.add(channel.publish("", queue, properties, BODY))
        await all_confirmed.wait()

    async def take(queue: str, messages: int, together: int) -> None:
        done, taken = asyncio.Event(), set[str | None]()

        def deliver(delivery: Delivery) -> None:
            taken.add(decode_properties(delivery.properties).message_id)
            if len(taken) % together == 0:
                channel.ack(delivery.tag, multiple=together > 1)
            if len(taken) == messages:
                done.set()

        tag = await channel.consume(queue, deliver, print, prefetch=PREFETCH)
        await done.wait()
        await channel.cancel(tag)

    await run(publish, take)
    await connection.close(5)


async def aiormq(url: str, run: Callable[[Publish, Take], Awaitable[None]]) -> None:
    import aiormq

    connection = await aiormq.connect(url)
    channel = await connection.channel()
    for kind in ("classic", "quorum"):
        await channel.queue_declare(kind, durable=True, arguments={"x-queue-type": kind})
    await channel.basic_qos(prefetch_count=PREFETCH)

    def properties(number: int) -> aiormq.spec.Basic.Properties:
        return aiormq.spec.Basic.Properties(message_id=str(number), headers=HEADERS, delivery_mode=2)

    async def publish(queue: str, first: int) -> None:
        numbers = range(first, first + GROUP)
        await asyncio.gather(
            *(
                channel.basic_publish(BODY, routing_key=queue, properties=properties(number), mandatory=True)
                for number in numbers
            )
        )

    async def take(queue: str, messages: int, together: int) -> None:
        done, taken = asyncio.Event(), set[str | None]()

        async def deliver(message: aiormq.abc.DeliveredMessage) -> None:
            taken.add(message.header.properties.message_id)
            if len(taken) % together == 0:
                await channel.basic_ack(message.delivery.delivery_tag, multiple=together > 1)
            if len(taken) == messages:
                done.set()

        consumer = await channel.basic_consume(queue, deliver)
        await done.wait()
        await channel.basic_cancel(consumer.consumer_tag)

    await run(publish, take)
    await connection.close()


CONTENDERS = {"ours": ours, "aiormq": aiormq}


def contend(name: str, url: str, messages: int) -> None:
    """One contender's part, in this process; prints what it measured."""
    import uvloop

    meter = Meter()

    async def run(publish: Publish, take: Take) -> None:
        for kind in ("classic", "quorum"):
            for together in (1, TOGETHER):
                with meter.measure(f"{kind}: publish") if together == 1 else nullcontext():
                    for first in range(0, messages, GROUP):
                        await publish(kind, first)
                with meter.measure(f"{kind}: take, acknowledge {together}"):
                    await take(kind, messages, together)

    uvloop.run(CONTENDERS[name](url, run))
    print(json.dumps(meter.parts))


def main() -> int:
    from bench.brokers.servers import rabbitmq

    parser = argparse.ArgumentParser(prog="python -m bench.amqp", description=__doc__)
    parser.add_argument(
        "--messages", type=int, default=20_000, help=f"in each part, a multiple of {GROUP} (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)")
    parser.add_argument("--peers", help="a Python that has aiormq and uvloop installed")
    parser.add_argument("--contend", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        contend(*options.contend, options.messages)
        return 0
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with rabbitmq() as places:
        for _ in range(options.rounds):
            for name in (*OURS, *(PEERS if options.peers else ())):
                python = options.peers if name in PEERS else sys.executable
                with places() as place:
                    command = [
                        python,
                        "-m",
                        "bench.amqp",
                        "--messages",
                        str(options.messages),
                        "--contend",
                        name,
                        place.url,
                    ]
                    said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
                for part, measured in json.loads(said.splitlines()[-1]).items():
                    found.setdefault(part, {}).setdefault(name, []).append(measured)
    print(f"{'':<32} {'client':<8} {'messages/s':>11}  µs of the client's processor for one")
    for part, contenders in sorted(found.items()):
        for name, measured in contenders.items():
            rate = options.messages / statistics.median(seconds for seconds, _ in measured)
            used = statistics.median(used for _, used in measured) * 1_000_000 / options.messages
            print(f"{part:<32} {name:<8} {rate:>11,.0f}  {used:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
