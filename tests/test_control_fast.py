"""FastTD3, FastSAC and FastSAC-ERA: projection, targets, noise, delay, and that presets are as their sources."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from control import QUICK, distance, pairs
from entropyfloor.control.agents.build import aim, build_agent
from entropyfloor.control.agents.fast import (
    Batch,
    Fast,
    View,
    clipped_noise,
    critic_loss,
    critic_targets,
    project,
)
from entropyfloor.control.config import FastConfig, configure
from entropyfloor.control.networks import MLP, DistributionalCritics

ATOMS = np.linspace(-2.0, 3.0, 11)
SMALL = {"hidden": 8, "critic_hidden": 16, "v_min": -5.0, "v_max": 5.0, "atoms": 11, "batch_size": 16}


def probabilities(*shape, seed=0):
    logits = 2 * np.random.default_rng(seed).normal(size=(*shape, len(ATOMS)))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def random_batch(*shape, seed=2):
    rng = np.random.default_rng(seed)
    observation, following = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    action, reward = rng.uniform(-1, 1, (*shape, 2)), rng.normal(size=shape)
    discount = 0.9 * (rng.random(shape) < 0.7)
    return Batch(observation, *(x.astype(np.float32) for x in (action, reward, discount)), following)


@functools.cache
def agent_of(name, dim=2, **settings):
    return build_agent(configure(name, **{**SMALL, **settings}).resolved(), dim)


@functools.cache
def state_of(name, **settings):
    init = jax.jit(agent_of(name, **settings).init, static_argnums=(1, 2), compiler_options=QUICK)
    return init(jax.random.key(0), 3, 2)


@functools.cache
def jitted(name, method, **settings):
    return jax.jit(getattr(agent_of(name, **settings), method), compiler_options=QUICK)


# --- distributions of returns ----------------------------------------------------------------------------


def projected(probs, returns):
    """C51's projection, atom by atom: Algorithm 1 of arXiv 1707.06887."""
    out, step = np.zeros(len(ATOMS)), ATOMS[1] - ATOMS[0]
    for p, value in zip(probs, returns, strict=True):
        b = (min(max(value, ATOMS[0]), ATOMS[-1]) - ATOMS[0]) / step
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            out[low] += p
        else:
            out[low] += p * (high - b)
            out[high] += p * (b - low)
    return out


def test_the_projection_is_that_of_the_loop():
    probs, rng = probabilities(40), np.random.default_rng(1)
    returns = rng.normal(size=(40, 1)) + 0.9 * ATOMS
    returns[:5] = rng.normal(size=(5, 1))  # a terminal state: one value
    returns[5:8] = ATOMS  # every value on an atom
    returns[8], returns[9] = 100.0, -100.0  # beyond either end
    found = project(jnp.asarray(probs), jnp.asarray(returns), jnp.asarray(ATOMS))
    expected = np.stack([projected(*pair) for pair in zip(probs, returns, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found[5:8], probs[5:8], atol=1e-12)
    clipped = (probs * returns.clip(ATOMS[0], ATOMS[-1])).sum(-1)
    np.testing.assert_allclose((found * ATOMS).sum(-1), clipped, atol=1e-12)


def test_one_projection_finds_the_critic_of_the_smaller_value():
    """As the authors' code, which projects both and compares their means."""
    probs, rng = probabilities(2, 64), np.random.default_rng(1)
    returns = 2 * rng.normal(size=(64, 1)) + 0.9 * ATOMS
    both = np.stack([[projected(*pair) for pair in zip(each, returns, strict=True)] for each in probs])
    values = (both * ATOMS).sum(-1)
    smaller = np.where((values[0] < values[1])[:, None], both[0], both[1])
    arrays = jnp.asarray(probs), jnp.asarray(returns), jnp.asarray(ATOMS)
    found = critic_targets(*arrays, clipped_double_q=True)
    assert found.shape == (1, 64, len(ATOMS))
    np.testing.assert_allclose(found[0], smaller, atol=1e-12)
    assert 0.2 < (values[0] < values[1]).mean() < 0.8
    np.testing.assert_allclose(critic_targets(*arrays, clipped_double_q=False), both, atol=1e-12)


def test_the_loss_is_the_cross_entropy_of_each_critic():
    logits, targets = np.random.default_rng(0).normal(size=(2, 32, len(ATOMS))), probabilities(2, 32, seed=3)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for each in (targets, targets[:1]):
        expected = -(each * log_probs).sum(-1).mean(-1).sum()
        np.testing.assert_allclose(critic_loss(jnp.asarray(logits), jnp.asarray(each)), expected, rtol=1e-12)


def test_smoothing_noise_is_clipped_twice():
    action = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4000, 2)))
    noise = np.asarray(clipped_noise(jax.random.key(0), 0.0 * action, 0.2, 0.3))
    assert np.abs(noise).max() == pytest.approx(0.3)
    share = (np.abs(noise) > 0.2999).mean()
    assert share == pytest.approx(math.erfc(1.5 / math.sqrt(2)), abs=0.01)
    assert np.quantile(noise, 0.75) == pytest.approx(0.2 * 0.6745, rel=0.05)
    near = np.asarray(clipped_noise(jax.random.key(0), action, 0.2, 0.3))
    np.testing.assert_allclose(near, (np.asarray(action) + noise).clip(-1, 1), atol=1e-12)


