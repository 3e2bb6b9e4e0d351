"""HumanoidBench (arXiv 2403.10506): `h1-walk-v0` and others, on the unchanged library.

It was written for MuJoCo 3.1, Gymnasium 0.29 and NumPy 1. This file adapts it to newer versions, for the
environments built here only. The physics is that of the installed MuJoCo.
"""

import contextlib
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.wrappers import TimeLimit

from entropyfloor.extras import require

# Scenes that it ships and that cannot be built: MuJoCo refuses to rename the first default class, as those of the
# kitchen do, and the truck looks for a joint that G1 has under another name.
_UNBUILDABLE = ("g1-kitchen-v0", "g1-truck-v0", "h1hand-kitchen-v0", "h1touch-kitchen-v0")

_SOURCE = "https://github.com/carlosferrazza/humanoid-bench"


class HumanoidBench(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task of HumanoidBench, `robot-task-v0`, with the time limit that it is registered with.

    Some of its tasks draw their starts from NumPy's global generator, and its G1 robot changes constants of
    modules that all robots share. Here each environment has a generator and constants of its own.

    Args:
        task: Such as `h1-walk-v0` or `h1hand-push-v0`.
        limit: Steps of an episode, if not the task's own number.
        kwargs: Of the environment, instead of those that the task is registered with.

    Raises:
        ImportError: HumanoidBench is not installed; the message says how to install it.
    """

    def __init__(self, task: str, limit: int | None = None, /, **kwargs: Any) -> None:
        module = _library()
        self._random = np.random.RandomState(0)
        self._constants = _original_constants()
        spec = gymnasium.spec(task)
        with self._own_constants(), _current_indexing(module):
            # With a render mode it would want a display, or an off-screen one, before anybody asks for a picture.
            env = module.HumanoidEnv(**spec.kwargs | kwargs, render_mode=None)
        env.render_mode = "rgb_array"
        limit = spec.max_episode_steps if limit is None else limit
        assert limit is not None
        super().__init__(TimeLimit(env, limit))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, from `seed` if it is given."""
        if seed is not None:
            self._random.seed(seed % 2**32)
        outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._random.get_state())  # noqa: NPY002
        try:
            with self._own_constants():
                _, info = self.env.reset(seed=seed, options=options)
                return self._forget(), info
        finally:
            self._random.set_state(np.random.get_state())  # noqa: NPY002
            np.random.set_state(outside)  # noqa: NPY002

    def _forget(self) -> Any:
        """The first observation, with nothing left of the episode before: two tasks keep a count or a goal."""
        env: Any = self.unwrapped
        if hasattr(env.task, "step_counter"):
            env.task.step_counter = 0
        mujoco.mj_forward(env.model, env.data)
        return env.task.get_obs()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One control step of 0.02 s."""
        with self._own_constants():
            return self.env.step(action)

    def render(self) -> Any:
        """The scene from the task's camera, `[256, 256, 3]` bytes."""
        env: Any = self.unwrapped
        if not hasattr(env, "viewer"):
            env.viewer = _current_renderer(env)
        return env.render()

    @contextlib.contextmanager
    def _own_constants(self) -> Iterator[None]:
        """This environment's values of the constants that its modules may have changed, put back afterwards."""
        outside = _constants()
        _set_constants(self._constants)
        try:
            yield
        finally:
            self._constants = _constants()
            _set_constants(outside)


def tasks() -> list[str]:
    """Every task that can be built, found without importing HumanoidBench; none where it is not installed."""
    spec = importlib.util.find_spec("humanoid_bench")
    if spec is None or not spec.submodule_search_locations:
        return []
    scenes = (Path(spec.submodule_search_locations[0]) / "assets" / "envs").glob("*.xml")
    matches = (re.fullmatch(r"([^_]+)_(?:pos|torque)_(.+)", scene.stem) for scene in sorted(scenes))
    found = [f"{match[1]}-{match[2]}-v0" for match in matches if match]
    return [task for task in found if task not in _UNBUILDABLE]


@functools.cache
def _library() -> ModuleType:
    """The module `humanoid_bench.env`; importing it registers the tasks with Gymnasium."""
    if importlib.util.find_spec("humanoid_bench") is None:
        raise ImportError(
            "'humanoid_bench' is not installed, and is on no package index: "
            f"git clone {_SOURCE} && pip install --no-deps --editable humanoid-bench"
        )
    require("control", "dm_control", "mujoco")
    with _without_torch():
        from humanoid_bench import env
    return env


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Let the import do without PyTorch where there is none: it is for pretrained policies that no task uses."""
    name = "humanoid_bench.mjx.flax_to_torch"
    if importlib.util.find_spec("torch") is not None or name in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(name)
    stand_in.TorchModel = stand_in.TorchPolicy = None
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _current_indexing(module: ModuleType) -> Iterator[None]:
    """While an environment is built, let it index the simulator's fields by name through dm_control's own code.

    HumanoidBench has a copy of it, with a table of the fields of MuJoCo 3.1, some of which are gone. The installed
    dm_control has the table that fits the installed MuJoCo.
    """
    from dm_control.mujoco import index

    copy, module.index = module.index, index  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.index = copy  # type: ignore[attr-defined]


def _current_renderer(env: Any) -> Any:
    """An off-screen viewer that takes what HumanoidBench hands to Gymnasium 0.29's.

    It names the camera in each call: since Gymnasium 1.0 the renderer is given it when it is built. It marks a
    goal with a radius: since MuJoCo 3.2 a marker's size has three components.
    """
    renderer = env.mujoco_renderer
    viewer, render = renderer._get_viewer("rgb_array"), renderer.render
    mark = viewer.add_marker
    renderer.render = lambda mode, *_camera: render(mode)
    viewer.add_marker = lambda *, size, rgba, **rest: mark(size=np.full(3, size), rgba=np.array(rgba), **rest)
    return viewer


_Constants = dict[tuple[str, str], float]


def _constants() -> _Constants:
    """The heights that the G1 robot overwrites, `{(module, name): metres}`."""
    return {(module, name): getattr(sys.modules[module], name) for module, name in _constant_names()}


def _set_constants(values: _Constants) -> None:
    for (module, name), value in values.items():
        setattr(sys.modules[module], name, value)


@functools.cache
def _constant_names() -> tuple[tuple[str, str], ...]:
    return tuple(
        (module, name)
        for module in sorted(sys.modules)
        if module.startswith("humanoid_bench.envs.")
        for name in ("_STAND_HEIGHT", "_CRAWL_HEIGHT")
        if hasattr(sys.modules[module], name)
    )


@functools.cache
def _original_constants() -> _Constants:
    """The constants as they were before the first environment was built."""
    return _constants()
