"""The activations as functions, for PyTorch. `entropyfloor.jax.functional` is the same page for JAX.

Entropies are in nats. Equations are those of arXiv 2510.08549; what is marked *ours* is not in the paper.
Half-precision input is computed and returned in float32: rounding the result back would break the floor.
Every function runs eager, under `torch.compile(fullgraph=True)`, `torch.func.vmap` and autocast. The inverses
take a fixed number of steps outside the graph and carry the derivative of the implicit function theorem; that
derivative is of first order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.fx.experimental.symbolic_shapes import guard_scalar

from entropyfloor import targets
from entropyfloor.torch.kernels import tokens, triton_tokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

__all__ = [
    "clamped_share",
    "entropy_from_logits",
    "era_gaussian",
    "era_gaussian_batch",
    "era_softmax",
    "era_token_scale",
    "era_truncated_normal",
    "gaussian_entropy",
    "log_probs_at",
    "project_gaussian",
    "response_entropy",
    "scale_advantages",
    "tanh_normal_entropy",
    "token_log_probs",
    "token_log_probs_all_scales",
    "top_k_logits",
    "truncated_normal_entropy",
]

Mode = Literal["pin", "floor"]
Rule = tuple[list[float], list[float]]  # nodes and weights: plain numbers, which compilers take as constants
SQRT_2PI = math.sqrt(2 * math.pi)


# --- entropies -------------------------------------------------------------------------------------------


def entropy_from_logits(logits: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Entropy of the softmax of `logits` (Eq. 3): `-Σ p log p`, in nats.

    Args:
        logits: Any shape; entries of -inf count as impossible classes.
        dim: The axis of classes.

    Returns:
        `logits` without `dim`.
    """
    logits = _floating(logits, "logits")
    shifted = logits - logits.amax(dim, keepdim=True).detach()
    finite = shifted.clamp(min=torch.finfo(shifted.dtype).min)  # 0 · (-inf) would be NaN
    return shifted.logsumexp(dim) - (shifted.softmax(dim) * finite).sum(dim)


def gaussian_entropy(log_std: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Entropy of a diagonal Gaussian (Eq. 10): `Σ_i (log σ_i + log √(2πe))`, in nats, without `dim`."""
    log_std = _floating(log_std, "log_std")
    return (log_std + targets.LOG_SQRT_2PIE).sum(dim)


def truncated_normal_entropy(
    loc: Float[Tensor, "..."], log_std: Float[Tensor, "..."], *, low: float = -1.0, high: float = 1.0
) -> Float[Tensor, "..."]:
    """Entropy of each coordinate of a Gaussian truncated to [low, high] (Eq. 5), in nats.

    Args:
        loc: Mean before truncation; outside [low, high] it is clamped into it.
        log_std: log σ before truncation, broadcastable with `loc`.
        low: Lower bound.
        high: Upper bound.

    Returns:
        One entropy per coordinate: sum over the last axis for that of the action.
    """
    loc, log_std = torch.broadcast_tensors(_floating(loc, "loc"), _floating(log_std, "log_std"))
    mu, log_scale = _unit(loc, low, high)
    log_sigma = log_std - log_scale
    entropy, by_log_std, by_mu, *_ = _unit_derivatives(mu.detach(), log_sigma.detach(), math.inf)
    return _implicit(entropy + log_scale, (mu, by_mu), (log_sigma, by_log_std))


def tanh_normal_entropy(loc: Float[Tensor, "..."], log_std: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Entropy of each coordinate of a tanh-squashed Gaussian (Eq. 4), in nats.

    By quadrature, to 1e-10 in float64 for every σ. It is not monotone in σ: at μ = 0 it peaks near σ = 0.87.

    Args:
        loc: Mean before squashing.
        log_std: log σ before squashing, broadcastable with `loc`.

    Returns:
        One entropy per coordinate: sum over the last axis for that of the action.
    """
    loc, log_std = torch.broadcast_tensors(_floating(loc, "loc"), _floating(log_std, "log_std"))
    std = log_std.exp()
    # σ ≤ 1.5: the trapezoidal rule in u = μ + σx, whose error falls as exp(-π²/(σ Δx)).
    nodes, weights = (_constant(c, loc) for c in _TRAPEZOID)
    narrow_std = std.clamp(max=1.5)
    narrow = (_log_sech_squared(loc[..., None] + narrow_std[..., None] * nodes) * weights).sum(-1)
    # σ > 1.5: 2 log 2 - 2 E|u| in closed form, and log(1 + e^{-2|u|}) by Gauss-Legendre over v = |u|.
    nodes, weights = (_constant(c, loc) for c in _LEGENDRE_TAIL)
    wide_std = std.clamp(min=1.5)
    ratio = loc / wide_std
    folded = wide_std * math.sqrt(2 / math.pi) * torch.exp(-0.5 * ratio**2) + loc * torch.erf(ratio / math.sqrt(2))
    below, above = ((nodes + sign * loc[..., None]) / wide_std[..., None] for sign in (-1, 1))
    density = (torch.exp(-0.5 * below**2) + torch.exp(-0.5 * above**2)) / (SQRT_2PI * wide_std[..., None])
    wide = 2 * math.log(2) - 2 * folded - 2 * (density * weights).sum(-1)
    return log_std + targets.LOG_SQRT_2PIE + torch.where(std <= 1.5, narrow, wide)


# --- continuous ERA --------------------------------------------------------------------------------------


def era_gaussian(
    raw_log_std: Float[Tensor, "..."],
    target_entropy: float | Float[Tensor, "..."],
    *,
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    mode: Mode = "pin",
    slack: float = -3.0,
    dim: int = -1,
    clamp: bool = True,
) -> Float[Tensor, "..."]:
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
        gap = gap * torch.sigmoid(raw.mean(dim, keepdim=True) - slack)
    return (raw.softmax(dim) * gap + log_std_max).clamp(min=log_std_min)


def era_gaussian_batch(
    raw_log_std: Float[Tensor, "*batch D"],
    target_entropy: float | Float[Tensor, ""],
    *,
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    log_mean_exp_sum: Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, ""]]:
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
    if isinstance(target_entropy, Tensor) and target_entropy.ndim:
        raise ValueError(f"target_entropy {tuple(target_entropy.shape)} must be a scalar: the batch shares one")
    gap = _gaussian_gap(raw, target_entropy, log_std_min, log_std_max, -1, clamp=True)
    if log_mean_exp_sum is None:
        exp_sum = raw.logsumexp(-1)
        log_mean_exp_sum = exp_sum.flatten().logsumexp(0) - math.log(exp_sum.numel())
    # Past e^50 log σ is on its lower bound anyway; the limit keeps the exponential finite in evaluation.
    share = (raw - log_mean_exp_sum).clamp(max=50.0).exp()
    return (share * gap + log_std_max).clamp(min=log_std_min), log_mean_exp_sum


