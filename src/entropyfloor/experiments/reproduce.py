"""Carrying out a plan: its runs one beside the other, each a command; what is finished is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from entropyfloor.experiments.recipe import Planned
from entropyfloor.runs import read_run
from entropyfloor.runs.progress import Progress


def state(run: Planned) -> str:
    """That of its directory: `new` if there is none."""
    if not (run.out / "config.toml").exists():
        return "new"
    return str(read_run(run.out).status.get("state"))


def reproduce(plan: Sequence[Planned], workers: int) -> None:
    """Begin what is new, go on with what was cut short; what a run says goes to `<run>-log.txt`.

    Args:
        plan: Runs, in the order in which they are wanted.
        workers: How many at a time.

    Raises:
        RuntimeError: Some failed; the others are done.
        KeyboardInterrupt: After every run has been told to save and stop.
    """
    stopped, lock, failed = threading.Event(), threading.Lock(), []
    running: set[subprocess.Popen[bytes]] = set()
    with Progress(len(plan), unit="runs", every=1) as progress:
        progress.advance(0)
        done = 0

        def work(run: Planned) -> None:
            nonlocal done
            code = 0
            if (before := state(run)) != "finished" and not stopped.is_set():
                words = run.command if before == "new" else ["train", run.domain, "--resume", str(run.out)]
                run.out.parent.mkdir(parents=True, exist_ok=True)
                log = _log(run)
                with log.open("ab") as file, lock:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "entropyfloor.cli", *words],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C reaches it once, through us
                    )
                    running.add(process)
                code = process.wait()
                with lock:
                    running.discard(process)
            with lock:
                done += 1
                progress.advance(done)
                if code and not stopped.is_set():
                    failed.append(run)
                told = "was finished" if before == "finished" else "failed" if code else "done"
                progress.report(done, f"{run.out} {told}")

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work, run) for run in plan]
            try:
                for future in futures:
                    future.result()
            except KeyboardInterrupt:
                stopped.set()
                with lock:
                    for process in running:
                        os.kill(process.pid, signal.SIGINT)
                raise KeyboardInterrupt("the same command goes on with what is not finished") from None
    if failed:
        places = ", ".join(str(_log(run)) for run in failed)
        raise RuntimeError(f"{len(failed)} of {len(plan)} runs failed: see {places}")


def _log(run: Planned) -> Path:
    """Beside the run's directory, which the trainer makes when it has nothing to refuse."""
    return run.out.with_name(f"{run.out.name}-log.txt")
