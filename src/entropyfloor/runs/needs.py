"""What a run needs of memory and disk, as its package computes it from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

KEPT = 2
"""Checkpoints that a run keeps; a third one is there while it is written."""
LINE = 600
"""Bytes of a line of metrics, about."""


class Needs(NamedTuple):
    """Bytes that a run needs."""

    moments: Mapping[str, Mapping[str, int]]
    """What the memory of the device that trains holds, by the moment at which it holds it."""
    host: int
    """Memory of the host, where that is not the device that trains."""
    checkpoint: int
    """A checkpoint."""
    result: int
    """What stays beside the checkpoints: metrics, and the trained model where it is written."""

    @property
    def peak(self) -> tuple[str, Mapping[str, int]]:
        """The moment at which the device holds most, and what it holds then."""
        return max(self.moments.items(), key=lambda moment: sum(moment[1].values()))

    @property
    def memory(self) -> int:
        """The most that the device holds."""
        return sum(self.peak[1].values())

    @property
    def disk(self) -> int:
        """What a finished run leaves."""
        return KEPT * self.checkpoint + self.result