def era_truncated_normal(
    loc: Float[Tensor, "*batch D"],
    raw_log_std: Float[Tensor, "*batch D"],
    target_entropy: float | Float[Tensor, "..."],
    *,
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    low: float = -1.0,
    high: float = 1.0,
    mode: Mode = "pin",
    slack: float = -3.0,
    clamp: bool = True,
) -> Float[Tensor, "*batch D"]:
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

    top = torch.full_like(mu, bounds[1], requires_grad=False)
    most, _, by_mu, *_ = _unit_derivatives(mu.detach(), top, bounds[1])
    most = _implicit(most, (mu, by_mu))
    target = _array(target_entropy, mu, -1) - mu.shape[-1] * log_scale
    gap = target - most.sum(-1, keepdim=True)
    if clamp:
        gap = gap.clamp(max=0.0)
    if _is_floor(mode):
        gap = gap * torch.sigmoid(raw.mean(-1, keepdim=True) - slack)
    entropy = most + gap * raw.softmax(-1)

    root, by_log_std, by_mu = _unit_root(mu.detach(), entropy.detach(), *bounds)
    log_std = _implicit(root, (entropy, 1 / by_log_std), (mu, -by_mu / by_log_std))
    return log_std.clamp(*bounds) + log_scale


def project_gaussian(
    log_std: Float[Tensor, "..."], target_entropy: float | Float[Tensor, "..."], *, dim: int = -1
) -> Float[Tensor, "..."]:
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
    missing = _array(target_entropy, log_std, dim) - gaussian_entropy(log_std, dim).unsqueeze(dim)
    return log_std + missing.clamp(min=0.0) / log_std.shape[dim]


def clamped_share(
    target_entropy: Float[Tensor, "..."], action_dim: int, *, log_std_max: float = 0.0
) -> Float[Tensor, ""]:
    """Share of array targets above what Eq. 11 can reach, which `era_gaussian` clamps: log it beside the floor."""
    return (target_entropy > targets.gaussian_entropy_max(action_dim, log_std_max)).float().mean()


# --- discrete ERA ----------------------------------------------------------------------------------------


def era_softmax(
    logits: Float[Tensor, "..."],
    min_entropy: float,
    *,
    tau: float = 4.0,
    floor: Literal["calibrated", "paper"] = "calibrated",
    inverse: Literal["exact", "paper"] = "exact",
    dim: int = -1,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
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
    n = logits.shape[dim]
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]  # hints lack it; a trace has a tensor here
        n = int(guard_scalar(n))  # a compiler makes a symbol of a size that changes between calls
    options = n, guard_scalar(min_entropy), guard_scalar(tau), floor, inverse
    if mask is not None:
        return _masked_era_softmax(logits, mask, _softmax_kappa_table(*options), inverse, dim)
    least, top = _softmax_kappa_range(*options)
    return _inverse(logits.softmax(dim) * (top - least) + least, inverse)


