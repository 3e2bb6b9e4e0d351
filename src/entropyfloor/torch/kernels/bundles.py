"""Named bundles of what the sweeps over the vocabulary pass to each other and to their kernels.

N rows, V columns (the vocabulary), D features, S scales beside scale 1. z are logits, m is the largest of a row.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layer(NamedTuple):
    """Last layer of a language model: hidden states h [N, D], weight W [V, D] and bias b [V]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class Options(NamedTuple):
    """How `W h + b` becomes logits, how many of them are kept, and whether Triton's kernels compute them."""

    temperature: float
    softcap: float  # 0 for none
    top_k: int  # 0 for all
    triton: bool


class State(NamedTuple):
    """Sums over the logits of each row that the forward sweep has visited."""

    top: Tensor  # m, [N]
    target: Tensor  # z_y, the logit of the target, [N]
    sums: Tensor  # Σ e^{s (z - m)} for scale 1 and then the others, [1 + S, N]
    moment: Tensor  # Σ e^{z - m} (z - m), [N]

    def at(self, rows: slice) -> State:
        """The sums of some rows, as views."""
        return State(self.top[rows], self.target[rows], self.sums[:, rows], self.moment[rows])


class Swept(NamedTuple):
    """Results of the forward sweep. Kept are the `top_k` largest logits and, in one more column, the target.

    That column has a gap of -inf where the target is among the largest. Without `top_k` nothing is kept.
    """

    top: Tensor
    gap: Tensor  # z_y - m, [N]
    sums: Tensor
    moment: Tensor
    kept_gap: Tensor  # z - m, [N, top_k + 1] or [N, 0]
    kept_index: Tensor  # columns of the vocabulary, likewise


class Rates(NamedTuple):
    """Factors of the gradient of each row: `Σ_s dense_s e^{s (z - m)} + by_moment e^{z - m} (z - m - mean)`."""

    top: Tensor  # m, [N]
    dense: Tensor  # [1 + S, N]
    by_moment: Tensor  # [N]
    mean: Tensor  # [N]

    def at(self, rows: slice) -> Rates:
        """The factors of some rows, as views."""
        return Rates(self.top[rows], self.dense[:, rows], self.by_moment[rows], self.mean[rows])


class Points(NamedTuple):
    """Values [N, K] that are added to the gradient of each row, at columns [N, K] of the vocabulary."""

    value: Tensor
    column: Tensor


class Used(NamedTuple):
    """Which results of the forward pass have a gradient."""

    unit: bool
    scaled: bool
    entropy: bool


class Needed(NamedTuple):
    """Which arguments of the forward pass need a gradient."""

    hidden: bool
    weight: bool
    bias: bool
