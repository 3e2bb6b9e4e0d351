"""Matrix products in bfloat16 with sums in float32, forward and backward, for `flax.linen.Dense`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

if TYPE_CHECKING:
    from jaxtyping import BFloat16, Float, Float32

SLOW = (256, 256)
"""Shape of two factors whose product takes twice as long on a CPU as one with some more rows (jax 0.10)."""


def bfloat16(
    x: Float[Array, "*batch i"], kernel: Float[Array, "i o"], *_: Any, **__: Any
) -> Float32[Array, "*batch o"]:
    """`x kernel` of factors that are rounded to bfloat16. A layer takes it as its `dot_general`.

    The gradient of each factor is a product of the same kind, with the incoming gradient rounded. Products and
    gradients are summed and returned in float32. There is no forward-mode derivative (`jax.jvp`).

    Args:
        x: Input of the layer.
        kernel: Its weights.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    spare = 16 if _on_cpu() and rows.shape == kernel.shape == SLOW else 0
    out = _product(jnp.pad(rows, ((0, spare), (0, 0))), kernel.astype(jnp.float32))
    return out[: rows.shape[0]].reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product(x: Float32[Array, "b i"], kernel: Float32[Array, "i o"]) -> Float32[Array, "b o"]:
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _dot(x, kernel, 0), (x, kernel)


def _backward(factors: tuple[Array, Array], grad: Float32[Array, "b o"]) -> tuple[Array, Array]:
    x, kernel = factors
    grad, transposed = grad.astype(jnp.bfloat16), x.T
    if _on_cpu():  # whose matrix units XLA uses only if the left factor is stored row by row
        transposed = with_layout_constraint(transposed, Layout((0, 1)))
    return _dot(grad, kernel, 1), _dot(transposed, grad, 0)


_product.defvjp(_forward, _backward)


def _dot(left: BFloat16[Array, "m k"], right: BFloat16[Array, "..."], axis: int) -> Float32[Array, "m n"]:
    """The product over the last axis of `left` and this axis of `right`, a matrix."""
    return jax.lax.dot_general(left, right, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
