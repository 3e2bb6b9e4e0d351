r"""Numbers as answers write them: `-1,234.5`, `4.5e33`, `4.5 \times 10^{33} \text{ J}`, `12.5\%`, `30^\circ`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

CLOSE = Decimal("1e-6")
"""Difference up to which two numbers of about 1 are one."""
_UNIT = r"\\(?:text|mathrm|textrm|rm|mbox)\{[^{}\d]*\}(?:\^\{?[-+]?\d\}?)?"
_NUMBER = re.compile(
    r"(?P<plain>[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?)"
    r"(?:[eE](?P<e>[-+]?\d{1,4})"
    r"|(?P<times>\\times|\\cdot|\*|×)?10(?:\^|\*\*)(?:\{(?P<ten>[-+]?\d{1,4})\}|(?P<one>\d)))?"
    rf"(?:\^(?:\\circ|\{{\\circ\}}))?(?:(?:/|\\cdot)?{_UNIT})*(?P<percent>\\?%)?"
)
_SPACE = re.compile(r"\\[,;:!$ ]|[\s~$]")
"""What says nothing, dollars among it."""


class Number(NamedTuple):
    """What a text is worth."""

    value: Decimal
    power: bool = False
    """Whether a power of ten was written."""
    percent: bool = False
    """Whether there is a sign of per cent behind it, of which the value knows nothing."""


def number(text: str) -> Number | None:
    """The number that a text is, without the units behind it; None where it is none."""
    match = _NUMBER.fullmatch(_SPACE.sub("", text))
    if match is None:
        return None
    plain, e, ten = match["plain"].replace(",", ""), match["e"], match["ten"] or match["one"]
    digits = any(character.isdigit() for character in plain)
    if not (digits or ten) or (ten and digits == (match["times"] is None)):
        return None  # 210^3 is no power of ten, and neither is a factor without a number before it
    value = Decimal(f"{plain if digits else f'{plain}1'}E{e or ten or 0}")  # exact, as nothing is computed
    return Number(value, bool(e or ten), bool(match["percent"]))


def same(one: Number, other: Number) -> bool:
    """Whether two numbers are one, as numbers of physics are.

    They may differ by 10⁻⁶ of the size of `other` where a power of ten was written; plain ones above 1 by no more
    than 10⁻⁶, so that whole numbers are exact. (math-verify rounds to six decimals instead, which makes one of
    1.6 · 10⁻¹⁹ and 2.6 · 10⁻¹⁹.) Per cent may be left out: 12.5 and 0.125 are 12.5 %.
    """
    power = one.power or other.power
    if _close(one.value, other.value, power):
        return True
    if one.percent == other.percent:
        return False
    return _close(_share(one), _share(other), power)


def _share(of: Number) -> Decimal:
    return of.value.scaleb(-2) if of.percent else of.value


def _close(one: Decimal, other: Decimal, power: bool) -> bool:
    if one == other:
        return True
    size = abs(other)
    if not power:
        size = min(Decimal(1), size)
        if one == one.to_integral_value() and other == other.to_integral_value():
            return False  # however many digits they have: a difference has 28
    return abs(one - other) <= CLOSE * size
