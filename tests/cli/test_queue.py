"""`oncue queue …`"""

from __future__ import annotations

import json

import pytest
from commandline import URL, bury, depth_of, make_queue, on_terminal, process, with_transport

from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec


def names() -> list[str]:
    async def ask(transport):
        return [spec.name for spec in await transport.queues()]

    return with_transport(ask)


def test_a_list_shows_what_waits_and_how_many_are_dead_in_aligned_columns(run) -> None:
    make_queue("asya-greet", 12)
    bury("asya-resize", ["d1", "d2"])
    assert run("queue", "list").stdout.splitlines() == [
        "QUEUE        READY  LEASED  DELAYED  DEAD",
        "asya-greet      12       0        0     0",
        "asya-resize      0       0        0     2",
    ]


def test_a_list_as_json_has_settings_and_counts_one_queue_a_line(run) -> None:
    make_queue("asya-greet", 1)
    shown = run("queue", "list", "--json").stdout
    assert json.loads(shown) == [
        {
            "name": "asya-greet",
            "lease": 60.0,
            "fifo": False,
            "retention": None,
            "tags": {},
            "ready": 1,
            "leased": 0,
            "delayed": 0,
            "dead": 0,
        }
    ]
    assert json.loads(shown.splitlines()[1])["name"] == "asya-greet"


def test_dead_queues_are_listed_when_asked_for_and_when_they_are_all_that_is_left(run) -> None:
    bury("asya-greet", ["d1"])
    assert [line.split()[0] for line in run("queue", "list", "--all").stdout.splitlines()[1:]] == [
        "asya-greet",
        "asya-greet-dlq",
    ]
    with_transport(lambda transport: transport.delete("asya-greet"))
    assert run("queue", "list").stdout.splitlines()[1].split() == ["asya-greet-dlq", "1", "0", "0"]


def test_an_empty_store_is_an_empty_list(run) -> None:
    with_transport(lambda transport: transport.queues())
    assert run("queue", "list", "--json").stdout == "[]\n"
    empty = run("queue", "list")
    assert (empty.stdout, empty.stderr) == ("", "There are no queues yet: oncue send or oncue run makes them.\n")


@pytest.mark.parametrize("name", ["greet", "asya-greet"])
def test_a_name_is_an_actor_s_or_a_queue_s(run, name: str) -> None:
    make_queue("asya-greet", 3)
    assert json.loads(run("queue", "show", name, "--json").stdout)["ready"] == 3


def test_the_queue_of_an_actor_goes_before_one_of_that_very_name(run) -> None:
    make_queue("asya-greet", 1)
    make_queue("greet", 5)
    assert json.loads(run("queue", "show", "greet", "--json").stdout)["name"] == "asya-greet"


def test_an_unknown_name_gets_the_one_that_is_meant(run) -> None:
    make_queue("asya-greet")
    result = run("queue", "show", "gret")
    assert result.exit_code == 1
    assert result.stderr.startswith("oncue: there is no queue 'asya-gret' or 'gret', did you mean 'asya-greet'?")


def test_show_tells_the_settings_and_the_age_of_the_oldest(run) -> None:
    assert run("queue", "create", "q", "--lease", "5m", "--fifo", "--retention", "7d", "--tag", "team=a").exit_code == 0
    with_transport(
        lambda transport: transport.send(Send("q", Message(b"1", "a", {"oncue-sent-at": "2020-01-01T00:00:00Z"})))
    )
    shown = dict(line.split(":", 1) for line in run("queue", "show", "q").stdout.splitlines())
    assert {name: value.strip() for name, value in shown.items()}.items() >= {
        "queue": "q",
        "ready": "1",
        "lease": "5m",
        "order": "messages of one key stay in order",
        "retention": "7d",
        "tags": "team=a",
    }.items()
    assert "d ago" in shown["oldest"]


def test_create_makes_the_dead_queue_too_and_says_whose_queue_it_is_not(run) -> None:
    result = run("queue", "create", "greet")
    assert names() == ["greet", "greet-dlq"]
    assert "no actor takes from greet: the queue of an actor 'greet' is asya-greet" in result.stderr
    assert run("queue", "create", "greet").exit_code == 0  # again: nothing


def test_creating_a_queue_with_other_settings_says_which_differ_and_what_to_do(run) -> None:
    run("queue", "create", "asya-a")
    result = run("queue", "create", "asya-a", "--lease", "5s")
    assert result.exit_code == 1
    assert "lease is 60.0, asked 5.0" in result.stderr
    assert "oncue queue delete asya-a" in result.stderr


