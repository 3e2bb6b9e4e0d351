"""Extraction of answers from text: boxes, `####`, numbers, and letters of a multiple choice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the choices of a multiple choice."""
CHOICES = 10
"""Default number of choices: A to J."""
NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)"
"""Digits, perhaps with commas between thousands and with decimals."""
ALONE = 60
"""Characters in which a letter with the words around it must stand to be all that is said."""
_DRESS = re.compile(
    r"\\(?:(?:text|math)(?:bf|rm|it|sf|tt|normal)?|bf|rm|it|boldsymbol|bm|left|right|displaystyle)(?![a-zA-Z])"
    r"|[{}$*\"\u201c\u201d]|\\[()\[\]!]"
)
"""Bold, upright or quoted type around a letter."""
_GAP = re.compile(r"\\[,;: ]|~|\\q?quad(?![a-zA-Z])")


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a response; 1 or 0 as a number."""

    correct: bool
    reason: str
    """In a few words."""

    def __bool__(self) -> bool:
        return self.correct

    def __float__(self) -> float:
        return float(self.correct)


def boxed(text: str) -> str | None:
    r"""What the last `\\boxed{}` or `\\fbox{}` holds, without the space around it; None where none is closed."""
    found, start = None, -1
    opened: list[int | None] = []  # where a box begins; None for other braces
    for token in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        if token[0] == "}":
            begin = opened.pop() if opened else None
            if begin is not None and begin > start:
                found, start = text[begin : token.start()].removesuffix("\\ ").strip(), begin
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if token[0] != "{" else None)
    return found


def after_hashes(text: str) -> str | None:
    """What follows the last `####` on its line, as GSM8K marks answers; None where there is none."""
    _, mark, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0].strip() if mark else None


def numbers_in(text: str) -> list[str]:
    """All numbers in the text, as it writes them."""
    return re.findall(rf"(?:(?<![\w)])[-+])?{NUMBER}", text)  # the 3 of 2-3 has no sign


def final_answer(text: str) -> str:
    """The answer of a reference solution: what follows `####`, else what is boxed, else all of it."""
    found = after_hashes(text)
    if found is None:
        found = boxed(text)
    return text.strip() if found is None else found


def letter(text: str, choices: int = CHOICES) -> str | None:
    r"""The letter of a multiple choice: in the last box, or last named the answer; None without one.

    `\\boxed{C}`, `\\boxed{\\text{Option C}}`, `\\boxed{C) what it says}`, "the answer is (C)", "the correct
    answer is option C", "(C) is the right choice" and a text that is nothing but "C", "(C)" or "$C$" are
    understood. "B or C", "the answer I gave" and "answer: A particle" name none.

    Args:
        text: A response, or an answer.
        choices: How many letters there are, from A on.
    """
    box = boxed(text)
    said = _GAP.sub(" ", _DRESS.sub("", text if box is None else box)).strip()
    alone, marked, named = _patterns(LETTERS[choices - 1])
    if found := alone.fullmatch(said[:ALONE]):
        return found[1]
    if box is not None and (found := marked.match(said)):
        return None if found["other"] else found[1]
    last = next(reversed([*named.finditer(said)]), None)
    return None if last is None or last["other"] else last["sure"] or last["word"] or last["before"]


@cache
def _patterns(last: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A letter alone, one before what it stands for, and one that is named the answer."""
    letters = f"[A-{last}]"
    what, right = r"(?:answer|option|choice|letter)", r"(?:correct|right|best|final)"
    label = rf"(?i:(?:the\s+)?(?:{right}\s+)?{what}\b(?:\s+is\b)?[\s:]*){{0,2}}"
    # A and I are words of their own where another word follows.
    end = r"\b(?!['\u2019]|\s+(?!(?:because|since|as|is|are|which)\b)[a-z])"
    other = (
        rf"(?P<other>\W*(?:(?i:or|and)\b|[/&]|\\lor)\W*(?i:{what}\s+)?\W?{letters}{end}"
        rf"|\)?,\s*\(?{letters}\W*$)?"
    )
    alone = re.compile(rf"\W*{label}\W?({letters})\W*")
    marked = re.compile(rf"\W*{label}\W?({letters})[).:]+\s{other}")
    named = re.compile(
        rf"(?:(?i:\b(?:answer(?:\s+(?:choice|option|letter))?|{right}\s+{what}))"
        rf"(?i:\s+(?:is|must\s+be|should\s+be|would\s+be)\b)?[\s:]*(?i:(?:the\s+)?{what}\b[\s:]*)?"
        rf"\(?(?:(?P<sure>(?![AI]){letters})\b|(?P<word>[AI]){end})"
        rf"|(?<![\w'\u2019])\(?(?P<before>{letters})\)?\s+is\s+the\s+{right}\s+{what}\b){other}"
    )
    return alone, marked, named
