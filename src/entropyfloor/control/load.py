"""A trained policy without its trainer, simulator or replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from numpy.typing import ArrayLike

from entropyfloor.control.agents import build
from entropyfloor.control.agents.mnse import MNSEActor
from entropyfloor.control.agents.ppo import PPO
from entropyfloor.control.agents.sac import SAC, ActorState
from entropyfloor.control.agents.tdmpc2.agent import TDMPC2, Planning
from entropyfloor.control.config import (
    ControlConfig,
    MNSEConfig,
    PPOConfig,
    SACConfig,
    TDMPC2Config,
    read_config,
    required,
)
from entropyfloor.control.heads import CategoricalPolicy, Distribution, HeadState, raw_outputs
from entropyfloor.control.normalise import ObservationNormaliser
from entropyfloor.runs.checkpoint import Checkpoint
from entropyfloor.runs.directory import open_checkpoint

ACTING = ("agent/actor/", "moments/", "0/actions")
"""Names of the arrays of a checkpoint that act; the last one says whether PPO's actions are discrete."""


@dataclass(frozen=True, eq=False)
class Policy:
    """A trained policy: from observations `[obs]` or `[B, obs]` to actions, in NumPy.

    Observations are those of `entropyfloor.control.envs.make`, not normalised. Actions are in [-1, 1], or numbers
    from 0 where they are discrete.
    """

    config: ControlConfig
    """Settings of the run."""
    step: int
    """Environment steps that the policy was trained for."""
    agent: SAC | TDMPC2 | PPO
    """The agent, whose `distribution(actor, observations)` is π(·|s) of normalised observations."""
    actor: Any
    """Everything that the acting policy depends on: parameters, and the state of the head."""
    normalise: ObservationNormaliser
    """From observations to what the network takes."""
    observation_dim: int
    action_dim: int
    """Number of dimensions of an action, or of discrete actions."""

    def __call__(self, observation: ArrayLike) -> np.ndarray:
        """The mode action, as evaluations take it."""
        return self._bounded(self._mode(self.actor, self._input(observation)))

    def sample(self, observation: ArrayLike, seed: int) -> np.ndarray:
        """An action drawn from the policy, the same for the same seed."""
        return self._bounded(self._sample(self.actor, self._input(observation), jax.random.key(seed)))

    def entropy(self, observation: ArrayLike) -> np.ndarray:
        """Entropy of the acting policy in each state, in nats."""
        return np.asarray(self._entropy(self.actor, self._input(observation)))

    def player(self, seed: int) -> Callable[[ArrayLike], np.ndarray]:
        """What acts in one episode as evaluations do: from each observation `[obs]` in turn to an action.

        An agent with a model plans, each time from its last plan; the others take the mode action. Ask for a new
        one for each episode.

        Args:
            seed: Seed of the planner.
        """
        if self._player is None:
            return self
        act = self._player(seed)
        return lambda observation: self._bounded(act(self.actor, self._input(observation)))

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return isinstance(self.agent.policy, CategoricalPolicy)

    @property
    def floor(self) -> float | None:
        """Floor of the head in nats, that of `era` before actions are bounded; None where the head has none."""
        return build.aim(self.agent).get("floor")

    @property
    def target_entropy(self) -> float | None:
        """Entropy that the head or α steers to, in nats: the floor, if there is one; None where nothing does."""
        return next(iter(build.aim(self.agent).values()), None)

    def distribution(self, actor: Any, observation: Any) -> Distribution:
        """π(·|s) of normalised observations, to be traced by JAX."""
        distribution: Distribution = self.agent.distribution(actor, observation)
        return distribution

    @cached_property
    def _player(self) -> Callable[[int], Callable[[Any, Any], jax.Array]] | None:
        return build.player(self.agent)

    @cached_property
    def _mode(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda actor, observation: self.distribution(actor, observation).mode())

    @cached_property
    def _sample(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda actor, observation, key: self.distribution(actor, observation).sample(seed=key))

    @cached_property
    def _entropy(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda actor, observation: self.distribution(actor, observation).entropy())

    def _input(self, observation: ArrayLike) -> np.ndarray:
        array = np.asarray(observation, np.float32)
        if array.ndim not in (1, 2) or array.shape[-1] != self.observation_dim:
            raise ValueError(
                f"an observation of shape {list(array.shape)} must be [{self.observation_dim}] or "
                f"[B, {self.observation_dim}], as {self.config.env} observes"
            )
        return self.normalise(array)

    def _bounded(self, action: jax.Array) -> np.ndarray:
        array = np.asarray(action)
        # A normal distribution is unbounded: the environment clips its actions.
        return array.clip(-1.0, 1.0) if array.dtype.kind == "f" else array


