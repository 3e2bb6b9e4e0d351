"""Sentences about floors: what a group of runs promised, and which entropy was measured."""

from __future__ import annotations

from collections.abc import Iterable

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.domains import Domain
from entropyfloor.report.formats import nats, significant
from entropyfloor.report.groups import THRESHOLDS, Group


def sentence(group: Group, domain: Domain) -> str:
    """What the group promised, and the entropy of its policy or classifier.

    The average is that of the last evaluation that all seeds have. The least value is that of all evaluations, as
    a floor is promised for every state at any time.
    """
    mean = group.values("realised_entropy")[:, -1].mean()
    measured = f"its {domain.actor} had {nats(mean)} on average and {nats(group.least)} at the least"
    if group.floor is None:
        low = group.end(THRESHOLDS[0])
        aim = "" if low is None else f", its updates raise the entropy of responses below {nats(low)} nats"
        return f"{group.label} promised nothing{aim}; {measured} (nats)."
    if group.promise == "target":
        return f"{group.label} promised nothing, its loss steers to {nats(group.floor)} nats; {measured}."
    n = len(group.seeds)
    outcome = (
        f"below the floor in {_share_of_seeds(group.broken, n)}"
        if group.broken
        else f"the floor was kept in {_share_of_seeds(n, n)}"
    )
    return f"{group.label} promised {nats(group.floor)} nats; {measured}: {outcome}."


def verdict(group: Group) -> str:
    """Whether the floor was kept, in a few words."""
    if group.promise != "floor" or group.floor is None:
        return "no floor"
    if not group.broken:
        return "kept"
    return f"broken by {significant(group.floor - group.least)} nats"


def lead(comparisons: Iterable[Comparison]) -> str:
    """How many floors were kept, in one sentence."""
    promised = [group for comparison in comparisons for group in comparison.groups if group.promise == "floor"]
    if not promised:
        return "Nothing here promised a floor."
    kept = sum(not group.broken for group in promised)
    if len(promised) == 1:
        return f"One floor was promised, and it was {'kept' if kept else 'broken'}."
    return f"Of {len(promised)} promised floors, {kept or 'none'} {'were' if kept > 1 else 'was'} kept."


def _share_of_seeds(some: int, n: int) -> str:
    if some < n:
        return f"{some} of {n} seeds"
    return {1: "its one seed", 2: "both seeds"}.get(n, f"all {n} seeds")
