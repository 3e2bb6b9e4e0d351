"""Statistics over seeds and tasks with their 95 % intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit
from scipy.stats import trim_mean

from entropyfloor.runs.statistics import interval_of_rows

RESAMPLES = 20_000
"""Number of bootstrap resamples: the bounds then vary by some hundredths of the interval's width."""

FEWEST = 3
"""Least number of seeds in a task that a bootstrap resamples."""

TOGETHER = 50
"""Largest number of arms that are resampled at a time, which bounds the memory."""


class Interval(NamedTuple):
    """An estimate with the bounds of its interval; the bounds are NaN where one seed gives none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def mean_interval(values: ArrayLike) -> Interval:
    """Mean over seeds with Student's t interval.

        mean ± t_{0.975, n-1} · s / √n,   s² = Σ (x - mean)² / (n-1)

    Exact for normally distributed seeds, and wide where there are few: t is 12.7 for n = 2, 2.8 for n = 5.

    Args:
        values: `[n, ...]`, seeds first.

    Returns:
        Arrays `[...]`; with n = 1 there is no interval, and the bounds are NaN.

    Raises:
        ValueError: No seeds, or a value that is not finite.
    """
    values = _checked(values)
    n, mean = len(values), values.mean(axis=0)
    if n == 1:
        nothing = np.full_like(mean, np.nan)
        return Interval(mean, nothing, nothing, n)
    half = stdtrit(n - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


# --- over tasks ------------------------------------------------------------------------------------------
# Agarwal et al. 2021 (arXiv 2108.13264), section 4. Each function takes one argument for each task: its scores,
# `[seeds, ...]`. Scores are comparable between tasks, and tasks may have different numbers of seeds.
# A resample is given by how often it has each seed, `drawn`: `[seeds, resamples]` for each task. Without it, each
# seed counts once. The result is `[...]`, or `[..., resamples]`.

Statistic = Callable[..., np.ndarray]


def _each_once(tasks: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.ones((len(task), 1)) for task in tasks]


def iqm(*tasks: np.ndarray, drawn: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Interquartile mean: the mean without the lowest and highest quarter of the scores of all tasks.

    ⌊n/4⌋ scores are dropped at either end, so that it is the plain mean for n < 4. Every task counts alike: where
    tasks have different numbers of seeds, it is as if their scores were repeated until all have as many.
    """
    if drawn is None and len({*map(len, tasks)}) == 1:
        return np.asarray(trim_mean(np.concatenate(tasks), 0.25, axis=0))
    if drawn is None:
        return iqm(*tasks, drawn=_each_once(tasks))[..., 0]
    most = math.lcm(*map(len, tasks))
    scores, total = np.concatenate(tasks), most * len(tasks)
    whole = np.min_scalar_type(total)  # small numbers, and in place: this is most of the time of a large report
    counts = np.concatenate([each * (most // len(each)) for each in drawn]).astype(whole)
    dropped = total // 4
    found = np.empty((scores[0].size, counts.shape[1]))
    for i, column in enumerate(scores.reshape(len(scores), -1).T):
        order = column.argsort()
        places = counts[order]
        for before, place in pairwise(places):  # `cumsum` along the first axis takes much longer
            place += before
        places.clip(dropped, total - dropped, out=places)
        places[1:] -= places[:-1].copy()
        places[0] -= dropped
        found[i] = column[order] @ places.astype(np.float64) / (total - 2 * dropped)
    return found.reshape(*scores.shape[1:], -1)


def median(*tasks: np.ndarray, drawn: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Median over tasks of the mean over seeds."""
    return np.median(_means(tasks, drawn), axis=0)


def mean(*tasks: np.ndarray, drawn: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Mean over tasks of the mean over seeds."""
    return np.mean(_means(tasks, drawn), axis=0)


def optimality_gap(*tasks: np.ndarray, drawn: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """How far scores are below 1 on average, where those above 1 count as 1."""
    return 1 - mean(*(np.minimum(task, 1) for task in tasks), drawn=drawn)


def _means(tasks: Sequence[np.ndarray], drawn: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Mean over the seeds of each task."""
    if drawn is None:
        return [task.mean(axis=0) for task in tasks]
    return [np.tensordot(task, each, (0, 0)) / len(task) for task, each in zip(tasks, drawn, strict=True)]


def estimate(tasks: Sequence[ArrayLike], statistic: Statistic = iqm, *, resamples: int = RESAMPLES) -> Interval:
    """A statistic with the percentile interval of a stratified bootstrap, which resamples the seeds of each task.

    With a handful of seeds in one task it covers less than 95 %, as a resample is never more diverse than the
    sample; `mean_interval` does not have this fault.

    Args:
        tasks: Scores of each task, `[seeds]`, or `[seeds, steps]` for a curve.
        statistic: One of `iqm`, `median`, `mean` and `optimality_gap`, or a function like them.
        resamples: Number of bootstrap resamples.

    Returns:
        Arrays of the statistic's shape; n is the least number of seeds. If n < `FEWEST`, the bounds are NaN.

    Raises:
        ValueError: No task, a task without seeds, or a value that is not finite.
    """
    scores = [*map(_checked, tasks)]
    return _estimate(scores, statistic, resamples, sum(each.size for each in scores))


def estimates(
    arms: Sequence[Sequence[ArrayLike]], statistic: Statistic = iqm, *, resamples: int = RESAMPLES
) -> list[Interval]:
    """`estimate` of several arms, in less time: those that have as many seeds in each task share resamples.

    Args:
        arms: The scores of each arm's tasks, `[seeds]` each.
        statistic: As for `estimate`.
        resamples: Number of bootstrap resamples.

    Returns:
        An interval for each arm, with the numbers that `estimate` gives.

    Raises:
        ValueError: As `estimate`.
    """
    checked = [[*map(_checked, tasks)] for tasks in arms]
    by_seeds: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, tasks in enumerate(checked):
        by_seeds[tuple(map(len, tasks))].append(i)
    found: dict[int, Interval] = {}
    for seeds, members in by_seeds.items():
        for start in range(0, len(members), TOGETHER):
            some = members[start : start + TOGETHER]
            scores = [np.stack(each, -1) for each in zip(*(checked[i] for i in some), strict=True)]
            value, low, high, n = _estimate(scores, statistic, resamples, sum(seeds))
            for j, i in enumerate(some):
                found[i] = Interval(value[..., j], low[..., j], high[..., j], n)
    return [found[i] for i in range(len(arms))]


def _estimate(scores: Sequence[np.ndarray], statistic: Statistic, resamples: int, size: int) -> Interval:
    """`estimate` of checked scores; `size` is that of `interval_of_rows`."""
    if not scores:
        raise ValueError("statistics over tasks need at least one task")
    value, n = np.asarray(statistic(*scores)), min(map(len, scores))
    if n < FEWEST:
        nothing = np.full_like(value, np.nan)
        return Interval(value, nothing, nothing, n)

    def of_rows(*rows: np.ndarray) -> np.ndarray:
        return statistic(*scores, drawn=[*map(_counts, rows)])

    low, high = interval_of_rows([*map(len, scores)], of_rows, resamples=resamples, size=size)
    return Interval(value, np.asarray(low), np.asarray(high), n)


def _counts(rows: np.ndarray) -> np.ndarray:
    """How often each resample has each seed, `[seeds, resamples]`.

    Args:
        rows: Seeds of each resample, `[resamples, seeds]`.
    """
    resamples, n = rows.shape
    places = rows * resamples + np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=n * resamples).reshape(n, resamples).astype(np.float64)


def performance_profile(
    tasks: Sequence[ArrayLike], thresholds: ArrayLike, *, resamples: int = RESAMPLES
) -> Interval:
    """Share of the scores above each threshold, a mean over tasks.

    Args:
        tasks: Scores of each task, `[seeds]`.
        thresholds: `[m]`.
        resamples: Number of bootstrap resamples.

    Returns:
        Arrays `[m]`.

    Raises:
        ValueError: As `estimate`.
    """
    above = [np.greater.outer(_checked(task), np.asarray(thresholds)).astype(float) for task in tasks]
    return estimate(above, mean, resamples=resamples)


def probabilities_of_improvement(
    arms: Sequence[Sequence[ArrayLike]], others: Sequence[ArrayLike], *, resamples: int = RESAMPLES
) -> list[Interval]:
    """Probability that a run of an arm has a higher score than one of another method on the same task.

    Ties count half.

    Args:
        arms: The scores of each arm's tasks, `[seeds]` each.
        others: Those of the other method, on the same tasks in the same order.
        resamples: Number of bootstrap resamples.

    Returns:
        An interval for each arm.

    Raises:
        ValueError: Different numbers of tasks, and as `estimate`.
    """
    for tasks in arms:
        if len(tasks) != len(others):
            raise ValueError(f"both methods need the same tasks, not {len(tasks)} and {len(others)}")
    pairs = [[*tasks, *others] for tasks in arms]
    return estimates(pairs, _improvement, resamples=resamples)


def _improvement(*scores: np.ndarray, drawn: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Mean over tasks of the share of pairs in which the first score is larger: first all tasks of one method."""
    if drawn is None:
        return _improvement(*scores, drawn=_each_once(scores))[..., 0]
    half = len(scores) // 2
    shares = []
    for x, y, of_x, of_y in zip(scores[:half], scores[half:], drawn[:half], drawn[half:], strict=True):
        larger = [np.heaviside(np.subtract.outer(*each), 0.5) for each in zip(x.T, y.T, strict=True)]  # [x, y]
        shares.append([((each.T @ of_x) * of_y).sum(0) / each.size for each in larger])
    return np.mean(shares, axis=0)


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or not len(array):
        raise ValueError("statistics over seeds need at least one seed")
    if not np.isfinite(array).all():
        raise ValueError("statistics over seeds need finite values")
    return array