def _masked_era_softmax(logits: Tensor, mask: Tensor, table: tuple[float, ...], inverse: str, dim: int) -> Tensor:
    """`table` has κ at probability 0 for each number of allowed classes; its first entry is κ at probability 1."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: pass booleans, True for classes that are allowed")
    sizes = zip(mask.shape[::-1], logits.shape[::-1], strict=False)
    if mask.ndim > logits.ndim or any(size != 1 and size != whole for size, whole in sizes):
        raise ValueError(
            f"mask {tuple(mask.shape)} must be of the shape of logits, {tuple(logits.shape)}, or broadcast to it"
        )
    mask = mask.expand(logits.shape)
    least, top = _constant(table, logits)[mask.sum(dim, keepdim=True)], table[0]
    # Finite numbers for what is masked, here and below: a row without any class has gradients of 0, not NaN.
    share = torch.where(mask, logits, torch.finfo(logits.dtype).min).softmax(dim)
    return torch.where(mask, _inverse(share * (top - least) + least, inverse), -torch.inf)


def _inverse(kappa: Tensor, inverse: str) -> Tensor:
    """h⁻¹ of Eq. 15."""
    if inverse == "exact":
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]  # hints lack it
        return _inverse_in_script(kappa) if tracing else _InverseKappa.apply(kappa)
    return _inverse_kappa_paper(kappa)


# A constant to compilers: solved once per (n, floor, τ) and cached in `targets`. `guard_scalar` above keeps its
# arguments from turning into symbols when they change between calls.
_softmax_kappa_range = torch.compiler.assume_constant_result(targets.softmax_kappa_range)
_softmax_kappa_table = torch.compiler.assume_constant_result(targets.softmax_kappa_table)


class _InverseKappa(torch.autograd.Function):
    """h⁻¹(κ) = W₋₁(-κ) by Halley's method, with `dx/dκ = -e^{-x} / (1 + x)` for a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kappa: Tensor) -> Tensor:
        return _inverse_kappa(kappa)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * torch.exp(-x) / (-1 - x)


# The rest is in the part of Python that `torch.jit.script` knows, which has neither `torch.finfo` nor our shapes.


def _inverse_kappa(kappa: Tensor) -> Tensor:
    # With x = -1 - y: y - log(1 + y) = t. The start, from the two ends y ≈ √(2t) + ⅔t and y ≈ t + log t,
    # is good to 0.3 %; one Halley step then reaches single precision, a second one double.
    # In place, because at a thousand classes allocation costs more than arithmetic.
    t = (-1 - kappa.log()).clamp(min=_eps(kappa))
    root = (2 * t).sqrt_()
    bend = 0.173 * root
    y = (bend + 2 / 3).mul_(t).div_(bend.add_(1)).add_(root)
    for _ in range(2 if kappa.dtype == torch.float64 else 1):
        residual = y.log1p().neg_().add_(y).sub_(t)
        # Halley: f' = y/(1+y), f'' = 1/(1+y)²
        y.sub_((1 + y).mul_(y).mul_(residual).mul_(2).div_((2 * y).mul_(y).sub_(residual)))
    return y.neg_().sub_(1)


def _inverse_kappa_paper(kappa: Tensor) -> Tensor:
    """The paper's approximation of h⁻¹(κ), below Eq. 15."""
    log_kappa = kappa.log()
    return 0.75 * log_kappa - 0.25 - torch.sqrt(2 * (-1 - log_kappa).clamp(min=_eps(kappa)))


def _inverse_in_script(kappa: Tensor) -> Tensor:
    """`_InverseKappa` with the same value and first derivative, where no Python object can be written down."""
    x = _inverse_kappa(kappa.detach())
    return x + (kappa - kappa.detach()) * (torch.exp(-x) / (-1 - x))


def _eps(x: Tensor) -> float:
    return 2.220446049250313e-16 if x.dtype == torch.float64 else 1.1920928955078125e-07


def _era_softmax_in_script(logits: Tensor, least: float, top: float, inverse: str) -> Tensor:
    """`era_softmax` on the last axis, with the ends of κ given."""
    if logits.dtype == torch.float16 or logits.dtype == torch.bfloat16:  # scripts know no `in`
        logits = logits.float()
    kappa = logits.softmax(-1) * (top - least) + least
    return _inverse_in_script(kappa) if inverse == "exact" else _inverse_kappa_paper(kappa)


# --- token ERA (language models; PyTorch only) -----------------------------------------------------------


