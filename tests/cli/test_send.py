"""`oncue send`"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commandline import WORDS, depth_of, make_queue, on_terminal, process, with_transport

from oncue.core.envelope import Envelope, decode_envelope


def sent(queue: str = "asya-greet") -> list[Envelope]:
    messages = with_transport(lambda transport: transport.peek(queue, limit=10_000))
    return [decode_envelope(message.body) for message in messages]


def payloads(queue: str = "asya-greet") -> list[object]:
    return [json.loads(bytes(envelope.payload)) for envelope in sent(queue)]


def test_one_payload_is_sent_and_its_id_printed(run) -> None:
    make_queue("asya-greet")
    result = run("send", "greet", '{"name": "Ada"}')
    assert result.exit_code == 0
    assert (result.stdout, result.stderr) == (sent()[0].id + "\n", "")
    assert payloads() == [{"name": "Ada"}]


def test_without_a_payload_it_is_null(run) -> None:
    run("send", "greet")
    assert payloads() == [None]


def test_every_option_reaches_the_message(run) -> None:
    words = [
        "--id",
        "g1",
        "--key",
        "k",
        "--delay",
        "1h",
        "--route",
        "store, mail",
        "--header",
        "n=1",
        "--header",
        "t=x=y",
    ]
    assert run("send", "greet", "1", *words).stdout == "g1\n"
    message = with_transport(lambda transport: transport.peek("asya-greet", limit=1))[0]
    envelope = decode_envelope(message.body)
    assert (message.id, message.key, envelope.id) == ("g1", "k", "g1")
    assert envelope.route.actors == ("greet", "store", "mail")
    assert envelope.headers == {"n": 1, "t": "x=y"}
    assert with_transport(lambda transport: transport.depth("asya-greet")).delayed == 1


def test_count_sends_copies_with_ids_of_their_own(run) -> None:
    result = run("send", "greet", "7", "--count", "2500")
    assert result.stderr.splitlines()[-1] == "Sent 2500 messages to greet."
    assert len({envelope.id for envelope in sent()}) == 2500


def test_the_queue_of_an_actor_that_nobody_knows_is_made_and_that_is_said(run) -> None:
    result = run("send", "greet", "1", "--route", "store")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "oncue: made the queue asya-greet: no worker has declared it yet",
        "oncue: made the queue asya-store: no worker has declared it yet",
    ]
    assert run("dead", "list", "greet").exit_code == 0


@pytest.mark.parametrize("words", [["gret", "1"], ["greet", "1", "--route", "stroe"]])
def test_an_actor_whose_name_is_nearly_right_is_asked_back(run, words: list[str]) -> None:
    make_queue("asya-greet")
    make_queue("asya-store")
    result = run("send", *words)
    assert result.exit_code == 2
    assert "did you mean '" in result.stderr
    assert "--create makes its queue all the same" in result.stderr
    assert depth_of("asya-greet") == 0
    assert run("send", *words, "--create").exit_code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["greet", "Ada"], """oncue: payload 'Ada' is not JSON: invalid character (byte 0) (a text needs quotes of its own: '"Ada"')"""),
        (["greet", '{"a": NaN}'], "oncue: payload '{\"a\": NaN}' is not JSON: invalid character (byte 6)"),
        (["greet", "[1,"], "oncue: payload '[1,' is not JSON: Input data was truncated"),
        (["two words", "1"], "oncue: actor name 'two words': expected up to"),
        (["greet", "1", "--delay", "-1"], "oncue: invalid value for '--delay': '-1' is not a duration"),
        (["greet", "1", "--delay", "20000d"], "oncue: delay 1728000000.0: expected at most ten years"),
        (["greet", "1", "--header", "x"], "oncue: invalid value for '--header': 'x': expected NAME=VALUE"),
        (["greet", "1", "--id", "a\nb"], "oncue: id 'a\\nb': expected at most 256 printable characters"),
        (["greet", "1", "--count", "0"], "oncue: invalid value for '--count': 0 is not in the range"),
        (["greet", "1", "--count", "2", "--id", "x"], "oncue: --id is for a single message"),
        (["greet", "-", "--count", "2"], "oncue: --count is for a single payload, not for lines"),
        (["greet", "1", "--skip-invalid"], "oncue: --skip-invalid is for lines from standard input"),
        (["greet", "1", "--timeout", "1s"], "oncue: --timeout goes with --wait"),
        (["greet", "1", "--delay", "1s", "--wait"], "oncue: --delay and --wait do not go together"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_gets_one_line_and_nothing_is_made(run, folder, words: list[str], expected: str) -> None:
    result = run("send", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith(expected)
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "jobs.db").exists()


def test_each_line_of_standard_input_is_a_message_in_order() -> None:
    done = process("send", "greet", "-", input=b'"a"\r\n\n  {"b": [1]}  \nnull\n3')
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == b"Sent 4 messages to greet."
    assert payloads() == ["a", {"b": [1]}, None, 3]


INVALID = b'1\n\nAda\n{"a": 1\n"\xff"\n' + b"[" * 100_000 + b"\n6"


@pytest.mark.parametrize("seekable", [True, False])
def test_one_bad_line_and_nothing_is_sent_but_every_bad_line_is_named(folder, seekable: bool) -> None:
    (folder / "lines").write_bytes(INVALID)
    make_queue("asya-greet")
    with (folder / "lines").open("rb") as lines:
        done = subprocess.run(
            [*WORDS, "send", "greet", "-"],
            stdin=lines if seekable else None,
            input=None if seekable else INVALID,
            capture_output=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "oncue: line 3: not JSON: invalid character (byte 0)",
        "oncue: line 4: not JSON: Input data was truncated",
        "oncue: line 5: not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        "oncue: line 6: not JSON: nested too deeply",
        "oncue: nothing was sent (--skip-invalid sends the other lines)",
    ]
    assert depth_of("asya-greet") == 0


def test_with_skip_invalid_the_other_lines_are_sent_and_bad_ones_named() -> None:
    done = process("send", "greet", "-", "--skip-invalid", input=INVALID)
    assert done.returncode == 0
    assert b"oncue: line 3: not JSON: invalid character (byte 0); left out" in done.stderr
    assert payloads() == [1, 6]


def test_of_very_many_bad_lines_the_first_are_named_and_the_others_counted() -> None:
    done = process("send", "greet", "-", input=b"x\n" * 1000)
    assert b"and 995 more lines that are not JSON" in done.stderr
    assert len(done.stderr.splitlines()) == 8


def test_with_skip_invalid_a_line_is_sent_while_the_pipe_is_still_open() -> None:
    make_queue("asya-greet")
    with subprocess.Popen([*WORDS, "send", "greet", "-", "--skip-invalid"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"1\n2\n")
        child.stdin.flush()
        while depth_of("asya-greet") < 2:
            assert child.poll() is None
        child.stdin.write(b"3\n")
    assert payloads() == [1, 2, 3]
    assert child.returncode == 0


def test_no_lines_are_no_error() -> None:
    done = process("send", "greet", "-", input=b"\n\n")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, b"Sent 0 messages to greet.")


def test_a_line_that_is_too_large_for_the_transport_is_refused_in_one_line() -> None:
    code = (
        "import oncue.transports.sqlite.subscription as limits\n"
        "limits.MAX_BODY = 100_000\n"
        "import oncue.cli\n"
        "oncue.cli.main(['send', 'greet', '-'])\n"
    )
    big = b'"' + b"x" * 200_000 + b'"\n'
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"1\n" + big, capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 1, done.stderr
    assert b"is over the limit of 100000 bytes" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_hundred_megabytes_are_one_message_like_any_other() -> None:
    done = process("send", "greet", "-", input=b'"' + b"x" * 100_000_000 + b'"\n')
    assert done.returncode == 0, done.stderr
    assert depth_of("asya-greet") == 1


def test_memory_stays_small_however_many_lines_come() -> None:
    code = (
        "import resource, sys, oncue.cli\n"
        "try: oncue.cli.main(['send', 'greet', '-'])\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def most(count: int) -> int:
        lines = b'"a line of some length, so that they add up to something"\n' * count
        done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, check=True, timeout=50)
        return int(done.stdout)

    assert most(150_000) - most(10_000) < 15_000  # the lines are 9 MB, as objects many times that


def test_a_terminal_shows_progress_and_leaves_the_sum() -> None:
    code, shown = on_terminal("send", "greet", "1", "--count", "3000")
    assert code == 0
    assert "Sending to greet" in shown
    assert shown.splitlines()[-1].endswith("Sent 3000 messages to greet.")


def test_lines_typed_at_a_terminal_end_with_ctrl_d() -> None:
    code, shown = on_terminal("send", "greet", "-", typed=b"1\n2\n\x04")
    assert code == 0, shown
    assert "Reading JSON lines; Ctrl-D ends." in shown
    assert payloads() == [1, 2]
