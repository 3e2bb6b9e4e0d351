"""Settings of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from entropyfloor.control.config.base import COUNT, ENVS, ControlConfig
from entropyfloor.control.networks import ActivationName
from entropyfloor.runs.settings import NATURAL, POSITIVE, SHARE

PPOName = Literal["ppo", "ppo-clip-higher", "ppo-high-entropy", "eapo", "ppo-era", "ppo-era-exact"]

_PLAIN = {"head": "clip", "distribution": "normal", "global_log_std": True, "entropy_coef": 0.01}
_ERA = {"head": "era", "distribution": "normal", "global_log_std": False, "entropy_coef": 0.0}


@dataclass(frozen=True)
class PPOConfig(ControlConfig):
    """PPO, with and without ERA, for continuous and discrete actions."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "ppo": _PLAIN,
        # DAPO's ratio, arXiv 2503.14476; the paper tries several and names none.
        "ppo-clip-higher": {**_PLAIN, "clip_high": 0.28},
        # "the agent only on a certain proportion of high-entropy samples": C.1.4; 20 % in arXiv 2506.01939.
        # With one σ for all states there would be no states of high entropy.
        "ppo-high-entropy": {**_PLAIN, "global_log_std": False, "entropy_share": 0.2},
        # Choe and Kim 2024, arXiv 2407.18143. Its entropy is in the advantage, not in a bonus; with one σ for all
        # states its critic would have nothing to learn.
        "eapo": {**_PLAIN, "global_log_std": False, "entropy_coef": 0.0, "entropy_critic": True},
        "ppo-era": _ERA,
        "ppo-era-exact": {**_ERA, "head": "era-exact", "distribution": "truncated"},
    }

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
