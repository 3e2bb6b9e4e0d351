"""The parts that all training loops share: locked run directories, progress, signals, and the finite check.

    with training_loop([run], total=config.steps, domain="language", seed=config.seed) as loop:
        while trainer.step < config.steps and not loop.stopping:
            metrics = trainer.train_step()
            check_finite(metrics, trainer.step, run, trainer.arrays)
            loop.progress.advance(trainer.step)
        trainer.save(run)

Ctrl-C and SIGTERM have one meaning: the loop ends after the step that is being computed, the trainer saves, and
the hint says how to continue. A second signal stops at once; a resume repeats the work since the last checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from entropyfloor.runs.directory import Run
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.trackers import Track

GRACE = 1.0
"""Seconds after the first signal in which others count as the same: launchers pass on the Ctrl-C of a terminal."""


@dataclass(frozen=True)
class Loop:
    """Progress of a training loop, and whether it is to end."""

    progress: Progress
    _stop: threading.Event

    @property
    def stopping(self) -> bool:
        """Whether Ctrl-C or SIGTERM has asked the loop to end."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the loop to end, because a signal has reached another process of the same run."""
        self._stop.set()


@contextmanager
def training_loop(
    runs: Sequence[Run],
    *,
    total: int,
    domain: str,
    seed: int,
    processes: int = 1,
    unit: str = "steps",
    every: int = 100,
    bar: bool = True,
    track: Track | None = None,
) -> Iterator[Loop]:
    """Lock run directories, show progress and catch signals while the body trains.

    Args:
        runs: Run directories, one for each seed that trains; none in a process that only helps.
        total: Amount of work, in `unit`.
        domain: Trainer in the command that the hint names: `entropyfloor train <domain> --resume …`.
        seed: Seed of the first run; shown where several processes share a terminal.
        processes: Number of processes that train a run together; the command in the hint starts as many.
        unit: Unit of the progress, in the plural.
        every: Work between redraws of the progress.
        bar: Whether this process may draw on the terminal.
        track: Tracker of the runs beside TensorBoard; none turns that off too.

    Raises:
        KeyboardInterrupt: A signal came. Its message says where the run is and how to continue.
    """
    alone = parent_process() is None  # or one of several processes that share a terminal
    label = f"{len(runs)} seeds" if len(runs) > 1 else "" if alone else f"seed {seed}"
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.recording(track))
        stop = stack.enter_context(_signals())
        progress = Progress(total, unit=unit, label=label, bar=bar and alone, every=every)
        loop = Loop(stack.enter_context(progress), stop)
        try:
            yield loop
        except KeyboardInterrupt:  # of the second signal
            raise KeyboardInterrupt(resume_hint(runs, domain, processes)) from None
        if loop.stopping:
            raise KeyboardInterrupt(resume_hint(runs, domain, processes))


def resume_hint(runs: Sequence[Run], domain: str, processes: int = 1) -> str:
    """Where interrupted runs are, and the commands that continue them."""
    if not runs:
        return "another process writes the run"
    saved = [int(run.checkpoints()[-1].name) for run in runs if run.checkpoints()]
    where = f"saved at step {min(saved):,}" if saved else "nothing is saved yet"
    commands = "; ".join(resume_command(run.path, domain, processes) for run in runs)
    return f"{where}; continue with: {commands}"


def resume_command(path: Path, domain: str, processes: int = 1) -> str:
    """The command that continues a run with this number of processes."""
    several = f"accelerate launch --num_processes={processes} --module entropyfloor.cli"
    return f"{several if processes > 1 else 'entropyfloor'} train {domain} --resume {quote(str(path))}"


def check_finite(
    metrics: Mapping[str, float], step: int, run: Run | None, arrays: Callable[[], Mapping[str, np.ndarray]]
) -> None:
    """Stop where a metric is not finite, and save the networks and the data for an explanation.

    Args:
        metrics: Quantities by their names.
        step: Step of the run.
        run: Run directory; None in a process that writes nothing.
        arrays: Networks as the update left them, and the data of the update; called only on failure.

    Raises:
        FloatingPointError: A metric is infinite or not a number.
    """
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if not wrong:
        return
    where = ""
    if run is not None:
        state = {"quantities": {name: str(value) for name, value in metrics.items()}}
        where = f". The networks and the data of the update are in {run.keep_failure(step, arrays(), state)}"
    # Where one loss is infinite, much else is: the loss is the name that says most.
    name, value = min(wrong.items(), key=lambda item: not item[0].startswith("loss"))
    raise FloatingPointError(f"{name} is {value} at step {step}: the run stops here{where}")


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second one raises KeyboardInterrupt."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    first: float | None = None

    def handle(*_: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            os.write(2, b"\nstopping after this step; once more stops at once\n")
            event.set()
        elif time.monotonic() > first + GRACE:
            restore()
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        restore()
