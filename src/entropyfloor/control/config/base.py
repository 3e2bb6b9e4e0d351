"""Settings that all control agents have."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from entropyfloor import targets
from entropyfloor.control.heads import DistributionName, HeadName
from entropyfloor.runs.settings import POSITIVE, SEED_RANGE, SHARE, THREADS, Effect, Precision, Range, check
from entropyfloor.runs.trackers import Track

Backend = Literal["native", "envpool"]

ERA_LOG_STD = (-8.0, 0.0)
"""Bounds of log σ under ERA: "log σ ∈ [-8, 0]", arXiv 2510.08549."""
TANH_LOG_STD = (-5.0, 2.0)
"""Bounds of log σ for the head `tanh`. The paper states none; these are the usual ones for SAC (CleanRL)."""
CLIP_LOG_STD = (-20.0, 2.0)
"""Bounds of log σ for the head `clip`: so wide that they bind in accidents only (Stable-Baselines3)."""
FIXED_LOG_STD = (-20.0, math.log(0.1))
"""Bounds of log σ for the head `fixed`, whose σ is the upper one: 0.1, TD3's noise."""
_LOG_STD = {
    "tanh": TANH_LOG_STD,
    "projection": TANH_LOG_STD,
    "shares": TANH_LOG_STD,
    "clip": CLIP_LOG_STD,
    "softmax": CLIP_LOG_STD,
    "fixed": FIXED_LOG_STD,
}


COUNT = Range(1, 2**32 - 1, "between 1 and 2**32 - 1")
"""Counts of control: steps are folded into random keys as 32 bits, and nothing else comes near this limit."""
ENVS = Range(1, 4096, "between 1 and 4096")
"""Each environment is a simulator in the memory of this machine."""


@dataclass(frozen=True)
class ControlConfig(ABC):
    """Settings of a control agent, built by `configure`. A setting at None follows from `agent` and the rest."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings of each preset, by its name."""

    agent: str = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    env: str = "dmc/walker-walk"
    """Environment, `suite/task`: gym/HalfCheetah-v4, dmc/walker-run, playground/WalkerWalk, …"""
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    """Seed of everything random."""
    steps: Annotated[int, COUNT] = 1_000_000
    """Number of environment steps; an action that is repeated twice counts two."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Run directory; by default runs/<env>/<agent>/seed-<seed>."""
    recipe: Annotated[str | None, Effect.IDENTITY] = None
    """Remark for reports: the recipe of the run, its scale and its arm."""

    head: HeadName | None = None
    """Map from raw outputs to log σ, or to logits for discrete actions; overrides the preset."""
    distribution: DistributionName | None = None
    """Distribution of actions, and how it is bounded; overrides the preset."""
    target_entropy: str | None = None
    """Target entropy H0 of continuous actions: nats, or a rule in their dimension A such as -A/2 or 0.25*A."""
    log_std_min: float | None = None
    """Lower bound of log σ: by default -8 under a floor, else that of the agent, such as -5 for SAC with tanh."""
    log_std_max: float | None = None
    """Upper bound of log σ: by default 0 under a floor, else that of the agent, such as 2 for SAC with tanh."""

    hidden: Annotated[int, COUNT] = 512
    """Width of the two hidden layers."""
    precision: Precision = "fp32"
    """Matrix products: float32, or bfloat16 in all layers but the last of the critics and values of SAC, MNSE,
    OBAC and PPO.

    All else is float32. JAX computes products of float32 on recent NVIDIA GPUs in TF32, unless
    `JAX_DEFAULT_MATMUL_PRECISION=highest` is set.
    """
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Learning rate of every optimiser."""
    discount: Annotated[float, SHARE] = 0.99
    """Discount γ of each action of the agent."""

    action_repeat: Annotated[int, COUNT] = 1
    """Number of times that each action is applied."""
    ignore_termination: bool = False
    """Let only the time limit end an episode."""
    backend: Backend = "native"
    """Simulator: the suite's own, or that of envpool where it has the task."""
    max_episode_steps: Annotated[int | None, COUNT] = None
    """Number of environment steps after which an episode is cut off, instead of the task's own limit."""
    env_args: str | None = None
    """Further arguments of the environment, a JSON object: '{"continuous": true}'."""

    eval_every: Annotated[int, COUNT] = 25_000
    """Number of environment steps between evaluations."""
    eval_episodes: Annotated[int, COUNT] = 10
    """Number of episodes in an evaluation, with the mode action."""
    log_every: Annotated[int, COUNT] = 1_000
    """Number of environment steps between lines of training metrics."""
    checkpoint_every: Annotated[int, COUNT, Effect.SPEED] = 25_000
    """Number of environment steps between checkpoints; the end and Ctrl-C always save one."""
    threads: Annotated[int, THREADS, Effect.SPEED] = 1
    """Number of CPU threads for XLA; 0 leaves the choice to XLA. One process per core is faster."""
    track: Annotated[Track | None, Effect.SPEED] = None
    """Tracker beside TensorBoard, whose files are written where it is installed; none turns them off too."""

    def __post_init__(self) -> None:
        check(self)
        low, high = self.log_std_min, self.log_std_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"log_std_min={low} must be below log_std_max={high}")
        self.env_arguments()

    def env_arguments(self) -> dict[str, Any]:
        """`env_args` as a dict."""
        try:
            arguments = json.loads(self.env_args or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            example = '{"continuous": true}'
            raise ValueError(f"env_args={self.env_args!r} must be a JSON object, such as {example!r}")
        return arguments

    def env_options(self) -> dict[str, Any]:
        """Arguments of `envs.make` beside the name."""
        names = ("action_repeat", "ignore_termination", "backend", "max_episode_steps")
        return {name: getattr(self, name) for name in names} | {"env_args": self.env_arguments()}

    def resolved(self) -> ControlConfig:
        """The same run with nothing left at None.

        Raises:
            ValueError: The target is no number and no rule, or all actions would be random.
        """
        if self.steps <= (random := getattr(self, "random_steps", 0)):
            raise ValueError(
                f"steps={self.steps} must be above random_steps={random}, in which actions are random and nothing "
                "is learned: raise the first or lower the second"
            )
        return self.filled()

    def filled(self) -> ControlConfig:
        """As `resolved`, without the check of the steps: runs of earlier versions may have only random actions."""
        preset = replace(self, **self._missing(self.PRESETS[self.agent]))
        low, high = _LOG_STD.get(required(preset.head), ERA_LOG_STD)
        defaults = {
            "out": f"runs/{re.sub('[/:]', '-', self.env)}/{self.agent}/seed-{self.seed}",
            "log_std_min": low,
            "log_std_max": high,
            **preset.defaults(),
        }
        complete = replace(preset, **preset._missing(defaults))
        targets.resolve(required(complete.target_entropy), 1)  # refused before anything is built
        return complete

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Values of the settings that are still None after the preset's are filled in."""

    def _missing(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if getattr(self, name) is None}


def required(value: Any) -> Any:
    """A setting that `resolved()` has filled in."""
    assert value is not None, "the config is not resolved"
    return value
