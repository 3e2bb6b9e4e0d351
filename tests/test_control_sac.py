"""SAC: its losses, what steers its entropy, and that a run learns, stops and goes on as it says."""

import functools
import math
import shutil
import signal
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
from commands import options_of
from control import (
    QUICK,
    assert_descends,
    assert_same_run,
    command,
    distance,
    pairs,
    random_batch,
    random_state,
)
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.sac import (
    SAC,
    actor_loss,
    alpha_loss,
    critic_loss,
    critic_target,
    residual_loss,
)
from entropyfloor.control.config import SACConfig, configure
from entropyfloor.control.envs import make
from entropyfloor.control.evaluator import CHUNK, Evaluator
from entropyfloor.control.heads import MOMENTUM, GaussianPolicy, HeadState
from entropyfloor.control.networks import MLP, Critics, GaussianActor
from entropyfloor.control.replay import Transition
from entropyfloor.control.train import resume, train
from entropyfloor.jax.distributions import TruncatedNormal
from entropyfloor.runs import Run, read_run
from run_files import history

pytestmark = pytest.mark.usefixtures("cache")


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
    steeper = jax.grad(alpha_loss)(jnp.log(0.3), log_prob, -1.5, "log-alpha")
    np.testing.assert_allclose(steeper, gradient / 0.3, rtol=1e-12)


def test_the_residual_grows_while_the_entropy_is_below_its_target():
    entropy = np.random.default_rng(0).normal(size=32)
    for raw, shift in ((-2.0, -1.0), (0.3, 1.0)):
        value = residual_loss(raw, jnp.asarray(entropy + shift), -0.1)
        residual, missing = math.log1p(math.exp(raw)), np.mean(-0.1 - entropy - shift)
        np.testing.assert_allclose(value, -residual * missing, rtol=1e-12)
        gradient = jax.grad(residual_loss)(raw, jnp.asarray(entropy + shift), -0.1)
        np.testing.assert_allclose(gradient, -missing / (1 + math.exp(-raw)), rtol=1e-12)
        assert np.sign(gradient) == np.sign(shift)


def test_no_gradient_flows_where_the_losses_must_not_move():
    reward, terminated, values, log_prob = map(jnp.asarray, draw())

    def of_target(values, log_prob, alpha):
        return critic_loss(jnp.zeros_like(values), critic_target(reward, terminated, values, log_prob, alpha, 0.9))

    for gradient in jax.grad(of_target, argnums=(0, 1, 2))(values, log_prob, 0.3):
        np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(jax.grad(alpha_loss, argnums=1)(jnp.log(0.3), log_prob, -1.5), 0.0)
    np.testing.assert_array_equal(jax.grad(residual_loss, argnums=1)(0.3, log_prob, -1.5), 0.0)


# --- an update -------------------------------------------------------------------------------------------

RATE, TAU, DISCOUNT, ALPHA, TARGET, BATCH = 0.1, 0.25, 0.9, 0.3, -1.0, 64
OPTIMISERS = ("actor_optimiser", "critic_optimiser", "alpha_optimiser")


@functools.cache
def compiled(entropy):
    """A small agent and its update."""
    agent = small_agent(entropy)
    return agent, jax.jit(agent.update, compiler_options=QUICK)


def small_agent(entropy="auto", head="tanh", distribution="tanh", bounds=(-3.0, 1.0), clamp=True, **settings):
    """Smooth networks and plain gradient descent, so that an update is minus `RATE` times the gradient."""
    return SAC(
        actor=GaussianActor(2, MLP((16,), "tanh")),
        critics=Critics(MLP((16,), "tanh")),
        policy=GaussianPolicy(head, distribution, 2, TARGET, *bounds, clamp=clamp),
        **{name: optax.sgd(RATE) for name in OPTIMISERS} | settings,
        entropy=entropy,
        target_entropy=TARGET,
        initial_alpha=ALPHA,
        discount=DISCOUNT,
        tau=TAU,
    )


