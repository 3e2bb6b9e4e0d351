"""PPO in progress: collect a rollout, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from entropyfloor import targets
from entropyfloor.control import heads, seeding
from entropyfloor.control.agents.ppo import PPO, Rollout, adam
from entropyfloor.control.config import PPOConfig, set_
from entropyfloor.control.episodes import Episodes
from entropyfloor.control.networks import MLP, CategoricalActor, GaussianActor, Value
from entropyfloor.control.normalise import RewardScaler, RunningMoments
from entropyfloor.control.trainer import Metrics, Trainer, make_env
from entropyfloor.runs.memory import check_memory


def build_agent(config: PPOConfig, action_space: spaces.Space[Any]) -> PPO:
    """The agent that a resolved config describes."""
    body = MLP((config.hidden, config.hidden), config.activation, layer_norm=False)
    actor, policy = (
        _continuous(config, body, action_space)
        if isinstance(action_space, spaces.Box)
        else _discrete(config, body, action_space)
    )
    rollout = config.num_envs * config.rollout_steps
    if rollout % config.minibatch_size:
        raise ValueError(
            f"minibatch_size={config.minibatch_size} must divide a rollout of num_envs * rollout_steps = {rollout}"
        )
    gradient_steps = math.ceil(config.steps / (rollout * config.action_repeat)) * config.epochs
    gradient_steps *= rollout // config.minibatch_size
    decay = gradient_steps if config.decay_learning_rate else None
    return PPO(
        actor,
        Value(body),
        policy,
        adam(config.learning_rate, decay_updates=decay, max_grad_norm=config.max_grad_norm),
        epochs=config.epochs,
        minibatch_size=config.minibatch_size,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        clip_low=config.clip_low,
        clip_high=set_(config.clip_high),
        value_coef=config.value_coef,
        entropy_coef=set_(config.entropy_coef),
        entropy_share=set_(config.entropy_share),
        entropy_body=body if config.entropy_critic else None,
        entropy_weight=config.entropy_weight,
        entropy_discount=config.entropy_discount,
        entropy_lambda=config.entropy_lambda,
    )


def _continuous(config: PPOConfig, body: MLP, space: spaces.Box) -> tuple[GaussianActor, heads.GaussianPolicy]:
    if config.head == "era-batch":
        raise ValueError(
            "head='era-batch' is for SAC and OBAC: PPO's old and new policies need the same σ in a state"
        )
    if config.min_entropy is not None:
        raise ValueError(
            f"min_entropy={config.min_entropy} is for discrete actions: {config.env} needs target_entropy"
        )
    (action_dim,) = space.shape
    policy = heads.GaussianPolicy(
        set_(config.head),
        set_(config.distribution),
        action_dim,
        targets.resolve(set_(config.target_entropy), action_dim),
        set_(config.log_std_min),
        set_(config.log_std_max),
    )
    return GaussianActor(action_dim, body, set_(config.global_log_std)), policy


def _discrete(config: PPOConfig, body: MLP, space: Any) -> tuple[CategoricalActor, heads.CategoricalPolicy]:
    num_actions = int(space.n)
    floor = 0.1 * math.log(num_actions) if config.min_entropy is None else config.min_entropy
    head: Any = "clip" if config.head == "hard-clip" else config.head
    return CategoricalActor(num_actions, body), heads.CategoricalPolicy(head, num_actions, floor)


class OnPolicySeed:
    """Simulators and normalisers of one seed."""

    def __init__(self, config: PPOConfig, seeds: int = 1) -> None:
        self._config = config
        first = make_env(config)
        self.action_space = first.action_space
        (self.obs_dim,) = first.observation_space.shape or ()
        floats = 2 * self.obs_dim + math.prod(self.action_space.shape or ()) + 4
        per_step = 4 * seeds * config.num_envs * floats  # a float32 has four bytes
        check_memory(config.rollout_steps, per_step, "steps of a rollout", "--rollout-steps or --num-envs")
        envs = [first, *(make_env(config) for _ in range(config.num_envs - 1))]
        self._moments = RunningMoments((self.obs_dim,))
        self._scaler = RewardScaler(config.num_envs, config.discount)

        def episodes(env: Any, i: int) -> Episodes:
            return Episodes(env, lambda number: seeding.episode(config.seed, seeding.TRAIN_EPISODES, i, number))

        self.episodes = [episodes(env, i) for i, env in enumerate(envs)]
        self.returns: list[float] = []

    def observe(self) -> np.ndarray:
        """What every environment is to act on, `[N, obs]`, taken into the moments and normalised."""
        observations = np.stack([episodes.observation for episodes in self.episodes])
        if self._config.normalise_observations:
            self._moments.update(observations)
        return self.view(observations)

    def play(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """One action in each environment: `reward, terminated, truncated, next_observation`, each `[N, ...]`."""
        steps = [episodes.step(action) for episodes, action in zip(self.episodes, actions, strict=True)]
        for episodes in self.episodes:
            self.returns += episodes.returns
            episodes.returns.clear()
        reward = np.array([step.reward for step in steps], np.float32)
        terminated, truncated = (np.array([step[i] for step in steps], bool) for i in (2, 3))
        if self._config.normalise_rewards:
            reward = self._scaler(reward, terminated, truncated)
        return reward, terminated, truncated, self.view(np.stack([step.observation for step in steps]))

    @property
    def reward_scale(self) -> float:
        """What rewards are multiplied with."""
        return self._scaler.scale if self._config.normalise_rewards else 1.0

    def view(self, observations: np.ndarray) -> np.ndarray:
        """Observations as the networks take them."""
        return self._moments.normalise(observations) if self._config.normalise_observations else observations

    def arrays(self) -> dict[str, np.ndarray]:
        """With `state`, everything that `restore` needs."""
        arrays = {f"moments/{name}": value for name, value in self._moments.arrays().items()}
        arrays |= {f"scaler/{name}": value for name, value in self._scaler.arrays().items()}
        for i, episodes in enumerate(self.episodes):
            arrays |= {f"{i}/{name}": value for name, value in episodes.arrays().items()}
        return arrays

    def state(self) -> dict[str, Any]:
        """What JSON can hold of the rest."""
        return {"episodes": [episodes.state() for episodes in self.episodes], "returns": self.returns}

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from where another one was."""
        self._moments.load({name: arrays[f"moments/{name}"] for name in ("count", "mean", "variance")})
        self._scaler.load({name: arrays[f"scaler/{name}"] for name in ("returns", "count", "mean", "variance")})
        for i, (episodes, where) in enumerate(zip(self.episodes, state["episodes"], strict=True)):
            episodes.restore(where, {name: arrays[f"{i}/{name}"] for name in ("actions", "observation")})
        self.returns[:] = state["returns"]


