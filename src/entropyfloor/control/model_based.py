"""Training of TD-MPC2: plan, store, update; before it plans, updates on the first, random actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.config import TDMPC2Config
from entropyfloor.control.envs.wrappers import step_limit
from entropyfloor.control.episodes import Step
from entropyfloor.control.off_policy import OffPolicyCollector
from entropyfloor.control.replay import SequenceReplay
from entropyfloor.control.threads import keep_memory
from entropyfloor.control.trainer import Metrics, Trainer


class ModelBasedCollector(OffPolicyCollector):
    """Beside simulator and replay: the plan of the episode, and the number of updates before the first plan.

    Args:
        config: Resolved settings.
        seeds: Number of seeds in this process, which share its memory.
    """

    replay: SequenceReplay

    def __init__(self, config: TDMPC2Config, seeds: int = 1) -> None:
        self._config = config
        super().__init__(config, seeds)
        limit = step_limit(self.env)
        if limit is None and config.discount is None:
            raise ValueError(f"{config.env} has no time limit, from which γ would follow: give --discount")
        self.episode_length = 1 if limit is None else -(-limit // config.action_repeat)
        self.plan = np.zeros((config.horizon, self.action_dim), np.float32)
        self.pretrained = 0

    def empty_replay(self, capacity: int) -> SequenceReplay:
        """A replay of sequences as long as a plan."""
        return SequenceReplay(capacity, self.obs_dim, self.action_dim, self._rng, self._config.horizon)

    def play(self, action: np.ndarray) -> Step:
        """Take one action and store the transition.

        Raises:
            ValueError: The task ended, and the settings say that it does not.
        """
        step = super().play(action)
        if step.terminated and not self._config.episodic:
            raise ValueError(
                f"{self._config.env} ended before its time limit: learn this with --episodic, or go on with "
                "--ignore-termination"
            )
        if step.terminated or step.truncated:
            self.replay.end_episode()
            self.plan = np.zeros_like(self.plan)
        return step

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint: with `state`, everything that `restore` needs."""
        return super().arrays() | {"plan": self.plan}

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON can hold it."""
        return super().state() | {"pretrained": self.pretrained}

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from the arrays and the state of another collector."""
        super().restore(arrays, state)
        self.plan, self.pretrained = arrays["plan"], state["pretrained"]


class ModelBasedTrainer(Trainer[TDMPC2Config, ModelBasedCollector]):
    """Trainer of TD-MPC2."""

    def __init__(self, configs: Sequence[TDMPC2Config]) -> None:
        super().__init__(configs)
        collectors = [ModelBasedCollector(config, len(configs)) for config in configs]
        keep_memory()  # after the replays: the system is to hand out their pages as they fill
        first = collectors[0]
        agent: Any = build_agent(self.config, first.action_dim)
        sizes = first.obs_dim, first.action_dim, first.episode_length
        self.begin(agent, collectors, sizes, agent.update_many)

    def advance(self) -> tuple[Metrics | None, Any]:
        """An action of each seed and its updates; those of the random actions follow after the last of them."""
        config = self.config
        plans, number = self.step >= config.random_steps, self.collectors[0].pretrained
        if plans and number < config.random_steps // config.action_repeat:
            for collector in self.collectors:
                collector.pretrained += 1
            return self._learn(number)  # no other update has this number: none was at one of the first steps
        for collector, action in zip(self.collectors, self._actions(plans), strict=True):
            collector.play(action)
        self.step += config.action_repeat
        return self._learn() if plans else (None, None)

    def _actions(self, plans: bool) -> list[np.ndarray]:
        if not plans:
            return [collector.random_action() for collector in self.collectors]
        planned = self.act([(collector.episodes.observation, collector.plan) for collector in self.collectors])
        for collector, (_, plan) in zip(self.collectors, planned, strict=True):
            collector.plan = plan
        return [action for action, _ in planned]

    def _learn(self, number: int | None = None) -> tuple[Metrics, Any]:
        sizes = self.config.updates_per_step, self.config.batch_size
        batches = self.stack([collector.replay.sample(*sizes) for collector in self.collectors])
        return self.learn(batches, number), batches
