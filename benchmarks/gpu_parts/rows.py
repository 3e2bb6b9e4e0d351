"""What every part of `benchmarks/gpu.py` shares: its rows, its time, and the comparison of sides in turns."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.extras import brief, is_out_of_memory
from pairs import Pairs, Side, measure, median

FEWEST, MOST = 5, 200
"""Rounds of a comparison."""
TINY_SECONDS, TINY_FEWEST = 0.2, 2
"""Time of a comparison in tiny sizes, and its rounds at least."""
VIOLATED = "VIOLATED"
"""Beginning of the remark where a floor does not hold."""


class UnavailableError(Exception):
    """A part cannot run on this machine."""


class Row(NamedTuple):
    """One result, or the reason why there is none."""

    case: str
    """What was measured: sizes, dtypes."""
    name: str
    """A side of the comparison, or two as `one / other`."""
    quantity: str = ""
    value: float | None = None
    unit: str = ""
    low: float | None = None
    """Ends of the 95 % interval."""
    high: float | None = None
    rounds: int | None = None
    remark: str | None = None
    skipped: str | None = None
    """Why there is no value."""

    def plain(self) -> dict[str, Any]:
        """What the row has, as JSON can hold it: a value that is not finite becomes a remark."""
        row = self
        if self.value is not None and not math.isfinite(self.value):
            remark = "; ".join(filter(None, (self.remark, f"{self.quantity}: {self.value}")))
            row = self._replace(value=None, low=None, high=None, remark=remark)
        return {key: value for key, value in row._asdict().items() if value not in (None, "")}

    def text(self) -> str:
        """The row without its case, for people."""
        if self.skipped:
            return f"{self.name:<44}skipped: {self.skipped}"
        if self.value is None:
            return f"{self.name:<44}{self.remark}"
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        rounds = self.rounds and f"{self.rounds} rounds"
        more = "; ".join(filter(None, (rounds, self.remark)))
        figures = f"{self.value:.4g}{interval} {self.unit}"
        return f"{self.name:<44}{self.quantity:<24}{figures:<42}{more}".rstrip()


@dataclass(frozen=True)
class Plan:
    """How large and how long the measurements of a part are.

    Args:
        tiny: Sizes with which a CPU tries whether everything runs.
        end: When the part should end, by `time.monotonic`.
    """

    tiny: bool
    end: float

    def left(self) -> float:
        """Seconds until the part should end."""
        return self.end - time.monotonic()

    def late(self, case: str, name: str = "all") -> list[Row]:
        """A row with the reason if there is no time for a case; none while there is time."""
        return [] if self.left() > 0 else [Row(case, name, skipped="the time of this part is over")]


def compare(
    plan: Plan, case: str, sides: dict[str, Side], pairs: Pairs, seconds: float, clock: Callable[[], float]
) -> Generator[Row, None, dict[str, np.ndarray]]:
    """Time of each side, and ratios of pairs, in as many rounds as `seconds` and the plan allow, 5 to 200.

    The first turn of each side, in which compilers work, is not counted. A side that fails is left out.

    Returns:
        Seconds per unit of work of each side that did not fail, one value a round.
    """
    working, round_seconds = {}, 0.0
    for name, side in sides.items():
        if problem := failure(side.turn):
            yield Row(case, name, skipped=problem)
            continue
        start = clock()
        side.turn()
        round_seconds += clock() - start
        working[name] = side
    seconds, fewest = (TINY_SECONDS, TINY_FEWEST) if plan.tiny else (min(seconds, plan.left()), FEWEST)
    rounds = int(min(max(seconds / max(round_seconds, 1e-6), fewest), MOST))
    times = measure(working, rounds, clock)
    for name, values in times.items():
        middle, low, high = median(1e3 * values)
        yield Row(case, name, "time", middle, "ms", low, high, rounds)
    for one, other in pairs:
        if one in times and other in times:
            middle, low, high = median(times[one] / times[other])
            yield Row(case, f"{one} / {other}", "time", middle, "", low, high, rounds)
    return times


def rates(case: str, times: dict[str, np.ndarray], quantity: str, unit: str, count: float = 1) -> Iterator[Row]:
    """`count` / time of each side that was measured."""
    for name, seconds in times.items():
        middle, low, high = median(count / seconds)
        yield Row(case, name, quantity, middle, unit, low, high, len(seconds))


def attempted(case: str, name: str, measured: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Rows, and where they fail the reason."""
    measured_rows: list[Row] = []
    reason = failure(lambda: measured_rows.extend(measured()))
    yield from measured_rows
    if reason:
        yield Row(case, name, skipped=reason)


def failure(call: Callable[[], object]) -> str | None:
    """Why a call fails, None if it does not. The error is not kept: it would hold the tensors of its frames."""
    try:
        call()
    except Exception as error:  # whatever a library raises for its reasons, the other sides go on
        return "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {brief(error)}"
    return None
