"""The command `judge`: verdicts, with their reasons, on one answer or on a file of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from entropyfloor.language.rewards import verdicts
from entropyfloor.language.rewards.answers import LETTERS, Verdict, boxed, final_answer, letter
from entropyfloor.language.rewards.pool import Reward
from entropyfloor.language.tasks.rows import Row, lines_of

SECONDS = 5.0
"""Time limit of an answer, as in training."""
AT_ONCE = 256
"""Pairs that are judged before their verdicts are returned."""


class Pair(NamedTuple):
    """An answer and the right one."""

    said: str
    gold: str


@dataclass(frozen=True)
class Compare:
    """The verdict on a response, as a function for `Reward`."""

    choices: int | None = None
    """Letters of a multiple choice; None compares by mathematics."""

    def __call__(self, response: str, row: Row) -> Verdict:
        """Whether the response has the row's `gold`; one without a box is an answer as it stands."""
        gold = str(row["gold"])
        if self.choices is not None:
            return verdicts.by_letter(response, gold, self.choices)
        found = boxed(response)
        verdict = verdicts.equal(response if found is None else found, final_answer(gold))
        read = "there is no box: all of it is the answer" if found is None else f"the box has {_line(found)}"
        return Verdict(verdict.correct, f"{verdict.reason} ({read})")

    def prepare(self) -> None:
        """Have the parser of mathematics ready."""
        if self.choices is None:
            verdicts.equal(r"x + \frac{1}{2}", r"\frac{1}{2} + x")


def judge(pairs: Sequence[Pair], choices: int | None = None, seconds: float = SECONDS) -> Iterator[Verdict]:
    """Verdicts on answers, in processes that are ended where they take too long.

    Args:
        pairs: Answers, with a box or without, and the right ones.
        choices: How many letters there are to choose from, A and so on; None compares by mathematics.
        seconds: An answer may take; one that takes longer is undecided, which counts as wrong.

    Raises:
        ValueError: A right answer that is none, or a number of choices that there are no letters for.
    """
    check(pairs, choices)
    with Reward(Compare(choices), seconds=seconds, quiet=True) as reward:
        for start in range(0, len(pairs), AT_ONCE):
            some = pairs[start : start + AT_ONCE]
            scores = reward.score([pair.said for pair in some], [{"gold": pair.gold} for pair in some])
            undecided = {index: f"undecided: {reason}" for index, _, reason in scores.failures}
            for index, reason in enumerate(scores.reasons["reward"]):
                yield Verdict(bool(scores.total[index]), undecided.get(index, reason))


def check(pairs: Sequence[Pair], choices: int | None, places: Sequence[str] | None = None) -> None:
    """Refuse what cannot be judged.

    Args:
        pairs: What is to be judged.
        choices: How many letters there are.
        places: Where each pair stands, for the message.

    Raises:
        ValueError: As `judge`.
    """
    if choices is not None and not 2 <= choices <= len(LETTERS):
        raise ValueError(f"choices={choices} must be from 2 to {len(LETTERS)}, the number of letters")
    for index, pair in enumerate(pairs):
        where = f"{places[index]}: " if places else ""
        if not pair.gold.strip():
            raise ValueError(f"{where}gold is empty: give the right answer")
        if choices is not None and letter(pair.gold, choices) is None:
            last = LETTERS[choices - 1]
            raise ValueError(f"{where}gold={pair.gold!r} is no letter from A to {last}, of {choices} choices")


def read_pairs(path: Path, choices: int | None = None) -> list[Pair]:
    """The pairs of a file with an object a line, each with `said` and `gold`, texts or numbers.

    Raises:
        ValueError: The file is missing or empty, or a line is damaged or has no such pair; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: give one with an object a line, with said and gold")
    rows = list(lines_of(path, path.read_bytes(), "said and gold"))
    places = [place for place, _ in rows]
    found = [Pair(*(_text(row, name, place) for name in Pair._fields)) for place, row in rows]
    if not found:
        raise ValueError(f"{path} has no pairs")
    check(found, choices, places)
    return found


def _text(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or infinite:
        has = f"is {value!r:.60}" if name in row else "is missing"
        raise ValueError(f"{place}: {name} {has}: it must be a text or a number")
    return str(value)


def _line(text: str) -> str:
    """The beginning of a text, on one line that can be printed."""
    return " ".join(text.split())[:80].encode("utf-8", "backslashreplace").decode()


def summary(verdict: Verdict) -> str:
    """A verdict in one line."""
    if verdict.reason.startswith("undecided"):
        return verdict.reason
    return f"{'correct' if verdict.correct else 'wrong'}: {verdict.reason}"
