"""Wrappers that `make` puts around every simulator."""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from entropyfloor.control.envs.spaces import actions, fits, name, width

AnyEnv = gymnasium.Env[Any, Any]
Step = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Refuse results that do not follow Gymnasium's interface, before anything computes with them.

    Args:
        env: A simulator, with nothing around it but its time limit.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: The reset is not a pair of an observation of the space and a dict.
        """
        result: Any = self.env.reset(seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise ValueError(f"its reset returns {_kind(result)}, not (observation, info) as Gymnasium's do")
        return self._observed(result[0]), result[1]

    def step(self, action: Any) -> Step:
        """Apply an action.

        Raises:
            ValueError: The step is not five values, with an observation of the space and a number as reward.
        """
        result: Any = self.env.step(action)
        if not (isinstance(result, tuple) and len(result) == 5):
            raise ValueError(
                f"its step returns {_kind(result)}, not (observation, reward, terminated, truncated, info)"
            )
        observation, reward, terminated, truncated, info = result
        if shape := getattr(reward, "shape", ()):
            raise ValueError(f"its reward is an array of shape {tuple(shape)}, not a number")
        return self._observed(observation), float(reward), bool(terminated), bool(truncated), info

    def _observed(self, observation: Any) -> Any:
        space = self.env.observation_space
        if not fits(space, observation):
            raise ValueError(f"its observation, {_kind(observation)}, is unlike its space {name(space)}")
        return observation


class Standard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Flat float32 observations; actions in [-1, 1] where they are continuous, counted from 0 where they are not.

    Args:
        env: Any environment whose observations flatten to a vector; bounds of its actions must be finite.
        seed: Used by the first `reset` that is given none.

    Raises:
        ValueError: A space of the environment is none of these; it is named.
    """

    def __init__(self, env: AnyEnv, seed: int) -> None:
        super().__init__(env)
        self._seed: int | None = seed
        self._running = False
        self._flatten = None if isinstance(env.observation_space, spaces.Box) else env.observation_space
        self.observation_space = spaces.Box(-np.inf, np.inf, (width(env.observation_space),), np.float32)
        self._act = actions(env.action_space)
        self.action_space = self._act.space
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
        """Apply an action, in the simulator's own range.

        Raises:
            RuntimeError: There is no episode to step in. Some simulators would quietly begin the next one.
        """
        if not self._running:
            raise RuntimeError("the episode is over: call reset first")
        observation, reward, terminated, truncated, info = self.env.step(self._act(action))
        self._running = not (terminated or truncated)
        return self._flat(observation), float(reward), bool(terminated), bool(truncated), info

    def _flat(self, observation: Any) -> np.ndarray:
        if self._flatten is not None:
            observation = spaces.flatten(self._flatten, observation)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, which is reported
            return np.asarray(observation, np.float32).reshape(-1)


def step_limit(env: AnyEnv) -> int | None:
    """Number of environment steps after which an episode is truncated, by Gymnasium's wrapper or in the simulator.

    None where there is no limit.
    """
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return env._max_episode_steps
        env = env.env
    limit: int | None = getattr(env, "step_limit", None)
    return limit


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


def _kind(value: Any) -> str:
    """Type and shape of a value."""
    if isinstance(value, tuple):
        return f"{len(value)} values"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