# --- updates ---------------------------------------------------------------------------------------------


def distribution(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", ["fasttd3", "fastsac", "fastsac-era"])
def test_the_critics_learn_from_the_targets_of_the_loop(name):
    """The loss of an update, from the networks' outputs and the actions that its key draws."""
    agent, state, batch, key = agent_of(name), state_of(name), random_batch(16), jax.random.key(5)
    noisy = jax.tree.map(lambda x: x + 0.5 * np.random.default_rng(1).normal(size=x.shape), state.critics)
    state = state._replace(target_critics=noisy)
    _, metrics = jitted(name, "update_critics")(state, batch, key)
    action_key, noise_key = jax.random.split(key)
    policy = agent.distribution(state.actor, batch.next_observation)
    if name == "fasttd3":
        action, entropy_part = jnp.tanh(agent.actor.apply(state.actor.params, batch.next_observation)[0]), 0.0
    elif name == "fastsac":
        action, log_prob = policy.sample_and_log_prob(seed=action_key)
        entropy_part = 0.001 * np.asarray(log_prob)[:, None]
    else:
        action, entropy_part = policy.sample(seed=action_key), 0.0
    if name != "fastsac":
        action = clipped_noise(noise_key, action, 0.001, 0.5)
    probs = distribution(np.asarray(agent.critics.apply(state.target_critics, batch.next_observation, action)))
    atoms = np.linspace(-5, 5, 11)
    returns = batch.reward[:, None] + batch.discount[:, None] * (atoms - entropy_part)
    targets = critic_targets(
        jnp.asarray(probs), jnp.asarray(returns), jnp.asarray(atoms), clipped_double_q=name != "fastsac"
    )
    logits = agent.critics.apply(state.critics, batch.observation, batch.action)
    np.testing.assert_allclose(metrics["loss/critic"], critic_loss(logits, targets), rtol=1e-4)
    edges = np.asarray(targets)[..., [0, -1]].sum(-1).mean()
    np.testing.assert_allclose(metrics["q/edge_share"], edges, rtol=1e-3, atol=1e-6)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", ["fasttd3", "fastsac", "fastsac-era"])
def test_the_actor_climbs_the_smaller_value_or_the_mean(name):
    agent, state, batch, key = agent_of(name), state_of(name), random_batch(16), jax.random.key(5)
    _, metrics = jitted(name, "update_actor")(state, batch, key)
    policy = agent.distribution(state.actor, batch.observation)
    action, log_prob = (policy.mode(), 0.0) if name == "fasttd3" else policy.sample_and_log_prob(seed=key)
    probs = distribution(np.asarray(agent.critics.apply(state.critics, batch.observation, action)))
    values = (probs * np.linspace(-5, 5, 11)).sum(-1)
    np.testing.assert_allclose(agent.values(state.critics, batch.observation, action), values, atol=1e-5)
    value = values.mean(0) - 0.001 * np.asarray(log_prob) if name == "fastsac" else values.min(0)
    np.testing.assert_allclose(metrics["loss/actor"], -value.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("delay", "expected"), [(1, 4), (2, 2)])
def test_the_actor_waits_for_the_critics(delay, expected):
    settings = {"updates_per_step": 4, "policy_delay": delay}
    state, batches = state_of("fasttd3"), random_batch(4, 16)
    new, metrics = jitted("fasttd3", "update_many", **settings)(state, batches, jax.random.key(0))
    counts = [int(optimiser[0].count) for optimiser in (new.actor_optimiser, new.critic_optimiser)]
    assert counts == [expected, 4]
    assert {"loss/actor", "loss/critic", "q/edge_share", "grad_norm/actor"} <= set(metrics)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["fasttd3", "fastsac"])
