"""`make("gym/HalfCheetah-v4")`, `make("dmc/walker-run")`, `make("humanoid_bench/h1-walk-v0")`.

A suite, a slash, the suite's own name.
"""

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from entropyfloor.control.envs import dmc, envpool, humanoid_bench, playground, registered
from entropyfloor.control.envs.wrappers import ActionRepeat, AnyEnv, Checked, IgnoreTermination, Standard
from entropyfloor.extras import brief


def make(
    name: str,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    ignore_termination: bool = False,
    backend: str = "native",
    max_episode_steps: int | None = None,
    env_args: Mapping[str, Any] | None = None,
) -> Standard:
    """Build an environment.

    Args:
        name: `suite/task`, such as `gym/HalfCheetah-v4` or `dmc/walker-run`; `names()` lists them all. Your own
            environment is `gym/my.module:Env-v0`, with the module that registers it, as in `gymnasium.make`.
        seed: Seeds the first `reset` that is given none, and the action space.
        action_repeat: Number of times that each action is applied; rewards are summed. An environment step is one
            application: an agent that repeats twice sees half as many observations in the same number of steps.
        ignore_termination: Go on where the task would end early; only its time limit ends an episode then.
        backend: `native`, the suite's own simulator, or `envpool`, for `envpool.CHECKED`.
        max_episode_steps: Environment steps after which an episode is truncated, instead of the task's own limit.
        env_args: More keyword arguments of `gymnasium.make`, or of the task in the other suites.

    Returns:
        Float32 observations `[obs_dim]`, and, where the task's actions are continuous, float32 actions
        `[action_dim]` in [-1, 1]; others count from 0.

    Raises:
        ValueError: Unknown suite or task (the nearest names are listed), a repeat below 1, a backend that does
            not have the task, arguments that it does not take, or a space that no agent here can use.
        ImportError: The suite, the backend or something else that the task needs is not installed; it is named.

    Examples:
        >>> from entropyfloor.control import envs
        >>> env = envs.make("gym/Pendulum-v1")
        >>> env.observation_space.shape, env.action_space.shape
        ((3,), (1,))
    """
    for option, value in (("action_repeat", action_repeat), ("max_episode_steps", max_episode_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{option}={value} must be at least 1")
    suite, _, task = name.partition("/")
    if suite not in _SUITES:
        raise ValueError(f"environment {name!r}: write suite/task, with one of the suites {', '.join(_SUITES)}")
    build, list_tasks = _SUITES[suite]
    if suite == "gym":
        task = registered.find(task)
    # A suite that is not installed lists nothing; building then says how to install it.
    if (tasks := list_tasks()) and task not in tasks:
        near = [f"{suite}/{t}" for t in difflib.get_close_matches(task, tasks, n=5, cutoff=0.4)]
        hint = f"did you mean {', '.join(near)}?" if near else "entropyfloor.control.envs.names() lists all."
        own = f" If it is your own, put the module that registers it in front: gym/my.module:{task}"
        raise ValueError(f"environment {name!r} does not exist: {hint}{own if suite == 'gym' else ''}")
    if backend not in ("native", "envpool"):
        raise ValueError(f"backend={backend!r} must be 'native' or 'envpool'")
    if backend == "envpool":
        if name not in envpool.CHECKED:
            raise ValueError(
                f"environment {name!r}: backend='envpool' was checked for {', '.join(envpool.CHECKED)} only; "
                "backend='native' has the others"
            )
        if env_args:
            raise ValueError(f"env_args={dict(env_args)}: backend='envpool' takes none, backend='native' does")
        task, build = name, envpool.EnvPool
    env: AnyEnv = Checked(_build(name, build, task, max_episode_steps, dict(env_args or {})))
    if ignore_termination:
        env = IgnoreTermination(env)
    if action_repeat > 1:
        env = ActionRepeat(env, action_repeat)
    try:
        return Standard(env, seed)
    except ValueError as error:
        raise ValueError(f"environment {name!r}: {error}") from None


def _build(name: str, build: Callable[..., AnyEnv], task: str, limit: int | None, args: dict[str, Any]) -> AnyEnv:
    """Build it; whatever its constructor raises becomes one line that names the environment."""
    try:
        return build(task, limit, **args)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ImportError(f"environment {name!r} needs what is not installed: {brief(error)}") from error
    except ImportError:
        raise
    except Exception as error:
        given = f" with env_args={args}" if args else ""
        message = f"{type(error).__name__}: {brief(error)}"
        raise ValueError(f"environment {name!r} cannot be built{given}: {message}") from error


def names() -> list[str]:
    """Every name that `make` accepts, those of HumanoidBench and Playground only where they are installed."""
    return [f"{suite}/{task}" for suite, (_, list_tasks) in _SUITES.items() for task in list_tasks()]


def _make_gym(task: str, limit: int | None, /, **args: Any) -> AnyEnv:
    with warnings.catch_warnings():
        # The paper's tasks are the v4 ones, and whoever names v4 needs no warning that v5 exists.
        warnings.filterwarnings("ignore", message=".*is out of date.*", category=DeprecationWarning)
        # `Checked` does the checking: the built-in checker costs time in every step and warns of what it repairs.
        env = gymnasium.make(task, max_episode_steps=limit, disable_env_checker=True, **args)
    # `render` draws when it is called. Given to `make`, the mode would need a display at once in some tasks.
    env.unwrapped.render_mode = "rgb_array"
    return env


def _gym_tasks() -> list[str]:
    # HumanoidBench registers its tasks here as well, for versions of the libraries that its own suite adapts to.
    return [task for task, spec in gymnasium.registry.items() if "humanoid_bench" not in str(spec.entry_point)]


_SUITES: dict[str, tuple[Callable[..., AnyEnv], Callable[[], list[str]]]] = {
    "gym": (_make_gym, _gym_tasks),
    "dmc": (dmc.DMControl, dmc.tasks),
    "humanoid_bench": (humanoid_bench.HumanoidBench, humanoid_bench.tasks),
    "playground": (playground.Playground, playground.tasks),
}
