"""The page: what was promised and what the policies did, in words, figures and tables, in one file."""

from __future__ import annotations

import csv
import io
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from entropyfloor.report import plots
from entropyfloor.report.records import (
    ENTROPIES,
    NOT_A_DIFFERENCE,
    TOLERANCE,
    UNSET,
    Comparison,
    Domain,
    Group,
    Seed,
    compare,
    differences,
    distinct,
)
from entropyfloor.report.statistics import Interval, iqm_interval, mean_interval
from entropyfloor.runs import files

_STATES = {"created": "created, never started"}
MINUS = "\N{MINUS SIGN}"


def write_report(paths: Sequence[Path | str], out: Path | str) -> Path:
    """Draw the runs at or below `paths`, and say what became of their floors.

    Writes `<env>-return` (or `-top1`), `<env>-entropy` (each environment or dataset), `<env>-judged` (of
    classifiers that `entropyfloor evaluate` has judged: histograms of entropy, and calibration) and `overview`
    (the first of them), each as PNG and SVG, `table.csv` with the numbers of every seed, and `index.html`, which
    holds the figures itself and loads nothing. Each file is written beside its place and then moved there. The
    same runs give the same bytes.

    Args:
        paths: Run directories, or directories that hold some.
        out: Directory of the report; it is made if it does not exist.

    Returns:
        The page.

    Raises:
        ValueError: No run, a damaged one, two runs with the same settings and seed, or not one evaluation; the
            message names the path.
    """
    comparisons, out = compare([Path(path) for path in paths]), Path(out)
    drawn = [comparison for comparison in comparisons if comparison.groups]
    look = plots.looks(drawn)
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[Picture]] = {}
    for comparison in drawn:
        env = comparison.env
        name = re.sub(r"[^A-Za-z0-9.]+", "-", env).strip("-")
        figures[env] = [
            _picture(
                out,
                f"{name}-{comparison.domain.score}",
                plots.score_figure(comparison, look),
                _score_alt(comparison),
            ),
            _picture(out, f"{name}-entropy", plots.entropy_figure(comparison, look), _entropy_alt(comparison)),
        ]
        if judged := plots.judged_figure(comparison, look):
            figures[env].append(_picture(out, f"{name}-judged", judged, _judged_alt(comparison)))
    _picture(out, "overview", plots.overview_figure(drawn[0], look), "")
    files.replace(out / "table.csv", _csv(comparisons).encode())
    files.replace(out / "index.html", _page(comparisons, figures).encode())
    return out / "index.html"


# --- in words --------------------------------------------------------------------------------------------


def sentence(group: Group, domain: Domain) -> str:
    """What the group promised, and what its policy or classifier did.

    The average is that of the last evaluation that all seeds have; the least value is that of all evaluations, as
    a floor is promised for every state at any time.
    """
    mean = group.values("realised_entropy")[:, -1].mean()
    had = f"its {domain.actor} had {nats(mean)} on average and {nats(group.least)} at the least"
    if group.floor is None:
        return f"{group.label} promised nothing; {had} (nats)."
    if group.promise == "target":
        return f"{group.label} promised nothing, its loss steers to {nats(group.floor)} nats; {had}."
    n = len(group.seeds)
    end = (
        f"below the floor in {_seeds(group.broken, n)}"
        if group.broken
        else f"the floor was kept in {_seeds(n, n)}"
    )
    return f"{group.label} promised {nats(group.floor)} nats; {had}: {end}."


def _seeds(some: int, n: int) -> str:
    if some < n:
        return f"{some} of {n} seeds"
    return {1: "its one seed", 2: "both seeds"}.get(n, f"all {n} seeds")


def verdict(group: Group) -> str:
    """What became of the floor, in a word or two."""
    if group.promise != "floor" or group.floor is None:
        return "no floor"
    if not group.broken:
        return "kept"
    return f"broken by {significant(group.floor - group.least)} nats"


def lead(comparisons: Iterable[Comparison]) -> str:
    """The outcome in one sentence."""
    promised = [group for comparison in comparisons for group in comparison.groups if group.promise == "floor"]
    if not promised:
        return "Nothing here promised a floor."
    kept = sum(not group.broken for group in promised)
    if len(promised) == 1:
        return f"One floor was promised, and it was {'kept' if kept else 'broken'}."
    return f"Of {len(promised)} promised floors, {kept or 'none'} {'were' if kept > 1 else 'was'} kept."


