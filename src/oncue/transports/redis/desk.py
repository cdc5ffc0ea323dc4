"""Gathers what coroutines ask of one connection, makes turns of it, and keeps the subscriptions that live on it."""

from __future__ import annotations

import asyncio
import secrets
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from oncue.core.errors import ConnectionLostError, TransportError, again
from oncue.transports.redis.address import Address
from oncue.transports.redis.faults import fault
from oncue.transports.redis.link import Command, Link
from oncue.transports.redis.scripts import RESTORE, Script
from oncue.transports.redis.subscription import RedisSubscription
from oncue.transports.redis.turn import Claim, Delivery, Kind, Settle, Turn

_WINDOW = 2
"""How many turns may be under way: one is worked on by the server while the next one is gathered here."""
_MOST, _LARGEST = 2000, 4 * 1024 * 1024
"""Messages and bytes that go into one turn, about: the server does nothing else meanwhile."""
_CLAIMED = 250
"""Messages that are asked for in one turn, about, of one queue after the other: so much of each that what they have in common
costs little, and no more than is worked on soon, because what waits here takes up room and the processor's caches."""


class Desk:
    """One for each transport. `link.run` has to be running for anything to happen."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.prefix = f"{{{address.tag}}}:"
        self.link = Link(address, self)
        self.loop = asyncio.get_running_loop()
        self._name = secrets.token_hex(6)
        self._count = 0
        self._deliveries: deque[Delivery] = deque()
        self._settles: deque[Settle] = deque()
        self._hungry: dict[RedisSubscription, None] = {}
        self._leaving: list[RedisSubscription] = []
        self._commands: list[Command] = []
        self._joins: list[Command] = []
        self._waits: list[Command] = []
        self._under_way = 0
        self._claiming = False
        self._answers_due = 0
        self._idle: Future[None] | None = None
        self._subscriptions: dict[bytes, set[RedisSubscription]] = {}
        self._doubtful: dict[str, list[str]] = {}

    # What may be asked

    def send(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)
        self.link.wake()

    def settle(self, settle: Settle) -> None:
        self._settles.append(settle)
        self.link.wake()

    def want(self, subscription: RedisSubscription) -> None:
        """The subscription has room."""
        self._hungry[subscription] = None
        self.link.wake()

    async def call(self, script: Script, queue: str, *arguments: bytes | str | int, index: bool = False) -> Any:
        """Run one of the smaller scripts on a queue, with the list of all queues where it needs that."""
        keys = [self.prefix + queue, *([self.index] if index else [])]
        return await self.ask(b"EVALSHA", script.digest.encode(), len(keys), *keys, *arguments)

    async def ask(self, *args: bytes | str | int) -> Any:
        """Any command by itself."""
        future: Future[Any] = self.loop.create_future()
        self._commands.append(Command(args, self._tell(future)))
        self._answers_due += 1
        self.link.wake()
        return await future

    async def finish(self) -> None:
        """Return when nothing that was asked is without an answer."""
        while self._deliveries or self._settles or self._leaving or self._under_way or self._answers_due:
            if self._idle is None or self._idle.done():
                self._idle = self.loop.create_future()
            await self._idle

    @property
    def index(self) -> str:
        """The key of the list of all queues."""
        return f"{{{self.address.tag}}}"

    def new_name(self) -> str:
        """For tokens and subscriptions: no two are the same, in any process."""
        self._count += 1
        return f"{self._name}{self._count:x}"

    def join(self, subscription: RedisSubscription) -> None:
        """Let the subscription hear what happens to its queue, from before its first claim on."""
        channel = subscription.channel
        others = self._subscriptions.setdefault(channel, set())
        if not others:
            self._joins.append(Command((b"SUBSCRIBE", channel), self._heard))
        others.add(subscription)

    def leave(self, subscription: RedisSubscription) -> None:
        """Forget it."""
        channel = subscription.channel
        others = self._subscriptions.get(channel, set())
        if subscription not in others:
            return
        others.discard(subscription)
        if not others:
            del self._subscriptions[channel]
            self._joins.append(Command((b"UNSUBSCRIBE", channel), self._heard))
        self._hungry.pop(subscription, None)
        self.pass_on(subscription)

    def pass_on(self, subscription: RedisSubscription) -> None:
        """It does not wait any more; if it was told of a message, somebody else is to be told."""
        self._leaving.append(subscription)
        self.link.wake()

    # What the link asks

    def opening(self) -> Iterable[Command]:
        self._joins.clear()
        waits, self._waits = self._waits, []
        for wait in waits:  # it would be answered for what this connection has written, which is nothing
            wait.done(ConnectionLostError(f"{self.address.shown}: the connection broke before replicas had it"))
        for channel in self._subscriptions:  # one command for each, because each gets an answer of its own
            yield Command((b"SUBSCRIBE", channel), self._heard)
        for queue, tokens in self._doubtful.items():
            yield Command((b"EVALSHA", RESTORE.digest.encode(), 1, self.prefix + queue, *tokens), self._heard)
        self._doubtful = {}

    def compose(self) -> Iterable[Command]:
        commands = [*self._joins, *self._waits, *self._commands]
        self._joins.clear()
        self._waits.clear()
        self._commands.clear()
        while self._under_way < _WINDOW:
            turn = self._next_turn()
            if turn is None:
                break
            self._under_way += 1
            commands.append(self._command(turn))
        return commands

    def pushed(self, channel: bytes, data: bytes) -> None:
        winners, _, due = data.decode().partition("|")
        names = winners.split(",")
        for subscription in self._subscriptions.get(channel, ()):
            subscription.rung(subscription.id in names or winners == "*", int(due) / 1e6 if due else None)

    def lost(self, error: TransportError) -> None:
        self._tell_subscriptions(error)

    def unreachable(self, error: TransportError) -> None:
        for delivery in self._deliveries:
            if not delivery.future.done():
                delivery.future.set_exception(again(error))
        self._deliveries.clear()
        settles, self._settles = self._settles, deque()
        for settle in settles:
            settle.lease.settled(settle, again(error))
        commands = [*self._waits, *self._commands]
        self._waits, self._commands = [], []
        for command in commands:
            command.done(error)
        self._leaving.clear()
        self._hungry.clear()
        self._tell_subscriptions(error)
        self._look_idle()

    # Turns

    def _next_turn(self) -> Turn | None:
        turn = Turn(self.prefix, self.address.shown)
        self._add_deliveries(turn)
        gone: dict[RedisSubscription, int] = {}
        while self._settles and len(turn.settles) < _MOST:
            settle = self._settles.popleft()
            turn.settles.append(settle)
            if settle.kind != Kind.EXTEND:
                subscription = settle.lease.subscription
                gone[subscription] = gone.get(subscription, 0) + 1
                self._hungry[subscription] = None
        if not self._claiming:  # only one at a time, because of how much a server keeps for one connection
            asked = 0
            while self._hungry and asked < _CLAIMED:
                subscription = next(iter(self._hungry))  # whoever has waited longest
                del self._hungry[subscription]
                claim = subscription.claim(gone.get(subscription, 0), self.new_name)
                if claim is not None:
                    turn.claims.append(claim)
                    asked += min(claim.most, 2 * subscription.found + 1)
            self._claiming = bool(turn.claims)
        for subscription in self._leaving:
            turn.claims.append(Claim(subscription, 0, 0, False, ""))
        self._leaving.clear()
        return turn if turn.deliveries or turn.settles or turn.claims else None

    def _add_deliveries(self, turn: Turn) -> None:
        count = size = 0
        while self._deliveries and count < _MOST and size < _LARGEST:
            delivery = self._deliveries.popleft()
            if delivery.future.cancelled():
                continue
            turn.deliveries.append(delivery)
            count += delivery.count
            size += delivery.size

    def _ended(self, turn: Turn) -> Callable[..., None]:
        claims = [claim for claim in turn.claims if claim.most]
        over = False

        def ended(answer: Any, problem: TransportError | None = None) -> None:
            nonlocal over
            if over:
                return
            over = True
            self._under_way -= 1
            if claims:
                self._claiming = False
            if isinstance(answer, Exception):
                if isinstance(answer, TransportError):  # else it is an answer, and nothing is in doubt
                    for claim in claims:
                        self._doubtful.setdefault(claim.subscription.name, []).append(claim.token)
                turn.fail(answer)
            else:
                try:
                    self._deliveries.extendleft(reversed(turn.apply(answer, problem)))
                except Exception as error:  # a fault of ours must leave nobody waiting
                    turn.fail(error)
                    raise
            self.link.wake()
            self._look_idle()

        return ended

    def _command(self, turn: Turn) -> Command:
        """The turn, which is over where that is asked for only when replicas have what it changed."""
        replicas = self.address.replicas
        ended = self._ended(turn)
        if not replicas or not (turn.deliveries or turn.settles):
            return Command(turn.args(), ended)

        def confirmed(answer: Any, count: Any) -> None:
            shown = self.address.shown
            if isinstance(count, Exception):
                ended(answer, fault(count, shown))
            elif count < replicas:
                text = f"{shown}: only {count} of {replicas} replicas have what was stored"
                ended(answer, ConnectionLostError(text))
            else:
                ended(answer)

        def answered(answer: Any) -> None:
            if isinstance(answer, Exception):
                ended(answer)
                return
            wait = round(500 * self.address.timeout)
            self._waits.append(Command((b"WAIT", replicas, wait), lambda count: confirmed(answer, count)))
            self.link.wake()

        return Command(turn.args(), answered)

    def _tell(self, future: Future[Any]) -> Callable[[Any], None]:
        def tell(answer: Any) -> None:
            self._answers_due -= 1
            if not future.done():
                if isinstance(answer, Exception):
                    future.set_exception(again(fault(answer, self.address.shown)))
                else:
                    future.set_result(answer)
            self._look_idle()

        return tell

    def _heard(self, answer: Any) -> None:
        if isinstance(answer, Exception) and not isinstance(answer, TransportError):
            self._tell_subscriptions(fault(answer, self.address.shown))

    def _look_idle(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _tell_subscriptions(self, error: TransportError) -> None:
        for subscriptions in list(self._subscriptions.values()):
            for subscription in list(subscriptions):
                subscription.disconnected(error)
