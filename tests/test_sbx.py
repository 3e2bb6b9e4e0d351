"""ERA in SBX: the floor of policies that it trained, and saving and loading by SBX."""

from functools import lru_cache, partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sbx")

from sbx import PPO, SAC, TQC

import hosts
import reference
from entropyfloor.integrations.sbx import ERAActor, ERAPPOActor
from hosts import D, Reach

SLOW = pytest.mark.slow  # each compiles for a while


@pytest.fixture(scope="module", autouse=True)
def single_precision(cache):
    """SBX computes in float32 only."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@lru_cache
def sac(steps=25, **era):
    actor = partial(ERAActor, **{"target_entropy": -1.5, **era})
    settings = {"buffer_size": 500, "learning_starts": 15, "batch_size": 16, "ent_coef": 0.0, "seed": 0}
    kwargs = {"net_arch": [16], "actor_class": actor}
    return SAC("MlpPolicy", Reach(), policy_kwargs=kwargs, **settings).learn(steps)


@lru_cache
def ppo(steps=64, env=None, **era):
    actor = partial(ERAPPOActor, **{"target_entropy": "-0.5*A", **era})
    settings = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0}
    kwargs = {"net_arch": [16], "actor_class": actor}
    return PPO("MlpPolicy", env or Reach(), policy_kwargs=kwargs, **settings).learn(steps)


def policy_of(model, observations):
    state = model.policy.actor_state
    return state.apply_fn(state.params, jnp.asarray(observations))


FLOOR = {"head": "era-floor"}
ARMS = [(sac, {}), pytest.param(sac, FLOOR, marks=SLOW), (ppo, {}), pytest.param(ppo, FLOOR, marks=SLOW)]


@pytest.mark.parametrize(("train", "era"), ARMS)
def test_the_floor_holds_after_training_for_any_observation(train, era):
    model = train(**era)
    policy = policy_of(model, hosts.observations(500, np.random.default_rng(0)))
    truncated = train is sac
    log_std = np.log(np.asarray(policy.scale, np.float64))
    exact = hosts.entropy(policy.loc, log_std, truncated=truncated)
    assert exact.min() > -1.5 - 1e-4
    if not era:
        assert exact.max() < -1.5 + 1e-3
    actions = policy.sample(seed=jax.random.key(0))
    density = hosts.log_prob(actions, policy.loc, log_std, truncated=truncated)
    np.testing.assert_allclose(policy.log_prob(actions), density, rtol=1e-4, atol=2e-3)


def test_an_alpha_of_0_leaves_losses_and_parameters_finite():
    model = sac()
    assert model.num_timesteps == 25
    values = [model.logger.name_to_value[f"train/{name}_loss"] for name in ("actor", "critic")]
    leaves = jax.tree.leaves((model.policy.actor_state.params, model.policy.qf_state.params))
    assert np.isfinite(values).all()
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@SLOW
def test_training_moves_every_layer_of_the_actor():
    before, after = (sac(steps).policy.actor_state.params for steps in (0, 25))
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
    assert min(jax.tree.leaves(moved)) > 1e-5
    assert set(after["params"]) == {"Dense_0", "Dense_1", "Dense_2"}  # SBX's own names


@SLOW
@pytest.mark.parametrize("train", [sac, ppo])
def test_sbx_saves_and_loads(train, tmp_path):
    model = train()
    observations = hosts.observations(20, np.random.default_rng(2))
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", env=Reach())
    for deterministic in (True, False):
        again.policy.key = model.policy.key
        actions, others = (m.predict(observations, deterministic=deterministic)[0] for m in (model, again))
        np.testing.assert_array_equal(actions, others)
        assert actions.shape == (20, D)
    again.learn(32)


@SLOW
def test_discrete_actions_keep_their_floor():
    model = ppo(env=Reach(action_space=gym.spaces.Discrete(5)), target_entropy=0.5)
    policy = policy_of(model, 1e4 * hosts.observations(500, np.random.default_rng(3)))
    assert reference.categorical_entropy(policy.logits).min() > 0.5 - 1e-4
    assert model.predict(np.zeros((3, 4), np.float32))[0].shape == (3,)


def test_refusals():
    with pytest.raises(ValueError, match="target_entropy=3.0 nats is above"):  # noqa: RUF043
        sac(target_entropy=3.0)
    with pytest.raises(ValueError, match="have no ERA head"):
        ppo(env=Reach(action_space=gym.spaces.MultiDiscrete([2, 3])))
    with pytest.raises(ValueError, match=r"'-A/2' is no number: with 5 discrete actions .* log 5 = 1\.609"):
        ppo(env=Reach(action_space=gym.spaces.Discrete(5)), target_entropy="-A/2")
    actor = partial(ERAPPOActor, target_entropy=-1.5)
    with pytest.raises(ValueError, match=r"log_std_init=-1\.0: σ follows from target_entropy, so leave"):
        PPO("MlpPolicy", Reach(), policy_kwargs={"actor_class": actor, "log_std_init": -1.0})


@pytest.mark.parametrize(("head", "reason"), [("shares", "two raw outputs"), ("era-batch", "a running mean")])
@pytest.mark.parametrize("size", [2, D])
def test_heads_that_need_more_than_sbx_has_are_refused(head, reason, size):
    """Two action dimensions matter: arrays of their shapes would be broadcast without an error."""
    for kind, choices in ((ERAActor, "era-exact, era or era-floor"), (ERAPPOActor, "era or era-floor")):
        actor = kind([8], size, target_entropy="-A/2", head=head)
        with pytest.raises(ValueError, match=rf"head='{head}' .*{reason}.*: choose {choices}"):
            actor.init(jax.random.key(0), jnp.zeros((2, 4)))


@pytest.mark.parametrize("head", ["tanh", "clip", "fixed", "projection"])
def test_heads_for_comparisons(head):
    actor = ERAActor([8], D, target_entropy="-A/2", head=head)
    observations = jnp.asarray(hosts.observations(20, np.random.default_rng(0)))
    policy = actor.apply(actor.init(jax.random.key(0), observations), observations)
    assert policy.sample(seed=jax.random.key(0)).shape == policy.scale.shape == (20, D)
    pinned = np.allclose(policy.entropy(), -1.5, atol=1e-3)
    assert not pinned  # as the default head would be
    if head == "fixed":
        np.testing.assert_allclose(policy.scale, policy.scale[0, 0], rtol=1e-6)
    elif head == "projection":  # (-1.5 - D log √(2πe)) / D is the least mean of log σ
        least = -1.5 / D - reference.LOG_SQRT_2PIE
        assert np.log(policy.scale).mean(-1).min() > least - 1e-5


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_noise_that_is_repeated_is_refused(algorithm):
    kwargs = {"actor_class": partial(ERAActor, target_entropy=-1.5)}
    with pytest.raises(ValueError, match=r"use_sde=True: SBX then repeats the noise .*: leave use_sde out"):
        algorithm("MlpPolicy", Reach(), use_sde=True, policy_kwargs=kwargs)


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_the_actor_of_ppo_is_refused_by_what_scales_actions(algorithm):
    kwargs = {"actor_class": partial(ERAPPOActor, target_entropy=-1.5)}
    with pytest.raises(ValueError, match="ERAPPOActor is for PPO: SAC and TQC take ERAActor"):
        algorithm("MlpPolicy", Reach(), policy_kwargs=kwargs)


@SLOW
def test_the_example_of_the_docs():
    model = hosts.example("SBX")["model"]
    policy = policy_of(model, np.zeros((1, *model.observation_space.shape), np.float32))
    np.testing.assert_allclose(policy.entropy(), -3.0, atol=1e-4)
