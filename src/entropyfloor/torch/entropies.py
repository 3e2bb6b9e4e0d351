"""Entropies of policies and classifiers, for PyTorch. `entropyfloor.jax.entropies` is the same page for JAX.

Entropies are in nats. Equations are those of arXiv 2510.08549. Half-precision input is computed in float32.

Kept by design: SciPy's `truncnorm` has no gradients, runs on no accelerator, and its entropy has no inverse.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_scalar

from entropyfloor import backends, targets
from entropyfloor.checks import is_finite
from entropyfloor.torch.numerics import as_float, constant, is_tracing, log_sech_squared, polynomial, scalars

if TYPE_CHECKING:
    from jaxtyping import Float

SQRT_2PI = math.sqrt(2 * math.pi)


def entropy_from_logits(logits: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Entropy of the softmax of `logits` (Eq. 3): `-Σ p log p`, in nats.

    Args:
        logits: Any shape; entries of -inf count as impossible classes.
        dim: The axis of classes.

    Returns:
        One entropy per row, shaped as `logits` without `dim`.

    Raises:
        ValueError: Integer input.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.entropy_from_logits(torch.zeros(2, 4))
        tensor([1.3863, 1.3863])
    """
    logits = as_float(logits, "logits")
    shifted = logits - logits.amax(dim, keepdim=True).detach()
    p = shifted.softmax(dim)
    finite = torch.where(p > 0, shifted, 0.0)  # 0 · (-inf) would be NaN, in the value or in the gradient
    return shifted.logsumexp(dim) - (p * finite).sum(dim)


