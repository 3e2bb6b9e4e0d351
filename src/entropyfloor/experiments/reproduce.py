"""Executing a plan by an engine: finished runs are skipped, unfinished ones continue, failures are named."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from entropyfloor.experiments.execute import Outcome, log_file
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import check_same


def reproduce(plan: Sequence[PlannedRun], workers: int | None = None, engine: str = "local") -> None:
    """Start new runs and resume unfinished ones; the output of a run goes to `<run>-log.txt`.

    Args:
        plan: Runs in the order in which they are started.
        workers: Number of runs at a time; by default the engine's choice.
        engine: local, ray or slurm: a module of `engines`. Slurm only takes the jobs: this call does not wait for
            them.

    Raises:
        ValueError: There is a run with other settings in the directory of a planned one.
        RuntimeError: Some runs failed; the others are done, or were not started because settings were refused.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after every run has saved and stopped.
    """
    for run in plan:
        if run.mode == "train":  # an evaluation checks itself which of its settings may change
            check_same(run.out, run.record)
    ended = _Ended(len(plan))
    with ended.progress:
        try:
            importlib.import_module(f"entropyfloor.experiments.engines.{engine}").run(
                plan, Path.cwd(), workers, ended
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues the unfinished runs") from None
    if ended.failed:
        logs = ", ".join(str(log_file(run)) for run in ended.failed)
        rest = f" and {missing} were not started" if (missing := len(plan) - ended.count) else ""
        raise RuntimeError(f"{len(ended.failed)} of {len(plan)} runs failed{rest}: see {logs}")


class _Ended:
    """Counts and shows the runs that have ended."""

    def __init__(self, total: int) -> None:
        self.progress = Progress(total, unit="runs", every=1)
        self.progress.restart(0)
        self.failed: list[PlannedRun] = []
        self.count = 0

    def __call__(self, run: PlannedRun, outcome: Outcome) -> bool:
        """Whether further runs may start: settings that are refused once are refused again."""
        self.count += 1
        if outcome in ("failed", "refused"):
            self.failed.append(run)
        if outcome == "finished before":
            self.progress.restart(self.count)  # skipped runs do not count for the speed
        self.progress.report(self.count, f"{run.out} {outcome}")
        return outcome != "refused"
