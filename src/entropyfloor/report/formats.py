"""Numbers as a report prints them, and tables as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entropyfloor.report.statistics import Interval

MINUS = "\N{MINUS SIGN}"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that begin a formula in a spreadsheet."""


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


def duration(seconds: float) -> str:
    """A time in its two largest units, such as 1 h 5 min."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 100 else f"{hours:,} h"


def spreadsheet_safe(text: str) -> str:
    """A text cell that no spreadsheet takes for a formula."""
    safe = f"'{text}" if text.startswith(_FORMULA) else text
    return safe.replace("\r", "\\r")  # `csv` does not quote it


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal, from lines of cells."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _default_decimals(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
