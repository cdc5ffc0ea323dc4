"""`oncue run` as a real process: what it loads, how it ends, and what becomes of the messages."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from commandline import depth_of, on_terminal, process, with_transport
from workers import APP, make_gate, working

from oncue.main_loop import SAME


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONCUE_URL", "sqlite:///jobs.db")
    return tmp_path


def send(actor: str, payload: object, *words: str) -> None:
    done = process("send", actor, json.dumps(payload), *words)
    assert done.returncode == 0, done.stderr


def call(actor: str, payload: object) -> subprocess.CompletedProcess[bytes]:
    return process("send", actor, json.dumps(payload), "--wait", "--timeout", "20s")


def test_it_says_what_it_loaded_works_and_ends_in_order() -> None:
    with working() as worker:
        started = worker.log("worker.started")
        assert started["app"] == "jobs:app"
        assert started["url"] == "sqlite:///jobs.db"
        assert "greet (asya-greet, 100)" in started["actors"]
        send("greet", "Ada")
        assert worker.line()[:2] == ["greet", "Ada"]
        assert call("greet", "Grace").stdout == b'"Hello, Grace!"\n'
        assert worker.stop() == 0
        assert worker.logs[-1].items() >= {"message": "worker.stopped", "done": 2, "dead": 0}.items()
        assert worker.errors == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_on_the_first_signal_what_has_begun_is_finished(number: signal.Signals) -> None:
    gate = make_gate()
    with working() as worker:
        send("hold", gate, "--count", "2")
        assert worker.line()[0] == "holds"
        worker.signal(number)
        assert worker.log("worker.stopping")["in_flight"] >= 1
        worker.log("pump.stopping", queue="asya-hold")
        worker.open(gate)
        assert worker.line()[0] == "held"
        assert worker.end() == 0
        assert worker.logs[-1]["finished"] == 1
    assert depth_of("asya-hold") == 1  # the second one was not begun


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_the_second_signal_everything_is_given_back_uncounted(number: signal.Signals, code: int) -> None:
    gate = make_gate()
    with working() as worker:
        send("hold", gate)
        worker.line()
        worker.signal(number)
        worker.log("pump.stopping", queue="asya-hold")
        time.sleep(SAME + 0.1)  # what comes sooner is taken for the first signal, passed on
        worker.signal(number)
        worker.log("worker.stopping", grace=0.0)
        assert worker.end() == code
        assert worker.logs[-1]["released"] == 1
    assert depth_of("asya-hold") == 1
    assert attempt_of_next("asya-hold") == 1


def attempt_of_next(queue: str) -> int:
    async def receive(transport) -> int:
        async with transport.subscribe(queue, prefetch=1) as subscription:
            return (await subscription.receive()).attempt

    return with_transport(receive)


def test_the_same_signal_twice_at_once_counts_as_one() -> None:
    gate = make_gate()
    with working() as worker:
        send("hold", gate)
        worker.line()
        worker.signal(signal.SIGINT)
        worker.signal(signal.SIGTERM)
        worker.log("pump.stopping", queue="asya-hold")
        worker.open(gate)
        assert worker.end() == 0
    assert depth_of("asya-hold") == 0


def test_what_does_not_finish_within_the_grace_period_is_given_back() -> None:
    gate = make_gate()
    with working("--grace", "100ms") as worker:
        send("hold", gate)
        worker.line()
        assert worker.stop() == 0
        assert worker.logs[-1]["released"] == 1
    assert depth_of("asya-hold") == 1


def test_a_thread_that_never_returns_does_not_keep_the_process() -> None:
    gate = make_gate()
    with working("--grace", "100ms") as worker:
        send("block", gate)
        worker.line()
        assert worker.stop() == 0
    assert depth_of("asya-block") == 1


def test_a_second_signal_ends_even_a_worker_whose_event_loop_is_blocked() -> None:
    gate = make_gate()
    with working() as worker:
        send("hang", gate)
        assert worker.line()[0] == "hangs"
        worker.signal(signal.SIGINT)
        time.sleep(SAME + 0.1)  # what comes sooner is taken for the first signal, passed on
        worker.signal(signal.SIGINT)
        told = worker.log("worker.blocked", ends_in=6.0)
        assert re.fullmatch(r"jobs\.py:\d+ in wait", told["at"])
        assert worker.end() == 128 + signal.SIGINT


def test_a_second_signal_says_nothing_of_a_blocked_loop_where_there_is_none() -> None:
    gate = make_gate()
    with working() as worker:
        send("block", gate)  # in a thread, which keeps the process for some seconds all the same
        assert worker.line()[0] == "blocks"
        worker.signal(signal.SIGINT)
        worker.log("pump.stopping", queue="asya-block")
        time.sleep(SAME + 0.1)
        worker.signal(signal.SIGINT)
        assert worker.end() == 128 + signal.SIGINT
        assert "worker.blocked" not in [record["message"] for record in worker.logs]


def test_a_worker_that_shall_outlive_its_terminal_ignores_the_hangup() -> None:
    Path("jobs.py").write_text(APP, encoding="utf-8")
    send("greet", "Ada")
    command = f"trap '' HUP; exec {sys.executable} -P -m oncue run jobs:app"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b"greet Ada")
        child.send_signal(signal.SIGHUP)
        send("greet", "Grace")
        assert child.stdout.readline().startswith(b"greet Grace")
        child.terminate()
        child.communicate(timeout=30)
    assert child.returncode == 0


def test_a_transport_that_is_away_at_the_start_is_waited_for_with_one_line(folder: Path) -> None:
    (folder / "there").write_text("a file where a folder should be")
    with working("--transport", "sqlite:///there/jobs.db") as worker:
        assert worker.log("worker.waiting")["url"] == "sqlite:///there/jobs.db"
        (folder / "there").unlink()
        worker.log("pump.started", queue="asya-greet")
        assert worker.stop() == 0
        assert [record["message"] for record in worker.logs].count("worker.waiting") == 1


def test_a_worker_that_waits_for_its_transport_can_be_stopped(folder: Path) -> None:
    (folder / "there").write_text("a file where a folder should be")
    with working("--transport", "sqlite:///there/jobs.db") as worker:
        worker.log("worker.waiting")
        assert worker.stop() == 0


def test_a_worker_that_is_connecting_to_somebody_who_does_not_answer_can_be_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with working("--transport", url) as worker:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1)
                worker.log("worker.started")
                began = time.monotonic()
                assert worker.stop() == 0
                assert time.monotonic() - began < 4.0


def test_a_file_that_is_no_store_ends_it_with_one_line(folder: Path) -> None:
    (folder / "jobs.db").write_bytes(b"no store" * 1000)
    with working() as worker:
        assert worker.end() == 1
        assert len(worker.errors) == 1
        assert worker.errors[0].startswith(f"oncue: {folder}/jobs.db: ")


def test_a_queue_with_other_settings_ends_it_and_says_what_to_do() -> None:
    assert process("queue", "create", "asya-greet", "--lease", "5s").returncode == 0
    with working() as worker:
        assert worker.end() == 1
        assert worker.errors == [
            "oncue: queue 'asya-greet' exists with other settings: lease is 5.0, asked 60.0 "
            "(give the actor what the queue has, or, once it is empty, remove it: oncue queue delete asya-greet)"
        ]


@pytest.mark.parametrize(
    ("app", "words", "expected"),
    [
        ("1 / 0\n", [], "oncue: jobs.py:1: ZeroDivisionError: division by zero"),
        ("from oncue import App\napp = App()\n", [], "oncue: jobs:app has no actors (decorate a function with @app.actor)"),
        (APP, ["--grace", "-1"], "oncue: command line: --grace is '-1', expected seconds, or a text like"),
        (APP, ["--processes", "0"], "oncue: command line: --processes is '0', expected a whole number from 1 to 1024"),
        (APP, ["--metrics", "here"], "oncue: command line: --metrics is 'here', expected HOST:PORT"),
        (APP, ["--metrics", "203.0.113.1:9"], "oncue: metrics and health cannot be served on 203.0.113.1:9: "),
        (APP, ["--results", "ftp://bucket"], "oncue: result store 'ftp://bucket': expected 'sqlite:///"),
        ("from oncue import App\napp = App('gopher://h')\n@app.actor\ndef a(x): ...\n", [], "oncue: transport gopher: is an unknown scheme"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_and_code_2(app: str, words: list[str], expected: str) -> None:
    with working(*words, app=app) as worker:
        assert worker.end() == 2
        assert len(worker.errors) == 1, worker.errors
        assert worker.errors[0].startswith(expected)


def test_a_stack_trace_of_the_app_s_own_error_is_shown_with_v() -> None:
    with working("-v", app="def f():\n    raise ValueError('no')\nf()\n") as worker:
        assert worker.end() == 2
        assert any('jobs.py", line 2, in f' in line for line in worker.errors)


def test_the_command_line_goes_before_what_the_app_says_of_itself() -> None:
    app = APP.replace("App()", "App('sqlite:///own.db', prefix='own-')")
    with working("--transport", "sqlite:///other.db", app=app) as worker:
        started = worker.log("worker.started")
        assert started["url"] == "sqlite:///other.db"
        assert "greet (own-greet, 100)" in started["actors"]
        worker.log("pump.started")
        assert worker.stop() == 0
    with working(app=app) as worker:
        assert worker.log("worker.started")["url"] == "sqlite:///own.db"


@pytest.mark.parametrize(
    ("actor", "payload", "error", "text"),
    [
        ("greet", {"first": "Ada"}, "InvalidPayloadError", "Expected `str`, got `object`"),
        ("number", "nan", "InvalidResultError", "nan"),
        ("strange", "x", "InvalidResultError", "object"),
        ("fail", "no good", "ValueError", "no good"),
    ],
)
def test_what_cannot_be_processed_is_told_to_the_caller_and_kept_whole(
    actor: str, payload: object, error: str, text: str
) -> None:
    with working() as worker:
        worker.log("pump.started")
        done = call(actor, payload)
        assert (done.returncode, done.stdout) == (1, b"")
        shown = done.stderr.decode().splitlines()
        assert len(shown) == 1
        assert shown[0].startswith(f"oncue: actor {actor!r} failed: {error}: ")
        assert text in shown[0]
        assert worker.stop() == 0
    letter = json.loads(process("dead", "list", actor, "--json").stdout)[0]
    assert (letter["type"], letter["body"]["payload"]) == (error, payload)


def test_results_of_lines_come_in_their_order_and_failures_are_named() -> None:
    with working() as worker:
        worker.log("pump.started")
        lines = b"".join(b'"%d"\n' % number for number in range(100)) + b"5\n"
        done = process("send", "greet", "-", "--wait", "--timeout", "20s", input=lines)
        assert worker.stop() == 0
    assert done.stdout.decode().splitlines() == [f'"Hello, {number}!"' for number in range(100)]
    assert b"oncue: message 101: actor 'greet' failed: InvalidPayloadError" in done.stderr
    assert done.returncode == 1


def test_a_result_that_does_not_come_in_time_is_one_line_and_a_hint() -> None:
    done = process("send", "greet", '"Ada"', "--wait", "--timeout", "200ms")
    assert done.returncode == 1
    assert b"is a worker running?" in done.stderr.splitlines()[-1]
    assert depth_of("asya-greet") == 1


def test_metrics_and_health_are_served_where_it_says() -> None:
    with working("--metrics", "127.0.0.1:0") as worker:
        address = worker.log("worker.started")["metrics"]
        assert call("greet", "Ada").returncode == 0
        for path in ("livez", "readyz"):
            with urllib.request.urlopen(f"http://{address}/{path}", timeout=10) as answer:
                assert answer.status == 200
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            assert b'oncue_messages_total{outcome="done",queue="asya-greet"} 1.0' in answer.read()
        assert worker.stop() == 0


def test_it_is_not_ready_while_its_transport_is_away(folder: Path) -> None:
    (folder / "there").write_text("a file where a folder should be")
    with working("--transport", "sqlite:///there/jobs.db", "--metrics", "127.0.0.1:0") as worker:
        address = worker.log("worker.started")["metrics"]
        worker.log("worker.waiting")
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(f"http://{address}/readyz", timeout=10)
        assert caught.value.code == 503
        assert b"asya-greet" in caught.value.read()


def test_a_person_at_a_terminal_sees_sentences_and_a_line_that_lives() -> None:
    Path("jobs.py").write_text(APP, encoding="utf-8")
    send("greet", "Ada")
    code, shown = on_terminal("run", "jobs:app", typed=b"\x03", until=b"done ")
    assert code == 0, shown
    lines = [line.replace("\x1b[2K", "").strip("\r") for line in shown.splitlines()]
    assert lines[0].endswith("runs jobs:app on sqlite:///jobs.db")
    assert any(line.endswith("  greet    queue asya-greet    up to 100 at once") for line in lines), shown
    assert any("done 0" in line for line in lines)
    assert lines[-1].startswith("Stopped after ")
    assert "{" not in shown


def test_results_are_kept_where_the_setting_says_and_can_be_listed() -> None:
    with working("--results", "sqlite:///results.db") as worker:
        worker.log("pump.started", queue="asya-happy-end")
        assert call("greet", "Ada").returncode == 0
        assert call("fail", "no good").returncode == 1
        assert worker.stop() == 0
    found = json.loads(process("result", "list", "--json", "--results", "sqlite:///results.db").stdout)
    assert {(each["status"], each["actor"]) for each in found} == {("succeeded", "greet"), ("failed", "fail")}
