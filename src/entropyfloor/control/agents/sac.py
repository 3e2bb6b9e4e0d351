"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), with and without ERA (arXiv 2510.08549).

The page, top to bottom: the losses, the state, the agent. The losses are functions of plain arrays; `update` is a
pure function of (state, batch, key). Nothing here knows of a config, a replay buffer or an environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from entropyfloor.control.heads import Distribution, Policy
from entropyfloor.control.replay import Transition

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray

EntropyTerm = Literal["auto", "fixed", "none"]
"""What the losses add: α learned, α fixed, or nothing (ERA: the floor is in the policy already)."""
Metrics = dict[str, Array]
Params = Any


# --- losses ----------------------------------------------------------------------------------------------


def critic_target(
    reward: Float[Array, "..."],
    terminated: Float[Array, "..."],
    next_values: Float[Array, "2 ..."],
    next_log_prob: Float[Array, "..."] | float,
    alpha: Float[Array, ""] | float,
    discount: float,
) -> Float[Array, "..."]:
    """`r + γ (1 - terminated) (min_k Q̄_k(s', a') - α log π(a'|s'))`; a truncated episode is bootstrapped."""
    next_value = next_values.min(axis=0) - alpha * next_log_prob
    return jax.lax.stop_gradient(reward + discount * (1.0 - terminated) * next_value)


def critic_loss(values: Float[Array, "2 ..."], target: Float[Array, "..."]) -> Float[Array, ""]:
    """Squared error to the common target, averaged over the batch and summed over the critics."""
    return ((values - target) ** 2).mean(axis=-1).sum()


def actor_loss(
    values: Float[Array, "2 ..."], log_prob: Float[Array, "..."] | float, alpha: Float[Array, ""] | float
) -> Float[Array, ""]:
    """`E[α log π(a|s) - min_k Q_k(s, a)]`, with a ~ π reparametrised."""
    return (alpha * log_prob - values.min(axis=0)).mean()


def alpha_loss(
    log_alpha: Float[Array, ""], log_prob: Float[Array, "..."], target_entropy: float
) -> Float[Array, ""]:
    """`-α E[log π(a|s) + H0]`: α grows while the policy's entropy is below its target."""
    return -jnp.exp(log_alpha) * (jax.lax.stop_gradient(log_prob) + target_entropy).mean()


# --- the agent -------------------------------------------------------------------------------------------


class SACState(NamedTuple):
    """Everything that training changes."""

    actor: Params
    critics: Params
    target_critics: Params
    log_alpha: Float[Array, ""]
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    alpha_optimiser: optax.OptState


