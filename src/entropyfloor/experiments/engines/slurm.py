"""Runs as the jobs of one Slurm job array.

The settings of the cluster are Slurm's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, …
A job that reaches its time limit or is preempted saves its run and is queued again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from entropyfloor.experiments.execute import SAVING, WATCHED, Ended, execute, log_file, state
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.extras import require, shortened

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
            if WATCHED not in child.cmdline():  # such as a resource tracker, which ignores the signal
                continue
            child.terminate()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its exit status is left for `execute`
        return DelayedSubmission(self)


def run(plan: Sequence[PlannedRun], directory: Path, workers: int | None, ended: Ended) -> None:
    """Submit a plan and return: the same command submits later what is not finished and no longer queued.

    Args:
        plan: Runs; those that need as many cores and accelerators are one job array.
        directory: Directory that relative paths start from, on a file system that all nodes share.
        workers: Number of jobs at a time; by default Slurm decides.
        ended: Called with each run: submitted now, queued before or finished before.

    Raises:
        ImportError: submitit is not installed.
        RuntimeError: This is no machine from which Slurm takes jobs, or Slurm does not answer.
    """
    require("slurm", "submitit")
    import submitit

    finished = [run for run in plan if state(run, directory) == "finished"]
    queued = _queued([run for run in plan if run not in finished], directory)
    left = []
    for run in plan:
        if run in finished:
            ended(run, "finished before")
        elif run.out in queued:
            ended(run, "queued before")
        else:
            left.append(run)
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
        for job, submitted in zip(jobs, executor.submit_array(jobs), strict=True):
            _number_file(job.run, directory).write_text(submitted.job_id)
            ended(job.run, "submitted")


def _queued(plan: Sequence[PlannedRun], directory: Path) -> list[Path]:
    """Directories of the runs whose job, of an earlier call, still waits or runs."""
    files = {run.out: file for run in plan if (file := _number_file(run, directory)).exists()}
    if not files:
        return []
    squeue = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}  # they filter
    try:
        answer = subprocess.run(squeue, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError("squeue is not installed: Slurm takes no jobs from this machine") from None
    if answer.returncode:
        raise RuntimeError(f"squeue does not say which runs are queued already: {shortened(answer.stderr)}")
    numbers = answer.stdout.split()
    return [out for out, file in files.items() if file.read_text() in numbers]


def _number_file(run: PlannedRun, directory: Path) -> Path:
    """The number of a run's last job, beside its log."""
    return directory / run.out.with_name(f"{run.out.name}-job.txt")


def _resources(run: PlannedRun) -> tuple[int, int]:
    return run.cpus, run.accelerators
