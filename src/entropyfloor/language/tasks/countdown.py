"""Countdown: reach a target from some numbers, each used once, with + - * /."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from entropyfloor.language.tasks.base import LONGEST, OPERATORS, STEP, Generated, Problem, Split, draw_distinct

LARGEST_TARGET = 99
"""Targets are from 1 to this."""


@dataclass(frozen=True)
class Countdown(Generated):
    """Reach a target from some numbers, each used once, with + - * /.

    `3,7,12=15:` is solved by `12-7=5,5*3=15`: each step takes two of the numbers and puts its result in their
    place; the last result is the target. Arithmetic is exact.

    Args:
        numbers: Number of numbers.
        largest: The largest of them.

    Raises:
        ValueError: An argument is below 2.
    """

    numbers: int = 3
    largest: int = 20
    alphabet = "0123456789+-*/=,:"

    def __post_init__(self) -> None:
        for name in ("numbers", "largest"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 2")

    @property
    def name(self) -> str:
        """`countdown-3`, with the number of numbers."""
        return f"countdown-{self.numbers}"

    @property
    def largest_result(self) -> int:
        """Largest result of a step of a solution; a response may exceed it."""
        return max(self.largest**2, LARGEST_TARGET)

    @property
    def max_prompt(self) -> int:
        """Length of the longest prompt, in characters."""
        return self.numbers * (len(str(self.largest)) + 1) + len(str(LARGEST_TARGET)) + 1

    @property
    def max_new_tokens(self) -> int:
        """One more than the longest solution with its end has; a step is `400*400=400,` at most by default."""
        digits = len(str(self.largest_result))
        return (self.numbers - 1) * (3 * digits + 3) + 1

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Random numbers, and a target that a random derivation reaches; the order of numbers does not matter."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem] | None:
            numbers = [int(n) for n in rng.integers(1, self.largest + 1, self.numbers)]
            steps, target = _derive(numbers, rng, self.largest_result)
            if not 1 <= target <= LARGEST_TARGET:
                return None
            prompt = f"{','.join(map(str, numbers))}={target}:"
            row = {"prompt": prompt, "answer": str(target), "numbers": numbers, "target": target}
            return f"{sorted(numbers)} {target}", Problem(prompt, str(target), row | {"solution": steps})

        return draw_distinct(self.name, draw, split, count, seed, or_fewer=or_fewer)

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """The derivation that the target comes from; with `wander`, another one of the same numbers."""
        if not wander:
            return str(problem.row["solution"])
        return _derive(problem.row["numbers"], rng, self.largest_result)[0]

    def reward(self, problem: Problem, response: str) -> float:
        """1 where every number is used exactly once, every step is right and the last result is the target."""
        text = response.strip()
        if len(text) > LONGEST:
            return 0.0
        return float(_last_result(text, problem.row["numbers"]) == problem.row["target"])


def _derive(numbers: Sequence[int], rng: np.random.Generator, most: int) -> tuple[str, int]:
    """A random derivation with whole results from 1 to `most`: its steps and its last result."""
    left = [int(n) for n in numbers]
    steps = []
    while len(left) > 1:
        i, j = rng.permutation(len(left))[:2]
        a, b = max(left[i], left[j]), min(left[i], left[j])
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
        possible = [sign for sign, c in results.items() if 1 <= c <= most]  # a - b, or a / b where that is 0
        sign = possible[rng.integers(len(possible))]
        steps.append(f"{a}{sign}{b}={results[sign]}")
        left = [x for k, x in enumerate(left) if k not in (i, j)] + [results[sign]]
    return ",".join(steps), left[0]


def _last_result(text: str, numbers: Sequence[int]) -> int | Fraction | None:
    """The last result of steps that use each number once; None where a step is wrong."""
    left, result = Counter(numbers), None
    steps = text.split(",")
    if len(steps) != len(numbers) - 1:
        return None
    for step in steps:
        parsed = STEP.fullmatch(step)
        if parsed is None:
            return None
        a, b, c = (int(parsed[k]) for k in (1, 3, 4))
        left.subtract((a, b))
        if min(left[a], left[b]) < 0 or (parsed[2] == "/" and b == 0):
            return None
        result = OPERATORS[parsed[2]](a, b)
        if result != c:
            return None
        left[c] += 1
    return result
