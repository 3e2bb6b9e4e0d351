"""From run directories to comparisons: which runs may be averaged, and up to where."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from entropyfloor.report.domains import DOMAINS, Column, Domain
from entropyfloor.runs import Record, find_runs, read_run
from entropyfloor.runs.run_reader import METRICS
from entropyfloor.runs.schema import LARGEST

RESPONSES, THRESHOLDS = "response_entropy", ("omega_low", "omega_high")
OUTSIDE = ("response_entropy/below", "response_entropy/above")
PASS_AT = "pass_at_"
"""pass@k is logged under this and k."""
_K = re.compile(f"{PASS_AT}([1-9][0-9]{{,8}})")
POINTS = 50
"""At most so many in a curve of what is logged more often than evaluations are: it is averaged over blocks."""


class Curve(NamedTuple):
    """A quantity of several seeds against steps."""

    steps: np.ndarray
    """`[steps]`, at which every seed has it: only there is an average taken."""
    values: np.ndarray
    """`[seeds, steps]`."""
    tails: list[tuple[np.ndarray, np.ndarray]]
    """Steps and values of single seeds from where `steps` ends, for seeds that went further."""


NOT_A_DIFFERENCE = frozenset(
    {
        *("seed", "out", "recipe", "threads", "workers", "checkpoint_every", "micro_batch"),
        *("data_dir", "ood_dir", "download", "warm_starts"),
    }
)
"""Settings in which runs of one label may differ."""

CONDITIONS = ("problems", "asked", "samples", "temperature", "ood")
"""What an evaluation may be told; numbers of other conditions are not comparable."""

TOLERANCE = 1e-3
"""Nats. A floor is broken where the realised entropy is below it by more than this."""

UNSET = "unset"
"""Shown for a setting that a run does not have."""
NOT_YET = "no evaluation yet"
"""Shown for a run without one."""

Promise = Literal["floor", "target", "nothing"]


@dataclass(frozen=True)
class Seed:
    """The evaluations of one run. All arrays are `[evaluations]`."""

    record: Record
    label: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    """The score of the domain and `ENTROPIES`, all finite."""
    promise: Promise
    """Whether the head promises a floor, the loss steers to a target, or nothing was promised."""
    floor: float | None
    """What was promised, or is steered to, in nats."""
    note: str | None
    """Why the run is not used, or not to its end."""
    evaluated: np.ndarray
    """Steps of all evaluations, those that are not used too."""
    cut: bool = False
    """Whether the run finished, and evaluations of it are not there any more."""

    @property
    def state(self) -> str:
        """That of its status, but for a run whose metrics were cut."""
        return "cut" if self.cut else str(self.record.status["state"])

    @property
    def number(self) -> int:
        """The seed itself."""
        return int(self.record.config["seed"])

    @property
    def least(self) -> float:
        """The least entropy in any state at any evaluation, in nats."""
        return float(self.values["realised_entropy/min"].min())

    def series(self, name: str, every: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of any logged quantity, up to the last evaluation that is used.

        What no evaluation has measured is averaged over blocks of `every` steps, as far as they are whole.
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
    seeds: tuple[Seed, ...]
    alike: bool = False
    """Whether `entropyfloor evaluate` judged all runs that it stands beside in one way."""
    _curves: dict[tuple[str, float], Curve | None] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    @cached_property
    def steps(self) -> np.ndarray:
        """Steps at which every seed was evaluated; only there is an average taken."""
        return _common(seed.steps for seed in self.seeds)

    def values(self, name: str) -> np.ndarray:
        """A quantity at `steps`, `[seeds, steps]`."""
        return np.stack([_at(self.steps, seed.steps, seed.values[name]) for seed in self.seeds])

    def last(self, name: str) -> np.ndarray | None:
        """Any quantity at the last of `steps`, `[seeds]`; None where a seed has not logged it and was not judged.

        What is logged more often than evaluations are is averaged since the one before.
        """
        if name.startswith(PASS_AT) and (judged := self.judged(name)) is not None:
            return judged
        since, last = self.steps[-2] if len(self.steps) > 1 else -1, self.steps[-1]
        series = [seed.series(name) for seed in self.seeds]
        found = [values[(steps > since) & (steps <= last)] for steps, values in series]
        return np.array([values.mean() for values in found]) if all(map(np.size, found)) else self.judged(name)

    def judged(self, name: str) -> np.ndarray | None:
        """What `entropyfloor evaluate` found at the last of `steps`, `[seeds]`; None if not `alike`."""
        found = [seed.record.evaluation.get("values", {}).get(name) for seed in self.seeds]
        return np.array(found) if self.alike and None not in found else None

    def curve(self, name: str, factor: float = 1.0) -> Curve | None:
        """Any logged quantity, times `factor`, against steps; None where there is no step at which all have it."""
        if (name, factor) not in self._curves:  # several figures, captions and tables need the same
            self._curves[name, factor] = self._curve(name, factor)
        return self._curves[name, factor]

    def _curve(self, name: str, factor: float) -> Curve | None:
        series = [seed.series(name) for seed in self.seeds]
        evaluations = max(len(seed.steps) for seed in self.seeds)
        if max(len(steps) for steps, _ in series) > max(POINTS, evaluations):
            ends = [seed.steps[-1] for seed in self.seeds]
            every = max(1, min(math.ceil(max(ends) / POINTS), *ends))  # the shortest has one whole block at least
            series = [seed.series(name, every) for seed in self.seeds]
        steps = _common(each for each, _ in series)
        if not steps.size:
            return None
        ends = [(each, values, each >= steps[-1]) for each, values in series]
        return Curve(
            steps,
            factor * np.stack([_at(steps, each, values) for each, values in series]),
            [(each[end], factor * values[end]) for each, values, end in ends if end.sum() > 1],
        )

    def end(self, name: str) -> float | None:
        """Mean over seeds at the end of the curve."""
        curve = self.curve(name)
        return None if curve is None else float(curve.values[:, -1].mean())

    @cached_property
    def pass_at(self) -> Curve | None:
        """pass@k in per cent at the last of `steps`, against k; None where a seed has not logged it there.

        Of `entropyfloor evaluate` where it judged all runs alike: it draws more responses than training does.
        """
        names = {
            name
            for seed in self.seeds
            for name in (seed.record.evaluation.get("values", {}) if self.alike else seed.record.names)
        }
        found = {int(k[1]): self.last(name) for name in names if (k := _K.fullmatch(name))}
        known = {k: values for k, values in sorted(found.items()) if values is not None}
        return Curve(np.array([*known]), 100 * np.stack([*known.values()], 1), []) if known else None

    def histogram(self, name: str) -> dict[str, np.ndarray] | None:
        """A histogram of `entropyfloor evaluate`, all seeds added up; None where a seed was not judged.

        Raises:
            ValueError: Seeds were judged on other edges.
        """
        found = [seed.record.evaluation.get(name) for seed in self.seeds]
        histograms = [{key: np.array(values) for key, values in each.items()} for each in found if each]
        if len(histograms) < len(found):
            return None
        edges = histograms[0].pop("edges")
        if any(not np.array_equal(edges, each.pop("edges")) for each in histograms[1:]):
            paths = ", ".join(str(seed.record.path) for seed in self.seeds)
            raise ValueError(
                f"{self.label}: the seeds have their {name} on different edges: evaluate them again: {paths}"
            )
        known = set.intersection(*map(set, histograms))
        return {"edges": edges, **{key: np.sum([each[key] for each in histograms], axis=0) for key in known}}

    @property
    def floor(self) -> float | None:
        """What was promised, or is steered to, in nats."""
        return self.seeds[0].floor

    @property
    def promise(self) -> Promise:
        """Whether the head promises a floor, the loss steers to a target, or nothing was promised."""
        return self.seeds[0].promise

    @property
    def least(self) -> float:
        """The least entropy in any state at any evaluation of any seed, in nats."""
        return min(seed.least for seed in self.seeds)

    @property
    def broken(self) -> int:
        """Number of seeds whose entropy was below a promised floor by more than `TOLERANCE`."""
        if self.promise != "floor" or self.floor is None:
            return 0
        return sum(self.floor - seed.least > TOLERANCE for seed in self.seeds)


@dataclass(frozen=True)
class Comparison:
    """Everything that ran in one environment, or on one dataset."""

    env: str
    domain: Domain
    groups: tuple[Group, ...]
    unused: tuple[Seed, ...]
    """Runs without an evaluation, and those whose metrics were cut beside others of the same settings."""

    @cached_property
    def also(self) -> tuple[Column, ...]:
        """What the table has beside the score: pass@k for the largest k of each group, and that of the domain."""
        ks = {int(group.pass_at.steps[-1]) for group in self.groups if group.pass_at}
        return (*(Column(f"{PASS_AT}{k}", f"pass@{k} (%)", 100.0, 1) for k in sorted(ks)), *self.domain.also)

    @cached_property
    def runs(self) -> list[Seed]:
        """Every run, by label and seed."""
        used = [seed for group in self.groups for seed in group.seeds]
        return sorted([*used, *self.unused], key=lambda seed: (seed.label, seed.number))


class Found(NamedTuple):
    """All that is at or below the paths of a report."""

    comparisons: list[Comparison]
    """By environment, groups by label, seeds by number; at least one has a group."""
    left_out: list[str]
    """Why a run is in none of them, with its path."""


def compare(paths: Sequence[Path]) -> list[Comparison]:
    """The comparisons of `find`."""
    return find(paths).comparisons


def find(paths: Sequence[Path]) -> Found:
    """Read the runs at or below `paths` and sort them by environment and label.

    A run that is damaged, or cannot be compared with the others, is left out.

    Args:
        paths: Run directories, or directories that hold some.

    Raises:
        ValueError: No run that can be drawn; the message names those that were left out.
    """
    left_out: list[str] = []
    by_env: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for path in find_runs(*paths):
        try:
            record = _comparable(read_run(path))
        except ValueError as error:
            left_out.append(str(error))
        else:
            by_env[record.config.get("domain", "control"), record.config["env"]].append(record)
    comparisons = [
        _comparison(env, DOMAINS[domain], by_env[domain, env], left_out) for domain, env in sorted(by_env)
    ]
    if not any(comparison.groups for comparison in comparisons):
        unused = [seed for comparison in comparisons for seed in comparison.unused]
        if unused:
            logged = ", ".join(comparisons[0].domain.measured)
            left_out.insert(
                0,
                f"no run was evaluated yet, {unused[0].record.path} among them: an evaluation logs {logged}",
            )
        left_out += [f"{seed.record.path}: {seed.note}" for seed in unused if seed.note != NOT_YET]
        raise ValueError("; ".join(shortened(left_out)))
    return Found(comparisons, left_out)


def shortened(reasons: Sequence[str], most: int = 10) -> list[str]:
    """The first of them, and how many more there are."""
    rest = len(reasons) - most
    return [*reasons[:most], f"{rest} more"] if rest > 0 else [*reasons]


def _comparable(record: Record) -> Record:
    """The record, if it says what it is a run of."""
    for name in ("env", "agent", "seed"):
        if name not in record.config:
            raise ValueError(f"{record.path} has no {name!r} in its config: it cannot be compared")
    domain = record.config.get("domain", "control")
    if domain not in DOMAINS:
        raise ValueError(f"{record.path}: domain={domain!r} must be one of {', '.join(DOMAINS)}")
    _promise(record)
    return record


def labels(records: Sequence[Record]) -> list[str]:
    """One label a run: its agent, and the settings in which runs of this agent differ.

    So nothing is averaged over different settings, and nobody has to look for what was different.
    """
    by_agent: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_agent[record.config["agent"]].append(record.config)
    different = {agent: differences(configs) for agent, configs in by_agent.items()}
    return [
        ", ".join([agent, *(f"{name}={config.get(name, UNSET)}" for name in different[agent])])
        for config in (record.config for record in records)
        for agent in [config["agent"]]
    ]


def differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings in which configs differ, other than `NOT_A_DIFFERENCE`."""
    names = sorted(set().union(*configs) - NOT_A_DIFFERENCE)
    return [name for name in names if len(distinct(config.get(name, UNSET) for config in configs)) > 1]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Values without repetition, in their order; TOML's lists and tables are compared too."""
    found: dict[Hashable, Any] = {repr(value): value for value in values}
    return list(found.values())


