"""Learning curves, and the realised entropy beside its floor.

Figures are built without `pyplot`, so nothing global changes, and are the same bytes for the same runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from entropyfloor.report.records import Comparison, Group, Promise
from entropyfloor.report.statistics import mean_interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette for all kinds of colour vision, without yellow, which is pale on white, and without
black, which is the floor's."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = (0, (3, 2))
INK, MUTED = "#1a1a1a", "#8a8a8a"

ENTROPY_HISTOGRAM, CALIBRATION_HISTOGRAM = HISTOGRAMS = ("entropy_histogram", "calibration_histogram")
"""Of `entropyfloor evaluate`."""
LEAST_COUNT = 20
"""Samples in a bin whose accuracy is drawn: of fewer it is mostly chance."""

SINGLE, WIDE = 6.4, 11.0  # inches
RC: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and selected
    "svg.hashsalt": "entropyfloor",
    "text.color": INK,
    "text.parse_math": False,  # a label is a label, whatever characters it has
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Look:
    """How a label is drawn, in every figure of a report."""

    colour: str
    marker: str


Panel = Callable[[Axes, Comparison, dict[str, Look]], list[Line2D]]
"""Draws into axes, and returns what its legend needs beside the labels."""


def looks(comparisons: Sequence[Comparison]) -> dict[str, Look]:
    """One look a label; where the colours are used up, the markers tell them apart."""
    names = sorted({group.label for comparison in comparisons for group in comparison.groups})
    n = len(COLOURS)
    return {name: Look(COLOURS[i % n], MARKERS[i // n % len(MARKERS)]) for i, name in enumerate(names)}


def score_figure(comparison: Comparison, look: dict[str, Look]) -> Figure:
    """The score against steps: mean over seeds, with its 95 % interval."""
    return _figure(SINGLE, comparison, look, [_draw_score])


def entropy_figure(comparison: Comparison, look: dict[str, Look]) -> Figure:
    """Realised entropy against steps: its mean and its least value, beside what was promised."""
    return _figure(SINGLE, comparison, look, [_draw_entropy])


def overview_figure(comparison: Comparison, look: dict[str, Look]) -> Figure:
    """Both panels side by side."""
    return _figure(WIDE, comparison, look, [_draw_score, _draw_entropy])


def judged_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Where the entropies of test samples lie, and how often the likeliest class is right.

    None where `entropyfloor evaluate` has judged no group.
    """
    if not any(group.histogram(name) for group in comparison.groups for name in HISTOGRAMS):
        return None
    return _figure(WIDE, comparison, look, [_draw_entropies, _draw_calibration])


