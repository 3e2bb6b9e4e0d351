"""The page of a report: sentences about floors, figures and tables, in one file."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from entropyfloor.report import html, verdicts
from entropyfloor.report.comparison import (
    UNSET,
    Comparison,
    differences,
    distinct,
    not_results,
    read_comparisons,
    shortened,
)
from entropyfloor.report.domains import ENTROPIES, Domain
from entropyfloor.report.figures import FIGURES
from entropyfloor.report.figures.layout import SINGLE
from entropyfloor.report.figures.scores import overview_figure
from entropyfloor.report.figures.style import Look, looks, png, svg
from entropyfloor.report.formats import bracketed, nats, plain
from entropyfloor.report.groups import TOLERANCE, Group, SeedRun, usable
from entropyfloor.report.statistics import mean_interval, stratified_interval
from entropyfloor.report.summary import lead, sentence, verdict
from entropyfloor.runs import files

_STATES = {"created": "created, never started"}
MOST = 40
"""Largest number of groups in a figure."""
LONGEST = 100
"""Largest number of characters that an environment's name has in a file name, which 255 bytes limit."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that begin a formula in a spreadsheet."""


def write_report(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    baseline: str | None = None,
    warn: Callable[[str], object] = warnings.warn,
    tell: Callable[[str], object] = lambda _: None,
) -> Path:
    """Draw the runs at or below `paths`, and say whether their floors hold.

    Writes the `FIGURES` of each environment or dataset, such as `<env>-entropy`, and `overview` (of the first of
    them), each as PNG and SVG, `table.csv` with the numbers of every seed, `fronts.csv` with the verdicts on
    language models that were evaluated at several temperatures, and `index.html`, which contains the figures and
    loads nothing. Each file is written under another name and then renamed. The same runs give the same bytes.

    Runs that are damaged, or cannot be compared with the others, are left out; the page names each, with the
    reason.

    Args:
        paths: Run directories, or directories that hold some.
        out: Directory of the report; it is made if it does not exist.
        baseline: Label or agent that language models are compared with; by default grpo.
        warn: Receives each line about a run that was left out.
        tell: Receives each table of fronts as text.

    Returns:
        Path of the page.

    Raises:
        ValueError: No run that can be drawn; the message names those that were left out. Or no such baseline.
    """
    (comparisons, left_out), out = read_comparisons([Path(path) for path in paths], baseline), Path(out)
    drawn = [_most(comparison) for comparison in comparisons]
    look = looks(drawn)
    out.mkdir(parents=True, exist_ok=True)
    figures = [
        _figures(out, name, comparison, look, left_out)
        for name, comparison in zip(_names(comparison.env for comparison in drawn), drawn, strict=True)
    ]
    first = next(comparison for comparison in drawn if comparison.groups)
    _picture(out, "overview", overview_figure(first, look))
    files.replace(out / "table.csv", _bytes(_csv(comparisons)))
    fronts = [verdicts.rows(comparison) for comparison in comparisons]
    if any(fronts):
        files.replace(out / "fronts.csv", _bytes(_fronts_csv(comparisons, fronts)))
    files.replace(out / "index.html", _bytes(_page(comparisons, figures, fronts, left_out)))
    for comparison, rows in zip(comparisons, fronts, strict=True):
        if rows:
            tell(verdicts.text(comparison.env, rows))
    for reason in shortened(left_out):
        warn(f"left out: {reason}")
    return out / "index.html"


def _bytes(text: str) -> bytes:
    """UTF-8, with escapes for the parts of a path that are not text."""
    return text.encode(errors="backslashreplace")


# --- figures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure inside the page."""

    name: str
    source: str
    alt: str
    caption: str
    wide: bool