def load_policy(run: Path | str) -> Policy:
    """The policy of a run, from its last checkpoint.

    It needs neither the environment nor its package, and reads only what acts: a replay in the checkpoint takes no
    memory.

    Examples:
        >>> import numpy as np
        >>> from entropyfloor.control import load_policy
        >>> policy = load_policy("runs/gym-Reacher-v4/sac-era-exact/seed-0")
        >>> action = policy(np.zeros(policy.observation_dim))
        >>> assert policy.entropy(np.zeros(policy.observation_dim)) > policy.floor - 1e-3

    Args:
        run: A run directory, or a directory in its `checkpoints`.

    Raises:
        ValueError: There is no run of a control agent or no checkpoint, or the checkpoint is damaged or belongs to
            other settings.
    """
    opened, checkpoint = open_checkpoint(Path(run), ACTING)
    config = read_config(opened.config)
    with checkpoint.restoring():
        return _policy(config, checkpoint)


def _policy(config: ControlConfig, checkpoint: Checkpoint) -> Policy:
    if isinstance(config, TDMPC2Config):
        return _planning_policy(config, checkpoint)
    arrays = checkpoint.arrays
    is_sac = isinstance(config, SACConfig)
    discrete = not is_sac and arrays["0/actions"].ndim == 1
    params = _nested(arrays, "agent/actor/params/" if is_sac else "agent/actor/")
    outputs = params["params"]["Dense_0"]["bias"].size
    one_each = discrete or (isinstance(config, PPOConfig) and config.global_log_std)  # else mean and log σ
    action_dim = outputs if one_each else outputs // (1 + raw_outputs(required(config.head)))
    head = HeadState(*(arrays.get(f"agent/actor/head/{name}") for name in HeadState._fields))
    actor: Any = ActorState(params, head) if is_sac else params
    if isinstance(config, MNSEConfig):
        actor = MNSEActor(params, head, jax.numpy.asarray(arrays["agent/actor/evidence"]))
    observation_dim = params["params"]["body"]["Dense_0"]["kernel"].shape[0]
    normalised = isinstance(config, PPOConfig | SACConfig) and bool(config.normalise_observations)
    normalise = ObservationNormaliser(observation_dim, normalised)
    normalise.load(arrays)
    return Policy(
        config,
        checkpoint.step,
        build.build_agent(config, action_dim, discrete=discrete),
        actor,
        normalise,
        observation_dim,
        action_dim=action_dim,
    )


def _planning_policy(config: TDMPC2Config, checkpoint: Checkpoint) -> Policy:
    model, prior = (_nested(checkpoint.arrays, f"agent/actor/{name}/") for name in ("model", "prior"))
    outputs, each = prior["params"]["Dense_2"]["bias"].size, 1 + raw_outputs(required(config.head))
    if outputs % each:
        raise ValueError(
            f"its prior has {outputs} outputs, and the head {config.head} takes {each} for each dimension of the "
            "action: it was trained by an earlier version, which gave it fewer; train it anew"
        )
    action_dim = outputs // each
    observation_dim = model["encoder"]["params"]["Dense_0"]["kernel"].shape[0]
    return Policy(
        config,
        checkpoint.step,
        build.build_agent(config, action_dim),
        Planning(model, prior, jax.numpy.asarray(checkpoint.arrays["agent/actor/discount"])),
        ObservationNormaliser(observation_dim, enabled=False),
        observation_dim,
        action_dim,
    )


def _nested(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Parameters as Flax has them, from arrays whose names are paths."""
    flat = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return unflatten_dict(flat, sep="/")
