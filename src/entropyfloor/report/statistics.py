"""Intervals over seeds, in plain NumPy and SciPy. All of them are for 95 % unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 20_000
"""Of the bootstrap: its own error is then some hundredths of the interval's width."""
CHUNK = 2**20
"""Numbers that the bootstrap holds at a time."""


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

    Seeds are drawn with replacement, in each task by themselves; Agarwal et al. 2021 (arXiv 2108.13264), section
    4. With a handful of seeds in one task it covers less than it says, as a resample is never more diverse than
    the sample; `mean_interval` does not have this fault.

    Args:
        values: `[n]`, or `[n, tasks]` with returns that are comparable between tasks.
        confidence: Share of the bootstrap distribution inside the interval.
        resamples: How many times the seeds are drawn.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than three seeds, or a value that is not finite.
    """
    values = _checked(values)
    n = len(values)
    if n < 3:
        raise ValueError(f"n={n} seeds are too few to bootstrap: at least 3 are needed")
    table = values.reshape(n, -1)
    tasks = table.shape[1]
    chunks = (table.ravel().take(drawn) for drawn in _resamples(seed, resamples, n, tasks))
    draws = np.concatenate([stats.trim_mean(chunk, 0.25, axis=1) for chunk in chunks])
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(np.asarray(iqm(values)), low, high, n)


def _resamples(seed: int, resamples: int, n: int, tasks: int) -> Iterator[np.ndarray]:
    """Where in a table `[n, tasks]` the numbers of resamples are, `[some, n * tasks]`."""
    if resamples * n * tasks <= CHUNK:  # many groups have the same few seeds
        yield _few(seed, resamples, n, tasks)
        return
    generator = np.random.default_rng(seed)
    some = max(1, CHUNK // (n * tasks))
    for done in range(0, resamples, some):
        yield _drawn(generator, min(some, resamples - done), n, tasks)


@lru_cache(maxsize=8)
def _few(seed: int, resamples: int, n: int, tasks: int) -> np.ndarray:
    return _drawn(np.random.default_rng(seed), resamples, n, tasks)


def _drawn(generator: np.random.Generator, resamples: int, n: int, tasks: int) -> np.ndarray:
    drawn = generator.integers(n, size=(resamples, n, tasks))
    return (drawn * tasks + np.arange(tasks)).reshape(resamples, -1)


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or not len(array):
        raise ValueError("statistics over seeds need at least one seed")
    if not np.isfinite(array).all():
        raise ValueError("statistics over seeds need finite values")
    return array
