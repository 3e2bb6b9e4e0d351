"""Entropies of policies and classifiers, for JAX. `entropyfloor.torch.entropies` is the same page for PyTorch.

Entropies are in nats. Equations are those of arXiv 2510.08549. Half-precision input is computed in float32.

Kept by design: SciPy's `truncnorm` has no gradients, runs on no accelerator, and its entropy has no inverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import logsumexp

from entropyfloor import backends, targets
from entropyfloor.checks import is_finite
from entropyfloor.jax.numerics import as_float, clamp, compiled, constant, log_sech_squared, polynomial

if TYPE_CHECKING:
    from jaxtyping import Float

Pair = tuple[Array, Array]
SQRT_2PI = math.sqrt(2 * math.pi)


def entropy_from_logits(logits: Float[Array, "..."], dim: int = -1) -> Float[Array, "..."]:
    """Entropy of the softmax of `logits` (Eq. 3): `-Σ p log p`, in nats.

    Args:
        logits: Any shape; entries of -inf count as impossible classes.
        dim: The axis of classes.

    Returns:
        One entropy per row, shaped as `logits` without `dim`.

    Raises:
        ValueError: Integer input.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F
        >>> [round(x, 4) for x in F.entropy_from_logits(jnp.zeros((2, 4))).tolist()]
        [1.3863, 1.3863]
    """
    return _entropy_from_logits(as_float(logits, "logits"), dim)


@compiled(1)
def _entropy_from_logits(logits: Array, dim: int) -> Array:
    shifted = logits - lax.stop_gradient(logits.max(dim, keepdims=True))
    p = jax.nn.softmax(shifted, dim)
    finite = jnp.where(p > 0, shifted, 0.0)  # 0 · (-inf) would be NaN, in the value or in the gradient
    return logsumexp(shifted, dim) - (p * finite).sum(dim)


def gaussian_entropy(log_std: Float[Array, "..."], dim: int = -1) -> Float[Array, "..."]:
    """Entropy of a diagonal Gaussian (Eq. 10): `Σ_i (log σ_i + log √(2πe))`, in nats, without `dim`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F
        >>> [round(x, 4) for x in F.gaussian_entropy(jnp.zeros((2, 3))).tolist()]
        [4.2568, 4.2568]
    """
    log_std = as_float(log_std, "log_std")
    return (log_std + targets.LOG_SQRT_2PIE).sum(dim)


def truncated_normal_entropy(
    loc: Float[Array, "..."], log_std: Float[Array, "..."], *, low: float = -1.0, high: float = 1.0
) -> Float[Array, "..."]:
    """Entropy of each coordinate of a Gaussian truncated to [low, high] (Eq. 5), in nats.

    Args:
        loc: Mean before truncation, clamped into [low, high].
        log_std: log σ before truncation, broadcastable with `loc`.
        low: Lower bound.
        high: Upper bound.

    Returns:
        One entropy per coordinate. The entropy of the action is their sum over the last axis.

    Raises:
        ValueError: Crossed bounds, integer input.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F
        >>> entropy = F.truncated_normal_entropy(jnp.array([0.0, 0.9]), jnp.log(0.3))
        >>> [round(x, 4) for x in entropy.tolist()]
        [0.209, -0.3459]
    """
    loc, log_std = jnp.broadcast_arrays(as_float(loc, "loc"), as_float(log_std, "log_std"))
    mu, log_scale = unit_coordinates(loc, low, high)
    return unit_entropy(mu, log_std - log_scale, math.inf) + log_scale


def tanh_normal_entropy(loc: Float[Array, "..."], log_std: Float[Array, "..."]) -> Float[Array, "..."]:
    """Entropy of each coordinate of a tanh-squashed Gaussian (Eq. 4), in nats.

    Computed by quadrature, to 1e-10 in float64 for every σ. Not monotone in σ: for μ = 0 it peaks at σ ≈ 0.87.

    Args:
        loc: Mean before squashing.
        log_std: log σ before squashing, broadcastable with `loc`.

    Returns:
        One entropy per coordinate. The entropy of the action is their sum over the last axis.

    Raises:
        ValueError: Integer input.

    Examples:
        >>> import jax.numpy as jnp
        >>> from entropyfloor.jax import functional as F
        >>> entropy = F.tanh_normal_entropy(jnp.zeros(3), jnp.log(jnp.array([0.3, 0.87, 2.0])))
        >>> [round(x, 4) for x in entropy.tolist()]
        [0.1286, 0.6836, -0.0012]
    """
    return _tanh_normal_entropy(*jnp.broadcast_arrays(as_float(loc, "loc"), as_float(log_std, "log_std")))


@compiled()
def _tanh_normal_entropy(loc: Array, log_std: Array) -> Array:
    std = jnp.exp(log_std)
    # σ ≤ 1.5: the trapezoidal rule in u = μ + σx, whose error falls as exp(-π²/(σ Δx)).
    nodes, weights = (constant(c, loc) for c in backends.TRAPEZOID)
    narrow_std = std.clip(max=1.5)
    narrow = (log_sech_squared(loc[..., None] + narrow_std[..., None] * nodes) * weights).sum(-1)
    # σ > 1.5: 2 log 2 - 2 E|u| in closed form, and log(1 + e^{-2|u|}) by Gauss-Legendre over v = |u|.
    nodes, weights = (constant(c, loc) for c in backends.LEGENDRE_TAIL)
    wide_std = std.clip(min=1.5)
    ratio = loc / wide_std
    folded = wide_std * math.sqrt(2 / math.pi) * jnp.exp(-0.5 * ratio**2) + loc * lax.erf(ratio / math.sqrt(2))
    below, above = ((nodes + sign * loc[..., None]) / wide_std[..., None] for sign in (-1, 1))
    density = (jnp.exp(-0.5 * below**2) + jnp.exp(-0.5 * above**2)) / (SQRT_2PI * wide_std[..., None])
    wide = 2 * math.log(2) - 2 * folded - 2 * (density * weights).sum(-1)
    return log_std + targets.LOG_SQRT_2PIE + jnp.where(std <= 1.5, narrow, wide)


# --- the truncated Gaussian on [-1, 1] -------------------------------------------------------------------


def unit_coordinates(loc: Array, low: float, high: float) -> tuple[Array, float]:
    """μ in coordinates in which [low, high] is [-1, 1], and the logarithm of their scale."""
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    if not (is_finite(low) and is_finite(high)):
        raise ValueError(f"low={low} and high={high} must be finite for an entropy")
    half = 0.5 * (high - low)
    return (clamp(loc, low, high) - 0.5 * (low + high)) / half, math.log(half)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def unit_entropy(mu: Array, log_std: Array, log_std_max: float) -> Array:
    """Entropy of the Gaussian truncated to [-1, 1], for |μ| ≤ 1 and log σ ≤ `log_std_max`."""
    return _flat(_unit_derivatives, mu, log_std, log_std_max)[0]


@unit_entropy.defjvp
@compiled(0)
def _unit_entropy_jvp(log_std_max: float, primals: Pair, tangents: Pair) -> Pair:
    _, by_log_std, by_mu, _ = _flat(_unit_derivatives, *primals, log_std_max)
    return unit_entropy(*primals, log_std_max), by_mu * tangents[0] + by_log_std * tangents[1]


@compiled(1)
def unit_entropy_max(mu: Array, log_std: float) -> Array:
    """Entropy of the Gaussian truncated to [-1, 1] where σ is one number, for |μ| ≤ 1: a polynomial in μ²."""
    coefficients = targets.truncated_entropy_polynomial(log_std, 1e-14 if mu.dtype == jnp.float64 else 1e-8)
    if coefficients is None:
        return unit_entropy(mu, jnp.full_like(mu, log_std), log_std)
    return polynomial(coefficients, mu * mu)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def unit_log_std(mu: Array, entropy: Array, log_std_min: float, log_std_max: float) -> Array:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy."""
    return _flat(_unit_root, mu, entropy, log_std_min, log_std_max)[0]


