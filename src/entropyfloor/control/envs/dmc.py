"""DeepMind Control as a Gymnasium environment, on dm_control itself."""

import functools
import math
import warnings
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from entropyfloor.extras import require


class DMControl(gymnasium.Env[Any, Any]):
    """A task of the suite, `domain-task`.

    dm_control ends an episode in one way, `last()`, and tells a failure from the time limit by the discount:
    0 terminates, 1 truncates. Nearly all of its tasks never terminate. A simulation that diverges is truncated,
    with its last finite observation and without a reward for the step.

    Args:
        task: Such as `walker-run` or `ball_in_cup-catch`.
        limit: Steps of an episode, if not the task's own number.
        kwargs: Of the task, such as `time_limit` in seconds.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, task: str, limit: int | None = None, /, **kwargs: Any) -> None:
        domain, _, name = task.partition("-")
        # The environment keeps this generator for its life: seeding it in place seeds the next episode.
        self._random = np.random.RandomState(0)
        # The seed decides `random`: a second one in `kwargs` raises a TypeError that names it.
        self._env = _suite().load(domain, name, task_kwargs=dict(random=self._random, **kwargs))
        if limit is not None:
            self._env._step_limit = limit
        steps = self._env._step_limit
        self.step_limit = math.ceil(steps) if math.isfinite(steps) else None
        self.metadata = {**self.metadata, "render_fps": round(1 / self._env.control_timestep())}
        action = self._env.action_spec()
        self.action_space = spaces.Box(action.minimum, action.maximum, dtype=np.float64)
        self._keys = tuple(self._env.observation_spec())
        size = sum(int(np.prod(spec.shape)) for spec in self._env.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, from `seed` if it is given."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._random.seed(seed)
        self._last = self._observe(self._env.reset())
        return self._last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step."""
        try:
            timestep = self._env.step(action)
        except _suite().control.PhysicsError:
            if not np.isfinite(action).all():  # the fault of the agent
                raise
            return self._last, 0.0, False, True, {}
        if timestep.first():  # after the end, dm_control begins the next episode
            raise RuntimeError(
                "the episode is over, and this simulator cannot go on: do not ignore termination here"
            )
        terminated = timestep.last() and timestep.discount == 0.0
        self._last = self._observe(timestep)
        return self._last, timestep.reward, terminated, timestep.last() and not terminated, {}

    def render(self) -> Any:
        """The scene from the first camera, `[480, 640, 3]` bytes."""
        return self._env.physics.render(height=480, width=640, camera_id=0)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def _observe(self, timestep: Any) -> np.ndarray:
        return np.concatenate([np.ravel(timestep.observation[key]) for key in self._keys])


def tasks() -> list[str]:
    """Every task of the suite, as `domain-task`."""
    return [f"{domain}-{task}" for domain, task in _suite().ALL_TASKS]


@functools.cache
def _suite() -> ModuleType:
    """dm_control takes its time to import, and warns of a missing display that training does not need."""
    require("control", "dm_control")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dm_control import suite
    return suite
