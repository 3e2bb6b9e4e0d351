"""Running a plan: several runs at a time, each a command of its own; finished runs are skipped."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.runs import read_run
from entropyfloor.runs.processes import terminated_as_interrupted
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import check_same, is_begun

REFUSED = 2
"""Exit status of a command with wrong settings: the next run would be refused as well."""


def reproduce(plan: Sequence[PlannedRun], workers: int) -> None:
    """Start new runs and resume unfinished ones; the output of a run goes to `<run>-log.txt`.

    Args:
        plan: Runs in the order in which they are started.
        workers: Number of runs at a time.

    Raises:
        ValueError: There is a run with other settings in the directory of a planned one.
        RuntimeError: Some runs failed; the others are done, or were not started because settings were refused.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after every run has saved and stopped.
    """
    for run in plan:
        if run.mode == "train":  # an evaluation checks itself which of its settings may change
            check_same(run.out, run.record)
    runs = _Runs(len(plan))
    with runs.progress, terminated_as_interrupted(), ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(runs.do, run) for run in plan]:
                future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            try:
                runs.stop()
            except KeyboardInterrupt:  # by a second Ctrl-C: a second signal stops runs that are still saving
                runs.stop()
            raise KeyboardInterrupt("the same command continues the unfinished runs") from None
    if runs.failed:
        logs = ", ".join(str(log_file(run)) for run in runs.failed)
        started = len(runs.failed) + runs.done
        rest = f" and {len(plan) - started} were not started" if started < len(plan) else ""
        raise RuntimeError(f"{len(runs.failed)} of {len(plan)} runs failed{rest}: see {logs}")


def log_file(run: PlannedRun) -> Path:
    """The log of a run, beside its directory: the trainer creates that once it has accepted the settings."""
    return run.out.with_name(f"{run.out.name}-log.txt")


class _Runs:
    """Running commands, shared by the threads that wait for them."""

    def __init__(self, total: int) -> None:
        self.progress = Progress(total, unit="runs", every=1)
        self.progress.restart(0)
        self.failed: list[PlannedRun] = []
        self.done = 0
        self._stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def do(self, run: PlannedRun) -> None:
        """Start or resume a run, and wait for its end; a finished one is skipped."""
        begun = run.mode == "train" and is_begun(run.out)  # an evaluation continues by the same command
        if begun and read_run(run.out).status.get("state") == "finished":
            return self._end(run, "was finished before", 0)
        args = ["train", run.domain, "--resume", str(run.out)] if begun else run.command
        log_file(run).parent.mkdir(parents=True, exist_ok=True)
        with log_file(run).open("ab") as file:
            with self._lock:
                if self._stopped:
                    return None
                process = subprocess.Popen(
                    [sys.executable, "-m", *run.launcher, *args],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that Ctrl-C reaches it once, through `stop`
                )
                self._running.add(process)
            code = process.wait()
        return self._end(run, "failed" if code else "is done", code, process)

    def stop(self) -> None:
        """Make every run save and stop, and wait for it."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        for process in running:
            process.terminate()  # not SIGINT, which processes in the background of a script ignore
        for process in running:
            process.wait()

    def _end(
        self, run: PlannedRun, outcome: str, code: int, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        with self._lock:
            if process is not None:
                self._running.discard(process)
            if self._stopped:
                return
            if code:
                self.failed.append(run)
                self._stopped = code == REFUSED
            else:
                self.done += 1
            over = self.done + len(self.failed)
            if process is None:
                self.progress.restart(over)  # skipped runs do not count for the speed
            self.progress.report(over, f"{run.out} {outcome}")