@unit_log_std.defjvp
@compiled(0, 1)
def _unit_log_std_jvp(log_std_min: float, log_std_max: float, primals: Pair, tangents: Pair) -> Pair:
    log_std = unit_log_std(*primals, log_std_min, log_std_max)
    within = log_std.clip(log_std_min - 2, log_std_max)
    _, by_log_std, by_mu, _ = _flat(_unit_derivatives, primals[0], within, log_std_max)
    return log_std, (tangents[1] - by_mu * tangents[0]) / by_log_std


def _unit_derivatives(mu: Array, log_std: Array, log_std_max: float) -> tuple[Array, ...]:
    """H of the Gaussian truncated to [-1, 1] for |μ| ≤ 1, with H_s, H_μ and H_ss / H_s, where s = log σ.

    With t = (x - μ) / √2σ, of density ∝ exp(-t²) on [-a, b], they are cumulants: `H_s = 2 Var(t²)`,
    `H_μ = Cov(t², t) √2/σ`, `H_ss = 4 κ(t², t², t²) - 4 H_s`. Both ends have opposite signs, so nothing cancels in
    the normaliser. Where the range is short (σ > 2) the closed forms of the cumulants cancel, and they are
    integrated numerically instead; `log_std_max` ≤ log 2 skips that branch.
    """
    scale = jnp.exp(-log_std.clip(min=-40.0)) * math.sqrt(0.5)  # σ < e⁻⁴⁰ would overflow, and is as good as 0
    a, b = (1 + mu) * scale, (1 - mu) * scale
    aa, bb = a * a, b * b
    mass = lax.erf(a) + lax.erf(b)
    norm = 2 / math.sqrt(math.pi) / mass
    # Integration by parts gives the even moments of t as sums over both ends, the odd ones as differences.
    a0, b0 = jnp.exp(-aa) * norm, jnp.exp(-bb) * norm
    a2, b2 = aa * a0, bb * b0
    edge1, edge3, edge5 = a * a0 + b * b0, a * a2 + b * b2, a * (aa * a2) + b * (bb * b2)
    square = 1 - edge1
    entropy = log_std + jnp.log(mass) + (targets.LOG_SQRT_2PIE - math.log(2)) - 0.5 * edge1
    by_log_std = 1 - 0.5 * edge1 * (1 + edge1) - edge3
    cov = 0.5 * (a0 - b0) * (1 + edge1) + (a2 - b2)
    third = square * (15 - square * square - 6 * by_log_std) - 10 * edge3 - 4 * edge5  # 8 κ(t², t², t²)
    bend = 0.5 * third / by_log_std - 4

    if log_std_max > math.log(2):  # else a + b = √2/σ ≥ √½
        nodes, weights = (constant(c, mu) for c in backends.LEGENDRE_UNIT)
        short = a + b < math.sqrt(0.5)
        t = jnp.where(short, a + b, 0.5)[..., None] * nodes - jnp.where(short, a, 0.25)[..., None]
        p = jnp.exp(-t * t) * weights
        norm = p.sum(-1)
        p = p / norm[..., None]
        square = (p * t * t).sum(-1)
        v = t * t - square[..., None]
        w = t - (p * t).sum(-1)[..., None]
        var = (p * v * v).sum(-1)
        entropy = jnp.where(short, math.log(2) + jnp.log(norm) + square, entropy)
        by_log_std = jnp.where(short, 2 * var, by_log_std)
        cov = jnp.where(short, 2 * (p * v * w).sum(-1), cov)
        bend = jnp.where(short, 2 * (p * v**3).sum(-1) / var - 4, bend)
    return entropy, by_log_std, cov * scale, bend


