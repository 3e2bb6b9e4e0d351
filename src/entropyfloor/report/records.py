"""From run directories to comparisons: which runs may be averaged, and up to where."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from entropyfloor.runs import Record, find_runs, read_run

ENTROPIES = ("realised_entropy", "realised_entropy/min")
RESPONSES, THRESHOLDS = "response_entropy", ("omega_low", "omega_high")
OUTSIDE = ("response_entropy/below", "response_entropy/above")
PASS_AT = "pass_at_"
"""pass@k is logged under this and k."""
POINTS = 50
"""At most so many in a curve of what is logged more often than evaluations are: it is averaged over blocks."""


class Column(NamedTuple):
    """Another quantity of the table."""

    name: str
    label: str
    factor: float = 1.0
    decimals: int = 3
    drawn: bool = False
    """Whether its curve is drawn beside that of the score."""


class Curve(NamedTuple):
    """A quantity of several seeds against steps."""

    steps: np.ndarray
    """`[steps]`, at which every seed has it: only there is an average taken."""
    values: np.ndarray
    """`[seeds, steps]`."""
    tails: list[tuple[np.ndarray, np.ndarray]]
    """Steps and values of single seeds from where `steps` ends, for seeds that went further."""


@dataclass(frozen=True)
class Domain:
    """What a kind of run is judged by, and the words for it."""

    score: str
    """The quantity that says how good it is; an evaluation logs it and `ENTROPIES`."""
    score_label: str
    step_label: str
    actor: str
    """Whose entropy is measured."""
    places: str
    """Over what."""
    rate: str
    """The quantity that says how fast it trains."""
    rate_label: str
    factor: float = 1.0
    """From the quantity to what is shown: 100 for a share that is shown in per cent."""
    decimals: int | None = None
    """Of the score; None takes as many as its size deserves."""
    also: tuple[Column, ...] = ()
    """What else is logged that the table should have."""

    @property
    def measured(self) -> tuple[str, ...]:
        """A step counts as evaluated where all of these were logged."""
        return (self.score, *ENTROPIES)


DOMAINS = {
    "control": Domain(
        "return", "Return", "Environment steps", "acting policy", "states", "steps_per_second", "Steps/s"
    ),
    "vision": Domain(
        "top1",
        "Top-1 accuracy (%)",
        "Epochs",
        "classifier",
        "test images",
        "images_per_second",
        "Images/s",
        factor=100.0,
        decimals=2,
        also=(
            Column("top5", "Top-5 (%)", 100.0, 2),
            Column("nll", "NLL (nats)"),
            Column("brier", "Brier score"),
            Column("ece", "Calibration error (%)", 100.0, 2),
            Column("auroc", "AUROC, other things"),
            Column("saturation", "Saturated (%)", 100.0, 2),
        ),
    ),
    "language": Domain(
        "avg_at_k",
        "avg@k (%)",
        "Rollouts",
        "sampling policy",
        "responses, their top tokens",
        "tokens_per_second",
        "Tokens/s",
        factor=100.0,
        decimals=1,
        also=(
            Column("greedy", "Greedy (%)", 100.0, 1, drawn=True),
            Column("reward", "Reward of rollouts", drawn=True),
            Column("response_entropy", "Response entropy (nats)"),
            Column("omega_low", "ω_low (nats)"),
            Column("scaled_share", "Responses scaled (%)", 100.0, 1),
            Column("response_length/eval", "Length (tokens)", 1.0, 1),
        ),
    ),
}

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
        used = np.isfinite(values) & (steps <= self.steps[-1] // every * every)
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

    @cached_property
    def steps(self) -> np.ndarray:
        """Steps at which every seed was evaluated; only there is an average taken."""
        return reduce(np.intersect1d, (seed.steps for seed in self.seeds))

    def values(self, name: str) -> np.ndarray:
        """A quantity at `steps`, `[seeds, steps]`."""
        return np.stack([seed.values[name][np.isin(seed.steps, self.steps)] for seed in self.seeds])

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
        series = [seed.series(name) for seed in self.seeds]
        evaluations = max(len(seed.steps) for seed in self.seeds)
        if max(len(steps) for steps, _ in series) > max(POINTS, evaluations):
            ends = [seed.steps[-1] for seed in self.seeds]
            every = max(1, min(math.ceil(max(ends) / POINTS), *ends))  # the shortest has one whole block at least
            series = [seed.series(name, every) for seed in self.seeds]
        steps = reduce(np.intersect1d, (each for each, _ in series))
        if not steps.size:
            return None
        ends = [(each, values, each >= steps[-1]) for each, values in series]
        return Curve(
            steps,
            factor * np.stack([values[np.isin(each, steps)] for each, values in series]),
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
            if name.startswith(PASS_AT)
        }
        found = {int(name.removeprefix(PASS_AT)): self.last(name) for name in names}
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
            raise ValueError(f"{self.label}: the seeds have their {name} on different edges: evaluate them again")
        return {
            "edges": edges,
            **{key: np.sum([each[key] for each in histograms], axis=0) for key in histograms[0]},
        }

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
    """Runs without an evaluation."""

    @cached_property
    def also(self) -> tuple[Column, ...]:
        """What the table has beside the score: pass@k for the largest k of each group, and that of the domain."""
        ks = {int(group.pass_at.steps[-1]) for group in self.groups if group.pass_at}
        return (*(Column(f"{PASS_AT}{k}", f"pass@{k} (%)", 100.0, 1) for k in sorted(ks)), *self.domain.also)

    @property
    def runs(self) -> list[Seed]:
        """Every run, by label and seed."""
        used = [seed for group in self.groups for seed in group.seeds]
        return sorted([*used, *self.unused], key=lambda seed: (seed.label, seed.number))


def compare(paths: Sequence[Path]) -> list[Comparison]:
    """Read the runs at or below `paths` and sort them by environment and label.

    Args:
        paths: Run directories, or directories that hold some.

    Returns:
        Comparisons by environment, groups by label, seeds by number.

    Raises:
        ValueError: No run, a damaged one, two runs with the same settings and seed, or not one evaluation.
    """
    records = [read_run(path) for path in find_runs(*paths)]
    by_env: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        for name in ("env", "agent", "seed"):
            if name not in record.config:
                raise ValueError(f"{record.path} has no {name!r} in its config: it cannot be compared")
        domain = record.config.get("domain", "control")
        if domain not in DOMAINS:
            raise ValueError(f"{record.path}: domain={domain!r} must be one of {', '.join(DOMAINS)}")
        by_env[domain, record.config["env"]].append(record)
    comparisons = [_comparison(env, DOMAINS[domain], by_env[domain, env]) for domain, env in sorted(by_env)]
    if not any(comparison.groups for comparison in comparisons):
        logged = ", ".join(comparisons[0].domain.measured)
        raise ValueError(f"no run was evaluated yet, {records[0].path} among them: an evaluation logs {logged}")
    return comparisons


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


def _comparison(env: str, domain: Domain, records: Sequence[Record]) -> Comparison:
    seeds: defaultdict[str, dict[int, Seed]] = defaultdict(dict)
    for record, label in zip(records, labels(records), strict=True):
        seed = _evaluations(record, label, domain)
        if (twin := seeds[label].setdefault(seed.number, seed)) is not seed:
            raise ValueError(
                f"{twin.record.path} and {record.path} are both {label} on {env} with seed {seed.number}: "
                "leave one out, or the seed counts twice"
            )
    groups, unused = [], []
    for label in sorted(seeds):
        runs = [seeds[label][number] for number in sorted(seeds[label])]
        unused += [run for run in runs if not run.steps.size]
        if used := tuple(run for run in runs if run.steps.size):
            groups.append(_checked(Group(label, used)))
    alike = _judged_alike(groups)
    return Comparison(env, domain, tuple(replace(group, alike=alike) for group in groups), tuple(unused))


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
    bad = ~np.isfinite(values)
    note = None if steps else "no evaluation yet"
    if bad.any():  # later numbers of a run that broke down would look like results
        end = int(bad.any(axis=0).argmax())
        names = [name for name, wrong in zip(measured, bad[:, end], strict=True) if wrong]
        note = f"{' and '.join(names)} not finite at step {steps[end]:,}: not used from there on"
        steps, values = steps[:end], values[:, :end]
    found = dict(zip(measured, values, strict=True))
    return Seed(record, label, np.array(steps, np.int64), found, *_promise(record), note)


def _promise(record: Record) -> tuple[Promise, float | None]:
    """What the run logged beside its entropy."""
    logged: tuple[tuple[Promise, str], ...] = (("floor", "floor"), ("target", "target_entropy"))
    for promise, name in logged:
        values = np.unique(record.series(name)[1])
        if len(values) > 1 or not np.isfinite(values).all():
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
