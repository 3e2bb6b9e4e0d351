"""Training of SAC, OBAC and MNSE, and the collecting of TD-MPC2: act, store, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from entropyfloor.control import seeding
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.config import ControlConfig, SACConfig, TDMPC2Config
from entropyfloor.control.envs import make
from entropyfloor.control.episodes import Env, Episodes, Step
from entropyfloor.control.normalise import ObservationNormaliser
from entropyfloor.control.replay import Replay, Transition, transition_bytes
from entropyfloor.control.trainer import Metrics, Trainer
from entropyfloor.runs.machine import check_memory


def continuous_sizes(env: Env, config: ControlConfig) -> tuple[int, int]:
    """Widths of an observation and of an action.

    Raises:
        ValueError: Actions are discrete.
    """
    if not isinstance(env.action_space, spaces.Box):
        raise ValueError(
            f"{config.env} has discrete actions: {config.agent} needs continuous ones, ppo takes both"
        )
    (obs_dim,), (action_dim,) = env.observation_space.shape or (), env.action_space.shape
    return obs_dim, action_dim


class OffPolicyCollector:
    """Simulator, replay, normaliser and random generator of one seed.

    Args:
        config: Resolved settings.
        seeds: Number of seeds in this process, which share its memory.
    """

    def __init__(self, config: SACConfig | TDMPC2Config, seeds: int = 1) -> None:
        self.env = env = make(config.env, **config.env_options())
        self.obs_dim, self.action_dim = continuous_sizes(env, config)
        self._rng = seeding.generator(config.seed, seeding.HOST)
        capacity = min(config.replay_capacity, config.steps)
        each = seeds * transition_bytes(self.obs_dim, self.action_dim)
        check_memory(capacity, each, "transitions in the replay", "--replay-capacity")
        batch = config.updates_per_step * config.batch_size
        check_memory(batch, each, "transitions in the updates of a step", "--batch-size")
        self.replay = self.empty_replay(capacity)
        self.episodes = Episodes(env, lambda i: seeding.episode(config.seed, seeding.TRAIN_EPISODES, i))
        self.returns = self.episodes.returns
        normalised = isinstance(config, SACConfig) and bool(config.normalise_observations)
        self.normalise = ObservationNormaliser(self.obs_dim, normalised)

    def empty_replay(self, capacity: int) -> Replay:
        """A replay for that many transitions."""
        return Replay(capacity, self.obs_dim, self.action_dim, self._rng)

    def random_action(self) -> np.ndarray:
        """Uniform on [-1, 1]."""
        return self._rng.uniform(-1.0, 1.0, self.action_dim).astype(np.float32)

    def observe(self) -> np.ndarray:
        """The observation to act on, normalised by all up to it."""
        (observation,) = self.normalise.observe(self.episodes.observation[None])
        return observation

    def play(self, action: np.ndarray) -> Step:
        """Take one action and store the transition, with observations as the simulator gives them."""
        observation = self.episodes.observation
        step = self.episodes.step(action)
        self.replay.add(Transition(observation, action, step.reward, step.terminated, step.observation))
        return step

    def sample(self, *shape: int) -> Transition:
        """Transitions of the replay along leading axes of `shape`, as the networks take them now."""
        batch = self.replay.sample(*shape)
        return batch._replace(
            observation=self.normalise(batch.observation),
            next_observation=self.normalise(batch.next_observation),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint: with `state`, everything that `restore` needs."""
        stored = {f"replay/{name}": column for name, column in self.replay.arrays().items()}
        return stored | self.normalise.arrays() | self.episodes.arrays()

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON can hold it."""
        return {
            "episodes": self.episodes.state(),
            "added": self.replay.added,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from the arrays and the state of another collector."""
        home = "replay/"
        stored = {name.removeprefix(home): array for name, array in arrays.items() if name.startswith(home)}
        self.replay.load(stored, state["added"])
        self.normalise.load(arrays)
        self._rng.bit_generator.state = state["rng"]
        self.episodes.restore(state["episodes"], arrays)


class OffPolicyTrainer(Trainer[SACConfig, OffPolicyCollector]):
    """Trainer of SAC, OBAC and MNSE."""

    def __init__(self, configs: Sequence[SACConfig]) -> None:
        super().__init__(configs)
        collectors = [OffPolicyCollector(config, len(configs)) for config in configs]
        sizes = collectors[0].obs_dim, collectors[0].action_dim
        agent: Any = build_agent(self.config, sizes[1])
        self.begin(agent, collectors, sizes, agent.update_many)

    def advance(self) -> tuple[Metrics | None, Any]:
        """One action of each seed, and as many updates as the config says."""
        config = self.config
        for collector, action in zip(self.collectors, self._actions(), strict=True):
            collector.play(action)
        self.step += config.action_repeat
        if self.step < config.random_steps:
            return None, None
        sizes = config.updates_per_step, config.batch_size
        batches = self.stack([collector.sample(*sizes) for collector in self.collectors])
        return self.learn(batches), batches

    def _actions(self) -> list[np.ndarray]:
        observations = [collector.observe() for collector in self.collectors]
        if self.step < self.config.random_steps:
            return [collector.random_action() for collector in self.collectors]
        return self.act(observations)
