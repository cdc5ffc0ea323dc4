"""OnCue and its peers on a broker: `python -m bench.brokers redis|rabbitmq`, alone on the machine, please.

Each contender enqueues and drains jobs that do nothing, in one process each, on a real server that this program starts, a round each
in turn; what counts is the ratio between two of one round. Then lone messages, many queues in one process, and the way through
sidecars. Exits with 1 when a job was lost or invented. Linux only, because it reads other processes' times from /proc.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence

from bench import report as house
from bench import sidecar
from bench.brokers import report
from bench.brokers.ground import BARE, CLASSIC, HOW, OURS, PEERS, BrokerGround, takes_part
from bench.brokers.servers import SERVERS, AbsentError, version
from bench.rounds import ROOT, name, play, tune
from bench.tally import MiscountError

PARTS = ("contest", "lone", "queues", "sidecar")
QUEUES = 100
TIMES, FEWEST = 10, 400
"""So many times the jobs of the contest, which last less than a second, are for the queues, and so many for each at least."""
ACTORS = 2
WARM_UP = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.brokers", description=__doc__, epilog=HOW, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("broker", choices=SERVERS)
    parser.add_argument("--jobs", type=int, default=20_000, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the contest (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these contenders instead of all, such as OnCue Celery"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="this part instead of all; may be said again")
    parser.add_argument("--peers", nargs="+", metavar="PYTHON", default=[], help="where the peers are installed")
    parser.add_argument("--quick", action="store_true", help="a small round that only shows that everything works")
    parser.add_argument("--contenders", nargs="+", default=[OURS, CLASSIC, BARE, *PEERS], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.jobs, options.rounds = 300, 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers must not outlive this program
    contenders = chosen(options.contenders, options.broker, options.only)
    status = 0
    try:
        with SERVERS[options.broker]() as places:
            status = measure(BrokerGround(options.broker, places, contenders, options.peers), options)
    except (MiscountError, AbsentError) as error:
        print(f"bench.brokers: {error}", file=sys.stderr)
        status = 1
    return status


def chosen(contenders: Sequence[str], broker: str, only: Sequence[str] | None) -> list[str]:
    """Those that know the broker, and are called as the user said."""
    able = [each for each in contenders if takes_part(each, broker)]
    wanted = {each.lower() for each in only or map(name, able)}
    unknown = wanted - {name(each).lower() for each in able}
    if unknown:
        raise SystemExit(
            f"bench.brokers: nobody on {broker} is called {', '.join(sorted(unknown))}: {[*map(name, able)]}"
        )
    return [each for each in able if name(each).lower() in wanted]


def measure(ground: BrokerGround, options: argparse.Namespace) -> int:
    """All parts that were asked for, printed one after the other; 2 if nobody can take part."""
    for contender, packages in ground.absent.items():
        print(f"bench.brokers: {name(contender)} is left out: nowhere is all of {', '.join(packages)}", file=sys.stderr)
    if ground.absent:
        print(HOW, file=sys.stderr)
    if not ground.contenders:
        return 2
    print(f"## {version(ground.broker)}\n\n{house.machine('oncue')}\n", flush=True)
    tuned = tune(ground.contenders, max(200, options.jobs // 5), tries=1 if options.quick else 2, ground=ground)
    for part in options.part or PARTS:
        if part == "contest":
            contest(ground, tuned, options)
        elif part == "lone":
            found = {each: lone(ground, each, tuned, options) for each in ground.contenders if each != BARE}
            print(f"### Lone messages\n\n{report.lone(ground.broker, found)}", flush=True)
        elif OURS in ground.contenders:
            (queues if part == "queues" else hops)(ground, options)
    return 0


def contest(ground: BrokerGround, tuned: dict[str, str], options: argparse.Namespace) -> None:
    """OnCue and its peers, round by round."""
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append(
            play(ground.contenders, options.jobs, tuned, lambda what, n=number: tell(f"round {n}: {what}"), ground)
        )
    tell("")
    print(report.settings(ground.contenders, tuned, ground.versions))
    print(
        f"### Against peers\n\n{report.rates(rounds, options.jobs)}\n{report.ratios(ground.broker, rounds)}", flush=True
    )


def lone(ground: BrokerGround, contender: str, tuned: dict[str, str], options: argparse.Namespace) -> list[float]:
    """Milliseconds of each, those left out that found everything asleep or not yet there."""
    tell(f"lone messages: {name(contender)}")
    count = 20 if options.quick else 1000
    took = ground.lone(contender, WARM_UP + count, *([tuned[contender]] if contender in tuned else []))
    tell("")
    return took[WARM_UP:]


def queues(ground: BrokerGround, options: argparse.Namespace) -> None:
    """One queue and many, in turn."""
    tell(f"{QUEUES} queues")
    jobs = options.jobs if options.quick else max(TIMES * options.jobs, FEWEST * QUEUES)
    found: dict[int, list[dict[str, float]]] = {1: [], QUEUES: []}
    for _ in range(options.rounds):
        for count, measured in found.items():
            with ground.places() as place:
                words = [sys.executable, "-m", "bench.brokers.queues", place.url, str(count), str(jobs)]
                done = subprocess.run(words, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise MiscountError(f"{count} queues failed, see above")
            measured.append(json.loads(done.stdout))
    one, many = map(drained, found.values())
    tell("")
    print(f"### Many queues\n\n{report.queues(ground.broker, report.Queues(QUEUES, jobs, one, many))}", flush=True)


def drained(measured: Sequence[dict[str, float]]) -> report.Drained:
    """The medians; of connections the most."""
    return report.Drained(
        statistics.median(each["jobs"] / each["seconds"] for each in measured),
        statistics.median(each["cpu"] * 10_000 / each["jobs"] for each in measured),
        statistics.median(each["start"] for each in measured),
        max(int(each["connections"]) for each in measured),
    )


def hops(ground: BrokerGround, options: argparse.Namespace) -> None:
    """The program of the sidecar alone, on this server."""
    tell("sidecars")
    rates = []
    for _ in range(options.rounds):
        with ground.places() as place:
            rates.append(sidecar.throughput(options.jobs, place.url, actors=ACTORS).rate)
    tell("")
    print(f"### Sidecars\n\n{report.hops(ground.broker, ACTORS, rates)}", flush=True)


def tell(what: str) -> None:
    """Show on a terminal what is being measured."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
