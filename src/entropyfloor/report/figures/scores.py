"""Figures of scores, of the realised entropy beside its floor, and of the calibration of classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.domains import Column
from entropyfloor.report.figures import curves
from entropyfloor.report.figures.language import draw_responses
from entropyfloor.report.figures.layout import Panel, Scene, side_by_side
from entropyfloor.report.figures.series import show
from entropyfloor.report.figures.style import DASHES, MUTED, Look, short
from entropyfloor.report.formats import compact
from entropyfloor.report.groups import RESPONSES, Group, Promise

ENTROPY_HISTOGRAM, CALIBRATION_HISTOGRAM = HISTOGRAMS = ("entropy_histogram", "calibration_histogram")
"""Their names in the results of `entropyfloor evaluate`."""
LETTERS = 30
"""Characters of a label that is written into a panel."""
LEAST_COUNT = 20
"""Least number of samples in a bin whose accuracy is drawn: that of fewer is mostly chance."""


def score_figure(comparison: Comparison, look: dict[str, Look]) -> Figure:
    """Score against steps, and the quantities of the domain that are drawn beside it."""
    drawn = [
        column for column in comparison.domain.also if column.drawn and curves.logged(comparison, column.name)
    ]
    return side_by_side(comparison, look, [draw_score, *curves.column_panels(drawn)])


def entropy_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Realised entropy against steps: its mean and its least value, beside the floor or the target.

    None where the entropy of responses was logged, which has its own figure.
    """
    return None if curves.logged(comparison, RESPONSES) else side_by_side(comparison, look, [_draw_realised])


def overview_figure(comparison: Comparison, look: dict[str, Look], below: Sequence[Panel] = ()) -> Figure:
    """Score and entropy side by side, and other panels in a row below them."""
    return side_by_side(comparison, look, [draw_score, draw_entropy, *below], rows=2 if below else 1)


