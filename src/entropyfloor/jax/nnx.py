"""The activations as flax.nnx modules, with the names and fields of the linen ones in `entropyfloor.jax.nn`.

A module checks its target when it is built. Only `ResidualEntropy` and `ERALinear` have parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from entropyfloor import targets
from entropyfloor.backends import Mode, check_last_axis, check_mode
from entropyfloor.checks import check_number
from entropyfloor.jax import functional as F
from entropyfloor.jax.nn import residual_loss, update_running_mean
from entropyfloor.jax.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAGaussian", "ERALinear", "ERASoftmax", "ERATruncatedNormal", "ResidualEntropy"]


# `eq=False, repr=False` below: nnx compares modules by identity, and prints them itself.
@dataclass(eq=False, repr=False)
class ERAGaussian(nnx.Module):
    """`era_gaussian` (Eq. 11), or with `batch_level=True` `era_gaussian_batch` (Eq. 36).

    At batch level the module has a running mean of `M`, stored as its log, like the statistics of `nnx.BatchNorm`:
    a `BatchStat` that is updated after `train()` and used after `eval()`.

    Args:
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        mode: `"pin"` or `"floor"`.
        batch_level: Meet the target on average over the batch instead of in every state.
        momentum: Weight of a new batch in the running mean, from 0 to 1.
        use_running_average: Whether the running mean is used, and not updated; `train` and `eval` set it.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F, nnx
        >>> head = nnx.ERAGaussian(action_dim=6, target_entropy=-3.0)
        >>> bool((F.gaussian_entropy(head(jnp.zeros((256, 6)))) > -3.0 - 1e-4).all())
        True
    """

    action_dim: int
    target_entropy: float
    log_std_min: float = -8.0
    log_std_max: float = 0.0
    mode: Mode = "pin"
    batch_level: bool = False
    momentum: float = 0.1
    use_running_average: bool = False

    def __post_init__(self) -> None:
        check_number("target_entropy", self.target_entropy)
        targets.check_gaussian(self.target_entropy, self.action_dim, self.log_std_min, self.log_std_max)
        check_mode(self.mode, self.action_dim, self.batch_level, self.momentum, stacklevel=7)
        if self.batch_level:  # log of Σ_j e^0, the statistic of a network that starts at zero
            self.log_mean_exp_sum = nnx.BatchStat(jnp.log(jnp.float32(self.action_dim)))

    def __call__(
        self, raw_log_std: Float[Array, "*batch D"], use_running_average: bool | None = None
    ) -> Float[Array, "*batch D"]:
        """log σ from the raw network output."""
        check_last_axis(raw_log_std.shape, self.action_dim, "action_dim")
        bounds: dict[str, Any] = {"log_std_min": self.log_std_min, "log_std_max": self.log_std_max}
        if not self.batch_level:
            return F.era_gaussian(raw_log_std, self.target_entropy, **bounds, mode=self.mode)
        use = self.use_running_average if use_running_average is None else use_running_average
        running = self.log_mean_exp_sum[...]
        used = running if use else None
        log_std, batch = F.era_gaussian_batch(raw_log_std, self.target_entropy, **bounds, log_mean_exp_sum=used)
        if not use:
            self.log_mean_exp_sum.set_value(update_running_mean(running, batch, self.momentum))
        return log_std

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


@dataclass(eq=False, repr=False)
class ERATruncatedNormal(nnx.Module):
    """`era_truncated_normal`: the floor holds for the truncated policy (*ours*).

    Args:
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        low: Lower bound of the action.
        high: Upper bound of the action.
        mode: `"pin"` or `"floor"`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import distributions, nnx
        >>> head, loc = nnx.ERATruncatedNormal(action_dim=6, target_entropy=-3.0), jnp.full((256, 6), 0.9)
        >>> policy = distributions.TruncatedNormal(loc, jnp.exp(head(loc, jnp.zeros((256, 6)))))
        >>> bool((policy.entropy() > -3.0 - 1e-4).all())
        True
    """

    action_dim: int
    target_entropy: float
    log_std_min: float = -8.0
    log_std_max: float = 0.0
    low: float = -1.0
    high: float = 1.0
    mode: Mode = "pin"

    def __post_init__(self) -> None:
        check_number("target_entropy", self.target_entropy)
        targets.check_truncated_normal(
            self.target_entropy, self.action_dim, self.log_std_min, self.log_std_max, self.low, self.high
        )
        check_mode(self.mode, self.action_dim, stacklevel=7)

    def __call__(
        self, loc: Float[Array, "*batch D"], raw_log_std: Float[Array, "*batch D"]
    ) -> Float[Array, "*batch D"]:
        """log σ before truncation, from the mean before truncation and the raw network output."""
        check_last_axis(loc.shape, self.action_dim, "action_dim")
        return F.era_truncated_normal(
            loc,
            raw_log_std,
            self.target_entropy,
            log_std_min=self.log_std_min,
            log_std_max=self.log_std_max,
            low=self.low,
            high=self.high,
            mode=self.mode,
        )


@dataclass(eq=False, repr=False)
class ERASoftmax(nnx.Module):
    """`era_softmax` on the last axis.

    Args:
        num_classes: n.
        min_entropy: Floor in nats.
        tau: τ > e.
        floor: `"calibrated"` or `"paper"`.
        inverse: `"exact"` or `"paper"`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F, nnx
        >>> logits = nnx.ERASoftmax(num_classes=10, min_entropy=0.6)(100 * jnp.eye(10))
        >>> bool((F.entropy_from_logits(logits) > 0.6 - 1e-4).all())
        True
    """

    num_classes: int
    min_entropy: float
    tau: float = 4.0
    floor: Literal["calibrated", "paper"] = "calibrated"
    inverse: Literal["exact", "paper"] = "exact"

    def __post_init__(self) -> None:
        targets.softmax_kappa_range(self.num_classes, self.min_entropy, self.tau, self.floor, self.inverse)

    def __call__(self, logits: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Logits whose softmax keeps the floor."""
        check_last_axis(logits.shape, self.num_classes, "num_classes")
        return F.era_softmax(logits, self.min_entropy, tau=self.tau, floor=self.floor, inverse=self.inverse)


