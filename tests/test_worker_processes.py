"""`oncue run --processes N`: children that work, are watched and started again, and end with their parent."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from commandline import depth_of, on_terminal, process
from workers import APP, Worker, make_gate, working

from oncue.main_loop import SAME


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONCUE_URL", "sqlite:///jobs.db")
    return tmp_path


def send(actor: str, payload: object, *words: str) -> None:
    done = process("send", actor, json.dumps(payload), *words)
    assert done.returncode == 0, done.stderr


def hold_all(worker: Worker, gate: str, count: int) -> list[int]:
    """Send `count` messages that wait at the gate, and wait until each has begun; the processes that hold them."""
    send("hold", gate, "--count", str(count))
    begun = [worker.line() for _ in range(count)]
    assert [line[0] for line in begun] == ["holds"] * count
    return [int(line[1]) for line in begun]


def test_each_process_works_and_a_signal_reaches_them_all() -> None:
    gate = make_gate()
    with working("--processes", "2") as worker:
        assert worker.log("worker.started")["processes"] == 2
        holders = hold_all(worker, gate, 2)
        assert len(set(holders)) == 2
        assert worker.child.pid not in holders
        worker.signal(signal.SIGINT)
        for _ in range(2):
            worker.log("pump.stopping", queue="asya-hold")
        worker.open(gate)
        assert worker.end() == 0
        assert worker.logs[-1].items() >= {"message": "worker.stopped", "finished": 2, "done": 2}.items()
    assert depth_of("asya-hold") == 0


def test_a_second_signal_stops_all_of_them_at_once() -> None:
    gate = make_gate()
    with working("--processes", "2") as worker:
        worker.log("worker.started")
        hold_all(worker, gate, 2)
        worker.signal(signal.SIGTERM)
        worker.log("pump.stopping", queue="asya-hold")
        time.sleep(SAME + 0.1)  # what comes sooner is taken for the first signal, passed on
        worker.signal(signal.SIGTERM)
        assert worker.end() == 128 + signal.SIGTERM
        assert worker.logs[-1]["released"] == 2
    assert depth_of("asya-hold") == 2


def test_a_process_that_dies_is_started_again_and_the_other_goes_on() -> None:
    gate = make_gate()
    with working("--processes", "2") as worker:
        worker.log("worker.started")
        first, second = hold_all(worker, gate, 2)
        os.kill(first, signal.SIGKILL)
        assert worker.log("worker.died")["exit"] == "SIGKILL"
        worker.log("pump.started", queue="asya-hold")
        send("hold", gate)
        again = int(worker.line()[1])
        assert again not in {first, second, worker.child.pid}
        worker.signal(signal.SIGTERM)
        worker.log("pump.stopping", queue="asya-hold")
        worker.log("pump.stopping", queue="asya-hold")
        worker.open(gate)
        assert worker.end() == 0
        assert worker.logs[-1]["done"] == 2


def test_a_message_that_kills_its_process_ends_in_the_dead_letters_and_the_pauses_grow() -> None:
    with working("--processes", "2") as worker:
        worker.log("worker.started")
        send("die", 9)
        for _ in range(3):
            assert worker.line()[0] == "dies"
        died = [worker.log("worker.died") for _ in range(3)]
        assert {record["exit"] for record in died} == {"code 9"}
        by_process: dict[int, list[float]] = {}
        for record in died:
            by_process.setdefault(record["process"], []).append(record["again_in"])
        assert all(pauses == sorted(set(pauses)) for pauses in by_process.values())
        worker.log("message.dead", queue="asya-die")
        assert worker.stop() == 0
    letter = json.loads(process("dead", "list", "die", "--json").stdout)[0]
    assert (letter["reason"], letter["body"]["payload"]) == ("crash_error", 9)


@pytest.mark.parametrize("busy", [False, True])
def test_no_child_survives_a_parent_that_was_killed(busy: bool) -> None:
    gate = make_gate()
    with working("--processes", "2", "--grace", "200ms") as worker:
        for _ in range(2):
            worker.log("pump.started", queue="asya-die")
        if busy:
            hold_all(worker, gate, 2)
        worker.signal(signal.SIGKILL)
        assert worker.end() == -signal.SIGKILL  # which waits for the pipes, and so for the children
    assert depth_of("asya-hold") == (2 if busy else 0)


def test_a_child_that_does_not_end_in_time_is_killed() -> None:
    gate = make_gate()
    with working("--processes", "2", "--grace", "100ms") as worker:
        worker.log("worker.started")
        send("hang", gate)
        assert worker.line()[0] == "hangs"
        worker.signal(signal.SIGTERM)
        assert worker.log("worker.killed")["process"] in {1, 2}
        assert worker.end() == 0


def test_an_app_that_cannot_be_loaded_is_named_once() -> None:
    with working("--processes", "3", app="import nosuchlib\n") as worker:
        assert worker.end() == 2
        assert worker.errors == ["oncue: jobs.py:1: ModuleNotFoundError: No module named 'nosuchlib'"]


def test_the_memory_of_one_process_is_not_for_several() -> None:
    with working("--processes", "2", "--transport", "memory:") as worker:
        assert worker.end() == 2
        assert worker.errors[0].startswith("oncue: memory: is the memory of one process")


def test_each_process_has_a_port_of_its_own_for_metrics() -> None:
    with working("--processes", "2", "--metrics", "127.0.0.1:0") as worker:
        address = worker.log("worker.started")["metrics"]
        with urllib.request.urlopen(f"http://{address}/livez", timeout=10) as answer:
            assert answer.status == 200
        assert worker.stop() == 0


def test_a_terminal_shows_what_children_print_and_one_line_for_all() -> None:
    Path("jobs.py").write_text(APP, encoding="utf-8")
    send("greet", "Ada")
    send("fail", "no good")
    code, shown = on_terminal("run", "jobs:app", "--processes", "2", typed=b"\x03", until=b"done 1")
    assert code == 0, shown
    assert "in each of 2 processes" in shown
    assert "greet Ada" in shown
    assert "message.dead" in shown
    assert shown.splitlines()[-1].removeprefix("\r").removeprefix("\x1b[2K").startswith("Stopped after 1 message.")


def test_the_ports_follow_one_another() -> None:
    from oncue.cli.run import next_address

    assert next_address("127.0.0.1:9000", 0) == "127.0.0.1:9000"
    assert next_address("[::1]:9000", 2) == "[::1]:9002"
    assert next_address(":0", 3) == ":0"
    assert next_address("", 1) is None
