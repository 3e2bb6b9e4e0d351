"""Statistics over tasks: normalised returns of agents that were trained on the same tasks of a suite.

An arm is what a label is in one environment: an agent, and the settings in which its runs differ on some task.
Settings that differ between tasks only, such as the length, belong to the task.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.report.comparison import Comparison, differences, label_of, not_results, shortened
from entropyfloor.report.domains import DOMAINS
from entropyfloor.report.formats import aligned, bracketed
from entropyfloor.report.groups import Group
from entropyfloor.report.normalised import normalised, scale_of
from entropyfloor.report.statistics import (
    FEWEST,
    Interval,
    estimate,
    estimates,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probabilities_of_improvement,
)

STATISTICS = {"median": median, "iqm": iqm, "mean": mean, "optimality_gap": optimality_gap}
"""Statistics of the table by their names in its file."""
RESAMPLES = 2_000
"""Number of bootstrap resamples of a band, whose bounds are drawn and not printed."""
THRESHOLDS = 200
"""Number of points in a performance profile."""
ENDS = ("", "_low", "_high")
"""What the names of an estimate and its bounds end with."""
LEAST = 2
"""Least number of arms and of tasks that statistics are made of."""
SCORE = DOMAINS["control"].score


@dataclass(frozen=True)
class Arm:
    """An agent with its settings on several tasks."""

    label: str
    groups: tuple[Group, ...]
    """Its runs on each task."""
    places: tuple[int, ...]
    """Index of the evaluation of each task that is its score, in the group's `steps`."""

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """Normalised returns at the end, `[seeds]` for each task."""
        return [_returns(group)[:, place] for group, place in zip(self.groups, self.places, strict=True)]

    @cached_property
    def curve(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Steps at which all seeds of all tasks were evaluated, and normalised returns there, `[seeds, steps]`."""
        steps = reduce(np.intersect1d, (group.steps for group in self.groups))
        return steps, [_returns(group)[:, np.isin(group.steps, steps)] for group in self.groups]

    @cached_property
    def iqm(self) -> Interval | None:
        """Interquartile mean at the steps of `curve`; None where there are none."""
        steps, tasks = self.curve
        return estimate(tasks, resamples=RESAMPLES) if steps.size else None

    @property
    def seeds(self) -> str:
        """Number of seeds in a task, or the least and the largest."""
        numbers = sorted({len(group.seeds) for group in self.groups})
        return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


class Row(NamedTuple):
    """A row of the table: statistics of an arm."""

    arm: Arm
    statistics: Mapping[str, Interval]
    """By the names of `STATISTICS`."""
    improvement: Interval | None
    """Probability that a run is better than one of the baseline; None without one, and for the baseline itself."""

    def raw(self) -> dict[str, Any]:
        """The row of a file, unrounded; an interval that there is not is empty."""
        row: dict[str, Any] = {"label": self.arm.label, "tasks": len(self.arm.groups), "seeds": self.arm.seeds}
        for name, interval in {**self.statistics, "improvement": self.improvement}.items():
            if interval is not None:
                bounds = zip(ENDS, interval[:3], strict=True)
                row |= {f"{name}{end}": float(bound) for end, bound in bounds if np.isfinite(bound)}
        return row


@dataclass(frozen=True)
class Aggregate:
    """Arms that all have the same tasks of a suite."""

    suite: str
    envs: tuple[str, ...]
    arms: tuple[Arm, ...]
    baseline: Arm | None
    """The arm whose runs are the baseline on every task."""
    remarks: tuple[str, ...]
    """What was left out and why, and what to know of the rest."""
    _profiles: dict[str, Interval] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def name(self) -> str:
        """Its suite and number of tasks."""
        return f"{self.suite}, {len(self.envs)} tasks"

    @cached_property
    def rows(self) -> list[Row]:
        """The table, a row for each arm."""
        baseline, scores = self.baseline, [arm.scores for arm in self.arms]
        compared = probabilities_of_improvement(scores, baseline.scores) if baseline else [None] * len(scores)
        every = zip(self.arms, estimates(scores, _statistics), compared, strict=True)
        return [
            Row(arm, _by_name(interval), None if arm is baseline else improvement)
            for arm, interval, improvement in every
        ]

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Scores at which performance profiles have a point."""
        scores = np.concatenate([task for arm in self.arms for task in arm.scores])
        return np.linspace(min(0.0, scores.min()), scores.max(), THRESHOLDS)

    def profile(self, arm: Arm) -> Interval:
        """Share of an arm's scores above each of `thresholds`."""
        if arm.label not in self._profiles:  # two figures have the same
            profile = performance_profile(arm.scores, self.thresholds, resamples=RESAMPLES)
            self._profiles[arm.label] = profile
        return self._profiles[arm.label]

    def best(self, most: int) -> list[Row]:
        """At most so many rows, those of the baseline and of the highest IQM, in the order of the table."""

        def rank(row: Row) -> tuple[bool, float]:
            return row.arm is not self.baseline, -float(row.statistics["iqm"].value)

        kept = sorted(self.rows, key=rank)[:most]
        return sorted(kept, key=lambda row: row.arm.label)

    def shown(self, most: int | None = None) -> list[list[str]]:
        """The table as it is shown, or its `best` rows; its first line has the names of the columns."""
        rows = self.rows if most is None else self.best(most)
        lines = [["Agent", "n", "Median", "IQM", "Mean", "Optimality gap"]]
        lines += [
            [row.arm.label, row.arm.seeds, *(bracketed(each, 2) for each in row.statistics.values())]
            for row in rows
        ]
        if self.baseline:
            improvements = ["" if row.improvement is None else bracketed(row.improvement, 2) for row in rows]
            last = [f"P(better than {self.baseline.label})", *improvements]
            lines = [[*line, cell] for line, cell in zip(lines, last, strict=True)]
        return lines

    def table(self) -> list[dict[str, Any]]:
        """Rows of `tasks.csv`."""
        common = {"suite": self.suite, "baseline": self.baseline.label if self.baseline else ""}
        return [{**common, **row.raw(), "remarks": "; ".join(self.remarks)} for row in self.rows]

    def scores(self) -> Iterator[dict[str, Any]]:
        """Rows of `task-scores.csv`: each run with its normalised return."""
        for arm in self.arms:
            for env, group, place, scores in zip(self.envs, arm.groups, arm.places, arm.scores, strict=True):
                returns = group.values(SCORE)[:, place]
                for seed, value, score in zip(group.seeds, returns, scores, strict=True):
                    row = {"suite": self.suite, "env": env, "label": arm.label, "seed": seed.number}
                    yield {**row, "step": int(group.steps[place]), SCORE: float(value), "normalised": float(score)}


TABLE = (
    *("suite", "label", "tasks", "seeds", *(f"{name}{end}" for name in STATISTICS for end in ENDS)),
    *("baseline", *(f"improvement{end}" for end in ENDS), "remarks"),
)
"""Columns of `Aggregate.table`."""
SCORES = ("suite", "env", "label", "seed", "step", SCORE, "normalised")
"""Columns of `Aggregate.scores`."""


def aggregates(comparisons: Sequence[Comparison]) -> list[Aggregate]:
    """Every aggregate of at least two arms over at least two tasks of a suite.

    Where arms lack tasks, those that some two arms share are chosen, with all arms that have them, so that most
    pairs of an arm and a task are kept. What is left is tried again without these arms, and a remark names what is
    in no aggregate.
    """
    suites: defaultdict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        if comparison.domain is DOMAINS["control"]:
            suites[comparison.env.partition("/")[0]].append(comparison)
    return [aggregate for suite, members in suites.items() for aggregate in _aggregates(suite, members)]


def _aggregates(suite: str, comparisons: Sequence[Comparison]) -> Iterator[Aggregate]:
    scaled = [comparison for comparison in comparisons if scale_of(comparison.env)]
    unscaled = [comparison.env for comparison in comparisons if not scale_of(comparison.env)]
    baselines = {comparison.env: comparison.baseline for comparison in scaled}
    arms, chosen = _arms(scaled), []
    while envs := _shared_most(arms):
        chosen.append((envs, {label: tasks for label, tasks in arms.items() if {*envs} <= {*tasks}}))
        arms = {label: tasks for label, tasks in arms.items() if label not in chosen[-1][1]}
    remarks = [f"{env} is left out: no source says which returns count as 0 and as 1" for env in unscaled]
    for label, tasks in arms.items() if chosen else ():
        lacking = [env for env in chosen[0][0] if env not in tasks]
        remarks.append(f"{label} is left out: no runs on {_listed(lacking)}")
    for envs, members in chosen:
        yield _aggregate(suite, envs, members, [baselines[env] for env in envs], remarks)
        remarks = []  # the first of a suite says it


def text(aggregate: Aggregate) -> str:
    """The table of an aggregate for a terminal, and its remarks."""
    return "\n".join([f"normalised returns on {aggregate.name}", *aligned(aggregate.shown()), *aggregate.remarks])


Tasks = dict[str, Group]
"""The runs of an arm by environment."""


def _arms(comparisons: Sequence[Comparison]) -> dict[str, Tasks]:
    """Every arm by its label: its agent, and the settings in which runs of this agent differ on some task."""
    different: defaultdict[str, set[str]] = defaultdict(set)
    for comparison in comparisons:
        by_agent: defaultdict[str, list[Group]] = defaultdict(list)
        for group in comparison.groups:
            by_agent[_config(group)["agent"]].append(group)
        for agent, groups in by_agent.items():
            different[agent] |= {*_differences(groups)}
    arms: defaultdict[str, Tasks] = defaultdict(dict)
    for comparison in comparisons:
        for group in comparison.groups:
            config = _config(group)
            arms[label_of(config, sorted(different[config["agent"]]))][comparison.env] = group
    return dict(sorted(arms.items()))


def _shared_most(arms: Mapping[str, Tasks]) -> tuple[str, ...]:
    """Tasks that some two arms share, those that make most pairs of an arm and a task; of several, the most tasks.

    Sets that only three or more arms share are not tried, as there may be exponentially many.
    """
    owned = [frozenset(tasks) for tasks in arms.values()]
    pairs = {
        tuple(sorted(envs)): len(envs) * having
        for envs in {a & b for a, b in combinations_with_replacement({*owned}, 2)}
        if len(envs) >= LEAST and (having := sum(envs <= each for each in owned)) >= LEAST
    }
    return max(sorted(pairs), key=lambda envs: (pairs[envs], len(envs)), default=())


def _aggregate(
    suite: str,
    envs: tuple[str, ...],
    members: Mapping[str, Tasks],
    baselines: Sequence[Group | None],
    remarks: Sequence[str],
) -> Aggregate:
    """The aggregate of these arms; `remarks` say what came into none."""
    said = [*remarks]
    for env in sorted(set().union(*members.values()) - {*envs}):
        lacking = [label for label, tasks in members.items() if env not in tasks]
        said.append(f"{env} is left out: no runs of {_listed(lacking)}")
    ends = {env: min(int(tasks[env].steps[-1]) for tasks in members.values()) for env in envs}
    arms = []
    for label, tasks in members.items():
        groups = tuple(tasks[env] for env in envs)
        arms.append(
            Arm(label, groups, tuple(_place(group, ends[env]) for env, group in zip(envs, groups, strict=True)))
        )
    for i, env in enumerate(envs):
        scored = [(arm, int(arm.groups[i].steps[arm.places[i]])) for arm in arms]
        late = [f"{arm.label} (step {step:,})" for arm, step in scored if step > ends[env]]
        longer = [arm.label for arm, step in scored if step <= ends[env] and step < arm.groups[i].steps[-1]]
        if longer:
            said.append(f"scores on {env} are those up to step {ends[env]:,}: {_listed(longer)} went further")
        if late:
            said.append(
                f"scores on {env} without an evaluation up to step {ends[env]:,} are the first: {_listed(late)}"
            )
    few = [
        f"{arm.label} on {env} (n = {len(group.seeds)})"
        for arm in arms
        for env, group in zip(envs, arm.groups, strict=True)
        if len(group.seeds) < FEWEST
    ]
    if few:
        said.append(f"no interval with fewer than {FEWEST} seeds in a task: {_listed(few)}")
    if curveless := [arm.label for arm in arms if not arm.curve[0].size]:
        said.append(f"no curve without a step at which all tasks were evaluated: {_listed(curveless)}")
    if settings := sorted({name for arm in arms for name in _differences(arm.groups)} - {"env"}):
        said.append(f"settings that differ between tasks: {_listed(settings)}")
    baseline = [arm for arm in arms if all(map(operator.is_, arm.groups, baselines))]
    if not baseline and any(baselines):
        named = [
            f"{group.label if group else 'none'} on {env}" for env, group in zip(envs, baselines, strict=True)
        ]
        said.append(f"no probability of being better: the baseline is not one arm on all tasks ({_listed(named)})")
    return Aggregate(suite, envs, tuple(arms), baseline[0] if baseline else None, tuple(said))


def _place(group: Group, end: int) -> int:
    """Index of its last evaluation up to a step; of its first where there is none."""
    return max(0, int(np.searchsorted(group.steps, end, "right")) - 1)


def _statistics(*tasks: np.ndarray, drawn: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """All `STATISTICS`, along the first axis."""
    return np.stack([statistic(*tasks, drawn=drawn) for statistic in STATISTICS.values()])


def _by_name(every: Interval) -> dict[str, Interval]:
    """The interval of each of `STATISTICS`."""
    columns = zip(STATISTICS, every.value, every.low, every.high, strict=True)
    return {name: Interval(value, low, high, every.n) for name, value, low, high in columns}


def _returns(group: Group) -> np.ndarray:
    """Normalised returns, `[seeds, steps]`."""
    return normalised(group.values(SCORE), _config(group)["env"])


def _config(group: Group) -> dict[str, Any]:
    return group.seeds[0].record.config


def _differences(groups: Sequence[Group]) -> list[str]:
    """Names of the settings in which groups differ."""
    ignored = not_results(seed.record for group in groups for seed in group.seeds)
    return differences([_config(group) for group in groups], ignored)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shortened(names))
