"""Figures of a report: as PNG, SVG and CSV files, and as parts of its page."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.domains import Domain
from entropyfloor.report.figures import FIGURES, scores
from entropyfloor.report.figures.layout import key, label_with_n
from entropyfloor.report.figures.multiples import multiples_figure
from entropyfloor.report.figures.plots import FEW, Key, Plot, Shape, keys, plots, swatch
from entropyfloor.report.figures.series import series_of
from entropyfloor.report.figures.style import Look, png, svg
from entropyfloor.report.formats import spreadsheet_safe
from entropyfloor.report.groups import Group
from entropyfloor.runs import files

MOST = 20
"""Largest number of groups in a figure."""
PANELS = 40
"""Largest number of tasks that have a panel each."""
LONGEST = 100
"""Largest number of characters that an environment's name has in a file name, which 255 bytes limit."""
ALL_TASKS = "all-tasks"
"""Beginning of the names of figures over several tasks."""
VALUES = ("panel", "label", "statistic", "x", "value", "low", "high", "n")
"""Columns of a figure's CSV file."""


@dataclass(frozen=True)
class Picture:
    """A figure inside the page."""

    title: str
    alt: str
    """What it shows, for those who cannot see it."""
    plots: Sequence[Plot]
    keys: Sequence[Key]
    caption: str = ""
    name: str = ""
    """Name of its files, without their suffix."""
    files: Sequence[str] = ()
    """Suffixes of its files."""
    solved: bool = False
    """Whether it is about the share of problems that are solved, and stands with those figures."""

    @property
    def thinned(self) -> int:
        """Least number of points that a longer curve shows at the pointer; 0 where every curve shows all."""
        return min((plot.thinned for plot in self.plots if plot.thinned), default=0)

    @property
    def wide(self) -> bool:
        """Whether it has several panels."""
        return len(self.plots) > 1

    @property
    def small(self) -> bool:
        """Whether its panels are small."""
        return len(self.plots) > FEW


@dataclass(frozen=True)
class Arm:
    """An agent in the legend of a page."""

    number: int
    """The same in all figures of the page."""
    label: str
    shapes: Sequence[Shape]


def picture(
    out: Path,
    name: str,
    figure: Figure,
    look: dict[str, Look],
    *,
    title: str = "",
    alt: str = "",
    caption: str = "",
    solved: bool = False,
) -> Picture:
    """Write a figure, and draw it for the page.

    Args:
        out: Directory of the report.
        name: Name of the files, without suffix.
        figure: The figure. Artists that `figures.series.show` knows are shown and hidden with their arm.
        look: How each label of the report is drawn.
        title: Heading in the page; that of the panel if there is one only.
        alt: What it shows, for those who cannot see it.
        caption: Text below it.
        solved: Whether it is about the share of problems that are solved.
    """
    suffixes, arms = write(out, name, figure), [*look]
    return Picture(title, alt, plots(figure, arms), keys(figure, arms), caption, name, suffixes, solved)


def write(out: Path, name: str, figure: Figure) -> list[str]:
    """Write a figure as PNG, SVG and, if it says its values, as CSV; returns the suffixes of the files."""
    found = {"png": png(figure)}
    figure.set_layout_engine("none")  # the layout is done, and would take as long again as drawing
    found["svg"] = svg(figure)
    if values := _csv(figure):
        found["csv"] = values
    for suffix, content in found.items():
        files.replace(out / f"{name}.{suffix}", content)
    return [*found]


def pictures(
    out: Path, name: str, comparison: Comparison, look: dict[str, Look], left_out: list[str]
) -> list[Picture]:
    """All figures of a comparison. Reasons why one cannot be drawn are added to `left_out`."""
    found = []
    for kind in FIGURES if comparison.groups else ():
        try:
            figure = kind.draw(comparison, look)
        except ValueError as error:  # seeds that were evaluated in different ways
            left_out.append(f"a figure of {comparison.env}: {error}")
            continue
        if figure is not None:
            stem, caption = f"{name}-{kind.name or comparison.domain.score}", kind.caption
            if len(comparison.groups) == MOST:
                which = f"{kept(comparison.baseline)} with the highest last score"
                caption += f" At most {MOST} agents are drawn: {which}; table.csv has all."
            title, caption = (text.format(domain=comparison.domain) for text in (kind.title, caption))
            words = {"title": title.rstrip(","), "alt": kind.alt(comparison), "caption": caption}
            found.append(picture(out, stem, figure, look, **words, solved=kind.solved))
    return found


