"""What a run of a control agent needs, from its settings and the widths of its environment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import mujoco
import optax

from entropyfloor.control import ring, seeding
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.tdmpc2.agent import TDMPC2
from entropyfloor.control.config import ControlConfig, FastConfig, PPOConfig, required
from entropyfloor.control.envs import make
from entropyfloor.control.heads import GaussianPolicy
from entropyfloor.control.on_policy import step_bytes
from entropyfloor.control.replay import transition_bytes
from entropyfloor.runs.needs import LINE, Needs

LIBRARIES = 600 * 2**20
"""Bytes of Python, JAX, MuJoCo and compiled updates in a process: measured, 0.5 to 0.6 GiB on a CPU."""
SIMULATORS = 200 * 2**20
"""Bytes of a process of environments."""
EPISODE = 1000
"""Steps of an episode, for an agent whose state asks for it; its size does not depend on it."""
SIZELESS = (float, str, optax.GradientTransformation, GaussianPolicy)
"""Parts of an agent that say nothing of the size of its state: agents of a kind have the same optimisers."""
_counted: dict[Any, int] = {}
"""Bytes of the states of agents, by everything that their sizes depend on."""


def needs(config: ControlConfig, *, on_cpu: bool) -> Needs:
    """What a run with these settings needs; intermediate results of its updates are not counted.

    Args:
        config: Settings.
        on_cpu: Whether it trains on the CPU.

    Raises:
        ValueError: There is no such environment.
        ImportError: The environment is not installed.
    """
    config = config.filled()
    obs_dim, action_dim = _sizes(config.env, json.dumps(config.env_options()))
    processes = config.env_processes if isinstance(config, FastConfig) else 0
    always = {"libraries": LIBRARIES + processes * SIMULATORS}
    transitions = networks = 0
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
    with without_warnings():
        made = make(env, **json.loads(options))
    made.close()
    return math.prod(made.observation_space.shape or ()), math.prod(made.action_space.shape or ())


@contextmanager
def without_warnings() -> Iterator[None]:
    """Leave MuJoCo's warnings to runs: it also writes them to MUJOCO_LOG.TXT in the working directory."""

    def ignore(warning: str) -> None:
        pass

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(ignore)
    try:
        yield
    finally:
        if mujoco.get_mju_user_warning() is ignore:  # dm_control sets its own when it is imported
            mujoco.set_mju_user_warning(before)


def _networks(config: ControlConfig, obs_dim: int, action_dim: int) -> int:
    """Bytes of parameters, targets and moments of the optimisers; agents of the same sizes are counted once."""
    agent: Any = build_agent(config, action_dim)
    scalars = jax.tree.structure(agent.policy.initial_state())
    sizes = type(agent), scalars, *(part for part in vars(agent).values() if not isinstance(part, SIZELESS))
    if (key := (obs_dim, action_dim, sizes)) not in _counted:
        _counted[key] = _bytes_of_state(agent, obs_dim, action_dim)
    return _counted[key]


def _bytes_of_state(agent: Any, obs_dim: int, action_dim: int) -> int:
    episode = (EPISODE,) if isinstance(agent, TDMPC2) else ()
    state = jax.eval_shape(
        lambda key: agent.init(key, obs_dim, action_dim, *episode), seeding.key(0, seeding.INIT)
    )
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