def response_entropy(
    token_entropy: Float[Tensor, "*batch T"], mask: Shaped[Tensor, "*batch T"], top_fraction: float = 0.2
) -> Float[Tensor, "*batch"]:
    """Mean entropy of a response's most uncertain tokens, its forking tokens: H_resp of Eq. 16, in nats.

    Args:
        token_entropy: Entropy of each token, of the *unscaled* logits.
        mask: Nonzero where a token belongs to the response; what stands elsewhere never matters.
        top_fraction: Share of the tokens that count: the `max(1, ⌊top_fraction · length⌋)` largest.

    Returns:
        One number per response; 0 for an empty one.

    Raises:
        ValueError: `top_fraction` outside (0, 1], shapes that differ, integer entropies.
    """
    token_entropy = _floating(token_entropy, "token_entropy")
    if token_entropy.shape != mask.shape:
        raise ValueError(
            f"token_entropy {tuple(token_entropy.shape)} and mask {tuple(mask.shape)} must have the same shape"
        )
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction={top_fraction} must lie in (0, 1]")
    mask = mask != 0
    length = mask.sum(-1, keepdim=True)
    # In float32 0.29 · 100 is 29; in float64 it is a little less.
    count = (length.float() * top_fraction).floor().clamp(min=1.0)
    ranked = torch.where(mask, token_entropy, -torch.inf).sort(-1, descending=True).values
    counts = torch.arange(mask.shape[-1], device=mask.device) < torch.minimum(count, length)
    return torch.where(counts, ranked, 0.0).sum(-1) / count[..., 0]


def era_token_scale(
    response_entropy: Float[Tensor, "..."],
    advantages: Float[Tensor, "..."],
    *,
    omega_low: float = 0.45,
    omega_high: float = 3.0,
    k: float = 2.0,
    min_advantage: float = 0.0,
) -> Float[Tensor, "..."]:
    """Scale s of each row of logits in the update (Eq. 16): `z' = s z`.

    s is k where `H_resp < omega_low`, 1/k where `H_resp > omega_high`, both only where `A > 0`, and 1 elsewhere.
    Decide it once per rollout, from the policy that sampled: old and new log-probs must share it.

    Args:
        response_entropy: H_resp in nats, [B], from `response_entropy`.
        advantages: A, one per response, [B], or one per token, [B, T].
        omega_low: ω_low in nats.
        omega_high: ω_high in nats, which may be inf.
        k: k > 1; 2 in the paper.
        min_advantage: A must be positive *and* at least this: 0 for the paper; 1 is what the release did, which
            wrote A into an integer buffer.

    Returns:
        s, shaped as `advantages`, without a gradient.

    Raises:
        ValueError: k ≤ 1, crossed or NaN ω, a negative `min_advantage`, shapes that do not belong together,
            integer input.
    """
    entropy, advantages = _floating(response_entropy, "response_entropy"), _floating(advantages, "advantages")
    if not 1 < k < math.inf:
        raise ValueError(f"k={k} must be a finite number above 1")
    if not omega_low < omega_high:
        raise ValueError(f"omega_low={omega_low} must be below omega_high={omega_high}")
    if not 0 <= min_advantage < math.inf:
        raise ValueError(f"min_advantage={min_advantage} must be finite and not negative")
    entropy, advantages = _spread(entropy.detach(), "response_entropy", advantages.detach(), "advantages")
    scale = torch.where(entropy < omega_low, k, torch.where(entropy > omega_high, 1 / k, 1.0)).to(advantages.dtype)
    return torch.where((advantages > 0) & (advantages >= min_advantage), scale, 1.0)


