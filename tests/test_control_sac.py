"""SAC: its losses, its heads, and that a run learns, stops and goes on as it says."""

import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import reference
from entropyfloor.control.agents.sac import SAC, actor_loss, alpha_loss, critic_loss, critic_target
from entropyfloor.control.config import ControlConfig
from entropyfloor.control.envs import make
from entropyfloor.control.heads import make_policy
from entropyfloor.control.networks import Critics, GaussianActor
from entropyfloor.control.replay import Transition
from entropyfloor.control.rollout import CHUNK, Evaluator
from entropyfloor.control.train import build_agent, resume, train
from entropyfloor.jax.distributions import TanhNormal, TruncatedNormal
from entropyfloor.runs import Run, read_run


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs on disk, so that a run that is resumed does not compile again."""
    path = tmp_path_factory.mktemp("cache")
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    for name, value in zip(names, (str(path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield path
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# --- losses ----------------------------------------------------------------------------------------------


def draw(seed=0, n=32):
    """Reward, terminated, two rows of values, log-densities."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), (rng.random(n) < 0.5).astype(float), rng.normal(size=(2, n)), rng.normal(size=n)


def test_the_losses_are_those_of_the_paper():
    reward, terminated, values, log_prob = draw()
    least = np.where(values[0] < values[1], values[0], values[1])
    target = critic_target(reward, terminated, jnp.asarray(values), log_prob, 0.3, 0.9)
    expected = np.where(terminated == 1, reward, reward + 0.9 * (least - 0.3 * log_prob))
    np.testing.assert_allclose(target, expected, rtol=1e-12)
    squares = sum(((values[k] - expected) ** 2).sum() / len(expected) for k in (0, 1))
    np.testing.assert_allclose(critic_loss(jnp.asarray(values), target), squares, rtol=1e-12)
    expected = np.mean(0.3 * log_prob) - np.mean(least)
    np.testing.assert_allclose(actor_loss(jnp.asarray(values), log_prob, 0.3), expected, rtol=1e-12)
    expected = -0.3 * (np.mean(log_prob) - 1.5)
    np.testing.assert_allclose(alpha_loss(jnp.log(0.3), jnp.asarray(log_prob), -1.5), expected, rtol=1e-12)


def test_nothing_follows_a_termination():
    reward, _, values, log_prob = draw()
    target = critic_target(reward, np.ones_like(reward), 1e6 * jnp.asarray(values), log_prob, 5.0, 0.9)
    np.testing.assert_array_equal(target, reward)


@pytest.mark.parametrize(("entropy", "sign"), [(-2.0, -1), (-1.0, 1)])
def test_alpha_grows_while_the_entropy_is_below_its_target(entropy, sign):
    _, _, _, log_prob = draw()
    log_prob = jnp.asarray(log_prob - log_prob.mean() - entropy)
    gradient = jax.grad(alpha_loss)(jnp.log(0.3), log_prob, -1.5)
    np.testing.assert_allclose(gradient, -0.3 * (-entropy - 1.5), rtol=1e-12)
    assert np.sign(gradient) == sign


def test_no_gradient_flows_where_the_losses_must_not_move():
    reward, terminated, values, log_prob = map(jnp.asarray, draw())

    def of_target(values, log_prob, alpha):
        return critic_loss(jnp.zeros_like(values), critic_target(reward, terminated, values, log_prob, alpha, 0.9))

    for gradient in jax.grad(of_target, argnums=(0, 1, 2))(values, log_prob, 0.3):
        np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(jax.grad(alpha_loss, argnums=1)(jnp.log(0.3), log_prob, -1.5), 0.0)


# --- an update -------------------------------------------------------------------------------------------

RATE, TAU, DISCOUNT, ALPHA, TARGET, BATCH = 0.1, 0.25, 0.9, 0.3, -1.0, 64


QUICK = {"xla_backend_optimization_level": 0}  # to compile, not to run


@functools.cache
def compiled(entropy):
    """A small agent and its update."""
    agent = small_agent(entropy)
    return agent, jax.jit(agent.update, compiler_options=QUICK)