def _figures(
    out: Path, name: str, comparison: Comparison, look: dict[str, Look], left_out: list[str]
) -> list[Picture]:
    """All figures of a comparison. Reasons why one cannot be drawn are added to `left_out`."""
    pictures = []
    for kind in FIGURES if comparison.groups else ():
        try:
            figure = kind.draw(comparison, look)
        except ValueError as error:  # seeds that were evaluated in different ways
            left_out.append(f"a figure of {comparison.env}: {error}")
            continue
        if figure is not None:
            stem, caption = f"{name}-{kind.name or comparison.domain.score}", kind.caption
            if len(comparison.groups) == MOST:
                caption += (
                    f" At most {MOST} agents are drawn, those with the highest last score; the table has all."
                )
            pictures.append(
                _picture(out, stem, figure, kind.alt(comparison), caption.format(domain=comparison.domain))
            )
    return pictures


def _picture(out: Path, name: str, figure: Figure, alt: str = "", caption: str = "") -> Picture:
    image = svg(figure)
    files.replace(out / f"{name}.svg", image)
    files.replace(out / f"{name}.png", png(figure))
    return Picture(name, html.source(image), alt, caption, figure.get_figwidth() > SINGLE)


def _most(comparison: Comparison) -> Comparison:
    """The comparison with at most `MOST` groups, those with the highest last score: more cannot be told apart."""
    best = sorted(comparison.groups, key=lambda group: -group.values(comparison.domain.score)[:, -1].mean())
    return replace(comparison, groups=tuple(sorted(best[:MOST], key=lambda group: group.label)))


def _names(envs: Iterable[str]) -> Iterator[str]:
    """Beginnings of file names: all different even without regard to case, and short enough for a file system."""
    taken: set[str] = set()
    for env in envs:
        start = re.sub(r"[^A-Za-z0-9.]+", "-", env)[:LONGEST].strip("-") or "unnamed"
        name = next(name for i in count(1) if (name := f"{start}-{i}" if i > 1 else start).lower() not in taken)
        taken.add(name.lower())
        yield name


# --- tables ----------------------------------------------------------------------------------------------


def _row(group: Group, domain: Domain) -> dict[str, str]:
    """A row of the table of results."""
    final = group.values(domain.score)[:, -1]
    n = len(final)
    rates = [rate for seed in group.seeds if (rate := _rate(seed, domain)) is not None]
    floor = "none" if group.floor is None else nats(group.floor)
    return {
        "label": group.label,
        "n": str(n),
        "step": f"{group.steps[-1]:,}",
        "score": bracketed(mean_interval(final), domain.decimals),
        "iqm": bracketed(stratified_interval([final]), domain.decimals) if n >= 3 else "n < 3",
        "floor": f"{floor} (target)" if group.promise == "target" else floor,
        "entropy": nats(group.values("realised_entropy")[:, -1].mean()),
        "least": nats(group.least),
        "verdict": verdict(group),
        "rate": bracketed(mean_interval(rates)) if rates else "not logged",
    }


