"""Losses, state and updates of TD-MPC2, and how it acts: by planning with its model.

`update` is a pure function of (state, batch, key). No config, replay buffer or environment is used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from entropyfloor.control.agents.sac import Metrics, Params, descend, td_target
from entropyfloor.control.agents.tdmpc2.model import WorldModel
from entropyfloor.control.agents.tdmpc2.planner import MPPI, shifted
from entropyfloor.control.agents.tdmpc2.values import running_scale
from entropyfloor.control.heads import Gaussian, GaussianPolicy
from entropyfloor.control.replay import Sequence

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray


# --- losses ----------------------------------------------------------------------------------------------


def decayed_mean(losses: Float[Array, "T ..."], rho: float) -> Float[Array, ""]:
    """`1/T Σ_t ρ^t E[losses_t]`."""
    return (rho ** jnp.arange(len(losses)) * losses.reshape(len(losses), -1).mean(axis=1)).mean()


def prior_loss(
    values: Float[Array, "T ..."],
    scale: Float[Array, ""],
    entropy: Float[Array, "T ..."],
    entropy_coef: float,
    rho: float,
) -> Float[Array, ""]:
    """`-1/T Σ_t ρ^t E[Q/S + c H]`: H is weighed against values whose running scale S is about 1."""
    return -decayed_mean(values / scale + entropy_coef * entropy, rho)


def default_discount(episode_length: int) -> float:
    """`(T/5 - 1) / (T/5)` between 0.95 and 0.995, for episodes of T actions."""
    return min(max(1.0 - 5.0 / episode_length, 0.95), 0.995)


# --- the agent -------------------------------------------------------------------------------------------


class Planning(NamedTuple):
    """What acts: the model, the prior, and the discount, which follows from the length of an episode."""

    model: dict[str, Params]
    prior: Params
    discount: Float[Array, ""]


class TDMPC2State(NamedTuple):
    """Everything that training changes."""

    actor: Planning
    target_critics: Params
    scale: Float[Array, ""]
    model_optimiser: optax.OptState
    prior_optimiser: optax.OptState


@dataclass(frozen=True)
class TDMPC2:
    """The agent: networks, policy, planner, optimisers and hyperparameters, which training does not change.

    Args:
        world: The networks.
        policy: From the prior's outputs to a distribution.
        planner: MPPI's numbers.
        model_optimiser: Optimiser of the model.
        prior_optimiser: Optimiser of the prior.
        entropy_coef: Coefficient of the prior's entropy; 0 with a floor.
        discount: Discount γ; None takes `default_discount`.
        tau: Polyak's τ of the target critics, and that of the running scale.
        rho: Decay ρ of the losses along a sequence.
        consistency_coef: Weight of the error of predicted latents.
        reward_coef: Weight of the reward's cross-entropy.
        value_coef: Weight of the values' cross-entropy.
        termination_coef: Weight of the termination's cross-entropy.
    """

    world: WorldModel
    policy: GaussianPolicy
    planner: MPPI
    model_optimiser: optax.GradientTransformation
    prior_optimiser: optax.GradientTransformation
    entropy_coef: float = 1e-4
    discount: float | None = None
    tau: float = 0.01
    rho: float = 0.5
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    termination_coef: float = 1.0

    def init(self, key: PRNGKeyArray, obs_dim: int, action_dim: int, episode_length: int) -> TDMPC2State:
        """Fresh parameters; the target critics start as copies."""
        init = jax.jit(self.world.init, static_argnums=(1, 2))  # one program: some hundred of them take longer
        model, prior = init(key, obs_dim, action_dim)
        discount = default_discount(episode_length) if self.discount is None else self.discount
        return TDMPC2State(
            Planning(model, prior, jnp.asarray(discount, jnp.float32)),
            jax.tree.map(jnp.copy, model["critics"]),
            jnp.ones((), jnp.float32),
            self.model_optimiser.init(model),
            self.prior_optimiser.init(prior),
        )

    # --- acting ------------------------------------------------------------------------------------------

    def distribution(self, actor: Planning, observation: Float[Array, "*batch o"]) -> Gaussian:
        """The prior π(·|s), whose entropy has the floor."""
        return self.prior(actor.prior, self.world.encode(actor.model, observation))

    def prior(self, params: Params, z: Float[Array, "*batch latent"]) -> Gaussian:
        """The prior in a latent state."""
        outputs: Any = self.world.prior.apply(params, z)
        mean, raw_log_std = jnp.split(outputs, [self.policy.action_dim], axis=-1)
        return self.policy(mean, raw_log_std)

    def plan(
        self,
        actor: Planning,
        observation: Float[Array, " o"],
        mean: Float[Array, "H D"],
        key: PRNGKeyArray,
        *,
        explore: bool = False,
    ) -> tuple[Float[Array, " D"], Float[Array, "H D"]]:
        """An action, and the mean of the plan, from which the plan after the next step starts.

        Args:
            actor: What acts.
            observation: The observation.
            mean: Mean of the plan one step earlier; zeros at the start of an episode.
            key: Key of all that is random.
            explore: Add the plan's noise to the action, as in training.
        """
        prior_key, plan_key, pick_key, noise_key = jax.random.split(key, 4)
        z = self.world.encode(actor.model, observation)
        proposals = self._proposals(actor, z, prior_key)

        def value(actions: Array, key: PRNGKeyArray) -> Array:
            return self.trajectory_value(actor, z, actions, key)

        plan = self.planner(value, proposals, shifted(mean), plan_key)
        action = plan.pick(pick_key)
        if explore:
            action = action + plan.std[0] * jax.random.normal(noise_key, action.shape, action.dtype)
        return action.clip(-1.0, 1.0), plan.mean

    def act(self, actor: Planning, seen: tuple[Array, Array], key: PRNGKeyArray) -> tuple[Array, Array]:
        """`plan` to train with, of (observation, mean)."""
        return self.plan(actor, *seen, key, explore=True)

    def no_plan(self) -> Float[Array, "H D"]:
        """The mean that the first plan of an episode starts from."""
        return jnp.zeros((self.planner.horizon, self.policy.action_dim), jnp.float32)

    def _proposals(self, actor: Planning, z: Array, key: PRNGKeyArray) -> Float[Array, "H P D"]:
        """Sequences of actions that the prior takes in the model."""
        z, actions = jnp.tile(z, (self.planner.proposals, 1)), []
        for i in range(self.planner.horizon):
            actions.append(self.prior(actor.prior, z).sample(seed=jax.random.fold_in(key, i)))
            z = self.world.next(actor.model, z, actions[-1])
        return jnp.stack(actions)

    def trajectory_value(
        self, actor: Planning, z: Float[Array, " latent"], actions: Float[Array, "H N D"], key: PRNGKeyArray
    ) -> Float[Array, " N"]:
        """`Σ_t γ^t r_t + γ^H Q(z_H, π(z_H))` of each sequence, the mean of two critics; 0 after a termination."""
        prior_key, critic_key = jax.random.split(key)
        zs = [jnp.broadcast_to(z, (actions.shape[1], *z.shape))]
        logits = []
        for action in actions:
            logits.append(self.world.reward_logits(actor.model, zs[-1], action))
            zs.append(self.world.next(actor.model, zs[-1], action))
        total, weight = jnp.zeros_like(zs[0][:, 0]), jnp.ones_like(zs[0][:, 0])
        # All at once: XLA would fuse each decoding with the last layer of the network, which is slow.
        for reward, z in zip(self.world.bins.decode(jnp.stack(logits)), zs[1:], strict=True):
            total += weight * reward
            weight *= actor.discount
            if self.world.termination is not None:
                weight *= self.world.termination_logits(actor.model, z) <= 0.0  # probability 1/2
        action = self.prior(actor.prior, zs[-1]).sample(seed=prior_key)
        values = self.world.two_values(actor.model["critics"], zs[-1], action, critic_key)
        return total + weight * values.mean(axis=0)

    # --- learning ----------------------------------------------------------------------------------------

    def update(self, state: TDMPC2State, batch: Sequence, key: PRNGKeyArray) -> tuple[TDMPC2State, Metrics]:
        """One gradient step of the model, one of the prior against the new critics, one of the targets."""
        target_key, drop_key, prior_key = jax.random.split(key, 3)
        actor = state.actor
        next_z = self.world.encode(actor.model, batch.observation[1:])
        target = self._target(state, batch, next_z, target_key)

        def loss_of_model(model: dict[str, Params]) -> tuple[Array, Any]:
            zs = self._rollout(model, batch)
            logits = self.world.value_logits(model["critics"], zs[:-1], batch.action, drop_key)
            rewards = self.world.reward_logits(model, zs[:-1], batch.action)
            losses = {
                "consistency": decayed_mean((zs[1:] - next_z) ** 2, self.rho),
                "reward": decayed_mean(self.world.bins.cross_entropy(rewards, batch.reward), self.rho),
                "critic": decayed_mean(self.world.bins.cross_entropy(logits, target).swapaxes(0, 1), self.rho),
            }
            total = (
                self.consistency_coef * losses["consistency"]
                + self.reward_coef * losses["reward"]
                + self.value_coef * losses["critic"]
            )
            if self.world.termination is not None:
                ends = self.world.termination_logits(model, zs[1:])
                losses["termination"] = optax.sigmoid_binary_cross_entropy(ends, batch.terminated).mean()
                total += self.termination_coef * losses["termination"]
            return total, (zs, losses)

        (_, (zs, losses)), grad = jax.value_and_grad(loss_of_model, has_aux=True)(actor.model)
        model, model_optimiser = descend(self.model_optimiser, grad, state.model_optimiser, actor.model)
        zs = jax.lax.stop_gradient(zs)

        def loss_of_prior(params: Params) -> tuple[Array, Any]:
            action_key, critic_key = jax.random.split(prior_key)
            policy = self.prior(params, zs)
            action = policy.sample(seed=action_key)
            values = self.world.two_values(model["critics"], zs, action, critic_key, drop=True).mean(axis=0)
            scale = running_scale(state.scale, values[0], self.tau)
            return prior_loss(values, scale, self._entropy(policy), self.entropy_coef, self.rho), (values, scale)

        (loss_pi, (values, scale)), grad_pi = jax.value_and_grad(loss_of_prior, has_aux=True)(actor.prior)
        prior, prior_optimiser = descend(self.prior_optimiser, grad_pi, state.prior_optimiser, actor.prior)

        new = TDMPC2State(
            actor._replace(model=model, prior=prior),
            optax.incremental_update(model["critics"], state.target_critics, self.tau),
            scale,
            model_optimiser,
            prior_optimiser,
        )
        metrics = {f"loss/{name}": loss for name, loss in losses.items()} | {
            "loss/actor": loss_pi,
            "q/mean": values.mean(),
            "q/std": values.std(),
            "q/scale": scale,
            "grad_norm/model": optax.tree.norm(grad),
            "grad_norm/actor": optax.tree.norm(grad_pi),
        }
        return new, metrics

    def update_many(self, state: TDMPC2State, batches: Sequence, key: PRNGKeyArray) -> tuple[TDMPC2State, Metrics]:
        """`update` on each entry of the batches' first axis, unrolled; the metrics are the last update's."""
        for i in range(batches.reward.shape[0]):
            batch = Sequence(*(column[i] for column in batches))
            state, metrics = self.update(state, batch, jax.random.fold_in(key, i))
        return state, metrics

    def _target(self, state: TDMPC2State, batch: Sequence, next_z: Array, key: PRNGKeyArray) -> Array:
        """TD targets, `[H, batch]`."""
        action_key, critic_key = jax.random.split(key)
        action = self.prior(state.actor.prior, next_z).sample(seed=action_key)
        next_values = self.world.two_values(state.target_critics, next_z, action, critic_key)
        return td_target(batch.reward, batch.terminated, next_values.min(axis=0), state.actor.discount)

    def _rollout(self, model: dict[str, Params], batch: Sequence) -> Float[Array, "H+1 batch latent"]:
        """The latent of the first observation, and those that the dynamics predict from it."""
        zs = [self.world.encode(model, batch.observation[0])]
        for action in batch.action:
            zs.append(self.world.next(model, zs[-1], action))
        return jnp.stack(zs)

    def _entropy(self, policy: Gaussian) -> Float[Array, "..."]:
        """D times the entropy of the Gaussian before it is bounded, as the authors' code since December 2024."""
        dimension = policy.scale.shape[-1]
        return dimension * (jnp.log(policy.scale).sum(axis=-1) + 0.5 * dimension * math.log(2 * math.pi * math.e))


class Player:
    """What acts in evaluations: plans without exploration, each of which starts from the last.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: TDMPC2) -> None:
        self._start = agent.no_plan()

        def plan(actor: Planning, observation: Array, mean: Array, key: PRNGKeyArray, step: Array) -> Any:
            return agent.plan(actor, observation, mean, jax.random.fold_in(key, step))

        self._plan = jax.jit(plan)

    def __call__(self, seed: int) -> Callable[[Planning, Any], Array]:
        """What acts in an episode: from what acts and an observation to an action."""
        mean, key, step = self._start, jax.random.key(seed), 0

        def act(actor: Planning, observation: Any) -> Array:
            nonlocal mean, step
            action, mean = self._plan(actor, observation, mean, key, np.uint32(step))
            step += 1
            return action

        return act
