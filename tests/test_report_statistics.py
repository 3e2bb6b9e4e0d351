"""Statistics over seeds by hand, and over tasks beside those of rliable 1.2.0 (arXiv 2108.13264)."""

import math
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.stats import norm, trim_mean

from entropyfloor.report.statistics import (
    TOGETHER,
    estimate,
    estimates,
    iqm,
    mean,
    mean_interval,
    median,
    optimality_gap,
    performance_profile,
    probabilities_of_improvement,
)

# Four tasks of five seeds each.
SCORES = [
    [0.10, 0.20, 0.15, 0.30, 0.25],
    [0.50, 0.45, 0.70, 0.60, 0.55],
    [0.90, 0.80, 0.95, 0.70, 1.05],
    [1.40, 1.10, 1.20, 1.30, 0.90],
]
OTHERS = [
    [0.12, 0.20, 0.05, 0.22, 0.18],
    [0.40, 0.50, 0.65, 0.30, 0.35],
    [0.70, 0.85, 0.60, 0.70, 0.90],
    [1.20, 0.60, 1.00, 1.10, 0.80],
]
# Point estimates and the intervals of 2,000 resamples, whose bounds vary by about 0.005.
RLIABLE = {
    median: [(0.72, 0.655, 0.785), (0.595, 0.525, 0.665)],
    iqm: [(0.705, 0.65, 0.78), (0.56, 0.5, 0.645)],
    mean: [(0.705, 0.6525, 0.7575), (0.571, 0.51, 0.63)],
    optimality_gap: [(0.3475, 0.3124375, 0.385), (0.444, 0.393, 0.495525)],
}


# --- over seeds ------------------------------------------------------------------------------------------


def test_mean_interval_by_hand():
    # s = √(5/3), t(0.975, 3) = 3.182446 from a printed table
    mean, low, high, n = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (mean, n) == (2.5, 4)
    np.testing.assert_allclose([low, high], [2.5 - half, 2.5 + half], rtol=1e-6)
    # two seeds 2 apart: s/√2 = 1, so the half-width is t(0.975, 1) itself
    np.testing.assert_allclose(mean_interval([[1.0], [3.0]]).high, [2.0 + 12.706205], rtol=1e-6)


def test_one_seed_has_no_interval():
    interval = mean_interval([[1.0, 2.0]])
    np.testing.assert_array_equal(interval.value, [1.0, 2.0])
    assert np.isnan([interval.low, interval.high]).all()


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8).filter(lambda x: np.ptp(x) > 1e-3))
def test_the_interval_contains_the_mean_and_shrinks_with_n(values):
    few, many = mean_interval(values), mean_interval(values * 3)
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low
    np.testing.assert_allclose(few.value, many.value, atol=1e-9)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(7.0, 2.0, size=(5, 20_000))
    interval = mean_interval(samples)
    covered = np.mean((interval.low < 7.0) & (interval.high > 7.0))
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 20_000)


def test_iqm_by_hand():
    assert iqm(np.array([100.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -50.0])) == 2.5  # 1, 2, 3, 4 stay
    assert iqm(np.array([1.0, 2.0, 9.0])) == 4.0  # too few to drop any
    assert iqm(np.array([0.0, 4.0]), np.array([2.0, 100.0])) == 3.0  # over all tasks together


def test_bootstrap_by_hand():
    # Of the 27 resamples of three seeds one is (0, 0, 0) and one (6, 6, 6): 3.7 %, more than the 2.5 % outside.
    value, low, high, n = estimate([[0.0, 3.0, 6.0]])
    assert (value, low, high, n) == (3.0, 0.0, 6.0, 3)
    # Of the resamples of (0, 0, 0, 1) 5 % have three 1s or more. Their IQM is 1, and their mean 0.75 or more.
    assert estimate([[0.0, 0.0, 0.0, 1.0]]).high == 1.0