class OnPolicyTrainer(Trainer[PPOConfig, OnPolicySeed]):
    """PPO."""

    def __init__(self, configs: Sequence[PPOConfig]) -> None:
        super().__init__(configs)
        seeds = [OnPolicySeed(config, len(configs)) for config in configs]
        agent = build_agent(self.config, seeds[0].action_space)
        self.begin(agent, seeds, (seeds[0].obs_dim,), agent.update)
        policy: Any = agent.policy
        if heads.promises_floor(policy.head):
            discrete = isinstance(policy, heads.CategoricalPolicy)
            self.promise = {"floor": policy.min_entropy if discrete else policy.target_entropy}

    def advance(self) -> tuple[Metrics | None, Any]:
        """A rollout of each seed, and an update from it."""
        config = self.config
        rows: list[list[tuple[np.ndarray, ...]]] = [[] for _ in self.seeds]
        for _ in range(config.rollout_steps):
            observations = [seed.observe() for seed in self.seeds]
            acted = self._act(self.state.actor, self.stack(observations), self._act_keys, np.uint32(self.step))
            actions, log_probs = (np.asarray(x) for x in acted)
            for i, (seed, observation) in enumerate(zip(self.seeds, observations, strict=True)):
                action, log_prob = self.pick(actions, i), self.pick(log_probs, i)
                rows[i].append((observation, action, log_prob, *seed.play(action)))
            self.step += config.num_envs * config.action_repeat
        rollouts = []
        for seed, row in zip(self.seeds, rows, strict=True):
            columns = [np.stack(column) for column in zip(*row, strict=True)]
            rollouts.append(Rollout(*columns)._replace(reward_scale=np.float32(seed.reward_scale)))
        rollout = self.stack(rollouts)
        return self.learn(rollout), rollout
