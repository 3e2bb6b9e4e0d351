"""Choices of tokens `[B, T]` in RL of language models, over a whole batch: which learn, or are penalised.

The module `losses` has them too, and says what `mask` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropyfloor.language.masks import as_mask, masked, token_advantages

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def forking_tokens(
    entropies: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], top_fraction: float = 0.2
) -> Bool[Tensor, "B T"]:
    """The `max(1, ⌊top_fraction · N⌋)` of the batch's N tokens with the highest entropy; the first of equals.

    Wang et al. 2025 (arXiv 2506.01939), Sec. 5: only they have a gradient, and the mean stays over all tokens.
    Entropies are those of the policy at the start of the update.

    Raises:
        ValueError: Shapes that differ, or a share that is not above 0 and at most 1.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import choices
        >>> entropies = torch.tensor([[0.1, 2.0, 0.3, 0.2, 0.4]])
        >>> choices.forking_tokens(entropies, torch.ones(1, 5)).tolist()
        [[False, True, False, False, False]]
    """
    return _highest(entropies, mask, top_fraction, "top_fraction")


def token_covariances(
    log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """`cov_t = (log π_t - mean log π)(A_t - mean A)`, means over the batch's tokens; 0 outside `mask`.

    Cui et al. 2025 (arXiv 2505.22617), Sec. 4. Where it is large, a step lowers the entropy most.

    Args:
        log_probs: log π, of the whole batch. The authors take those of the policy that is updated, which costs a
            pass before the update if there are micro-batches; those of the policy that sampled are known already,
            and the same in the first update.
        advantages: A, of responses or of tokens.
        mask: Tokens of the response.

    Returns:
        Covariances, without gradient.

    Raises:
        ValueError: Shapes that differ.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import choices
        >>> log_probs, mask = torch.tensor([[-1.0], [-3.0]]), torch.ones(2, 1)
        >>> choices.token_covariances(log_probs, torch.tensor([1.0, -1.0]), mask).tolist()
        [[1.0], [1.0]]
    """
    mask = as_mask(mask, log_probs)
    log_probs = masked(log_probs.detach(), mask, "log_probs")
    values = token_advantages(advantages, log_probs, mask)
    count = mask.sum().clamp(min=1)
    product = (log_probs - log_probs.sum() / count) * (values - values.sum() / count)
    return product.masked_fill(~mask, 0.0)


def clip_cov_tokens(
    covariances: Float[Tensor, "B T"],
    clipped: Bool[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    generator: torch.Generator,
    *,
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Bool[Tensor, "B T"]:
    """Tokens that Clip-Cov leaves without a gradient: `max(1, ⌊fraction · N⌋)` of the N tokens, at random.

    They are drawn from those with `low < cov < high` that are not `clipped_tokens` already; if there are fewer,
    all are taken. Cui et al. 2025 (arXiv 2505.22617), Sec. 4; bounds and share are those of the authors' code.

    Raises:
        ValueError: Shapes that differ, a share that is not above 0 and at most 1, or bounds that cross.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import choices
        >>> covariances, generator = torch.tensor([[0.5, 2.0, 9.0]]), torch.Generator().manual_seed(0)
        >>> choices.clip_cov_tokens(covariances, torch.zeros(1, 3), torch.ones(1, 3), generator).tolist()
        [[False, True, False]]
    """
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    mask = as_mask(mask, covariances)
    count = _count(mask, fraction, "fraction")
    candidates = mask & (covariances > low) & (covariances < high) & ~as_mask(clipped, covariances, "clipped")
    indices = candidates.flatten().nonzero()[:, 0]  # so that padding does not change the draw
    order = torch.randperm(len(indices), generator=generator, device=generator.device).to(indices.device)
    drawn = torch.zeros_like(mask).flatten()
    drawn[indices[order[:count]]] = True
    return drawn.view_as(mask)


def kl_cov_tokens(
    covariances: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], fraction: float = 2e-3
) -> Bool[Tensor, "B T"]:
    """Tokens that KL-Cov penalises: the `max(1, ⌊fraction · N⌋)` of the N tokens with the highest covariance.

    Cui et al. 2025 (arXiv 2505.22617), Sec. 4: 2e-3 with 7B parameters, 2e-4 with 32B, and β = 1.

    Raises:
        ValueError: Shapes that differ, or a share that is not above 0 and at most 1.

    Examples:
        >>> import torch
        >>> from entropyfloor.language import choices
        >>> choices.kl_cov_tokens(torch.tensor([[0.5, 2.0, 9.0]]), torch.ones(1, 3)).tolist()
        [[False, False, True]]
    """
    return _highest(covariances, mask, fraction, "fraction")


def _highest(values: Tensor, mask: Tensor, share: float, name: str) -> Tensor:
    """Tokens with the highest values, a share of them; the first of equals."""
    mask = as_mask(mask, values)
    values = values.detach().masked_fill(~mask, -torch.inf)
    highest = torch.zeros_like(mask).flatten()
    highest[values.flatten().argsort(descending=True, stable=True)[: _count(mask, share, name)]] = True
    return highest.view_as(mask) & mask


def _count(mask: Tensor, share: float, name: str) -> int:
    """`max(1, ⌊share · N⌋)` of N tokens; 0.29 · 100 is 28.999… in floating point."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name}={share} must be above 0 and at most 1, a share of the tokens")
    return max(1, int(share * int(mask.sum()) + 1e-9))
