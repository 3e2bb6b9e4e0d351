"""Verdicts on language models: each agent against a baseline, on what both were evaluated on.

Evaluations are paired seed by seed and problem by problem. Problems are paired by their keys; evaluations of
versions that wrote none are paired in the order of their task, if they were asked the same problems. What only one
of two has is left out, and a remark says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.formats import aligned, bracketed, compact
from entropyfloor.report.fronts import Difference, Verdict, compare
from entropyfloor.report.groups import Group, SeedRun
from entropyfloor.report.statistics import Interval, mean_interval

DIFFERENCES = ("avg", "solved", "area")
"""Differences of a `Verdict`."""
PARTS = 6
"""Number of parts that problems are split into, by their rate before training."""
Evaluation = Mapping[str, Any]


class Paired(NamedTuple):
    """What two agents were both evaluated on."""

    seeds: list[int]
    temperatures: np.ndarray
    counts: np.ndarray
    """Right responses of the agent and of the baseline, `[2, seeds, temperatures, problems]`."""
    samples: int
    remarks: tuple[str, ...]
    """What was left out."""


class Row(NamedTuple):
    """A row of the table of fronts."""

    label: str
    baseline: str
    seeds: int
    problems: int
    samples: int
    verdict: Verdict | None
    """None where the two cannot be compared."""
    remarks: str

    def cells(self) -> list[str]:
        """The row as it is shown, without the names of both; differences in points of per cent."""
        if self.verdict is None:
            return [*[""] * 7, f"not compared: {self.remarks}"]
        temperatures = (self.verdict.temperature, self.verdict.baseline_temperature)
        differences = [_points(getattr(self.verdict, name)) for name in DIFFERENCES]
        wins = "yes" if self.verdict.wins_both else "no"
        return [str(self.seeds), *map(compact, temperatures), *differences, wins, self.remarks]

    def raw(self) -> dict[str, Any]:
        """The row of a file, unrounded."""
        row: dict[str, Any] = {name: getattr(self, name) for name in ("label", "baseline", "remarks")}
        if self.verdict is None:
            return row
        row |= {name: getattr(self, name) for name in ("seeds", "problems", "samples")}
        row |= {name: getattr(self.verdict, name) for name in ("temperature", "baseline_temperature", "wins_both")}
        for name in DIFFERENCES:
            value, low, high = getattr(self.verdict, name)
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        return row


HEAD = ("n", "T", "T of the baseline", "avg@k", "pass@k", "Area", "Wins both?", "Remarks")
"""Names of the cells of a `Row`."""
RAW = (
    *("label", "baseline", "seeds", "problems", "samples", "temperature", "baseline_temperature"),
    *(f"{name}{end}" for name in DIFFERENCES for end in ("", "_low", "_high")),
    *("wins_both", "remarks"),
)
"""Columns of `Row.raw`."""


def rows(comparison: Comparison) -> list[Row]:
    """A row for each agent that has a front, if the comparison has a baseline with one."""
    baseline = comparison.baseline
    if baseline is None or not any(map(_front, baseline.seeds)):
        return []
    others = [group for group in comparison.groups if group.label != baseline.label]
    return [_row(group, baseline) for group in others if any(map(_front, group.seeds))]


def text(env: str, table: Sequence[Row]) -> str:
    """The table of fronts for a terminal."""
    lines = [["agent", *HEAD], *([row.label, *row.cells()] for row in table)]
    return "\n".join([f"fronts on {env} against {table[0].baseline}, differences in points", *aligned(lines)])


def pair(group: Group, baseline: Group) -> Paired:
    """What both were evaluated on: seeds, temperatures and problems that both have.

    Raises:
        ValueError: They have nothing in common, or another length of training or number of responses.
    """
    remarks = []
    own, other = ({seed.number: seed for seed in each.seeds if _front(seed)} for each in (group, baseline))
    if not (seeds := sorted({*own} & {*other})):
        raise ValueError(
            f"it has fronts for seeds {_listed(own)}, the baseline for {_listed(other)}: evaluate the same seeds "
            "with --temperatures"
        )
    if left_out := sorted({seed.number for seed in (*group.seeds, *baseline.seeds)} - {*seeds}):
        remarks.append(f"without seeds {_listed(left_out)}, for which not both have a front")
    evaluations = [each[seed].record.evaluation for each in (own, other) for seed in seeds]
    for name, what in (("step", "were evaluated at steps"), ("samples", "have --samples")):
        if len(values := {str(evaluation.get(name, "unknown")) for evaluation in evaluations}) > 1:
            raise ValueError(f"the runs {what} {' and '.join(sorted(values))}: evaluate them alike")
    fronts = [_front(evaluation) for evaluation in evaluations]
    temperatures = sorted(set.intersection(*map(set, fronts)))
    if len(temperatures) < 2:
        raise ValueError(
            f"both have T = {_listed(temperatures)} only, and a front needs 2 temperatures: evaluate both with "
            "the same --temperatures"
        )
    if more := sorted(set().union(*fronts) - {*temperatures}):
        remarks.append(f"without T = {_listed(more)}, which not all have")
    places = common_problems(evaluations)
    if any(len(places[0]) < len(_counts(each)) for each in evaluations):
        remarks.append(f"on the {len(places[0])} problems that all were asked")
    counts = [
        [np.array(front[temperature])[place] for temperature in temperatures]
        for front, place in zip(fronts, places, strict=True)
    ]
    shape = (2, len(seeds), len(temperatures), -1)
    samples = int(evaluations[0]["samples"])
    return Paired(seeds, np.array(temperatures), np.array(counts).reshape(shape), samples, tuple(remarks))


def common_problems(evaluations: Sequence[Evaluation]) -> list[np.ndarray]:
    """Where each evaluation has the problems that all were asked, in the order of the first.

    Raises:
        ValueError: There are none, or the evaluations do not name them and were asked others.
    """
    keys = [evaluation.get("problem_keys", []) for evaluation in evaluations]
    if not all(keys):
        asked = [(evaluation.get("asked"), len(_counts(evaluation))) for evaluation in evaluations]
        if asked[0][0] is None or asked.count(asked[0]) < len(asked):
            raise ValueError("the runs were asked different problems, and not all name them: evaluate them again")
        return [np.arange(asked[0][1])] * len(evaluations)
    places = [{key: i for i, key in enumerate(each)} for each in keys]
    common = [key for key in keys[0] if all(key in place for place in places)]
    if not common:
        raise ValueError("no problem was asked of all runs: evaluate them on the same")
    return [np.array([place[key] for key in common]) for place in places]


class Changes(NamedTuple):
    """Where an agent gains and loses against the baseline, one number a problem, means over seeds."""

    first: np.ndarray
    """avg@k before training."""
    difference: np.ndarray
    """avg@k of the agent minus that of the baseline."""
    seeds: int


def changes(group: Group, baseline: Group, untrained: Sequence[SeedRun]) -> Changes | None:
    """Differences of avg@k beside first rates, of the seeds and problems that all have; None where there are none.

    Args:
        group: The agent.
        baseline: The baseline.
        untrained: Runs of no step, which were evaluated before training.
    """
    chosen = [
        [seed.record.evaluation for seed in triple]
        for triple in _triples(group, baseline, untrained)
        if all("correct" in seed.record.evaluation for seed in triple)
    ]
    alike = [
        triple
        for triple in chosen
        if triple[0].get("step") == triple[1].get("step")
        and all(each.get("temperature") == triple[0].get("temperature") for each in triple)
    ]
    if not alike:
        return None
    flat = [evaluation for triple in alike for evaluation in triple]
    try:
        places = common_problems(flat)
    except ValueError:  # said in the table of fronts
        return None
    rates = [
        np.array(evaluation["correct"])[place] / evaluation["samples"]
        for evaluation, place in zip(flat, places, strict=True)
    ]
    own, other, first = np.array(rates).reshape(len(alike), 3, -1).mean(0)
    return Changes(first, own - other, len(alike))


def in_parts(changes: Changes) -> tuple[np.ndarray, Interval]:
    """First rates and differences, means over `PARTS` equal parts of the problems, the hardest first.

    Intervals are over problems (Student's t).
    """
    parts = np.array_split(changes.first.argsort(kind="stable"), min(PARTS, len(changes.first) // 2 or 1))
    means = [mean_interval(changes.difference[part]) for part in parts]
    value, low, high = (np.array([getattr(mean, name) for mean in means]) for name in ("value", "low", "high"))
    return np.array([changes.first[part].mean() for part in parts]), Interval(value, low, high, len(parts[0]))


def _triples(group: Group, baseline: Group, untrained: Sequence[SeedRun]) -> Iterator[list[SeedRun]]:
    """Runs of the same seed that began with the same model: of the agent, of the baseline, and before training."""
    for own in group.seeds:
        same = [
            [run for run in runs if run.number == own.number and _beginning(run) == _beginning(own)]
            for runs in (baseline.seeds, untrained)
        ]
        if all(same):
            yield [own, *(runs[0] for runs in same)]


def _beginning(run: SeedRun) -> tuple[Any, list[float]]:
    """The model, and the loss of its warm start, which differs where its settings or the code did."""
    return run.record.config.get("model"), run.record.series("loss/warm_start")[1].tolist()


def _row(group: Group, baseline: Group) -> Row:
    try:
        paired = pair(group, baseline)
        verdict = compare(paired.counts[0], paired.counts[1], paired.temperatures, paired.samples)
    except ValueError as error:
        return Row(group.label, baseline.label, 0, 0, 0, None, str(error))
    sizes = (len(paired.seeds), paired.counts.shape[-1], paired.samples)
    return Row(group.label, baseline.label, *sizes, verdict, "; ".join(paired.remarks))


def _front(run: SeedRun | Evaluation) -> dict[float, list[int]]:
    """Right responses to each problem, by temperature; empty without `evaluate --temperatures`."""
    evaluation = run.record.evaluation if isinstance(run, SeedRun) else run
    points = evaluation.get("front", [])
    return {float(point["temperature"]): point["correct"] for point in points} if len(points) > 1 else {}


def _counts(evaluation: Evaluation) -> list[int]:
    """Right responses to each problem, at some temperature."""
    counts: list[int] = evaluation.get("correct") or evaluation["front"][0]["correct"]
    return counts


def _points(difference: Difference) -> str:
    value, low, high = (np.array(100 * each) for each in difference)
    return bracketed(Interval(value, low, high, 0), 1)


def _listed(values: Any) -> str:
    return ", ".join(str(value) if isinstance(value, int) else f"{value:g}" for value in sorted(values)) or "none"
