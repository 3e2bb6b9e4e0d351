"""Streams of random numbers of one run: each follows from the run's seed and its own number, none from another."""

import jax
import numpy as np

TRAIN_EPISODES, EVAL_EPISODES, HOST, ACT, UPDATE, INIT, PLAY_EPISODES = range(7)


def key(seed: int, stream: int) -> jax.Array:
    """For JAX."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def generator(seed: int, stream: int) -> np.random.Generator:
    """For NumPy."""
    return np.random.default_rng([seed, stream])


def episode(seed: int, stream: int, *numbers: int) -> int:
    """The seed of one episode."""
    return int(np.random.SeedSequence([seed, stream, *numbers]).generate_state(1)[0])
