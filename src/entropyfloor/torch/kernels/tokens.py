"""Log-probabilities and entropies of tokens without their logits: a sweep over the vocabulary, and one back.

The logits `z = softcap · tanh((W h + b) / softcap) / temperature` exist only as a tile of some rows and some
of the vocabulary. The way there keeps, for each row, the largest logit m, `Σ e^{s (z - m)}` for every scale s and
`Σ e^{z - m} (z - m)`; the way back computes the tiles again. Both are opaque operators to compilers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropyfloor.torch.kernels import triton_tokens

CPU_TILE, TILE = (512, 2048), (2048, 4096)
"""Rows and columns of a tile: on a CPU a few MB, which stay in its caches."""
LOWEST = -1e30
"""What stands for -inf below the largest logit: its exponential is 0 and their product is not NaN."""
HALF = torch.float16, torch.bfloat16


class Shape(NamedTuple):
    """How `W h + b` becomes logits."""

    temperature: float
    softcap: float
    """0 for none."""


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scales: Tensor,
    *,
    temperature: float,
    softcap: float | None,
    top_k: int | None,
    top_k_rows: Tensor | None,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [N] at scale 1, log-probs [S, N] at the rows of `scales` [S, N], and entropies [N]."""
    options = temperature, softcap or 0.0, min(top_k or 0, weight.shape[0]), triton
    return _TokenLogProbs.apply(hidden, weight, bias, targets, scales, top_k_rows, *options)[:3]


class _TokenLogProbs(torch.autograd.Function):
    """`log π' = s (z_y - m) - log Σ e^{s (z - m)}` and `H = log Σ e^{z - m} - Σ e^{z - m} (z - m) / Σ e^{z - m}`.

    What the backward pass needs is returned as well, which is how transforms of functions want it.
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
        swept = _sweep(hidden, weight, bias, targets, scales, *options)
        _, gap, sums, moment, kept_gap, _ = swept
        scales = _with_one(scales)
        normaliser = sums.log()
        entropy = normaliser[0] - moment / sums[0]
        if kept_gap.shape[1]:
            kept = (scales[:, :, None] * kept_gap).logsumexp(-1)
            normaliser = kept if top_k_rows is None else torch.where(top_k_rows, kept, normaliser)
        log_probs = scales * gap - normaliser
        return log_probs[0].clone(), log_probs[1:].clone(), entropy, normaliser, *swept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[6:]
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)  # the way back leaves out what nobody asked for
        ctx.save_for_backward(*inputs[:6], *output[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_unit, by_scaled, by_entropy, *_ = grads
        hidden, weight, bias, targets, scales, rows, normaliser, *swept = ctx.saved_tensors
        top, gap, sums, moment, kept_gap, kept_index = swept
        temperature, softcap, _, triton = ctx.options
        scales = _with_one(scales)
        parts = torch.zeros_like(scales[:1]) if by_unit is None else by_unit[None]
        pull = scales * torch.cat([parts, torch.zeros_like(scales[1:]) if by_scaled is None else by_scaled])

        # ∂ log π'/∂z = s (1[v = y] - π'): a point at the target, and a dense part,
        # or more points where it is filtered.
        index, value, z_below = targets[:, None], pull.sum(0)[:, None], gap[:, None]
        dense = pull / -sums
        if kept_gap.shape[1]:
            kept = -(pull[:, :, None] * torch.exp(scales[:, :, None] * kept_gap - normaliser[:, :, None])).sum(0)
            if rows is not None:
                kept = torch.where(rows[:, None], kept, 0.0)
            index, value = torch.cat([index, kept_index], 1), torch.cat([value, kept], 1)
            z_below = torch.cat([z_below, kept_gap], 1)
            dense = torch.zeros_like(dense) if rows is None else torch.where(rows, 0.0, dense)
        if softcap:
            bent = (z_below + top[:, None]) * (temperature / softcap)
            value = torch.where(value == 0, 0.0, value * (1 - bent * bent))  # an unused point has z = -inf
        by_moment = torch.zeros_like(top) if by_entropy is None else by_entropy / -sums[0]

        used = by_unit is not None, by_scaled is not None, by_entropy is not None
        needed = ctx.needs_input_grad[:3]
        rates = dense / temperature, by_moment / temperature, moment / sums[0], value / temperature
        back = _sweep_back if torch.compiler.is_compiling() else _Back.apply
        found = back(
            hidden, weight, bias, scales, top, *rates, index, temperature, softcap, *used, *needed, triton
        )
        return *(grad if need else None for grad, need in zip(found, needed, strict=True)), *[None] * 7


class _Back(torch.autograd.Function):
    """The way back, eager: `torch.func.grad` records it too, and must be told that nothing comes of it."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _sweep_back(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        raise NotImplementedError("token_log_probs has first derivatives only: pass impl='naive' for more")


