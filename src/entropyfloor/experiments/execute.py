"""One run of a plan, executed by a command of its own: it starts the run, or continues it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from entropyfloor.experiments.recipe import RESUME, PlannedRun
from entropyfloor.extras import Status
from entropyfloor.runs import read_run
from entropyfloor.runs.processes import stop, terminated_as_interrupted
from entropyfloor.runs.resume import is_begun
from entropyfloor.runs.run_reader import read_status

Outcome = Literal["done", "finished before", "failed", "refused", "submitted", "queued before"]
"""What became of a run; `refused`: the settings of a new run are wrong, and the next run's would be as well."""
Ended = Callable[[PlannedRun, Outcome], bool]
"""What an engine calls when a run has ended; it says whether further runs may start."""
WATCHED = "entropyfloor.experiments.watched"
"""Module in which a process runs that stops with the one that started it."""
SAVING = 300.0
"""Seconds to wait for a process that still writes the run: that of a lost worker, which saves it and stops."""


def execute(run: PlannedRun, directory: Path) -> Outcome:
    """Execute a run on a node of a cluster, and wait for its end.

    Args:
        run: A run of a plan.
        directory: Directory that relative paths of its settings start from.

    Raises:
        ValueError: The node does not have the directory.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the run has saved and stopped.
    """
    if not log_file(run, directory).parent.is_dir():
        raise ValueError(
            f"{log_file(run, directory).parent} does not exist on this node: --out must be on a file system that "
            f"all nodes share"
        )
    until = time.monotonic() + SAVING
    while is_written(run, directory):
        if time.monotonic() > until:
            return given_up(run, directory)
        time.sleep(1)
    process = begin(run, directory)
    if process is None:
        return "finished before"
    with terminated_as_interrupted():
        try:
            while True:  # an interrupt that is no signal of the system would not end a longer wait
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                    return outcome(process)
        finally:
            stop([process], outcome)


def begin(run: PlannedRun, directory: Path) -> subprocess.Popen[bytes] | None:
    """Start or resume a run in a process that saves and stops when this one ends; None if it is finished."""
    before = state(run, directory)
    if before == "finished":
        return None
    # An evaluation continues by the same command.
    args = run.command if before is None else run.resume
    log = log_file(run, directory)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return popen(run, args, cwd=directory, stdout=file, stderr=subprocess.STDOUT)


def popen(run: PlannedRun, args: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process of a run with arguments for the command line, which stops when this one ends."""
    return subprocess.Popen(
        [sys.executable, "-m", WATCHED, *run.launcher, *args],
        stdin=subprocess.PIPE,  # closed by the end of this process, even by a kill: see `watched`
        start_new_session=True,  # so that Ctrl-C reaches it once, through `stop`
        **options,
    )


def is_written(run: PlannedRun, directory: Path = Path()) -> bool:
    """Whether a process is writing the run: that of a killed command or of a lost worker saves it and stops."""
    out = directory / run.out
    return run.mode == "train" and is_begun(out) and read_status(out, logged=True)["state"] == "running"


def given_up(run: PlannedRun, directory: Path) -> Outcome:
    """Fail a run that another process is still writing, and say so in its log."""
    with log_file(run, directory).open("a") as file:
        print(
            f"another process is writing {run.out} and has not stopped within {SAVING:g} s: stop it, and give the "
            f"same command again",
            file=file,
        )
    return "failed"


def outcome(process: subprocess.Popen[bytes]) -> Outcome:
    """Wait for the end of a process, and read its exit status."""
    code = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert isinstance(process.args, list)
    begun = RESUME in process.args  # its settings were accepted: what is wrong concerns it alone
    if code == Status.REFUSED and not begun:
        return "refused"
    return "done" if code == 0 else "failed"


def log_file(run: PlannedRun, directory: Path = Path()) -> Path:
    """The log of a run, beside its directory: the trainer creates that once it has accepted the settings."""
    return directory / run.out.with_name(f"{run.out.name}-log.txt")


def state(run: PlannedRun, directory: Path = Path()) -> str | None:
    """State of a training run that has begun."""
    out = directory / run.out
    return str(read_run(out).status["state"]) if run.mode == "train" and is_begun(out) else None
