"""The steps of `tiles` on one tile as Triton kernels, each of which reads and writes the tile once.

A program takes one row. The matrix products around the kernels are PyTorch's.
"""

# ruff: noqa: N803 (constants of a kernel are in capitals, as in Triton's own)

from __future__ import annotations

from typing import Any

from torch import Tensor

from entropyfloor.torch.kernels.bundles import Options, Rates, State, Used

try:
    import triton  # type: ignore[import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
except ImportError:  # PyTorch brings it on Linux only
    triton = None


def problem(device_type: str) -> str | None:
    """Why the kernels cannot run on a type of device, None if they can."""
    if triton is None:
        return "Triton is not installed"
    if device_type == "cuda" or not isinstance(_fold_row, triton.JITFunction):  # else it is interpreted
        return None
    return f"it runs on CUDA, not on {device_type}, unless TRITON_INTERPRET=1 is set before Triton is imported"


def fold(
    tile: Tensor,
    buffer: Tensor,  # noqa: ARG001
    targets: Tensor,
    scales: Tensor,
    state: State,
    options: Options,
    has_bias: bool,  # noqa: ARG001
) -> None:
    """`tiles._fold`, but the tile stays as it is."""
    height, width = tile.shape
    block = triton.next_power_of_2(width)
    _fold_row[(height,)](
        tile, targets, scales, *state, width, scales.stride(0), state.sums.stride(0), *options[:2],
        COUNT=len(scales), SOFTCAP=bool(options.softcap), BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def gradient(
    tile: Tensor,
    buffers: list[Tensor],  # noqa: ARG001
    scales: Tensor,
    rates: Rates,
    options: Options,
    used: Used,
    has_bias: bool,  # noqa: ARG001
) -> Tensor:
    """`tiles._gradient`, in place."""
    height, width = tile.shape
    block = triton.next_power_of_2(width)
    _gradient_row[(height,)](
        tile, scales, *rates, width, scales.stride(0), rates.dense.stride(0), *options[:2],
        COUNT=len(scales) if used.scaled else 1, UNIT=used.unit, ENTROPY=used.entropy,
        SOFTCAP=bool(options.softcap), BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return tile


def _warps(block: int) -> int:
    """Number of warps: sixteen numbers a thread."""
    return min(max(block // 512, 1), 16)


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _tanh(x, softcap):  # type: ignore[no-untyped-def]
    """tanh(x / softcap) without overflow, and without the libraries that Triton's tanh needs."""
    u = tl.abs(x) / softcap
    t = 1 - 2 / (tl.exp(2 * u) + 1)
    return tl.where(x < 0, -t, t)


@_jit
def _fold_row(  # type: ignore[no-untyped-def]
    tile, targets, scales, top, chosen, sums, moment, width, scales_stride, sums_stride, temperature, softcap,
    COUNT: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    z = tl.load(tile + row * width + columns, mask=inside, other=0.0)
    if SOFTCAP:
        z = softcap * _tanh(z, softcap)
    z = tl.where(inside, z / temperature, -float("inf"))
    target = tl.load(targets + row)
    if (target >= 0) & (target < width):
        tl.store(chosen + row, tl.sum(tl.where(columns == target, z, 0.0), 0))
    before = tl.load(top + row)
    highest = tl.maximum(before, tl.max(z, 0))
    drop = before - highest
    below = tl.maximum(z - highest, -1e30)  # 0 · inf would be NaN
    for j in tl.static_range(COUNT):
        scale = tl.load(scales + j * scales_stride + row)
        total = sums + (1 + j) * sums_stride + row
        tl.store(total, tl.load(total) * tl.exp(scale * drop) + tl.sum(tl.exp(scale * below), 0))
    e = tl.exp(below)
    total = tl.load(sums + row)
    weighted = (tl.load(moment + row) + total * drop) * tl.exp(drop)
    tl.store(moment + row, weighted + tl.sum(e * below, 0))
    tl.store(sums + row, total * tl.exp(drop) + tl.sum(e, 0))
    tl.store(top + row, highest)


@_jit
def _gradient_row(  # type: ignore[no-untyped-def]
    tile, scales, top, dense, by_moment, mean, width, scales_stride, dense_stride, temperature, softcap,
    COUNT: tl.constexpr, UNIT: tl.constexpr, ENTROPY: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    z = tl.load(tile + row * width + columns, mask=inside, other=0.0)
    tanh = tl.zeros((BLOCK,), tl.float32)
    if SOFTCAP:
        tanh = _tanh(z, softcap)
        z = softcap * tanh
    below = tl.maximum(z / temperature - tl.load(top + row), -1e30)
    gradient = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(1, COUNT):
        scale = tl.load(scales + j * scales_stride + row)
        gradient += tl.load(dense + j * dense_stride + row) * tl.exp(scale * below)
    if UNIT or ENTROPY:
        rate = tl.load(dense + row) + tl.zeros((BLOCK,), tl.float32)
        if ENTROPY:
            rate += tl.load(by_moment + row) * (below - tl.load(mean + row))
        gradient += rate * tl.exp(below)
    if SOFTCAP:
        gradient *= 1 - tanh * tanh
    tl.store(tile + row * width + columns, gradient, mask=inside)
