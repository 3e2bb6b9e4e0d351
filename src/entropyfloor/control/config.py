"""Everything that a run of `entropyfloor train control` can be told, and the named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from entropyfloor.control.agents.sac import EntropyTerm
from entropyfloor.control.heads import DistributionName, HeadName

AgentName = Literal["sac", "sac-no-entropy", "sac-era", "sac-era-exact"]
Settings = Literal["paper", "release"]

PRESETS: dict[AgentName, dict[str, Any]] = {
    "sac": {"head": "clip", "distribution": "tanh", "entropy": "auto"},
    "sac-no-entropy": {"head": "clip", "distribution": "tanh", "entropy": "none"},
    "sac-era": {"head": "era", "distribution": "truncated", "entropy": "none"},
    "sac-era-exact": {"head": "era-exact", "distribution": "truncated", "entropy": "none"},
}
"""The three axes of a comparison: head, distribution, entropy."""

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


_COUNTS = (
    *("steps", "hidden", "batch_size", "updates_per_step", "replay_capacity", "action_repeat"),
    *("eval_every", "eval_episodes", "log_every", "checkpoint_every", "random_steps"),
)


@dataclass(frozen=True)
class ControlConfig:
    """A run of a control agent. What is left at None follows from `agent` and `settings`."""

    agent: AgentName = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    env: str = "dmc/walker-walk"
    """Environment, `suite/task`: gym/HalfCheetah-v4, dmc/walker-run, …"""
    seed: int = 0
    """Everything random follows from it."""
    steps: int = 1_000_000
    """Environment steps; an action that is repeated twice counts two."""
    out: str | None = None
    """Run directory; by default runs/<env>/<agent>/seed-<seed>."""

    head: HeadName | None = None
    """How raw outputs become log σ; overrides the preset."""
    distribution: DistributionName | None = None
    """How actions are bounded; overrides the preset."""
    entropy: EntropyTerm | None = None
    """What the losses add for entropy: a learned α, a fixed α, nothing; overrides the preset."""
    target_entropy: str | None = None
    """H0 in nats, a number or a rule in the action dimension A: -3, -A/2, 0.25*A. Paper: -A/2."""
    residual_entropy: float = 0.0
    """The constant δ̂ that is added to H0 under `era` heads, in nats."""
    alpha: float = 1.0
    """Initial α, or α itself where `entropy` is fixed; `--entropy none` is what leaves it out."""
    log_std_min: float | None = None
    """Lower bound of log σ: -8 under a floor, -5 for the plain head."""
    log_std_max: float | None = None
    """Upper bound of log σ: 0 under a floor, 2 for the plain head."""

    settings: Settings = "paper"
    """Whose networks: LayerNorm and ReLU (paper), or ELU with LayerNorm in the critics only (release)."""
    hidden: int = 512
    """Width of the two hidden layers."""
    learning_rate: float = 3e-4
    """Of Adam (actor, α) and AdamW (critics)."""
    weight_decay: float = 1e-4
    """Of AdamW (critics). The paper states none; this is optax's default."""
    batch_size: int = 256
    """Transitions in an update."""
    updates_per_step: int = 2
    """Updates after each action of the agent."""
    random_steps: int = 5_000
    """Environment steps with uniform actions before learning starts."""
    replay_capacity: int = 1_000_000
    """Transitions that the replay buffer keeps."""
    discount: float = 0.99
    """γ, for each action of the agent."""
    tau: float = 0.005
    """Polyak's τ of the target critics."""

    action_repeat: int = 1
    """How often each action is applied."""
    ignore_termination: bool = False
    """Let only the time limit end an episode."""

    eval_every: int = 25_000
    """Environment steps between evaluations."""
    eval_episodes: int = 10
    """Episodes in an evaluation, with the mode action."""
    log_every: int = 1_000
    """Environment steps between lines of training metrics."""
    checkpoint_every: int = 25_000
    """Environment steps between checkpoints; the end and Ctrl-C always save one."""
    threads: int = 1
    """CPU threads for XLA; 0 leaves the choice to XLA. One process per core beats one process on all of them."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("discount", "tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be finite and at least 0")
        for name in ("learning_rate", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        if not math.isfinite(self.residual_entropy):
            raise ValueError(f"residual_entropy={self.residual_entropy} must be finite")

    def resolved(self) -> ControlConfig:
        """The same run with nothing left at None."""
        preset = PRESETS[self.agent]
        head = self.head or preset["head"]
        log_std_min, log_std_max = PLAIN_LOG_STD if head in ("clip", "projection") else ERA_LOG_STD
        # "0.25 per dimension in the script" of the release, on the Gaussian before truncation.
        target = "0.25*A" if self.settings == "release" and head == "era" else "-A/2"
        return replace(
            self,
            out=self.out or f"runs/{self.env.replace('/', '-')}/{self.agent}/seed-{self.seed}",
            head=head,
            distribution=self.distribution or preset["distribution"],
            entropy=self.entropy or preset["entropy"],
            target_entropy=self.target_entropy or target,
            log_std_min=log_std_min if self.log_std_min is None else self.log_std_min,
            log_std_max=log_std_max if self.log_std_max is None else self.log_std_max,
        )