def _with_one(scales: Tensor) -> Tensor:
    """Scale 1 above the others."""
    return torch.cat([scales.new_ones(1, scales.shape[1]), scales])


# --- tiles -----------------------------------------------------------------------------------------------


class _Head:
    """What is multiplied, tile by tile, and the room to do it in.

    Half precision is multiplied as it is where the result can be had in float32, and widened elsewhere.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        mixed = torch.promote_types(hidden.dtype, weight.dtype)
        self.wide = torch.float32 if mixed in HALF else mixed
        both_half = hidden.dtype == weight.dtype and mixed in HALF
        self.factor = mixed if both_half and _wide_products(hidden.device) else self.wide
        self.hidden, self.weight, self.bias = hidden.to(self.factor), weight, bias
        self.height, self.width = CPU_TILE if hidden.device.type == "cpu" else TILE
        self.buffers: list[Tensor] = []

    def columns(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Parts of the vocabulary, with their weights and biases."""
        for start in range(0, len(self.weight), self.width):
            part = slice(start, min(start + self.width, len(self.weight)))
            bias = None if self.bias is None else self.bias[part].to(self.wide)
            yield part, self.weight[part].to(self.factor), bias

    def rows(self) -> Iterator[slice]:
        """Parts of the batch."""
        for start in range(0, len(self.hidden), self.height):
            yield slice(start, min(start + self.height, len(self.hidden)))

    def tile(self, rows: slice, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`W h + b` there."""
        hidden = self.hidden[rows]
        tile = self.room(0, len(hidden), len(weight))
        if self.factor == self.wide:
            torch.mm(hidden, weight.T, out=tile)
        else:
            torch.mm(hidden, weight.T, out_dtype=self.wide, out=tile)
        return tile if bias is None else tile.add_(bias)

    def room(self, which: int, height: int, width: int) -> Tensor:
        """A buffer of the size of a tile, always the same for the same number."""
        while len(self.buffers) <= which:
            size = min(self.height, len(self.hidden)) * min(self.width, len(self.weight))
            self.buffers.append(self.hidden.new_empty(size, dtype=self.wide))
        return self.buffers[which][: height * width].view(height, width)

    def add_product(self, total: Tensor, one: Tensor, other: Tensor) -> None:
        """`total += one @ other`, summed in the precision of `total`."""
        if one.dtype == total.dtype:
            total.addmm_(one, other)
        else:
            torch.addmm(total, one, other, out_dtype=total.dtype, out=total)


def _wide_products(device: torch.device) -> bool:
    """Whether half-precision matrices can be multiplied into float32: on CUDA, from PyTorch 2.8 on."""
    return device.type == "cuda" and torch.version.hip is None and hasattr(torch.ops.aten.addmm, "dtype_out")


# --- there -----------------------------------------------------------------------------------------------


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scales: Tensor,
    temperature: float,
    softcap: float,
    top_k: int,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """m [N], z_y - m [N], `Σ e^{s (z - m)}` [1 + S, N], `Σ e^{z - m} (z - m)` [N]; kept z - m and columns.

    Kept are the `top_k` largest logits, and in one more column the target, at -inf if it is among them.
    """
    head, shape = _Head(hidden, weight, bias), Shape(temperature, softcap)
    top, chosen, sums, moment, kept, kept_index = _room_for_sweep(hidden, scales, top_k)
    top.fill_(LOWEST)
    chosen.fill_(torch.nan)  # what a target outside of the vocabulary is left with
    sums.zero_(), moment.zero_(), kept.fill_(-torch.inf), kept_index.zero_()
    fold = triton_tokens.fold if triton else _fold
    for columns, part, part_bias in head.columns():
        for rows in head.rows():
            tile = head.tile(rows, part, part_bias)
            room = head.room(0 if triton else 1, *tile.shape)
            state = chosen[rows], top[rows], sums[:, rows], moment[rows]
            if top_k:
                _to_logits(tile, shape)
                _fold_largest(tile, kept[rows, :top_k], kept_index[rows, :top_k], columns.start)
            after = Shape(1.0, 0.0) if top_k else shape
            fold(tile, room, targets[rows] - columns.start, scales[:, rows], *state, after, bias is not None)
    if top_k:
        _keep_target(kept, kept_index, chosen, targets)
        kept -= top[:, None]
    return top, chosen - top, sums, moment, kept, kept_index


def _room_for_sweep(
    hidden: Tensor, scales: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, kept = len(hidden), top_k + 1 if top_k else 0
    top, chosen, moment = (scales.new_empty(count) for _ in range(3))
    index = torch.empty(count, kept, dtype=torch.long, device=hidden.device)
    return top, chosen, scales.new_empty(1 + len(scales), count), moment, scales.new_empty(count, kept), index


def _to_logits(tile: Tensor, shape: Shape) -> None:
    """In place."""
    if shape.softcap:
        tile.div_(shape.softcap).tanh_().mul_(shape.softcap / shape.temperature)
    elif shape.temperature != 1:
        tile.div_(shape.temperature)


def _below(logits: Tensor, top: Tensor, masked: bool) -> None:
    """Their distance from the largest, in place. Only a bias can make it infinite."""
    logits.sub_(top[:, None])
    if masked:
        logits.clamp_(min=LOWEST)


def _fold(
    tile: Tensor,
    room: Tensor,
    targets: Tensor,
    scales: Tensor,
    chosen: Tensor,
    top: Tensor,
    sums: Tensor,
    moment: Tensor,
    shape: Shape,
    masked: bool,
) -> None:
    """Add a tile of `W h + b` to what is known of its rows, in place. The tile is used up."""
    _to_logits(tile, shape)
    inside = (targets >= 0) & (targets < tile.shape[1])
    found = tile.gather(1, targets.clamp(0, tile.shape[1] - 1)[:, None])[:, 0]
    chosen.copy_(torch.where(inside, found, chosen))
    highest = torch.maximum(top, tile.amax(1))
    drop = top - highest
    _below(tile, highest, masked)
    for scale, total in zip(scales, sums[1:], strict=True):
        torch.mul(tile, scale[:, None], out=room).exp_()
        total.mul_((scale * drop).exp()).add_(room.sum(1))
    torch.exp(tile, out=room)
    moment.add_(sums[0] * drop).mul_(drop.exp())  # what was counted from the old top, counted from the new one
    sums[0].mul_(drop.exp()).add_(room.sum(1))
    moment.add_(tile.mul_(room).sum(1))
    top.copy_(highest)


def _fold_largest(logits: Tensor, values: Tensor, index: Tensor, start: int) -> None:
    """The largest logits so far, in descending order, and their columns."""
    count = values.shape[1]
    more = logits.topk(min(count, logits.shape[1]), sorted=False)
    best = torch.cat([values, more.values], 1).topk(count)
    index.copy_(torch.cat([index, more.indices + start], 1).gather(1, best.indices))
    values.copy_(best.values)


def _keep_target(values: Tensor, index: Tensor, chosen: Tensor, targets: Tensor) -> None:
    """Fill the last column with the target, unless it is among the others, which are in descending order."""
    absent = (index[:, :-1] != targets[:, None]).all(1)
    tie = absent & (chosen == values[:, -2])  # of equal logits the target's is kept
    index[:, -2] = torch.where(tie, targets, index[:, -2])
    index[:, -1] = targets
    values[:, -1] = torch.where(absent & ~tie, chosen, -torch.inf)


# --- and back --------------------------------------------------------------------------------------------


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
    index: Tensor,
    temperature: float,
    softcap: float,
    unit: bool,
    scaled: bool,
    entropy: bool,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, each empty unless it is needed.

    A logit's is `Σ_s dense_s e^{s (z - m)} + by_moment e^{z - m} (z - m - mean)`, and `value` more at `index`.
    """
    head, shape = _Head(hidden, weight, bias), Shape(temperature, softcap)
    by_hidden, by_weight, by_bias = _room_for_back(
        hidden, weight, hidden if bias is None else bias, need_hidden, need_weight, need_bias
    )
    total_hidden = by_hidden.to(head.wide).zero_()
    gradient = triton_tokens.gradient if triton else _gradient
    for columns, part, part_bias in head.columns():
        # Sums over rows are finished here, so that half precision is rounded once.
        total_weight = by_weight[columns].to(head.wide).zero_()
        total_bias = by_bias[columns].to(head.wide).zero_()
        for rows in head.rows():
            tile = head.tile(rows, part, part_bias)
            rooms = tuple(head.room(i, *tile.shape) for i in range(1, 1 if triton else 4))
            terms = scales[:, rows], top[rows], dense[:, rows], by_moment[rows], mean[rows]
            tile = gradient(tile, rooms, *terms, (unit, scaled, entropy), shape, bias is not None)
            local = index[rows] - columns.start
            inside = (local >= 0) & (local < len(part))
            tile.scatter_add_(1, local.clamp(0, len(part) - 1), torch.where(inside, value[rows], 0.0))
            if need_bias:
                total_bias += tile.sum(0)
            factor = tile.to(head.factor)
            if need_hidden:
                head.add_product(total_hidden[rows], factor, part)
            if need_weight:
                head.add_product(total_weight, factor.T, head.hidden[rows])
        if need_weight and total_weight.dtype != by_weight.dtype:
            by_weight[columns] = total_weight
        if need_bias:
            by_bias[columns] = total_bias
    return total_hidden.to(hidden.dtype), by_weight, by_bias


def _room_for_back(
    hidden: Tensor, weight: Tensor, bias: Tensor, need_hidden: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    needed = ((hidden, need_hidden), (weight, need_weight), (bias, need_bias))
    return tuple(torch.empty_like(x) if need else x.new_empty(0) for x, need in needed)  # type: ignore[return-value]


def _gradient(
    tile: Tensor,
    rooms: tuple[Tensor, ...],
    scales: Tensor,
    top: Tensor,
    dense: Tensor,
    by_moment: Tensor,
    mean: Tensor,
    used: tuple[bool, bool, bool],
    shape: Shape,
    masked: bool,
) -> Tensor:
    """What is dense of the gradient of a tile of `W h + b`. The tile is used up."""
    unit, scaled, entropy = used
    below, total, term = rooms
    if shape.softcap:
        tile.div_(shape.softcap).tanh_()
        torch.mul(tile, shape.softcap / shape.temperature, out=below)
    else:
        below = tile
        _to_logits(below, shape)
    _below(below, top, masked)
    terms = 0
    for scale, rate in zip(scales[1:], dense[1:], strict=True) if scaled else ():
        out = term if terms else total
        torch.mul(below, scale[:, None], out=out).exp_().mul_(rate[:, None])
        terms += 1
        if terms > 1:
            total.add_(term)
    if unit or entropy:
        out = term if terms else total
        torch.exp(below, out=out)
        if entropy:
            out.mul_(below.mul_(by_moment[:, None]).add_((dense[0] - by_moment * mean)[:, None]))
        else:
            out.mul_(dense[0][:, None])
        if terms:
            total.add_(term)
        terms += 1
    if not terms:
        total.zero_()
    return total.addcmul_(total, tile.square_(), value=-1) if shape.softcap else total


# --- operators -------------------------------------------------------------------------------------------

_sweep = torch.library.custom_op("entropyfloor::sweep", sweep, mutates_args=())
_sweep_back = torch.library.custom_op("entropyfloor::sweep_back", sweep_back, mutates_args=())


@_sweep.register_fake
def _fake_sweep(
    hidden: Tensor,
    weight: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    targets: Tensor,  # noqa: ARG001
    scales: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    return _room_for_sweep(hidden, scales, options[2])


@_sweep_back.register_fake
def _fake_sweep_back(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return _room_for_back(hidden, weight, hidden if bias is None else bias, *rest[-4:-1])