def _unit_root(mu: Array, entropy: Array, log_std_min: float, log_std_max: float) -> tuple[Array]:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy.

    Halley's method. The start has both limits: log σ = H - log √(2πe) where σ is small, and -¼ log(log 2 - H)
    where the policy is nearly uniform. Its third term, the effect of the bounds in between, is a fit. One step
    leaves an error of 4e-7 for σ ≤ 1, two leave 1e-12 for all.
    """
    entropy = entropy.clip(min=min(log_std_min, 0.0))  # below it σ is under its bound for every μ
    power = jnp.exp(entropy)
    near, far = (polynomial(backends.BOUND, ((1 + side) / power).clip(max=8.0)) for side in (mu, -mu))
    first, second = 1 / (near * near), 1 / (far * far)  # beyond 8 both are as good as 0
    both, product, wide = first + second, first * second, (0.5 * power) ** 4
    fit = polynomial(backends.SUM, both) + product * backends.SUM_P + wide * backends.SUM_Y
    fit = fit * both + product * backends.BOTH_P + wide * backends.BOTH_Y
    nearly = jnp.log((1 - wide).clip(min=jnp.finfo(mu.dtype).eps))
    log_std = fit + entropy - 0.25 * nearly - targets.LOG_SQRT_2PIE
    for _ in range(1 if mu.dtype == jnp.float32 and log_std_max <= backends.ONE_STEP else 2):
        log_std = log_std.clip(log_std_min - 2, log_std_max)
        value, by_log_std, _, bend = _unit_derivatives(mu, log_std, log_std_max)
        newton = (entropy - value) / by_log_std
        log_std = log_std + newton / (1 + 0.5 * bend * newton).clip(min=0.5)  # ½ only where no σ has this entropy
    return (log_std.clip(log_std_min - 2, log_std_max + 1),)


@compiled(0, 3, 4)
def _flat(function: Callable[..., tuple[Array, ...]], x: Array, y: Array, *bounds: float) -> tuple[Array, ...]:
    """Apply an elementwise function to flat arrays: XLA vectorises the last axis only, perhaps of six."""
    if any(any(jax.typeof(array).sharding.spec[1:]) for array in (x, y)):
        return function(x, y, *bounds)  # a mesh divides an inner axis, which cannot be flattened
    return tuple(value.reshape(x.shape) for value in function(x.ravel(), y.ravel(), *bounds))
