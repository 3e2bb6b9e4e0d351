"""SAC and OBAC in progress: act, store, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax
from gymnasium import spaces

from entropyfloor import targets
from entropyfloor.control import heads, seeding
from entropyfloor.control.agents.obac import OBAC
from entropyfloor.control.agents.sac import SAC
from entropyfloor.control.config import OBACConfig, SACConfig, set_
from entropyfloor.control.episodes import Episodes
from entropyfloor.control.networks import MLP, Critics, GaussianActor, Value
from entropyfloor.control.replay import Replay, Transition
from entropyfloor.control.trainer import Metrics, Trainer, make_env
from entropyfloor.runs.memory import check_memory


def build_agent(config: SACConfig, action_dim: int) -> SAC:
    """The agent that a resolved config describes."""
    target_entropy = targets.resolve(set_(config.target_entropy), action_dim)
    learned = config.residual_entropy == "learned"
    if learned and config.head not in ("era", "era-batch"):
        raise ValueError(f"residual_entropy=learned is for head='era' or 'era-batch': {config.head!r} needs none")
    if config.residual_entropy and not heads.has_target(set_(config.head)):
        raise ValueError(f"residual_entropy={config.residual_entropy} has no use under head={config.head!r}")
    policy = heads.GaussianPolicy(
        set_(config.head),
        set_(config.distribution),
        action_dim,
        target_entropy + (0.0 if isinstance(config.residual_entropy, str) else config.residual_entropy),
        set_(config.log_std_min),
        set_(config.log_std_max),
        clamp=config.clamp_target,
    )
    obac = isinstance(config, OBACConfig)

    def body(layer_norm: bool | None) -> MLP:
        return MLP((config.hidden, config.hidden), set_(config.activation), set_(layer_norm), tanh_first=obac)

    parts: dict[str, Any] = {
        "actor": GaussianActor(action_dim, body(config.actor_layer_norm)),
        "critics": Critics(body(config.critic_layer_norm)),
        "policy": policy,
        "actor_optimiser": optax.adam(config.learning_rate),
        "critic_optimiser": optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
        "alpha_optimiser": optax.adam(config.learning_rate),
        "entropy": set_(config.entropy),
        "target_entropy": target_entropy,
        "initial_alpha": config.alpha,
        "alpha_weight": config.alpha_weight,
        "learn_residual": learned,
        "discount": config.discount,
        "tau": config.tau,
    }
    if not isinstance(config, OBACConfig):
        return SAC(**parts)
    value = Value(body(config.critic_layer_norm))
    return OBAC(**parts, value=value, expectile=config.expectile, cloning_weight=config.cloning_weight)


class OffPolicySeed:
    """Simulator, replay and generator of one seed."""

    def __init__(self, config: SACConfig, seeds: int = 1) -> None:
        env = make_env(config)
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(
                f"{config.env} has discrete actions: {config.agent} needs continuous ones, ppo takes both"
            )
        (self.obs_dim,), (self.action_dim,) = env.observation_space.shape or (), env.action_space.shape
        self._rng = seeding.generator(config.seed, seeding.HOST)
        capacity = min(config.replay_capacity, config.steps)
        each = 4 * seeds * (2 * self.obs_dim + self.action_dim + 2)  # a float32 has four bytes
        check_memory(capacity, each, "transitions in the replay", "--replay-capacity")
        batch = config.updates_per_step * config.batch_size
        check_memory(batch, each, "transitions in the updates of a step", "--batch-size")
        self.replay = Replay(capacity, self.obs_dim, self.action_dim, self._rng)
        self.episodes = Episodes(env, lambda i: seeding.episode(config.seed, seeding.TRAIN_EPISODES, i))
        self.returns = self.episodes.returns

    def random_action(self) -> np.ndarray:
        """Uniform on [-1, 1]."""
        return self._rng.uniform(-1.0, 1.0, self.action_dim).astype(np.float32)

    def play(self, action: np.ndarray) -> None:
        """Take one action and keep the transition."""
        observation = self.episodes.observation
        step = self.episodes.step(action)
        self.replay.add(Transition(observation, action, step.reward, step.terminated, step.observation))

    def view(self, observations: np.ndarray) -> np.ndarray:
        """Observations as they are."""
        return observations

    def arrays(self) -> dict[str, np.ndarray]:
        """With `state`, everything that `restore` needs."""
        stored = {f"replay/{name}": column for name, column in self.replay.arrays().items()}
        return stored | self.episodes.arrays()

    def state(self) -> dict[str, Any]:
        """What JSON can hold of the rest."""
        return {
            "episodes": self.episodes.state(),
            "added": self.replay.added,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from where another one was."""
        self.replay.load({name: arrays[f"replay/{name}"] for name in Transition._fields}, state["added"])
        self._rng.bit_generator.state = state["rng"]
        self.episodes.restore(state["episodes"], arrays)


class OffPolicyTrainer(Trainer[SACConfig, OffPolicySeed]):
    """SAC or OBAC."""

    def __init__(self, configs: Sequence[SACConfig]) -> None:
        super().__init__(configs)
        seeds = [OffPolicySeed(config, len(configs)) for config in configs]
        agent = build_agent(self.config, seeds[0].action_dim)
        self.begin(agent, seeds, (seeds[0].obs_dim, seeds[0].action_dim), agent.update_many)
        if heads.promises_floor(set_(self.config.head)):
            self.promise = {"floor": agent.target_entropy}
        elif self.config.entropy == "auto" or self.config.head == "era-batch":
            self.promise = {"target_entropy": agent.target_entropy}

    def advance(self) -> tuple[Metrics | None, Any]:
        """One action of each seed, and as many updates as the config says."""
        config = self.config
        for seed, action in zip(self.seeds, self._actions(), strict=True):
            seed.play(action)
        self.step += config.action_repeat
        if self.step < config.random_steps:
            return None, None
        batches = self.stack([s.replay.sample(config.updates_per_step, config.batch_size) for s in self.seeds])
        return self.learn(batches), batches

    def _actions(self) -> list[np.ndarray]:
        if self.step < self.config.random_steps:
            return [seed.random_action() for seed in self.seeds]
        observations = self.stack([seed.episodes.observation for seed in self.seeds])
        actions = np.asarray(self._act(self.state.actor, observations, self._act_keys, np.uint32(self.step)))
        return [actions] if len(self.seeds) == 1 else list(actions)
