"""The simulators of `dmc` and `gym` in C++, from envpool: a second backend, for tasks checked against the first.

envpool steps many environments at once and begins each next episode by itself. Here it runs one, and the next
episode waits for `reset`. With one environment, what C++ saves goes to handing each step to another thread: per
CPU-second it made 0.9 times the steps of the native backend in `dmc/walker-run`, 1.2 times in `dmc/humanoid-run`,
0.5 times in `gym/HalfCheetah-v4`.
"""

import functools
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from entropyfloor.extras import require

# From the same state, the same action leads to the same state and reward as in the native backend: to rounding in
# the median, to 1e-5 in each of 1000 steps; a test holds every one of these to it. Left out because they differ,
# envpool 1.2.5 (MuJoCo 3.6) against MuJoCo 3.17: `dmc/dog-*`, by 1e-4 of the joints' velocities in a step, and
# `gym/Humanoid-v4`, in the contact forces that it observes. All others are unchecked.
CHECKED = (
    "dmc/cheetah-run",
    "dmc/hopper-hop",
    "dmc/hopper-stand",
    "dmc/humanoid-run",
    "dmc/humanoid-stand",
    "dmc/humanoid-walk",
    "dmc/walker-run",
    "dmc/walker-stand",
    "dmc/walker-walk",
    "gym/Ant-v4",
    "gym/HalfCheetah-v4",
    "gym/Hopper-v4",
    "gym/Swimmer-v4",
    "gym/Walker2d-v4",
)

# Tasks of a domain share a layout. These entries of it belong to other tasks and are zero.
_OTHERS = {"humanoid": {"position"}}


class EnvPool(gymnasium.Env[Any, Any]):
    """One environment of envpool.

    A pool is seeded when it is built, so `reset(seed=...)` builds a new one (10 ms for HalfCheetah, 0.2 s for a
    task of `dmc`), and `reset()` keeps it. The same seed gives the same episodes again, though
    not those that it gives in the native backend. Rewards are float32. `render` the same task of that backend.

    Args:
        name: One of `CHECKED`.
        limit: Steps of an episode, if not the task's own number.

    Raises:
        ImportError: envpool is not installed; the message says how to install it.
    """

    def __init__(self, name: str, limit: int | None = None, /) -> None:
        suite, _, task = name.partition("/")
        self._task, self._others = task, set[str]()
        if suite == "dmc":
            domain, _, rest = task.partition("-")
            self._task, self._others = f"{_camel(domain)}{_camel(rest)}-v1", _OTHERS.get(domain, set())
        spec = _library().make_spec(self._task)
        self.step_limit = int(spec.config.max_episode_steps) if limit is None else limit
        self._steps, self._running = 0, False
        self._pool: Any = None
        action, layout = spec.gymnasium_action_space, spec.gymnasium_observation_space
        self.action_space = spaces.Box(action.low, action.high, dtype=action.dtype)
        parts = dict(layout.items()) if isinstance(layout, spaces.Dict) else {"": layout}
        size = sum(spaces.flatdim(part) for key, part in parts.items() if key not in self._others)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, from `seed` modulo 2³¹ if it is given."""
        super().reset(seed=seed, options=options)
        if seed is not None or self._pool is None:
            seed = int(self.np_random.integers(2**31)) if seed is None else seed
            self._pool = _library().make(
                self._task,
                env_type="gymnasium",
                num_envs=1,
                num_threads=1,
                seed=seed % 2**31,
                # Steps are counted here: in the last one, the pool would report its limit in place of a failure.
                max_episode_steps=self.step_limit + 1,
            )
        observation, _ = self._pool.reset()
        self._steps, self._running = 0, True
        return self._observe(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step."""
        if not self._running:  # the pool would begin the next episode
            raise RuntimeError(
                "the episode is over, and this simulator cannot go on: do not ignore termination here"
            )
        observation, reward, terminated, _, _ = self._pool.step(np.asarray(action)[None])
        self._steps += 1
        truncated = self._steps == self.step_limit
        self._running = not (terminated[0] or truncated)
        return self._observe(observation), float(reward[0]), bool(terminated[0]), truncated, {}

    def close(self) -> None:
        """Free the simulator."""
        self._pool, self._running = None, False

    def _observe(self, observation: Any) -> np.ndarray:
        if not isinstance(observation, dict):
            return observation[0].copy()
        return np.concatenate([np.ravel(part[0]) for key, part in observation.items() if key not in self._others])


def _camel(name: str) -> str:
    """`ball_in_cup` as envpool writes it, `BallInCup`."""
    return "".join(word.capitalize() for word in name.split("_"))


@functools.cache
def _library() -> ModuleType:
    require("envpool", "envpool")
    import envpool

    return envpool
