"""A transport that is away when `oncue up` starts: it says so, waits, and works once it is there, or ends when told to."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers.redis_server import RedisServer, free_port
from local.upping import Up, call, manifest, oncue, write


class Waiting(Up):
    """`oncue up` that cannot start anything yet."""

    first = "worker.waiting"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that is not running yet."""
    found = RedisServer(tmp_path / "redis")
    yield found
    found.kill()


@pytest.mark.parametrize("how", [(), ("--isolate",)], ids=["in one process", "isolated"])
def test_it_says_so_once_and_works_when_the_transport_comes(server: RedisServer, how: tuple[str, ...]) -> None:
    write(manifest("echo", "jobs.echo"))
    with Waiting(*how, ONCUE_URL=server.url) as up:
        (told,) = up.records()
        assert (told["level"], told["url"]) == ("warning", server.url)
        assert f"127.0.0.1:{server.port}" in told["error"]
        up.becomes("echo", lambda each: (each.state, each.error) == ("starting", told["error"]))
        assert [*up.reports()] == ["echo", "happy-end", "error-end"]
        server.start()
        up.said("up.started")
        assert call("echo", 7, url=server.url) == 7
        assert up.log.count("worker.waiting") == 1
        assert up.reports()["happy-end"].state == "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_it_ends_at_once_when_told_to_while_it_waits(server: RedisServer, number: signal.Signals) -> None:
    write(manifest("echo", "jobs.echo"))
    with Waiting(ONCUE_URL=server.url) as up:
        began = time.monotonic()
        assert up.end(number) == 0
        assert time.monotonic() - began < 4.0
        assert [each["message"] for each in up.records()] == ["worker.waiting", "up.stopping", "up.stopped"]
    assert oncue("ps").stderr == "Nothing runs in this folder.\n"


def test_it_ends_at_once_while_it_is_connecting_to_somebody_who_does_not_answer() -> None:
    write(manifest("echo", "jobs.echo"))
    port = free_port()
    with Waiting(ONCUE_URL=f"redis://127.0.0.1:{port}/0") as up, socket.create_server(("127.0.0.1", port)) as silent:
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            began = time.monotonic()
            assert up.end(signal.SIGINT) == 0
            assert time.monotonic() - began < 4.0
