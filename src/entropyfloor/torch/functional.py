"""The activations as functions, for PyTorch. `entropyfloor.jax.functional` is the same page for JAX.

Entropies are in nats. Equations are those of arXiv 2510.08549; what is marked *ours* is not in the paper.
Half-precision input is computed and returned in float32: rounding the result back would break the floor.
Every function runs eager, under `torch.compile(fullgraph=True)`, `torch.func.vmap` and autocast. Inverses are
solved in a fixed number of steps outside the graph and differentiated, any number of times, by the implicit
function theorem.
The token functions, in PyTorch only, are in `entropyfloor.torch.tokens` and can be imported from here too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_scalar

from entropyfloor import targets
from entropyfloor.backends import Mode, axis_size, is_floor
from entropyfloor.checks import check_number
from entropyfloor.torch.entropies import (
    entropy_from_logits,
    gaussian_entropy,
    tanh_normal_entropy,
    truncated_normal_entropy,
    unit_coordinates,
    unit_entropy_max,
    unit_log_std,
)
from entropyfloor.torch.lambert import inverse_kappa, inverse_kappa_in_script
from entropyfloor.torch.numerics import as_float, constant, is_tracing
from entropyfloor.torch.tokens import (
    era_token_scale,
    log_probs_at,
    response_entropy,
    scale_advantages,
    token_log_probs,
    token_log_probs_all_scales,
    top_k_logits,
    top_tokens,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

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
    "top_tokens",
    "truncated_normal_entropy",
]

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
        slack: Start of `mode="floor"`: at m = 0 the entropy is `sigmoid(slack)` of the way from H0 to its maximum.
        dim: The axis of action dimensions.
        clamp: False lets an infeasible array target push σ above its bound, to reproduce C.1.1 of the paper.

    Returns:
        log σ, shaped as `raw_log_std`.

    Raises:
        ValueError: Infeasible or NaN target, crossed bounds, shapes that differ, unknown mode, integer input.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> log_std = F.era_gaussian(torch.randn(256, 6), target_entropy=-3.0)
        >>> bool((F.gaussian_entropy(log_std) > -3.0 - 1e-4).all())
        True
    """
    raw = as_float(raw_log_std, "raw_log_std")
    gap = _gaussian_gap(raw, target_entropy, log_std_min, log_std_max, dim, clamp)
    if is_floor(mode):
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
        log_mean_exp_sum: log M for evaluation, from training statistics; None computes it from this batch.

    Returns:
        log σ shaped as `raw_log_std`, and the log M that was used.

    Raises:
        ValueError: Infeasible or NaN target, crossed bounds, no batch axis, an empty batch without
            `log_mean_exp_sum`, integer input, a target per state.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> raw = torch.linspace(-1.0, 1.0, 12).reshape(2, 6)
        >>> log_std, log_mean_exp_sum = F.era_gaussian_batch(raw, target_entropy=-3.0)
        >>> round(F.gaussian_entropy(log_std).mean().item(), 4)
        -3.0
    """
    raw = as_float(raw_log_std, "raw_log_std")
    if raw.ndim < 2:
        raise ValueError(f"raw_log_std of shape {tuple(raw.shape)} has no batch axis: pass [batch, action_dim]")
    if isinstance(target_entropy, Tensor) and target_entropy.ndim:
        raise ValueError(f"target_entropy {tuple(target_entropy.shape)} must be a scalar: the batch shares one")
    gap = _gaussian_gap(raw, target_entropy, log_std_min, log_std_max, -1, clamp=True)
    if log_mean_exp_sum is None:
        exp_sum = raw.logsumexp(-1)
        if exp_sum.numel() == 0:
            raise ValueError(
                f"raw_log_std of shape {tuple(raw.shape)} is an empty batch: pass log_mean_exp_sum, or some states"
            )
        log_mean_exp_sum = exp_sum.flatten().logsumexp(0) - math.log(exp_sum.numel())
    # Beyond e^50 log σ is on its lower bound anyway. The limit keeps the exponential finite in evaluation.
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
) -> Float[Tensor, "*batch D"]:
    """log σ of a *truncated* Gaussian whose own entropy meets the target in every state (*ours*).

    Eq. 11 in the coordinates of the acting policy: with `h_max,i = H_TN(μ_i, σ_max)` and
    `h_i = h_max,i + (H0 - Σ_j h_max,j) softmax(raw)_i`, σ_i is the root of `H_TN(μ_i, σ_i) = h_i`. No residual
    entropy δ is needed.

    Args:
        loc: Mean before truncation, clamped into [low, high].
        raw_log_std: Network output, shaped as `loc`; the last axis is that of action dimensions.
        target_entropy: H0 in nats for the whole action. A number is checked against the worst state, in which
            every `loc` is on a bound. An array, shaped as `loc` without its last axis, is clamped to what each
            state can reach.
        log_std_min: Lower bound of log σ; it can only lift the entropy.
        log_std_max: Upper bound of log σ.
        low: Lower bound of the action.
        high: Upper bound of the action.
        mode: `"pin"` or `"floor"`, as in `era_gaussian`.
        slack: As in `era_gaussian`.

    Returns:
        log σ, shaped as `loc`.

    Raises:
        ValueError: Infeasible or NaN target, crossed bounds, shapes that differ, unknown mode, integer input.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> loc, raw = torch.tensor([0.0, 0.9]), torch.zeros(2)
        >>> log_std = F.era_truncated_normal(loc, raw, target_entropy=-0.5)
        >>> round(F.truncated_normal_entropy(loc, log_std).sum().item(), 4)
        -0.5
    """
    loc, raw = as_float(loc, "loc"), as_float(raw_log_std, "raw_log_std")
    if loc.shape != raw.shape:
        raise ValueError(f"loc {tuple(loc.shape)} and raw_log_std {tuple(raw.shape)} must have the same shape")
    number = _number(target_entropy)
    targets.check_truncated_normal(number, axis_size(loc.shape, -1, "loc"), log_std_min, log_std_max, low, high)
    mu, log_scale = unit_coordinates(loc, low, high)
    bounds = float(log_std_min) - log_scale, float(log_std_max) - log_scale

    most = unit_entropy_max(mu, bounds[1])
    target = _array(target_entropy, mu, -1) - mu.shape[-1] * log_scale
    gap = target - most.sum(-1, keepdim=True)
    if number is None:  # a number was checked
        gap = gap.clamp(max=0.0)
    if is_floor(mode):
        gap = gap * torch.sigmoid(raw.mean(-1, keepdim=True) - slack)
    entropy = torch.addcmul(most, gap, raw.softmax(-1))

    # `hardtanh` is `clamp` with a backward pass of one kernel.
    return torch.nn.functional.hardtanh(unit_log_std(mu, entropy, *bounds), *bounds) + log_scale


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

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> log_std = F.project_gaussian(torch.tensor([-4.0, -1.0]), target_entropy=0.5)
        >>> round(F.gaussian_entropy(log_std).item(), 4)
        0.5
    """
    log_std = as_float(log_std, "log_std")
    targets.check_finite(_number(target_entropy))
    action_dim = axis_size(log_std.shape, dim, "log_std")
    missing = _array(target_entropy, log_std, dim) - gaussian_entropy(log_std, dim).unsqueeze(dim)
    return log_std + missing.clamp(min=0.0) / action_dim


