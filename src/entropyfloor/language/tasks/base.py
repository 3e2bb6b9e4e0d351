"""Problem, the protocol of a task, and what the tasks with generated problems share.

Whether a problem is for training or held out follows from the problem alone, so no seed mixes the two.
"""

from __future__ import annotations

import hashlib
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol

import numpy as np

from entropyfloor.language.encoding import Turn
from entropyfloor.language.rewards import Row

Split = Literal["train", "test"]

HELD_OUT = 10
"""One problem in this many is held out for testing."""
LONGEST = 4000
"""Longest response to a generated problem that is read, in characters; solutions are far shorter."""
OPERATORS: dict[str, Callable[[int, int], int | Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": Fraction,
}
INTEGER = r"(?:0|-?[1-9][0-9]*)"
STEP = re.compile(rf"({INTEGER})([-+*/])({INTEGER})=({INTEGER})")
"""One step of a solution, such as `12-7=5`."""


class Problem(NamedTuple):
    """One question with its answer."""

    prompt: str
    answer: str
    row: Row
    """Prompt, answer and everything else that is known of the problem; reward functions read it."""


class Task(Protocol):
    """Problems to train and test on, and rewards for the responses to them.

    `Generated` has everything but `name`, `alphabet`, `max_prompt`, `max_new_tokens`, `problems`, `solution` and
    the reward of one response. Only the model `tiny` needs an alphabet, and only a warm start solutions.
    """

    @property
    def name(self) -> str:
        """Name of the task, used in the names of runs."""

    @property
    def alphabet(self) -> str:
        """Characters of prompts and solutions."""

    @property
    def max_prompt(self) -> int:
        """Length of the longest prompt, in characters."""

    @property
    def max_new_tokens(self) -> int:
        """Length that a solution and its end need, in characters, or in tokens of a language model."""

    @property
    def prompts(self) -> Sequence[str] | None:
        """All prompts, for training and testing; None where problems are generated from a seed."""

    @property
    def data_checksum(self) -> int | None:
        """CRC-32 of all prompts, by which a resumed run recognises its data; None where `prompts` is."""

    @property
    def idle_hint(self) -> str:
        """What to change when all responses to each problem earn the same reward."""

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Draw different problems. A seed always gives the same ones; a larger count adds to them.

        Args:
            split: Training or held-out problems.
            count: Number of problems.
            seed: Seed of the draw.
            or_fewer: Return all problems where there are fewer than `count`.

        Raises:
            ValueError: There are fewer problems than `count`, or none.
        """

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """A response to imitate.

        Args:
            problem: Problem of this task.
            rng: Source of randomness.
            wander: Return a well-formed derivation that may miss the answer instead of a right one.

        Raises:
            ValueError: The task has answers and no solutions.
        """

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> np.ndarray:
        """`[B]` float64: 1 for each right response to its problem, less for any other."""

    def render(self, template: Callable[[Sequence[Turn]], str]) -> None:
        """Replace every prompt by its chat turns, written by `template`.

        Raises:
            ValueError: The problems are no chats, or the template refuses some.
        """

    def leave_out(self, lengths: Mapping[str, int], most: int) -> None:
        """Drop the problems whose prompts are longer than `most`.

        Args:
            lengths: Length of each of `prompts`, such as its number of tokens.
            most: Longest prompt that stays.

        Raises:
            ValueError: The prompts are not known before they are drawn, or no problem is left.
        """

    def close(self) -> None:
        """End the processes that judge responses, if there are any."""


class Generated(ABC):
    """Base class of the tasks whose problems are generated from a seed."""

    prompts = None
    data_checksum = None
    idle_hint = "give a longer --warm-start-steps or a smaller task"

    @abstractmethod
    def reward(self, problem: Problem, response: str) -> float:
        """1 for a right response, 0 for any other."""

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> np.ndarray:
        """See `Task`."""
        return np.array([self.reward(*pair) for pair in zip(problems, responses, strict=True)], np.float64)

    def render(self, template: Callable[[Sequence[Turn]], str]) -> None:  # noqa: ARG002
        """See `Task`."""
        raise ValueError("generated problems are no chats: train without --template")

    def leave_out(self, lengths: Mapping[str, int], most: int) -> None:  # noqa: ARG002
        """See `Task`."""
        raise ValueError("generated problems cannot be left out: train without --max-prompt")

    def close(self) -> None:  # noqa: B027
        """See `Task`; there are no processes to end."""


def draw_distinct(
    name: str,
    draw: Callable[[np.random.Generator], tuple[str, Problem] | None],
    split: Split,
    count: int,
    seed: int,
    *,
    or_fewer: bool,
) -> list[Problem]:
    """`Task.problems` by a function that draws a problem with its key, or None to be called again.

    Problems with the same key are the same, and the key decides about their split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be train or test")
    rng = np.random.default_rng([seed, split == "test"])
    problems: dict[str, Problem] = {}
    misses = 0
    while len(problems) < count:
        drawn = draw(rng)
        if drawn is None:
            continue
        key, problem = drawn
        if key in problems or is_held_out(key) != (split == "test"):
            misses += 1
            # Where a further problem exists, the probability of this many misses in a row is below e^-50.
            if misses > 1000 + 50 * HELD_OUT * (len(problems) + 1):
                if problems and or_fewer:
                    break
                raise ValueError(
                    f"{name} has no more than {len(problems)} problems to {split} with, and not {count}: ask for "
                    "fewer, or make the task larger"
                )
            continue
        problems[key], misses = problem, 0
    return list(problems.values())


def is_held_out(key: str) -> bool:
    """Whether a problem is held out, by a hash of its key that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0
