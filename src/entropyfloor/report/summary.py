"""What a report says: what became of each floor, and numbers with the digits that they deserve."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from entropyfloor.report.comparison import THRESHOLDS, Comparison, Group
from entropyfloor.report.domains import Domain
from entropyfloor.report.statistics import Interval

MINUS = "\N{MINUS SIGN}"


def sentence(group: Group, domain: Domain) -> str:
    """What the group promised, and what its policy or classifier did.

    The average is that of the last evaluation that all seeds have; the least value is that of all evaluations, as
    a floor is promised for every state at any time.
    """
    mean = group.values("realised_entropy")[:, -1].mean()
    had = f"its {domain.actor} had {nats(mean)} on average and {nats(group.least)} at the least"
    if group.floor is None:
        low = group.end(THRESHOLDS[0])
        aim = "" if low is None else f", its updates raise the entropy of responses below {nats(low)} nats"
        return f"{group.label} promised nothing{aim}; {had} (nats)."
    if group.promise == "target":
        return f"{group.label} promised nothing, its loss steers to {nats(group.floor)} nats; {had}."
    n = len(group.seeds)
    end = (
        f"below the floor in {_seeds(group.broken, n)}"
        if group.broken
        else f"the floor was kept in {_seeds(n, n)}"
    )
    return f"{group.label} promised {nats(group.floor)} nats; {had}: {end}."


def _seeds(some: int, n: int) -> str:
    if some < n:
        return f"{some} of {n} seeds"
    return {1: "its one seed", 2: "both seeds"}.get(n, f"all {n} seeds")


def verdict(group: Group) -> str:
    """What became of the floor, in a word or two."""
    if group.promise != "floor" or group.floor is None:
        return "no floor"
    if not group.broken:
        return "kept"
    return f"broken by {significant(group.floor - group.least)} nats"


def lead(comparisons: Iterable[Comparison]) -> str:
    """The outcome in one sentence."""
    promised = [group for comparison in comparisons for group in comparison.groups if group.promise == "floor"]
    if not promised:
        return "Nothing here promised a floor."
    kept = sum(not group.broken for group in promised)
    if len(promised) == 1:
        return f"One floor was promised, and it was {'kept' if kept else 'broken'}."
    return f"Of {len(promised)} promised floors, {kept or 'none'} {'were' if kept > 1 else 'was'} kept."


# --- numbers ---------------------------------------------------------------------------------------------


def nats(value: float) -> str:
    """An entropy with two decimals."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS)


def significant(value: float) -> str:
    """Two digits that count: an excess may be 4 nats or 0.001."""
    return np.format_float_positional(float(f"{value:.2g}"), trim="-").replace("-", MINUS)


def plain(value: float, decimals: int | None = None) -> str:
    """A score or a rate, with so many decimals, or as many as its size deserves."""
    return f"{value:,.{_deserved(value) if decimals is None else decimals}f}".replace("-", MINUS)


def _deserved(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2


def bracketed(interval: Interval, decimals: int | None = None) -> str:
    """A mean and, in brackets, its interval, if it has one."""
    value, low, high = map(float, interval[:3])
    decimals = _deserved(value) if decimals is None else decimals
    if not np.isfinite(low):
        return plain(value, decimals)
    return f"{plain(value, decimals)} [{plain(low, decimals)}, {plain(high, decimals)}]"
