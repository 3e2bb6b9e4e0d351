r"""Numbers as answers write them: `-1,234.5`, `4.5e33`, `4.5 \times 10^{33} \text{ J}`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

CLOSE = Decimal("1e-6")
"""Difference up to which two numbers of about 1 are one."""
_UNIT = r"\\(?:text|mathrm|textrm|rm)\{[^{}]*\}(?:\^\{?[-+]?\d\}?)?"
_NUMBER = re.compile(
    r"(?P<plain>[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?)"
    r"(?:[eE](?P<e>[-+]?\d{1,4})"
    r"|(?P<times>\\times|\\cdot|\*|×)?10(?:\^|\*\*)(?:\{(?P<ten>[-+]?\d{1,4})\}|(?P<one>\d)))?"
    rf"(?:(?:/|\\cdot)?{_UNIT})*"
)
_SPACE = re.compile(r"\\[,;:!$ ]|[\s~$]")
"""What says nothing, dollars among it."""


class Number(NamedTuple):
    """What a text is worth."""

    value: Decimal
    power: bool = False
    """Whether a power of ten was written."""


def number(text: str) -> Number | None:
    """The number that a text is, without the units behind it; None where it is none."""
    match = _NUMBER.fullmatch(_SPACE.sub("", text))
    if match is None:
        return None
    plain, e, ten = match["plain"].replace(",", ""), match["e"], match["ten"] or match["one"]
    digits = any(character.isdigit() for character in plain)
    if not (digits or ten) or (ten and digits == (match["times"] is None)):
        return None  # 210^3 is no power of ten, and neither is a factor without a number before it
    written = plain if digits else f"{plain}1"
    return Number(Decimal(f"{written}E{e or ten or 0}"), bool(e or ten))  # exact, as nothing is computed


def same(one: Number, other: Number) -> bool:
    """Whether two numbers are one, as numbers of physics are.

    They may differ by 10⁻⁶ of the size of `other` where a power of ten was written; plain ones above 1 by no more
    than 10⁻⁶, so that whole numbers are exact. (math-verify rounds to six decimals instead, which makes one of
    1.6 · 10⁻¹⁹ and 2.6 · 10⁻¹⁹.)
    """
    if one.value == other.value:
        return True
    size = abs(other.value)
    if not (one.power or other.power):
        size = min(Decimal(1), size)
        if one.value == one.value.to_integral_value() and other.value == other.value.to_integral_value():
            return False  # however many digits they have: a difference has 28
    return abs(one.value - other.value) <= CLOSE * size