@dataclass(frozen=True)
class SAC:
    """The constant parts of the agent: networks, policy, optimisers and numbers.

    Args:
        actor: `observation → (mean, raw_log_std)`.
        critics: `(observation, action) → values`, two along the first axis.
        policy: `heads.make_policy`: from the actor's outputs to a distribution.
        actor_optimiser: For the actor.
        critic_optimiser: For both critics.
        alpha_optimiser: For log α.
        entropy: What the losses add.
        target_entropy: H0 in nats, which α steers to where `entropy="auto"`.
        initial_alpha: α₀, or α itself where `entropy="fixed"`.
        discount: γ.
        tau: Polyak's τ: the target critics move this share of the way in each update.
    """

    actor: nn.Module
    critics: nn.Module
    policy: Policy
    actor_optimiser: optax.GradientTransformation
    critic_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    entropy: EntropyTerm
    target_entropy: float
    initial_alpha: float = 1.0
    discount: float = 0.99
    tau: float = 0.005

    def init(self, key: PRNGKeyArray, obs_dim: int, action_dim: int) -> SACState:
        """Fresh parameters; the target critics start as copies."""
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, obs_dim), jnp.float32), jnp.zeros((1, action_dim), jnp.float32)
        actor = self.actor.init(actor_key, observation)
        critics = self.critics.init(critic_key, observation, action)
        log_alpha = jnp.asarray(math.log(self.initial_alpha), jnp.float32)
        return SACState(
            actor,
            critics,
            jax.tree.map(jnp.copy, critics),
            log_alpha,
            self.actor_optimiser.init(actor),
            self.critic_optimiser.init(critics),
            self.alpha_optimiser.init(log_alpha),
        )

    def distribution(self, actor: Params, observation: Float[Array, "*batch o"]) -> Distribution:
        """π(·|s), the policy that acts."""
        outputs: Any = self.actor.apply(actor, observation)
        return self.policy(*outputs)

    def values(
        self, critics: Params, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "2 ..."]:
        """Q_k(s, a) of both critics."""
        values: Any = self.critics.apply(critics, observation, action)
        return values

    def update(self, state: SACState, batch: Transition, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        """One gradient step of the critics, of the actor against the new critics, and of α."""
        next_key, actor_key = jax.random.split(key)
        alpha = jnp.exp(state.log_alpha) if self.entropy != "none" else 0.0

        next_action, next_log_prob = self._sample(state.actor, batch.next_observation, next_key)
        next_values = self.values(state.target_critics, batch.next_observation, next_action)
        target = critic_target(batch.reward, batch.terminated, next_values, next_log_prob, alpha, self.discount)

        def loss_of_critics(critics: Params) -> tuple[Array, Array]:
            values = self.values(critics, batch.observation, batch.action)
            return critic_loss(values, target), values.mean()

        (loss_q, mean_q), grad_q = jax.value_and_grad(loss_of_critics, has_aux=True)(state.critics)
        critics, critic_optimiser = _step(self.critic_optimiser, grad_q, state.critic_optimiser, state.critics)

        def loss_of_actor(actor: Params) -> tuple[Array, Array | float]:
            action, log_prob = self._sample(actor, batch.observation, actor_key)
            values = self.values(critics, batch.observation, action)
            return actor_loss(values, log_prob, alpha), log_prob

        (loss_pi, log_prob), grad_pi = jax.value_and_grad(loss_of_actor, has_aux=True)(state.actor)
        actor, actor_optimiser = _step(self.actor_optimiser, grad_pi, state.actor_optimiser, state.actor)

        log_alpha, alpha_optimiser = state.log_alpha, state.alpha_optimiser
        if self.entropy == "auto":
            grad_alpha = jax.grad(alpha_loss)(log_alpha, log_prob, self.target_entropy)
            log_alpha, alpha_optimiser = _step(self.alpha_optimiser, grad_alpha, alpha_optimiser, log_alpha)

        target_critics = optax.incremental_update(critics, state.target_critics, self.tau)
        metrics = {
            "loss/critic": loss_q,
            "loss/actor": loss_pi,
            "q/mean": mean_q,
            "grad_norm/critic": optax.tree.norm(grad_q),
            "grad_norm/actor": optax.tree.norm(grad_pi),
        }
        if self.entropy != "none":
            metrics["alpha"] = jnp.exp(log_alpha)
        return SACState(
            actor, critics, target_critics, log_alpha, actor_optimiser, critic_optimiser, alpha_optimiser
        ), metrics

    def update_many(self, state: SACState, batches: Transition, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        """`update` on each entry of the batches' first axis, unrolled; the metrics are the last update's."""
        for i in range(batches.reward.shape[0]):
            batch = Transition(*(column[i] for column in batches))
            state, metrics = self.update(state, batch, jax.random.fold_in(key, i))
        return state, metrics

    def _sample(
        self, actor: Params, observation: Float[Array, "*batch o"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*batch D"], Float[Array, "..."] | float]:
        """An action and its log-density, which is 0 where the losses have no use for it."""
        distribution = self.distribution(actor, observation)
        if self.entropy == "none":
            return distribution.sample(seed=key), 0.0
        return distribution.sample_and_log_prob(seed=key)


def _step(
    optimiser: optax.GradientTransformation, grad: Params, state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    updates, state = optimiser.update(grad, state, params)
    return optax.apply_updates(params, updates), state