@pytest.mark.slow_but_first
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

    def loss_of_actor(params):
        actor = state.actor._replace(params=params)
        action, log_prob = map(np.asarray, sample(actor, batch.observation, actor_key))
        return (alpha * log_prob - np.asarray(values(new.critics, batch.observation, action)).min(0)).mean()

    assert_descends(loss_of_critics, state.critics, new.critics, RATE)
    assert_descends(loss_of_actor, state.actor.params, new.actor.params, RATE)
    expected = {
        "loss/critic": loss_of_critics(state.critics),
        "loss/actor": loss_of_actor(state.actor.params),
        "q/mean": np.asarray(values(state.critics, batch.observation, batch.action)).mean(),
        "q/std": np.asarray(values(state.critics, batch.observation, batch.action)).std(),
        "grad_norm/critic": distance(state.critics, new.critics) / RATE,
        "grad_norm/actor": distance(state.actor.params, new.actor.params) / RATE,
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


@pytest.mark.slow
def test_many_updates_are_single_updates_in_a_row():
    agent, update = compiled("auto")
    state, batches, key = random_state(agent), random_batch(3, BATCH), jax.random.key(5)
    many, last = jax.jit(agent.update_many, compiler_options=QUICK)(state, batches, key)
    for i in range(3):
        state, metrics = update(state, Transition(*(x[i] for x in batches)), jax.random.fold_in(key, i))
    assert jax.tree.structure(many) == jax.tree.structure(state)
    for one, other in pairs((many, last), (state, metrics)):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)  # float64, but compiled apart


@pytest.mark.parametrize(("weight", "factor"), [("alpha", ALPHA), ("log-alpha", 1.0)])
def test_the_weight_of_alpha_reaches_its_step(weight, factor):
    config = configure("sac", hidden=4, alpha=ALPHA, alpha_weight=weight).resolved()
    agent = replace(build_agent(config, 2), alpha_optimiser=optax.sgd(RATE))
    state = random_state(agent)
    outputs = agent.train_policy(state.actor.params, state.actor, random_batch(4).observation)
    new = agent.tune(state, *outputs, jnp.asarray([3.0, 5.0]))
    moved = float(new.log_alpha) - float(state.log_alpha)
    assert moved == pytest.approx(RATE * factor * (4.0 + agent.target_entropy), rel=1e-5)


def test_the_target_critics_start_as_copies():
    agent = small_agent()
    state = jax.jit(agent.init, static_argnums=(1, 2), compiler_options=QUICK)(jax.random.key(0), 3, 2)
    for one, other in pairs(state.critics, state.target_critics):
        np.testing.assert_array_equal(one, other)
    assert math.exp(state.log_alpha) == pytest.approx(ALPHA)


# --- what steers the entropy -----------------------------------------------------------------------------


def outputs(agent, actor, observation):
    """Mean and raw log σ, in NumPy."""
    return map(np.asarray, agent.actor.apply(actor.params, observation))


@pytest.mark.slow
def test_the_batch_head_trains_with_the_batch_and_acts_with_the_running_mean():
    agent = small_agent("none", "era-batch", "truncated", bounds=(-8.0, 0.0))
    state, key = random_state(agent), jax.random.key(7)
    update = jax.jit(agent.update, compiler_options=QUICK)
    running = math.exp(state.actor.head.log_mean_exp_sum)
    for i in range(3):
        old, batch = state, random_batch(BATCH, seed=i)
        _, raw = outputs(agent, old.actor, batch.observation)
        state, metrics = jax.device_get(update(old, batch, key))
        running = (1 - MOMENTUM) * running + MOMENTUM * np.exp(raw).sum(-1).mean()
        assert math.exp(state.actor.head.log_mean_exp_sum) == pytest.approx(running, rel=1e-9)
    assert "residual_entropy" not in metrics

    policy, found = agent.train_policy(old.actor.params, old.actor, batch.observation)
    np.testing.assert_allclose(found, raw, rtol=1e-9)
    log_std = np.log(policy.scale)
    np.testing.assert_allclose(log_std, reference.era_gaussian_batch(raw, TARGET), rtol=1e-9)
    entropy = reference.gaussian_entropy(log_std)
    assert entropy.mean() == pytest.approx(TARGET, abs=1e-9)
    assert np.ptp(entropy) > 0.1

    for observation in (batch.observation, batch.observation[0]):
        mean, raw = outputs(agent, state.actor, observation)
        policy = agent.distribution(state.actor, observation)
        expected = reference.era_gaussian_batch(raw, TARGET, log_mean_exp_sum=math.log(running))
        np.testing.assert_allclose(np.log(policy.scale), expected, rtol=1e-9)
        np.testing.assert_allclose(policy.loc, np.tanh(mean), rtol=1e-9)
        assert agent.act(state.actor, observation, key).shape == mean.shape

    # the actor's gradient passes through M: this loss is written down with M in it
    @functools.partial(jax.jit, compiler_options=QUICK)
    def loss(params):
        mean, raw = agent.actor.apply(params, batch.observation)
        share = jnp.exp(raw) / jnp.exp(raw).sum(-1).mean()
        scale = jnp.exp((TARGET - 2 * reference.LOG_SQRT_2PIE) * share)
        action = TruncatedNormal(jnp.tanh(mean), scale).sample(seed=jax.random.split(key)[1])
        return -agent.values(state.critics, batch.observation, action).min(0).mean()

    assert_descends(lambda params: float(loss(params)), old.actor.params, state.actor.params, RATE)


