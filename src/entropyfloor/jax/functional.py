"""The activations as functions, for JAX. `entropyfloor.torch.functional` is the same page for PyTorch.

Entropies are in nats. Equations are those of arXiv 2510.08549; what is marked *ours* is not in the paper.
Half-precision input is computed and returned in float32: rounding the result back would break the floor.
Every function runs eager, under `jax.jit`, `jax.vmap` and `jax.grad`. The inverses take a fixed number of steps
outside the graph and carry the derivative of the implicit function theorem; that derivative is of first order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import logsumexp

from entropyfloor import targets

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "clamped_share",
    "entropy_from_logits",
    "era_gaussian",
    "era_gaussian_batch",
    "era_softmax",
    "era_truncated_normal",
    "gaussian_entropy",
    "project_gaussian",
    "tanh_normal_entropy",
    "truncated_normal_entropy",
]

Mode = Literal["pin", "floor"]
Pair = tuple[Array, Array]
Rule = tuple[list[float], list[float]]  # nodes and weights: plain numbers, which compilers take as constants
SQRT_2PI = math.sqrt(2 * math.pi)


# --- entropies -------------------------------------------------------------------------------------------


def entropy_from_logits(logits: Float[Array, "..."], dim: int = -1) -> Float[Array, "..."]:
    """Entropy of the softmax of `logits` (Eq. 3): `-Σ p log p`, in nats.

    Args:
        logits: Any shape; entries of -inf count as impossible classes.
        dim: The axis of classes.

    Returns:
        `logits` without `dim`.
    """
    logits = _floating(logits, "logits")
    shifted = logits - lax.stop_gradient(logits.max(dim, keepdims=True))
    finite = shifted.clip(min=jnp.finfo(shifted.dtype).min)  # 0 · (-inf) would be NaN
    return logsumexp(shifted, dim) - (jax.nn.softmax(shifted, dim) * finite).sum(dim)


def gaussian_entropy(log_std: Float[Array, "..."], dim: int = -1) -> Float[Array, "..."]:
    """Entropy of a diagonal Gaussian (Eq. 10): `Σ_i (log σ_i + log √(2πe))`, in nats, without `dim`."""
    log_std = _floating(log_std, "log_std")
    return (log_std + targets.LOG_SQRT_2PIE).sum(dim)


def truncated_normal_entropy(
    loc: Float[Array, "..."], log_std: Float[Array, "..."], *, low: float = -1.0, high: float = 1.0
) -> Float[Array, "..."]:
    """Entropy of each coordinate of a Gaussian truncated to [low, high] (Eq. 5), in nats.

    Args:
        loc: Mean before truncation; outside [low, high] it is clamped into it.
        log_std: log σ before truncation, broadcastable with `loc`.
        low: Lower bound.
        high: Upper bound.

    Returns:
        One entropy per coordinate: sum over the last axis for that of the action.
    """
    loc, log_std = jnp.broadcast_arrays(_floating(loc, "loc"), _floating(log_std, "log_std"))
    mu, log_scale = _unit(loc, low, high)
    return _unit_entropy(mu, log_std - log_scale, math.inf) + log_scale


def tanh_normal_entropy(loc: Float[Array, "..."], log_std: Float[Array, "..."]) -> Float[Array, "..."]:
    """Entropy of each coordinate of a tanh-squashed Gaussian (Eq. 4), in nats.

    By quadrature, to 1e-10 in float64 for every σ. It is not monotone in σ: at μ = 0 it peaks near σ = 0.87.

    Args:
        loc: Mean before squashing.
        log_std: log σ before squashing, broadcastable with `loc`.

    Returns:
        One entropy per coordinate: sum over the last axis for that of the action.
    """
    loc, log_std = jnp.broadcast_arrays(_floating(loc, "loc"), _floating(log_std, "log_std"))
    std = jnp.exp(log_std)
    # σ ≤ 1.5: the trapezoidal rule in u = μ + σx, whose error falls as exp(-π²/(σ Δx)).
    nodes, weights = (_constant(c, loc) for c in _TRAPEZOID)
    narrow_std = std.clip(max=1.5)
    narrow = (_log_sech_squared(loc[..., None] + narrow_std[..., None] * nodes) * weights).sum(-1)
    # σ > 1.5: 2 log 2 - 2 E|u| in closed form, and log(1 + e^{-2|u|}) by Gauss-Legendre over v = |u|.
    nodes, weights = (_constant(c, loc) for c in _LEGENDRE_TAIL)
    wide_std = std.clip(min=1.5)
    ratio = loc / wide_std
    folded = wide_std * math.sqrt(2 / math.pi) * jnp.exp(-0.5 * ratio**2) + loc * lax.erf(ratio / math.sqrt(2))
    below, above = ((nodes + sign * loc[..., None]) / wide_std[..., None] for sign in (-1, 1))
    density = (jnp.exp(-0.5 * below**2) + jnp.exp(-0.5 * above**2)) / (SQRT_2PI * wide_std[..., None])
    wide = 2 * math.log(2) - 2 * folded - 2 * (density * weights).sum(-1)
    return log_std + targets.LOG_SQRT_2PIE + jnp.where(std <= 1.5, narrow, wide)


# --- continuous ERA --------------------------------------------------------------------------------------


def era_gaussian(
    raw_log_std: Float[Array, "..."],
    target_entropy: float | Float[Array, "..."],
    *,
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    mode: Mode = "pin",
    slack: float = -3.0,
    dim: int = -1,
    clamp: bool = True,
) -> Float[Array, "..."]:
    """log σ of a diagonal Gaussian whose entropy meets the target (Eq. 11).

    `log σ_i = max(log σ_max + K softmax(raw)_i, log σ_min)` with `K = H0 - D (log σ_max + log √(2πe)) ≤ 0`:
    a *larger* raw output gives a *smaller* σ_i. The promise is on the Gaussian before any squashing or
    truncation; for the policy that acts see `era_truncated_normal`.

    Args:
        raw_log_std: Network output, D entries along `dim`.
        target_entropy: H0 in nats for the whole vector. A number is checked. An array, shaped as
            `raw_log_std` without `dim`, cannot be checked and is clamped to the feasible maximum.
        log_std_min: Lower bound of log σ; it can only lift the entropy.
        log_std_max: Upper bound of log σ.
        mode: `"pin"` is Eq. 11, entropy = H0 wherever nothing is clipped. `"floor"` (*ours*) lets the mean raw
            output m move the entropy between H0 and its maximum: `K (1 - sigmoid(slack - m))`.
        slack: Where `mode="floor"` starts: at m = 0 the entropy is `sigmoid(slack)` of the way up.
        dim: The axis of action dimensions.
        clamp: False lets an infeasible array target push σ above its bound, as C.1.1 of the paper needs.

    Returns:
        log σ, shaped as `raw_log_std`.

    Raises:
        ValueError: Infeasible or NaN target, crossed bounds, shapes that differ, unknown mode, integer input.
    """
    raw = _floating(raw_log_std, "raw_log_std")
    gap = _gaussian_gap(raw, target_entropy, log_std_min, log_std_max, dim, clamp)
    if _is_floor(mode):
        gap = gap * jax.nn.sigmoid(raw.mean(dim, keepdims=True) - slack)
    return (jax.nn.softmax(raw, dim) * gap + log_std_max).clip(min=log_std_min)


def era_gaussian_batch(
    raw_log_std: Float[Array, "*batch D"],
    target_entropy: float | Float[Array, ""],
    *,
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    log_mean_exp_sum: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "*batch D"], Float[Array, ""]]:
    """log σ whose entropy meets the target on average over the batch (Eq. 36); states may differ.

    Eq. 11 with `e^raw / M` for the softmax, M the batch mean of `Σ_j e^raw_j`. It is carried as log M, which
    cannot overflow.

    Args:
        raw_log_std: Network output; every axis but the last is batch.
        target_entropy: H0 in nats, a number (checked) or a scalar array (clamped).
        log_std_min: Lower bound of log σ; it can only lift the entropy.
        log_std_max: Upper bound of log σ.
        log_mean_exp_sum: log M from training statistics, for evaluation; None computes it from this batch.

    Returns:
        log σ shaped as `raw_log_std`, and the log M that was used.

    Raises:
        ValueError: Infeasible or NaN target, crossed bounds, no batch axis, integer input, a target per state.
    """
    raw = _floating(raw_log_std, "raw_log_std")
    if raw.ndim < 2:
        raise ValueError(f"raw_log_std of shape {tuple(raw.shape)} has no batch axis: pass [batch, action_dim]")
    if jnp.ndim(target_entropy):
        raise ValueError(f"target_entropy {jnp.shape(target_entropy)} must be a scalar: the batch shares one")
    gap = _gaussian_gap(raw, target_entropy, log_std_min, log_std_max, -1, clamp=True)
    if log_mean_exp_sum is None:
        exp_sum = logsumexp(raw, -1)
        log_mean_exp_sum = logsumexp(exp_sum) - math.log(exp_sum.size)
    # Past e^50 log σ is on its lower bound anyway; the limit keeps the exponential finite in evaluation.
    share = jnp.exp((raw - log_mean_exp_sum).clip(max=50.0))
    return (share * gap + log_std_max).clip(min=log_std_min), log_mean_exp_sum


def era_truncated_normal(
    loc: Float[Array, "*batch D"],
    raw_log_std: Float[Array, "*batch D"],
    target_entropy: float | Float[Array, "..."],
    *,
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    low: float = -1.0,
    high: float = 1.0,
    mode: Mode = "pin",
    slack: float = -3.0,
    clamp: bool = True,
) -> Float[Array, "*batch D"]:
    """log σ of a *truncated* Gaussian whose own entropy meets the target in every state (*ours*).

    Eq. 11 in the coordinates of the acting policy: with `h_max,i = H_TN(μ_i, σ_max)` and
    `h_i = h_max,i + (H0 - Σ_j h_max,j) softmax(raw)_i`, σ_i is the root of `H_TN(μ_i, σ_i) = h_i`. No residual
    entropy δ is needed.

    Args:
        loc: Mean before truncation; outside [low, high] it is clamped into it.
        raw_log_std: Network output, shaped as `loc`; the last axis is that of action dimensions.
        target_entropy: H0 in nats for the whole action. A number is checked against the worst state, every
            `loc` on a bound. An array, shaped as `loc` without its last axis, is clamped to each state's maximum.
        log_std_min: Lower bound of log σ; it can only lift the entropy.
        log_std_max: Upper bound of log σ.
        low: Lower bound of the action.
        high: Upper bound of the action.
        mode: `"pin"` or `"floor"`, as in `era_gaussian`.
        slack: As in `era_gaussian`.
        clamp: False lets an infeasible array target stand; log σ then stays at its upper bound.

    Returns:
        log σ, shaped as `loc`.

    Raises:
        ValueError: Infeasible or NaN target, crossed bounds, shapes that differ, unknown mode, integer input.
    """
    loc, raw = _floating(loc, "loc"), _floating(raw_log_std, "raw_log_std")
    if loc.shape != raw.shape:
        raise ValueError(f"loc {tuple(loc.shape)} and raw_log_std {tuple(raw.shape)} must have the same shape")
    number = _number(target_entropy)
    targets.check_truncated_normal(number, loc.shape[-1], log_std_min, log_std_max, low, high)
    mu, log_scale = _unit(loc, low, high)
    bounds = log_std_min - log_scale, log_std_max - log_scale

    most = _unit_entropy(mu, jnp.full_like(mu, bounds[1]), bounds[1])
    target = _array(target_entropy, mu, -1) - mu.shape[-1] * log_scale
    gap = target - most.sum(-1, keepdims=True)
    if clamp:
        gap = gap.clip(max=0.0)
    if _is_floor(mode):
        gap = gap * jax.nn.sigmoid(raw.mean(-1, keepdims=True) - slack)
    entropy = most + gap * jax.nn.softmax(raw, -1)

    return _unit_log_std(mu, entropy, *bounds).clip(*bounds) + log_scale


def project_gaussian(
    log_std: Float[Array, "..."], target_entropy: float | Float[Array, "..."], *, dim: int = -1
) -> Float[Array, "..."]:
    """The projection baseline (Akrour et al. 2019, Otto et al. 2021): `σ exp(max(0, H0 - H(σ)) / D)`.

    Args:
        log_std: log σ, D entries along `dim`.
        target_entropy: H0 in nats, a number or an array shaped as `log_std` without `dim`.
        dim: The axis of action dimensions.

    Returns:
        log σ, shaped as `log_std`, shifted equally in every dimension up to the floor. It has no upper bound.

    Raises:
        ValueError: NaN target, integer input, shapes that differ.
    """
    log_std = _floating(log_std, "log_std")
    number = _number(target_entropy)
    if number is not None and not targets.is_finite(number):
        raise ValueError(f"target_entropy={number} must be a finite number of nats")
    missing = _array(target_entropy, log_std, dim) - jnp.expand_dims(gaussian_entropy(log_std, dim), dim)
    return log_std + missing.clip(min=0.0) / log_std.shape[dim]


def clamped_share(
    target_entropy: Float[Array, "..."], action_dim: int, *, log_std_max: float = 0.0
) -> Float[Array, ""]:
    """Share of array targets above what Eq. 11 can reach, which `era_gaussian` clamps: log it beside the floor."""
    return (target_entropy > targets.gaussian_entropy_max(action_dim, log_std_max)).mean(dtype=jnp.float32)


# --- discrete ERA ----------------------------------------------------------------------------------------


def era_softmax(
    logits: Float[Array, "..."],
    min_entropy: float,
    *,
    tau: float = 4.0,
    floor: Literal["calibrated", "paper"] = "calibrated",
    inverse: Literal["exact", "paper"] = "exact",
    dim: int = -1,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Logits whose softmax has entropy ≥ `min_entropy` (Eq. 15). The argmax is kept.

    `z'_i = h⁻¹(κ_i)` with `κ_i = κ_0 + (T - κ_0) softmax(z)_i`, `T = log τ / τ`, `h(x) = -x eˣ` on (-∞, -1].
    This is Eq. 15 with its two terms gathered so that neither cancels in float32.

    A logit of -inf counts as a very small one: under a floor its class keeps a probability. To exclude classes,
    such as illegal actions, give `mask` (*ours*): they get -inf, and the others what they would get alone. If
    the floor is out of reach for the classes that are left, they are equally likely, their highest entropy.
    +inf and NaN make their row NaN, as in any softmax. Gradients are finite where logits are finite or -inf.

    Args:
        logits: Network output z, n classes along `dim`.
        min_entropy: Floor in nats, 0 < floor < log n.
        tau: τ > e; 4 in the paper.
        floor: `"calibrated"` (*ours*): the least entropy over all logits is `min_entropy`. `"paper"`: Eq. 15 as
            printed, whose least entropy is far above it.
        inverse: `"exact"`: the lower Lambert branch. `"paper"`: its approximation in the paper.
        dim: The axis of classes.
        mask: Which classes are allowed, broadcastable to `logits`; None for all. Where none is, all get -inf.

    Returns:
        z', shaped as `logits`; take its softmax as usual.

    Raises:
        ValueError: n < 2, an infeasible floor, τ ≤ e, an unknown option, integer input, a mask that is not
            boolean or does not broadcast to `logits`.
    """
    logits = _floating(logits, "logits")
    options = logits.shape[dim], min_entropy, tau, floor, inverse
    if mask is not None:
        return _masked_era_softmax(logits, mask, targets.softmax_kappa_table(*options), inverse, dim)
    least, top = targets.softmax_kappa_range(*options)
    return _inverse(jax.nn.softmax(logits, dim) * (top - least) + least, inverse)