def clamped_share(
    target_entropy: Float[Tensor, "..."], action_dim: int, *, log_std_max: float = 0.0
) -> Float[Tensor, ""]:
    """Share of array targets above the largest entropy of Eq. 11, which `era_gaussian` clamps: to be logged.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.clamped_share(torch.tensor([0.0, 9.0]), action_dim=2)
        tensor(0.5000)
    """
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
    This is Eq. 15 with its terms rearranged so that nothing cancels in float32.

    A logit of -inf counts as a very small one: the floor gives its class some probability. To exclude classes,
    such as illegal actions, pass `mask` (*ours*): they get -inf, and the others what they would get without them.
    If too few classes are left to reach the floor, they become equally likely, which is their largest entropy.
    +inf, NaN, and -inf in all classes make their row NaN, as in any softmax. Other rows have finite gradients.

    Args:
        logits: Network output z, n classes along `dim`.
        min_entropy: Floor in nats, 0 < floor < log n; below 1 + log(n T) with `floor="paper"`.
        tau: τ > e; 4 in the paper.
        floor: `"calibrated"` (*ours*): the least entropy over all logits is `min_entropy`. `"paper"`: Eq. 15 as
            printed, whose least entropy is far above it.
        inverse: `"exact"`: the lower Lambert branch. `"paper"`: its approximation in the paper.
        dim: The axis of classes.
        mask: True for allowed classes, broadcastable to `logits`; None allows all. A row without any gets -inf.

    Returns:
        z', shaped as `logits`; take its softmax as usual.

    Raises:
        ValueError: n < 2, an infeasible floor, τ ≤ e, an unknown option, integer input, a mask that is not
            boolean or does not broadcast to `logits`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> logits = F.era_softmax(torch.tensor([100.0, 0.0, 0.0]), min_entropy=0.3)
        >>> round(F.entropy_from_logits(logits).item(), 4)
        0.3
    """
    logits = as_float(logits, "logits")
    n = axis_size(logits.shape, dim, "logits")
    check_number("min_entropy", min_entropy)
    if not is_tracing():  # a trace has a tensor here
        n = int(guard_scalar(n))  # a compiler makes a symbol of a size that changes between calls
    options = n, guard_scalar(float(min_entropy)), guard_scalar(float(tau)), floor, inverse
    if mask is not None:
        return _masked_era_softmax(logits, mask, _softmax_kappa_table(*options), inverse, dim)
    least, top = _softmax_kappa_range(*options)
    return inverse_kappa(logits.softmax(dim) * (top - least) + least, inverse)


def _masked_era_softmax(logits: Tensor, mask: Tensor, table: tuple[float, ...], inverse: str, dim: int) -> Tensor:
    """`era_softmax` under a mask. `table` is that of `targets.softmax_kappa_table`; its first entry is T."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask is of type {type(mask).__name__}: pass a tensor, such as torch.as_tensor(mask)")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: pass booleans, True for classes that are allowed")
    sizes = zip(mask.shape[::-1], logits.shape[::-1], strict=False)
    if mask.ndim > logits.ndim or any(size != 1 and size != whole for size, whole in sizes):
        raise ValueError(
            f"mask {tuple(mask.shape)} must be of the shape of logits, {tuple(logits.shape)}, or broadcast to it"
        )
    mask = mask.expand(logits.shape)
    least, top = constant(table, logits)[mask.sum(dim, keepdim=True)], table[0]
    # Masked entries stay finite until the last step, so that a row without any class has gradients of 0, not NaN.
    share = torch.where(mask, logits, torch.finfo(logits.dtype).min).softmax(dim)
    return torch.where(mask, inverse_kappa(share * (top - least) + least, inverse), -torch.inf)


