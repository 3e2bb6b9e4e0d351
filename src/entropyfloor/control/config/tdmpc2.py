"""Settings of TD-MPC2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from entropyfloor.control.config.base import COUNT, ControlConfig
from entropyfloor.runs.settings import NATURAL, POSITIVE, SHARE, Range

TDMPC2Name = Literal["tdmpc2", "tdmpc2-era", "tdmpc2-era-exact"]
ModelSize = Literal["1M", "5M", "19M"]

_ERA = {"distribution": "truncated", "target_entropy": "-A", "entropy_coef": 0.0}

MODELS: dict[ModelSize, dict[str, int]] = {
    "1M": {"encoder_hidden": 256, "encoder_layers": 1, "hidden": 384, "latent": 128, "critics": 2},
    "5M": {"encoder_hidden": 256, "encoder_layers": 1, "hidden": 512, "latent": 512, "critics": 5},
    "19M": {"encoder_hidden": 1024, "encoder_layers": 2, "hidden": 1024, "latent": 768, "critics": 5},
}
"""Networks of TD-MPC2 by their number of parameters, as its authors have them."""

MODEL_LOG_STD = {"log_std_min": -10.0, "log_std_max": 2.0}
"""Bounds of log σ for the head `tanh` of TD-MPC2's prior."""


@dataclass(frozen=True)
class TDMPC2Config(ControlConfig):
    """TD-MPC2, with and without ERA."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # "π: … entropy coef 1e-4. TD-MPC2-ERA: ERA on the policy prior, no entropy term; target -A".
        "tdmpc2": {"head": "tanh", "distribution": "tanh", "entropy_coef": 1e-4},
        "tdmpc2-era": {"head": "era", **_ERA},
        "tdmpc2-era-exact": {"head": "era-exact", **_ERA},
    }

    agent: TDMPC2Name = "tdmpc2"
    """Preset of head, distribution and entropy of the policy prior."""
    entropy_coef: Annotated[float | None, NATURAL] = None
    """Coefficient of the prior's entropy: by default 1e-4, and 0 under ERA."""

    model_size: ModelSize = "5M"
    """Widths of all networks and number of critics, by the number of parameters."""
    hidden: Annotated[int | None, COUNT] = None  # type: ignore[assignment]
    """Width of the two hidden layers of every network but the encoder; overrides `model_size`."""
    encoder_hidden: Annotated[int | None, COUNT] = None
    """Width of the encoder's hidden layers; overrides `model_size`."""
    encoder_layers: Annotated[int | None, COUNT] = None
    """Number of the encoder's hidden layers; overrides `model_size`."""
    latent: Annotated[int | None, COUNT] = None
    """Width of the latent state, a multiple of `simplex`; overrides `model_size`."""
    critics: Annotated[int | None, Range(2, 1024, "between 2 and 1024")] = None
    """Number of critics; overrides `model_size`."""
    simplex: Annotated[int, COUNT] = 8
    """Size of the simplices of the latent state."""
    dropout: Annotated[float, Range(0, 0.9, "between 0 and 0.9")] = 0.01
    """Share of entries that dropout removes in the first layer of the critics."""
    episodic: bool = False
    """Learn whether the task has ended, for tasks that end before their time limit."""

    discount: Annotated[float | None, SHARE] = None  # type: ignore[assignment]
    """Discount γ of each action: by default (T/5 - 1)/(T/5) in [0.95, 0.995], for episodes of T actions."""
    batch_size: Annotated[int, COUNT] = 256
    """Number of sequences in an update."""
    updates_per_step: Annotated[int, COUNT] = 1
    """Number of updates after each action of the agent."""
    random_steps: Annotated[int, COUNT] = 5_000
    """Number of environment steps with uniform actions; then follow `updates_per_step` updates for each."""
    replay_capacity: Annotated[int, COUNT] = 1_000_000
    """Number of transitions that the replay buffer holds."""
    tau: Annotated[float, SHARE] = 0.01
    """Polyak's τ of the target critics, and that of the running scale of values."""
    encoder_rate: Annotated[float, POSITIVE] = 0.3
    """Learning rate of the encoder, as a share of the others'."""
    max_grad_norm: Annotated[float, POSITIVE] = 20.0
    """Largest norm of a gradient; longer ones are scaled down to it."""
    rho: Annotated[float, SHARE] = 0.5
    """Decay ρ of the losses along a sequence."""
    consistency_coef: Annotated[float, NATURAL] = 20.0
    """Weight of the error of predicted latent states."""
    reward_coef: Annotated[float, NATURAL] = 0.1
    """Weight of the loss of rewards."""
    value_coef: Annotated[float, NATURAL] = 0.1
    """Weight of the loss of values."""
    termination_coef: Annotated[float, NATURAL] = 1.0
    """Weight of the loss of terminations."""

    horizon: Annotated[int, COUNT] = 3
    """Number of actions of a plan, and of a sequence that is learned from."""
    iterations: Annotated[int | None, COUNT] = None
    """Number of iterations of the planner: by default 6, and 8 with 20 or more action dimensions."""
    samples: Annotated[int, COUNT] = 512
    """Number of sequences of actions that the planner compares in an iteration."""
    proposals: Annotated[int, NATURAL] = 24
    """Number of these sequences that the policy prior gives."""
    elites: Annotated[int, COUNT] = 64
    """Number of the best sequences that the planner continues from."""
    temperature: Annotated[float, NATURAL] = 0.5
    """Factor of a sequence's value in its weight exp(temperature · value)."""
    min_std: Annotated[float, POSITIVE] = 0.05
    """Least standard deviation of the planner's actions."""
    max_std: Annotated[float, POSITIVE] = 2.0
    """Largest standard deviation of the planner's actions, which it starts from."""

    def defaults(self) -> dict[str, Any]:
        """Networks of that size, and the bounds of log σ that the authors' prior has."""
        return {
            **MODELS[self.model_size],
            **(MODEL_LOG_STD if self.head == "tanh" else {}),
            "entropy_coef": 0.0,
            "target_entropy": "-A",
        }
