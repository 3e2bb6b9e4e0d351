"""Actors, critics and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from entropyfloor.control import products
from entropyfloor.runs.settings import Precision

if TYPE_CHECKING:
    from jaxtyping import Float

ActivationName = Literal["relu", "elu", "silu", "tanh"]


def gaussian(gain: float) -> Callable[..., Any]:
    """Weights from a truncated Gaussian of variance `gain² / fan-in`; He's have the gain √2 (arXiv 1502.01852)."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal")


def dense(
    width: int,
    gain: float,
    precision: Precision,
    weights: Callable[[float], Callable[..., Any]] = nn.initializers.orthogonal,
) -> nn.Dense:
    """A layer with random `weights` of that gain. Its parameters are the same in both precisions."""
    product = products.bfloat16 if precision == "bf16" else None
    return nn.Dense(width, kernel_init=weights(gain), dot_general=product)


class MLP(nn.Module):
    """Hidden layers, each `Dense` (→ `LayerNorm`) → activation, with orthogonal weights of gain √2.

    Args:
        hidden: Width of each layer.
        activation: Name of the activation in `flax.linen`.
        layer_norm: Whether each layer is normalised before its activation.
        tanh_first: Make the first layer `Dense` → `LayerNorm` → tanh, whatever the others are (OBAC).
        precision: Precision of the matrix products, also of an actor's output layer. That of a value is float32.
    """

    hidden: tuple[int, ...]
    activation: ActivationName = "relu"
    layer_norm: bool = True
    tanh_first: bool = False
    precision: Precision = "fp32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The last layer's activations."""
        for i, width in enumerate(self.hidden):
            tanh = self.tanh_first and i == 0
            x = dense(width, np.sqrt(2), self.precision)(x)
            if self.layer_norm or tanh:
                x = nn.LayerNorm()(x)
            x = getattr(nn, "tanh" if tanh else self.activation)(x)
        return x


class ResidualBlock(nn.Module):
    """`x + Dense(activation(Dense(LayerNorm(x))))`, four times as wide inside, with He's weights.

    Args:
        width: Width of the input and the output.
        activation: Name of the activation in `flax.linen`.
        precision: Precision of the matrix products.
    """

    width: int
    activation: ActivationName = "relu"
    precision: Precision = "fp32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch w"]) -> Float[Array, "*batch w"]:
        """The input with the block's contribution added."""
        inside = dense(4 * self.width, np.sqrt(2), self.precision, gaussian)(nn.LayerNorm()(x))
        inside = getattr(nn, self.activation)(inside)
        return x + dense(self.width, np.sqrt(2), self.precision, gaussian)(inside)


class SimBa(nn.Module):
    """SimBa's hidden layers (arXiv 2410.09754, Sec. 4): `Dense` → residual blocks → `LayerNorm`.

    Its normalisation of observations is that of the trainer. Weights start as in the authors' code.

    Args:
        width: Width of the embedding and of the blocks.
        blocks: Number of residual blocks.
        activation: Name of the activation in `flax.linen`.
        precision: Precision of the matrix products, also of an actor's output layer. That of a value is float32.
    """

    width: int
    blocks: int
    activation: ActivationName = "relu"
    precision: Precision = "fp32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The normalised features."""
        x = dense(self.width, 1.0, self.precision)(x)
        for _ in range(self.blocks):
            x = ResidualBlock(self.width, self.activation, self.precision)(x)
        return nn.LayerNorm()(x)


Body = MLP | SimBa


class GaussianActor(nn.Module):
    """Mean and raw log σ of a Gaussian, before any head: `[..., obs] → [..., D], [..., R]`.

    Args:
        action_dim: D.
        body: The hidden layers.
        global_log_std: One raw log σ for all states, a parameter that starts at 0, instead of an output.
        raw_outputs: R / D: see `heads.raw_outputs`.
        gain: Gain of the output layer's weights. Near zero, the policy starts with its mean in the middle of the
            actions, and with its entropy shared out evenly.
    """

    action_dim: int
    body: Body
    global_log_std: bool = False
    raw_outputs: int = 1
    gain: float = 0.01

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch o"]) -> tuple[Float[Array, "*batch _"], ...]:
        """`(mean, raw_log_std)`."""
        x, raw_dim = self.body(observation), self.raw_outputs * self.action_dim
        if self.global_log_std:
            mean = dense(self.action_dim, self.gain, self.body.precision)(x)
            raw = self.param("raw_log_std", nn.initializers.zeros, (raw_dim,), jnp.float32)
            return mean, jnp.broadcast_to(raw, (*mean.shape[:-1], raw_dim))
        out = dense(self.action_dim + raw_dim, self.gain, self.body.precision)(x)
        mean, raw_log_std = jnp.split(out, [self.action_dim], axis=-1)
        return mean, raw_log_std


class CategoricalActor(nn.Module):
    """Logits over `num_actions` discrete actions, before any head: `[..., obs] → ([..., n],)`."""

    num_actions: int
    body: Body

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch o"]) -> tuple[Float[Array, "*batch n"]]:
        """`(logits,)`, near zero at the start: a uniform policy."""
        return (dense(self.num_actions, 0.01, self.body.precision)(self.body(observation)),)


class Value(nn.Module):
    """V(s): `[..., obs] → [...]`."""

    body: Body

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch o"]) -> Float[Array, "..."]:
        """The value of each state."""
        # A single output is a sum over the features, which matrix units do not speed up.
        return dense(1, 1.0, "fp32")(self.body(observation)).squeeze(-1)


class Critics(nn.Module):
    """`size` critics Q(s, a) with their own parameters, their values stacked along a first axis: `[size, ...]`.

    One after the other, not a `vmap`: batched products cost XLA transposed copies on CPUs, 4 % of an update of SAC
    at width 256 and 8 % at 512.

    Args:
        body: The hidden layers of each.
        size: Number of critics.
    """

    body: Body
    size: int = 2

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "size ..."]:
        """The values of every critic."""
        pairs = jnp.concatenate([observation, action], axis=-1)
        members = [Value(self.body.clone(parent=None)) for _ in range(self.size)]
        return jnp.stack([member(pairs) for member in members])


class DistributionalCritics(nn.Module):
    """As `Critics`, of the distribution of returns: logits of `atoms` values each, `[size, ..., atoms]`."""

    body: Body
    atoms: int
    size: int = 2

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "size *batch atoms"]:
        """The logits of every critic, near zero at the start: a uniform distribution."""
        pairs = jnp.concatenate([observation, action], axis=-1)
        members = [CategoricalActor(self.atoms, self.body.clone(parent=None)) for _ in range(self.size)]
        return jnp.stack([member(pairs)[0] for member in members])
