"""What a run shows while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_AIMS = (("floor", "floor"), ("target", "target_entropy"))


class Progress:
    """A bar with the last evaluation, steps per second and the time left.

    Args:
        total: Steps of the run.
        label: What stands before it, where several runs share a terminal.
        bar: Whether a terminal shows a bar; of several processes each would draw over the others'.
        every: Steps between redraws, so that drawing costs nothing.
    """

    def __init__(self, total: int, label: str = "", bar: bool = True, every: int = 100) -> None:
        self._console = Console(force_terminal=None if bar else False)
        self._label = f"{label} · " if label else ""
        self._bar = Bar(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps · {task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._total, self._every = total, every
        self._task = self._bar.add_task("", total=total)
        self._first: tuple[int, float] | None = None
        self._last = 0
        self._evaluation = "not evaluated"

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the bar, now and then."""
        if self._first is None:
            self._first, self._last = (step, time.perf_counter()), step
        elif step - self._last >= self._every or step >= self._total:
            self._last = step
            description = f"{self._label}{self._evaluation} · {self._rate(step):,.0f} steps/s"
            self._bar.update(self._task, completed=step, description=description)

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Show an evaluation; without a terminal, print a line."""
        aim = [f"{word} {metrics[name]:.2f}" for word, name in _AIMS if name in metrics]
        entropy = f"entropy {metrics['realised_entropy']:.2f} ({', '.join(aim) or 'no floor'})"
        self._evaluation = f"return {metrics['return']:.1f} · {entropy}"
        if not self._console.is_terminal:
            rate = self._rate(step)
            left = f"{(self._total - step) / rate:.0f} s left" if rate else "starting"
            line = f"step {step:,}/{self._total:,} · {self._evaluation} · {rate:,.0f} steps/s · {left}"
            self._console.print(f"{self._label}{line}", soft_wrap=True)

    def _rate(self, step: int) -> float:
        if self._first is None:
            return 0.0
        first_step, first_time = self._first
        return (step - first_step) / max(time.perf_counter() - first_time, 1e-9)
