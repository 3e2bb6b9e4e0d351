"""Figures of classifiers: a histogram of entropies, and calibration, by `entropyfloor evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.figures.layout import Scene, side_by_side
from entropyfloor.report.figures.scores import promised
from entropyfloor.report.figures.style import MUTED, Look
from entropyfloor.report.formats import compact

ENTROPY_HISTOGRAM, CALIBRATION_HISTOGRAM = HISTOGRAMS = ("entropy_histogram", "calibration_histogram")
"""Their names in the results of `entropyfloor evaluate`."""
LEAST_COUNT = 20
"""Least number of samples in a bin whose accuracy is drawn: that of fewer is mostly chance."""


def evaluation_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Entropies of test samples, and how often the likeliest class is right.

    None where `entropyfloor evaluate` has evaluated no group.
    """
    if not any(group.histogram(name) for group in comparison.groups for name in HISTOGRAMS):
        return None
    return side_by_side(comparison, look, [_draw_entropies, _draw_calibration])


def _draw_entropies(scene: Scene, axes: Axes) -> Sequence[Artist]:
    comparison, groups, look = scene
    for group in groups:
        if histogram := group.histogram(ENTROPY_HISTOGRAM):
            share = 100 * histogram["counts"] / histogram["counts"].sum()
            axes.stairs(share, histogram["edges"], color=look[group.label].colour, lw=1.8, zorder=3)
            middles = (histogram["edges"][1:] + histogram["edges"][:-1]) / 2
            peak = share.argmax()
            axes.plot(
                middles[peak], share[peak], color=look[group.label].colour, marker=look[group.label].marker, ms=5
            )
    floors = promised(groups, "floor")
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
            some = histogram["counts"] >= LEAST_COUNT
            confidence, accuracy = (
                histogram[name][some] / histogram["counts"][some] for name in ("confidence", "correct")
            )
            drawn: dict[str, Any] = {"color": scene.look[group.label].colour}
            axes.plot(confidence, accuracy, lw=1.8, ms=4, zorder=3, marker=scene.look[group.label].marker, **drawn)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1.2, ls=":", zorder=2.5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Calibration: how often the likeliest class is right")
    axes.set_xlabel("Its probability")
    return [Line2D([], [], color=MUTED, lw=1.2, ls=":", label="calibrated")]
