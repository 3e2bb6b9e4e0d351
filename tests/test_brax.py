"""ERA in Brax: the floor, the divergence, and both of its trainers on an environment of no size."""

import math
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

pytest.importorskip("brax")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of JAXopt, which Brax imports
    from brax.envs.fast import Fast
    from brax.training.agents.ppo import networks as ppo_networks
    from brax.training.agents.ppo import train as ppo
    from brax.training.agents.sac import networks as sac_networks
    from brax.training.agents.sac import train as sac

import hosts
from entropyfloor.integrations.brax import ERADistribution, TruncatedAction, with_floor
from hosts import D

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def single_precision():
    """Brax computes in float32."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


class Fast3(Fast):
    """Brax's environment for tests, with three action dimensions."""

    action_size = D


@pytest.mark.parametrize("head", ["era-exact", "era-floor"])
def test_the_floor_holds_for_any_output(head):
    mean, raw = hosts.outputs(np.random.default_rng(0))
    distribution, outputs = ERADistribution(D, "-A/2", head), jnp.concatenate([mean, raw], -1)
    policy = distribution.create_dist(outputs)
    loc, log_std = np.asarray(policy.loc), np.log(np.asarray(policy.scale, np.float64))
    entropy = hosts.entropy(loc, log_std, truncated=True)
    assert entropy.min() > -1.5 - 1e-4
    np.testing.assert_allclose(distribution.entropy(outputs, None), entropy, atol=2e-4)
    actions = distribution.sample(outputs, jax.random.key(0))
    density = hosts.log_prob(actions, loc, log_std, truncated=True)
    np.testing.assert_allclose(distribution.log_prob(outputs, actions), density, rtol=1e-4, atol=2e-3)
    np.testing.assert_array_equal(distribution.mode(outputs), policy.loc)


def test_divergence_is_that_of_the_densities():
    rng = np.random.default_rng(1)
    locs = np.tanh(rng.normal(size=(2, 20, 1))).astype(np.float32)
    scales = np.exp(rng.uniform(-2, 0, (2, 20, 1))).astype(np.float32)
    old, new = (TruncatedAction(jnp.array(m), jnp.array(s)) for m, s in zip(locs, scales, strict=True))

    def difference(x, i):
        p, q = (
            hosts.log_prob([x], loc[i], np.log(scale[i].astype(float)), truncated=True)
            for loc, scale in zip(locs, scales, strict=True)
        )
        return np.exp(p) * (p - q)

    expected = [quad(difference, -1, 1, (i,), points=[float(locs[0, i, 0])])[0] for i in range(20)]
    np.testing.assert_allclose(new.kl_divergence(old), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(old.kl_divergence(old), 0, atol=1e-6)


@pytest.fixture
def older_jax(monkeypatch):
    """The function that JAX 0.10 has removed, and that the trainers of Brax 0.14.2 call."""

    def replicate(tree, devices):
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), tree)

    monkeypatch.setattr(jax, "device_put_replicated", replicate, raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_brax_trains_it(name, older_jax):
    common = {"num_timesteps": 256, "episode_length": 8, "num_evals": 1, "num_envs": 4, "batch_size": 4}
    if name == "ppo":
        trainer, make = ppo.train, ppo_networks.make_ppo_networks
        own = {"unroll_length": 4, "num_minibatches": 4, "num_updates_per_batch": 2, "entropy_cost": 0.0}
        sizes = {"policy_hidden_layer_sizes": (8,), "value_hidden_layer_sizes": (8,)}
        own |= {"learning_rate_schedule": "ADAPTIVE_KL", "desired_kl": 0.01}
    else:
        trainer, make = sac.train, sac_networks.make_sac_networks
        own = {"min_replay_size": 32, "max_replay_size": 512, "grad_updates_per_step": 1}
        sizes = {"hidden_layer_sizes": (8,)}
    factory = with_floor(partial(make, **sizes), target_entropy="-A/2")
    act, params, _ = trainer(environment=Fast3(), network_factory=factory, **common, **own)
    policy = act(params, deterministic=False)
    actions, _ = policy(jnp.array(hosts.observations(50, np.random.default_rng(0))[:, :2]), jax.random.key(0))
    assert actions.shape == (50, D)
    assert jnp.abs(actions).max() <= 1
    observations = jnp.tile(jnp.array([0.3, -0.2]), (20_000, 1))
    actions, _ = policy(observations, jax.random.key(1))
    outputs = factory(2, D).policy_network.apply(params[0], params[1], observations)
    sampled = -ERADistribution(D, "-A/2").log_prob(outputs, actions)
    np.testing.assert_allclose(sampled.mean(), -1.5, atol=4 * sampled.std() / math.sqrt(20_000))


def test_options_are_those_of_the_head_and_networks_stay_the_same():
    make = partial(ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=(8,))
    floored = with_floor(make, "-A/2", head="era-floor", log_std_min=-3.0)(4, D)
    policy = floored.parametric_action_distribution.policy
    assert (policy.head, policy.log_std_min) == ("era-floor", -3.0)
    shapes = [
        jax.tree.map(jnp.shape, networks.policy_network.init(jax.random.key(0)))
        for networks in (floored, make(4, D))
    ]
    assert shapes[0] == shapes[1]


def test_a_network_for_another_distribution_is_refused():
    factory = with_floor(partial(ppo_networks.make_ppo_networks, distribution_type="normal"), "-A/2")
    with pytest.raises(ValueError, match=r"network is for 3 numbers, and .* are 6: leave distribution_type"):
        factory(4, D)


@pytest.mark.parametrize(("head", "reason"), [("shares", "two raw outputs"), ("era-batch", "a running mean")])
@pytest.mark.parametrize("size", [2, D])
def test_heads_that_need_more_than_brax_has_are_refused(head, reason, size):
    """Two action dimensions matter: arrays of their shapes would be broadcast without an error."""
    with pytest.raises(ValueError, match=rf"head='{head}' .*{reason}.*: choose era-exact, era or era-floor"):
        ERADistribution(size, "-A/2", head)


def test_the_example_of_the_docs():
    networks = hosts.example("Brax and MuJoCo Playground")["network_factory"](4, D)
    parameters = networks.policy_network.init(jax.random.key(0))
    outputs = networks.policy_network.apply(None, parameters, jnp.ones((5, 4)))
    entropy = networks.parametric_action_distribution.entropy(outputs, None)
    np.testing.assert_allclose(entropy, -0.3 * D, atol=1e-4)