def _score_alt(comparison: Comparison) -> str:
    domain = comparison.domain
    ends = [
        f"{group.label} ended at {_interval(mean_interval(group.values(domain.score)[:, -1]), domain.decimals)}"
        for group in comparison.groups
    ]
    axes = f"{domain.score_label} against {domain.step_label}".lower()
    return f"Learning curves on {comparison.env}: {axes}. {'; '.join(ends)}."


def _entropy_alt(comparison: Comparison) -> str:
    domain = comparison.domain
    told = " ".join(sentence(group, domain) for group in comparison.groups)
    return f"Realised entropy on {comparison.env} against {domain.step_label.lower()}. {told}"


def _judged_alt(comparison: Comparison) -> str:
    told = []
    for group in comparison.groups:
        if found := group.histogram(plots.ENTROPY_HISTOGRAM):
            peak = found["counts"].argmax()
            low, high = found["edges"][peak : peak + 2]
            told.append(f"of {group.label} most often from {nats(low)} to {nats(high)} nats")
    return f"Histogram of entropies of {comparison.domain.places}: {'; '.join(told)}. Reliability diagram."


# --- numbers ---------------------------------------------------------------------------------------------


def nats(value: float) -> str:
    """An entropy with two decimals."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS)


def significant(value: float) -> str:
    """Two digits that count: an excess may be 4 nats or 0.001."""
    return np.format_float_positional(float(f"{value:.2g}"), trim="-").replace("-", MINUS)


def plain(value: float, decimals: int | None = None) -> str:
    """A score or a rate, with so many decimals, or as many as its size deserves."""
    return f"{value:,.{_deserved(value) if decimals is None else decimals}f}".replace("-", MINUS)


def _deserved(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2


def _interval(interval: Interval, decimals: int | None = None) -> str:
    value, low, high = map(float, interval[:3])
    decimals = _deserved(value) if decimals is None else decimals
    if not np.isfinite(low):
        return plain(value, decimals)
    return f"{plain(value, decimals)} [{plain(low, decimals)}, {plain(high, decimals)}]"


# --- tables ----------------------------------------------------------------------------------------------


def _row(group: Group, domain: Domain) -> dict[str, str]:
    """A line of the table of results."""
    final = group.values(domain.score)[:, -1]
    n = len(final)
    rates = [rate for seed in group.seeds if (rate := _rate(seed, domain)) is not None]
    floor = "none" if group.floor is None else nats(group.floor)
    return {
        "label": group.label,
        "n": str(n),
        "step": f"{group.steps[-1]:,}",
        "score": _interval(mean_interval(final), domain.decimals),
        "iqm": _interval(iqm_interval(final), domain.decimals) if n >= 3 else "n < 3",
        "floor": f"{floor} (target)" if group.promise == "target" else floor,
        "entropy": nats(group.values("realised_entropy")[:, -1].mean()),
        "least": nats(group.least),
        "verdict": verdict(group),
        "rate": plain(float(np.mean(rates))) if rates else "not logged",
    }


def _more(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column names and lines of the table of all else; columns that nobody has logged are left out."""
    lines, also = [], comparison.domain.also
    for group in comparison.groups:
        found = [(group.last(column.name), column) for column in also]
        told = ["" if x is None else _interval(mean_interval(c.factor * x), c.decimals) for x, c in found]
        lines.append([group.label, *told])
    used = [0, *(i for i in range(1, len(also) + 1) if any(line[i] for line in lines))]
    names = ["", *(column.label for column in also)]
    return [names[i] for i in used[1:]], [[line[i] for i in used] for line in lines]


def _run(seed: Seed, domain: Domain) -> dict[str, str]:
    """A line of the table of runs."""
    status, config = seed.record.status, seed.record.config
    length = config.get("steps", config.get("epochs"))
    told = [text for text in (status.get("reason"), seed.note) if text]
    return {
        "label": seed.label,
        "seed": str(seed.number),
        "state": _STATES.get(state := status.get("state", "unknown"), state),
        "step": f"{seed.steps[-1]:,}" if seed.steps.size else "none",
        "steps": "unknown" if length is None else f"{length:,}",
        "score": plain(seed.values[domain.score][-1], domain.decimals) if seed.steps.size else "none",
        "told": "; ".join(told),
        "path": str(seed.record.path),
        "started": str(seed.record.machine.get("started", "unknown")),
        "ended": str(status.get("time") or "unknown"),
        "command": str(seed.record.machine.get("command", "unknown")),
    }


