"""The activations as flax.linen modules; `jax.nnx` has those of flax.nnx, and `torch.nn` those of PyTorch.

A module checks its target when it is built. Only `ResidualEntropy` and `ERALinear` have parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from entropyfloor import targets
from entropyfloor.backends import Mode, check_last_axis, check_mode
from entropyfloor.checks import check_number
from entropyfloor.jax import functional as F
from entropyfloor.jax.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAGaussian", "ERALinear", "ERASoftmax", "ERATruncatedNormal", "ResidualEntropy"]


class ERAGaussian(nn.Module):
    """`era_gaussian` (Eq. 11), or with `batch_level=True` `era_gaussian_batch` (Eq. 36).

    At batch level the module has a running mean of `M`, stored as its log, like the statistics of `BatchNorm`: in
    the collection `batch_stats`, updated where that is mutable and `use_running_average` is False.

    Args:
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        mode: `"pin"` or `"floor"`.
        batch_level: Meet the target on average over the batch instead of in every state.
        momentum: Weight of a new batch in the running mean, from 0 to 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F, nn
        >>> head = nn.ERAGaussian(action_dim=6, target_entropy=-3.0)
        >>> entropy = F.gaussian_entropy(head.apply({}, jnp.zeros((256, 6))))
        >>> bool((entropy > -3.0 - 1e-4).all())
        True
    """

    action_dim: int
    target_entropy: float
    log_std_min: float = -8.0
    log_std_max: float = 0.0
    mode: Mode = "pin"
    batch_level: bool = False
    momentum: float = 0.1

    def __post_init__(self) -> None:
        check_number("target_entropy", self.target_entropy)
        targets.check_gaussian(self.target_entropy, self.action_dim, self.log_std_min, self.log_std_max)
        check_mode(self.mode, self.action_dim, self.batch_level, self.momentum, stacklevel=5)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, raw_log_std: Float[Array, "*batch D"], use_running_average: bool = False
    ) -> Float[Array, "*batch D"]:
        """log σ from the raw network output."""
        check_last_axis(raw_log_std.shape, self.action_dim, "action_dim")
        bounds: dict[str, Any] = {"log_std_min": self.log_std_min, "log_std_max": self.log_std_max}
        if not self.batch_level:
            return F.era_gaussian(raw_log_std, self.target_entropy, **bounds, mode=self.mode)
        # The initial value is the log of Σ_j e^0, the statistic of a network that starts at zero.
        running = self.variable("batch_stats", "log_mean_exp_sum", lambda: jnp.log(jnp.float32(self.action_dim)))
        used = running.value if use_running_average else None
        log_std, batch = F.era_gaussian_batch(raw_log_std, self.target_entropy, **bounds, log_mean_exp_sum=used)
        if not use_running_average and not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            running.value = update_running_mean(running.value, batch, self.momentum)
        return log_std


class ERATruncatedNormal(nn.Module):
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
        >>> from entropyfloor.jax import distributions, nn
        >>> head, loc = nn.ERATruncatedNormal(action_dim=6, target_entropy=-3.0), jnp.full((256, 6), 0.9)
        >>> policy = distributions.TruncatedNormal(loc, jnp.exp(head.apply({}, loc, jnp.zeros((256, 6)))))
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
        check_mode(self.mode, self.action_dim, stacklevel=5)
        super().__post_init__()

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


class ERASoftmax(nn.Module):
    """`era_softmax` on the last axis.

    Args:
        num_classes: n.
        min_entropy: Floor in nats.
        tau: τ > e.
        floor: `"calibrated"` or `"paper"`.
        inverse: `"exact"` or `"paper"`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F, nn
        >>> head = nn.ERASoftmax(num_classes=10, min_entropy=0.6)
        >>> bool(F.entropy_from_logits(head.apply({}, 100 * jnp.eye(10)[0])) > 0.6 - 1e-4)
        True
    """

    num_classes: int
    min_entropy: float
    tau: float = 4.0
    floor: Literal["calibrated", "paper"] = "calibrated"
    inverse: Literal["exact", "paper"] = "exact"

    def __post_init__(self) -> None:
        targets.softmax_kappa_range(self.num_classes, self.min_entropy, self.tau, self.floor, self.inverse)
        super().__post_init__()

    def __call__(self, logits: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Logits whose softmax keeps the floor."""
        check_last_axis(logits.shape, self.num_classes, "num_classes")
        return F.era_softmax(logits, self.min_entropy, tau=self.tau, floor=self.floor, inverse=self.inverse)


