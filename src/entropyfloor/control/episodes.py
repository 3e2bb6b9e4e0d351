"""Episodes of one environment, one after another, which a checkpoint continues exactly.

An exact continuation needs the simulator's state, and simulators do not agree on how to save it. So every episode
has its own seed, which follows from the run's seed and the episode's number, and a checkpoint keeps the actions
since the episode began: replayed from its seed, they lead any deterministic simulator to the same state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from entropyfloor.extras import brief

Env = gymnasium.Env[Any, Any]


class SimulatorError(RuntimeError):
    """A simulator failed; the message says where and how."""


class Step(NamedTuple):
    """Result of an action."""

    observation: np.ndarray
    """Observation after the action: at the end of an episode its last one, never the first of the next."""
    reward: float
    terminated: bool
    truncated: bool


def step(env: Env, action: Any, at: str) -> Step:
    """One step of a simulator.

    Raises:
        SimulatorError: The simulator raised, or gave a value that is not finite; `at` is part of the message.
    """
    try:
        observation, reward, terminated, truncated, _ = env.step(action)
    except Exception as error:
        raise _failure(error, at) from error
    _check_finite(observation, float(reward), at)
    return Step(observation, float(reward), terminated, truncated)


def reset(env: Env, seed: int, at: str) -> np.ndarray:
    """The first observation of an episode.

    Raises:
        SimulatorError: The simulator raised, or gave a value that is not finite; `at` is part of the message.
    """
    try:
        observation, _ = env.reset(seed=seed)
    except Exception as error:
        raise _failure(error, at) from error
    _check_finite(observation, 0.0, at)
    return np.asarray(observation)


def _failure(error: Exception, at: str) -> SimulatorError:
    """The error of a simulator in one line that says where it was raised."""
    return SimulatorError(f"the simulator failed at {at}: {type(error).__name__}: {brief(error)}")


def _check_finite(observation: np.ndarray, reward: float, at: str) -> None:
    if not (np.isfinite(observation).all() and math.isfinite(reward)):
        value = "NaN" if np.isnan(observation).any() or math.isnan(reward) else "infinity"
        raise SimulatorError(f"the simulator gave {value} at {at}")


class Episodes:
    """Endless play of an environment, each episode from a seed of its own.

    Args:
        env: The environment.
        seed_of: From the number of an episode to its seed.
    """

    def __init__(self, env: Env, seed_of: Callable[[int], int]) -> None:
        self._env, self._seed_of = env, seed_of
        self.number = 0
        self._actions: list[Any] = []  # of the episode in progress
        self._total = 0.0
        self.returns: list[float] = []
        """Returns of the episodes that ended since the list was last emptied."""
        self.observation = self._reset()

    def step(self, action: Any) -> Step:
        """Apply an action; if that ends the episode, begin the next one. `observation` is what to act on next.

        Raises:
            SimulatorError: The simulator raised.
        """
        result = self._step(action)
        self._total += result.reward
        self.observation = result.observation
        if result.terminated or result.truncated:
            self.returns.append(self._total)
            self.number, self._actions, self._total = self.number + 1, [], 0.0
            self.observation = self._reset()
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        """The actions of the episode in progress and its last observation, for a checkpoint."""
        space = self._env.action_space
        actions = np.asarray(self._actions, space.dtype).reshape(-1, *(space.shape or ()))
        return {"actions": actions, "observation": self.observation}

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON can hold it."""
        return {"number": self.number, "returns": self.returns}

    def restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Continue from the state and the arrays of another object, by playing its episode again.

        Raises:
            SimulatorError: The same seed and actions lead to another observation.
        """
        self.number, self.returns[:] = state["number"], state["returns"]
        self._actions, self._total = [], 0.0
        self.observation = self._reset()
        for action in arrays["actions"]:
            result = self._step(action)
            self.observation, self._total = result.observation, self._total + result.reward
        if not np.array_equal(self.observation, arrays["observation"]):
            raise SimulatorError(
                "the same seed and actions lead the simulator elsewhere: the run cannot be continued exactly. "
                "Is its version that of the run's machine.json?"
            )

    def _step(self, action: Any) -> Step:
        self._actions.append(action)
        return step(self._env, action, f"action {len(self._actions)} of episode {self.number}")

    def _reset(self) -> np.ndarray:
        return reset(self._env, self._seed_of(self.number), f"the reset of episode {self.number}")
