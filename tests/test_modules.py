"""Modules keep their promises through everything people do with modules."""

import copy
import pickle

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from entropyfloor.jax import functional as J
from entropyfloor.jax import nn as jnn
from entropyfloor.torch import functional as T
from entropyfloor.torch import nn as tnn

rng = np.random.default_rng(0)
RAW, LOC = rng.normal(size=(4, 6)).astype(np.float32), np.tanh(rng.normal(size=(4, 6))).astype(np.float32)

MODULES = {
    "gaussian": (lambda nn: nn.ERAGaussian(6, -3.0), (RAW,), lambda F: F.era_gaussian(RAW_OF[F], -3.0)),
    "truncated": (
        lambda nn: nn.ERATruncatedNormal(6, -3.0, mode="floor"),
        (LOC, RAW),
        lambda F: F.era_truncated_normal(LOC_OF[F], RAW_OF[F], -3.0, mode="floor"),
    ),
    "softmax": (lambda nn: nn.ERASoftmax(6, 0.6), (RAW,), lambda F: F.era_softmax(RAW_OF[F], 0.6)),
}
RAW_OF = {T: torch.tensor(RAW), J: jnp.asarray(RAW)}
LOC_OF = {T: torch.tensor(LOC), J: jnp.asarray(LOC)}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_the_functions(name):
    build, inputs, expected = MODULES[name]
    torch.testing.assert_close(build(tnn)(*map(torch.tensor, inputs)), expected(T))
    np.testing.assert_allclose(build(jnn).apply({}, *inputs), expected(J), rtol=1e-6)
    assert "3.0" in repr(build(tnn)) or "0.6" in repr(build(tnn))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda nn: nn.ERAGaussian(6, 50.0), "lower the target"),
        (lambda nn: nn.ERAGaussian(0, -1.0), "action_dim=0"),
        (lambda nn: nn.ERAGaussian(6, -3.0, mode="floor", batch_level=True), "choose one"),
        (lambda nn: nn.ERATruncatedNormal(6, 5.0), "loc on a bound"),
        (lambda nn: nn.ERASoftmax(1, 0.5), "num_classes=1"),
        (lambda nn: nn.ERALinear(4, 10, 2.4), "choose a floor"),
        (lambda nn: nn.ResidualEntropy(float("nan")), "target_entropy"),
    ],
)
@pytest.mark.parametrize("nn", [tnn, jnn], ids=["torch", "jax"])
def test_what_cannot_be_promised_is_refused_when_built(nn, build, message):
    with pytest.raises(ValueError, match=message):
        build(nn)


@pytest.mark.parametrize("nn", [tnn, jnn], ids=["torch", "jax"])
def test_one_dimension_pinned_warns(nn):
    with pytest.warns(UserWarning, match="mode='floor'"):
        nn.ERAGaussian(1, -0.5)
    nn.ERAGaussian(1, -0.5, mode="floor")  # warnings are errors here


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match="action_dim=6"):
        tnn.ERAGaussian(6, -3.0)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="num_classes=6"):
        jnn.ERASoftmax(6, 0.6).apply({}, jnp.zeros((2, 5)))


def test_era_linear_is_a_linear_with_a_floor():
    plain, era = torch.nn.Linear(6, 10), tnn.ERALinear(6, 10, 0.6)
    assert list(era.state_dict()) == list(plain.state_dict())
    era.load_state_dict(plain.state_dict())
    x = torch.tensor(RAW)
    for model in (era, copy.deepcopy(era), pickle.loads(pickle.dumps(era))):
        torch.testing.assert_close(model(x), T.era_softmax(plain(x), 0.6))
    exported = torch.export.export(era, (x,)).module()
    torch.testing.assert_close(exported(x), era(x))
    assert copy.deepcopy(era).to(torch.float64)(x.double()).dtype == torch.float64
    assert copy.deepcopy(era).to(torch.bfloat16)(x.bfloat16()).dtype == torch.float32
    torch._dynamo.reset()
    for floor in (0.6, 0.7):  # the second model finds the first one's graph
        model = tnn.ERALinear(6, 10, floor)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))


def test_flax_era_linear_keeps_denses_parameters():
    era, plain = jnn.ERALinear(6, 10, 0.6), flax.linen.Dense(10)
    variables = era.init(jax.random.key(0), RAW)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, plain.init(jax.random.key(0), RAW))
    restored = flax.serialization.from_bytes(variables, flax.serialization.to_bytes(variables))
    expected = J.era_softmax(plain.apply(variables, RAW), 0.6)
    np.testing.assert_allclose(era.apply(restored, RAW), expected, rtol=1e-6)


def running_mean_of_exp_sums(batches, momentum=0.1, start=6.0):
    mean = start
    for batch in batches:
        mean = (1 - momentum) * mean + momentum * np.exp(np.float64(batch)).sum(-1).mean()
    return np.log(mean)


def test_batch_level_statistics_are_kept_as_batch_norm_keeps_them():
    batches = [RAW, RAW + 1, 2 * RAW]
    expected = running_mean_of_exp_sums(batches)

    module = tnn.ERAGaussian(6, -3.0, batch_level=True)
    for batch in batches:
        module(torch.tensor(batch))
    assert module.log_mean_exp_sum.item() == pytest.approx(expected, rel=1e-6)
    module = pickle.loads(pickle.dumps(module)).eval()
    evaluated = module(torch.tensor(RAW))
    assert module.log_mean_exp_sum.item() == pytest.approx(expected, rel=1e-6)

    flax_module = jnn.ERAGaussian(6, -3.0, batch_level=True)
    variables = flax_module.init(jax.random.key(0), RAW)
    for batch in batches:
        _, variables = flax_module.apply(variables, batch, mutable=["batch_stats"])
    assert float(variables["batch_stats"]["log_mean_exp_sum"]) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(flax_module.apply(variables, RAW, use_running_average=True), evaluated, rtol=1e-5)


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
