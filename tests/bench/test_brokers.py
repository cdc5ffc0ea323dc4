"""The benchmarks on brokers run on a small scale, say what they need to have all peers, and fail when a job is lost or invented."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from brokers.rabbitmq_server import program
from brokers.redis_server import binary
from programs import ROOT, environment

sys.path.insert(0, str(ROOT))  # the benchmarks are programs at the root, and no package that is installed

from bench.brokers import report
from bench.brokers.queues import Watch
from bench.rounds import Round, Speed, Work

OURS, CELERY, REPID = (f"bench.brokers.contenders.{name}" for name in ("oncue", "celery", "repid"))


def bench(*words: str, broker: str = "redis", **more: str) -> subprocess.CompletedProcess[str]:
    if broker == "redis":
        binary()
    else:
        program("rabbitmq-server")
    command = [sys.executable, "-m", "bench.brokers", broker, "--quick", *words]
    return subprocess.run(command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, check=False)


def test_a_small_round_has_all_rates_and_their_costs() -> None:
    done = bench("--part", "contest", "--only", "OnCue", "bare client")
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^\| (OnCue|bare client): (\S+?),? .*\| [\d,]+ \| \d+\.\d\d \| \d+\.\d\d \|$", done.stdout, re.MULTILINE
    )
    assert sorted(rows) == [
        ("OnCue", "drain"),
        *[("OnCue", "enqueue")] * 3,
        ("bare client", "drain"),
        ("bare client", "enqueue"),
    ]
    assert re.search(r"^\| bare client, drain \| [\d.]+ \|", done.stdout, re.MULTILINE)
    assert re.search(r"^- bare client: redis \S+,.*; drains with (256|1000)\.$", done.stdout, re.MULTILINE)


def test_the_same_is_measured_on_rabbitmq() -> None:
    done = bench("--part", "contest", "--only", "OnCue", "OnCue on classic queues", broker="rabbitmq")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (OnCue|OnCue on classic queues): drain \| [\d,]+ \|", done.stdout, re.MULTILINE)
    assert rows == ["OnCue", "OnCue on classic queues"]


def test_lone_messages_many_queues_and_sidecars_are_measured() -> None:
    done = bench("--part", "lone", "--part", "queues", "--part", "sidecar", "--only", "oncue")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| OnCue \| 20 \| \d+\.\d\d \|", done.stdout, re.MULTILINE)
    assert re.search(
        r"^\| 100 queues, .* \| 1 \| \d+% of one queue's rate, goal 70%: (reached|MISSED) \|$",
        done.stdout,
        re.MULTILINE,
    )
    assert "Through 2 actors" in done.stdout


async def test_no_job_of_many_queues_is_done_before_each_has_one_and_the_clock_runs_from_the_half() -> None:
    watch = Watch("redis://127.0.0.1:1/0", queues=3, jobs=12)
    first = [asyncio.create_task(watch.work(number)) for number in (0, 3, 6, 1, 4, 7)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in first)
    async with asyncio.timeout(10):
        await watch.work(2)
        await asyncio.gather(*first)
    assert watch.warm_at
    for number in (5, 8, 9, 10, 11):
        await watch.work(number)
    found = watch.measured()
    assert found["jobs"] == 6
    assert found["start"] > 0
    assert 0 < found["seconds"] < watch.tally.finished_at - watch.reached_at


def test_peers_that_are_not_there_are_left_out_and_it_says_how_to_have_them() -> None:
    done = bench("--only", "Celery", "Repid")
    assert done.returncode == 2
    assert "Celery is left out" in done.stderr
    assert "Repid is left out" in done.stderr
    assert "pip install -r bench/peers/" in done.stderr
    assert all((ROOT / "bench" / "peers" / f"{each}.txt").is_file() for each in ("newer", "older"))


def test_a_name_that_nobody_has_is_refused_with_those_that_there_are() -> None:
    done = bench("--only", "Sidekiq")
    assert done.returncode == 1
    assert "nobody on redis is called sidekiq" in done.stderr
    assert "Dramatiq" in done.stderr


@pytest.mark.parametrize(("fault", "said"), [("instead", "1 were lost"), ("besides", "0 were lost, and 1 came")])
def test_a_run_that_lost_or_invented_a_job_fails(fault: str, said: str) -> None:
    here = str(Path(__file__).parent)
    done = bench("--part", "contest", "--contenders", "careless", CARELESS=fault, PYTHONPATH=here)
    assert done.returncode == 1
    assert said in done.stderr
    assert "jobs a second" not in done.stdout


def played(**rates: float) -> Round:
    """A round with these rates; `oncue_send_many` is of the module `oncue`, and so on."""
    found = {}
    for words, rate in rates.items():
        name, _, mode = words.partition("_")
        found[Work(f"bench.brokers.contenders.{name}", "enqueue" if mode else "drain", mode)] = Speed(
            100, 100 / rate, 1.0
        )
    return found


def test_goals_are_about_each_drain_and_about_the_fastest_that_sends() -> None:
    rounds = [
        played(oncue=100, oncue_send_many=90, oncue_concurrent=40, celery=10, celery_slow=20, repid=50, repid_fast=25),
        played(oncue=100, oncue_send_many=90, oncue_concurrent=40, celery=10, celery_slow=20, repid=50, repid_fast=45),
    ]
    shown = report.ratios("redis", rounds)
    assert "| Celery, drain | 10.00 | 10.00 | 10.00 | 8 times: reached |" in shown
    assert "| Repid, drain | 2.00 | 2.00 | 2.00 | 2.5 times: MISSED |" in shown
    assert "| Repid: enqueue, fast, the fastest, by send_many | 2.80 | 2.00 | 3.60 | 3 times: MISSED |" in shown
    assert "Celery: enqueue" not in shown


def test_without_oncue_there_is_nothing_to_compare() -> None:
    assert not report.ratios("redis", [played(celery=10, repid=50)])
