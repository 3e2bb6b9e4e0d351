"""Streams of random numbers of a run: each follows from the run's seed and the number of the stream."""

import jax
import numpy as np

TRAIN_EPISODES, EVAL_EPISODES, HOST, ACT, UPDATE, INIT, PLAY_EPISODES = range(7)


def key(seed: int, stream: int) -> jax.Array:
    """Key of a stream for JAX."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def raw(key: jax.Array) -> jax.Array:
    """A key as numbers, which arrays of a checkpoint can hold, and which MuJoCo Playground takes as well."""
    return jax.random.key_data(key)


def generator(seed: int, stream: int) -> np.random.Generator:
    """Generator of a stream for NumPy."""
    return np.random.default_rng([seed, stream])


def episode(seed: int, stream: int, *numbers: int) -> int:
    """Seed of an episode."""
    return int(np.random.SeedSequence([seed, stream, *numbers]).generate_state(1)[0])
