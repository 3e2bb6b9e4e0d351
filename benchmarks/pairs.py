"""Speed of several sides, measured in turns, so that what the machine does meanwhile hurts all alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from entropyfloor.runs import machine
from entropyfloor.runs.statistics import bootstrap_interval

Pairs = list[tuple[str, str]]


class Side(NamedTuple):
    """A side of a comparison."""

    turn: Callable[[], object]
    count: int
    """How much a turn does: updates, or environment steps."""


def header(*packages: str) -> str:
    """The machine, the time, and versions of packages: the first line that a benchmark prints."""
    found = machine.describe()
    versions = (f"{name} {found['versions'].get(name, 'missing')}" for name in packages)
    return ", ".join([found["hardware"]["cpu"], "one thread", found["started"], *versions])


def measure(
    sides: dict[str, Side], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, np.ndarray]:
    """Seconds per update or step, one value a round, all sides in each round in random order.

    The default clock counts CPU time. On an accelerator it has to wait for the device, and to count wall time.
    """
    for side in sides.values():
        side.turn(), side.turn()
    rng, seconds = np.random.default_rng(0), {name: np.empty(rounds) for name in sides}
    for i in range(rounds):
        for name in rng.permutation(list(sides)):
            start = clock()
            sides[name].turn()
            seconds[name][i] = (clock() - start) / sides[name].count
    return seconds


def median(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    return float(np.median(values)), *bootstrap_interval(values, np.median, resamples=2000)


def compare(
    title: str, unit: str, sides: dict[str, Side], pairs: Pairs, rounds: int, limits: Mapping[str, float] = {}
) -> dict[str, np.ndarray]:
    """Print the rate of each side, its share of the highest possible one where that is known, and ratios of pairs.

    Returns:
        What `measure` found.
    """
    seconds = measure(sides, rounds)
    print(f"\n{title}; {rounds} rounds")
    print(f"{'':<16}{f'{unit} per CPU-second':>32}{'share of limit' if limits else '':>16}")
    for name, values in seconds.items():
        rate = 1 / np.median(values)
        share = f"{rate / limits[name]:.0%}" if name in limits else ""
        print(f"{name:<16}{rate:>32,.1f}{share:>16}")
    for one, other in pairs:
        middle, low, high = median(seconds[one] / seconds[other])
        print(f"time of {one} / time of {other}: {middle:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    return seconds
