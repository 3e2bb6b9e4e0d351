"""OBAC: its losses, its gate, its updates, and that a run learns and goes on as it says."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from control import QUICK, assert_descends, distance, pairs, random_batch, random_state
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.obac import (
    LOG_DENSITY_RANGE,
    OBAC,
    cloning_loss,
    expectile_loss,
    replay_is_better,
)
from entropyfloor.control.config import configure
from entropyfloor.control.heads import GaussianPolicy
from entropyfloor.control.networks import MLP, Critics, GaussianActor, Value
from entropyfloor.control.train import train
from entropyfloor.jax.distributions import TanhNormal, TruncatedNormal
from entropyfloor.runs import read_run

# --- losses ----------------------------------------------------------------------------------------------


def test_the_expectile_is_that_of_scipy():
    """One V for all samples: where the loss is flat, V is their expectile, for 0.9 well above their mean."""
    samples = np.random.default_rng(0).normal(size=(2, 200))
    least = np.where(samples[0] < samples[1], samples[0], samples[1])
    for expectile in (0.1, 0.5, 0.9):
        best = stats.expectile(least, expectile)
        slope = jax.grad(lambda v: expectile_loss(jnp.full(200, v), jnp.asarray(samples), expectile))
        assert abs(float(slope(best))) < 1e-6
        assert slope(best - 0.1) < 0 < slope(best + 0.1)
        gap = least - 0.2
        expected = (np.where(gap > 0, expectile, 1 - expectile) * gap**2).mean()
        found = expectile_loss(jnp.full(200, 0.2), jnp.asarray(samples), expectile)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert stats.expectile(least, 0.9) > least.mean() + 0.3


def test_no_gradient_flows_into_targets():
    rng = np.random.default_rng(0)
    values, targets = jnp.asarray(rng.normal(size=32)), jnp.asarray(rng.normal(size=(2, 32)))
    np.testing.assert_array_equal(jax.grad(expectile_loss, argnums=1)(values, targets, 0.9), 0.0)
    assert (jax.grad(expectile_loss)(values, targets, 0.9) != 0.0).all()


def test_the_gate_compares_means_of_minima():
    ours = jnp.asarray([[1.0, 5.0], [2.0, 3.0]])  # minima 1, 3
    for theirs, better in (
        ([[2.0, 2.5], [9.0, 9.0]], True),  # 2, 2.5
        ([[2.0, 1.5], [9.0, 9.0]], False),  # 2, 1.5: better in the first state, not on average
        ([[2.0, 2.0], [9.0, 9.0]], False),  # as good is not better
        ([[9.0, 0.0], [0.0, 9.0]], False),  # 0, 0: the mean of each critic is 4.5
    ):
        assert bool(replay_is_better(ours, jnp.asarray(theirs))) is better


def log_density(policy, action):
    """Of each coordinate, by SciPy."""
    loc, scale, action = (np.asarray(x, np.float64) for x in (policy.loc, policy.scale, action))
    if isinstance(policy, TanhNormal):
        return stats.norm.logpdf(np.arctanh(action), loc, scale) - np.log1p(-(action**2))
    return stats.truncnorm.logpdf(action, (-1 - loc) / scale, (1 - loc) / scale, loc, scale)


@pytest.mark.parametrize("family", [TanhNormal, TruncatedNormal])
def test_each_dimension_is_cloned_within_its_range(family):
    low, high = LOG_DENSITY_RANGE
    assert (low, high) == (-20.0, 2.0)
    rng = np.random.default_rng(0)
    loc = rng.uniform(-0.5, 0.5, (8, 3))
    scale = np.broadcast_to([0.3, 0.01, 0.01], (8, 3))  # as usual, too dense, too far
    mode = np.tanh(loc) if family is TanhNormal else loc
    action = jnp.asarray(mode + np.array([0.1, 0.0, 0.3]))
    each = log_density(family(loc, scale), action)
    assert ((each[:, 0] > low) & (each[:, 0] < high)).all()
    assert (each[:, 1] > high).all()
    assert (each[:, 2] < low).all()

    def loss(loc, scale):
        return cloning_loss(family(loc, scale), action)

    arguments = jnp.asarray(loc), jnp.asarray(scale)
    expected = -(each[:, 0] + high + low).mean()
    np.testing.assert_allclose(loss(*arguments), expected, rtol=1e-9)
    for slope in jax.grad(loss, argnums=(0, 1))(*arguments):
        assert (slope[:, 0] != 0).all()
        np.testing.assert_array_equal(slope[:, 1:], 0.0)


# --- an update -------------------------------------------------------------------------------------------

RATE, TAU, DISCOUNT, ALPHA, TARGET, BATCH = 0.01, 0.25, 0.9, 0.3, -1.0, 64
EXPECTILE, CLONING = 0.8, 0.5
OPTIMISERS = ("actor_optimiser", "critic_optimiser", "alpha_optimiser")
KINDS = {
    "sac's entropy": ("auto", "tanh", "tanh"),
    "none": ("none", "tanh", "tanh"),
    "era-batch": ("none", "era-batch", "truncated"),
    "era-exact": ("none", "era-exact", "truncated"),
}


@functools.cache
def compiled(kind):
    """Smooth networks and plain gradient descent, so that an update is minus `RATE` times the gradient."""
    entropy, head, distribution = KINDS[kind]
    body = MLP((16,), "tanh")
    agent = OBAC(
        actor=GaussianActor(2, body),
        critics=Critics(body),
        value=Value(body),
        policy=GaussianPolicy(head, distribution, 2, TARGET, -3.0, 1.0),
        **dict.fromkeys(OPTIMISERS, optax.sgd(RATE)),
        entropy=entropy,
        target_entropy=TARGET,
        initial_alpha=ALPHA,
        discount=DISCOUNT,
        tau=TAU,
        expectile=EXPECTILE,
        cloning_weight=CLONING,
    )
    return agent, jax.jit(agent.update, compiler_options=QUICK)


def shifted(params, shift):
    """The same network with `shift` added to its value, or to those of both critics."""

    def add(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf + shift if name.endswith("bias") and leaf.shape == (1,) else leaf

    return jax.tree_util.tree_map_with_path(add, params)


class Written:
    """OBAC once more, in NumPy but for the networks and the sampling: each loss as a function of parameters."""

    def __init__(self, kind, state, batch, key):
        self.agent, self.state, self.batch = compiled(kind)[0], state, batch
        self.next_key, self.actor_key = jax.random.split(key)
        self.alpha = 0.0 if self.agent.entropy == "none" else ALPHA
        self._values, self._value, self._sample = networks(kind)

    def q(self, critics, observation, action):
        return np.asarray(self._values(critics, observation, action))

    def v(self, params, observation):
        return np.asarray(self._value(params, observation))

    def sample(self, params, observation, key):
        policy, action, log_prob = self._sample(self.state.actor._replace(params=params), observation, key)
        return policy, np.asarray(action), np.asarray(log_prob)

    def value_loss(self, params):
        batch = self.batch
        stored = self.q(self.state.target_behaviour_critics, batch.observation, batch.action).min(0)
        gap = stored - self.v(params, batch.observation)
        return (np.where(gap > 0, EXPECTILE, 1 - EXPECTILE) * gap**2).mean()

    def squares(self, critics, following):
        batch = self.batch
        target = np.where(batch.terminated == 1, batch.reward, batch.reward + DISCOUNT * following)
        return sum(((row - target) ** 2).mean() for row in self.q(critics, batch.observation, batch.action))

    def behaviour_loss(self, critics, new_value):
        return self.squares(critics, self.v(new_value, self.batch.next_observation))

    def critic_loss(self, critics):
        observation = self.batch.next_observation
        _, action, log_prob = self.sample(self.state.actor.params, observation, self.next_key)
        following = self.q(self.state.target_critics, observation, action).min(0) - self.alpha * log_prob
        return self.squares(critics, following)

    def gate(self, critics, behaviour):
        """Whether the actor clones."""
        batch = self.batch
        _, action, _ = self.sample(self.state.actor.params, batch.observation, self.actor_key)
        ours = self.q(critics, batch.observation, action).min(0).mean()
        return ours < self.q(behaviour, batch.observation, batch.action).min(0).mean()

    def actor_loss(self, params, critics, cloning):
        batch = self.batch
        policy, action, log_prob = self.sample(params, batch.observation, self.actor_key)
        loss = (self.alpha * log_prob - self.q(critics, batch.observation, action).min(0)).mean()
        if cloning:
            loss -= CLONING * log_density(policy, batch.action).clip(-20, 2).sum(-1).mean()
        return loss


@functools.cache
def networks(kind):
    """What the losses need of JAX, compiled once."""
    agent = compiled(kind)[0]

    def sample(actor, observation, key):
        policy, _ = agent.train_policy(actor.params, actor, observation)
        return policy, *policy.sample_and_log_prob(seed=key)

    return [jax.jit(f, compiler_options=QUICK) for f in (agent.values, agent.value.apply, sample)]


@pytest.mark.slow_but_first
@pytest.mark.parametrize("cloning", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_descends_each_loss_and_the_targets_follow(kind, cloning):
    agent, update = compiled(kind)
    state, batch, key = random_state(agent), random_batch(BATCH), jax.random.key(7)
    state = state._replace(behaviour_critics=shifted(state.behaviour_critics, 9.0 if cloning else -9.0))
    new, metrics = jax.device_get(update(state, batch, key))
    written = Written(kind, state, batch, key)
    assert written.gate(new.critics, new.behaviour_critics) == cloning

    def loss_of_behaviour(critics):
        return written.behaviour_loss(critics, new.behaviour_value)

    def loss_of_actor(params):
        return written.actor_loss(params, new.critics, cloning)

    assert_descends(written.value_loss, state.behaviour_value, new.behaviour_value, RATE)
    assert_descends(loss_of_behaviour, state.behaviour_critics, new.behaviour_critics, RATE)
    assert_descends(written.critic_loss, state.critics, new.critics, RATE)
    assert_descends(loss_of_actor, state.actor.params, new.actor.params, RATE)

    values = written.q(state.critics, batch.observation, batch.action)
    expected = {
        "loss/critic": written.critic_loss(state.critics),
        "loss/behaviour_critic": loss_of_behaviour(state.behaviour_critics),
        "loss/behaviour_value": written.value_loss(state.behaviour_value),
        "loss/actor": loss_of_actor(state.actor.params),
        "q/mean": values.mean(),
        "q/std": values.std(),
        "q/behaviour_mean": written.q(new.behaviour_critics, batch.observation, batch.action).mean(),
        "cloning": float(cloning),
        "grad_norm/critic": distance(state.critics, new.critics) / RATE,
        "grad_norm/actor": distance(state.actor.params, new.actor.params) / RATE,
    }
    moved = float(new.log_alpha) - float(state.log_alpha)
    if agent.entropy == "auto":
        _, _, log_prob = written.sample(state.actor.params, batch.observation, written.actor_key)
        assert moved == pytest.approx(RATE * ALPHA * (log_prob.mean() + TARGET), rel=1e-5)
        expected["alpha"] = math.exp(float(new.log_alpha))
    else:
        assert moved == 0.0
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-6)

    for name in ("critics", "behaviour_critics"):
        old, towards, mixed = (
            getattr(s, n) for s, n in ((state, f"target_{name}"), (new, name), (new, f"target_{name}"))
        )
        for a, b, c in pairs(old, towards, mixed):
            np.testing.assert_allclose(c, (1 - TAU) * a + TAU * b, rtol=1e-12, atol=1e-15)
            assert (c != a).any()


@pytest.mark.slow_but_first
@pytest.mark.parametrize("moved", ["critics", "behaviour_critics"])
@pytest.mark.parametrize("opens", [True, False])
def test_the_updated_critics_decide_at_the_gate(moved, opens):
    """The update lets one pair of critics jump over the other. The verdict, and the step, are those after it."""
    agent, update = compiled("none")
    state, batch, key = random_state(agent), random_batch(BATCH), jax.random.key(7)
    jump = 60.0 if opens == (moved == "behaviour_critics") else -60.0
    start = 2.0 if opens else -2.0
    state = state._replace(critics=shifted(state.critics, start))
    if moved == "critics":
        state = state._replace(target_critics=shifted(state.target_critics, jump))
    else:
        state = state._replace(behaviour_value=shifted(state.behaviour_value, jump))
    new, metrics = jax.device_get(update(state, batch, key))

    written = Written("none", state, batch, key)
    stale = {"critics": new.critics, "behaviour": new.behaviour_critics}
    stale[moved.removesuffix("_critics")] = getattr(state, moved)
    assert written.gate(**stale) != opens
    assert written.gate(state.critics, state.behaviour_critics) != opens
    assert written.gate(new.critics, new.behaviour_critics) == opens
    assert metrics["cloning"] == opens

    def loss(params):
        return written.actor_loss(params, new.critics, opens)

    assert_descends(loss, state.actor.params, new.actor.params, RATE)


def test_nothing_follows_a_termination():
    agent, update = compiled("sac's entropy")
    state, batch = random_state(agent), random_batch(BATCH)
    batch = batch._replace(terminated=np.ones(BATCH))
    other = batch._replace(next_observation=batch.next_observation + 3.0)
    one, two = (jax.device_get(update(state, b, jax.random.key(7))[0]) for b in (batch, other))
    for a, b in pairs(one, two):
        np.testing.assert_array_equal(a, b)
    running, _ = update(state, other._replace(terminated=np.zeros(BATCH)), jax.random.key(7))
    for name in ("critics", "behaviour_critics"):  # where the episode goes on, both do bootstrap
        assert distance(getattr(running, name), getattr(two, name)) > 1e-3


@pytest.mark.slow
def test_the_targets_start_as_copies_and_no_two_networks_are_alike():
    agent, _ = compiled("none")
    state = jax.jit(agent.init, static_argnums=(1, 2), compiler_options=QUICK)(jax.random.key(0), 3, 2)
    for name in ("critics", "behaviour_critics"):
        for one, other in pairs(getattr(state, name), getattr(state, f"target_{name}")):
            np.testing.assert_array_equal(one, other)
    assert distance(state.critics, state.behaviour_critics) > 1.0
    one, other = (state.behaviour_critics["params"][f"Value_{i}"] for i in (0, 1))
    assert distance(one, other) > 1.0


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "axes", "target"),
    [
        ("obac", ("tanh", "tanh", "auto"), -6.0),
        ("obac-era", ("era", "truncated", "none"), -3.0),
        ("obac-era-exact", ("era-exact", "truncated", "none"), -3.0),
    ],
)
def test_a_preset_stands_for_three_axes(name, axes, target):
    config = configure(name).resolved()
    assert (config.head, config.distribution, config.entropy) == axes
    agent = build_agent(config, 6)
    assert isinstance(agent, OBAC)
    assert (agent.target_entropy, agent.expectile, agent.cloning_weight) == (target, 0.9, 1e-3)
    # "Hidden 512, LayerNorm + Tanh first layer, ELU"
    assert agent.value.body == MLP((512, 512), "elu", layer_norm=False, tanh_first=True)
    assert agent.critics.body == agent.actor.body == agent.value.body
    said = build_agent(configure(name, expectile=0.7, cloning_weight=0.0, hidden=4).resolved(), 6)
    assert (said.expectile, said.cloning_weight) == (0.7, 0.0)


@pytest.mark.parametrize(("setting", "value"), [("expectile", 1.1), ("cloning_weight", -1.0)])
def test_a_number_out_of_range_is_named(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}={value} must be"):
        configure("obac", **{setting: value})


# --- runs ------------------------------------------------------------------------------------------------


LEARN = {
    "hidden": 64,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "tau": 0.02,
    "discount": 0.95,
    "updates_per_step": 1,
    "random_steps": 500,
}


@pytest.mark.slow
def test_obac_learns_to_swing_up(tmp_path):
    """Measured over the seeds 0 to 2: from -1325, -1412 and -1071 at the start to -175, -601 and -126."""
    sizes = {**LEARN, "steps": 2500, "eval_every": 2500, "eval_episodes": 5}
    every = {"log_every": 100, "checkpoint_every": 10_000}
    path = train(configure("obac", env="gym/Pendulum-v1", **sizes, **every, out=str(tmp_path)))
    steps, returns = read_run(path).series("return")
    assert steps.tolist() == [0, 2500]
    assert returns[0] < -1000
    assert returns[1] > -800
