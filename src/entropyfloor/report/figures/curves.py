"""Learning curves, and the realised entropy beside its floor.

Figures are built without `pyplot`, so nothing global changes, and are the same bytes for the same runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import count
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox, ScaledTranslation, TransformedBbox

from entropyfloor.report.comparison import (
    OUTSIDE,
    RESPONSES,
    THRESHOLDS,
    Comparison,
    Curve,
    Group,
    Promise,
)
from entropyfloor.report.domains import Column
from entropyfloor.report.statistics import mean_interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette for all kinds of colour vision, without yellow, which is pale on white, and without
black, which is the floor's."""
MORE_COLOURS = ("#332288", "#882255", "#7B4B2A", "#3D5AFE", "#7A9A01")
"""For the seventh label and on. They come with another marker than those above: nobody's eyes are equally good at
all of eleven colours."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = (0, (3, 2))
INK, MUTED, BACKGROUND = "#1a1a1a", "#8a8a8a", "#c8c8c8"

ENTROPY_HISTOGRAM, CALIBRATION_HISTOGRAM = HISTOGRAMS = ("entropy_histogram", "calibration_histogram")
"""Of `entropyfloor evaluate`."""
LEAST_HEIGHT = 1.4
"""Inches that the legend leaves."""
LEAST_COUNT = 20
"""Samples in a bin whose accuracy is drawn: of fewer it is mostly chance."""

STRENGTHS = (0.85, 0.14, 0.45)
"""Of the colour of a share of responses: below, between, above."""
TOKENS = (
    Column("token_entropy/top", "Entropy of the top 20 % of tokens (nats)"),
    Column("token_entropy/bottom", "Entropy of the bottom 80 % (nats)"),
)
CROWD = 6
"""Of more groups than this no bands are drawn, which would hide each other: intervals of the last values stand at
the side."""
IN_SIGHT = 1.5
"""ω_high is drawn where it is at most so many times the largest entropy."""
LOGARITHMIC = 5.0
"""Entropies of tokens and responses are drawn on such an axis where the largest is so many times the least."""

LONGEST = 220
"""Characters of a label."""

SINGLE, WIDE = 6.4, 11.0  # inches
SUPTITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 13, "fontweight": "bold"}
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


class Scene(NamedTuple):
    """What a panel is to show."""

    comparison: Comparison
    groups: Sequence[Group]
    """Those that are drawn in their colours: all of the comparison, or one."""
    look: dict[str, Look]


Panel = Callable[[Scene, Axes], Sequence[Artist]]
"""Draws, and returns what the legend needs beside the labels."""


def looks(comparisons: Sequence[Comparison]) -> dict[str, Look]:
    """One look a label; where the colours are used up, the markers tell them apart."""
    names = sorted({group.label for comparison in comparisons for group in comparison.groups})
    return dict(zip(names, _all_looks(), strict=False))


def _all_looks() -> Iterator[Look]:
    colours, n = COLOURS + MORE_COLOURS, len(COLOURS)
    return (Look(colours[i % len(colours)], MARKERS[i // n % len(MARKERS)]) for i in count())


def score_figure(comparison: Comparison, look: dict[str, Look]) -> Figure:
    """The score against steps, and whatever is drawn beside it: mean over seeds, with its 95 % interval."""
    drawn = [column for column in comparison.domain.also if column.drawn and _logged(comparison, column.name)]
    return _figure(comparison, look, [_draw_score, *_panels(drawn)])


def entropy_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Realised entropy against steps: its mean and its least value, beside what was promised.

    None where the entropy of responses was logged, which has a figure of its own.
    """
    return None if _logged(comparison, RESPONSES) else _figure(comparison, look, [_draw_entropy])


