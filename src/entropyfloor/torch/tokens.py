"""Token ERA for language models, in PyTorch: response entropies, row scales, and log-probabilities of tokens.

Entropies are in nats. Equations are those of arXiv 2510.08549. Half-precision input is computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from entropyfloor.torch.entropies import entropy_from_logits
from entropyfloor.torch.kernels import tokens, triton_tokens
from entropyfloor.torch.kernels.bundles import Layer, Options
from entropyfloor.torch.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped


def response_entropy(
    token_entropy: Float[Tensor, "*batch T"], mask: Shaped[Tensor, "*batch T"], top_fraction: float = 0.2
) -> Float[Tensor, "*batch"]:
    """Mean entropy of the most uncertain tokens of a response, its forking tokens: H_resp of Eq. 16, in nats.

    Args:
        token_entropy: Entropy of each token, of the *unscaled* logits.
        mask: Nonzero where a token belongs to the response; other entries of `token_entropy` are ignored.
        top_fraction: Share of tokens in the mean: the `max(1, ⌊top_fraction · length⌋)` with the highest entropy.

    Returns:
        One number per response; 0 for an empty one.

    Raises:
        ValueError: `top_fraction` outside (0, 1], shapes that differ, integer entropies.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.response_entropy(torch.tensor([[0.1, 2.0, 0.3, 9.0]]), mask=torch.tensor([[1, 1, 1, 0]]))
        tensor([2.])
    """
    ranked, _, is_top = _ranked(token_entropy, mask, top_fraction)
    return torch.where(is_top, ranked, 0.0).sum(-1) / is_top.sum(-1).clamp(min=1)


def top_tokens(
    token_entropy: Float[Tensor, "*batch T"], mask: Shaped[Tensor, "*batch T"], top_fraction: float = 0.2
) -> Bool[Tensor, "*batch T"]:
    """The tokens that `response_entropy` is the mean of, the forking tokens of each response; the first of equals.

    Args:
        token_entropy: As in `response_entropy`.
        mask: As in `response_entropy`.
        top_fraction: As in `response_entropy`.

    Returns:
        True at these tokens.

    Raises:
        ValueError: As `response_entropy`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.top_tokens(torch.tensor([[0.1, 2.0, 0.3, 9.0]]), mask=torch.tensor([[1, 1, 1, 0]]))
        tensor([[False,  True, False, False]])
    """
    _, order, is_top = _ranked(token_entropy, mask, top_fraction)
    return torch.zeros_like(is_top).scatter(-1, order, is_top)


def era_token_scale(
    response_entropy: Float[Tensor, "..."],
    advantages: Float[Tensor, "..."],
    *,
    omega_low: float | Float[Tensor, "..."] = 0.45,
    omega_high: float = 3.0,
    k: float = 2.0,
    min_advantage: float = 0.0,
    signs: Literal["positive", "both"] = "positive",
) -> Float[Tensor, "..."]:
    """Scale s of each row of logits in the update (Eq. 16): `z' = s z`.

    s is k where `H_resp < omega_low`, 1/k where `H_resp > omega_high`, both only where `A > 0`, and 1 elsewhere.
    Compute it once per rollout, from the policy that sampled: old and new log-probs must share it.

    With `π'_s ∝ π^s` it is `log π'_s = s log π + (s - 1) H_s`, H_s the Rényi entropy of order s. So the update at
    scale s is the plain one times s, plus a bonus of weight `A (s - 1)` on H_s.

    Args:
        response_entropy: H_resp in nats, [B], from `response_entropy`.
        advantages: A, one per response, [B], or one per token, [B, T].
        omega_low: ω_low in nats, one number, or one per response; inf where every response counts as below.
        omega_high: ω_high in nats, which may be inf.
        k: k > 1; 2 in the paper.
        min_advantage: A must be positive *and* at least this: 0 in the paper; 1 reproduces the released code,
            which stored A in an integer buffer.
        signs: Signs of A with a scale: "positive" in the paper; "both" scales where A < 0 too, by the size of A.

    Returns:
        s, shaped as `advantages`, without a gradient.

    Raises:
        ValueError: k ≤ 1, numbers ω that are crossed or NaN, a negative `min_advantage`, unknown signs, shapes
            that do not belong together, integer input.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.era_token_scale(torch.tensor([0.2, 0.2, 1.0]), advantages=torch.tensor([1.0, -1.0, 1.0]))
        tensor([2., 1., 1.])
    """
    entropy, advantages = as_float(response_entropy, "response_entropy"), as_float(advantages, "advantages")
    if not 1 < k < math.inf:
        raise ValueError(f"k={k} must be a finite number above 1")
    if isinstance(omega_low, Tensor):
        if omega_low.shape != entropy.shape:
            raise ValueError(
                f"omega_low {tuple(omega_low.shape)} must be a number, or shaped as response_entropy "
                f"{tuple(entropy.shape)}"
            )
    elif not (omega_low < omega_high or omega_low == omega_high == math.inf):
        raise ValueError(f"omega_low={omega_low} must be below omega_high={omega_high}")
    if signs not in ("positive", "both"):
        raise ValueError(f"signs={signs!r} must be positive or both")
    if not 0 <= min_advantage < math.inf:
        raise ValueError(f"min_advantage={min_advantage} must be finite and not negative")
    scale = torch.where(entropy < omega_low, k, torch.where(entropy > omega_high, 1 / k, 1.0))
    scale, advantages = _spread(scale, "response_entropy", advantages.detach(), "advantages")
    size = advantages.abs() if signs == "both" else advantages
    return torch.where((size > 0) & (size >= min_advantage), scale.to(advantages.dtype), 1.0)


def scale_advantages(advantages: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Advantages divided by the scale of their row (Eq. 17): `A' = A / s`.

    Args:
        advantages: A, one per response, [B], or one per token, [B, T].
        scale: s, [B] or [B, T].

    Returns:
        A', [B], or [B, T] if either argument has an axis of tokens.

    Raises:
        ValueError: Shapes that do not belong together, integer input.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.scale_advantages(torch.tensor([1.0, -1.0, 1.0]), scale=torch.tensor([2.0, 1.0, 0.5]))
        tensor([ 0.5000, -1.0000,  2.0000])
    """
    advantages, scale = as_float(advantages, "advantages"), as_float(scale, "scale")
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
    """Logits with all but the k largest set to -inf. The sampled token keeps its own, so that it has a log-prob.

    Exactly k are kept, or k + 1 where the target is not one of them. Among equal logits the target is kept first;
    which of the others is kept is not specified.

    Args:
        logits: Any shape; the last axis is the vocabulary.
        k: Number of logits kept; 20 in the first stage of the paper. A larger k than the vocabulary keeps all.
        rows: Rows to filter: `advantages > 0` in the paper. None filters all.
        targets: The sampled tokens. None keeps only the k largest.

    Returns:
        Logits, shaped as `logits`.

    Raises:
        ValueError: k < 1, shapes that differ, integer logits, rows that are not boolean.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> F.top_k_logits(torch.tensor([3.0, 1.0, 2.0, 0.0]), k=2)
        tensor([3., -inf, 2., -inf])
    """
    logits = as_float(logits, "logits")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    for name, value in (("rows", rows), ("targets", targets)):
        if value is not None and value.shape != logits.shape[:-1]:
            raise ValueError(f"{name} {tuple(value.shape)} must have the shape {tuple(logits.shape[:-1])}")
    if rows is not None and rows.dtype != torch.bool:
        raise ValueError(f"rows has dtype {rows.dtype}: pass booleans, True for rows to filter")
    best, kept = logits.detach().topk(min(k, logits.shape[-1]), -1)
    if targets is not None:
        target = targets[..., None]
        tie = (kept != target).all(-1, keepdim=True) & (logits.gather(-1, target) == best[..., -1:])
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
    """Log-probs of tokens under the scaled logits of ERA (Eq. 16), and entropies of the unscaled policy.

    `z = softcap · tanh((W h + b) / softcap) / temperature`, soft cap before temperature. The log-prob is
    `s z_y - logsumexp(s z)`, where `top_k` limits the sum to the k largest logits. The entropy is that of
    `softmax(z)`, neither scaled nor filtered. The logits are never stored: they are computed in tiles, and again
    in the backward pass. Both results have first derivatives in hidden, weight and bias; a weight that needs no
    gradient costs none. Half-precision input is summed and returned in float32. Under `torch.compile` it is one
    operator. Under `torch.func.vmap` only `impl="naive"` runs; leading axes serve the same purpose.
    On a CPU with matrix units for bfloat16 (AMX) a bfloat16 layer is multiplied on them. During these products
    `torch.backends.mkldnn.matmul.fp32_precision` is "bf16", which is a setting of the process: float32 products
    that other threads compute at the same time may round their factors to bfloat16.

    Args:
        hidden: h, the last hidden states: at each place those that predict its target, so of the token before it.
        weight: W, of the head or the embedding that it is tied to.
        targets: y, the sampled tokens.
        bias: b of the head.
        scale: s, a number, or shaped as `targets` or with axes of size 1; it gets no gradient. None is 1.
        temperature: Temperature of sampling.
        softcap: Bound of the logits, which some models have; None for none.
        top_k: Number of logits kept, as by `top_k_logits`; None keeps all.
        top_k_rows: Rows to filter: `advantages > 0` in the paper. None filters all.
        ignore_index: The target that marks padding: log-prob 0, entropy 0 and no gradient, for any `hidden`.
            Other targets outside of the vocabulary have the log-prob NaN.
        impl: `"torch"` computes in tiles, `"triton"` too, with its kernels, `"naive"` with all logits at once, for
            comparison. `"auto"` is Triton on CUDA, if it is installed and no input is float64, else PyTorch.

    Returns:
        Log-probs and entropies, in nats, shaped as `targets`.

    Raises:
        ValueError: Shapes that do not belong together, a number ≤ 0 as scale, temperature or softcap, k < 1,
            `top_k_rows` without `top_k` or not boolean, integer input, an `impl` that is unknown or cannot run.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> hidden, weight, sampled = torch.randn(4, 7, 16), torch.randn(50, 16), torch.randint(50, (4, 7))
        >>> log_probs, entropy = F.token_log_probs(hidden, weight, sampled, scale=2.0)
        >>> log_probs.shape, entropy.shape
        (torch.Size([4, 7]), torch.Size([4, 7]))
    """
    head = _Head(hidden, weight, targets, bias, temperature, softcap, top_k, top_k_rows, ignore_index, impl)
    unit, scaled, entropy = head.log_probs([] if scale is None else [scale])
    return (unit if scale is None else scaled[0]), entropy


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
    """`token_log_probs` at every scale of `era_token_scale`, in one sweep over the vocabulary.

    It is for scales that depend on the entropy: `log_probs_at` chooses among its results. All are differentiable.

    Args:
        hidden: h. The arguments but k are those of `token_log_probs`.
        weight: W.
        targets: y.
        k: k > 1 of `era_token_scale`.
        bias: b.
        temperature: Temperature of sampling.
        softcap: Bound of the logits.
        top_k: Number of logits kept.
        top_k_rows: Rows to filter.
        ignore_index: The target that marks padding.
        impl: Implementation.

    Returns:
        Log-probs at the scales 1, k and 1/k, in this order, and entropies of the unscaled policy, in nats.

    Raises:
        ValueError: k ≤ 1, and as `token_log_probs`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> hidden, weight, sampled = torch.randn(4, 7, 16), torch.randn(50, 16), torch.randint(50, (4, 7))
        >>> log_probs, entropy = F.token_log_probs_all_scales(hidden, weight, sampled, k=2.0)
        >>> log_probs.shape, entropy.shape
        (torch.Size([3, 4, 7]), torch.Size([4, 7]))
    """
    if not 1 < k < math.inf:
        raise ValueError(f"k={k} must be a finite number above 1")
    head = _Head(hidden, weight, targets, bias, temperature, softcap, top_k, top_k_rows, ignore_index, impl)
    unit, scaled, entropy = head.log_probs([k, 1 / k])
    return torch.cat([unit[None], scaled]), entropy


