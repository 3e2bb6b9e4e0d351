"""Judges of answers, with a reason for each verdict, and the reward made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from entropyfloor.language.rewards import algebra, latex
from entropyfloor.language.rewards.answers import (
    CHOICES,
    LETTERS,
    Row,
    Verdict,
    boxed,
    choices_of,
    final_answer,
    letter,
)
from entropyfloor.language.rewards.numbers import number, same, without_words

_FORMULA = re.compile(r"\W*[-+|\u2212][A-Z]\W*")
_CAPITALS = re.compile(r"[A-Z]{3,}")


def by_mathematics(response: str, answer: str) -> Verdict:
    r"""Whether the last box of the response equals the answer; see `is_correct`."""
    said = boxed(response)
    return Verdict(False, r"no closed \boxed{}") if said is None else equal(said, final_answer(answer))


def equal(said: str, gold: str) -> Verdict:
    """Whether two answers are equal: the one to judge, without the box around it, and the right one."""
    if not said.strip():
        return Verdict(False, "the answer is empty")
    if latex.spaceless(said) == latex.spaceless(gold):
        return Verdict(True, "the same text")
    said, gold = without_words(said), without_words(gold)
    if (verdict := _by_number(said, gold)) is not None:  # most answers are numbers
        return verdict
    right = _lone_letter(gold)
    if right and not _is_formula(said) and (chosen := letter(rf"\boxed{{{said}}}")):
        return _chosen(chosen, right)
    said, gold = (without_words(latex.tidy(each)) for each in (said, gold))
    if latex.words(said) == latex.words(gold):
        return Verdict(True, "the same text")
    if all(_CAPITALS.fullmatch(latex.words(each)) for each in (said, gold)):  # to algebra they are a product
        return Verdict(False, "different capitals, or in another order")
    if (verdict := _by_base(said, gold)) is not None:
        return verdict
    said, gold = latex.without_units(said, gold)
    if (verdict := _by_number(said, gold)) is not None:
        return verdict
    verdict = algebra.compare(said, gold)
    (said_bare, said_percent), (gold_bare, gold_percent) = map(latex.split_per_cent, (said, gold))
    if not verdict and said_percent != gold_percent:  # both 12 and 0.12 equal 12 %
        return algebra.compare(said_bare, gold_bare)
    return verdict


def by_letter(response: str, answer: str, choices: int = CHOICES) -> Verdict:
    """Whether the response chooses the right letter; see `letter`."""
    chosen, right = letter(response, choices), letter(answer, choices)
    if chosen is None or right is None:
        return Verdict(False, f"no letter from A to {LETTERS[choices - 1]} is named")
    return _chosen(chosen, right)


def is_correct(response: str, answer: str) -> bool:
    r"""Whether the last `\\boxed{}` of the response equals the answer mathematically: 1/2, 0.5, \\frac12.

    Equal texts and numbers (`numbers.same`) need no algebra; math-verify compares the rest, and what it calls
    equal after rounding is compared exactly. An answer that is one letter from A to J is read by `letter`. Some
    expressions never end, in code that only the end of its process stops: judge responses of a model through
    `Reward`.

    Args:
        response: A response; its last box counts.
        answer: LaTeX, with or without a box or dollars around it.
    """
    return by_mathematics(response, answer).correct


@dataclass(frozen=True)
class Answer:
    """1 where `is_correct` finds the answer of the row in the response, else 0.

    Where the row has choices and its answer is one of their letters, `by_letter` judges instead. Where its answer
    is the text of a choice, the letter of that is right as well.
    """

    def __call__(self, response: str, row: Row) -> float:
        """The reward of one response."""
        answer, texts = str(row["answer"]), [text.strip() for text in choices_of(row)[0]]
        if not 2 <= len(texts) <= len(LETTERS):
            return float(is_correct(response, answer))
        if letter(answer, len(texts)):
            return float(by_letter(response, answer, len(texts)))
        right = LETTERS[texts.index(answer)] if texts.count(answer) == 1 else ""
        return float(is_correct(response, answer) or by_letter(response, right, len(texts)))

    def prepare(self) -> None:
        """Load the parser of mathematics: the first expression takes as long as a hundred others."""
        is_correct(r"\boxed{x + \frac{1}{2}}", r"\frac{1}{2} + x")


# --- parts of judges --------------------------------------------------------------------------------------


def _by_number(said: str, gold: str) -> Verdict | None:
    """Comparison of two numbers; None where one of the answers is no number."""
    ours = number(said)
    theirs = None if ours is None else number(gold)
    if ours is None or theirs is None:
        return None
    correct = same(ours, theirs)
    return Verdict(correct, "the same number" if correct else "different numbers")


def _lone_letter(answer: str) -> str | None:
    """Letter of an answer that is one letter, in any typeface; else None."""
    if len(answer) >= 20 or _is_formula(answer) or len(re.findall(r"[A-Za-z]", latex.words(answer))) != 1:
        return None
    return letter(answer)


def _is_formula(answer: str) -> bool:
    """Whether a letter has a sign or bars, such as `-A`: it names no choice."""
    return _FORMULA.fullmatch(latex.words(answer)) is not None


def _chosen(chosen: str, right: str) -> Verdict:
    return Verdict(chosen == right, f"the letter {chosen}" + ("" if chosen == right else f", not {right}"))


def _by_base(said: str, gold: str) -> Verdict | None:
    """Comparison of numerals with bases, which one of them may leave out; None where neither has a base."""
    used, needed = latex.bases(said), latex.bases(gold)
    if used and needed - used:
        return Verdict(False, f"base {', '.join(sorted(used))}, not {', '.join(sorted(needed))}")
    ours, theirs = latex.numeral(said), latex.numeral(gold)
    if ours is None or theirs is None or not (base := theirs.base or ours.base):
        return None
    correct = ours.digits == theirs.digits and ours.base in (None, base)
    return Verdict(correct, f"{'the same' if correct else 'different'} digits in base {base}")
