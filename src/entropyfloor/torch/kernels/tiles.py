"""Sweeps over the vocabulary, forward and backward, in tiles: some rows and some columns of logits at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from entropyfloor.torch.kernels import triton_tokens
from entropyfloor.torch.kernels.bundles import Layer, Needed, Options, Points, Rates, State, Swept, Used

CPU_TILE, TILE = (512, 2048), (4096, 8192)
"""Rows and columns of a tile. On a CPU a tile is a few MB, so that it stays in the caches. On a GPU it is large,
so that few kernels are started: on an H200 a quarter of it takes twice the time."""
MATRIX_UNIT_TILE = 2048, 512
"""The same for bfloat16 on a CPU with matrix units."""
LOWEST = -1e30
"""Stands for a distance of -inf from the largest logit: its exponential is 0, and 0 times it is not NaN."""
HALF = torch.float16, torch.bfloat16


# --- tiles -----------------------------------------------------------------------------------------------


class Tiles:
    """Tiles of `W h + b`, and the buffers that they are computed in.

    Half precision is multiplied as it is where the product can be written in float32, and in float32 elsewhere.
    """

    @staticmethod
    def of(layer: Layer) -> Tiles:
        """The fastest tiles for a layer."""
        on_cpu = layer.hidden.device.type == "cpu" and layer.weight.dtype == layer.hidden.dtype == torch.bfloat16
        return MatrixUnitTiles(layer) if on_cpu and _has_matrix_units() else Tiles(layer)

    def __init__(self, layer: Layer) -> None:
        hidden, self.weight, self.bias = layer
        mixed = torch.promote_types(hidden.dtype, self.weight.dtype)
        self.wide = torch.float32 if mixed in HALF else mixed
        both_half = hidden.dtype == self.weight.dtype and mixed in HALF
        self.factor = mixed if both_half and _has_wide_products(hidden.device) else self.wide
        self.hidden = hidden.to(self.factor)
        self.height, self.width = CPU_TILE if hidden.device.type == "cpu" else TILE
        self.total = self.wide
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
        """`W h + b` of some rows and columns."""
        hidden = self.hidden[rows]
        tile = self.buffer(0, len(hidden), len(weight))
        if self.factor == self.wide:
            torch.mm(hidden, weight.T, out=tile)
        else:
            torch.mm(hidden, weight.T, out_dtype=self.wide, out=tile)
        return tile if bias is None else tile.add_(bias)

    def buffer(self, number: int, height: int, width: int) -> Tensor:
        """Memory for a tile, the same for the same `number`."""
        while len(self.buffers) <= number:
            size = min(self.height, len(self.hidden)) * min(self.width, len(self.weight))
            self.buffers.append(self.hidden.new_empty(size, dtype=self.wide))
        return self.buffers[number][: height * width].view(height, width)

    def add_products(
        self, by_hidden: Tensor | None, by_weight: Tensor | None, gradient: Tensor, weight: Tensor, rows: slice
    ) -> None:
        """Add what the gradient of a tile gives to the gradients of hidden and weight, in their precision."""
        factor = gradient.to(self.factor)
        if by_hidden is not None:
            self.add_product(by_hidden, factor, weight)
        if by_weight is not None:
            self.add_product(by_weight, factor.T, self.hidden[rows])

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """`total += left @ right`, summed in the precision of `total`."""
        if left.dtype == total.dtype:
            total.addmm_(left, right)
        else:
            torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


class MatrixUnitTiles(Tiles):
    """Tiles of a bfloat16 layer on a CPU with matrix units, which multiply bfloat16 and sum in float32.

    PyTorch writes their result in float32 only if the factors are float32, which the product rounds. Factors that
    were bfloat16 are not changed by this. The gradient of a tile is multiplied as the sum of two bfloat16 numbers,
    high + low: with one, the result would have a second rounding error, as large as that of its own dtype.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.height, self.width = MATRIX_UNIT_TILE
        self.layer = layer
        if len(layer.hidden) <= self.height:
            self.total = layer.weight.dtype  # one product has the whole sum

    @cached_property
    def hidden_twice(self) -> Tensor:
        """The factor of both parts of a gradient, which only the gradient of a weight needs."""
        return self.layer.hidden.expand(2, -1, -1).contiguous()

    def tile(self, rows: slice, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`W h + b` of some rows and columns."""
        with _rounded_factors():
            return super().tile(rows, weight, bias)

    def add_products(
        self, by_hidden: Tensor | None, by_weight: Tensor | None, gradient: Tensor, weight: Tensor, rows: slice
    ) -> None:
        """The same, but a gradient of the weight in bfloat16, which has one tile of rows, is overwritten."""
        parts = gradient.new_empty((2, *gradient.shape), dtype=torch.bfloat16)
        parts[0] = gradient
        low = gradient - parts[0].float()
        parts[1] = low
        if by_hidden is not None:
            with _rounded_factors():
                by_hidden.addmm_(gradient, weight).addmm_(low, weight)
        if by_weight is not None:
            left, right = parts.flatten(0, 1).T, self.hidden_twice[:, rows].flatten(0, 1)
            if by_weight.dtype == left.dtype:
                torch.mm(left, right, out=by_weight)
            else:
                product = left @ right
                by_weight.add_(product).add_(torch.addmm(product.neg_(), left, right))  # and what it rounded off


_PRECISION = threading.Lock()


@contextmanager
def _rounded_factors() -> Iterator[None]:
    """Let products of float32 matrices round their factors to bfloat16, in all threads of the process."""
    mkldnn: Any = torch.backends.mkldnn
    with _PRECISION:
        before = mkldnn.matmul.fp32_precision
        if before == mkldnn.fp32_precision:
            before = "none"  # inherited: it must follow later changes of the setting that it comes from
        try:
            mkldnn.matmul.fp32_precision = "bf16"
            yield
        finally:
            mkldnn.matmul.fp32_precision = before


def _has_matrix_units() -> bool:
    """Whether the CPU has matrix units for bfloat16 (AMX), and this version of PyTorch reports and uses them."""
    mkldnn = torch.backends.mkldnn
    known = hasattr(torch.cpu, "get_capabilities") and hasattr(mkldnn, "matmul") and mkldnn.enabled
    return bool(known and torch.cpu.get_capabilities().get("amx_bf16"))


def _has_wide_products(device: torch.device) -> bool:
    """Whether a product of half-precision matrices can be added to a float32 one: on CUDA, from PyTorch 2.10."""
    return device.type == "cuda" and torch.version.hip is None and torch.__version__ >= "2.10"


def _to_logits(tile: Tensor, options: Options) -> None:
    """Turn `W h + b` into logits, in place."""
    if options.softcap:
        tile.div_(options.softcap).tanh_().mul_(options.softcap / options.temperature)
    elif options.temperature != 1:
        tile.div_(options.temperature)


def _subtract_top(logits: Tensor, top: Tensor, has_bias: bool) -> None:
    """Subtract the largest logit of each row, in place. Only a bias can make the result infinite."""
    logits.sub_(top[:, None])
    if has_bias:
        logits.clamp_(min=LOWEST)


# --- forward ---------------------------------------------------------------------------------------------


def forward(layer: Layer, targets: Tensor, scales: Tensor, top_k_rows: Tensor | None, options: Options) -> Swept:
    """Sweep over the vocabulary for `targets` [N] at `scales` [S, N], filtered at `top_k_rows` [N]."""
    tiles = Tiles.of(layer)
    top, target, sums, moment, kept, kept_index = empty_results(layer, scales, options.top_k)
    state = State(top, target, sums, moment)
    top.fill_(LOWEST)
    target.fill_(torch.nan)  # stays where the target is outside of the vocabulary
    kept.fill_(-torch.inf)
    for zeros in (sums, moment, kept_index):
        zeros.zero_()
    if top_k_rows is not None:
        kept.masked_fill_(~top_k_rows[:, None], torch.inf)  # no logit is larger, so none is kept
    fold = triton_tokens.fold if options.triton else _fold
    for columns, weight, bias in tiles.columns():
        for rows in tiles.rows():
            tile = tiles.tile(rows, weight, bias)
            buffer = tiles.buffer(0 if options.triton else 1, *tile.shape)
            remaining = options
            if options.top_k:
                _to_logits(tile, options)
                _fold_largest(tile, kept[rows, :-1], kept_index[rows, :-1], columns.start)
                remaining = options._replace(temperature=1.0, softcap=0.0)
            local = targets[rows] - columns.start
            fold(tile, buffer, local, scales[:, rows], state.at(rows), remaining, bias is not None)
    if options.top_k:
        _keep_target(kept, kept_index, target, targets)
        kept -= top[:, None]
    return Swept(top, target - top, sums, moment, kept, kept_index)


def empty_results(layer: Layer, scales: Tensor, top_k: int) -> Swept:
    """Memory for the results of the forward sweep."""
    count, kept = len(layer.hidden), top_k + 1 if top_k else 0
    top, gap, moment = (scales.new_empty(count) for _ in range(3))
    index = torch.empty(count, kept, dtype=torch.long, device=layer.hidden.device)
    return Swept(top, gap, scales.new_empty(1 + len(scales), count), moment, scales.new_empty(count, kept), index)


def _fold(
    tile: Tensor, buffer: Tensor, targets: Tensor, scales: Tensor, state: State, options: Options, has_bias: bool
) -> None:
    """Add a tile of `W h + b` to the sums of its rows, in place. The tile is overwritten."""
    top, target, sums, moment = state
    _to_logits(tile, options)
    inside = (targets >= 0) & (targets < tile.shape[1])
    chosen = tile.gather(1, targets.clamp(0, tile.shape[1] - 1)[:, None])[:, 0]
    target.copy_(torch.where(inside, chosen, target))
    highest = torch.maximum(top, tile.amax(1))
    drop = top - highest
    _subtract_top(tile, highest, has_bias)
    for scale, total in zip(scales, sums[1:], strict=True):
        torch.mul(tile, scale[:, None], out=buffer).exp_()
        total.mul_((scale * drop).exp()).add_(buffer.sum(1))
    torch.exp(tile, out=buffer)
    moment.add_(sums[0] * drop).mul_(drop.exp())  # from distances to the old top to those to the new one
    sums[0].mul_(drop.exp()).add_(buffer.sum(1))
    moment.add_(tile.mul_(buffer).sum(1))
    top.copy_(highest)


def _fold_largest(logits: Tensor, values: Tensor, index: Tensor, start: int) -> None:
    """Update the largest logits so far, in descending order, and their columns, in place."""
    count = values.shape[1]
    rows: slice | Tensor = slice(None)
    if logits.device.type == "cpu":  # most tiles change few rows; on CUDA, counting them would wait for the device
        rows = (~(logits.amax(1) <= values[:, -1])).nonzero()[:, 0]
    more = logits[rows].topk(min(count, logits.shape[1]), sorted=False)
    best = torch.cat([values[rows], more.values], 1).topk(count)
    index[rows] = torch.cat([index[rows], more.indices + start], 1).gather(1, best.indices)
    values[rows] = best.values


def _keep_target(values: Tensor, index: Tensor, target: Tensor, targets: Tensor) -> None:
    """Fill the last column with the target, unless it is among the others, which are in descending order."""
    absent = (index[:, :-1] != targets[:, None]).all(1)
    tie = absent & (target == values[:, -2])  # of equal logits the target's is kept
    index[:, -2] = torch.where(tie, targets, index[:, -2])
    index[:, -1] = targets
    values[:, -1] = torch.where(absent & ~tie, target, -torch.inf)


# --- backward --------------------------------------------------------------------------------------------


def backward(
    layer: Layer, scales: Tensor, rates: Rates, points: Points, options: Options, used: Used, needed: Needed
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, each empty unless it is needed. `scales` [1 + S, N] begin with 1."""
    tiles = Tiles.of(layer)
    by_hidden, by_weight, by_bias = empty_gradients(layer, needed)
    total_hidden = by_hidden.to(tiles.wide).zero_()
    gradient = triton_tokens.gradient if options.triton else _gradient
    for columns, weight, bias in tiles.columns():
        # Sums over rows end here, so that half precision is rounded once.
        total_weight = by_weight[columns].to(tiles.total).zero_()
        total_bias = by_bias[columns].to(tiles.wide).zero_()
        for rows in tiles.rows():
            tile = tiles.tile(rows, weight, bias)
            buffers = [tiles.buffer(i, *tile.shape) for i in range(1, 1 if options.triton else 4)]
            tile = gradient(tile, buffers, scales[:, rows], rates.at(rows), options, used, bias is not None)
            local = points.column[rows] - columns.start
            inside = (local >= 0) & (local < len(weight))
            tile.scatter_add_(1, local.clamp(0, len(weight) - 1), torch.where(inside, points.value[rows], 0.0))
            if needed.bias:
                total_bias += tile.sum(0)
            sums = total_hidden[rows] if needed.hidden else None, total_weight if needed.weight else None
            tiles.add_products(*sums, tile, weight, rows)
        if needed.weight and total_weight.dtype != by_weight.dtype:
            by_weight[columns] = total_weight
        if needed.bias:
            by_bias[columns] = total_bias
    return total_hidden.to(layer.hidden.dtype), by_weight, by_bias


def empty_gradients(layer: Layer, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients that are needed, empty tensors for the others."""
    hidden, weight, bias = layer
    parts = zip((hidden, weight, hidden if bias is None else bias), needed, strict=True)
    return tuple(torch.empty_like(x) if need else x.new_empty(0) for x, need in parts)  # type: ignore[return-value]


def _gradient(
    tile: Tensor, buffers: list[Tensor], scales: Tensor, rates: Rates, options: Options, used: Used, has_bias: bool
) -> Tensor:
    """Gradient by a tile of `W h + b`, without the single points. The tile is overwritten."""
    top, dense, by_moment, mean = rates
    below, total, term = buffers
    if options.softcap:
        tile.div_(options.softcap).tanh_()
        torch.mul(tile, options.softcap / options.temperature, out=below)
    else:
        below = tile
        _to_logits(below, options)
    _subtract_top(below, top, has_bias)
    terms = 0
    for scale, rate in zip(scales[1:], dense[1:], strict=True) if used.scaled else ():
        out = term if terms else total
        torch.mul(below, scale[:, None], out=out).exp_().mul_(rate[:, None])
        terms += 1
        if terms > 1:
            total.add_(term)
    if used.unit or used.entropy:
        out = term if terms else total
        torch.exp(below, out=out)
        if used.entropy:
            out.mul_(below.mul_(by_moment[:, None]).add_((dense[0] - by_moment * mean)[:, None]))
        else:
            out.mul_(dense[0][:, None])
        if terms:
            total.add_(term)
        terms += 1
    if not terms:
        total.zero_()
    return total.addcmul_(total, tile.square_(), value=-1) if options.softcap else total