def _comparison(env: str, domain: Domain, records: Sequence[Record], left_out: list[str]) -> Comparison:
    """Groups of the records. Reasons why one is in none of them are added to `left_out`."""
    by_label: defaultdict[str, list[Seed]] = defaultdict(list)
    for record, label in zip(records, labels(records), strict=True):
        by_label[label].append(_evaluations(record, label, domain))
    groups: list[Group] = []
    unused: list[Seed] = []
    for label in sorted(by_label):
        runs = _marked(_once(by_label[label], f"{label} on {env}", left_out))
        unused += [run for run in runs if not run.steps.size]
        used = [run for run in runs if run.steps.size]
        if whole := [run for run in used if not run.cut]:
            unused += [replace(run, note=f"{run.note}; not used") for run in used if run.cut]
        if used:
            try:
                groups.append(_checked(Group(label, tuple(whole or used))))
            except ValueError as error:
                left_out.append(str(error))
    alike = _judged_alike(groups)
    return Comparison(env, domain, tuple(replace(group, alike=alike) for group in groups), tuple(unused))


def _once(seeds: Sequence[Seed], what: str, left_out: list[str]) -> list[Seed]:
    """By number, without those of one number: which of them is right, nobody can say."""
    by_number: defaultdict[int, list[Seed]] = defaultdict(list)
    for seed in seeds:
        by_number[seed.number].append(seed)
    for number, twins in by_number.items():
        if len(twins) > 1:
            paths = " and ".join(str(twin.record.path) for twin in twins)
            left_out.append(f"{paths} are {what} with seed {number}: keep one, or the seed counts twice")
    return [twins[0] for _, twins in sorted(by_number.items()) if len(twins) == 1]


