"""What a run of a control agent needs, from its settings and the widths of its environment."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import jax

from entropyfloor.control import ring, seeding
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.config import ControlConfig, FastConfig, PPOConfig, TDMPC2Config, required
from entropyfloor.control.envs import make
from entropyfloor.control.on_policy import step_bytes
from entropyfloor.control.replay import transition_bytes
from entropyfloor.runs.needs import LINE, Needs

LIBRARIES = 600 * 2**20
"""Bytes of Python, JAX, MuJoCo and compiled updates in a process: measured, 0.5 to 0.6 GiB on a CPU."""
SIMULATORS = 200 * 2**20
"""Bytes of a process of environments."""
EPISODE = 1000
"""Steps of an episode, for an agent whose state asks for it; its size does not depend on it."""


def needs(config: ControlConfig, *, on_cpu: bool) -> Needs:
    """What a run with these settings needs; intermediate results of its updates are not counted.

    Args:
        config: Settings.
        on_cpu: Whether it trains on the CPU.

    Raises:
        ValueError: There is no such environment.
        ImportError: The environment is not installed.
    """
    config = config.resolved()
    obs_dim, action_dim = _sizes(config.env, json.dumps(config.env_options()))
    processes = config.env_processes if isinstance(config, FastConfig) else 0
    always = {"libraries": LIBRARIES + processes * SIMULATORS}
    transitions, drawn, each, networks = 0, 0, 0, 0
    if isinstance(config, PPOConfig):
        drawn, each = config.rollout_steps * config.num_envs, step_bytes(obs_dim, action_dim)
    else:
        fast = isinstance(config, FastConfig)
        each = ring.step_bytes(obs_dim, action_dim) if fast else transition_bytes(obs_dim, action_dim)
        # A replay on the device takes all of its memory at once, one on the host what it is filled with.
        steps = config.steps if fast else config.steps // config.action_repeat
        transitions = min(required(config.replay_capacity), steps)  # type: ignore[attr-defined]
        drawn = required(config.updates_per_step) * required(config.batch_size)  # type: ignore[attr-defined]
        networks = _networks(config, obs_dim, action_dim)
    replay, batches = {"replay": transitions * each}, {"batches": drawn * each, "networks": networks}
    checkpoint = transitions * each + networks
    lines = LINE * (config.steps // config.log_every + config.steps // config.eval_every)
    if on_cpu:  # a checkpoint is written from the arrays themselves, where a process has one seed
        return Needs({"training": always | replay | batches}, 0, checkpoint, lines)
    on_device = replay if isinstance(config, FastConfig) else {}
    host = sum(always.values()) + checkpoint
    return Needs({"training": {"libraries": LIBRARIES} | on_device | batches}, host, checkpoint, lines)


@cache
def _sizes(env: str, options: str) -> tuple[int, int]:
    """Widths of an observation and of an action; 1 for a discrete one."""
    made = make(env, **json.loads(options))
    try:
        return math.prod(made.observation_space.shape or ()), math.prod(made.action_space.shape or ())
    finally:
        made.close()


def _networks(config: ControlConfig, obs_dim: int, action_dim: int) -> int:
    """Bytes of parameters, targets and moments of the optimisers."""
    agent: Any = build_agent(config, action_dim)
    episode = (EPISODE,) if isinstance(config, TDMPC2Config) else ()
    state = jax.eval_shape(
        lambda key: agent.init(key, obs_dim, action_dim, *episode), seeding.key(0, seeding.INIT)
    )
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
