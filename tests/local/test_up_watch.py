"""`oncue up --watch`: what was edited starts anew, what was not goes on, and no message is lost to it."""

from __future__ import annotations

from pathlib import Path

from local.upping import JOBS, Up, call, eventually, manifest, notes, payload_of, results, send, write

ONE = "def version(payload):\n    return 1\n"


def test_a_handler_that_was_edited_is_started_anew_and_others_are_not() -> None:
    write(manifest("version", "versions.version"), manifest("slow", "jobs.slow"))
    Path("versions.py").write_text(ONE, encoding="utf-8")
    with Up("--watch") as up:
        assert call("version", None) == 1
        call("slow", 0)
        Path("versions.py").write_text(ONE.replace("1", "22"), encoding="utf-8")
        up.said("code.changed")
        eventually(lambda: call("version", None) == 22)
        call("slow", 1)
        assert len({note.split()[3] for note in notes("slow")}) == 1


def test_what_a_handler_imports_belongs_to_it() -> None:
    write(manifest("sum", "pack.main.total"))
    Path("pack").mkdir()
    Path("pack/__init__.py").touch()
    Path("pack/numbers.py").write_text("ADDED = 1\n", encoding="utf-8")
    Path("pack/main.py").write_text(
        "from .numbers import ADDED\n\ndef total(x):\n    return x + ADDED\n", encoding="utf-8"
    )
    with Up("--watch"):
        assert call("sum", 1) == 2
        Path("pack/numbers.py").write_text("ADDED = 100\n", encoding="utf-8")
        eventually(lambda: call("sum", 1) == 101)


def test_no_message_is_lost_while_code_is_edited_again_and_again() -> None:
    write(manifest("slow", "jobs.slow", replicas=2))
    with Up("--watch") as up:
        send("slow", *range(80))
        for edit in range(1, 4):
            eventually(lambda done=edit * 15: len(notes("slow")) >= done, up.read)
            Path("jobs.py").write_text(JOBS + "\n" * edit, encoding="utf-8")
            up.said("code.changed", edit)
        eventually(lambda: len(results()) == 80, up.read)
        assert sorted(payload_of(each) for each in results()) == list(range(80))
        assert {each.status for each in results()} == {"succeeded"}
        assert len(notes("slow")) == 80


def test_broken_code_is_told_and_messages_wait_until_it_is_mended() -> None:
    write(manifest("version", "versions.version"))
    Path("versions.py").write_text(ONE, encoding="utf-8")
    with Up("--watch") as up:
        assert call("version", None) == 1
        Path("versions.py").write_text("def version(:\n", encoding="utf-8")
        report = up.becomes("version", lambda each: each.state == "failing")
        assert "SyntaxError" in report.error
        (id,) = send("version", None)
        Path("versions.py").write_text(ONE.replace("1", "3"), encoding="utf-8")
        eventually(lambda: any(each.id == id and payload_of(each) == 3 for each in results()), up.read)


def test_actors_come_go_and_change_with_their_manifests() -> None:
    write(manifest("echo", "jobs.echo"), manifest("boom", "jobs.boom"))
    with Up("--watch") as up:
        write(manifest("boom", "jobs.echo"), manifest("fan", "jobs.fan"))
        up.said("actor.added")
        up.said("actor.removed")
        up.said("actor.changed")
        assert call("boom", 1) == 1
        assert call("fan", 1) == [1, 2, 3]
        assert "echo" not in up.reports()


def test_a_manifest_that_became_wrong_changes_nothing_but_is_told() -> None:
    write(manifest("echo", "jobs.echo"))
    with Up("--watch") as up:
        write(manifest("echo", "jobs.echo").replace("AsyncActor", "AsyncAct"))
        up.said("expected AsyncActor")
        assert call("echo", 1) == 1
