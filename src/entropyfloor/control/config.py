"""Settings of `entropyfloor train control`, and the named presets.

Each agent has a class of settings, `SACConfig`, `OBACConfig` or `PPOConfig`, which `configure` finds by its name.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from entropyfloor import targets
from entropyfloor.control.agents.sac import AlphaWeight, EntropyTerm
from entropyfloor.control.heads import DistributionName, HeadName
from entropyfloor.control.networks import ActivationName
from entropyfloor.runs.resume import config_of
from entropyfloor.runs.settings import (
    NATURAL,
    POSITIVE,
    SEED_RANGE,
    SHARE,
    THREADS,
    Effect,
    Precision,
    Range,
    check,
)

SACName = Literal["sac", "sac-no-entropy", "sac-era", "sac-era-exact"]
OBACName = Literal["obac", "obac-era", "obac-era-exact"]
PPOName = Literal["ppo", "ppo-clip-higher", "ppo-high-entropy", "eapo", "ppo-era", "ppo-era-exact"]
NetworksName = Literal["paper", "release"]
Backend = Literal["native", "envpool"]

_PLAIN = {"head": "tanh", "distribution": "tanh", "entropy": "auto"}
_ERA = {"head": "era", "distribution": "truncated", "entropy": "none"}
_EXACT = {"head": "era-exact", "distribution": "truncated", "entropy": "none"}
_PLAIN_PPO = {"head": "clip", "distribution": "normal", "global_log_std": True, "entropy_coef": 0.01}
_ERA_PPO = {"head": "era", "distribution": "normal", "global_log_std": False, "entropy_coef": 0.0}

PRESETS: dict[str, dict[str, Any]] = {
    "sac": _PLAIN,
    "sac-no-entropy": {**_PLAIN, "entropy": "none"},
    "sac-era": _ERA,
    "sac-era-exact": _EXACT,
    # "Auto-α, target entropy -A": the code that the paper builds on.
    "obac": {**_PLAIN, "target_entropy": "-A"},
    "obac-era": _ERA,
    "obac-era-exact": _EXACT,
    "ppo": _PLAIN_PPO,
    # DAPO's ratio, arXiv 2503.14476; the paper tries several and names none.
    "ppo-clip-higher": {**_PLAIN_PPO, "clip_high": 0.28},
    # "the agent only on a certain proportion of high-entropy samples": C.1.4; 20 % in arXiv 2506.01939.
    # With one σ for all states there would be no states of high entropy.
    "ppo-high-entropy": {**_PLAIN_PPO, "global_log_std": False, "entropy_share": 0.2},
    # Choe and Kim 2024, arXiv 2407.18143. Its entropy is in the advantage, not in a bonus; with one σ for all
    # states its critic would have nothing to learn.
    "eapo": {**_PLAIN_PPO, "global_log_std": False, "entropy_coef": 0.0, "entropy_critic": True},
    "ppo-era": _ERA_PPO,
    "ppo-era-exact": {**_ERA_PPO, "head": "era-exact", "distribution": "truncated"},
}
"""Head, distribution, entropy term and other settings of each preset."""

NETWORKS: dict[NetworksName, dict[str, Any]] = {
    # "nets (512, 512), LayerNorm, ReLU": arXiv 2510.08549.
    "paper": {"activation": "relu", "actor_layer_norm": True, "critic_layer_norm": True},
    # The authors' code: "actor 2×512 ELU without LN; critic Dense-LN-ELU ×2".
    "release": {"activation": "elu", "actor_layer_norm": False, "critic_layer_norm": True},
}
"""Networks of the paper and of its release, which disagree."""

ERA_LOG_STD = (-8.0, 0.0)
"""Bounds of log σ under ERA: "log σ ∈ [-8, 0]", arXiv 2510.08549."""
TANH_LOG_STD = (-5.0, 2.0)
"""Bounds of log σ for the head `tanh`. The paper states none; these are the usual ones for SAC (CleanRL)."""
CLIP_LOG_STD = (-20.0, 2.0)
"""Bounds of log σ for the head `clip`: so wide that they bind in accidents only (Stable-Baselines3)."""
_LOG_STD = {"tanh": TANH_LOG_STD, "projection": TANH_LOG_STD, "clip": CLIP_LOG_STD, "softmax": CLIP_LOG_STD}

COUNT = Range(1, 2**32 - 1, "between 1 and 2**32 - 1")
"""Counts of control: steps are folded into random keys as 32 bits, and nothing else comes near this limit."""
ENVS = Range(1, 4096, "between 1 and 4096")
"""Each environment is a simulator in this process."""


@dataclass(frozen=True)
class ControlConfig(ABC):
    """Settings of a control agent, built by `configure`. A setting at None follows from `agent` and the rest."""

    agent: str = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    env: str = "dmc/walker-walk"
    """Environment, `suite/task`: gym/HalfCheetah-v4, dmc/walker-run, humanoid_bench/h1-walk-v0, …"""
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
    """Target entropy H0 in nats, a number or a rule in the action dimension A: -3, -A/2, 0.25*A."""
    log_std_min: float | None = None
    """Lower bound of log σ: by default -8 under a floor, -5 for the head tanh, -20 for the head clip."""
    log_std_max: float | None = None
    """Upper bound of log σ: by default 0 under a floor, else 2."""

    hidden: Annotated[int, COUNT] = 512
    """Width of the two hidden layers."""
    precision: Precision = "fp32"
    """Matrix products of hidden layers and of the actor's output: float32 or bfloat16. All else is float32."""
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
        except ValueError:
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
        """The same run with nothing left at None."""
        preset = replace(self, **self._missing(PRESETS[self.agent]))
        low, high = _LOG_STD.get(required(preset.head), ERA_LOG_STD)
        defaults = {
            **preset.defaults(),
            "out": f"runs/{re.sub('[/:]', '-', self.env)}/{self.agent}/seed-{self.seed}",
            "log_std_min": low,
            "log_std_max": high,
        }
        complete = replace(preset, **preset._missing(defaults))
        targets.resolve(required(complete.target_entropy), 1)  # refused before anything is built
        return complete

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Values of the settings that are still None after the preset's are filled in."""

    def _missing(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if getattr(self, name) is None}


