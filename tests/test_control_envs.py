"""Simulators behind one constructor, and the buffer they fill."""

import numpy as np
import pytest

from entropyfloor.control.envs import make
from entropyfloor.control.replay import Replay, Transition


@pytest.mark.parametrize(
    ("name", "obs_dim", "action_dim", "limit"),
    [("dmc/walker-run", 24, 6, 1000), ("dmc/ball_in_cup-catch", 8, 2, 1000), ("gym/HalfCheetah-v4", 17, 6, 1000)],
)
def test_time_limits_truncate_and_never_terminate(name, obs_dim, action_dim, limit):
    env = make(name, seed=3, action_repeat=4)
    observation, _ = env.reset()
    assert observation.shape == (obs_dim,)
    assert observation.dtype == np.float32
    assert env.action_space.shape == (action_dim,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    for step in range(limit // 4):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated
        assert truncated == (step == limit // 4 - 1)
    assert observation.dtype == np.float32
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(env.action_space.sample())


def fall(**options):
    """The first steps of a hopper that is thrown over."""
    env = make("gym/Hopper-v4", seed=0, **options)
    env.reset()
    for _ in range(100):
        *_, terminated, _truncated, _ = env.step(np.ones(3, np.float32))
        if terminated:
            return True
    return False


def test_a_fall_terminates_unless_it_is_ignored():
    assert fall()
    assert not fall(ignore_termination=True)


def test_the_seed_decides_the_episode():
    for name in ("dmc/walker-run", "gym/HalfCheetah-v4"):
        first, same, other = (make(name, seed=s).reset()[0] for s in (1, 1, 2))
        np.testing.assert_array_equal(first, same)
        assert (first != other).any()


def test_actions_are_rescaled_to_the_tasks_own_range():
    """Pendulum's torque runs over [-2, 2]: full action is full torque."""
    env = make("gym/Pendulum-v1", seed=0)
    env.reset()
    theta, velocity = env.unwrapped.state
    _, reward, *_ = env.step(np.ones(1, np.float32))
    angle = ((theta + np.pi) % (2 * np.pi)) - np.pi
    assert reward == pytest.approx(-(angle**2 + 0.1 * velocity**2 + 0.001 * 2.0**2), rel=1e-6)


def test_repeated_actions_sum_their_rewards():
    once, twice = (make("gym/HalfCheetah-v4", seed=0, action_repeat=n) for n in (1, 2))
    once.reset(), twice.reset()
    action = np.full(6, 0.5, np.float32)
    rewards = [once.step(action)[1] for _ in range(2)]
    assert twice.step(action)[1] == pytest.approx(sum(rewards))


@pytest.mark.parametrize(
    ("name", "message"),
    [("dmc/walker-rum", "did you mean dmc/walker-run"), ("atari/Pong", "suites gym, dmc"), ("dmc/xyzzy", "names")],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        make(name)


def transition(i):
    return Transition(np.full(2, i), np.full(1, -i), float(i), float(i % 2), np.full(2, i + 1))


def test_replay_keeps_the_newest_and_restores_exactly():
    replay = Replay(4, 2, 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="empty"):
        replay.sample(2)
    for i in range(7):
        replay.add(transition(i))
    assert sorted(replay.arrays()["reward"]) == [3, 4, 5, 6]
    batch = replay.sample(3, 5)
    assert batch.observation.shape == (3, 5, 2)
    np.testing.assert_array_equal(batch.next_observation[..., 0], batch.reward + 1)
    np.testing.assert_array_equal(batch.terminated, batch.reward % 2)

    restored = Replay(4, 2, 1, np.random.default_rng(1))
    restored.load(replay.arrays(), replay.added)
    restored._rng.bit_generator.state = replay._rng.bit_generator.state
    for column, expected in zip(restored.sample(6), replay.sample(6), strict=True):
        np.testing.assert_array_equal(column, expected)
    with pytest.raises(ValueError, match="shape"):
        Replay(4, 3, 1, np.random.default_rng(0)).load(replay.arrays(), replay.added)
