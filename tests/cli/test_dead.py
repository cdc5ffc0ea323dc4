"""`oncue dead …`"""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from commandline import WORDS, bury, depth_of, make_queue, on_terminal, with_transport

from oncue.core.message import Message, Send


def ids(queue: str) -> list[str]:
    return [each.id for each in with_transport(lambda transport: transport.peek(queue, limit=1000))]


def test_a_list_says_what_died_of_what(run) -> None:
    bury("asya-greet", ["a", "b"])
    heading, first, second = run("dead", "list").stdout.splitlines()
    assert heading.split() == ["ID", "QUEUE", "DIED", "ATTEMPTS", "ERROR", "MESSAGE"]
    assert first.split()[:2] == ["a", "asya-greet"]
    assert second.split()[3:] == ["3", "ValueError", "no", "good"]
    assert "QUEUE" not in run("dead", "list", "greet").stdout


def test_without_a_name_all_queues_are_listed(run) -> None:
    bury("asya-greet", ["a"])
    bury("asya-resize", ["b"])
    assert [each["id"] for each in json.loads(run("dead", "list", "--json").stdout)] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["a", "b", "c"]),
        (["--id", "a", "--id", "c"], ["a", "c"]),
        (["--error", "KeyError"], ["c"]),
        (["--error", "KeyError", "--id", "a"], []),
        (["--older-than", "1h"], []),
        (["--older-than", "0s"], ["a", "b", "c"]),
        (["--limit", "2"], ["a", "b"]),
    ],
)
def test_options_choose_and_all_of_them_must_hold(run, words: list[str], expected: list[str]) -> None:
    bury("asya-greet", ["a", "b"])
    bury("asya-greet", ["c"], error="KeyError")
    assert [each["id"] for each in json.loads(run("dead", "list", "greet", "--json", *words).stdout)] == expected


@pytest.mark.parametrize("name", ["greet", "asya-greet", "greet-dlq", "asya-greet-dlq"])
def test_a_name_is_an_actor_s_a_queue_s_or_that_of_the_dead_queue(run, name: str) -> None:
    bury("asya-greet", ["a"])
    assert len(json.loads(run("dead", "list", name, "--json").stdout)) == 1


def test_the_dead_letters_of_a_queue_that_is_gone_can_still_be_seen(run) -> None:
    bury("asya-greet", ["a"])
    with_transport(lambda transport: transport.delete("asya-greet"))
    assert len(json.loads(run("dead", "list", "greet", "--json").stdout)) == 1


def test_show_has_the_reason_the_traceback_and_the_message_whole(run) -> None:
    bury("asya-greet", ["a"], text="line one\nline two")
    shown = run("dead", "show", "greet", "a").stdout
    assert "ValueError: line one\n  line two" in shown
    assert "Traceback: here" in shown
    assert '{"n": 1}' in shown
    assert "colour: red\n" in shown
    found = json.loads(run("dead", "show", "greet", "a", "--json").stdout)
    assert found["body"] == {"n": 1}
    assert found["headers"]["colour"] == "red"
    assert found["attempts"] == 3


def test_show_of_an_id_that_is_not_there_fails(run) -> None:
    bury("asya-greet", ["a"])
    result = run("dead", "show", "greet", "zz")
    assert result.exit_code == 1
    assert result.stderr.startswith("oncue: greet has no dead letter with the id 'zz'")


def test_redrive_puts_back_all_or_those_that_are_meant(run) -> None:
    bury("asya-greet", ["a", "b", "c"])
    assert run("dead", "redrive", "greet", "--id", "b").stderr == "Put back 1 dead letter of asya-greet-dlq.\n"
    assert ids("asya-greet") == ["b"]
    assert run("dead", "redrive", "greet", "--limit", "1").exit_code == 0
    assert ids("asya-greet") == ["b", "a"]
    assert json.loads(run("dead", "redrive", "--all", "--json").stdout) == [
        {"queue": "asya-greet-dlq", "count": 1, "refused": {}, "gave_up": False}
    ]
    assert ids("asya-greet-dlq") == []


