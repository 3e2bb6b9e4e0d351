"""h⁻¹(κ), the inverse in Eq. 15, for JAX. `entropyfloor.torch.lambert` is the same page for PyTorch.

Kept by design: SciPy's `lambertw` has no gradient, no single precision and runs on no accelerator.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from entropyfloor.jax.numerics import compiled


@compiled(1)
def inverse_kappa(kappa: Array, inverse: str) -> Array:
    """The x ≤ -1 with `-x eˣ = κ`, by the inverse `"exact"` or `"paper"`."""
    return _inverse_exact(kappa) if inverse == "exact" else _inverse_paper(kappa)


@jax.custom_jvp
def _inverse_exact(kappa: Array) -> Array:
    """`x = W₋₁(-κ)` by Halley's method, with the derivative `dx/dκ = -e^{-x} / (1 + x) = x / (κ (1 + x))`."""
    # With x = -1 - y: y - log(1 + y) = t. The start joins y ≈ √(2t) + ⅔t for small t and y ≈ t + log t for large
    # t, to 0.3 %. One Halley step reaches single precision, a second one double precision.
    t = (-1 - jnp.log(kappa)).clip(min=jnp.finfo(kappa.dtype).eps)
    root = jnp.sqrt(2 * t)
    bend = 0.173 * root
    y = root + t * (bend + 2 / 3) / (bend + 1)
    for _ in range(2 if kappa.dtype == jnp.float64 else 1):
        residual = y - jnp.log(1 + y) - t  # log1p takes twice the time, and t has this rounding error anyway
        # Halley: f' = y/(1+y), f'' = 1/(1+y)²
        y = y - 2 * residual * y * (1 + y) / (2 * y * y - residual)
    return -1 - y


@_inverse_exact.defjvp
def _inverse_exact_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x = _inverse_exact(*primals)
    return x, tangents[0] * x / (primals[0] * (1 + x))


def _inverse_paper(kappa: Array) -> Array:
    """The paper's approximation, below Eq. 15."""
    log_kappa = jnp.log(kappa)
    return 0.75 * log_kappa - 0.25 - jnp.sqrt(2 * (-1 - log_kappa).clip(min=jnp.finfo(kappa.dtype).eps))
