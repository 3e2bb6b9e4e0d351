"""What an audit measures of a model: an entropy for each state, image or response, and what explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the actions of a policy."""

    values: np.ndarray
    """`[N, D]`: of each component of the action, in each state."""
    unit: str
    """The unit, in words."""


@dataclass(frozen=True)
class Saturation:
    """Share of what is saturated: components of the action near their bounds, logits far apart."""

    shares: np.ndarray
    """`[N]`: share of the components of the action, or 0 and 1 for an image."""
    meaning: str
    """What counts as saturated."""


@dataclass(frozen=True)
class Further:
    """Another quantity of the samples, with a distribution of its own: of each token, for example."""

    name: str
    title: str
    values: np.ndarray
    """`[M]`."""
    mark: float | None = None
    """A value to draw a line at."""


@dataclass(frozen=True)
class Samples:
    """The realised entropy of a model, sample by sample.

    Examples:
        >>> import numpy as np
        >>> from entropyfloor import audit
        >>> samples = audit.Samples("policy", "states", "the policy", np.array([-2.9, -3.1]), ["first", "second"])
        >>> audit.summarise(samples, floor=-3.0).holds
        False
    """

    model: str
    """Where the model is, or its name."""
    places: str
    """What the samples are, in the plural: states, images or responses."""
    measured: str
    """What the entropy is that of, in words."""
    entropy: np.ndarray
    """`[N]`, in nats."""
    labels: Sequence[str]
    """Which state, image or response each sample is."""
    floor: float | None = None
    """Floor that the model itself promises, in nats."""
    spread: Spread | None = None
    saturation: Saturation | None = None
    further: Sequence[Further] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Single quantities, by names of `runs.vocabulary`."""

    def __post_init__(self) -> None:
        if not len(self.entropy):
            raise ValueError(f"{self.model}: there are no {self.places} to measure its entropy over")
        if bad := int((~np.isfinite(self.entropy)).sum()):
            raise ValueError(
                f"{self.model}: the entropy is not finite in {bad:,} of {len(self.entropy):,} {self.places}: its "
                "weights, or what it was given, are NaN or infinite"
            )
