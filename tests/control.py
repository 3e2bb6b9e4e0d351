"""What the tests of several agents share: batches, parameters, updates, and when two runs are the same."""

import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from entropyfloor.control.config import configure
from entropyfloor.control.replay import Transition
from entropyfloor.control.train import build
from entropyfloor.runs import Run
from entropyfloor.runs.resume import begin
from run_files import history

QUICK = {"xla_backend_optimization_level": 0}  # to compile, not to run


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


def command(*args, cache):
    """`train control` in a process of its own; `cache` spares the second one the compilation of the first."""
    return subprocess.Popen(
        [sys.executable, "-m", "entropyfloor.cli", "train", "control", *args],
        env=os.environ | compile_quickly(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def random_state(agent):
    """In float64 and far from the even start, every network apart from the others."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: agent.init(jax.random.key(0), 3, 2))
    state = jax.tree.map(lambda x: np.asarray(0.5 * rng.normal(size=x.shape)), shapes)
    return state._replace(log_alpha=np.log(agent.initial_alpha))


def assert_descends(loss, before, after, rate, *, size=1e-6, **tolerance):
    """`after - before` is minus `rate` times the gradient of `loss`: by central differences, three ways."""
    rng, tolerance = np.random.default_rng(3), {"rel": 1e-5} | tolerance
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), before)
        above, below = (jax.tree.map(lambda x, v, s=s: x + s * v, before, direction) for s in (size, -size))
        slope = (loss(above) - loss(below)) / (2 * size)
        moved = sum(float(((new - old) * v).sum()) for new, old, v in pairs(after, before, direction))
        assert moved == pytest.approx(-rate * slope, **tolerance)


def assert_same_run(one, other):
    assert history(one) == history(other)
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
