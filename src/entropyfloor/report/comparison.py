"""Reading runs and sorting them into comparisons: which runs may be averaged, and up to which step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.report.domains import DOMAINS, Column, Domain, pass_at
from entropyfloor.report.groups import Group, Promise, SeedRun, usable
from entropyfloor.runs import Record, find_runs, read_run
from entropyfloor.runs.renamed import current
from entropyfloor.runs.run_reader import METRICS
from entropyfloor.runs.schema import LARGEST

NOT_RESULTS_BEFORE = frozenset(
    {
        *("seed", "out", "recipe", "threads", "workers", "device", "checkpoint_every", "compile", "channels_last"),
        *("micro_batch", "sample_batch", "gradient_checkpointing"),
        *("data_dir", "ood_dir", "download", "warm_starts"),
    }
)
"""Settings that do not change results, for runs of earlier versions only: other runs list theirs in `machine.json`
under `not_results`. Settings of speed are among them even if they change rounding."""

CONDITIONS = ("problems", "asked", "samples", "temperature", "ood")
"""Options of an evaluation; results under other conditions are not comparable."""

UNSET = "unset"
"""Shown for a setting that a run does not have."""
UNTRAINED = "before training"
"""Label of the runs of no step."""
NO_EVALUATION = "no evaluation yet"
"""Note of a run without an evaluation."""


@dataclass(frozen=True)
class Comparison:
    """All runs in one environment, or on one dataset."""

    env: str
    domain: Domain
    groups: tuple[Group, ...]
    unused: tuple[SeedRun, ...]
    """Runs without an evaluation, and incomplete ones beside others of the same settings."""
    untrained: tuple[SeedRun, ...] = ()
    """Runs of no step beside others of some: they were evaluated before training."""
    baseline: Group | None = None
    """The group that the others are compared with."""

    @cached_property
    def also(self) -> tuple[Column, ...]:
        """Columns beside the score: pass@k for the largest k of each group, and those of the domain."""
        ks = {int(group.pass_at.steps[-1]) for group in self.groups if group.pass_at}
        return (*map(pass_at, sorted(ks)), *self.domain.also)

    @cached_property
    def runs(self) -> list[SeedRun]:
        """Every run, by label and seed."""
        used = [seed for group in self.groups for seed in group.seeds]
        return sorted([*used, *self.unused, *self.untrained], key=lambda seed: (seed.label, seed.number))


class Comparisons(NamedTuple):
    """All runs at or below the paths of a report."""

    comparisons: list[Comparison]
    """By environment, groups by label, seeds by number; at least one has a group."""
    left_out: list[str]
    """Why a run is in none of them, with its path."""


def read_comparisons(paths: Sequence[Path], baseline: str | None = None) -> Comparisons:
    """Read the runs at or below `paths` and sort them by environment and label.

    Runs that are damaged, or cannot be compared with the others, are left out.

    Args:
        paths: Run directories, or directories that hold some.
        baseline: Label or agent of the group that the others are compared with; by default, and where there is
            none, that of the domain.

    Raises:
        ValueError: No run that can be drawn; the message names those that were left out. Or no such baseline.
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
        _comparison(env, DOMAINS[domain], by_env[domain, env], left_out, baseline)
        for domain, env in sorted(by_env)
    ]
    if not any(comparison.groups for comparison in comparisons):
        unused = [seed for comparison in comparisons for seed in comparison.unused]
        if unused:
            domain = next(comparison.domain for comparison in comparisons if comparison.unused)
            logged = ", ".join(domain.measured)
            left_out.insert(
                0, f"no run was evaluated yet, {unused[0].record.path} among them: an evaluation logs {logged}"
            )
        left_out += [f"{seed.record.path}: {seed.note}" for seed in unused if seed.note != NO_EVALUATION]
        raise ValueError("; ".join(shortened(left_out)))
    if baseline is not None and not any(_baseline(comparison.groups, baseline) for comparison in comparisons):
        known = sorted({group.label for comparison in comparisons for group in comparison.groups})
        raise ValueError(f"baseline={baseline!r} must be one of {', '.join(shortened(known))}")
    return Comparisons(comparisons, left_out)


def shortened(reasons: Sequence[str], most: int = 10) -> list[str]:
    """The first reasons, and how many more there are."""
    rest = len(reasons) - most
    return [*reasons[:most], f"{rest} more"] if rest > 0 else [*reasons]


