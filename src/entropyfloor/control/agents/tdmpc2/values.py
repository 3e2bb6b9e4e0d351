"""Values as distributions over bins, and the running scale of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Float


def symlog(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sign(x) log(1 + |x|)`."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sign(x) (exp |x| - 1)`, the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@dataclass(frozen=True)
class Bins:
    """A scalar as weights of evenly spaced bins of its symlog (Hafner et al. 2023, arXiv 2301.04104).

    Args:
        count: Number of bins.
        low: Symlog of the lowest bin.
        high: Symlog of the highest bin.
    """

    count: int = 101
    low: float = -10.0
    high: float = 10.0

    def encode(self, x: Float[Array, "..."]) -> Float[Array, "... bins"]:
        """Two-hot weights: those of the two bins around `symlog(x)`, whose mean it is; clipped to the bins."""
        place = (symlog(x).clip(self.low, self.high) - self.low) * ((self.count - 1) / (self.high - self.low))
        return jax.nn.relu(1.0 - jnp.abs(place[..., None] - jnp.arange(self.count)))

    def decode(self, logits: Float[Array, "... bins"]) -> Float[Array, "..."]:
        """`symexp` of the mean bin of `softmax(logits)`."""
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        return symexp(
            weights @ jnp.linspace(self.low, self.high, self.count, dtype=logits.dtype) / weights.sum(axis=-1)
        )

    def cross_entropy(self, logits: Float[Array, "... bins"], x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`-Σ_k w_k log softmax(logits)_k`, w the two-hot weights of x."""
        return jax.nn.logsumexp(logits, axis=-1) - (self.encode(x) * logits).sum(axis=-1)


def running_scale(scale: Float[Array, ""], values: Float[Array, " batch"], tau: float) -> Float[Array, ""]:
    """The scale moved by `tau` towards the distance of the 5 % and the 95 % quantile of `values`, at least 1."""
    low, high = jnp.quantile(jax.lax.stop_gradient(values), jnp.array([0.05, 0.95], values.dtype))
    return scale + tau * (jnp.maximum(high - low, 1.0) - scale)
