"""What people run from a clone: the demo and the benchmarks, small."""

import subprocess
import sys
from pathlib import Path

import pytest

from entropyfloor.runs import read_run

ROOT = Path(__file__).parents[1]


def run(*args, limit=500):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=limit)


@pytest.mark.slow
def test_the_demo_trains_reports_and_does_nothing_twice(tmp_path):
    small = [
        "examples/demo.py",
        "--env",
        "gym/Reacher-v4",
        "--steps",
        "60",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    ]
    first = run(*small)
    assert first.returncode == 0, first.stdout + first.stderr
    page = tmp_path / "report" / "index.html"
    assert first.stdout.endswith(f"{page.as_uri()}\n")
    for agent in ("sac", "sac-era", "sac-era-exact"):
        assert f"{agent} promised" in page.read_text()
        assert read_run(tmp_path / agent / "seed-0").status["state"] == "finished"
    before = (tmp_path / "sac" / "seed-0" / "metrics.jsonl").read_bytes()
    assert run(*small).returncode == 0
    assert (tmp_path / "sac" / "seed-0" / "metrics.jsonl").read_bytes() == before
    other = run(*small, "--steps", "80")
    assert other.returncode == 1
    assert "is of gym/Reacher-v4 over 60 steps: choose another --out" in other.stderr


@pytest.mark.slow
def test_the_benchmark_of_activations_runs():
    done = run("benchmarks/activations.py", "--rounds", "4")
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three libraries compile every agent in several sizes
@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("updates", "time of ppo-era / time of plain head"),
        ("loops", "simulator alone"),
        ("share", "time of sac-era-exact / time of plain head"),
    ],
)
def test_the_benchmark_of_agents_runs(part, line):
    done = run("benchmarks/control.py", "--parts", part, "--rounds", "2", "--steps", "64", limit=1100)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
