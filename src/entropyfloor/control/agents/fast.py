"""Off-policy agents for many parallel environments: FastTD3, FastSAC and FastSAC-ERA in one frame.

FastTD3 is that of Seo et al. (arXiv 2505.22642) and of its authors' code, FastSAC that of Seo et al. (arXiv
2512.01996). FastSAC-ERA is "FastTD3 [...] retaining its noise mechanism while removing the Delayed Policy
Updates and incorporating an entropy constraint via ERA" (arXiv 2510.08549, A.1.5). They differ in arguments:
head, distribution, entropy term, noise, clipped double Q, delay of the actor. Where the sources leave it open, or
do otherwise:

- A stochastic policy keeps both kinds of noise on top of its own.
- Actions are clipped to [-1, 1] before they are stored, since the environment applies no others.
- α is tuned in every update of the critics, in the next states, as FastSAC does; δ̂ and Eq. 36's M are as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropyfloor.control.agents.sac import SAC, ActorState, Metrics, Params, SACState, descend
from entropyfloor.control.heads import Gaussian

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray


class Batch(NamedTuple):
    """Transitions over one step or several, along leading axes; observations are normalised."""

    observation: Any  # [..., obs_dim]
    action: Any  # [..., action_dim]
    reward: Any  # [...], Σ_k γ^k r_k over the steps
    discount: Any  # [...], γ^n of n steps, and 0 where the task ended
    next_observation: Any  # [..., obs_dim], after the last of the steps


class View(NamedTuple):
    """What an action is drawn from, one row for each environment."""

    observation: Any  # [N, obs_dim], normalised
    noise: Any  # [N], σ of the exploration noise


# --- distributions of returns ----------------------------------------------------------------------------


def project(
    probs: Float[Array, "*batch K"], returns: Float[Array, "*batch K"], atoms: Float[Array, " K"]
) -> Float[Array, "*batch K"]:
    """The categorical projection of C51 (Bellemare et al. 2017, arXiv 1707.06887, Eq. 7).

    Each return, clipped to the support, gives its probability to the two nearest atoms, in proportion to how near
    they are: atom j receives `Σ_i p_i max(0, 1 - |returns_i - atoms_j| / Δ)`.

    Args:
        probs: Probabilities p.
        returns: Values that the probabilities belong to.
        atoms: The support, in equal steps of Δ.
    """
    step = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    position = (returns.clip(atoms[0], atoms[-1]) - atoms[0]) / step
    number = jnp.arange(len(atoms), dtype=position.dtype)

    def add(i: Array, total: Array) -> Array:
        # Atom by atom: on a CPU 14 times as fast as one sum over [..., K, K], and, unlike a scatter, the same each
        # time on a GPU.
        distance = jnp.abs(position[..., i, None] - number)
        return total + probs[..., i, None] * (1.0 - distance).clip(0.0)

    return jax.lax.fori_loop(0, len(atoms), add, jnp.zeros_like(probs))


def critic_targets(
    probs: Float[Array, "size *batch K"],
    returns: Float[Array, "*batch K"],
    atoms: Float[Array, " K"],
    *,
    clipped_double_q: bool,
) -> Float[Array, "#size *batch K"]:
    """Distributions that the critics learn: that of the smaller mean for all, or each critic its own.

    The projection keeps the mean of the clipped returns, so the smaller one is known before it, and one is enough.
    """
    if clipped_double_q:
        means = (probs * returns.clip(atoms[0], atoms[-1])).sum(axis=-1)
        smallest = means.argmin(axis=0)[None, ..., None]
        probs = jnp.take_along_axis(probs, smallest, axis=0)
    return jax.lax.stop_gradient(project(probs, jnp.broadcast_to(returns, probs.shape), atoms))


def critic_loss(
    logits: Float[Array, "size *batch K"], targets: Float[Array, "#size *batch K"]
) -> Float[Array, ""]:
    """Cross-entropy, averaged over the batch and summed over the critics."""
    losses = -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1)
    return losses.reshape(len(logits), -1).mean(axis=-1).sum()


def clipped_noise(
    key: PRNGKeyArray, action: Float[Array, "*batch D"], scale: float, limit: float
) -> Float[Array, "*batch D"]:
    """TD3's target smoothing: `clip(a + clip(scale ε, ±limit), ±1)` with ε ~ N(0, 1)."""
    noise = scale * jax.random.normal(key, action.shape, action.dtype)
    return (action + noise.clip(-limit, limit)).clip(-1.0, 1.0)


