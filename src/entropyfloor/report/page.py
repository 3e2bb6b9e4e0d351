"""The page of a report: sentences about floors, figures and tables, in one file."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.report import html, pictures, tables, tasks, verdicts
from entropyfloor.report.comparison import Comparison, distinct, read_comparisons, shortened
from entropyfloor.report.domains import ENTROPIES, Domain
from entropyfloor.report.figures.scores import overview_figure
from entropyfloor.report.figures.style import Look, looks
from entropyfloor.report.figures.tasks import CAPTION, alt, overview_panels, tasks_figure
from entropyfloor.report.formats import spreadsheet_safe
from entropyfloor.report.groups import SeedRun
from entropyfloor.report.pictures import Arm, Picture
from entropyfloor.report.summary import lead, sentence
from entropyfloor.report.tables import Published
from entropyfloor.runs import Record, files
from entropyfloor.runs.vocabulary import TOLERANCE

ROWS = 100
"""Largest number of rows in a table of the page, which says so; the files beside it have all."""


def write_report(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    baseline: str | None = None,
    warn: Callable[[str], object] = warnings.warn,
    tell: Callable[[str], object] = lambda _: None,
    published: Callable[[Record], Sequence[Published]] = lambda _: (),
) -> Path:
    """Draw the runs at or below `paths`, and say whether their floors hold.

    Writes the `FIGURES` of each environment or dataset, such as `<env>-entropy`, those over several tasks, and
    `overview` (of the first of them), each as PNG, SVG and CSV, `table.csv` with the numbers of every seed,
    `runs.csv` with the state, times, command and differing settings of every run that is compared, `fronts.csv`
    with the verdicts on language models that were evaluated at several temperatures, and `index.html`, which
    contains the figures and loads nothing; its tables of results and runs have `ROWS` rows at most. Where agents
    share tasks of a suite, `<suite>-tasks`, `tasks.csv` and `task-scores.csv` have statistics over these tasks,
    and `overview` has them too. Each file is written under another name and then renamed. The same runs give the
    same bytes.

    Runs that are damaged, or cannot be compared with the others, are left out; the page names each, with the
    reason.

    Args:
        paths: Run directories, or directories that hold some.
        out: Directory of the report; it is made if it does not exist.
        baseline: Label or agent that the others are compared with: language models, by default and where there
            is none with grpo, and statistics over tasks.
        warn: Receives each line about a run that was left out.
        tell: Receives each table of fronts or over tasks as text.
        published: Figures and tables of a paper that a run reproduces; the page has them beside the runs.

    Returns:
        Path of the page.

    Raises:
        ValueError: No run that can be drawn; the message names those that were left out. Or no such baseline.
    """
    (comparisons, left_out), out = read_comparisons([Path(path) for path in paths], baseline), Path(out)
    drawn = [pictures.most(comparison) for comparison in comparisons]
    look = looks(drawn)
    out.mkdir(parents=True, exist_ok=True)
    figures = [
        pictures.pictures(out, name, comparison, look, left_out)
        for name, comparison in zip(pictures.names(each.env for each in drawn), drawn, strict=True)
    ]
    shared = pictures.shared(drawn)
    multiples = pictures.multiples(out, shared, look)
    aggregates = tasks.aggregates(comparisons)
    over_tasks = _over_tasks(out, aggregates, look)
    first = next(comparison for comparison in drawn if comparison.groups)
    below = overview_panels(aggregates[0]) if aggregates else ()
    pictures.write(out, "overview", overview_figure(first, look, below))
    files.replace(out / "table.csv", _bytes(_csv(comparisons)))
    settings = tables.settings([run for comparison in comparisons for run in comparison.runs])
    names = settings[1]
    columns = (*tables.RUNS, *(f"{tables.SETTING}{name}" for name in names))
    every = [row for comparison in comparisons for row in tables.every_run(comparison, names)]
    files.replace(out / "runs.csv", _bytes(_table(columns, every)))
    fronts = [verdicts.rows(comparison) for comparison in comparisons]
    for name, columns, lines in (
        ("fronts.csv", ("env", *verdicts.RAW), _fronts(comparisons, fronts)),
        ("tasks.csv", tasks.TABLE, [row for aggregate in aggregates for row in aggregate.table()]),
        ("task-scores.csv", tasks.SCORES, [row for aggregate in aggregates for row in aggregate.scores()]),
    ):
        if lines:
            files.replace(out / name, _bytes(_table(columns, lines)))
        else:  # the one of an earlier report would look like this report's
            (out / name).unlink(missing_ok=True)
    sections = [
        _section(comparison, shown, rows, published) | {"arms": pictures.arms([some], look)}
        for comparison, some, shown, rows in zip(comparisons, drawn, figures, fronts, strict=True)
    ]
    text = _page(comparisons, sections, multiples, pictures.arms(shared, look), over_tasks, left_out, settings)
    files.replace(out / "index.html", _bytes(text))
    for comparison, rows in zip(comparisons, fronts, strict=True):
        if rows:
            tell(verdicts.text(comparison.env, rows))
    for aggregate in aggregates:
        tell(tasks.text(aggregate))
    for reason in shortened(left_out):
        warn(f"left out: {reason}")
    return out / "index.html"


def _bytes(text: str) -> bytes:
    """UTF-8, with escapes for the parts of a path that are not text."""
    return text.encode(errors="backslashreplace")


# --- CSV files -------------------------------------------------------------------------------------------


def _csv(comparisons: Sequence[Comparison]) -> str:
    """One row a run: its numbers at the last step that all seeds of its group have, unrounded."""
    domains = distinct(comparison.domain for comparison in comparisons)
    scores, rates = ([getattr(domain, name) for domain in domains] for name in ("score", "rate"))
    also = distinct(column.name for comparison in comparisons for column in comparison.also)
    head = ("env", "label", "seed", "state", "step", *scores, *ENTROPIES)
    names = (*head, "least", "floor", "promise", *also, *rates, "path")
    lines: list[dict[str, Any]] = []
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
        rows.sort(key=lambda row: (row["label"], row["seed"]))
        lines += ({"env": comparison.env, **row, "path": str(row["path"])} for row in rows)
    return _table(names, lines)


def _fronts(comparisons: Sequence[Comparison], fronts: Sequence[list[verdicts.Row]]) -> list[dict[str, Any]]:
    """One row for each agent that has a front: how it compares with the baseline, unrounded."""
    return [
        {"env": comparison.env, **row.raw()}
        for comparison, rows in zip(comparisons, fronts, strict=True)
        for row in rows
    ]


def _table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_safe, rows))
    return file.getvalue()


def _safe(cells: dict[str, Any]) -> dict[str, Any]:
    return {name: spreadsheet_safe(cell) if isinstance(cell, str) else cell for name, cell in cells.items()}


def _raw(seed: SeedRun, domain: Domain) -> dict[str, Any]:
    """Cells of a run that need no evaluation."""
    return {
        "label": seed.label,
        "seed": seed.number,
        "state": seed.state,
        "floor": seed.floor,
        domain.rate: tables.rate(seed, domain),
        "path": seed.record.path,
    }


# --- the page --------------------------------------------------------------------------------------------


def _over_tasks(out: Path, aggregates: Sequence[tasks.Aggregate], look: dict[str, Look]) -> list[dict[str, Any]]:
    """What the page has of statistics over tasks."""
    sections = []
    for name, aggregate in zip(pictures.names(each.suite for each in aggregates), aggregates, strict=True):
        figure, what = tasks_figure(aggregate, look), alt(aggregate)
        sections.append(
            {
                "name": aggregate.name,
                "envs": aggregate.envs,
                "arms": pictures.legend({arm.groups[0].label: arm.label for arm in aggregate.arms}, look),
                "figure": pictures.picture(
                    out, f"{name}-tasks", figure, look, title=aggregate.name, alt=what, caption=CAPTION
                ),
                "table": aggregate.shown(ROWS),
                "all_arms": len(aggregate.arms),
                "arms_left": max(0, len(aggregate.arms) - ROWS),
                "kept": pictures.kept(aggregate.baseline),
                "remarks": aggregate.remarks,
            }
        )
    return sections


def _section(
    comparison: Comparison,
    figures: Sequence[Picture],
    compared: Sequence[verdicts.Row],
    published: Callable[[Record], Sequence[Published]],
) -> dict[str, Any]:
    """What the page has of a comparison."""
    runs = [tables.run(run, comparison.domain) for run in comparison.runs]
    every, comparison = comparison, pictures.most(comparison, ROWS)
    labels = {group.label for group in comparison.groups}
    return {
        "agents": len(every.groups),
        "kept": pictures.kept(comparison.baseline),
        "broken": sum(group.broken > 0 for group in every.groups if group.label not in labels),
        "env": comparison.env,
        "domain": comparison.domain,
        "sentences": [sentence(group, comparison.domain) for group in comparison.groups],
        "figures": [figure for figure in figures if not figure.solved],
        "solved": [figure for figure in figures if figure.solved],
        "rows": tables.rows(comparison),
        "more": tables.more(comparison),
        "beside": tables.beside(comparison, published),
        "ablations": tables.ablations(comparison),
        "fronts": [[row.label, *row.cells()] for row in compared],
        "baseline": compared[0].baseline if compared else "",
        "costs": tables.costs(comparison),
        "runs": runs[:ROWS],
        "all_runs": len(runs),
        "open": [run for run in runs if run["open"]],
    }


def _page(
    comparisons: Sequence[Comparison],
    sections: Sequence[dict[str, Any]],
    multiples: Sequence[Picture],
    arms: Sequence[Arm],
    over_tasks: Sequence[dict[str, Any]],
    left_out: Sequence[str],
    settings: tuple[list[tuple[str, str]], list[str], list[list[str]]],
) -> str:
    runs = [run for comparison in comparisons for run in comparison.runs]
    common, names, lines = settings
    return (
        html.environment()
        .get_template("page.html")
        .render(
            lead=lead(comparisons),
            multiples=multiples,
            arms=arms,
            over_tasks=over_tasks,
            sections=sections,
            left_out=left_out,
            fronts_head=["Agent", *verdicts.HEAD],
            runs=[run for section in sections for run in section["runs"]],
            all_runs=len(runs),
            tolerance=f"{TOLERANCE:g}",
            common=common,
            names=names,
            lines=lines,
            most=ROWS,
            machines=tables.machines(runs),
        )
    )
