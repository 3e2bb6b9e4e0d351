"""The modules of flax.nnx: the same numbers as those of linen, and all that nnx does with a module."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

import reference
from entropyfloor.jax import functional as F
from entropyfloor.jax import nn as linen
from entropyfloor.jax import nnx as era

RAW = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
LOC = np.tanh(np.random.default_rng(1).normal(size=(16, 6))).astype(np.float32)
MODULES = {
    "ERAGaussian": (lambda nn: nn.ERAGaussian(6, -3.0), (RAW,)),
    "floor": (lambda nn: nn.ERAGaussian(6, -3.0, log_std_max=0.5, mode="floor"), (RAW,)),
    "batch_level": (lambda nn: nn.ERAGaussian(6, -3.0, batch_level=True, momentum=0.2), (RAW,)),
    "ERATruncatedNormal": (lambda nn: nn.ERATruncatedNormal(6, -3.0, low=-2.0, high=1.0), (LOC, RAW)),
    "ERASoftmax": (lambda nn: nn.ERASoftmax(6, 0.6, tau=6.0), (RAW,)),
    "paper": (lambda nn: nn.ERASoftmax(6, 0.6, floor="paper", inverse="paper"), (RAW,)),
    "ERALinear": (
        lambda nn: nn.ERALinear(6, 10, 0.6, tau=5.0, **({"rngs": nnx.Rngs(0)} if nn is era else {})),
        (RAW,),
    ),
    "ResidualEntropy": (lambda nn: nn.ResidualEntropy(-3.0, initial=0.5), ()),
}
NAMES = pytest.mark.parametrize("name", MODULES)
exactly = {"rtol": 0, "atol": 0}


def both(name):
    """A module of nnx with random state, and the function of the linen module with the same state."""
    build, inputs = MODULES[name]
    module, plain = build(era), build(linen)
    leaves, tree = jax.tree.flatten(nnx.state(module))
    keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
    state = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    nnx.update(module, jax.tree.unflatten(tree, state))
    collections = (("params", nnx.Param), ("batch_stats", nnx.BatchStat))
    # Copies, since nnx changes its state in place.
    variables = {c: jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(module, kind))) for c, kind in collections}
    shapes = jax.tree.map(jnp.shape, plain.init(jax.random.key(0), *inputs))
    variables = {c: v for c, v in variables.items() if v}
    assert jax.tree.map(jnp.shape, variables) == shapes  # the same names, too
    return module, lambda *x: plain.apply(variables, *x), [jnp.asarray(x) for x in inputs]


@pytest.mark.slow_but_first
@NAMES
def test_the_numbers_are_those_of_linen(name):
    module, plain, inputs = both(name)
    np.testing.assert_array_equal(module(*inputs), plain(*inputs))


@pytest.mark.slow_but_first
@NAMES
def test_jit_and_vmap(name):
    module, plain, inputs = both(name)
    expected = plain(*inputs)
    np.testing.assert_allclose(nnx.jit(lambda m, *x: m(*x))(module, *inputs), expected, rtol=1e-5)
    if inputs and name != "batch_level":  # whose statistic is of the batch
        by_row = nnx.vmap(lambda m, *x: m(*x), in_axes=(None, *[0] * len(inputs)))
        np.testing.assert_allclose(by_row(module, *inputs), expected, rtol=1e-5)


@pytest.mark.slow_but_first
@NAMES
def test_gradients_are_those_of_linen(name):
    module, plain, inputs = both(name)
    weights = jnp.cos(1.7 * jnp.arange(plain(*inputs).size)).reshape(plain(*inputs).shape)
    if inputs:
        numbers = tuple(range(len(inputs)))
        expected = jax.grad(lambda *x: (plain(*x) * weights).sum(), numbers)(*inputs)
        ours = tuple(i + 1 for i in numbers)
        gradients = nnx.grad(lambda m, *x: (m(*x) * weights).sum(), argnums=ours)(module, *inputs)
        for a, b in zip(gradients, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.abs(a).max() > 0
    if nnx.to_pure_dict(nnx.state(module, nnx.Param)):
        gradients = nnx.grad(lambda m: (m(*inputs) * weights).sum())(module)
        assert all(0 < np.abs(g).max() < np.inf for g in jax.tree.leaves(gradients))


@pytest.mark.slow_but_first
@NAMES
def test_state_is_split_merged_copied_and_stored(name, tmp_path):
    module, plain, inputs = both(name)
    graph, state = nnx.split(module)
    copies = [nnx.merge(graph, jax.tree.map(jnp.copy, state)), nnx.clone(module), copy.deepcopy(module)]
    if jax.tree.leaves(state):
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            fresh = MODULES[name][0](era)
            blank = jax.tree.map(jnp.zeros_like, nnx.state(fresh))
            nnx.update(fresh, checkpointer.restore(tmp_path / "state", blank))
            copies.append(fresh)
    expected = plain(*inputs)
    for other in copies:
        np.testing.assert_array_equal(other(*inputs), expected)


def test_batch_level_statistics_follow_the_mode_as_those_of_batch_norm():
    build, _ = MODULES["batch_level"]
    module, plain = build(era), build(linen)
    variables = plain.init(jax.random.key(0), RAW)
    step = nnx.jit(lambda m, x: m(x))
    for factor in (1.0, 2.0, -1.0):
        trained = step(module, factor * RAW)
        expected, changed = plain.apply(variables, factor * RAW, mutable=["batch_stats"])
        variables |= changed
        np.testing.assert_allclose(trained, expected, rtol=1e-6)
    running = module.log_mean_exp_sum[...]
    np.testing.assert_allclose(running, variables["batch_stats"]["log_mean_exp_sum"], rtol=1e-6)
    evaluated = plain.apply(variables, RAW, use_running_average=True)
    view = nnx.view(module, use_running_average=True)
    module.eval()
    for output in (module(RAW), view(RAW), step(module, RAW), build(era)(RAW, use_running_average=False)):
        assert output.shape == RAW.shape
    for output in (module(RAW), view(RAW), step(module, RAW)):
        np.testing.assert_allclose(output, evaluated, rtol=1e-5)
    np.testing.assert_array_equal(module.log_mean_exp_sum[...], running)
    module.train()
    module(RAW)
    assert module.log_mean_exp_sum[...] != running


def test_half_precision_is_computed_in_float32():
    raw = jnp.asarray(RAW).astype("bfloat16")
    for name in ("ERAGaussian", "ERASoftmax"):
        module, plain, _ = both(name)
        assert module(raw).dtype == "float32"
        np.testing.assert_array_equal(module(raw), plain(raw))


def test_era_linear_is_a_linear_with_a_floor():
    floored = era.ERALinear(6, 10, 0.6, rngs=nnx.Rngs(3))
    plain = nnx.Linear(6, 10, rngs=nnx.Rngs(3))
    jax.tree.map(np.testing.assert_array_equal, *(nnx.to_pure_dict(nnx.state(m)) for m in (floored, plain)))
    np.testing.assert_allclose(floored(1e4 * RAW), F.era_softmax(plain(1e4 * RAW), 0.6), rtol=1e-6)
    assert reference.categorical_entropy(floored(1e4 * RAW)).min() > 0.6 - 1e-4
    assert era.ERALinear(6, 10, 0.6, bias=False, rngs=nnx.Rngs(0)).bias is None


def test_residual_entropy_learns_as_that_of_linen():
    module, plain = era.ResidualEntropy(-3.0), linen.ResidualEntropy(-3.0)
    variables = plain.init(jax.random.key(0))
    assert float(module.value) == pytest.approx(np.log(2))
    entropy = jnp.asarray([-5.0, -4.5])
    gradient = nnx.grad(lambda m: m.loss(entropy))(module)
    expected = jax.grad(lambda v: plain.apply(v, entropy, method="loss"))(variables)
    assert float(gradient["raw"][...]) == float(expected["params"]["raw"]) < 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: era.ERAGaussian(6, 50.0), "lower the target"),
        (lambda: era.ERAGaussian(6, -3.0, mode="floor", batch_level=True), "choose one"),
        (lambda: era.ERAGaussian(6, -3.0, batch_level=True, momentum=1.5), "momentum=1.5"),
        (lambda: era.ERATruncatedNormal(6, 5.0), "loc on a bound"),
        (lambda: era.ERASoftmax(1, 0.5), "num_classes=1"),
        (lambda: era.ERALinear(4, 10, 2.4, rngs=nnx.Rngs(0)), "choose a floor"),
        (lambda: era.ResidualEntropy(float("nan")), "target_entropy"),
        (lambda: era.ResidualEntropy("-A/2"), "is text"),
        (lambda: era.ERAGaussian(6, None), "target_entropy=None"),
        (lambda: era.ERATruncatedNormal(6, None), "target_entropy=None"),
        (lambda: era.ERASoftmax(6, 0.6)(jnp.zeros((2, 5))), "num_classes=6"),
        (lambda: era.ERALinear(4, 10, 0.6, rngs=nnx.Rngs(0))(jnp.zeros((2, 5))), "in_features=4"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("module", [era.ERAGaussian, era.ERATruncatedNormal])
def test_one_dimension_pinned_warns(module):
    with pytest.warns(UserWarning, match="mode='floor'") as warned:
        module(1, -0.5)
    assert warned[0].filename == __file__
    module(1, -0.5, mode="floor")  # warnings are errors here
