"""Runs as the jobs of one Slurm job array.

The settings of the cluster are Slurm's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, …
A job that reaches its time limit or is preempted saves its run and is queued again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from entropyfloor.experiments.execute import SAVING, Ended, execute, log_file, state
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.extras import require

DAY = 24 * 60
"""Time limit of a job in minutes, unless SBATCH_TIMELIMIT says otherwise."""
AGAIN = 1000
"""Times that a job may reach its time limit."""


@dataclass(frozen=True)
class Job:
    """What a job calls: the execution of one run."""

    run: PlannedRun
    directory: Path

    def __call__(self) -> None:
        """Execute the run.

        Raises:
            RuntimeError: The run failed.
        """
        if (ended := execute(self.run, self.directory)) in ("failed", "refused"):
            raise RuntimeError(f"{self.run.out} {ended}: see {log_file(self.run, self.directory)}")

    def checkpoint(self) -> Any:
        """Save the run before the time limit; the same job, queued again, continues it."""
        import psutil
        from submitit.helpers import DelayedSubmission

        for child in psutil.Process().children():
            child.terminate()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its exit status is left for `execute`
        return DelayedSubmission(self)


def run(plan: Sequence[PlannedRun], directory: Path, workers: int | None, ended: Ended) -> None:
    """Submit a plan and return: the same command submits later what is not finished.

    Args:
        plan: Runs; those that need as many cores and accelerators are one job array.
        directory: Directory that relative paths start from, on a file system that all nodes share.
        workers: Number of jobs at a time; by default Slurm decides.
        ended: Called with each run when it is submitted.

    Raises:
        ImportError: submitit is not installed.
        RuntimeError: This is no machine from which Slurm takes jobs.
    """
    require("slurm", "submitit")
    import submitit

    left = [run for run in plan if state(run, directory) != "finished"]
    for run in plan:
        if run not in left:
            ended(run, "finished before")
    for (cpus, accelerators), runs in groupby(sorted(left, key=_resources), _resources):
        jobs = [Job(run, directory) for run in runs]
        for job in jobs:
            log_file(job.run, directory).parent.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(directory / "slurm", cluster="slurm", slurm_max_num_timeout=AGAIN)
        executor.update_parameters(
            name="entropyfloor",
            timeout_min=DAY,
            cpus_per_task=cpus,
            **({"gpus_per_node": accelerators} if accelerators else {}),
            slurm_array_parallelism=workers or len(jobs),
            slurm_signal_delay_s=int(SAVING),
        )
        with executor.batch():
            for job in jobs:
                executor.submit(job)
        for job in jobs:
            ended(job.run, "submitted")


def _resources(run: PlannedRun) -> tuple[int, int]:
    return run.cpus, run.accelerators
