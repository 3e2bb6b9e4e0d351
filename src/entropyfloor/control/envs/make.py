"""`make("gym/HalfCheetah-v4")`, `make("dmc/walker-run")`, `make("humanoid_bench/h1-walk-v0")`.

A suite, a slash, the suite's own name.
"""

import difflib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium

from entropyfloor.control.envs import dmc, envpool, humanoid_bench
from entropyfloor.control.envs.wrappers import ActionRepeat, IgnoreTermination, Standard


def make(
    name: str,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    ignore_termination: bool = False,
    backend: str = "native",
) -> gymnasium.Env[Any, Any]:
    """Build an environment.

    Args:
        name: `suite/task`, such as `gym/HalfCheetah-v4` or `dmc/walker-run`; `names()` lists them all.
        seed: Seeds the first `reset` that is given none, and the action space.
        action_repeat: How often each action is applied; rewards are summed. An environment step is one
            application: an agent that repeats twice sees half as many observations in the same number of steps.
        ignore_termination: Go on where the task would end early; only its time limit ends an episode then.
        backend: `native`, the suite's own simulator, or `envpool`, for `envpool.CHECKED`.

    Returns:
        Float32 observations `[obs_dim]`, and, where the task's actions are continuous, float32 actions
        `[action_dim]` in [-1, 1].

    Raises:
        ValueError: Unknown suite or task (the nearest names are listed), a repeat below 1, or a backend that does
            not have the task.
        ImportError: The suite or the backend is not installed; the way to install it is named.
    """
    if action_repeat < 1:
        raise ValueError(f"action_repeat={action_repeat} must be at least 1")
    suite, _, task = name.partition("/")
    if suite not in _SUITES:
        raise ValueError(f"environment {name!r}: write suite/task, with one of the suites {', '.join(_SUITES)}")
    build, list_tasks = _SUITES[suite]
    # A suite that is not installed lists nothing; building then says how to install it.
    if (tasks := list_tasks()) and task not in tasks:
        near = [f"{suite}/{t}" for t in difflib.get_close_matches(task, tasks, n=5, cutoff=0.4)]
        hint = f"did you mean {', '.join(near)}?" if near else "entropyfloor.control.envs.names() lists all"
        raise ValueError(f"environment {name!r} does not exist: {hint}")
    if backend not in ("native", "envpool"):
        raise ValueError(f"backend={backend!r} must be 'native' or 'envpool'")
    if backend == "envpool" and name not in envpool.CHECKED:
        raise ValueError(
            f"environment {name!r}: backend='envpool' was checked for {', '.join(envpool.CHECKED)} only; "
            "backend='native' has the others"
        )
    env = build(task) if backend == "native" else envpool.EnvPool(name)
    if ignore_termination:
        env = IgnoreTermination(env)
    if action_repeat > 1:
        env = ActionRepeat(env, action_repeat)
    return Standard(env, seed)


def names() -> list[str]:
    """Every name that `make` accepts, those of HumanoidBench only where it is installed."""
    return [f"{suite}/{task}" for suite, (_, list_tasks) in _SUITES.items() for task in list_tasks()]


def _make_gym(task: str) -> gymnasium.Env[Any, Any]:
    with warnings.catch_warnings():
        # The paper's tasks are the v4 ones. That v5 exists is no news to who asks for v4 by name.
        warnings.filterwarnings("ignore", message=".*is out of date.*", category=DeprecationWarning)
        # `Standard` does the checking: the built-in checker costs time in every step and warns of what it repairs.
        env = gymnasium.make(task, disable_env_checker=True)
    # Pictures are drawn when somebody asks for one; asked for in `make`, some tasks would want a display at once.
    env.unwrapped.render_mode = "rgb_array"
    return env


def _gym_tasks() -> list[str]:
    # HumanoidBench registers its tasks here as well, for versions of the libraries that its own suite adapts to.
    return [task for task, spec in gymnasium.registry.items() if "humanoid_bench" not in str(spec.entry_point)]


_SUITES: dict[str, tuple[Callable[[str], gymnasium.Env[Any, Any]], Callable[[], list[str]]]] = {
    "gym": (_make_gym, _gym_tasks),
    "dmc": (dmc.DMControl, dmc.tasks),
    "humanoid_bench": (humanoid_bench.HumanoidBench, humanoid_bench.tasks),
}
