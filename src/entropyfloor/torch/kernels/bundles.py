"""Named bundles of what the sweeps over the vocabulary pass to each other and to their kernels.

N rows, V columns (the vocabulary), D features, S scales beside scale 1. z are logits, m is the largest of a row.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layer(NamedTuple):
    """Last layer of a language model."""

    hidden: Tensor
    """h, [N, D]."""
    weight: Tensor
    """W, [V, D]."""
    bias: Tensor | None
    """b, [V]."""


class Options(NamedTuple):
    """How `W h + b` becomes logits, and how they are computed."""

    temperature: float
    softcap: float
    """0 for none."""
    top_k: int
    """How many logits are kept; 0 for all."""
    triton: bool
    """Whether Triton's kernels work on the tiles."""


class State(NamedTuple):
    """Sums over the logits of each row that the forward sweep has visited."""

    top: Tensor
    """m, [N]."""
    target: Tensor
    """z_y, the logit of the target, [N]."""
    sums: Tensor
    """`Σ e^{s (z - m)}` for scale 1 and the others, [1 + S, N]."""
    moment: Tensor
    """`Σ e^{z - m} (z - m)`, [N]."""

    def at(self, rows: slice) -> State:
        """The sums of some rows, as views."""
        return State(self.top[rows], self.target[rows], self.sums[:, rows], self.moment[rows])


class Swept(NamedTuple):
    """Results of the forward sweep."""

    top: Tensor
    gap: Tensor
    """`z_y - m`, [N]."""
    sums: Tensor
    moment: Tensor
    kept_gap: Tensor
    """`z - m` of the `top_k` largest logits and, in one more column, of the target; empty without `top_k`.
    The last is -inf where the target is among the largest."""
    kept_index: Tensor
    """Columns of the kept logits in the vocabulary."""


class Rates(NamedTuple):
    """Factors of the gradient of each row: `Σ_s dense_s e^{s (z - m)} + by_moment e^{z - m} (z - m - mean)`."""

    top: Tensor
    """m, [N]."""
    dense: Tensor
    """[1 + S, N]."""
    by_moment: Tensor
    mean: Tensor

    def at(self, rows: slice) -> Rates:
        """The factors of some rows, as views."""
        return Rates(self.top[rows], self.dense[:, rows], self.by_moment[rows], self.mean[rows])


class Points(NamedTuple):
    """Single entries that are added to the gradient of each row."""

    value: Tensor
    column: Tensor
    """Columns of the vocabulary, shaped as `value`."""


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