def steered(agent, state, updates, batch):
    """The state after many updates on one batch, and δ̂, the clamped share and the acting entropy along them."""

    def step(state, key):
        policy, _ = agent.train_policy(state.actor.params, state.actor, batch.observation)
        new, metrics = agent.update(state, batch, key)
        return new, (metrics["residual_entropy"], metrics["clamped_share"], policy.entropy().mean())

    keys = jax.random.split(jax.random.key(0), updates)
    run = jax.jit(lambda state: jax.lax.scan(step, state, keys), compiler_options=QUICK)
    return jax.device_get(run(state))


def learner(head, distribution, rate=1.0, **settings):
    """An agent that learns δ̂ and nothing else of its policy."""
    frozen = {"actor_optimiser": optax.sgd(0.0), "alpha_optimiser": optax.sgd(rate), "learn_residual": True}
    return small_agent("none", head, distribution, bounds=(-8.0, 0.0), **frozen, **settings)


def start_from(state, raw_residual, shift=0.0):
    """The same with another δ̂, and `shift` added to every mean."""
    params = jax.tree.map(np.copy, state.actor.params)
    params["params"]["Dense_0"]["bias"][:2] += shift
    head = state.actor.head._replace(residual_entropy=np.float64(raw_residual))
    return state._replace(actor=state.actor._replace(params=params, head=head))


@pytest.mark.parametrize(("raw", "direction"), [(-4.0, 1), (3.0, -1)])
def test_an_update_moves_the_residual_against_the_error_of_the_acting_entropy(raw, direction):
    agent, batch = learner("era", "tanh", rate=RATE), random_batch(BATCH)
    state = start_from(random_state(agent), raw)
    new, metrics = jax.jit(agent.update, compiler_options=QUICK)(state, batch, jax.random.key(0))
    mean, log_std = outputs(agent, state.actor, batch.observation)
    log_std = reference.era_gaussian(log_std, TARGET + math.log1p(math.exp(raw)))
    missing = TARGET - reference.tanh_normal_entropy(mean, log_std).sum(-1).mean()
    assert np.sign(missing) == direction
    moved = float(new.actor.head.residual_entropy) - raw
    assert moved == pytest.approx(RATE * missing / (1 + math.exp(-raw)), rel=1e-6)
    assert metrics["residual_entropy"] == pytest.approx(math.log1p(math.exp(raw + moved)), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["truncated", "tanh"])
@pytest.mark.parametrize("head", ["era", "era-batch"])
def test_the_learned_residual_becomes_what_bounding_costs(head, distribution):
    """Eqs. 19 and 20, to 1e-6 nats after 200 updates from δ̂ = log 2 on."""
    agent, batch = learner(head, distribution), random_batch(BATCH)
    state, (residuals, clamped, _) = steered(agent, start_from(random_state(agent), 0.0), 200, batch)
    mean, raw = outputs(agent, state.actor, batch.observation)
    learned = math.log1p(math.exp(state.actor.head.residual_entropy))
    if head == "era":
        log_std = reference.era_gaussian(raw, TARGET + learned)
    else:
        log_std = reference.era_gaussian_batch(raw, TARGET + learned)
    if distribution == "truncated":
        acting = reference.truncated_normal_entropy(np.tanh(mean), log_std).sum(-1)
    else:
        acting = reference.tanh_normal_entropy(mean, log_std).sum(-1)
    residual = reference.gaussian_entropy(log_std) - acting
    assert acting.mean() == pytest.approx(TARGET, abs=1e-6)
    assert learned == pytest.approx(residual.mean(), abs=1e-6)
    assert 0.1 < learned < 2.0
    assert residuals[-1] == pytest.approx(learned, rel=1e-9)
    assert not clamped.any()
    # The promise is on average only: one number cannot serve all states.
    assert acting.min() < TARGET - 0.05


FAR = 4.0  # where tanh has taken 10 nats of two dimensions