class ERALinear(nn.Module):
    """A `Dense` classifier followed by `era_softmax`, with the parameters of `Dense`, `kernel` and `bias`.

    Args:
        in_features: Width of the features.
        out_features: Number of classes.
        min_entropy: Floor in nats.
        bias: Whether the linear layer has a bias.
        tau: τ > e.
        floor: `"calibrated"` or `"paper"`.
        inverse: `"exact"` or `"paper"`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.jax import nn
        >>> layer = nn.ERALinear(64, 10, min_entropy=0.6)
        >>> variables = layer.init(jax.random.key(0), jnp.zeros((1, 64)))
        >>> sorted(variables["params"])
        ['bias', 'kernel']
    """

    in_features: int
    out_features: int
    min_entropy: float
    bias: bool = True
    tau: float = 4.0
    floor: Literal["calibrated", "paper"] = "calibrated"
    inverse: Literal["exact", "paper"] = "exact"

    def __post_init__(self) -> None:
        targets.softmax_kappa_range(self.out_features, self.min_entropy, self.tau, self.floor, self.inverse)
        super().__post_init__()

    def setup(self) -> None:
        """Share the scope with the linear layer, so that its parameters keep their names."""
        self.linear = nn.Dense(self.out_features, use_bias=self.bias)
        nn.share_scope(self, self.linear)

    def __call__(self, features: Float[Array, "*batch i"]) -> Float[Array, "*batch n"]:
        """Logits whose softmax keeps the floor."""
        check_last_axis(features.shape, self.in_features, "in_features")
        logits = self.linear(features)
        return F.era_softmax(logits, self.min_entropy, tau=self.tau, floor=self.floor, inverse=self.inverse)


class ResidualEntropy(nn.Module):
    """The learned residual entropy δ̂ ≥ 0 of Eq. 12, one number for all states.

    Pass `target_entropy + stop_gradient(δ̂)` to `era_gaussian` and minimise the loss: δ̂ grows while the entropy of
    the bounded policy is below its target. `module.bind(variables).value` is δ̂, and
    `module.apply(variables, entropy, method="loss")` the loss.

    Args:
        target_entropy: H0 in nats for the whole action.
        initial: The parameter before softplus; 0 starts δ̂ at log 2.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.jax import nn
        >>> residual = nn.ResidualEntropy(target_entropy=-3.0)
        >>> variables = residual.init(jax.random.key(0))
        >>> loss = residual.apply(variables, jnp.full((256,), -4.0), method="loss")  # lower with a larger δ̂
    """

    target_entropy: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        check_number("target_entropy", self.target_entropy)
        targets.check_finite(self.target_entropy)
        super().__post_init__()

    def setup(self) -> None:
        """The one parameter."""
        self.raw = self.param("raw", nn.initializers.constant(self.initial), (), jnp.float32)

    @property
    def value(self) -> Float[Array, ""]:
        """δ̂ = softplus(raw), in nats."""
        return jax.nn.softplus(as_float(self.raw, "raw"))

    def __call__(self) -> Float[Array, ""]:
        """δ̂, in nats."""
        return self.value

    def loss(self, policy_entropy: Float[Array, "*batch"]) -> Float[Array, ""]:
        """`E[δ̂ (H[π] - H0)]` with the entropy of the bounded policy detached (Eq. 12)."""
        return residual_loss(self.value, policy_entropy, self.target_entropy)


# --- what modules of linen and nnx share ----------------------------------------------------------------


def update_running_mean(old: Float[Array, ""], batch: Float[Array, ""], momentum: float) -> Float[Array, ""]:
    """The log of the running mean of M after a batch, from the logs of both."""
    # The type is that of the variable under float64 input too, as a scan requires; half precision becomes float32.
    old = as_float(old, "log_mean_exp_sum")
    new = lax.stop_gradient(batch).astype(old.dtype) + jnp.log(momentum)
    return jnp.logaddexp(old + jnp.log1p(-momentum), new)


def residual_loss(
    residual: Float[Array, ""], policy_entropy: Float[Array, "*batch"], target_entropy: float
) -> Float[Array, ""]:
    """The loss of `ResidualEntropy` (Eq. 12)."""
    entropy = lax.stop_gradient(as_float(policy_entropy, "policy_entropy"))
    return (residual * (entropy - target_entropy)).mean()
