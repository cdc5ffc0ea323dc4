"""Provides the servers that tests start and that no package of Python brings (make test): into .servers, in this folder.

    python scripts/servers.py [NAME ...]

A server is left alone where its environment variable names one that runs, where its program is on the PATH, or where it is
in .servers already. Else it is fetched with the tool of its own registry, Go's for NATS and Maven for the two that run in
Java. Says what it fetches and what it cannot. Exits with 0 either way: the tests say what they leave out without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from environments import ROOT

FOLDER = ROOT / ".servers"
RECIPES = Path(__file__).parent / "servers"
NATS = "github.com/nats-io/nats-server/v2@v2.15.2"
OLD_NATS = "github.com/nats-io/nats-server/v2@v2.9.25"
"""One that does not publish by itself what is due."""
PATIENCE = 600.0
"""Seconds that fetching one server may take."""


class Server(NamedTuple):
    """What is found where, and the programs without which it cannot be fetched."""

    variable: str
    programs: Sequence[str]  # on the PATH, any of them is as good
    tools: Sequence[str]
    command: Callable[[Path], Sequence[str]]
    environ: Callable[[Path], dict[str, str]] = lambda _: {}


def _by_maven(name: str) -> Callable[[Path], Sequence[str]]:
    recipe = str(RECIPES / f"{name}.xml")
    return lambda into: (
        "mvn", "-q", "-B", "-f", recipe, "dependency:copy-dependencies", f"-DoutputDirectory={into}",
    )  # fmt: skip


SERVERS = {
    "nats": Server(
        "ONCUE_TEST_NATS_URL",
        ("nats-server",),
        ("go",),
        lambda _: ("go", "install", NATS),
        lambda into: {"GOBIN": str(into)},
    ),
    "nats-old": Server(
        "ONCUE_TEST_OLD_NATS_SERVER",
        (),
        ("go",),
        lambda _: ("go", "install", OLD_NATS),
        lambda into: {"GOBIN": str(into)},
    ),
    "kafka": Server("ONCUE_TEST_KAFKA_URL", (), ("mvn", "java"), _by_maven("kafka")),
    "elasticmq": Server("ONCUE_TEST_SQS_URL", (), ("mvn", "java"), _by_maven("elasticmq")),
}


def provide(name: str) -> None:
    """Fetch the server unless it is there; print what is done, or why it cannot be."""
    server, folder = SERVERS[name], FOLDER / name
    if os.environ.get(server.variable) or any(map(shutil.which, server.programs)) or folder.exists():
        return
    missing = [tool for tool in server.tools if shutil.which(tool) is None]
    if missing:
        print(f"{name}: there is no server, and none can be fetched without {' and '.join(missing)}")
        return
    unfinished = folder.with_name(f"{name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    command = server.command(unfinished)
    print(f"{name}: fetching a server into {folder.relative_to(ROOT)} (once) ...", flush=True)
    started = time.monotonic()
    try:
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, env=os.environ | server.environ(unfinished), timeout=PATIENCE
        )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{name}: could not be fetched: {error}")
        return
    unfinished.rename(folder)
    print(f"{name}: fetched in {time.monotonic() - started:.0f} s", flush=True)


def main(names: Sequence[str]) -> int:
    """Provide all that are named, or all."""
    for name in names or SERVERS:
        provide(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
