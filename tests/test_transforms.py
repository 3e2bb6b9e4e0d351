"""Eager, compiled, mapped and differentiated: the same numbers, in both frameworks."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from entropyfloor.jax import entropies, lambert
from entropyfloor.jax import functional as J
from entropyfloor.torch import functional as T

rng = np.random.default_rng(0)
RAW, LOC = rng.normal(size=(4, 6)).astype(np.float32), np.tanh(rng.normal(size=(4, 6))).astype(np.float32)

FUNCTIONS = {
    "era_gaussian": lambda F, loc, raw: F.era_gaussian(raw, -3.0),
    "era_gaussian/floor": lambda F, loc, raw: F.era_gaussian(raw, -3.0, mode="floor"),
    "era_truncated_normal": lambda F, loc, raw: F.era_truncated_normal(loc, raw, -3.0),
    "era_truncated_normal/floor": lambda F, loc, raw: F.era_truncated_normal(loc, raw, -3.0, mode="floor"),
    "era_softmax": lambda F, loc, raw: F.era_softmax(raw, 0.6),
    "era_softmax/paper": lambda F, loc, raw: F.era_softmax(raw, 0.6, floor="paper", inverse="paper"),
    "era_softmax/mask": lambda F, loc, raw: F.era_softmax(raw, 0.6, mask=loc > -0.3),
    "entropy_from_logits": lambda F, loc, raw: F.entropy_from_logits(raw),
    "gaussian_entropy": lambda F, loc, raw: F.gaussian_entropy(raw),
    "truncated_normal_entropy": lambda F, loc, raw: F.truncated_normal_entropy(loc, raw),
    "tanh_normal_entropy": lambda F, loc, raw: F.tanh_normal_entropy(loc, raw),
    "project_gaussian": lambda F, loc, raw: F.project_gaussian(raw, 3.0),
}
NAMES = pytest.mark.parametrize("name", FUNCTIONS)
close = {"rtol": 1e-5, "atol": 1e-5}


@NAMES
def test_torch(name):
    def function(loc, raw):
        return FUNCTIONS[name](T, loc, raw)

    def loss(loc, raw):
        return function(loc, raw).sum()

    loc, raw = torch.tensor(LOC), torch.tensor(RAW)
    eager = function(loc, raw)
    torch.testing.assert_close(torch.func.vmap(function)(loc, raw), eager, **close)
    leaf = raw.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(loc, leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss, argnums=1)(loc, raw), grad, **close)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss, argnums=1))(loc, raw), grad, **close)
    with torch.autocast("cpu", torch.bfloat16):
        low = function(loc.bfloat16(), raw.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, function(loc.bfloat16().float(), raw.bfloat16().float()), **close)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@NAMES
def test_torch_in_forward_mode(name):
    """A backward pass of our own excludes it, as `docs/activations.md` says."""
    loc, raw = torch.tensor(LOC), torch.tensor(RAW)

    def loss(raw):
        return FUNCTIONS[name](T, loc, raw).sum()

    if "truncated" in name or name in ("era_softmax", "era_softmax/mask"):
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(loss, (raw,), (raw,))
    else:
        _, slope = torch.func.jvp(loss, (raw,), (raw,))
        torch.testing.assert_close(slope, (torch.func.grad(loss)(raw) * raw).sum(), rtol=1e-4, atol=1e-4)


# The whole graph is captured, forward and backward, and run by the ahead-of-time backend: generating C++ for it
# would test the compiler and take minutes.
@pytest.mark.slow_but_first
@NAMES
def test_torch_compile(name):
    torch._dynamo.reset()

    def function(loc, raw):
        return FUNCTIONS[name](T, loc, raw)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    loc, raw = torch.tensor(LOC), torch.tensor(RAW, requires_grad=True)
    torch.testing.assert_close(compiled(loc, raw), function(loc, raw), **close)
    grads = [torch.autograd.grad(f(loc, raw).sum(), raw)[0] for f in (compiled, function)]
    torch.testing.assert_close(*grads, **close)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", [*FUNCTIONS, "era_gaussian_batch"])
def test_torch_compile_takes_shapes_that_change(name):
    """With `dynamic=True` the number of actions or classes is not a constant of the program either."""
    torch._dynamo.reset()
    function = FUNCTIONS.get(name, lambda F, loc, raw: F.era_gaussian_batch(raw, -3.0)[0])
    compiled = torch.compile(
        lambda loc, raw: function(T, loc, raw), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for loc, raw in ((LOC, RAW), (LOC[:3], RAW[:3]), (LOC[:, :4], RAW[:, :4])):
        loc, raw = torch.tensor(loc), torch.tensor(raw)
        torch.testing.assert_close(compiled(loc, raw), function(T, loc, raw), **close)


def test_torch_compile_takes_targets_that_change():
    torch._dynamo.reset()
    raw = torch.tensor(RAW)
    for function, arguments in ((T.era_gaussian, (-3.0, -2.0, -1.0)), (T.era_softmax, (0.6, 0.7, 0.8))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for argument in arguments:
            torch.testing.assert_close(compiled(raw, argument), function(raw, argument), **close)


@NAMES
def test_jax(name):
    def function(loc, raw):
        return FUNCTIONS[name](J, loc, raw)

    def loss(loc, raw):
        return function(loc, raw).sum()

    loc, raw = jnp.asarray(LOC), jnp.asarray(RAW)
    eager = function(loc, raw)
    np.testing.assert_allclose(jax.jit(function)(loc, raw), eager, **close)
    np.testing.assert_allclose(jax.vmap(function)(loc, raw), eager, **close)
    grad = jax.grad(loss, argnums=1)(loc, raw)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss, argnums=1)))(loc, raw), grad, **close)
    direction = jnp.ones_like(raw)
    _, slope = jax.jvp(lambda r: loss(loc, r), (raw,), (direction,))
    np.testing.assert_allclose(slope, (grad * direction).sum(), rtol=1e-4, atol=1e-4)
    half = loc.astype(jnp.bfloat16), raw.astype(jnp.bfloat16)
    low = function(*half)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, function(*(x.astype(jnp.float32) for x in half)), **close)


@NAMES
@pytest.mark.parametrize("axis", range(3))
def test_jax_arrays_that_a_mesh_divides(name, axis):
    """Axes of a mesh are explicit by default: the sharding is a part of the type, which a trace checks."""
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Explicit,))
    divided = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "devices"))
    arrays = [np.stack([x, x]) for x in (LOC, RAW)]

    def loss(loc, raw):
        return FUNCTIONS[name](J, loc, raw).sum()

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=divided) for x in arrays]
    jax.eval_shape(jax.value_and_grad(loss, argnums=(0, 1)), *shapes)
    if (name, axis) == ("era_truncated_normal", 1):
        placed = [jax.device_put(x, divided) for x in arrays]
        np.testing.assert_allclose(loss(*placed), loss(*arrays), **close)


def test_targets_of_numpy_need_no_double_precision():
    with jax.enable_x64(False):
        log_std = J.era_gaussian(jnp.asarray(RAW), np.full(len(RAW), -3.0))
        assert log_std.dtype == jnp.float32
        np.testing.assert_allclose(J.gaussian_entropy(log_std), -3.0, rtol=1e-5)


@NAMES
def test_a_program_takes_in_the_operations_of_compiled_parts(name):
    program = str(jax.make_jaxpr(lambda loc, raw: FUNCTIONS[name](J, loc, raw))(LOC, RAW))
    parts = [part for module in (entropies, lambert) for part in vars(module) if part != "jax"]
    assert "_flat" in parts
    assert not [part for part in parts if re.search(rf"jit\[\s*name={part}\b", program)]


def test_eager_calls_run_compiled_parts():
    before, loc, raw = entropies._flat._cache_size(), jnp.asarray(LOC[:, :5]), jnp.asarray(RAW[:, :5])
    J.era_truncated_normal(loc, raw, -3.0, log_std_max=jnp.float32(-0.1))
    assert entropies._flat._cache_size() > before


@pytest.mark.parametrize("functional", [T, J])
def test_functions_can_be_sent_to_other_processes(functional):
    for name in functional.__all__:
        function = getattr(functional, name)
        assert pickle.loads(pickle.dumps(function)) is function


def test_targets_are_checked_under_a_trace():
    with pytest.raises(ValueError, match="lower the target"):
        jax.jit(lambda raw: J.era_gaussian(raw, 50.0))(RAW)
    with pytest.raises(ValueError, match="choose a floor"):
        jax.jit(lambda raw: J.era_softmax(raw, 3.0))(RAW)


TWICE = {
    "era_softmax": lambda F, loc, raw: F.era_softmax(raw, 0.6),
    "era_truncated_normal": lambda F, loc, raw: F.era_truncated_normal(loc, raw, -3.0),
    "era_truncated_normal/floor": lambda F, loc, raw: F.era_truncated_normal(loc, raw, -3.0, mode="floor"),
    "era_truncated_normal/wide": lambda F, loc, raw: F.era_truncated_normal(loc, raw, 1.0, log_std_max=2.0),
    "truncated_normal_entropy": lambda F, loc, raw: F.truncated_normal_entropy(loc, raw),
    "tanh_normal_entropy": lambda F, loc, raw: F.tanh_normal_entropy(loc, raw),
}


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", TWICE)
def test_inverses_have_second_derivatives(name):
    arrays = LOC[:1].astype(np.float64), RAW[:1].astype(np.float64)
    arrays[0][0, 0] = 0.0  # where |u| in the tanh policy has no derivative
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    assert torch.autograd.gradgradcheck(lambda *x: TWICE[name](T, *x), tensors)
    check_grads(lambda *x: TWICE[name](J, *x), arrays, order=2, modes=["rev"])


@pytest.mark.parametrize("masked", [False, True])
def test_one_compiled_era_softmax_takes_any_number_of_classes(masked):
    torch.compiler.reset()  # programs of other tests count against its limit
    compiled = torch.compile(T.era_softmax, fullgraph=True, backend="eager")
    for n in (10, 100, 7):
        z = torch.randn(8, n, generator=torch.Generator().manual_seed(n))
        mask = z > -1 if masked else None
        torch.testing.assert_close(compiled(z, 0.6, mask=mask), T.era_softmax(z, 0.6, mask=mask))


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated", "ignore:.*:torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "truncated" in name])
def test_a_saved_trace_holds_the_truncated_head(name, tmp_path):
    inputs = torch.tensor(LOC, requires_grad=True), torch.tensor(RAW, requires_grad=True)
    function = lambda loc, raw: FUNCTIONS[name](T, loc, raw)  # noqa: E731
    torch.jit.trace(function, inputs).save(str(tmp_path / "trace.pt"))
    loaded = torch.jit.load(str(tmp_path / "trace.pt"))
    torch.testing.assert_close(loaded(*inputs), function(*inputs))
    traced, exact = (torch.autograd.grad(f(*inputs).sum(), inputs) for f in (loaded, function))
    torch.testing.assert_close(traced, exact, rtol=1e-3, atol=1e-3)


def test_torch_refuses_what_is_no_tensor():
    tensor, array = torch.zeros(3), np.zeros(3)
    for call in (
        lambda: T.era_gaussian(array, -1.0),
        lambda: T.era_truncated_normal([0.0], tensor, -1.0),
        lambda: T.era_softmax(tensor, 0.5, mask=array == 0),
    ):
        with pytest.raises(ValueError, match=r"is of type \w+: pass a tensor"):
            call()
    # a number of NumPy is a number
    torch.testing.assert_close(
        T.era_softmax(tensor, np.float32(0.5), tau=np.float32(4)), T.era_softmax(tensor, 0.5)
    )
    torch.testing.assert_close(T.project_gaussian(tensor, np.array(0.5)), T.project_gaussian(tensor, 0.5))
    half = np.log(np.float32(0.5))
    torch.testing.assert_close(
        T.era_truncated_normal(tensor, tensor, -3.0, log_std_max=half),
        T.era_truncated_normal(tensor, tensor, -3.0, log_std_max=float(half)),
    )
