"""Matrix products in bfloat16 with sums in float32, forward and backward, for `flax.linen.Dense`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

if TYPE_CHECKING:
    from jaxtyping import BFloat16, Float, Float32


def bfloat16(
    x: Float[Array, "*batch i"], kernel: Float[Array, "i o"], *_: Any, **__: Any
) -> Float32[Array, "*batch o"]:
    """`x kernel` for factors rounded to bfloat16; the gradient of each factor is a product of the same kind.

    Args:
        x: Input of the layer.
        kernel: Its weights.

    Returns:
        The product in float32. The gradients are those of the unrounded factors, in float32.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return _product(rows, kernel.astype(jnp.float32)).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product(x: Float32[Array, "b i"], kernel: Float32[Array, "i o"]) -> Float32[Array, "b o"]:
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _dot(x, kernel, 0), (x, kernel)


def _backward(factors: tuple[Array, Array], grad: Float32[Array, "b o"]) -> tuple[Array, Array]:
    x, kernel = factors
    grad = grad.astype(jnp.bfloat16)
    transposed = jax.lax.platform_dependent(x.T, cpu=_by_rows, default=lambda matrix: matrix)
    return _dot(grad, kernel, 1), _dot(transposed, grad, 0)


_product.defvjp(_forward, _backward)


def _dot(left: BFloat16[Array, "m k"], right: BFloat16[Array, "..."], axis: int) -> Float32[Array, "m n"]:
    """`left right`, or `left rightᵀ` for `axis=1`."""
    return jax.lax.dot_general(left, right, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _by_rows(matrix: BFloat16[Array, "m k"]) -> BFloat16[Array, "m k"]:
    """The matrix, stored row by row: XLA uses the matrix units of a CPU only if the left factor is."""
    return with_layout_constraint(matrix, Layout((0, 1)))
