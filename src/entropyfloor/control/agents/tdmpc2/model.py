"""The world model: encoder, dynamics, reward, critics, termination and policy prior."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from entropyfloor.control import products
from entropyfloor.control.agents.tdmpc2.values import Bins
from entropyfloor.runs.settings import Precision

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray

Params = Any


# --- layers ----------------------------------------------------------------------------------------------


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x tanh(softplus(x))`, with one exponential: it is `x n / (n + 2)` with `n = e (e + 2)` and `e = exp(x)`."""
    e = jnp.exp(jnp.minimum(x, 20.0))  # beyond which the quotient is 1 in float32
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def simnorm(x: Float[Array, "... latent"], simplex: int) -> Float[Array, "... latent"]:
    """Softmax of each group of `simplex` neighbours (simplicial normalisation)."""
    return jax.nn.softmax(x.reshape(*x.shape[:-1], -1, simplex), axis=-1).reshape(x.shape)


def dropout(x: Float[Array, "..."], key: PRNGKeyArray, rate: float) -> Float[Array, "..."]:
    """Zeros in place of a share of entries, the others scaled up.

    So many random places, some of them twice, that each entry is removed with probability `rate`: random bits for
    every entry would take a CPU ten times as long.
    """
    count = round(math.log1p(-rate) / math.log1p(-1.0 / x.size))
    kept = jnp.full(x.size, 1.0 / (1.0 - rate), x.dtype).at[jax.random.randint(key, (count,), 0, x.size)].set(0.0)
    return x * kept.reshape(x.shape)


@jax.custom_vjp
def normed_mish(
    x: Float[Array, "*batch w"], scale: Float[Array, " w"], bias: Float[Array, " w"]
) -> Float[Array, "*batch w"]:
    """`mish(scale x̂ + bias)` with `x̂ = (x - mean) / √(variance + 1e-5)`, of each row.

    The backward pass is written out: in what JAX derives, more arrays of the size of x are stored and read, which
    takes more time than the matrix products. There is no forward-mode derivative (`jax.jvp`).
    """
    return _forward(x, scale, bias)[0]


def _forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    mean = x.mean(axis=-1, keepdims=True)
    variance = (x * x).mean(axis=-1, keepdims=True) - mean * mean
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1e-5)
    return mish(scale * ((x - mean) * factor) + bias), (x, mean, factor, scale, bias)


def _backward(residuals: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array]:
    x, mean, factor, scale, bias = residuals
    u = scale * ((x - mean) * factor) + bias
    e = jnp.exp(jnp.minimum(u, 20.0))
    n = e * (e + 2.0)
    slope = (n * (n + 2.0) + 4.0 * u * (e * (e + 1.0))) / ((n + 2.0) * (n + 2.0))
    # XLA is to compute each of these once, instead of again for each of its uses.
    grad, x, mean, factor = jax.lax.optimization_barrier((grad * slope, x, mean, factor))
    normed = (x - mean) * factor
    weighted = grad * normed
    average = functools.partial(jnp.einsum, "...w,w->...", precision="highest")
    along_mean, along_norm = (average(y, scale / x.shape[-1])[..., None] for y in (grad, weighted))
    grad_x = jax.lax.optimization_barrier(factor * (scale * grad - along_mean - normed * along_norm))
    rows = tuple(range(x.ndim - 1))
    return grad_x, weighted.sum(axis=rows), grad.sum(axis=rows)


normed_mish.defvjp(_forward, _backward)


class NormedMish(nn.Module):
    """`normed_mish`; its scale starts at 1, its bias at 0."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch w"]) -> Float[Array, "*batch w"]:
        """The activation."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        return normed_mish(x, scale, self.param("bias", nn.initializers.zeros, shape, jnp.float32))


class NormedMLP(nn.Module):
    """Hidden layers, each `Dense` (→ dropout in the first) → `LayerNorm` → Mish, and an output layer.

    Args:
        hidden: Width of each hidden layer.
        out: Width of the output.
        simplex: Size of the output's simplices, after another `LayerNorm`; 0 leaves the output as it is.
        zero: Start with zero weights in the output layer.
        dropout: Share of entries that dropout removes.
        precision: Precision of all matrix products.
    """

    hidden: tuple[int, ...]
    out: int
    simplex: int = 0
    zero: bool = False
    dropout: float = 0.0
    precision: Precision = "fp32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"], key: PRNGKeyArray | None = None) -> Float[Array, "*batch o"]:
        """The output; with dropout if a key is given."""
        for i, width in enumerate(self.hidden):
            x = self._dense(width)(x)
            if i == 0 and self.dropout and key is not None:
                x = dropout(x, key, self.dropout)
            x = NormedMish(name=f"LayerNorm_{i}")(x)
        x = self._dense(self.out, zero=self.zero)(x)
        if not self.simplex:
            return x
        return simnorm(nn.LayerNorm(epsilon=1e-5, name=f"LayerNorm_{len(self.hidden)}")(x), self.simplex)

    def _dense(self, width: int, *, zero: bool = False) -> nn.Dense:
        init = nn.initializers.zeros if zero else nn.initializers.normal(0.02)
        return nn.Dense(
            width, kernel_init=init, dot_general=products.bfloat16 if self.precision == "bf16" else None
        )


