"""Figures of language models: entropy of responses and tokens beside thresholds, and pass@k."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.domains import Column
from entropyfloor.report.figures.curves import (
    CROWD,
    against_steps,
    column_panels,
    curves_of,
    draw_means,
    limit_to_curves,
    logged,
)
from entropyfloor.report.figures.layout import Scene, arrange, grid, side_by_side
from entropyfloor.report.figures.series import show
from entropyfloor.report.figures.style import BACKGROUND, MUTED, Look, all_looks, short
from entropyfloor.report.fronts import front
from entropyfloor.report.groups import OUTSIDE, RESPONSES, THRESHOLDS, Curve
from entropyfloor.report.statistics import Interval
from entropyfloor.report.verdicts import Changes, changes, in_parts

STRENGTHS = (0.85, 0.14, 0.45)
"""Opacity of the share of responses below, between and above the thresholds."""
TOKENS = (
    Column("token_entropy/top", "Entropy of the top 20 % of tokens (nats)"),
    Column("token_entropy/bottom", "Entropy of the bottom 80 % (nats)"),
)
FEW = 1
"""Single problems are drawn where at most so many groups are compared."""
IN_SIGHT = 1.5
"""ω_high is drawn where it is at most so many times the largest entropy."""


def responses_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Entropy of responses beside ω_low and ω_high; None where no run has logged it."""
    return side_by_side(comparison, look, [draw_responses]) if logged(comparison, RESPONSES) else None


def pass_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """pass@k of the last evaluation against k; None where no run has it."""
    logged = any(group.pass_at for group in comparison.groups)
    return side_by_side(comparison, look, [_draw_pass]) if logged else None


def front_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """pass@k against avg@k, a point for each temperature; None where no run was evaluated at several.

    Nor where the runs were evaluated at other steps, with other numbers of responses, or on other problems.
    """
    conditions = {group.front.conditions for group in comparison.groups if group.front}
    return side_by_side(comparison, look, [_draw_front]) if len(conditions) == 1 else None


def changes_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Where avg@k is gained and lost against the baseline; None without evaluations before training."""
    return side_by_side(comparison, look, [_draw_changes]) if changes_of(comparison) else None


def changes_of(comparison: Comparison) -> dict[str, Changes]:
    """Changes of each group that has some, by label."""
    if comparison.baseline is None:
        return {}
    found = {
        group.label: changes(group, comparison.baseline, comparison.untrained)
        for group in comparison.groups
        if group.label != comparison.baseline.label
    }
    return {label: each for label, each in found.items() if each}


def benchmarks_figure(model: str, curves: Mapping[str, np.ndarray]) -> Figure:
    """pass@k of one model on several benchmarks, with intervals over problems.

    Args:
        model: Name of the model.
        curves: By benchmark, `[4, number of k]`: k, the share of problems, and both ends of its interval.
    """
    look = dict(zip(curves, all_looks(), strict=False))

    def draw(axes: Axes) -> Sequence[Artist]:
        for name, (k, share, *ends) in curves.items():
            axes.plot(k, 100 * share, color=look[name].colour, marker=look[name].marker, ms=3.5, lw=2.2)
            low, high = (100 * end for end in ends)
            axes.fill_between(k, low, high, color=look[name].colour, alpha=0.16, lw=0, zorder=2)
        _against_k(axes, (k for ks, *_ in curves.values() for k in ks))
        axes.set_title("pass@k (%)")
        return [
            Line2D([], [], color=style.colour, marker=style.marker, lw=2.2, label=name)
            for name, style in look.items()
        ]

    return arrange(model, [draw], [], 1, 3.8)


def thresholds_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """The same as `responses_figure`, with a panel for each group; None where there is one group only."""
    several = len(comparison.groups) > 1 and logged(comparison, RESPONSES)
    return grid(comparison, look, draw_responses) if several else None


def shares_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Shares of responses outside the thresholds, a panel for each group; None where no run has logged them."""
    return grid(comparison, look, _draw_shares) if logged(comparison, *OUTSIDE) else None