def test_the_bootstrap_stays_inside_its_tasks_and_is_repeatable():
    value, low, high, _ = estimate([[1.0] * 3, [10.0] * 3])
    assert (value, low, high) == (5.5, 5.5, 5.5)  # tasks that were mixed would spread
    scores = np.random.default_rng(1).normal(size=(2, 5))
    assert estimate(scores) == estimate(scores)


def test_the_bootstrap_of_many_seeds_needs_no_gigabytes():
    values = np.random.default_rng(2).normal(size=(1500, 2))
    tracemalloc.start()
    interval = estimate(values.T, resamples=3000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # all draws together: 3000 · 1500 · 2 · 8 bytes = 72 MB, and several times that
    assert interval.low < interval.value < interval.high
    one = estimate([values[:, 0]], resamples=3000)  # its draws are those of a generator without chunks
    drawn = values[np.random.default_rng(0).integers(1500, size=(3000, 1500)), 0]
    expected = np.quantile(trim_mean(drawn, 0.25, axis=1), [0.025, 0.975])
    np.testing.assert_allclose([one.low, one.high], expected, rtol=1e-14)


# --- over tasks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", RLIABLE, ids=lambda statistic: statistic.__name__)
def test_statistics_over_tasks_are_those_of_rliable(statistic):
    for scores, (value, low, high) in zip((SCORES, OTHERS), RLIABLE[statistic], strict=True):
        interval = estimate(scores, statistic)
        assert interval.value == pytest.approx(value, abs=1e-12)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.011)


def test_the_probability_of_improvement_is_that_of_rliable():
    [(value, low, high, n)] = probabilities_of_improvement([SCORES], OTHERS)
    assert value == pytest.approx(0.755, abs=1e-12)
    assert (low, high) == pytest.approx((0.58, 0.885), abs=0.015)
    assert n == 5
    [same] = probabilities_of_improvement([SCORES], SCORES)
    assert same.value == 0.5  # ties count half


