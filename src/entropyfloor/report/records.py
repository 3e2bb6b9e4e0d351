"""From run directories to comparisons: which runs may be averaged, and up to where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from entropyfloor.runs import Record, find_runs, read_run

ENTROPIES = ("realised_entropy", "realised_entropy/min")


class Column(NamedTuple):
    """Another quantity of the table."""

    name: str
    label: str
    factor: float = 1.0
    decimals: int = 3


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
    """What else an evaluation logs that the table should have."""

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
            Column("greedy", "Greedy (%)", 100.0, 1),
            *(Column(f"pass_at_{k}", f"pass@{k} (%)", 100.0, 1) for k in (4, 16, 64, 256)),
            Column("response_length/eval", "Length (tokens)", 1.0, 1),
        ),
    ),
}

NOT_A_DIFFERENCE = frozenset(
    {"seed", "out", "recipe", "threads", "checkpoint_every", "workers", "data_dir", "ood_dir", "download"}
)
"""Settings in which runs of one label may differ."""

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


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed: one curve."""

    label: str
    seeds: tuple[Seed, ...]

    @cached_property
    def steps(self) -> np.ndarray:
        """Steps at which every seed was evaluated; only there is an average taken."""
        return reduce(np.intersect1d, (seed.steps for seed in self.seeds))

    def values(self, name: str) -> np.ndarray:
        """A quantity at `steps`, `[seeds, steps]`."""
        return np.stack([seed.values[name][np.isin(seed.steps, self.steps)] for seed in self.seeds])

    def last(self, name: str) -> np.ndarray | None:
        """Any logged quantity at the last of `steps`, `[seeds]`; None where a seed has not logged it there."""
        series = [dict(zip(*seed.record.series(name), strict=True)) for seed in self.seeds]
        found = [each.get(self.steps[-1]) for each in series]
        return None if None in found else np.array(found)

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

    def tails(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Steps and values of single seeds from where `steps` ends, for seeds that went further."""
        ends = [(seed, seed.steps >= self.steps[-1]) for seed in self.seeds]
        return [(seed.steps[end], seed.values[name][end]) for seed, end in ends if end.sum() > 1]

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
    return Comparison(env, domain, tuple(groups), tuple(unused))


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
