"""MNSE: its mapping against NumPy, SAC where nothing is mapped, and what the mapping does about a dead zone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from control import random_batch, random_state
from entropyfloor.control.agents.build import aim, build_agent
from entropyfloor.control.agents.mnse import Mapped, running_evidence
from entropyfloor.control.agents.sac import SACState
from entropyfloor.control.config import configure
from entropyfloor.control.replay import Transition
from entropyfloor.jax.distributions import TanhNormal

SHARE = np.array([[0.1, 0.2, 0.6, 0.1], [0.25, 0.25, 0.25, 0.25]])


@pytest.fixture
def mapped():
    loc, scale = np.array([[0.3, -0.4], [2.0, 0.0]]), np.array([[0.5, 1.5], [0.1, 0.7]])
    return Mapped(TanhNormal(jnp.asarray(loc), jnp.asarray(scale)), jnp.log(SHARE))


def small_agent(**settings):
    return build_agent(configure("mnse", hidden=16, **settings).resolved(), 2)


def test_the_mapping_is_linear_between_its_knots(mapped):
    inner = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    inner[:2] = [[-1, 1], [1, -1]]
    for i, share in enumerate(SHARE):
        knots = np.concatenate([[-1], 2 * np.cumsum(share) - 1])
        expected = np.interp(inner[:, i], knots, np.linspace(-1, 1, 5))
        np.testing.assert_allclose(mapped.forward(inner)[:, i], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mapped.forward(inner)[:, 1], inner[:, 1], atol=1e-12)  # equal shares: the identity
    inner = jnp.asarray([-0.9, -0.5, 0.1, 0.95])
    slope = jax.vmap(jax.grad(lambda e: mapped.forward(jnp.stack([e, e]))[0]))(inner)
    np.testing.assert_allclose(slope, 0.25 / SHARE[0], rtol=1e-9)


def test_a_share_that_underflows_leaves_finite_gradients():
    """Two knots are then equal in float32."""
    log_share = jax.nn.log_softmax(jnp.asarray([[0.0, 0.0, -20.0, 0.0]], jnp.float32))
    policy = Mapped(TanhNormal(jnp.zeros((1, 1)), jnp.ones((1, 1))), log_share)
    knot = 2 * jnp.exp(log_share[0, :2]).sum() - 1
    for inner in (0.0, float(knot), 0.9):
        value, slope = jax.value_and_grad(lambda e: policy.forward(e)[0, 0])(jnp.full((1, 1), inner, jnp.float32))
        assert abs(value) <= 1
        assert jnp.isfinite(slope).all()


def test_entropy_of_the_acting_policy(mapped):
    """Against a histogram of samples, in each state."""
    sample = mapped.sample(seed=jax.random.key(0), sample_shape=(200_000,))
    for state in range(2):
        expected = 0.0
        for i in range(2):
            mass, _ = np.histogram(sample[:, state, i], 400, (-1, 1), density=True)
            expected -= (mass * np.log(np.maximum(mass, 1e-300))).sum() / 200
        assert mapped.entropy()[state] == pytest.approx(expected, abs=0.02)
    np.testing.assert_array_equal(mapped.mode(), mapped.forward(mapped.inner.mode()))


def test_evidence_is_the_mean_of_each_interval_relative_to_the_batch():
    rng = np.random.default_rng(0)
    action, log_density = rng.uniform(-1, 0.5, (64, 2)), rng.normal(size=(64, 2))
    before = rng.normal(size=(2, 4))
    found = running_evidence(jnp.asarray(before), jnp.asarray(action), jnp.asarray(log_density), 0.1)
    edges = np.linspace(-1, 1, 5)
    for i in range(2):
        for k in range(4):
            inside = (edges[k] <= action[:, i]) & (action[:, i] < edges[k + 1])
            mean = (log_density[:, i] - log_density[:, i].mean())[inside].mean() if inside.any() else before[i, k]
            assert found[i, k] == pytest.approx(before[i, k] + 0.1 * (mean - before[i, k]), abs=1e-6)
    assert not (action >= 0.5).any()  # the last interval was empty, and stays


def test_the_mapping_of_the_evidence_acts_and_trains():
    agent = small_agent()
    actor, observation = random_state(agent).actor, random_batch(4).observation
    share = np.exp(actor.evidence) / np.exp(actor.evidence).sum(-1, keepdims=True)
    assert share.std() > 0.01
    for policy in (
        agent.distribution(actor, observation),
        agent.train_policy(actor.params, actor, observation)[0],
    ):
        np.testing.assert_allclose(np.exp(policy.log_share), share, rtol=1e-9)


@pytest.mark.slow
def test_it_is_sac_while_nothing_is_mapped():
    mnse, sac = small_agent(mapping_rate=0.0), build_agent(configure("sac", hidden=16).resolved(), 2)
    state, batch, key = mnse.init(jax.random.key(0), 3, 2), random_batch(8), jax.random.key(1)
    plain = SACState(**{name: getattr(state, name) for name in SACState._fields})
    new, metrics = jax.jit(mnse.update)(state, batch, key)
    expected, _ = jax.jit(sac.update)(plain, batch, key)
    for name in ("critics", "target_critics", "log_alpha"):
        for one, other in zip(
            jax.tree.leaves(getattr(new, name)), jax.tree.leaves(getattr(expected, name)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    for one, other in zip(jax.tree.leaves(new.actor.params), jax.tree.leaves(expected.actor.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(new.actor.evidence, 0)
    assert np.isfinite(metrics["loss/inverse"])


@pytest.mark.slow
def test_the_mapping_passes_over_a_dead_zone():
    """Half of the actions of the first coordinate do nothing, and get less than a fifth of the inner range."""
    config = configure("mnse", hidden=64, mapping_intervals=8, mapping_rate=0.02, learning_rate=3e-3)
    agent = build_agent(config.resolved(), 2)
    state = agent.init(jax.random.key(0), 2, 2)
    update = jax.jit(agent.update)
    rng = np.random.default_rng(0)
    for i in range(1000):
        observation, action = rng.normal(size=(256, 2)), rng.uniform(-1, 1, (256, 2))
        acting = action.copy()
        acting[:, 0] = np.sign(action[:, 0]) * np.maximum(np.abs(action[:, 0]) - 0.5, 0)
        batch = Transition(observation, action, np.zeros(256), np.ones(256), observation + acting)
        state, _ = update(state, Transition(*(np.float32(x) for x in batch)), jax.random.key(i))
    share = np.asarray(jax.nn.softmax(state.actor.evidence))
    assert share[0, 2:6].sum() < 0.2
    np.testing.assert_allclose(share[1], 1 / 8, atol=0.06)


def test_alpha_steers_the_inner_policy_so_the_acting_one_has_no_target():
    assert aim(small_agent()) == {}


def test_other_distributions_are_refused():
    with pytest.raises(ValueError, match="distribution='truncated': MNSE maps the actions of distribution='tanh'"):
        small_agent(distribution="truncated")
