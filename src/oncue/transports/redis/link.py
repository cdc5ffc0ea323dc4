"""The one connection of a transport: opened when it is needed, watched, and opened anew after it broke.

Commands are written as they come and answered in their order; what the server pushes comes in between. Whoever gave a command
gets its answer, or the error that it is answered with, by a plain call.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from hiredis import PushNotification
from redis import exceptions as theirs
from redis.asyncio import Connection, SSLConnection

from oncue.core.errors import AccessDeniedError, ConnectionLostError, TransportError
from oncue.transports.redis.address import Address
from oncue.transports.redis.faults import fault
from oncue.transports.redis.scripts import SCRIPTS

_log = logging.getLogger("oncue.transports.redis")

_LOOK = 1.0
"""Seconds between looks at whether an answer is overdue."""
_SILENCE = 5.0
"""Seconds without a word after which the server is asked whether it is there; shorter than what firewalls forget."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds between attempts to connect, which double."""
_REDIRECTIONS = 5

Result = TypeVar("Result")

_SOURCES = {script.digest.encode(): script.source for script in SCRIPTS}

# Whoever gets one of these has the wrong server, or one that is of no use now.
_FATAL = (
    theirs.ReadOnlyError,
    theirs.AskError,
    theirs.ClusterDownError,
    theirs.MasterDownError,
    theirs.ConnectionError,
)


class Command:
    """One command and who is told of its answer, which may be an exception of the client or of ours."""

    __slots__ = ("args", "done", "sent")

    def __init__(self, args: Sequence[bytes | str | int], done: Callable[[Any], None]) -> None:
        self.args = args
        self.done = done
        self.sent = math.inf


class Owner(Protocol):
    """Whose connection it is. All of it is called in the event loop and must not raise."""

    def opening(self) -> Iterable[Command]: ...  # the first commands of a new connection
    def compose(self) -> Iterable[Command]: ...  # what is to be sent now
    def pushed(self, channel: bytes, data: bytes) -> None: ...
    def lost(self, error: TransportError) -> None: ...  # the connection broke; its commands were told before
    def unreachable(self, error: TransportError) -> None: ...  # there is none to be had at the moment


