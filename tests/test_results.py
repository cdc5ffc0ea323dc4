"""The store of results: what is put is found, also by another process, and goes when its time is over."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    InvalidValueError,
    TransportClosedError,
)
from oncue.core.failure import Failure
from oncue.results import Result, ResultStore, open_results

NOW = datetime.now(UTC).replace(microsecond=0)


def result(id: str = "a", ago: float = 0.0, failure: Failure | None = None) -> Result:
    return Result(
        id=id,
        status="failed" if failure else "succeeded",
        actor="resize",
        finished_at=NOW - timedelta(seconds=ago),
        envelope=b'{"id":"a","payload":1}',
        parent_id="p",
        failure=failure,
    )


def store_in(folder: Path, retention: float = 3600.0) -> ResultStore:
    return open_results(f"sqlite:///{folder}/deep/results.db", retention)


async def test_a_result_is_found_as_it_was_put_also_after_a_restart(tmp_path: Path) -> None:
    failed = result("b", failure=Failure("processing_error", "ValueError", "bad", "trace", bases=("Exception",)))
    store = store_in(tmp_path)
    await store.put(result("a"))
    await store.put(failed)
    await store.close()
    store = store_in(tmp_path)
    assert await store.get("a") == result("a")
    assert await store.get("b") == failed
    assert await store.get("c") is None
    await store.close()


async def test_putting_again_changes_nothing_and_a_later_result_replaces_an_earlier_one(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    failed = result("a", 10, Failure("processing_error", "ValueError", "bad"))
    await store.put(failed)
    await store.put(failed)
    assert list(await store.list()) == [failed]
    await store.put(result("a"))
    await store.put(failed)
    assert list(await store.list()) == [result("a")]
    await store.close()


async def test_the_list_has_the_newest_first_and_can_be_narrowed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    failure = Failure("processing_error", "ValueError", "bad")
    for number in range(6):
        await store.put(result(f"r{number}", number, failure if number % 2 else None))
    assert [each.id for each in await store.list(limit=2)] == ["r0", "r1"]
    assert [each.id for each in await store.list(status="failed")] == ["r1", "r3", "r5"]
    assert [each.id for each in await store.list(before=NOW - timedelta(seconds=3))] == ["r4", "r5"]
    await store.close()


async def test_what_is_older_than_the_retention_goes(tmp_path: Path) -> None:
    store = store_in(tmp_path, retention=3600)
    await store.put(result("old", 4000))
    assert await store.get("old") is None, "the first put looks for old ones"
    await store.put(result("old", 4000))
    await store.put(result("young", 100))
    assert await store.purge() == 1
    assert [each.id for each in await store.list()] == ["young"]
    await store.close()


async def test_many_puts_at_once_are_all_stored(tmp_path: Path) -> None:
    one, other = store_in(tmp_path), store_in(tmp_path)
    await asyncio.gather(*((one, other)[number % 2].put(result(str(number))) for number in range(100)))
    assert len(await one.list(limit=1000)) == 100
    await one.close()
    await other.close()


async def test_a_store_waits_for_another_that_makes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")  # SQLite waits for nobody when it changes to a write-ahead log
        asyncio.get_running_loop().call_later(0.2, other.execute, "COMMIT")
        store = store_in(tmp_path)
        await store.put(result("1"))
    assert await store.get("1") is not None
    await store.close()


async def test_what_cannot_be_stored_keeps_nothing_else_that_is_put_at_the_same_time_from_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    strange = result("half a character \ud800")
    puts = [store.put(each) for each in (*map(result, "abc"), strange, *map(result, "def"))]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(each) for each in outcomes if each is not None] == [UnicodeEncodeError]
    assert sorted(each.id for each in await store.list()) == list("abcdef")
    await store.close()


async def test_a_put_that_is_cancelled_leaves_the_others_alone(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    puts = [asyncio.create_task(store.put(result(str(number)))) for number in range(40)]
    await asyncio.sleep(0)
    for task in puts[::3]:
        task.cancel()
    await asyncio.gather(*puts, return_exceptions=True)
    there = {each.id for each in await store.list()}
    assert there >= {str(number) for number in range(40) if number % 3}
    await store.put(result("later"))
    await store.close()


async def test_a_put_of_a_process_that_is_killed_right_after_it_is_there(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, signal, sys
from datetime import datetime, UTC
from oncue.results import Result, open_results
async def main():
    store = open_results("sqlite:///{tmp_path}/r.db")
    await store.put(Result(id="x", status="succeeded", actor="a", finished_at=datetime.now(UTC), envelope=b"e"))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    store = open_results(f"sqlite:///{tmp_path}/r.db")
    found = await store.get("x")
    assert found is not None and found.envelope == b"e"
    await store.close()


async def test_reading_makes_no_file_and_a_file_that_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert list(await store.list()) == [] and await store.get("a") is None and await store.purge() == 0
    assert list(tmp_path.iterdir()) == []
    await store.put(result())
    assert stat.S_IMODE((tmp_path / "deep" / "results.db").stat().st_mode) == 0o600
    await store.close()


async def test_it_may_share_the_file_with_other_tables(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    store = open_results(f"sqlite:///{path}")
    await store.put(result())
    assert await store.get("a") == result()
    await store.close()


async def test_a_closed_store_says_so_and_closing_twice_is_fine(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.put(result())
    await store.close()
    await store.close()
    with pytest.raises(TransportClosedError):
        await store.get("a")


async def test_a_file_that_is_no_database_and_a_folder_in_the_way_are_our_errors(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, " * 100)
    (tmp_path / "file").write_text("")
    for path, error in (
        ("text.db", IncompatibleStoreError),
        (".", IncompatibleStoreError),
        ("file/x.db", ConnectionLostError),
    ):
        store = open_results(f"sqlite:///{tmp_path}/{path}")
        with pytest.raises((error, AccessDeniedError), match=str(tmp_path)):
            await store.put(result())
        await store.close()


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite:///", "sqlite://host", "redis://u:hunter2@h", "r.db"])
def test_a_url_that_names_no_store_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InvalidValueError, match="result store .*expected 'sqlite:///relative") as caught:
        open_results(url)
    assert "hunter2" not in str(caught.value)
