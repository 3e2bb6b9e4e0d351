"""Bootstrap intervals. Needs SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
"""Number of bootstrap resamples."""
CELLS = 2**20
"""Largest number of values that are resampled at a time, which bounds the memory."""


def bootstrap_interval(
    values: np.ndarray | tuple[np.ndarray, ...],
    statistic: Callable[..., Any] = np.mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Any, Any]:
    """95 % percentile interval of a statistic by the bootstrap (`scipy.stats.bootstrap`).

    Args:
        values: `[n, ...]`, resampled along axis 0. The arrays of a tuple are resampled independently.
        statistic: Called as `statistic(*arrays, axis=1)` with arrays `[some, n, ...]`, several resamples at a
            time; returns `[some]`, or `[some, m]` for m numbers. `np.mean` and `np.median` are such functions.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling; the same seed gives the same interval.

    Returns:
        Lower and upper bound: floats, or arrays `[m]`. Both are the statistic itself where an array has one
        observation only.

    Raises:
        ValueError: An array without observations.
    """
    samples = tuple(map(np.asarray, values if isinstance(values, tuple) else (values,)))

    def resampled(*rows: np.ndarray) -> Any:
        return np.transpose(statistic(*(sample[row] for sample, row in zip(samples, rows, strict=True)), axis=1))

    return interval_of_rows(
        [*map(len, samples)],
        resampled,
        resamples=resamples,
        seed=seed,
        size=sum(sample.size for sample in samples),
    )


def interval_of_rows(
    lengths: Sequence[int],
    statistic: Callable[..., Any],
    *,
    size: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Any, Any]:
    """As `bootstrap_interval`, but the statistic is given the numbers of the rows that were drawn.

    Args:
        lengths: Number of observations of each array.
        statistic: Called with arrays `[some, n]` of numbers of rows, one for each array; returns `[some]`, or
            `[..., some]` for several numbers.
        size: Number of values in a resample, of which `CELLS` says how many resamples are made at a time. The
            same lengths, size and seed draw the same rows.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound, floats or arrays `[...]`.

    Raises:
        ValueError: An array without observations.
    """
    from scipy import stats  # takes half a second

    if (fewest := min(lengths)) == 0:
        raise ValueError("values has no observation: a bootstrap interval needs at least one")
    if fewest == 1:
        value = np.asarray(statistic(*(np.arange(n)[None] for n in lengths)))[..., 0]
        return _plain(value), _plain(value)
    low, high = stats.bootstrap(
        [np.arange(n) for n in lengths],
        lambda *rows, **_: statistic(*rows),  # SciPy's axis is that of the row numbers
        n_resamples=resamples,
        batch=max(1, CELLS // size),
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return _plain(low), _plain(high)


def _plain(bound: Any) -> Any:
    return bound if np.ndim(bound) else float(bound)
