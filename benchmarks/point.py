"""A simulator that costs next to nothing, in place of MuJoCo Playground: `playground/Point`."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropyfloor.control.envs import playground

OBSERVATION, ACTION, LENGTH = 24, 6, 1000
"""Widths of walker-walk, and steps of an episode."""


class State(NamedTuple):
    """What states of Playground have."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Point:
    """A point that is pushed about, and observed several times."""

    action_size, observation_size, dt = ACTION, OBSERVATION, 0.1

    def reset(self, key: jax.Array) -> State:
        """A random place."""
        return State(jax.random.normal(key, (OBSERVATION,), jnp.float32), jnp.float32(0), jnp.float32(0))

    def step(self, state: State, action: jax.Array) -> State:
        """Damped motion."""
        observation = 0.9 * state.obs + 0.1 * jnp.tile(action, OBSERVATION // ACTION)
        return State(observation, jnp.exp(-(observation**2).mean()), jnp.float32(0))


def install() -> None:
    """Let this process have it in place of Playground's tasks."""
    suite: Any = SimpleNamespace(
        ALL_ENVS=["Point"],
        get_default_config=lambda _: SimpleNamespace(episode_length=LENGTH),
        load=lambda _, config_overrides: Point(),  # noqa: ARG005
    )
    playground._suite = lambda: suite
