"""The sidecar as a process: how it starts, waits, answers for its health, and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from commandline import WORDS, process
from programs import environment
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sidecar.pods import ASYAS, OURS, Pod, Queues, envelope, pod, running, until

from oncue.events import Events
from oncue.health import Health
from oncue.main_loop import SAME
from oncue.sidecar.actor import ActorSettings, SidecarActor
from oncue.sidecar.link import Link
from oncue.stop import Stop
from oncue.transports import open_transport

RUNTIMES = pytest.mark.parametrize("runtime", [OURS, ASYAS], ids=["ours", "asyas"])


def gate_in(folder: Path) -> str:
    os.mkfifo(folder / "gate")
    return str(folder / "gate")


def open_gate(gate: str) -> None:
    """Let through who waits at the gate; waits for somebody to come."""
    Path(gate).write_text("open", encoding="utf-8")


def begun(work: Pod) -> None:
    """Wait until a message is in work."""
    until(lambda: work.metrics()["asya_actor_active_messages"] == 1)


@RUNTIMES
def test_it_waits_for_its_runtime_and_is_not_ready_before(url: str, queues: Queues, runtime: Path) -> None:
    with pod(url, runtime=runtime) as work:
        queues.send("a", envelope("m", {"n": 1}))
        sidecar = work.start_sidecar(ready=False)
        work.address = sidecar.log("sidecar.started")["metrics"]
        status, reason = work.get("/readyz")
        assert status == 503
        assert f"the runtime at {work.folder}/asya-runtime.sock: not there yet" in reason
        assert work.get("/livez") == (200, "ok\n")
        assert work.get("/health") == (200, "OK")
        assert queues.depth("a") == 1
        work.start_runtime()
        sidecar.log("runtime.back", concurrency=1)
        assert queues.take("happy-end", 1)[0]["id"] == "m"
        until(lambda: work.get("/readyz") == (200, "ok\n"))
        assert sidecar.stop() == 0


def test_a_handler_that_cannot_be_loaded_is_told_by_name_and_ends_it(url: str) -> None:
    with pod(url, handler="jobs.nothing_of_this_name") as work:
        work.start_runtime()
        sidecar = work.start_sidecar(ready=False)
        assert sidecar.end() == 1
        (told,) = [line for line in sidecar.errors if line.startswith("oncue: ")]
        assert "the runtime could not load its handler" in told
        assert "nothing_of_this_name" in told


def test_a_runtime_that_does_not_come_in_time_ends_it(url: str) -> None:
    with pod(url, ASYA_RUNTIME_READY_TIMEOUT="200ms") as work:
        sidecar = work.start_sidecar(ready=False)
        assert sidecar.end() == 1
        assert "the runtime is not ready after 200ms" in sidecar.errors[-1]


@RUNTIMES
def test_a_runtime_that_goes_and_comes_back_costs_no_message(url: str, queues: Queues, runtime: Path) -> None:
    with running(url, runtime=runtime) as work:
        until(lambda: work.get("/readyz")[0] == 200)
        work.kill_runtime()
        if runtime is OURS:  # of another's only a call shows that nobody listens
            work.sidecar.log("runtime.lost")
            assert work.get("/readyz")[0] == 503
        queues.send("a", *(envelope(f"m{number}", {"n": 1}) for number in range(20)))
        until(lambda: work.get("/readyz")[0] == 503)
        work.start_runtime()
        work.sidecar.log("runtime.back")
        assert {each["id"] for each in queues.take("happy-end", 20)} == {f"m{number}" for number in range(20)}
        assert queues.depth("a-dlq") == 0
        assert work.get("/readyz") == (200, "ok\n")


def most_at_once(work: Pod, queues: Queues, count: int) -> float:
    """The most messages that were in work at the same time, when `count` of them come that each take a while."""
    seen = [0.0]

    def done() -> bool:
        seen.append(work.metrics()["asya_actor_active_messages"])
        return queues.depth("a") == 0

    queues.send("a", *(envelope(f"m{number}", {"do": "pause", "seconds": 0.5}) for number in range(count)))
    until(done)
    return max(seen)


def test_a_runtime_that_comes_back_with_another_concurrency_is_given_as_many_messages(url: str, queues: Queues) -> None:
    with running(url, ONCUE_CONCURRENCY="2") as work:
        for concurrency in (5, 1):
            work.kill_runtime()
            work.start_runtime(ONCUE_CONCURRENCY=str(concurrency))
            work.sidecar.log("runtime.back", concurrency=concurrency)
            assert most_at_once(work, queues, concurrency + 2) == concurrency


def test_a_runtime_that_gives_no_sign_of_life_is_given_up(url: str, queues: Queues, tmp_path: Path) -> None:
    with running(url) as work:
        queues.send("a", envelope("m", {"do": "wait", "gate": gate_in(tmp_path)}))
        begun(work)
        work.runtime.send_signal(signal.SIGSTOP)
        try:
            work.sidecar.log("runtime.lost", error="it gives no sign of life")
            assert work.get("/readyz")[0] == 503
            assert work.sidecar.log("message.retried")["id"] == "m"
        finally:
            work.runtime.send_signal(signal.SIGCONT)
        work.sidecar.log("runtime.back")


def test_what_is_in_work_is_finished_when_it_is_told_to_stop(url: str, queues: Queues, tmp_path: Path) -> None:
    gate = gate_in(tmp_path)
    with running(url) as work:
        queues.send("a", envelope("m", {"do": "wait", "gate": gate}), envelope("n", {"n": 1}))
        begun(work)
        work.sidecar.signal(signal.SIGTERM)
        work.sidecar.log("pump.stopping", in_flight=1)
        open_gate(gate)
        assert work.sidecar.end() == 0
        assert queues.take("happy-end", 1)[0]["payload"] == "waited"
        assert queues.depth("a") == 1


def test_what_does_not_finish_within_the_grace_period_is_given_back(url: str, queues: Queues, tmp_path: Path) -> None:
    with running(url, ONCUE_GRACE="300ms") as work:
        queues.send("a", envelope("m", {"do": "wait", "gate": gate_in(tmp_path)}))
        begun(work)
        assert work.sidecar.stop() == 0
        assert [message.id for message in queues.peek("a")] == ["m"]
        assert [each["released"] for each in work.sidecar.logs if each["message"] == "pump.stopped"] == [1]


def test_a_second_signal_ends_it_at_once(url: str, queues: Queues, tmp_path: Path) -> None:
    with running(url) as work:
        queues.send("a", envelope("m", {"do": "wait", "gate": gate_in(tmp_path)}))
        begun(work)
        work.sidecar.signal(signal.SIGTERM)
        work.sidecar.log("pump.stopping")
        time.sleep(1.2 * SAME)  # a signal right after another counts as the same
        work.sidecar.signal(signal.SIGTERM)
        assert work.sidecar.end() == 128 + signal.SIGTERM
        assert [message.id for message in queues.peek("a")] == ["m"]


def test_its_own_metrics_and_asyas_are_there_with_asyas_names_and_buckets(url: str, queues: Queues) -> None:
    custom = '[{"name": "my-count", "type": "Counter", "help": "mine"}, {"name": "9lives", "type": "gauge"}]'
    with running(url, ASYA_CUSTOM_METRICS=custom, ASYA_METRICS_NAMESPACE="team") as work:
        queues.make("b")
        queues.send("a", envelope("m", {"n": 1}), envelope("n", {"n": 1}, ["a", "b"]), envelope("e", {"do": "nothing"}))
        queues.take("b", 1)
        queues.take("happy-end", 2)
        found = work.metrics()
    expected = {
        'team_messages_received_total{queue="a",transport="sqlite"}': 3,
        'team_messages_processed_total{queue="a",status="success"}': 2,
        'team_messages_processed_total{queue="a",status="empty_response"}': 1,
        'team_messages_sent_total{destination_queue="asya-b",message_type="routing"}': 1,
        'team_messages_sent_total{destination_queue="asya-happy-end",message_type="happy_end"}': 1,
        'team_messages_sent_total{destination_queue="happy-end",message_type="happy_end"}': 1,
        "team_active_messages": 0,
        'team_processing_duration_seconds_count{queue="a"}': 3,
        'team_processing_duration_seconds_bucket{le="120",queue="a"}': 3,
        'team_runtime_execution_duration_seconds_bucket{le="+Inf",queue="a"}': 3,
        'team_queue_receive_duration_seconds_count{queue="a",transport="sqlite"}': 3,
        'team_queue_send_duration_seconds_count{destination_queue="asya-b",transport="sqlite"}': 1,
        'team_envelope_size_bytes_bucket{direction="received",le="1e+09"}': 3,
        'team_envelope_size_bytes_count{direction="sent"}': 3,
        'oncue_messages_total{outcome="done",queue="asya-a"}': 3,
        'oncue_queue_messages{queue="asya-a",state="ready"}': 0,
        "my_count_total": 0,
        "_9lives": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    seconds = [name for name in found if name.startswith("team_processing_duration_seconds_bucket")]
    bounds = [name.partition('le="')[2].partition('"')[0] for name in seconds]
    assert bounds == ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"]  # fmt: skip


def test_paths_that_are_not_there_are_told_and_broken_questions_hurt_nobody(url: str) -> None:
    with running(url) as work:
        assert work.get("/nothing") == (404, "there are /metrics, /health, /livez, /readyz\n")
        port = int(work.address.rpartition(":")[2])
        for question in (b"\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n", b"x" * 100_000, b"GET / HTTP/1.1\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as asking:
                asking.sendall(question)
        assert work.get("/livez") == (200, "ok\n")
        assert work.sidecar.stop() == 0
        assert not work.sidecar.errors


def test_metrics_can_be_switched_off(url: str, queues: Queues) -> None:
    with pod(url, ASYA_METRICS_ENABLED="false") as work:
        work.start_runtime()
        assert work.start_sidecar()
        assert work.address == ""
        queues.send("a", envelope("m", {"n": 1}))
        queues.take("happy-end", 1)


def test_its_metrics_are_open_metrics_for_who_asks_for_them(url: str, queues: Queues) -> None:
    custom = (
        '[{"name": "shop_sales", "type": "counter"}, {"name": "shop_waits", "type": "histogram", "buckets": [1, 2]}]'
    )
    with running(url, ASYA_CUSTOM_METRICS=custom) as work:
        queues.send("a", envelope("m", {"n": 1}), envelope("n", {"do": "fail"}))
        queues.take("happy-end", 1)
        until(lambda: queues.depth("a-dlq") == 1)
        text = work.get("/metrics", accept="text/html,application/openmetrics-text;version=1.0.0")[1]
        found = {family.name: family for family in text_string_to_metric_families(text)}
        assert {"asya_actor_messages_received", "asya_actor_processing_duration_seconds", "shop_sales"} <= set(found)
        assert [each.value for each in found["asya_actor_messages_received"].samples] == [2.0]
        assert text.endswith("# EOF\n")
        assert "# EOF" not in work.get("/metrics", accept="application/openmetrics-text;q=0")[1]


def test_a_transport_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with pod(f"sqlite:///{tmp_path}/folder/jobs.db") as work:
        (tmp_path / "folder").symlink_to(tmp_path / "later")  # a volume that is not mounted yet
        work.start_runtime()
        sidecar = work.start_sidecar(ready=False)
        sidecar.log("transport.waiting")
        (tmp_path / "later").mkdir()
        sidecar.log("pump.started")
        assert sidecar.stop() == 0


def test_it_ends_at_once_while_it_is_connecting_to_somebody_who_does_not_answer() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pod(f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as work:
        sidecar = work.start_sidecar(ready=False)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            began = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - began < 4.0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "ASYA_ACTOR_NAME is required"),
        ({"ASYA_ACTOR_NAME": "a", "ONCUE_URL": "gopher://h"}, "transport gopher: is an unknown scheme"),
        ({"ASYA_ACTOR_NAME": "a", "ONCUE_SOCKET_DIR": "/" + "x" * 120}, "no socket's may have more than 107"),
        ({"ASYA_ACTOR_NAME": "a", "ONCUE_BUILT_IN": "true"}, "only 'happy-end' and 'error-end' are"),
        (
            {
                "ASYA_ACTOR_NAME": "a",
                "ASYA_CUSTOM_METRICS": '[{"name": "asya_actor_active_messages", "type": "gauge"}]',
            },
            "'asya_actor_active_messages' is one of the sidecar's own",
        ),
        ({"ASYA_ACTOR_NAME": "a-dlq"}, "holds the dead letters of another"),
        ({"ASYA_ACTOR_NAME": "a", "ASYA_METRICS_ADDR": "256.0.0.1:80"}, "cannot be served on 256.0.0.1:80"),
    ],
)
def test_what_cannot_be_worked_with_is_said_in_one_line(settings: dict[str, str], text: str, tmp_path: Path) -> None:
    done = process("sidecar", env=environment(**settings), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert text in line


def test_a_folder_in_the_place_of_the_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "asya-runtime.sock").mkdir()
    done = process("sidecar", env=environment(ASYA_ACTOR_NAME="a", ASYA_SOCKET_DIR=str(tmp_path)), cwd=tmp_path)
    assert (done.returncode, b"the socket's path is a folder" in done.stderr) == (2, True)


def test_other_commands_work_in_the_sidecars_environment_and_the_runtimes(url: str) -> None:
    surroundings = environment(
        ONCUE_URL=url,
        ONCUE_ACTOR_NAME="a",
        ONCUE_RUNTIME_TIMEOUT="5m",
        ONCUE_HANDLER="jobs.work",
        ONCUE_SOCKET_CHMOD="0o600",
    )
    done = process("queue", "create", "asya-a", env=surroundings)
    assert done.returncode == 0, done.stderr
    assert WORDS


def test_a_socket_that_cannot_be_there_yet_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    link = Link(tmp_path / "file" / "asya-runtime.sock")

    async def look() -> str:
        keeping = asyncio.create_task(link.keep())
        await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return link.unready()

    assert "not there yet" in asyncio.run(look())


async def test_a_pump_whose_runtimes_link_breaks_says_so_and_ends(tmp_path: Path) -> None:
    class Broken(Link):
        async def keep(self) -> None:
            self.there.set()
            await asyncio.sleep(0.05)
            raise RuntimeError("a fault of ours")

    transport = await open_transport("memory:")
    settings = ActorSettings(name="a", socket=tmp_path / "asya-runtime.sock")
    actor = SidecarActor(settings, transport, events=Events(), health=Health())
    actor.workload.link = Broken(settings.socket)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await asyncio.wait_for(actor.run(Stop()), 10)
    await transport.close()