def test_redrive_and_discard_need_a_name_or_all(run) -> None:
    bury("asya-greet", ["a"])
    for words in (["dead", "redrive"], ["dead", "discard", "--yes"], ["dead", "redrive", "greet", "--all"]):
        result = run(*words)
        assert result.exit_code == 2
        assert result.stderr.startswith("oncue: say either NAME or --all")


def test_what_cannot_go_back_stays_and_the_exit_code_says_so(run) -> None:
    bury("asya-greet", ["a"])
    with_transport(lambda transport: transport.delete("asya-greet"))
    result = run("dead", "redrive", "greet")
    assert result.exit_code == 1
    assert "oncue: dead letter a stays: queue 'asya-greet' does not exist" in result.stderr
    assert ids("asya-greet-dlq") == ["a"]


def test_discard_asks_and_does_nothing_where_nobody_can_answer(run) -> None:
    bury("asya-greet", ["a", "b"])
    result = run("dead", "discard", "greet")
    assert result.exit_code == 2
    assert result.stderr == "oncue: not without --yes: discard 2 dead letters in asya-greet-dlq for good\n"
    assert ids("asya-greet-dlq") == ["a", "b"]
    assert run("dead", "discard", "greet", "--id", "a", "--yes").exit_code == 0
    assert ids("asya-greet-dlq") == ["b"]


def test_on_a_terminal_discard_asks_and_yes_destroys() -> None:
    bury("asya-greet", ["a", "b"])
    code, shown = on_terminal("dead", "discard", "greet", typed=b"y\n")
    assert code == 0
    assert "Discard 2 dead letters in asya-greet-dlq for good? [y/N]" in shown
    assert "Discarded 2 dead letters of asya-greet-dlq." in shown
    assert ids("asya-greet-dlq") == []


def test_a_queue_without_dead_letters_is_no_error(run) -> None:
    make_queue("asya-greet")
    with_transport(lambda transport: transport.delete("asya-greet-dlq"))
    for words in (["list", "greet"], ["redrive", "greet"], ["discard", "greet", "--yes"]):
        result = run("dead", *words)
        assert (result.exit_code, result.stderr) == (0, "There are no dead letters.\n")


def test_ctrl_c_in_the_middle_of_a_redrive_loses_nothing_and_says_how_many_went() -> None:
    total = 30_000
    bury("asya-greet", [f"d{number}" for number in range(total)])
    code = (
        "import sys, oncue.dead as dead, oncue.cli.dead as verbs\n"
        "def told(transport, queue, which, limit, progress):\n"
        "    def report(count):\n"
        "        progress(count)\n"
        "        if count == 500: print('half', flush=True)\n"
        "    return dead.redrive(transport, queue, which, limit, report)\n"
        "verbs.redrive = told\n"
        "import oncue.cli\n"
        "oncue.cli.main(['dead', 'redrive', 'greet'])\n"
    )
    with subprocess.Popen([WORDS[0], "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGINT)
        shown = child.stderr.read().decode().splitlines()
    assert child.returncode == 130
    assert shown[1:] == ["oncue: interrupted"]
    gone = int(shown[0].removeprefix("oncue: interrupted: put back ").split()[0])
    assert 500 <= gone < total
    assert depth_of("asya-greet") + depth_of("asya-greet-dlq") == total
    assert depth_of("asya-greet") >= gone


def test_foreign_messages_in_a_dead_queue_are_shown_too(run) -> None:
    make_queue("asya-greet")
    with_transport(lambda transport: transport.send(Send("asya-greet-dlq", Message(b"\xff", "x"))))
    found = json.loads(run("dead", "list", "greet", "--json").stdout)
    assert found[0]["body_base64"] == "/w=="
    assert found[0]["queue"] == "asya-greet"
