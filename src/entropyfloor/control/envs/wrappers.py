"""What `make` puts around every simulator."""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

AnyEnv = gymnasium.Env[Any, Any]
Step = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


class Standard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Flat float32 observations, and actions in [-1, 1] where they are continuous.

    Args:
        env: Any environment whose observations flatten to a vector; bounds of its actions must be finite.
        seed: Used by the first `reset` that is given none.
    """

    def __init__(self, env: AnyEnv, seed: int) -> None:
        super().__init__(env)
        self._seed: int | None = seed
        self._running = False
        self._flatten = None if isinstance(env.observation_space, spaces.Box) else env.observation_space
        size = spaces.flatdim(env.observation_space)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None
        if isinstance(env.action_space, spaces.Box):
            low, high = (np.asarray(b, np.float64) for b in (env.action_space.low, env.action_space.high))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise ValueError(f"actions in [{low}, {high}] have no finite bounds to rescale to")
            self._bounds = low, high
            self.action_space = spaces.Box(-1.0, 1.0, (low.size,), np.float32)
        self.action_space.seed(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; everything random in it follows from `seed`."""
        seed, self._seed = self._seed if seed is None else seed, None
        observation, info = self.env.reset(seed=seed, options=options)
        self._running = True
        return self._flat(observation), info

    def step(self, action: Any) -> Step:
        """Apply an action; a continuous one is taken from [-1, 1] to the simulator's own range.

        Raises:
            RuntimeError: There is no episode to step in. Some simulators would quietly begin the next one.
        """
        if not self._running:
            raise RuntimeError("the episode is over: call reset first")
        if self._bounds is not None:
            low, high = self._bounds
            unit = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
            action = (low + 0.5 * (unit.reshape(low.shape) + 1.0) * (high - low)).astype(self._dtype())
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._running = not (terminated or truncated)
        return self._flat(observation), float(reward), bool(terminated), bool(truncated), info

    def _dtype(self) -> np.dtype[Any]:
        dtype = self.env.action_space.dtype
        assert dtype is not None
        return dtype

    def _flat(self, observation: Any) -> np.ndarray:
        if self._flatten is not None:
            observation = spaces.flatten(self._flatten, observation)
        return np.asarray(observation, np.float32).reshape(-1)


class ActionRepeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Apply each action `repeat` times, or until the episode ends, and sum the rewards."""

    def __init__(self, env: AnyEnv, repeat: int) -> None:
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> Step:
        """The last observation and the sum of rewards."""
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class IgnoreTermination(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Never terminate: only the time limit ends an episode."""

    def step(self, action: Any) -> Step:
        """The step, with `terminated` False."""
        observation, reward, _, truncated, info = self.env.step(action)
        return observation, reward, False, truncated, info