def tokens_figure(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Entropy of the tokens with the highest, and of the others; None where no run has logged them."""
    names = [column.name for column in TOKENS]
    return side_by_side(comparison, look, column_panels(TOKENS, log=True)) if logged(comparison, *names) else None


def draw_responses(scene: Scene, axes: Axes) -> Sequence[Artist]:
    """Draw the scene's groups, and behind them the other groups, so that all panels have the same limits."""
    entropies, lows, highs = (curves_of(scene.comparison.groups, name) for name in (RESPONSES, *THRESHOLDS))
    reach = IN_SIGHT * max(curve.values.max() for curve in entropies.values())
    highs = {label: curve for label, curve in highs.items() if curve.values.min() < reach}
    shown = [group.label for group in scene.groups]
    draw_means(axes, {label: curve for label, curve in entropies.items() if label in shown}, scene.look)
    layers: list[tuple[str, dict[str, Curve], dict[str, Any]]] = [
        (
            "the others",
            {label: curve for label, curve in entropies.items() if label not in shown},
            {"color": BACKGROUND, "lw": 0.8, "zorder": 1.5},
        ),
        (
            "ω_low",
            under := {label: curve for label, curve in lows.items() if label in shown},
            {"color": "black", "lw": 1.0, "zorder": 2.5},
        ),
        (
            "ω_high",
            {label: curve for label, curve in highs.items() if label in shown},
            {"color": "black", "lw": 1.2, "ls": ":", "zorder": 2.5},
        ),
    ]
    keys = []
    for name, curves, style in layers:
        for label, curve in curves.items():
            mean = curve.values.mean(axis=0)
            values = (curve.steps, mean, name) if label in shown else ()
            show(axes, label, axes.plot(curve.steps, mean, **style), *values)
            keys.append(Line2D([], [], label=name, **style))
    for curve in under.values() if len(shown) == 1 else []:
        axes.fill_between(curve.steps, 0, curve.values.mean(axis=0), color="black", alpha=0.05, lw=0, zorder=0)
    limit_to_curves(axes, [*entropies.values(), *lows.values(), *highs.values()], log=True)
    axes.set_title("Entropy of responses (nats)")
    against_steps(axes, scene)
    return keys


def _draw_shares(scene: Scene, axes: Axes) -> Sequence[Artist]:
    for group in scene.groups:
        below, above = (group.curve(name, 100.0) for name in OUTSIDE)
        if below and above:
            under, over = below.values.mean(axis=0), above.values.mean(axis=0)
            colours = [(scene.look[group.label].colour, strength) for strength in STRENGTHS]
            areas = axes.stackplot(below.steps, under, 100 - under - over, over, colors=colours, lw=0)
            show(axes, group.label, areas, below.steps, under, "below ω_low (%)")
            show(axes, group.label, [], above.steps, over, "above ω_high (%)")
    axes.set_ylim(0, 100)
    axes.set_title("Responses below, between and above ω_low and ω_high (%)")
    against_steps(axes, scene)
    names = ("below ω_low", "between", "above ω_high")
    return [Patch(color=(MUTED, strength), label=name) for strength, name in zip(STRENGTHS, names, strict=True)]


def _draw_pass(scene: Scene, axes: Axes) -> Sequence[Artist]:
    curves = {group.label: group.pass_at for group in scene.groups if group.pass_at}
    draw_means(axes, curves, scene.look)
    limit_to_curves(axes, curves.values())
    _against_k(axes, (k for curve in curves.values() for k in curve.steps))
    axes.set_title("pass@k at the last evaluation (%)")
    return []


def _draw_front(scene: Scene, axes: Axes) -> Sequence[Artist]:
    samples = 0
    for group in scene.groups:
        if group.front is None:
            continue
        temperatures, counts, samples = group.front[:3]
        avg, solved = (100 * values.mean(0) for values in front(counts, samples))
        style = scene.look[group.label]
        artists: list[Artist] = [*axes.plot(avg, solved, color=style.colour, marker=style.marker, ms=4, lw=1.6)]
        for end in (0, -1):
            place: dict[str, Any] = {
                "xytext": (4, 3),
                "textcoords": "offset points",
                "fontsize": 7,
                "color": style.colour,
            }
            artists.append(axes.annotate(f"{temperatures[end]:g}", (avg[end], solved[end]), **place))
        show(axes, group.label, artists, avg, solved, f"pass@{samples}")
    axes.set_xlabel(f"avg@{samples} (%)")
    axes.set_title(f"pass@{samples} at several temperatures (%)")
    return []


def _draw_changes(scene: Scene, axes: Axes) -> Sequence[Artist]:
    assert scene.comparison.baseline is not None
    of_groups, label = changes_of(scene.comparison), scene.comparison.baseline.label
    axes.axhline(0.0, color=scene.look[label].colour if label in scene.look else "black", lw=2.2, zorder=1)
    axes.set_title(f"avg@k minus that of {short(label)} (points)")
    for label, each in of_groups.items():
        style, (first, mean) = scene.look[label], in_parts(each)
        mean = Interval(100 * mean.value, 100 * mean.low, 100 * mean.high, mean.n)
        line: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ms": 3.5, "lw": 2.2}
        artists: list[Artist] = [*axes.plot(100 * first, mean.value, zorder=4, **line)]
        if len(of_groups) <= FEW:
            dots: dict[str, Any] = {"s": 6, "color": style.colour, "alpha": 0.3, "lw": 0, "zorder": 2}
            artists.append(axes.scatter(100 * each.first, 100 * each.difference, **dots))
        if len(of_groups) <= CROWD:
            band: dict[str, Any] = {"color": style.colour, "alpha": 0.16, "lw": 0, "zorder": 3}
            artists.append(axes.fill_between(100 * first, mean.low, mean.high, **band))
        show(axes, label, artists, 100 * first, mean)
    axes.set_xlabel("avg@k before training (%)")
    return []


def _against_k(axes: Axes, ks: Iterable[float]) -> None:
    """Label the horizontal axis with numbers of responses, on a scale of powers of two."""
    marks = sorted({int(k) for k in ks})
    axes.set_xscale("log", base=2)
    axes.set_xticks(marks, [str(k) for k in marks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("k")
