"""Policies: from the raw outputs of a network, through a head, to the distribution that acts.

Head and distribution are independent axes of a comparison. The *head* turns raw outputs into log σ, with or
without a floor under the entropy; actions are drawn from the *distribution*. Formulas:
`entropyfloor.jax.functional`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from entropyfloor import targets
from entropyfloor.jax import functional as F
from entropyfloor.jax.distributions import Categorical, Normal, TanhNormal, TruncatedNormal
from entropyfloor.jax.nn import update_running_mean
from entropyfloor.jax.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Float

GaussianHeadName = Literal[
    "tanh", "clip", "era", "era-batch", "era-exact", "era-floor", "projection", "fixed", "shares"
]
CategoricalHeadName = Literal["softmax", "era", "era-exact"]
HeadName = Literal[GaussianHeadName, CategoricalHeadName]
DistributionName = Literal["truncated", "tanh", "normal"]
Gaussian = TanhNormal | TruncatedNormal | Normal
Distribution = Gaussian | Categorical

_PINS = ("era", "era-exact")
_NO_TARGET = ("tanh", "clip", "fixed", "shares", "softmax")
MOMENTUM = 0.1
"""Weight of a new batch in the running mean M of Eq. 36, as in `ERAGaussian`; the paper states none."""


class HeadState(NamedTuple):
    """State of a head beside the outputs of the network: scalars, None where the head has no use for them."""

    residual_entropy: Any = None
    """A learned δ̂, in nats, which is added to H0."""
    log_mean_exp_sum: Any = None
    """log M of Eq. 36; None takes that of the batch, as in training."""


STATELESS = HeadState()


@dataclass(frozen=True)
class GaussianPolicy:
    """The map from raw network outputs to the distribution over continuous actions.

    Args:
        head: `tanh`: log σ bounded by a tanh, no floor. `clip`: log σ clipped at its bounds, no floor. `fixed`:
            log σ is `log_std_max` in every state. `shares`: `tanh`, and a second raw output z for each dimension
            divides the deviation among them, `σ_i = D softmax(z)_i exp(log σ̂_i)`, no floor (FastDSAC, arXiv
            2603.12612). `era`: Eq. 11, a floor under the Gaussian *before* it is bounded. `era-batch`: Eq. 36,
            the same on average over the batch. `era-exact` (*ours*): the floor is under the truncated policy
            itself. `era-floor` (*ours*): the entropy may rise above the floor; exact where the distribution is
            truncated. `projection`: the baseline, on top of `tanh`.
        distribution: `truncated`: loc = tanh(mean), bounded by truncation. `tanh`: loc = mean, squashed.
            `normal`: loc = mean, unbounded; the environment clips.
        action_dim: D.
        target_entropy: H0 in nats for the whole action, with δ̂ added where it is a constant.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        clamp: Whether H0 + a learned δ̂ stops at what σ_max allows; False is for reproducing C.1.1 of the paper.

    Raises:
        ValueError: Unknown names, a pair that does not exist, or a target that is out of reach.
    """

    head: GaussianHeadName
    distribution: DistributionName
    action_dim: int
    target_entropy: float
    log_std_min: float
    log_std_max: float
    clamp: bool = True

    def __post_init__(self) -> None:
        head, low, high = self.head, self.log_std_min, self.log_std_max
        _check_name("head", head, GaussianHeadName, " for continuous actions")
        _check_name("distribution", self.distribution, DistributionName)
        if head == "era-exact" and not self._truncated:
            raise ValueError("head='era-exact' is solved for distribution='truncated': choose that, or head='era'")
        if (head == "era-batch" or self._exact) and not self.clamp:
            raise ValueError(f"head={head!r} always clamps its target: clamp=False is for head='era'")
        targets.check_log_std_bounds(low, high)
        if self._exact:
            targets.check_truncated_normal(self.target_entropy, self.action_dim, low, high, -1.0, 1.0)
        elif head.startswith("era"):
            targets.check_gaussian(self.target_entropy, self.action_dim, low, high)
        if self.action_dim == 1 and head in _PINS:
            warnings.warn(
                f"head={head!r} fixes σ where there is one action dimension: use 'era-floor'", stacklevel=3
            )

    @property
    def _truncated(self) -> bool:
        return self.distribution == "truncated"

    @property
    def _exact(self) -> bool:
        return self.head == "era-exact" or (self.head == "era-floor" and self._truncated)

    def __call__(
        self, mean: Float[Array, "*batch D"], raw_log_std: Float[Array, "*batch R"], state: HeadState = STATELESS
    ) -> Gaussian:
        """π(·|s) from the outputs of the network, R = D `raw_outputs(head)` raw ones."""
        mean = as_float(mean, "mean")  # tanh in bfloat16 is ±1, without a gradient, from a mean of 3.5
        loc = jnp.tanh(mean) if self._truncated else mean
        scale = jnp.exp(self._log_std(loc, raw_log_std, state))
        family = {"truncated": TruncatedNormal, "tanh": TanhNormal, "normal": Normal}[self.distribution]
        return family(loc, scale)

    def _log_std(self, loc: Array, raw: Array, state: HeadState) -> Array:
        target: Any = self.target_entropy
        if state.residual_entropy is not None:  # an array, which is clamped instead of checked: one for each state
            one = () if self.head == "era-batch" else raw.shape[:-1]
            target = jnp.broadcast_to(target + state.residual_entropy, one)
        bounds: dict[str, Any] = {"log_std_min": self.log_std_min, "log_std_max": self.log_std_max}
        mode: Any = "floor" if self.head == "era-floor" else "pin"
        if self._exact:
            return F.era_truncated_normal(loc, raw, target, mode=mode, **bounds)
        if self.head in ("era", "era-floor"):
            return F.era_gaussian(raw, target, mode=mode, clamp=self.clamp, **bounds)
        if self.head == "era-batch":
            running = state.log_mean_exp_sum
            rows = raw if running is None else jnp.atleast_2d(raw)  # one state is enough where M is known
            log_std, _ = F.era_gaussian_batch(rows, target, log_mean_exp_sum=running, **bounds)
            return log_std.reshape(raw.shape)
        if self.head == "clip":
            return raw.clip(self.log_std_min, self.log_std_max)
        if self.head == "fixed":
            return jnp.full_like(raw, self.log_std_max)
        if self.head == "shares":
            raw, z = jnp.split(raw, 2, axis=-1)
            shares = math.log(self.action_dim) + jax.nn.log_softmax(z, axis=-1)
            return shares + tanh_bounded(raw, self.log_std_min, self.log_std_max)
        bounded = tanh_bounded(raw, self.log_std_min, self.log_std_max)
        return bounded if self.head == "tanh" else F.project_gaussian(bounded, target)

    def initial_state(self, residual_entropy: float | None = None) -> HeadState:
        """State before training: δ̂ as given, and the M of a network whose raw outputs are all 0."""
        running = math.log(self.action_dim) if self.head == "era-batch" else None
        return HeadState(
            *(None if x is None else jnp.asarray(x, jnp.float32) for x in (residual_entropy, running))
        )

    def observe(self, state: HeadState, raw_log_std: Float[Array, "batch D"]) -> HeadState:
        """State after a training batch, whose log M moves the running one, as BatchNorm's statistics do."""
        if state.log_mean_exp_sum is None:
            return state
        exp_sum = jax.nn.logsumexp(raw_log_std, axis=-1)
        batch = jax.nn.logsumexp(exp_sum) - math.log(exp_sum.size)
        return state._replace(log_mean_exp_sum=update_running_mean(state.log_mean_exp_sum, batch, MOMENTUM))


