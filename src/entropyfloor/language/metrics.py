"""Metrics of a rollout, under the names of the vocabulary: entropies in nats, and shares of responses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from entropyfloor.language import losses

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def rollout_metrics(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    response_entropies: Float[Tensor, " B"],
    scale: Float[Tensor, " B"] | Float[Tensor, "B T"] | None,
    omega_low: float,
    omega_high: float,
) -> dict[str, float]:
    """Means over the responses and the tokens of a rollout, and its thresholds.

    Args:
        entropies: Entropies of the policy that sampled, at each token.
        mask: Tokens of the responses.
        response_entropies: Entropies of the responses.
        scale: Scale of each response, or of each row of logits; None without ERA.
        omega_low: ω_low of Eq. 16, or the floor.
        omega_high: ω_high of Eq. 16; inf for none.
    """
    quantities = response_quantities(response_entropies, scale, omega_low, omega_high)
    top = losses.forking_tokens(entropies, mask)
    of_tokens = {"token_entropy/top": top, "token_entropy/bottom": mask & ~top}
    return {
        **mean_entropies(entropies, mask, response_entropies),
        **{name: float(x.double().mean()) for name, x in quantities.items() if name != "response_entropy"},
        **{name: token_mean(entropies, chosen) for name, chosen in of_tokens.items()},
        **({} if scale is None else thresholds(omega_low, omega_high)),
    }


def mean_entropies(
    entropies: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], response_entropies: Float[Tensor, " B"]
) -> dict[str, float]:
    """Mean entropies of responses and of all tokens."""
    return {"response_entropy": float(response_entropies.mean()), "token_entropy": token_mean(entropies, mask)}


def response_quantities(
    response_entropies: Float[Tensor, " B"],
    scale: Float[Tensor, " B"] | Float[Tensor, "B T"] | None,
    omega_low: float,
    omega_high: float,
) -> dict[str, Tensor]:
    """What is averaged over responses, `[B]` each: entropies, and what is true of a response or not."""
    quantities = {
        "response_entropy": response_entropies,
        "response_entropy/below": response_entropies < omega_low,
        "response_entropy/above": response_entropies > omega_high,
    }
    if scale is not None:
        quantities["scaled_share"] = (scale.view(len(scale), -1) != 1).any(1)
    return quantities


def thresholds(omega_low: float, omega_high: float) -> dict[str, float]:
    """The thresholds that are finite."""
    named = {"omega_low": omega_low, "omega_high": omega_high}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def token_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Mean of the values in a mask; 0 where the mask is empty."""
    return float(losses.weighted_sum(values, losses.token_weights(mask)))
