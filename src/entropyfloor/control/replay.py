"""Ring buffers of transitions in NumPy: sampled one by one, or as sequences within an episode."""

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


def transition_bytes(obs_dim: int, action_dim: int) -> int:
    """Bytes that a transition takes in a replay."""
    return 4 * (2 * obs_dim + action_dim + 2)  # a float32 has four bytes


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


class Sequence(NamedTuple):
    """H transitions in a row of one episode, or many sequences along other axes; time is before the batch."""

    observation: Any  # [..., H + 1, batch, obs_dim]
    action: Any  # [..., H, batch, action_dim]
    reward: Any  # [..., H, batch]
    terminated: Any  # [..., H, batch], 1.0 or 0.0


class SequenceReplay(Replay):
    """The last `capacity` transitions, sampled as sequences: uniformly over all that lie within one episode.

    Args:
        capacity: Number of transitions that the buffer holds.
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        rng: Random generator of the sampling; the caller saves its state.
        horizon: H, the number of transitions of a sequence.
    """

    def __init__(
        self, capacity: int, obs_dim: int, action_dim: int, rng: np.random.Generator, horizon: int
    ) -> None:
        if capacity < horizon:
            raise ValueError(f"capacity={capacity} must be at least horizon={horizon}")
        super().__init__(capacity, obs_dim, action_dim, rng)
        self.horizon = horizon
        self._ends = np.zeros(capacity, bool)  # whether a transition is the last of its episode
        # A ring of its own: the numbers of the transitions that begin a sequence, oldest first.
        self._starts, self._first, self._count = np.zeros(capacity, np.int64), 0, 0
        self._length = 0  # transitions of the last episode that are held

    def add(self, transition: Transition) -> None:
        """Store a transition, in place of the oldest where the buffer is full."""
        self._ends[self.added % self.capacity] = False
        super().add(transition)
        self._index(self.added)

    def end_episode(self) -> None:
        """Let the last transition be the last of its episode."""
        self._ends[(self.added - 1) % self.capacity] = True
        self._length = 0

    def _index(self, added: int) -> None:
        """Note the sequence that the last of `added` transitions completes; forget that of the one replaced."""
        if self._count and self._starts[self._first] < added - self.capacity:
            self._first, self._count = (self._first + 1) % self.capacity, self._count - 1
        self._length = min(self._length + 1, self.capacity)
        if self._length >= self.horizon:
            self._starts[(self._first + self._count) % self.capacity] = added - self.horizon
            self._count += 1

    def sample(self, *shape: int) -> Sequence:  # type: ignore[override]
        """Sequences along axes of `shape`, such as `(updates, batch)`; time comes before the last of them."""
        if not self._count:
            raise ValueError(
                f"no episode in the replay has horizon={self.horizon} transitions: lower --horizon, or raise "
                "--random-steps"
            )
        chosen = self._rng.integers(self._count, size=shape)
        starts = self._starts[(self._first + chosen) % self.capacity]
        numbers = starts[..., None, :] + np.arange(self.horizon)[:, None]
        columns = Transition(*(column.take(numbers % self.capacity, axis=0) for column in self._storage))
        observation = np.concatenate([columns.observation, columns.next_observation[..., -1:, :, :]], axis=-3)
        return Sequence(observation, columns.action, columns.reward, columns.terminated)

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored transitions, and where episodes end."""
        return super().arrays() | {"ends": self._ends[: len(self)]}

    def load(self, arrays: dict[str, np.ndarray], added: int) -> None:
        """Continue from `arrays()` and the `added` of another buffer with the same sizes.

        Raises:
            ValueError: The arrays do not fit this buffer.
        """
        super().load(arrays, added)
        if arrays["ends"].shape != (len(self),):
            raise ValueError(f"replay array ends has shape {arrays['ends'].shape}, this run needs {(len(self),)}")
        self._ends[: len(self)] = arrays["ends"]
        self._first = self._count = self._length = 0
        for number in range(added - len(self), added):  # as if they came one by one
            self._index(number + 1)
            if self._ends[number % self.capacity]:
                self._length = 0