def responses_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Entropy of responses beside ω_low and ω_high; None where nobody has logged it."""
    return _figure(comparison, look, [_draw_responses]) if _logged(comparison, RESPONSES) else None


def overview_figure(comparison: Comparison, look: dict[str, Look]) -> Figure:
    """Score and entropy side by side."""
    entropy = _draw_responses if _logged(comparison, RESPONSES) else _draw_entropy
    return _figure(comparison, look, [_draw_score, entropy])


def judged_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Where the entropies of test samples lie, and how often the likeliest class is right.

    None where `entropyfloor evaluate` has judged no group.
    """
    if not any(group.histogram(name) for group in comparison.groups for name in HISTOGRAMS):
        return None
    return _figure(comparison, look, [_draw_entropies, _draw_calibration])


def pass_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """pass@k of the last evaluation against k; None where nobody has it."""
    logged = any(group.pass_at for group in comparison.groups)
    return _figure(comparison, look, [_draw_pass]) if logged else None


def benchmarks_figure(model: str, curves: Mapping[str, np.ndarray]) -> Figure:
    """pass@k of one model on several benchmarks, with intervals over problems.

    Args:
        model: Its name.
        curves: Of each benchmark k, the share of problems, and both ends of its interval: `[4, number of k]`.
    """
    look = dict(zip(curves, _all_looks(), strict=False))

    def draw(axes: Axes) -> Sequence[Artist]:
        for name, (k, share, *ends) in curves.items():
            axes.plot(k, 100 * share, color=look[name].colour, marker=look[name].marker, ms=3.5, lw=2.2)
            low, high = (100 * end for end in ends)
            axes.fill_between(k, low, high, color=look[name].colour, alpha=0.16, lw=0, zorder=2)
        _against_k(axes, (k for ks, *_ in curves.values() for k in ks))
        axes.set_title("pass@k (%)")
        return [
            Line2D([], [], color=seen.colour, marker=seen.marker, lw=2.2, label=name)
            for name, seen in look.items()
        ]

    return _arrange(model, [draw], [], 1, 3.8)


def thresholds_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """The same as `responses_figure`, a panel for each group; None where it has one panel itself."""
    several = len(comparison.groups) > 1 and _logged(comparison, RESPONSES)
    return _grid(comparison, look, _draw_responses) if several else None


def shares_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Shares of responses outside the thresholds, a panel for each group; None where nobody has logged them."""
    return _grid(comparison, look, _draw_shares) if _logged(comparison, *OUTSIDE) else None


def tokens_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Entropy of the tokens that have most, and of the others; None where nobody has logged them."""
    names = [column.name for column in TOKENS]
    return _figure(comparison, look, _panels(TOKENS, log=True)) if _logged(comparison, *names) else None


