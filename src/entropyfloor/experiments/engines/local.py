"""Runs on this machine, several at a time, each in a process of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from entropyfloor.experiments.execute import SAVING, Ended, begin, given_up, is_written, outcome
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.runs.processes import cores, stop, terminated_as_interrupted


def workers_of(plan: Sequence[PlannedRun]) -> int:
    """Number of runs at a time: one for each core, or one where runs want an accelerator."""
    return 1 if any(run.accelerators for run in plan) else cores()


def run(plan: Sequence[PlannedRun], directory: Path, workers: int | None, ended: Ended) -> None:
    """Execute a plan; Ctrl-C makes all runs save and stop.

    Args:
        plan: Runs in the order in which they are started.
        directory: Directory that relative paths start from.
        workers: Number of runs at a time; by default `workers_of` them.
        ended: Called with each run and its outcome.
    """
    most = workers or workers_of(plan)
    waiting = list(plan)
    written: dict[Path, float] = {}
    """Runs that another process was still writing, and when that was first seen."""
    running: dict[subprocess.Popen[bytes], PlannedRun] = {}
    with terminated_as_interrupted():
        try:
            while waiting or running:
                for run in list(waiting):
                    if len(running) == most:
                        break
                    if is_written(run, directory):  # others go first
                        if time.monotonic() > written.setdefault(run.out, time.monotonic()) + SAVING:
                            waiting.remove(run)
                            ended(run, given_up(run, directory))
                        continue
                    waiting.remove(run)
                    if (process := begin(run, directory)) is None:
                        ended(run, "finished before")
                    else:
                        running[process] = run
                for process in [process for process in running if process.poll() is not None]:
                    if not ended(running.pop(process), outcome(process)):
                        waiting.clear()
                time.sleep(0.05)
        finally:
            stop(list(running), outcome)