def small_agent(entropy="auto"):
    """Smooth networks and plain gradient descent, so that an update is minus `RATE` times the gradient."""
    policy = make_policy("clip", "tanh", action_dim=2, target_entropy=TARGET, log_std_min=-3.0, log_std_max=1.0)
    return SAC(
        *(GaussianActor(2, (16,), "tanh"), Critics((16,), "tanh"), policy),
        *[optax.sgd(RATE)] * 3,
        entropy=entropy,
        target_entropy=TARGET,
        initial_alpha=ALPHA,
        discount=DISCOUNT,
        tau=TAU,
    )


def random_state(agent):
    """In float64 and far from the even start, the target critics apart from the critics."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: agent.init(jax.random.key(0), 3, 2))
    state = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shapes)
    return state._replace(log_alpha=np.log(ALPHA))


def random_batch(*shape, seed=2):
    rng = np.random.default_rng(seed)
    observation, following = rng.normal(size=(2, *shape, 3))
    terminated = (rng.random(shape) < 0.3).astype(float)
    action = rng.uniform(-1, 1, (*shape, 2))
    return Transition(observation, action, rng.normal(size=shape), terminated, following)


def step_along(tree, direction, size):
    return jax.tree.map(lambda x, v: x + size * v, tree, direction)


def distance(one, other):
    return math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs(one, other)))


def pairs(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def assert_descends(loss, before, after):
    """`after - before` is minus `RATE` times the gradient of `loss`: by central differences, three ways."""
    rng = np.random.default_rng(3)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), before)
        size = 1e-6
        slope = loss(step_along(before, direction, size)) - loss(step_along(before, direction, -size))
        moved = sum(float(((new - old) * v).sum()) for new, old, v in pairs(after, before, direction))
        assert moved == pytest.approx(-RATE * slope / (2 * size), rel=1e-5)


@pytest.mark.parametrize("entropy", ["auto", "fixed", "none"])
def test_an_update_descends_each_loss_and_the_targets_follow(entropy):
    agent, update = compiled(entropy)
    state, batch, key = random_state(agent), random_batch(BATCH), jax.random.key(7)
    new, metrics = jax.device_get(update(state, batch, key))
    next_key, actor_key = jax.random.split(key)
    alpha = 0.0 if entropy == "none" else ALPHA

    @jax.jit
    def sample(actor, observation, key):
        return agent.distribution(actor, observation).sample_and_log_prob(seed=key)

    action, log_prob = sample(state.actor, batch.next_observation, next_key)
    following = np.asarray(jax.jit(agent.values)(state.target_critics, batch.next_observation, action)).min(0)
    target = batch.reward + DISCOUNT * (1 - batch.terminated) * (following - alpha * np.asarray(log_prob))

    values = jax.jit(agent.values)

    def loss_of_critics(critics):
        rows = np.asarray(values(critics, batch.observation, batch.action))
        return sum(((row - target) ** 2).mean() for row in rows)

    def loss_of_actor(actor):
        action, log_prob = map(np.asarray, sample(actor, batch.observation, actor_key))
        return (alpha * log_prob - np.asarray(values(new.critics, batch.observation, action)).min(0)).mean()

    assert_descends(loss_of_critics, state.critics, new.critics)
    assert_descends(loss_of_actor, state.actor, new.actor)
    expected = {
        "loss/critic": loss_of_critics(state.critics),
        "loss/actor": loss_of_actor(state.actor),
        "q/mean": np.asarray(values(state.critics, batch.observation, batch.action)).mean(),
        "grad_norm/critic": distance(state.critics, new.critics) / RATE,
        "grad_norm/actor": distance(state.actor, new.actor) / RATE,
    }
    if entropy != "none":
        expected["alpha"] = math.exp(float(new.log_alpha))
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-6)

    _, log_prob = sample(state.actor, batch.observation, actor_key)
    # Haarnoja et al. (18): up by the shortfall of the entropy, times α as it is log α that is learned
    rise = RATE * ALPHA * (float(np.mean(log_prob)) + TARGET)
    assert abs(rise) > 1e-3
    moved = float(new.log_alpha) - float(state.log_alpha)
    assert moved == (pytest.approx(rise, rel=1e-5) if entropy == "auto" else 0.0)

    for old, towards, mixed in pairs(state.target_critics, new.critics, new.target_critics):
        np.testing.assert_allclose(mixed, (1 - TAU) * old + TAU * towards, rtol=1e-12, atol=1e-15)
        assert (mixed != old).any()


def test_many_updates_are_single_updates_in_a_row():
    agent, update = compiled("auto")
    state, batches, key = random_state(agent), random_batch(3, BATCH), jax.random.key(5)
    many, last = jax.jit(agent.update_many, compiler_options=QUICK)(state, batches, key)
    for i in range(3):
        state, metrics = update(state, Transition(*(x[i] for x in batches)), jax.random.fold_in(key, i))
    assert jax.tree.structure(many) == jax.tree.structure(state)
    for one, other in pairs((many, last), (state, metrics)):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)  # float64, but compiled apart


def test_the_target_critics_start_as_copies():
    agent = small_agent()
    state = jax.jit(agent.init, static_argnums=(1, 2))(jax.random.key(0), 3, 2)
    for one, other in pairs(state.critics, state.target_critics):
        np.testing.assert_array_equal(one, other)
    assert math.exp(state.log_alpha) == pytest.approx(ALPHA)


# --- heads -----------------------------------------------------------------------------------------------

BOUNDS = {"log_std_min": -8.0, "log_std_max": 0.0}
PAIRS = [
    (head, distribution)
    for head in ("clip", "era", "era-exact", "era-floor", "projection")
    for distribution in ("truncated", "tanh")
    if (head, distribution) != ("era-exact", "tanh")
]


def outputs(dim, n=1000):
    """Usual outputs of a network, and the worst it could say: up to ±1000 in any combination."""
    rng = np.random.default_rng(dim)
    scale = rng.choice([0.1, 1.0, 10.0, 1000.0], size=(2, n, 1))
    usual = scale * rng.normal(size=(2, n, dim))
    worst = rng.choice([-1e3, -1.0, 0.0, 1.0, 1e3], size=(2, n, dim))
    return (jnp.asarray(x) for x in np.concatenate([usual, worst], axis=1))


@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.parametrize(("head", "distribution"), PAIRS)
def test_each_head_keeps_its_promise(head, distribution, dim):
    mean, raw = outputs(dim)
    for target in (-4.0 * dim, -0.5 * dim, 0.1 * dim):
        build = make_policy(head, distribution, action_dim=dim, target_entropy=target, **BOUNDS)
        policy = build(mean, raw)
        assert isinstance(policy, TruncatedNormal if distribution == "truncated" else TanhNormal)
        np.testing.assert_array_equal(policy.loc, jnp.tanh(mean) if distribution == "truncated" else mean)
        log_std = np.log(np.asarray(policy.scale))
        assert (log_std >= BOUNDS["log_std_min"] - 1e-12).all()
        if head != "projection":  # which has no upper bound
            assert (log_std <= BOUNDS["log_std_max"] + 1e-12).all()
        gaussian = reference.gaussian_entropy(log_std)
        slack = 1e-5 * dim
        if head in ("era-exact", "era-floor") and distribution == "truncated":
            entropy = reference.truncated_normal_entropy(policy.loc, log_std).sum(-1)
            assert entropy.min() >= target - slack
        elif head != "clip":
            assert gaussian.min() >= target - slack
        else:
            assert gaussian.min() < target  # no floor: or the outputs are not adversarial


@pytest.mark.parametrize(("head", "distribution"), [p for p in PAIRS if p[0] not in ("clip", "projection")])
def test_a_residual_is_added_to_the_target(head, distribution):
    mean, raw = outputs(3)
    one, other = (
        make_policy(head, distribution, action_dim=3, target_entropy=target, **BOUNDS) for target in (-1.5, -1.2)
    )
    expected = np.asarray(other(mean, raw).scale)
    assert (np.asarray(one(mean, raw).scale) != expected).any()
    for residual in (0.3, jnp.asarray(0.3)):
        np.testing.assert_allclose(one(mean, raw, residual).scale, expected, rtol=1e-6)


def test_the_pinned_entropy_is_the_target():
    mean, raw = (0.5 * x for x in np.random.default_rng(0).normal(size=(2, 100, 4)))
    exact = make_policy("era-exact", "truncated", action_dim=4, target_entropy=-2.0, **BOUNDS)
    np.testing.assert_allclose(exact(jnp.asarray(mean), jnp.asarray(raw)).entropy(), -2.0, atol=1e-6)
    np.testing.assert_allclose(exact(jnp.asarray(mean), jnp.asarray(raw), 0.4).entropy(), -1.6, atol=1e-6)
    era = make_policy("era", "truncated", action_dim=4, target_entropy=-2.0, **BOUNDS)
    policy = era(jnp.asarray(mean), jnp.asarray(raw))
    np.testing.assert_allclose(reference.gaussian_entropy(np.log(policy.scale)), -2.0, atol=1e-6)
    assert policy.entropy().max() < -2.0  # truncation takes from it: the floor was not under the acting policy


@pytest.mark.parametrize("distribution", ["truncated", "tanh"])
def test_above_the_floor_the_entropy_is_free(distribution):
    floor = make_policy("era-floor", distribution, action_dim=3, target_entropy=-1.5, **BOUNDS)
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
    clip = make_policy("clip", "tanh", action_dim=3, target_entropy=-1.5, log_std_min=-5.0, log_std_max=2.0)
    scale = clip(jnp.zeros(3), jnp.asarray([-1e3, 0.0, 1e3])).scale
    np.testing.assert_allclose(np.log(scale), [-5.0, -1.5, 2.0], atol=1e-12)


def test_projection_leaves_alone_what_has_entropy_enough():
    rng = np.random.default_rng(0)
    mean, raw = (jnp.asarray(x) for x in rng.normal(size=(2, 200, 3)))
    options = {"action_dim": 3, "target_entropy": 0.0, "log_std_min": -5.0, "log_std_max": 2.0}
    plain, projected = (make_policy(head, "tanh", **options)(mean, raw).scale for head in ("clip", "projection"))
    enough = reference.gaussian_entropy(np.log(plain)) >= 0.0
    assert 0 < enough.sum() < len(enough)
    np.testing.assert_array_equal(projected[enough], plain[enough])
    np.testing.assert_allclose(reference.gaussian_entropy(np.log(projected[~enough])), 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("head", "distribution", "target", "message"),
    [
        ("eraexact", "truncated", -1.0, r"head='eraexact' must be one of clip, era"),
        ("era", "beta", -1.0, r"distribution='beta' must be one of truncated, tanh"),
        ("era-exact", "tanh", -1.0, r"head='era-exact' is solved for distribution='truncated'"),
        ("era-exact", "truncated", 2.0, r"target_entropy=2\.0 nats is above"),
        ("era-floor", "truncated", 2.0, r"target_entropy=2\.0 nats is above"),
        ("era", "truncated", 3.0, r"target_entropy=3\.0 nats is above"),
        ("era-floor", "tanh", 3.0, r"target_entropy=3\.0 nats is above"),
    ],
)
def test_what_cannot_be_promised_is_refused(head, distribution, target, message):
    with pytest.raises(ValueError, match=message):
        make_policy(head, distribution, action_dim=2, target_entropy=target, **BOUNDS)


def test_crossed_bounds_are_refused():
    with pytest.raises(ValueError, match=r"log_std_min=1\.0"):
        make_policy("clip", "tanh", action_dim=2, target_entropy=-1.0, log_std_min=1.0, log_std_max=0.0)


@pytest.mark.parametrize("head", ["era", "era-exact"])
def test_a_pin_over_one_dimension_warns(head):
    options = {"action_dim": 1, "target_entropy": -0.5, **BOUNDS}
    with pytest.warns(UserWarning, match="one action dimension: use 'era-floor'"):
        make_policy(head, "truncated", **options)
    make_policy("era-floor", "truncated", **options)  # and this one does not: warnings are errors here


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "axes", "bounds"),
    [
        ("sac", ("clip", "tanh", "auto"), (-5.0, 2.0)),
        ("sac-no-entropy", ("clip", "tanh", "none"), (-5.0, 2.0)),
        ("sac-era", ("era", "truncated", "none"), (-8.0, 0.0)),
        ("sac-era-exact", ("era-exact", "truncated", "none"), (-8.0, 0.0)),
    ],
)
def test_a_preset_stands_for_three_axes(agent, axes, bounds):
    config = ControlConfig(agent, "gym/Ant-v4", seed=4).resolved()
    assert (config.head, config.distribution, config.entropy) == axes
    assert (config.log_std_min, config.log_std_max) == bounds
    assert config.target_entropy == "-A/2"
    assert config.out == f"runs/gym-Ant-v4/{agent}/seed-4"
    assert config.resolved() == config


def test_what_is_said_overrides_the_preset():
    said = {
        "head": "era-floor",
        "distribution": "tanh",
        "entropy": "fixed",
        "target_entropy": "-3",
        "log_std_min": -6.0,
        "log_std_max": 0.0,  # not nothing, though it is 0
        "out": "here",
    }
    config = ControlConfig("sac", **said).resolved()
    assert {name: getattr(config, name) for name in said} == said
    assert ControlConfig("sac", log_std_max=0.0).resolved().log_std_max == 0.0
    assert ControlConfig("sac", head="projection").resolved().log_std_max == 2.0
    assert ControlConfig("sac", head="era-floor").resolved().log_std_max == 0.0


def test_the_target_follows_the_action_dimension():
    for rule, dim, expected in ((None, 6, -3.0), ("-A", 6, -6.0), ("-3", 2, -3.0), ("0.25*A", 2, 0.5)):
        config = ControlConfig("sac", hidden=4, target_entropy=rule).resolved()
        assert build_agent(config, dim).target_entropy == expected
    release = ControlConfig("sac-era", settings="release", hidden=4).resolved()
    assert build_agent(release, 6).target_entropy == 1.5
    assert ControlConfig("sac-era-exact", settings="release").resolved().target_entropy == "-A/2"
    with pytest.raises(ValueError, match="target entropy rule 'A/B' cannot be read"):
        build_agent(ControlConfig("sac", target_entropy="A/B").resolved(), 6)


def test_the_configured_residual_lifts_the_policy_and_not_what_is_promised():
    config = ControlConfig("sac-era-exact", hidden=4, residual_entropy=0.5).resolved()
    agent = build_agent(config, 4)
    assert agent.target_entropy == -2.0
    entropy = agent.policy(jnp.zeros((1, 4)), jnp.zeros((1, 4))).entropy()
    np.testing.assert_allclose(entropy, -1.5, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("steps", "hidden", "batch_size", "updates_per_step", "replay_capacity", "action_repeat"), (0, -1)),
        (("eval_every", "eval_episodes", "log_every", "checkpoint_every", "random_steps"), (0, -1)),
        (("seed", "threads"), (-1,)),
        (("tau", "discount"), (-0.1, 1.1, math.nan)),
        (("learning_rate", "alpha"), (0.0, -1.0, math.inf, math.nan)),
        (("residual_entropy",), (math.inf, math.nan)),
        (("weight_decay",), (-1.0, math.inf, math.nan)),
    ],
)
def test_a_number_out_of_range_is_named(names, values):
    for name in names:
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}={value} must be"):
                ControlConfig(**{name: value})


# --- runs ------------------------------------------------------------------------------------------------

LENGTH = 2000  # steps: some seconds, in which a signal arrives
TINY = {
    "hidden": 16,
    "batch_size": 16,
    "random_steps": 100,
    "log_every": 50,
    "eval_episodes": 1,
    "updates_per_step": 1,
}


def metrics_of(path):
    """What was logged, without the wall clock."""
    clock = ("seconds", "steps_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_run(path).lines]


def assert_same_run(one, other):
    assert metrics_of(one) == metrics_of(other)
    first, second = (Run.open(path).latest() for path in (one, other))
    assert (first.step, first.state) == (second.step, second.state)
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.dtype == second.arrays[name].dtype
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


RUNS = {
    # Pendulum's episodes take 200 steps
    "middle of an episode": {"env": "gym/Pendulum-v1", "agent": "sac", "steps": 600, "checkpoint_every": 450},
    "end of an episode": {"env": "gym/Pendulum-v1", "agent": "sac", "steps": 600, "checkpoint_every": 400},
    # Reacher's take 50; the replay has wrapped around when it is saved
    "repeats, wrapped": {
        "env": "gym/Reacher-v4",
        "agent": "sac-era-exact",
        "steps": 400,
        "checkpoint_every": 330,
        "action_repeat": 2,
        "replay_capacity": 70,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_run_bit_for_bit(name, tmp_path):
    config = ControlConfig(**TINY, **RUNS[name], eval_every=200, seed=5, out=str(tmp_path / "whole"))
    whole = train(config)
    middle, end = Run.open(whole).checkpoints()
    assert (int(middle.name), int(end.name)) == (config.checkpoint_every, config.steps)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / end.name)
    checkpoint = Run.open(part).latest()
    assert len(checkpoint.arrays["actions"]) == {"middle": 50, "end": 0, "repeats,": 15}[name.split()[0]]
    assert checkpoint.state["added"] == config.checkpoint_every // config.action_repeat

    assert resume(part) == part
    assert read_run(part).status["state"] == "finished"
    assert read_run(part).status["step"] == config.steps
    lines = metrics_of(whole)
    assert {line["step"] for line in lines if "return" in line} == {0, 200, 400, config.steps}
    assert any("loss/critic" in line for line in lines if line["step"] > config.checkpoint_every)
    assert_same_run(whole, part)


def command(*args, cache):
    """The command in a process of its own; `cache` spares the second one the compilation of the first."""
    return subprocess.Popen(
        [sys.executable, "-m", "entropyfloor.cli", "train", "control", *args],
        env=os.environ
        | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(path, cache):
    sizes = ["--hidden", "16", "--batch-size", "16", "--random-steps", "50", "--steps", str(LENGTH)]
    every = ["--log-every", "10", "--eval-every", "9999", "--eval-episodes", "1", "--checkpoint-every", "100"]
    what = ["--agent", "sac", "--env", "gym/Pendulum-v1", "--updates-per-step", "1", "--out", str(path)]
    return command(*what, *sizes, *every, cache=cache)


def wait_until(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.005)


def finish(path, cache):
    process = command("--resume", str(path), cache=cache)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"run: {path}\n" in out
    assert read_run(path).status["state"] == "finished"
    assert Run.open(path).latest().step == LENGTH


def test_ctrl_c_saves_first_and_a_kill_loses_little(tmp_path, cache):
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"

    process = start(stopped, cache)
    log = stopped / "metrics.jsonl"
    wait_until(process, lambda: log.exists() and b"loss/critic" in log.read_bytes())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"entropyfloor train control --resume {stopped}\n" in errors
    assert "Traceback" not in errors
    status = read_run(stopped).status
    assert (status["state"], status["reason"]) == ("interrupted", "stopped by the user")
    step = Run.open(stopped).latest().step
    assert f"saved at step {step:,};" in errors
    assert 50 <= step < LENGTH
    assert status["step"] <= step < status["step"] + 10  # that of the last line that was logged
    finish(stopped, cache)

    process = start(killed, cache)
    wait_until(process, lambda: any(killed.glob("checkpoints/0*")))
    assert read_run(killed).status["state"] == "running"
    process.kill()
    process.communicate()
    assert read_run(killed).status["state"] == "killed"
    assert 100 <= Run.open(killed).latest().step < LENGTH
    finish(killed, cache)
    assert_same_run(stopped, killed)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    sizes = {**TINY, "random_steps": 20, "steps": 200, "eval_every": 200}
    config = ControlConfig("sac", "gym/Pendulum-v1", **sizes, learning_rate=1e30, out=str(tmp_path / "run"))
    with pytest.raises(FloatingPointError, match=r"loss/(critic|actor) is (nan|inf|-inf) at step \d+"):
        train(config)
    status = read_run(tmp_path / "run").status
    assert status["state"] == "failed"
    assert status["reason"].startswith("FloatingPointError: loss/")


# --- evaluation ------------------------------------------------------------------------------------------


def uneven(weights, observation):
    """A policy by hand: mean and σ differ from state to state, and σ is -4 in the log where the first is high."""
    mean = jnp.tanh(observation @ weights)
    log_std = jnp.where(observation[..., 2:3] > 0.0, -4.0, -1.0 + jnp.sin(observation @ weights[:, ::-1]))
    return TruncatedNormal(mean, jnp.exp(log_std))


def test_an_evaluation_measures_the_policy_in_the_states_it_visits():
    weights = jnp.asarray(0.3 * np.random.default_rng(0).normal(size=(11, 2)), jnp.float32)
    evaluate = Evaluator(make("gym/Reacher-v4"), uneven, [3, 4, 5], log_std_min=-4.0)
    found = evaluate(weights)

    env, rewards, states = make("gym/Reacher-v4"), [], []
    for seed in (3, 4, 5):
        observation, _ = env.reset(seed=seed)
        for _ in range(50):
            states.append(observation)
            observation, reward, *_ = env.step(np.asarray(uneven(weights, observation).mode()))
            rewards.append(reward)
    assert len(states) == 150
    policy = uneven(weights, jnp.asarray(np.stack(states)))
    log_std = np.log(np.asarray(policy.scale, np.float64))
    entropy = reference.truncated_normal_entropy(policy.loc, log_std).sum(-1)
    clipped = (log_std < -3.99).mean()
    assert 0 < clipped < 1
    expected = {
        "return": np.sum(rewards) / 3,
        "episode_length": 50,
        "realised_entropy": entropy.mean(),
        "realised_entropy/min": entropy.min(),
        "realised_entropy/q05": np.quantile(entropy, 0.05),
        "clipped_share": clipped,
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert evaluate(weights) == found  # the same episodes each time


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 476])
def test_padding_does_not_leak(count):
    rng = np.random.default_rng(count)
    weights = jnp.asarray(rng.normal(size=(11, 2)), jnp.float32)
    states = rng.normal(size=(count, 11)).astype(np.float32)
    states[-1] = 1.0  # the last state is what is padded with: its entropy must count once
    entropy, clipped = Evaluator(None, uneven, [], log_std_min=-4.0).measure(weights, states)
    policy = uneven(weights, jnp.asarray(states))
    log_std = np.log(np.asarray(policy.scale, np.float64))
    expected = reference.truncated_normal_entropy(policy.loc, log_std).sum(-1)
    assert entropy.shape == clipped.shape == (count,)
    np.testing.assert_allclose(entropy, expected, atol=1e-4)
    np.testing.assert_array_equal(clipped, (log_std < -3.99).mean(-1))


# --- learning --------------------------------------------------------------------------------------------

LEARN = {
    "hidden": 64,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "updates_per_step": 1,
    "random_steps": 500,
    "log_every": 500,
    "checkpoint_every": 10_000,
}


def test_sac_learns_to_swing_up(tmp_path):
    """Measured over the seeds 0 to 2: from between -1420 and -1079 at the start to between -220 and -125."""
    sizes = {**LEARN, "steps": 4000, "eval_every": 4000, "eval_episodes": 5}
    steps, returns = read_run(train(ControlConfig("sac", "gym/Pendulum-v1", **sizes, out=str(tmp_path)))).series(
        "return"
    )
    assert steps.tolist() == [0, 4000]
    assert returns[0] < -1000
    assert returns[1] > -600


@pytest.mark.slow
def test_sac_era_exact_learns_to_reach_and_keeps_its_floor(tmp_path):
    """Measured over the seeds 0 to 2: from between -13.7 and -12.7 at the start to between -9.4 and -8.4."""
    sizes = {**LEARN, "steps": 4000, "eval_every": 500, "eval_episodes": 20, "discount": 0.9, "tau": 0.02}
    path = train(ControlConfig("sac-era-exact", "gym/Reacher-v4", **sizes, out=str(tmp_path)))
    _, returns = read_run(path).series("return")
    assert returns[-1] > returns[0] + 2
    _, least = read_run(path).series("realised_entropy/min")
    _, floor = read_run(path).series("floor")
    assert len(least) == 9
    np.testing.assert_array_equal(floor, -1.0)
    assert (least >= floor - 1e-3).all()