def _comparable(record: Record) -> Record:
    """The record with today's names of settings.

    Raises:
        ValueError: The run does not say what it is a run of, or its floor or target is not one finite number.
    """
    for name in ("env", "agent", "seed"):
        if name not in record.config:
            raise ValueError(f"{record.path} has no {name!r} in its config: it cannot be compared")
    domain = record.config.get("domain", "control")
    if domain not in DOMAINS:
        raise ValueError(f"{record.path}: domain={domain!r} must be one of {', '.join(DOMAINS)}")
    _promise(record)  # refused here, so that the run is left out and the others are drawn
    return replace(record, config=current(record.config))


def labels(records: Sequence[Record]) -> list[str]:
    """One label a run: its agent, and the settings in which runs of this agent differ.

    Runs with different settings are never averaged, and the label says what differs.
    """
    by_agent: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_agent[record.config["agent"]].append(record.config)
    ignored = not_results(records)
    different = {agent: differences(configs, ignored) for agent, configs in by_agent.items()}
    return [label_of(config, different[config["agent"]]) for config in (record.config for record in records)]


def label_of(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """The agent of a run, and its values of these settings."""
    return ", ".join([config["agent"], *(f"{name}={config.get(name, UNSET)}" for name in names)])


def not_results(records: Iterable[Record]) -> frozenset[str]:
    """Names of settings that do not change results, according to at least one of the runs."""
    return frozenset().union(*(record.machine.get("not_results") or NOT_RESULTS_BEFORE for record in records))


def differences(configs: Sequence[dict[str, Any]], ignored: frozenset[str]) -> list[str]:
    """Names of the settings in which configs differ, without those to ignore."""
    names = sorted(set().union(*configs) - ignored)
    return [name for name in names if len(distinct(config.get(name, UNSET) for config in configs)) > 1]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Values without repetition, in their order; TOML's lists and tables are compared too."""
    by_text: dict[Hashable, Any] = {repr(value): value for value in values}
    return list(by_text.values())


def _comparison(
    env: str, domain: Domain, records: Sequence[Record], left_out: list[str], baseline: str | None
) -> Comparison:
    """Groups of the records. Reasons why one is in none of them are added to `left_out`."""
    trained = [record for record in records if record.config.get("steps") != 0]
    untrained = [record for record in records if trained and record.config.get("steps") == 0]
    trained = trained or [*records]
    groups: list[Group] = []
    unused: list[SeedRun] = []
    for label, each in sorted(_by_label(trained, domain).items()):
        single = _without_duplicates(each, f"{label} on {env}", left_out)
        runs = _marked_if_incomplete(single, domain.score)
        unused += [run for run in runs if not run.steps.size]
        used = [run for run in runs if run.steps.size]
        if whole := [run for run in used if not run.incomplete]:
            unused += [replace(run, note=f"{run.note}; not used") for run in used if run.incomplete]
        if used:
            try:
                groups.append(_checked(Group(label, tuple(whole or used))))
            except ValueError as error:
                left_out.append(str(error))
    same = _same_conditions(groups)
    groups = [replace(group, same_conditions=same) for group in groups]
    before = [
        replace(run, label=UNTRAINED)
        for label, runs in _by_label(untrained, domain).items()
        for run in _without_duplicates(runs, f"{label} {UNTRAINED} on {env}", left_out)
    ]
    chosen = _baseline(groups, baseline, domain.baseline)
    return Comparison(env, domain, tuple(groups), tuple(unused), tuple(before), chosen)


def _by_label(records: Sequence[Record], domain: Domain) -> dict[str, list[SeedRun]]:
    found: defaultdict[str, list[SeedRun]] = defaultdict(list)
    for record, label in zip(records, labels(records), strict=True):
        found[label].append(_seed_run(record, label, domain))
    return found


def _baseline(groups: Sequence[Group], *names: str | None) -> Group | None:
    """The group with the first of these labels that there is, or else the only one of this agent."""
    for name in names:
        named = [group for group in groups if group.label == name]
        named = named or [group for group in groups if group.seeds[0].record.config["agent"] == name]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _without_duplicates(runs: Sequence[SeedRun], what: str, left_out: list[str]) -> list[SeedRun]:
    """The runs by seed, without those that share a seed, as it is unknown which of them is right."""
    by_number: defaultdict[int, list[SeedRun]] = defaultdict(list)
    for run in runs:
        by_number[run.number].append(run)
    for number, twins in by_number.items():
        if len(twins) > 1:
            paths = " and ".join(str(twin.record.path) for twin in twins)
            left_out.append(f"{paths} are {what} with seed {number}: keep one, or the seed counts twice")
    return [twins[0] for _, twins in sorted(by_number.items()) if len(twins) == 1]


def _marked_if_incomplete(runs: Sequence[SeedRun], score: str) -> list[SeedRun]:
    """The runs of a label, marked where a finished run lacks its last evaluation, or one that most have."""
    finished = [run for run in runs if run.record.status["state"] == "finished"]
    counts = Counter(step for run in finished for step in run.evaluation_steps.tolist())
    usual = {step for step, count in counts.items() if 2 * count > len(finished)}
    return [_marked(run, usual, score) for run in runs]


def _marked(run: SeedRun, usual: set[int], score: str) -> SeedRun:
    """The run, marked if it finished and lacks an evaluation at its end, or at one of the usual steps before."""
    end, evaluated = run.record.status["step"], {*run.evaluation_steps.tolist()}
    missing = {end, *(step for step in usual if step < end)} - evaluated
    if run.record.status["state"] != "finished" or not missing or not (end or evaluated):
        return run
    failed = missing & {line["step"] for line in run.record.lines if score in line}
    whys = []
    if lost := missing - failed:
        whys.append(f"{METRICS} was cut: it finished at step {end:,}, and its evaluation at {min(lost):,} is lost")
    if failed:
        whys.append(f"its evaluation at {min(failed):,} failed")
    why = "; ".join(whys)
    note = why if run.note in (None, NO_EVALUATION) else f"{why}; {run.note}"
    return replace(run, incomplete="cut" if lost else "evaluation failed", note=note)


def _same_conditions(groups: Sequence[Group]) -> bool:
    """Whether every run was evaluated at the end of its group's curve, and all under the same conditions."""
    ends = [(seed.record.evaluation, group.steps[-1]) for group in groups for seed in group.seeds]
    conditions = distinct([evaluation.get(name) for name in CONDITIONS] for evaluation, _ in ends)
    return len(conditions) == 1 and all(evaluation.get("step") == end for evaluation, end in ends)


def _seed_run(record: Record, label: str, domain: Domain) -> SeedRun:
    """The run up to its first evaluation that is not finite."""
    measured = domain.measured
    series = {name: dict(zip(*map(np.ndarray.tolist, record.series(name)), strict=True)) for name in measured}
    steps = sorted(set.intersection(*(set(values) for values in series.values())))
    values = np.array([[series[name][step] for step in steps] for name in measured])
    values[0] *= domain.factor
    bad = ~usable(values)
    evaluation_steps = np.array(steps, np.int64)
    note = None if steps else NO_EVALUATION
    if bad.any():  # later numbers of a run that broke down would look like results
        end = int(bad.any(axis=0).argmax())
        names = [name for name, wrong in zip(measured, bad[:, end], strict=True) if wrong]
        how = f"beyond {LARGEST:g}" if np.isfinite(values[:, end]).all() else "not finite"
        note = f"{' and '.join(names)} {how} at step {steps[end]:,}: not used from there on"
        steps, values = steps[:end], values[:, :end]
    by_name = dict(zip(measured, values, strict=True))
    return SeedRun(record, label, np.array(steps, np.int64), by_name, *_promise(record), note, evaluation_steps)


def _promise(record: Record) -> tuple[Promise, float | None]:
    """The floor or the target that the run logged beside its entropy."""
    logged: tuple[tuple[Promise, str], ...] = (("floor", "floor"), ("target", "target_entropy"))
    for promise, name in logged:
        if name in record.columns:
            values = record.columns[name][1]
            if not usable(values).all() or (values != values[0]).any():
                different = np.unique(values).tolist()
                raise ValueError(f"{record.path}: the {promise} must be one finite number, it is {different}")
            return promise, float(values[0])
    return "nothing", None


def _checked(group: Group) -> Group:
    """The group, if its seeds can be averaged."""
    paths = ", ".join(str(seed.record.path) for seed in group.seeds)
    if not group.steps.size:
        raise ValueError(f"{group.label}: there is no step at which all of these runs were evaluated: {paths}")
    if len(promises := distinct((seed.promise, seed.floor) for seed in group.seeds)) > 1:
        raise ValueError(f"{group.label}: the settings are the same, but the promises are {promises}: {paths}")
    return group
