"""Bootstrap intervals. Needs SciPy."""

from __future__ import annotations

from collections.abc import Callable
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
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Percentile interval of a statistic by the bootstrap (`scipy.stats.bootstrap`).

    Args:
        values: `[n, ...]`, resampled along axis 0. The arrays of a tuple are resampled independently.
        statistic: Called as `statistic(*arrays, axis=1)` with arrays `[some, n, ...]`, several resamples at a
            time; returns `[some]`, or `[some, m]` for m numbers. `np.mean` and `np.median` are such functions.
        resamples: Number of bootstrap resamples.
        confidence: Share of the bootstrap distribution inside the interval.
        seed: Seed of the resampling; the same seed gives the same interval.

    Returns:
        Lower and upper bound: floats, or arrays `[m]`. Both are the statistic itself where an array has one
        observation only.

    Raises:
        ValueError: An array without observations.
    """
    from scipy import stats  # takes half a second

    samples = tuple(map(np.asarray, values if isinstance(values, tuple) else (values,)))
    if (fewest := min(map(len, samples))) == 0:
        raise ValueError("values has no observation: a bootstrap interval needs at least one")
    if fewest == 1:
        (value,) = statistic(*(sample[None] for sample in samples), axis=1)
        return _plain(value), _plain(value)

    def resampled(*rows: np.ndarray, **_: int) -> Any:  # SciPy's axis is that of the row numbers
        return np.transpose(statistic(*(sample[row] for sample, row in zip(samples, rows, strict=True)), axis=1))

    low, high = stats.bootstrap(
        [np.arange(len(sample)) for sample in samples],
        resampled,
        n_resamples=resamples,
        batch=max(1, CELLS // sum(sample.size for sample in samples)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return _plain(low), _plain(high)


def _plain(bound: Any) -> Any:
    return bound if np.ndim(bound) else float(bound)
