"""Many simulators in JAX as pure functions: steps, the next episode after each that ends, noise, whole episodes.

A simulator is what MuJoCo Playground calls an environment: `reset(key) → state` and `step(state, action) → state`,
whose states have `obs`, `reward` and `done`. Everything here is for one seed, and can be jitted and vmapped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropyfloor.control import seeding
from entropyfloor.control.ring import Steps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, PRNGKeyArray, UInt32


LARGEST = 1e10
"""Size beyond which MuJoCo takes a state for diverged (`mjMAXVAL`). MJX has no limit: on their way to NaN, single
observations would spoil the moments of all."""


class Players(NamedTuple):
    """N environments and their episodes."""

    simulator: Any
    """States of the simulators, `[N, ...]`."""
    noise: Any
    """σ of the exploration noise, the same until the end of an episode, `[N]`."""
    steps: Any
    """Number of steps of the episode, `[N]`, int32."""
    total: Any
    """Sum of its rewards, `[N]`."""
    ended: Any
    """Whether it is over, `[N]`, bool: the next one begins before the next action."""


class Simulators:
    """Simulators of a task.

    Args:
        simulator: One of them.
        limit: Number of steps after which an episode is truncated.
        noise: Smallest and largest σ of the exploration noise.
        ignore_termination: Let only the limit end an episode.
    """

    def __init__(
        self, simulator: Any, limit: int, noise: tuple[float, float], ignore_termination: bool = False
    ) -> None:
        self._reset, self._step = jax.vmap(simulator.reset), jax.vmap(simulator.step)
        self._limit, self._noise, self._terminates = limit, noise, not ignore_termination

    def empty(self, count: int) -> Players:
        """Environments before their first episodes."""
        keys = seeding.raw(jax.random.split(jax.random.key(0), count))
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(self._reset, keys))
        return _at_start(state, jnp.zeros(count, jnp.float32))._replace(ended=jnp.ones(count, bool))

    def begin(self, players: Players, key: PRNGKeyArray, some: Callable[[Array], Array] = jnp.any) -> Players:
        """Begin the next episode of each environment whose last one is over, and draw its noise.

        Args:
            players: The environments.
            key: Random key.
            some: Whether a reset is worth its time, from `ended`.
        """

        def begun(players: Players) -> Players:
            reset_key, noise_key = jax.random.split(key)
            count = len(players.ended)
            state = self._reset(seeding.raw(jax.random.split(reset_key, count)))
            noise = jax.random.uniform(noise_key, (count,), jnp.float32, *self._noise)
            choose = jax.vmap(lambda ended, *trees: jax.tree.map(partial(jnp.where, ended), *trees))
            chosen: Players = choose(players.ended, _at_start(state, noise), players)
            return chosen

        following: Players = jax.lax.cond(some(players.ended), begun, lambda players: players, players)
        return following

    def step(self, players: Players, actions: Float[Array, "N D"]) -> tuple[Players, Steps]:
        """One action in each environment.

        A simulation that diverges, to NaN or beyond `LARGEST`, is cut off: its last step goes nowhere, without a
        reward.
        """
        before = players.simulator.obs
        state = self._step(players.simulator, actions)
        sound = (jnp.abs(state.obs) <= LARGEST).all(axis=-1) & (jnp.abs(state.reward) <= LARGEST)
        following = jnp.where(sound[:, None], state.obs, before)
        reward = jnp.where(sound, state.reward, 0.0)
        terminated = (state.done > 0) & sound & self._terminates
        count = players.steps + 1
        truncated = (count >= self._limit) | ~sound
        players = Players(state, players.noise, count, players.total + reward, terminated | truncated)
        return players, Steps(before, actions, reward, terminated, truncated, following)

    def episodes(
        self, policy: Callable[[Array], Array], keys: UInt32[Array, "E k"]
    ) -> tuple[Float[Array, " E"], Float[Array, "T E o"], Bool[Array, "T E"]]:
        """Play an episode from each key.

        Args:
            policy: From observations to actions.
            keys: Keys as numbers.

        Returns:
            Returns of the episodes, observations that were acted on, and whether the episode was in progress then.
        """
        first = _at_start(self._reset(keys), jnp.zeros(len(keys), jnp.float32))

        def act(carry: tuple[Players, Array], _: None) -> tuple[tuple[Players, Array], tuple[Array, Array]]:
            players, going = carry
            observation = players.simulator.obs
            following, _steps = self.step(players, policy(observation).clip(-1.0, 1.0))
            total = jnp.where(going, following.total, players.total)
            return (following._replace(total=total), going & ~following.ended), (observation, going)

        (players, _), played = jax.lax.scan(act, (first, jnp.ones(len(keys), bool)), length=self._limit)
        return players.total, *played


def _at_start(state: Any, noise: Float[Array, " N"]) -> Players:
    """Environments at the first observations of their episodes."""
    zeros = jnp.zeros_like(noise)
    return Players(state, noise, zeros.astype(jnp.int32), zeros, zeros.astype(bool))
