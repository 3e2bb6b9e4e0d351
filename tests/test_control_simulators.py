"""Simulators as pure functions: how their episodes begin and end, and whole episodes at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropyfloor.control import seeding
from entropyfloor.control.envs import make
from entropyfloor.control.simulators import Simulators
from tiny_simulator import ENVS, LIMIT, Point, install


def played(simulators, count, seed=0):
    """Steps of random actions, `[count, ENVS, ...]`, and the environments after each."""

    def step(players, key):
        begin_key, action_key = jax.random.split(key)
        players = simulators.begin(players, begin_key)
        actions = jax.random.uniform(action_key, (ENVS, 2), jnp.float32, -1, 1)
        following, steps = simulators.step(players, actions)
        return following, (steps, following, players)

    keys = jax.random.split(jax.random.key(seed), count)
    return jax.device_get(jax.jit(partial(jax.lax.scan, step))(simulators.empty(ENVS), keys)[1])


@pytest.mark.slow_but_first
@pytest.mark.parametrize("ignored", [False, True])
def test_episodes_end_and_begin(ignored):
    steps, after, before = played(Simulators(Point(), LIMIT, (0.1, 0.3), ignored), 100)
    ended = steps.terminated | steps.truncated
    assert steps.terminated.any() == (not ignored)
    np.testing.assert_array_equal(steps.truncated, after.steps == LIMIT)
    np.testing.assert_array_equal(after.ended, ended)
    assert not before.ended.any()
    goes_on = ~ended[:-1]
    np.testing.assert_array_equal((steps.next_observation[:-1] == steps.observation[1:]).all(-1), goes_on)
    np.testing.assert_array_equal(before.noise[:-1] == before.noise[1:], goes_on)
    np.testing.assert_array_equal(before.steps[1:], np.where(goes_on, after.steps[:-1], 0))
    np.testing.assert_array_equal(before.total[1:], np.where(goes_on, after.total[:-1], 0))
    starts = steps.observation[1:][~goes_on]
    assert len(np.unique(starts[:, 2])) == len(starts)  # each has a number of its own
    assert before.noise.min() >= 0.1
    assert before.noise.max() < 0.3


@pytest.mark.slow_but_first
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
def test_a_simulation_that_diverges_is_cut_off(value):
    steps, _, _ = played(Simulators(Point(diverges=value), LIMIT, (0.0, 0.0)), 100)
    assert all((abs(column) < 10).all() for column in steps)
    cut = steps.truncated & (steps.reward == 0)
    assert cut.sum() > 10
    np.testing.assert_array_equal(steps.observation[cut], steps.next_observation[cut])
    assert not (cut & steps.terminated).any()


@pytest.mark.slow_but_first
@pytest.mark.parametrize("diverges", [None, np.nan])
def test_whole_episodes_are_those_of_one_environment(diverges, monkeypatch):
    """The Gymnasium environment of the same task; it does not hide that it diverged."""
    install(monkeypatch, diverges=diverges)
    env, simulators = make("playground/Point"), Simulators(Point(diverges), LIMIT, (0.0, 0.0))

    def policy(observation):
        return 0.5 * observation[..., :2] + 0.3 * observation[..., 2:]

    seeds = range(12)
    keys = np.stack([seeding.raw(jax.random.key(seed)) for seed in seeds])
    total, observations, going = jax.device_get(jax.jit(partial(simulators.episodes, policy))(keys))
    lengths, ends = going.sum(axis=0), set()
    assert going.shape == (LIMIT, 12)
    for i, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        expected, length, running = 0.0, 0, True
        while running:
            np.testing.assert_allclose(observations[length, i], observation, rtol=1e-5)
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            finite = np.isfinite(observation).all()
            running, length = not (terminated or truncated) and finite, length + 1
            expected += reward if finite else 0.0
        ends.add("diverged" if not finite else "terminated" if terminated else "truncated")
        assert lengths[i] == length
        assert total[i] == pytest.approx(expected, rel=1e-5)
    assert {"terminated", "truncated"} <= ends
    assert ("diverged" in ends) == (diverges is not None)


def test_the_environment_of_one_simulator(monkeypatch):
    install(monkeypatch)
    env = make("playground/Point", max_episode_steps=4, action_repeat=2)
    assert (env.observation_space.shape, env.action_space.shape) == ((3,), (2,))
    assert env.observation_space.dtype == env.action_space.dtype == np.float32
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    env.reset(seed=3)
    (_, reward, *ends, _), still = env.step(np.zeros(2)), 1 - (first[:2] ** 2).sum()
    assert reward == pytest.approx(2 * still)
    assert ends == [False, False]
    assert env.step(np.zeros(2))[2:4] == (False, True)
    assert env.unwrapped.metadata["render_fps"] == 10
    assert make("playground/Point").unwrapped.step_limit == LIMIT
    assert make("playground/Point", env_args={"episode_length": 5}).unwrapped.step_limit == 5
