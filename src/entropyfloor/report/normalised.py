"""Returns as shares of what a task allows, so that tasks can be averaged: (return - low) / (high - low).

| suite | low | high | source |
|---|---|---|---|
| DeepMind Control | 0 | 1000 | rewards in [0, 1] over 1000 steps; Tassa et al. 2018, arXiv 1801.00690, section 2 |
| HumanoidBench | 0 | the task's success score | `success_bar` of its tasks, commit 791405f of its repository |
| MuJoCo Gym | a random policy | an expert | D4RL's scores, `infos.py`; Fu et al. 2020, arXiv 2004.07219 |

The paper reports normalised returns without its constants. Those of the first two suites are the usual ones; for
Gym the choice is ours, and D4RL's scores are of version 2 of the tasks, where the paper has version 4.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Scale(NamedTuple):
    """Returns that count as 0 and as 1."""

    low: float
    high: float


DMC = Scale(0.0, 1000.0)
SUCCESS = {
    **dict.fromkeys(("walk", "run", "crawl", "stair", "slide", "hurdle", "pole", "push"), 700.0),
    **dict.fromkeys(("stand", "balance_simple", "balance_hard"), 800.0),
    **dict.fromkeys(("sit_simple", "sit_hard"), 750.0),
}
"""Success scores of HumanoidBench's tasks, those of the paper and of the other ones of locomotion."""
GYM = {
    "HalfCheetah": Scale(-280.178953, 12135.0),
    "Hopper": Scale(-20.272305, 3234.3),
    "Walker2d": Scale(1.629008, 4592.3),
    "Ant": Scale(-325.6, 3879.7),
}
"""Scores of a random policy and of an expert."""


def scale_of(env: str) -> Scale | None:
    """The scale of an environment by its name, such as dmc/dog-run; None where no source gives one."""
    suite, _, task = env.partition("/")
    if suite == "dmc":
        return DMC
    if suite == "humanoid_bench" and (found := re.fullmatch(r"(?:h1|h1hand|h1strong|g1)-(\w+)-v\d+", task)):
        return Scale(0.0, SUCCESS[found[1]]) if found[1] in SUCCESS else None
    if suite == "gym" and (found := re.fullmatch(r"(\w+)-v[2-4]", task)):
        return GYM.get(found[1])
    return None


def normalised(returns: ArrayLike, env: str) -> np.ndarray:
    """Normalised returns of an environment, float64; above 1 where they exceed what counts as 1.

    Args:
        returns: Returns of episodes or means of them, of any shape.
        env: Name of the environment.

    Raises:
        ValueError: No source gives the scale of this environment.
    """
    if (scale := scale_of(env)) is None:
        known = f"dmc, the tasks {', '.join(SUCCESS)} of humanoid_bench, and {', '.join(GYM)} of gym"
        raise ValueError(f"returns of {env} have no scale: known are those of {known}")
    return (np.asarray(returns, np.float64) - scale.low) / (scale.high - scale.low)
