"""The page of an audit, and the same as JSON and in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Group
from rich.table import Table
from rich.text import Text

from entropyfloor.audit.samples import Further, Samples
from entropyfloor.audit.summary import Audit, histogram
from entropyfloor.extras import printable
from entropyfloor.report import html
from entropyfloor.report.figures.layout import arrange
from entropyfloor.report.figures.plots import keys, plots
from entropyfloor.report.figures.style import COLOURS
from entropyfloor.report.formats import compact, plain
from entropyfloor.report.pictures import Picture
from entropyfloor.runs import files
from entropyfloor.runs.vocabulary import QUANTITIES, TOLERANCE

LABELS = {
    "mean": "mean",
    "min": "least",
    "q01": "1 % quantile",
    "q05": "5 % quantile",
    "median": "median",
    "q95": "95 % quantile",
    "max": "most",
}
"""Statistics that are shown, and their names."""
DIMENSIONS = 40
"""Largest number of components of an action in the figure and the tables."""


def write_page(audit: Audit, out: Path | str) -> Path:
    """Write `index.html`, one file that loads nothing, and `audit.json` with all its numbers.

    Args:
        audit: What to show.
        out: Directory; it is made if it does not exist.

    Returns:
        Path of the page.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    content = audit.as_json()
    files.replace(out / "audit.json", (json.dumps(content, indent=1) + "\n").encode())
    drawn = figure(audit)
    drawn.draw_without_rendering()
    page = html.environment("entropyfloor.audit").get_template("audit.html")
    text = page.render(
        audit=content,
        outcome={None: "", True: "holds", False: "broken"}[audit.holds],
        figure=Picture(
            title="Entropy",
            alt=f"Histogram of the entropy over {audit.samples.places}: {audit.verdict}.",
            plots=plots(drawn, ()),
            keys=keys(drawn, ()),
        ),
        tables=tables(audit),
        worst=_worst(content["worst"]),
    )
    files.replace(out / "index.html", text.encode(errors="backslashreplace"))
    return out / "index.html"


# --- tables ----------------------------------------------------------------------------------------------


def tables(audit: Audit) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles, and rows of a name and a value."""
    samples, content = audit.samples, audit.as_json()
    entropy = [(label, plain(content["realised_entropy"][name], 3)) for name, label in LABELS.items()]
    if audit.floor is not None:
        entropy.append(("floor", plain(audit.floor, 3)))
        below = f"share of {samples.places} below it by more than {TOLERANCE:g}"
        entropy.append((below, f"{100 * content['broken_share']:.3g} %"))
    found = [(f"Realised entropy of {samples.measured} (nats)", entropy)]
    if samples.spread is not None:
        std = content["action_std"]
        rows = [
            (f"component {i}", f"{compact(mean)} ({compact(low)} to {compact(high)})")
            for i, (mean, low, high) in enumerate(zip(std["mean"], std["min"], std["max"], strict=True))
        ]
        title = f"Standard deviation of the action, mean over states (least to most), in units of {std['unit']}"
        found.append((title, rows[:DIMENSIONS]))
    if samples.saturation is not None:
        saturated = content["saturated"]
        rows = [(f"mean over {samples.places}", f"{100 * saturated['mean']:.3g} %")]
        if 0.0 < saturated["max"] < 1.0:
            rows.append(("most", f"{100 * saturated['max']:.3g} %"))
        found.append((f"Saturated: {saturated['meaning']}", rows))
    for further in samples.further:
        rows = [(label, compact(content[further.name][name])) for name, label in LABELS.items()]
        found.append((further.title, rows))
    if samples.numbers:
        rows = [(QUANTITIES[name].title, compact(value)) for name, value in samples.numbers.items()]
        found.append(("Also measured", rows))
    return found


def table(audit: Audit) -> Group:
    """The numbers, and the samples with the least entropy, for a terminal."""
    least = [(row["label"], plain(row["realised_entropy"], 3)) for row in audit.worst[:5]]
    parts: list[Any] = [_text(audit.samples.model, "bold")]
    for title, rows in [*tables(audit), ("Least entropy (nats)", least)]:
        grid = Table(box=None, show_header=False, padding=(0, 2))
        for row in rows:
            grid.add_row(*map(_text, row))
        parts += [_text(title), grid]
    return Group(*parts)


def _text(content: str, style: str = "") -> Text:
    return Text(printable(content), style)


def _worst(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Column names and cells of the samples with the least entropy."""
    names = {
        "realised_entropy": "Entropy (nats)",
        "least_action_std": "Least standard deviation",
        "saturated": "Saturated (%)",
    }
    used = [name for name in names if name in rows[0]]
    shown = {"realised_entropy": lambda x: plain(x, 3), "saturated": lambda x: plain(100 * x, 1)}
    cells = [[row["label"], *(shown.get(name, compact)(row[name]) for name in used)] for row in rows]
    return [names[name] for name in used], cells


# --- the figure ------------------------------------------------------------------------------------------


def figure(audit: Audit) -> Figure:
    """Histogram of the entropy with its floor, and beside it the spread of the action, or a further quantity."""
    samples = audit.samples
    keys: list[Artist] = []
    if audit.floor is not None:
        keys.append(Line2D([], [], color="black", lw=1.0, label=f"floor, {compact(audit.floor)} nats"))

    def entropy(axes: Axes) -> Sequence[Artist]:
        title = f"Entropy of {samples.places}, share of them (%)"
        _histogram(axes, Further("", title, samples.entropy, audit.floor))
        axes.set_xlabel("Entropy (nats)")
        return keys

    def spread(axes: Axes) -> Sequence[Artist]:
        return _spread(axes, samples)

    def further(axes: Axes) -> Sequence[Artist]:
        _histogram(axes, samples.further[0])
        axes.set_ylabel("Share (%)")
        return []

    second = [spread] if samples.spread is not None else [further] if samples.further else []
    draws = [entropy, *second]
    return arrange(samples.model, draws, [], len(draws), 3.6)


def _histogram(axes: Axes, what: Further) -> None:
    drawn = histogram(what.values)
    share = 100 * np.array(drawn["counts"]) / len(what.values)
    axes.stairs(share, drawn["edges"], color=COLOURS[0], fill=True, alpha=0.5, zorder=3)
    if what.mark is not None:
        axes.axvline(what.mark, color="black", lw=1.0, zorder=4)
    axes.set_title(what.title)
    axes.set_ylim(bottom=0)


def _spread(axes: Axes, samples: Samples) -> Sequence[Artist]:
    assert samples.spread is not None
    values = samples.spread.values[:, :DIMENSIONS]
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    numbers = np.arange(values.shape[1])
    axes.vlines(numbers, low, high, color=COLOURS[0], lw=3, alpha=0.5, zorder=3)
    axes.plot(numbers, middle, ls="", marker="o", ms=4, color=COLOURS[0], zorder=4)
    axes.plot(numbers, values.min(0), ls="", marker="v", ms=4, color=COLOURS[1], zorder=4)
    axes.set_title("Standard deviation of the action")
    axes.set_xlabel("Component of the action")
    axes.set_ylabel(samples.spread.unit)
    axes.set_ylim(bottom=0)
    axes.set_xticks(numbers[:: max(1, len(numbers) // 10)])
    return [
        Line2D([], [], color=COLOURS[0], marker="o", lw=3, alpha=0.6, label="median, and 5 % to 95 % of states"),
        Line2D([], [], color=COLOURS[1], marker="v", ls="", label="least"),
    ]
