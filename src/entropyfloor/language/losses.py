"""Losses of language models in RL: GRPO and its baselines, as pure functions.

Three kinds of functions make a loss:

- *terms* `[B, T]`, one for each token, which are added: `policy_terms` or `cispo_terms`, `kl_terms`,
  `entropy_terms`;
- *choices* `[B, T]` of tokens, made over a whole batch, of the module `choices`: `forking_tokens`,
  `clip_cov_tokens`, `kl_cov_tokens`;
- *weights* `[B, T]` of tokens, made over a whole batch: `token_weights`.

The loss is `weighted_sum(terms, weights)`. Choices and weights come from the whole batch before the first
micro-batch. A micro-batch is some rows of everything, and the losses and gradients of micro-batches add up to
those of the batch: nothing is divided by the size of a micro-batch. `update.policy_losses` does all of this.
Advantages are in `advantages`.

| baseline | how |
|---|---|
| GRPO | `policy_terms(…)` with `token_weights(mask, "sequence")` as published, or with the mean over tokens |
| Dr. GRPO | `group_advantages(…, std=False)`, `token_weights(mask, "length", max_length=…)` |
| CISPO | `cispo_terms(…, clip_high=4.0)` |
| clip-higher | `policy_terms(…, clip_high=0.28)` |
| GSPO | `policy_terms(…, ratio="sequence", clip_low=3e-4, clip_high=4e-4)`, `token_weights(mask, "sequence")` |
| forking tokens | `policy_terms(…) * forking_tokens(entropies, mask)` |
| Clip-Cov | `policy_terms(…) * ~clip_cov_tokens(…)` |
| KL-Cov | `policy_terms(…, clip_low=inf, clip_high=inf) + β kl_terms(log_probs, old_log_probs, chosen, "abs")` |
| entropy bonus | `policy_terms(…) + entropy_terms(entropies, mask, c)` |
| KL to a reference | `policy_terms(…) + β kl_terms(log_probs, reference_log_probs, mask)` |

ERA needs no function here: with it both log-probs of `policy_terms` are those at the scales of the responses, and
advantages may be scaled. Entropies, covariances and KL penalties, with that of KL-Cov, stay those of the unscaled
policy.

`mask` is True, or not 0, at the tokens of the response. Values at other places, NaN and inf included, change
neither a value nor a gradient, which is 0 there. A response without tokens has no weight, and a batch without
tokens has the loss 0 with gradients of 0. Half-precision input is computed in float32. Log-probs, entropies and KL
divergences are in nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from entropyfloor.language.choices import clip_cov_tokens as clip_cov_tokens
from entropyfloor.language.choices import forking_tokens as forking_tokens
from entropyfloor.language.choices import kl_cov_tokens as kl_cov_tokens
from entropyfloor.language.choices import token_covariances as token_covariances
from entropyfloor.language.masks import as_mask, check_same_shape, masked, token_advantages
from entropyfloor.torch.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Ratio = Literal["token", "sequence"]
Mean = Literal["token", "sequence", "length"]
Estimator = Literal["k1", "k2", "k3", "abs"]

LOG_RATIO_MAX = 20.0
"""Limit of log ratios, e^20 = 5e8: beyond it nothing is learned, and exponentials would overflow."""


# --- terms -----------------------------------------------------------------------------------------------


def policy_terms(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Ratio = "token",
) -> Float[Tensor, "B T"]:
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, with `r_t = exp(log π_t - log π_old,t)`.

    The clipped objective of PPO (Schulman et al. 2017, arXiv 1707.06347, Eq. 7) for tokens, as GRPO has it (Shao
    et al. 2024, arXiv 2402.03300, Eq. 3). The upper bound acts where A > 0, the lower one where A < 0. On-policy,
    r = 1 and the gradient is that of `-A log π`.

    With `ratio="sequence"` all tokens of a response have the ratio `exp(mean_t(log π_t - log π_old,t))` (GSPO:
    Zheng et al. 2025, arXiv 2507.18071, Eq. 5 to 7); a response must then be in one micro-batch as a whole.

    Args:
        log_probs: log π of the tokens; the gradient flows through them only.
        old_log_probs: log π_old. On-policy, `log_probs.detach()`.
        advantages: A, of responses or of tokens.
        mask: Tokens of the response.
        clip_low: Distance of the lower bound of ratios from 1; `math.inf` for no bound.
        clip_high: Distance of the upper bound from 1; 0.28 is clip-higher (Yu et al. 2025, arXiv 2503.14476).
        ratio: Whether each token has its ratio, or each response.

    Returns:
        A term for each token, 0 outside `mask`.

    Raises:
        ValueError: Shapes that differ, a clip below 0, or an unknown ratio.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> log_probs, mask = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.tensor([[True, False]])
        >>> losses.policy_terms(log_probs, log_probs.detach(), torch.tensor([0.5]), mask).sum().backward()
        >>> log_probs.grad.tolist()
        [[-0.5, 0.0]]
    """
    values, bounded = _surrogates(log_probs, old_log_probs, advantages, mask, clip_low, clip_high, ratio)
    return -torch.minimum(values, bounded)


