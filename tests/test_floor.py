"""The promise: entropy recomputed in float64 from what the function returned is never below its target."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from adversarial import locations, structured

DTYPES = ("float32", "float16", "bfloat16")


def check_continuous(backend, dtype, size, share, mode, seed):
    rng = np.random.default_rng(seed)
    raw = structured(size, rng)
    loc = locations(len(raw), size, rng)
    F = backend.functional
    for head, highest in (("gaussian", reference.LOG_SQRT_2PIE), ("truncated", 0.566)):
        target = size * (highest - 4 * share)
        inputs = [backend.array(x, dtype) for x in ((raw,) if head == "gaussian" else (loc, raw))]
        if head == "gaussian":
            log_std, grads = backend.value_and_grads(
                partial(F.era_gaussian, target_entropy=target, mode=mode), *inputs
            )
            entropy = reference.gaussian_entropy(log_std)
        else:
            log_std, grads = backend.value_and_grads(
                partial(F.era_truncated_normal, target_entropy=target, mode=mode), *inputs
            )
            entropy = reference.truncated_normal_entropy(backend.numpy(inputs[0]), log_std).sum(-1)
        assert np.isfinite(log_std).all()
        assert all(np.isfinite(g).all() for g in grads)
        assert (log_std >= -8).all()
        assert (log_std <= 1e-6).all()
        assert (entropy >= target - 1e-5 * size).all(), (head, entropy.min() - target)
        if mode == "pin":
            free = (log_std > -8 + 1e-4).all(-1)
            np.testing.assert_allclose(entropy[free], target, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("mode", ["pin", "floor"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 6, 256, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 21))])
def test_continuous_floor(backend, dtype, size, mode):
    for share in (0.0, 0.3, 1.0):
        check_continuous(backend, dtype, size, share, mode, seed=size)


@given(st.integers(1, 40), st.floats(0, 2), st.sampled_from(["pin", "floor"]), st.integers(0, 2**31))
def test_continuous_floor_anywhere(size, share, mode, seed):
    from conftest import BACKENDS

    check_continuous(BACKENDS["torch"], "float32", size, share, mode, seed)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("rows", [(), (5,)])
def test_a_target_in_half_precision_is_met_as_one_in_single(backend, dtype, rows):
    F, rng = backend.functional, np.random.default_rng(0)
    target = backend.array(np.full(rows, -3.09375), dtype)
    raw = backend.array(rng.normal(size=(5, 6)), "float32")
    loc = backend.array(rng.uniform(-2, 1, size=(5, 6)), "float32")
    truncated = F.era_truncated_normal(loc, raw, target, low=-3.0, high=2.0, log_std_max=2.0)
    entropies = {
        "gaussian": reference.gaussian_entropy(backend.numpy(F.era_gaussian(raw, target))),
        "truncated": backend.numpy(F.truncated_normal_entropy(loc, truncated, low=-3.0, high=2.0)).sum(-1),
    }
    for head, entropy in entropies.items():
        np.testing.assert_allclose(entropy, -3.09375, rtol=0, atol=2e-5, err_msg=head)


def check_discrete(backend, dtype, n, min_entropy, options, seed):
    logits = backend.array(structured(n, np.random.default_rng(seed)), dtype)
    out, (grad,) = backend.value_and_grads(
        lambda z: backend.functional.era_softmax(z, min_entropy, **options), logits
    )
    assert np.isfinite(out).all()
    assert np.isfinite(grad).all()
    assert (reference.categorical_entropy(out) >= min_entropy - 1e-4).all()
    rows, winners = np.arange(len(out)), backend.numpy(logits).argmax(-1)
    np.testing.assert_allclose(out[rows, winners], out.max(-1), rtol=3e-6)


@pytest.mark.parametrize("options", [{}, {"inverse": "paper"}, {"floor": "paper"}, {"tau": 2.72}, {"tau": 30.0}])
@pytest.mark.parametrize("n", [2, 3, 10, 1000, 10_000])
def test_discrete_floor(backend, n, options):
    tau = options.get("tau", 4.0)
    most = 1 + math.log(n * math.log(tau) / tau) if "floor" in options else math.log(n)
    for share in (0.05, 0.5, 0.95):
        for dtype in DTYPES:
            check_discrete(backend, dtype, n, share * most, options, seed=n)


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_discrete_floor_anywhere(n, share, seed):
    from conftest import BACKENDS

    check_discrete(BACKENDS["torch"], "float32", n, share * math.log(n), {}, seed)


def test_argmax_is_kept_where_the_gap_can_be_resolved(backend):
    logits = np.random.default_rng(0).normal(size=(500, 10))
    for options in ({}, {"floor": "paper"}, {"inverse": "paper"}):
        out = backend.numpy(backend.functional.era_softmax(backend.array(logits, "float32"), 0.6, **options))
        top = np.sort(logits, -1)
        clear = top[:, -1] - top[:, -2] > 1e-5
        np.testing.assert_array_equal(out.argmax(-1)[clear], logits.argmax(-1)[clear])


def test_the_calibrated_floor_is_reached(backend):
    """The one-hot limit has exactly the entropy of the floor."""
    out = backend.functional.era_softmax(backend.array(1e4 * np.eye(10)[:1], "float64"), 0.6)
    np.testing.assert_allclose(reference.categorical_entropy(backend.numpy(out)), 0.6, atol=1e-9)


# --- masked and infinite logits --------------------------------------------------------------------------

MASKED = [{}, {"inverse": "paper"}, {"floor": "paper"}, {"tau": 6.0}]


def masks(rows, n, rng):
    """One mask per row, from all classes to one."""
    return np.stack([rng.permutation(n) < max(1, n - i * n // rows) for i in range(rows)])


@pytest.mark.parametrize("options", MASKED, ids=str)
@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_classes_that_are_masked_do_not_exist(backend, options, n):
    rng = np.random.default_rng(n)
    logits = structured(n, rng).clip(-40, 40)
    mask, min_entropy = masks(len(logits), n, rng), 0.6 if n > 2 else 0.3
    expected = reference.era_softmax(logits, min_entropy, mask=mask, **options)
    allowed = backend.array(mask, "float64") > 0
    for dtype, tolerance in (("float64", 1e-9), ("float32", 3e-5)):
        z = backend.array(logits, dtype)
        out = backend.numpy(backend.functional.era_softmax(z, min_entropy, mask=allowed, **options))
        assert np.isneginf(out[~mask]).all()
        np.testing.assert_allclose(out[mask], expected[mask], atol=tolerance)
        # as low as the floor, or all that the classes which are left have
        least = np.minimum(min_entropy, np.log(mask.sum(-1)))
        assert (reference.categorical_entropy(out) >= least - 1e-5).all()


def test_a_row_without_any_class_gets_minus_infinity(backend):
    z = backend.array(np.zeros((2, 3)), "float32")
    allowed = backend.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], "float32") > 0
    out = backend.numpy(backend.functional.era_softmax(z, 0.6, mask=allowed))
    assert np.isfinite(out[0]).all()
    assert np.isneginf(out[1]).all()


def test_a_mask_along_another_axis_and_for_all_rows(backend):
    logits, mask = np.random.default_rng(0).normal(size=(3, 5, 2)), np.arange(5) != 2
    expected = reference.era_softmax(np.moveaxis(logits, 1, 2).reshape(6, 5), 0.6, mask=np.tile(mask, (6, 1)))
    allowed = backend.array(mask[:, None], "float64") > 0
    out = backend.functional.era_softmax(backend.array(logits), 0.6, dim=1, mask=allowed)
    np.testing.assert_allclose(np.moveaxis(backend.numpy(out), 1, 2).reshape(6, 5), expected, atol=1e-9)


def test_a_mask_of_everything_is_no_mask(backend):
    logits = backend.array(structured(10, np.random.default_rng(0)), "float32")
    masked = backend.functional.era_softmax(logits, 0.6, mask=logits == logits)
    np.testing.assert_allclose(
        backend.numpy(masked), backend.numpy(backend.functional.era_softmax(logits, 0.6)), rtol=1e-6
    )


@pytest.mark.parametrize("options", MASKED, ids=str)
def test_gradients_of_masked_logits_are_those_of_the_classes_that_are_left(backend, options):
    F, rng = backend.functional, np.random.default_rng(0)
    logits, mask = 3 * rng.normal(size=(6, 10)), masks(6, 10, rng)
    logits[0, 0], mask[5] = -np.inf, False  # neither is an impossible class or row
    allowed = backend.array(mask, "float64") > 0

    def loss(z):
        return F.entropy_from_logits(F.era_softmax(z, 0.6, mask=allowed, **options)[:5])

    _, (grad,) = backend.value_and_grads(loss, backend.array(logits))
    assert np.isfinite(grad).all()
    assert (grad[~mask] == 0).all()
    from conftest import BACKENDS

    torch = BACKENDS["torch"]  # JAX would compile for each number of classes
    for i in range(5):
        left = torch.array(logits[i : i + 1, mask[i]])
        if mask[i].sum() > 1 and i < 4:  # for which the floor is within reach
            alone = lambda z: torch.functional.entropy_from_logits(torch.functional.era_softmax(z, 0.6, **options))  # noqa: E731
            _, (expected,) = torch.value_and_grads(alone, left)
            weight = np.cos(1.7 * i + 0.3) / np.cos(0.3)  # `value_and_grads` weighs rows
            np.testing.assert_allclose(grad[i, mask[i]], weight * expected[0], atol=1e-9)


@pytest.mark.parametrize("excluded", [-np.inf, float(np.finfo(np.float32).min)])
def test_the_gradient_of_an_entropy_with_impossible_classes_is_finite_whatever_its_weight(backend, excluded):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = backend.value_and_grads(backend.functional.entropy_from_logits, backend.array(logits, "float32"))
    logits = np.concatenate([logits, np.full((4, 2), excluded, np.float32)], axis=1)
    for weight in (1.0, 1e6):
        value, (grad,) = backend.value_and_grads(
            lambda z, weight=weight: weight * backend.functional.entropy_from_logits(z),
            backend.array(logits, "float32"),
        )
        np.testing.assert_allclose(value, weight * expected[0], rtol=1e-6)
        np.testing.assert_allclose(grad[:, :5], weight * expected[1][0], rtol=1e-4, atol=1e-6 * weight)
        assert (grad[:, 5:] == 0).all()


def test_infinite_logits_without_a_mask(backend):
    """-inf has the value and gradient of a very small logit; +inf and NaN give NaN."""
    F, inf = backend.functional, np.inf
    logits = [[1.0, -inf, 0.0], [1.0, -1e4, 0.0], [1.0, inf, 0.0], [np.nan, 0.0, 0.0], [-inf, -inf, -inf]]
    out, (grad,) = backend.value_and_grads(lambda z: F.era_softmax(z, 0.6), backend.array(logits))
    np.testing.assert_array_equal(out[0], out[1])
    assert (reference.categorical_entropy(out[:2]) >= 0.6 - 1e-9).all()
    assert np.isfinite(grad[:2]).all()
    assert grad[0, 1] == 0
    assert np.isnan(out[2:]).all()
    z = backend.array(logits)
    with_mask = F.era_softmax(z, 0.6, mask=z == z)  # all that is not NaN
    np.testing.assert_array_equal(np.isnan(backend.numpy(with_mask)).any(-1), [False, False, True, False, True])


@pytest.mark.parametrize("size", [1, 6])
def test_floor_mode_spans_the_whole_range(backend, size):
    F, loc = backend.functional, backend.array(np.linspace(-0.9, 0.9, size)[None], "float64")
    target = -0.5 * size
    span = {
        "gaussian": (
            lambda m: F.gaussian_entropy(F.era_gaussian(m * (loc * 0 + 1), target, mode="floor")),
            size * reference.LOG_SQRT_2PIE,
        ),
        "truncated": (
            lambda m: F.truncated_normal_entropy(
                loc, F.era_truncated_normal(loc, m * (loc * 0 + 1), target, mode="floor")
            ).sum(-1),
            reference.truncated_normal_entropy(backend.numpy(loc), 0.0).sum(),
        ),
    }
    for entropy, most in span.values():
        at = [backend.numpy(entropy(backend.array([m], "float64"))).item() for m in (1e3, -1e3)]
        assert at == pytest.approx([target, most], abs=1e-9)
        _, (slope,) = backend.value_and_grads(entropy, backend.array([[0.0]], "float64"))
        assert abs(slope.sum() / np.cos(0.3)) >= 0.04 * (most - target)


def test_array_targets_are_clamped_to_what_is_feasible(backend):
    F, raw = backend.functional, backend.array(np.ones((2, 4)), "float32")
    target = backend.array([-2.0, 1e3], "float32")
    entropy = backend.numpy(F.gaussian_entropy(F.era_gaussian(raw, target)))
    assert entropy == pytest.approx([-2.0, 4 * reference.LOG_SQRT_2PIE], abs=1e-5)
    unclamped = backend.numpy(F.gaussian_entropy(F.era_gaussian(raw, target, clamp=False)))
    assert unclamped[1] == pytest.approx(1e3, rel=1e-5)
    log_std = F.era_truncated_normal(raw * 0.5, raw, target)
    assert backend.numpy(log_std)[1] == pytest.approx([0.0] * 4, abs=1e-5)
    log_std, _ = F.era_gaussian_batch(raw, backend.array(1e3, "float32"))
    assert backend.numpy(log_std) == pytest.approx(np.zeros((2, 4)), abs=1e-5)


def test_a_scalar_array_is_clamped_in_jax_even_if_it_is_numpys():
    from conftest import BACKENDS

    F, raw = BACKENDS["jax"].functional, np.ones((2, 4), np.float32)
    for log_std in (F.era_gaussian(raw, np.array(1e3)), F.era_gaussian_batch(raw, np.array(1e3))[0]):
        np.testing.assert_allclose(log_std, 0.0, atol=1e-5)


def test_what_cannot_be_promised_is_refused(backend):
    F, x = backend.functional, backend.array(np.zeros((2, 3)), "float32")
    integers = backend.array(np.zeros((2, 3)), "int32")
    for call, message in (
        (lambda: F.era_gaussian(x, 5.0), r"target_entropy=5.0 .* above 4\.25682.*lower the target or raise"),
        (lambda: F.era_gaussian(x, float("nan")), "target_entropy=nan"),
        (lambda: F.era_gaussian(x, -1.0, log_std_min=1.0), r"log_std_min=1.0 .* below log_std_max=0.0"),
        (lambda: F.era_gaussian(x, -1.0, mode="pni"), "mode='pni' must be 'pin' or 'floor'"),
        (lambda: F.era_gaussian(integers, -1.0), "raw_log_std has dtype .*int32"),
        (lambda: F.era_gaussian_batch(x[0], -1.0), r"no batch axis"),
        (
            lambda: F.era_gaussian_batch(x[:0], -1.0),
            r"raw_log_std of shape \(0, 3\) is an empty batch.*: pass log_mean_exp_sum",
        ),
        (lambda: F.era_truncated_normal(x, x, 1.8), r"target_entropy=1.8 .* above 1\.69828.*loc on a bound"),
        (lambda: F.era_truncated_normal(x, x[:, :2], -1.0), "must have the same shape"),
        (lambda: F.era_truncated_normal(x, x, -1.0, low=1.0, high=-1.0), "low=1.0 .* below high=-1.0"),
        (lambda: F.era_truncated_normal(x, x, -1.0, log_std_max=9.0), "narrow the bounds"),
        (lambda: F.era_truncated_normal(x, x, -1.0, log_std_min=-51.0), "narrow the bounds"),
        (lambda: F.project_gaussian(x, float("nan")), "target_entropy=nan"),
        (lambda: F.truncated_normal_entropy(x, x, low=1.0, high=-1.0), "low=1.0 .* below high=-1.0"),
        (lambda: F.truncated_normal_entropy(x, x, low=0.0, high=float("inf")), "high=inf must be finite"),
        # [batch, 1] would broadcast, and mix every state with every other's target
        (lambda: F.era_gaussian(x, x[:, :1]), r"target_entropy \(2, 1\) must be a scalar or of shape \(2,\)"),
        (lambda: F.era_gaussian(x, x[0]), r"target_entropy \(3,\) must be a scalar or of shape \(2,\)"),
        (lambda: F.era_truncated_normal(x, x, x[:, :1]), r"target_entropy \(2, 1\) must be"),
        (lambda: F.project_gaussian(x, x[:, :1]), r"target_entropy \(2, 1\) must be"),
        (lambda: F.era_gaussian_batch(x, x[:, 0]), r"target_entropy \(2,\) must be a scalar"),
        (lambda: F.era_softmax(x, 1.2), r"min_entropy=1.2 .*1\.09861.*choose a floor inside"),
        (lambda: F.era_softmax(x[:, :1], 0.1), "num_classes=1"),
        (lambda: F.era_softmax(x, 0.5, inverse="fast"), "inverse='fast'"),
        (lambda: F.era_softmax(integers, 0.5), "logits has dtype"),
        (lambda: F.era_gaussian(x, "-A/2"), r"target_entropy='-A/2' is text.*targets\.resolve"),
        (lambda: F.era_truncated_normal(x, x, None), "target_entropy=None is not a number"),
        (lambda: F.project_gaussian(x, [-1.0, -1.0]), r"target_entropy=\[-1.0, -1.0\] is not a number"),
        (lambda: F.era_softmax(x, "0.1"), "min_entropy='0.1' is text: pass a number$"),
        (lambda: F.era_softmax(x, x[:, 0]), "min_entropy .*: pass one number"),
        (
            lambda: F.era_truncated_normal(x, x, -1.0, low=-(x[0] ** 2), high=x[0] ** 2),
            r"low has the shape \(3,\)",
        ),
        (lambda: F.era_gaussian(x, -1.0, dim=5), r"raw_log_std of shape \(2, 3\) has no axis 5"),
        (lambda: F.era_truncated_normal(x[0, 0], x[0, 0], -1.0), r"loc of shape \(\) has no axis -1"),
        (lambda: F.era_softmax(x, 0.5, mask=x), "mask has dtype .*: pass booleans"),
        (
            lambda: F.era_softmax(x, 0.5, mask=(x == x)[:, :2]),
            r"mask \(2, 2\) must be of the shape of logits, \(2, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_empty_batch_needs_the_statistic_of_another(backend):
    F, none = backend.functional, backend.array(np.zeros((0, 3)), "float32")
    log_std, _ = F.era_gaussian_batch(none, -1.0, log_mean_exp_sum=backend.array(0.7, "float32"))
    assert log_std.shape == F.era_gaussian(none, -1.0).shape == (0, 3)


@pytest.mark.parametrize("target", [-2.5, 99.0])  # 99 is clamped, so that every σ is at its upper bound
def test_a_state_far_from_the_statistic_of_a_batch_leaves_values_and_gradients_finite(backend, target):
    raw = backend.array([[1e3, 0.0]], "float32")
    target, statistic = backend.array(target, "float32"), backend.array(0.0, "float32")
    log_std, (grad,) = backend.value_and_grads(
        lambda raw: backend.functional.era_gaussian_batch(raw, target, log_mean_exp_sum=statistic)[0], raw
    )
    assert np.isfinite(log_std).all()
    assert np.isfinite(grad).all()


def test_a_pin_between_high_bounds_of_sigma(backend):
    """Where the entropy in nats is below log σ_min."""
    F, loc = backend.functional, backend.array([[0.0, 0.3]])
    for target, expected in ((1.3855, 1.3855), (0.5, 1.384822)):  # what is out of reach is lifted to σ_min
        log_std = F.era_truncated_normal(loc, loc, target, log_std_min=0.8, log_std_max=2.0)
        entropy = reference.truncated_normal_entropy(backend.numpy(loc), backend.numpy(log_std)).sum()
        assert entropy == pytest.approx(expected, abs=2e-6)
