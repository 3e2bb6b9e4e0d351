"""Log-probabilities and entropies of tokens without their logits, as an operator with first derivatives.

The logits `z = softcap · tanh((W h + b) / softcap) / temperature` exist only as one tile of rows and columns at a
time. The forward sweep keeps, for each row, the largest logit m, `Σ e^{s (z - m)}` for every scale s and
`Σ e^{z - m} (z - m)`. The backward sweep computes the tiles again. Compilers see each sweep as one operator.
"""

from __future__ import annotations

from typing import Any, Sequence  # noqa: UP035  # PyTorch 2.6 knows no other in operators

import torch
from torch import Tensor

from entropyfloor.torch.kernels import tiles
from entropyfloor.torch.kernels.bundles import Layer, Needed, Options, Points, Rates, Swept, Used


def token_log_probs(
    layer: Layer, targets: Tensor, scales: Tensor, top_k_rows: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [N] at scale 1, log-probs [S, N] at the rows of `scales` [S, N], and entropies [N]."""
    return _TokenLogProbs.apply(*layer, targets, scales, top_k_rows, *options)[:3]


class _TokenLogProbs(torch.autograd.Function):
    """`log π' = s (z_y - m) - log Σ e^{s (z - m)}` and `H = log Σ e^{z - m} - Σ e^{z - m} (z - m) / Σ e^{z - m}`.

    The tensors that the backward pass needs are results too, as transforms of functions require.
    """

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scales: Tensor,
        top_k_rows: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, ...]:
        swept = Swept(*_sweep(hidden, weight, bias, targets, scales, top_k_rows, *options))
        scales = _with_unit_scale(scales)
        normaliser = swept.sums.log()
        entropy = normaliser[0] - swept.moment / swept.sums[0]
        if swept.kept_gap.shape[1]:
            kept = (scales[:, :, None] * swept.kept_gap).logsumexp(-1)
            normaliser = kept if top_k_rows is None else torch.where(top_k_rows, kept, normaliser)
        log_probs = scales * swept.gap - normaliser
        return log_probs[0].clone(), log_probs[1:].clone(), entropy, normaliser, *swept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[6:]
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)  # the backward pass skips results without a gradient
        ctx.save_for_backward(*inputs[:6], *output[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_unit, by_scaled, by_entropy, *_ = grads
        hidden, weight, bias, targets, scales, rows, normaliser, *swept_tensors = ctx.saved_tensors
        swept, options = Swept(*swept_tensors), Options(*ctx.options)
        top, sums = swept.top, swept.sums
        scales = _with_unit_scale(scales)
        unit = torch.zeros_like(scales[:1]) if by_unit is None else by_unit[None]
        pull = scales * torch.cat([unit, torch.zeros_like(scales[1:]) if by_scaled is None else by_scaled])

        # ∂ log π'/∂z = s (1[v = y] - π'): a point at the target and a dense part. Filtered rows have points for
        # all kept logits and no dense part.
        column, value, z_below = targets[:, None], pull.sum(0)[:, None], swept.gap[:, None]
        dense = pull / -sums
        if swept.kept_gap.shape[1]:
            exponent = scales[:, :, None] * swept.kept_gap - normaliser[:, :, None]
            kept = -(pull[:, :, None] * torch.exp(exponent)).sum(0)
            if rows is not None:
                kept = torch.where(rows[:, None], kept, 0.0)
            column, value = torch.cat([column, swept.kept_index], 1), torch.cat([value, kept], 1)
            z_below = torch.cat([z_below, swept.kept_gap], 1)
            dense = torch.zeros_like(dense) if rows is None else torch.where(rows, 0.0, dense)
        temperature, softcap = options.temperature, options.softcap
        if softcap:
            tanh = (z_below + top[:, None]) * (temperature / softcap)
            value = torch.where(value == 0, 0.0, value * (1 - tanh * tanh))  # an unused point has z = -inf
        by_moment = torch.zeros_like(top) if by_entropy is None else by_entropy / -sums[0]

        used = Used(by_unit is not None, by_scaled is not None, by_entropy is not None)
        needed = Needed(*ctx.needs_input_grad[:3])
        rates = Rates(top, dense / temperature, by_moment / temperature, swept.moment / sums[0])
        points = Points(value / temperature, column)
        layer = Layer(hidden, weight, bias)
        sweep = _sweep_back if torch.compiler.is_compiling() else _Backward.apply
        gradients = sweep(*layer, scales, *rates, *points, *options, list(used), list(needed))
        return *(grad if need else None for grad, need in zip(gradients, needed, strict=True)), *[None] * 7


class _Backward(torch.autograd.Function):
    """The backward sweep in eager mode, where `torch.func.grad` records it. It has no derivative of its own."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _sweep_back(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        raise NotImplementedError("token_log_probs has first derivatives only: pass impl='naive' for more")


def _with_unit_scale(scales: Tensor) -> Tensor:
    """Scale 1, then `scales`."""
    return torch.cat([scales.new_ones(1, scales.shape[1]), scales])


# --- operators -------------------------------------------------------------------------------------------
#
# Operators take tensors and numbers one by one. These two functions are the only place that lists them all.


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scales: Tensor,
    top_k_rows: Tensor | None,
    temperature: float,
    softcap: float,
    top_k: int,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`tiles.forward`."""
    options = Options(temperature, softcap, top_k, triton)
    return tuple(tiles.forward(Layer(hidden, weight, bias), targets, scales, top_k_rows, options))  # type: ignore[return-value]


def sweep_back(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scales: Tensor,
    top: Tensor,
    dense: Tensor,
    by_moment: Tensor,
    mean: Tensor,
    value: Tensor,
    column: Tensor,
    temperature: float,
    softcap: float,
    top_k: int,
    triton: bool,
    used: Sequence[bool],
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """`tiles.backward`."""
    layer, rates, points = Layer(hidden, weight, bias), Rates(top, dense, by_moment, mean), Points(value, column)
    options = Options(temperature, softcap, top_k, triton)
    return tiles.backward(layer, scales, rates, points, options, Used(*used), Needed(*needed))


_sweep = torch.library.custom_op("entropyfloor::sweep", sweep, mutates_args=())
_sweep_back = torch.library.custom_op("entropyfloor::sweep_back", sweep_back, mutates_args=())


@_sweep.register_fake
def _fake_sweep(*args: Any) -> tuple[Tensor, ...]:
    layer, scales, options = Layer(*args[:3]), args[4], Options(*args[6:])
    return tuple(tiles.empty_results(layer, scales, options.top_k))


@_sweep_back.register_fake
def _fake_sweep_back(*args: Any) -> tuple[Tensor, ...]:
    return tiles.empty_gradients(Layer(*args[:3]), Needed(*args[-1]))
