"""Model predictive path integral control (Williams et al. 2015), as TD-MPC2 plans with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray


class Plan(NamedTuple):
    """A distribution over sequences of actions, and the best sequences that it was fitted to."""

    mean: Float[Array, "H D"]
    std: Float[Array, "H D"]
    elites: Float[Array, "H E D"]
    scores: Float[Array, " E"]
    """Logits of the elites: temperature times value."""

    def pick(self, key: PRNGKeyArray) -> Float[Array, " D"]:
        """The first action of an elite, drawn with probability `softmax(scores)` (the Gumbel trick)."""
        return self.elites[0, jax.random.categorical(key, self.scores)]


@dataclass(frozen=True)
class MPPI:
    """Repeatedly: sample sequences of actions from a Gaussian, and fit it to the best of them.

    Args:
        horizon: H, the number of actions of a sequence.
        samples: Number of sequences, those of the policy among them.
        proposals: Number of sequences that the policy gives.
        elites: E, the number of best sequences that the Gaussian is fitted to.
        iterations: Number of fits.
        temperature: Factor of a sequence's value in its weight `softmax(temperature · value)`.
        min_std: Lower bound of the Gaussian's standard deviation.
        max_std: Its upper bound, and where it starts.
    """

    horizon: int = 3
    samples: int = 512
    proposals: int = 24
    elites: int = 64
    iterations: int = 6
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0

    def __post_init__(self) -> None:
        if not self.proposals <= self.samples >= self.elites:
            raise ValueError(
                f"samples={self.samples} must be at least proposals={self.proposals} and elites={self.elites}"
            )

    def __call__(
        self,
        value: Callable[[Float[Array, "H N D"], PRNGKeyArray], Float[Array, " N"]],
        proposals: Float[Array, "H P D"],
        mean: Float[Array, "H D"],
        key: PRNGKeyArray,
    ) -> Plan:
        """The plan after all iterations.

        Args:
            value: Value of each sequence; NaN counts as 0.
            proposals: Sequences of the policy, which compete in every iteration.
            mean: Mean of the first Gaussian.
            key: Key of all that is random.
        """

        def iterate(plan: Plan, key: PRNGKeyArray) -> tuple[Plan, None]:
            noise_key, value_key = jax.random.split(key)
            shape = (self.horizon, self.samples - self.proposals, mean.shape[-1])
            sampled = plan.mean[:, None] + plan.std[:, None] * jax.random.normal(noise_key, shape, mean.dtype)
            actions = jnp.concatenate([proposals, sampled.clip(-1.0, 1.0)], axis=1)
            best, index = jax.lax.top_k(jnp.nan_to_num(value(actions, value_key)), self.elites)
            elites, scores = actions[:, index], self.temperature * best
            weights = jax.nn.softmax(scores)[None, :, None]
            centre = (weights * elites).sum(axis=1)
            std = jnp.sqrt((weights * (elites - centre[:, None]) ** 2).sum(axis=1))
            return Plan(centre, std.clip(self.min_std, self.max_std), elites, scores), None

        start = Plan(
            mean,
            jnp.full_like(mean, self.max_std),
            jnp.zeros((self.horizon, self.elites, mean.shape[-1]), mean.dtype),
            jnp.zeros(self.elites, mean.dtype),
        )
        return jax.lax.scan(iterate, start, jax.random.split(key, self.iterations))[0]


def shifted(mean: Float[Array, "H D"]) -> Float[Array, "H D"]:
    """The mean of the last plan one step later, with 0 at the end: where the next plan starts."""
    return jnp.concatenate([mean[1:], jnp.zeros_like(mean[:1])])
