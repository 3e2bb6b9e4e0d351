"""Numbers as a report prints them."""

from __future__ import annotations

import numpy as np

from entropyfloor.report.statistics import Interval

MINUS = "\N{MINUS SIGN}"


def nats(value: float) -> str:
    """An entropy with two decimals."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS)


def significant(value: float) -> str:
    """A number with two significant digits."""
    return np.format_float_positional(float(f"{value:.2g}"), trim="-").replace("-", MINUS)


def compact(value: float) -> str:
    """A number with at most four significant digits."""
    return f"{value:.4g}".replace("-", MINUS)


def plain(value: float, decimals: int | None = None) -> str:
    """A score or a rate; without `decimals`, a large number has fewer of them than a small one."""
    return f"{value:,.{_default_decimals(value) if decimals is None else decimals}f}".replace("-", MINUS)


def bracketed(interval: Interval, decimals: int | None = None) -> str:
    """A mean and its interval in brackets, if it has one."""
    value, low, high = map(float, interval[:3])
    decimals = _default_decimals(value) if decimals is None else decimals
    if not np.isfinite(low):
        return plain(value, decimals)
    return f"{plain(value, decimals)} [{plain(low, decimals)}, {plain(high, decimals)}]"


def _default_decimals(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