@dataclass(frozen=True)
class SACConfig(ControlConfig):
    """SAC, with and without ERA."""

    agent: SACName = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    entropy: EntropyTerm | None = None
    """Entropy term of the losses: a learned α, a fixed α or none; overrides the preset."""
    residual_entropy: float | Literal["learned"] = 0.0
    """Residual entropy δ̂, added to H0 under heads with a floor: a constant in nats, or learned (Eq. 12)."""
    clamp_target: bool = True
    """Stop H0 + a learned δ̂ at what σ_max allows; without it C.1.1 of the paper can be reproduced."""
    alpha: Annotated[float, POSITIVE] = 1.0
    """Initial temperature α, or α itself where `entropy` is fixed; `--entropy none` leaves it out."""
    alpha_weight: AlphaWeight = "alpha"
    """Factor in the loss of a learned α: α itself, or log α, as Stable-Baselines3 has it."""

    networks: NetworksName = "paper"
    """Networks with LayerNorm and ReLU (paper), or with ELU and LayerNorm in the critics only (release)."""
    activation: ActivationName | None = None
    """Activation of every hidden layer; overrides `networks`."""
    actor_layer_norm: bool | None = None
    """LayerNorm in the hidden layers of the actor; overrides `networks`."""
    critic_layer_norm: bool | None = None
    """LayerNorm in the hidden layers of the critics; overrides `networks`."""
    weight_decay: Annotated[float, NATURAL] = 1e-4
    """Weight decay of AdamW for the critics. The paper states none; this is optax's default."""
    batch_size: Annotated[int, COUNT] = 256
    """Number of transitions in an update."""
    updates_per_step: Annotated[int, COUNT] = 2
    """Number of updates after each action of the agent."""
    random_steps: Annotated[int, COUNT] = 5_000
    """Number of environment steps with uniform actions before learning starts."""
    replay_capacity: Annotated[int, COUNT] = 1_000_000
    """Number of transitions that the replay buffer holds."""
    tau: Annotated[float, SHARE] = 0.005
    """Polyak's τ: share of the way that the target critics move in each update."""

    def defaults(self) -> dict[str, Any]:
        """Networks of the paper or the release, and their targets."""
        # "0.25 per dimension in the script" of the release, on the Gaussian before truncation.
        target = "0.25*A" if self.networks == "release" and self.head == "era" else "-A/2"
        return {**NETWORKS[self.networks], "target_entropy": target}


