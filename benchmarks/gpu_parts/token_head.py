"""The last layer of a language model on a GPU: `token_log_probs`, forward and backward.

The sides are those of `token_log_probs.py`, in one process here, since all share the memory of one device.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from entropyfloor.torch import tokens
from entropyfloor.torch.kernels import tiles
from gpu_parts.rows import Plan, Row, attempted, compare, failure, rates
from gpu_parts.torch_device import DEVICE, clock, require_device
from pairs import Side, measure, median
from token_log_probs import HEADS, Inputs, Memory, inputs, problem

TILES = (2048, 4096), (2048, 8192), (4096, 8192), (8192, 4096), (8192, 8192), (8192, 16384)
"""Rows and columns of a tile of ours that are tried; ours are `tiles.TILE`."""
KERNELS = 8
"""Kernels in the profile."""
PRODUCTS = 5
"""Matrix products in a turn, so that waiting for the device is a small part of it."""


def cut_cross_entropy(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, None]:  # noqa: ARG001
    """Apple's kernel, without ERA and entropies; it leaves small gradients out."""
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(h, w, y, reduction="none"), None


def with_impl(impl: str, h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """ERA by an implementation of ours."""
    return tokens.token_log_probs(h, w, y, scale=scale, impl=impl)


OTHERS: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    **{name: HEADS[name] for name in ("era-filtered", "era-afterwards", "liger", "release")},
    "cut-cross-entropy": cut_cross_entropy,
}


def rows(plan: Plan) -> Iterator[Row]:
    """In the order of their worth: correctness, limit, time, memory, what takes the time, and other tiles."""
    yield require_device(plan)
    torch.manual_seed(0)
    sizes = (8, 16, 300) if plan.tiny else (8192, 3584, 152_064)
    count, hidden, vocabulary = sizes
    yield from errors(*((8, 16, 300) if plan.tiny else (1024, hidden, 32_768)))
    case = f"{count:,} tokens, hidden {hidden:,} × vocabulary {vocabulary:,}, bfloat16, forward and backward"
    limit = yield from limits(case, 256 if plan.tiny else 8192, sizes)

    data = inputs(*sizes)
    gradients = (count + vocabulary) * hidden * data[0].element_size()
    heads = {name: HEADS[name] for name in ("plain", "era")} | OTHERS
    reasons = {}
    for name, head in heads.items():
        reasons[name] = problem(name=name) or failure(partial(call, head, inputs(16, 16, 64)))  # loads code
        memory = Memory()
        reasons[name] = reasons[name] or failure(partial(call, head, data))
        if reasons[name]:
            yield Row(case, name, skipped=reasons[name])
            continue
        peak = memory.peak()
        yield Row(case, name, "peak memory", peak / 1e9, "GB")
        yield Row(case, name, "… without gradients", (peak - gradients) / 1e9, "GB")
    heads |= {"naive": HEADS["naive"], **{impl: partial(with_impl, impl) for impl in ("triton", "torch")}}

    def timed(names: list[str], pairs: list[tuple[str, str]], share: float) -> Any:
        sides = {name: Side(partial(call, heads[name], data), 1) for name in names if not reasons.get(name)}
        times = yield from compare(plan, case, sides, pairs, share * plan.left(), clock)
        yield from rates(case, times, "share of matrix limit", "", 6 * count * hidden * vocabulary / limit)

    yield from timed(["plain", "era"], [("era", "plain")], 0.2)
    pairs = [*((name, "era") for name in OTHERS), ("era-filtered", "release")]
    yield from timed(["era", *OTHERS], pairs, 0.3)
    yield from attempted(case, "profile", partial(profile, case, partial(call, HEADS["era"], data)))
    yield from naive_memory(case, data)
    yield from timed(["era", "naive"], [("naive", "era")], 0.2)
    yield from timed(["triton", "torch"], [("torch", "triton")], 0.2)
    if DEVICE == "cuda":
        ours = tiles.TILE
        shapes = {f"tile of {rows} × {columns}": (rows, columns) for rows, columns in (ours, *TILES)}
        sides = {name: Side(partial(call_in_tiles, shape, data), 1) for name, shape in shapes.items()}
        first, *rest = sides
        yield from compare(plan, case, sides, [(name, first) for name in rest], 0.8 * plan.left(), clock)


