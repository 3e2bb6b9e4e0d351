"""Pools of environments: the same steps in one process and in several, and again from a checkpoint."""

import multiprocessing

import numpy as np
import pytest

from entropyfloor.control.envs import make
from entropyfloor.control.episodes import SimulatorError
from entropyfloor.control.pool import Pool, ProcessPool, pool_of

NAME, NUMBER, SEED = "gym/CartPole-v1", 5, 7  # episodes end by themselves, each at another time


def build(workers):
    return pool_of(NAME, {}, NUMBER, SEED, first=make(NAME), workers=workers)


def actions(i):
    return np.random.default_rng(i).integers(2, size=NUMBER)


def play(one, count, first=0):
    """Everything that comes out of some steps."""
    seen = [one.observations]
    for i in range(first, first + count):
        seen += [*one.step(actions(i)), one.observations]
    return seen


@pytest.fixture
def processes():
    found = build(workers=2)
    yield found
    found.close()


def test_processes_change_nothing(processes):
    alone = build(workers=1)
    assert (type(alone), type(processes)) == (Pool, ProcessPool)
    for one, other in zip(play(alone, 60), play(processes, 60), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert len(alone.returns) > 5
    assert alone.returns == processes.returns
    assert alone.state() == processes.state()
    arrays, others = alone.arrays(), processes.arrays()
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name])


def test_a_checkpoint_continues_in_another_number_of_processes(processes):
    alone = build(workers=1)
    play(alone, 60)
    arrays, state = alone.arrays(), alone.state()
    expected = play(alone, 20, first=60)
    processes.restore(state, arrays)
    for one, other in zip(expected, play(processes, 20, first=60), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_environment_has_episodes_of_its_own():
    seen = build(workers=1).observations
    assert len({tuple(row) for row in seen}) == NUMBER
    np.testing.assert_array_equal(Pool([make(NAME)], SEED, first=3).observations[0], seen[3])


def test_a_simulator_that_breaks_in_a_process_is_named(processes):
    with pytest.raises(SimulatorError, match=r"the simulator failed at action 1 of episode 0: "):
        processes.step(np.full(NUMBER, 9))


@pytest.mark.slow
def test_a_process_that_is_gone_is_named(processes):
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    for _ in range(2):
        with pytest.raises(SimulatorError, match="a process of environments ended by itself"):
            processes.step(actions(0))
