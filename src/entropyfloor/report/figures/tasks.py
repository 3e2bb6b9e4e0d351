"""Figure over tasks: the interquartile mean against steps, and performance profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropyfloor.report.domains import DOMAINS
from entropyfloor.report.figures.curves import CROWD, draw_line, label_steps
from entropyfloor.report.figures.layout import Panel, Scene, arrange, key
from entropyfloor.report.figures.series import show
from entropyfloor.report.figures.style import Look, short
from entropyfloor.report.formats import bracketed
from entropyfloor.report.statistics import FEWEST, Interval
from entropyfloor.report.tasks import Aggregate, Arm

LISTED = 40
"""Largest number of agents that the text instead of the figure lists."""
CAPTION = (
    "Interquartile mean of the normalised returns of all runs, at the steps at which every task was evaluated; "
    "share of the runs whose score is above that of the axis, a mean over tasks. n: seeds in a task, the fewest. "
    "Bands: 95\N{NO-BREAK SPACE}% intervals of a bootstrap that resamples the seeds of each task, where each has "
    f"{FEWEST}; of more than {CROWD} agents none. Agents that are not drawn on the first task are in the table "
    "only."
)


def tasks_figure(aggregate: Aggregate, look: dict[str, Look]) -> Figure:
    """Interquartile mean against steps, and performance profile."""
    draws = [partial(draw, aggregate, look) for draw in (_draw_iqm, _draw_profile)]
    return arrange(aggregate.name, draws, [_key(*each) for each in _drawn(aggregate, look)], len(draws), 3.8)


def overview_panels(aggregate: Aggregate) -> list[Panel]:
    """The same panels for the figure of a task; their titles say what they are of."""

    def titled(draw: Callable[..., Sequence[Artist]], scene: Scene, axes: Axes) -> Sequence[Artist]:
        draw(aggregate, scene.look, axes)
        axes.set_title(f"{axes.get_title('left')}: {aggregate.name}")
        known = [scene.look[group.label] for group in scene.groups]
        return [_key(arm, style) for arm, style in _drawn(aggregate, scene.look) if style not in known]

    return [partial(titled, draw) for draw in (_draw_iqm, _draw_profile)]


def alt(aggregate: Aggregate) -> str:
    """Text instead of the figure, for those who cannot see it."""
    rows = aggregate.best(LISTED)
    ends = "; ".join(f"{row.arm.label} ended at {bracketed(row.statistics['iqm'], 2)}" for row in rows)
    if len(rows) < len(aggregate.rows):
        ends += f"; {len(aggregate.rows) - len(rows)} others ended no higher"
    return f"Interquartile mean of normalised returns, and performance profiles, on {aggregate.name}. {ends}."


def _draw_iqm(aggregate: Aggregate, look: dict[str, Look], axes: Axes) -> Sequence[Artist]:
    arms = _drawn(aggregate, look)
    for arm, style in arms:
        if arm.iqm:
            _draw(axes, arm, arm.curve[0], arm.iqm, style, "IQM", crowd=len(arms) > CROWD)
    axes.set_title("IQM of normalised returns")
    label_steps(axes, DOMAINS["control"].step_label)
    return []


def _draw_profile(aggregate: Aggregate, look: dict[str, Look], axes: Axes) -> Sequence[Artist]:
    arms = _drawn(aggregate, look)
    thresholds = aggregate.thresholds
    for arm, style in arms:
        _draw(axes, arm, thresholds, aggregate.profile(arm), style, "share above", crowd=len(arms) > CROWD)
    axes.set(xlim=(thresholds[0], thresholds[-1]), ylim=(0, 1.02))
    axes.set_title("Performance profile")
    axes.set_xlabel("Normalised return")
    axes.set_ylabel("Share of runs above")
    return []


def _drawn(aggregate: Aggregate, look: dict[str, Look]) -> list[tuple[Arm, Look]]:
    """Arms with their looks, those of their runs on the first task, if these are drawn."""
    labels = [arm.groups[0].label for arm in aggregate.arms]
    return [(arm, look[label]) for arm, label in zip(aggregate.arms, labels, strict=True) if label in look]


def _draw(axes: Axes, arm: Arm, x: np.ndarray, y: Interval, look: Look, statistic: str, *, crowd: bool) -> None:
    """Draw estimates, and a band between their bounds if there are some and there is room."""
    band = bool(np.isfinite(y.low).all()) and not crowd
    artists = draw_line(axes, x, y, look, crowd=crowd, band=band)
    show(axes, arm.groups[0].label, artists, x, y, statistic)


def _key(arm: Arm, look: Look) -> Line2D:
    """Entry of the legend."""
    return key(f"{short(arm.label)} (n = {min(len(group.seeds) for group in arm.groups)})", look)