def log_probs_at(
    log_probs: Float[Tensor, "scales=3 *rows"], scale: Float[Tensor, "..."]
) -> Float[Tensor, "*rows"]:
    """The log-probs of `token_log_probs_all_scales` at the scale of each row.

    Args:
        log_probs: Log-probs at the scales 1, k and 1/k.
        scale: From `era_token_scale`, with axes of size 1 where rows share it: above 1 selects k, below 1 1/k.

    Returns:
        Log-probs, without the first axis.

    Raises:
        ValueError: Shapes that do not belong together.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F
        >>> at_1_k_and_1_over_k = torch.tensor([[-1.0, -1.0], [-0.2, -0.2], [-2.0, -2.0]])
        >>> F.log_probs_at(at_1_k_and_1_over_k, scale=torch.tensor([2.0, 1.0]))
        tensor([-0.2000, -1.0000])
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
    """Checked arguments of `token_log_probs`."""

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
        places = {"hidden": "last_hidden_state", "weight": "lm_head.weight", "bias": "lm_head.bias"}
        for name, place in places.items():
            if (x := getattr(self, name)) is not None:
                if not isinstance(x, Tensor):
                    raise ValueError(f"{name} is a {type(x).__name__}: pass a tensor, such as {place}")
                as_float(x[..., :0], name)
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
        if (rows := self.top_k_rows) is not None:
            if self.top_k is None:
                raise ValueError("top_k_rows selects rows to filter: pass top_k too, the number of logits kept")
            if tuple(rows.shape) != targets or rows.dtype != torch.bool:
                raise ValueError(f"top_k_rows {tuple(rows.shape)} of {rows.dtype} must be bool of shape {targets}")
        if self.impl not in ("auto", "torch", "triton", "naive"):
            raise ValueError(f"impl={self.impl!r} must be 'auto', 'torch', 'triton' or 'naive'")
        if self.impl == "triton" and (problem := self._no_triton()):
            raise ValueError(f"impl='triton' cannot be used: {problem}; pass impl='torch'")

    def log_probs(self, scales: list[float | Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs at scale 1, log-probs at `scales` along a new first axis, and entropies."""
        shape, wide = self.targets.shape, torch.promote_types(self.hidden.dtype, self.weight.dtype)
        wide = torch.promote_types(wide, torch.float32)
        rows = self.hidden.new_ones((0, *shape), dtype=wide)
        if scales:
            rows = torch.stack([_row_values(s, "scale", shape, wide, self.hidden.device) for s in scales])
        ignored = self.targets == self.ignore_index
        # Padding is set to 0 first: a NaN in it would reach the gradient of the weight as 0 · NaN.
        hidden = torch.where(ignored[..., None], 0.0, self.hidden)
        targets = torch.where(ignored, 0, self.targets)
        if self.impl == "naive":
            with torch.autocast(hidden.device.type, enabled=False):
                unit, scaled, entropy = self._naive(hidden.to(wide), targets, rows)
        else:
            auto = self.impl == "auto" and hidden.device.type == "cuda" and self._no_triton() is None
            triton = self.impl == "triton" or auto
            results = tokens.token_log_probs(
                Layer(hidden.reshape(targets.numel(), hidden.shape[-1]), self.weight, self.bias),
                targets.flatten().long(),
                rows.reshape(len(rows), targets.numel()),
                None if self.top_k_rows is None else self.top_k_rows.flatten(),
                Options(self.temperature, self.softcap or 0.0, min(self.top_k or 0, len(self.weight)), triton),
            )
            unit, scaled, entropy = (x.reshape((*x.shape[:-1], *shape)) for x in results)
        return tuple(torch.where(ignored, 0.0, x) for x in (unit, scaled, entropy))  # type: ignore[return-value]

    def _naive(self, hidden: Tensor, targets: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        logits = logits / self.temperature
        known = (targets >= 0) & (targets < logits.shape[-1])
        targets = torch.where(known, targets, 0)
        kept = logits
        if self.top_k is not None:
            kept = top_k_logits(logits, self.top_k, rows=self.top_k_rows, targets=targets)

        def log_prob(scale: Tensor) -> Tensor:
            scaled = scale[..., None] * kept
            value = scaled.gather(-1, targets[..., None])[..., 0] - scaled.logsumexp(-1)
            return torch.where(known, value, torch.nan)

        scaled = torch.stack([log_prob(s) for s in scales]) if len(scales) else scales
        return log_prob(torch.ones_like(logits[..., 0])), scaled, entropy_from_logits(logits)

    def _no_triton(self) -> str | None:
        """Why Triton's kernels cannot run here, None if they can."""
        if torch.float64 in (self.hidden.dtype, self.weight.dtype):
            return "its kernels compute in float32"
        return triton_tokens.problem(self.hidden.device.type)


def _ranked(token_entropy: Tensor, mask: Tensor, top_fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies from the highest to the lowest, the tokens they are of, and whether these are at the top."""
    token_entropy = as_float(token_entropy, "token_entropy")
    if token_entropy.shape != mask.shape:
        raise ValueError(
            f"token_entropy {tuple(token_entropy.shape)} and mask {tuple(mask.shape)} must have the same shape"
        )
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction={top_fraction} must lie in (0, 1]")
    mask = mask != 0
    length = mask.sum(-1, keepdim=True)
    # In float32 the product 0.29 · 100 is 29; in float64 it is slightly less.
    count = (length.float() * top_fraction).floor().clamp(min=1.0)
    ranked, order = torch.where(mask, token_entropy, -torch.inf).sort(dim=-1, descending=True, stable=True)
    return ranked, order, torch.arange(mask.shape[-1], device=mask.device) < torch.minimum(count, length)


def _spread(few: Tensor, few_name: str, many: Tensor, many_name: str) -> tuple[Tensor, Tensor]:
    """Both tensors, `few` with the axis of tokens added where it lacks it, so that they broadcast."""
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
    """`value` as one number per row, without a gradient."""
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
