"""Offline-boosted actor-critic (Luo et al. 2024, arXiv 2405.18520), with and without ERA (arXiv 2510.08549).

Beside SAC's critics of the learning policy π there are critics of μ, the policy of the best actions in the replay,
by expectile regression. Where the replay is better than π on a batch, π also clones its actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from entropyfloor.control.agents.sac import (
    SAC,
    ActorState,
    Metrics,
    Params,
    actor_loss,
    critic_loss,
    descend,
    td_target,
)
from entropyfloor.control.heads import Gaussian
from entropyfloor.control.replay import Transition

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, PRNGKeyArray

LOG_DENSITY_RANGE = (-20.0, 2.0)
"""Bounds of the log-density of each action dimension in behaviour cloning, against outliers."""


# --- losses ----------------------------------------------------------------------------------------------


def expectile_loss(
    values: Float[Array, "..."], targets: Float[Array, "size ..."], expectile: float
) -> Float[Array, ""]:
    """`E[|ε - 1{u < 0}| u²]` with `u = min_k Q̄μ_k(s, a) - Vμ(s)`: for ε → 1, of the best stored actions."""
    gap = jax.lax.stop_gradient(targets.min(axis=0)) - values
    return (jnp.where(gap < 0, 1.0 - expectile, expectile) * gap**2).mean()


def replay_is_better(
    policy_values: Float[Array, "size ..."], behaviour_values: Float[Array, "size ..."]
) -> Bool[Array, ""]:
    """The gate, one for the batch: `E[min_k Qπ_k(s, π(s))] < E[min_k Qμ_k(s, a)]`."""
    return policy_values.min(axis=0).mean() < behaviour_values.min(axis=0).mean()


def cloning_loss(policy: Gaussian, action: Float[Array, "*batch D"]) -> Float[Array, ""]:
    """`-E[Σ_i log π_i(a_i|s)]` of the stored actions, each dimension cut to `LOG_DENSITY_RANGE`."""
    coordinates = jax.tree.map(lambda x: x[..., None], policy)  # every coordinate becomes an event of its own
    return -coordinates.log_prob(action[..., None]).clip(*LOG_DENSITY_RANGE).sum(axis=-1).mean()


# --- the agent -------------------------------------------------------------------------------------------


class OBACState(NamedTuple):
    """Everything that training changes."""

    actor: ActorState
    critics: Params
    target_critics: Params
    behaviour_critics: Params
    target_behaviour_critics: Params
    behaviour_value: Params
    log_alpha: Float[Array, ""]
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    behaviour_optimiser: optax.OptState
    value_optimiser: optax.OptState
    alpha_optimiser: optax.OptState
    residual_optimiser: optax.OptState


@dataclass(frozen=True, kw_only=True)
class OBAC(SAC):
    """The agent: SAC, and the behaviour policy μ. Both pairs of critics have the same shape and optimiser.

    Args:
        value: `observation → Vμ`.
        expectile: Expectile ε of Vμ.
        cloning_weight: Weight λ of behaviour cloning.
    """

    value: nn.Module
    expectile: float = 0.9
    cloning_weight: float = 1e-3

    def init(self, key: PRNGKeyArray, obs_dim: int, action_dim: int) -> OBACState:  # type: ignore[override]
        """Fresh parameters; the target critics start as copies."""
        sac_key, critic_key, value_key = jax.random.split(key, 3)
        sac = super().init(sac_key, obs_dim, action_dim)
        observation, action = jnp.zeros((1, obs_dim), jnp.float32), jnp.zeros((1, action_dim), jnp.float32)
        behaviour = self.critics.init(critic_key, observation, action)
        value = self.value.init(value_key, observation)
        return OBACState(
            **sac._asdict(),
            behaviour_critics=behaviour,
            target_behaviour_critics=jax.tree.map(jnp.copy, behaviour),
            behaviour_value=value,
            behaviour_optimiser=self.critic_optimiser.init(behaviour),
            value_optimiser=self.critic_optimiser.init(value),
        )

    def update(  # type: ignore[override]
        self, state: OBACState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[OBACState, Metrics]:
        """One gradient step of Vμ, of Qμ, of Qπ, of the actor against the new critics, of α and of δ̂."""
        next_key, actor_key = jax.random.split(key)
        alpha = self.alpha(state)

        stored = self.values(state.target_behaviour_critics, batch.observation, batch.action)

        def loss_of_value(params: Params) -> Array:
            return expectile_loss(self._value(params, batch.observation), stored, self.expectile)

        loss_v, grad_v = jax.value_and_grad(loss_of_value)(state.behaviour_value)
        value, value_optimiser = descend(
            self.critic_optimiser, grad_v, state.value_optimiser, state.behaviour_value
        )

        def loss_of_critics(critics: Params, target: Array) -> tuple[Array, Array]:
            values = self.values(critics, batch.observation, batch.action)
            return critic_loss(values, target), values

        grad_of_critics = jax.value_and_grad(loss_of_critics, has_aux=True)
        next_value = self._value(value, batch.next_observation)
        target = td_target(batch.reward, batch.terminated, next_value, self.discount)
        (loss_mu, _), grad_mu = grad_of_critics(state.behaviour_critics, target)
        behaviour, behaviour_optimiser = descend(
            self.critic_optimiser, grad_mu, state.behaviour_optimiser, state.behaviour_critics
        )

        target = self.target(state, batch, alpha, next_key)
        (loss_q, values), grad_q = grad_of_critics(state.critics, target)
        critics, critic_optimiser = descend(self.critic_optimiser, grad_q, state.critic_optimiser, state.critics)

        behaviour_values = self.values(behaviour, batch.observation, batch.action)

        def loss_of_actor(params: Params) -> tuple[Array, Any]:
            policy, raw_log_std = self.train_policy(params, state.actor, batch.observation)
            action, log_prob = self.sample(policy, actor_key)
            values = self.values(critics, batch.observation, action)
            gate = replay_is_better(values, behaviour_values)
            cloning = jnp.where(gate, self.cloning_weight, 0.0) * cloning_loss(policy, batch.action)
            return actor_loss(values, log_prob, alpha) + cloning, (policy, raw_log_std, log_prob, gate)

        loss_and_grad = jax.value_and_grad(loss_of_actor, has_aux=True)
        (loss_pi, (policy, raw_log_std, log_prob, gate)), grad_pi = loss_and_grad(state.actor.params)
        actor, actor_optimiser = descend(self.actor_optimiser, grad_pi, state.actor_optimiser, state.actor.params)

        def follow(params: Params, target: Params) -> Params:
            return optax.incremental_update(params, target, self.tau)

        new = state._replace(
            actor=state.actor._replace(params=actor),
            critics=critics,
            target_critics=follow(critics, state.target_critics),
            behaviour_critics=behaviour,
            target_behaviour_critics=follow(behaviour, state.target_behaviour_critics),
            behaviour_value=value,
            actor_optimiser=actor_optimiser,
            critic_optimiser=critic_optimiser,
            behaviour_optimiser=behaviour_optimiser,
            value_optimiser=value_optimiser,
        )
        new = self.tune(new, policy, raw_log_std, log_prob)
        metrics = {
            "loss/critic": loss_q,
            "loss/behaviour_critic": loss_mu,
            "loss/behaviour_value": loss_v,
            "loss/actor": loss_pi,
            "q/mean": values.mean(),
            "q/std": values.std(),
            "q/behaviour_mean": behaviour_values.mean(),
            "cloning": gate.astype(jnp.float32),
            "grad_norm/critic": optax.tree.norm(grad_q),
            "grad_norm/actor": optax.tree.norm(grad_pi),
        }
        return new, metrics | self.entropy_metrics(new)

    def _value(self, params: Params, observation: Float[Array, "*batch o"]) -> Float[Array, "..."]:
        value: Any = self.value.apply(params, observation)
        return value