# --- the agent -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fast(SAC):
    """The agent. `critics` give logits, `[size, ..., atoms]`.

    Args:
        atoms: Number K of atoms.
        v_min: Smallest return of the support.
        v_max: Largest return of the support.
        clipped_double_q: Learn from the critic of the smaller value, else from each and, in the actor, from their
            mean.
        target_noise: σ of the noise on next actions.
        target_noise_clip: Largest size of that noise.
        policy_delay: Updates of the critics for each of the actor; divides those that are made together.
    """

    atoms: int
    v_min: float
    v_max: float
    clipped_double_q: bool
    target_noise: float
    target_noise_clip: float
    policy_delay: int

    @property
    def support(self) -> Float[Array, " K"]:
        """Values of the atoms."""
        return jnp.linspace(self.v_min, self.v_max, self.atoms, dtype=jnp.float32)

    def act(self, actor: ActorState, view: View, key: PRNGKeyArray) -> Array:  # type: ignore[override]
        """Actions to train with: of the policy, with each environment's exploration noise, in [-1, 1]."""
        policy_key, noise_key = jax.random.split(key)
        action, _ = self.sample(self.distribution(actor, view.observation), policy_key)
        noise = view.noise[..., None] * jax.random.normal(noise_key, action.shape, action.dtype)
        return (action + noise).clip(-1.0, 1.0)

    def sample(self, policy: Gaussian, key: PRNGKeyArray) -> tuple[Array, Array | float]:
        """As SAC's; under the head `fixed` the policy is deterministic, and its action is the mode."""
        if self.policy.head == "fixed":
            return policy.mode(), 0.0
        return super().sample(policy, key)

    def values(
        self, critics: Params, observation: Float[Array, "*batch o"], action: Float[Array, "*batch D"]
    ) -> Float[Array, "size ..."]:
        """Mean of each critic's distribution."""
        return (jax.nn.softmax(self._logits(critics, observation, action), axis=-1) * self.support).sum(axis=-1)

    def update_many(  # type: ignore[override]
        self, state: SACState, batches: Batch, key: PRNGKeyArray
    ) -> tuple[SACState, Metrics]:
        """An update of the critics on each entry of the batches' first axis, and of the actor on some of them.

        The metrics are those of the last update.
        """
        count, delay = batches.reward.shape[0], self.policy_delay

        def update_both(state: SACState, data: tuple[Batch, Array]) -> tuple[SACState, Metrics]:
            """One update of the actor, after those of the critics that it waits for."""
            group, keys = data
            for i in range(delay):
                batch = Batch(*(column[i] for column in group))
                critic_key, actor_key = jax.random.split(keys[i])
                state, critic_metrics = self.update_critics(state, batch, critic_key)
            state, actor_metrics = self.update_actor(state, batch, actor_key)
            return state, critic_metrics | actor_metrics

        # Not unrolled as in SAC: eight updates compile in 8 s instead of 20, and run 1.3 times as fast on a CPU.
        data = batches, jax.random.split(key, count)
        groups = jax.tree.map(lambda x: x.reshape(count // delay, delay, *x.shape[1:]), data)
        state, metrics = jax.lax.scan(update_both, state, groups)
        return state, {name: value[-1] for name, value in metrics.items()} | self.entropy_metrics(state)

    def update_critics(self, state: SACState, batch: Batch, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        """One gradient step of the critics, of α and of δ̂; the target critics follow."""
        action_key, noise_key = jax.random.split(key)
        alpha = self.alpha(state)
        policy, raw_log_std = self.train_policy(state.actor.params, state.actor, batch.next_observation)
        next_action, log_prob = self.sample(policy, action_key)
        next_action = clipped_noise(noise_key, next_action, self.target_noise, self.target_noise_clip)
        probs = jax.nn.softmax(self._logits(state.target_critics, batch.next_observation, next_action), axis=-1)
        soft = self.support - jnp.asarray(alpha * log_prob)[..., None]
        returns = batch.reward[..., None] + batch.discount[..., None] * soft
        targets = critic_targets(probs, returns, self.support, clipped_double_q=self.clipped_double_q)

        def loss_of_critics(critics: Params) -> tuple[Array, Array]:
            logits = self._logits(critics, batch.observation, batch.action)
            return critic_loss(logits, targets), logits

        (loss, logits), grad = jax.value_and_grad(loss_of_critics, has_aux=True)(state.critics)
        critics, optimiser = descend(self.critic_optimiser, grad, state.critic_optimiser, state.critics)
        state = state._replace(
            critics=critics,
            target_critics=optax.incremental_update(critics, state.target_critics, self.tau),
            critic_optimiser=optimiser,
        )
        values = (jax.nn.softmax(logits, axis=-1) * self.support).sum(axis=-1)
        edges = targets[..., 0] + targets[..., -1]
        metrics = {
            "loss/critic": loss,
            "q/mean": values.mean(),
            "q/std": values.std(),
            "q/edge_share": edges.mean(),
            "grad_norm/critic": optax.tree.norm(grad),
        }
        return self.tune(state, policy, raw_log_std, log_prob), metrics

    def update_actor(self, state: SACState, batch: Batch, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        """One gradient step of the actor: `E[α log π(a|s) - Q(s, a)]`, Q the smaller value or the mean."""
        alpha = self.alpha(state)

        def loss_of_actor(params: Params) -> Array:
            policy, _ = self.train_policy(params, state.actor, batch.observation)
            action, log_prob = self.sample(policy, key)
            values = self.values(state.critics, batch.observation, action)
            value = values.min(axis=0) if self.clipped_double_q else values.mean(axis=0)
            return (alpha * log_prob - value).mean()

        loss, grad = jax.value_and_grad(loss_of_actor)(state.actor.params)
        params, optimiser = descend(self.actor_optimiser, grad, state.actor_optimiser, state.actor.params)
        state = state._replace(actor=state.actor._replace(params=params), actor_optimiser=optimiser)
        return state, {"loss/actor": loss, "grad_norm/actor": optax.tree.norm(grad)}

    def _logits(self, critics: Params, observation: Array, action: Array) -> Float[Array, "size *batch K"]:
        logits: Any = self.critics.apply(critics, observation, action)
        return logits
