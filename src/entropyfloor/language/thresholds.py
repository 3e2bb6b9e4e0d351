"""Thresholds of ERA for language models, in nats: given ones, and automatic ones of both stages."""

from __future__ import annotations

from entropyfloor.language.config import Threshold

LOW_SHARE, HIGH_SHARE = 0.75, 5.0
"""Automatic thresholds of the first stage, in entropies that RL begins with; their ratio is near the paper's.

The first is also that of an automatic `min_entropy`.
"""
LOW_SHARE_2 = 0.2 / 0.45
"""Automatic ω_low of the second stage, in ω_low of the first, as in the paper."""


def first_thresholds(given: tuple[Threshold, Threshold], initial_entropy: float) -> tuple[float, float]:
    """ω_low and ω_high of the first stage; automatic ones follow from the entropy that RL begins with."""
    low, high = given
    return (
        LOW_SHARE * initial_entropy if low == "auto" else low,
        HIGH_SHARE * initial_entropy if high == "auto" else high,
    )


def second_thresholds(given: tuple[Threshold, float], first_low: float) -> tuple[float, float]:
    """ω_low and ω_high of the second stage; an automatic ω_low follows from that of the first stage."""
    low, high = given
    return LOW_SHARE_2 * first_low if low == "auto" else low, high


def thresholds_of_stages(
    first: tuple[Threshold, Threshold], second: tuple[Threshold, float], initial_entropy: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """ω_low and ω_high of both stages, checked together, so that a run does not fail where the second begins.

    `initial_entropy` is used where those of the first stage are automatic.

    Raises:
        ValueError: Those of a stage cross.
    """
    of_first = first_thresholds(first, initial_entropy)
    stages = of_first, second_thresholds(second, of_first[0])
    follow = "auto" in first, first[0] == "auto"  # whether those of a stage follow from the entropy
    for (low, high), follows in zip(stages, follow, strict=True):
        if not low < high:
            known = (
                f"RL begins with an entropy of {initial_entropy:g} nats" if follows else f"ω_low is {first[0]:g}"
            )
            raise ValueError(
                f"{known}, so auto gives ω_low={low:g}, and ω_high={high:g} is not above it: give both"
            )
    return stages
