"""SimBa's networks against NumPy, how they start, and the settings that come with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from control import random_batch
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.sac import descend
from entropyfloor.control.config import configure
from entropyfloor.control.networks import MLP, Critics, GaussianActor, ResidualBlock, SimBa

pytestmark = pytest.mark.usefixtures("cache")

# --- forward ---------------------------------------------------------------------------------------------


def random_params(module, *inputs):
    """Parameters in float64 that are all different."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shapes)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def layer_norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def residual_block(x, layers):
    inside = np.maximum(dense(layer_norm(x, layers["LayerNorm_0"]), layers["Dense_0"]), 0)
    return x + dense(inside, layers["Dense_1"])


def simba(x, layers):
    x = dense(x, layers["Dense_0"])
    for i in range(sum(name.startswith("ResidualBlock") for name in layers)):
        x = residual_block(x, layers[f"ResidualBlock_{i}"])
    return layer_norm(x, layers["LayerNorm_0"])


def test_a_residual_block():
    x, block = np.random.default_rng(0).normal(size=(7, 5)), ResidualBlock(5)
    params = random_params(block, x)
    assert params["params"]["Dense_0"]["kernel"].shape == (5, 20)  # "inverted bottleneck", four times as wide
    np.testing.assert_allclose(
        jax.jit(block.apply)(params, x), residual_block(x, params["params"]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_hidden_layers_in_a_row(blocks):
    x, body = np.random.default_rng(0).normal(size=(2, 7, 3)), SimBa(5, blocks)
    params = random_params(body, x)
    assert len(params["params"]) == blocks + 2
    np.testing.assert_allclose(jax.jit(body.apply)(params, x), simba(x, params["params"]), rtol=0, atol=1e-12)


def test_an_actor_and_critics_on_top_of_it():
    observation, action = np.random.default_rng(0).normal(size=(2, 7, 3))
    actor, critics = GaussianActor(3, SimBa(5, 1)), Critics(SimBa(6, 2))
    params = random_params(actor, observation)
    layers = params["params"]
    expected = np.split(dense(simba(observation, layers["body"]), layers["Dense_0"]), 2, axis=-1)
    np.testing.assert_allclose(jax.jit(actor.apply)(params, observation), expected, rtol=0, atol=1e-12)
    params = random_params(critics, observation, action)
    pairs = np.concatenate([observation, action], axis=-1)
    expected = [
        dense(simba(pairs, params["params"][f"Value_{i}"]["body"]), params["params"][f"Value_{i}"]["Dense_0"])
        for i in range(2)
    ]
    values = jax.jit(critics.apply)(params, observation, action)
    np.testing.assert_allclose(values, np.squeeze(expected, -1), rtol=0, atol=1e-12)


# --- the start -------------------------------------------------------------------------------------------


def test_weights_start_as_in_the_authors_code():
    """Embedding and output orthogonal with gain 1, blocks from He's truncated normal, biases at 0."""
    actor = GaussianActor(4, SimBa(32, 2), gain=1.0)
    params = jax.jit(actor.init)(jax.random.key(0), jnp.zeros((1, 40)))["params"]
    for kernel in (params["body"]["Dense_0"]["kernel"], params["Dense_0"]["kernel"]):
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(kernel.shape[1]), atol=1e-5)
    for i in range(2):
        block = params["body"][f"ResidualBlock_{i}"]
        for name, fan_in in (("Dense_0", 32), ("Dense_1", 128)):
            kernel, deviation = np.asarray(block[name]["kernel"]), np.sqrt(2 / fan_in)
            assert kernel.std() == pytest.approx(deviation, rel=0.05)
            assert np.abs(kernel).max() <= 2 * deviation / 0.8796  # the deviation of a normal cut off at ±2 σ
            np.testing.assert_array_equal(block[name]["bias"], 0)
    one, other = (params["body"][f"ResidualBlock_{i}"]["Dense_0"]["kernel"] for i in range(2))
    assert (one != other).any()


def test_an_actor_of_plain_layers_starts_near_zero():
    params = jax.jit(GaussianActor(4, MLP((32,))).init)(jax.random.key(0), jnp.zeros((1, 5)))["params"]
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(8), atol=1e-9)


# --- agents ----------------------------------------------------------------------------------------------


def number(width, blocks, inputs, outputs):
    """Parameters of a network."""
    block = 2 * width + (width + 1) * 4 * width + (4 * width + 1) * width
    return (inputs + 1) * width + blocks * block + 2 * width + (width + 1) * outputs


@pytest.mark.parametrize(
    ("obs", "action", "actor_size", "critic_size"),
    [(67, 21, 146_346, 8_497_154), (223, 38, 170700, 8_674_306)],  # DeepMind Control's humanoid, and its dog
)
def test_the_sizes_of_the_paper(obs, action, actor_size, critic_size):
    agent = build_agent(configure("sac", networks="simba").resolved(), action)
    assert agent.actor == GaussianActor(action, SimBa(128, 1), gain=1.0)
    assert agent.critics == Critics(SimBa(512, 2), 2)
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), obs, action))
    actor, critics = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.actor.params, state.critics))
    assert (actor, critics) == (actor_size, critic_size)
    assert actor == number(128, 1, obs, 2 * action)
    assert critics == 2 * number(512, 2, obs + action, 1)


