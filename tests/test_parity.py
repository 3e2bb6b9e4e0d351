"""Every public function against the reference, forward and gradient, in both backends."""

import numpy as np
import pytest

import reference
from conftest import weights

rng = np.random.default_rng(0)
RAW = rng.normal(size=(3, 4)) * 2
LOC = 0.99 * np.tanh(rng.normal(size=(3, 4)) * 1.5)  # the differences must not step over the bound
LOG_STD = rng.uniform(-4, 0.5, size=(3, 4))
TARGETS = rng.uniform(-4, 2, size=3)

CASES = {
    "entropy_from_logits": ([RAW], {}, reference.categorical_entropy),
    "gaussian_entropy": ([RAW], {}, reference.gaussian_entropy),
    "truncated_normal_entropy": ([LOC, LOG_STD], {}, reference.truncated_normal_entropy),
    "truncated_normal_entropy/wide": ([LOC, LOG_STD + 2.2], {}, reference.truncated_normal_entropy),
    "truncated_normal_entropy/bounds": (
        [2 * LOC, LOG_STD],
        {"low": -2.5, "high": 3.0},
        reference.truncated_normal_entropy,
    ),
    "tanh_normal_entropy": ([3 * LOC, LOG_STD], {}, reference.tanh_normal_entropy),
    "tanh_normal_entropy/wide": ([3 * LOC, LOG_STD + 3], {}, reference.tanh_normal_entropy),
    "era_gaussian": ([RAW], {"target_entropy": -2.5}, reference.era_gaussian),
    "era_gaussian/floor": ([RAW], {"target_entropy": -2.5, "mode": "floor"}, reference.era_gaussian),
    "era_gaussian/slack": (
        [RAW],
        {"target_entropy": -2.5, "mode": "floor", "slack": -0.5},
        reference.era_gaussian,
    ),
    "era_gaussian/array": ([RAW], {"target_entropy": TARGETS}, reference.era_gaussian),
    "project_gaussian": ([RAW], {"target_entropy": 4.0}, reference.project_gaussian),
    "era_truncated_normal": ([LOC, RAW], {"target_entropy": -2.5}, reference.era_truncated_normal),
    "era_truncated_normal/floor": (
        [LOC, RAW],
        {"target_entropy": -2.5, "mode": "floor"},
        reference.era_truncated_normal,
    ),
    "era_truncated_normal/slack": (
        [LOC, RAW],
        {"target_entropy": -2.5, "mode": "floor", "slack": -0.5},
        reference.era_truncated_normal,
    ),
    "era_truncated_normal/wide": (
        [2 * LOC, RAW],
        {"target_entropy": 3.0, "log_std_min": -5.0, "log_std_max": 2.0, "low": -2.5, "high": 3.0},
        reference.era_truncated_normal,
    ),
    "era_truncated_normal/array": ([LOC, RAW], {"target_entropy": TARGETS}, reference.era_truncated_normal),
    "era_softmax": ([RAW], {"min_entropy": 0.6}, reference.era_softmax),
    "era_softmax/paper": ([RAW], {"min_entropy": 0.6, "floor": "paper"}, reference.era_softmax),
    "era_softmax/calibrated-inverse": ([RAW], {"min_entropy": 0.6, "inverse": "paper"}, reference.era_softmax),
    "era_softmax/inverse": (
        [RAW],
        {"min_entropy": 0.6, "floor": "paper", "inverse": "paper"},
        reference.era_softmax,
    ),
}


def reference_call(function, options):
    """The reference under our argument names: its targets are called `target`."""
    renamed = {{"target_entropy": "target"}.get(name, name): value for name, value in options.items()}
    return lambda *arrays: function(*arrays, **renamed)


def numerical_gradients(function, arrays):
    """Gradients of the weighted sum, by Richardson's extrapolation of central differences: error ~ 1e-10."""
    gradients = []
    for which in range(len(arrays)):
        gradient = np.zeros_like(arrays[which])
        for index in np.ndindex(gradient.shape):

            def at(step, which=which, index=index):
                moved = [a.copy() for a in arrays]
                moved[which][index] += step
                out = function(*moved)
                return (out * weights(out.shape)).sum()

            coarse, fine = ((at(h) - at(-h)) / (2 * h) for h in (1e-3, 5e-4))
            gradient[index] = (4 * fine - coarse) / 3
        gradients.append(gradient)
    return gradients


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A public function's name, inputs and options, with the reference, its value and its gradients."""
    arrays, options, function = CASES[request.param]
    expected = reference_call(function, options)
    return request.param, arrays, options, expected, expected(*arrays), numerical_gradients(expected, arrays)


def ours(backend, name, options):
    """Our function with its options bound, arrays in the backend's type."""
    function = getattr(backend.functional, name.split("/")[0])
    options = {k: backend.array(v, "float64") if isinstance(v, np.ndarray) else v for k, v in options.items()}
    return lambda *arrays: function(*arrays, **options)


