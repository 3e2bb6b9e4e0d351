"""Verdicts on the responses to a benchmark's problem: right or wrong, and which answers are equal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from entropyfloor.language.benchmarks.registry import Kind
from entropyfloor.language.rewards import Reward, boxed, letter

WHOLE = re.compile(r"\$?[+-]?[0-9]{1,100}\$?")
"""A whole number, which needs no algebra to be compared."""


class Verdicts(NamedTuple):
    """Verdicts on the responses to a problem, one entry for each response."""

    answers: list[str | None]
    """Answers; equal ones have the same text. None where nothing is boxed, or no letter is named."""
    correct: list[bool]
    undecided: list[bool]
    """Whether the judge failed or took too long; such a response counts as wrong."""


def judge(reward: Reward, kind: Kind, answer: str, responses: Sequence[str]) -> Verdicts:
    """Compare all responses to a problem with its answer, and with each other."""
    if kind == "choice":
        letters = [letter(response) for response in responses]
        return Verdicts(letters, [chosen == answer for chosen in letters], [False] * len(letters))
    boxes = [boxed(response) or None for response in responses]
    different = list(dict.fromkeys(text for text in boxes if text is not None))
    right, failed = _equal(reward, [(text, answer) for text in different])
    correct = {text for text, is_right in zip(different, right, strict=True) if is_right}
    undecided = {different[i] for i in failed}
    # Right answers are equal. The others are compared with each other, except those that the judge failed at;
    # two whole numbers need no judge.
    names = {text: answer if text in correct else _normalised(text) for text in different}
    wrong = [text for text in different if text not in correct | undecided]
    pairs = [
        (b, a) for i, b in enumerate(wrong) for a in wrong[:i] if not (WHOLE.fullmatch(a) and WHOLE.fullmatch(b))
    ]
    for (later, earlier), is_equal in zip(pairs, _equal(reward, pairs)[0], strict=True):
        if is_equal:
            names[later] = names[earlier]
    return Verdicts(
        [None if text is None else names[text] for text in boxes],
        [text in correct for text in boxes],
        [text in undecided for text in boxes],
    )


def _equal(reward: Reward, pairs: Sequence[tuple[str, str]]) -> tuple[list[bool], list[int]]:
    """Whether the two answers of each pair are equal, and the indexes of the pairs that could not be compared."""
    scores = reward.score([f"\\boxed{{{a}}}" for a, _ in pairs], [{"answer": b} for _, b in pairs])
    return (scores.values > 0).tolist(), [*scores.failures]


def _normalised(text: str) -> str:
    return str(int(text.strip("$"))) if WHOLE.fullmatch(text) else "".join(text.split())
