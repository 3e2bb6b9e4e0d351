"""Actor and critics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Float

ActivationName = Literal["relu", "elu", "silu", "tanh"]


class MLP(nn.Module):
    """Hidden layers, each `Dense` (→ `LayerNorm`) → activation, with orthogonal weights of gain √2.

    Args:
        hidden: Width of each layer.
        activation: Its name in `flax.linen`.
        layer_norm: Whether each layer is normalised before its activation.
    """

    hidden: tuple[int, ...]
    activation: ActivationName = "relu"
    layer_norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The last layer's activations."""
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = getattr(nn, self.activation)(x)
        return x


class GaussianActor(nn.Module):
    """Mean and raw log σ of a Gaussian, before any head: `[..., obs] → 2 × [..., D]`."""

    action_dim: int
    hidden: tuple[int, ...]
    activation: ActivationName = "relu"
    layer_norm: bool = True

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch o"]) -> tuple[Float[Array, "*batch D"], ...]:
        """`(mean, raw_log_std)`."""
        x = MLP(self.hidden, self.activation, self.layer_norm)(observation)
        # Near zero at the start: the mean in the middle of the actions, the entropy shared out evenly.
        out = nn.Dense(2 * self.action_dim, kernel_init=nn.initializers.orthogonal(0.01))(x)
        mean, raw_log_std = jnp.split(out, 2, axis=-1)
        return mean, raw_log_std


class Critic(nn.Module):
    """Q(s, a): `[..., obs], [..., D] → [...]`."""

    hidden: tuple[int, ...]
    activation: ActivationName = "relu"
    layer_norm: bool = True

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "..."]:
        """The value of each pair."""
        x = MLP(self.hidden, self.activation, self.layer_norm)(jnp.concatenate([observation, action], axis=-1))
        return nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))(x).squeeze(-1)


class Critics(nn.Module):
    """`size` critics with their own parameters, their values stacked along a first axis: `[size, ...]`.

    One after the other, not a `vmap`: batched products cost XLA transposed copies on CPUs, 4 % of an update of SAC
    at width 256 and 8 % at 512.
    """

    hidden: tuple[int, ...]
    activation: ActivationName = "relu"
    layer_norm: bool = True
    size: int = 2

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "size ..."]:
        """The values of every critic."""
        members = [Critic(self.hidden, self.activation, self.layer_norm) for _ in range(self.size)]
        return jnp.stack([member(observation, action) for member in members])