def test_the_performance_profile_is_that_of_rliable():
    profile = performance_profile(SCORES, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
    np.testing.assert_allclose(profile.value, [1.0, 0.8, 0.65, 0.45, 0.25, 0.1], atol=1e-12)
    np.testing.assert_allclose(profile.low, [1.0, 0.75, 0.55, 0.35, 0.15, 0.0], atol=0.051)  # steps of 1/20
    np.testing.assert_allclose(profile.high, [1.0, 0.9, 0.75, 0.5, 0.35, 0.2], atol=0.051)


def test_tasks_may_have_different_numbers_of_seeds():
    tasks = [np.array([0.0, 1.0, 2.0]), np.array([4.0, 4.0, 4.0, 8.0])]
    assert mean(*tasks) == 3.0  # of 1 and 5, not of the seven scores
    assert estimate(tasks, mean).n == 3
    [improvement] = probabilities_of_improvement([tasks], [[1.0, 1.0, 1.0], [8.0, 8.0, 8.0]])
    assert improvement.value == pytest.approx((0.5 + 0.125) / 2)


def test_every_task_counts_alike_in_the_iqm():
    """As if scores were repeated until all tasks have as many; with as many seeds, SciPy's trimmed mean."""
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=(n, 5)) for n in (3, 4, 6, 4)]
    repeated = np.concatenate([np.repeat(task, 12 // len(task), axis=0) for task in tasks])
    np.testing.assert_allclose(iqm(*tasks), trim_mean(repeated, 0.25, axis=0), rtol=1e-12)
    assert iqm(np.array([0.0] * 9), np.array([1.0] * 3)) == 0.5
    whole = estimate(tasks, resamples=500)
    alone = estimate([task[:, 2] for task in tasks], resamples=500)
    np.testing.assert_allclose([whole.low[2], whole.high[2]], [alone.low, alone.high], rtol=1e-12)


def test_an_estimate_of_two_seeds_has_no_bounds():
    tasks = [[0.0, 1.0, 2.0], [0.5, 1.0]]
    value, low, high, n = estimate(tasks, mean)
    assert (value, n) == (0.875, 2)
    assert np.isnan([low, high]).all()
    profile = performance_profile(tasks, [0.6, 1.5])
    np.testing.assert_allclose(profile.value, [(2 / 3 + 1 / 2) / 2, 1 / 6])
    assert np.isnan([profile.low, profile.high]).all()
    [improvement] = probabilities_of_improvement([tasks], [[1.0], [0.75]])
    assert (improvement.value, improvement.n) == (0.5, 1)


@pytest.mark.parametrize("statistic", RLIABLE, ids=lambda statistic: statistic.__name__)
def test_a_resample_is_how_often_each_seed_was_drawn(statistic):
    """The statistic of the counts is that of the drawn scores themselves."""
    rng = np.random.default_rng(0)
    scores = [rng.normal(0.5, 1.0, n).round(1) for n in (3, 7, 4)]
    rows = [rng.integers(0, len(task), (50, len(task))) for task in scores]
    counts = [
        (row[..., None] == np.arange(len(task))).sum(1).T.astype(float)
        for task, row in zip(scores, rows, strict=True)
    ]
    expected = [
        statistic(*(task[row[i]] for task, row in zip(scores, rows, strict=True))) for i in range(len(rows[0]))
    ]
    np.testing.assert_allclose(statistic(*scores, drawn=counts), expected, rtol=1e-12)


def test_arms_together_have_the_intervals_that_each_has_alone():
    """Also where some have other numbers of seeds, and more arms than are resampled at a time."""
    rng = np.random.default_rng(0)
    numbers = [(5, 3), (5, 5), (2, 5), *[(5, 3)] * TOGETHER]
    arms = [[rng.normal(size=n) for n in each] for each in numbers]
    others = [rng.normal(size=4), rng.normal(size=3)]
    together = estimates(arms, iqm, resamples=200)
    improvements = probabilities_of_improvement(arms, others, resamples=200)
    for arm, interval, improvement in zip(arms, together, improvements, strict=True):
        alone = estimate(arm, iqm, resamples=200)
        np.testing.assert_allclose(interval, alone, rtol=1e-12)
        [alone] = probabilities_of_improvement([arm], others, resamples=200)
        np.testing.assert_allclose(improvement, alone, rtol=1e-12)
    assert [each.n for each in together] == [min(each) for each in numbers]


def test_improvement_over_many_seeds_takes_little_memory():
    """Four million pairs in each of 300 resamples would be 10 GB."""
    x, y = np.random.default_rng(0).normal([[0.5], [0.0]], size=(2, 2000))
    tracemalloc.start()
    [improvement] = probabilities_of_improvement([[x]], [y], resamples=300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert improvement.value == pytest.approx((x[:, None] > y).mean(), abs=1e-12)
    assert improvement.low < norm.cdf(0.5 / np.sqrt(2)) < improvement.high


def test_a_curve_has_an_interval_at_each_step():
    curves = np.random.default_rng(0).normal(size=(3, 5, 4)).cumsum(-1)  # tasks, seeds, steps
    whole = estimate(list(curves), resamples=2000)
    for step in range(4):
        alone = estimate(list(curves[..., step]), resamples=2000)
        for at_step, expected in zip(whole[:3], alone[:3], strict=True):
            assert at_step[step] == pytest.approx(expected, abs=1e-12)


def test_statistics_refuse_what_they_cannot_do():
    for function in (mean_interval, lambda values: estimate([values])):
        with pytest.raises(ValueError, match="at least one seed"):
            function([])
        with pytest.raises(ValueError, match="finite"):
            function([0.0, 1.0, np.nan])
    with pytest.raises(ValueError, match="at least one task"):
        estimate([])
    with pytest.raises(ValueError, match="same tasks, not 4 and 3"):
        probabilities_of_improvement([SCORES], OTHERS[:3])
