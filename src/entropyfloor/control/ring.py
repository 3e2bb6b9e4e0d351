"""A replay of many environments on the device: one ring for each, all at the same row.

Everything is a pure function of arrays. Where `add` is jitted and its ring is donated, rows are written in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropyfloor.control.agents.fast import Batch

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray


class Steps(NamedTuple):
    """One step of every environment, `[N, ...]`, or many, `[rows, N, ...]`."""

    observation: Any  # [..., obs_dim], not normalised
    action: Any  # [..., action_dim]
    reward: Any  # [...]
    terminated: Any  # [...], bool
    truncated: Any  # [...], bool
    next_observation: Any  # [..., obs_dim]: at the end of an episode its last one


class Ring(NamedTuple):
    """The last steps of every environment."""

    steps: Steps
    """The stored rows; that of step i is i modulo their number."""
    added: Any
    """Number of rows that were ever added, uint32."""


def step_bytes(obs_dim: int, action_dim: int) -> int:
    """Bytes that one step of one environment takes."""
    return 4 * (2 * obs_dim + action_dim + 1) + 2  # float32, and two flags of a byte


def empty(rows: int, num_envs: int, obs_dim: int, action_dim: int) -> Ring:
    """A ring without steps."""

    def column(dtype: Any, *shape: int) -> Array:
        return jnp.zeros((rows, num_envs, *shape), dtype)

    f32 = jnp.float32
    flags = column(bool), column(bool)
    steps = Steps(column(f32, obs_dim), column(f32, action_dim), column(f32), *flags, column(f32, obs_dim))
    return Ring(steps, jnp.zeros((), jnp.uint32))


def add(ring: Ring, steps: Steps) -> Ring:
    """Store a step of every environment, in place of the oldest where the ring is full."""
    row = ring.added % len(ring.steps.reward)
    columns = [
        jax.lax.dynamic_update_index_in_dim(column, jnp.asarray(new, column.dtype), row, 0)
        for column, new in zip(ring.steps, steps, strict=True)
    ]
    return Ring(Steps(*columns), ring.added + 1)


def sample(ring: Ring, key: PRNGKeyArray, shape: tuple[int, ...], n_steps: int, discount: float) -> Batch:
    """Transitions that begin at steps drawn uniformly, with replacement, from all that are stored.

    Each goes on for `n_steps`, and less where the episode ends or the newest step comes first; what follows is
    bootstrapped by γ^n of the steps that were made, unless the task ended.

    Args:
        ring: A ring with at least one step.
        key: Random key.
        shape: Leading axes of the result.
        n_steps: Largest number of steps.
        discount: γ.
    """
    rows, num_envs = ring.steps.reward.shape
    row_key, env_key = jax.random.split(key)
    first = jax.random.randint(row_key, shape, 0, jnp.minimum(ring.added, rows).astype(jnp.int32))
    env = jax.random.randint(env_key, shape, 0, num_envs)
    newest = ((ring.added - 1) % rows).astype(jnp.int32)
    return unroll(ring.steps, first, env, newest, n_steps, discount)


def unroll(steps: Steps, first: Array, env: Array, newest: Array, n_steps: int, discount: float) -> Batch:
    """The transitions that begin in these rows of these environments."""
    last, going = first, jnp.ones(first.shape, bool)
    reward, factor = jnp.zeros(first.shape, jnp.float32), jnp.ones(first.shape, jnp.float32)
    for k in range(n_steps):
        last = jnp.where(going, (first + k) % len(steps.reward), last)
        reward += jnp.where(going, factor * steps.reward[last, env], 0.0)
        factor = jnp.where(going, factor * discount, factor)
        going &= ~(steps.terminated[last, env] | steps.truncated[last, env] | (last == newest))
    factor = jnp.where(steps.terminated[last, env], 0.0, factor)
    observation, following = steps.observation[first, env], steps.next_observation[last, env]
    return Batch(observation, steps.action[first, env], reward, factor, following)
