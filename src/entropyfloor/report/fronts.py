"""Fronts of avg@k against pass@k over temperatures, and which of two is better.

A policy with more entropy is sampled colder, so one temperature does not compare two policies. All numbers are
shares of held-out problems; `counts` are right responses, `[seeds, temperatures, problems]`, of n to each problem,
and all arms have the same seeds, temperatures and problems.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from entropyfloor.runs.statistics import bootstrap_interval

LEVEL = 0.01
"""Two avg@k are level where they differ by no more than this."""
RESAMPLES = 2_000
"""Number of bootstrap resamples."""
TUNING = 4
"""Every fourth problem chooses temperatures, and counts in no comparison."""


class Difference(NamedTuple):
    """A difference with its 95 % interval."""

    value: float
    low: float
    high: float


class Verdict(NamedTuple):
    """How an arm compares with a baseline."""

    temperature: float
    """Temperature of the arm: that of its highest pass@k where its avg@k is level with the baseline's best."""
    baseline_temperature: float
    """Temperature of the baseline's best avg@k."""
    avg: Difference
    """avg@k of the arm minus that of the baseline, at these temperatures."""
    solved: Difference
    """pass@k of the arm minus that of the baseline, at these temperatures."""
    area: Difference
    """Area under the front of the arm minus that of the baseline."""

    @property
    def wins_both(self) -> bool:
        """Whether avg@k is level or higher, pass@k higher, and the front larger, each with its whole interval."""
        level = self.avg.low >= -LEVEL
        return level and self.solved.low > 0 and self.area.low > 0


def front(counts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """avg@n and pass@n, `[..., temperatures]`, means over problems.

    Args:
        counts: `[..., temperatures, problems]`.
        n: Number of responses to each problem.
    """
    return counts.mean(-1) / n, (counts > 0).mean(-1)


def area(avg: np.ndarray, solved: np.ndarray) -> np.ndarray:
    """Area that the points of a front dominate: the union of the rectangles from (0, 0) to each (avg, pass).

    Args:
        avg: `[..., temperatures]`.
        solved: The same shape.
    """
    order = np.argsort(-avg, axis=-1)  # from the best avg@k down a point adds what is above the best pass@k so far
    avg, solved = np.take_along_axis(avg, order, -1), np.take_along_axis(solved, order, -1)
    best = np.maximum.accumulate(solved, axis=-1)
    added = np.diff(best, axis=-1, prepend=0.0)
    return (avg * added).sum(-1)


def compare(counts: np.ndarray, baseline: np.ndarray, temperatures: np.ndarray, n: int) -> Verdict:
    """Compare an arm with a baseline on the problems that did not choose the temperatures.

    Intervals are those of a paired hierarchical bootstrap: problems and seeds are resampled, the same for both
    arms, and the same problems for all seeds.

    Args:
        counts: Right responses of the arm, `[seeds, temperatures, problems]`.
        baseline: Those of the baseline.
        temperatures: `[temperatures]`.
        n: Number of responses to each problem.

    Raises:
        ValueError: Shapes that differ, or fewer than three problems.
    """
    if counts.shape != baseline.shape or counts.ndim != 3 or counts.shape[1] != len(temperatures):
        raise ValueError(
            f"counts {counts.shape} and baseline {baseline.shape} must be "
            f"[seeds, {len(temperatures)} temperatures, problems]"
        )
    if (problems := counts.shape[2]) < 3:
        raise ValueError(
            f"the runs have {problems} problem{'s' * (problems != 1)} in common, and three are needed, one to "
            "choose the temperatures and two for an interval: evaluate on more"
        )
    tuning = np.arange(counts.shape[2]) % TUNING == 0
    points = (front(x[:, :, tuning], n) for x in (counts, baseline))
    (avg, solved), (avg_0, _) = ([each.mean(0) for each in both] for both in points)
    chosen_0 = int(avg_0.argmax())
    level = avg >= avg_0[chosen_0] - LEVEL
    chosen = int(np.where(level, solved, -1.0).argmax()) if level.any() else int(avg.argmax())
    judged = np.moveaxis(np.stack([counts, baseline])[..., ~tuning], -1, 0)
    seeds = np.arange(counts.shape[0])

    def differences(problems: np.ndarray, drawn: np.ndarray = seeds[None], *, axis: int) -> np.ndarray:
        """`[some, 3]` from `[some, problems, arms=2, seeds, temperatures]` and seeds, `[some, seeds]`."""
        points = front(np.moveaxis(problems, axis, -1), n)
        avg, solved = (np.take_along_axis(each, drawn[:, None, :, None], axis=2) for each in points)
        areas = area(avg, solved).mean(2)
        avg, solved = (each.mean(2)[:, [0, 1], [chosen, chosen_0]] for each in (avg, solved))
        return np.stack([each[:, 0] - each[:, 1] for each in (avg, solved, areas)], axis=-1)

    resampled = (judged, seeds) if len(seeds) > 1 else judged  # one seed: intervals over problems only
    low, high = bootstrap_interval(resampled, differences, resamples=RESAMPLES)
    (values,) = differences(judged[None], axis=1).tolist()
    each = (Difference(*map(float, bounds)) for bounds in zip(values, low, high, strict=True))
    return Verdict(float(temperatures[chosen]), float(temperatures[chosen_0]), *each)
