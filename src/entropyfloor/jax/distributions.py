"""Policies for JAX. The bounded ones are the same page as `entropyfloor.torch.distributions`.

The last axis is the event: `log_prob` and `entropy` sum over it. `entropy` is that of the *bounded* policy, in
nats. Half-precision parameters are computed in float32. The classes are pytrees: they pass through `jit` and
`vmap`. Their methods are those of distrax. PyTorch has its own `Normal` and `Categorical`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from entropyfloor.checks import check_number, is_finite
from entropyfloor.jax import functional as F
from entropyfloor.jax.numerics import as_float, clamp, log_sech_squared

if TYPE_CHECKING:
    from jaxtyping import Float, Int, PRNGKeyArray

__all__ = ["Categorical", "Normal", "TanhNormal", "TruncatedNormal"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TanhNormal:
    """tanh(u) with u ~ N(loc, scale²), per coordinate (Eq. 4).

    Args:
        loc: Mean of u, `[..., D]`.
        scale: Standard deviation of u, broadcastable with `loc`, positive.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.jax.distributions import TanhNormal
        >>> policy = TanhNormal(jnp.zeros((256, 6)), jnp.array(0.5))
        >>> action, log_prob = policy.sample_and_log_prob(seed=jax.random.key(0))
        >>> action.shape, log_prob.shape, policy.entropy().shape
        ((256, 6), (256,), (256,))
    """

    loc: Float[Array, "*#batch #D"]
    scale: Float[Array, "*#batch #D"] | Float[Array, ""]

    def sample(self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample D"]:
        """Reparametrised sample, with gradients to `loc` and `scale`."""
        return jnp.tanh(self._base_sample(seed, sample_shape))

    def sample_and_log_prob(
        self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "*sample D"], Float[Array, "*sample"]]:
        """Sample and its log-density, exact where tanh has saturated."""
        base = self._base_sample(seed, sample_shape)
        return jnp.tanh(base), self._log_prob_of_base(base)

    def log_prob(self, value: Float[Array, "*sample D"]) -> Float[Array, "*sample"]:
        """Log-density. A value beyond ±(1 - ε) is moved there, so that the result is finite."""
        value = as_float(value, "value")
        limit = 1 - jnp.finfo(value.dtype).eps
        return self._log_prob_of_base(jnp.arctanh(value.clip(-limit, limit)))

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy of the squashed policy, by quadrature."""
        loc, scale = _parameters(self.loc, self.scale)
        return F.tanh_normal_entropy(loc, jnp.log(scale)).sum(-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """tanh(loc): the median, with which agents act in evaluation; not the peak of the density."""
        return jnp.tanh(_parameters(self.loc, self.scale)[0])

    def _base_sample(self, seed: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Array:
        loc, scale = _parameters(self.loc, self.scale)
        return loc + scale * jax.random.normal(seed, sample_shape + loc.shape, loc.dtype)

    def _log_prob_of_base(self, base: Array) -> Array:
        loc, scale = _parameters(self.loc, self.scale)
        density = -0.5 * ((base - loc) / scale) ** 2 - jnp.log(scale) - LOG_SQRT_2PI
        return (density - log_sech_squared(base)).sum(-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TruncatedNormal:
    """N(loc, scale²) restricted to [low, high], per coordinate (Eq. 5).

    Args:
        loc: Mean before truncation, `[..., D]`, clamped into [low, high] as in `era_truncated_normal`.
        scale: Standard deviation before truncation, broadcastable with `loc`, positive.
        low: Lower bound, finite.
        high: Upper bound, finite.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.jax.distributions import TruncatedNormal
        >>> policy = TruncatedNormal(jnp.zeros((256, 6)), jnp.array(0.5))
        >>> action, log_prob = policy.sample_and_log_prob(seed=jax.random.key(0))
        >>> action.shape, log_prob.shape, policy.entropy().shape
        ((256, 6), (256,), (256,))
    """

    loc: Float[Array, "*#batch #D"]
    scale: Float[Array, "*#batch #D"] | Float[Array, ""]
    low: float = field(default=-1.0, metadata={"static": True})
    high: float = field(default=1.0, metadata={"static": True})

    def __post_init__(self) -> None:
        check_number("low", self.low)
        check_number("high", self.high)
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}: swap the bounds")
        if not (is_finite(self.low) and is_finite(self.high)):
            raise ValueError(
                f"low={self.low} and high={self.high} must be finite: one 10 scale from loc changes nothing"
            )

    def sample(self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample D"]:
        """Reparametrised sample by the inverse of the distribution function, with gradients to both parameters."""
        loc, scale = self._inside()
        # Probabilities are measured from loc, so that both tails have the same precision.
        below, above = self._mass_beside_loc(loc, scale)
        signed = jax.random.uniform(seed, sample_shape + loc.shape, loc.dtype) * (below + above) - below
        limit = 1 - jnp.finfo(loc.dtype).eps
        base = math.sqrt(2) * lax.erf_inv((2 * signed).clip(-limit, limit))
        return (loc + scale * base).clip(self.low, self.high)

    def sample_and_log_prob(
        self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "*sample D"], Float[Array, "*sample"]]:
        """Sample and its log-density."""
        value = self.sample(seed=seed, sample_shape=sample_shape)
        return value, self._log_density(value).sum(-1)

    def log_prob(self, value: Float[Array, "*sample D"]) -> Float[Array, "*sample"]:
        """Log-density: finite on [low, high], with the bounds as either precision rounds them; -inf outside.

        The density at NaN is NaN.
        """
        value = jnp.asarray(value)
        density = self._log_density(as_float(value, "value"))
        own = _parameters(self.loc, self.scale)[0].dtype
        low, high = ([b, *(float(np.asarray(b, d)) for d in (own, value.dtype))] for b in (self.low, self.high))
        outside = (value < min(low)) | (value > max(high))
        return jnp.where(outside, -jnp.inf, density).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy of the truncated policy, in closed form."""
        loc, scale = self._inside()
        return F.truncated_normal_entropy(loc, jnp.log(scale), low=self.low, high=self.high).sum(-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """The peak of the density: loc."""
        return self._inside()[0]

    def mean(self) -> Float[Array, "*batch D"]:
        """The mean, nearer to the middle of [low, high] than loc. In evaluation agents act by `mode`."""
        # With a and b the standardised bounds: loc + scale (φ(a) - φ(b)) / mass. The difference is φ(nearer bound)
        # times expm1, which does not cancel where scale is large.
        loc, scale = self._inside()
        below, above = self._mass_beside_loc(loc, scale)
        a, b = (self.low - loc) / scale, (self.high - loc) / scale
        exponent = 0.5 * (a - b) * (a + b)  # log φ(b) - log φ(a)
        nearer = jnp.exp(-0.5 * jnp.minimum(jnp.abs(a), jnp.abs(b)) ** 2 - LOG_SQRT_2PI)
        sign = jnp.where(exponent < 0, -1.0, 1.0)  # not `jnp.sign`: at 0 its gradient would be lost
        difference = nearer * sign * jnp.expm1(-sign * exponent)
        return (loc + scale * difference / (below + above)).clip(self.low, self.high)

    def _inside(self) -> tuple[Array, Array]:
        loc, scale = _parameters(self.loc, self.scale)
        return clamp(loc, self.low, self.high), scale

    def _mass_beside_loc(self, loc: Array, scale: Array) -> tuple[Array, Array]:
        below = 0.5 * lax.erf((loc - self.low) / (math.sqrt(2) * scale))
        above = 0.5 * lax.erf((self.high - loc) / (math.sqrt(2) * scale))
        return below, above

    def _log_density(self, value: Array) -> Array:
        loc, scale = self._inside()
        below, above = self._mass_beside_loc(loc, scale)
        return -0.5 * ((value - loc) / scale) ** 2 - jnp.log(scale) - LOG_SQRT_2PI - jnp.log(below + above)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normal:
    """N(loc, scale²) per coordinate, unbounded.

    Args:
        loc: Mean, `[..., D]`.
        scale: Standard deviation, broadcastable with `loc`, positive.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.jax.distributions import Normal
        >>> policy = Normal(jnp.zeros((256, 6)), jnp.array(0.5))
        >>> action, log_prob = policy.sample_and_log_prob(seed=jax.random.key(0))
        >>> action.shape, log_prob.shape, policy.entropy().shape
        ((256, 6), (256,), (256,))
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
        loc, scale = _parameters(self.loc, self.scale)
        return self._log_density((as_float(value, "value") - loc) / scale)

    def entropy(self) -> Float[Array, "*batch"]:
        """`Σ_i (log σ_i + log √(2πe))`."""
        return F.gaussian_entropy(jnp.log(_parameters(self.loc, self.scale)[1]))

    def mode(self) -> Float[Array, "*batch D"]:
        """The peak of the density: loc."""
        return _parameters(self.loc, self.scale)[0]

    def _sample(self, seed: PRNGKeyArray, sample_shape: tuple[int, ...]) -> tuple[Array, Array]:
        loc, scale = _parameters(self.loc, self.scale)
        noise = jax.random.normal(seed, sample_shape + loc.shape, loc.dtype)
        return loc + scale * noise, noise

    def _log_density(self, standardised: Array) -> Array:
        return (-0.5 * standardised**2 - jnp.log(_parameters(self.loc, self.scale)[1]) - LOG_SQRT_2PI).sum(-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Categorical:
    """One of n classes, with `p = softmax(logits)`. A sample is an int32 per row: `[...]` for logits `[..., n]`.

    Args:
        logits: `[..., n]`; entries of -inf are impossible classes.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.jax.distributions import Categorical
        >>> policy = Categorical(jnp.zeros((256, 10)))
        >>> action, log_prob = policy.sample_and_log_prob(seed=jax.random.key(0))
        >>> action.shape, log_prob.shape, policy.entropy().shape
        ((256,), (256,), (256,))
    """

    logits: Float[Array, "*batch n"]

    def sample(self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Int[Array, "*sample"]:
        """A class, without gradients."""
        logits = as_float(self.logits, "logits")
        value = jax.random.categorical(seed, logits, shape=sample_shape + logits.shape[:-1])
        return value.astype(jnp.int32)

    def sample_and_log_prob(
        self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Int[Array, "*sample"], Float[Array, "*sample"]]:
        """Sample and the logarithm of its probability."""
        value = self.sample(seed=seed, sample_shape=sample_shape)
        return value, self.log_prob(value)

    def log_prob(self, value: Int[Array, "*sample"]) -> Float[Array, "*sample"]:
        """Logarithm of the probability of a class; NaN for a class number out of range.

        Raises:
            ValueError: The values are not integers.
        """
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"value has dtype {value.dtype}: pass class numbers, such as value.astype(int)")
        log_p = jax.nn.log_softmax(as_float(self.logits, "logits"))
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
        return as_float(self.logits, "logits").argmax(-1).astype(jnp.int32)


def _parameters(loc: Array, scale: Array) -> list[Array]:
    both = jnp.broadcast_arrays(as_float(loc, "loc"), as_float(scale, "scale"))
    if both[0].ndim == 0:
        raise ValueError("loc and scale are scalars: the last axis is the action, pass [..., action_dim]")
    return both
