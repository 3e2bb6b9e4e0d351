"""Checking the settings of a run against their types and ranges, so that a wrong one is told by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from entropyfloor.runs.schema import UNPRINTABLE


class Range(NamedTuple):
    """Where a number must be."""

    low: float
    high: float
    words: str
    open: bool = False
    """Whether the ends themselves are out."""
    finite: bool = True
    """Whether infinity is out."""

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        if self.finite and abs(value) == math.inf:
            return False
        return self.low < value < self.high if self.open else self.low <= value <= self.high


COUNT = Range(1, math.inf, "at least 1")
NATURAL = Range(0, math.inf, "finite and at least 0")
SHARE = Range(0, 1, "between 0 and 1")
POSITIVE = Range(0, math.inf, "positive and finite", open=True)
FINITE = Range(-math.inf, math.inf, "finite", open=True)
SEED = Range(0, 2**32 - 1, "between 0 and 2**32 - 1")
"""JAX's keys and NumPy's generators know no others."""
THREADS = Range(0, 1024, "between 0 and 1024")
"""Libraries crash where the system cannot give as many as are asked for."""
WORKERS = Range(0, 256, "between 0 and 256")
"""A process is more than a thread: thousands bring a machine to a halt."""
COMMON = {"seed": SEED, "threads": THREADS, "workers": WORKERS}
"""Ranges of settings that have the same name in every room."""
LARGEST = 10**12 - 1
"""Of every whole number: what the names of checkpoints have digits for, and what 64 bits can count with."""


def check(config: Any, ranges: Mapping[str, Range]) -> None:
    """Hold every field of a dataclass to its annotation, and to its range where it has one.

    A number without a range must be finite. Text must be what `config.toml` and a path can hold.

    Raises:
        ValueError: A value of another type, none of the names that a `Literal` lists, or out of range.
    """
    hints, ranges = get_type_hints(type(config)), {**ranges, **COMMON}
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        names, kinds = _names(hint), _types(hint)
        if value not in names and (not isinstance(value, kinds) or isinstance(value, bool) > (bool in kinds)):
            known = [*names, *(kind.__name__ for kind in kinds if kind is not NoneType)]
            raise ValueError(f"{field.name}={value!r} must be one of {', '.join(known)}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(field.name, value, ranges.get(field.name, FINITE))
        elif isinstance(value, str) and value not in names:
            _check_text(field.name, value, may_be_empty=field.default == "")


def _check_number(name: str, value: float, limits: Range) -> None:
    if value not in limits:
        raise ValueError(f"{name}={value} must be {limits.words}")
    if abs(value) > LARGEST and isinstance(value, int):
        raise ValueError(f"{name}={value} must be at most 10**12 - 1")


def _check_text(name: str, value: str, *, may_be_empty: bool) -> None:
    if not (value or may_be_empty):
        raise ValueError(f"{name}='' is empty: leave it out, or give a value")
    if UNPRINTABLE.search(value):
        raise ValueError(f"{name}={value!r} must be UTF-8 text without null bytes or other control characters")


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
