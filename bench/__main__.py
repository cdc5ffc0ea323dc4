"""The benchmarks: `make bench`, or `python -m bench`. Takes about ten minutes, alone on the machine, please.

Exits with 1 when a job was lost or invented.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence

from bench import alone, report, transport
from bench.rounds import OURS, PEERS, ROOT, play, tune
from bench.tally import MiscountError

PAGE = ROOT / "docs" / "benchmarks.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small round that only shows that everything works")
    parser.add_argument("--only", choices=("contest", "alone", "transport"), help="one part instead of all")
    parser.add_argument("--jobs", type=int, default=20_000, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of the contest (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--contenders", default=",".join((OURS, *PEERS)), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.jobs, options.rounds = 300, 1
    results = [report.machine("oncue", "huey", "persist-queue", "uvloop")]
    try:
        for title, part in (("contest", contest), ("alone", on_its_own), ("transport", through_the_transport)):
            if options.only in {None, title}:
                results.append(part(options))
                print(results[-1], flush=True)
    except MiscountError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.write:
        report.write(PAGE, "\n".join(results))
    return 0


def contest(options: argparse.Namespace) -> str:
    """OnCue and its peers, round by round."""
    contenders = options.contenders.split(",")
    tuned = tune(contenders, max(200, options.jobs // 5), tries=1 if options.quick else 3)
    rounds = []
    for number in range(options.rounds):
        rounds.append(play(contenders, options.jobs, tuned, lambda what, n=number + 1: tell(f"round {n}: {what}")))
    tell("")
    return "### Against peers\n\n" + report.contest(rounds, contenders, tuned, options.jobs)


def on_its_own(options: argparse.Namespace) -> str:
    """Latency, a worker at rest, and the start of the command line."""
    tell("a lone message, an idle worker, oncue --help")
    measured = alone.measure(*((20, 1.0, 3) if options.quick else (300, 20.0, 21)))
    tell("")
    return "### On its own\n\n" + report.alone(*measured)


def through_the_transport(options: argparse.Namespace) -> str:
    """The program of the transport alone, with a backlog of a million."""
    tell("the transport by itself")
    words = ["--messages", "500", "--backlog", "0", "--rounds", "1", "--idle", "1"] if options.quick else []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = transport.main(words)
    tell("")
    if status:
        raise MiscountError("the transport lost or invented a message, see above")
    return f"### The transport by itself\n\n```text\n{printed.getvalue().strip()}\n```\n"


def tell(what: str) -> None:
    """Show on a terminal what is being measured."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
