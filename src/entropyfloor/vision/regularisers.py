"""Regularisers to compare ERA with: losses, and a minimum entropy by temperature.

ERA itself is part of the model (`attach_era`); the losses take the logits of the model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from entropyfloor import targets
from entropyfloor.torch import functional as F
from entropyfloor.torch.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Float, Int

HALVINGS = 40
"""Number of bisections of the log temperature. Its bracket is below 25 for logits up to 7e4: an error of 2e-11."""


def classification_loss(
    logits: Float[Tensor, "B n"],
    target: Int[Tensor, " B"] | Float[Tensor, "B n"],
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    confidence_penalty: float = 0.0,
) -> Float[Tensor, ""]:
    """`-Σ_i q_i (1 - p_i)^γ log p_i - β H(p)`, averaged over the batch; plain cross-entropy by default.

    Args:
        logits: Logits; their softmax is p.
        target: Classes, or probabilities of classes (as Mixup makes).
        label_smoothing: ε: `q = (1 - ε) target + ε / n` (Szegedy et al. 2016, arXiv 1512.00567, Sec. 7).
        focal_gamma: γ of the focal loss (Lin et al. 2017, arXiv 1708.02002, Eq. 4, without α).
        confidence_penalty: β, the reward for a nat of entropy (Pereyra et al. 2017, arXiv 1701.06548, Sec. 3).
    """
    logits = as_float(logits, "logits")
    n = logits.shape[-1]
    q = target if target.is_floating_point() else nn.functional.one_hot(target, n)
    q = (1.0 - label_smoothing) * q.to(logits.dtype) + label_smoothing / n
    log_p = logits.log_softmax(-1)
    terms = q * log_p
    if focal_gamma:
        # -expm1(log p) is 1 - p without cancellation; powers of 0 have an infinite slope for γ < 1.
        terms = terms * (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** focal_gamma
    loss = -terms.sum(-1).mean()
    if confidence_penalty:
        loss = loss - confidence_penalty * F.entropy_from_logits(logits).mean()
    return loss


def jensen_shannon(logits: Float[Tensor, "B n"], splits: int) -> Float[Tensor, ""]:
    """Mean KL divergence of each copy's prediction from their mean, in nats (AugMix: arXiv 1912.02781, Eq. 3).

    Args:
        logits: Logits of the first copies of all images, then of the second ones, ….
        splits: Number of copies.
    """
    log_p = as_float(logits, "logits").log_softmax(-1).unflatten(0, (splits, -1))
    log_mean = log_p.logsumexp(0) - math.log(splits)
    return (log_p.exp() * (log_p - log_mean)).sum(-1).mean()


def temperature_floor(logits: Float[Tensor, "*batch n"], min_entropy: float) -> Float[Tensor, "*batch n"]:
    """`logits / T` with the least T ≥ 1 whose softmax has an entropy of at least `min_entropy` nats.

    The simplest floor, to compare ERA with. The entropy of `softmax(z / T)` rises with T, so T is found by
    bisection; its gradient is that of one Newton step at the root. The order of the classes is kept, but at the
    floor the scale of the logits has no effect: with two classes there is no gradient.

    Args:
        logits: z. With k equal largest logits the entropy is at least log k at any T.
        min_entropy: H0 in nats, above 0 and below log n.

    Raises:
        ValueError: The floor is out of reach.
    """
    _check_floor(logits.shape[-1], min_entropy)
    z = as_float(logits, "logits")
    z = z - z.amax(-1, keepdim=True).detach()
    with torch.no_grad():
        below = F.entropy_from_logits(z) < min_entropy
        cold = torch.zeros_like(z[..., 0])  # log T; the entropy is too low at it
        hot = torch.log1p(-z.amin(-1)) + math.log(1e6)  # the logits are all but equal
        for _ in range(HALVINGS):
            middle = 0.5 * (cold + hot)
            low = F.entropy_from_logits(z * (-middle)[..., None].exp()) < min_entropy
            cold, hot = torch.where(low, middle, cold), torch.where(low, hot, middle)
        scaled = z * (-hot)[..., None].exp()
        p = scaled.softmax(-1)
        mean = (p * scaled).sum(-1, keepdim=True)
        slope = (p * (scaled - mean) ** 2).sum(-1)  # dH / d log T, positive at the root
        slope = torch.where(below, slope, 1.0)  # otherwise it may be 0, and 0 · inf would reach the gradient
    # The correction has the value 0 and the gradient of the implicit function.
    entropy = F.entropy_from_logits(z * (-hot)[..., None].exp())
    log_temperature = hot - (entropy - entropy.detach()) / slope
    return torch.where(below[..., None], z * (-log_temperature)[..., None].exp(), z)


class TemperatureFloor(nn.Module):
    """`temperature_floor` as the last layer: `nn.Sequential(model, TemperatureFloor(10, 0.6))`.

    Args:
        num_classes: Number of classes n.
        min_entropy: Minimum entropy in nats.

    Raises:
        ValueError: The floor is out of reach.
    """

    def __init__(self, num_classes: int, min_entropy: float) -> None:
        super().__init__()
        _check_floor(num_classes, min_entropy)
        self.num_classes, self.min_entropy = num_classes, min_entropy

    def forward(self, logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Logits whose softmax has at least the minimum entropy."""
        return temperature_floor(logits, self.min_entropy)

    def extra_repr(self) -> str:
        """Arguments, for the text of the module."""
        return f"num_classes={self.num_classes}, min_entropy={self.min_entropy}"


def smoothing_out_of_reach(
    num_classes: int,
    min_entropy: float,
    label_smoothing: float,
    *,
    tau: float = 4.0,
    floor: str = "calibrated",
    inverse: str = "exact",
) -> str | None:
    """Warning if label smoothing asks for a top-1 probability that the floor does not allow, else None.

    The optimum of label smoothing ε is `1 - ε + ε / n`. If the floor caps the probability below it, the logits
    grow without end and saturate.
    """
    wanted = 1.0 - label_smoothing + label_smoothing / num_classes
    cap = targets.top1_cap(num_classes, min_entropy, tau, floor, inverse)
    if wanted <= cap:
        return None
    return (
        f"the loss asks for a top-1 probability of {wanted:.4f}, and the {floor} floor of {min_entropy} nats caps "
        f"it at {cap:.4f}: the optimum cannot be reached. The largest calibrated floor that reaches it is "
        f"{targets.min_entropy_for_top1(num_classes, wanted):.4f} nats"
    )


def _check_floor(num_classes: int, min_entropy: float) -> None:
    if not 0.0 < min_entropy < math.log(num_classes):
        most = math.log(num_classes)
        raise ValueError(f"min_entropy={min_entropy} must be above 0 and below log {num_classes} = {most:.4f}")
