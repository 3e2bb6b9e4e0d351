"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), with or without ERA (arXiv 2510.08549).

From top to bottom: advantages, the losses, PopArt, the state, the agent. The losses are functions of plain arrays;
`update` is a pure function of (state, rollout, key). ERA is part of the policy argument: it needs no special case
here, only `entropy_coef=0`. Details that the paper of PPO leaves open (one optimiser and one gradient
norm for all networks, Adam's ε of 1e-5, the normalisation of advantages) are those of Stable-Baselines3 2.x.

Three ablations are arguments: `clip_high` above `clip_low` (clip-higher), `entropy_share` below 1 (selective
high-entropy training), and an `entropy_body` (EAPO).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, PRNGKeyArray

Metrics = dict[str, Array]
Params = Any


# --- advantages ------------------------------------------------------------------------------------------


def gae(
    rewards: Float[Array, "T N"],
    values: Float[Array, "T N"],
    next_values: Float[Array, "T N"],
    terminated: Float[Array, "T N"] | Bool[Array, "T N"],
    ended: Float[Array, "T N"] | Bool[Array, "T N"],
    discount: float,
    lambda_: float,
) -> Float[Array, "T N"]:
    """Generalised advantages (Schulman et al. 2016, arXiv 1506.02438, Eq. 16), without gradients.

    `δ_t = r_t + γ (1 - terminated_t) V(s'_t) - V(s_t)` and `A_t = δ_t + γ λ (1 - ended_t) A_{t+1}`, with A = 0
    after the last row. A truncated episode is bootstrapped, but nothing flows back from the episode that follows.

    Args:
        rewards: r.
        values: V(s).
        next_values: V(s') of the observation after the action: at the end of an episode its last one, not the
            first of the next.
        terminated: Whether the task ended, so that nothing follows.
        ended: Whether the episode ended: terminated or truncated.
        discount: Discount γ.
        lambda_: Decay λ.
    """
    delta = rewards + discount * jnp.where(terminated > 0, 0.0, next_values) - values

    def step(later: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = row
        advantage = delta + discount * lambda_ * jnp.where(ended > 0, 0.0, later)
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)
    return jax.lax.stop_gradient(advantages)


def standardise(advantages: Float[Array, " B"]) -> Float[Array, " B"]:
    """`(A - mean) / (std + 1e-8)` over a minibatch, with the sample's standard deviation."""
    return (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)


# --- losses ----------------------------------------------------------------------------------------------


def policy_loss(
    log_ratio: Float[Array, " B"],
    advantages: Float[Array, " B"],
    chosen: Float[Array, " B"],
    clip_low: float,
    clip_high: float,
) -> Float[Array, ""]:
    """`-min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A)`, averaged over the chosen; `ρ = π(a|s) / π_old(a|s)`.

    The upper bound acts where A > 0, the lower one where A < 0. Clip-higher (Yu et al. 2025, arXiv 2503.14476,
    Sec. 3.1) is `clip_high > clip_low`. The ERA paper (C.1.4) words it as "a larger clip ratio for advantages
    greater than one"; we take the customary form, which is a larger one for advantages above zero.
    """
    ratio = jnp.exp(log_ratio)
    clipped = ratio.clip(1.0 - clip_low, 1.0 + clip_high)
    return -(chosen * jnp.minimum(ratio * advantages, clipped * advantages)).sum() / chosen.sum()


def highest(entropy: Float[Array, " B"], share: float) -> Float[Array, " B"]:
    """1 at the `max(1, ⌊share · B⌋)` highest entropies, 0 elsewhere; among equals, at the first ones.

    Selective high-entropy training (Wang et al. 2025, arXiv 2506.01939), with states in the place of tokens (ERA
    paper, C.1.4). It takes a σ that differs from state to state: where the entropy is the same in all of them, as
    with one global σ or under a head that pins it, the choice is that of the shuffle.
    """
    # 0.29 · 100 is 28.999… in floating point.
    count = max(1, int(share * entropy.size + 1e-9))
    _, index = jax.lax.top_k(entropy, count)
    return jnp.zeros_like(entropy).at[index].set(1.0)


def value_loss(values: Float[Array, " B"], returns: Float[Array, " B"]) -> Float[Array, ""]:
    """Mean squared error."""
    return ((values - returns) ** 2).mean()


# --- the critic of EAPO ----------------------------------------------------------------------------------


class EntropyCritic(NamedTuple):
    """Parameters of V_H: `(V_H - mean) / std = weight · body(s) + bias`."""

    body: Params
    weight: Float[Array, " h"]
    bias: Float[Array, ""]


class Moments(NamedTuple):
    """Running mean and variance of the targets of V_H, and the number of their updates."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    updates: Int[Array, ""]

    @property
    def std(self) -> Float[Array, ""]:
        """At least 1e-4, so that targets that are all alike can be divided by it."""
        return jnp.sqrt(self.variance).clip(1e-4)


def pop_art(
    critic: EntropyCritic, moments: Moments, targets: Float[Array, "T N"], rate: float
) -> tuple[EntropyCritic, Moments]:
    """Move the moments towards new targets, and the last layer so that V_H stays as it is (arXiv 1602.07714).

    With `δ = mean(targets) - mean`, the mixture of old and new has the mean `mean + rate δ` and the variance
    `(1 - rate) (variance + rate δ²) + rate var(targets)`. The first targets replace the moments, which then mean
    nothing yet, and leave the last layer as it is.
    """
    first = moments.updates == 0
    share = jnp.where(first, 1.0, rate).astype(targets.dtype)
    delta = targets.mean() - moments.mean
    variance = (1.0 - share) * (moments.variance + share * delta**2) + share * targets.var()
    new = Moments(moments.mean + share * delta, variance, moments.updates + 1)
    weight = critic.weight * moments.std / new.std
    bias = (critic.bias * moments.std + moments.mean - new.mean) / new.std
    kept = critic._replace(weight=weight, bias=bias)
    return jax.tree.map(lambda old, moved: jnp.where(first, old, moved), critic, kept), new


# --- the agent -------------------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """T steps of N environments under one policy."""

    observation: Any  # [T, N, obs_dim]
    action: Any  # [T, N, action_dim], or [T, N] where actions are discrete
    log_prob: Any  # [T, N], of the action as it was sampled, before the environment clips it
    reward: Any  # [T, N]
    terminated: Any  # [T, N], the task ended
    truncated: Any  # [T, N], the time was over
    next_observation: Any  # [T, N, obs_dim], after the action: at an end the last one, not that of the reset
    reward_scale: Any = 1.0  # [], factor of the task's rewards


class Networks(NamedTuple):
    """All parameters, which have one optimiser and one gradient norm."""

    actor: Params
    critic: Params
    entropy_critic: Any  # EntropyCritic; () without EAPO


class PPOState(NamedTuple):
    """Everything that training changes."""

    actor: Params
    critic: Params
    entropy_critic: Any  # EntropyCritic; () without EAPO
    entropy_moments: Any  # Moments; () without EAPO
    optimiser: optax.OptState


class Minibatch(NamedTuple):
    """Samples along a first axis, of an update or of a part of it."""

    observation: Any
    action: Any
    log_prob: Any
    advantage: Any
    value: Any
    return_: Any
    entropy_return: Any  # normalised; () without EAPO


@dataclass(frozen=True)
class PPO:
    """The agent: networks, policy, optimiser and hyperparameters, which training does not change.

    With an `entropy_body` it is EAPO (Choe & Kim 2024, arXiv 2407.18143): a second critic predicts the trajectory
    entropy `V_H(s_t) = E Σ_k γ_H^k (-log π(a_{t+k}|s_{t+k}))`, in nats, from the reward `-log π(a_t|s_t)` of the
    policy that acted. It is bootstrapped and cut as V is. The policy ascends `A + τ A_H`, each from `gae`, summed
    and then standardised as one. V_H has a network of its own (the authors' has a body in common with V) whose
    last layer is kept here, as its targets are normalised by PopArt. That, the sum before standardising and the
    defaults are the authors' code for MuJoCo (rnilva/eapo-ijcai25), which there acts in discretised actions. They
    normalise V by PopArt as well, where rewards are scaled here: `reward_scale` keeps τ in their units.
    `entropy_coef` should be 0 then.

    Args:
        actor: `observation → outputs`, a tuple: `(mean, raw_log_std)`, or `(logits,)`.
        critic: `observation → value`, without a last axis.
        policy: From the actor's outputs to a distribution: `policy(*outputs)`.
        optimiser: Optimiser of all networks together, such as `adam(…)`.
        epochs: Number of passes over a rollout.
        minibatch_size: Number of samples in one gradient step; it must divide the T · N of a rollout.
        discount: Discount γ.
        gae_lambda: Decay λ of the advantages.
        clip_low: The ratio of probabilities may fall by this where A < 0.
        clip_high: The ratio of probabilities may rise by this where A > 0.
        value_coef: Weight of the squared errors of V, and of V_H.
        entropy_coef: Weight of the entropy bonus, over all samples of a minibatch; 0 with ERA.
        entropy_share: Share of a minibatch whose samples, those of highest entropy, move the policy.
        entropy_body: `observation → features [..., h]` of V_H; None is plain PPO.
        entropy_weight: Weight τ of the entropy's advantage.
        entropy_discount: Discount γ_H of the entropy.
        entropy_lambda: Decay λ_H of the entropy's advantage.
        pop_art_rate: Weight of new targets in the moments of V_H.

    Raises:
        ValueError: A number is out of its range.
    """

    actor: nn.Module
    critic: nn.Module
    policy: Callable[..., Any]
    optimiser: optax.GradientTransformation
    epochs: int = 10
    minibatch_size: int = 64
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.01
    entropy_share: float = 1.0
    entropy_body: nn.Module | None = None
    entropy_weight: float = 0.02
    entropy_discount: float = 0.99
    entropy_lambda: float = 0.001
    pop_art_rate: float = 0.03

    def __post_init__(self) -> None:
        if not 0.0 < self.entropy_share <= 1.0:
            raise ValueError(f"entropy_share={self.entropy_share} must be in (0, 1]: 1 takes every sample")
        if not (0.0 < self.clip_low <= 1.0 and self.clip_high > 0.0):
            raise ValueError(
                f"clip_low={self.clip_low} must be in (0, 1] and clip_high={self.clip_high} above 0: "
                "the ratio of probabilities stays in [1 - clip_low, 1 + clip_high]"
            )
        if self.minibatch_size < 2 or self.epochs < 1:
            raise ValueError(
                f"minibatch_size={self.minibatch_size} must be at least 2, as advantages are standardised in it, "
                f"and epochs={self.epochs} at least 1"
            )

    def init(self, key: PRNGKeyArray, obs_dim: int) -> PPOState:
        """Fresh parameters; V_H starts as 0."""
        actor_key, critic_key, entropy_key = jax.random.split(key, 3)
        observation = jnp.zeros((1, obs_dim), jnp.float32)
        actor = self.actor.init(actor_key, observation)
        critic = self.critic.init(critic_key, observation)
        entropy_critic: Any = ()
        moments: Any = ()
        if self.entropy_body is not None:
            features, body = self.entropy_body.init_with_output(entropy_key, observation)
            mean, variance, bias = jnp.zeros((), features.dtype), jnp.ones((), features.dtype), jnp.zeros(())
            entropy_critic = EntropyCritic(body, jnp.zeros_like(features[0]), bias.astype(features.dtype))
            moments = Moments(mean, variance, jnp.zeros((), jnp.int32))
        optimiser = self.optimiser.init(Networks(actor, critic, entropy_critic))
        return PPOState(actor, critic, entropy_critic, moments, optimiser)

    def distribution(self, actor: Params, observation: Float[Array, "*batch o"]) -> Any:
        """π(·|s), the policy that acts."""
        outputs: Any = self.actor.apply(actor, observation)
        return self.policy(*outputs)

    def act(
        self, actor: Params, observation: Float[Array, "*batch o"], key: PRNGKeyArray
    ) -> tuple[Array, Float[Array, "*batch"]]:
        """A sampled action and its log-probability, as a `Rollout` keeps them."""
        policy = self.distribution(actor, observation)
        action = policy.sample(seed=key)
        # The log-probability of the stored action, which differs from its sample where tanh has rounded it.
        return action, policy.log_prob(action)

    def values(self, critic: Params, observation: Float[Array, "*batch o"]) -> Float[Array, "*batch"]:
        """V(s)."""
        values: Any = self.critic.apply(critic, observation)
        return values

    def entropy_values(
        self, critic: EntropyCritic, observation: Float[Array, "*batch o"]
    ) -> Float[Array, "*batch"]:
        """V_H(s), normalised: `mean + std · this` is in nats."""
        assert self.entropy_body is not None
        features: Any = self.entropy_body.apply(critic.body, observation)
        return features @ critic.weight + critic.bias

    def update(self, state: PPOState, rollout: Rollout, key: PRNGKeyArray) -> tuple[PPOState, Metrics]:
        """Advantages once, then `epochs` passes over the shuffled samples; the metrics are means over the steps.

        Raises:
            ValueError: The minibatches do not divide the rollout.
        """
        critic, moments, batch = self.prepare(state, rollout)
        networks = Networks(state.actor, state.critic, critic)
        order = shuffled(key, rollout.reward.size, self.epochs, self.minibatch_size)

        def step(
            carry: tuple[Networks, optax.OptState], index: Array
        ) -> tuple[tuple[Networks, optax.OptState], Metrics]:
            networks, optimiser = carry
            part = jax.tree.map(lambda column: column[index], batch)
            grad, metrics = jax.grad(self.loss, has_aux=True)(networks, part)
            metrics["grad_norm/actor"] = optax.tree.norm(grad.actor)
            metrics["grad_norm/critic"] = optax.tree.norm(grad.critic)
            updates, optimiser = self.optimiser.update(grad, optimiser, networks)
            return (optax.apply_updates(networks, updates), optimiser), metrics

        (networks, optimiser), history = jax.lax.scan(step, (networks, state.optimiser), order)
        metrics = {name: values.mean() for name, values in history.items()}
        spread = batch.return_.var()
        unexplained = (batch.return_ - batch.value).var() / jnp.where(spread > 0, spread, 1.0)
        metrics["explained_variance"] = jnp.where(spread > 0, 1.0 - unexplained, 0.0)
        if (rate := _learning_rate(optimiser)) is not None:
            metrics["learning_rate"] = rate
        return PPOState(*networks, moments, optimiser), metrics

    def prepare(self, state: PPOState, rollout: Rollout) -> tuple[Any, Any, Minibatch]:
        """The samples of an update along one axis, and the entropy critic with its moments moved."""
        ends = rollout.terminated, (rollout.terminated > 0) | (rollout.truncated > 0)
        value = self.values(state.critic, rollout.observation)
        next_value = self.values(state.critic, rollout.next_observation)
        advantage = gae(rollout.reward, value, next_value, *ends, self.discount, self.gae_lambda)
        return_ = advantage + value

        critic, moments, entropy_return = state.entropy_critic, state.entropy_moments, ()
        if self.entropy_body is not None:
            observations = jnp.stack([rollout.observation, rollout.next_observation])
            now, following = moments.mean + moments.std * self.entropy_values(critic, observations)
            extra = gae(-rollout.log_prob, now, following, *ends, self.entropy_discount, self.entropy_lambda)
            # τ weighs nats against the task's own rewards, so the two are scaled alike.
            advantage = advantage + self.entropy_weight * rollout.reward_scale * extra
            critic, moments = pop_art(critic, moments, extra + now, self.pop_art_rate)
            entropy_return = (extra + now - moments.mean) / moments.std

        columns = rollout.observation, rollout.action, rollout.log_prob, advantage, value, return_, entropy_return
        flat = jax.tree.map(lambda column: jnp.reshape(column, (-1, *column.shape[2:])), columns)
        return critic, moments, Minibatch(*flat)

    def loss(self, networks: Networks, batch: Minibatch) -> tuple[Float[Array, ""], Metrics]:
        """`L_π - entropy_coef · H + value_coef (L_V + L_H)` of a minibatch, and its metrics."""
        distribution = self.distribution(networks.actor, batch.observation)
        log_ratio = distribution.log_prob(batch.action) - batch.log_prob
        entropy = distribution.entropy()
        everyone = jnp.ones_like(log_ratio)
        chosen = highest(entropy, self.entropy_share) if self.entropy_share < 1.0 else everyone
        loss_pi = policy_loss(log_ratio, standardise(batch.advantage), chosen, self.clip_low, self.clip_high)

        value = self.values(networks.critic, batch.observation)
        loss_v = value_loss(value, batch.return_)
        loss = loss_pi - self.entropy_coef * entropy.mean() + self.value_coef * loss_v
        # Schulman's estimate of KL(π_old ‖ π), `ρ - 1 - log ρ`: never negative, little variance.
        low, high = jnp.log1p(-self.clip_low), jnp.log1p(self.clip_high)
        metrics = {
            "loss/actor": loss_pi,
            "loss/critic": loss_v,
            "policy_entropy": entropy.mean(),
            "approx_kl": (jnp.expm1(log_ratio) - log_ratio).mean(),
            "clip_fraction": ((log_ratio < low) | (log_ratio > high)).mean(),
        }
        if self.entropy_body is not None:
            predicted = self.entropy_values(networks.entropy_critic, batch.observation)
            metrics["loss/entropy_critic"] = value_loss(predicted, batch.entropy_return)
            loss = loss + self.value_coef * metrics["loss/entropy_critic"]
        return loss, metrics


def shuffled(key: PRNGKeyArray, size: int, epochs: int, minibatch_size: int) -> Int[Array, "M B"]:
    """The samples of each minibatch: every one of `size` once in each epoch, in a new order.

    Raises:
        ValueError: `minibatch_size` does not divide `size`.
    """
    if size % minibatch_size:
        raise ValueError(
            f"a rollout of {size} samples does not divide into minibatches of {minibatch_size}: "
            f"make steps · environments a multiple of minibatch_size"
        )
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, epochs))
    return order.reshape(-1, minibatch_size)


def adam(
    learning_rate: float, *, decay_updates: int | None = None, max_grad_norm: float = 0.5
) -> optax.GradientTransformation:
    """Adam (ε = 1e-5) behind a bound on the global norm of the gradient.

    Args:
        learning_rate: Learning rate of the first gradient step.
        decay_updates: Number of gradient steps (rollouts · epochs · minibatches) after which it is 0, linearly;
            None keeps it constant.
        max_grad_norm: Largest norm of a gradient; longer ones are scaled down to it.
    """
    rate: Any = learning_rate
    if decay_updates is not None:
        rate = optax.linear_schedule(learning_rate, 0.0, decay_updates)
    # Injected, so that the rate of the last step can be read from the state.
    scaled = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), scaled(rate, eps=1e-5))


def _learning_rate(optimiser: optax.OptState) -> Array | None:
    """Learning rate of the last gradient step; None where the optimiser does not keep it."""
    for node in jax.tree.leaves(optimiser, is_leaf=lambda node: hasattr(node, "hyperparams")):
        if hasattr(node, "hyperparams"):
            return node.hyperparams.get("learning_rate")
    return None
