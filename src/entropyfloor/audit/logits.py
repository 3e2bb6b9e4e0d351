"""Saturation of logits: of classifiers, and of policies over discrete actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from entropyfloor.audit.samples import Further, Saturation

SATURATED = 10.0
"""Gap between the largest raw logits above which they are saturated, as in evaluations of classifiers."""


def gap_of(logits: np.ndarray) -> np.ndarray:
    """Largest minus second largest of `[N, n]` logits."""
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    gap: np.ndarray = first - second
    return gap


def saturation_of_policy(logits: np.ndarray, floor: float | None) -> dict[str, Any]:
    """Fields of `Samples` for a policy with `[N, n]` logits; none behind a floor: the raw logits are unknown."""
    return {} if floor is not None else saturation(gap_of(logits))


def saturation(gap: np.ndarray, which: str = "logits") -> dict[str, Any]:
    """Fields of `Samples` for the gaps between the two largest logits, `[N]`, of the kind `which`."""
    return {
        "saturation": Saturation(
            (gap > SATURATED).astype(float), f"the two largest {which} are more than {SATURATED:g} apart"
        ),
        "further": [Further("logit_gap", f"Gap between the two largest {which}", gap, SATURATED)],
    }
