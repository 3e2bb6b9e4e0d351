"""Bootstrap intervals."""

import tracemalloc

import numpy as np
import pytest

from entropyfloor.runs.statistics import bootstrap_interval


def test_the_percentiles_are_those_of_resampled_rows():
    values = np.random.default_rng(1).normal(size=10)
    drawn = values[np.random.default_rng(0).integers(10, size=(10_000, 10))]
    for statistic in (np.mean, np.median):
        expected = np.quantile(statistic(drawn, axis=1), [0.025, 0.975])
        assert bootstrap_interval(values, statistic) == pytest.approx(expected, abs=1e-12)
    other = bootstrap_interval(values, seed=1)
    assert other != bootstrap_interval(values)
    assert other == pytest.approx(bootstrap_interval(values), abs=0.1)


def test_a_statistic_of_rows_sees_whole_rows():
    values = np.random.default_rng(1).normal(size=(50, 3))
    values[:, 2] = values[:, 0] - values[:, 1]

    def excess(rows, axis):
        assert rows.shape[1:] == (50, 3)
        return np.abs(rows[..., 0] - rows[..., 1] - rows[..., 2]).max(axis=axis)

    assert bootstrap_interval(values, excess, resamples=100) == (0.0, 0.0)


def test_arrays_of_a_tuple_are_resampled_independently():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1.0, 1.0, size=400), rng.normal(0.0, 2.0, size=900)
    low, high = bootstrap_interval((a, b), lambda a, b, axis: a.mean(axis) - b.mean(axis))
    middle, half = a.mean() - b.mean(), 1.96 * np.sqrt(a.var() / 400 + b.var() / 900)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.05 * half)


def test_a_statistic_may_return_several_numbers():
    values = np.random.default_rng(1).normal(size=(50, 3))
    low, high = bootstrap_interval(values, lambda rows, axis: rows.mean(axis), resamples=500)
    for i in range(3):
        alone = bootstrap_interval(values[:, i], resamples=500)
        assert (low[i], high[i]) == pytest.approx(alone, abs=1e-12)
    low, high = bootstrap_interval(values[:1], lambda rows, axis: rows.mean(axis))
    assert low.tolist() == high.tolist() == values[0].tolist()


def test_one_observation_gives_no_spread_and_none_is_refused():
    assert bootstrap_interval(np.array([2.5])) == (2.5, 2.5)
    pair = (np.array([2.5, 9.0]), np.array([0.5]))
    assert bootstrap_interval(pair, lambda a, b, axis: a.mean(axis) - b.mean(axis)) == (5.25, 5.25)
    with pytest.raises(ValueError, match="no observation"):
        bootstrap_interval(np.array([]))


def test_the_memory_is_bounded():
    values = np.random.default_rng(2).normal(size=10_000)
    bootstrap_interval(values[:10])
    tracemalloc.start()
    low, high = bootstrap_interval(values, resamples=1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6  # all resamples at once are 80 MB, twice
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 100, rel=0.1)
