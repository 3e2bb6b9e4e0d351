"""Maximum next-state entropy (Zhong et al. 2024, openreview.net/forum?id=0G6rRLYcxm), on SAC: our reading.

Neither the code nor the equations of MNSE are public. What is public names its parts: an inner policy whose
entropy is maximised, an action mapping behind it, and an inverse dynamics model. With an inner action e and the
action a = f(e) that acts, `H(s'|s) = H(e|s) - H(e|s, s')` where dynamics are deterministic and f is a bijection.
SAC maximises the first term. The mapping minimises the second: `log q(e|s, s') = log q(a|s, s') + Σ_i log
f_i'(e_i)`, where q is the inverse dynamics model. For a uniform e, and one increasing f_i for all states, the best
f_i gives a_i a density proportional to `exp E[log q_i(a_i|s, s') | a_i]`. It passes quickly over actions that lead
to the same next states, such as those in a dead zone or beyond a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jax.scipy.stats import norm

from entropyfloor.control.agents.sac import SAC, Metrics, Params, descend
from entropyfloor.control.heads import HeadState, tanh_bounded
from entropyfloor.control.replay import Transition
from entropyfloor.jax.distributions import Normal, TanhNormal

if TYPE_CHECKING:
    from jaxtyping import Float, PRNGKeyArray

INVERSE_LOG_STD = (-5.0, 0.0)
"""Bounds of log σ of the inverse dynamics model: what it can tell of an action is limited to 1 % of the range."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mapped:
    """a = f(e) with e from an inner policy on [-1, 1], per coordinate.

    f_i is increasing and linear on each of K intervals. Their values are the K equal parts of [-1, 1].

    Args:
        inner: The policy of e.
        log_share: Log of the share of [-1, 1] that e has in each interval, `[D, K]`.
    """

    inner: TanhNormal
    log_share: Float[Array, "D K"]

    @property
    def loc(self) -> Float[Array, "*batch D"]:
        """Mean of the inner policy before it is squashed."""
        return jnp.asarray(self.inner.loc)

    @property
    def scale(self) -> Float[Array, "*batch D"]:
        """Standard deviation of the inner policy before it is squashed."""
        return jnp.asarray(self.inner.scale)

    def forward(self, inner: Float[Array, "*sample D"]) -> Float[Array, "*sample D"]:
        """f(e)."""
        knots = self._knots()
        width = jnp.diff(knots).clip(min=jnp.finfo(knots.dtype).eps)  # small shares underflow, and 0 / 0 is NaN
        within = (inner[..., None] - knots[:, :-1]) / width
        return (2 * within.clip(0, 1).mean(-1) - 1).clip(-1, 1)

    def sample(self, *, seed: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample D"]:
        """Reparametrised sample of a."""
        return self.forward(self.inner.sample(seed=seed, sample_shape=sample_shape))

    def mode(self) -> Float[Array, "*batch D"]:
        """f of the inner mode."""
        return self.forward(self.inner.mode())

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy of a: that of e and `Σ_i E[log f_i'(e_i)]`."""
        loc, scale = self.loc[..., None], self.scale[..., None]
        in_interval = jnp.diff(norm.cdf((jnp.arctanh(self._knots()) - loc) / scale))
        log_slope = -self.log_share - jnp.log(self.log_share.shape[-1])
        return self.inner.entropy() + (in_interval * log_slope).sum((-2, -1))

    def _knots(self) -> Float[Array, "D K+1"]:
        """Where e passes from one interval to the next, from -1 to 1."""
        inside = (2 * jnp.cumsum(jnp.exp(self.log_share), axis=-1)[:, :-1] - 1).clip(-1, 1)  # sums are rounded
        return jnp.pad(inside, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, 1)))


class MNSEActor(NamedTuple):
    """State of the acting policy."""

    params: Params
    head: HeadState
    evidence: Float[Array, "D K"]
    """Running mean of log q_i(a_i|s, s') in each of K equal parts of the range of a_i, relative to that of all."""


class MNSEState(NamedTuple):
    """Everything that training changes."""

    actor: MNSEActor
    critics: Params
    target_critics: Params
    inverse: Params
    log_alpha: Float[Array, ""]
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    inverse_optimiser: optax.OptState
    alpha_optimiser: optax.OptState
    residual_optimiser: optax.OptState


@dataclass(frozen=True, kw_only=True)
class MNSE(SAC):
    """The agent: SAC, whose α steers the entropy of the inner policy, the mapping, and the inverse dynamics model.

    Args:
        inverse: `(s, s' - s) → (mean, raw_log_std)` of the action between them.
        intervals: K, the number of intervals of the mapping.
        evidence_rate: Share of the way that the running mean of `evidence` moves in each update.
    """

    inverse: nn.Module
    intervals: int = 16
    evidence_rate: float = 0.005

    def init(self, key: PRNGKeyArray, obs_dim: int, action_dim: int) -> MNSEState:  # type: ignore[override]
        """Fresh parameters; the mapping starts as the identity."""
        sac_key, inverse_key = jax.random.split(key)
        sac = super().init(sac_key, obs_dim, action_dim)
        inverse = self.inverse.init(inverse_key, jnp.zeros((1, 2 * obs_dim), jnp.float32))
        evidence = jnp.zeros((action_dim, self.intervals), jnp.float32)
        return MNSEState(
            **sac._replace(actor=MNSEActor(*sac.actor, evidence))._asdict(),  # type: ignore[arg-type]
            inverse=inverse,
            inverse_optimiser=self.actor_optimiser.init(inverse),
        )

    def distribution(self, actor: MNSEActor, observation: Float[Array, "*batch o"]) -> Mapped:  # type: ignore[override]
        """π(·|s), the policy that acts."""
        return Mapped(super().distribution(actor, observation), jax.nn.log_softmax(actor.evidence))  # type: ignore[arg-type]

    def train_policy(self, params: Params, actor: Any, observation: Float[Array, "batch o"]) -> tuple[Any, Array]:
        """The policy of `params` in training, and the raw log σ of the inner one."""
        inner, raw_log_std = super().train_policy(params, actor, observation)
        return Mapped(inner, jax.nn.log_softmax(actor.evidence)), raw_log_std  # type: ignore[arg-type]

    def sample(self, policy: Any, key: PRNGKeyArray) -> tuple[Array, Array | float]:
        """An action, and the log-density of the *inner* action behind it, whose entropy is maximised."""
        inner, log_prob = super().sample(policy.inner, key)
        return policy.forward(inner), log_prob

    def update(  # type: ignore[override]
        self, state: MNSEState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[MNSEState, Metrics]:
        """SAC's update under the present mapping, one gradient step of the inverse model, and the mapping's."""
        sac: Any = super()
        new, metrics = sac.update(state, batch, key)

        def loss_of_inverse(params: Params) -> tuple[Array, Array]:
            log_density = self._log_density(params, batch)
            return -log_density.sum(-1).mean(), log_density

        (loss, log_density), grad = jax.value_and_grad(loss_of_inverse, has_aux=True)(state.inverse)
        inverse, optimiser = descend(self.actor_optimiser, grad, state.inverse_optimiser, state.inverse)
        evidence = running_evidence(new.actor.evidence, batch.action, log_density, self.evidence_rate)
        new = new._replace(
            actor=new.actor._replace(evidence=evidence), inverse=inverse, inverse_optimiser=optimiser
        )
        return new, metrics | {"loss/inverse": loss}

    def _log_density(self, params: Params, batch: Transition) -> Float[Array, "batch D"]:
        """log q_i(a_i|s, s') of each coordinate of the stored actions."""
        change = batch.next_observation - batch.observation
        outputs: Any = self.inverse.apply(params, jnp.concatenate([batch.observation, change], axis=-1))
        mean, raw_log_std = (x[..., None] for x in outputs)  # every coordinate becomes an event of its own
        scale = jnp.exp(tanh_bounded(raw_log_std, *INVERSE_LOG_STD))
        return Normal(mean, scale).log_prob(batch.action[..., None])


def running_evidence(
    evidence: Float[Array, "D K"],
    action: Float[Array, "batch D"],
    log_density: Float[Array, "batch D"],
    rate: float,
) -> Float[Array, "D K"]:
    """The running mean of `log_density` in each interval, relative to that of the batch, moved by one batch."""
    intervals = evidence.shape[-1]
    interval = (0.5 * intervals * (action + 1)).astype(jnp.int32).clip(0, intervals - 1)
    member = jax.nn.one_hot(interval, intervals, dtype=evidence.dtype)
    count = member.sum(0)
    relative = log_density - log_density.mean(0)
    mean = (member * relative[..., None]).sum(0) / count.clip(min=1)
    return jnp.where(count > 0, evidence + rate * (mean - evidence), evidence)
