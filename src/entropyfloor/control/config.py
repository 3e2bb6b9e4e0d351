"""Everything that a run of `entropyfloor train control` can be told, and the named presets.

An agent's settings are those of its class: `SACConfig`, `OBACConfig`, `PPOConfig`. `configure` finds the class.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from entropyfloor import targets
from entropyfloor.control.agents.sac import AlphaWeight, EntropyTerm
from entropyfloor.control.heads import DistributionName, HeadName
from entropyfloor.control.networks import ActivationName
from entropyfloor.runs.settings import NATURAL, POSITIVE, SEED_RANGE, SHARE, THREADS, Effect, Range, check

SACName = Literal["sac", "sac-no-entropy", "sac-era", "sac-era-exact"]
OBACName = Literal["obac", "obac-era", "obac-era-exact"]
PPOName = Literal["ppo", "ppo-clip-higher", "ppo-high-entropy", "eapo", "ppo-era", "ppo-era-exact"]
Settings = Literal["paper", "release"]
Backend = Literal["native", "envpool"]

_PLAIN = {"head": "clip", "distribution": "tanh", "entropy": "auto"}
_ERA = {"head": "era", "distribution": "truncated", "entropy": "none"}
_EXACT = {"head": "era-exact", "distribution": "truncated", "entropy": "none"}
_PLAIN_PPO = {"head": "hard-clip", "distribution": "normal", "global_log_std": True, "entropy_coef": 0.01}
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
"""What a name stands for: head, distribution and entropy, and what else makes the agent."""

NETWORKS: dict[Settings, dict[str, Any]] = {
    # "nets (512, 512), LayerNorm, ReLU": arXiv 2510.08549.
    "paper": {"activation": "relu", "actor_layer_norm": True, "critic_layer_norm": True},
    # The authors' code: "actor 2×512 ELU without LN; critic Dense-LN-ELU ×2".
    "release": {"activation": "elu", "actor_layer_norm": False, "critic_layer_norm": True},
}
"""Where the paper and its release disagree."""

ERA_LOG_STD = (-8.0, 0.0)
"""Bounds of log σ under ERA: "log σ ∈ [-8, 0]", arXiv 2510.08549."""
PLAIN_LOG_STD = (-5.0, 2.0)
"""Bounds of log σ for the plain head. The paper states none; these are the usual ones for SAC (CleanRL)."""
HARD_LOG_STD = (-20.0, 2.0)
"""Bounds of log σ where it is cut: so wide that they bind in accidents only (Stable-Baselines3)."""


COUNT32 = Range(1, 2**32 - 1, "between 1 and 2**32 - 1")
"""Steps are folded into random keys as 32 bits; nothing else comes near this limit."""
ENVS = Range(1, 4096, "between 1 and 4096")
"""Each environment is a simulator in this process."""


@dataclass(frozen=True)
class ControlConfig(ABC):
    """A run of a control agent: `configure` builds one. What is left at None follows from `agent` and the rest."""

    agent: str = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    env: str = "dmc/walker-walk"
    """Environment, `suite/task`: gym/HalfCheetah-v4, dmc/walker-run, humanoid_bench/h1-walk-v0, …"""
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    """Everything random follows from it."""
    steps: Annotated[int, COUNT32] = 1_000_000
    """Environment steps; an action that is repeated twice counts two."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Run directory; by default runs/<env>/<agent>/seed-<seed>."""
    recipe: Annotated[str | None, Effect.IDENTITY] = None
    """A remark: the recipe that asked for the run, its scale and its arm."""

    head: HeadName | None = None
    """How raw outputs become log σ; overrides the preset."""
    distribution: DistributionName | None = None
    """What actions are drawn from, and how they are bounded; overrides the preset."""
    target_entropy: str | None = None
    """H0 in nats, a number or a rule in the action dimension A: -3, -A/2, 0.25*A."""
    log_std_min: float | None = None
    """Lower bound of log σ: -8 under a floor, -5 for the plain head, -20 where it is cut."""
    log_std_max: float | None = None
    """Upper bound of log σ: 0 under a floor, 2 otherwise."""

    hidden: Annotated[int, COUNT32] = 512
    """Width of the two hidden layers."""
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Of every optimiser."""
    discount: Annotated[float, SHARE] = 0.99
    """γ, for each action of the agent."""

    action_repeat: Annotated[int, COUNT32] = 1
    """How often each action is applied."""
    ignore_termination: bool = False
    """Let only the time limit end an episode."""
    backend: Backend = "native"
    """Who runs the simulator: the suite itself, or envpool where it has the task."""
    max_episode_steps: Annotated[int | None, COUNT32] = None
    """Environment steps after which an episode is cut off, instead of the task's own limit."""
    env_args: str | None = None
    """More arguments of the environment, a JSON object: '{"continuous": true}'."""

    eval_every: Annotated[int, COUNT32] = 25_000
    """Environment steps between evaluations."""
    eval_episodes: Annotated[int, COUNT32] = 10
    """Episodes in an evaluation, with the mode action."""
    log_every: Annotated[int, COUNT32] = 1_000
    """Environment steps between lines of training metrics."""
    checkpoint_every: Annotated[int, COUNT32, Effect.SPEED] = 25_000
    """Environment steps between checkpoints; the end and Ctrl-C always save one."""
    threads: Annotated[int, THREADS, Effect.SPEED] = 1
    """CPU threads for XLA; 0 leaves the choice to XLA. One process per core beats one process on all of them."""

    def __post_init__(self) -> None:
        check(self)
        low, high = self.log_std_min, self.log_std_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"log_std_min={low} must be below log_std_max={high}")
        self.env_arguments()

    def env_arguments(self) -> dict[str, Any]:
        """`env_args` as a dict."""
        try:
            found = json.loads(self.env_args or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            example = '{"continuous": true}'
            raise ValueError(f"env_args={self.env_args!r} must be a JSON object, such as {example!r}")
        return found

    def resolved(self) -> ControlConfig:
        """The same run with nothing left at None."""
        found = replace(self, **self._missing(PRESETS[self.agent]))
        low, high = {"clip": PLAIN_LOG_STD, "projection": PLAIN_LOG_STD, "hard-clip": HARD_LOG_STD}.get(
            set_(found.head), ERA_LOG_STD
        )
        defaults = {
            **found.defaults(),
            "out": f"runs/{re.sub('[/:]', '-', self.env)}/{self.agent}/seed-{self.seed}",
            "log_std_min": low,
            "log_std_max": high,
        }
        settled = replace(found, **found._missing(defaults))
        targets.resolve(set_(settled.target_entropy), 1)  # refused before anything is built
        return settled

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """What the fields that are still None become, once the preset's are filled in."""

    def _missing(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if getattr(self, name) is None}


@dataclass(frozen=True)
class SACConfig(ControlConfig):
    """SAC, with and without ERA."""

    agent: SACName = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    entropy: EntropyTerm | None = None
    """What the losses add for entropy: a learned α, a fixed α, nothing; overrides the preset."""
    residual_entropy: float | Literal["learned"] = 0.0
    """δ̂, added to H0 under heads with a floor: a constant in nats, or learned (Eq. 12)."""
    clamp_target: bool = True
    """Stop H0 + a learned δ̂ at what σ_max allows; without it C.1.1 of the paper can be reproduced."""
    alpha: Annotated[float, POSITIVE] = 1.0
    """Initial α, or α itself where `entropy` is fixed; `--entropy none` is what leaves it out."""

    alpha_weight: AlphaWeight = "alpha"
    """What the loss of a learned α is weighed with: α itself, or log α, as Stable-Baselines3 has it."""

    settings: Settings = "paper"
    """Whose networks: LayerNorm and ReLU (paper), or ELU with LayerNorm in the critics only (release)."""
    activation: ActivationName | None = None
    """Of every hidden layer; overrides `settings`."""
    actor_layer_norm: bool | None = None
    """Overrides `settings`."""
    critic_layer_norm: bool | None = None
    """Overrides `settings`."""
    weight_decay: Annotated[float, NATURAL] = 1e-4
    """Of AdamW (critics). The paper states none; this is optax's default."""
    batch_size: Annotated[int, COUNT32] = 256
    """Transitions in an update."""
    updates_per_step: Annotated[int, COUNT32] = 2
    """Updates after each action of the agent."""
    random_steps: Annotated[int, COUNT32] = 5_000
    """Environment steps with uniform actions before learning starts."""
    replay_capacity: Annotated[int, COUNT32] = 1_000_000
    """Transitions that the replay buffer keeps."""
    tau: Annotated[float, SHARE] = 0.005
    """Polyak's τ of the target critics."""

    def defaults(self) -> dict[str, Any]:
        """Networks of the paper or the release, and their targets."""
        # "0.25 per dimension in the script" of the release, on the Gaussian before truncation.
        target = "0.25*A" if self.settings == "release" and self.head == "era" else "-A/2"
        return {**NETWORKS[self.settings], "target_entropy": target}


@dataclass(frozen=True)
class OBACConfig(SACConfig):
    """OBAC, with and without ERA: SAC's settings and those of the behaviour policy."""

    agent: OBACName = "obac"  # type: ignore[assignment]
    """Preset of head, distribution and entropy."""
    expectile: Annotated[float, SHARE] = 0.9
    """Of Vμ: how near to the best that the replay did."""
    cloning_weight: Annotated[float, NATURAL] = 1e-3
    """λ of behaviour cloning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settings != "paper":
            raise ValueError(f"settings={self.settings!r}: OBAC was not released, it has the paper's only")

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
    """Floor in nats for discrete actions under `era` heads; by default a tenth of log n."""
    hidden: Annotated[int, COUNT32] = 64
    """Width of the two hidden layers."""
    activation: ActivationName = "tanh"
    """Of every hidden layer."""
    global_log_std: bool | None = None
    """One raw log σ for all states, as plain PPO has it, or an output of the network, as ERA needs it."""

    num_envs: Annotated[int, ENVS] = 1
    """Environments that are stepped in turn."""
    rollout_steps: Annotated[int, COUNT32] = 2048
    """Actions in each environment between updates."""
    minibatch_size: Annotated[int, COUNT32] = 64
    """Samples in a gradient step; divides a rollout."""
    epochs: Annotated[int, COUNT32] = 10
    """Passes over a rollout."""
    gae_lambda: Annotated[float, SHARE] = 0.95
    """λ of generalised advantage estimation."""
    clip_low: Annotated[float, NATURAL] = 0.2
    """The ratio is clipped below 1 minus this."""
    clip_high: Annotated[float | None, NATURAL] = None
    """The ratio is clipped above 1 plus this: 0.2; clip-higher takes more."""
    entropy_coef: Annotated[float | None, NATURAL] = None
    """Weight of the entropy bonus: 0.01, and none under ERA."""
    entropy_share: Annotated[float | None, SHARE] = None
    """Share of a minibatch, that of highest entropy, that the policy learns from."""
    value_coef: Annotated[float, NATURAL] = 0.5
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, POSITIVE] = 0.5
    """Gradients are scaled down to this norm."""
    decay_learning_rate: bool = True
    """Let the learning rate fall to 0 along the run."""
    normalise_observations: bool = True
    """By their running mean and deviation."""
    normalise_rewards: bool = True
    """By the running deviation of the discounted return."""

    entropy_critic: bool | None = None
    """EAPO: a second critic, of the trajectory's entropy."""
    entropy_weight: Annotated[float, NATURAL] = 0.02
    """EAPO: τ, the weight of the entropy's advantage; the defaults of the three are its authors' for MuJoCo."""
    entropy_discount: Annotated[float, SHARE] = 0.99
    """EAPO: γ_H."""
    entropy_lambda: Annotated[float, SHARE] = 0.001
    """EAPO: λ_H."""

    def defaults(self) -> dict[str, Any]:
        """The paper's target, and plain PPO where nothing else was said."""
        return {"target_entropy": "-0.3*A", "clip_high": 0.2, "entropy_share": 1.0, "entropy_critic": False}


CONFIGS: dict[str, type[ControlConfig]] = {
    **dict.fromkeys(get_args(SACName), SACConfig),
    **dict.fromkeys(get_args(OBACName), OBACConfig),
    **dict.fromkeys(get_args(PPOName), PPOConfig),
}
"""The class of each agent's settings."""


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


def set_(value: Any) -> Any:
    """What `resolved()` guarantees."""
    assert value is not None, "the config is not resolved"
    return value
