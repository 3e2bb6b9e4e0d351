"""Training of PPO: collect a rollout, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.ppo import Rollout
from entropyfloor.control.config import PPOConfig
from entropyfloor.control.envs import make
from entropyfloor.control.normalise import ObservationNormaliser, RewardScaler
from entropyfloor.control.pool import pool_of
from entropyfloor.control.trainer import Metrics, Trainer
from entropyfloor.runs.machine import check_memory


def step_bytes(obs_dim: int, action_dim: int) -> int:
    """Bytes that a step of an environment takes in a rollout."""
    return 4 * (2 * obs_dim + action_dim + 4)  # a float32 has four bytes


class OnPolicyCollector:
    """Simulators and normalisers of one seed.

    Args:
        config: Resolved settings.
        seeds: Number of seeds in this process, which share its memory.
    """

    def __init__(self, config: PPOConfig, seeds: int = 1) -> None:
        self._config = config
        first = make(config.env, **config.env_options())
        self.action_space: Any = first.action_space
        (self.obs_dim,) = first.observation_space.shape or ()
        each = step_bytes(self.obs_dim, math.prod(self.action_space.shape or ()))
        per_step = seeds * config.num_envs * each
        check_memory(config.rollout_steps, per_step, "steps of a rollout", "--rollout-steps or --num-envs")
        self._pool = pool_of(config.env, config.env_options(), config.num_envs, config.seed, first=first)
        self.returns = self._pool.returns
        self.normalise = ObservationNormaliser(self.obs_dim, config.normalise_observations)
        self._scaler = RewardScaler(config.num_envs, config.discount)

    def observe(self) -> np.ndarray:
        """Observations to act on, `[N, obs]`, normalised by all up to them."""
        return self.normalise.observe(self._pool.observations)

    def play(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """One action in each environment: `reward, terminated, truncated, next_observation`, each `[N, ...]`."""
        reward, terminated, truncated, observations = self._pool.step(actions)
        if self._config.normalise_rewards:
            reward = self._scaler(reward, terminated, truncated)
        return reward, terminated, truncated, self.normalise(observations)

    @property
    def reward_scale(self) -> float:
        """Factor of the rewards."""
        return self._scaler.scale if self._config.normalise_rewards else 1.0

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint: with `state`, everything that `restore` needs."""
        scaler = {f"scaler/{name}": value for name, value in self._scaler.arrays().items()}
        return self.normalise.arrays() | scaler | self._pool.arrays()

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON can hold it."""
        return {"episodes": self._pool.state(), "returns": self.returns}

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from the arrays and the state of another collector."""
        self.normalise.load(arrays)
        self._scaler.load({name: arrays[f"scaler/{name}"] for name in self._scaler.arrays()})
        self._pool.restore(state["episodes"], arrays)
        self.returns[:] = state["returns"]


class OnPolicyTrainer(Trainer[PPOConfig, OnPolicyCollector]):
    """Trainer of PPO."""

    def __init__(self, configs: Sequence[PPOConfig]) -> None:
        super().__init__(configs)
        collectors = [OnPolicyCollector(config, len(configs)) for config in configs]
        space = collectors[0].action_space
        discrete = not isinstance(space, spaces.Box)
        agent: Any = build_agent(self.config, int(space.n) if discrete else space.shape[0], discrete=discrete)
        self.begin(agent, collectors, (collectors[0].obs_dim,), agent.update)

    def advance(self) -> tuple[Metrics | None, Any]:
        """A rollout of each seed, and an update from it."""
        config = self.config
        rows: list[list[tuple[np.ndarray, ...]]] = [[] for _ in self.collectors]
        for _ in range(config.rollout_steps):
            observations = [collector.observe() for collector in self.collectors]
            acted = self.act(observations)
            for row, collector, seen, (action, log_prob) in zip(
                rows, self.collectors, observations, acted, strict=True
            ):
                row.append((seen, action, log_prob, *collector.play(action)))
            self.step += config.num_envs * config.action_repeat
        rollouts = []
        for collector, row in zip(self.collectors, rows, strict=True):
            columns = [np.stack(column) for column in zip(*row, strict=True)]
            rollouts.append(Rollout(*columns)._replace(reward_scale=np.float32(collector.reward_scale)))
        rollout = self.stack(rollouts)
        return self.learn(rollout), rollout
