"""Settings of SAC and of the agents that are built on it, OBAC and MNSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from entropyfloor.control.agents.sac import AlphaWeight, EntropyTerm
from entropyfloor.control.config.base import COUNT, ControlConfig
from entropyfloor.control.networks import ActivationName
from entropyfloor.runs.settings import NATURAL, POSITIVE, SHARE, CountsIf, Range, check_counted

SACName = Literal["sac", "sac-no-entropy", "sac-era", "sac-era-exact"]
OBACName = Literal["obac", "obac-era", "obac-era-exact"]
MNSEName = Literal["mnse"]
NetworksName = Literal["paper", "release", "simba"]

PLAIN = {"head": "tanh", "distribution": "tanh", "entropy": "auto"}
ERA = {"head": "era", "distribution": "truncated", "entropy": "none"}
EXACT = {"head": "era-exact", "distribution": "truncated", "entropy": "none"}

LAYERS: dict[str, Any] = {
    "hidden": 512, "learning_rate": 3e-4, "weight_decay": 1e-4, "alpha": 1.0, "normalise_observations": False,
}  # fmt: skip
"""What plain layers are trained by. The paper states no weight decay; 1e-4 is optax's default."""
NETWORKS: dict[NetworksName, dict[str, Any]] = {
    # "nets (512, 512), LayerNorm, ReLU": arXiv 2510.08549.
    "paper": {**LAYERS, "activation": "relu", "actor_layer_norm": True, "critic_layer_norm": True},
    # The authors' code: "actor 2×512 ELU without LN; critic Dense-LN-ELU ×2".
    "release": {**LAYERS, "activation": "elu", "actor_layer_norm": False, "critic_layer_norm": True},
    # `configs/agent/sac_simba.yaml` of github.com/SonyResearch/simba: "actor_num_blocks: 1, actor_hidden_dim: 128,
    # critic_num_blocks: 2, critic_hidden_dim: 512", for both "learning_rate: 1e-4, weight_decay: 1e-2",
    # "temp_initial_value: 0.01, temp_learning_rate: 1e-4, normalize_observation: true".
    "simba": {
        "activation": "relu", "hidden": 128, "actor_blocks": 1, "critic_hidden": 512, "critic_blocks": 2,
        "learning_rate": 1e-4, "weight_decay": 1e-2, "alpha": 0.01, "normalise_observations": True,
    },
}  # fmt: skip
"""Networks of the paper and of its release, which disagree, and SimBa's; each with what it is trained by."""
IS_SIMBA = CountsIf("networks='simba'", lambda config: config.networks == "simba")
IS_LAYERS = CountsIf("networks='paper' or 'release'", lambda config: config.networks != "simba")

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

    agent: SACName = "sac-era-exact"
    """Preset of head, distribution and entropy."""
    entropy: EntropyTerm | None = None
    """Entropy term of the losses: a learned α, a fixed α or none; overrides the preset."""
    residual_entropy: Annotated[float | Literal["learned"], NATURAL] = 0.0
    """Residual entropy δ̂, added to H0 under heads with a floor: a constant in nats, or learned (Eq. 12)."""
    clamp_target: bool = True
    """Stop H0 + a learned δ̂ at what σ_max allows; without it C.1.1 of the paper can be reproduced."""
    alpha: Annotated[float | None, POSITIVE] = None
    """Initial temperature α, or α itself where `entropy` is fixed: by default 1, in SimBa 0.01."""
    alpha_weight: AlphaWeight = "alpha"
    """Factor in the loss of a learned α: α itself, or log α, as Stable-Baselines3 has it."""

    networks: NetworksName = "paper"
    """Layers with LayerNorm and ReLU (paper), with ELU and LayerNorm in the critics only (release), or SimBa's."""
    activation: ActivationName | None = None
    """Activation of every hidden layer; overrides `networks`."""
    actor_layer_norm: Annotated[bool | None, IS_LAYERS] = None
    """LayerNorm in the hidden layers of the actor; overrides `networks`."""
    critic_layer_norm: Annotated[bool | None, IS_LAYERS] = None
    """LayerNorm in the hidden layers of the critics; overrides `networks`."""
    hidden: Annotated[int | None, COUNT] = None  # type: ignore[assignment]
    """Width of the actor's two hidden layers, or of its residual blocks: by default 512, and 128 in SimBa's."""
    actor_blocks: Annotated[int | None, COUNT, IS_SIMBA] = None
    """Number of residual blocks of the actor: by default 1."""
    critic_hidden: Annotated[int | None, COUNT] = None
    """Width of the critics, as `hidden`: by default the same, and 512 in SimBa's."""
    critic_blocks: Annotated[int | None, COUNT, IS_SIMBA] = None
    """Number of residual blocks of each critic: by default 2."""
    critics: Annotated[int, Range(1, 1024, "between 1 and 1024")] = 2
    """Number of critics, of which the smallest value counts."""
    normalise_observations: bool | None = None
    """Normalise observations by their running mean and deviation: by default with SimBa's networks only."""
    learning_rate: Annotated[float | None, POSITIVE] = None  # type: ignore[assignment]
    """Learning rate of every optimiser: by default 3e-4, and 1e-4 with SimBa's networks."""
    weight_decay: Annotated[float | None, NATURAL] = None
    """Weight decay of AdamW: by default 1e-4 for the critics alone, and 1e-2 for the actor as well in SimBa's."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counted(self)

    def defaults(self) -> dict[str, Any]:
        """The networks, what their authors train them by, and their targets."""
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

    agent: OBACName = "obac"  # type: ignore[assignment]
    """Preset of head, distribution and entropy."""
    expectile: Annotated[float, SHARE] = 0.9
    """Expectile of Vμ: at 1, the value of the best actions in the replay."""
    cloning_weight: Annotated[float, NATURAL] = 1e-3
    """Weight λ of behaviour cloning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.networks == "release":
            raise ValueError("networks='release': OBAC was not released, it has the paper's networks, and SimBa's")

    def defaults(self) -> dict[str, Any]:
        """SimBa's networks, or those of the code that the paper builds on: LayerNorm and tanh first, then ELU."""
        own = {"activation": "elu", "actor_layer_norm": False, "critic_layer_norm": False}
        networks = NETWORKS["simba"] if self.networks == "simba" else {**LAYERS, **own}
        return {**networks, "target_entropy": "-A/2"}


@dataclass(frozen=True)
class MNSEConfig(SACConfig):
    """MNSE, which maximises the entropy of next states: SAC's settings and those of its action mapping."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "mnse": PLAIN,
    }

    agent: MNSEName = "mnse"  # type: ignore[assignment]
    """Preset of head, distribution and entropy."""
    mapping_intervals: Annotated[int, INTERVALS] = 16
    """Number of intervals on which the action mapping is linear."""
    mapping_rate: Annotated[float, SHARE] = 0.005
    """Share of the way that the mapping moves in each update; at 0 the agent is SAC."""
