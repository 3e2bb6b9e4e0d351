"""Speed of TD-MPC2: plans and updates, plain and with ERA, in float32 and in bfloat16.

    python benchmarks/model_based.py

Networks of 1 million parameters, the planner and the batch of the defaults, without replay and simulator. One
thread, CPU time, sides in turns of random order: see `pairs.py`.
"""

import argparse
from typing import Any

import jax
import numpy as np

from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.config import configure
from entropyfloor.control.replay import Sequence
from entropyfloor.control.threads import keep_memory, limit_threads
from pairs import Side, compare, header

SIZES = (24, 6, 500)
"""Widths of observation and action, and actions of an episode: walker-walk."""
ARMS = {
    "tdmpc2": ("tdmpc2", "bf16"),
    "tdmpc2-era": ("tdmpc2-era", "bf16"),
    "era-exact": ("tdmpc2-era-exact", "bf16"),
    "tdmpc2 fp32": ("tdmpc2", "fp32"),
    "era-exact fp32": ("tdmpc2-era-exact", "fp32"),
}
PAIRS = [
    ("tdmpc2-era", "tdmpc2"),
    ("era-exact", "tdmpc2"),
    ("tdmpc2 fp32", "tdmpc2"),
    ("era-exact fp32", "era-exact"),
]


def sides(agent_name: str, precision: str) -> dict[str, Side]:
    """Plans in one state, and updates with one batch of random numbers."""
    config: Any = configure(agent_name, model_size="1M", precision=precision, learning_rate=1e-9).resolved()
    obs_dim, action_dim, _ = SIZES
    agent: Any = build_agent(config, action_dim)
    key, rng, shape = jax.random.key(0), np.random.default_rng(0), (config.horizon, config.batch_size)
    state = agent.init(key, *SIZES)
    observation = rng.normal(size=(config.horizon + 1, config.batch_size, obs_dim))
    columns = observation, rng.uniform(-1, 1, (*shape, action_dim)), rng.random(shape), np.zeros(shape)
    batch = jax.device_put(Sequence(*map(np.float32, columns)))
    act, update = jax.jit(agent.act), jax.jit(agent.update, donate_argnums=0)
    seen = batch.observation[0, 0], agent.no_plan()

    def plan() -> None:
        jax.block_until_ready(act(state.actor, seen, key))

    def learn() -> None:
        nonlocal state
        state, _ = update(state, batch, key)
        jax.block_until_ready(state)

    return {"plans": Side(plan, 1), "updates": Side(learn, 1)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each side")
    args = parser.parse_args()
    limit_threads(1)
    keep_memory()
    print(header("jax", "flax"))
    arms = {name: sides(*arm) for name, arm in ARMS.items()}
    for unit in ("plans", "updates"):
        title = f"{unit}: observation {SIZES[0]}, action {SIZES[1]}, 1M parameters"
        compare(title, unit, {name: arm[unit] for name, arm in arms.items()}, PAIRS, args.rounds)


if __name__ == "__main__":
    main()
