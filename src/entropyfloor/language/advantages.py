"""Advantages of responses in RL of language models: GRPO's and those of its rivals, as pure functions.

`rewards` are `[groups, samples]`: a row for each prompt, whose responses form a group. `.flatten()` of a result is
`[B]`, in the order of the responses. `right` means a reward of at least 1. Entropies and log-probs are in nats.

| method | how |
|---|---|
| GRPO | `group_advantages(rewards)` |
| Dr. GRPO | `group_advantages(rewards, std=False)` |
| MaxRL | `maxrl_advantages(rewards)` |
| W-REINFORCE | `weighted_advantages(rewards, 0.1)` |
| DS-GRPO | `group_advantages(rewards).flatten() + smoothing(log_probs, mask, rewards.flatten() >= 1)` |
| Entrocraft | `advantages_in_band(advantages, entropy, low, high)` |
| EntroPIC | `reweighted_advantages(advantages, alpha)`, with α of `controllers.entropic_alpha` |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropyfloor.torch.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def equal_rewards(rewards: Float[Tensor, "groups samples"]) -> Bool[Tensor, " groups"]:
    """Groups whose rewards are all equal, from which nothing is learned.

    Dynamic sampling drops them (Yu et al. 2025, arXiv 2503.14476, Sec. 3.2).

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> advantages.equal_rewards(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).tolist()
        [True, False]
    """
    _check_rewards(rewards)
    return rewards.amax(-1) == rewards.amin(-1)


# --- from rewards ----------------------------------------------------------------------------------------


def group_advantages(
    rewards: Float[Tensor, "groups samples"], *, std: bool = True, eps: float = 1e-6
) -> Float[Tensor, "groups samples"]:
    """`A = (R - mean) / (std + eps)` within each group of responses to one prompt.

    Shao et al. 2024 (arXiv 2402.03300), Sec. 4.1.2, with the sample's standard deviation. Groups of equal rewards
    get 0 exactly: the rounding of their mean, divided by `eps`, would be a signal.

    Args:
        rewards: R.
        std: False leaves the division out (Dr. GRPO: Liu et al. 2025, arXiv 2503.20783, Sec. 3.2).
        eps: Added to the standard deviation.

    Raises:
        ValueError: Not `[groups, samples]`, fewer than two samples, or a reward that is not finite.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> advantages.group_advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), std=False).tolist()
        [[0.5, -0.5], [0.0, 0.0]]
    """
    rewards = _finite(rewards)
    centred = rewards - rewards.mean(-1, keepdim=True)
    if std:
        centred = centred / (rewards.std(-1, keepdim=True) + eps)
    return centred.masked_fill(equal_rewards(rewards)[:, None], 0.0)


def maxrl_advantages(
    rewards: Float[Tensor, "groups samples"], *, eps: float = 1e-6
) -> Float[Tensor, "groups samples"]:
    """`A = (R - mean) / (mean + eps)`: MaxRL, whose weight of a problem grows as its pass rate falls.

    Tajwar et al. 2026 (arXiv 2602.02710), with the eps of the authors' code. With n samples of rewards 0 and 1 the
    mean policy gradient is that of `-Σ_{k<n} (1 - p)^k / k`, a truncated log p. Groups of equal rewards get 0.

    Raises:
        ValueError: As `group_advantages`, or a negative reward.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> advantages.maxrl_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), eps=0.0).tolist()
        [[3.0, -1.0, -1.0, -1.0]]
    """
    rewards = _finite(rewards)
    if bool((rewards < 0).any()):
        raise ValueError(
            f"rewards reach down to {float(rewards.min()):g}: MaxRL divides by their mean, give none < 0"
        )
    mean = rewards.mean(-1, keepdim=True)
    return ((rewards - mean) / (mean + eps)).masked_fill(equal_rewards(rewards)[:, None], 0.0)


def weighted_advantages(
    rewards: Float[Tensor, "groups samples"], weight: float = 0.1
) -> Float[Tensor, "groups samples"]:
    """`A = weight · R - (1 - R)`: W-REINFORCE, where right responses weigh less than wrong ones.

    Zhu et al. 2025 (arXiv 2506.01347): a right response has the advantage `weight`, a wrong one -1. There is no
    baseline, so a group of equal rewards has advantages too. Rewards between 0 and 1 interpolate.

    Raises:
        ValueError: As `group_advantages`, or a weight below 0.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> advantages.weighted_advantages(torch.tensor([[1.0, 0.0]]), 0.25).tolist()
        [[0.25, -1.0]]
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight} of right responses must be finite and at least 0")
    rewards = _finite(rewards)
    return weight * rewards - (1.0 - rewards)