# Constants to compilers, solved once per (n, floor, τ) and cached in `targets`. `guard_scalar` in `era_softmax`
# keeps their arguments from becoming symbols when they change between calls.
_softmax_kappa_range = torch.compiler.assume_constant_result(targets.softmax_kappa_range)
_softmax_kappa_table = torch.compiler.assume_constant_result(targets.softmax_kappa_table)


def era_softmax_in_script(logits: Tensor, least: float, top: float, inverse: str) -> Tensor:
    """`era_softmax` on the last axis for `torch.jit.script`, from both ends of κ."""
    if logits.dtype == torch.float16 or logits.dtype == torch.bfloat16:  # scripts know no `in`
        logits = logits.float()
    return inverse_kappa_in_script(logits.softmax(-1) * (top - least) + least, inverse)


# --- targets ---------------------------------------------------------------------------------------------


def _number(target: float | Tensor) -> float | None:
    """`target` if it is a plain number, None if it is an array."""
    if isinstance(target, Tensor):
        return None
    check_number("target_entropy", target)
    return float(target)


def _array(target: float | Tensor, like: Tensor, dim: int) -> float | Tensor:
    """`target` in float32 or wider with the axis `dim` inserted, so that it broadcasts against `like`."""
    if not isinstance(target, Tensor):
        return float(target)  # it may be a number of NumPy
    target = target.to(torch.promote_types(target.dtype, torch.float32))
    if target.ndim == 0:
        return target
    shape = list(like.shape)
    del shape[dim]
    if list(target.shape) != shape:
        raise ValueError(f"target_entropy {tuple(target.shape)} must be a scalar or of shape {tuple(shape)}")
    return target.unsqueeze(dim)


def _gaussian_gap(
    raw: Tensor, target: float | Tensor, log_std_min: float, log_std_max: float, dim: int, clamp: bool
) -> Tensor | float:
    """K of Eq. 11, ≤ 0: the target minus the largest entropy."""
    action_dim = axis_size(raw.shape, dim, "raw_log_std")
    targets.check_gaussian(_number(target), action_dim, log_std_min, log_std_max)
    gap = _array(target, raw, dim) - targets.gaussian_entropy_max(action_dim, log_std_max)
    return gap.clamp(max=0.0) if clamp and isinstance(gap, Tensor) else gap
