"""Checks of single numbers, which name the argument and the way out. Needs no framework."""

import math
from typing import Any


def check_number(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value`, which the message calls `name`, is one number.

    Examples:
        >>> from entropyfloor.checks import check_number
        >>> check_number("target_entropy", "-A/2")
        Traceback (most recent call last):
        ValueError: target_entropy='-A/2' is text: pass a number; entropyfloor.targets.resolve reads rules in A
    """
    if isinstance(value, float | int):  # first: all that compilers see here
        return
    if isinstance(value, str):
        rules = "; entropyfloor.targets.resolve reads rules in A" if name == "target_entropy" else ""
        raise ValueError(f"{name}={value!r} is text: pass a number{rules}")
    if shape := getattr(value, "shape", ()):
        raise ValueError(f"{name} has the shape {tuple(shape)}: pass one number")
    try:
        float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} is not a number: pass one") from None


def check_whole(name: str, value: int, least: int) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least `least`."""
    check_number(name, value)
    if isinstance(value, bool) or not is_finite(value) or int(value) != value or value < least:
        raise ValueError(f"{name}={value} must be a whole number of at least {least}")


def check_counts(**counts: int | None) -> None:
    """Raise `ValueError` unless every number that is given is at least 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count} must be at least 1")


def is_finite(value: float) -> bool:
    """Whether `value` is finite, by comparisons: compilers can trace those, but not `math.isfinite`."""
    return -math.inf < value < math.inf