def test_float64(backend, case):
    name, arrays, options, _, value, gradients = case
    out, grads = backend.value_and_grads(
        ours(backend, name, options), *(backend.array(a, "float64") for a in arrays)
    )
    tolerance = 5e-10 if name.startswith("tanh_normal_entropy") else 1e-10
    np.testing.assert_allclose(out, value, rtol=0, atol=tolerance)
    for grad, expected in zip(grads, gradients, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-7)


def test_float32_is_as_good_as_its_own_rounding(backend, case):
    """At the rounded inputs the error against the reference is of the size of the rounding error of the inputs."""
    name, arrays, options, expected, _, _ = case
    rounded = [a.astype(np.float32) for a in arrays]
    options32 = {k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    out = ours(backend, name, options32)(*(backend.array(a, "float32") for a in rounded))
    assert str(out.dtype).endswith("float32") or any(isinstance(v, np.ndarray) for v in options.values())
    value = expected(*(a.astype(np.float64) for a in rounded))
    scale = np.finfo(np.float32).eps * (1 + np.abs(value).max())
    np.testing.assert_allclose(backend.numpy(out), value, rtol=0, atol=16 * scale)


def test_era_gaussian_batch(backend):
    function = backend.functional.era_gaussian_batch
    expected = reference.era_gaussian_batch(RAW, -2.5)
    log_std, statistic = function(backend.array(RAW, "float64"), -2.5)
    np.testing.assert_allclose(backend.numpy(log_std), expected, atol=1e-10)
    again, _ = function(backend.array(RAW[:2], "float64"), -2.5, log_mean_exp_sum=statistic)
    np.testing.assert_allclose(backend.numpy(again), expected[:2], atol=1e-10)
    _, (grad,) = backend.value_and_grads(lambda raw: function(raw, -2.5)[0], backend.array(RAW, "float64"))
    (expected_grad,) = numerical_gradients(lambda raw: reference.era_gaussian_batch(raw, -2.5), [RAW])
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=1e-7)


def test_clamped_share(backend):
    targets = backend.array([0.0, 8.0, 9.0, 20.0], "float32")
    assert float(backend.functional.clamped_share(targets, 6)) == 0.5
    assert float(backend.functional.clamped_share(targets, 6, log_std_max=0.5)) == 0.25


@pytest.mark.parametrize("dim", [0, 1])
def test_dim_is_only_a_transposition(backend, dim):
    raw = backend.array(RAW if dim else RAW.T, "float64")
    each = backend.array(TARGETS, "float64")
    for name, argument in (
        ("era_gaussian", -2.5),
        ("era_gaussian", each),
        ("era_softmax", 0.6),
        ("project_gaussian", 4.0),
        ("project_gaussian", each + 8.0),
    ):
        out = backend.numpy(getattr(backend.functional, name)(raw, argument, dim=dim))
        last = backend.numpy(getattr(backend.functional, name)(backend.array(RAW, "float64"), argument))
        np.testing.assert_allclose(out if dim else out.T, last, rtol=0, atol=1e-14)


def test_a_scalar_has_no_axis_to_project(backend):
    with pytest.raises(ValueError, match=r"log_std of shape \(\) has no axis -1"):
        backend.functional.project_gaussian(backend.array(0.0), 0.5)


@pytest.mark.parametrize("log_std_min", [-8.0, pytest.param(-50.0, marks=pytest.mark.slow)])
def test_one_step_of_the_truncated_head_is_as_good_as_its_rounding(backend, log_std_min):
    """Single precision takes one step from a fitted start where σ ≤ 1: value and slopes over the whole range."""
    distance = np.concatenate([np.linspace(0, 1, 101), np.geomspace(1e-4, 1, 101)])
    loc = (1 - distance).astype(np.float32).astype(np.float64)
    log_std = np.concatenate([np.linspace(-3, -1e-3, 120), np.linspace(-7.9, -3, 30)])[:, None]
    entropy = reference.truncated_normal_entropy(loc, log_std)  # with a partner that takes up the rest of H0
    loc, entropy = np.broadcast_to(loc, entropy.shape).ravel(), entropy.ravel()
    most = reference.truncated_normal_entropy(loc, 0.0)
    pair, share = np.stack([loc, np.zeros_like(loc)], -1), (most - entropy) / 10
    raw = np.stack([np.log(share), np.log1p(-share)], -1)
    target = most + reference.truncated_normal_entropy(0.0, 0.0) - 10

    def head(dtype):
        call = lambda a, b: backend.functional.era_truncated_normal(  # noqa: E731
            a, b, backend.array(target, dtype), log_std_min=log_std_min
        )
        return backend.value_and_grads(call, backend.array(pair, dtype), backend.array(raw, dtype))

    (out, grads), (expected, exact) = head("float32"), head("float64")
    wanted = reference.truncated_normal_entropy(loc, expected[:, 0])
    np.testing.assert_allclose(reference.truncated_normal_entropy(loc, out[:, 0]), wanted, rtol=0, atol=2e-6)
    for grad, value in zip(grads, exact, strict=True):
        np.testing.assert_allclose(grad, value, rtol=1e-4, atol=1e-6 * abs(value).max())
