"""Intervals over seeds, for 95 % by default."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from entropyfloor.runs.statistics import bootstrap_interval

CONFIDENCE = 0.95
RESAMPLES = 20_000
"""Number of bootstrap resamples: the bounds then vary by some hundredths of the interval's width."""


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


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean without the lowest and highest quarter of all values.

    ⌊n/4⌋ values are dropped at either end, so that it is the plain mean for n < 4.
    Agarwal et al. 2021 (arXiv 2108.13264), section 4.
    """
    return float(stats.trim_mean(_checked(values), 0.25, axis=None))


def iqm_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interquartile mean with the percentile interval of a stratified bootstrap.

    The seeds of each task are resampled independently; Agarwal et al. 2021 (arXiv 2108.13264), section 4. With a
    handful of seeds in one task it covers less than `confidence`, as a resample is never more diverse than the
    sample; `mean_interval` does not have this fault.

    Args:
        values: `[n]`, or `[n, tasks]` with returns that are comparable between tasks.
        confidence: Share of the bootstrap distribution inside the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: Fewer than three seeds, or a value that is not finite.
    """
    values = _checked(values)
    n = len(values)
    if n < 3:
        raise ValueError(f"n={n} seeds are too few to bootstrap: at least 3 are needed")
    tasks = tuple(values.reshape(n, -1).T)
    low, high = bootstrap_interval(tasks, _iqm_of_tasks, resamples=resamples, confidence=confidence, seed=seed)
    return Interval(np.asarray(iqm(values)), np.asarray(low), np.asarray(high), n)


def _iqm_of_tasks(*tasks: np.ndarray, axis: int) -> np.ndarray:
    return stats.trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or not len(array):
        raise ValueError("statistics over seeds need at least one seed")
    if not np.isfinite(array).all():
        raise ValueError("statistics over seeds need finite values")
    return array