def _masked_era_softmax(logits: Array, mask: Array, table: tuple[float, ...], inverse: str, dim: int) -> Array:
    """`table` has κ at probability 0 for each number of allowed classes; its first entry is κ at probability 1."""
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask has dtype {mask.dtype}: pass booleans, True for classes that are allowed")
    sizes = zip(mask.shape[::-1], logits.shape[::-1], strict=False)
    if mask.ndim > logits.ndim or any(size not in (1, whole) for size, whole in sizes):
        raise ValueError(f"mask {mask.shape} must be of the shape of logits, {logits.shape}, or broadcast to it")
    mask = jnp.broadcast_to(mask, logits.shape)
    least, top = _constant(table, logits)[mask.sum(dim, keepdims=True)], table[0]
    # Finite numbers for what is masked, here and below: a row without any class has gradients of 0, not NaN.
    share = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min), dim)
    return jnp.where(mask, _inverse(share * (top - least) + least, inverse), -jnp.inf)


def _inverse(kappa: Array, inverse: str) -> Array:
    """h⁻¹ of Eq. 15."""
    if inverse == "exact":
        return _inverse_kappa(kappa)
    log_kappa = jnp.log(kappa)
    return 0.75 * log_kappa - 0.25 - jnp.sqrt(2 * (-1 - log_kappa).clip(min=jnp.finfo(kappa.dtype).eps))