def call(head: Callable[..., tuple[Tensor, Any]], data: Inputs) -> tuple[Tensor, ...]:
    """Log-probs, entropies, and the gradients of a policy-gradient loss."""
    log_probs, entropy = head(*data)
    advantages = torch.linspace(-1, 1, len(log_probs), device=DEVICE)
    return log_probs, entropy, *torch.autograd.grad((log_probs * advantages).sum(), data[:2])


def call_in_tiles(shape: tuple[int, int], data: Inputs) -> None:
    """ERA with tiles of another shape."""
    before = tiles.TILE
    tiles.TILE = shape
    try:
        call(HEADS["era"], data)
    finally:
        tiles.TILE = before


def errors(count: int, hidden: int, vocabulary: int) -> Iterator[Row]:
    """‖ours - reference‖ / ‖reference‖, the reference from all logits in float64 of the same bfloat16 inputs."""
    case = f"{count:,} tokens, hidden {hidden:,} × vocabulary {vocabulary:,}, error beside float64"
    data = inputs(count, hidden, vocabulary)
    wide = data[0].detach().double().requires_grad_(), data[1].detach().double().requires_grad_(), *data[2:]
    right = call(HEADS["naive"], wide)
    for impl in ("triton", "torch"):
        results: list[Tensor] = []
        if reason := failure(
            lambda impl=impl, results=results: results.extend(call(partial(with_impl, impl), data))
        ):
            yield Row(case, impl, skipped=reason)
            continue
        names = "log-probs", "entropies", "gradient of hidden", "gradient of weight"
        for name, one, other in zip(names, results, right, strict=True):
            difference = one.detach().double() - other.detach()
            yield Row(case, impl, name, float(difference.norm() / other.detach().norm()))


def limits(case: str, square: int, sizes: tuple[int, int, int]) -> Any:
    """Rates of large products in bfloat16. Returns that of square matrices, in operations per second."""
    n, d, v = sizes
    shapes = {
        f"product {square:,}³": (square, square, square),
        "forward product": (n, d, v),
        "product for hidden": (n, v, d),
        "product for weight": (v, n, d),
    }
    rate = 0.0
    for name, (rows, inner, columns) in shapes.items():
        a, b = (torch.randn(shape, device=DEVICE).bfloat16() for shape in ((rows, inner), (inner, columns)))
        out = torch.empty(rows, columns, device=DEVICE, dtype=torch.bfloat16)
        seconds = measure({name: Side(partial(products, a, b, out), PRODUCTS)}, 20, clock)[name]
        middle, low, high = median(2 * rows * inner * columns / seconds / 1e12)
        yield Row(case, name, "matrix limit", middle, "TFLOP/s", low, high, len(seconds))
        rate = rate or 1e12 * middle
    return rate


def products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The same product several times."""
    for _ in range(PRODUCTS):
        torch.mm(a, b, out=out)


def naive_memory(case: str, data: Inputs) -> Iterator[Row]:
    """Peak of the naive head, which may not fit; why it fails stands in its time's row."""
    memory = Memory()
    if not failure(partial(call, HEADS["naive"], data)):
        yield Row(case, "naive", "peak memory", memory.peak() / 1e9, "GB")


def profile(case: str, step: Callable[[], object]) -> Iterator[Row]:
    """The kernels that take most of the time of one step."""
    activity = torch.profiler.ProfilerActivity.CUDA if DEVICE == "cuda" else torch.profiler.ProfilerActivity.CPU
    quantity = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    with torch.profiler.profile(activities=[activity]) as profiler:
        step()
        clock()
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, quantity))
    total = sum(getattr(event, quantity) for event in events)
    for i, event in enumerate(events[:KERNELS], 1):
        microseconds = getattr(event, quantity)
        remark = f"{microseconds / total:.1%} of a step, {event.count} calls: {event.key[:120]}"
        yield Row(case, "era", f"kernel {i}", microseconds / 1e3, "ms", remark=remark)