# --- from log-probs and entropies ------------------------------------------------------------------------


def smoothing(
    log_probs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    right: Bool[Tensor, " B"],
    coef: float = 0.05,
) -> Float[Tensor, " B"]:
    """What DS-GRPO adds to advantages: `-γ l` for right responses, `+γ l` for wrong ones, where γ is `coef`.

    l is the mean log-prob of a response's tokens under the policy that sampled: unlikely right responses gain
    most, unlikely wrong ones lose most (arXiv 2511.19942). Mean and coefficient are those of MaxRL's public code,
    which has DS-GRPO as a baseline; its authors' own was not found.

    Raises:
        ValueError: Shapes that differ.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> log_probs, right = torch.tensor([[-2.0, -4.0], [-1.0, -1.0]]), torch.tensor([True, False])
        >>> advantages.smoothing(log_probs, torch.ones(2, 2), right, coef=0.5).tolist()
        [1.5, -0.5]
    """
    if log_probs.shape != mask.shape or right.shape != log_probs.shape[:1]:
        raise ValueError(
            f"log_probs {tuple(log_probs.shape)} and mask {tuple(mask.shape)} must be [B, T], and right "
            f"{tuple(right.shape)} [B]"
        )
    mask = mask.bool()
    mean = as_float(log_probs.detach(), "log_probs").masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    return coef * torch.where(right, -mean, mean)


def advantages_in_band(
    advantages: Float[Tensor, " B"], entropy: float, low: float, high: float
) -> Float[Tensor, " B"]:
    """Entrocraft: 0 for positive advantages where `entropy < low`, for negative ones where `entropy > high`.

    arXiv 2604.26326. `entropy` is the mean over the tokens of the rollout. The authors' code takes rewards of ±1
    as advantages where it drops a side; here what is left stays as it is.

    Raises:
        ValueError: `low` is not below `high`.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> advantages.advantages_in_band(torch.tensor([1.0, -1.0]), entropy=0.1, low=0.5, high=1.0).tolist()
        [0.0, -1.0]
    """
    if not low < high:
        raise ValueError(f"low={low:g} must be below high={high:g}")
    if entropy < low:
        return advantages.clamp(max=0.0)
    return advantages.clamp(min=0.0) if entropy > high else advantages


def reweighted_advantages(advantages: Float[Tensor, " B"], alpha: float) -> Float[Tensor, " B"]:
    """EntroPIC: `(1 + α) A` where A > 0, `(1 - α) A` elsewhere (arXiv 2511.15248).

    Entrocraft's public code, which has it as a baseline, takes rewards of ±1 as A; here A are any advantages.

    Raises:
        ValueError: α outside of [-1, 1], which would turn the sign of an advantage.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import advantages
        >>> advantages.reweighted_advantages(torch.tensor([1.0, -1.0]), alpha=0.5).tolist()
        [1.5, -0.5]
    """
    if not -1.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha:g} must lie between -1 and 1")
    return torch.where(advantages > 0, 1.0 + alpha, 1.0 - alpha) * advantages


def _finite(rewards: Tensor) -> Tensor:
    _check_rewards(rewards)
    rewards = as_float(rewards, "rewards")
    if not bool(rewards.isfinite().all()):
        raise ValueError("rewards must be finite: give a sample that could not be judged the reward 0")
    return rewards


def _check_rewards(rewards: Tensor) -> None:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} must be [groups, samples] with two samples or more, as in "
            "rewards.view(-1, samples)"
        )