SIZES = {"networks": "simba", "hidden": 8, "actor_blocks": 3, "critic_hidden": 16, "critic_blocks": 1}


def test_every_agent_of_sacs_family_has_them():
    sac, obac, mnse = (build_agent(configure(name, **SIZES).resolved(), 2) for name in ("sac", "obac", "mnse"))
    for agent in (sac, obac, mnse):
        assert agent.actor.body == SimBa(8, 3)
        assert agent.critics.body == SimBa(16, 1)
    assert obac.value.body == SimBa(16, 1)
    assert mnse.inverse == GaussianActor(2, SimBa(8, 3), gain=1.0)
    bf16 = build_agent(configure("obac-era", **SIZES, activation="silu", precision="bf16").resolved(), 2)
    assert bf16.value.body == SimBa(16, 1, "silu", "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sac", "obac", "mnse"])
def test_an_update_of_each_moves_everything(agent):
    agent = build_agent(configure(agent, **SIZES | {"actor_blocks": 1}, critics=1).resolved(), 2)
    state = jax.jit(agent.init, static_argnums=(1, 2))(jax.random.key(0), 3, 2)
    batch = jax.tree.map(np.float32, random_batch(16))
    new, metrics = jax.jit(agent.update)(state, batch, jax.random.key(1))
    for before, after in zip(jax.tree.leaves(state.critics), jax.tree.leaves(new.critics), strict=True):
        assert (before != after).any()
    assert all(np.isfinite(value) for value in metrics.values())


def test_there_may_be_a_single_critic():
    agent = build_agent(configure("sac", hidden=8, critics=1).resolved(), 2)
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), 3, 2))
    assert list(state.critics["params"]) == ["Value_0"]
    batch = random_batch(16)
    assert jax.eval_shape(agent.values, state.critics, batch.observation, batch.action).shape == (1, 16)


@pytest.mark.parametrize(("networks", "decayed"), [("simba", 1e-4 * 1e-2), ("paper", 0.0)])
def test_the_weights_of_simbas_actor_decay_as_well(networks, decayed):
    agent = build_agent(configure("sac", networks=networks).resolved(), 2)
    params = {"x": jnp.asarray([3.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    for optimiser, expected in (
        (agent.actor_optimiser, 3.0 * (1 - decayed)),
        (agent.critic_optimiser, 3.0 * (1 - (decayed or 3e-4 * 1e-4))),
        (agent.alpha_optimiser, 3.0),
    ):
        after, _ = descend(optimiser, zero, optimiser.init(params), params)
        np.testing.assert_allclose(after["x"], expected, rtol=1e-12)
        moved, _ = descend(optimiser, {"x": jnp.asarray([1.0])}, optimiser.init(zero), zero)
        np.testing.assert_allclose(moved["x"], -1e-4 if networks == "simba" else -3e-4, rtol=1e-6)
    assert isinstance(agent.actor_optimiser, optax.GradientTransformation)


# --- settings --------------------------------------------------------------------------------------------


def test_the_networks_bring_what_their_authors_train_them_by():
    names = ("hidden", "critic_hidden", "actor_blocks", "critic_blocks", "learning_rate", "weight_decay", "alpha")
    for agent in ("sac", "obac-era", "mnse", "sac-era-exact"):
        plain, simba = (configure(agent, networks=networks).resolved() for networks in ("paper", "simba"))
        assert [getattr(plain, name) for name in names] == [512, None, None, None, 3e-4, 1e-4, 1.0]
        assert [getattr(simba, name) for name in names] == [128, 512, 1, 2, 1e-4, 1e-2, 0.01]
        assert (plain.normalise_observations, simba.normalise_observations) == (False, True)
        assert simba.target_entropy == plain.target_entropy
        assert simba.critics == plain.critics == 2
    said = {"learning_rate": 1e-3, "weight_decay": 0.0, "alpha": 2.0, "normalise_observations": False, "hidden": 4}
    resolved = configure("sac", networks="simba", **said).resolved()
    assert {name: getattr(resolved, name) for name in said} == said


def test_plain_critics_may_have_a_width_of_their_own():
    agent = build_agent(configure("sac", hidden=8, critic_hidden=16).resolved(), 2)
    assert agent.actor.body.hidden == (8, 8)
    assert agent.critics.body.hidden == (16, 16)


def test_a_setting_of_other_networks_is_refused():
    with pytest.raises(ValueError, match="actor_blocks=3 would be ignored without networks='simba'"):
        configure("sac", actor_blocks=3)
    with pytest.raises(
        ValueError, match="critic_layer_norm=False would be ignored without networks='paper' or 'r"
    ):
        configure("sac", networks="simba", critic_layer_norm=False)
    with pytest.raises(ValueError, match="networks='release': OBAC was not released"):
        configure("obac", networks="release")
    with pytest.raises(ValueError, match="networks='simba': fasttd3 has networks of its own"):
        configure("fasttd3", networks="simba")
    for name in ("actor_blocks", "critic_blocks", "critic_hidden", "critics"):
        with pytest.raises(ValueError, match=f"{name}=0 must be"):
            configure("sac", networks="simba", **{name: 0})
