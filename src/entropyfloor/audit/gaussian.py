"""Gaussian policies that a file gives the parameters of: their entropy, their spread and their saturation.

Entropies are those of `entropyfloor.torch`. Actions are in [-1, 1] unless the distribution is `normal`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from scipy.special import ndtr

DistributionName = Literal["normal", "tanh", "truncated"]
EDGE = 0.99
"""Share of the range of the action beyond which, on either side of its middle, an action is saturated."""
MEANING = "probability that a component of the action is within 0.5 % of its range from a bound, or beyond it"
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)
_REACH = 8.0
"""Standard deviations on either side of the mean that moments are integrated over."""


def check_distribution(name: str) -> None:
    """Refuse a distribution that is none of `DistributionName`."""
    if name not in get_args(DistributionName):
        raise ValueError(f"distribution={name!r} must be one of {', '.join(get_args(DistributionName))}")


def entropy(name: DistributionName, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Entropy of each of `[N, D]` actions in nats, of the bounded policy; of the Gaussian for `normal`."""
    import torch  # runs of control are audited where it is not installed

    from entropyfloor.torch import distributions
    from entropyfloor.torch import functional as F

    mean, std = torch.as_tensor(loc, dtype=torch.float64), torch.as_tensor(scale, dtype=torch.float64)
    if name == "normal":
        return F.gaussian_entropy(std.log()).numpy()
    kind = distributions.TanhNormal if name == "tanh" else distributions.TruncatedNormal
    return kind(mean, std, validate_args=False).entropy().numpy()


def spread(name: DistributionName, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standard deviation of each component of the action, `[N, D]`; of the Gaussian itself for `normal`.

    By Gauss-Legendre quadrature over x = (u - loc) / scale, where u is the action before it is squashed, and
    what the bounds of a truncated action leave of x. For a `tanh` action it is exact to 0.2 % up to a scale of e²,
    the largest of SAC.
    """
    if name == "normal":
        return scale
    loc, scale = (np.asarray(x, np.float64) for x in (loc, scale))
    low, high = np.full_like(loc, -_REACH), np.full_like(loc, _REACH)
    if name == "truncated":
        loc = loc.clip(-1.0, 1.0)
        low, high = np.maximum(low, (-1.0 - loc) / scale), np.minimum(high, (1.0 - loc) / scale)
    mass = first = second = np.zeros_like(loc)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        x = low + 0.5 * (node + 1.0) * (high - low)
        density = weight * np.exp(-0.5 * x * x)
        # Around the action at x = 0, so that the variance of a narrow policy is no difference of large numbers.
        action = np.tanh(loc + scale * x) - np.tanh(loc) if name == "tanh" else scale * x
        mass, first, second = mass + density, first + density * action, second + density * action**2
    return np.sqrt(np.maximum(second / mass - (first / mass) ** 2, 0.0))


def saturated(
    name: DistributionName,
    loc: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray | float = -1.0,
    high: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Share of the components of the action that is saturated, `[N]`: see `MEANING`.

    Args:
        name: Distribution.
        loc: Mean before the action is bounded, `[N, D]`.
        scale: Standard deviation before the action is bounded, `[N, D]`.
        low: Lower bound of a `normal` action, where the environment clips it; others are in [-1, 1].
        high: Upper bound.
    """
    loc, scale = (np.asarray(x, np.float64) for x in (loc, scale))
    if name == "normal":
        middle, half = 0.5 * (np.asarray(high) + low), 0.5 * (np.asarray(high) - low)
        loc, scale = (loc - middle) / half, scale / half
    edge = math.atanh(EDGE) if name == "tanh" else EDGE
    if name != "truncated":
        return (ndtr((-edge - loc) / scale) + ndtr((loc - edge) / scale)).mean(-1)
    loc = loc.clip(-1.0, 1.0)
    inside = ndtr((1.0 - loc) / scale) - ndtr((-1.0 - loc) / scale)
    below = ndtr((-EDGE - loc) / scale) - ndtr((-1.0 - loc) / scale)
    # Above by symmetry: differences of probabilities near 1 would lose digits.
    above = ndtr((loc - EDGE) / scale) - ndtr((loc - 1.0) / scale)
    return ((below + above) / inside).mean(-1)