def cispo_terms(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> Float[Tensor, "B T"]:
    """`-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log π`: CISPO, which clips the weight and not the gradient.

    MiniMax 2025 (arXiv 2506.13585), Sec. 3.1; sg stops the gradient. Every token has one, whatever its ratio.

    Args:
        log_probs: log π of the tokens; the gradient flows through them only.
        old_log_probs: log π_old.
        advantages: A, of responses or of tokens.
        mask: Tokens of the response.
        clip_low: Distance of the lower bound of ratios from 1; 1 for none.
        clip_high: Distance of the upper bound from 1.

    Returns:
        A term for each token, 0 outside `mask`.

    Raises:
        ValueError: Shapes that differ, or a clip below 0.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> log_probs, old = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-9.0]])
        >>> losses.cispo_terms(log_probs, old, torch.tensor([1.0]), torch.tensor([[True]])).sum().backward()
        >>> log_probs.grad.tolist()  # the ratio e^8 weighs 5
        [[-5.0]]
    """
    log_ratio = _log_ratio(log_probs, old_log_probs, mask)
    bounded = log_ratio.detach().exp().clamp(*_bounds(clip_low, clip_high))
    values = masked(log_probs, as_mask(mask, log_probs), "log_probs")
    return -bounded * token_advantages(advantages, log_ratio, mask) * values


def clipped_tokens(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Ratio = "token",
) -> Bool[Tensor, "B T"]:
    """Tokens whose ratio is beyond the bound that acts on them, so that `policy_terms` gives them no gradient.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> log_probs, old, mask = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -1.5]]), torch.ones(1, 2)
        >>> losses.clipped_tokens(log_probs, old, torch.tensor([1.0]), mask).tolist()
        [[False, True]]
    """
    with torch.no_grad():
        values, bounded = _surrogates(log_probs, old_log_probs, advantages, mask, clip_low, clip_high, ratio)
        return bounded < values


def kl_terms(
    log_probs: Float[Tensor, "B T"],
    other_log_probs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    estimator: Estimator = "k3",
) -> Float[Tensor, "B T"]:
    """Estimates of KL(π ‖ π') from the tokens that π sampled, in nats.

    With `d = log π - log π'`: k1 is d, k2 is d² / 2, k3 is `e^-d + d - 1` (Schulman 2020, "Approximating KL
    divergence"), and abs is |d|, no KL divergence but the penalty of KL-Cov (Cui et al. 2025, arXiv 2505.22617,
    Sec. 4, in its authors' code). The gradient of abs is 0 only at d = 0: where both policies are the same, give
    `log_probs.detach()`, since rounding differs between two passes. k1 and k3 have the right mean. As a loss on
    the policy's own samples only k2 has the gradient of KL(π ‖ π'): that of k1 is 0 on average, that of k3 is the
    one of KL(π' ‖ π).

    Args:
        log_probs: log π of the tokens.
        other_log_probs: log π', of a reference or of the old policy; no gradient flows through it.
        mask: Tokens with a penalty: those of the response, or a choice of them.
        estimator: Name of the estimator; GRPO uses k3.

    Returns:
        A term for each token, 0 outside `mask`; multiply it with β.

    Raises:
        ValueError: Shapes that differ, or an unknown estimator.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> log_probs, reference = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -3.0]])
        >>> losses.kl_terms(log_probs, reference, torch.ones(1, 2), "k2").tolist()
        [[0.0, 2.0]]
    """
    difference = _log_ratio(log_probs, other_log_probs, mask)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    if estimator == "abs":
        return difference.abs()
    raise ValueError(f"estimator={estimator!r} must be k1, k2, k3 or abs")


def entropy_terms(
    entropies: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], coefficient: float
) -> Float[Tensor, "B T"]:
    """`-c H_t`: the entropy bonus with weight c, whose gradient raises the entropy H_t of the policy, in nats.

    Raises:
        ValueError: Shapes that differ.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> losses.entropy_terms(torch.tensor([[2.0, 4.0]]), torch.tensor([[True, False]]), 0.25)[0, 0].item()
        -0.5
    """
    return -coefficient * masked(entropies, as_mask(mask, entropies), "entropies")


# --- from tokens to a number -----------------------------------------------------------------------------


