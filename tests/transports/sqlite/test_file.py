"""Which files can hold a store, how they are named, and what is said about those that cannot."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transports.sqlite.support import ids_in, message, mounted, opened, raw, sends, take

from oncue.core.errors import AccessDeniedError, ConnectionLostError, IncompatibleStoreError, InvalidValueError
from oncue.core.message import Send
from oncue.transports.sqlite import open_sqlite, schema
from oncue.transports.sqlite.file import connect, network_file_system, path_of, prepare
from oncue.transports.sqlite.schema import MIGRATIONS, open_store, reopen_store

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local ext4 rw 0 0
//server/share /mnt/with\\040space cifs rw 0 0
me@server: /mnt/ssh fuse.sshfs rw 0 0
malformed
"""


def test_a_url_names_a_path_relative_to_the_current_folder_or_from_the_root(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("sqlite:///jobs.db", tmp_path / "jobs.db"),
        ("sqlite:///deep/er/jobs.db", tmp_path / "deep/er/jobs.db"),
        ("sqlite:////var/jobs.db", Path("/var/jobs.db")),
        ("SQLite:////var/jobs.db", Path("/var/jobs.db")),
        ("sqlite:////var/a%20b%3F.db", Path("/var/a b?.db")),
    ):
        assert path_of(url) == path


@pytest.mark.parametrize(
    "url",
    ["sqlite:", "sqlite://", "sqlite:///", "sqlite:jobs.db", "sqlite://host/jobs.db", "sqlite:////folder/",
     "sqlite:///a.db?mode=ro", "sqlite:///a.db#x", "sqlite:///a%00b", "redis:///a.db"],
)  # fmt: skip
def test_a_url_that_names_no_file_is_refused_with_the_two_forms(url: str) -> None:
    with pytest.raises(InvalidValueError, match=r"sqlite:///relative/path\.db"):
        path_of(url)


def test_a_url_with_a_password_is_not_quoted_whole() -> None:
    with pytest.raises(InvalidValueError) as caught:
        path_of("sqlite://ada:geheim@host/jobs.db?token=geheim")
    assert "geheim" not in str(caught.value)


async def test_the_file_and_what_lies_beside_it_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        url = f"sqlite:///{tmp_path}/new/queue.db"
        async with opened(url) as transport, transport.subscribe("work", prefetch=1):
            await transport.send(*sends(1))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    finally:
        os.umask(before)
    assert modes == {"queue.db": 0o600, "queue.db-wal": 0o600, "queue.db-shm": 0o600, "queue.db-wake": 0o700}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_what_is_stored_is_flushed_to_the_disk_with_each_commit(url: str) -> None:
    async with opened(url) as transport:
        connection = transport.port.writer._store.connection
        for name, value in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)):
            assert connection.execute(f"PRAGMA {name}").fetchone() == (value,)
        await transport.send(*sends(1))


async def test_names_with_odd_letters_work(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/{'long' * 30}/%3F%23%25 é.db"
    async with opened(url) as transport:
        await transport.send(*sends(1))
        assert await take(transport, 1) == ["0"]
    assert (tmp_path / ("long" * 30) / "?#% é.db").is_file()


async def test_two_names_of_one_file_are_one_store(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/queue.db") as transport:
        (tmp_path / "link.db").symlink_to(tmp_path / "queue.db")
        async with opened(f"sqlite:///{tmp_path}/link.db") as other:
            await other.send(*sends(1))
            assert await take(transport, 1) == ["0"]


async def test_a_folder_and_a_file_in_the_place_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleStoreError, match="is a folder, not a file"):
        await open_sqlite(f"sqlite:///{tmp_path}")
    (tmp_path / "file").touch()
    with pytest.raises(ConnectionLostError, match="file"):
        await open_sqlite(f"sqlite:///{tmp_path}/file/queue.db")


async def test_a_file_that_is_no_database_is_refused_and_left_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_text("not a database, " * 100)
    with pytest.raises(IncompatibleStoreError, match="not a database"):
        await open_sqlite(url)
    assert (tmp_path / "queue.db").read_text() == "not a database, " * 100


@pytest.mark.parametrize("mark", ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 7"])
async def test_the_database_of_another_program_is_refused_and_left_alone(url: str, tmp_path: Path, mark: str) -> None:
    with raw(url) as connection:
        connection.execute(mark)
        connection.execute("PRAGMA user_version")
    before = (tmp_path / "queue.db").read_bytes()
    with pytest.raises(IncompatibleStoreError, match="is another program's SQLite file; nothing was changed"):
        await open_sqlite(url)
    assert (tmp_path / "queue.db").read_bytes() == before


async def test_a_store_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(1))
    newer = len(MIGRATIONS) + 1
    with raw(url) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
        with pytest.raises(IncompatibleStoreError, match=f"newer OnCue .*version {newer}.*upgrade this one"):
            await open_sqlite(url)
        assert connection.execute("PRAGMA user_version").fetchone() == (newer,)
        connection.execute(f"PRAGMA user_version = {newer - 1}")
    async with opened(url) as transport:
        assert await take(transport, 1) == ["0"]


async def test_a_store_of_an_older_version_is_brought_up_with_its_messages(url: str, tmp_path: Path) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(3))

    def add_notes(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE oncue_queues ADD COLUMN note TEXT NOT NULL DEFAULT 'upgraded'")

    upgraded = open_store(tmp_path / "queue.db", [*MIGRATIONS, add_notes])
    assert upgraded.execute("SELECT note FROM oncue_queues").fetchall() == [("upgraded",)]
    assert upgraded.execute("SELECT count(*) FROM oncue_messages").fetchone() == (3,)
    upgraded.close()
    again = open_store(tmp_path / "queue.db", [*MIGRATIONS, add_notes])
    assert again.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    again.close()


async def test_a_step_to_a_newer_version_that_fails_changes_nothing(url: str, tmp_path: Path) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(3))

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM oncue_messages")
        connection.execute("ALTER TABLE missing ADD COLUMN x")

    with pytest.raises(IncompatibleStoreError, match="missing"):
        open_store(tmp_path / "queue.db", [*MIGRATIONS, fail])
    async with opened(url) as transport:
        assert sorted(await take(transport, 3)) == ["0", "1", "2"]


