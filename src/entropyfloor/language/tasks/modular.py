"""Modular arithmetic: chains of operations modulo 7, from left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from entropyfloor.language.rewards import Row
from entropyfloor.language.tasks.base import OPERATORS, STEP, Generated, Problem, Split, draw_distinct

MODULUS = 7
"""A number is one digit."""
SIGNS = "+-*"


@dataclass(frozen=True)
class Modular(Generated):
    """Chains from left to right modulo 7: `3+5*2-4%7:` is solved by `3+5=1,1*2=2,2-4=5`.

    The steps must be those of the chain, each starting from the result before it; only the last result must be
    right.

    Args:
        length: Number of operations.

    Raises:
        ValueError: `length` is below 1.
    """

    length: int = 5
    name = "modular"
    alphabet = "0123456789+-*=,%:"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")

    @property
    def max_prompt(self) -> int:
        """Length of a prompt, in characters."""
        return 2 * self.length + 4

    @property
    def max_new_tokens(self) -> int:
        """Length of a solution with its end; a step is `3+5=1,`."""
        return 6 * self.length

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Numbers below the modulus and operators, all equally likely."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            numbers = [int(n) for n in rng.integers(MODULUS, size=self.length + 1)]
            signs = [SIGNS[i] for i in rng.integers(3, size=self.length)]
            chain = str(numbers[0]) + "".join(f"{s}{n}" for s, n in zip(signs, numbers[1:], strict=True))
            row: dict[str, Any] = {"prompt": f"{chain}%{MODULUS}:", "numbers": numbers, "operators": signs}
            row["answer"] = _steps(row)[-1].partition("=")[2]
            return chain, Problem(row["prompt"], row["answer"], row)

        return draw_distinct(self.name, draw, split, count, seed, or_fewer=or_fewer)

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """The steps; with `wander`, one step has a random result, and the following ones start from it."""
        if not wander:
            return ",".join(_steps(problem.row))
        return ",".join(_steps(problem.row, int(rng.integers(self.length)), int(rng.integers(MODULUS))))

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the steps are those of the chain and the last result is right."""
        value, *rest = problem.row["numbers"]
        steps = response.strip().split(",")
        if len(steps) != len(rest):
            return 0.0
        for step, sign, number in zip(steps, problem.row["operators"], rest, strict=True):
            parsed = STEP.fullmatch(step)
            if parsed is None or parsed.group(1, 2, 3) != (str(value), sign, str(number)):
                return 0.0
            value = parsed[4]
        return float(value == problem.answer)


def _steps(row: Row, wrong_step: int | None = None, wrong_result: int = 0) -> list[str]:
    """Steps of a solution, one of them with another result where `wrong_step` is given."""
    value, *rest = row["numbers"]
    steps = []
    for i, (sign, number) in enumerate(zip(row["operators"], rest, strict=True)):
        right = OPERATORS[sign](value, number) % MODULUS
        result = wrong_result if i == wrong_step else right
        steps.append(f"{value}{sign}{number}={result}")
        value = result
    return steps