def _marked(runs: Sequence[Seed]) -> list[Seed]:
    """The runs of a label; those that finished and lack their last evaluation, or one that most have, are cut."""
    finished = [run for run in runs if run.record.status["state"] == "finished"]
    if not finished:
        return [*runs]
    steps, counts = np.unique(np.concatenate([run.evaluated for run in finished]), return_counts=True)
    usual = steps[2 * counts > len(finished)]
    marked = []
    for run in runs:
        end = run.record.status["step"]
        lost = np.setdiff1d([*usual[usual < end], end], run.evaluated)
        if run.record.status["state"] == "finished" and lost.size and (end or run.evaluated.size):
            why = f"{METRICS} was cut: it finished at step {end:,}, and its evaluation at {lost[0]:,} is lost"
            note = why if run.note in (None, NOT_YET) else f"{why}; {run.note}"
            marked.append(replace(run, cut=True, note=note))
        else:
            marked.append(run)
    return marked


def usable(values: np.ndarray) -> np.ndarray:
    """Which of them are finite, and their squares too."""
    return np.abs(values) < LARGEST


def _distinct(arrays: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Seeds of one label mostly have the same steps."""
    return {array.tobytes(): array for array in arrays}.values()


def _common(steps: Iterable[np.ndarray]) -> np.ndarray:
    return reduce(np.intersect1d, _distinct(steps))


def _at(wanted: np.ndarray, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at steps that all are among `steps`."""
    return values if len(steps) == len(wanted) else values[np.isin(steps, wanted)]


def _judged_alike(groups: Sequence[Group]) -> bool:
    """Whether every run was judged, as it was at the end of its group's curve, and in the same way."""
    ends = [(seed.record.evaluation, group.steps[-1]) for group in groups for seed in group.seeds]
    ways = distinct([found.get(name) for name in CONDITIONS] for found, _ in ends)
    return len(ways) == 1 and all(found.get("step") == end for found, end in ends)


def _evaluations(record: Record, label: str, domain: Domain) -> Seed:
    """A run up to its first evaluation that is not finite."""
    measured = domain.measured
    series = {name: dict(zip(*map(np.ndarray.tolist, record.series(name)), strict=True)) for name in measured}
    steps = sorted(set.intersection(*(set(values) for values in series.values())))
    values = np.array([[series[name][step] for step in steps] for name in measured])
    values[0] *= domain.factor
    bad = ~usable(values)
    evaluated = np.array(steps, np.int64)
    note = None if steps else NOT_YET
    if bad.any():  # later numbers of a run that broke down would look like results
        end = int(bad.any(axis=0).argmax())
        names = [name for name, wrong in zip(measured, bad[:, end], strict=True) if wrong]
        how = f"beyond {LARGEST:g}" if np.isfinite(values[:, end]).all() else "not finite"
        note = f"{' and '.join(names)} {how} at step {steps[end]:,}: not used from there on"
        steps, values = steps[:end], values[:, :end]
    found = dict(zip(measured, values, strict=True))
    return Seed(record, label, np.array(steps, np.int64), found, *_promise(record), note, evaluated)


def _promise(record: Record) -> tuple[Promise, float | None]:
    """What the run logged beside its entropy."""
    logged: tuple[tuple[Promise, str], ...] = (("floor", "floor"), ("target", "target_entropy"))
    for promise, name in logged:
        values = np.unique(record.series(name)[1])
        if len(values) > 1 or not usable(values).all():
            raise ValueError(f"{record.path}: the {promise} must be one finite number, it is {values.tolist()}")
        if len(values):
            return promise, float(values[0])
    return "nothing", None


def _checked(group: Group) -> Group:
    """The group, if its seeds can be averaged."""
    paths = ", ".join(str(seed.record.path) for seed in group.seeds)
    if not group.steps.size:
        raise ValueError(f"{group.label}: there is no step at which all of these runs were evaluated: {paths}")
    if len(found := distinct((seed.promise, seed.floor) for seed in group.seeds)) > 1:
        raise ValueError(f"{group.label}: the settings are the same, but the promises are {found}: {paths}")
    return group