def _more(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the second table; columns that no run has logged are left out."""
    lines, also = [], comparison.also
    for group in comparison.groups:
        last = [(group.last(column.name), column) for column in also]
        cells = ["" if x is None else bracketed(mean_interval(c.factor * x), c.decimals) for x, c in last]
        lines.append([group.label, *cells])
    used = [0, *(i for i in range(1, len(also) + 1) if any(line[i] for line in lines))]
    names = ["", *(column.label for column in also)]
    return [names[i] for i in used[1:]], [[line[i] for i in used] for line in lines]


def _run(seed: SeedRun, domain: Domain) -> dict[str, Any]:
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


def _rate(seed: SeedRun, domain: Domain) -> float | None:
    """Median rate, as compiling and evaluating make single intervals slow."""
    rates = seed.record.series(domain.rate)[1]
    rates = rates[usable(rates)]
    return float(np.median(rates)) if rates.size else None


def _settings(runs: Sequence[SeedRun]) -> tuple[list[tuple[str, str]], list[str], list[list[str]]]:
    """Settings that all runs share, names of those that differ, and a row of these for each label."""
    configs, ignored = [run.record.config for run in runs], not_results(run.record for run in runs)
    names, first = differences(configs, ignored), configs[0]
    common = [(name, str(first[name])) for name in sorted({*first} - {*names} - ignored)]
    lines = distinct([run.label, *(str(run.record.config.get(name, UNSET)) for name in names)] for run in runs)
    return common, names, lines


def _machines(runs: Sequence[SeedRun]) -> list[dict[str, Any]]:
    """Each combination of hardware, versions and commit, with its number of runs."""
    machines = [
        {name: run.record.machine.get(name) or UNSET for name in ("hardware", "versions", "commit", "system")}
        for run in runs
    ]
    numbers = Counter(map(repr, machines))
    return [{**machine, "runs": numbers[repr(machine)]} for machine in distinct(machines)]


def _csv(comparisons: Sequence[Comparison]) -> str:
    """One row a run: its numbers at the last step that all seeds of its group have, unrounded."""
    file = io.StringIO()
    domains = distinct(comparison.domain for comparison in comparisons)
    scores, rates = ([getattr(domain, name) for domain in domains] for name in ("score", "rate"))
    also = distinct(column.name for comparison in comparisons for column in comparison.also)
    head = ("env", "label", "seed", "state", "step", *scores, *ENTROPIES)
    names = (*head, "least", "floor", "promise", *also, *rates, "path")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        domain = comparison.domain
        rows = [_raw(seed, domain) for seed in (*comparison.unused, *comparison.untrained)]
        for group in comparison.groups:
            last = {name: group.values(name)[:, -1].tolist() for name in domain.measured}
            more = {column.name: group.last(column.name) for column in comparison.also}
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
            writer.writerow(_safe({"env": comparison.env, **row, "path": str(row["path"])}))
    return file.getvalue()


def _fronts_csv(comparisons: Sequence[Comparison], fronts: Sequence[list[verdicts.Row]]) -> str:
    """One row for each agent that has a front: how it compares with the baseline, unrounded."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ("env", *verdicts.RAW), lineterminator="\n")
    writer.writeheader()
    for comparison, rows in zip(comparisons, fronts, strict=True):
        writer.writerows(_safe({"env": comparison.env, **row.raw()}) for row in rows)
    return file.getvalue()


def _safe(cells: dict[str, Any]) -> dict[str, Any]:
    return {name: _text(cell) if isinstance(cell, str) else cell for name, cell in cells.items()}


def _text(cell: str) -> str:
    """A text cell that no spreadsheet takes for a formula."""
    safe = f"'{cell}" if cell.startswith(_FORMULA) else cell
    return safe.replace("\r", "\\r")  # `csv` does not quote it


def _raw(seed: SeedRun, domain: Domain) -> dict[str, Any]:
    """Cells of a run that need no evaluation."""
    return {
        "label": seed.label,
        "seed": seed.number,
        "state": seed.state,
        "floor": seed.floor,
        domain.rate: _rate(seed, domain),
        "path": seed.record.path,
    }


# --- the page --------------------------------------------------------------------------------------------


def _page(
    comparisons: Sequence[Comparison],
    figures: Sequence[list[Picture]],
    fronts: Sequence[list[verdicts.Row]],
    left_out: Sequence[str],
) -> str:
    environment = html.environment()
    runs = [run for comparison in comparisons for run in comparison.runs]
    common, names, lines = _settings(runs)
    rows = [[_run(run, comparison.domain) for run in comparison.runs] for comparison in comparisons]
    return environment.get_template("page.html").render(
        lead=lead(comparisons),
        sections=[
            {
                "env": comparison.env,
                "domain": comparison.domain,
                "sentences": [sentence(group, comparison.domain) for group in comparison.groups],
                "figures": drawn,
                "rows": [_row(group, comparison.domain) for group in comparison.groups],
                "more": _more(comparison),
                "fronts": [[row.label, *row.cells()] for row in compared],
                "baseline": compared[0].baseline if compared else "",
                "runs": run_rows,
                "open": [row for row in run_rows if row["open"]],
            }
            for comparison, drawn, compared, run_rows in zip(comparisons, figures, fronts, rows, strict=True)
        ],
        left_out=left_out,
        fronts_head=verdicts.HEAD,
        runs=[row for run_rows in rows for row in run_rows],
        tolerance=f"{TOLERANCE:g}",
        common=common,
        names=names,
        lines=lines,
        machines=_machines(runs),
    )
