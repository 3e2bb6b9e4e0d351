"""Extraction of answers from texts and rows: boxes, `####`, numbers, and letters of a multiple choice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

Row = Mapping[str, Any]
"""A problem as its file has it: values by the names of their columns."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the choices of a multiple choice."""
CHOICES = 10
"""Default number of choices: A to J."""
ALONE = 60
"""Longest text, in characters, that is read as nothing but a letter with a few words around it."""
_DRESS = re.compile(
    r"\\(?:(?:text|math)(?:bf|rm|it|sf|tt|normal)?|bf|rm|it|boldsymbol|bm|left|right|displaystyle)(?![a-zA-Z])"
    r"|[{}$*\"\u201c\u201d]|\\[()\[\]!]"
)
"""Bold, upright or quoted type around a letter."""
_GAP = re.compile(r"\\[,;: ]|~|\\q?quad(?![a-zA-Z])")


@dataclass(frozen=True)
class Verdict:
    """Judgement of a response; as a number 1 or 0."""

    correct: bool
    reason: str
    """Reason, in a few words."""

    def __bool__(self) -> bool:
        return self.correct

    def __float__(self) -> float:
        return float(self.correct)


def boxed(text: str) -> str | None:
    r"""Content of the last `\\boxed{}` or `\\fbox{}`, stripped; None where no box is closed."""
    content, start = None, -1
    opened: list[int | None] = []  # where each open box begins; None for other braces
    for token in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        if token[0] == "}":
            begin = opened.pop() if opened else None
            if begin is not None and begin > start:
                content, start = text[begin : token.start()].removesuffix("\\ ").strip(), begin
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if token[0] != "{" else None)
    return content


def final_answer(text: str) -> str:
    """Answer of a reference solution: its last box, else the line behind `####`, else the whole text.

    Where there is a `####`, only the text behind the last one counts.
    """
    _, mark, rest = text.rpartition("####")  # GSM8K's mark, or a heading
    answer = boxed(rest)
    if answer is None and mark:
        answer = rest.strip().partition("\n")[0].strip()
    return text.strip() if answer is None else answer


def letter(text: str, choices: int = CHOICES) -> str | None:
    r"""Letter of a multiple choice: in the last box, or the last one that is called the answer; None without one.

    `\\boxed{C}`, `\\boxed{\\text{Option C}}`, `\\boxed{C) what it says}`, "the answer is (C)", "the correct
    answer is option C", "(C) is the right choice" and a text that is nothing but "C", "(C)" or "$C$" are
    understood. "B or C", "the answer is A, B, C, D", `\\boxed{A) x, B) y}`, "the answer I gave" and "answer: A
    particle" name no letter.

    Args:
        text: A response, or an answer.
        choices: Number of choices, lettered from A.
    """
    box = boxed(text)
    bare = _GAP.sub(" ", _DRESS.sub("", text if box is None else box)).strip()
    alone, marked, further, named = _patterns(LETTERS[choices - 1])
    if match := alone.fullmatch(bare[:ALONE]):
        return match[1]
    if box is not None and (match := marked.match(bare)):
        # The next choice has the next letter: "(D) All of (A), (B) and (C)" is D, "A. Vitamin A, C. elegans" is A.
        following = (chr(ord(match[1]) + 1), match["mark"])
        return None if match["other"] or following in further.findall(bare) else match[1]
    last = next(reversed([*named.finditer(bare)]), None)
    return None if last is None or last["other"] else last["sure"] or last["word"] or last["before"]


@cache
def _patterns(last: str) -> tuple[re.Pattern[str], ...]:
    """Patterns of a letter alone, of one before its choice, of further ones, and of one called the answer."""
    letters = f"[A-{last}]"
    what, right = r"(?:answer|option|choice|letter)", r"(?:correct|right|best|final)"
    label = rf"(?i:(?:the\s+)?(?:{right}\s+)?{what}\b(?:\s+is\b)?[\s:]*){{0,2}}"
    # A and I are words of their own where another word follows.
    end = r"\b(?!['\u2019]|\s+(?!(?:because|since|as|is|are|which)\b)[a-z])"
    joined = rf"\W*(?:(?i:or|and)\b|[/&]|\\lor)\W*(?i:{what}\s+)?\W?{letters}{end}"
    listed = rf"(?:[\s,;()]+(?:(?i:and|or)\s+\(?)?{letters})+\W*$"
    labels = rf"(?:\(?{letters}[).:]+\s*)+$"
    alone = re.compile(rf"\W*{label}\W?({letters})\W*")
    marked = re.compile(rf"\W*{label}\W?({letters})(?P<mark>[).:])[).:]*\s(?P<other>{joined}|{labels})?")
    further = re.compile(rf"[,;\n][ \t]*\(?({letters})([).:])\s")
    named = re.compile(
        rf"(?:(?i:\b(?:answer(?:\s+(?:choice|option|letter))?|{right}\s+{what}))"
        rf"(?i:\s+(?:is|must\s+be|should\s+be|would\s+be)\b)?[\s:]*(?i:(?:the\s+)?{what}\b[\s:]*)?"
        rf"\(?(?:(?P<sure>(?![AI]){letters})\b|(?P<word>[AI]){end})"
        rf"|(?<![\w'\u2019])\(?(?P<before>{letters})\)?\s+is\s+the\s+{right}\s+{what}\b)"
        rf"(?P<other>{joined}|{listed}|{labels})?"
    )
    return alone, marked, further, named


def choices_of(row: Row) -> tuple[list[str], list[str]]:
    """Choices of a question, from `options` or `choices`, and their labels; empty lists where there are none."""
    choices = row.get("options") or row.get("choices")
    labels: Any = None
    if isinstance(choices, Mapping) and "text" in choices:  # as ARC has them
        labels, choices = choices.get("label"), choices["text"]
    elif isinstance(choices, Mapping):  # as MedQA has them
        choices = {name: text for name, text in choices.items() if text is not None}
        labels, choices = list(choices), list(choices.values())
    if not isinstance(choices, list | tuple):
        return [], []
    texts = [str(choice) for choice in choices]
    labelled = isinstance(labels, list) and len(labels) == len(texts)
    return texts, [text_of(label) for label in labels] if labelled else list(LETTERS[: len(texts)])


def text_of(value: Any) -> str:
    """A cell of a table as text; empty where the cell is empty."""
    if value is None or value != value:  # NaN, by which a table marks an empty cell
        return ""
    if isinstance(value, list):
        return ", ".join(text_of(part) for part in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
