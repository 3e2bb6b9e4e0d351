"""Statistics and verdict of an audit, the same for every kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from entropyfloor import __version__
from entropyfloor.audit.samples import Samples
from entropyfloor.extras import BrokenFloorError
from entropyfloor.runs.vocabulary import TOLERANCE

BINS = 50
"""Number of bins of a histogram."""
NARROWEST = 0.01
"""Least width of a histogram: a floor that is met exactly leaves nothing but rounding."""
WORST = 10
"""Number of samples with the least entropy that are listed."""
QUANTILES = {
    "min": 0.0,
    "q01": 0.01,
    "q05": 0.05,
    "q25": 0.25,
    "median": 0.5,
    "q75": 0.75,
    "q95": 0.95,
    "max": 1.0,
}


@dataclass(frozen=True)
class Audit:
    """Samples, and the floor that they are compared with."""

    samples: Samples
    floor: float | None
    """In nats; None where there is none."""

    @property
    def broken(self) -> np.ndarray:
        """`[N]`: whether the entropy is below the floor, by more than `TOLERANCE`."""
        entropy = self.samples.entropy
        return np.zeros(len(entropy), bool) if self.floor is None else entropy < self.floor - TOLERANCE

    @property
    def holds(self) -> bool | None:
        """Whether the floor holds in every sample; None where there is none."""
        return None if self.floor is None else not self.broken.any()

    @property
    def verdict(self) -> str:
        """Whether the floor holds, in one line."""
        entropy, places, n = self.samples.entropy, self.samples.places, len(self.samples.entropy)
        least = f"{entropy.min():.3f} nats at the least"
        if self.floor is None:
            return (
                f"no floor: the entropy is {entropy.mean():.3f} nats on average and {least}, over {n:,} {places}"
            )
        if self.holds:
            return f"the floor of {self.floor:g} nats holds in all of {n:,} {places}: {least}"
        return (
            f"the floor of {self.floor:g} nats is broken by {self.floor - entropy.min():.3f} nats at most, in "
            f"{100 * self.broken.mean():.3g} % of {n:,} {places}: {least}"
        )

    def check(self) -> None:
        """Do nothing where the floor holds, or where there is none.

        Raises:
            BrokenFloorError: The floor is broken.
        """
        if self.holds is False:
            raise BrokenFloorError(f"{self.samples.model}: {self.verdict}")

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The samples with the least entropy, from the lowest."""
        samples = self.samples
        rows = []
        for i in np.argsort(samples.entropy, kind="stable")[:WORST].tolist():
            row: dict[str, Any] = {"label": samples.labels[i], "realised_entropy": float(samples.entropy[i])}
            if samples.spread is not None:
                row["least_action_std"] = float(samples.spread.values[i].min())
            if samples.saturation is not None:
                row["saturated"] = float(samples.saturation.shares[i])
            rows.append(row)
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything but the single samples, as plain numbers and texts. Entropies are in nats."""
        samples = self.samples
        content: dict[str, Any] = {
            "entropyfloor": __version__,
            "model": samples.model,
            "measured": samples.measured,
            "places": samples.places,
            "samples": len(samples.entropy),
            "floor": self.floor,
            "promised_floor": samples.floor,
            "holds": self.holds,
            "verdict": self.verdict,
            "realised_entropy": describe(samples.entropy),
            "histogram": histogram(samples.entropy),
        }
        if self.floor is not None:
            content["broken_share"] = float(self.broken.mean())
            content["broken_by"] = 0.0 if self.holds else float(self.floor - samples.entropy.min())
        if samples.spread is not None:
            values = samples.spread.values
            content["action_std"] = {
                "unit": samples.spread.unit,
                "mean": values.mean(0).tolist(),
                "min": values.min(0).tolist(),
                "max": values.max(0).tolist(),
            }
        if samples.saturation is not None:
            shares = samples.saturation.shares
            content["saturated"] = {
                "meaning": samples.saturation.meaning,
                "mean": float(shares.mean()),
                "max": float(shares.max()),
            }
        for further in samples.further:
            content[further.name] = {
                "samples": len(further.values),
                **describe(further.values),
                "histogram": histogram(further.values),
            }
        return content | {"numbers": dict(samples.numbers), "worst": self.worst}


def summarise(samples: Samples, floor: float | None = None) -> Audit:
    """Compare samples with a floor.

    Args:
        samples: What was measured.
        floor: Floor in nats; by default the one that the model itself promises, if it does.

    Raises:
        ValueError: The floor is not finite.

    Examples:
        >>> import numpy as np
        >>> from entropyfloor import audit
        >>> samples = audit.Samples("policy", "states", "the policy", np.array([-2.9, -3.1]), ["first", "second"])
        >>> audit.summarise(samples, floor=-3.0).worst[0]["label"]
        'second'
    """
    floor = samples.floor if floor is None else floor
    check_floor(floor)
    return Audit(samples, floor)


def check_floor(floor: float | None) -> None:
    """Refuse a floor that is NaN or infinite."""
    if floor is not None and not np.isfinite(floor):
        raise ValueError(f"floor={floor} must be a number of nats")


def describe(values: np.ndarray) -> dict[str, float]:
    """Mean, and `QUANTILES`."""
    numbers = np.quantile(values, [*QUANTILES.values()])
    return {"mean": float(values.mean()), **dict(zip(QUANTILES, numbers.tolist(), strict=True))}


def histogram(values: np.ndarray) -> dict[str, list[float]]:
    """Edges and counts of `BINS` bins of equal width over all values, and over `NARROWEST` at least."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.0, 0.5 * (NARROWEST - (high - low)))
    counts, edges = np.histogram(values, BINS, (low - margin, high + margin))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
