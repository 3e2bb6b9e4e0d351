"""Time, memory and page size of a report of many runs.

    python benchmarks/report.py --runs 10000

The runs are synthetic: agents with settings of their own on two tasks, five seeds each, 21 evaluations and 40
other lines of metrics. One in a hundred is damaged, and one agent in five has the files of an older version.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tomli_w

from entropyfloor.report import write_report
from entropyfloor.runs import machine

TASKS, SEEDS, EVERY = ("dmc/walker-walk", "dmc/cheetah-run"), 5, 50_000
AGENTS = ("sac", "sac-era", "sac-era-exact", "fasttd3")
MACHINE = {"hardware": {"cpu": "a CPU", "cores": 2}, "system": "Linux", "command": "entropyfloor train control"}
NAMES = ("config.toml", "metrics.jsonl", "status.json", "machine.json")


def make(home: Path, count: int) -> None:
    """Write so many run directories."""
    rng = np.random.default_rng(0)
    for n in range(count):
        arm, task, seed = n // (len(TASKS) * SEEDS), TASKS[n // SEEDS % len(TASKS)], n % SEEDS
        alpha = 0.01 * (1 + arm // len(AGENTS))
        config = {"domain": "control", "agent": AGENTS[arm % len(AGENTS)], "env": task, "seed": seed}
        config |= {"steps": 20 * EVERY, "alpha": alpha, "batch": 256, "gamma": 0.99, "recipe": "x"}
        recent = {} if arm % 5 == 0 else {"not_results": ["seed", "out", "threads", "recipe"]}
        contents = (
            tomli_w.dumps(config),
            "".join(f"{json.dumps(line)}\n" for line in lines(rng)),
            json.dumps({"state": "finished", "reason": None, "step": 20 * EVERY, "time": None}),
            json.dumps({**MACHINE, **recent}),
        )
        path = home / f"{n:06}"
        path.mkdir()
        for i, (name, text) in enumerate(zip(NAMES, contents, strict=True)):
            damaged = n % 100 == 7 and n // 100 % len(NAMES) == i
            (path / name).write_text(text[: len(text) // 2].replace("\n", "x\n", 1) if damaged else text)


def lines(rng: np.random.Generator) -> list[dict[str, float]]:
    """The metrics of a run."""
    level = 600 + 100 * rng.standard_normal()
    found = []
    for step in range(0, 21 * EVERY, EVERY):
        for at in (step - EVERY // 2, step) if step else ():
            losses = {
                "loss/actor": rng.normal(),
                "loss/critic": rng.random(),
                "alpha": 0.5,
                "q/mean": rng.normal(),
            }
            found.append({"step": at, "seconds": at / 100, **losses, "steps_per_second": 100.0})
        score = level * (1 - np.exp(-step / 3e5)) + 10 * rng.normal()
        entropy = {"realised_entropy": -2.5, "realised_entropy/min": -2.9 + 0.1 * rng.random(), "floor": -3.0}
        found.append({"step": step, "seconds": step / 100, "return": score, **entropy})
    return found


def main() -> None:
    """Make runs, and report on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        runs, out = Path(home, "runs"), Path(home, "report")
        runs.mkdir()
        make(runs, args.runs)
        left_out: list[str] = []
        wall, cpu = time.perf_counter(), time.process_time()
        page = write_report([runs], out, warn=lambda line: left_out.append(str(line)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = machine.peak_memory()["peak_memory"]
        size = page.stat().st_size / 1e6
    found = machine.describe()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib"))
    print(f"{found['hardware']['cpu']}, one process, {found['started']}, {versions}")
    print(f"{args.runs:,} runs: {cpu:.1f} s of CPU, {wall:.1f} s of wall time, {peak:.2f} GiB, page {size:.2f} MB")
    print("\n".join(left_out[-1:]))


if __name__ == "__main__":
    main()
