"""A simulator of a few lines, with the interface of MuJoCo Playground's: a point in a plane, pushed about.

As a program it trains on one device and on two, and saves the results: `tiny_simulator.py out.npz`.
"""

import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LIMIT, ENVS, ROWS = 9, 6, 12
AGENT = "fastsac-era-exact"
TINY = {
    "env": "playground/Point",
    "hidden": 8,
    "critic_hidden": 8,
    "atoms": 11,
    "batch_size": 16,
    "num_envs": ENVS,
    "updates_per_step": 2,
    "policy_delay": 1,
    "noise_min": 0.1,
    "noise_max": 0.3,
    "random_steps": 10 * ENVS,
    "steps": 30 * ENVS,
    "log_every": 5 * ENVS,
    "eval_every": 15 * ENVS,
    "eval_episodes": 3,
    "n_steps": 2,
    "replay_capacity": ROWS * ENVS,
    "learning_rate": 1e-3,
}


class State(NamedTuple):
    """What Playground's states have."""

    obs: Any  # [3]: position, and a number that each episode draws for itself
    reward: Any
    done: Any


class Point:
    """The task ends outside of a square; where it is given a value to diverge to, it does so before."""

    action_size, observation_size, dt = 2, 3, 0.1

    def __init__(self, diverges=None):
        self.diverges = diverges

    def reset(self, key):
        position = jax.random.uniform(key, (2,), jnp.float32, -0.8, 0.8)
        number = jax.random.normal(jax.random.fold_in(key, 1), (1,), jnp.float32)
        return State(jnp.concatenate([position, number]), jnp.float32(0), jnp.float32(0))

    def step(self, state, action):
        position = state.obs[:2] + jnp.float32(0.3) * action
        observation = jnp.concatenate([position, state.obs[2:]])
        if self.diverges is not None:
            observation = jnp.where(position[0] > 0.7, jnp.float32(self.diverges), observation)
        outside = (jnp.abs(position) > 1).any()
        return State(observation, 1 - (position**2).sum(), outside.astype(jnp.float32))


def install(monkeypatch, **settings):
    """Make `playground/Point` this simulator."""
    suite = SimpleNamespace(
        ALL_ENVS=["Point"],
        get_default_config=lambda task: SimpleNamespace(episode_length=LIMIT),
        load=lambda task, config_overrides: Point(**settings),
    )
    monkeypatch.setattr("entropyfloor.control.envs.playground._suite", lambda: suite)


def main(out):
    """Train a little on one device and on two, and save everything after random steps and at the end."""
    import pytest

    from entropyfloor.control.config import configure
    from entropyfloor.control.train import build
    from entropyfloor.control.trainer import named_arrays

    saved, devices = {}, jax.local_devices()
    for count in (1, 2):
        with pytest.MonkeyPatch.context() as monkeypatch:
            install(monkeypatch)
            monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
            trainer = build([configure(AGENT, **TINY).resolved()])
        column = trainer.memory.ring.steps.reward
        assert [shard.data.shape for shard in column.addressable_shards] == [(ROWS, ENVS // count)] * count
        while trainer.step < trainer.config.steps:
            metrics, _ = trainer.advance()
            if trainer.step == 5 * ENVS:
                players, _, ring = trainer.memory
                saved |= named_arrays(f"{count}/random", (players, ring))
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trainer.state))
        saved |= named_arrays(f"{count}/end", (trainer.state, trainer.memory, metrics))
    np.savez(out, **saved)


if __name__ == "__main__":
    main(sys.argv[1])
