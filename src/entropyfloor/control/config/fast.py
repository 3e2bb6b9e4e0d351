"""Settings of FastTD3, FastSAC and FastSAC-ERA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from entropyfloor.control.config.base import COUNT, ENVS
from entropyfloor.control.config.sac import ERA, EXACT, PLAIN, SACConfig
from entropyfloor.runs.settings import NATURAL, POSITIVE, SHARE, WORKERS, Effect, Range

FastName = Literal["fasttd3", "fastsac", "fastsac-era", "fastsac-era-exact"]

# "FastTD3: actor 512-256-128 ReLU tanh; twin C51 critics 1024-512-256 [...]": the authors' code for HumanoidBench.
_FAST_TD3: dict[str, Any] = {
    "activation": "relu", "actor_layer_norm": False, "critic_layer_norm": False, "critic_hidden": 1024,
    "clipped_double_q": True, "noise_min": 0.001, "noise_max": 0.4, "target_noise": 0.001,
    "batch_size": 32_768, "updates_per_step": 2, "tau": 0.1, "weight_decay": 0.1, "adam_b2": 0.999,
}  # fmt: skip
# The authors' code of FastSAC (arXiv 2512.01996).
_FAST_SAC: dict[str, Any] = {
    "activation": "silu", "actor_layer_norm": True, "critic_layer_norm": True, "critic_hidden": 768,
    "clipped_double_q": False, "noise_min": 0.0, "noise_max": 0.0, "target_noise": 0.0, "policy_delay": 4,
    "batch_size": 8192, "updates_per_step": 8, "tau": 0.125, "weight_decay": 0.001, "adam_b2": 0.95,
    "log_std_min": -5.0, "log_std_max": 0.0, "target_entropy": "0", "alpha": 0.001,
}  # fmt: skip


@dataclass(frozen=True)
class FastConfig(SACConfig):
    """FastTD3, FastSAC and FastSAC-ERA, for many parallel environments: SAC's settings, and their own."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "fasttd3": {
            **_FAST_TD3,
            "head": "fixed",
            "distribution": "truncated",
            "entropy": "none",
            "policy_delay": 2,
        },
        "fastsac": {**_FAST_SAC, **PLAIN},
        # "FastTD3 [...] retaining its noise mechanism while removing the Delayed Policy Updates": A.1.5.
        "fastsac-era": {**_FAST_TD3, **ERA, "policy_delay": 1},
        "fastsac-era-exact": {**_FAST_TD3, **EXACT, "policy_delay": 1},
    }

    agent: FastName = "fasttd3"  # type: ignore[assignment]
    """Preset of head, distribution, entropy, noise, critics and batches."""
    hidden: Annotated[int, COUNT] = 512
    """Width of the actor's first hidden layer; the next two have a half and a quarter of it."""
    critic_hidden: Annotated[int | None, COUNT] = None
    """Width of the critics' first hidden layer, of three as in the actor: by default 1024, and 768 in FastSAC."""
    alpha: Annotated[float | None, POSITIVE] = None
    """Initial temperature α, or α itself where `entropy` is fixed: by default 0.001."""
    weight_decay: Annotated[float | None, NATURAL] = None
    """Weight decay of AdamW for actor and critics: by default 0.1, and 0.001 in FastSAC."""
    adam_b2: Annotated[float | None, SHARE] = None
    """Decay of AdamW's second moment: by default 0.999, and 0.95 in FastSAC."""
    batch_size: Annotated[int | None, COUNT] = None  # type: ignore[assignment]
    """Number of transitions in an update: by default 32,768, and 8,192 in FastSAC."""
    updates_per_step: Annotated[int | None, COUNT] = None  # type: ignore[assignment]
    """Number of updates of the critics after each `actions_per_update` actions: by default 2, and 8 in FastSAC."""
    policy_delay: Annotated[int | None, COUNT] = None
    """Updates of the critics for each of the actor: by default 2 in FastTD3, 4 in FastSAC, and 1 under ERA."""
    tau: Annotated[float | None, SHARE] = None  # type: ignore[assignment]
    """Polyak's τ: by default 0.1, and 0.125 in FastSAC."""
    random_steps: Annotated[int, COUNT] = 1_280
    """Number of environment steps, over all environments, with uniform actions before learning starts."""
    replay_capacity: Annotated[int, COUNT] = 6_553_600
    """Number of transitions that the replay holds, over all environments."""

    num_envs: Annotated[int, Range(1, 65_536, "between 1 and 65,536")] = 128
    """Number of environments; more than 4096 only in `playground/`, whose tasks are simulated on the device."""
    env_processes: Annotated[int, WORKERS, Effect.SPEED] = 1
    """Number of processes that step the environments, 0 and 1 in this process; of no use in `playground/`."""
    actions_per_update: Annotated[int, COUNT] = 1
    """Number of actions in each environment between updates."""
    n_steps: Annotated[int, COUNT] = 1
    """Number of steps in a return before it is bootstrapped."""
    normalise_observations: bool = True
    """Normalise observations by their running mean and deviation."""
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Learning rate of every optimiser."""

    atoms: Annotated[int, Range(2, 10_000, "between 2 and 10,000")] = 101
    """Number of atoms in the critics' distributions of returns (C51)."""
    v_min: float = -250.0
    """Smallest return of the critics' distributions."""
    v_max: float = 250.0
    """Largest return of the critics' distributions; `q/edge_share` in the metrics shows if it is too small."""
    clipped_double_q: bool | None = None
    """Learn from the critic of the smaller value, else from each and from their mean; FastSAC does the latter."""
    noise_min: Annotated[float | None, NATURAL] = None
    """Smallest σ of the noise that an environment explores with for an episode: by default 0.001, 0 in FastSAC."""
    noise_max: Annotated[float | None, NATURAL] = None
    """Largest σ of that noise: by default 0.4, and 0 in FastSAC."""
    target_noise: Annotated[float | None, NATURAL] = None
    """σ of the noise on actions in the critics' target: by default 0.001, and 0 in FastSAC."""
    target_noise_clip: Annotated[float, NATURAL] = 0.5
    """Largest size of the noise on actions in the critics' target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.networks != "paper":
            raise ValueError(f"networks={self.networks!r}: {self.agent} has networks of its own")
        if self.num_envs > ENVS.high and not self.on_device:
            raise ValueError(f"num_envs={self.num_envs} must be at most {ENVS.high} in {self.env}")
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min={self.v_min} must be below v_max={self.v_max}")
        if (self.noise_min or 0.0) > (self.noise_max if self.noise_max is not None else math.inf):
            raise ValueError(f"noise_min={self.noise_min} must be at most noise_max={self.noise_max}")
        if self.updates_per_step and self.policy_delay and self.updates_per_step % self.policy_delay:
            raise ValueError(
                f"policy_delay={self.policy_delay} must divide updates_per_step={self.updates_per_step}"
            )
        if self.replay_capacity < self.num_envs:
            raise ValueError(
                f"replay_capacity={self.replay_capacity} must be at least num_envs={self.num_envs}, one of each"
            )

    @property
    def on_device(self) -> bool:
        """Whether the environments are simulated on the device."""
        return self.env.startswith("playground/")

    def defaults(self) -> dict[str, Any]:
        """The paper's target; a deterministic policy is shown with the noise of the critics' target."""
        shown = {"log_std_max": math.log(self.target_noise)} if self.head == "fixed" and self.target_noise else {}
        return {"target_entropy": "-A/2", "alpha": 0.001, **shown}
