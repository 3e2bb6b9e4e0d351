"""A policy that was read from a file, of whatever library: `stable_baselines` and `exported` make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from entropyfloor.audit import gaussian

CHUNK = 4096
"""Number of observations that a policy is given at a time."""


@dataclass(frozen=True)
class FilePolicy:
    """A policy that was read from a file."""

    model: str
    distribution: gaussian.DistributionName | Literal["categorical"]
    parameters: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    """From float32 observations `[N, obs]` to location and scale `[N, D]`, or to logits `[N, n]`."""
    observation_dim: int | None = None
    """None where only the file's program knows."""
    low: np.ndarray | None = None
    """Least action of the environment, `[D]`; None where the file does not say."""
    high: np.ndarray | None = None
    floor: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)

    def at(self, observations: np.ndarray) -> list[np.ndarray]:
        """The parameters at all observations, in float64.

        Raises:
            ValueError: The observations have another width, or the file does not take them.
        """
        if self.observation_dim not in (None, observations.shape[1]):
            raise ValueError(
                f"observations have {observations.shape[1]} numbers each, and {self.model} takes "
                f"{self.observation_dim}"
            )
        chunks = [self.parameters(observations[i : i + CHUNK]) for i in range(0, len(observations), CHUNK)]
        return [np.concatenate(parts).astype(np.float64) for parts in zip(*chunks, strict=True)]

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The mode action as environments of this package take it: in [-1, 1], or a number."""
        first = self.at(observation[None])[0][0]
        if self.distribution == "categorical":
            return np.asarray(first.argmax())
        if self.distribution == "tanh":
            first = np.tanh(first)
        elif self.distribution == "normal" and self.low is not None and self.high is not None:
            first = (2.0 * first - self.high - self.low) / (self.high - self.low)
        return first.clip(-1.0, 1.0).astype(np.float32)
