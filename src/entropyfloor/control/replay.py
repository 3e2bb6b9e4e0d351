"""A ring buffer of transitions in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Transition(NamedTuple):
    """One transition, or many along leading axes.

    `terminated` says that the task ended, so that nothing follows. A time limit does not set it: the value of
    `next_observation` is still bootstrapped.
    """

    observation: Any  # [..., obs_dim]
    action: Any  # [..., action_dim]
    reward: Any  # [...]
    terminated: Any  # [...], 1.0 or 0.0
    next_observation: Any  # [..., obs_dim]


class Replay:
    """The last `capacity` transitions, sampled uniformly with replacement.

    Args:
        capacity: Number of transitions that the buffer holds.
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        rng: Random generator of the sampling; the caller saves its state.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, rng: np.random.Generator) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1")
        shapes = Transition((obs_dim,), (action_dim,), (), (), (obs_dim,))
        # Allocated once; the system hands out the pages as they fill.
        self._storage = Transition(*(np.zeros((capacity, *shape), np.float32) for shape in shapes))
        self._rng = rng
        self.capacity = capacity
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, transition: Transition) -> None:
        """Store a transition, in place of the oldest where the buffer is full."""
        slot = self.added % self.capacity
        for column, value in zip(self._storage, transition, strict=True):
            column[slot] = value
        self.added += 1

    def sample(self, *shape: int) -> Transition:
        """Transitions along leading axes of `shape`, such as `(updates, batch)`."""
        if not self.added:
            raise ValueError("the replay buffer is empty: add transitions before sampling")
        index = self._rng.integers(len(self), size=shape)
        return Transition(*(column.take(index, axis=0) for column in self._storage))

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored transitions, without the part of the buffer that is still empty."""
        return {name: column[: len(self)] for name, column in self._storage._asdict().items()}

    def load(self, arrays: dict[str, np.ndarray], added: int) -> None:
        """Continue from `arrays()` and the `added` of another buffer with the same sizes.

        Raises:
            ValueError: The arrays do not fit this buffer.
        """
        self.added = added
        for name, column in self._storage._asdict().items():
            if arrays[name].shape != (shape := (len(self), *column.shape[1:])):
                raise ValueError(f"replay array {name} has shape {arrays[name].shape}, this run needs {shape}")
            column[: len(self)] = arrays[name]
