"""ERA in Stable-Baselines3: policies for SAC, PPO and A2C, which it trains, saves and loads as its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entropyfloor.extras import require

require("sb3", "stable_baselines3")

from gymnasium import spaces  # noqa: E402
from stable_baselines3.common.distributions import (  # noqa: E402
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy  # noqa: E402
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space  # noqa: E402
from stable_baselines3.common.torch_layers import (  # noqa: E402
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule  # noqa: E402
from stable_baselines3.sac.policies import Actor, SACPolicy  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from entropyfloor import targets  # noqa: E402
from entropyfloor.integrations.heads import (  # noqa: E402
    CategoricalPolicy,
    DistributionName,
    GaussianPolicy,
    HeadName,
)

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAPPOPolicy", "ERASACPolicy"]


class ERAGaussian(DiagGaussianDistribution):
    """Diagonal Gaussian, truncated or not, whose log σ comes from a head.

    Args:
        policy: The head, and the distribution behind it.
    """

    distribution: Any

    def __init__(self, policy: GaussianPolicy) -> None:
        super().__init__(policy.action_dim)
        self.policy = policy

    def proba_distribution_net(
        self,
        latent_dim: int,
        log_std_init: float = 0.0,  # noqa: ARG002  refused by the policy
    ) -> tuple[nn.Module, Any]:
        """A layer of 2 D outputs, mean and raw log σ, and 0 in the place of a log σ for all states."""
        layer = nn.Linear(latent_dim, 2 * self.action_dim)
        return layer, layer.weight.new_zeros(self.action_dim)

    def proba_distribution(
        self, mean_actions: Float[Tensor, "*batch D"], log_std: Float[Tensor, "batch D"]
    ) -> ERAGaussian:
        """Set π(·|s) from the mean and the raw log σ that the network puts out."""
        loc, self.log_std = self.policy.parameters(mean_actions, log_std)
        self.distribution = self.policy.distribution_of(loc, self.log_std)
        return self

    def log_prob(self, actions: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Log-density of actions."""
        return self.distribution.log_prob(actions)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy of the policy that acts."""
        return self.distribution.entropy()

    def mode(self) -> Float[Tensor, "batch D"]:
        """The action of the highest density."""
        return self.distribution.mode


class ERACategorical(CategoricalDistribution):
    """Categorical distribution whose logits come from a head.

    Args:
        policy: The head.
    """

    def __init__(self, policy: CategoricalPolicy) -> None:
        super().__init__(policy.num_actions)
        self.policy = policy

    def proba_distribution(self, action_logits: Float[Tensor, "batch n"]) -> ERACategorical:
        """Set π(·|s) from the logits that the network puts out."""
        self.distribution = self.policy(action_logits)
        return self


class ERAActor(Actor):
    """SAC's actor with a floor under its entropy; its layers and parameters are those of SB3's.

    Args:
        policy: The head, and the distribution behind it.
        **kwargs: Arguments of `Actor`.
    """

    action_dist: Any

    def __init__(self, *, policy: GaussianPolicy, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_dist = ERAGaussian(policy)

    def get_action_dist_params(
        self, obs: PyTorchObs
    ) -> tuple[Float[Tensor, "batch D"], Float[Tensor, "batch D"], dict[str, Tensor]]:
        """Mean and raw log σ: the head takes the place of SB3's clamp, which kills the gradient of log σ."""
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        return self.mu(latent), self.log_std(latent), {}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"policy": self.action_dist.policy}


class ERASACPolicy(SACPolicy):
    """SAC's policy with a floor under its entropy, for `SAC(ERASACPolicy, env, ent_coef=0.0, policy_kwargs=…)`.

    Without `ent_coef=0.0` SB3 learns α for a target of its own, -A: where the head pins the entropy, α diverges or
    falls to 0. Entropies are those of actions scaled to [-1, 1], in which SB3's SAC acts.

    Args:
        observation_space: Vectors, images, or dictionaries of them. With `normalize_images=False`, arrays of three
            dimensions are images, as they are for SB3.
        action_space: A `Box`.
        lr_schedule: SB3's learning rate.
        target_entropy: H0 for the whole action: nats, or a rule in the action dimension such as `"-A/2"`.
        head: `era-exact`, `era` (the paper's) or `era-floor`, as in `GaussianPolicy`.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        features_extractor_class: By default the one that SB3 has for such observations.
        **kwargs: Further arguments of `SACPolicy`.

    Raises:
        ValueError: No target, one that is out of reach, an unknown head, actions other than a `Box`, or
            `use_sde=True`.

    Examples:
        >>> from stable_baselines3 import SAC
        >>> from entropyfloor.integrations.sb3 import ERASACPolicy
        >>> options = {"target_entropy": "-A/2", "head": "era-floor"}
        >>> model = SAC(ERASACPolicy, "Pendulum-v1", ent_coef=0.0, policy_kwargs=options)
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        target_entropy: float | str | None = None,
        head: HeadName = "era-exact",
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"actions must be a Box, not {action_space}: for Discrete take ERAPPOPolicy with PPO or A2C"
            )
        target_entropy = _given(target_entropy, ": SAC's own argument of this name is for its learned coefficient")
        _refuse(kwargs, use_sde=False)
        # Before `super().__init__`, which builds the actor.
        self.era: dict[str, Any] = {
            "target_entropy": target_entropy,
            "head": head,
            "log_std_min": log_std_min,
            "log_std_max": log_std_max,
        }
        extractor = features_extractor_class or _extractor(observation_space, kwargs.get("normalize_images", True))
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=extractor, **kwargs
        )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> ERAActor:
        """The actor, of the same layers as SB3's."""
        policy = GaussianPolicy(get_action_dim(self.action_space), **self.era)
        arguments = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return ERAActor(policy=policy, **arguments).to(self.device)

    def __getattr__(self, name: str) -> Any:
        if name == "actor_target":  # which TD3 and DDPG ask for
            raise AttributeError("ERASACPolicy is for SAC: policies of TD3 and DDPG are deterministic")
        return super().__getattr__(name)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.era


