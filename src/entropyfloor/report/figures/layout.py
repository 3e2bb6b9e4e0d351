"""Panels and their legend in one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from textwrap import fill
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.figures.style import RC, Look, short
from entropyfloor.report.groups import Group

SINGLE, WIDE = 6.4, 11.0  # inches
LEAST_HEIGHT = 2.6
"""Inches that the legend leaves to each row of panels."""
LETTERS = 8
"""Letters of a figure's title in an inch."""
LINE = 0.22
"""Inches of a line of a figure's title."""


class Scene(NamedTuple):
    """Data of a panel."""

    comparison: Comparison
    groups: Sequence[Group]
    """Groups that are drawn in their colours: all of the comparison, or one."""
    look: dict[str, Look]


Panel = Callable[[Scene, Axes], Sequence[Artist]]
"""Draws into the axes, and returns entries of the legend beside those of the labels."""


def side_by_side(comparison: Comparison, look: dict[str, Look], panels: Sequence[Panel], rows: int = 1) -> Figure:
    """Panels side by side, in one row or several, each with every group."""
    keys = [key(label_with_n(group), look[group.label]) for group in comparison.groups]
    scene = Scene(comparison, comparison.groups, look)
    return arrange(
        comparison.env, [partial(panel, scene) for panel in panels], keys, -(-len(panels) // rows), 3.8 * rows
    )


def grid(comparison: Comparison, look: dict[str, Look], panel: Panel) -> Figure:
    """A panel for each group, all with the same axes."""
    groups = comparison.groups
    rows, columns = shape(len(groups))
    draws = [partial(panel, Scene(comparison, [group], look)) for group in groups]
    figure = arrange(comparison.env, draws, [], columns, 0.9 + 2.1 * rows, shared=True)
    with matplotlib.rc_context(RC):
        _name(figure, f"{short(comparison.env)}: {figure.axes[0].get_title('left')}")
        letters = int(12 * figure.get_figwidth() / columns)
        for i, (axes, group) in enumerate(zip(figure.axes, groups, strict=True)):
            axes.set_title(fill(label_with_n(group), letters), fontsize=9.5, fontweight="normal")
            axes.tick_params(labelbottom=i >= len(groups) - columns)  # with no panel below
            if i < (rows - 1) * columns:
                axes.set_xlabel("")
    return figure


def shape(panels: int) -> tuple[int, int]:
    """Rows and columns of so many panels, at most four in a row."""
    rows = -(-panels // 4)
    return rows, -(-panels // rows)


def arrange(
    name: str,
    draws: Sequence[Callable[[Axes], Sequence[Artist]]],
    keys: Sequence[Artist],
    columns: int,
    height: float,
    shared: bool = False,
) -> Figure:
    """Panels in rows, and a legend of `keys` and the entries that drawing returns, each label once."""
    with matplotlib.rc_context(RC):
        figure = Figure(facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        rows, width = -(-len(draws) // columns), SINGLE if columns == 1 else WIDE
        panels = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
        entries = {str(key.get_label()): key for key in keys}
        for axes, draw in zip(panels, draws, strict=False):
            entries |= {str(key.get_label()): key for key in draw(axes)}
            axes.tick_params(which="both", length=0)
            axes.set_axisbelow(True)
        for axes in panels[len(draws) :]:
            axes.remove()
        longest = max((len(line) for label in entries for line in label.splitlines()), default=0)
        fitting = max(1, int(width / (0.7 + 0.075 * longest)))  # inches: the handle, and what a letter takes
        fitting = min(fitting, max(1, len(entries)), 4)
        lines = -(-len(entries) // fitting)
        columns_of_text = np.array_split([len(label.splitlines()) for label in entries], fitting)
        text = max(int(column.sum()) for column in columns_of_text)  # lines, one above the other
        figure.set_size_inches(width, max(height + 0.25 * lines, LEAST_HEIGHT * rows + 0.17 * text + 0.07 * lines))
        _name(figure, short(name))
        figure.legend(handles=[*entries.values()], loc="outside lower center", ncols=fitting)
        return figure


def _name(figure: Figure, name: str) -> None:
    """Write the title of a figure, in as many lines as it needs, for which the figure grows."""
    text = fill(name, int(LETTERS * figure.get_figwidth()))
    lines = text.count("\n") - figure.get_suptitle().count("\n")
    figure.set_figheight(figure.get_figheight() + LINE * lines)
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


def key(label: str, look: Look) -> Line2D:
    """Entry of an agent in a legend."""
    return Line2D([], [], color=look.colour, marker=look.marker, ms=5, lw=2, label=fill(label, 60))


def label_with_n(group: Group) -> str:
    """A label as legends have it: with its number of seeds."""
    return f"{short(group.label)} (n = {len(group.seeds)})"