@dataclass(frozen=True)
class OBACConfig(SACConfig):
    """OBAC, with and without ERA: SAC's settings and those of the behaviour policy."""

    agent: OBACName = "obac"  # type: ignore[assignment]
    """Preset of head, distribution and entropy."""
    expectile: Annotated[float, SHARE] = 0.9
    """Expectile of Vμ: at 1, the value of the best actions in the replay."""
    cloning_weight: Annotated[float, NATURAL] = 1e-3
    """Weight λ of behaviour cloning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.networks != "paper":
            raise ValueError(f"networks={self.networks!r}: OBAC was not released, it has the paper's only")

    def defaults(self) -> dict[str, Any]:
        """LayerNorm and tanh in the first layer, ELU in the second: the code that the paper builds on."""
        networks = {"activation": "elu", "actor_layer_norm": False, "critic_layer_norm": False}
        return {**networks, "target_entropy": "-A/2"}


@dataclass(frozen=True)
class PPOConfig(ControlConfig):
    """PPO, with and without ERA, for continuous and discrete actions."""

    agent: PPOName = "ppo"
    """Preset of head, distribution and entropy."""
    min_entropy: Annotated[float | None, NATURAL] = None
    """Entropy floor in nats for discrete actions under `era` heads; by default a tenth of log n."""
    hidden: Annotated[int, COUNT] = 64
    """Width of the two hidden layers."""
    activation: ActivationName = "tanh"
    """Activation of every hidden layer."""
    global_log_std: bool | None = None
    """One raw log σ for all states, as plain PPO has it, or an output of the network, as ERA needs it."""

    num_envs: Annotated[int, ENVS] = 1
    """Number of environments, stepped in turn."""
    rollout_steps: Annotated[int, COUNT] = 2048
    """Number of actions in each environment between updates."""
    minibatch_size: Annotated[int, COUNT] = 64
    """Number of samples in a gradient step; divides num_envs * rollout_steps."""
    epochs: Annotated[int, COUNT] = 10
    """Number of passes over a rollout."""
    gae_lambda: Annotated[float, SHARE] = 0.95
    """Decay λ of generalised advantage estimation."""
    clip_low: Annotated[float, NATURAL] = 0.2
    """Clip range of the probability ratio below 1."""
    clip_high: Annotated[float | None, NATURAL] = None
    """Clip range of the probability ratio above 1: by default 0.2; clip-higher takes more."""
    entropy_coef: Annotated[float | None, NATURAL] = None
    """Weight of the entropy bonus: by default 0.01, and 0 under ERA."""
    entropy_share: Annotated[float | None, SHARE] = None
    """Share of a minibatch, the samples of highest entropy, that the policy learns from."""
    value_coef: Annotated[float, NATURAL] = 0.5
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, POSITIVE] = 0.5
    """Largest norm of a gradient; longer ones are scaled down to it."""
    decay_learning_rate: bool = True
    """Lower the learning rate to 0 along the run."""
    normalise_observations: bool = True
    """Normalise observations by their running mean and deviation."""
    normalise_rewards: bool = True
    """Divide rewards by the running deviation of the discounted return."""

    entropy_critic: bool | None = None
    """Learn a second critic, of the trajectory's entropy (EAPO)."""
    entropy_weight: Annotated[float, NATURAL] = 0.02
    """Weight τ of the entropy's advantage in EAPO; this and the next two defaults are its authors' for MuJoCo."""
    entropy_discount: Annotated[float, SHARE] = 0.99
    """Discount γ_H of the entropy in EAPO."""
    entropy_lambda: Annotated[float, SHARE] = 0.001
    """Decay λ_H of the entropy's advantage in EAPO."""

    def defaults(self) -> dict[str, Any]:
        """The paper's target; plain PPO otherwise."""
        return {"target_entropy": "-0.3*A", "clip_high": 0.2, "entropy_share": 1.0, "entropy_critic": False}


CONFIGS: dict[str, type[ControlConfig]] = {
    **dict.fromkeys(get_args(SACName), SACConfig),
    **dict.fromkeys(get_args(OBACName), OBACConfig),
    **dict.fromkeys(get_args(PPOName), PPOConfig),
}
"""Class of each agent's settings."""


def configure(agent: str, **settings: Any) -> ControlConfig:
    """Settings of an agent by its name.

    Example:
        >>> configure("sac-era-exact", env="dmc/walker-run", seed=1)

    Raises:
        ValueError: An agent that does not exist, a setting that it does not have, or a number out of range.
    """
    if agent not in CONFIGS:
        raise ValueError(f"agent={agent!r} must be one of {', '.join(CONFIGS)}")
    known = CONFIGS[agent].__dataclass_fields__
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{agent} has no setting {', '.join(unknown)}: it has {', '.join(known)}")
    return CONFIGS[agent](agent=agent, **settings)


def read_config(settings: Mapping[str, Any]) -> ControlConfig:
    """The resolved config of a run of any version.

    Args:
        settings: Content of its `config.toml`.

    Raises:
        ValueError: The run is not of a control agent, or has settings that this version does not have.
    """
    if (kind := CONFIGS.get(str(settings.get("agent")))) is None or settings.get("domain") != "control":
        what = f"domain={settings.get('domain')!r}, agent={settings.get('agent')!r}"
        raise ValueError(f"a run of {what} is no run of a control agent that this version knows")
    return config_of(kind, settings, "control", "a control agent", ("domain", "registered")).resolved()


def required(value: Any) -> Any:
    """A setting that `resolved()` has filled in."""
    assert value is not None, "the config is not resolved"
    return value
