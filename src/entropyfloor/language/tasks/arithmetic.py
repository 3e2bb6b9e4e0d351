"""Arithmetic: sums, differences and products of two numbers, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entropyfloor.language.tasks.base import LONGEST, OPERATORS, STEP, Generated, Problem, Split, draw_distinct

SIGNS = "+-*"


@dataclass(frozen=True)
class Arithmetic(Generated):
    """Sums, differences and products: `47*36:` is solved by `47*30=1410,47*6=282,1410+282=1692`.

    The last result counts; all steps must be well formed.

    Args:
        digits: Number of digits of the larger numbers.

    Raises:
        ValueError: `digits` is below 1.
    """

    digits: int = 2
    name = "arithmetic"
    alphabet = "0123456789+-*=,:"

    def __post_init__(self) -> None:
        if self.digits < 1:
            raise ValueError(f"digits={self.digits} must be at least 1")

    @property
    def max_prompt(self) -> int:
        """Length of the longest prompt, in characters."""
        return 2 * self.digits + 2

    @property
    def max_new_tokens(self) -> int:
        """Length of the solution for the largest numbers, with its end."""
        largest = 10**self.digits - 1
        return max(len(",".join(_steps(largest, sign, largest))) for sign in SIGNS) + 1

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Two numbers of up to `digits` digits. No difference is below 0; 2+3 and 3+2 are the same problem."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            a, b = (int(n) for n in rng.integers(1, 10**self.digits, 2))
            sign = SIGNS[rng.integers(len(SIGNS))]
            if sign == "-":
                a, b = max(a, b), min(a, b)
            prompt, answer = f"{a}{sign}{b}:", str(OPERATORS[sign](a, b))
            row = {"prompt": prompt, "answer": answer, "a": a, "operator": sign, "b": b}
            return f"{max(a, b)}{sign}{min(a, b)}", Problem(prompt, answer, row)

        return draw_distinct(self.name, draw, split, count, seed, or_fewer=or_fewer)

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """The steps; with `wander`, the last result is any number with as many digits."""
        steps = _steps(problem.row["a"], problem.row["operator"], problem.row["b"])
        if wander:
            left, _, result = steps[-1].partition("=")
            digits = len(result)
            steps[-1] = f"{left}={rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits)}"
        return ",".join(steps)

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the last result is right and no step is malformed."""
        text = response.strip()
        well_formed = len(text) <= LONGEST and all(STEP.fullmatch(step) for step in text.split(","))
        return float(well_formed and text.rpartition("=")[2] == problem.answer)


def _steps(a: int, sign: str, b: int) -> list[str]:
    """Steps of a solution: a product is the sum of the products with each digit of b that is not 0."""
    if sign != "*":
        return [f"{a}{sign}{b}={a + b if sign == '+' else a - b}"]
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != "0"][::-1]
    steps = [f"{a}*{part}={a * part}" for part in parts]
    total = a * parts[0]
    for part in parts[1:]:
        steps.append(f"{total}+{a * part}={total + a * part}")
        total += a * part
    return steps
