"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), with and without ERA (arXiv 2510.08549).

From top to bottom: the losses, the state, the agent. The losses are functions of plain arrays; `update` is a pure
function of (state, batch, key). No config, replay buffer or environment is used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from entropyfloor.control.heads import Gaussian, GaussianPolicy, HeadState
from entropyfloor.control.replay import Transition
from entropyfloor.jax import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray

EntropyTerm = Literal["auto", "fixed", "none"]
"""Entropy term of the losses: α learned, α fixed, or none (ERA: the floor is in the policy already)."""
AlphaWeight = Literal["alpha", "log-alpha"]
"""Factor in the loss of α: α itself, or log α."""
Metrics = dict[str, Array]
Params = Any
State = TypeVar("State", bound=Any)


# --- losses ----------------------------------------------------------------------------------------------


def td_target(
    reward: Float[Array, "..."], terminated: Float[Array, "..."], next_value: Float[Array, "..."], discount: Any
) -> Float[Array, "..."]:
    """`r + γ (1 - terminated) V(s')`, without gradient; a truncated episode is bootstrapped."""
    return jax.lax.stop_gradient(reward + discount * (1.0 - terminated) * next_value)


def critic_target(
    reward: Float[Array, "..."],
    terminated: Float[Array, "..."],
    next_values: Float[Array, "size ..."],
    next_log_prob: Float[Array, "..."] | float,
    alpha: Float[Array, ""] | float,
    discount: float,
) -> Float[Array, "..."]:
    """`td_target` with `V(s') = min_k Q̄_k(s', a') - α log π(a'|s')`."""
    return td_target(reward, terminated, next_values.min(axis=0) - alpha * next_log_prob, discount)


def critic_loss(values: Float[Array, "size ..."], target: Float[Array, "..."]) -> Float[Array, ""]:
    """Squared error to the common target, averaged over the batch and summed over the critics."""
    return ((values - target) ** 2).mean(axis=-1).sum()


def actor_loss(
    values: Float[Array, "size ..."], log_prob: Float[Array, "..."] | float, alpha: Float[Array, ""] | float
) -> Float[Array, ""]:
    """`E[α log π(a|s) - min_k Q_k(s, a)]`, with a ~ π reparametrised."""
    return (alpha * log_prob - values.min(axis=0)).mean()


def alpha_loss(
    log_alpha: Float[Array, ""],
    log_prob: Float[Array, "..."],
    target_entropy: float,
    weight: AlphaWeight = "alpha",
) -> Float[Array, ""]:
    """`-α E[log π(a|s) + H0]`: α grows while the policy's entropy is below its target.

    With `weight="log-alpha"`, as Stable-Baselines3 has it, log α stands before the mean instead: the gradient does
    not shrink with α, so α falls faster from a start that was far too high.
    """
    weighed = jnp.exp(log_alpha) if weight == "alpha" else log_alpha
    return -weighed * (jax.lax.stop_gradient(log_prob) + target_entropy).mean()


def residual_loss(raw: Float[Array, ""], entropy: Float[Array, "..."], target_entropy: float) -> Float[Array, ""]:
    """`E[δ̂ (H[π(·|s)] - H0)]` with `δ̂ = softplus(raw)` (Eq. 12): δ̂ grows while the acting policy is below H0."""
    return (jax.nn.softplus(raw) * (jax.lax.stop_gradient(entropy) - target_entropy)).mean()


# --- the agent -------------------------------------------------------------------------------------------


class ActorState(NamedTuple):
    """State of the acting policy."""

    params: Params
    head: HeadState
    """δ̂ and the running log M of Eq. 36; where δ̂ is learned, its parameter before softplus."""


class SACState(NamedTuple):
    """Everything that training changes."""

    actor: ActorState
    critics: Params
    target_critics: Params
    log_alpha: Float[Array, ""]
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    alpha_optimiser: optax.OptState
    residual_optimiser: optax.OptState


