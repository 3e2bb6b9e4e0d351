"""Runs that are averaged: the evaluations of each run, and curves over the seeds of a group."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, Literal, NamedTuple

import numpy as np

from entropyfloor.runs import Record
from entropyfloor.runs.schema import LARGEST
from entropyfloor.runs.vocabulary import PASS_AT, PASS_AT_K, TOLERANCE

RESPONSES, THRESHOLDS = "response_entropy", ("omega_low", "omega_high")
OUTSIDE = ("response_entropy/below", "response_entropy/above")
POINTS = 50
"""Largest number of points in the curve of a quantity that is logged more often than evaluations are: its values
are averaged over blocks of steps."""

Promise = Literal["floor", "target", "nothing"]


class Curve(NamedTuple):
    """A quantity of several seeds against steps."""

    steps: np.ndarray
    """`[steps]`, at which every seed has a value: averages are taken there only."""
    values: np.ndarray
    """`[seeds, steps]`."""
    tails: list[tuple[np.ndarray, np.ndarray]]
    """Steps and values of single seeds from the end of `steps` on, for seeds that went further."""


class Front(NamedTuple):
    """Right responses to held-out problems at several temperatures."""

    temperatures: np.ndarray
    counts: np.ndarray
    """`[seeds, temperatures, problems]`."""
    samples: int
    """Responses to each problem at each temperature."""
    conditions: tuple[Any, ...]
    """Step, number of responses and checksum of the problems: only fronts that share them are drawn together."""


@dataclass(frozen=True)
class SeedRun:
    """The evaluations of one run. All arrays are `[evaluations]`."""

    record: Record
    label: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    """The score of the domain and `ENTROPIES`, all finite."""
    promise: Promise
    """Whether the head promises a floor, the loss steers to a target, or nothing was promised."""
    floor: float | None
    """The promised floor or the target, in nats."""
    note: str | None
    """Why the run is not used, or not to its end."""
    evaluation_steps: np.ndarray
    """Steps of all evaluations, including those that are not used."""
    incomplete: Literal["", "cut", "evaluation failed"] = ""
    """Why a finished run lacks evaluations: its metrics were cut, or one failed; empty if it lacks none."""

    @property
    def state(self) -> str:
        """State of the run's status, or that it is incomplete."""
        return self.incomplete or str(self.record.status["state"])

    @property
    def number(self) -> int:
        """The seed itself."""
        return int(self.record.config["seed"])

    @property
    def least(self) -> float:
        """Least entropy in any state at any evaluation, in nats."""
        return float(self.values["realised_entropy/min"].min())

    def series(self, name: str, every: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of any logged quantity, up to the last evaluation that is used.

        Quantities that evaluations do not measure are averaged over whole blocks of `every` steps.
        """
        if name in self.values:
            return self.steps, self.values[name]
        steps, values = self.record.series(name)
        used = usable(values) & (steps <= self.steps[-1] // every * every)
        blocks, where = np.unique((steps[used] - 1) // every, return_inverse=True)
        middles = blocks * every + (every + 1) / 2
        return middles, np.bincount(where, values[used]) / np.bincount(where)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed: one curve."""

    label: str
    seeds: tuple[SeedRun, ...]
    same_conditions: bool = False
    """Whether `entropyfloor evaluate` evaluated all runs of the comparison under the same conditions."""
    _curves: dict[tuple[str, float], Curve | None] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    @cached_property
    def steps(self) -> np.ndarray:
        """Steps at which every seed was evaluated; averages are taken there only."""
        return _common(seed.steps for seed in self.seeds)

    def values(self, name: str) -> np.ndarray:
        """A quantity of the evaluations at `steps`, `[seeds, steps]`."""
        return np.stack([_at(self.steps, seed.steps, seed.values[name]) for seed in self.seeds])

    def last(self, name: str) -> np.ndarray | None:
        """Any quantity at the last of `steps`, `[seeds]`; None where a seed has neither logged nor evaluated it.

        A quantity that is logged more often than evaluations are is averaged since the evaluation before.
        """
        if name.startswith(PASS_AT) and (evaluated := self.evaluated(name)) is not None:
            return evaluated
        if name in self.seeds[0].values:  # what an evaluation measures
            return self.values(name)[:, -1]
        since, last = self.steps[-2] if len(self.steps) > 1 else -1, self.steps[-1]
        series = [seed.series(name) for seed in self.seeds]
        recent = [values[(steps > since) & (steps <= last)] for steps, values in series]
        return np.array([x.mean() for x in recent]) if all(map(np.size, recent)) else self.evaluated(name)

    def evaluated(self, name: str) -> np.ndarray | None:
        """Results of `entropyfloor evaluate` at the last of `steps`, `[seeds]`; None if not `same_conditions`."""
        values = [seed.record.evaluation.get("values", {}).get(name) for seed in self.seeds]
        return np.array(values) if self.same_conditions and None not in values else None

    def curve(self, name: str, factor: float = 1.0) -> Curve | None:
        """Any logged quantity, times `factor`, against steps; None where no step has it in all seeds."""
        if (name, factor) not in self._curves:  # several figures, captions and tables need the same
            self._curves[name, factor] = self._curve(name, factor)
        return self._curves[name, factor]

    def _curve(self, name: str, factor: float) -> Curve | None:
        series = [seed.series(name) for seed in self.seeds]
        evaluations = max(len(seed.steps) for seed in self.seeds)
        if max(len(steps) for steps, _ in series) > max(POINTS, evaluations):
            ends = [seed.steps[-1] for seed in self.seeds]
            every = max(1, min(math.ceil(max(ends) / POINTS), *ends))  # at least one whole block of the shortest
            series = [seed.series(name, every) for seed in self.seeds]
        common = _common(steps for steps, _ in series)
        if not common.size:
            return None
        tails = [(steps, values, steps >= common[-1]) for steps, values in series]
        return Curve(
            common,
            factor * np.stack([_at(common, steps, values) for steps, values in series]),
            [(steps[tail], factor * values[tail]) for steps, values, tail in tails if tail.sum() > 1],
        )

    def end(self, name: str) -> float | None:
        """Mean over seeds at the end of the curve."""
        curve = self.curve(name)
        return None if curve is None else float(curve.values[:, -1].mean())

    @cached_property
    def pass_at(self) -> Curve | None:
        """pass@k in per cent at the last of `steps`, against k; None where a seed has not logged it there.

        Results of `entropyfloor evaluate` are preferred where all runs have the same conditions: it draws more
        responses than training does.
        """
        names = {
            name
            for seed in self.seeds
            for name in (seed.record.evaluation.get("values", {}) if self.same_conditions else seed.record.names)
        }
        last = {int(k[1]): self.last(name) for name in names if (k := PASS_AT_K.fullmatch(name))}
        known = {k: values for k, values in sorted(last.items()) if values is not None}
        return Curve(np.array([*known]), 100 * np.stack([*known.values()], 1), []) if known else None

    @cached_property
    def front(self) -> Front | None:
        """Right responses at the temperatures of `evaluate --temperatures`; None if a seed has none or others."""
        evaluations = [seed.record.evaluation for seed in self.seeds]
        points = [evaluation.get("front", []) for evaluation in evaluations]
        temperatures = [[point["temperature"] for point in each] for each in points]
        conditions = [tuple(each.get(name) for name in ("step", "samples", "asked")) for each in evaluations]
        alike = [(each, *condition) for each, condition in zip(temperatures, conditions, strict=True)]
        if len(temperatures[0]) < 2 or alike.count(alike[0]) < len(alike):
            return None
        counts = np.array([[point["correct"] for point in each] for each in points])
        return Front(np.array(temperatures[0]), counts, int(evaluations[0]["samples"]), conditions[0])

    def histogram(self, name: str) -> dict[str, np.ndarray] | None:
        """Sum over seeds of a histogram by `entropyfloor evaluate`; None where a seed has none of its last step.

        Raises:
            ValueError: The histograms of the seeds have different edges.
        """
        evaluations = [(seed.record.evaluation, seed.steps[-1]) for seed in self.seeds]
        stored = [each[name] for each, step in evaluations if name in each and each.get("step") == step]
        if len(stored) < len(self.seeds):
            return None
        histograms = [{key: np.array(values) for key, values in histogram.items()} for histogram in stored]
        edges = histograms[0].pop("edges")
        if any(not np.array_equal(edges, histogram.pop("edges")) for histogram in histograms[1:]):
            paths = ", ".join(str(seed.record.path) for seed in self.seeds)
            raise ValueError(
                f"{self.label}: the seeds have their {name} on different edges: evaluate them again: {paths}"
            )
        keys = set.intersection(*map(set, histograms))
        return {"edges": edges, **{key: np.sum([histogram[key] for histogram in histograms], 0) for key in keys}}

    @property
    def floor(self) -> float | None:
        """The promised floor or the target, in nats."""
        return self.seeds[0].floor

    @property
    def promise(self) -> Promise:
        """Whether the head promises a floor, the loss steers to a target, or nothing was promised."""
        return self.seeds[0].promise

    @property
    def least(self) -> float:
        """Least entropy in any state at any evaluation of any seed, in nats."""
        return min(seed.least for seed in self.seeds)

    @property
    def broken(self) -> int:
        """Number of seeds whose entropy was below a promised floor by more than `TOLERANCE`."""
        if self.promise != "floor" or self.floor is None:
            return 0
        return sum(self.floor - seed.least > TOLERANCE for seed in self.seeds)


def usable(values: np.ndarray) -> np.ndarray:
    """Which values are finite, and their squares too."""
    return np.abs(values) < LARGEST


def _common(steps: Iterable[np.ndarray]) -> np.ndarray:
    """Steps that are in all arrays."""
    different = {array.tobytes(): array for array in steps}  # most seeds of a group have the same steps
    return reduce(np.intersect1d, different.values())


def _at(wanted: np.ndarray, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at the wanted steps, which all are among `steps`."""
    return values if len(steps) == len(wanted) else values[np.isin(steps, wanted)]
