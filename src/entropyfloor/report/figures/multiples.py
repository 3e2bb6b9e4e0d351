"""Small multiples: one panel a task, each with every agent that has runs there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from textwrap import fill

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.figures.layout import Panel, Scene, arrange, key, shape
from entropyfloor.report.figures.style import Look, short


def multiples_figure(comparisons: Sequence[Comparison], look: dict[str, Look], panel: Panel, title: str) -> Figure:
    """The same panel of several tasks.

    Args:
        comparisons: A panel each; they are of the same domain.
        look: How each label is drawn.
        panel: Draws a panel.
        title: What the panels show.
    """
    rows, columns = shape(len(comparisons))
    labels = sorted({group.label for comparison in comparisons for group in comparison.groups})
    keys = [key(short(label), look[label]) for label in labels]

    def draw(comparison: Comparison, axes: Axes) -> Sequence[Artist]:
        entries = panel(Scene(comparison, comparison.groups, look), axes)
        axes.set_title(fill(short(comparison.env), 100 // columns), fontsize=9.5)
        for text in [*axes.texts]:  # there is no room for it
            text.remove()
        return entries

    draws = [partial(draw, comparison) for comparison in comparisons]
    return arrange(title, draws, keys, columns, 0.9 + 2.6 * rows)
