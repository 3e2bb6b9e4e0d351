"""Carrying out a plan: its runs one beside the other, each a command; what is finished is left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from entropyfloor.experiments.recipe import Planned
from entropyfloor.runs import read_run
from entropyfloor.runs.processes import terminated_as_interrupted
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import check_same, is_begun

REFUSED = 2
"""Exit status of a command whose settings cannot be: the next run would be refused as well."""


def reproduce(plan: Sequence[Planned], workers: int) -> None:
    """Begin what is new, go on with what was cut short; what a run says goes to `<run>-log.txt`.

    Args:
        plan: Runs, in the order in which they are wanted.
        workers: How many at a time.

    Raises:
        ValueError: A run in the way was begun with other settings.
        RuntimeError: Some failed; the others are done, or not begun where the settings were refused.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after every run was told to save and stop.
    """
    for run in plan:
        if run.does == "train":  # what evaluates knows best which of its settings may change
            check_same(run.out, run.record)
    work = _Work(len(plan))
    with work.progress, terminated_as_interrupted(), ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(work.do, run) for run in plan]:
                future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            work.stop()
            raise KeyboardInterrupt("the same command goes on with what is not finished") from None
    if work.failed:
        places = ", ".join(str(log(run)) for run in work.failed)
        begun = len(work.failed) + work.done
        left = f" and {len(plan) - begun} were not begun" if begun < len(plan) else ""
        raise RuntimeError(f"{len(work.failed)} of {len(plan)} runs failed{left}: see {places}")


def log(run: Planned) -> Path:
    """Beside the run's directory, which the trainer makes when it has nothing to refuse."""
    return run.out.with_name(f"{run.out.name}-log.txt")


class _Work:
    """Runs in progress, from several threads."""

    def __init__(self, total: int) -> None:
        self.progress = Progress(total, unit="runs", every=1)
        self.progress.restart(0)
        self.failed: list[Planned] = []
        self.done = 0
        self._stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def do(self, run: Planned) -> None:
        """Begin a run, go on with it, or find it finished."""
        begun = run.does == "train" and is_begun(run.out)  # what evaluates goes on by the same command
        if begun and read_run(run.out).status.get("state") == "finished":
            return self._end(run, "was finished before", 0)
        words = ["train", run.domain, "--resume", str(run.out)] if begun else run.command
        log(run).parent.mkdir(parents=True, exist_ok=True)
        with log(run).open("ab") as file:
            with self._lock:
                if self._stopped:
                    return None
                process = subprocess.Popen(
                    [sys.executable, "-m", *run.launcher, *words],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches it once, through us
                )
                self._running.add(process)
            code = process.wait()
        return self._end(run, "failed" if code else "is done", code, process)

    def stop(self) -> None:
        """Tell every run to save, and wait for it."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        for process in running:
            process.terminate()  # not SIGINT: a script starts what is in the background with that ignored
        for process in running:
            process.wait()

    def _end(self, run: Planned, told: str, code: int, process: subprocess.Popen[bytes] | None = None) -> None:
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
                self.progress.restart(over)  # what was finished before says nothing of the speed
            self.progress.report(over, f"{run.out} {told}")
