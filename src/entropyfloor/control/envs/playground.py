"""MuJoCo Playground's DeepMind Control suite on MJX, MuJoCo in JAX: `playground/WalkerWalk`.

A simulator is a pair of pure functions, `reset(key) → state` and `step(state, action) → state`, whose states have
`obs`, `reward` and `done`. `entropyfloor.control.on_device` trains FastTD3 and its kin on many of them in one
compiled loop. For every other purpose there is a Gymnasium environment of one simulator.
"""

import contextlib
import functools
import io
import warnings
from types import ModuleType
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from entropyfloor.control import seeding
from entropyfloor.extras import require


class Playground(gymnasium.Env[Any, Any]):
    """One simulator of a task. The first reset and the first step compile, for a minute or so each.

    Args:
        task: Such as `WalkerWalk` or `CheetahRun`.
        limit: Steps of an episode, if not the task's own number.
        kwargs: Entries of the task's configuration, such as `impl`: "jax", the default, or "warp" for MuJoCo Warp.

    Raises:
        ImportError: MuJoCo Playground is not installed; the message says how to install it.
        ValueError: An entry would have no effect.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, task: str, limit: int | None = None, /, **kwargs: Any) -> None:
        suite = _suite()
        if kwargs.get("action_repeat", 1) != 1:
            raise ValueError(
                f"action_repeat={kwargs['action_repeat']}: the tasks of MuJoCo Playground ignore it; a longer "
                "ctrl_dt makes their steps longer"
            )
        # Its own default, MuJoCo Warp, needs an NVIDIA GPU, and lets all simulations share a number of contacts.
        self.simulator = suite.load(task, config_overrides={"impl": "jax"} | kwargs)
        steps = int(kwargs.get("episode_length", suite.get_default_config(task).episode_length))
        self.step_limit = steps if limit is None else limit
        self.action_space = spaces.Box(-1.0, 1.0, (self.simulator.action_size,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.simulator.observation_size,), np.float32)
        self.metadata = {**self.metadata, "render_fps": round(1 / self.simulator.dt)}
        self._reset, self._step = jax.jit(self.simulator.reset), jax.jit(self.simulator.step)
        self._state: Any = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, from `seed` if it is given."""
        super().reset(seed=seed, options=options)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._state, self._steps = self._reset(seeding.raw(jax.random.key(seed))), 0
        return np.asarray(self._state.obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step."""
        self._state = self._step(self._state, np.asarray(action, np.float32))
        self._steps += 1
        terminated, truncated = bool(self._state.done), self._steps >= self.step_limit
        return np.asarray(self._state.obs), float(self._state.reward), terminated, truncated, {}

    def render(self) -> Any:
        """The scene from the first camera, `[480, 640, 3]` bytes."""
        return self.simulator.render(self._state, height=480, width=640, camera=0)


def tasks() -> list[str]:
    """Tasks of the suite; none where MuJoCo Playground is not installed.

    The others of MuJoCo Playground are left out: it clones a repository to build them.
    """
    try:
        return list(_suite().ALL_ENVS)
    except ImportError:
        return []


@functools.cache
def _suite() -> ModuleType:
    """The suite; importing it warns, and prints that MuJoCo Warp is missing."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        require("playground", "mujoco_playground")
        from mujoco_playground import dm_control_suite
    suite: ModuleType = dm_control_suite
    return suite
