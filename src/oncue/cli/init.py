"""The verb `oncue init`: a small project that works, to be changed into somebody's own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from oncue.cli.failure import Failed
from oncue.cli.group import Verb

_JOBS = '''\
"""Actors: each is a function with a queue. `oncue run jobs:app` works on what is sent to them."""

from oncue import App

app = App()  # oncue.yaml says where the queues are


@app.actor(timeout=30)
async def greet(name: str) -> str:
    """Takes a text. What it returns goes to the next actor of the route, if there is one."""
    return f"Hello, {name}!"


@app.actor
def shout(text: str) -> str:
    """Functions without `async` run in threads."""
    return text.upper()
'''

_TEST = '''\
"""Runs the app on queues in memory, in virtual time: `python -m pytest`."""

from jobs import app, greet
from oncue.testing import app_test


@app_test(app)
async def test_a_greeting_is_shouted(test):
    id = await greet.send("Ada", route=["shout"])
    await test.idle()
    assert test.result(id) == "HELLO, ADA!"
'''

_SETTINGS = """\
# `oncue doctor` shows all settings, their values and where each came from.
url: sqlite:///jobs.db
# results: sqlite:///jobs.db      # keep results, for `oncue result list`
# metrics: 127.0.0.1:9100         # /metrics, /livez and /readyz of workers
"""

_README = """\
# Jobs

    oncue send greet '"Ada"'                           # stored in jobs.db when it returns
    oncue run jobs:app                                 # works until Ctrl-C
    oncue send greet '"Grace"' --route shout --wait    # waits for the result

    oncue queue list                                   # what waits
    oncue dead list                                    # what failed, and why
    python -m pytest                                   # needs: pip install pytest
"""

_IGNORED = """\
*.db
*.db-*
.oncue/
.venv/
__pycache__/
"""

FILES: Mapping[str, str] = {
    "jobs.py": _JOBS,
    "test_jobs.py": _TEST,
    "oncue.yaml": _SETTINGS,
    "README.md": _README,
    ".gitignore": _IGNORED,
}
"""What a new project holds."""

_NO_MATTER = {".git", ".venv", "venv"}
"""What a folder may hold and still count as empty."""


@click.command(cls=Verb)
@click.argument("folder", default=".", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--force", is_flag=True, help="Write into a folder that is not empty; files that are there stay as they are."
)
def init(folder: Path, *, force: bool) -> None:
    """Write a small working project into FOLDER (default: the current one), which must be empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(each.name for each in folder.iterdir() if each.name not in _NO_MATTER)
        if there and not force:
            raise Failed(
                f"{folder} is not empty: it has {', '.join(there[:3])}{' and more' if len(there) > 3 else ''}",
                hint="--force adds the files that are missing",
                code=2,
            )
        for name, text in FILES.items():
            if name not in there:
                (folder / name).write_text(text, encoding="utf-8")
            click.echo(f"{'kept ' if name in there else 'wrote'} {folder / name}", err=True)
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror or error}") from error
    go = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))}\n  "
    click.echo(f"Now try:\n  {go}oncue send greet '\"Ada\"'\n  oncue run jobs:app", err=True)
