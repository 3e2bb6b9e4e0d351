"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from entropyfloor.runs.machine import peak_memory
from entropyfloor.runs.vocabulary import PEAKS

PACE = "ENTROPYFLOOR_PACE"
"""Environment variable: a file to which each step of work is appended, for a program that measures speed."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence when the reader of the output, such as `head`, has gone."""
        with suppress(SystemExit):
            super().on_broken_pipe()


class Progress:
    """A bar with the last evaluation, speed and the time left.

    Args:
        total: Amount of work.
        unit: Unit of the work, in the plural.
        label: Text before each line, where several runs share a terminal.
        bar: Whether a terminal shows a bar; several processes would draw over each other's.
        every: Work between redraws, so that drawing costs nothing.
        evaluation: Text until the first evaluation.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str = "steps",
        label: str = "",
        bar: bool = True,
        every: int = 100,
        evaluation: str = "not evaluated",
    ) -> None:
        self._console = _Console(force_terminal=None if bar else False)
        self._label = f"{label} · " if label else ""
        self._bar = Bar(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit} · {{task.description}}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._pace_file = os.environ.get(PACE)
        self._total, self._unit, self._every = total, unit, 1 if self._pace_file else every
        self._task = self._bar.add_task("", total=total)
        self._since: tuple[int, float] | None = None
        self._last = 0
        self._evaluation = evaluation
        self._busy = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def restart(self, done: int) -> None:
        """Measure speed from here, because the work that follows has a pace of its own."""
        self._since, self._busy = (done, time.perf_counter()), ""
        self._show(done)

    def advance(self, done: int) -> None:
        """Move the bar, now and then."""
        if self._since is None:
            self.restart(done)
        elif done - self._last >= self._every or done >= self._total:
            self._show(done)

    def busy(self, done: int, what: str, detail: str = "") -> None:
        """Show an activity instead of a speed until `restart`; without a terminal, print a line once.

        Args:
            done: Work done.
            what: The activity.
            detail: More that only a terminal shows, such as how far the activity is.
        """
        if what not in self._busy and not self._console.is_terminal:
            line = f"{done:,}/{self._total:,} {self._unit} · {what}"
            self._console.print(f"{self._label}{line}", soft_wrap=True)
        self._busy = f"{what}{detail}"
        self._show(done)

    def report(self, done: int, evaluation: str) -> None:
        """Show an evaluation; without a terminal, print a line."""
        self._evaluation = evaluation
        self._show(done)
        if not self._console.is_terminal:
            line = f"{done:,}/{self._total:,} {self._unit} · {evaluation} · {self._pace(done)}"
            self._console.print(f"{self._label}{line}", soft_wrap=True)

    def _show(self, done: int) -> None:
        self._last = done
        if self._pace_file and self._since and not self._busy:
            with open(self._pace_file, "a") as file:
                found = peak_memory()
                peaks = " ".join(str(found.get(name, 0.0)) for name in PEAKS)
                file.write(f"{self._since[1]} {time.perf_counter()} {done} {self._total} {peaks}\n")
        description = self._label + " · ".join(filter(None, (self._evaluation, self._pace(done))))
        self._bar.update(self._task, completed=done, description=description)

    def _pace(self, done: int) -> str:
        """Speed, and the time left at it."""
        if self._busy:
            return self._busy
        first, since = self._since or (done, 0.0)
        if done <= first:
            return "starting"
        rate = (done - first) / max(time.perf_counter() - since, 1e-9)
        number, unit = (rate, f"{self._unit}/s") if rate >= 1 else (1 / rate, f"s/{self._unit.removesuffix('s')}")
        speed = f"{number:,.{0 if number >= 100 else 1}f} {unit}"
        return f"{speed} · {timedelta(seconds=round((self._total - done) / rate))} left"
