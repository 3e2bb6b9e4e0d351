"""Tables of a page: results, ablations, costs, runs, settings and machines, as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.report.comparison import UNSET, Comparison, differences, distinct, not_results
from entropyfloor.report.domains import Column, Domain, pass_at
from entropyfloor.report.formats import bracketed, duration, nats, plain
from entropyfloor.report.groups import Group, SeedRun, usable
from entropyfloor.report.statistics import FEWEST, Interval, estimates, mean_interval
from entropyfloor.report.summary import verdict
from entropyfloor.runs import Record
from entropyfloor.runs.vocabulary import PASS_AT, PEAKS, QUANTITIES

SETTING = "setting/"
"""Beginning of the names of columns that are settings."""
_STATES = {"created": "created, never started"}


class Published(NamedTuple):
    """A figure or a table of a paper that some runs reproduce."""

    name: str
    title: str
    text: str
    """What the paper reports."""
    quantity: str | None
    """The quantity of the runs that compares; None for the score of their domain."""


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """The table of results."""
    domain = comparison.domain
    finals = [group.values(domain.score)[:, -1] for group in comparison.groups]
    iqms = estimates([[final] for final in finals])
    return [_row(*each, domain) for each in zip(comparison.groups, finals, iqms, strict=True)]


def _row(group: Group, final: np.ndarray, iqm: Interval, domain: Domain) -> dict[str, str]:
    floor = "none" if group.floor is None else nats(group.floor)
    return {
        "label": group.label,
        "n": str(iqm.n),
        "step": f"{group.steps[-1]:,}",
        "score": bracketed(mean_interval(final), domain.decimals),
        "iqm": bracketed(iqm, domain.decimals) if iqm.n >= FEWEST else f"n < {FEWEST}",
        "floor": f"{floor} (target)" if group.promise == "target" else floor,
        "entropy": nats(group.values("realised_entropy")[:, -1].mean()),
        "least": nats(group.least),
        "verdict": verdict(group),
        "rate": _mean_rate(group, domain),
    }


def more(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the second table; columns that no run has logged are left out."""
    lines, also = [], comparison.also
    for group in comparison.groups:
        last = [(group.last(column.name), column) for column in also]
        cells = ["" if x is None else bracketed(mean_interval(c.factor * x), c.decimals) for x, c in last]
        lines.append([group.label, *cells])
    used = [0, *(i for i in range(1, len(also) + 1) if any(line[i] for line in lines))]
    names = ["", *(column.label for column in also)]
    return [names[i] for i in used[1:]], [[line[i] for i in used] for line in lines]


class Ablation(NamedTuple):
    """One agent with several settings."""

    agent: str
    names: list[str]
    """Settings that differ."""
    rows: list[dict[str, Any]]
    low: str
    high: str
    """Ends of the axis of the scores."""


def ablations(comparison: Comparison) -> list[Ablation]:
    """Each agent that was run with several settings: its score with each of them."""
    by_agent: defaultdict[str, list[Group]] = defaultdict(list)
    for group in comparison.groups:
        by_agent[group.seeds[0].record.config["agent"]].append(group)
    return [_ablation(agent, groups, comparison.domain) for agent, groups in by_agent.items() if len(groups) > 1]


def _ablation(agent: str, groups: Sequence[Group], domain: Domain) -> Ablation:
    records = [group.seeds[0].record for group in groups]
    names = differences([record.config for record in records], not_results(records))
    scores = [group.values(domain.score)[:, -1] for group in groups]
    means = [mean_interval(values) for values in scores]
    ends = [
        (mean.low, mean.high) if mean.n > 2 else (values.min(), values.max())
        for mean, values in zip(means, scores, strict=True)
    ]
    low, high = np.min(ends), np.max(ends)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    rows = []
    for group, mean, (start, end) in zip(groups, means, ends, strict=True):
        marks = 100 * (np.array([start, mean.value, end]) - low) / (high - low)
        config = group.seeds[0].record.config
        rows.append(
            {
                "values": [str(config.get(name, UNSET)) for name in names],
                "n": str(mean.n),
                "score": bracketed(mean, domain.decimals),
                "marks": [f"{mark:.1f}%" for mark in marks],
                "least": nats(group.least),
                "verdict": verdict(group),
            }
        )
    return Ablation(agent, names, rows, plain(low, domain.decimals), plain(high, domain.decimals))


def costs(comparison: Comparison) -> list[dict[str, str]]:
    """What the runs of each group took: wall time, and the machines with their memory.

    Runs that began together in one process share its time where all are added, also the time of one that was
    resumed alone.
    """
    rows = []
    for group in comparison.groups:
        seconds = [float(seed.record.clock[1].max()) for seed in group.seeds]
        together = [seed.record.machine.get("together") or 1 for seed in group.seeds]
        machines = distinct(seed.record.machine.get("hardware") or {} for seed in group.seeds)
        rows.append(
            {
                "label": group.label,
                "n": str(len(seconds)),
                "mean": duration(float(np.mean(seconds))),
                "all": duration(float(np.sum(np.divide(seconds, together)))),
                "memory": _memory(group),
                "hardware": "; ".join(map(_hardware, machines)),
            }
        )
    return rows