@jax.custom_jvp
def _inverse_kappa(kappa: Array) -> Array:
    """h⁻¹(κ) = W₋₁(-κ) by Halley's method, with `dx/dκ = -e^{-x} / (1 + x) = x / (κ (1 + x))` for a derivative."""
    # With x = -1 - y: y - log(1 + y) = t. The start, from the two ends y ≈ √(2t) + ⅔t and y ≈ t + log t,
    # is good to 0.3 %; one Halley step then reaches single precision, a second one double.
    t = (-1 - jnp.log(kappa)).clip(min=jnp.finfo(kappa.dtype).eps)
    root = jnp.sqrt(2 * t)
    bend = 0.173 * root
    y = root + t * (bend + 2 / 3) / (bend + 1)
    for _ in range(2 if kappa.dtype == jnp.float64 else 1):
        residual = y - jnp.log(1 + y) - t  # not log1p, twice the time: t itself is no better than this
        # Halley: f' = y/(1+y), f'' = 1/(1+y)²
        y = y - 2 * residual * y * (1 + y) / (2 * y * y - residual)
    return -1 - y


@_inverse_kappa.defjvp
def _inverse_kappa_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x = _inverse_kappa(*primals)
    return x, tangents[0] * x / (primals[0] * (1 + x))


# --- the truncated Gaussian on [-1, 1] -------------------------------------------------------------------