class ERALinear(nnx.Linear):
    """An `nnx.Linear` classifier followed by `era_softmax`, with its parameters, `kernel` and `bias`.

    Args:
        in_features: Width of the features.
        out_features: Number of classes.
        min_entropy: Floor in nats.
        bias: Whether the linear layer has a bias: `use_bias` of `nnx.Linear`.
        rngs: Keys of the initial parameters.
        **options: `tau`, `floor`, `inverse` of `ERASoftmax`; `dtype`, `kernel_init` and others of `nnx.Linear`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax.nnx import Rngs
        >>> from entropyfloor.jax import nnx
        >>> nnx.ERALinear(64, 10, min_entropy=0.6, rngs=Rngs(0))(jnp.zeros((1, 64))).shape
        (1, 10)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        min_entropy: float,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        own = {name: options.pop(name) for name in ("tau", "floor", "inverse") if name in options}
        activation = ERASoftmax(out_features, min_entropy, **own)
        super().__init__(in_features, out_features, use_bias=bias, rngs=rngs, **options)
        self.activation = activation

    def __call__(  # type: ignore[override]  # releases of flax differ in their options
        self, inputs: Float[Array, "*batch i"], **options: Any
    ) -> Float[Array, "*batch n"]:
        """Logits whose softmax keeps the floor."""
        check_last_axis(inputs.shape, self.in_features, "in_features")
        return self.activation(super().__call__(inputs, **options))


class ResidualEntropy(nnx.Module):
    """The learned residual entropy δ̂ ≥ 0 of Eq. 12, one number for all states.

    Pass `target_entropy + stop_gradient(residual.value)` to `era_gaussian` and minimise `residual.loss(entropy)`:
    δ̂ grows while the entropy of the bounded policy is below its target.

    Args:
        target_entropy: H0 in nats for the whole action.
        initial: The parameter before softplus; 0 starts δ̂ at log 2.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import nnx
        >>> residual = nnx.ResidualEntropy(target_entropy=-3.0)
        >>> bool(residual.loss(jnp.full((256,), -4.0)) < 0)  # minimising it raises δ̂
        True
    """

    def __init__(self, target_entropy: float, initial: float = 0.0) -> None:
        check_number("target_entropy", target_entropy)
        targets.check_finite(target_entropy)
        self.target_entropy = float(target_entropy)
        self.raw = nnx.Param(jnp.float32(initial))

    @property
    def value(self) -> Float[Array, ""]:
        """δ̂ = softplus(raw), in nats."""
        return jax.nn.softplus(as_float(self.raw[...], "raw"))

    def __call__(self) -> Float[Array, ""]:
        """δ̂, in nats."""
        return self.value

    def loss(self, policy_entropy: Float[Array, "*batch"]) -> Float[Array, ""]:
        """`E[δ̂ (H[π] - H0)]` with the entropy of the bounded policy detached (Eq. 12)."""
        return residual_loss(self.value, policy_entropy, self.target_entropy)
