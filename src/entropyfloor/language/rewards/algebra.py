"""Equality of expressions by math-verify, with an exact check where math-verify rounds."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from entropyfloor.extras import require
from entropyfloor.language.rewards.answers import Verdict
from entropyfloor.language.rewards.numbers import CLOSE

ROUNDED = 1e-5
"""Largest difference that math-verify may round away; its verdict on a larger one has another reason."""
SMALL = 1e-3
"""Decimals below this have fewer than three significant digits in the six places that math-verify compares."""


def compare(said: str, gold: str) -> Verdict:
    """Whether two LaTeX expressions are equal: the answer to judge and the right one.

    Where `gold` is no equation, the right side of an equation in `said` counts. math-verify calls numbers equal
    that differ by less than 10⁻¹⁵, and decimals that agree in six places. So its equal pairs are compared again:
    exactly if there are no decimals, and small decimals to `CLOSE` of their size.
    """
    library = _math_verify()
    ours, theirs = _parse(said), _parse(gold)
    if not library.verify(theirs, ours, timeout_seconds=None):
        return Verdict(False, "not equal by algebra")
    if len(ours) == len(theirs) == 2 and ours[0] != theirs[0] and _surely_differ(ours[0], theirs[0]):
        return Verdict(False, "not equal: different numbers that math-verify rounds to the same")
    return Verdict(True, "equal by algebra")


def _parse(text: str) -> list[Any]:
    """The parsed expression, if there is one, and its text."""
    library, config = _math_verify(), _config()
    parsed: list[Any] = library.parse(rf"\boxed{{{text}}}", [config], parsing_timeout=None)
    return parsed


def _surely_differ(a: Any, b: Any) -> bool:
    try:
        return _differ(a, b)
    except Exception:  # sympy may raise anything for an expression without a value: math-verify's verdict stands
        return False


def _differ(a: Any, b: Any) -> bool:
    """Whether two objects that math-verify calls equal are different numbers, or contain different numbers."""
    from math_verify.grader import is_relation, take_last_relation  # type: ignore[import-untyped]
    from sympy.core.relational import Relational

    if is_relation(a) != is_relation(b):
        a, b = (take_last_relation(x).rhs if is_relation(x) else x for x in (a, b))
    elif isinstance(a, Relational) and isinstance(b, Relational):
        if a.lhs == b.lhs:
            a, b = a.rhs, b.rhs
        elif a.rhs == b.rhs:
            a, b = a.lhs, b.lhs
        else:
            a, b = a.lhs - a.rhs, b.lhs - b.rhs
    members = _members(a), _members(b)
    if members == (None, None):
        return _values_differ(a, b)
    ours, theirs = members[0] or [a], members[1] or [b]
    return len(ours) == len(theirs) and any(map(_differ, ours, theirs))


def _members(thing: Any) -> list[Any] | None:
    """Members of a tuple, set, interval, matrix or chain of relations, sets in the order of values; else None."""
    import sympy
    from sympy.logic.boolalg import BooleanFunction

    if isinstance(thing, sympy.Interval):
        return [thing.start, thing.end]
    if isinstance(thing, sympy.FiniteSet):
        return sorted(thing.args, key=_sort_key)
    if isinstance(thing, sympy.MatrixBase):
        return list(thing.flat())
    if isinstance(thing, sympy.Tuple | sympy.Union | BooleanFunction):
        return list(thing.args)
    return None


def _sort_key(member: Any) -> tuple[float, float, str]:
    value = getattr(member, "rhs", member)
    try:
        number = complex(value.subs(_point(value)).evalf())
    except (TypeError, ValueError, AttributeError):
        return 0.0, 0.0, str(member)
    return number.real, number.imag, ""


def _values_differ(a: Any, b: Any) -> bool:
    """Whether the values of two expressions surely differ, at one point where they have symbols."""
    import sympy
    from sympy.concrete.expr_with_limits import ExprWithLimits

    if any(x.has(ExprWithLimits, sympy.Derivative, sympy.Limit) for x in (a, b)):
        return False
    decimal = a.has(sympy.Float) or b.has(sympy.Float)
    a, b = (x.subs(_point(x)).doit() for x in (a, b))
    gap = sympy.Abs(a - b).evalf()
    if not gap.is_Float or gap._prec == 1 or not 0 < gap < ROUNDED:  # precision 1 marks a value that may be 0
        return False
    size = max(sympy.Abs(x).evalf() for x in (a, b))
    return bool(not decimal or (size < SMALL and gap > float(CLOSE) * size))


def _point(expression: Any) -> dict[Any, Any]:
    """A value for each symbol, which follows from its name."""
    import sympy

    return {s: sympy.Rational(sum(s.name.encode()) % 89 + 7, 101) for s in expression.free_symbols}


@cache
def _config() -> Any:
    """Configuration of the parser: units were removed before, and a number in unreadable text is no answer."""
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

    for module in ("parser", "grader"):  # math-verify warns that it has no time limit; here the process has one
        logging.getLogger(f"math_verify.{module}").addFilter(
            lambda record: not record.getMessage().startswith("Timeout is disabled")
        )
    return math_verify
