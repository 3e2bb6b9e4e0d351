"""Updates of SAC on an accelerator, many seeds at once by `vmap`, with three heads, without an environment."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.config import configure
from entropyfloor.control.replay import Transition
from gpu_parts.jax_device import require_device
from gpu_parts.rows import Plan, Row, compare, rates
from pairs import Side

OBSERVATION, ACTION = 67, 21
"""Widths of DeepMind Control's humanoid."""
HEADS: dict[str, dict[str, Any]] = {
    "plain head": {"agent": "sac-era", "head": "tanh"},
    "sac-era": {"agent": "sac-era"},
    "sac-era-exact": {"agent": "sac-era-exact"},
}
PRECISIONS = "fp32", "bf16"


def rows(plan: Plan) -> Iterator[Row]:
    """Updates per second of all seeds together, and what a head costs."""
    yield require_device(plan)
    batch, calls = (8, 1) if plan.tiny else (256, 20)
    sizes = [(16, 2)] if plan.tiny else [(256, 64), (256, 1), (256, 8), (512, 64), (512, 1), (512, 8)]
    pairs = [(f"{name}, {p}", f"plain head, {p}") for p in PRECISIONS for name in ("sac-era", "sac-era-exact")]
    pairs += [(f"{name}, bf16", f"{name}, fp32") for name in HEADS]
    for hidden, seeds in sizes:
        sides: dict[str, Side] = {}
        for precision in PRECISIONS:  # the second beside the first, once that has its rows
            case = f"SAC, {OBSERVATION} → {ACTION}, hidden {hidden}, batch {batch}, {seeds} seeds, {precision}"
            if late := plan.late(case):
                yield from late
                continue
            for name, head in HEADS.items():
                sides[f"{name}, {precision}"] = side(
                    {**head, "precision": precision, "hidden": hidden}, seeds, batch, calls
                )
            seconds = yield from compare(plan, case, sides, pairs, 6.0, time.perf_counter)
            yield from rates(case, seconds, "updates per second", "")


def side(settings: dict[str, Any], seeds: int, batch: int, calls: int) -> Side:
    """`calls` updates of every seed, each on a batch of its own that stays on the device.

    All begin with the same parameters, which makes no difference to the time.
    """
    agent = build_agent(configure(**settings).resolved(), ACTION)
    keys = jax.random.split(jax.random.key(0), seeds)
    one = agent.init(keys[0], OBSERVATION, ACTION)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), one)
    shapes = Transition((OBSERVATION,), (ACTION,), (), (), (OBSERVATION,))
    draws = (jax.random.uniform(jax.random.key(0), (seeds, batch, *shape), minval=-1) for shape in shapes)
    data = Transition(*draws)._replace(terminated=jnp.zeros((seeds, batch)))
    update = jax.jit(jax.vmap(agent.update), donate_argnums=0)

    def turn() -> None:
        nonlocal state
        for _ in range(calls):
            state, metrics = update(state, data, keys)
        jax.block_until_ready((state, metrics))

    return Side(turn, calls * seeds)
