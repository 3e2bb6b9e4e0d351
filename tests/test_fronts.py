"""Fronts of avg@k against pass@k: area, and the comparison of two arms, on counts whose verdict is known."""

import numpy as np
import pytest

from entropyfloor.report.fronts import LEVEL, TUNING, area, compare, front

N, PROBLEMS = 64, 200
TEMPERATURES = np.array([0.3, 1.0, 1.3])


def counts_of(chances, seeds=4, seed=0):
    """Right responses to problems of these chances, `[temperatures, problems]`."""
    rng = np.random.default_rng(seed)
    return rng.binomial(N, np.broadcast_to(chances, (seeds, *np.shape(chances))))


def policies(share, chance):
    """A share of the problems is solved with this chance at T = 0.3, with less at higher temperatures."""
    solved = np.arange(PROBLEMS) % 10 < 10 * share
    return np.array([np.where(solved, chance * factor, 0.0) for factor in (1.0, 0.8, 0.5)])


def test_a_front_has_the_mean_and_the_share_of_solved_problems():
    avg, solved = front(np.array([[[64, 0, 32, 0], [16, 16, 0, 0]]]), N)
    assert avg.tolist() == [[0.375, 0.125]]
    assert solved.tolist() == [[0.5, 0.5]]


def test_the_area_is_that_of_the_union_of_rectangles():
    assert area(np.array([0.5]), np.array([0.4])) == pytest.approx(0.2)
    avg, solved = np.array([0.2, 0.5, 0.3]), np.array([0.9, 0.4, 0.6])
    assert area(avg, solved) == pytest.approx(0.5 * 0.4 + 0.3 * 0.2 + 0.2 * 0.3)
    assert area(avg[::-1], solved[::-1]) == area(avg, solved)
    worse = np.append(avg, 0.1), np.append(solved, 0.1)
    assert area(*worse) == area(avg, solved)
    grid = np.random.default_rng(0).random((200_000, 2))
    inside = ((grid[:, :1] < avg) & (grid[:, 1:] < solved)).any(1).mean()
    assert area(avg, solved) == pytest.approx(inside, abs=0.005)


def test_a_broader_policy_wins_both():
    """A higher mean from twice as many problems."""
    narrow, broad = counts_of(policies(0.4, 0.8)), counts_of(policies(0.8, 0.5), seed=1)
    verdict = compare(broad, narrow, TEMPERATURES, N)
    assert verdict.wins_both
    assert verdict.temperature == verdict.baseline_temperature == 0.3
    assert verdict.avg.value == pytest.approx(0.08, abs=0.01)
    assert verdict.solved.value == pytest.approx(0.4, abs=0.02)
    assert verdict.solved.low < verdict.solved.value < verdict.solved.high


def test_pass_that_is_bought_with_avg_does_not_win():
    narrow, broad = counts_of(policies(0.4, 0.8)), counts_of(policies(0.8, 0.2), seed=1)
    verdict = compare(broad, narrow, TEMPERATURES, N)
    assert verdict.solved.low > 0
    assert not verdict.wins_both
    assert verdict.avg.high < -LEVEL


def test_nothing_is_won_against_oneself():
    counts = counts_of(policies(0.4, 0.8))
    verdict = compare(counts, counts, TEMPERATURES, N)
    assert not verdict.wins_both
    assert verdict.avg == verdict.solved == verdict.area == (0.0, 0.0, 0.0)


def test_the_temperature_is_chosen_on_problems_that_do_not_count():
    counts, baseline = counts_of(policies(0.8, 0.4)), counts_of(policies(0.4, 0.8))
    tuning = np.arange(PROBLEMS) % TUNING == 0
    counts[:, 1, tuning] = N
    assert compare(counts, baseline, TEMPERATURES, N).temperature == 1.0
    changed = counts.copy()
    changed[:, :, tuning] = np.where(changed[:, :, tuning] == N, N, 1)
    assert compare(changed, baseline, TEMPERATURES, N)[2:] == compare(counts, baseline, TEMPERATURES, N)[2:]


def test_a_problem_that_every_seed_solves_is_worth_more_than_one_that_some_do():
    """pass@k is the mean of that of each seed, also where the temperature is chosen."""
    counts = np.zeros((2, len(TEMPERATURES), PROBLEMS), int)
    counts[0, 0, ::2], counts[1, 0, 1::2] = N, N  # at the low temperature each seed solves half of the problems
    counts[:, 1] = N // 2
    assert compare(counts, counts, TEMPERATURES, N).temperature == TEMPERATURES[1]


def slow_intervals(counts, baseline, verdict, draws):
    """Percentiles of the differences over resampled problems and seeds, one resample after the other."""
    judged = np.stack([counts, baseline])[..., np.arange(PROBLEMS) % TUNING > 0]
    at = [int(np.argmax(each == TEMPERATURES)) for each in (verdict.temperature, verdict.baseline_temperature)]
    found = []
    for problems, seeds in draws:
        points = [front(arm[seeds][..., problems], N) for arm in judged]
        at_best = [[each[:, place].mean() for each in point] for point, place in zip(points, at, strict=True)]
        areas = [area(*point).mean() for point in points]
        found.append([*np.subtract(*at_best), np.subtract(*areas)])
    return np.quantile(found, [0.025, 0.975], axis=0).T


def test_intervals_are_those_of_a_loop_over_resamples():
    """Problems and seeds are resampled together: all seeds of a resample have the same problems, and both arms."""
    counts = counts_of(policies(0.6, 0.6)) * np.array([1, 1, 0, 2])[:, None, None] // 2
    baseline = counts_of(policies(0.4, 0.8), seed=1)
    verdict = compare(counts, baseline, TEMPERATURES, N)
    rng, judged = np.random.default_rng(5), PROBLEMS - PROBLEMS // TUNING
    draws = [(rng.integers(judged, size=judged), rng.integers(4, size=4)) for _ in range(2000)]
    slow = slow_intervals(counts, baseline, verdict, draws)
    for difference, (low, high) in zip(verdict[2:], slow, strict=True):
        width = high - low
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=0.08 * width)
        assert width > 0.05


def test_one_seed_has_intervals_over_problems():
    """Those of the same draws, so that published verdicts stay as they are."""
    counts, baseline = counts_of(policies(0.6, 0.6), seeds=1), counts_of(policies(0.4, 0.8), seeds=1, seed=1)
    verdict = compare(counts, baseline, TEMPERATURES, N)
    judged = PROBLEMS - PROBLEMS // TUNING
    draws = [(problems, [0]) for problems in np.random.default_rng(0).integers(judged, size=(2000, judged))]
    bounds = [(each.low, each.high) for each in verdict[2:]]
    np.testing.assert_allclose(bounds, slow_intervals(counts, baseline, verdict, draws), rtol=0, atol=1e-12)


def test_counts_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"must be \[seeds, 3 temperatures, problems\]"):
        compare(np.zeros((2, 3, 8)), np.zeros((2, 3, 9)), TEMPERATURES, N)