def png(figure: Figure) -> bytes:
    """The figure at 200 dots an inch."""
    return _save(figure, format="png", dpi=200, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure with text as text, and without a date."""
    return _save(figure, format="svg", metadata={"Date": None, "Creator": None})


def _save(figure: Figure, **options: Any) -> bytes:
    file = BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(file, **options)
    return file.getvalue()


def _figure(width: float, comparison: Comparison, look: dict[str, Look], panels: Sequence[Panel]) -> Figure:
    with matplotlib.rc_context(RC):
        figure = Figure(facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        keys = [_key(group, look[group.label]) for group in comparison.groups]
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            keys += draw(axes, comparison, look)
            axes.tick_params(length=0)
            axes.set_axisbelow(True)
        longest = max(len(line) for key in keys for line in str(key.get_label()).splitlines())
        columns = max(1, int(width / (0.7 + 0.075 * longest)))  # inches: the handle, and what a letter takes
        columns = min(columns, len(keys), 4)
        lines = -(-len(keys) // columns)
        figure.set_size_inches(width, 3.8 + 0.25 * lines)
        figure.suptitle(comparison.env, x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.legend(handles=keys, loc="outside lower center", ncols=columns)
        return figure


def _against_steps(axes: Axes, comparison: Comparison) -> None:
    axes.set_xlabel(comparison.domain.step_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _key(group: Group, look: Look) -> Line2D:
    label = fill(f"{group.label} (n = {len(group.seeds)})", 60)
    return Line2D([], [], color=look.colour, marker=look.marker, ms=5, lw=2, label=label)


def _draw_score(axes: Axes, comparison: Comparison, look: dict[str, Look]) -> list[Line2D]:
    groups, name = comparison.groups, comparison.domain.score
    for group in groups:
        _draw_mean(axes, group, name, look[group.label])
    scores = np.concatenate([seed.values[name] for group in groups for seed in group.seeds])
    low, high = scores.min(), scores.max()
    room = max(0.5 * (high - low), 1e-3 * abs(high), 1e-9)  # with three seeds a band may dwarf them
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))
    axes.set_title(comparison.domain.score_label)
    _against_steps(axes, comparison)
    return []


def _draw_entropy(axes: Axes, comparison: Comparison, look: dict[str, Look]) -> list[Line2D]:
    groups, domain = comparison.groups, comparison.domain
    for group in groups:
        _draw_mean(axes, group, "realised_entropy", look[group.label])
        dashes: dict[str, Any] = {"color": look[group.label].colour, "ls": DASHES}
        axes.plot(group.steps, group.values("realised_entropy/min").min(axis=0), lw=1.6, zorder=3, **dashes)
        for steps, values in group.tails("realised_entropy/min"):
            axes.plot(steps, values, lw=0.8, alpha=0.6, zorder=3, **dashes)
    bottom = _limit_entropy(axes, groups)
    cut = [group for group in groups if group.least < bottom]
    for line, group in enumerate(reversed(cut)):  # what leaves the panel is said
        text = f"\N{BLACK DOWN-POINTING SMALL TRIANGLE} {group.label}: least {_number(round(group.least, 1))}"
        place = (0.015, 0.03 + 0.065 * line)
        axes.text(*place, text, transform=axes.transAxes, fontsize=9, zorder=6)
    axes.set_title(f"Realised entropy of the {domain.actor} (nats)")
    _against_steps(axes, comparison)
    keys = [
        Line2D([], [], color=MUTED, lw=2, label=f"mean over {domain.places}"),
        Line2D([], [], color=MUTED, lw=1.6, ls=DASHES, label=f"least over {domain.places} and seeds"),
    ]
    floors = _promised(groups, "floor")
    for floor in floors:
        axes.axhline(floor, color="black", lw=1.0, zorder=2.5)  # a curve that lies on it stays visible
        keys.append(Line2D([], [], color="black", lw=1.0, label=f"promised floor, {_number(floor)} nats"))
    if floors:
        axes.axhspan(bottom, floors[0], color="black", alpha=0.05, lw=0, zorder=0)
    for target in sorted(set(_promised(groups, "target")) - set(floors)):
        axes.axhline(target, color="black", lw=1.2, ls=":", zorder=5)
        keys.append(Line2D([], [], color="black", lw=1.2, ls=":", label=f"target, {_number(target)} nats"))
    return keys


def _draw_entropies(axes: Axes, comparison: Comparison, look: dict[str, Look]) -> list[Line2D]:
    groups, domain = comparison.groups, comparison.domain
    for group in groups:
        if found := group.histogram(ENTROPY_HISTOGRAM):
            share = 100 * found["counts"] / found["counts"].sum()
            axes.stairs(share, found["edges"], color=look[group.label].colour, lw=1.8, zorder=3)
            middles = (found["edges"][1:] + found["edges"][:-1]) / 2
            peak = share.argmax()
            axes.plot(
                middles[peak], share[peak], color=look[group.label].colour, marker=look[group.label].marker, ms=5
            )
    floors = _promised(groups, "floor")
    for floor in floors:
        axes.axvline(floor, color="black", lw=1.0, zorder=2.5)
    axes.set_title(f"Entropy of {domain.places}, share of them (%)")
    axes.set_xlabel("Entropy (nats)")
    axes.set_ylim(bottom=0)
    return [
        Line2D([], [], color="black", lw=1.0, label=f"promised floor, {_number(floor)} nats") for floor in floors
    ]


def _draw_calibration(axes: Axes, comparison: Comparison, look: dict[str, Look]) -> list[Line2D]:
    for group in comparison.groups:
        if found := group.histogram(CALIBRATION_HISTOGRAM):
            some = found["counts"] >= LEAST_COUNT
            confidence, accuracy = (
                found[name][some] / found["counts"][some] for name in ("confidence", "correct")
            )
            drawn: dict[str, Any] = {"color": look[group.label].colour, "marker": look[group.label].marker}
            axes.plot(confidence, accuracy, lw=1.8, ms=4, zorder=3, **drawn)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1.2, ls=":", zorder=2.5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Calibration: how often the likeliest class is right")
    axes.set_xlabel("Its probability")
    return [Line2D([], [], color=MUTED, lw=1.2, ls=":", label="calibrated")]


def _promised(groups: Iterable[Group], promise: Promise) -> list[float]:
    return sorted({group.floor for group in groups if group.promise == promise and group.floor is not None})


def _limit_entropy(axes: Axes, groups: Sequence[Group]) -> float:
    """Show whole what agents with a floor did; what falls much deeper than they do is cut. Returns the bottom."""
    top = max(float(seed.values["realised_entropy"].max()) for group in groups for seed in group.seeds)
    focus = [group for group in groups if group.promise == "floor"] or groups
    low = min(min(group.least, top if group.floor is None else group.floor) for group in focus)
    span = max(top - low, 1.0)  # a curve that lies on its floor needs an axis too
    bottom = max(min(group.least for group in groups), low - span)
    axes.set_ylim(bottom := min(bottom, low) - 0.08 * span, max(top, low) + 0.08 * span)
    return bottom


def _draw_mean(axes: Axes, group: Group, name: str, look: Look) -> None:
    """Mean and interval where every seed was evaluated; single seeds where they are two, or went further."""
    values = group.values(name)
    mean = mean_interval(values)
    points: dict[str, Any] = {"marker": look.marker, "ms": 3.5, "markevery": max(1, len(group.steps) // 15)}
    axes.plot(group.steps, mean.value, color=look.colour, lw=2.2, zorder=4, **points)
    single = group.tails(name)
    if mean.n == 2:  # an interval of two is thirteen times as wide as they are apart, and says less than they do
        single += [(group.steps, seed) for seed in values]
    elif mean.n > 2:
        axes.fill_between(group.steps, mean.low, mean.high, color=look.colour, alpha=0.16, lw=0, zorder=2)
    for steps, seed in single:
        axes.plot(steps, seed, color=look.colour, lw=0.8, alpha=0.6, zorder=3)


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
