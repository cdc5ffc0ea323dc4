"""`oncue doctor`"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from brokers.rabbitmq_server import RabbitMQServer, rabbitmq_server  # noqa: F401  # a fixture
from brokers.redis_server import RedisServer
from commandline import make_queue, on_terminal

from oncue.core.settings import describe


def checks(shown: str) -> dict[str, tuple[str, str]]:
    return {each["name"]: (each["state"], each["text"]) for each in json.loads(shown)["checks"]}


def test_all_is_well_where_it_is(run) -> None:
    make_queue("asya-greet")
    result = run("doctor")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "All is well."
    found = checks(run("doctor", "--json").stdout)
    assert {"oncue", "python", "uvloop", "clock", "SQLite", "file", "free space", "answer", "queues"} <= set(found)
    assert found["queues"] == ("ok", "2")
    assert "a question answered in" in found["answer"][1]


def test_every_setting_is_there_with_its_source_and_no_secret(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "oncue.yaml").write_text("grace: 5s\n")
    monkeypatch.setenv("ONCUE_RESULTS", "redis://user:hunter2@host")
    result = run("doctor", "--json")
    settings = {each["name"]: (each["value"], each["source"]) for each in json.loads(result.stdout)["settings"]}
    assert set(settings) == {setting.name for setting in describe()}
    assert settings["grace"] == ("5s", "oncue.yaml:1 grace")
    assert settings["url"][1] == "environment ONCUE_URL"
    assert settings["prefix"] == ("asya-", "default")
    assert "hunter2" not in result.stdout + run("doctor").stdout


def test_it_changes_nothing_where_there_is_no_store_yet(run, folder: Path) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    assert checks(result.stdout)["file"][0] == "note"
    assert not list(folder.iterdir())


def test_a_transport_that_does_not_answer_is_bad(run, folder: Path) -> None:
    (folder / "jobs.db").write_bytes(b"no store" * 1000)
    result = run("doctor")
    assert result.exit_code == 1
    assert "  !! answer " in result.stdout
    assert "1 of " in result.stdout.splitlines()[-1]


@pytest.mark.parametrize("url", ["amqp://localhost:1", "redsi://x", "sqlite:///"])
def test_a_url_that_cannot_be_opened_is_bad(run, url: str) -> None:
    assert run("doctor", "--transport", url).exit_code == 1


def test_faulty_settings_are_all_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_GRACE", "soon")
    monkeypatch.setenv("ONCUE_URI", "x")
    result = run("doctor")
    assert result.exit_code == 2
    assert "ONCUE_GRACE is 'soon'" in result.stdout
    assert "unknown setting ONCUE_URI, did you mean 'ONCUE_URL'?" in result.stdout


def test_the_memory_of_a_process_is_worth_a_note(run) -> None:
    result = run("doctor", "--transport", "memory:", "--json")
    assert result.exit_code == 0
    assert checks(result.stdout)["durable"][0] == "note"


def test_a_server_that_can_lose_messages_by_its_own_settings_is_bad(run, tmp_path: Path) -> None:
    server = RedisServer(
        tmp_path / "server", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", fsync="always"
    )
    server.start()
    try:
        found = checks(run("doctor", "--transport", server.url, "--json").stdout)
        assert found["persistence"] == ("ok", "appendonly yes, appendfsync always: what is confirmed is on disk")
        assert found["memory"][0] == "bad"
        assert "set noeviction" in found["memory"][1]
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.command("CONFIG", "SET", "appendonly", "no")
        found = checks(run("doctor", "--transport", server.url, "--json").stdout)
        assert found["memory"][0] == "ok"
        assert found["persistence"][0] == "bad"
        server.command("REPLICAOF", "127.0.0.1", "1")
        assert checks(run("doctor", "--transport", server.url, "--json").stdout)["role"][0] == "bad"
    finally:
        server.kill()


def test_a_user_who_may_see_no_settings_of_the_server_is_told_which_right_is_missing(run, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "server")
    server.start()
    rights = ["on", ">hush", "~*", "&*", "+@all", "-config"]
    try:
        server.command("ACL", "SETUSER", "worker", *rights)
        url = server.url.replace("//", "//worker:hush@")
        assert "CONFIG GET is missing" in checks(run("doctor", "--transport", url, "--json").stdout)["persistence"][1]
        server.command("ACL", "SETUSER", "worker", "-info")
        result = run("doctor", "--transport", url, "--json")
        assert result.exit_code == 0
        assert checks(result.stdout)["server"][1].endswith("the right to INFO is missing")
        assert "hush" not in result.output
    finally:
        server.kill()


def test_a_broker_that_takes_no_messages_is_bad(run, rabbitmq_server: RabbitMQServer) -> None:  # noqa: F811
    url = rabbitmq_server.vhost()
    found = checks(run("doctor", "--transport", url, "--json").stdout)
    assert found["server"][0] == "ok"
    assert found["server"][1].startswith("RabbitMQ 3.") or found["server"][1].startswith("RabbitMQ 4.")
    assert found["management"][0] == "note"
    url += f"?management={rabbitmq_server.management}"
    assert checks(run("doctor", "--transport", url, "--json").stdout)["alarms"] == ("ok", "none")
    rabbitmq_server.alarm(on=True)
    try:
        until = time.monotonic() + 20
        while (found := checks(run("doctor", "--transport", url, "--json").stdout))["alarms"][0] == "ok":
            assert time.monotonic() < until
        assert "is short of memory: it takes no messages" in found["alarms"][1]
    finally:
        rabbitmq_server.alarm(on=False)
    result = run("doctor", "--transport", f"{url.partition('?')[0]}?management=http://127.0.0.1:1", "--json")
    assert checks(result.stdout)["management"][0] == "bad"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_bad(run, folder: Path) -> None:
    folder.chmod(0o500)
    result = run("doctor", "--json")
    folder.chmod(0o700)
    assert checks(result.stdout)["file"][0] == "bad"


def test_on_a_terminal_it_has_colours() -> None:
    _, shown = on_terminal("doctor")
    assert "\x1b[32mok\x1b[0m" in shown
