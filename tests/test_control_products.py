"""bfloat16 products: float32 sums of rounded factors, in the layers of every agent and nowhere else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from control import random_batch
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.ppo import Rollout
from entropyfloor.control.config import configure
from entropyfloor.control.networks import MLP, Critics
from entropyfloor.control.products import bfloat16

SHAPES = {
    "a layer": ((40, 30), 20),
    "one row": ((30,), 20),
    "two axes of rows": ((5, 8, 30), 20),
    "one output": ((40, 30), 1),
    "of the shape with spare rows": ((256, 256), 256),
}


def rounded(x):
    """The nearest numbers in bfloat16, in float64."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def factors(shape, width, seed=0):
    """Input, weights, and the incoming gradient, of sizes that differ from row to row."""
    rng = np.random.default_rng(seed)
    shapes = shape, (shape[-1], width), (*shape[:-1], width)
    return [(rng.normal(size=s) * np.exp(rng.normal(size=(*s[:-1], 1)))).astype(np.float32) for s in shapes]


def product_and_gradients(x, kernel, grad):
    out, pull = jax.vjp(bfloat16, x, kernel)
    return out, *pull(grad)


def expected(x, kernel, grad):
    """In float64, of the factors as they are."""
    rows, flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return x @ kernel, grad @ kernel.T, rows.T @ flat


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", SHAPES)
def test_products_and_gradients_are_those_of_rounded_factors(name):
    arrays = factors(*SHAPES[name])
    found = jax.jit(product_and_gradients)(*arrays)
    exact = expected(*(np.float64(x) for x in arrays))
    of_rounded = expected(*(rounded(x) for x in arrays))
    largest = expected(*(np.abs(np.float64(x)) for x in arrays))
    for got, one, other, sizes in zip(found, of_rounded, exact, largest, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_less(np.abs(got - one), 1e-5 * sizes + 1e-30)  # the rounding of float32 sums
        np.testing.assert_array_less(np.abs(got - other), 2.02 * 2.0**-8 * sizes)  # that of two bfloat16 factors
    for got, one in zip(product_and_gradients(*arrays), found, strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-4)


def test_sums_are_in_float32():
    """A sum of ones in bfloat16 would stop at 256."""
    ones = np.ones((3, 5000), np.float32)
    np.testing.assert_array_equal(bfloat16(ones, ones.T), 5000.0)
    out, to_input, to_weights = product_and_gradients(ones.T, ones[:, :2], np.ones((5000, 2), np.float32))
    np.testing.assert_array_equal(out, 3.0)
    np.testing.assert_array_equal(to_input, 2.0)
    np.testing.assert_array_equal(to_weights, 5000.0)
    to_input = product_and_gradients(ones[:, :2], ones[:2], ones)[1]
    np.testing.assert_array_equal(to_input, 5000.0)


@pytest.mark.parametrize("name", ["a layer", "one row", "of the shape with spare rows"])
def test_many_products_are_those_of_each(name):
    each = [factors(*SHAPES[name], seed=i) for i in range(3)]
    together = jax.jit(jax.vmap(product_and_gradients))(*map(np.stack, zip(*each, strict=True)))
    for i, arrays in enumerate(each):
        for got, one in zip(together, jax.jit(product_and_gradients)(*arrays), strict=True):
            np.testing.assert_allclose(got[i], one, rtol=1e-4, atol=1e-4)


def test_double_precision_has_gradients_of_its_own_type():
    arrays = [np.float64(x) for x in factors((4, 3), 2)]
    out, *gradients = product_and_gradients(*arrays[:2], np.float32(arrays[2]))
    assert (out.dtype, *(x.dtype for x in gradients)) == (np.float32, np.float64, np.float64)


@pytest.mark.slow
def test_parameters_are_the_same_in_both_precisions():
    networks = [Critics(MLP((16, 16), precision=precision)) for precision in ("fp32", "bf16")]
    observation, action = factors((8, 5), 2)[::2]
    one, other = (network.init(jax.random.key(0), observation, action) for network in networks)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    exact, values = (network.apply(one, observation, action) for network in networks)
    assert values.dtype == exact.dtype == np.float32
    np.testing.assert_allclose(values, exact, rtol=0.03, atol=0.03)
    assert (values != exact).all()


# --- agents ----------------------------------------------------------------------------------------------

AGENTS = ["sac", "sac, simba", "obac-era", "ppo-era", "ppo, discrete"]


def update_of(name):
    """A small agent in bfloat16: its update and the arguments of one."""
    kind, discrete = name.split(",")[0], name.endswith("discrete")
    sizes = {"rollout_steps": 8, "minibatch_size": 4, "epochs": 1} if kind in ("ppo", "ppo-era") else {}
    networks = {"networks": "simba", "critic_hidden": 8} if name.endswith("simba") else {}
    config = configure(kind, hidden=8, precision="bf16", **sizes, **networks).resolved()
    agent = build_agent(config, 2, discrete=discrete)
    key = jax.random.key(0)
    single = np.float32
    if not sizes:
        batch = jax.tree.map(single, random_batch(16))
        return agent.update, (agent.init(key, 3, 2), batch, key)
    steps = jax.tree.map(single, random_batch(8, 1))
    action = np.zeros((8, 1), np.int32) if discrete else steps.action
    columns = steps.observation, action, steps.reward, steps.reward, steps.terminated, 0 * steps.reward
    return agent.update, (agent.init(key, 3), Rollout(*columns, steps.next_observation), key)


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_only_products_of_layers_are_rounded(name):
    update, arguments = update_of(name)
    half = [line for line in jax.jit(update).lower(*arguments).as_text().splitlines() if "bf16" in line]
    operations = {found for line in half for found in re.findall(r"stablehlo\.(\w+)", line)}
    assert operations <= {"convert", "dot_general", "transpose", "custom_call"}
    assert all("LayoutConstraint" in line for line in half if "custom_call" in line)
    products = [line.split(" : ")[-1] for line in half if "stablehlo.dot_general" in line]
    assert len(products) >= 10
    assert [re.findall(r"(b?f\d+)>", line) for line in products] == [["bf16", "bf16", "f32"]] * len(products)
    state, metrics = jax.eval_shape(update, *arguments)
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (state, arguments[0])]
    assert dtypes[0] == dtypes[1]
    assert {value.dtype for value in metrics.values()} == {np.dtype(np.float32)}


