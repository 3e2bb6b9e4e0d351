"""What `torch` and `jax` share: checks of modules, quadrature rules and a fit, in plain Python and NumPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

Mode = Literal["pin", "floor"]
Rule = tuple[list[float], list[float]]  # nodes and weights: plain numbers, which compilers take as constants


# --- checks ----------------------------------------------------------------------------------------------


def is_floor(mode: str) -> bool:
    """Whether `mode` is `"floor"`; `ValueError` unless it is `"pin"` or `"floor"`."""
    if mode not in ("pin", "floor"):
        raise ValueError(f"mode={mode!r} must be 'pin' or 'floor'")
    return mode == "floor"


def check_mode(
    mode: str, action_dim: int, batch_level: bool = False, momentum: float = 0.1, *, stacklevel: int = 3
) -> None:
    """Refuse a mode or a momentum that cannot work, and warn where Eq. 11 leaves the network no choice.

    The warning names the line `stacklevel` frames up: 3 is the one that calls the `__init__` with this check.
    flax has frames of its own between.
    """
    floor = is_floor(mode)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must be between 0 and 1: it is the weight of a new batch")
    if batch_level and floor:
        raise ValueError("batch_level=True has no mode='floor': choose one of them")
    if action_dim == 1 and not floor and not batch_level:
        warnings.warn(
            "with action_dim=1 the softmax of Eq. 11 is 1, so the network has no say in σ: use mode='floor'",
            stacklevel=stacklevel,
        )


def axis_size(shape: Sequence[int], dim: int, name: str) -> int:
    """Size of the axis `dim`; `ValueError` where the array, which the message calls `name`, has no such axis."""
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"{name} of shape {tuple(shape)} has no axis {dim}")
    return shape[dim]


def check_last_axis(shape: Sequence[int], size: int, name: str) -> None:
    """Refuse input whose last axis is not of the size that the module was built for."""
    if tuple(shape[-1:]) != (size,):  # a scalar has no last axis
        raise ValueError(f"input of shape {tuple(shape)} does not end in {name}={size}")


# --- quadrature ------------------------------------------------------------------------------------------


def _trapezoid(limit: float, count: int) -> Rule:
    """Nodes and weights of the trapezoidal rule for expectations under a standard normal."""
    nodes = np.linspace(-limit, limit, count)
    weights = np.exp(-0.5 * nodes**2)
    return nodes.tolist(), (weights / weights.sum()).tolist()


def _legendre(count: int, length: float) -> Rule:
    """Gauss-Legendre nodes and weights on [0, length]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (0.5 * length * (nodes + 1)).tolist(), (0.5 * length * weights).tolist()


TRAPEZOID = _trapezoid(9.0, 65)
LEGENDRE_UNIT = _legendre(6, 1.0)
_nodes, _weights = _legendre(40, 18.0)
LEGENDRE_TAIL = _nodes, [w * math.log1p(math.exp(-2 * v)) for v, w in zip(_nodes, _weights, strict=True)]
"""The rule on [0, 18] with the weight log(1 + e^{-2v})."""


# --- the start of `unit_log_std` -------------------------------------------------------------------------

# Fitted by least squares, reweighted towards the largest error, over |μ| ≤ 1 and log σ ≤ 0.1: to 0.0041, and to
# 0.021 for wider σ. A bound at the distance d, with w = d / e^H, has the effect v = (Σ_k BOUND_k w^k)⁻². Both have
# S (Σ_k SUM_k S^k + SUM_P P + SUM_Y y) + BOTH_P P + BOTH_Y y, where S and P are the sum and the product of their
# v, and y = (e^H / 2)⁴.
BOUND = (1.0, 1.1405744, 11.4717097, -37.9047181, 70.4642612)
SUM, SUM_P, SUM_Y = (1.7654613, -1.7973838, 0.7215831), 328.3610764, 0.0782143
BOTH_P, BOTH_Y = -32.1003655, -0.2747542
ONE_STEP = 0.1
"""Largest log σ up to which one step from this start has single precision."""
