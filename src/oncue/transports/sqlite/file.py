"""The file of a store: its URL, its place on the disk, how it is opened, and what its errors mean."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    InvalidValueError,
    StorageFullError,
    TransportError,
)
from oncue.core.redact import redact_url

OLDEST_SQLITE = (3, 38, 0)
BUSY = 10.0
"""How many seconds another process may keep the file to itself before that is an error."""

_NETWORK = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs"}
    | {"fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
)

_ERRORS: dict[int, type[TransportError]] = {
    sqlite3.SQLITE_FULL: StorageFullError,
    sqlite3.SQLITE_READONLY: AccessDeniedError,
    sqlite3.SQLITE_PERM: AccessDeniedError,
    sqlite3.SQLITE_AUTH: AccessDeniedError,
    sqlite3.SQLITE_NOTADB: IncompatibleStoreError,
    sqlite3.SQLITE_CORRUPT: IncompatibleStoreError,
    sqlite3.SQLITE_ERROR: IncompatibleStoreError,
    sqlite3.SQLITE_SCHEMA: IncompatibleStoreError,
    sqlite3.SQLITE_NOLFS: StorageFullError,
}


def path_of(url: str) -> Path:
    """The absolute path that `sqlite:///relative.db` or `sqlite:////absolute.db` names; raise `InvalidValueError`."""
    match = re.fullmatch(r"(?i:sqlite):///(?P<path>[^?#]+)", url)
    path = unquote(match["path"]) if match else ""
    if not path or path.endswith("/") or "\0" in path:
        raise InvalidValueError(
            f"{redact_url(url)!r}: expected 'sqlite:///relative/path.db' or 'sqlite:////absolute/path.db'"
        )
    return Path(path).absolute()


def numbered(*values: object) -> dict[str, object]:
    """The values of `?1`, `?2`, …, in the one form in which no version of Python takes them for something else."""
    return {str(number): value for number, value in enumerate(values, 1)}


def prepare(path: Path) -> None:
    """Make the file and its folder where they are missing, readable by their owner only.

    Raise `AccessDeniedError`, `StorageFullError`, or `IncompatibleStoreError` for a place that cannot hold a store.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        wanted = ".".join(map(str, OLDEST_SQLITE))
        raise IncompatibleStoreError(f"SQLite {sqlite3.sqlite_version} is too old: {wanted} or newer is needed")
    with mapped_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            raise IncompatibleStoreError(f"{path} is a folder, not a file")
        _create(path)
        if not os.access(path, os.R_OK | os.W_OK):
            raise AccessDeniedError(f"{path} may not be read and written by this user")
        if not os.access(path.parent, os.W_OK):
            raise AccessDeniedError(
                f"{path.parent} may not be written by this user, and SQLite keeps files beside {path.name}"
            )
    kind = network_file_system(path)
    if kind:
        raise IncompatibleStoreError(
            f"{path} lies on a network file system ({kind}), where SQLite cannot lock safely: choose a path on a local disk"
        )


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # SQLite does this for its own files only
        finally:
            os.close(folder)


def place_of(path: Path) -> tuple[int, int] | None:
    """Which file is at `path` now; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def connect(path: Path, busy: float = BUSY) -> sqlite3.Connection:
    """A connection to a file that is there, which waits `busy` seconds for others; its errors are SQLite's own."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=busy,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def patiently(step: Callable[[], None], busy: float = BUSY) -> None:
    """Do `step` again while others keep the file busy, up to `busy` seconds. Blocks; its errors are SQLite's own.

    SQLite does not wait by itself in all places where two that open one file can meet, such as the change to a
    write-ahead log.
    """
    until = time.monotonic() + busy
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that holds `path`, or None. Only Linux can tell; `mounts` is as /proc/self/mounts."""
    if mounts is None:
        if sys.platform != "linux":
            return None
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind if kind in _NETWORK else None


@contextmanager
def mapped_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into errors of ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise mapped(error, path) from error


def mapped(error: Exception, path: Path) -> TransportError:
    """The error of ours that `error` means."""
    if isinstance(error, TransportError):
        return error
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None) or 0
        kind = _ERRORS.get(code & 0xFF, ConnectionLostError)
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN and path.exists() and not os.access(path, os.R_OK | os.W_OK):
            kind = AccessDeniedError
        return kind(f"{path}: {error}")
    if isinstance(error, OSError):
        text = f"{path}: {error.strerror or error}"
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return AccessDeniedError(text)
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return StorageFullError(text)
        return ConnectionLostError(text)
    return ConnectionLostError(f"{path}: {type(error).__name__}: {error}")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else has the file to himself at the moment."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