# --- the model -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldModel:
    """The networks of TD-MPC2. Parameters are a dict with a tree for each; those of the critics are stacked.

    Args:
        encoder: `observation → z`.
        dynamics: `(z, action) → z` of the next state.
        reward: `(z, action) → logits` of the reward.
        critic: `(z, action) → logits` of Q; `critics` of them.
        termination: `z → logit` of whether the task has ended in z; None where it never does.
        prior: `z → (mean, raw log σ)`.
        critics: Number of critics.
        bins: Bins of rewards and values.
    """

    encoder: NormedMLP
    dynamics: NormedMLP
    reward: NormedMLP
    critic: NormedMLP
    termination: NormedMLP | None
    prior: NormedMLP
    critics: int
    bins: Bins

    def init(self, key: PRNGKeyArray, obs_dim: int, action_dim: int) -> tuple[dict[str, Params], Params]:
        """Parameters of the model and of the prior."""
        keys = jax.random.split(key, 6)
        observation, z = jnp.zeros((1, obs_dim)), jnp.zeros((1, self.encoder.out))
        pair = jnp.zeros((1, self.encoder.out + action_dim))
        model: dict[str, Params] = {
            "encoder": self.encoder.init(keys[0], observation),
            "dynamics": self.dynamics.init(keys[1], pair),
            "reward": self.reward.init(keys[2], pair),
            "critics": jax.vmap(self.critic.init, (0, None))(jax.random.split(keys[3], self.critics), pair),
        }
        if self.termination is not None:
            model["termination"] = self.termination.init(keys[4], z)
        return model, self.prior.init(keys[5], z)

    def encode(self, params: dict[str, Params], observation: Float[Array, "*b o"]) -> Float[Array, "*b latent"]:
        """z of an observation."""
        z: Array = self.encoder.apply(params["encoder"], observation)  # type: ignore[assignment]
        return z

    def next(
        self, params: dict[str, Params], z: Float[Array, "*b latent"], action: Float[Array, "*b D"]
    ) -> Float[Array, "*b latent"]:
        """z of the next state."""
        following: Array = self.dynamics.apply(params["dynamics"], _pair(z, action))  # type: ignore[assignment]
        return following

    def reward_logits(
        self, params: dict[str, Params], z: Float[Array, "*b latent"], action: Float[Array, "*b D"]
    ) -> Float[Array, "*b bins"]:
        """Logits of the reward's bins."""
        logits: Array = self.reward.apply(params["reward"], _pair(z, action))  # type: ignore[assignment]
        return logits

    def termination_logits(self, params: dict[str, Params], z: Float[Array, "*b latent"]) -> Float[Array, "*b"]:
        """Logit of whether the task has ended in z."""
        assert self.termination is not None
        logits: Array = self.termination.apply(params["termination"], z)  # type: ignore[assignment]
        return logits.squeeze(-1)

    def value_logits(
        self,
        critics: Params,
        z: Float[Array, "*b latent"],
        action: Float[Array, "*b D"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "critics *b bins"]:
        """Logits of Q's bins of each critic; with dropout if a key is given."""
        pair, count = _pair(z, action), len(jax.tree.leaves(critics)[0])
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(count)]
        # One after the other, not a `vmap`: batched products are slow on CPUs.
        logits: list[Any] = [
            self.critic.apply(jax.tree.map(lambda x, i=i: x[i], critics), pair, keys[i]) for i in range(count)
        ]
        return jnp.stack(logits)

    def two_values(
        self,
        critics: Params,
        z: Float[Array, "*b latent"],
        action: Float[Array, "*b D"],
        key: PRNGKeyArray,
        *,
        drop: bool = False,
    ) -> Float[Array, " 2 *b"]:
        """Q of two critics that are chosen at random, the same two for the batch."""
        choice_key, drop_key = jax.random.split(key)
        if self.critics > 2:
            two = jax.random.choice(choice_key, self.critics, (2,), replace=False)
            critics = jax.tree.map(lambda x: x[two], critics)
        return self.bins.decode(self.value_logits(critics, z, action, drop_key if drop else None))


def _pair(z: Array, action: Array) -> Array:
    return jnp.concatenate([z, action], axis=-1)
