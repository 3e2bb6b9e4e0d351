"""Numerical parts that the modules share, for PyTorch. `entropyfloor.jax.numerics` is the same page for JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def as_float(x: Tensor, name: str) -> Tensor:
    """`x` in float32 or wider.

    Raises:
        ValueError: `x`, which the message calls `name`, is no tensor, or does not hold floating-point values.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is of type {type(x).__name__}: pass a tensor, such as torch.as_tensor({name})")
    if not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}: pass floating-point values, such as {name}.float()")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """`values` in the dtype and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def scalars(values: Sequence[float], like: Tensor) -> Sequence[Any]:
    """`values` for arithmetic with `like`: eager PyTorch takes 0-d tensors of a CPU faster than numbers.

    On an accelerator they stay numbers, which need no copy.
    """
    return constant(values, like).unbind() if like.device.type == "cpu" else values


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """`Σ c_k x^k` with at least two coefficients, by Horner's rule."""
    *lower, second, last = scalars(coefficients, x)
    value = (x * last).add_(second)
    for coefficient in lower[::-1]:
        value = (value * x).add_(coefficient)
    return value


def is_tracing() -> bool:
    """Whether `torch.jit.trace` records. Its files hold no Python functions: gradients go through their steps."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]  # hints lack it


def log_sech_squared(u: Tensor) -> Tensor:
    """log(1 - tanh² u) without cancellation: `2 (log 2 - |u| - log(1 + e^{-2|u|}))`."""
    # Not `u.abs()`: its gradient at 0 is 0, with which the second derivative there would be wrong.
    size = torch.where(u < 0, -u, u)
    return 2 * (math.log(2) - size - torch.log1p(torch.exp(-2 * size)))
