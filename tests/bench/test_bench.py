"""The benchmarks run from end to end on a small scale, and fail when a job is lost or invented."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import ROOT, environment

sys.path.insert(0, str(ROOT))  # the benchmarks are programs at the root, and no package that is installed

from bench.rounds import Ratio, Speed, Work, ratio
from bench.tally import MiscountError, Tally

needs_peers = pytest.mark.skipif(
    not find_spec("huey") or not find_spec("persistqueue"), reason="the peers are not installed in this environment"
)


def bench(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = environment(**more)
    del environ["PYTHONWARNINGS"]  # the peers' are theirs
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


@needs_peers
def test_all_contenders_do_a_small_round() -> None:
    done = bench("--quick", "--only", "contest")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\S+): (enqueue|drain)", done.stdout, re.MULTILINE)
    assert {name for name, _ in rows} == {"OnCue", "Huey", "persist-queue"}
    assert len(rows) == 8
    assert re.search(r"^\| Huey, drain \| [\d.]+ \|", done.stdout, re.MULTILINE)


@needs_peers
def test_latency_an_idle_worker_and_the_start_are_measured() -> None:
    done = bench("--quick", "--only", "alone")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"(reached|MISSED) \|$", done.stdout, re.MULTILINE)) == 4


@needs_peers
def test_the_transport_is_measured() -> None:
    done = bench("--quick", "--only", "transport")
    assert done.returncode == 0, done.stderr
    assert "messages a second" in done.stdout


@pytest.mark.parametrize(("fault", "said"), [("loses", "1 were lost"), ("invents", "1 came that should not")])
@needs_peers
def test_a_run_that_lost_or_invented_a_job_fails(fault: str, said: str) -> None:
    here = str(Path(__file__).parent)
    done = bench("--quick", "--only", "contest", "--contenders", "losing", CARELESS=fault, PYTHONPATH=here)
    assert done.returncode == 1
    assert said in done.stderr
    assert "jobs a second" not in done.stdout


def test_a_tally_gives_up_when_nothing_comes_any_more() -> None:
    tally = Tally(3)
    tally.add(0)
    tally.add(2)
    with pytest.raises(MiscountError, match="of 3 jobs 1 were lost"):
        tally.wait(patience=0.01)


def test_a_tally_knows_a_job_that_came_twice_from_one_that_is_missing() -> None:
    tally = Tally(2)
    tally.add(1)
    tally.add(1)
    tally.wait()
    with pytest.raises(MiscountError, match="of 2 jobs 1 were lost, and 1 came that should not"):
        tally.check()


def test_a_ratio_compares_within_a_round() -> None:
    ours, theirs = Work("ours", "drain"), Work("theirs", "drain")
    quiet = {ours: Speed(100, 1.0, 1.0), theirs: Speed(100, 5.0, 1.0)}
    busy = {ours: Speed(100, 10.0, 1.0), theirs: Speed(100, 60.0, 1.0)}
    assert ratio([quiet, busy], ours, theirs) == Ratio(5.5, 5.0, 6.0)
