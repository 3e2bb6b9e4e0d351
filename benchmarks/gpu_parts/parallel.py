"""Training with simulators on the accelerator, several seeds at once, until its time is over: returns and speed.

The task is one of MuJoCo Playground's, or one that costs nothing where Playground is not installed.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

import point
from entropyfloor.control.config import configure
from entropyfloor.control.envs import playground
from entropyfloor.control.train import build
from gpu_parts.jax_device import require_device
from gpu_parts.rows import Plan, Row, failure

AGENTS = "fastsac-era", "fasttd3"
EVALUATIONS = 5
"""Number of evaluations of each agent, if its time suffices."""
FULL: dict[str, Any] = {"env": "CheetahRun", "num_envs": 1024, "v_min": -100.0, "v_max": 100.0, "n_steps": 3}
TINY: dict[str, Any] = {
    "env": "CartpoleBalance",
    "num_envs": 4,
    "hidden": 8,
    "critic_hidden": 8,
    "batch_size": 8,
    "random_steps": 8,
    "steps": 400,
    "eval_episodes": 2,
    "max_episode_steps": 20,
}


def rows(plan: Plan) -> Iterator[Row]:
    """The time to compile, returns of every seed, and steps and updates per second, of each agent."""
    yield require_device(plan)
    sizes = TINY if plan.tiny else {**FULL, "precision": "bf16", "eval_episodes": 5, "steps": 2**32 - 1}
    if not playground.tasks():
        point.install()
        sizes = {**sizes, "env": "Point"}
        yield Row("settings", "task", remark="MuJoCo Playground is not installed: the task costs nothing")
    seeds = 2 if plan.tiny else 4
    with ThreadPoolExecutor() as pool:  # compilers are most of it, and need not wait for each other
        begun = {agent: pool.submit(begin, agent, sizes, seeds) for agent in AGENTS}
        for left, agent in zip(range(len(AGENTS), 0, -1), AGENTS, strict=True):
            case = f"{agent}, playground/{sizes['env']}, {sizes['num_envs']} environments, {seeds} seeds"
            if problem := failure(begun[agent].result):
                yield Row(case, "all", skipped=problem)
                continue
            trainer, seconds = begun.pop(agent).result()
            yield Row(case, "loop", "first turn", seconds, "s", remark="it compiles, beside the other agent's")
            if late := plan.late(case):
                yield from late
                continue
            now = time.monotonic()
            yield from train(case, now + (plan.end - now) / left, trainer, seeds)


def begin(agent: str, sizes: dict[str, Any], seeds: int) -> tuple[Any, float]:
    """A trainer that has taken its first turn, and the seconds until then."""
    never, turn = 2**32 - 1, 16 * sizes["num_envs"]
    settings = {**sizes, "env": f"playground/{sizes['env']}", "log_every": turn}
    settings |= {"eval_every": never, "checkpoint_every": never}
    start = time.monotonic()
    trainer: Any = build([configure(agent, **settings, seed=seed).resolved() for seed in range(seeds)])
    trainer.advance()
    jax.block_until_ready(trainer.state)
    return trainer, time.monotonic() - start


def train(case: str, end: float, trainer: Any, seeds: int) -> Iterator[Row]:
    """Train until `end`; an evaluation takes time of its own, which the rates leave out."""
    start, first, playing, evaluated = time.monotonic(), trainer.step, 0.0, 0
    config = trainer.config
    while True:
        now = time.monotonic()
        over = now + playing / max(evaluated, 1) > end or trainer.step >= config.steps
        if over or now > start + (evaluated + 1) * (end - start) / EVALUATIONS:
            steps, seconds = trainer.step - first, max(now - start - playing, 1e-9)
            yield from evaluation(case, trainer, seconds)
            playing, evaluated = playing + time.monotonic() - now, evaluated + 1
        if over:
            break
        trainer.advance()
    if not steps:
        return
    yield Row(case, "loop", "environment steps", seeds * steps / seconds, "1/s", remark="of all seeds")
    updates = steps / config.num_envs * config.updates_per_step
    yield Row(case, "loop", "updates", seeds * updates / seconds, "1/s", remark="of all seeds")


def evaluation(case: str, trainer: Any, seconds: float) -> Iterator[Row]:
    """Mean return and entropy, with those of every seed."""
    actors = (trainer.pick(trainer.state.actor, i) for i in range(len(trainer.configs)))
    lines = [evaluator(actor) for evaluator, actor in zip(trainer.evaluators, actors, strict=True)]
    name = f"{trainer.step:,} steps, {seconds:.0f} s"
    for quantity in ("return", "realised_entropy"):
        values = [line[quantity] for line in lines]
        aims = [f"{aim} {trainer.aim[aim]:.4g}" for aim in trainer.aim if quantity == "realised_entropy"]
        remark = "; ".join(["seeds " + " ".join(f"{value:.4g}" for value in values), *aims])
        yield Row(case, name, quantity, float(np.mean(values)), remark=remark)
