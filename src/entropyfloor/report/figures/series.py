"""What a panel shows of an arm: its artists, and the values that they stand for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container

from entropyfloor.report.statistics import Interval


class Series(Container):
    """Artists of an arm in a panel, which a page shows and hides together, and their values.

    The values are those of the figure's CSV file, and those that a page shows where the pointer is.
    """

    def __init__(self, artists: Iterable[Artist], label: str, statistic: str, x: np.ndarray, y: Interval) -> None:
        super().__init__(tuple(artists), label=label)
        self.statistic, self.x, self.y = statistic, x, y


def show(
    axes: Axes,
    label: str,
    artists: Iterable[Artist],
    x: np.ndarray | None = None,
    y: Interval | np.ndarray | None = None,
    statistic: str = "mean",
) -> None:
    """Say which arm artists of a panel belong to, and which values they show.

    Args:
        axes: The panel.
        label: The arm: a label of `looks`.
        artists: Artists that are in `axes` already.
        x: `[points]`; without values the artists are only shown and hidden with the arm.
        y: `[points]`, or with intervals.
        statistic: What `y` is: its name in the CSV file.
    """
    x = np.empty(0) if x is None else np.asarray(x)
    if not isinstance(y, Interval):
        values = np.empty(0) if y is None else np.asarray(y)
        nothing = np.full(values.shape, np.nan)
        y = Interval(values, nothing, nothing, 1)
    axes.add_container(Series(artists, label, statistic, x, y))


def series_of(axes: Axes) -> list[Series]:
    """The series of a panel, in the order in which they were shown."""
    return [each for each in axes.containers if isinstance(each, Series)]