def _rate(seed: Seed, domain: Domain) -> float | None:
    """Median, as compiling and evaluating make single intervals slow."""
    rates = seed.record.series(domain.rate)[1]
    rates = rates[np.isfinite(rates)]
    return float(np.median(rates)) if rates.size else None


def _settings(runs: Sequence[Seed]) -> tuple[list[tuple[str, str]], list[str], list[list[str]]]:
    """Settings that all runs share, names of those that differ, and a line of these for each label."""
    configs = [run.record.config for run in runs]
    names = differences(configs)
    common = [(name, str(configs[0][name])) for name in sorted(set(configs[0]) - {*names, *NOT_A_DIFFERENCE})]
    lines = distinct([run.label, *(str(run.record.config.get(name, UNSET)) for name in names)] for run in runs)
    return common, names, lines


def _machines(runs: Sequence[Seed]) -> list[dict[str, Any]]:
    """Each combination of hardware, versions and commit, with the number of runs that it did."""
    found = [
        {name: run.record.machine.get(name) or UNSET for name in ("hardware", "versions", "commit", "system")}
        for run in runs
    ]
    return [{**machine, "runs": found.count(machine)} for machine in distinct(found)]


def _csv(comparisons: Sequence[Comparison]) -> str:
    """One line a run: its numbers at the last step that all seeds of its group have, unrounded."""
    file = io.StringIO()
    domains = distinct(comparison.domain for comparison in comparisons)
    scores, rates = ([getattr(domain, name) for domain in domains] for name in ("score", "rate"))
    also = distinct(column.name for domain in domains for column in domain.also)
    head = ("env", "label", "seed", "state", "step", *scores, *ENTROPIES)
    names = (*head, "least", "floor", "promise", *also, *rates, "path")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        domain = comparison.domain
        rows = [_raw(seed, domain) for seed in comparison.unused]
        for group in comparison.groups:
            last = {name: group.values(name)[:, -1].tolist() for name in domain.measured}
            more = {column.name: group.last(column.name) for column in domain.also}
            last |= {name: values.tolist() for name, values in more.items() if values is not None}
            for i, seed in enumerate(group.seeds):
                measured = {name: values[i] for name, values in last.items()}
                rows.append(
                    {
                        **_raw(seed, domain),
                        "step": group.steps[-1],
                        **measured,
                        "least": seed.least,
                        "promise": group.promise,
                    }
                )
        for row in sorted(rows, key=lambda row: (row["label"], row["seed"])):
            writer.writerow({"env": comparison.env, **row})
    return file.getvalue()


def _raw(seed: Seed, domain: Domain) -> dict[str, Any]:
    """What is known of a run without an evaluation."""
    return {
        "label": seed.label,
        "seed": seed.number,
        "state": seed.record.status.get("state"),
        "floor": seed.floor,
        domain.rate: _rate(seed, domain),
        "path": seed.record.path,
    }


# --- files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure as the page holds it."""

    name: str
    source: str
    alt: str


def _picture(out: Path, name: str, figure: Figure, alt: str) -> Picture:
    image = plots.svg(figure)
    files.replace(out / f"{name}.svg", image)
    files.replace(out / f"{name}.png", plots.png(figure))
    return Picture(name, f"data:image/svg+xml;base64,{b64encode(image).decode()}", alt)


def _page(comparisons: Sequence[Comparison], figures: dict[str, list[Picture]]) -> str:
    environment = Environment(
        loader=PackageLoader("entropyfloor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [run for comparison in comparisons for run in comparison.runs]
    common, names, lines = _settings(runs)
    return environment.get_template("page.html").render(
        lead=lead(comparisons),
        sections=[
            {
                "env": comparison.env,
                "domain": comparison.domain,
                "sentences": [sentence(group, comparison.domain) for group in comparison.groups],
                "figures": figures.get(comparison.env, []),
                "rows": [_row(group, comparison.domain) for group in comparison.groups],
                "more": _more(comparison),
                "runs": [_run(run, comparison.domain) for run in comparison.runs],
                "open": [
                    _run(run, comparison.domain)
                    for run in comparison.runs
                    if run.note is not None or run.record.status.get("state") != "finished"
                ],
            }
            for comparison in comparisons
        ],
        runs=[_run(run, comparison.domain) for comparison in comparisons for run in comparison.runs],
        tolerance=f"{TOLERANCE:g}",
        common=common,
        names=names,
        lines=lines,
        machines=_machines(runs),
    )
