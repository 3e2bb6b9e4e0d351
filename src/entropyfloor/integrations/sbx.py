"""ERA in SBX: actors for its SAC and PPO, named by `policy_kwargs={"actor_class": …}`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from entropyfloor.extras import require

require("sbx", "flax")

import flax.linen as nn  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import Array  # noqa: E402

from entropyfloor import targets  # noqa: E402
from entropyfloor.control.heads import (  # noqa: E402
    CategoricalHeadName,
    CategoricalPolicy,
    Distribution,
    GaussianHeadName,
    GaussianPolicy,
)
from entropyfloor.integrations.jax_heads import gaussian_policy  # noqa: E402

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAActor", "ERAPPOActor"]

Activation = Callable[[Array], Array]


def _refuse_sde(_actor: nn.Module, reset_noise: Any) -> None:
    """Check of what SBX assigns to `actor.reset_noise`: a method of its policy, which `use_sde` needs there."""
    if reset_noise.__self__.use_sde:
        raise ValueError(
            "use_sde=True: SBX then repeats the noise of earlier steps, and repeated noise has no entropy: "
            "leave use_sde out"
        )


def _refuse_squashing(_actor: nn.Module, reset_noise: Any) -> None:
    """Check of the same: SAC and TQC scale actions from [-1, 1], and those of `ERAPPOActor` are unbounded."""
    if reset_noise.__self__.squash_output:
        raise ValueError("ERAPPOActor is for PPO: SAC and TQC take ERAActor")


class ERAActor(nn.Module):
    """Actor of SAC with a floor under its entropy; layers and parameters are those of SBX's.

    To be used as `actor_class=functools.partial(ERAActor, target_entropy="-A/2")`; SBX gives the other fields.
    Entropies are those of actions scaled to [-1, 1], in which SBX acts.

    Args:
        net_arch: Widths of the hidden layers.
        action_dim: D.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-A/2"`.
        head: `era-exact`, `era` (the paper's) or `era-floor`. For comparisons also `tanh`, `clip`, `fixed` and
            `projection` of `control.heads.GaussianPolicy`.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        activation_fn: Activation of the hidden layers.

    Raises:
        ValueError: When SBX builds it: a target that is out of reach, an unknown head, `shares` or `era-batch`,
            which need more than SBX has, or `use_sde=True`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.integrations.sbx import ERAActor
        >>> actor, observations = ERAActor([8], 6, target_entropy="-A/2"), jnp.ones((2, 17))
        >>> policy = actor.apply(actor.init(jax.random.key(0), observations), observations)
        >>> bool((policy.entropy() > -3.0 - 1e-4).all())
        True
    """

    net_arch: Sequence[int]
    action_dim: int
    target_entropy: float | str
    head: GaussianHeadName = "era-exact"
    log_std_min: float = -8.0
    log_std_max: float = 0.0
    activation_fn: Activation = nn.relu

    reset_noise = property(fset=_refuse_sde)

    def policy(self) -> GaussianPolicy:
        """The head, and the truncated Gaussian behind it."""
        bounds = self.log_std_min, self.log_std_max
        return gaussian_policy(self.head, "truncated", self.action_dim, self.target_entropy, *bounds)

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Distribution:
        """π(·|s) of a batch of observations."""
        x = _hidden(x, self.net_arch, self.activation_fn)
        return self.policy()(nn.Dense(self.action_dim)(x), nn.Dense(self.action_dim)(x))


class ERAPPOActor(nn.Module):
    """Actor of PPO with a floor under its entropy, for continuous and discrete actions.

    To be used as `actor_class=functools.partial(ERAPPOActor, target_entropy="-0.3*A")`. For continuous actions, σ
    depends on the state, in place of SBX's one for all states, and entropies are in the units of the action space.

    Args:
        net_arch: Widths of the hidden layers.
        action_dim: D, or the number of discrete actions.
        target_entropy: H0 for the whole action: nats, or a rule in D. For discrete actions, the floor in nats.
        head: `era` or `era-floor`; for discrete actions `era-exact` or `era`. By default the one that holds the
            floor exactly. For comparisons also other heads, as in `ERAActor`, and `softmax` for discrete actions.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        activation_fn: Activation of the hidden layers.
        num_discrete_choices: Number of discrete actions, None for continuous ones.
        ortho_init: Whether the last layer starts near 0.
        log_std_init: SBX's, refused unless 0, its default: σ follows from `target_entropy`.
        features_extractor: SBX's, for images.
        features_dim: Width of its output.

    Raises:
        ValueError: When SBX builds it: a target that is out of reach, an unknown head, `shares` or `era-batch`,
            other actions, a `log_std_init`, or an algorithm other than PPO.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from entropyfloor.integrations.sbx import ERAPPOActor
        >>> actor, observations = ERAPPOActor([8], 6, target_entropy="-0.3*A"), jnp.ones((2, 17))
        >>> policy = actor.apply(actor.init(jax.random.key(0), observations), observations)
        >>> bool((policy.entropy() > -1.8 - 1e-4).all())
        True
    """

    net_arch: Sequence[int]
    action_dim: int
    target_entropy: float | str
    head: GaussianHeadName | CategoricalHeadName | None = None
    log_std_min: float = -8.0
    log_std_max: float = 0.0
    activation_fn: Activation = nn.tanh
    num_discrete_choices: Any = None
    ortho_init: bool = False
    log_std_init: float = 0.0
    features_extractor: Any = None
    features_dim: int = 512

    reset_noise = property(fset=_refuse_squashing)

    def __post_init__(self) -> None:
        if self.log_std_init != 0.0:
            raise ValueError(
                f"log_std_init={self.log_std_init}: σ follows from target_entropy, so leave log_std_init out"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Distribution:
        """π(·|s) of a batch of observations."""
        if self.features_extractor is not None:
            x = self.features_extractor(self.features_dim, self.activation_fn)(x)
        x = _hidden(x, self.net_arch, self.activation_fn)
        init: dict[str, Any] = {"kernel_init": nn.initializers.orthogonal(0.01)} if self.ortho_init else {}
        if self.num_discrete_choices is None:
            bounds = self.log_std_min, self.log_std_max
            head: Any = self.head or "era"
            policy = gaussian_policy(head, "normal", self.action_dim, self.target_entropy, *bounds)
            mean, raw_log_std = jnp.split(nn.Dense(2 * self.action_dim, **init)(x), 2, axis=-1)
            return policy(mean, raw_log_std)
        if not isinstance(self.num_discrete_choices, int):
            raise ValueError("MultiDiscrete and MultiBinary actions have no ERA head: Box and Discrete have one")
        head = self.head or "era-exact"
        floor = targets.resolve_discrete(self.target_entropy, self.action_dim)
        choose = CategoricalPolicy(head, self.action_dim, floor)
        return choose(nn.Dense(self.action_dim, **init)(x))


def _hidden(x: Array, net_arch: Sequence[int], activation_fn: Activation) -> Array:
    x = x.reshape(len(x), -1)
    for width in net_arch:
        x = activation_fn(nn.Dense(width)(x))
    return x
