"""Evaluation of a policy: its return, and its entropy in the states that it visits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from entropyfloor.control.envs.wrappers import step_limit
from entropyfloor.control.episodes import Env, SimulatorError, reset, step
from entropyfloor.control.heads import Distribution
from entropyfloor.jax.distributions import Categorical

Params = Any
Player = Callable[[int], Callable[[Params, np.ndarray], Any]]
CHUNK = 1024
"""Number of states per call when entropies are measured: one shape, one compilation."""
ENDLESS = 100_000
"""Number of actions after which an episode without a time limit counts as endless."""


class Episode(NamedTuple):
    """An episode that was played."""

    total: float
    """Sum of rewards."""
    observations: np.ndarray
    """The states that were acted in, as the networks take them, `[length, obs]`."""


class Stopped(Exception):  # noqa: N818
    """An evaluation was interrupted."""


class Evaluator:
    """Plays episodes without exploration, and measures the acting policy in every state that it visits.

    Args:
        env: Environment that training does not use.
        distribution: `(actor, observations) → π(·|s)`.
        seeds: Seeds of the episodes, the same in every evaluation.
        log_std_min: Lower bound of log σ, to count how often it binds.
        normalise: From observations to the input of the networks.
        stopped: Called before each action; True stops the evaluation.
        player: From the seed of an episode to what acts in it, `(actor, observation) → action`; by default the
            mode of the distribution.
    """

    def __init__(
        self,
        env: Env,
        distribution: Callable[[Params, Array], Distribution],
        seeds: Sequence[int],
        log_std_min: float,
        normalise: Callable[[np.ndarray], np.ndarray] = lambda observations: observations,
        stopped: Callable[[], bool] = lambda: False,
        player: Player | None = None,
    ) -> None:
        self._env = env
        self._limited = step_limit(env) is not None
        self._seeds = seeds
        self._normalise = normalise
        self._stopped = stopped
        mode = jax.jit(lambda actor, observation: distribution(actor, observation).mode())
        self._player: Player = player or (lambda _: mode)

        def measure(actor: Params, observation: Array) -> tuple[Array, Array]:
            policy = distribution(actor, observation)
            if isinstance(policy, Categorical):
                return policy.entropy(), jnp.zeros(observation.shape[:-1])
            clipped = jnp.log(policy.scale) < log_std_min + 1e-4
            return policy.entropy(), clipped.mean(axis=-1, dtype=jnp.float32)

        self._measure = jax.jit(measure)

    def __call__(self, actor: Params) -> dict[str, float]:
        """Mean return and length, and the entropy (nats) of the acting policy over visited states."""
        episodes = self.play_all(actor, self._seeds)
        entropy, clipped = self.measure(actor, np.concatenate([episode.observations for episode in episodes]))
        return {
            "return": float(np.mean([episode.total for episode in episodes])),
            "episode_length": float(np.mean([len(episode.observations) for episode in episodes])),
            "realised_entropy": float(entropy.mean()),
            "realised_entropy/min": float(entropy.min()),
            "realised_entropy/q05": float(np.quantile(entropy, 0.05)),
            "clipped_share": float(clipped.mean()),
        }

    def play_all(self, actor: Params, seeds: Sequence[int]) -> list[Episode]:
        """Play an episode from each seed."""
        return [self.play(actor, seed) for seed in seeds]

    def play(self, actor: Params, seed: int, watch: Callable[[], None] = lambda: None) -> Episode:
        """Play an episode; `watch` is called before every action.

        Raises:
            SimulatorError: The simulator raised, or the episode does not end.
            Stopped: `stopped` returned True.
        """
        at = f"the evaluation from seed {seed}"
        observation = reset(self._env, seed, f"the reset of {at}")
        visited: list[np.ndarray] = []
        total, running, act = 0.0, True, self._player(seed)
        while running:
            if self._stopped():
                raise Stopped
            if len(visited) == ENDLESS and not self._limited:
                raise SimulatorError(
                    f"{at} has not ended after {ENDLESS:,} actions: an environment without a time limit needs "
                    "--max-episode-steps"
                )
            visited.append(self._normalise(observation))
            watch()
            action = np.asarray(act(actor, visited[-1]))[()]  # a discrete one as a number
            result = step(self._env, action, f"action {len(visited)} of {at}")
            observation, total = result.observation, total + result.reward
            running = not (result.terminated or result.truncated)
        return Episode(total, np.stack(visited))

    def measure(self, actor: Params, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entropy of π(·|s), and the share of its log σ on the lower bound, in each of `[N, obs]` states."""
        count = len(observations)
        padded = np.pad(observations, ((0, -count % CHUNK), (0, 0)), mode="edge")
        chunks = [self._measure(actor, chunk) for chunk in padded.reshape(-1, CHUNK, padded.shape[-1])]
        entropy, clipped = (np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True))
        return entropy.astype(np.float64), clipped