def test_nothing_is_destroyed_without_yes_where_nobody_can_be_asked(run) -> None:
    make_queue("asya-greet", 3)
    for verb in ("purge", "delete"):
        result = run("queue", verb, "greet", input="y\n")
        assert result.exit_code == 2
        assert result.stderr.startswith("oncue: not without --yes: ")
    assert depth_of("asya-greet") == 3


def test_purge_drops_what_waits_and_says_how_many(run) -> None:
    make_queue("asya-greet", 3)
    assert run("queue", "purge", "greet", "--yes").stderr == "Dropped 3 messages of asya-greet.\n"
    assert depth_of("asya-greet") == 0


def test_delete_keeps_dead_letters_unless_told_otherwise(run) -> None:
    bury("asya-greet", ["d1"])
    result = run("queue", "delete", "greet", "--yes")
    assert "Kept 1 dead letter in asya-greet-dlq." in result.stderr
    assert names() == ["asya-greet-dlq"]
    bury("asya-greet", ["d2"])
    run("queue", "delete", "greet", "--yes", "--with-dead-letters")
    assert names() == []


@pytest.mark.parametrize(("typed", "code", "left"), [(b"y\n", 0, 0), (b"\n", 1, 3), (b"no\n", 1, 3), (b"\x03", 130, 3)])
def test_a_person_at_a_terminal_is_asked_and_the_default_is_no(typed: bytes, code: int, left: int) -> None:
    make_queue("asya-greet", 3)
    found, shown = on_terminal("queue", "purge", "greet", typed=typed)
    assert found == code, shown
    assert "Drop 3 waiting messages of asya-greet for good? [y/N]" in shown
    assert depth_of("asya-greet") == left


def test_peek_shows_route_and_payload_and_changes_nothing(run) -> None:
    make_queue("asya-greet")
    body = b'{"id":"e1","route":{"actors":["greet","store"],"current":0},"payload":{"n":1}}'
    with_transport(lambda transport: transport.send(Send("asya-greet", Message(body, "e1"))))
    heading, line = run("queue", "peek", "greet").stdout.splitlines()
    assert heading.split() == ["ID", "SENT", "BYTES", "ROUTE", "PAYLOAD"]
    assert line.endswith('[greet] store  {"n":1}')
    assert depth_of("asya-greet") == 1


def test_peek_as_json_has_the_body_whatever_it_is(run) -> None:
    make_queue("q")
    bodies = [b'{"a": 1}', "é, no JSON".encode(), b"\xff\x00"]
    sends = [Send("q", Message(body, str(number), {"h": "v"}, "k")) for number, body in enumerate(bodies)]
    with_transport(lambda transport: transport.send(*sends))
    found = json.loads(run("queue", "peek", "q", "--json").stdout)
    assert [each.get("body", each.get("body_base64")) for each in found] == [{"a": 1}, "é, no JSON", "/wA="]
    assert found[0]["headers"] == {"h": "v"}
    assert found[0]["key"] == "k"


def test_no_text_of_others_reaches_the_terminal_raw() -> None:
    make_queue("q")
    with_transport(lambda transport: transport.send(Send("q", Message(b"\x1b[2Jgone\nforged", "id"))))
    assert b"\\x1b[2Jgone\\nforged" in process("queue", "peek", "q").stdout
    _, shown = on_terminal("queue", "peek", "q")
    assert "\\x1b[2Jgone\\nforged" in shown


def test_a_terminal_gets_a_table_that_fits_and_whole_ids() -> None:
    with_transport(lambda transport: transport.declare(QueueSpec(name="q")))
    id = "5f0c7a52-7d0e-4f5e-a3c3-0d5d1f9f7b1e"
    with_transport(lambda transport: transport.send(Send("q", Message(b'"' + b"x" * 500 + b'"', id))))
    _, shown = on_terminal("queue", "peek", "q", columns=80)
    lines = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert [len(line) <= 80 for line in lines] == [True, True]
    assert id in lines[1]
    assert lines[1].rstrip().endswith("…")


def test_a_foreign_prefix_and_transport_are_honoured(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_PREFIX", "mine-")
    make_queue("mine-greet", 2)
    assert json.loads(run("queue", "show", "greet", "--json", "--transport", URL).stdout)["ready"] == 2
