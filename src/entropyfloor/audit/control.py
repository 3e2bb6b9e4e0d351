"""Audit of a policy of ours: its entropy in the states that it visits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from entropyfloor.audit import gaussian
from entropyfloor.audit.logits import saturation_of_policy
from entropyfloor.audit.samples import Samples, Saturation, Spread
from entropyfloor.control import seeding
from entropyfloor.control.agents.mnse import MNSE
from entropyfloor.control.evaluate import open_evaluator
from entropyfloor.control.load import Policy
from entropyfloor.runs.progress import Progress


def run(run: Path, *, episodes: int = 10, seed: int = 0, max_episode_steps: int | None = None) -> Samples:
    """Measure the acting policy of a run in every state that it visits, without exploration.

    The floor is the one that the head promises, if it does.

    Args:
        run: Run directory, whose last checkpoint is measured, or a directory in its `checkpoints`.
        episodes: Number of episodes.
        seed: Seed of the episodes.
        max_episode_steps: Number of environment steps after which an episode is cut off.

    Raises:
        ValueError: No run, no checkpoint, or no episode.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    policy, evaluator, env = open_evaluator(run, max_episode_steps)
    played = []
    with Progress(episodes, unit="episodes", every=1, evaluation="") as progress:
        for i in range(episodes):
            played.append(evaluator.play(policy.actor, seeding.episode(seed, seeding.PLAY_EPISODES, i)))
            progress.advance(i + 1)
    env.close()
    observations = np.concatenate([episode.observations for episode in played])
    entropy, _ = evaluator.measure(policy.actor, observations)
    labels = [
        f"episode {i}, step {t}" for i, episode in enumerate(played) for t in range(len(episode.observations))
    ]
    common: dict[str, Any] = {
        "model": f"{run} ({policy.config.agent} on {policy.config.env})",
        "places": "states",
        "entropy": entropy,
        "labels": labels,
        "floor": policy.floor,
        "numbers": {"return": float(np.mean([episode.total for episode in played]))}
        | ({} if policy.target_entropy in (None, policy.floor) else {"target_entropy": policy.target_entropy}),
    }
    if policy.discrete:
        logits = _in_each_state(policy, observations, "logits")
        saturation = saturation_of_policy(logits, policy.floor)
        return Samples(measured="the policy over discrete actions", **common, **saturation)
    if isinstance(policy.agent, MNSE):  # its mapping gives the actions another distribution
        return Samples(measured="the mapped policy over actions in [-1, 1]", **common)
    name: Any = policy.config.distribution
    parameters = [_in_each_state(policy, observations, field) for field in ("loc", "scale")]
    return Samples(
        measured=f"the {name} policy over actions in [-1, 1]",
        spread=Spread(gaussian.spread(name, *parameters), "actions in [-1, 1]"),
        saturation=Saturation(gaussian.saturated(name, *parameters), gaussian.MEANING),
        **common,
    )


def _in_each_state(policy: Policy, observations: np.ndarray, field: str) -> np.ndarray:
    """A parameter of the distribution, such as `loc`, in each state: `[N, D]`."""
    parameter = jax.jit(lambda actor, states: getattr(policy.distribution(actor, states), field))
    value = np.asarray(parameter(policy.actor, observations), np.float64)
    return np.broadcast_to(value, (len(observations), value.shape[-1]))
