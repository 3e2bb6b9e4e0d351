r"""Numbers in answers: `-1,234.5`, `4.5e33`, `4.5 \times 10^{33} \text{ J}`, `12.5\%`, `30^\circ`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

CLOSE = Decimal("1e-6")
"""Largest difference of two numbers of about 1 that count as equal."""
_UNIT = r"\\(?:text|mathrm|textrm|rm|mbox)\{[^{}\d]*\}(?:\^\{?[-+]?\d\}?)?"
_NUMBER = re.compile(
    r"(?P<plain>[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?)"
    r"(?:[eE](?P<e>[-+]?\d{1,4})"
    r"|(?P<times>\\times|\\cdot|\*|×)?10(?:\^|\*\*)(?:\{(?P<ten>[-+]?\d{1,4})\}|(?P<one>\d)))?"
    rf"(?:\^(?:\\circ|\{{\\circ\}}))?(?:(?:/|\\cdot)?{_UNIT})*(?P<percent>\\?%)?"
)
_SPACE = re.compile(r"\\[,;:!$ ]|[\s~$]")
"""Spaces and dollars, which do not change the value."""
_SEVERAL = re.compile(r",\s+\d|\d\s+(?!\d{3}(?!\d))\d")
"""Two numbers: behind a comma and a space, or behind a space that separates no thousands."""
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORD = rf"(?:{'|'.join(_POWERS)})s?(?![a-zA-Z])"
_IN_WORDS = re.compile(
    r"(?P<number>(?<!\d)\d+(?:,\d{3}){0,9}(?:\.\d+)?|\})(?:\s|~|\\[ ,;:!])*"
    rf"(?P<brace>\\(?:text|textrm|mathrm|rm|mbox)\s*\{{\s*)?(?P<words>{_WORD}(?:[\s~]+{_WORD})*)",
    re.IGNORECASE,
)


class Number(NamedTuple):
    """Value of a text, and how it is written."""

    value: Decimal
    power: bool = False
    """Whether a power of ten was written."""
    percent: bool = False
    """Whether a per cent sign follows; `value` is the number before it."""


def without_words(text: str) -> str:
    """Write words for powers of ten, as in `5 million`, in digits: they are no units."""

    def digits(match: re.Match[str]) -> str:
        words = re.findall("|".join(_POWERS), match["words"].lower())
        power, behind = sum(map(_POWERS.__getitem__, words)), match["brace"] or ""
        before = text[: match.start()]
        if match["number"] == "}" or before.endswith((".", "}")) or before.rstrip().endswith(("/", "^")):
            # more of the number stands before it
            return rf"{match['number']}\times 10^{{{power}}}{behind}"
        return f"{Decimal(match['number'].replace(',', '')).scaleb(power):f}{behind}"

    return _IN_WORDS.sub(digits, text)


def number(text: str) -> Number | None:
    """Read a text that is one number, without the units behind it; None for any other text."""
    if _SEVERAL.search(re.sub(r"\\[,;: ]|~", " ", text).replace("$", "")):
        return None
    match = _NUMBER.fullmatch(_SPACE.sub("", text))
    if match is None:
        return None
    plain, e, ten = match["plain"].replace(",", ""), match["e"], match["ten"] or match["one"]
    digits = any(character.isdigit() for character in plain)
    if not (digits or ten) or (ten and digits == (match["times"] is None)):
        return None  # neither 210^3 nor a factor without a number before it is a power of ten
    value = Decimal(f"{plain if digits else f'{plain}1'}E{e or ten or 0}")  # exact, as nothing is computed
    return Number(value, bool(e or ten), bool(match["percent"]))


def same(said: Number, gold: Number) -> bool:
    """Whether two numbers are equal, within the precision of physical constants.

    Where a power of ten was written they may differ by 10⁻⁶ of the size of `gold`. Plain numbers above 1 may
    differ by no more than 10⁻⁶, so whole numbers are compared exactly. (math-verify rounds to six decimals
    instead, and calls 1.6 · 10⁻¹⁹ and 2.6 · 10⁻¹⁹ equal.) A per cent sign may be left out: 12.5 and 0.125 equal
    12.5 %.
    """
    power = said.power or gold.power
    if _close(said.value, gold.value, power):
        return True
    if said.percent == gold.percent:
        return False
    return _close(_share(said), _share(gold), power)


def _share(number: Number) -> Decimal:
    return number.value.scaleb(-2) if number.percent else number.value


def _close(said: Decimal, gold: Decimal, power: bool) -> bool:
    if said == gold:
        return True
    size = abs(gold)
    if not power:
        size = min(Decimal(1), size)
        if said == said.to_integral_value() and gold == gold.to_integral_value():
            return False  # decided before the difference, which is rounded to 28 digits
    return abs(said - gold) <= CLOSE * size
