"""Scores against enumeration in exact arithmetic, and intervals against repeated draws."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from entropyfloor.language.benchmarks import scores


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_draws_that_have_a_right_one(n):
    for k in range(1, n + 1):
        found = scores.pass_at_k(n, range(n + 1), k)
        for c, value in enumerate(found):
            draws = list(combinations([True] * c + [False] * (n - c), k))
            assert value == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-14)


@pytest.mark.parametrize(("n", "k"), [(16, 8), (1024, 1), (1024, 512), (100_000, 3), (5000, 5000)])
def test_pass_at_k_keeps_its_digits_where_binomials_overflow(n, k):
    counts = [0, 1, 2, n // 2, n - 1, n]
    for c, value in zip(counts, scores.pass_at_k(n, counts, k), strict=True):
        exact = 1 - Fraction(comb(n - c, k), comb(n, k))
        assert value == pytest.approx(float(exact), rel=1e-11, abs=0)


def test_pass_at_k_is_unbiased():
    random, p, n, k = np.random.default_rng(0), 0.15, 10, 4
    counts = random.binomial(n, p, size=200_000)
    assert scores.pass_at_k(n, counts, k).mean() == pytest.approx(1 - (1 - p) ** k, abs=0.003)


def test_pass_at_1_is_the_mean_and_the_curve_rises():
    counts = np.array([0, 3, 16, 7, 1])
    curve = scores.pass_curve(16, counts)
    assert list(curve) == [1, 2, 4, 8, 16]
    assert curve[1].value == pytest.approx(counts.mean() / 16)
    assert curve[16].value == pytest.approx(4 / 5)
    values = [score.value for score in curve.values()]
    assert values == sorted(values)
    assert list(scores.pass_curve(12, [3])) == [1, 2, 4, 8, 12]


def test_pass_at_k_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="k=5 must be within 1 and n=4"):
        scores.pass_at_k(4, [1], 5)
    with pytest.raises(ValueError, match="k=0"):
        scores.pass_at_k(4, [1], 0)
    with pytest.raises(ValueError, match="counts from -1 to 5"):
        scores.pass_at_k(4, [-1, 5], 1)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        (["a", "b", "a"], "a", 1.0),
        (["a", "b", "a"], "b", 0.0),
        (["a", "b"], "b", 0.5),
        (["a", "b", "c", "a", "b"], "a", 0.5),
        (["a", "b", "c"], "c", 1 / 3),
        ([None, None, "a"], "a", 1.0),
        ([None, None], "a", 0.0),
    ],
)
def test_the_commonest_answer_wins_and_ties_are_shared(answers, right, expected):
    for shift in range(len(answers)):  # the order of responses says nothing
        turned = answers[shift:] + answers[:shift]
        assert scores.majority(turned, [answer == right for answer in turned]) == pytest.approx(expected)


def test_a_majority_needs_a_verdict_for_each_answer():
    with pytest.raises(ValueError, match="2 answers and 1 verdicts"):
        scores.majority(["a", "b"], [True])
    with pytest.raises(ValueError, match="0 answers"):
        scores.majority([], [])


# --- intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 500])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_wilson_covers_what_it_says(n, p):
    random = np.random.default_rng(1)
    found = [scores.wilson(share, n) for share in random.binomial(n, p, size=4000) / n]
    covered = np.mean([low <= p <= high for low, high in found])
    assert 0.925 < covered < 0.99  # counts are whole, so that no interval is right everywhere


def test_wilson_is_the_root_of_its_definition():
    low, high = scores.wilson(0.3, 40)
    for bound in (low, high):
        assert abs(0.3 - bound) == pytest.approx(scores.Z * (bound * (1 - bound) / 40) ** 0.5)
    assert scores.wilson(0.0, 40)[0] == 0
    assert scores.wilson(1.0, 40)[1] == 1


@pytest.mark.parametrize(
    ("n", "difficulty", "least"),
    [
        (40, (0.5, 1.0), 0.92),
        (218, (0.2, 3.0), 0.93),
        (30, (0.1, 4.3), 0.85),
        (10, (0.5, 1.0), 0.9),
        (2, (0.5, 1.0), 0.74),
    ],
)
def test_the_interval_of_shares_covers_what_it_says(n, difficulty, least):
    """Problems of differing difficulty, 16 responses to each: counting responses as independent would miss."""
    random, mean = np.random.default_rng(2), difficulty[0] / sum(difficulty)
    covered = []
    for _ in range(1000):
        score = scores.accuracy(random.binomial(16, random.beta(*difficulty, size=n)) / 16)
        covered.append(score.low <= mean <= score.high)
    assert least < np.mean(covered) < 0.98


def test_shares_have_wilsons_interval_for_as_many_trials_as_they_are_worth():
    assert scores.accuracy([0, 1, 1, 0])[1:] == scores.wilson(0.5, 4)
    shares = [0.25, 1.0, 0.5, 0.0]
    spread = sum((share - 0.4375) ** 2 for share in shares) / 3
    assert scores.accuracy(shares)[1:] == pytest.approx(scores.wilson(0.4375, 4 * 0.4375 * 0.5625 / spread))
    assert scores.accuracy(shares).value == pytest.approx(0.4375)
    assert scores.accuracy([0.5])[1:] == scores.wilson(0.5, 1)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_problems_that_are_all_alike_still_have_an_interval(value):
    score = scores.accuracy([value] * 30)
    assert score.value == value
    assert score.high - score.low > 0.05
    assert score[1:] == scores.wilson(value, 30)


def test_scores_refuse_what_is_none():
    with pytest.raises(ValueError, match="one problem at least"):
        scores.accuracy([])
    with pytest.raises(ValueError, match="within 0 and 1"):
        scores.accuracy([0.5, 2.0])
    with pytest.raises(ValueError, match="within 0 and 1"):
        scores.accuracy([0.5, float("nan")])