def scale_advantages(advantages: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Advantages that undo the size, though not the sense, of `era_token_scale` (Eq. 17): `A' = A / s`.

    Args:
        advantages: A, one per response, [B], or one per token, [B, T].
        scale: s, likewise; where one of them has an axis of tokens, so has the result.

    Returns:
        A'.

    Raises:
        ValueError: Shapes that do not belong together, integer input.
    """
    advantages, scale = _floating(advantages, "advantages"), _floating(scale, "scale")
    if scale.ndim > advantages.ndim:
        scale, advantages = _spread(advantages, "advantages", scale, "scale")[::-1]
    else:
        scale, advantages = _spread(scale, "scale", advantages, "advantages")
    return advantages / scale


def top_k_logits(
    logits: Float[Tensor, "*rows V"],
    k: int,
    *,
    rows: Bool[Tensor, "*rows"] | None = None,
    targets: Int[Tensor, "*rows"] | None = None,
) -> Float[Tensor, "*rows V"]:
    """Logits with all but the k largest at -inf, and with the sampled token's own, so that it has a log-prob.

    Exactly k are kept, or k + 1 where the target is not one of them. Which of several equal ones is open, but for
    the target, which comes first.

    Args:
        logits: Any shape; the last axis is the vocabulary.
        k: How many are kept; 20 in the paper's first stage. More than there are keeps all.
        rows: Where to filter: `advantages > 0` is the paper. None filters everywhere.
        targets: The sampled tokens. None keeps none beside the k largest.

    Returns:
        Logits, shaped as `logits`.

    Raises:
        ValueError: k < 1, shapes that differ, integer logits.
    """
    logits = _floating(logits, "logits")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    for name, value in (("rows", rows), ("targets", targets)):
        if value is not None and value.shape != logits.shape[:-1]:
            raise ValueError(f"{name} {tuple(value.shape)} must have the shape {tuple(logits.shape[:-1])}")
    best = logits.detach().topk(min(k, logits.shape[-1]), -1)
    kept = best.indices
    if targets is not None:
        target = targets[..., None]
        tie = (kept != target).all(-1, keepdim=True) & (logits.gather(-1, target) == best.values[..., -1:])
        kept = torch.cat([kept[..., :-1], torch.where(tie, target, kept[..., -1:]), target], -1)
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, kept, True)
    return torch.where(keep if rows is None else keep | ~rows[..., None], logits, -torch.inf)


def token_log_probs(
    hidden: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "*rows"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    scale: float | Float[Tensor, "..."] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int | None = None,
    top_k_rows: Bool[Tensor, "*rows"] | None = None,
    ignore_index: int = -100,
    impl: Literal["auto", "torch", "triton", "naive"] = "auto",
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Log-probs of tokens under ERA's rows of scaled logits (Eq. 16), and entropies of the policy that samples.

    `z = softcap · tanh((W h + b) / softcap) / temperature`, soft cap before temperature; the log-prob is
    `s z_y - logsumexp(s z)`, its sum over the k largest logits where `top_k` says so, and the entropy is that of
    `softmax(z)`, neither scaled nor filtered. The logits are never held: they are computed tile by tile, again in
    the backward pass. Both results are differentiable, once, in hidden, weight and bias; a weight that needs no
    gradient costs none. Half-precision input is summed and returned in float32. Under `torch.compile` it is one
    operator; under `torch.func.vmap` only `impl="naive"` runs, and leading axes do the same.

    Args:
        hidden: h, the last hidden states.
        weight: W, of the head or the embedding that it is tied to.
        targets: y, the sampled tokens.
        bias: b of the head.
        scale: s, a number, or shaped as `targets`, or with axes of size 1; a constant to the gradient. None is 1.
        temperature: Of sampling.
        softcap: Bound of the logits of some models; None for none.
        top_k: Drops logits as `top_k_logits` does. None for none.
        top_k_rows: Where it does: `advantages > 0` is the paper. None is everywhere.
        ignore_index: The target of padding: log-prob 0, entropy 0 and no gradient, whatever `hidden` holds there.
            Any other target outside of the vocabulary has the log-prob NaN.
        impl: `"torch"` as above, `"triton"` with its kernels, `"naive"` with all logits at once, for comparison.
            `"auto"` is Triton on CUDA, if it is installed and the input is not float64, and PyTorch elsewhere.

    Returns:
        Log-probs and entropies, in nats, shaped as `targets`.

    Raises:
        ValueError: Shapes that do not belong together, a scale, temperature or softcap ≤ 0, k < 1, `top_k_rows`
            without `top_k`, integer input, an unknown `impl` or one that cannot run there.
    """
    head = _Head(hidden, weight, targets, bias, temperature, softcap, top_k, top_k_rows, ignore_index, impl)
    if scale is None:
        log_probs, _, entropy = head.log_probs([])
    else:
        _, log_probs, entropy = head.log_probs([scale])
        log_probs = log_probs[0]
    return log_probs, entropy


def token_log_probs_all_scales(
    hidden: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "*rows"],
    *,
    k: float = 2.0,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int | None = None,
    top_k_rows: Bool[Tensor, "*rows"] | None = None,
    ignore_index: int = -100,
    impl: Literal["auto", "torch", "triton", "naive"] = "auto",
) -> tuple[Float[Tensor, "scales=3 *rows"], Float[Tensor, "*rows"]]:
    """`token_log_probs` at every scale that `era_token_scale` may choose, in one sweep over the vocabulary.

    For where the scale is known only after the entropy: choose with `log_probs_at`. Gradients flow through
    whatever is made of the three.

    Args:
        hidden: As in `token_log_probs`, like all that is not named here.
        weight: W.
        targets: y.
        k: k > 1, that of `era_token_scale`.
        bias: b.
        temperature: Of sampling.
        softcap: Bound of the logits.
        top_k: How many logits are kept.
        top_k_rows: Where.
        ignore_index: The target of padding.
        impl: How.

    Returns:
        Log-probs at the scales 1, k and 1/k, in this order, and entropies, in nats.

    Raises:
        ValueError: k ≤ 1, and as `token_log_probs`.
    """
    if not 1 < k < math.inf:
        raise ValueError(f"k={k} must be a finite number above 1")
    head = _Head(hidden, weight, targets, bias, temperature, softcap, top_k, top_k_rows, ignore_index, impl)
    unit, scaled, entropy = head.log_probs([k, 1 / k])
    return torch.cat([unit[None], scaled]), entropy


