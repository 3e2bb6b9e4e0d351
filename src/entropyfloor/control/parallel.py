"""Training of FastTD3, FastSAC and FastSAC-ERA: act in many environments, store, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from entropyfloor.control import ring, seeding
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.fast import Batch, View
from entropyfloor.control.config import FastConfig, required
from entropyfloor.control.envs import make
from entropyfloor.control.normalise import CLIP, ObservationNormaliser
from entropyfloor.control.off_policy import continuous_sizes
from entropyfloor.control.pool import pool_of
from entropyfloor.control.ring import Ring, Steps
from entropyfloor.control.trainer import Metrics, Trainer
from entropyfloor.runs.machine import check_memory


class ParallelCollector:
    """Simulators, normaliser and exploration noise of one seed.

    Args:
        config: Resolved settings.
        seeds: Number of seeds in this process, which share its memory.
    """

    def __init__(self, config: FastConfig, seeds: int = 1) -> None:
        self._config = config
        env = make(config.env, **config.env_options())
        self.obs_dim, self.action_dim = continuous_sizes(env, config)
        self.rows = replay_rows(config, (self.obs_dim, self.action_dim), seeds)
        self._pool = pool_of(
            config.env, config.env_options(), config.num_envs, config.seed, first=env, workers=config.env_processes
        )
        self.returns = self._pool.returns
        self._rng = seeding.generator(config.seed, seeding.HOST)
        self.noise = self._draw_noise()
        """σ of the exploration noise, `[N]`, the same until the end of an episode."""
        self.normalise = ObservationNormaliser(self.obs_dim, config.normalise_observations)

    def observe(self) -> View:
        """What to act on: observations, normalised by all up to them, and the noise."""
        return View(self.normalise.observe(self._pool.observations), self.noise)

    def random_actions(self) -> np.ndarray:
        """Uniform on [-1, 1], `[N, D]`."""
        return self._rng.uniform(-1.0, 1.0, (self._config.num_envs, self.action_dim)).astype(np.float32)

    def play(self, actions: np.ndarray) -> Steps:
        """One action in each environment; the noise is drawn again where an episode ends."""
        observations = self._pool.observations
        step = self._pool.step(actions)
        self.noise = np.where(step.terminated | step.truncated, self._draw_noise(), self.noise)
        return Steps(observations, actions, step.reward, step.terminated, step.truncated, step.observation)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint: with `state`, everything that `restore` needs."""
        return self.normalise.arrays() | {"noise": self.noise} | self._pool.arrays()

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON can hold it."""
        return {
            "episodes": self._pool.state(),
            "returns": self.returns,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from the arrays and the state of another collector."""
        self.normalise.load(arrays)
        self.noise = arrays["noise"]
        self._pool.restore(state["episodes"], arrays)
        self.returns[:] = state["returns"]
        self._rng.bit_generator.state = state["rng"]

    def _draw_noise(self) -> np.ndarray:
        bounds = required(self._config.noise_min), required(self._config.noise_max)
        return self._rng.uniform(*bounds, self._config.num_envs).astype(np.float32)


class ParallelTrainer(Trainer[FastConfig, ParallelCollector]):
    """Trainer of FastTD3, FastSAC and FastSAC-ERA. Its `memory` is the replay."""

    def __init__(self, configs: Sequence[FastConfig]) -> None:
        super().__init__(configs)
        config = self.config
        collectors = [ParallelCollector(config, len(configs)) for config in configs]
        sizes = collectors[0].obs_dim, collectors[0].action_dim
        agent: Any = build_agent(config, sizes[1])
        shape = collectors[0].rows, config.num_envs, *sizes
        self.memory = self.across_seeds(lambda *_: ring.empty(*shape))(np.arange(len(configs)), None)
        self.begin(agent, collectors, sizes, learner(config, agent))
        self._add = self.across_seeds(lambda memory, steps, _: ring.add(memory, steps), donate_argnums=0)

    def advance(self) -> tuple[Metrics | None, Any]:
        """Some actions in every environment of each seed, then as many updates as the config says."""
        config = self.config
        for _ in range(config.actions_per_update):
            steps = [
                collector.play(actions)
                for collector, actions in zip(self.collectors, self._actions(), strict=True)
            ]
            self.memory = self._add(self.memory, self.stack(steps), None)
            self.step += config.num_envs * config.action_repeat
        if self.step < config.random_steps:
            return None, None
        scaling = self.stack([collector.normalise.scaling() for collector in self.collectors])
        return self.learn((self.memory, scaling)), scaling

    def _actions(self) -> list[np.ndarray]:
        views = [collector.observe() for collector in self.collectors]
        if self.step < self.config.random_steps:
            return [collector.random_actions() for collector in self.collectors]
        return self.act(views)


def learner(
    config: FastConfig, agent: Any, place: Callable[[Batch], Batch] = lambda batches: batches
) -> Callable[[Any, Any, Any], Any]:
    """Updates of a step: `(state, (replay, mean and deviation of observations), key) → (state, metrics)`.

    Args:
        config: Resolved settings.
        agent: The agent.
        place: Called on the sampled batches, to choose their devices.
    """
    shape = required(config.updates_per_step), required(config.batch_size)

    def update(state: Any, data: tuple[Ring, Any], key: Any) -> Any:
        """Sample, normalise, update."""
        memory, scaling = data
        sample_key, update_key = jax.random.split(key)
        batches = place(ring.sample(memory, sample_key, shape, config.n_steps, config.discount))
        batches = batches._replace(
            observation=normalised(config, batches.observation, scaling),
            next_observation=normalised(config, batches.next_observation, scaling),
        )
        return agent.update_many(state, batches, update_key)

    return update


def normalised(config: FastConfig, observations: Any, scaling: tuple[Any, Any]) -> Any:
    """Observations on the device as the networks take them, as `RunningMoments.normalise` in float32."""
    mean, deviation = scaling
    return ((observations - mean) / deviation).clip(-CLIP, CLIP) if config.normalise_observations else observations


def replay_rows(config: FastConfig, sizes: tuple[int, int], seeds: int, devices: Sequence[jax.Device] = ()) -> int:
    """Number of steps of every environment that the replay holds.

    Args:
        config: Resolved settings.
        sizes: Width of an observation, and of an action.
        seeds: Number of seeds that share the memory.
        devices: Devices that share the replay; by default the first one has all of it.

    Raises:
        ValueError: The replay, or the batches of a step, are more than the memory of the devices can hold.
    """
    rows = -(-min(config.replay_capacity, config.steps) // config.num_envs)
    memory = memory_of(devices or jax.local_devices()[:1])
    each, copies = ring.step_bytes(*sizes), seeds + (seeds > 1)  # a checkpoint copies that of one of several seeds
    check_memory(rows * config.num_envs, copies * each, "transitions in the replay", "--replay-capacity", memory)
    drawn = required(config.updates_per_step) * required(config.batch_size)
    check_memory(drawn, seeds * each, "transitions in the updates of a step", "--batch-size", memory)
    return rows


def memory_of(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that these devices have together; None if it is the memory of the machine, or they do not say."""
    own = [device for device in devices if device.platform != "cpu"]
    limits: list[int] = [(device.memory_stats() or {}).get("bytes_limit") or 0 for device in own]
    return sum(limits) if limits and all(limits) else None
