"""h⁻¹(κ), the inverse in Eq. 15, for PyTorch. `entropyfloor.jax.lambert` is the same page for JAX.

Kept by design: SciPy's `lambertw` has no gradient, no single precision and runs on no accelerator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from entropyfloor.torch.numerics import is_tracing


def inverse_kappa(kappa: Tensor, inverse: str) -> Tensor:
    """The x ≤ -1 with `-x eˣ = κ`, by the inverse `"exact"` or `"paper"`."""
    if inverse == "exact":
        return _inverse_exact_in_script(kappa) if is_tracing() else _InverseExact.apply(kappa)
    return _inverse_paper(kappa)


class _InverseExact(torch.autograd.Function):
    """`x = W₋₁(-κ)` by Halley's method, with the derivative `dx/dκ = -e^{-x} / (1 + x)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kappa: Tensor) -> Tensor:
        return _inverse_exact(kappa)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * torch.exp(-x) / (-1 - x)


# The functions below are within what `torch.jit.script` can compile: no `torch.finfo`, no jaxtyping.


def inverse_kappa_in_script(kappa: Tensor, inverse: str) -> Tensor:
    """`inverse_kappa`, for `torch.jit.script`."""
    return _inverse_exact_in_script(kappa) if inverse == "exact" else _inverse_paper(kappa)


def _inverse_exact(kappa: Tensor) -> Tensor:
    # With x = -1 - y: y - log(1 + y) = t. The start joins y ≈ √(2t) + ⅔t for small t and y ≈ t + log t for large
    # t, to 0.3 %. One Halley step reaches single precision, a second one double precision.
    # The steps are in place because with a thousand classes allocation costs more than arithmetic.
    t = (-1 - kappa.log()).clamp(min=_eps(kappa))
    root = (2 * t).sqrt_()
    bend = 0.173 * root
    y = (bend + 2 / 3).mul_(t).div_(bend.add_(1)).add_(root)
    for _ in range(2 if kappa.dtype == torch.float64 else 1):
        residual = y.log1p().neg_().add_(y).sub_(t)
        # Halley: f' = y/(1+y), f'' = 1/(1+y)²
        y.sub_((1 + y).mul_(y).mul_(residual).mul_(2).div_((2 * y).mul_(y).sub_(residual)))
    return y.neg_().sub_(1)


def _inverse_paper(kappa: Tensor) -> Tensor:
    """The paper's approximation, below Eq. 15."""
    log_kappa = kappa.log()
    return 0.75 * log_kappa - 0.25 - torch.sqrt(2 * (-1 - log_kappa).clamp(min=_eps(kappa)))


def _inverse_exact_in_script(kappa: Tensor) -> Tensor:
    """`_InverseExact`, the same value and first derivative, without a Python class, which scripts cannot hold."""
    x = _inverse_exact(kappa.detach())
    return x + (kappa - kappa.detach()) * (torch.exp(-x) / (-1 - x))


def _eps(x: Tensor) -> float:
    """Rounding step of the dtype of `x`."""
    return 2.220446049250313e-16 if x.dtype == torch.float64 else 1.1920928955078125e-07
