"""Modules keep their promises through everything people do with modules."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import reference
from entropyfloor.jax import functional as J
from entropyfloor.jax import nn as jnn
from entropyfloor.torch import functional as T
from entropyfloor.torch import nn as tnn

rng = np.random.default_rng(0)
RAW, LOC = rng.normal(size=(4, 6)).astype(np.float32), np.tanh(rng.normal(size=(4, 6))).astype(np.float32)


@dataclass(frozen=True)
class Module:
    """How to build a module from `nn`, its inputs, and the floor of the quantity that `measure` computes."""

    build: Callable
    inputs: tuple[np.ndarray, ...]
    floor: float
    measure: Callable
    function: Callable | None = None


MODULES = {
    "ERAGaussian": Module(
        lambda nn: nn.ERAGaussian(6, -3.0),
        (RAW,),
        -3.0,
        lambda log_std, raw: reference.gaussian_entropy(log_std),
        lambda F, raw: F.era_gaussian(raw, -3.0),
    ),
    "ERAGaussian/batch": Module(  # momentum 1: the statistic is that of the last batch, and holds for it
        lambda nn: nn.ERAGaussian(6, -3.0, batch_level=True, momentum=1.0, log_std_min=-100.0),
        (3 * RAW,),
        -3.0,
        lambda log_std, raw: reference.gaussian_entropy(log_std).mean(),
        lambda F, raw: F.era_gaussian_batch(raw, -3.0, log_std_min=-100.0)[0],
    ),
    "ERATruncatedNormal": Module(
        lambda nn: nn.ERATruncatedNormal(6, -3.0, mode="floor"),
        (LOC, RAW),
        -3.0,
        lambda log_std, loc, raw: reference.truncated_normal_entropy(loc, log_std).sum(-1),
        lambda F, loc, raw: F.era_truncated_normal(loc, raw, -3.0, mode="floor"),
    ),
    "ERASoftmax": Module(
        lambda nn: nn.ERASoftmax(6, 0.6),
        (100 * RAW,),
        0.6,
        lambda logits, raw: reference.categorical_entropy(logits),
        lambda F, raw: F.era_softmax(raw, 0.6),
    ),
    "ERALinear": Module(
        lambda nn: nn.ERALinear(6, 10, 0.6),
        (100 * RAW,),
        0.6,
        lambda logits, features: reference.categorical_entropy(logits),
    ),
    "ResidualEntropy": Module(lambda nn: nn.ResidualEntropy(-3.0, initial=0.5), (), 0.0, lambda delta: delta),
}
NAMES = pytest.mark.parametrize("name", MODULES)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
exactly = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("name", [name for name, module in MODULES.items() if module.function])
def test_modules_are_the_functions(name):
    case = MODULES[name]
    inputs = [torch.tensor(x) for x in case.inputs]
    torch.testing.assert_close(case.build(tnn)(*inputs), case.function(T, *inputs))
    outputs, _ = case.build(jnn).init_with_output(jax.random.key(0), *case.inputs)
    np.testing.assert_allclose(outputs, case.function(J, *map(jnp.asarray, case.inputs)), rtol=1e-6)
    assert str(case.floor) in repr(case.build(tnn))


def used(name, dtype="float32"):
    """A module with random parameters and updated statistics, in evaluation mode, and its inputs."""
    case, dtype = MODULES[name], getattr(torch, dtype)
    torch.manual_seed(0)
    module, inputs = case.build(tnn), [torch.tensor(x).to(dtype) for x in case.inputs]
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    module.to(dtype)(*inputs)
    return module.eval(), inputs


@NAMES
def test_torch_copies(name):
    module, inputs = used(name)
    loaded = MODULES[name].build(tnn).eval()
    loaded.load_state_dict(module.state_dict())
    for other in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        torch.testing.assert_close(other.state_dict(), module.state_dict(), **exactly)
        torch.testing.assert_close(other(*inputs), module(*inputs), **exactly)


@NAMES
@DTYPES
def test_torch_types_and_devices(name, dtype):
    module, inputs = used(name, dtype)
    outputs = module(*inputs)
    assert outputs.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    entropy = MODULES[name].measure(*(x.detach().double().numpy() for x in (outputs, *inputs)))
    assert (entropy >= MODULES[name].floor - 1e-5).all()

    module.to("meta")
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    assert not any(isinstance(value, torch.Tensor) for value in vars(module).values())  # that `to` would not see
    for mode in (module.train(), module.eval()):
        moved = mode(*(x.to("meta") for x in inputs))
        assert moved.is_meta
        assert (moved.shape, moved.dtype) == (outputs.shape, outputs.dtype)


@NAMES
def test_torch_export(name):
    module, inputs = used(name)
    batch = [{0: torch.export.Dim.DYNAMIC} for _ in inputs] or None
    exported = torch.export.export(module, tuple(inputs), dynamic_shapes=batch).module()
    torch.testing.assert_close(exported.state_dict(), dict(module.state_dict()), **exactly)
    for size in (4, 3):
        rows = [x[:size] for x in inputs]
        torch.testing.assert_close(exported(*rows), module(*rows), **exactly)


@NAMES
@DTYPES
def test_flax(name, dtype):
    case = MODULES[name]
    module, inputs = case.build(jnn), [jnp.asarray(x).astype(dtype) for x in case.inputs]
    variables = module.init(jax.random.key(0), *inputs)
    types = jax.tree.map(lambda x: x.dtype.name, variables)
    assert set(jax.tree.leaves(types)) <= {"float32"}
    variables |= module.apply(variables, *inputs, mutable=["batch_stats"])[1]
    assert jax.tree.map(lambda x: x.dtype.name, variables) == types
    if "params" in variables:
        variables["params"] = jax.tree.map(lambda x: x.astype(dtype), variables["params"])

    evaluation = {"use_running_average": True} if "batch_stats" in variables else {}
    outputs = module.apply(variables, *inputs, **evaluation)
    assert outputs.dtype == ("float64" if dtype == "float64" else "float32")
    entropy = case.measure(*(np.asarray(x, np.float64) for x in (outputs, *inputs)))
    assert (entropy >= case.floor - 1e-5).all()

    blank = jax.tree.map(jnp.zeros_like, variables)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(variables))
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other == module
        np.testing.assert_array_equal(other.apply(restored, *inputs, **evaluation), outputs)
    jitted = jax.jit(lambda variables, *inputs: module.apply(variables, *inputs, **evaluation))
    np.testing.assert_allclose(jitted(variables, *inputs), outputs, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda nn: nn.ERAGaussian(6, 50.0), "lower the target"),
        (lambda nn: nn.ERAGaussian(0, -1.0), "action_dim=0"),
        (lambda nn: nn.ERAGaussian(6, -3.0, mode="floor", batch_level=True), "choose one"),
        (lambda nn: nn.ERAGaussian(6, -3.0, batch_level=True, momentum=1.5), "momentum=1.5"),
        (lambda nn: nn.ERATruncatedNormal(6, 5.0), "loc on a bound"),
        (lambda nn: nn.ERASoftmax(1, 0.5), "num_classes=1"),
        (lambda nn: nn.ERALinear(4, 10, 2.4), "choose a floor"),
        (lambda nn: nn.ResidualEntropy(float("nan")), "target_entropy"),
        (lambda nn: nn.ResidualEntropy("-A/2"), "is text"),  # a rule without the number of dimensions
        (lambda nn: nn.ERAGaussian(6, None), "target_entropy=None"),
        (lambda nn: nn.ERATruncatedNormal(6, None), "target_entropy=None"),
        (lambda nn: nn.ERAGaussian(6, torch.zeros(6)), r"target_entropy has the shape \(6,\)"),
    ],
)
@pytest.mark.parametrize("nn", [tnn, jnn], ids=["torch", "jax"])
def test_what_cannot_be_promised_is_refused_when_built(nn, build, message):
    with pytest.raises(ValueError, match=message):
        build(nn)


@pytest.mark.parametrize("nn", [tnn, jnn], ids=["torch", "jax"])
@pytest.mark.parametrize("name", ["ERAGaussian", "ERATruncatedNormal"])
def test_one_dimension_pinned_warns(nn, name):
    with pytest.warns(UserWarning, match="mode='floor'") as warned:
        getattr(nn, name)(1, -0.5)
    assert warned[0].filename == __file__  # the caller's line, not one of flax
    getattr(nn, name)(1, -0.5, mode="floor")  # warnings are errors here


@pytest.mark.parametrize("shape", [(2, 5), ()], ids=str)
def test_wrong_width_is_refused(shape):
    with pytest.raises(ValueError, match="action_dim=6"):
        tnn.ERAGaussian(6, -3.0)(torch.zeros(shape))
    with pytest.raises(ValueError, match="num_classes=6"):
        jnn.ERASoftmax(6, 0.6).apply({}, jnp.zeros(shape))


def test_era_linear_is_a_linear_with_a_floor():
    plain, era = torch.nn.Linear(6, 10), tnn.ERALinear(6, 10, 0.6)
    assert list(era.state_dict()) == list(plain.state_dict())
    era.load_state_dict(plain.state_dict())
    x = torch.tensor(RAW)
    torch.testing.assert_close(era(x), T.era_softmax(plain(x), 0.6))
    torch._dynamo.reset()
    for floor in (0.6, 0.7):  # the second model finds the first one's graph
        model = tnn.ERALinear(6, 10, floor)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))


def test_flax_era_linear_keeps_denses_parameters():
    era, plain = jnn.ERALinear(6, 10, 0.6), flax.linen.Dense(10)
    variables = era.init(jax.random.key(0), RAW)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, plain.init(jax.random.key(0), RAW))
    expected = J.era_softmax(plain.apply(variables, RAW), 0.6)
    np.testing.assert_allclose(era.apply(variables, RAW), expected, rtol=1e-6)


def running_mean_of_exp_sums(batches, momentum=0.1, start=6.0):
    mean = start
    for batch in batches:
        mean = (1 - momentum) * mean + momentum * np.exp(np.float64(batch)).sum(-1).mean()
    return np.log(mean)


@DTYPES
def test_batch_level_statistics_are_kept_as_batch_norm_keeps_them(dtype):
    batches = [torch.tensor(x).to(getattr(torch, dtype)) for x in (RAW, RAW + 1, 2 * RAW) for _ in range(20)]
    expected = running_mean_of_exp_sums([batch.double().numpy() for batch in batches], momentum=0.01)

    module = tnn.ERAGaussian(6, -3.0, batch_level=True, momentum=0.01).to(getattr(torch, dtype))
    for batch in batches:
        trained = module(batch.requires_grad_())
    assert not module.log_mean_exp_sum.requires_grad
    torch.testing.assert_close(trained, T.era_gaussian_batch(batch, -3.0)[0], **exactly)
    module.eval()
    for batch in batches:
        evaluated = module(batch)
    assert module.log_mean_exp_sum.item() == pytest.approx(expected, rel=1e-6)
    running = torch.tensor(expected)
    torch.testing.assert_close(evaluated, T.era_gaussian_batch(batch, -3.0, log_mean_exp_sum=running)[0])

    flax_module = jnn.ERAGaussian(6, -3.0, batch_level=True, momentum=0.01)
    stacked = jnp.asarray(torch.stack(batches).detach().double().numpy()).astype(dtype)
    variables = flax_module.init(jax.random.key(0), stacked[0])

    def step(variables, batch):
        return flax_module.apply(variables, batch, mutable=["batch_stats"])[1], None

    variables, _ = jax.lax.scan(step, variables, stacked)
    assert float(variables["batch_stats"]["log_mean_exp_sum"]) == pytest.approx(expected, rel=1e-6)
    output = flax_module.apply(variables, stacked[-1], use_running_average=True)
    np.testing.assert_allclose(output, evaluated.detach(), rtol=1e-5, atol=1e-6)


def test_a_loaded_statistic_is_in_single_precision():
    module = tnn.ERAGaussian(6, -3.0, batch_level=True)
    module.load_state_dict({"log_mean_exp_sum": torch.tensor(1.75).bfloat16()}, assign=True)
    torch.testing.assert_close(module.log_mean_exp_sum, torch.tensor(1.75), **exactly)


def test_residual_entropy_grows_below_the_target_and_shrinks_above():
    residual = tnn.ResidualEntropy(-3.0)
    assert residual.value.item() == pytest.approx(np.log(2))
    for entropy, sign in ((-5.0, -1), (-1.0, 1)):
        (grad,) = torch.autograd.grad(residual.loss(torch.full((8,), entropy)), [residual.raw])
        assert grad.item() == pytest.approx(sign * 2 * 0.5)  # d softplus(0) = 1/2
    entropy = torch.zeros(3, requires_grad=True)
    assert not torch.autograd.grad(residual.loss(entropy), entropy, allow_unused=True)[0]

    module = jnn.ResidualEntropy(-3.0)
    variables = module.init(jax.random.key(0))
    assert float(module.bind(variables).value) == pytest.approx(np.log(2))
    grads = jax.grad(lambda v: module.apply(v, jnp.full(8, -5.0), method="loss"))(variables)
    assert float(grads["params"]["raw"]) == pytest.approx(-1.0)
    assert not jax.grad(lambda entropy: module.apply(variables, entropy, method="loss"))(jnp.zeros(3)).any()