@dataclass(frozen=True)
class CategoricalPolicy:
    """The map from logits to the distribution over discrete actions.

    Args:
        head: `softmax`: no floor. `era`: Eq. 15 as printed, whose floor is far above `min_entropy`.
            `era-exact` (*ours*): calibrated, the floor is `min_entropy`.
        num_actions: n.
        min_entropy: The floor in nats, below log n.

    Raises:
        ValueError: An unknown head, or a floor that is out of reach.
    """

    head: CategoricalHeadName
    num_actions: int
    min_entropy: float

    def __post_init__(self) -> None:
        _check_name("head", self.head, CategoricalHeadName, " for discrete actions")
        if self.head != "softmax":
            targets.softmax_kappa_range(self.num_actions, self.min_entropy, 4.0, self._floor, "exact")

    @property
    def _floor(self) -> Literal["calibrated", "paper"]:
        return "calibrated" if self.head == "era-exact" else "paper"

    def __call__(self, logits: Float[Array, "*batch n"]) -> Categorical:
        """π(·|s) from the outputs of the network."""
        if self.head == "softmax":
            return Categorical(logits)
        return Categorical(F.era_softmax(logits, self.min_entropy, floor=self._floor))


def tanh_bounded(raw: Float[Array, "..."], low: float, high: float) -> Float[Array, "..."]:
    """The head `tanh`: `low + (high - low) (tanh(raw) + 1) / 2`."""
    return low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)


def raw_outputs(head: HeadName) -> int:
    """Number of raw outputs for each action dimension, beside its mean."""
    return 2 if head == "shares" else 1


def has_target(head: HeadName) -> bool:
    """Whether the head steers an entropy."""
    return head not in _NO_TARGET


def promises_floor(head: HeadName) -> bool:
    """Whether the head has a floor in each state, not only on average; `era` has it before actions are bounded."""
    return has_target(head) and head != "era-batch"


def _check_name(setting: str, name: str, names: Any, where: str = "") -> None:
    if name not in get_args(names):
        raise ValueError(f"{setting}={name!r} must be one of {', '.join(get_args(names))}{where}")