@pytest.mark.slow
def test_a_residual_out_of_reach_stops_at_the_bound_and_is_reported():
    agent, batch = learner("era", "tanh"), random_batch(BATCH)
    state, (residuals, clamped, entropy) = steered(agent, start_from(random_state(agent), 0.0, FAR), 30, batch)
    assert clamped[-1] == 1.0
    assert (np.diff(residuals) > 0).all()
    np.testing.assert_array_equal(clamped, TARGET + residuals > 2 * reference.LOG_SQRT_2PIE)
    np.testing.assert_allclose(agent.distribution(state.actor, batch.observation).scale, 1.0, rtol=1e-12)
    assert entropy[-1] < TARGET - 1


@pytest.mark.slow
def test_without_the_clamp_tanh_runs_away_and_the_exact_head_meets_the_same_target():
    """C.1.1: the entropy of the tanh policy falls as σ grows, so that δ̂ chases it, faster and faster."""
    agent, batch = learner("era", "tanh", rate=0.02, clamp=False), random_batch(BATCH)
    state = start_from(random_state(agent), 0.0, FAR)
    after, (residuals, _, entropy) = steered(agent, state, 34, batch)
    growth = np.diff(residuals)
    assert (growth > 0).all()
    assert growth[-1] > 2 * growth[:-1].max()
    assert agent.distribution(after.actor, batch.observation).scale.max() > 10.0  # the bound is 1
    assert entropy.max() < TARGET - 10  # no σ would do
    assert entropy[-1] < entropy[0] - 50
    exact = small_agent("none", "era-exact", "truncated", bounds=(-8.0, 0.0))
    actor = state.actor._replace(head=HeadState())
    np.testing.assert_allclose(exact.distribution(actor, batch.observation).entropy(), TARGET, atol=1e-6)


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "axes", "bounds"),
    [
        ("sac", ("tanh", "tanh", "auto"), (-5.0, 2.0)),
        ("sac-no-entropy", ("tanh", "tanh", "none"), (-5.0, 2.0)),
        ("sac-era", ("era", "truncated", "none"), (-8.0, 0.0)),
        ("sac-era-exact", ("era-exact", "truncated", "none"), (-8.0, 0.0)),
    ],
)
def test_a_preset_stands_for_three_axes(agent, axes, bounds):
    config = configure(agent, env="gym/Ant-v4", seed=4).resolved()
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
    config = configure("sac", **said).resolved()
    assert {name: getattr(config, name) for name in said} == said
    assert configure("sac", log_std_max=0.0).resolved().log_std_max == 0.0
    assert configure("sac", head="projection").resolved().log_std_max == 2.0
    assert configure("sac", head="era-floor").resolved().log_std_max == 0.0


def test_the_target_follows_the_action_dimension():
    for rule, dim, expected in ((None, 6, -3.0), ("-A", 6, -6.0), ("-3", 2, -3.0), ("0.25*A", 2, 0.5)):
        config = configure("sac", hidden=4, target_entropy=rule).resolved()
        assert build_agent(config, dim).target_entropy == expected
    release = configure("sac-era", networks="release", hidden=4).resolved()
    assert build_agent(release, 6).target_entropy == 1.5
    assert configure("sac-era-exact", networks="release").resolved().target_entropy == "-A/2"
    with pytest.raises(ValueError, match="target entropy rule 'A/B' cannot be read"):
        build_agent(configure("sac", target_entropy="A/B").resolved(), 6)


def test_the_configured_residual_lifts_the_policy_and_not_what_is_promised():
    config = configure("sac-era-exact", hidden=4, residual_entropy=0.5).resolved()
    agent = build_agent(config, 4)
    assert agent.target_entropy == -2.0
    entropy = agent.policy(jnp.zeros((1, 4)), jnp.zeros((1, 4))).entropy()
    np.testing.assert_allclose(entropy, -1.5, atol=1e-6)


@pytest.mark.parametrize("head", ["tanh", "clip", "projection", "era-exact", "era-floor"])
def test_a_residual_cannot_be_learned_where_no_head_needs_it(head):
    config = configure("sac-era", head=head, residual_entropy="learned", hidden=4).resolved()
    with pytest.raises(ValueError, match=f"residual_entropy=learned is for .*: '{head}' needs none"):
        build_agent(config, 4)


@pytest.mark.parametrize("head", ["era", "era-batch"])
def test_a_learned_residual_starts_at_log_2(head):
    agent = build_agent(configure("sac-era", head=head, residual_entropy="learned", hidden=4).resolved(), 4)
    assert agent.learn_residual
    assert agent.policy.target_entropy == agent.target_entropy == -2.0
    state = jax.jit(agent.init, static_argnums=(1, 2), compiler_options=QUICK)(jax.random.key(0), 3, 4)
    assert float(agent.head(state.actor).residual_entropy) == pytest.approx(math.log(2), rel=1e-6)