def gaussian_entropy(log_std: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Entropy of a diagonal Gaussian (Eq. 10): `Σ_i (log σ_i + log √(2πe))`, in nats, without `dim`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.gaussian_entropy(torch.zeros(2, 3))
        tensor([4.2568, 4.2568])
    """
    log_std = as_float(log_std, "log_std")
    return (log_std + targets.LOG_SQRT_2PIE).sum(dim)


def truncated_normal_entropy(
    loc: Float[Tensor, "..."], log_std: Float[Tensor, "..."], *, low: float = -1.0, high: float = 1.0
) -> Float[Tensor, "..."]:
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
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.truncated_normal_entropy(torch.tensor([0.0, 0.9]), torch.tensor(0.3).log())
        tensor([ 0.2090, -0.3459])
    """
    loc, log_std = torch.broadcast_tensors(as_float(loc, "loc"), as_float(log_std, "log_std"))
    mu, log_scale = unit_coordinates(loc, low, high)
    log_sigma = log_std - log_scale
    return unit_entropy(mu, log_sigma, math.inf) + log_scale


def tanh_normal_entropy(loc: Float[Tensor, "..."], log_std: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
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
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.tanh_normal_entropy(torch.zeros(3), torch.tensor([0.3, 0.87, 2.0]).log())
        tensor([ 0.1286,  0.6836, -0.0012])
    """
    loc, log_std = torch.broadcast_tensors(as_float(loc, "loc"), as_float(log_std, "log_std"))
    std = log_std.exp()
    # σ ≤ 1.5: the trapezoidal rule in u = μ + σx, whose error falls as exp(-π²/(σ Δx)).
    nodes, weights = (constant(c, loc) for c in backends.TRAPEZOID)
    narrow_std = std.clamp(max=1.5)
    narrow = (log_sech_squared(loc[..., None] + narrow_std[..., None] * nodes) * weights).sum(-1)
    # σ > 1.5: 2 log 2 - 2 E|u| in closed form, and log(1 + e^{-2|u|}) by Gauss-Legendre over v = |u|.
    nodes, weights = (constant(c, loc) for c in backends.LEGENDRE_TAIL)
    wide_std = std.clamp(min=1.5)
    ratio = loc / wide_std
    folded = wide_std * math.sqrt(2 / math.pi) * torch.exp(-0.5 * ratio**2) + loc * torch.erf(ratio / math.sqrt(2))
    below, above = ((nodes + sign * loc[..., None]) / wide_std[..., None] for sign in (-1, 1))
    density = (torch.exp(-0.5 * below**2) + torch.exp(-0.5 * above**2)) / (SQRT_2PI * wide_std[..., None])
    wide = 2 * math.log(2) - 2 * folded - 2 * (density * weights).sum(-1)
    return log_std + targets.LOG_SQRT_2PIE + torch.where(std <= 1.5, narrow, wide)


# --- the truncated Gaussian on [-1, 1] -------------------------------------------------------------------


def unit_coordinates(loc: Tensor, low: float, high: float) -> tuple[Tensor, float]:
    """μ in coordinates in which [low, high] is [-1, 1], and the logarithm of their scale."""
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    if not (is_finite(low) and is_finite(high)):
        raise ValueError(f"low={low} and high={high} must be finite for an entropy")
    half = 0.5 * (high - low)
    return (loc.clamp(low, high) - 0.5 * (low + high)) / half, math.log(half)


def unit_entropy(mu: Tensor, log_std: Tensor, log_std_max: float) -> Tensor:
    """Entropy of the Gaussian truncated to [-1, 1], for |μ| ≤ 1 and log σ ≤ `log_std_max`."""
    if is_tracing():
        return _unit_entropy(mu, log_std, log_std_max)[0]
    return _UnitEntropy.apply(mu, log_std, log_std_max)


def unit_entropy_max(mu: Tensor, log_std: float) -> Tensor:
    """Entropy of the Gaussian truncated to [-1, 1] where σ is one number, for |μ| ≤ 1: a polynomial in μ²."""
    log_std = guard_scalar(log_std)
    coefficients = _entropy_polynomial(log_std, 1e-14 if mu.dtype == torch.float64 else 1e-8)
    if coefficients is None:
        return unit_entropy(mu, torch.full_like(mu, log_std, requires_grad=False), log_std)
    return polynomial(coefficients, mu * mu)


def unit_log_std(mu: Tensor, entropy: Tensor, log_std_min: float, log_std_max: float) -> Tensor:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy."""
    if is_tracing():
        return _unit_root(mu, entropy, log_std_min, log_std_max)
    return _UnitLogStd.apply(mu, entropy, log_std_min, log_std_max)


# A constant to compilers. `guard_scalar` keeps its argument from becoming a symbol when it changes between calls.
_entropy_polynomial = torch.compiler.assume_constant_result(targets.truncated_entropy_polynomial)


class _UnitEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(mu: Tensor, log_std: Tensor, log_std_max: float) -> Tensor:
        return _unit_entropy(mu, log_std, log_std_max)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        mu, log_std, ctx.log_std_max = inputs
        ctx.save_for_backward(mu, log_std)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mu, log_std = ctx.saved_tensors
        by_log_std, by_mu = _unit_slopes(mu, log_std, ctx.log_std_max)
        return grad * by_mu, grad * by_log_std, None


class _UnitLogStd(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(mu: Tensor, entropy: Tensor, log_std_min: float, log_std_max: float) -> Tensor:
        return _unit_root(mu, entropy, log_std_min, log_std_max)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mu, _, *ctx.bounds = inputs
        ctx.save_for_backward(mu, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mu, log_std), (log_std_min, log_std_max) = ctx.saved_tensors, ctx.bounds
        by_log_std, by_mu = _unit_slopes(mu, log_std.clamp(log_std_min - 2, log_std_max), log_std_max)
        by_entropy = grad / by_log_std
        return -by_entropy * by_mu, by_entropy, None, None


# H of the Gaussian truncated to [-1, 1] for |μ| ≤ 1, and its derivatives. With s = log σ and t = (x - μ) / √2σ,
# of density ∝ exp(-t²) on [-a, b], they are cumulants: `H_s = 2 Var(t²)`, `H_μ = Cov(t², t) √2/σ`,
# `H_ss = 4 κ(t², t², t²) - 4 H_s`. Integration by parts gives the even moments of t as sums over both ends, the
# odd ones as differences. Both ends have opposite signs, so nothing cancels in the normaliser. Where the range is
# short (σ > 2) these forms cancel, and the cumulants are integrated numerically instead; `log_std_max` ≤ log 2
# skips that branch. Eager PyTorch pays per operation and buffer: sums are done in place.


def _unit_entropy(mu: Tensor, log_std: Tensor, log_std_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """H, H_s and H_ss / H_s."""
    one, half, four, fifteen, rest = scalars((1.0, 0.5, 4.0, 15.0, targets.LOG_SQRT_2PIE - math.log(2)), mu)
    (a, b), squares, density, mass, _ = _unit_ends(mu, log_std)
    aa, bb = squares
    a1, b1 = a * density[0], b * density[1]
    a3, b3 = a1 * aa, b1 * bb
    edge1, edge3, edge5 = a1 + b1, a3 + b3, torch.addcmul(a3 * aa, b3, bb)
    square = one - edge1
    entropy = (mass.log() + log_std).sub_(edge1, alpha=0.5).add_(rest)
    by_log_std = (one - edge3).sub_(torch.addcmul(edge1, edge1, edge1), alpha=0.5)
    third = (fifteen - square * square).sub_(by_log_std, alpha=6) * square
    third = third.sub_(edge3, alpha=10).sub_(edge5, alpha=4)  # 8 κ(t², t², t²)
    bend = (half * third / by_log_std).sub_(four)
    if log_std_max > math.log(2):  # else a + b = √2/σ ≥ √½
        short, t, p, norm = _short_density(a, b)
        square = (p * t * t).sum(-1)
        v = t * t - square[..., None]
        var = (p * v * v).sum(-1)
        entropy = torch.where(short, math.log(2) + norm.log() + square, entropy)
        by_log_std = torch.where(short, 2 * var, by_log_std)
        bend = torch.where(short, 2 * (p * v**3).sum(-1) / var - 4, bend)
    return entropy, by_log_std, bend


def _unit_slopes(mu: Tensor, log_std: Tensor, log_std_max: float) -> tuple[Tensor, Tensor]:
    """H_s and H_μ."""
    (one,) = scalars((1.0,), mu)
    (a, b), (aa, bb), (a0, b0), _, scale = _unit_ends(mu, log_std)
    a2, b2 = aa * a0, bb * b0
    edge1, edge3 = torch.addcmul(a * a0, b, b0), torch.addcmul(a * a2, b, b2)
    by_log_std = (one - edge3).sub_(torch.addcmul(edge1, edge1, edge1), alpha=0.5)
    cov = torch.addcmul(a2 - b2, a0 - b0, one + edge1, value=0.5)
    if log_std_max > math.log(2):
        short, t, p, _ = _short_density(a, b)
        v = t * t - (p * t * t).sum(-1, keepdim=True)
        by_log_std = torch.where(short, 2 * (p * v * v).sum(-1), by_log_std)
        cov = torch.where(short, 2 * (p * v * t).sum(-1), cov)
    return by_log_std, cov * scale


def _unit_ends(mu: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both ends a and b, stacked, their squares, the density of t there, erf(a) + erf(b), and √½/σ."""
    one, shift, norm = scalars((1.0, -0.5 * math.log(2), 0.5 * math.sqrt(math.pi)), mu)
    scale = torch.exp(shift - log_std.clamp(min=-40.0))  # a smaller σ is as good as 0
    # e⁻⁸¹ is as good as 0, and what is smaller would soon be denormal, hence slow.
    ends = (torch.stack((one + mu, one - mu)) * scale).clamp(max=9.0)
    squares = ends * ends
    above, below = torch.erf(ends)
    mass = above + below
    return ends, squares, torch.exp(-squares) / (norm * mass), mass, scale


def _short_density(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where [-a, b] is short; for a rule on it the nodes t, their probabilities, and the integral of exp(-t²)."""
    nodes, weights = (constant(c, a) for c in backends.LEGENDRE_UNIT)
    short = a + b < math.sqrt(0.5)
    t = torch.where(short, a + b, 0.5)[..., None] * nodes - torch.where(short, a, 0.25)[..., None]
    p = torch.exp(-t * t) * weights
    norm = p.sum(-1)
    return short, t, p / norm[..., None], norm


def _unit_root(mu: Tensor, entropy: Tensor, log_std_min: float, log_std_max: float) -> Tensor:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy.

    Halley's method. The start has both limits: log σ = H - log √(2πe) where σ is small, and -¼ log(log 2 - H)
    where the policy is nearly uniform. Its third term, the effect of the bounds in between, is a fit. One step
    leaves an error of 4e-7 for σ ≤ 1, two leave 1e-12 for all.
    """
    entropy = entropy.clamp(min=min(log_std_min, 0.0))  # below it σ is under its bound for every μ
    one, half, start = scalars((1.0, 0.5, targets.LOG_SQRT_2PIE), mu)
    power = entropy.exp()
    distance = (torch.stack((one + mu, one - mu)) / power).clamp(max=8.0)  # beyond 8 the effect is as good as 0
    first, second = polynomial(backends.BOUND, distance).square().reciprocal()
    both, product, wide = first + second, first * second, (half * power).square().square()
    fit = polynomial(backends.SUM, both).add_(product, alpha=backends.SUM_P).add_(wide, alpha=backends.SUM_Y)
    fit = torch.addcmul(entropy, fit, both).add_(product, alpha=backends.BOTH_P).add_(wide, alpha=backends.BOTH_Y)
    nearly = (one - wide).clamp(min=torch.finfo(mu.dtype).eps).log()
    log_std = fit.sub_(nearly, alpha=0.25).sub_(start)
    for _ in range(1 if mu.dtype == torch.float32 and log_std_max <= backends.ONE_STEP else 2):
        log_std = log_std.clamp(log_std_min - 2, log_std_max)
        value, by_log_std, bend = _unit_entropy(mu, log_std, log_std_max)
        newton = (entropy - value) / by_log_std
        bent = (half * bend * newton).add_(one).clamp(min=0.5)  # ½ only where no σ has this entropy
        log_std = torch.addcdiv(log_std, newton, bent)
    return log_std.clamp(log_std_min - 2, log_std_max + 1)
