"""The replay on the device, against a list of steps: rings, n-step returns, ends of episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropyfloor.control import ring
from entropyfloor.control.agents.fast import Batch
from entropyfloor.control.config import configure
from entropyfloor.control.normalise import VARIANCE_FLOOR, RunningMoments
from entropyfloor.control.parallel import normalised
from entropyfloor.control.ring import Steps

ROWS, ENVS, OBS, ACTION = 12, 3, 2, 1


def steps(count, seed=0):
    """Steps of each environment, whose episodes end now and then: `[count, ENVS, ...]`."""
    rng = np.random.default_rng(seed)
    ends = rng.choice(3, p=[0.7, 0.15, 0.15], size=(count, ENVS))
    observation = np.arange(count * ENVS, dtype=np.float32).reshape(count, ENVS, 1).repeat(OBS, -1)
    action, reward = rng.normal(size=(count, ENVS, ACTION)), rng.normal(size=(count, ENVS))
    return Steps(observation, action, reward, ends == 1, ends == 2, observation + 0.5)


def filled(count):
    """All steps, and a ring that they were added to."""
    every, add = steps(count), jax.jit(ring.add, donate_argnums=0)
    found = ring.empty(ROWS, ENVS, OBS, ACTION)
    for i in range(count):
        found = add(found, Steps(*(column[i] for column in every)))
    return every, found


def expected(every, i, env, n_steps, discount):
    """The transition that begins at step i of an environment, by a loop over all steps that were ever made."""
    reward, factor = 0.0, 1.0
    for _ in range(n_steps):
        reward += factor * every.reward[i, env]
        factor *= discount
        following, terminated = every.next_observation[i, env], every.terminated[i, env]
        if terminated or every.truncated[i, env] or i == len(every.reward) - 1:
            break
        i += 1
    return reward, 0.0 if terminated else factor, following


@pytest.mark.slow_but_first
@pytest.mark.parametrize("n_steps", [1, 3, 5])
@pytest.mark.parametrize("count", [1, 7, ROWS, 30])  # not full, full, and around it several times
def test_a_transition_is_that_of_a_loop_over_the_steps(count, n_steps):
    every, found = filled(count)
    first = max(0, count - ROWS)
    index, env = (x.ravel() for x in np.meshgrid(np.arange(first, count), np.arange(ENVS)))
    newest = jnp.asarray((count - 1) % ROWS)
    batch = ring.unroll(found.steps, jnp.asarray(index % ROWS), jnp.asarray(env), newest, n_steps, 0.9)
    assert isinstance(batch, Batch)
    wanted = [expected(every, i, e, n_steps, 0.9) for i, e in zip(index, env, strict=True)]
    reward, discount, following = (np.stack(column) for column in zip(*wanted, strict=True))
    np.testing.assert_allclose(batch.reward, reward, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.discount, discount, rtol=1e-6)
    np.testing.assert_array_equal(batch.next_observation, following)
    np.testing.assert_array_equal(batch.observation, every.observation[index, env])
    np.testing.assert_allclose(batch.action, every.action[index, env], rtol=1e-6)


def test_the_ends_that_decide_are_all_there():
    """The steps above hold an episode that was cut off, one that ended, and one that goes on, inside 3 steps."""
    every, _ = filled(30)
    found = {round(expected(every, i, env, 3, 0.9)[1], 6) for i in range(27) for env in range(ENVS)}
    assert found == {0.0, 0.9, 0.81, 0.729}


@pytest.mark.parametrize("count", [5, 30])
def test_samples_are_uniform_over_what_is_stored(count):
    every, found = filled(count)
    batch = ring.sample(found, jax.random.key(0), (40, 500), 1, 0.9)
    assert batch.reward.shape == (40, 500)
    assert batch.observation.shape == (40, 500, OBS)
    values, counts = np.unique(batch.observation[..., 0], return_counts=True)
    stored = every.observation[max(0, count - ROWS) :, :, 0]
    np.testing.assert_array_equal(values, np.sort(stored.ravel()))
    share = 20_000 / stored.size
    assert (np.abs(counts - share) < 6 * np.sqrt(share)).all()


@pytest.mark.parametrize("count", [5, 30])
def test_samples_of_several_steps_end_at_the_newest_one(count):
    every, found = filled(count)
    batch = ring.sample(found, jax.random.key(0), (300,), 3, 0.9)
    starts = [divmod(int(number), ENVS) for number in batch.observation[:, 0]]
    wanted = [expected(every, *start, 3, 0.9) for start in starts]
    for column, values in zip(batch[2:], zip(*wanted, strict=True), strict=True):
        np.testing.assert_allclose(column, np.stack(values), rtol=1e-5, atol=1e-6)


def test_rows_are_written_in_place():
    found = ring.empty(1000, 8, 16, 4)
    add = jax.jit(ring.add, donate_argnums=0)
    step = Steps(*(np.zeros(column.shape[1:], column.dtype) for column in found.steps))
    found = add(found, step)
    before = found.steps.observation.unsafe_buffer_pointer()
    assert add(found, step).steps.observation.unsafe_buffer_pointer() == before


def test_the_bytes_of_a_step_are_those_that_are_stored():
    found = ring.empty(5, 7, 16, 4)
    assert sum(column.nbytes for column in found.steps) == 5 * 7 * ring.step_bytes(16, 4)


def test_observations_are_normalised_as_on_the_host():
    rng = np.random.default_rng(0)
    moments = RunningMoments((4,))
    x = (rng.normal(size=(64, 4)) * [1e-3, 1, 30, 1] + [0, 5, -100, 0]).astype(np.float32)
    moments.update(x)
    far = np.concatenate([x, 1e4 * x])
    deviation = np.sqrt(moments.variance + VARIANCE_FLOOR).astype(np.float32)
    config = configure("fasttd3").resolved()
    found = normalised(config, far, (moments.mean.astype(np.float32), deviation))
    np.testing.assert_allclose(found, moments.normalise(far), rtol=1e-4, atol=1e-4)
    assert np.abs(found).max() == 10.0