class Link:
    """Runs as one task, `run`, which ends when it is cancelled."""

    def __init__(self, address: Address, owner: Owner) -> None:
        self.address = address
        self._owner = owner
        self._wanted = asyncio.Event()
        self._pending: deque[Command] = deque()
        self._again: deque[Command] = deque()
        self._moved: tuple[str, int] | None = None
        self._spoke = 0.0

    def wake(self) -> None:
        """There is something to send."""
        self._wanted.set()

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            await self._wanted.wait()
            try:
                connection = await self._connect()
            except TransportError as error:
                self._wanted.clear()
                self._owner.unreachable(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            try:
                reason = await self._serve(connection)
            finally:
                await _disconnect(connection)
                self._fail(ConnectionLostError(f"{self.address.shown}: the connection was closed"))
            _log.info("the connection was lost: %s", reason)
            self._owner.lost(reason)

    # Connecting

    async def _connect(self) -> Connection:
        """A connection to the server that has the keys and takes writes."""
        moved, self._moved = self._moved, None
        problem: TransportError = ConnectionLostError(f"{self.address.shown}: no server")
        for place in (*([moved] if moved else []), *await self._places()):
            try:
                return await self._in_time(place, self._follow(place))
            except AccessDeniedError:
                raise
            except TransportError as error:
                problem = error
        raise problem

    async def _places(self) -> Sequence[tuple[str, int]]:
        """Where to look, in turn."""
        name = self.address.sentinel
        if name is None:
            return self.address.hosts
        problem: TransportError = ConnectionLostError(f"{self.address.shown}: no sentinel knows {name!r}")
        for place in self.address.hosts:
            try:
                found = await self._in_time(place, self._ask_sentinel(place, name))
            except TransportError as error:
                problem = error
                continue
            if found is not None:
                return [(found[0].decode(), int(found[1]))]
        raise problem

    async def _in_time(self, place: tuple[str, int], asking: Coroutine[Any, Any, Result]) -> Result:
        """Give each host its share of the time, so that one that says nothing does not stand for all."""
        seconds = self.address.timeout / len(self.address.hosts)
        try:
            async with asyncio.timeout(seconds):
                return await asking
        except TimeoutError:
            host, port = place
            shown = self.address.shown
            raise ConnectionLostError(f"{shown}: {host}:{port} did not answer within {seconds:g} s") from None

    async def _ask_sentinel(self, place: tuple[str, int], name: str) -> Any:
        host, port = place
        connection = self._connection(host, port, password=self.address.sentinel_password)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            return await _ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        except (theirs.RedisError, OSError) as error:
            raise fault(error, self.address.shown) from error
        finally:
            await _disconnect(connection)

    async def _follow(self, place: tuple[str, int]) -> Connection:
        """Connect to a server, or to the one that it says has our keys."""
        for _ in range(_REDIRECTIONS):
            host, port = place
            connection = self._connection(
                host, port, db=self.address.database, username=self.address.username, password=self.address.password
            )
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await _ask(connection, "EXISTS", f"{{{self.address.tag}}}")
                if self.address.sentinel is not None and (await _ask(connection, "ROLE"))[0] != b"master":
                    raise ConnectionLostError(f"{self.address.shown}: {host}:{port} is no primary yet")
                return connection
            except theirs.MovedError as moved:
                await _disconnect(connection)
                place = (moved.host or host, moved.port)
            except (theirs.RedisError, OSError, TransportError) as error:
                await _disconnect(connection)
                raise fault(error, self.address.shown) from error
            except BaseException:
                await _disconnect(connection)
                raise
        raise ConnectionLostError(f"{self.address.shown}: sent from one node to the next")

    def _connection(self, host: str, port: int, **options: Any) -> Connection:
        options |= {
            "host": host,
            "port": port,
            "protocol": 3,
            "socket_timeout": None,
            "socket_connect_timeout": self.address.timeout,
            "client_name": "oncue",
        }
        if self.address.tls is None:
            return Connection(**options)
        return SSLConnection(**options, **self.address.tls)

    # Talking

    async def _serve(self, connection: Connection) -> TransportError:
        """Talk until the connection breaks; why."""
        self._again.clear()
        self._again.extend(self._owner.opening())
        self._wanted.set()
        tasks = [asyncio.create_task(part(connection)) for part in (self._read, self._write, self._watch)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failed = done.pop().exception()
        if failed is not None and not isinstance(failed, theirs.RedisError | OSError | TransportError):
            # A fault of ours must leave nobody waiting for an answer.
            _log.error("an answer of the server could not be understood", exc_info=failed)
        error = fault(failed or ConnectionLostError(f"{self.address.shown}: closed"), self.address.shown)
        if not isinstance(error, ConnectionLostError):
            error = ConnectionLostError(str(error))
        self._fail(error)
        return error

    async def _write(self, connection: Connection) -> None:
        time = asyncio.get_running_loop().time
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            commands = [*self._again, *self._owner.compose()]
            self._again.clear()
            if not commands:
                continue
            self._spoke = now = time()
            packed: list[bytes] = []
            for command in commands:
                command.sent = now
                packed += connection.pack_command(*command.args)
            self._pending.extend(commands)
            await connection.send_packed_command(packed, check_health=False)

    async def _read(self, connection: Connection) -> None:
        while True:
            try:
                answer = await connection.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True)
            except theirs.NoScriptError as error:
                self._load(self._pending.popleft(), error)
                continue
            except theirs.RedisError as error:
                if not isinstance(error, theirs.ResponseError) or not self._pending:
                    raise
                self._answer(self._pending.popleft(), error)
                continue
            if not isinstance(answer, PushNotification):
                self._answer(self._pending.popleft(), answer)
            elif answer[0] == b"message":
                self._owner.pushed(answer[1], answer[2])
            elif answer[0] == b"subscribe" or answer[0] == b"unsubscribe":
                self._answer(self._pending.popleft(), answer)

    def _answer(self, command: Command, answer: Any) -> None:
        try:
            command.done(answer)
        except Exception as error:
            command.done(ConnectionLostError(f"{self.address.shown}: an answer that makes no sense: {error}"))
            raise
        if isinstance(answer, theirs.MovedError):
            self._moved = (answer.host, answer.port)
        if isinstance(answer, _FATAL):
            raise answer

    def _load(self, command: Command, error: Exception) -> None:
        """The server does not know a script (any more): give it, and the command once more."""
        source = _SOURCES.get(command.args[1]) if isinstance(command.args[1], bytes) else None
        if source is None:
            command.done(error)
            return

        def loaded(answer: Any) -> None:
            if isinstance(answer, Exception):
                command.done(answer)

        self._again.append(Command((b"SCRIPT", b"LOAD", source), loaded))
        self._again.append(command)
        self._wanted.set()

    async def _watch(self, _: Connection) -> None:
        time = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_LOOK)
            if self._pending and time() - self._pending[0].sent > self.address.timeout:
                raise ConnectionLostError(f"{self.address.shown}: no answer within {self.address.timeout:g} s")
            if not self._pending and time() - self._spoke > _SILENCE:
                self._again.append(Command((b"PING",), _nothing))
                self._wanted.set()

    def _fail(self, error: TransportError) -> None:
        for command in (*self._pending, *self._again):
            command.done(error)
        self._pending.clear()
        self._again.clear()


def _nothing(_: Any) -> None:
    """For answers that say no more than that there is one."""


async def _ask(connection: Connection, *words: str) -> Any:
    await connection.send_command(*words, check_health=False)
    return await connection.read_response()


async def _disconnect(connection: Connection) -> None:
    with suppress(theirs.RedisError, OSError):
        await connection.disconnect(nowait=True)
