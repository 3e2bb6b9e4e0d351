"""Time and memory of runs by a short measurement: some train for a moment, and what they wrote is deleted."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from entropyfloor.experiments.execute import popen
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.runs.processes import terminated_as_interrupted
from entropyfloor.runs.progress import PACE

BUDGET = 60.0
"""Seconds that a measurement takes at most, with those that programs need to start and to compile."""
ENOUGH = 5.0
"""Seconds of training after which the pace of a run is known."""
POLL = 0.2
"""Seconds between looks at the trials."""
SOONER: Mapping[str, Mapping[str, Any]] = {
    "control": {"random_steps": 100, "eval_episodes": 1},
    "vision": {},
    "language": {"warm_start_steps": 1, "eval_problems": 1, "eval_samples": 1},
}
"""Settings that bring a run to its training sooner."""
ELSEWHERE = ("warm_starts", "download", "track")
"""Settings that write beside a run."""


class Measured(NamedTuple):
    """What a short training says about a whole run."""

    seconds: float
    """How long it trains."""
    memory: float
    """Largest memory of the process until then, in GiB."""
    device: float
    """Largest memory of a device until then, in GiB; 0 where it used none."""


def measure(runs: Sequence[PlannedRun], workers: int, budget: float = BUDGET) -> dict[int, Measured]:
    """Time and memory of whole runs, by their indices, for as many runs as the budget allows.

    As many train at a time as in the plan, so that they are in each other's way as much. Those of different arms
    come first. Evaluations and the warm start of a language model are not counted.

    Args:
        runs: Runs of a plan.
        workers: Number of runs at a time.
        budget: Seconds for all of it.
    """
    end, found = time.monotonic() + budget, {}
    waiting = _different_first(runs)
    with terminated_as_interrupted(), tempfile.TemporaryDirectory() as home:
        trials: dict[int, subprocess.Popen[bytes]] = {}
        try:
            while (waiting or trials) and time.monotonic() < end:
                while waiting and len(trials) < workers:
                    i = waiting.pop(0)
                    trials[i] = _begin(runs[i], Path(home, str(i)))
                time.sleep(POLL)
                for i, trial in [*trials.items()]:
                    measured, trained = _pace(Path(home, str(i), "pace"))
                    if measured:
                        found[i] = measured
                    if trained >= ENOUGH or trial.poll() is not None:
                        _stop(trials.pop(i))
        finally:
            for trial in trials.values():
                _stop(trial)
    return found


def arm_of(run: PlannedRun) -> tuple[str, Any]:
    """The arm, with its recipe and scale, and the environment: runs that differ by their seeds take alike."""
    return str(run.settings.get("recipe", run.arm)), run.settings.get("env")


def _different_first(runs: Sequence[PlannedRun]) -> list[int]:
    """Indices of a run of each arm, then of each arm in each other environment."""
    trainable = [i for i, run in reversed([*enumerate(runs)]) if run.mode == "train" and run.devices == 1]
    arms = {arm_of(runs[i])[0]: i for i in trainable}
    others = {arm_of(runs[i]): i for i in trainable}
    return list(dict.fromkeys([*sorted(arms.values()), *sorted(others.values())]))


def _begin(run: PlannedRun, home: Path) -> subprocess.Popen[bytes]:
    """Start a run in a directory of its own, in which it notes its pace."""
    home.mkdir()
    settings = {name: value for name, value in run.settings.items() if name not in ELSEWHERE}
    settings |= {name: value for name, value in SOONER[run.domain].items() if name in run.known}
    trial = replace(run, out=home / "run", settings=settings)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return popen(trial, trial.command, env={**os.environ, PACE: str(home / "pace")}, **quiet)


def _pace(file: Path) -> tuple[Measured | None, float]:
    """The whole run at its pace since it last changed, and the seconds of this pace; None and 0 without one."""
    if not file.exists():
        return None, 0.0
    lines = [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    since = [(float(now), int(done), int(total)) for begun, now, done, total, *_ in lines if begun == lines[-1][0]]
    if not since or since[-1][1] == since[0][1]:
        return None, 0.0
    (first, begun, total), (last, done, _) = since[0], since[-1]
    memory, device = map(float, lines[-1][-2:])
    return Measured(total * (last - first) / (done - begun), memory, device), last - first


def _stop(trial: subprocess.Popen[bytes]) -> None:
    """End a trial and what it has started."""
    if trial.poll() is None:
        os.killpg(trial.pid, signal.SIGKILL)
    trial.communicate()