def _memory(group: Group) -> str:
    """The largest memory that a run of a group took, of the host and of a device."""
    found = []
    for name, where in zip(PEAKS, ("", " of a device"), strict=True):
        if sizes := [seed.record.status[name] for seed in group.seeds if name in seed.record.status]:
            found.append(f"{max(sizes):.2f} GiB{where}")
    return ", ".join(found) or "not recorded"


def _hardware(machine: Mapping[str, Any]) -> str:
    """A machine in words."""
    known = {"cpu": "{}", "cores": "{} cores", "memory_gb": "{} GB of memory", "gpu": "{}"}
    return ", ".join(text.format(machine[name]) for name, text in known.items() if machine.get(name)) or "unknown"


def beside(
    comparison: Comparison, published: Callable[[Record], Sequence[Published]]
) -> list[tuple[Published, list[str]]]:
    """Figures and tables of a paper that the runs reproduce, and what the runs have there."""
    found: dict[Published, list[str]] = {}
    for group in comparison.groups:
        for each in published(group.seeds[0].record):
            column = _column(comparison, each.quantity)
            values = group.last(column.name)
            shown = (
                "not measured"
                if values is None
                else bracketed(mean_interval(column.factor * values), column.decimals)
            )
            found.setdefault(each, [f"{column.label}:"]).append(f"{group.label} {shown}")
    return [*found.items()]


def _column(comparison: Comparison, quantity: str | None) -> Column:
    """How a quantity is shown; None is the score."""
    domain = comparison.domain
    if quantity is None:
        return Column(domain.score, domain.score_label, decimals=domain.decimals)
    if known := [column for column in domain.also if column.name == quantity]:
        return known[0]
    if quantity.startswith(PASS_AT):
        return pass_at(quantity.removeprefix(PASS_AT))
    return Column(quantity, QUANTITIES[quantity].title)


RUNS = (
    *("env", "label", "seed", "state", "step", "steps", "score", "remarks", "seconds", "started", "ended"),
    *(*PEAKS, "hardware", "command", "path"),
)
"""Columns of the file of all runs; the settings that differ between runs follow."""


def every_run(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the file of all runs; `names` are the settings that differ."""
    found = []
    for seed in comparison.runs:
        config, seconds = seed.record.config, seed.record.clock[1]
        known = run(seed, comparison.domain) | {
            "env": comparison.env,
            "steps": config.get("steps", config.get("epochs", "")),
            "step": int(seed.steps[-1]) if seed.steps.size else "",
            "score": float(seed.values[comparison.domain.score][-1]) if seed.steps.size else "",
            "seconds": float(seconds.max()) if seconds.size else "",
            "hardware": _hardware(seed.record.machine.get("hardware") or {}),
        }
        known |= {name: seed.record.status.get(name, "") for name in PEAKS}
        values = {f"{SETTING}{name}": str(config.get(name, UNSET)) for name in names}
        found.append({name: known[name] for name in RUNS} | values)
    return found


def run(seed: SeedRun, domain: Domain) -> dict[str, Any]:
    """A row of the table of runs."""
    status, config = seed.record.status, seed.record.config
    length = config.get("steps", config.get("epochs"))
    remarks = [text for text in (status.get("reason"), seed.note) if text]
    return {
        "label": seed.label,
        "seed": str(seed.number),
        "state": _STATES.get(seed.state, seed.state),
        "open": seed.note is not None or seed.state != "finished",
        "step": f"{seed.steps[-1]:,}" if seed.steps.size else "none",
        "steps": "unknown" if length is None else f"{length:,}",
        "score": plain(seed.values[domain.score][-1], domain.decimals) if seed.steps.size else "none",
        "remarks": "; ".join(remarks),
        "path": str(seed.record.path),
        "started": str(seed.record.machine.get("started", "unknown")),
        "ended": str(status.get("time") or "unknown"),
        "command": str(seed.record.machine.get("command", "unknown")),
    }


def _mean_rate(group: Group, domain: Domain) -> str:
    rates = [each for seed in group.seeds if (each := rate(seed, domain)) is not None]
    return bracketed(mean_interval(rates)) if rates else "not logged"


def rate(seed: SeedRun, domain: Domain) -> float | None:
    """Median rate, as compiling and evaluating make single intervals slow."""
    rates = seed.record.series(domain.rate)[1]
    rates = rates[usable(rates)]
    return float(np.median(rates)) if rates.size else None


def settings(runs: Sequence[SeedRun]) -> tuple[list[tuple[str, str]], list[str], list[list[str]]]:
    """Settings that all runs share, names of those that differ, and a row of these for each label."""
    configs, ignored = [run.record.config for run in runs], not_results(run.record for run in runs)
    names, first = differences(configs, ignored), configs[0]
    common = [(name, str(first[name])) for name in sorted({*first} - {*names} - ignored)]
    lines = distinct([run.label, *(str(run.record.config.get(name, UNSET)) for name in names)] for run in runs)
    return common, names, lines


def machines(runs: Sequence[SeedRun]) -> list[dict[str, Any]]:
    """Each combination of hardware, versions and commit, with its number of runs."""
    found = [
        {name: run.record.machine.get(name) or UNSET for name in ("hardware", "versions", "commit", "system")}
        for run in runs
    ]
    numbers = Counter(map(repr, found))
    return [{**machine, "runs": numbers[repr(machine)]} for machine in distinct(found)]
