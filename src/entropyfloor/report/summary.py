"""Sentences about floors: whether the measured entropy of a group of runs was below its floor."""

from __future__ import annotations

from collections.abc import Iterable

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.domains import Domain
from entropyfloor.report.formats import nats, significant
from entropyfloor.report.groups import THRESHOLDS, Group


def sentence(group: Group, domain: Domain) -> str:
    """The floor of a group, and the entropy of its policy or classifier.

    The average is that of the last evaluation that all seeds have. The least value is that of all evaluations,
    because a floor is for every state at any time.
    """
    mean = group.values("realised_entropy")[:, -1].mean()
    measured = (
        f"the entropy of its {domain.actor} is {nats(mean)} nats on average and {nats(group.least)} at the least"
    )
    if group.floor is None:
        low = group.end(THRESHOLDS[0])
        aim = "" if low is None else f", and its updates raise the entropy of responses below {nats(low)} nats"
        return f"{group.label} has no floor{aim}: {measured}."
    if group.promise == "target":
        return f"{group.label} has no floor, and its loss has a target of {nats(group.floor)} nats: {measured}."
    n = len(group.seeds)
    outcome = (
        f"is broken in {_share_of_seeds(group.broken, n)}" if group.broken else f"holds in {_share_of_seeds(n, n)}"
    )
    return f"{group.label} has a floor of {nats(group.floor)} nats: {measured}. The floor {outcome}."


def verdict(group: Group) -> str:
    """Whether the floor holds, in a few words."""
    if group.promise != "floor" or group.floor is None:
        return "no floor"
    if not group.broken:
        return "holds"
    return f"broken by {significant(group.floor - group.least)} nats"


def lead(comparisons: Iterable[Comparison]) -> str:
    """How many floors hold, in one sentence."""
    floors = [group for comparison in comparisons for group in comparison.groups if group.promise == "floor"]
    if not floors:
        return "No run has a floor."
    holding = sum(not group.broken for group in floors)
    if len(floors) == 1:
        return f"The one floor {'holds' if holding else 'is broken'}."
    return f"{holding or 'None'} of {len(floors)} floors {'hold' if holding > 1 else 'holds'}."


def _share_of_seeds(some: int, n: int) -> str:
    if some < n:
        return f"{some} of {n} seeds"
    return {1: "its one seed", 2: "both seeds"}.get(n, f"all {n} seeds")
