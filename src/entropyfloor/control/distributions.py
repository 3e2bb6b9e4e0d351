"""Unbounded Gaussian and categorical policies, for agents whose environment clips or counts the actions.

Their methods are those of `entropyfloor.jax.distributions`, which holds the bounded ones: the last axis is the
event, `entropy` is in nats, half-precision parameters are computed in float32, and the classes are pytrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from entropyfloor.jax import functional as F
from entropyfloor.jax.distributions import LOG_SQRT_2PI

if TYPE_CHECKING:
    from jaxtyping import Float, Int, PRNGKeyArray

__all__ = ["Categorical", "Normal"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normal:
    """N(loc, scale²) per coordinate, unbounded.

    Args:
        loc: Mean, `[..., D]`.
        scale: Standard deviation, broadcastable with `loc`, positive.
    """

    loc: Float[Array, "*#batch #D"]
    scale: Float[Array, "*#batch #D"] | Float[Array, ""]

    def sample(self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample D"]:
        """Reparametrised sample, with gradients to `loc` and `scale`."""
        return self._sample(seed, sample_shape)[0]

    def sample_and_log_prob(
        self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "*sample D"], Float[Array, "*sample"]]:
        """Sample and its log-density."""
        value, noise = self._sample(seed, sample_shape)
        return value, self._log_density(noise)

    def log_prob(self, value: Float[Array, "*sample D"]) -> Float[Array, "*sample"]:
        """Log-density."""
        loc, scale = self._parameters()
        return self._log_density((F._floating(value, "value") - loc) / scale)

    def entropy(self) -> Float[Array, "*batch"]:
        """`Σ_i (log σ_i + log √(2πe))`."""
        return F.gaussian_entropy(jnp.log(self._parameters()[1]))

    def mode(self) -> Float[Array, "*batch D"]:
        """The peak of the density: loc."""
        return self._parameters()[0]

    def _sample(self, seed: PRNGKeyArray, sample_shape: tuple[int, ...]) -> tuple[Array, Array]:
        loc, scale = self._parameters()
        noise = jax.random.normal(seed, sample_shape + loc.shape, loc.dtype)
        return loc + scale * noise, noise

    def _log_density(self, standardised: Array) -> Array:
        return (-0.5 * standardised**2 - jnp.log(self._parameters()[1]) - LOG_SQRT_2PI).sum(-1)

    def _parameters(self) -> list[Array]:
        return jnp.broadcast_arrays(F._floating(self.loc, "loc"), F._floating(self.scale, "scale"))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Categorical:
    """One of n classes, with `p = softmax(logits)`. A value is an int32 scalar, so that `[..., n]` gives `[...]`.

    Args:
        logits: `[..., n]`; entries of -inf are impossible classes.
    """

    logits: Float[Array, "*batch n"]

    def sample(self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Int[Array, "*sample"]:
        """A class, without gradients."""
        logits = F._floating(self.logits, "logits")
        value = jax.random.categorical(seed, logits, shape=sample_shape + logits.shape[:-1])
        return value.astype(jnp.int32)

    def sample_and_log_prob(
        self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Int[Array, "*sample"], Float[Array, "*sample"]]:
        """Sample and the logarithm of its probability."""
        value = self.sample(seed=seed, sample_shape=sample_shape)
        return value, self.log_prob(value)

    def log_prob(self, value: Int[Array, "*sample"]) -> Float[Array, "*sample"]:
        """Logarithm of the probability of a class; NaN for one that does not exist.

        Raises:
            ValueError: The values are not integers.
        """
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"value has dtype {value.dtype}: pass class numbers, such as value.astype(int)")
        log_p = jax.nn.log_softmax(F._floating(self.logits, "logits"))
        log_p = jnp.broadcast_to(log_p, (*jnp.broadcast_shapes(value.shape, log_p.shape[:-1]), log_p.shape[-1]))
        # Negative numbers would count from the end.
        index = jnp.where(value < 0, log_p.shape[-1], value)
        index = jnp.broadcast_to(index, log_p.shape[:-1])
        return jnp.take_along_axis(log_p, index[..., None], axis=-1, mode="fill", fill_value=math.nan)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """`-Σ p log p`."""
        return F.entropy_from_logits(self.logits)

    def mode(self) -> Int[Array, "*batch"]:
        """The likeliest class."""
        return F._floating(self.logits, "logits").argmax(-1).astype(jnp.int32)
