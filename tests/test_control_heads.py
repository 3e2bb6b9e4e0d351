"""Heads: from raw outputs to the policy that acts, each with the floor that it promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from entropyfloor.control.heads import MOMENTUM, CategoricalPolicy, GaussianPolicy, HeadState, promises_floor
from entropyfloor.jax.distributions import Normal, TanhNormal, TruncatedNormal

BOUNDS = {"log_std_min": -8.0, "log_std_max": 0.0}
FAMILIES = {"truncated": TruncatedNormal, "tanh": TanhNormal, "normal": Normal}
NO_FLOOR = ("tanh", "clip")
PAIRS = [
    (head, distribution)
    for head in ("tanh", "clip", "era", "era-batch", "era-exact", "era-floor", "projection")
    for distribution in FAMILIES
    if head != "era-exact" or distribution == "truncated"
]


def outputs(dim, n=1000):
    """Usual outputs of a network, and the worst it could say: up to ±1000 in any combination."""
    rng = np.random.default_rng(dim)
    scale = rng.choice([0.1, 1.0, 10.0, 1000.0], size=(2, n, 1))
    usual = scale * rng.normal(size=(2, n, dim))
    worst = rng.choice([-1e3, -1.0, 0.0, 1.0, 1e3], size=(2, n, dim))
    return (jnp.asarray(x) for x in np.concatenate([usual, worst], axis=1))


def mild_outputs(dim, n=100):
    """Outputs that leave every σ inside its bounds."""
    return (jnp.asarray(0.5 * x) for x in np.random.default_rng(0).normal(size=(2, n, dim)))


# --- promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.parametrize(("head", "distribution"), PAIRS)
def test_each_head_keeps_its_promise(head, distribution, dim):
    mean, raw = outputs(dim)
    for target in (-4.0 * dim, -0.5 * dim, 0.1 * dim):
        build = GaussianPolicy(head, distribution, action_dim=dim, target_entropy=target, **BOUNDS)
        policy = build(mean, raw)
        assert isinstance(policy, FAMILIES[distribution])
        np.testing.assert_array_equal(policy.loc, jnp.tanh(mean) if distribution == "truncated" else mean)
        log_std = np.log(np.asarray(policy.scale))
        assert (log_std >= BOUNDS["log_std_min"] - 1e-12).all()
        if head != "projection":  # which has no upper bound
            assert (log_std <= BOUNDS["log_std_max"] + 1e-12).all()
        gaussian = reference.gaussian_entropy(log_std)
        slack = 1e-5 * dim
        assert promises_floor(head) == (head not in (*NO_FLOOR, "era-batch"))
        if head in ("era-exact", "era-floor") and distribution == "truncated":
            entropy = reference.truncated_normal_entropy(policy.loc, log_std).sum(-1)
            assert entropy.min() >= target - slack
        elif head == "era-batch":
            assert gaussian.mean() >= target - slack
        elif head not in NO_FLOOR:
            assert gaussian.min() >= target - slack
        else:
            assert gaussian.min() < target  # no floor: or the outputs are not adversarial


@pytest.mark.parametrize(
    ("head", "distribution"), [p for p in PAIRS if p[0] not in ("tanh", "clip", "projection")]
)
def test_a_residual_is_added_to_the_target(head, distribution):
    # one extreme state has all of Eq. 36's M to itself, and the others are at their bounds
    mean, raw = mild_outputs(3) if head == "era-batch" else outputs(3)
    one, other = (
        GaussianPolicy(head, distribution, action_dim=3, target_entropy=target, **BOUNDS)
        for target in (-1.5, -1.2)
    )
    expected = np.asarray(other(mean, raw).scale)
    assert (np.asarray(one(mean, raw).scale) != expected).any()
    for residual in (0.3, jnp.asarray(0.3)):
        found = one(mean, raw, HeadState(residual_entropy=residual))
        np.testing.assert_allclose(found.scale, expected, rtol=1e-6)


def test_the_pinned_entropy_is_the_target():
    mean, raw = mild_outputs(4)
    exact = GaussianPolicy("era-exact", "truncated", action_dim=4, target_entropy=-2.0, **BOUNDS)
    np.testing.assert_allclose(exact(mean, raw).entropy(), -2.0, atol=1e-6)
    np.testing.assert_allclose(exact(mean, raw, HeadState(0.4)).entropy(), -1.6, atol=1e-6)
    era = GaussianPolicy("era", "truncated", action_dim=4, target_entropy=-2.0, **BOUNDS)
    policy = era(mean, raw)
    np.testing.assert_allclose(reference.gaussian_entropy(np.log(policy.scale)), -2.0, atol=1e-6)
    assert policy.entropy().max() < -2.0  # truncation takes from it: the floor was not under the acting policy


def test_outputs_in_bfloat16_keep_the_gradient_of_their_mean():
    exact = GaussianPolicy("era-exact", "truncated", action_dim=2, target_entropy=-1.0, **BOUNDS)
    mean, raw = jnp.full((1, 2), 4.0, jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    gradient = jax.grad(lambda mean: exact(mean, raw).loc.sum())(mean)
    np.testing.assert_allclose(gradient, 1 - np.tanh(4.0) ** 2, rtol=1e-2)  # tanh rounds to 1 in bfloat16


@pytest.mark.parametrize("distribution", ["truncated", "tanh"])
def test_above_the_floor_the_entropy_is_free(distribution):
    floor = GaussianPolicy("era-floor", distribution, action_dim=3, target_entropy=-1.5, **BOUNDS)
    raw = jnp.asarray([-30.0, -3.0, 30.0])[:, None] * jnp.ones(3)
    policy = floor(jnp.zeros((3, 3)), raw)
    np.testing.assert_allclose(policy.scale[0], 1.0, atol=1e-6)  # its upper bound
    promised = (
        policy.entropy() if distribution == "truncated" else reference.gaussian_entropy(np.log(policy.scale))
    )
    assert promised[0] > promised[1] + 0.1
    assert promised[1] > promised[2] + 0.1
    np.testing.assert_allclose(promised[2], -1.5, atol=1e-6)


def test_the_plain_head_runs_between_its_bounds():
    clip = GaussianPolicy("tanh", "tanh", action_dim=3, target_entropy=-1.5, log_std_min=-5.0, log_std_max=2.0)
    scale = clip(jnp.zeros(3), jnp.asarray([-1e3, 0.0, 1e3])).scale
    np.testing.assert_allclose(np.log(scale), [-5.0, -1.5, 2.0], atol=1e-12)


def test_the_hard_head_is_the_raw_output_between_its_bounds():
    hard = GaussianPolicy("clip", "normal", 4, target_entropy=-2.0, log_std_min=-5.0, log_std_max=2.0)
    raw = jnp.asarray([-1e3, -4.9, 1.9, 1e3])
    np.testing.assert_allclose(np.log(hard(jnp.zeros(4), raw).scale), [-5.0, -4.9, 1.9, 2.0], atol=1e-12)
    slope = jax.grad(lambda raw: hard(jnp.zeros(4), raw).entropy())(raw)
    np.testing.assert_allclose(slope, [0.0, 1.0, 1.0, 0.0], atol=1e-12)


def test_projection_leaves_alone_what_has_entropy_enough():
    rng = np.random.default_rng(0)
    mean, raw = (jnp.asarray(x) for x in rng.normal(size=(2, 200, 3)))
    options = {"action_dim": 3, "target_entropy": 0.0, "log_std_min": -5.0, "log_std_max": 2.0}
    plain, projected = (
        GaussianPolicy(head, "tanh", **options)(mean, raw).scale for head in ("tanh", "projection")
    )
    enough = reference.gaussian_entropy(np.log(plain)) >= 0.0
    assert 0 < enough.sum() < len(enough)
    np.testing.assert_array_equal(projected[enough], plain[enough])
    np.testing.assert_allclose(reference.gaussian_entropy(np.log(projected[~enough])), 0.0, atol=1e-9)


# --- what a head remembers -------------------------------------------------------------------------------


def batch_head(dim=3, target=-1.5, **options):
    return GaussianPolicy("era-batch", "truncated", action_dim=dim, target_entropy=target, **BOUNDS, **options)


def test_the_batch_head_is_eq_36():
    head = batch_head()
    mean, raw = outputs(3)
    found = np.log(head(mean, raw).scale)
    np.testing.assert_allclose(found, reference.era_gaussian_batch(raw, -1.5), rtol=1e-12, atol=1e-12)
    mean, raw = mild_outputs(3)
    entropy = reference.gaussian_entropy(np.log(head(mean, raw).scale))
    assert np.ptp(entropy) > 0.5  # states differ, on average the target is met
    assert entropy.mean() == pytest.approx(-1.5, abs=1e-12)
    given = HeadState(residual_entropy=jnp.asarray(0.2), log_mean_exp_sum=jnp.asarray(0.7))
    expected = reference.era_gaussian_batch(raw, -1.3, log_mean_exp_sum=0.7)
    np.testing.assert_allclose(np.log(head(mean, raw, given).scale), expected, rtol=1e-12, atol=1e-12)


def test_the_batch_head_takes_a_single_state_where_the_running_mean_is_known():
    head, state = batch_head(), HeadState(log_mean_exp_sum=jnp.asarray(1.3))
    mean, raw = mild_outputs(3)
    policy = head(mean[0], raw[0], state)
    assert policy.scale.shape == (3,)
    expected = reference.era_gaussian_batch(raw[:1], -1.5, log_mean_exp_sum=1.3)[0]
    np.testing.assert_allclose(np.log(policy.scale), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="no batch axis"):  # no batch, no statistic
        head(mean[0], raw[0])


def test_the_running_mean_follows_the_batches():
    head = batch_head()
    state = head.initial_state()
    np.testing.assert_allclose(state.log_mean_exp_sum, math.log(3), rtol=1e-6)  # that of outputs that are all 0
    assert state.residual_entropy is None
    running = 3.0
    for seed in range(4):
        raw = np.random.default_rng(seed).normal(size=(20, 3))
        state = head.observe(state, jnp.asarray(raw))
        running = (1 - MOMENTUM) * running + MOMENTUM * np.exp(raw).sum(-1).mean()
        np.testing.assert_allclose(state.log_mean_exp_sum, math.log(running), rtol=1e-6)
    state = head.observe(state, jnp.full((20, 3), 1e4))  # e^10000 would overflow
    np.testing.assert_allclose(state.log_mean_exp_sum, 1e4 + math.log(3 * MOMENTUM), rtol=1e-6)
    slope = jax.grad(lambda raw: head.observe(state, raw).log_mean_exp_sum)(jnp.ones((20, 3)))
    np.testing.assert_array_equal(slope, 0.0)


def test_the_other_heads_remember_nothing_but_what_they_are_given():
    era = GaussianPolicy("era", "tanh", action_dim=3, target_entropy=-1.5, **BOUNDS)
    assert era.initial_state() == HeadState()
    state = era.initial_state(residual_entropy=0.25)
    assert state.residual_entropy == 0.25
    assert state.residual_entropy.dtype == jnp.float32
    assert era.observe(state, jnp.ones((2, 3))) is state


def test_a_residual_out_of_reach_stops_at_the_largest_scale_unless_it_is_let_go():
    mean, raw = mild_outputs(3)
    state = HeadState(residual_entropy=jnp.asarray(9.0))
    for head in ("era", "era-floor", "era-batch"):
        clamped = GaussianPolicy(head, "tanh", action_dim=3, target_entropy=-1.5, **BOUNDS)
        np.testing.assert_allclose(clamped(mean, raw, state).scale, 1.0, rtol=1e-12)
    free = GaussianPolicy("era", "tanh", action_dim=3, target_entropy=-1.5, **BOUNDS, clamp=False)
    entropy = reference.gaussian_entropy(np.log(free(mean, raw, state).scale))
    np.testing.assert_allclose(entropy, 7.5, rtol=1e-12)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "distribution", "target", "message"),
    [
        ("eraexact", "truncated", -1.0, r"head='eraexact' must be one of tanh, clip, era"),
        ("era", "beta", -1.0, r"distribution='beta' must be one of truncated, tanh, normal"),
        ("era-exact", "tanh", -1.0, r"head='era-exact' is solved for distribution='truncated'"),
        ("era-exact", "normal", -1.0, r"head='era-exact' is solved for distribution='truncated'"),
        ("era-exact", "truncated", 2.0, r"target_entropy=2\.0 nats is above"),
        ("era-floor", "truncated", 2.0, r"target_entropy=2\.0 nats is above"),
        ("era", "truncated", 3.0, r"target_entropy=3\.0 nats is above"),
        ("era-batch", "truncated", 3.0, r"target_entropy=3\.0 nats is above"),
        ("era-floor", "tanh", 3.0, r"target_entropy=3\.0 nats is above"),
    ],
)
def test_what_cannot_be_promised_is_refused(head, distribution, target, message):
    with pytest.raises(ValueError, match=message):
        GaussianPolicy(head, distribution, action_dim=2, target_entropy=target, **BOUNDS)


def test_crossed_bounds_are_refused():
    with pytest.raises(ValueError, match=r"log_std_min=1\.0"):
        GaussianPolicy("tanh", "tanh", action_dim=2, target_entropy=-1.0, log_std_min=1.0, log_std_max=0.0)


@pytest.mark.parametrize("head", ["era", "era-exact"])
def test_a_pin_over_one_dimension_warns(head):
    options = {"action_dim": 1, "target_entropy": -0.5, **BOUNDS}
    with pytest.warns(UserWarning, match="one action dimension: use 'era-floor'"):
        GaussianPolicy(head, "truncated", **options)
    for free in ("era-floor", "era-batch"):  # and these do not: warnings are errors here
        GaussianPolicy(free, "truncated", **options)


# --- discrete actions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["softmax", "era", "era-exact"])
def test_the_floor_of_discrete_actions(head):
    logits = jnp.concatenate([x[:, :4] for x in outputs(4)])
    policy = CategoricalPolicy(head, num_actions=4, min_entropy=0.3)(logits)
    least = reference.categorical_entropy(policy.logits).min()
    if head == "softmax":
        np.testing.assert_array_equal(policy.logits, logits)
        assert least < 1e-6
    elif head == "era-exact":
        assert least == pytest.approx(0.3, abs=1e-6)
    else:
        assert least > 0.3 + 0.05  # as printed, Eq. 15 promises less than it keeps


@pytest.mark.parametrize(
    ("head", "floor", "message"),
    [
        ("era-batch", 0.3, "head='era-batch' must be one of softmax, era, era-exact for discrete actions"),
        ("era", 1.5, "min_entropy=1.5"),
    ],
)
def test_what_discrete_actions_cannot_promise_is_refused(head, floor, message):
    with pytest.raises(ValueError, match=message):
        CategoricalPolicy(head, num_actions=4, min_entropy=floor)
