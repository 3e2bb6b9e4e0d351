"""Checking the settings of a run against their types and ranges, so that a wrong one is told by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Where a number must be."""

    low: float
    high: float
    words: str
    open: bool = False
    """Whether the ends themselves are out."""

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        return self.low < value < self.high if self.open else self.low <= value <= self.high and value < math.inf


COUNT = Range(1, math.inf, "at least 1")
NATURAL = Range(0, math.inf, "finite and at least 0")
SHARE = Range(0, 1, "between 0 and 1")
POSITIVE = Range(0, math.inf, "positive and finite", open=True)
FINITE = Range(-math.inf, math.inf, "finite", open=True)
SEED = Range(0, 2**32 - 1, "between 0 and 2**32 - 1")
"""JAX's keys and NumPy's generators know no others."""


def check(config: Any, ranges: Mapping[str, Range]) -> None:
    """Hold every field of a dataclass to its annotation, and to its range where it has one.

    Raises:
        ValueError: A value of another type, none of the names that a `Literal` lists, or out of range.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value, limits = getattr(config, field.name), ranges.get(field.name)
        if limits is not None and isinstance(value, int | float) and value not in limits:
            raise ValueError(f"{field.name}={value} must be {limits.words}")
        names, kinds = _names(hints[field.name]), _types(hints[field.name])
        if value not in names and not isinstance(value, kinds):
            known = [*names, *(kind.__name__ for kind in kinds if kind is not NoneType)]
            raise ValueError(f"{field.name}={value!r} must be one of {', '.join(known)}")


def _names(hint: Any) -> list[str]:
    """The strings that a type lists, alone or in a union."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [name for part in get_args(hint) for name in _names(part)]


def _types(hint: Any) -> tuple[type, ...]:
    """The plain types in a type, alone or in a union; a whole number will do for a float."""
    if isinstance(hint, type):
        return (int, float) if hint is float else (hint,)
    return tuple(kind for part in get_args(hint) if get_origin(hint) is not Literal for kind in _types(part))