def png(figure: Figure) -> bytes:
    """The figure at 200 dots an inch."""
    return _save(figure, format="png", dpi=200, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure with text as text, and without a date."""
    return _save(figure, format="svg", metadata={"Date": None, "Creator": None})


def _save(figure: Figure, **options: Any) -> bytes:
    file = BytesIO()
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box, and the page has the text
        figure.savefig(file, **options)
    return file.getvalue()


def _figure(comparison: Comparison, look: dict[str, Look], panels: Sequence[Panel]) -> Figure:
    """Panels side by side, each with every group."""
    keys = [_key(group, look[group.label]) for group in comparison.groups]
    scene = Scene(comparison, comparison.groups, look)
    return _arrange(comparison.env, [partial(panel, scene) for panel in panels], keys, len(panels), 3.8)


def _grid(comparison: Comparison, look: dict[str, Look], panel: Panel) -> Figure:
    """A panel for each group, all with the same axes."""
    groups = comparison.groups
    rows = -(-len(groups) // 4)
    columns = -(-len(groups) // rows)
    draws = [partial(panel, Scene(comparison, [group], look)) for group in groups]
    figure = _arrange(comparison.env, draws, [], columns, 0.9 + 2.1 * rows, shared=True)
    with matplotlib.rc_context(RC):
        figure.suptitle(f"{_short(comparison.env)}: {figure.axes[0].get_title('left')}", **SUPTITLE)
        letters = int(12 * figure.get_figwidth() / columns)
        for i, (axes, group) in enumerate(zip(figure.axes, groups, strict=True)):
            axes.set_title(fill(_name(group), letters), fontsize=9.5, fontweight="normal")
            axes.tick_params(labelbottom=i >= len(groups) - columns)  # with no panel below
            if i < (rows - 1) * columns:
                axes.set_xlabel("")
    return figure


def _arrange(
    name: str,
    draws: Sequence[Callable[[Axes], Sequence[Artist]]],
    keys: Sequence[Artist],
    columns: int,
    height: float,
    shared: bool = False,
) -> Figure:
    """Panels in rows, and a legend of `keys` and whatever else drawing returns, each once."""
    with matplotlib.rc_context(RC):
        figure = Figure(facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        rows, width = -(-len(draws) // columns), SINGLE if columns == 1 else WIDE
        panels = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
        found = {str(key.get_label()): key for key in keys}
        for axes, draw in zip(panels, draws, strict=False):
            found |= {str(key.get_label()): key for key in draw(axes)}
            axes.tick_params(which="both", length=0)
            axes.set_axisbelow(True)
        for axes in panels[len(draws) :]:
            axes.remove()
        longest = max((len(line) for label in found for line in label.splitlines()), default=0)
        fitting = max(1, int(width / (0.7 + 0.075 * longest)))  # inches: the handle, and what a letter takes
        fitting = min(fitting, max(1, len(found)), 4)
        lines = -(-len(found) // fitting)
        letters = sum(len(label.splitlines()) for label in found) / fitting  # lines of text, one above the other
        figure.set_size_inches(width, max(height + 0.25 * lines, LEAST_HEIGHT + 0.17 * letters))
        figure.suptitle(_short(name), **SUPTITLE)
        figure.legend(handles=[*found.values()], loc="outside lower center", ncols=fitting)
        return figure


def _logged(comparison: Comparison, *names: str) -> bool:
    """Whether some group has a curve of each."""
    return all(any(group.curve(name) for group in comparison.groups) for name in names)


def _panels(columns: Sequence[Column], log: bool = False) -> list[Panel]:
    return [partial(_draw_column, column=column, log=log) for column in columns]


def _against_steps(axes: Axes, scene: Scene) -> None:
    axes.set_xlabel(scene.comparison.domain.step_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _key(group: Group, look: Look) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, ms=5, lw=2, label=fill(_name(group), 60))


def _name(group: Group) -> str:
    return f"{_short(group.label)} (n = {len(group.seeds)})"


def _short(name: str) -> str:
    """Its beginning and its end, where it would leave no room for the panels."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]} … {name[-LONGEST // 2 :]}"


def _draw_score(scene: Scene, axes: Axes) -> Sequence[Artist]:
    domain = scene.comparison.domain
    return _draw_column(scene, axes, Column(domain.score, domain.score_label))


def _draw_column(scene: Scene, axes: Axes, column: Column, log: bool = False) -> Sequence[Artist]:
    curves = _curves(scene.groups, column.name, column.factor)
    _draw_means(axes, curves, scene.look)
    _limit(axes, curves.values(), log)
    axes.set_title(column.label)
    _against_steps(axes, scene)
    return []


def _draw_pass(scene: Scene, axes: Axes) -> Sequence[Artist]:
    curves = {group.label: group.pass_at for group in scene.groups if group.pass_at}
    _draw_means(axes, curves, scene.look)
    _limit(axes, curves.values())
    _against_k(axes, (k for curve in curves.values() for k in curve.steps))
    axes.set_title("pass@k at the last evaluation (%)")
    return []


def _against_k(axes: Axes, ks: Iterable[float]) -> None:
    """Numbers of responses, each twice the one before."""
    marks = sorted({int(k) for k in ks})
    axes.set_xscale("log", base=2)
    axes.set_xticks(marks, [str(k) for k in marks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("k")


def _draw_responses(scene: Scene, axes: Axes) -> Sequence[Artist]:
    """Groups of the comparison that are not the scene's stand in the background, so that limits suit all."""
    entropies, lows, highs = (_curves(scene.comparison.groups, name) for name in (RESPONSES, *THRESHOLDS))
    reach = IN_SIGHT * max(curve.values.max() for curve in entropies.values())
    highs = {label: curve for label, curve in highs.items() if curve.values.min() < reach}
    shown = [group.label for group in scene.groups]
    _draw_means(axes, {label: curve for label, curve in entropies.items() if label in shown}, scene.look)
    layers: list[tuple[str, list[Curve], dict[str, Any]]] = [
        (
            "the others",
            [curve for label, curve in entropies.items() if label not in shown],
            {"color": BACKGROUND, "lw": 0.8, "zorder": 1.5},
        ),
        (
            "ω_low",
            under := [curve for label, curve in lows.items() if label in shown],
            {"color": "black", "lw": 1.0, "zorder": 2.5},
        ),
        (
            "ω_high",
            [curve for label, curve in highs.items() if label in shown],
            {"color": "black", "lw": 1.2, "ls": ":", "zorder": 2.5},
        ),
    ]
    keys = []
    for name, curves, style in layers:
        for curve in curves:
            axes.plot(curve.steps, curve.values.mean(axis=0), **style)
            keys.append(Line2D([], [], label=name, **style))
    for curve in under if len(shown) == 1 else []:
        axes.fill_between(curve.steps, 0, curve.values.mean(axis=0), color="black", alpha=0.05, lw=0, zorder=0)
    _limit(axes, [*entropies.values(), *lows.values(), *highs.values()], log=True)
    axes.set_title("Entropy of responses (nats)")
    _against_steps(axes, scene)
    return keys


def _draw_shares(scene: Scene, axes: Axes) -> Sequence[Artist]:
    for group in scene.groups:
        below, above = (group.curve(name, 100.0) for name in OUTSIDE)
        if below and above:
            under, over = below.values.mean(axis=0), above.values.mean(axis=0)
            colours = [(scene.look[group.label].colour, strength) for strength in STRENGTHS]
            axes.stackplot(below.steps, under, 100 - under - over, over, colors=colours, lw=0)
    axes.set_ylim(0, 100)
    axes.set_title("Responses below, between and above ω_low and ω_high (%)")
    _against_steps(axes, scene)
    names = ("below ω_low", "between", "above ω_high")
    return [Patch(color=(MUTED, strength), label=name) for strength, name in zip(STRENGTHS, names, strict=True)]


def _draw_entropy(scene: Scene, axes: Axes) -> Sequence[Artist]:
    comparison, groups, look = scene
    domain = comparison.domain
    _draw_means(axes, _curves(groups, "realised_entropy"), look)
    for label, least in _curves(groups, "realised_entropy/min").items():
        dashes: dict[str, Any] = {"color": look[label].colour, "ls": DASHES}
        axes.plot(least.steps, least.values.min(axis=0), lw=1.6, zorder=3, **dashes)
        for steps, values in least.tails:
            axes.plot(steps, values, lw=0.8, alpha=0.6, zorder=3, **dashes)
    bottom = _limit_entropy(axes, groups)
    cut = [group for group in groups if group.least < bottom]
    for line, group in enumerate(reversed(cut)):  # what leaves the panel is said
        text = (
            f"\N{BLACK DOWN-POINTING SMALL TRIANGLE} {_short(group.label)}: least {_number(round(group.least, 1))}"
        )
        place = (0.015, 0.03 + 0.065 * line)
        axes.text(*place, text, transform=axes.transAxes, fontsize=9, zorder=6)
    axes.set_title(f"Realised entropy of the {domain.actor} (nats)")
    _against_steps(axes, scene)
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


def _draw_entropies(scene: Scene, axes: Axes) -> Sequence[Artist]:
    comparison, groups, look = scene
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
    axes.set_title(f"Entropy of {comparison.domain.places}, share of them (%)")
    axes.set_xlabel("Entropy (nats)")
    axes.set_ylim(bottom=0)
    return [
        Line2D([], [], color="black", lw=1.0, label=f"promised floor, {_number(floor)} nats") for floor in floors
    ]


def _draw_calibration(scene: Scene, axes: Axes) -> Sequence[Artist]:
    for group in scene.groups:
        if found := group.histogram(CALIBRATION_HISTOGRAM):
            some = found["counts"] >= LEAST_COUNT
            confidence, accuracy = (
                found[name][some] / found["counts"][some] for name in ("confidence", "correct")
            )
            drawn: dict[str, Any] = {"color": scene.look[group.label].colour}
            axes.plot(confidence, accuracy, lw=1.8, ms=4, zorder=3, marker=scene.look[group.label].marker, **drawn)
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


def _curves(groups: Sequence[Group], name: str, factor: float = 1.0) -> dict[str, Curve]:
    """By label, of those that have one."""
    found = {group.label: group.curve(name, factor) for group in groups}
    return {label: curve for label, curve in found.items() if curve}


def _limit(axes: Axes, curves: Iterable[Curve], log: bool = False) -> None:
    """Show every seed whole, and cut intervals far beyond: with three seeds they may dwarf them."""
    axes.autoscale(axis="y")
    values = np.concatenate([x.ravel() for curve in curves for x in (curve.values, *(y for _, y in curve.tails))])
    ratio = values.max() / values.min() if log and values.min() > 0 else 1.0
    if ratio > LOGARITHMIC:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if ratio < 100 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    scale = axes.yaxis.get_transform()
    low, high, bottom, top = scale.transform(np.array([values.min(), values.max(), *axes.get_ylim()]))
    room = max(0.5 * (high - low), 1e-3 * abs(high), 1e-9)
    axes.set_ylim(*scale.inverted().transform(np.array([max(bottom, low - room), min(top, high + room)])))


def _draw_means(axes: Axes, curves: dict[str, Curve], look: dict[str, Look]) -> None:
    """Each with its interval: a band, or in a crowd one at the side, of the last value."""
    crowd = len(curves) > CROWD
    for i, (label, curve) in enumerate(curves.items()):
        _draw_mean(axes, curve, look[label], crowd)
        if crowd:
            _draw_end(axes, i, curve.values[:, -1], look[label])


def _draw_mean(axes: Axes, curve: Curve, look: Look, crowd: bool) -> None:
    """Mean and interval where every seed was evaluated; single seeds where they are two, or went further."""
    mean = mean_interval(curve.values)
    points: dict[str, Any] = {"marker": look.marker, "ms": 3.5, "markevery": max(1, len(curve.steps) // 15)}
    axes.plot(curve.steps, mean.value, color=look.colour, lw=1.6 if crowd else 2.2, zorder=4, **points)
    single = [*curve.tails]
    if mean.n == 2 and not crowd:  # an interval of two is thirteen times as wide as they are apart, and says less
        single += [(curve.steps, seed) for seed in curve.values]
    elif mean.n > 2 and not crowd:
        axes.fill_between(curve.steps, mean.low, mean.high, color=look.colour, alpha=0.16, lw=0, zorder=2)
    for steps, seed in single:
        axes.plot(steps, seed, color=look.colour, lw=0.8, alpha=0.6, zorder=3)


def _draw_end(axes: Axes, place: int, values: np.ndarray, look: Look) -> None:
    """Mean of the last values and its interval, or the two or one of them, to the right of the axes."""
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
    for line in lines:  # which the limits of the axes cut, but not their right side
        line.set_clip_path(None)
        line.set_clip_box(TransformedBbox(Bbox.from_extents(0, 0, 2, 1), axes.transAxes))


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