def test_there_may_be_any_number_of_critics(name, size):
    agent = agent_of(name, critics=size)
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), 3, 2))
    assert len(state.critics["params"]) == size
    batch = random_batch(16)
    assert jax.eval_shape(agent.values, state.critics, batch.observation, batch.action).shape == (size, 16)
    new, metrics = jax.eval_shape(agent.update_critics, state, batch, jax.random.key(1))
    assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss/critic"].shape == ()


@pytest.mark.slow
def test_many_updates_are_single_ones_in_their_order():
    settings = {"updates_per_step": 4, "policy_delay": 2}
    state, batches, key = state_of("fastsac"), random_batch(4, 16), jax.random.key(3)
    many, metrics = jitted("fastsac", "update_many", **settings)(state, batches, key)
    for i in range(4):
        batch = Batch(*(column[i] for column in batches))
        critic_key, actor_key = jax.random.split(jax.random.split(key, 4)[i])
        state, critic_metrics = jitted("fastsac", "update_critics")(state, batch, critic_key)
        if i % 2:
            state, actor_metrics = jitted("fastsac", "update_actor")(state, batch, actor_key)
    for one, other in pairs(many, state):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for name, value in (critic_metrics | actor_metrics).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5)
    assert metrics["alpha"] != pytest.approx(0.001)  # tuned with each update of the critics


@pytest.mark.slow
def test_the_target_critics_follow_by_tau():
    state = state_of("fastsac-era")
    new, _ = jitted("fastsac-era", "update_critics")(state, random_batch(16), jax.random.key(0))
    assert distance(new.critics, state.critics) > 0
    moved = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, new.critics, state.target_critics)
    assert distance(new.target_critics, moved) < 1e-6


# --- acting ----------------------------------------------------------------------------------------------


def test_each_environment_explores_with_its_own_noise():
    name, rows = "fasttd3", 4000
    view = View(np.zeros((rows, 3), np.float32), np.repeat(np.float32([0.0, 0.05, 0.3, 0.0]), rows // 4))
    action = np.asarray(jitted(name, "act")(state_of(name).actor, view, jax.random.key(0)))
    deterministic = np.tanh(agent_of(name).actor.apply(state_of(name).actor.params, view.observation)[0])
    gap = (action - deterministic).reshape(4, -1)
    np.testing.assert_allclose(gap.std(-1), [0.0, 0.05, 0.3, 0.0], rtol=0.05, atol=1e-6)
    assert np.abs(action).max() <= 1.0


@pytest.mark.slow
def test_a_stochastic_policy_keeps_the_noise_on_top_of_its_own():
    name, rows = "fastsac-era", 4000
    view = View(np.zeros((rows, 3), np.float32), np.zeros(rows, np.float32))
    act = jitted(name, "act")
    actor, key = state_of(name).actor, jax.random.key(0)
    plain, noisy = (np.asarray(act(actor, v, key)) for v in (view, view._replace(noise=view.noise + 0.2)))
    policy = agent_of(name).distribution(actor, view.observation)
    assert plain.std() == pytest.approx(np.asarray(policy.sample(seed=jax.random.key(1))).std(), rel=0.05)
    inside = np.abs(noisy) < 1
    assert (noisy - plain)[inside].std() == pytest.approx(0.2, rel=0.1)


# --- heads and settings ----------------------------------------------------------------------------------


def test_the_shares_of_fastdsac_divide_the_deviation():
    """σ_i = D softmax(z)_i exp(log σ̂_i): arXiv 2603.12612."""
    agent = agent_of("fastsac", head="shares", dim=3)
    mean, raw, z = np.random.default_rng(0).normal(size=(3, 50, 3))
    policy = agent.policy(jnp.asarray(mean), jnp.concatenate([raw, z], axis=-1))
    shares = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    sigma = 3 * shares * np.exp(-5.0 + 5.0 * (np.tanh(raw) + 1) / 2)
    np.testing.assert_allclose(policy.scale, sigma, rtol=1e-6)
    np.testing.assert_array_equal(policy.loc, mean)
    assert aim(agent) == {"target_entropy": 0.0}


@pytest.mark.slow
def test_the_shares_have_outputs_of_their_own():
    agent = agent_of("fastsac", head="shares")
    state = state_of("fastsac", head="shares")
    mean, raw = agent.actor.apply(state.actor.params, np.zeros((5, 3), np.float32))
    assert (mean.shape, raw.shape) == ((5, 2), (5, 4))
    new, metrics = jitted("fastsac", "update_actor", head="shares")(state, random_batch(16), jax.random.key(0))
    out = "Dense_0"
    moved = np.abs(new.actor.params["params"][out]["kernel"] - state.actor.params["params"][out]["kernel"])
    assert (moved.max(axis=0) > 0).all()
    assert math.isfinite(metrics["loss/actor"])


def test_a_deterministic_policy_is_shown_with_the_noise_of_its_target():
    config = configure("fasttd3", target_noise=0.05).resolved()
    assert config.log_std_max == pytest.approx(math.log(0.05))
    policy = build_agent(config, 3).policy(jnp.zeros((1, 3)), jnp.ones((1, 3)))
    np.testing.assert_allclose(policy.scale, 0.05, rtol=1e-6)
    np.testing.assert_allclose(
        policy.entropy(), 3 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.05)), rtol=1e-4
    )
    assert aim(build_agent(config, 3)) == {}
    assert configure("sac", head="fixed").resolved().log_std_max == pytest.approx(math.log(0.1))