def evaluation_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Entropies of test samples, and how often the likeliest class is right.

    None where `entropyfloor evaluate` has evaluated no group.
    """
    if not any(group.histogram(name) for group in comparison.groups for name in HISTOGRAMS):
        return None
    return side_by_side(comparison, look, [_draw_entropies, _draw_calibration])


def draw_score(scene: Scene, axes: Axes) -> Sequence[Artist]:
    """Draw the score of the domain."""
    domain = scene.comparison.domain
    return curves.draw_column(scene, axes, Column(domain.score, domain.score_label))


def draw_entropy(scene: Scene, axes: Axes) -> Sequence[Artist]:
    """Draw the realised entropy with its floor, or the entropy of responses where it was logged."""
    logged = curves.logged(scene.comparison, RESPONSES)
    return draw_responses(scene, axes) if logged else _draw_realised(scene, axes)


def _draw_realised(scene: Scene, axes: Axes) -> Sequence[Artist]:
    comparison, groups, look = scene
    domain = comparison.domain
    curves.draw_means(axes, curves.curves_of(groups, "realised_entropy"), look)
    for label, least in curves.curves_of(groups, "realised_entropy/min").items():
        dashes: dict[str, Any] = {"color": look[label].colour, "ls": DASHES}
        values = least.values.min(axis=0)
        lines = axes.plot(least.steps, values, lw=1.6, zorder=3, **dashes)
        for tail in least.tails:
            lines += axes.plot(*tail, lw=0.8, alpha=0.6, zorder=3, **dashes)
        show(axes, label, lines, least.steps, values, "least")
    bottom = _limit_entropy(axes, groups)
    cut = [group for group in groups if group.least < bottom]
    for line, group in enumerate(reversed(cut)):  # what leaves the panel is written into it
        name, least_of_group = short(group.label, LETTERS), compact(round(group.least, 1))
        text = axes.text(
            0.015,
            0.03 + 0.065 * line,
            f"\N{BLACK DOWN-POINTING SMALL TRIANGLE} {name}: least {least_of_group}",
            color=look[group.label].colour,  # two long labels may be the same where they are cut
            transform=axes.transAxes,
            fontsize=9,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},  # curves cross it
        )
        text.set_in_layout(False)  # or a long one would take the panel's width
        show(axes, group.label, [text])
    axes.set_title(f"Realised entropy of the {domain.actor} (nats)")
    curves.against_steps(axes, scene)
    keys = [
        Line2D([], [], color=MUTED, lw=2, label=f"mean over {domain.places}"),
        Line2D([], [], color=MUTED, lw=1.6, ls=DASHES, label=f"least over {domain.places} and seeds"),
    ]
    floors = _promised(groups, "floor")
    for floor in floors:
        axes.axhline(floor, color="black", lw=1.0, zorder=2.5)  # a curve that lies on it stays visible
        keys.append(Line2D([], [], color="black", lw=1.0, label=f"promised floor, {compact(floor)} nats"))
    if floors:
        axes.axhspan(bottom, floors[0], color="black", alpha=0.05, lw=0, zorder=0)
    for target in sorted(set(_promised(groups, "target")) - set(floors)):
        axes.axhline(target, color="black", lw=1.2, ls=":", zorder=5)
        keys.append(Line2D([], [], color="black", lw=1.2, ls=":", label=f"target, {compact(target)} nats"))
    return keys


def _draw_entropies(scene: Scene, axes: Axes) -> Sequence[Artist]:
    comparison, groups, look = scene
    for group in groups:
        if histogram := group.histogram(ENTROPY_HISTOGRAM):
            style, edges = look[group.label], histogram["edges"]
            share = 100 * histogram["counts"] / histogram["counts"].sum()
            stairs = axes.stairs(share, edges, color=style.colour, lw=1.8, zorder=3)
            peak, middles = share.argmax(), (edges[1:] + edges[:-1]) / 2
            marker: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ms": 5}
            show(
                axes,
                group.label,
                [stairs, *axes.plot(middles[peak], share[peak], **marker)],
                middles,
                share,
                "share",
            )
    floors = _promised(groups, "floor")
    for floor in floors:
        axes.axvline(floor, color="black", lw=1.0, zorder=2.5)
    axes.set_title(f"Entropy of {comparison.domain.places}, share of them (%)")
    axes.set_xlabel("Entropy (nats)")
    axes.set_ylim(bottom=0)
    return [
        Line2D([], [], color="black", lw=1.0, label=f"promised floor, {compact(floor)} nats") for floor in floors
    ]


def _draw_calibration(scene: Scene, axes: Axes) -> Sequence[Artist]:
    for group in scene.groups:
        if histogram := group.histogram(CALIBRATION_HISTOGRAM):
            style, counts = scene.look[group.label], histogram["counts"]
            some = counts >= LEAST_COUNT
            confidence, accuracy = (histogram[name][some] / counts[some] for name in ("confidence", "correct"))
            points: dict[str, Any] = {"ms": 4, "marker": style.marker, "color": style.colour}
            line = axes.plot(confidence, accuracy, lw=1.8, zorder=3, **points)
            show(axes, group.label, line, confidence, accuracy, "accuracy")
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1.2, ls=":", zorder=2.5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Calibration: how often the likeliest class is right")
    axes.set_xlabel("Its probability")
    return [Line2D([], [], color=MUTED, lw=1.2, ls=":", label="calibrated")]


def _promised(groups: Iterable[Group], promise: Promise) -> list[float]:
    """Different floors or targets of the groups, from the lowest."""
    return sorted({group.floor for group in groups if group.promise == promise and group.floor is not None})


def _limit_entropy(axes: Axes, groups: Sequence[Group]) -> float:
    """Limit the axis so that agents with a floor are whole; much lower curves are cut. Returns the lower limit."""
    top = max(float(seed.values["realised_entropy"].max()) for group in groups for seed in group.seeds)
    focus = [group for group in groups if group.promise == "floor"] or groups
    low = min(min(group.least, top if group.floor is None else group.floor) for group in focus)
    span = max(top - low, 1.0)  # a curve that lies on its floor needs an axis too
    bottom = max(min(group.least for group in groups), low - span)
    axes.set_ylim(bottom := min(bottom, low) - 0.08 * span, max(top, low) + 0.08 * span)
    return bottom
