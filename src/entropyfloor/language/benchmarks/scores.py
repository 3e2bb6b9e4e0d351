"""Scores of responses to a benchmark, with intervals over problems. Plain NumPy; shares, not per cents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


class Score(NamedTuple):
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def record(self) -> dict[str, object]:
        """The score as JSON."""
        return {"value": self.value, "interval_95": [self.low, self.high]}


# --- each problem ----------------------------------------------------------------------------------------


def pass_at_k(n: int, correct: ArrayLike, k: int) -> np.ndarray:
    """Probability that at least one of k responses, drawn without replacement from n, is right.

        1 - C(n-c, k) / C(n, k) = 1 - Π_{i=n-c+1}^{n} (1 - k/i)

    Unbiased for the probability that at least one of k new responses is right; Chen et al. 2021 (arXiv
    2107.03374), Eq. 1. No binomial is computed: they overflow for n of some hundreds, and their quotient loses
    digits before.

    Args:
        n: Number of responses to each problem.
        correct: `[problems]`, number of right responses: c.
        k: Number of drawn responses, at most n.

    Returns:
        `[problems]` in [0, 1].

    Raises:
        ValueError: k is not within 1 and n, or a count is not within 0 and n.
    """
    counts = np.asarray(correct, np.int64)
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be within 1 and n={n}: draw more responses, or ask for fewer")
    if counts.size and not 0 <= counts.min() <= counts.max() <= n:
        raise ValueError(
            f"correct has counts from {counts.min()} to {counts.max()}: they must be within 0 and {n}"
        )
    # log Π over the last c factors, for every c at once; a factor of 0 (n - c < k) makes the rest certain.
    factors = 1 - k / np.maximum(np.arange(n, 0, -1), k)
    with np.errstate(divide="ignore"):
        logs = np.concatenate([[0.0], np.cumsum(np.log(factors))])
    return -np.expm1(logs)[counts]


def majority(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Probability that the most common answer to a problem is right: 0 or 1, or between them where answers tie.

    Equal answers form a group; responses without an answer form none, and without any group the result
    is 0. Groups that tie are equally likely to be chosen, so that the order of responses does not matter.

    Args:
        answers: Answer of each response, normalised so that equal ones compare equal; None for no answer.
        correct: Whether each response is right; within a group their mean counts.

    Raises:
        ValueError: There is no response, or the lengths differ.
    """
    if not answers or len(answers) != len(correct):
        raise ValueError(
            f"{len(answers)} answers and {len(correct)} verdicts: give one of each for every response"
        )
    groups: defaultdict[Hashable, list[bool]] = defaultdict(list)
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            groups[answer].append(bool(right))
    if not groups:
        return 0.0
    most = max(map(len, groups.values()))
    return float(np.mean([np.mean(group) for group in groups.values() if len(group) == most]))


# --- all of them -----------------------------------------------------------------------------------------


def accuracy(values: ArrayLike) -> Score:
    """Mean over problems with its 95 % interval over other problems of the kind.

    Wilson's interval (1927), for the number of trials whose spread is that of the problems: n where each value is
    0 or 1, and more where values are shares, such as the mean of 16 responses. Counting each response as a trial
    would make it too narrow, since the responses to a problem are alike. Where all values are equal their spread
    is unknown, and n makes the interval too wide rather than too narrow. Where very little is solved the interval
    is a little too narrow: with 30 problems and a mean of 2 % it holds in 87 of 100 cases. With few problems their
    spread is uncertain, and the interval is too narrow as well: with 10 it holds in 92 of 100 cases, with 5 in 89,
    with 2 in 76.

    Args:
        values: `[problems]` in [0, 1].

    Raises:
        ValueError: There is no problem, or a value is not in [0, 1].
    """
    shares = _checked(values)
    n, mean = len(shares), float(shares.mean())
    spread = float(shares.var(ddof=1)) if n > 1 else 0.0
    return Score(mean, *wilson(mean, max(n, n * mean * (1 - mean) / spread) if spread else n))


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a probability after `share` of n trials succeeded (Wilson 1927)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def pass_curve(n: int, correct: ArrayLike) -> dict[int, Score]:
    """pass@k over problems, for k = 1, 2, 4, … and n; see `pass_at_k` for the arguments."""
    ks = sorted({*(2**i for i in range(n.bit_length())), n})
    return {k: accuracy(pass_at_k(n, correct, k)) for k in ks}


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values {array.shape} must be [problems], with one problem at least")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"values from {array.min()} to {array.max()} must be within 0 and 1")
    return array