@dataclass(frozen=True)
class SAC:
    """The agent: networks, policy, optimisers and hyperparameters, which training does not change.

    Args:
        actor: `observation → (mean, raw_log_std)`.
        critics: `(observation, action) → values`, those of every critic along the first axis.
        policy: From the actor's outputs to a distribution.
        actor_optimiser: Optimiser of the actor.
        critic_optimiser: Optimiser of the critics.
        alpha_optimiser: Optimiser of log α, and of a learned δ̂.
        entropy: Entropy term of the losses.
        target_entropy: H0 in nats, the target of α where `entropy="auto"`, and of a learned δ̂.
        initial_alpha: Initial α, or α itself where `entropy="fixed"`.
        alpha_weight: Factor in the loss of α: see `alpha_loss`.
        learn_residual: Learn δ̂ (Eq. 12), starting at softplus(0) = log 2; a constant one is part of the policy.
        discount: Discount γ.
        tau: Polyak's τ: the target critics move this share of the way in each update.
    """

    actor: nn.Module
    critics: nn.Module
    policy: GaussianPolicy
    actor_optimiser: optax.GradientTransformation
    critic_optimiser: optax.GradientTransformation
    alpha_optimiser: optax.GradientTransformation
    entropy: EntropyTerm
    target_entropy: float
    initial_alpha: float = 1.0
    alpha_weight: AlphaWeight = "alpha"
    learn_residual: bool = False
    discount: float = 0.99
    tau: float = 0.005

    def init(self, key: PRNGKeyArray, obs_dim: int, action_dim: int) -> SACState:
        """Fresh parameters; the target critics start as copies."""
        actor_key, critic_key = jax.random.split(key)
        observation, action = jnp.zeros((1, obs_dim), jnp.float32), jnp.zeros((1, action_dim), jnp.float32)
        actor = self.actor.init(actor_key, observation)
        critics = self.critics.init(critic_key, observation, action)
        head = self.policy.initial_state(residual_entropy=0.0 if self.learn_residual else None)
        log_alpha = jnp.asarray(math.log(self.initial_alpha), jnp.float32)
        return SACState(
            ActorState(actor, head),
            critics,
            jax.tree.map(jnp.copy, critics),
            log_alpha,
            self.actor_optimiser.init(actor),
            self.critic_optimiser.init(critics),
            self.alpha_optimiser.init(log_alpha),
            self.alpha_optimiser.init(head.residual_entropy),
        )

    def distribution(self, actor: ActorState, observation: Float[Array, "*batch o"]) -> Gaussian:
        """π(·|s), the policy that acts."""
        mean, raw_log_std = self._outputs(actor.params, observation)
        return self.policy(mean, raw_log_std, self.head(actor))

    def act(self, actor: ActorState, observation: Float[Array, "*batch o"], key: PRNGKeyArray) -> Array:
        """An action to train with."""
        return self.distribution(actor, observation).sample(seed=key)

    def head(self, actor: ActorState) -> HeadState:
        """The head's state, with δ̂ in nats."""
        if not self.learn_residual:
            return actor.head
        return actor.head._replace(residual_entropy=jax.nn.softplus(actor.head.residual_entropy))

    def values(
        self, critics: Params, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "size ..."]:
        """Q_k(s, a) of every critic."""
        values: Any = self.critics.apply(critics, observation, action)
        return values

    def update(self, state: SACState, batch: Transition, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        """One gradient step of the critics, of the actor against the new critics, of α and of δ̂."""
        next_key, actor_key = jax.random.split(key)
        alpha = self.alpha(state)
        target = self.target(state, batch, alpha, next_key)

        def loss_of_critics(critics: Params) -> tuple[Array, Array]:
            values = self.values(critics, batch.observation, batch.action)
            return critic_loss(values, target), values

        (loss_q, values), grad_q = jax.value_and_grad(loss_of_critics, has_aux=True)(state.critics)
        critics, critic_optimiser = descend(self.critic_optimiser, grad_q, state.critic_optimiser, state.critics)

        def loss_of_actor(params: Params) -> tuple[Array, Any]:
            policy, raw_log_std = self.train_policy(params, state.actor, batch.observation)
            action, log_prob = self.sample(policy, actor_key)
            values = self.values(critics, batch.observation, action)
            return actor_loss(values, log_prob, alpha), (policy, raw_log_std, log_prob)

        loss_and_grad = jax.value_and_grad(loss_of_actor, has_aux=True)
        (loss_pi, (policy, raw_log_std, log_prob)), grad_pi = loss_and_grad(state.actor.params)
        actor, actor_optimiser = descend(self.actor_optimiser, grad_pi, state.actor_optimiser, state.actor.params)

        new = state._replace(
            actor=state.actor._replace(params=actor),
            critics=critics,
            target_critics=optax.incremental_update(critics, state.target_critics, self.tau),
            actor_optimiser=actor_optimiser,
            critic_optimiser=critic_optimiser,
        )
        new = self.tune(new, policy, raw_log_std, log_prob)
        metrics = {
            "loss/critic": loss_q,
            "loss/actor": loss_pi,
            "q/mean": values.mean(),
            "q/std": values.std(),
            "grad_norm/critic": optax.tree.norm(grad_q),
            "grad_norm/actor": optax.tree.norm(grad_pi),
        }
        return new, metrics | self.entropy_metrics(new)

    def alpha(self, state: Any) -> Float[Array, ""] | float:
        """α in the losses: 0 without an entropy term."""
        return jnp.exp(state.log_alpha) if self.entropy != "none" else 0.0

    def target(
        self, state: Any, batch: Transition, alpha: Float[Array, ""] | float, key: PRNGKeyArray
    ) -> Float[Array, " batch"]:
        """`critic_target` of each transition, with a next action of the policy."""
        policy, _ = self.train_policy(state.actor.params, state.actor, batch.next_observation)
        action, log_prob = self.sample(policy, key)
        values = self.values(state.target_critics, batch.next_observation, action)
        return critic_target(batch.reward, batch.terminated, values, log_prob, alpha, self.discount)

    def tune(self, state: State, policy: Gaussian, raw_log_std: Array, log_prob: Array | float) -> State:
        """One step of α, of δ̂ and of the running M of Eq. 36, after one of the actor."""
        if self.entropy == "auto":
            grad = jax.grad(alpha_loss)(state.log_alpha, log_prob, self.target_entropy, self.alpha_weight)
            log_alpha, optimiser = descend(self.alpha_optimiser, grad, state.alpha_optimiser, state.log_alpha)
            state = state._replace(log_alpha=log_alpha, alpha_optimiser=optimiser)
        head = self.policy.observe(state.actor.head, raw_log_std)
        if self.learn_residual:
            raw = head.residual_entropy
            grad = jax.grad(residual_loss)(raw, policy.entropy(), self.target_entropy)
            raw, optimiser = descend(self.alpha_optimiser, grad, state.residual_optimiser, raw)
            head = head._replace(residual_entropy=raw)
            state = state._replace(residual_optimiser=optimiser)
        return state._replace(actor=state.actor._replace(head=head))

    def update_many(self, state: SACState, batches: Transition, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        """`update` on each entry of the batches' first axis, unrolled; the metrics are the last update's."""
        for i in range(batches.reward.shape[0]):
            batch = Transition(*(column[i] for column in batches))
            state, metrics = self.update(state, batch, jax.random.fold_in(key, i))
        return state, metrics

    def train_policy(
        self, params: Params, actor: ActorState, observation: Float[Array, "batch o"]
    ) -> tuple[Gaussian, Float[Array, "batch D"]]:
        """π of `params` in training, where Eq. 36 takes the statistic of the batch, and the raw log σ."""
        mean, raw_log_std = self._outputs(params, observation)
        head = self.head(actor)._replace(log_mean_exp_sum=None)
        return self.policy(mean, raw_log_std, head), raw_log_std

    def _outputs(self, params: Params, observation: Float[Array, "*batch o"]) -> tuple[Array, Array]:
        outputs: Any = self.actor.apply(params, observation)
        return outputs

    def sample(
        self, policy: Gaussian, key: PRNGKeyArray
    ) -> tuple[Float[Array, "*batch D"], Float[Array, "..."] | float]:
        """An action and its log-density, which is 0 where the losses do not use it."""
        if self.entropy == "none":
            return policy.sample(seed=key), 0.0
        return policy.sample_and_log_prob(seed=key)

    def entropy_metrics(self, state: Any) -> Metrics:
        """Metrics of what steers the entropy: α, δ̂, and the share of targets that was clamped."""
        metrics = {} if self.entropy == "none" else {"alpha": jnp.exp(state.log_alpha)}
        if self.learn_residual:
            metrics["residual_entropy"] = residual = self.head(state.actor).residual_entropy
            target, high = self.target_entropy + residual, self.policy.log_std_max
            metrics["clamped_share"] = F.clamped_share(target, self.policy.action_dim, log_std_max=high)
        return metrics


def descend(
    optimiser: optax.GradientTransformation, grad: Params, state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    """One step of an optimiser: the new parameters and its new state."""
    updates, state = optimiser.update(grad, state, params)
    return optax.apply_updates(params, updates), state
