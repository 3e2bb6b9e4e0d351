"""Equality of expressions: by math-verify, and exactly where it only rounds."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from entropyfloor.extras import require
from entropyfloor.language.rewards.answers import Verdict
from entropyfloor.language.rewards.numbers import CLOSE

ROUNDED = 1e-5
"""Largest difference that math-verify may round away; where it is larger, its verdict has another reason."""
SMALL = 1e-3
"""Decimals below this have fewer than three digits among the six places that math-verify compares."""


def compare(said: str, gold: str) -> Verdict:
    """Whether two texts of LaTeX are worth the same.

    math-verify calls numbers equal that differ by less than 10⁻¹⁵, and decimals that agree in six places: where it
    does, what has no decimals is compared exactly, and small decimals by `CLOSE` of their size.

    Args:
        said: An answer.
        gold: The right one. Where it is no equation, the right side of what is said counts.
    """
    library = _math_verify()
    one, other = _parse(said), _parse(gold)
    if not library.verify(other, one, timeout_seconds=None):
        return Verdict(False, "not equal by algebra")
    if len(one) == len(other) == 2 and one[0] != other[0] and _surely_apart(one[0], other[0]):
        return Verdict(False, "not equal: different numbers that math-verify rounds to the same")
    return Verdict(True, "equal by algebra")


def _parse(text: str) -> list[Any]:
    """The expression, where there is one, and the text of it."""
    library, config = _math_verify(), _config()
    found: list[Any] = library.parse(rf"\boxed{{{text}}}", [config], parsing_timeout=None)
    return found


def _surely_apart(one: Any, other: Any) -> bool:
    try:
        return _apart(one, other)
    except Exception:  # of what has no value, sympy raises anything: then math-verify's word stands
        return False


def _apart(one: Any, other: Any) -> bool:
    """Whether two things that math-verify calls equal are different numbers, or hold some."""
    from math_verify.grader import is_relation, take_last_relation  # type: ignore[import-untyped]
    from sympy.core.relational import Relational

    if is_relation(one) != is_relation(other):
        one, other = (take_last_relation(x).rhs if is_relation(x) else x for x in (one, other))
    elif isinstance(one, Relational) and isinstance(other, Relational):
        if one.lhs == other.lhs:
            one, other = one.rhs, other.rhs
        elif one.rhs == other.rhs:
            one, other = one.lhs, other.lhs
        else:
            one, other = one.lhs - one.rhs, other.lhs - other.rhs
    ours, theirs = _members(one), _members(other)
    if ours is None and theirs is None:
        return _differ(one, other)
    ours, theirs = ours or [one], theirs or [other]
    return len(ours) == len(theirs) and any(_apart(a, b) for a, b in zip(ours, theirs, strict=True))


def _members(thing: Any) -> list[Any] | None:
    """What a tuple, a set, an interval, a matrix or a chain of relations holds, in the order of its values."""
    import sympy
    from sympy.logic.boolalg import BooleanFunction

    if isinstance(thing, sympy.Interval):
        return [thing.start, thing.end]
    if isinstance(thing, sympy.FiniteSet):
        return sorted(thing.args, key=_place)
    if isinstance(thing, sympy.MatrixBase):
        return list(thing.flat())
    if isinstance(thing, sympy.Tuple | sympy.Union | BooleanFunction):
        return list(thing.args)
    return None


def _place(member: Any) -> tuple[float, float, str]:
    value = getattr(member, "rhs", member)
    try:
        found = complex(value.subs(_point(value)).evalf())
    except (TypeError, ValueError, AttributeError):
        return 0.0, 0.0, str(member)
    return found.real, found.imag, ""


def _differ(one: Any, other: Any) -> bool:
    """Whether two expressions have values that are surely different, at some point where they have symbols."""
    import sympy
    from sympy.concrete.expr_with_limits import ExprWithLimits

    if any(x.has(ExprWithLimits, sympy.Derivative, sympy.Limit) for x in (one, other)):
        return False
    decimal = one.has(sympy.Float) or other.has(sympy.Float)
    one, other = (x.subs(_point(x)).doit() for x in (one, other))
    gap = sympy.Abs(one - other).evalf()
    if not gap.is_Float or gap._prec == 1 or not 0 < gap < ROUNDED:  # of precision 1 is what may be 0
        return False
    size = max(sympy.Abs(x).evalf() for x in (one, other))
    return bool(not decimal or (size < SMALL and gap > float(CLOSE) * size))


def _point(expression: Any) -> dict[Any, Any]:
    """A value for each symbol: the same for the same name."""
    import sympy

    return {s: sympy.Rational(sum(s.name.encode()) % 89 + 7, 101) for s in expression.free_symbols}


@cache
def _config() -> Any:
    """Of the parser: units are taken off before, and a number in what cannot be read is not the answer."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig  # type: ignore[import-untyped]
    from math_verify.parser import LatexExtractionConfig  # type: ignore[import-untyped]

    plain = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    return LatexExtractionConfig(normalization_config=plain)


@cache
def _math_verify() -> Any:
    require("language", "math_verify")
    import math_verify  # type: ignore[import-untyped]

    for module in ("parser", "grader"):  # it says that it has no time limit; here the process has one
        logging.getLogger(f"math_verify.{module}").addFilter(
            lambda record: not record.getMessage().startswith("Timeout is disabled")
        )
    return math_verify