AXES = {
    "fasttd3": ("fixed", "truncated", "none", True, 2, (0.001, 0.4), 0.001, 0.1, 32_768),
    "fastsac": ("tanh", "tanh", "auto", False, 4, (0.0, 0.0), 0.0, 0.125, 8192),
    "fastsac-era": ("era", "truncated", "none", True, 1, (0.001, 0.4), 0.001, 0.1, 32_768),
    "fastsac-era-exact": ("era-exact", "truncated", "none", True, 1, (0.001, 0.4), 0.001, 0.1, 32_768),
}


@pytest.mark.parametrize("name", AXES)
def test_a_preset_is_what_its_source_says(name):
    config = configure(name).resolved()
    axes = (config.head, config.distribution, config.entropy, config.clipped_double_q, config.policy_delay)
    noise = (config.noise_min, config.noise_max), config.target_noise, config.tau, config.batch_size
    assert (*axes, *noise) == AXES[name]
    agent = build_agent(config, 6)
    assert isinstance(agent, Fast)
    fastsac = name == "fastsac"
    body = MLP((512, 256, 128), "silu" if fastsac else "relu", fastsac)
    assert agent.actor.body == body
    sizes = (768, 384, 192) if fastsac else (1024, 512, 256)
    assert agent.critics == DistributionalCritics(body.clone(hidden=sizes), 101)
    assert (agent.v_min, agent.v_max, agent.discount) == (-250.0, 250.0, 0.99)
    expected = {"fasttd3": {}, "fastsac": {"target_entropy": 0.0}}.get(name, {"floor": -3.0})
    assert aim(agent) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": "release"}, "networks='release': fasttd3 has networks of its own"),
        ({"v_min": 3.0, "v_max": 3.0}, "v_min=3.0 must be below v_max=3.0"),
        ({"noise_min": 0.5, "noise_max": 0.4}, "noise_min=0.5 must be at most noise_max=0.4"),
        ({"updates_per_step": 3, "policy_delay": 2}, "policy_delay=2 must divide updates_per_step=3"),
        ({"updates_per_step": 3}, "policy_delay=2 must divide updates_per_step=3"),
        ({"replay_capacity": 100}, "replay_capacity=100 must be at least num_envs=128"),
        ({"atoms": 1}, "atoms=1 must be between 2 and 10,000"),
        ({"env_processes": 257}, "env_processes=257 must be between 0 and 256"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        FastConfig(**settings).resolved()
