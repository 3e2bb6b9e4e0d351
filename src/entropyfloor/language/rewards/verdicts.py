"""Judges: whether the answer of a response is correct, and why."""

from __future__ import annotations

import re

from entropyfloor.language.rewards import algebra, latex
from entropyfloor.language.rewards.answers import (
    CHOICES,
    LETTERS,
    Verdict,
    after_hashes,
    boxed,
    final_answer,
    letter,
    numbers_in,
)
from entropyfloor.language.rewards.numbers import number, same

_FORMULA = re.compile(r"\W*[-+|\u2212][A-Z]\W*")


def by_mathematics(response: str, answer: str) -> Verdict:
    r"""Whether the last box of the response is worth the answer; see `is_correct`."""
    found = boxed(response)
    return Verdict(False, r"no closed \boxed{}") if found is None else equal(found, final_answer(answer))


def equal(said: str, gold: str) -> Verdict:
    """Whether two answers are worth the same.

    Args:
        said: Without the box around it.
        gold: The right one.
    """
    if not said.strip():
        return Verdict(False, "nothing is said")
    if _spaceless(said) == _spaceless(gold):
        return Verdict(True, "the same text")
    if (found := _by_number(said, gold)) is not None:  # most are
        return found
    right = _lone_letter(gold)
    if right and not _is_formula(said) and (chosen := letter(rf"\boxed{{{said}}}")):
        return _chosen(chosen, right)
    said, gold = latex.tidy(said), latex.tidy(gold)
    if latex.words(said) == latex.words(gold):
        return Verdict(True, "the same text")
    if (found := _by_base(said, gold)) is not None:
        return found
    said, gold = latex.without_units(said, gold)
    if (found := _by_number(said, gold)) is not None:
        return found
    verdict = algebra.compare(said, gold)
    (bare, one_percent), (other_bare, other_percent) = map(latex.split_per_cent, (said, gold))
    if not verdict and one_percent != other_percent:  # 12 is 12 %, as 0.12 is
        return algebra.compare(bare, other_bare)
    return verdict


def by_letter(response: str, answer: str, choices: int = CHOICES) -> Verdict:
    """Whether the response chooses the letter that the answer is, of so many choices; see `letter`."""
    chosen, right = letter(response, choices), letter(answer, choices)
    if chosen is None or right is None:
        return Verdict(False, f"no letter from A to {LETTERS[choices - 1]} is named")
    return _chosen(chosen, right)


def is_correct(response: str, answer: str) -> bool:
    r"""Whether the last `\\boxed{}` of the response is worth the answer, by mathematics: 1/2, 0.5, \\frac12.

    By math-verify, after equal texts and numbers (`numbers.same`), which need no algebra; what it calls equal
    after rounding is compared exactly. An answer that is nothing but a letter from A to J is read as `letter`
    reads. Some expressions take for ever, in code that nothing but the end of its process can stop: judge what a
    model says through `Reward`.

    Args:
        response: What counts is its last box.
        answer: LaTeX, with or without a box or dollars around it.
    """
    return by_mathematics(response, answer).correct


def is_choice(response: str, answer: str, choices: int = CHOICES) -> bool:
    """Whether the response chooses the letter that the answer is, of so many choices."""
    return by_letter(response, answer, choices).correct


def is_number(response: str, answer: str) -> bool:
    """Whether the response gives the number that the answer is: after `####`, in a box, or the last one in it.

    What is marked may have a word or a unit beside its number, but no other number: 1/5 is not 5.
    """
    found = after_hashes(response)
    if found is None:
        found = boxed(response)
    said, wanted = None if found is None else number(found), number(final_answer(answer))
    if said is None:
        numbers = numbers_in(response if found is None else found)
        said = number(numbers[-1]) if len(numbers) == 1 or (numbers and found is None) else None
    return said is not None and wanted is not None and said.value == wanted.value


def is_exact(response: str, answer: str) -> bool:
    """Whether the response is the answer: after `####`, in a box, or all of it; space at the ends is no part."""
    return final_answer(response) == final_answer(answer)


def _by_number(said: str, gold: str) -> Verdict | None:
    """None where one of them is no number."""
    one = number(said)
    other = None if one is None else number(gold)
    if one is None or other is None:
        return None
    correct = same(one, other)
    return Verdict(correct, "the same number" if correct else "different numbers")


def _lone_letter(answer: str) -> str | None:
    """The letter of an answer that is nothing else, whatever its type."""
    if len(answer) >= 20 or _is_formula(answer) or len(re.findall(r"[A-Za-z]", latex.words(answer))) != 1:
        return None
    return letter(answer)


def _is_formula(answer: str) -> bool:
    """Whether a letter has a sign or bars, as `-A` has: it names no choice."""
    return _FORMULA.fullmatch(latex.words(answer)) is not None


def _chosen(chosen: str, right: str) -> Verdict:
    return Verdict(chosen == right, f"the letter {chosen}" + ("" if chosen == right else f", not {right}"))


def _by_base(said: str, gold: str) -> Verdict | None:
    """None where no digits have a base; one of two numerals may leave it out, as the question has it."""
    used, needed = latex.bases(said), latex.bases(gold)
    if used and needed - used:
        return Verdict(False, f"base {', '.join(sorted(used))}, not {', '.join(sorted(needed))}")
    one, other = latex.numeral(said), latex.numeral(gold)
    if one is None or other is None or not (base := other.base or one.base):
        return None
    correct = one.digits == other.digits and one.base in (None, base)
    return Verdict(correct, f"{'the same' if correct else 'different'} digits in base {base}")


def _spaceless(text: str) -> str:
    return re.sub(r"\s+", "", text)
