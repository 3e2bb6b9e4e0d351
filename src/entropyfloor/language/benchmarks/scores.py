"""What responses to a benchmark are worth, with intervals over problems. Plain NumPy; shares, not per cents."""

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
        """As JSON has it."""
        return {"value": self.value, "interval_95": [self.low, self.high]}


# --- each problem ----------------------------------------------------------------------------------------


def pass_at_k(n: int, correct: ArrayLike, k: int) -> np.ndarray:
    """Probability that of k responses, drawn without replacement from n, one is right at least.

        1 - C(n-c, k) / C(n, k) = 1 - Π_{i=n-c+1}^{n} (1 - k/i)

    Unbiased for the probability that one of k fresh responses is right; Chen et al. 2021 (arXiv 2107.03374), Eq.
    1. No binomial is computed: they overflow for n of some hundreds, and their quotient loses digits before.

    Args:
        n: Responses to each problem.
        correct: `[problems]`, how many of them are right: c.
        k: At most n.

    Returns:
        `[problems]` in [0, 1].

    Raises:
        ValueError: k is not within 1 and n, or a count not within 0 and n.
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
    """How likely the commonest answer to a problem is right: 0 or 1, or between them where answers tie.

    Equal answers form a group; responses without an answer form none, and lose where nobody else has one. Of
    groups that tie, each is as likely to be chosen, so that the score does not depend on the order of responses.

    Args:
        answers: Of each response, normalised so that equal ones compare equal; None for none.
        correct: Of each response; within a group their mean counts.

    Raises:
        ValueError: No response, or lengths that differ.
    """
    if not answers or len(answers) != len(correct):
        raise ValueError(
            f"{len(answers)} answers and {len(correct)} verdicts: there must be one of each a response"
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
    """Mean over problems with a 95 % interval that says how far other problems of the kind would move it.

    Wilson's interval (1927), for as many trials as would spread as the problems do: n where each value is 0 or 1,
    and more where they are shares, such as the mean of 16 responses. Counting each response would make it too
    narrow, as those to a problem are alike. Where all values are equal nothing is known of their spread, and n
    errs on the wide side. Where next to nothing is solved it says a little too much: with 30 problems and a mean
    of 2 % it holds in 87 of 100.

    Args:
        values: `[problems]` in [0, 1].

    Raises:
        ValueError: No problem, or a value that is not in [0, 1].
    """
    shares = _checked(values)
    n, mean = len(shares), float(shares.mean())
    spread = float(shares.var(ddof=1)) if n > 1 else 0.0
    return Score(mean, *wilson(mean, max(n, n * mean * (1 - mean) / spread) if spread else n))


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a probability of which `share` was seen in n trials (Wilson 1927)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def pass_curve(n: int, correct: ArrayLike, ks: Sequence[int] = ()) -> dict[int, Score]:
    """pass@k over problems, for `ks`, or else for 1, 2, 4, … and n."""
    chosen = ks or sorted({*(2**i for i in range(n.bit_length())), n})
    return {k: accuracy(pass_at_k(n, correct, k)) for k in chosen}


def _checked(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values {array.shape} must be [problems], with one problem at least")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"values from {array.min()} to {array.max()} must be within 0 and 1")
    return array
