"""What the tests of several agents share: batches, trees of parameters, and when two runs are the same."""

import math

import jax
import numpy as np

from entropyfloor.control.config import configure
from entropyfloor.control.replay import Transition
from entropyfloor.control.train import build
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.resume import begin


def random_batch(*shape, seed=2):
    rng = np.random.default_rng(seed)
    observation, following = rng.normal(size=(2, *shape, 3))
    terminated = (rng.random(shape) < 0.3).astype(float)
    action = rng.uniform(-1, 1, (*shape, 2))
    return Transition(observation, action, rng.normal(size=shape), terminated, following)


def pairs(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def distance(one, other):
    return math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs(one, other)))


def compile_quickly(cache):
    """Variables of a process that compiles as those do that have the fixture `cache`."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
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


def save_untrained(path, agent, step=1, **settings):
    """A run with a checkpoint, without the time that training takes: random networks, and some steps played.

    Returns its trainer.
    """
    config = configure(agent, **settings, hidden=8, eval_episodes=1, out=str(path)).resolved()
    trainer, rng = build([config]), np.random.default_rng(0)
    for _ in range(5):
        collector = trainer.collectors[0]
        collector.observe()
        if agent.startswith(("ppo", "eapo")):
            collector.play(np.stack([collector.action_space.sample()]))
        elif agent.startswith("fast"):
            collector.play(collector.random_actions())
        else:
            collector.play(collector.random_action())
    noisy = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), trainer.state.actor)
    trainer.state, trainer.step = trainer.state._replace(actor=noisy), step
    trainer.save([begin(config, domain="control", names=2)])
    return trainer
