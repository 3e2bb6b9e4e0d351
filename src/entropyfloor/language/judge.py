"""The command `judge`: verdicts with their reasons on one answer, or on a file of answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from entropyfloor.language.rewards import LETTERS, Reward, Row, Verdict, boxed, final_answer, letter, verdicts
from entropyfloor.language.tasks.rows import lines_of

SECONDS = 5.0
"""Time limit of a check, as in training."""
BATCH = 256
"""Number of pairs that are judged together."""


class Pair(NamedTuple):
    """An answer and the right answer."""

    said: str
    gold: str
    place: str = ""
    """Place in a file, for messages."""


@dataclass(frozen=True)
class Compare:
    """Verdict on a response, as a function for `Reward`."""

    choices: int | None = None
    """Number of choices of a multiple choice; None compares by mathematics."""

    def __call__(self, response: str, row: Row) -> Verdict:
        """Whether the response has the row's `gold`; a response without a box is an answer as a whole."""
        gold = str(row["gold"])
        if self.choices is not None:
            return verdicts.by_letter(response, gold, self.choices)
        box = boxed(response)
        verdict = verdicts.equal(response if box is None else box, final_answer(gold))
        read = "there is no box: all of it is the answer" if box is None else f"the box has {_line(box)}"
        return Verdict(verdict.correct, f"{verdict.reason} ({read})")

    def prepare(self) -> None:
        """Load the parser of mathematics."""
        if self.choices is None:
            verdicts.equal(r"x + \frac{1}{2}", r"\frac{1}{2} + x")


def judge(pairs: Sequence[Pair], choices: int | None = None, seconds: float = SECONDS) -> Iterator[Verdict]:
    """Verdicts on answers, with a box or without, from processes with a time limit of `seconds`.

    An answer that takes longer is undecided, which counts as wrong. `choices` letters from A may be chosen; None
    compares by mathematics.

    Raises:
        ValueError: A right answer is empty or no letter, or `choices` is more than there are letters.
    """
    _check(pairs, choices)
    with Reward(Compare(choices), seconds=seconds, quiet=True) as reward:
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            scores = reward.score([pair.said for pair in batch], [{"gold": pair.gold} for pair in batch])
            undecided = {index: f"undecided: {reason}" for index, reason in scores.failures.items()}
            for index, reason in enumerate(scores.reasons):
                yield Verdict(bool(scores.values[index]), undecided.get(index, reason))


def _check(pairs: Sequence[Pair], choices: int | None) -> None:
    """Refuse pairs that cannot be judged."""
    if choices is not None and not 2 <= choices <= len(LETTERS):
        raise ValueError(f"choices={choices} must be from 2 to {len(LETTERS)}, the number of letters")
    for pair in pairs:
        where = f"{pair.place}: " if pair.place else ""
        if not pair.gold.strip():
            raise ValueError(f"{where}gold is empty: give the right answer")
        if choices is not None and letter(pair.gold, choices) is None:
            last = LETTERS[choices - 1]
            raise ValueError(f"{where}gold={pair.gold!r} is no letter from A to {last}, of {choices} choices")


def read_pairs(path: Path) -> list[Pair]:
    """Read a jsonl file with one object per line, each with `said` and `gold`, which are texts or numbers.

    Raises:
        ValueError: The file is missing or empty, or a line is damaged or has no such pair; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: give one with an object per line that has said and gold")
    rows = lines_of(path, path.read_bytes(), "said and gold")
    pairs = [Pair(_text(row, "said", place), _text(row, "gold", place), place) for place, row in rows]
    if not pairs:
        raise ValueError(f"{path} has no pairs")
    return pairs


def _text(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or infinite:
        problem = f"is {value!r:.60}" if name in row else "is missing"
        raise ValueError(f"{place}: {name} {problem}: it must be a text or a number")
    return str(value)


def _line(text: str) -> str:
    """The first 80 characters of a text, on one printable line."""
    return " ".join(text.split())[:80].encode("utf-8", "backslashreplace").decode()


def summary(verdict: Verdict) -> str:
    """One line with a verdict and its reason."""
    if verdict.reason.startswith("undecided"):
        return verdict.reason
    return f"{'correct' if verdict.correct else 'wrong'}: {verdict.reason}"
