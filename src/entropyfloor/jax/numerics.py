"""Numerical parts that the modules share, for JAX. `entropyfloor.torch.numerics` is the same page for PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def compiled(*static: int) -> Callable[[Callable], Callable]:
    """Make one program of a function, which takes a fraction of the time of eager operations.

    Inside of another program it is inlined. Public functions stay plain: compiled ones cannot be pickled.

    Args:
        *static: Positions of the arguments that are not arrays.
    """
    return partial(jax.jit, static_argnums=static, inline=True)


def as_float(x: Array, name: str) -> Array:
    """`x` in float32 or wider.

    Raises:
        ValueError: `x`, which the message calls `name`, does not hold floating-point values.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}: pass floating-point values, such as {name}.astype(float)")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def constant(values: Sequence[float], like: Array) -> Array:
    """`values` in the dtype of `like`."""
    return jnp.asarray(values, like.dtype)


@compiled()
def clamp(x: Array, low: float | Array, high: float | Array) -> Array:
    """`x` moved into [low, high], with the gradient of `x` on the bounds too; `jnp.clip` has half of it there."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """`Σ c_k x^k`, by Horner's rule."""
    *lower, last = coefficients
    value = jnp.full_like(x, last)
    for coefficient in lower[::-1]:
        value = value * x + coefficient
    return value


def log_sech_squared(u: Array) -> Array:
    """log(1 - tanh² u) without cancellation: `2 (log 2 - |u| - log(1 + e^{-2|u|}))`."""
    return 2 * (math.log(2) - jnp.abs(u) - jnp.log1p(jnp.exp(-2 * jnp.abs(u))))