async def test_a_program_that_runs_while_the_store_is_upgraded_stops_using_it(url: str, monkeypatch) -> None:
    monkeypatch.setattr("oncue.transports.sqlite.upkeep._WORK", 0.1)
    async with opened(url) as transport, transport.subscribe("work", prefetch=1):
        with raw(url) as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        with pytest.raises(IncompatibleStoreError, match="upgrade"):
            while True:
                await transport.send(Send("work", message("x")))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/queue.db", None),
        ("/home/ada/queue.db", "nfs4"),
        ("/home/local/queue.db", None),
        ("/homes/queue.db", None),
        ("/mnt/with space/queue.db", "cifs"),
        ("/mnt/ssh/deep/queue.db", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_told_by_the_mount_that_holds_the_path(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


async def test_a_store_on_a_network_file_system_is_refused(url: str, monkeypatch) -> None:
    monkeypatch.setattr("oncue.transports.sqlite.file.network_file_system", lambda _path: "nfs4")
    with pytest.raises(IncompatibleStoreError, match=r"network file system \(nfs4\).*local disk"):
        await open_sqlite(url)


async def test_a_file_system_that_allows_no_write_ahead_log_is_refused(tmp_path: Path, monkeypatch) -> None:
    def connect_without_shared_memory(path: Path, busy: float) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{path.as_uri()}?mode=rw&vfs=unix-dotfile", uri=True, timeout=busy, isolation_level=None
        )

    monkeypatch.setattr(schema, "connect", connect_without_shared_memory)
    with pytest.raises(IncompatibleStoreError, match="does not allow a write-ahead log: choose a local disk"):
        open_store(tmp_path / "queue.db")


def test_a_store_that_is_gone_is_not_made_again_by_those_who_had_it_open(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError):
        reopen_store(tmp_path / "queue.db")
    assert not list(tmp_path.iterdir())


async def test_a_file_system_that_is_read_only_is_refused_and_one_that_becomes_so_is_an_error(
    url: str, tmp_path: Path
) -> None:
    with mounted(tmp_path):
        async with opened(url) as transport:
            await transport.send(*sends(1))
        remount = ["mount", "-o", "remount,ro", str(tmp_path)]
        subprocess.run(remount, check=True)
        with pytest.raises(AccessDeniedError, match="may not be"):
            await open_sqlite(url)
        with pytest.raises(AccessDeniedError):
            await open_sqlite(f"sqlite:///{tmp_path}/other.db")
        subprocess.run(["mount", "-o", "remount,rw", str(tmp_path)], check=True)
        async with opened(url) as transport:
            assert await ids_in(transport) == ["0"]


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from oncue.core.errors import AccessDeniedError
from oncue.transports.sqlite import open_sqlite

async def attempt(place):
    try:
        transport = await open_sqlite(f"sqlite:///{place}")
    except AccessDeniedError as error:
        print("denied:", error)
    else:
        print("opened")
        await transport.close()

async def main(folder):
    await attempt(folder / "before.db")
    (folder / "file.db").touch(0o444)
    (folder / "locked").mkdir()
    (folder / "locked" / "old.db").touch()
    (folder / "locked" / "old.db").chmod(0o666)
    (folder / "locked").chmod(0o555)
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    await attempt(folder / "file.db")
    await attempt(folder / "locked" / "new.db")
    await attempt(folder / "locked" / "old.db")
    await attempt(folder / "locked" / "deep" / "new.db")

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
def test_a_file_or_folder_that_may_not_be_written_is_said_to_be_so() -> None:
    folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    try:
        folder.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(folder)], check=True, capture_output=True, text=True
        )
    finally:
        shutil.rmtree(folder)
    opened_before, file, new, old, deep = done.stdout.splitlines()
    assert opened_before == "opened"
    assert file == f"denied: {folder}/file.db may not be read and written by this user"
    assert new.startswith(f"denied: {folder}/locked/new.db: ")
    assert old == f"denied: {folder}/locked may not be written by this user, and SQLite keeps files beside old.db"
    assert deep.startswith("denied: ")


class Interrupted:
    """A connection in whose way another process makes the store, after the first look at the file."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._looked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        cursor = self._connection.execute(statement, *values)
        if statement == "PRAGMA application_id" and not self._looked:
            self._looked = True
            rows = cursor.fetchall()
            with suppress(ConnectionLostError):  # it has to wait its turn
                open_store(self._path, busy=0.0).close()
            return self._connection.execute("SELECT * FROM (VALUES (?))", rows[0])
        return cursor


def test_a_store_that_another_process_makes_at_the_same_moment_is_no_strangers(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    prepare(path)
    connection = connect(path)
    try:
        schema._set_up(Interrupted(connection, path), path, MIGRATIONS)
    finally:
        connection.close()
    open_store(path).close()
