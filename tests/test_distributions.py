"""Policies: densities that integrate to one, entropies, samples and their gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import special, stats

import reference
from entropyfloor.jax import distributions as J
from entropyfloor.torch import distributions as T

KINDS = ("TanhNormal", "TruncatedNormal")
LOC, SCALE = np.array([-0.9, 0.0, 0.5, 1.0]), np.array([0.05, 0.3, 1.0, 0.7])
both = pytest.mark.parametrize("framework", ["torch", "jax"])
kinds = pytest.mark.parametrize("kind", KINDS)


def build(framework, kind, loc=LOC, scale=SCALE, dtype="float64", *bounds):
    if framework == "torch":
        return getattr(T, kind)(*(torch.tensor(x, dtype=getattr(torch, dtype)) for x in (loc, scale)), *bounds)
    return getattr(J, kind)(*(jnp.asarray(x, dtype) for x in (loc, scale)), *bounds)


def array(framework, x, dtype="float64"):
    return torch.tensor(x, dtype=getattr(torch, dtype)) if framework == "torch" else jnp.asarray(x, dtype)


def samples(framework, policy, count, seed=0):
    if framework == "torch":
        torch.manual_seed(seed)
        value, log_prob = policy.rsample_and_log_prob(torch.Size((count,)))
    else:
        value, log_prob = policy.sample_and_log_prob(seed=jax.random.key(seed), sample_shape=(count,))
    return value, log_prob


@both
@kinds
def test_density_integrates_to_one(framework, kind):
    x = np.tanh(np.linspace(-12, 12, 40_001))
    for loc, scale in zip(LOC, SCALE, strict=True):
        policy = build(framework, kind, [loc], [scale])
        p = np.exp(np.asarray(policy.log_prob(array(framework, x[:, None]))))
        assert np.trapezoid(p, x) == pytest.approx(1, abs=1e-5)


@both
@kinds
def test_parameters_may_be_numbers(framework, kind):
    policy = getattr({"torch": T, "jax": J}[framework], kind)(array(framework, LOC), 0.3)
    assert float(policy.entropy()) == float(build(framework, kind, scale=np.full(4, 0.3)).entropy())


@both
@kinds
def test_entropy_is_that_of_the_bounded_policy(framework, kind):
    policy = build(framework, kind)
    exact = {"TanhNormal": reference.tanh_normal_entropy, "TruncatedNormal": reference.truncated_normal_entropy}
    entropy = float(policy.entropy())
    assert entropy == pytest.approx(exact[kind](LOC, np.log(SCALE)).sum(), abs=1e-9)
    value, log_prob = samples(framework, policy, 200_000)
    log_prob = np.asarray(log_prob)
    error = 4 * log_prob.std() / np.sqrt(log_prob.size)
    assert abs(entropy + log_prob.mean()) < error
    assert error < 0.03
    # The log-density of the sample is the density at the sample, wherever tanh has not saturated.
    inside = (np.abs(np.asarray(value)) < 1 - 1e-9).all(-1)
    np.testing.assert_allclose(np.asarray(policy.log_prob(value))[inside], log_prob[inside], atol=1e-5)


@both
@kinds
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_prob_is_finite_at_and_near_the_bounds(framework, kind, dtype):
    edge = np.nextafter(np.array(1, dtype), 0, dtype=dtype)
    policy = build(framework, kind, np.zeros(1), np.full(1, 0.3), dtype)
    at = array(framework, np.array([[-1], [-edge], [edge], [1]], dtype), dtype)
    assert np.isfinite(np.asarray(policy.log_prob(at))).all()


DTYPES = ("float16", "bfloat16", "float32", "float64")


def typed(framework, kind, loc, scale, dtypes, *bounds):
    loc, scale = (array(framework, [x], dtype) for x, dtype in zip((loc, scale), dtypes, strict=True))
    return getattr(T if framework == "torch" else J, kind)(loc, scale, *bounds)


@both
@kinds
@pytest.mark.parametrize("value", DTYPES)
def test_log_prob_is_finite_for_every_mixture_of_dtypes(framework, kind, value):
    at = array(framework, [[-1.0], [-0.999999999], [0.5], [0.999999999], [1.0]], value)
    exact = float(build(framework, kind, [0.25], [0.5]).log_prob(array(framework, [0.5])))
    for dtypes in itertools.product(DTYPES, DTYPES):
        log_prob = typed(framework, kind, 0.25, 0.5, dtypes).log_prob(at)
        wide = "float64" if "float64" in (*dtypes, value) else "float32"
        assert str(log_prob.dtype).removeprefix("torch.") == wide
        assert np.isfinite(np.asarray(log_prob)).all(), dtypes
        assert float(log_prob[2]) == pytest.approx(exact, abs=1e-6)


@both
@pytest.mark.parametrize("value", DTYPES)
@pytest.mark.parametrize("parameters", ["bfloat16", "float32", "float64"])
def test_the_support_ends_where_a_dtype_rounds_its_bounds(framework, parameters, value):
    """0.1 and 0.7 are rounded up in some precisions and down in others; samples can lie on them."""
    low, high = 0.1, 0.7
    policy = typed(framework, "TruncatedNormal", 0.3, 0.5, (parameters, parameters), low, high)
    own = np.float64 if parameters == "float64" else np.float32
    for inside in (low, high, float(own(low)), float(own(high))):
        assert np.isfinite(float(policy.log_prob(array(framework, [inside], value))))
    for outside in (0.05, 0.75, -60_000.0, np.inf):
        assert float(policy.log_prob(array(framework, [outside], value))) == -np.inf


@both
def test_truncation_excludes_what_is_outside(framework):
    policy = build(framework, "TruncatedNormal", [0.0], [0.5])
    if framework == "torch":
        checked = T.TruncatedNormal(policy.loc, policy.scale, validate_args=True)
        with pytest.raises(ValueError, match="support"):
            checked.log_prob(array(framework, [1.5]))
        unchecked = T.TruncatedNormal(policy.loc, policy.scale, validate_args=False)
        assert float(unchecked.log_prob(array(framework, [1.5]))) == -np.inf
    assert float(policy.log_prob(array(framework, [1.5]))) == -np.inf
    outside = build(framework, "TruncatedNormal", [3.0], [0.5])
    clamped = build(framework, "TruncatedNormal", [1.0], [0.5])
    assert float(outside.entropy()) == float(clamped.entropy())


@both
@pytest.mark.parametrize("bounds", [(-math.inf, 1.0), (-1.0, math.inf), (-math.inf, math.inf)])
def test_truncation_needs_finite_bounds(framework, bounds):
    with pytest.raises(ValueError, match="must be finite"):
        build(framework, "TruncatedNormal", [0.0], [0.5], "float64", *bounds)


@both
@pytest.mark.parametrize("bound", [-1.0, 1.0])
def test_the_gradient_by_a_loc_on_a_bound_is_that_from_inside(framework, bound):
    """`dH/dμ = ∓φ(0)/σ`, as the other bound is far away."""
    if framework == "torch":
        loc = torch.tensor([bound], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(T.TruncatedNormal(loc, 0.1).entropy(), loc)
    else:
        grad = jax.grad(lambda loc: J.TruncatedNormal(loc, jnp.asarray(0.1)).entropy())(jnp.asarray([bound]))
    assert float(grad[0]) == pytest.approx(-bound * stats.norm.pdf(0) / 0.1)


@both
def test_the_density_at_nan_is_nan(framework):
    """A loss that uses it is not finite then, which is noticed."""
    policy = build(framework, "TruncatedNormal", [0.0, 0.0], [0.5, 0.5])
    assert math.isnan(float(policy.log_prob(array(framework, [math.nan, 0.0]))))


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mean_of_a_truncated_normal_is_that_of_scipy(framework, dtype):
    """With bounds 0.5 and 3, at loc on them and between, and scales from 1e-4 to e³."""
    loc, scale = np.meshgrid([0.5, 0.6, 1.75, 2.999, 3.0], [1e-4, 0.01, 0.3, 1.0, 5.0, 20.0])
    exact = stats.truncnorm.mean((0.5 - loc) / scale, (3.0 - loc) / scale, loc, scale)
    policy = build(framework, "TruncatedNormal", loc, scale, dtype, 0.5, 3.0)
    mean = policy.mean if framework == "torch" else policy.mean()
    np.testing.assert_allclose(np.asarray(mean), exact, rtol=1e-6 if dtype == "float32" else 1e-9)


def test_the_gradient_of_the_mean_is_that_of_the_variance():
    """d mean / d loc = variance / scale², also where loc is in the middle, as before training."""
    loc, scale = (x.ravel() for x in np.meshgrid([-1.0, -0.5, 0.0, 0.5, 1.0], [0.01, 0.3, 1.0, 5.0]))
    exact = stats.truncnorm.var((-1 - loc) / scale, (1 - loc) / scale, loc, scale) / scale**2
    ours = torch.tensor(loc, requires_grad=True)
    grad = torch.autograd.grad(T.TruncatedNormal(ours, torch.tensor(scale)).mean.sum(), ours)[0]
    middle = np.abs(loc) < 1  # at the bounds loc is clamped
    np.testing.assert_allclose(grad.numpy()[middle], exact[middle], rtol=1e-6)
    in_jax = jax.grad(lambda x: J.TruncatedNormal(x, jnp.asarray(scale)).mean().sum())(jnp.asarray(loc))
    np.testing.assert_allclose(np.asarray(in_jax)[middle], exact[middle], rtol=1e-6)


def test_a_policy_in_jax_needs_an_axis_of_actions():
    with pytest.raises(ValueError, match="the last axis is the action"):
        J.TruncatedNormal(0.0, 1.0).entropy()


@both
@kinds
def test_mode_is_what_acts_in_evaluation(framework, kind):
    policy = build(framework, kind)
    mode = policy.mode if framework == "torch" else policy.mode()
    np.testing.assert_allclose(np.asarray(mode), np.tanh(LOC) if kind == "TanhNormal" else LOC)


@both
@kinds
def test_samples_carry_gradients_to_both_parameters(framework, kind):
    """Against central differences at the same random numbers."""
    loc, scale = LOC[1:3], SCALE[1:3]

    def total(loc, scale):
        return float(np.asarray(samples(framework, build(framework, kind, loc, scale), 50)[0]).sum())

    h = 1e-6
    expected = [
        np.array([(total(loc + h * e, scale) - total(loc - h * e, scale)) / (2 * h) for e in np.eye(2)]),
        np.array([(total(loc, scale + h * e) - total(loc, scale - h * e)) / (2 * h) for e in np.eye(2)]),
    ]
    if framework == "torch":
        leaves = [torch.tensor(x, requires_grad=True) for x in (loc, scale)]
        grads = torch.autograd.grad(samples("torch", getattr(T, kind)(*leaves), 50)[0].sum(), leaves)
    else:
        grads = jax.grad(lambda m, s: samples("jax", getattr(J, kind)(m, s), 50)[0].sum(), argnums=(0, 1))(
            jnp.asarray(loc), jnp.asarray(scale)
        )
    for grad, value in zip(grads, expected, strict=True):
        np.testing.assert_allclose(np.asarray(grad), value, rtol=1e-5)


@kinds
def test_extreme_parameters_give_finite_samples_and_gradients(kind):
    loc = torch.tensor([1.0, -1.0, 0.0, 0.999] * 50, requires_grad=True)
    scale = torch.tensor([3e-4, 1e-2, 1.0, 7.0] * 50, requires_grad=True)
    torch.manual_seed(0)
    value, log_prob = getattr(T, kind)(loc, scale).rsample_and_log_prob(torch.Size((500,)))
    assert (value.abs() <= 1).all()
    assert log_prob.isfinite().all()
    for grad in torch.autograd.grad(value.sum() + log_prob.sum(), (loc, scale)):
        assert grad.isfinite().all()


@kinds
def test_policies_pass_through_jax_transformations(kind):
    @jax.jit
    def entropies(loc, scale):
        return jax.vmap(lambda m, s: getattr(J, kind)(m, s))(loc, scale)

    loc, scale = jnp.asarray(LOC)[:, None], jnp.asarray(SCALE)[:, None]
    policy = entropies(loc, scale)
    np.testing.assert_allclose(policy.entropy(), getattr(J, kind)(loc, scale).entropy())


# --- Normal and Categorical, in JAX only -----------------------------------------------------------------


def normal(seed=0):
    rng = np.random.default_rng(seed)
    loc, scale = rng.normal(size=(5, 3)), np.exp(rng.normal(size=(5, 3)))
    return J.Normal(jnp.asarray(loc), jnp.asarray(scale)), loc, scale


def categorical(seed=0):
    logits = 2 * np.random.default_rng(seed).normal(size=(5, 4))
    return J.Categorical(jnp.asarray(logits)), special.softmax(logits, -1)


def test_normal_is_that_of_scipy():
    policy, loc, scale = normal()
    value = loc + 3 * np.random.default_rng(1).normal(size=(7, 5, 3))
    np.testing.assert_allclose(policy.log_prob(value), stats.norm.logpdf(value, loc, scale).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(), stats.norm.entropy(loc, scale).sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(policy.mode(), loc)
    assert J.Normal(jnp.zeros((2, 3)), jnp.ones(())).entropy() == pytest.approx([4.2568156] * 2)  # one σ for all


def test_categorical_is_that_of_scipy():
    policy, p = categorical()
    for k in range(4):
        np.testing.assert_allclose(policy.log_prob(jnp.full(5, k)), np.log(p[:, k]), rtol=1e-12)
    np.testing.assert_allclose(policy.log_prob(jnp.arange(4)[:, None]), np.log(p).T, rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(), [stats.entropy(row) for row in p], rtol=1e-12)
    np.testing.assert_array_equal(policy.mode(), p.argmax(-1))
    assert policy.mode().dtype == jnp.int32


@pytest.mark.parametrize("make", [normal, categorical])
def test_samples_have_the_log_prob_and_the_entropy(make):
    policy = make()[0]
    key, n = jax.random.key(1), 40_000
    value, log_prob = policy.sample_and_log_prob(seed=key, sample_shape=(n,))
    np.testing.assert_array_equal(value, policy.sample(seed=key, sample_shape=(n,)))
    np.testing.assert_allclose(log_prob, policy.log_prob(value), rtol=1e-9, atol=1e-12)
    value, log_prob = np.asarray(value), np.asarray(log_prob)
    error = log_prob.std(axis=0) / math.sqrt(n)
    np.testing.assert_array_less(abs(-np.mean(log_prob, axis=0) - policy.entropy()), 4.5 * error)
    if make is normal:
        _, loc, scale = make()
        np.testing.assert_array_less(abs(value.mean(0) - loc), 4.5 * scale / math.sqrt(n))
    else:
        assert value.dtype == np.int32
        _, p = make()
        shares = np.stack([(value == k).mean(0) for k in range(4)], -1)
        np.testing.assert_allclose(shares, p, atol=4.5 * 0.5 / math.sqrt(n))


def test_normal_samples_are_reparametrised():
    policy, loc, scale = normal()
    key = jax.random.key(2)
    sample = policy.sample(seed=key)
    by_loc, by_scale = jax.grad(lambda *parameters: J.Normal(*parameters).sample(seed=key).sum(), argnums=(0, 1))(
        loc, scale
    )
    np.testing.assert_array_equal(by_loc, 1.0)
    np.testing.assert_allclose(by_scale, (sample - loc) / scale, rtol=1e-12)


@pytest.mark.parametrize("make", [normal, categorical])
def test_distributions_pass_through_jit_and_vmap_and_half_precision(make):
    policy = make()[0]
    value = policy.mode()
    for function in (
        lambda policy: (policy.log_prob(value), policy.entropy(), policy.mode()),
        lambda policy: policy.sample_and_log_prob(seed=jax.random.key(0)),
    ):
        for eager, jitted in zip(function(policy), jax.jit(function)(policy), strict=True):
            np.testing.assert_allclose(jitted, eager, rtol=1e-12, atol=1e-14)
    rows = jax.vmap(lambda policy, value: policy.log_prob(value))(policy, value)
    np.testing.assert_allclose(rows, policy.log_prob(value), rtol=1e-12)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    value = half.mode()
    assert half.entropy().dtype == half.log_prob(value).dtype == jnp.float32
    np.testing.assert_array_equal(half.log_prob(value), wide.log_prob(value))


def test_categorical_at_its_edges():
    masked = J.Categorical(jnp.asarray([0.0, -jnp.inf, 0.0]))
    assert float(masked.entropy()) == pytest.approx(math.log(2))
    assert masked.log_prob(jnp.int32(1)) == -np.inf
    assert set(np.asarray(masked.sample(seed=jax.random.key(0), sample_shape=(100,)))) == {0, 2}
    assert np.isnan(masked.log_prob(jnp.asarray([-1, 3]))).all()
    with pytest.raises(ValueError, match="astype"):
        masked.log_prob(jnp.asarray(1.0))