def log_probs_at(
    log_probs: Float[Tensor, "scales=3 *rows"], scale: Float[Tensor, "..."]
) -> Float[Tensor, "*rows"]:
    """Of the log-probs of `token_log_probs_all_scales`, those at the scale that was chosen for each row.

    Args:
        log_probs: At the scales 1, k and 1/k.
        scale: From `era_token_scale`, with axes of size 1 where rows share it: above 1 is k, below 1 is 1/k.

    Returns:
        Log-probs, without the first axis.

    Raises:
        ValueError: Shapes that do not belong together.
    """
    if log_probs.ndim < 1 or len(log_probs) != 3:
        raise ValueError(
            f"log_probs {tuple(log_probs.shape)} must have the three scales 1, k, 1/k on its first axis"
        )
    scale = _row_values(scale, "scale", log_probs.shape[1:])
    unit, sharp, flat = log_probs
    return torch.where(scale > 1, sharp, torch.where(scale < 1, flat, unit))


@dataclass(frozen=True)
class _Head:
    """The arguments of the last layer, checked."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None
    temperature: float
    softcap: float | None
    top_k: int | None
    top_k_rows: Tensor | None
    ignore_index: int
    impl: str

    def __post_init__(self) -> None:
        for name, x in (("hidden", self.hidden), ("weight", self.weight), ("bias", self.bias)):
            if x is not None:
                _floating(x[..., :0], name)
        hidden, weight, targets = (tuple(x.shape) for x in (self.hidden, self.weight, self.targets))
        if len(weight) != 2 or hidden[-1:] != weight[1:]:
            raise ValueError(f"hidden {hidden} and weight {weight} must be [..., D] and [V, D]")
        if targets != hidden[:-1] or self.targets.is_floating_point():
            raise ValueError(f"targets {targets} of {self.targets.dtype} must be integers of shape {hidden[:-1]}")
        if self.bias is not None and tuple(self.bias.shape) != weight[:1]:
            raise ValueError(f"bias {tuple(self.bias.shape)} must have the shape {weight[:1]}")
        for name, number in (("temperature", self.temperature), ("softcap", self.softcap)):
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name}={number} must be positive and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1: pass None to keep all logits")
        if self.top_k_rows is not None:
            if self.top_k is None:
                raise ValueError("top_k_rows says where to keep the largest logits, top_k must say how many")
            if tuple(self.top_k_rows.shape) != targets:
                raise ValueError(f"top_k_rows {tuple(self.top_k_rows.shape)} must have the shape {targets}")
        if self.impl not in ("auto", "torch", "triton", "naive"):
            raise ValueError(f"impl={self.impl!r} must be 'auto', 'torch', 'triton' or 'naive'")
        if self.impl == "triton" and (problem := self._no_triton()):
            raise ValueError(f"impl='triton' cannot be used: {problem}; pass impl='torch'")

    def log_probs(self, scales: list[float | Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs at scale 1, at `scales` on a first axis, and entropies."""
        shape, wide = self.targets.shape, torch.promote_types(self.hidden.dtype, self.weight.dtype)
        wide = torch.promote_types(wide, torch.float32)
        rows = self.hidden.new_ones((0, *shape), dtype=wide)
        if scales:
            rows = torch.stack([_row_values(s, "scale", shape, wide, self.hidden.device) for s in scales])
        ignored = self.targets == self.ignore_index
        # Padding is emptied first: its NaN would reach the gradient of the weight as 0 · NaN.
        hidden = torch.where(ignored[..., None], 0.0, self.hidden)
        targets = torch.where(ignored, 0, self.targets)
        if self.impl == "naive":
            with torch.autocast(hidden.device.type, enabled=False):
                unit, scaled, entropy = self._naive(hidden.to(wide), targets, rows)
        else:
            filtered = None if self.top_k_rows is None else self.top_k_rows.flatten()
            found = tokens.token_log_probs(
                hidden.reshape(targets.numel(), hidden.shape[-1]),
                self.weight,
                self.bias,
                targets.flatten().long(),
                rows.reshape(len(rows), targets.numel()),
                temperature=self.temperature,
                softcap=self.softcap,
                top_k=self.top_k,
                top_k_rows=filtered,
                triton=self.impl == "triton" or (self.impl == "auto" and self._prefers_triton()),
            )
            unit, scaled, entropy = (x.reshape((*x.shape[:-1], *shape)) for x in found)
        return tuple(torch.where(ignored, 0.0, x) for x in (unit, scaled, entropy))  # type: ignore[return-value]

    def _naive(self, hidden: Tensor, targets: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        logits = logits / self.temperature
        known = (targets >= 0) & (targets < logits.shape[-1])
        targets = torch.where(known, targets, 0)
        kept = (
            logits
            if self.top_k is None
            else top_k_logits(logits, self.top_k, rows=self.top_k_rows, targets=targets)
        )

        def log_prob(scale: Tensor) -> Tensor:
            scaled = scale[..., None] * kept
            found = scaled.gather(-1, targets[..., None])[..., 0] - scaled.logsumexp(-1)
            return torch.where(known, found, torch.nan)

        scaled = torch.stack([log_prob(s) for s in scales]) if len(scales) else scales
        return log_prob(torch.ones_like(logits[..., 0])), scaled, entropy_from_logits(logits)

    def _no_triton(self) -> str | None:
        if torch.float64 in (self.hidden.dtype, self.weight.dtype):
            return "its kernels compute in float32"
        return triton_tokens.problem(self.hidden.device.type)

    def _prefers_triton(self) -> bool:
        return self.hidden.device.type == "cuda" and self._no_triton() is None


def _spread(few: Tensor, few_name: str, many: Tensor, many_name: str) -> tuple[Tensor, Tensor]:
    """Both, ready to broadcast: the first may lack the axis of tokens."""
    if few.ndim < many.ndim:
        few = few.reshape(few.shape + (1,) * (many.ndim - few.ndim))
    if few.ndim != many.ndim or any(a not in (1, b) for a, b in zip(few.shape, many.shape, strict=True)):
        raise ValueError(
            f"{few_name} {tuple(few.shape)} and {many_name} {tuple(many.shape)} must be [B] or [B, T], with one B"
        )
    return few, many


def _row_values(
    value: float | Tensor,
    name: str,
    shape: torch.Size,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """A number per row, without a gradient."""
    if not isinstance(value, Tensor):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive and finite")
        return torch.full(shape, value, dtype=dtype, device=device)
    fits = value.ndim == len(shape) and all(a in (1, b) for a, b in zip(value.shape, shape, strict=True))
    if value.ndim and not fits:
        raise ValueError(
            f"{name} {tuple(value.shape)} must have the shape {tuple(shape)}, with 1 where rows share it, as in "
            f"{name}[:, None]"
        )
    return value.detach().to(dtype or value.dtype).expand(shape)


# --- the truncated Gaussian on [-1, 1] -------------------------------------------------------------------


def _unit(loc: Tensor, low: float, high: float) -> tuple[Tensor, float]:
    """Mean in the coordinates where the action runs over [-1, 1], and the log of their scale."""
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    half = 0.5 * (high - low)
    return (loc.clamp(low, high) - 0.5 * (low + high)) / half, math.log(half)


def _unit_derivatives(mu: Tensor, log_std: Tensor, log_std_max: float) -> tuple[Tensor, ...]:
    """H of the Gaussian truncated to [-1, 1] for |μ| ≤ 1, with H_s, H_μ, H_ss / H_s and H_sμ, where s = log σ.

    With t = (x - μ) / √2σ, of density ∝ exp(-t²) on [-a, b], they are cumulants: `H_s = 2 Var(t²)`,
    `H_μ = Cov(t², t) √2/σ`, `H_ss = 4 κ(t², t², t²) - 4 H_s`, `H_sμ = κ(t², t², t) 2√2/σ - 4 H_μ`. Both ends have
    opposite signs, so that nothing cancels in the normaliser; but the cumulants in closed form do cancel where the
    range is short, and are integrated there: a branch that `log_std_max`, if it rules it out, saves.
    """
    scale = torch.exp(-log_std.clamp(min=-40.0)) * math.sqrt(0.5)  # σ < e⁻⁴⁰ would overflow, and is as good as 0
    a, b = (1 + mu) * scale, (1 - mu) * scale
    aa, bb = a * a, b * b
    mass = torch.erf(a) + torch.erf(b)
    norm = 2 / math.sqrt(math.pi) / mass
    # Integration by parts leaves the moments of t as sums (even) and differences (odd) over the ends.
    a0, b0 = torch.exp(-aa) * norm, torch.exp(-bb) * norm
    a2, b2 = aa * a0, bb * b0
    a4, b4 = aa * a2, bb * b2
    edge1, edge3, edge5 = a * a0 + b * b0, a * a2 + b * b2, a * a4 + b * b4
    square = 1 - edge1
    entropy = log_std + mass.log() + (targets.LOG_SQRT_2PIE - math.log(2)) - 0.5 * edge1
    by_log_std = 1 - 0.5 * edge1 * (1 + edge1) - edge3
    cov = 0.5 * (a0 - b0) * (1 + edge1) + (a2 - b2)
    third = square * (15 - square * square - 6 * by_log_std) - 10 * edge3 - 4 * edge5  # 8 κ(t², t², t²)
    mixed = 2 * (a4 - b4) + (a0 - b0) * (2 * square - by_log_std - 0.5 * square * square) - 2 * square * cov
    bend = 0.5 * third / by_log_std - 4

    if log_std_max > math.log(2):  # else a + b = √2/σ ≥ √½
        nodes, weights = (_constant(c, mu) for c in _LEGENDRE_UNIT)
        short = a + b < math.sqrt(0.5)
        t = torch.where(short, a + b, 0.5)[..., None] * nodes - torch.where(short, a, 0.25)[..., None]
        p = torch.exp(-t * t) * weights
        norm = p.sum(-1)
        p = p / norm[..., None]
        square = (p * t * t).sum(-1)
        v = t * t - square[..., None]
        w = t - (p * t).sum(-1)[..., None]
        var = (p * v * v).sum(-1)
        entropy = torch.where(short, math.log(2) + norm.log() + square, entropy)
        by_log_std = torch.where(short, 2 * var, by_log_std)
        bend = torch.where(short, 2 * (p * v**3).sum(-1) / var - 4, bend)
        cov_short = (p * v * w).sum(-1)
        cov = torch.where(short, 2 * cov_short, cov)
        mixed = torch.where(short, 4 * (p * v * v * w).sum(-1) - 8 * cov_short, mixed)
    return entropy, by_log_std, cov * scale, bend, mixed * scale


def _unit_root(
    mu: Tensor, entropy: Tensor, log_std_min: float, log_std_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """log σ at which the Gaussian truncated to [-1, 1] has the given entropy, with ∂H/∂log σ and ∂H/∂μ there.

    The start has the right form at both ends, log σ = H - log √(2πe) where σ is small and -¼ log(log 2 - H) where
    the policy is nearly uniform; what the bounds add between them was fitted by least squares, reweighted towards
    the largest error, over |μ| ≤ 1 and log σ ≤ 1.2: to 0.026. One step of Halley leaves 1e-4, the second 1e-12;
    its slopes are carried over to the root by their own derivatives.
    """
    entropy = entropy.clamp(min=min(log_std_min, 0.0))  # below it σ is under its bound, whatever μ
    x = 0.25 * torch.exp(2 * entropy.clamp(min=-40.0))  # (e^H / 2)²
    z = (x / (x + (1 - mu.abs()) ** 2)) ** 4  # nearness of the bound
    bound = z * (1.874 + z * (1.213 * z - 2.397)) + x * (0.097 * z - 0.177)
    nearly = (1 - x * x).clamp(min=torch.finfo(mu.dtype).eps)
    log_std = entropy - targets.LOG_SQRT_2PIE - 0.25 * nearly.log() + bound
    for _ in range(2):
        log_std = log_std.clamp(log_std_min - 2, log_std_max)
        value, by_log_std, by_mu, bend, mixed = _unit_derivatives(mu, log_std, log_std_max)
        newton = (entropy - value) / by_log_std
        step = newton / (1 + 0.5 * bend * newton).clamp(min=0.5)  # ½ is reached where the entropy is out of reach
        log_std = log_std + step
    by_log_std = by_log_std * (1 + bend * step).clamp(min=0.25)
    return log_std.clamp(log_std_min - 2, log_std_max + 1), by_log_std, by_mu + mixed * step


# --- small parts -----------------------------------------------------------------------------------------


def _floating(x: Tensor, name: str) -> Tensor:
    """`x` in float32 or wider."""
    if not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}: pass floating-point values, such as {name}.float()")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _number(target: float | Tensor) -> float | None:
    """The target if it is a plain number, None if it is an array."""
    return None if isinstance(target, Tensor) else float(target)


def _array(target: float | Tensor, like: Tensor, dim: int) -> float | Tensor:
    """The target, ready to broadcast against `like`, which has the axis `dim` more."""
    if not isinstance(target, Tensor) or target.ndim == 0:
        return target
    shape = list(like.shape)
    del shape[dim]
    if list(target.shape) != shape:
        raise ValueError(f"target_entropy {tuple(target.shape)} must be a scalar or of shape {tuple(shape)}")
    return target.unsqueeze(dim)


def _is_floor(mode: str) -> bool:
    if mode not in ("pin", "floor"):
        raise ValueError(f"mode={mode!r} must be 'pin' or 'floor'")
    return mode == "floor"


def _gaussian_gap(
    raw: Tensor, target: float | Tensor, log_std_min: float, log_std_max: float, dim: int, clamp: bool
) -> Tensor | float:
    """K of Eq. 11: what the target leaves below the largest entropy, ≤ 0."""
    action_dim = raw.shape[dim]
    targets.check_gaussian(_number(target), action_dim, log_std_min, log_std_max)
    gap = _array(target, raw, dim) - targets.gaussian_entropy_max(action_dim, log_std_max)
    return gap.clamp(max=0.0) if clamp and isinstance(gap, Tensor) else gap


def _implicit(value: Tensor, *slopes: tuple[Tensor, Tensor]) -> Tensor:
    """`value`, with the derivative `slope` in each `x` of the pairs (x, slope)."""
    for x, slope in slopes:
        value = value + slope * (x - x.detach())
    return value


def _constant(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _log_sech_squared(u: Tensor) -> Tensor:
    """log(1 - tanh² u) without cancellation: `2 (log 2 - |u| - log(1 + e^{-2|u|}))`."""
    return 2 * (math.log(2) - u.abs() - torch.log1p(torch.exp(-2 * u.abs())))


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