def multiples(out: Path, comparisons: Sequence[Comparison], look: dict[str, Look]) -> list[Picture]:
    """Score and entropy of what `shared` has of each domain, one panel a task."""
    by_domain: defaultdict[Domain, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        by_domain[comparison.domain].append(comparison)
    found = []
    for domain, tasks in by_domain.items():
        kinds = {
            f"{domain.score_label} on each task": (domain.score, scores.draw_score),
            f"Entropy of the {domain.actor} on each task (nats)": (f"{domain.score}-entropy", scores.draw_entropy),
        }
        for title, (kind, panel) in kinds.items():
            shown = ", ".join(task.env for task in tasks[:PANELS])
            caption = (
                "Agents with runs on several tasks. Curves and intervals are those of each task's own figures."
            )
            if len(tasks) > PANELS:
                caption += f" Of {len(tasks)} tasks the first {PANELS} are drawn."
            figure = multiples_figure(tasks[:PANELS], look, panel, title)
            name, alt = f"{ALL_TASKS}-{kind}", f"{title}: {shown}."
            found.append(picture(out, name, figure, look, title=title, alt=alt, caption=caption))
    return found


def shared(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with the agents that have runs on several tasks of a domain, at most `MOST` of them."""
    counts = Counter((each.domain, group.label) for each in comparisons for group in each.groups)
    baselines = {(each.domain, each.baseline.label) for each in comparisons if each.baseline}
    first = sorted(counts, key=lambda key: (key not in baselines, -counts[key]))[:MOST]
    common = {key for key in first if counts[key] > 1}
    kept = [
        replace(each, groups=tuple(group for group in each.groups if (each.domain, group.label) in common))
        for each in comparisons
    ]
    return [each for each in kept if each.groups]


def arms(comparisons: Iterable[Comparison], look: dict[str, Look]) -> list[Arm]:
    """The legend of some comparisons, with numbers of seeds where there is one comparison."""
    comparisons = [*comparisons]
    several = len(comparisons) > 1
    labels = {
        group.label: group.label if several else label_with_n(group)
        for comparison in comparisons
        for group in comparison.groups
    }
    return legend(labels, look)


def legend(labels: Mapping[str, str], look: dict[str, Look]) -> list[Arm]:
    """The legend of some labels of `look`, each with its text."""
    return [
        Arm(number, labels[label], swatch(key(label, each)))
        for number, (label, each) in enumerate(look.items())
        if label in labels
    ]


def kept(baseline: object | None) -> str:
    """Which agents `most` keeps, before "with the highest last score"."""
    return "those" if baseline is None else "the baseline and those"


def most(comparison: Comparison, n: int = MOST) -> Comparison:
    """The comparison with at most n groups: the baseline, and those with the highest last score.

    More cannot be told apart.
    """

    def rank(group: Group) -> tuple[bool, float]:
        return group is not comparison.baseline, -group.values(comparison.domain.score)[:, -1].mean()

    best = sorted(comparison.groups, key=rank)[:n]
    return replace(comparison, groups=tuple(sorted(best, key=lambda group: group.label)))


def names(envs: Iterable[str]) -> Iterator[str]:
    """Beginnings of file names: all different even without regard to case, and short enough for a file system."""
    taken = {ALL_TASKS}
    for env in envs:
        start = re.sub(r"[^A-Za-z0-9.]+", "-", env)[:LONGEST].strip("-") or "unnamed"
        name = next(name for i in count(1) if (name := f"{start}-{i}" if i > 1 else start).lower() not in taken)
        taken.add(name.lower())
        yield name


def _csv(figure: Figure) -> bytes:
    """The values of a figure, unrounded; nothing if it does not say any."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(VALUES)
    empty = file.tell()
    for axes in figure.axes:
        for series in series_of(axes):
            what = map(spreadsheet_safe, (axes.get_title("left"), str(series.get_label()), series.statistic))
            cells: list[Any] = [*what]
            for x, *y in zip(series.x, *series.y[:3], strict=True):
                numbers = ["" if np.isnan(value) else value for value in map(float, y)]
                writer.writerow([*cells, x, *numbers, series.y.n])
    return file.getvalue().encode(errors="backslashreplace") if file.tell() > empty else b""