@pytest.mark.slow_but_first
@pytest.mark.parametrize("size", [1e6, 1e3, 1.0])
@pytest.mark.parametrize("name", ["sac-era-exact", "sac-era", "ppo-era", "ppo-era-exact", "discrete"])
def test_the_floor_holds_whatever_the_network_says(name, size):
    """Random networks with outputs up to `size`: far beyond what training makes."""
    discrete = name == "discrete"
    kind, settings = ("ppo-era-exact", {"min_entropy": 0.3}) if discrete else (name, {})
    dim = 4
    config = configure(kind, hidden=16, precision="bf16", **settings).resolved()
    agent = build_agent(config, dim, discrete=discrete)
    rng = np.random.default_rng(0)
    state = agent.init(jax.random.key(0), 5, dim) if kind.startswith("sac") else agent.init(jax.random.key(0), 5)
    actor = jax.tree.map(lambda x: (x + size * rng.normal(size=x.shape)).astype(np.float32), state.actor)
    observations = (size * rng.normal(size=(500, 5))).astype(np.float32)
    policy = jax.jit(agent.distribution)(actor, observations)
    leaves = jax.tree.leaves(policy)
    assert all(leaf.dtype == np.float32 for leaf in leaves)
    if discrete:
        entropy, floor = reference.categorical_entropy(np.float64(policy.logits)), 0.3
    else:
        log_std = np.log(np.float64(policy.scale))
        floor = agent.policy.target_entropy
        if kind.endswith("exact"):
            entropy = reference.truncated_normal_entropy(np.float64(policy.loc), log_std).sum(-1)
        else:
            entropy = reference.gaussian_entropy(log_std)
    assert entropy.shape == (500,)
    assert entropy.min() >= floor - 1e-5 * dim
