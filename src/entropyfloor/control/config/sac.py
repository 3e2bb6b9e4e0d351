"""Settings of SAC and of the agents that are built on it, OBAC and MNSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from entropyfloor.control.agents.sac import AlphaWeight, EntropyTerm
from entropyfloor.control.config.base import COUNT, ControlConfig
from entropyfloor.control.networks import ActivationName
from entropyfloor.runs.settings import NATURAL, POSITIVE, SHARE, Range

SACName = Literal["sac", "sac-no-entropy", "sac-era", "sac-era-exact"]
OBACName = Literal["obac", "obac-era", "obac-era-exact"]
MNSEName = Literal["mnse"]
NetworksName = Literal["paper", "release"]

PLAIN = {"head": "tanh", "distribution": "tanh", "entropy": "auto"}
ERA = {"head": "era", "distribution": "truncated", "entropy": "none"}
EXACT = {"head": "era-exact", "distribution": "truncated", "entropy": "none"}

NETWORKS: dict[NetworksName, dict[str, Any]] = {
    # "nets (512, 512), LayerNorm, ReLU": arXiv 2510.08549.
    "paper": {"activation": "relu", "actor_layer_norm": True, "critic_layer_norm": True},
    # The authors' code: "actor 2×512 ELU without LN; critic Dense-LN-ELU ×2".
    "release": {"activation": "elu", "actor_layer_norm": False, "critic_layer_norm": True},
}
"""Networks of the paper and of its release, which disagree."""

INTERVALS = Range(2, 1024, "between 2 and 1024")
"""A batch of 256 actions has to say something of each interval."""


@dataclass(frozen=True)
class SACConfig(ControlConfig):
    """SAC, with and without ERA."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "sac": PLAIN,
        "sac-no-entropy": {**PLAIN, "entropy": "none"},
        "sac-era": ERA,
        "sac-era-exact": EXACT,
    }
    """What each preset sets."""

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

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # "Auto-α, target entropy -A": the code that the paper builds on.
        "obac": {**PLAIN, "target_entropy": "-A"},
        "obac-era": ERA,
        "obac-era-exact": EXACT,
    }
    """What each preset sets."""

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
class MNSEConfig(SACConfig):
    """MNSE, which maximises the entropy of next states: SAC's settings and those of its action mapping."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "mnse": PLAIN,
    }
    """What each preset sets."""

    agent: MNSEName = "mnse"  # type: ignore[assignment]
    """Preset of head, distribution and entropy."""
    mapping_intervals: Annotated[int, INTERVALS] = 16
    """Number of intervals on which the action mapping is linear."""
    mapping_rate: Annotated[float, SHARE] = 0.005
    """Share of the way that the mapping moves in each update; at 0 the agent is SAC."""
