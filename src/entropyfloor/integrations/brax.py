"""ERA in Brax, and so in MuJoCo Playground: a `network_factory` for its PPO and SAC."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entropyfloor.extras import require

require("playground", "brax")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from brax.training.distribution import IdentityPostprocessor, ParametricDistribution  # noqa: E402
from jax import Array  # noqa: E402

from entropyfloor.control.heads import Gaussian, GaussianHeadName  # noqa: E402
from entropyfloor.integrations.jax_heads import gaussian_policy  # noqa: E402
from entropyfloor.jax.distributions import TruncatedNormal  # noqa: E402

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray

__all__ = ["ERADistribution", "with_floor"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TruncatedAction(TruncatedNormal):
    """`TruncatedNormal` on [-1, 1] with the divergence that Brax's adaptive learning rate asks for."""

    def kl_divergence(self, old_dist: TruncatedAction) -> Float[Array, "*batch"]:
        """KL(old_dist ‖ self), in closed form: truncated Gaussians on one interval are an exponential family."""
        loc, scale, old_loc, old_scale = self.loc, self.scale, old_dist.loc, old_dist.scale
        low, high = ((bound - old_loc) / old_scale for bound in (-1.0, 1.0))
        below, above = (jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) for z in (low, high))
        mass = old_dist.mass()
        # First and second moment of x - old_loc under the old policy.
        first = old_scale * (below - above) / mass
        second = old_scale**2 * (1 + (low * below - high * above) / mass)
        between = old_loc - loc
        quadratic = (second + 2 * between * first + between**2) / (2 * scale**2) - second / (2 * old_scale**2)
        return (jnp.log(scale * self.mass() / (old_scale * mass)) + quadratic).sum(-1)

    def mass(self) -> Float[Array, "*batch D"]:
        """Probability of [-1, 1] before truncation, per coordinate."""
        below, above = self._mass_beside_loc(self.loc, self.scale)
        return below + above


class ERADistribution(ParametricDistribution):
    """Truncated Gaussian on [-1, 1] with a floor under its entropy, from 2 D outputs of a network.

    Args:
        event_size: D.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-A/2"`.
        head: `era-exact`, `era` (the paper's) or `era-floor`. For comparisons also `tanh`, `clip`, `fixed` and
            `projection` of `control.heads.GaussianPolicy`.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Raises:
        ValueError: A target that is out of reach, an unknown head, or `shares` or `era-batch`, which need more
            than Brax has.

    Examples:
        >>> import jax
        >>> from entropyfloor.integrations.brax import ERADistribution
        >>> distribution = ERADistribution(6, target_entropy="-A/2")
        >>> entropy = distribution.entropy(jax.random.normal(jax.random.key(0), (8, 12)), jax.random.key(1))
        >>> bool((entropy > -3.0 - 1e-4).all())
        True
    """

    def __init__(
        self,
        event_size: int,
        target_entropy: float | str,
        head: GaussianHeadName = "era-exact",
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
    ) -> None:
        super().__init__(2 * event_size, IdentityPostprocessor(), event_ndims=1, reparametrizable=True)
        self.policy = gaussian_policy(head, "truncated", event_size, target_entropy, log_std_min, log_std_max)

    def create_dist(self, parameters: Float[Array, "*batch o"]) -> TruncatedAction:
        """π(·|s) from mean and raw log σ."""
        mean, raw_log_std = jnp.split(parameters, 2, axis=-1)
        policy: Gaussian = self.policy(mean, raw_log_std)
        return TruncatedAction(policy.loc, policy.scale)

    def log_prob(self, parameters: Float[Array, "*batch o"], actions: Float[Array, "*batch D"]) -> Array:
        """Log-density of actions."""
        return self.create_dist(parameters).log_prob(actions)

    def entropy(self, parameters: Float[Array, "*batch o"], seed: PRNGKeyArray) -> Array:  # noqa: ARG002
        """Entropy of the policy that acts, in closed form."""
        return self.create_dist(parameters).entropy()


def with_floor(
    network_factory: Callable[..., Any], target_entropy: float | str, **options: Any
) -> Callable[..., Any]:
    """A `network_factory` whose policy has a floor under its entropy; networks and parameters stay the same.

    Args:
        network_factory: `make_ppo_networks` or `make_sac_networks` of Brax, or a partial of one, with its default
            `distribution_type="tanh_normal"`, so that the network puts out 2 D numbers.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-A/2"`.
        **options: `head`, `log_std_min`, `log_std_max` of `ERADistribution`.

    Returns:
        The factory for `train(network_factory=…)`. It raises a `ValueError` if the network has other outputs, as
        with `distribution_type="normal"`.

    Examples:
        >>> from brax.training.agents.ppo.networks import make_ppo_networks
        >>> from entropyfloor.integrations.brax import with_floor
        >>> networks = with_floor(make_ppo_networks, target_entropy="-A/2")(17, 6)
        >>> networks.parametric_action_distribution.policy.target_entropy
        -3.0
    """

    @functools.wraps(network_factory)
    def factory(observation_size: Any, action_size: int, *args: Any, **kwargs: Any) -> Any:
        networks = network_factory(observation_size, action_size, *args, **kwargs)
        distribution = ERADistribution(action_size, target_entropy, **options)
        if (size := networks.parametric_action_distribution.param_size) != distribution.param_size:
            raise ValueError(
                f"the policy network is for {size} numbers, and a mean and raw log σ of {action_size} action "
                f"dimensions are {distribution.param_size}: leave distribution_type at 'tanh_normal'"
            )
        return networks.replace(parametric_action_distribution=distribution)

    return factory