BOX_ONLY = {"distribution": "normal", "log_std_min": -8.0, "log_std_max": 0.0}
"""Arguments of `ERAPPOPolicy` that a `Box` needs, with their defaults."""


class ERAPPOPolicy(ActorCriticPolicy):
    """PPO's policy with a floor under its entropy, for `PPO(ERAPPOPolicy, env, policy_kwargs=…)`, and for A2C.

    For continuous actions, σ depends on the state: SB3's parameter `log_std`, one for all states, is gone, and the
    attribute of this name has log σ of the states that were seen last, for SB3's logged `train/std`.

    Args:
        observation_space: Vectors, images, or dictionaries of them. With `normalize_images=False`, arrays of three
            dimensions are images, as they are for SB3.
        action_space: A `Box`, or `Discrete`.
        lr_schedule: SB3's learning rate.
        target_entropy: For a `Box`, H0 for the whole action: nats, or a rule in the action dimension such as
            `"-0.3*A"`. For discrete actions, the floor in nats.
        head: As in `GaussianPolicy` or `CategoricalPolicy`; by default the one that holds the floor exactly.
        distribution: `normal`, SB3's own, in the units of the action space, from which samples are clipped to it;
            or `truncated`, in the units of actions scaled to [-1, 1]. For a `Box` only.
        log_std_min: Lower bound of log σ. For a `Box` only, as is the next.
        log_std_max: Upper bound of log σ.
        features_extractor_class: By default the one that SB3 has for such observations.
        **kwargs: Further arguments of `ActorCriticPolicy`.

    Raises:
        ValueError: No target, one that is out of reach, an unknown head, other actions, `use_sde=True`, or a
            `log_std_init`.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> from entropyfloor.integrations.sb3 import ERAPPOPolicy
        >>> model = PPO(ERAPPOPolicy, "CartPole-v1", policy_kwargs={"target_entropy": 0.1})
    """

    action_dist: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        target_entropy: float | str | None = None,
        head: HeadName | None = None,
        distribution: DistributionName = "normal",
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        **kwargs: Any,
    ) -> None:
        target_entropy = _given(target_entropy)
        _refuse(kwargs, use_sde=False, log_std_init=0.0)
        # Before `super().__init__`, which builds the networks.
        self.era: dict[str, Any] = {
            "target_entropy": target_entropy,
            "head": head,
            "distribution": distribution,
            "log_std_min": log_std_min,
            "log_std_max": log_std_max,
        }
        extractor = features_extractor_class or _extractor(observation_space, kwargs.get("normalize_images", True))
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=extractor, **kwargs
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = self._distribution()
        super()._build(lr_schedule)

    def _distribution(self) -> ERAGaussian | ERACategorical:
        target, head = self.era["target_entropy"], self.era["head"]
        if isinstance(self.action_space, spaces.Discrete):
            if given := [name for name, default in BOX_ONLY.items() if self.era[name] != default]:
                raise ValueError(f"leave out {', '.join(given)}: discrete actions have no σ")
            count = int(self.action_space.n)
            floor = targets.resolve_discrete(target, count)
            return ERACategorical(CategoricalPolicy(count, floor, head or "era-exact"))
        if not isinstance(self.action_space, spaces.Box):
            raise ValueError(f"{self.action_space} has no ERA head: Box and Discrete have one")
        head = head or ("era-exact" if self.squash_output else "era")
        return ERAGaussian(GaussianPolicy(get_action_dim(self.action_space), **self.era | {"head": head}))

    @property
    def squash_output(self) -> bool:
        """Whether actions are in [-1, 1], which SB3 then scales to the bounds of the action space."""
        return isinstance(self.action_space, spaces.Box) and self.era["distribution"] == "truncated"

    def _get_action_dist_from_latent(self, latent_pi: Float[Tensor, "batch latent"]) -> Distribution:
        outputs = self.action_net(latent_pi)
        if isinstance(self.action_dist, ERACategorical):
            return self.action_dist.proba_distribution(outputs)
        distribution = self.action_dist.proba_distribution(*outputs.chunk(2, -1))
        self.log_std = distribution.log_std.detach()
        return distribution

    def __getattr__(self, name: str) -> Any:
        if name in ("actor", "q_net"):  # which SAC, TD3 and DQN ask for
            raise AttributeError("ERAPPOPolicy is for PPO and A2C: SAC takes ERASACPolicy")
        return super().__getattr__(name)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.era


def _extractor(space: spaces.Space, normalize_images: bool) -> type[BaseFeaturesExtractor]:
    """What SB3's `MultiInputPolicy`, `CnnPolicy` and `MlpPolicy` have."""
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(space, normalized_image=not normalize_images) else FlattenExtractor


def _given(target_entropy: float | str | None, hint: str = "") -> float | str:
    if target_entropy is None:
        raise ValueError(f"give the floor as policy_kwargs={{'target_entropy': …}}{hint}")
    return target_entropy


def _refuse(kwargs: dict[str, Any], **defaults: Any) -> None:
    for name, default in defaults.items():
        if kwargs.get(name, default) != default:
            raise ValueError(f"{name}={kwargs[name]}: σ follows from target_entropy, so leave {name} out")
