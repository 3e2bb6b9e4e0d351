"""Statistics over seeds and tasks with their intervals, for 95 % by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from entropyfloor.runs.statistics import bootstrap_interval

CONFIDENCE = 0.95
RESAMPLES = 20_000
"""Number of bootstrap resamples: the bounds then vary by some hundredths of the interval's width."""

FEWEST = 3
"""Least number of seeds in a task that a bootstrap resamples."""


class Interval(NamedTuple):
    """An estimate with the bounds of its interval; the bounds are NaN where one seed gives none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean over seeds with Student's t interval.

        mean ± t_{(1+c)/2, n-1} · s / √n,   s² = Σ (x - mean)² / (n-1)

    Exact for normally distributed seeds, and wide where there are few: t is 12.7 for n = 2, 2.8 for n = 5.

    Args:
        values: `[n, ...]`, seeds first.
        confidence: Probability that the interval covers the mean.

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
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


# --- over tasks ------------------------------------------------------------------------------------------
# Agarwal et al. 2021 (arXiv 2108.13264), section 4. Each function takes the scores of one task an argument,
# `[..., seeds, ...]` with the seeds along `axis`; the scores are comparable between tasks, and tasks may have
# different numbers of seeds.


def iqm(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: the mean without the lowest and highest quarter of the scores of all tasks.

    ⌊n/4⌋ scores are dropped at either end, so that it is the plain mean for n < 4. Every task counts alike: where
    tasks have different numbers of seeds, it is as if their scores were repeated until all have as many.
    """
    seeds = [task.shape[axis] for task in tasks]
    scores = np.concatenate(tasks, axis=axis)
    if len({*seeds}) == 1:
        return np.asarray(stats.trim_mean(scores, 0.25, axis=axis))
    scores = np.moveaxis(scores, axis, -1)
    repeats = np.repeat(math.lcm(*seeds) // np.array(seeds), seeds)
    order = scores.argsort(-1)
    places = repeats[order].cumsum(-1).clip(repeats.sum() // 4, repeats.sum() - repeats.sum() // 4)
    kept = np.diff(places, prepend=repeats.sum() // 4)
    return (np.take_along_axis(scores, order, -1) * kept).sum(-1) / kept.sum(-1)


def median(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    """Median over tasks of the mean over seeds."""
    return np.median([task.mean(axis) for task in tasks], axis=0)


def mean(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean over tasks of the mean over seeds."""
    return np.mean([task.mean(axis) for task in tasks], axis=0)


def optimality_gap(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    """How far scores are below 1 on average, where those above 1 count as 1."""
    return 1 - mean(*(np.minimum(task, 1) for task in tasks), axis=axis)


def stratified_interval(
    tasks: Sequence[ArrayLike],
    statistic: Callable[..., np.ndarray] = iqm,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic with the percentile interval of a stratified bootstrap, which resamples the seeds of each task.

    With a handful of seeds in one task it covers less than `confidence`, as a resample is never more diverse than
    the sample; `mean_interval` does not have this fault.

    Args:
        tasks: Scores of each task, `[seeds]`, or `[seeds, steps]` for a curve.
        statistic: One of `iqm`, `median`, `mean` and `optimality_gap`, or a function like them.
        confidence: Share of the bootstrap distribution inside the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Numbers, or arrays `[steps]`; `n` is the smallest number of seeds.

    Raises:
        ValueError: Fewer than three seeds in a task, no task, or a value that is not finite.
    """
    scores = tuple(map(_checked, tasks))
    n = min(map(len, scores), default=0)
    if n < FEWEST:
        raise ValueError(f"n={n} seeds are too few to bootstrap: at least {FEWEST} in each task are needed")
    low, high = bootstrap_interval(scores, statistic, resamples=resamples, confidence=confidence, seed=seed)
    return Interval(np.asarray(statistic(*scores)), np.asarray(low), np.asarray(high), n)


def estimate(
    tasks: Sequence[ArrayLike],
    statistic: Callable[..., np.ndarray] = iqm,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """As `stratified_interval`, but with NaN for the bounds where a task has fewer than three seeds.

    Raises:
        ValueError: No task, a task without seeds, or a value that is not finite.
    """
    scores = [*map(_checked, tasks)]
    if (n := min(map(len, scores), default=0)) not in range(1, FEWEST):
        return stratified_interval(scores, statistic, resamples=resamples, seed=seed)
    value = np.asarray(statistic(*scores))
    nothing = np.full_like(value, np.nan)
    return Interval(value, nothing, nothing, n)


def performance_profile(
    tasks: Sequence[ArrayLike], thresholds: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Share of the scores above each threshold, a mean over tasks.

    Args:
        tasks: Scores of each task, `[seeds]`.
        thresholds: `[m]`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Arrays `[m]`.

    Raises:
        ValueError: As `estimate`.
    """
    above = [np.greater.outer(_checked(task), np.asarray(thresholds)).astype(float) for task in tasks]
    return estimate(above, mean, resamples=resamples, seed=seed)


def probability_of_improvement(
    tasks: Sequence[ArrayLike], others: Sequence[ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Probability that a run has a higher score than one of another method on the same task; ties count half.

    Args:
        tasks: Scores of each task, `[seeds]`.
        others: Those of the other method, on the same tasks in the same order.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: Different numbers of tasks, and as `estimate`.
    """
    if len(tasks) != len(others):
        raise ValueError(f"both methods need the same tasks, not {len(tasks)} and {len(others)}")

    def improved(*scores: np.ndarray, axis: int = 0) -> np.ndarray:
        pairs = zip(scores[: len(tasks)], scores[len(tasks) :], strict=True)
        return np.mean([_above(x, y, axis) for x, y in pairs], axis=0)

    return estimate([*tasks, *others], improved, resamples=resamples, seed=seed)


def _above(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Share of the pairs in which x is larger, ties counted half: Mann and Whitney's U from ranks, over n·m."""
    n, m = x.shape[axis], y.shape[axis]
    ranks = stats.rankdata(np.concatenate([x, y], axis), axis=axis)
    return (np.take(ranks, range(n), axis).sum(axis) - n * (n + 1) / 2) / (n * m)


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or not len(array):
        raise ValueError("statistics over seeds need at least one seed")
    if not np.isfinite(array).all():
        raise ValueError("statistics over seeds need finite values")
    return array