def _unit(loc: Array, low: float, high: float) -> tuple[Array, float]:
    """Mean in the coordinates where the action runs over [-1, 1], and the log of their scale."""
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    half = 0.5 * (high - low)
    return (loc.clip(low, high) - 0.5 * (low + high)) / half, math.log(half)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _unit_entropy(mu: Array, log_std: Array, log_std_max: float) -> Array:
    """H of the Gaussian truncated to [-1, 1], for |μ| ≤ 1."""
    return _flat(_unit_derivatives, mu, log_std, log_std_max)[0]


@_unit_entropy.defjvp
def _unit_entropy_jvp(log_std_max: float, primals: Pair, tangents: Pair) -> Pair:
    mu, log_std = lax.stop_gradient(primals)
    entropy, by_log_std, by_mu, *_ = _flat(_unit_derivatives, mu, log_std, log_std_max)
    return entropy, by_mu * tangents[0] + by_log_std * tangents[1]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _unit_log_std(mu: Array, entropy: Array, log_std_min: float, log_std_max: float) -> Array:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy."""
    return _flat(_unit_root, mu, entropy, log_std_min, log_std_max)[0]


@_unit_log_std.defjvp
def _unit_log_std_jvp(log_std_min: float, log_std_max: float, primals: Pair, tangents: Pair) -> Pair:
    mu, entropy = lax.stop_gradient(primals)
    log_std, by_log_std, by_mu = _flat(_unit_root, mu, entropy, log_std_min, log_std_max)
    return log_std, (tangents[1] - by_mu * tangents[0]) / by_log_std


def _unit_derivatives(mu: Array, log_std: Array, log_std_max: float) -> tuple[Array, ...]:
    """H of the Gaussian truncated to [-1, 1] for |μ| ≤ 1, with H_s, H_μ, H_ss / H_s and H_sμ, where s = log σ.

    With t = (x - μ) / √2σ, of density ∝ exp(-t²) on [-a, b], they are cumulants: `H_s = 2 Var(t²)`,
    `H_μ = Cov(t², t) √2/σ`, `H_ss = 4 κ(t², t², t²) - 4 H_s`, `H_sμ = κ(t², t², t) 2√2/σ - 4 H_μ`. Both ends have
    opposite signs, so that nothing cancels in the normaliser; but the cumulants in closed form do cancel where the
    range is short, and are integrated there: a branch that `log_std_max`, if it rules it out, saves.
    """
    scale = jnp.exp(-log_std.clip(min=-40.0)) * math.sqrt(0.5)  # σ < e⁻⁴⁰ would overflow, and is as good as 0
    a, b = (1 + mu) * scale, (1 - mu) * scale
    aa, bb = a * a, b * b
    mass = lax.erf(a) + lax.erf(b)
    norm = 2 / math.sqrt(math.pi) / mass
    # Integration by parts leaves the moments of t as sums (even) and differences (odd) over the ends.
    a0, b0 = jnp.exp(-aa) * norm, jnp.exp(-bb) * norm
    a2, b2 = aa * a0, bb * b0
    a4, b4 = aa * a2, bb * b2
    edge1, edge3, edge5 = a * a0 + b * b0, a * a2 + b * b2, a * a4 + b * b4
    square = 1 - edge1
    entropy = log_std + jnp.log(mass) + (targets.LOG_SQRT_2PIE - math.log(2)) - 0.5 * edge1
    by_log_std = 1 - 0.5 * edge1 * (1 + edge1) - edge3
    cov = 0.5 * (a0 - b0) * (1 + edge1) + (a2 - b2)
    third = square * (15 - square * square - 6 * by_log_std) - 10 * edge3 - 4 * edge5  # 8 κ(t², t², t²)
    mixed = 2 * (a4 - b4) + (a0 - b0) * (2 * square - by_log_std - 0.5 * square * square) - 2 * square * cov
    bend = 0.5 * third / by_log_std - 4

    if log_std_max > math.log(2):  # else a + b = √2/σ ≥ √½
        nodes, weights = (_constant(c, mu) for c in _LEGENDRE_UNIT)
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
        bend = jnp.where(short, 2 * (p * v**3).sum(-1) / var - 4, bend)
        cov_short = (p * v * w).sum(-1)
        cov = jnp.where(short, 2 * cov_short, cov)
        mixed = jnp.where(short, 4 * (p * v * v * w).sum(-1) - 8 * cov_short, mixed)
    return entropy, by_log_std, cov * scale, bend, mixed * scale


def _unit_root(mu: Array, entropy: Array, log_std_min: float, log_std_max: float) -> tuple[Array, Array, Array]:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy, with ∂H/∂log σ and ∂H/∂μ there.

    The start has the right form at both ends, log σ = H - log √(2πe) where σ is small and -¼ log(log 2 - H) where
    the policy is nearly uniform; what the bounds add between them was fitted by least squares, reweighted towards
    the largest error, over |μ| ≤ 1 and log σ ≤ 1.2: to 0.026. One step of Halley leaves 1e-4, the second 1e-12;
    its slopes are carried over to the root by their own derivatives.
    """
    entropy = entropy.clip(min=min(log_std_min, 0.0))  # below it σ is under its bound, whatever μ
    x = 0.25 * jnp.exp(2 * entropy.clip(min=-40.0))  # (e^H / 2)²
    z = (x / (x + (1 - jnp.abs(mu)) ** 2)) ** 4  # nearness of the bound
    bound = z * (1.874 + z * (1.213 * z - 2.397)) + x * (0.097 * z - 0.177)
    nearly = (1 - x * x).clip(min=jnp.finfo(mu.dtype).eps)
    log_std = entropy - targets.LOG_SQRT_2PIE - 0.25 * jnp.log(nearly) + bound
    for _ in range(2):
        log_std = log_std.clip(log_std_min - 2, log_std_max)
        value, by_log_std, by_mu, bend, mixed = _unit_derivatives(mu, log_std, log_std_max)
        newton = (entropy - value) / by_log_std
        step = newton / (1 + 0.5 * bend * newton).clip(min=0.5)  # ½ is reached where the entropy is out of reach
        log_std = log_std + step
    by_log_std = by_log_std * (1 + bend * step).clip(min=0.25)
    return log_std.clip(log_std_min - 2, log_std_max + 1), by_log_std, by_mu + mixed * step


