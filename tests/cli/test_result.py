"""`oncue result …`"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from commandline import URL

from oncue.core.failure import Failure
from oncue.results import Result, open_results
from oncue.transports.sqlite.file import path_of

STORE = "sqlite:///results.db"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def keep(*results: Result) -> None:
    async def put() -> None:
        store = open_results(STORE, 10**9)
        for each in results:
            await store.put(each)
        await store.close()

    asyncio.run(put())


def ended(id: str, *, hours: int = 0, failure: Failure | None = None, payload: str = '{"n":1}') -> Result:
    envelope = f'{{"id":"{id}","route":{{"actors":["greet"],"current":1}},"payload":{payload}}}'.encode()
    status = "failed" if failure else "succeeded"
    moment = datetime.now(UTC) - timedelta(hours=hours)
    return Result(id=id, status=status, actor="greet", finished_at=moment, envelope=envelope, failure=failure)


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_RESULTS", STORE)


def test_a_list_has_the_newest_first_with_result_or_error(run) -> None:
    keep(ended("old", hours=2), ended("bad", hours=1, failure=Failure("processing_error", "ValueError", "no good")))
    heading, first, second = run("result", "list").stdout.splitlines()
    assert heading.split() == ["ID", "STATUS", "ACTOR", "ENDED", "RESULT"]
    assert first.split() == ["bad", "failed", "greet", "1h", "ValueError:", "no", "good"]
    assert second.split() == ["old", "succeeded", "greet", "2h", '{"n":1}']


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["bad", "old"]),
        (["--status", "failed"], ["bad"]),
        (["--older-than", "90m"], ["old"]),
        (["--limit", "1"], ["bad"]),
    ],
)
def test_options_choose(run, words: list[str], expected: list[str]) -> None:
    keep(ended("old", hours=2), ended("bad", hours=1, failure=Failure("processing_error", "ValueError", "no good")))
    assert [each["id"] for each in json.loads(run("result", "list", "--json", *words).stdout)] == expected


def test_show_has_it_whole(run) -> None:
    keep(
        ended("a", failure=Failure("processing_error", "ValueError", "no good", "Traceback: here"), payload='[1, "é"]')
    )
    found = json.loads(run("result", "show", "a", "--json").stdout)
    assert found["payload"] == [1, "é"]
    assert found["failure"]["message"] == "no good"
    shown = run("result", "show", "a").stdout
    assert "ValueError: no good" in shown
    assert "Traceback: here" in shown


def test_an_id_without_result_fails(run) -> None:
    result = run("result", "show", "zz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "oncue: there is no result with the id 'zz' (oncue result list shows what there is)\n"


def test_no_results_is_an_empty_list_and_makes_no_file(run, folder) -> None:
    assert run("result", "list", "--json").stdout == "[]\n"
    assert run("result", "list").stderr == "There are no results.\n"
    assert not (folder / "results.db").exists()


def test_where_no_results_are_kept_it_says_how_to_keep_them(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_RESULTS")
    result = run("result", "list")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "oncue: no results are kept: the setting results is empty (give --results sqlite:///"
    )
    assert run("result", "list", "--results", STORE).exit_code == 0


def test_where_results_are_kept_beside_the_queues_they_are_found_there(run, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(ended("a"))
    monkeypatch.delenv("ONCUE_RESULTS")
    assert [each["id"] for each in json.loads(run("--transport", STORE, "result", "list", "--json").stdout)] == ["a"]
    assert run("--transport", STORE, "result", "show", "a").exit_code == 0


def test_a_file_of_queues_without_results_is_left_as_it_is(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_RESULTS")
    assert run("queue", "create", "mails").exit_code == 0
    assert run("result", "list").exit_code == 2
    with closing(sqlite3.connect(path_of(URL))) as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'oncue_results'").fetchall()
