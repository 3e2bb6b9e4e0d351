"""From the raw outputs of a network to the policy that acts: a head and a distribution.

The two are independent axes of a comparison. The *head* turns raw outputs into log σ, with or without a floor
under the entropy; the *distribution* bounds the actions to [-1, 1]. Formulas: `entropyfloor.jax.functional`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax.numpy as jnp
from jax import Array

from entropyfloor import targets
from entropyfloor.jax import functional as F
from entropyfloor.jax.distributions import TanhNormal, TruncatedNormal

if TYPE_CHECKING:
    from jaxtyping import Float

HeadName = Literal["clip", "era", "era-exact", "era-floor", "projection"]
DistributionName = Literal["truncated", "tanh"]
Distribution = TanhNormal | TruncatedNormal
Policy = Callable[..., Distribution]
"""`policy(mean, raw_log_std, residual_entropy=0.0)`, both arrays `[..., D]`."""

_PINS = ("era", "era-exact")


def make_policy(
    head: HeadName,
    distribution: DistributionName,
    *,
    action_dim: int,
    target_entropy: float,
    log_std_min: float,
    log_std_max: float,
) -> Policy:
    """The map from raw network outputs to the distribution over actions.

    Args:
        head: `clip`: tanh-bounded log σ, no floor. `era`: Eq. 11, a floor under the Gaussian *before* it is
            bounded. `era-exact` (*ours*): the floor is under the truncated policy itself. `era-floor` (*ours*):
            the entropy may rise above the floor; exact where the distribution is truncated. `projection`: the
            baseline, on top of `clip`.
        distribution: `truncated`: loc = tanh(mean), bounded by truncation. `tanh`: loc = mean, squashed.
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Returns:
        `policy(mean, raw_log_std, residual_entropy)`; the residual entropy δ̂ is added to the target, and may be a
        number or an array (a learned one).

    Raises:
        ValueError: Unknown names, a pair that does not exist, or a target that is out of reach.
    """
    if head not in get_args(HeadName):
        raise ValueError(f"head={head!r} must be one of {', '.join(get_args(HeadName))}")
    if distribution not in get_args(DistributionName):
        raise ValueError(f"distribution={distribution!r} must be one of {', '.join(get_args(DistributionName))}")
    truncated = distribution == "truncated"
    exact = head == "era-exact" or (head == "era-floor" and truncated)
    if head == "era-exact" and not truncated:
        raise ValueError("head='era-exact' is solved for distribution='truncated': choose that, or head='era'")
    targets.check_log_std_bounds(log_std_min, log_std_max)
    if exact:
        targets.check_truncated_normal(target_entropy, action_dim, log_std_min, log_std_max, -1.0, 1.0)
    elif head in ("era", "era-floor"):
        targets.check_gaussian(target_entropy, action_dim, log_std_min, log_std_max)
    if action_dim == 1 and head in _PINS:
        warnings.warn(f"head={head!r} fixes σ where there is one action dimension: use 'era-floor'", stacklevel=2)
    bounds: dict[str, Any] = {"log_std_min": log_std_min, "log_std_max": log_std_max}

    def log_std(loc: Array, raw: Array, target: float | Array) -> Array:
        if exact:
            mode: F.Mode = "pin" if head == "era-exact" else "floor"
            return F.era_truncated_normal(loc, raw, target, mode=mode, **bounds)
        if head == "era":
            return F.era_gaussian(raw, target, **bounds)
        if head == "era-floor":
            return F.era_gaussian(raw, target, mode="floor", **bounds)
        clipped = tanh_bounded(raw, log_std_min, log_std_max)
        return clipped if head == "clip" else F.project_gaussian(clipped, target)

    def policy(
        mean: Float[Array, "*batch D"],
        raw_log_std: Float[Array, "*batch D"],
        residual_entropy: float | Float[Array, ""] = 0.0,
    ) -> Distribution:
        loc = jnp.tanh(mean) if truncated else mean
        scale = jnp.exp(log_std(loc, raw_log_std, target_entropy + residual_entropy))
        return TruncatedNormal(loc, scale) if truncated else TanhNormal(loc, scale)

    return policy


def tanh_bounded(raw: Float[Array, "..."], low: float, high: float) -> Float[Array, "..."]:
    """The plain head: `low + (high - low) (tanh(raw) + 1) / 2`."""
    return low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)


def promises_floor(head: HeadName) -> bool:
    """Whether the head itself puts a floor under an entropy, be it that of the acting policy or not."""
    return head != "clip"
