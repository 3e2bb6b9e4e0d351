r"""Normalisation of answers to LaTeX that math-verify parses: Unicode signs, spaces, units, bases."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

ENDS = 200
"""Length of the end of an answer, in characters, in which a unit or a sign is looked for."""
_SIGNS = {
    "\u2044": "/",
    "°": r"^\circ ",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": r"\div ",
    "−": "-",
    "–": "-",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "≈": r"\approx ",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "≠": r"\neq ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "′": "'",
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|\\[a-zA-Z]+|[a-zA-Z])|\(([^()]*)\)|\{([^{}]*)\})")
_GAP = re.compile(r"(\\\\)|\\[,;:> ]|~|\\(?:q?quad|thinspace|enspace)(?![a-zA-Z])|\s+")
_NOTHING = re.compile(
    r"(\\\\)|\\!|\\?\$|\\[()\[\]]|\\(?:displaystyle|boldsymbol|bm)(?![a-zA-Z])"
    r"|\\[hv]?phantom\s*(?:\{[^{}]*\}|[^\s\\])"
)
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}|\\,)(?=\d{3}(?!\d))")
_IN_BRACES = re.compile(r"(?<![\\_])\{\d{1,3}(?:,\d{3})+\}")
_END = re.compile(r"(?:(?<![.\\])\s*\.{1,2}|\s*[,;])\s*$")
"""A period, comma or semicolon that ends a sentence; an ellipsis does not."""
_NEAR = re.compile(r"\\(?:approx|simeq|sim)(?![a-zA-Z])\s*")
_COMMAND = r"\\(?!sqrt|[dtc]?frac)[a-zA-Z]+(?![a-zA-Z{\[])"
_ABOVE = re.compile(rf"(\\[dtc]?frac)\s*({_COMMAND})")
_BELOW = re.compile(rf"(\\[dtc]?frac\s*(?:\{{[^{{}}]*\}}|\w))\s*({_COMMAND})")
_WRAPPED = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf|tt|normal)?\s*\{([^{}]*)\}|\\mbox\s*\{([^{}]*)\}")
_PER_CENT = re.compile(r"\s*(?:\\?%|\\(?:text|mathrm|mbox)\s*\{\s*(?:percent|per cent|%|\\%)\s*\}|\bper ?cent)$")
_NUMERAL = re.compile(r"(-?)\(?([0-9A-Za-z.]+)\)?_(?:\{([^{}]+)\}|(\d))")
_NAMES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASES = {name: str(base) for base, name in enumerate(_NAMES, start=2)} | {"sixteen": "16"}

_TEXT = r"\\(?:text|textrm|textnormal|textbf|textit|mathrm|mbox|rm)\s*\{(?!\s*-?[\d.]+\s*\})[^{}]*\}"
_POWER = r"(?:\s*\^\s*(?:\{\s*[-+]?\d\s*\}|\d))?"
_SCALE = re.compile(r"(?<=\\circ)\s*(?:[CF]|\\(?:text|mathrm)\s*\{\s*[CF]\s*\})$")
_WORDS = re.compile(rf"(?!.*\b(?:and|or)\b)(?:\s*(?:/|\\cdot)?\s*{_TEXT}{_POWER})+$")
"""Units between braces; `and` and `or` would introduce a second answer."""
_SYMBOL = (
    r"(?:(?:(?:[kcmdhMGTnpf]|\\mu\s*)?(?:m|g|s|L|l|J|N|W|V|A|Hz|Pa|eV|F|T|K|H|mol|cal|bar|rad|\\Omega))"
    r"|ft|in|lb|oz|yd|mi|mph|kmh|h|hr|min|sec|yr|gm|cc|erg|dyn|AU|pc|amu|atm|C)(?![a-zA-Z])"
)
_UNIT = re.compile(
    rf"(?P<value>.*(?:[\d}})\]]|\\pi))\s*"
    rf"(?:(?P<symbol>{_SYMBOL}{_POWER}(?:\s*(?:/|\\cdot|\s)\s*{_SYMBOL}{_POWER})*)"
    rf"|(?<=\s)(?P<words>[a-zA-Z]{{3,}}\.?(?:\s+[a-zA-Z]+\.?)*{_POWER}))",
    re.DOTALL,
)
"""Units without braces behind a value: symbols of physics, or words."""
_NAMED = re.compile(r"^\s*\\?[a-zA-Z]+(?:_(?:\{[^{}]*\}|\w))?\s*(?:=|\\approx)")


class Numeral(NamedTuple):
    """Digits in a base, such as `1011_2`."""

    digits: str
    base: str | None


def tidy(text: str) -> str:
    r"""Normalise the notation of an answer without changing its value.

    Dollars, LaTeX spaces, commas between thousands, a final period, a leading `\\approx`, and units in `\\text{}`
    are removed; `90°`, `2√2` and `x²` become LaTeX, `\\frac\\pi 2` gets its braces, and "percent" becomes `\\%`.
    """
    if not text.isascii():
        text = _from_unicode(text)
    text = _THOUSANDS.sub("", text)
    text = text.replace(r"^{\circ}", r"^\circ")
    text = _GAP.sub(lambda gap: gap[1] or " ", text)
    text = _NOTHING.sub(lambda nothing: nothing[1] or "", text)
    text = _IN_BRACES.sub(lambda digits: digits[0].replace(",", ""), text)
    text = _BELOW.sub(r"\1{\2}", _ABOVE.sub(r"\1{\2}", text))
    text = _cut(_END, text)
    text = text[near.end() :] if (near := _NEAR.match(text)) else text
    value, per_cent = split_per_cent(text)
    if not per_cent:
        value = _cut(_END, _cut(_WORDS, _cut(_SCALE, value)))
    return value + r"\%" * per_cent


def split_per_cent(text: str) -> tuple[str, bool]:
    """The text before a final per cent sign, and whether there is one."""
    value = _cut(_PER_CENT, text)
    return value, value != text.strip()


def _cut(end: re.Pattern[str], text: str) -> str:
    """Remove a matching end, if anything is left without it."""
    text = text.strip()
    match = end.search(text, max(0, len(text) - ENDS))
    return text[: match.start()].strip() or text if match else text


def spaceless(text: str) -> str:
    """Remove spaces, but for those between digits that separate no thousands: 1 1/2 is not 11/2."""
    return re.sub(r"(?<!\d) | (?!\d)| (?=\d{3}(?!\d))", "", re.sub(r"\s+", " ", text))


def words(text: str) -> str:
    r"""Remove spaces, and `\\text{}` around words."""
    return spaceless(_WRAPPED.sub(lambda match: match[1] or match[2] or "", text))


def numeral(text: str) -> Numeral | None:
    """Read a text that is digits, with a base or without one; None for any other text."""
    text = words(text).replace(" ", "")
    match = _NUMERAL.fullmatch(text)
    if match is None:
        return Numeral(text.lstrip("0").upper(), None) if re.fullmatch(r"-?[0-9A-Za-z.]+", text) else None
    sign, digits, base = match[1], match[2].upper(), match[3] or match[4]
    base = _BASES.get(base.lower(), base)
    symbol = not re.search("[0-9]|[A-Z]{2}", match[2])  # such as x_1
    if symbol or not base.isdigit() or any(c.isalpha() and int(c, 36) >= int(base) for c in digits):
        return None
    return Numeral(sign + digits.lstrip("0"), base)


def bases(text: str) -> set[str]:
    """All bases of digits in a text."""
    return set(re.findall(r"(?<![A-Za-z0-9\\_{])\d+_\{?(\d+)", text))


def without_units(said: str, gold: str) -> tuple[str, str]:
    """Remove a unit behind a number from both answers, such as `J`, `m/s^2` or `apples`.

    Units that differ stay: `5 m` is not `5 s`. A single letter right behind the value of `gold` is a factor: `4`
    is not `4t`.
    """
    said_value, said_unit, said_symbol = _split_unit(said)
    gold_value, gold_unit, gold_symbol = _split_unit(gold)
    if re.fullmatch(r"[a-zA-Z]\s*(\^.*)?", gold[len(gold_value) :]):  # 4t and 3s^2 are products
        gold_value, gold_symbol = gold, False
    differ = said_symbol and gold_symbol and words(said_unit) != words(gold_unit)
    if differ or not (_is_constant(said_value) and _is_constant(gold_value)):
        return said, gold
    return said_value, gold_value


def _split_unit(text: str) -> tuple[str, str, bool]:
    """Value, unit, and whether the unit is a symbol, which may also be a variable."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return text, "", False
    return match["value"], match["symbol"] or match["words"], bool(match["symbol"])


def _is_constant(text: str) -> bool:
    """Whether a text has no variable, apart from a name before an equals sign."""
    return re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+|(?<=\d)[eE](?=[-+]?\d)", "", _NAMED.sub("", text))) is None


def _from_unicode(text: str) -> str:
    """Replace Unicode signs by LaTeX."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀-₉]+", lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text)
    text = re.sub("[¼-¾⅐-⅞]", _fraction, text)
    text = unicodedata.normalize("NFKC", text)  # wide digits and signs, and spaces
    text = re.sub("[Α-Ωα-ω]", _greek, text)
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    return _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)


def _fraction(match: re.Match[str]) -> str:
    above, below = unicodedata.normalize("NFKC", match[0]).split("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _greek(match: re.Match[str]) -> str:
    name = unicodedata.name(match[0])
    word = name.rsplit(maxsplit=1)[-1].lower().replace("lamda", "lambda")
    return f"\\{word.capitalize() if 'CAPITAL' in name else word} "