def _flat(function: Callable[..., tuple[Array, ...]], x: Array, y: Array, *bounds: float) -> tuple[Array, ...]:
    """An elementwise function along one axis: XLA vectorises the last one only, which may be six actions."""
    return tuple(value.reshape(x.shape) for value in function(x.ravel(), y.ravel(), *bounds))


# --- small parts -----------------------------------------------------------------------------------------


def _floating(x: Array, name: str) -> Array:
    """`x` in float32 or wider."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}: pass floating-point values, such as {name}.astype(float)")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _number(target: float | Array) -> float | None:
    """The target if it is a plain number, None if it is an array."""
    return None if isinstance(target, Array | np.ndarray) else float(target)


def _array(target: float | Array, like: Array, dim: int) -> float | Array:
    """The target, ready to broadcast against `like`, which has the axis `dim` more."""
    if not isinstance(target, Array | np.ndarray) or target.ndim == 0:
        return target
    shape = list(like.shape)
    del shape[dim]
    if list(target.shape) != shape:
        raise ValueError(f"target_entropy {tuple(target.shape)} must be a scalar or of shape {tuple(shape)}")
    return jnp.expand_dims(target, dim)


def _is_floor(mode: str) -> bool:
    if mode not in ("pin", "floor"):
        raise ValueError(f"mode={mode!r} must be 'pin' or 'floor'")
    return mode == "floor"


def _gaussian_gap(
    raw: Array, target: float | Array, log_std_min: float, log_std_max: float, dim: int, clamp: bool
) -> Array | float:
    """K of Eq. 11: what the target leaves below the largest entropy, ≤ 0."""
    action_dim = raw.shape[dim]
    targets.check_gaussian(_number(target), action_dim, log_std_min, log_std_max)
    gap = _array(target, raw, dim) - targets.gaussian_entropy_max(action_dim, log_std_max)
    return gap.clip(max=0.0) if clamp and isinstance(gap, Array) else gap


def _constant(values: Sequence[float], like: Array) -> Array:
    return jnp.asarray(values, like.dtype)


def _log_sech_squared(u: Array) -> Array:
    """log(1 - tanh² u) without cancellation: `2 (log 2 - |u| - log(1 + e^{-2|u|}))`."""
    return 2 * (math.log(2) - jnp.abs(u) - jnp.log1p(jnp.exp(-2 * jnp.abs(u))))


def _trapezoid(limit: float, count: int) -> Rule:
    """Nodes and weights of the standard normal's expectation."""
    nodes = np.linspace(-limit, limit, count)
    weights = np.exp(-0.5 * nodes**2)
    return nodes.tolist(), (weights / weights.sum()).tolist()


def _legendre(count: int, length: float) -> Rule:
    """Gauss-Legendre nodes and weights on [0, length]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (0.5 * length * (nodes + 1)).tolist(), (0.5 * length * weights).tolist()


_TRAPEZOID = _trapezoid(9.0, 65)
_LEGENDRE_UNIT = _legendre(6, 1.0)
_nodes, _weights = _legendre(40, 18.0)
_LEGENDRE_TAIL = _nodes, [w * math.log1p(math.exp(-2 * v)) for v, w in zip(_nodes, _weights, strict=True)]
