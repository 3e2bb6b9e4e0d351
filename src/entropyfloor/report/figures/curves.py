"""Curves against steps: means over seeds with their intervals, and the limits of their axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox, ScaledTranslation, TransformedBbox

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.domains import Column
from entropyfloor.report.figures.layout import Panel, Scene
from entropyfloor.report.figures.series import show
from entropyfloor.report.figures.style import Look
from entropyfloor.report.formats import compact
from entropyfloor.report.groups import Curve, Group
from entropyfloor.report.statistics import Interval, mean_interval

CROWD = 6
"""No bands are drawn of more groups than this, as they would hide each other: intervals of the last values stand
beside the panel."""
LOGARITHMIC = 5.0
"""An axis is logarithmic, if its panel allows it, where the largest value is more than so many times the least."""


def logged(comparison: Comparison, *names: str) -> bool:
    """Whether some group has a curve of each."""
    return all(any(group.curve(name) for group in comparison.groups) for name in names)


def curves_of(groups: Sequence[Group], name: str, factor: float = 1.0) -> dict[str, Curve]:
    """Curves of a quantity by label, of the groups that have one."""
    curves = {group.label: group.curve(name, factor) for group in groups}
    return {label: curve for label, curve in curves.items() if curve}


def column_panels(columns: Sequence[Column], log: bool = False) -> list[Panel]:
    """A panel with the curves of each column."""
    return [partial(draw_column, column=column, log=log) for column in columns]


def draw_column(scene: Scene, axes: Axes, column: Column, log: bool = False) -> Sequence[Artist]:
    """Draw the curves of a quantity; `log` allows a logarithmic axis."""
    curves = curves_of(scene.groups, column.name, column.factor)
    draw_means(axes, curves, scene.look)
    limit_to_curves(axes, curves.values(), log)
    axes.set_title(column.label)
    against_steps(axes, scene)
    return []


def against_steps(axes: Axes, scene: Scene) -> None:
    """Label the horizontal axis with the steps of the domain."""
    label_steps(axes, scene.comparison.domain.step_label)


def label_steps(axes: Axes, label: str) -> None:
    """Label the horizontal axis with steps."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def limit_to_curves(axes: Axes, curves: Iterable[Curve], log: bool = False) -> None:
    """Limit the vertical axis so that every seed is whole; intervals far beyond the seeds are cut."""
    axes.autoscale(axis="y")
    values = np.concatenate([x.ravel() for curve in curves for x in (curve.values, *(y for _, y in curve.tails))])
    ratio = values.max() / values.min() if log and values.min() > 0 else 1.0
    if ratio > LOGARITHMIC:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if ratio < 100 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    scale = axes.yaxis.get_transform()
    low, high, bottom, top = scale.transform(np.array([values.min(), values.max(), *axes.get_ylim()]))
    margin = max(0.5 * (high - low), 1e-3 * abs(high), 1e-9)
    axes.set_ylim(*scale.inverted().transform(np.array([max(bottom, low - margin), min(top, high + margin)])))


def draw_means(axes: Axes, curves: dict[str, Curve], look: dict[str, Look]) -> None:
    """Draw means with their intervals: bands, or beside the panel for more than `CROWD` curves."""
    crowd = len(curves) > CROWD
    for i, (label, curve) in enumerate(curves.items()):
        mean = mean_interval(curve.values)
        artists = _draw_mean(axes, curve, mean, look[label], crowd)
        if crowd:
            artists += _draw_end(axes, i, curve.values[:, -1], look[label])
        show(axes, label, artists, curve.steps, mean)


def draw_line(axes: Axes, x: np.ndarray, y: Interval, look: Look, *, crowd: bool, band: bool) -> list[Artist]:
    """Draw a line, thinner in a crowd, and the band of its interval."""
    points: dict[str, Any] = {"marker": look.marker, "ms": 3.5, "markevery": max(1, len(x) // 15)}
    artists: list[Artist] = []
    artists += axes.plot(x, y.value, color=look.colour, lw=1.6 if crowd else 2.2, zorder=4, **points)
    if band:
        artists.append(axes.fill_between(x, y.low, y.high, color=look.colour, alpha=0.16, lw=0, zorder=2))
    return artists


def _draw_mean(axes: Axes, curve: Curve, mean: Interval, look: Look, crowd: bool) -> list[Artist]:
    """Draw mean and interval; single seeds where there are two, or where one went further than the rest."""
    artists = draw_line(axes, curve.steps, mean, look, crowd=crowd, band=mean.n > 2 and not crowd)
    single = [*curve.tails]
    if mean.n == 2 and not crowd:  # their interval would be thirteen times as wide as their distance
        single += [(curve.steps, values) for values in curve.values]
    for steps, values in single:
        artists += axes.plot(steps, values, color=look.colour, lw=0.8, alpha=0.6, zorder=3)
    return artists


def _draw_end(axes: Axes, place: int, values: np.ndarray, look: Look) -> list[Artist]:
    """Draw mean and interval of the last values, or one or two seeds themselves, to the right of the axes."""
    mean = mean_interval(values)
    ends = np.array([mean.low, mean.high]) if mean.n > 2 else values
    axes.dataLim.update_from_data_y(ends, ignore=False)
    assert axes.figure is not None
    aside = axes.get_yaxis_transform() + ScaledTranslation((7 + 5 * place) / 72, 0, axes.figure.dpi_scale_trans)
    drawn: dict[str, Any] = {"color": look.colour, "transform": aside, "zorder": 4}
    lines = [
        *axes.plot(np.ones(len(ends)), ends, lw=1.4, **drawn),
        *axes.plot([1], [mean.value], marker=look.marker, ms=3.5, **drawn),
    ]
    for line in lines:  # cut by the limits of the axes, but not by their right side
        line.set_clip_path(None)
        line.set_clip_box(TransformedBbox(Bbox.from_extents(0, 0, 2, 1), axes.transAxes))
    return [*lines]
