"""Reports to the gateways that manifests name: the same, whether sidecars are processes or not."""

from __future__ import annotations

import signal

import pytest
from local.upping import Up, call, manifest, send, write
from sidecar.gateways import gateway
from sidecar.pods import free_port, until

from oncue.core.errors import ActorFailedError


def naming(url: str) -> str:
    return f"{{name: ASYA_GATEWAY_URL, value: '{url}'}}"


def told_of(server: object) -> list[tuple[str, int]]:
    """The status and the place in the route of each report, as they came."""
    return [(body["status"], body.get("current_actor_idx", -1)) for _, body in server.taken]


WAY = [(status, index) for index in (0, 1) for status in ("received", "processing", "completed")]


@pytest.mark.parametrize("how", [(), ("--isolate",)], ids=["in one process", "isolated"])
def test_each_step_of_a_route_and_its_end_are_told(how: tuple[str, ...]) -> None:
    with gateway() as told:
        write(*(manifest(name, "jobs.echo", sidecar=naming(told.url)) for name in ("a", "b")))
        with Up(*how):
            assert call("a", 7, route=["b"]) == 7
            until(lambda: len(told.taken) == 7)
        found = told_of(told)
        assert sorted(found) == sorted([*WAY, ("succeeded", -1)])
        if not how:  # they are told by one gateway's own queue, whose order is that of the envelope
            assert found == [*WAY, ("succeeded", -1)]
        (final,) = [body for path, body in told.taken if path.endswith("/final")]
        assert final["result"] == 7
        assert len({body["id"] for path, body in told.taken if path.endswith("/final")}) == 1


def test_a_failure_is_told_by_the_end() -> None:
    with gateway() as told:
        write(manifest("boom", "jobs.boom", sidecar=naming(told.url)))
        with Up():
            with pytest.raises(ActorFailedError):
                call("boom", "luck")
            until(lambda: any(path.endswith("/final") for path, _ in told.taken))
        assert [status for status, _ in told_of(told)] == ["received", "processing", "failed"]


def test_an_actor_tells_the_gateway_of_its_own_manifest_and_no_other() -> None:
    with gateway() as one, gateway() as other:
        write(
            manifest("a", "jobs.echo", sidecar=naming(one.url)),
            manifest("b", "jobs.echo", sidecar=naming(other.url)),
            manifest("c", "jobs.echo"),
        )
        with Up():
            assert call("a", 7, route=["b", "c"]) == 7
            until(lambda: len(one.taken) == len(other.taken) == 4)
        assert told_of(one) == [*WAY[:3], ("succeeded", -1)]
        assert told_of(other) == [*WAY[3:], ("succeeded", -1)]


def test_a_gateway_that_is_away_costs_no_message_and_no_time_at_the_end() -> None:
    write(manifest("a", "jobs.echo", sidecar=naming(f"http://127.0.0.1:{free_port()}")))
    with Up() as up:
        assert [call("a", number) for number in range(3)] == [0, 1, 2]
        up.said("gateway.lost")
        assert up.end(signal.SIGTERM) == 0
        assert "gateway.unreported" in up.log


def test_what_is_told_last_is_told_before_the_end() -> None:
    with gateway() as told:
        write(manifest("a", "jobs.echo", sidecar=naming(told.url)))
        with Up() as up:
            send("a", *range(50))
            up.becomes("happy-end", lambda each: each.done == 50)
            assert up.end(signal.SIGTERM) == 0
        assert sum(path.endswith("/final") for path, _ in told.taken) == 50
