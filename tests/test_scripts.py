"""What people run from a clone: the demo and the benchmarks, small."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from entropyfloor.runs import Run, read_run

ROOT = Path(__file__).parents[1]


def run(*args, limit=500):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=limit)


@pytest.mark.slow
def test_the_demo_trains_reports_and_does_nothing_twice(tmp_path):
    options = f"--env gym/Reacher-v4 --steps 60 --seeds 1 --out {tmp_path}"
    small = ["examples/demo.py", *options.split()]
    first = run(*small)
    assert first.returncode == 0, first.stdout + first.stderr
    page = tmp_path / "report" / "index.html"
    assert first.stdout.endswith(f"{page.as_uri()}\n")
    for agent in ("sac", "sac-era", "sac-era-exact"):
        assert agent in page.read_text()
        assert read_run(tmp_path / agent / "seed-0").status["state"] == "finished"
    before = (tmp_path / "sac" / "seed-0" / "metrics.jsonl").read_bytes()
    assert run(*small).returncode == 0
    assert (tmp_path / "sac" / "seed-0" / "metrics.jsonl").read_bytes() == before
    other = run(*small, "--steps", "80")
    assert other.returncode == 1
    for word in ("gym/Reacher-v4", "60 steps", "--out"):
        assert word in other.stderr


@pytest.mark.slow
def test_floors_of_classifiers_are_drawn(tmp_path):
    arms = [("plain", {}), ("smoothing-0.1", {"label_smoothing": 0.1})]
    for floor, nats in itertools.product(("paper", "calibrated"), (0.3, 0.6)):
        arms.append((f"era-{floor}-{nats}", {"floor": floor, "min_entropy": nats}))
    for (agent, settings), seed in itertools.product(arms, range(3)):
        names = {"domain": "vision", "env": "cifar10 test_resnet", "agent": agent, "seed": seed}
        one = Run.create(tmp_path / "runs" / agent / str(seed), {**names, **settings})
        with one.recording():
            one.log(1, {"top1": 0.7, "nll": 1.0 + 0.1 * seed, "ece": 0.05, "realised_entropy/min": 0.6})
    done = run("examples/min_entropy.py", "--runs", str(tmp_path / "runs"), "--figure", str(tmp_path / "f"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.png").stat().st_size > 20_000
    svg = (tmp_path / "f.svg").read_text()
    assert all(f"<!-- {label} -->" in svg for label in ("paper", "calibrated", "no floor"))


@pytest.mark.slow
def test_the_instability_is_drawn_from_its_results(tmp_path):
    results = ("--draw", "--out", "results/control/instability.runs.zip", "--figure", str(tmp_path / "f"))
    done = run("examples/instability.py", *results)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.png").stat().st_size > 20_000


def test_returns_are_drawn_beside_published_ones(tmp_path):
    """On dog-stand a seed of DreamerV3 has no return before 400,000 steps."""
    for task, agent, seed in itertools.product(("walker-walk", "dog-stand"), ("tdmpc2", "tdmpc2-era"), (0, 1)):
        settings = {"domain": "control", "env": f"dmc/{task}", "agent": agent, "seed": seed}
        one = Run.create(tmp_path / "runs" / task / agent / f"seed-{seed}", settings)
        with one.recording():
            for step in (0, 100_000, 200_000):
                one.log(step, {"return": 0.004 * step})
    done = run("examples/published.py", "--runs", str(tmp_path / "runs"), "--figure", str(tmp_path / "f"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.png").stat().st_size > 20_000
    svg = (tmp_path / "f.svg").read_text()
    methods = ("tdmpc2, published", "sac, published", "dreamerv3, published", "tdmpc2-era")
    assert all(f"<!-- {label} -->" in svg for label in methods)
    assert run("examples/published.py", "--runs", str(tmp_path / "none")).returncode == 1


BENCHMARKS = {
    "activations.py --rounds 4": {"95 % interval": 1},
    "vision.py --parts head --rounds 1": {"time of calibrated / time of plain": 6, "added to a step of": 6},
    "vision.py --parts step --rounds 1": {"time of paper / time of plain": 2, "added to a step of": 0},
    "vision.py --parts precision --models test_resnet --rounds 1": {
        "time of fp32, last / time of bf16, last": 1,
    },
    "language.py --models tiny --rounds 1": {
        "time of generate bf16 / time of ours bf16": 1,
        "time of fp32 / time of bf16": 1,
    },
    "control.py --parts updates --rounds 2 --steps 64": {"time of ppo-era / time of plain head": 1},
    "control.py --parts loops --rounds 2 --steps 64": {"simulator alone": 2},
    "control.py --parts share --rounds 2 --steps 64": {"time of sac-era-exact / time of plain head": 1},
    "massively_parallel.py --parts updates --rounds 1": {"time of fastsac-era / time of plain head": 2},
    "massively_parallel.py --parts loops --rounds 1 --envs 2": {"simulation": 1},
    "model_based.py --rounds 1": {"time of tdmpc2 fp32 / time of tdmpc2": 2},
}
"""What each prints, and how often."""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # most of it is compiling
@pytest.mark.parametrize("command", BENCHMARKS)
def test_a_benchmark_runs(command):
    script, *options = command.split()
    done = run(f"benchmarks/{script}", *options, limit=1100)
    assert done.returncode == 0, done.stderr
    expected = BENCHMARKS[command]
    assert {text: done.stdout.count(text) for text in expected} == expected


@pytest.mark.slow
def test_the_fused_head_is_measured_beside_others():
    small = ["--tokens", "64", "--hidden", "32", "--vocabulary", "5000", "--rounds", "1", "--dtype"]
    done = run("benchmarks/token_log_probs.py", *small, "bfloat16")
    assert done.returncode == 0, done.stderr
    for name in (
        "plain",
        "era",
        "era-filtered",
        "era-afterwards",
        "naive",
        "release",
        "trl-logits",
        "trl-chunked",
    ):
        assert len(re.findall(rf"^{name} +[0-9.]+ +[0-9.]+ +-?[0-9.]+$", done.stdout, re.MULTILINE)) == 1
    assert "era / release: time" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_reports_says_what_a_report_takes():
    done = run("benchmarks/report.py", "--runs", "120")
    assert done.returncode == 0, done.stderr
    said = r"120 runs: [0-9.]+ s of CPU, [0-9.]+ s of wall time, 0\.\d\d GiB, page 0\.\d\d MB\n"
    assert re.search(said, done.stdout)
    assert "is damaged" in done.stdout