def test_only_the_published_head_can_go_on_unclamped():
    options = {"residual_entropy": "learned", "clamp_target": False, "hidden": 4}
    assert not build_agent(configure("sac-era", **options).resolved(), 4).policy.clamp
    for head, more in (("era-batch", {}), ("era-exact", {"residual_entropy": 0.0})):
        with pytest.raises(ValueError, match=f"head='{head}' always clamps its target"):
            build_agent(configure("sac-era", head=head, **options | more).resolved(), 4)


@pytest.mark.parametrize(("name", "value"), [("residual_entropy", "lerned"), ("entropy", "sum"), ("head", "era2")])
def test_a_word_that_is_not_known_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}='{value}' must be one of "):
        configure("sac", **{name: value})


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("steps", "hidden", "batch_size", "updates_per_step", "replay_capacity", "action_repeat"), (0, -1)),
        (("eval_every", "eval_episodes", "log_every", "checkpoint_every", "random_steps"), (0, -1)),
        (("seed", "threads"), (-1,)),
        (("tau", "discount"), (-0.1, 1.1, math.nan)),
        (("learning_rate", "alpha"), (0.0, -1.0, math.inf, math.nan)),
        (("residual_entropy",), (-0.1, math.inf, math.nan)),
        (("weight_decay",), (-1.0, math.inf, math.nan)),
    ],
)
def test_a_number_out_of_range_is_named(names, values):
    for name in names:
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}={value} must be"):
                SACConfig(**{name: value})


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


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_run_bit_for_bit(name, tmp_path):
    config = configure(**TINY, **RUNS[name], eval_every=200, seed=5, out=str(tmp_path / "whole"))
    whole = train(config)
    middle, end = Run.open(whole).checkpoints()
    assert (int(middle.name), int(end.name)) == (config.checkpoint_every, config.steps)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / end.name)
    checkpoint = Run.open(part).latest()
    assert (
        len(checkpoint.arrays["actions"]) == {"middle": 50, "end": 0, "repeats,": 15, "state": 30}[name.split()[0]]
    )
    assert checkpoint.state["added"] == config.checkpoint_every // config.action_repeat

    assert resume(part) == part
    assert read_run(part).status["state"] == "finished"
    assert read_run(part).status["step"] == config.steps
    lines = history(whole)
    assert {line["step"] for line in lines if "return" in line} == {0, 200, 400, config.steps}
    assert any("loss/critic" in line for line in lines if line["step"] > config.checkpoint_every)
    assert_same_run(whole, part)


def start(path, cache):
    sizes = {**TINY, "random_steps": 50, "steps": LENGTH, "log_every": 10, "checkpoint_every": 100}
    where = {"env": "gym/Pendulum-v1", "out": path}
    return command(*options_of({"agent": "sac", "eval_every": 9999, **sizes, **where}), cache=cache)


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


@pytest.mark.slow
def test_ctrl_c_saves_first(tmp_path, cache):
    stopped = tmp_path / "stopped"
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


@pytest.mark.slow_but_first
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


@pytest.mark.slow
def test_sac_learns_to_swing_up(tmp_path):
    """Measured over the seeds 0 to 2: from between -1420 and -1079 at the start to between -220 and -125."""
    sizes = {**LEARN, "steps": 4000, "eval_every": 4000, "eval_episodes": 5}
    steps, returns = read_run(train(configure("sac", env="gym/Pendulum-v1", **sizes, out=str(tmp_path)))).series(
        "return"
    )
    assert steps.tolist() == [0, 4000]
    assert returns[0] < -1000
    assert returns[1] > -600


@pytest.mark.slow
def test_sac_era_exact_learns_to_reach_and_keeps_its_floor(tmp_path):
    """Measured over the seeds 0 to 2: from between -13.7 and -12.7 at the start to between -9.4 and -8.4."""
    sizes = {**LEARN, "steps": 4000, "eval_every": 500, "eval_episodes": 20, "discount": 0.9, "tau": 0.02}
    path = train(configure("sac-era-exact", env="gym/Reacher-v4", **sizes, out=str(tmp_path)))
    _, returns = read_run(path).series("return")
    assert returns[-1] > returns[0] + 2
    _, least = read_run(path).series("realised_entropy/min")
    _, floor = read_run(path).series("floor")
    assert len(least) == 9
    np.testing.assert_array_equal(floor, -1.0)
    assert (least >= floor - 1e-3).all()