def token_weights(
    mask: Bool[Tensor, "B T"],
    mean: Mean = "token",
    *,
    max_length: int | None = None,
    total: float | Tensor | None = None,
) -> Float[Tensor, "B T"]:
    """The weight of each token in the loss; 0 outside `mask`.

    - `token`: 1 / N, with the N tokens of the batch (Yu et al. 2025, arXiv 2503.14476, Sec. 3.3).
    - `sequence`: 1 / (B |o_i|), the mean over the |o_i| tokens of each of the B responses, then over responses
      (GRPO: Shao et al. 2024, arXiv 2402.03300, Eq. 3).
    - `length`: 1 / (B L) with a constant L, which favours no length (Dr. GRPO: Liu et al. 2025, arXiv 2503.20783,
      Sec. 3.2).

    B does not count responses without tokens.

    Args:
        mask: Tokens of the response, of the whole batch.
        mean: One of these means.
        max_length: L, the longest response that is allowed, in tokens; for `length` only.
        total: N, or B with the other two, if `mask` is only a part of the batch, such as that of one process.

    Returns:
        Weights in float32; a micro-batch takes its rows of them.

    Raises:
        ValueError: An unknown mean, `max_length` missing or out of place, or a mask that is not `[B, T]`.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> losses.token_weights(mask, "sequence").tolist()
        [[0.25, 0.25], [0.5, 0.0]]
    """
    if mean not in ("token", "sequence", "length"):
        raise ValueError(f"mean={mean!r} must be token, sequence or length")
    if (mean == "length") != (max_length is not None):
        raise ValueError(f"max_length={max_length} must be given with mean='length', and only there")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length} must be at least 1, the longest response that is allowed")
    if mask.ndim != 2:
        raise ValueError(f"mask {tuple(mask.shape)} must be [responses, tokens]")
    weights = mask.bool().float()
    lengths = weights.sum(-1, keepdim=True)
    if total is None:
        total = lengths.sum() if mean == "token" else (lengths > 0).sum()
    total = torch.as_tensor(total, dtype=weights.dtype, device=weights.device).clamp(min=1.0)
    if mean == "sequence":
        weights = weights / lengths.clamp(min=1.0)
    return weights / (total * (max_length or 1))


def weighted_sum(terms: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """`Σ w_t x_t`: the loss of terms, or the mean of a quantity. Where a weight is 0, the term has no effect.

    Raises:
        ValueError: Shapes that differ.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> losses.weighted_sum(torch.tensor([[2.0, float("nan")]]), torch.tensor([[0.5, 0.0]])).item()
        1.0
    """
    check_same_shape(weights, terms, "weights", "terms")
    return (as_float(terms, "terms").masked_fill(weights == 0, 0.0) * weights).sum()


def policy_statistics(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Ratio = "token",
) -> dict[str, Float[Tensor, ""]]:
    """Metrics of an update, without gradients: sums by `weights`, which are means if these add up to 1.

    Returns:
        `clip_fraction`, the sum of `clip_fraction/low` and `clip_fraction/high`: tokens beyond the bound that acts
        on them in PPO's loss, also for CISPO. `ratio`: mean of r. `approx_kl`: KL(π_old ‖ π) in nats, by k3 from
        the tokens that π_old sampled.

    Raises:
        ValueError: As `policy_terms`.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import losses
        >>> log_probs, weights = torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.5, 0.5]])
        >>> statistics = losses.policy_statistics(log_probs, log_probs, torch.tensor([1.0]), weights)
        >>> statistics["ratio"].item(), statistics["approx_kl"].item()
        (1.0, 0.0)
    """
    mask = weights != 0
    bounds: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "ratio": ratio}
    with torch.no_grad():
        clipped = clipped_tokens(log_probs, old_log_probs, advantages, mask, **bounds)
        log_ratio = _log_ratio(log_probs, old_log_probs, mask)
        positive = token_advantages(advantages, log_ratio, mask) > 0
        metrics = {
            "clip_fraction": clipped,
            "clip_fraction/low": clipped & ~positive,
            "clip_fraction/high": clipped & positive,
            "ratio": (_sequence_mean(log_ratio, mask) if ratio == "sequence" else log_ratio).exp(),
            "approx_kl": torch.expm1(log_ratio) - log_ratio,
        }
        return {name: weighted_sum(value.to(log_ratio.dtype), weights) for name, value in metrics.items()}


# --- parts -----------------------------------------------------------------------------------------------


def _surrogates(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: str,
) -> tuple[Tensor, Tensor]:
    """`r A`, and the same with r clipped."""
    bounds = _bounds(clip_low, clip_high)
    if ratio not in ("token", "sequence"):
        raise ValueError(f"ratio={ratio!r} must be token or sequence")
    log_ratio = _log_ratio(log_probs, old_log_probs, mask)
    if ratio == "sequence":
        log_ratio = _sequence_mean(log_ratio, as_mask(mask, log_probs))
    advantages = token_advantages(advantages, log_ratio, mask)
    ratios = log_ratio.exp()
    return ratios * advantages, ratios.clamp(*bounds) * advantages


def _bounds(clip_low: float, clip_high: float) -> tuple[float, float]:
    """Bounds of ratios."""
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0, the distance of the bound from 1")
    return 1.0 - clip_low, 1.0 + clip_high


def _log_ratio(log_probs: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """`log π - log π'` within ±`LOG_RATIO_MAX`; 0 outside the mask."""
    mask = as_mask(mask, log_probs)
    check_same_shape(other, log_probs, "the other log-probs", "log_probs")
    difference = masked(log_probs, mask, "log_probs") - masked(other.detach(), mask, "the other log-probs")
    return difference.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)


def _sequence_mean(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Mean log ratio of a response, at each of its tokens."""
    mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio)
