"""Panels of a figure for a page: shapes in shares of the panel, so that it can have any size, and values.

A page draws them as SVG of its own: text has the size and the colours of the page around it, and each shape says
which arm it belongs to. What is drawn, and where, is what matplotlib would draw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, BboxBase, Transform

from entropyfloor.report.figures.series import Series, series_of
from entropyfloor.report.figures.style import BACKGROUND, COLOURS, INK, MORE_COLOURS, MUTED, short

UNITS = 1000
"""Units of the coordinates of paths: this many are a panel's width and its height."""
PIXELS = 96 / 72
"""CSS pixels of a point, the unit of widths in matplotlib."""
FEW = 3
"""Panels of a figure that has more are small."""
MOST_POINTS, MOST_VALUES, LEAST_POINTS = 200, 2_000, 25
"""Largest number of points of a curve that say their values on a page, and of those of all curves of a panel, but
for so many points of each curve. A figure's CSV file has all."""
NOTHING = ("None", "none", "", " ", None)
"""Styles of lines and markers that are not drawn."""
_SEEDS = re.compile(r" \(n = [0-9]+\)$")
"""What legends append to the labels of arms."""
CLASSES = {
    **{colour.lower(): f"c{i}" for i, colour in enumerate(COLOURS + MORE_COLOURS)},
    "#000000": "ink",
    INK: "ink",
    MUTED: "muted",
    BACKGROUND: "faint",
}
"""Classes of the colours that a page's style defines, lighter where the page is dark."""


class Shape(NamedTuple):
    """A path, a marker or a text. Positions are shares of the panel in per cent, from its upper left corner."""

    kind: str
    """line, area, marker or text."""
    colour: str
    """Class of the colour."""
    arm: int | None
    """Position of its arm among those of the page."""
    d: str = ""
    """Path: of a line or an area in `UNITS` of the panel, of a marker in pixels."""
    width: float = 0.0
    """Width of a line, in pixels."""
    opacity: float = 1.0
    dash: str = ""
    """dashed, dotted or nothing."""
    x: float = 0.0
    y: float = 0.0
    text: str = ""


class Plot(NamedTuple):
    """A panel."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    """Positions in per cent of the panel, and labels."""
    y_ticks: Sequence[tuple[float, str]]
    width: float
    """Share of the panel that the axes take, in per cent: intervals of last values stand beside them."""
    paths: Sequence[Shape]
    marks: Sequence[Shape]
    """Markers and texts."""
    values: Sequence[dict[str, Any]]
    """What is shown where the pointer is: of each series the arm, what it is, values and positions."""
    thinned: int = 0
    """Number of points that each long series shows there; 0 where every series shows all."""

    @property
    def marker_groups(self) -> list[tuple[Shape, list[Shape]]]:
        """Markers and texts that follow each other and differ in their place only, behind the first of them."""
        found = [[*each] for _, each in groupby(self.marks, lambda mark: mark._replace(x=0.0, y=0.0))]
        return [(each[0], each) for each in found]

    @property
    def gutter(self) -> str:
        """The widest label of the vertical axis, which has room for all of them."""
        return max((text for _, text in self.y_ticks), key=len, default="")


class Key(NamedTuple):
    """An entry of a legend that is no arm's."""

    label: str
    shapes: Sequence[Shape]


def plots(figure: Figure, arms: Sequence[str]) -> list[Plot]:
    """The panels of a figure that has been drawn.

    Args:
        figure: The figure.
        arms: Labels of the arms of the page.
    """
    labels = [axes.get_xlabel() for axes in figure.axes]
    found = [_plot(axes, label or labels[-1], arms) for axes, label in zip(figure.axes, labels, strict=True)]
    return [_small(plot) for plot in found] if len(found) > FEW else found


def _small(plot: Plot) -> Plot:
    """With every other tick of the horizontal axis, where they are many."""
    return plot._replace(x_ticks=plot.x_ticks[::2]) if len(plot.x_ticks) > 4 else plot


def keys(figure: Figure, arms: Iterable[str]) -> list[Key]:
    """Entries of a figure's legend, without those of arms."""
    known = {"".join(short(arm).split()) for arm in arms}  # a legend breaks long ones into lines
    found = []
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            label = " ".join(text.get_text().split())
            if handle is not None and "".join(_SEEDS.sub("", label).split()) not in known:
                found.append(Key(label, swatch(handle)))
    return found


def _plot(axes: Axes, x_label: str, arms: Sequence[str]) -> Plot:
    reach = max((_reach(line, axes.bbox) for line in axes.lines), default=1.0)
    place = _Place(axes, reach)
    series = [each for each in series_of(axes) if each.get_label() in arms]
    owner = {id(artist): arms.index(str(each.get_label())) for each in series for artist in each}
    artists: list[Artist] = [*axes.collections, *axes.patches, *axes.lines, *axes.texts]
    of_artists = {
        id(artist): [shape._replace(arm=owner.get(id(artist))) for shape in _shapes(artist, place)]
        for artist in sorted(artists, key=Artist.get_zorder)
    }
    shapes = [shape for each in of_artists.values() for shape in each]
    colours = {key: each[0].colour for key, each in of_artists.items() if each}
    series = [each for each in series if each.x.size]
    most = max(LEAST_POINTS, min(MOST_POINTS, MOST_VALUES // max(1, len(series))))
    return Plot(
        axes.get_title("left"),
        x_label,
        axes.get_ylabel(),
        [(place.across(x), text) for x, text in _ticks(axes.xaxis, axes.viewLim.intervalx)],
        [(place.down(y), text) for y, text in _ticks(axes.yaxis, axes.viewLim.intervaly)],
        round(100 / reach, 2),
        [shape for shape in shapes if shape.kind in ("line", "area")],
        [shape for shape in shapes if shape.kind not in ("line", "area")],
        [_values(each, arms, colours, place, most) for each in series],
        most if any(len(each.x) > most for each in series) else 0,
    )


class _Place:
    """Positions in a panel: `[..., 2]` in per cent, from its upper left corner."""

    def __init__(self, axes: Axes, reach: float) -> None:
        self.axes, self.reach = axes, reach

    def __call__(self, points: np.ndarray, transform: Transform | None = None) -> np.ndarray:
        shown = points if transform is None else transform.transform(points)
        x, y = self.axes.transAxes.inverted().transform(shown).T
        return np.stack([100 * x / self.reach, 100 * (1 - y)], -1).clip(-1e4, 1e4)

    def across(self, x: float) -> float:
        """A horizontal position in per cent."""
        return round(float(self(np.array([[x, 0.0]]), self.axes.get_xaxis_transform())[0, 0]), 2)

    def down(self, y: float) -> float:
        """A vertical position in per cent."""
        return round(float(self(np.array([[0.0, y]]), self.axes.get_yaxis_transform())[0, 1]), 2)


def _reach(line: Line2D, box: BboxBase) -> float:
    """How far a line that may leave the axes reaches to the right, in widths of the axes."""
    clip = line.get_clip_box()
    if clip is None or clip.x1 < box.x1 + 1:
        return 1.0
    x = line.get_transform().transform(line.get_xydata())[:, 0].max()
    return float((x + line.get_markersize() - box.x0) / box.width)


def _ticks(axis: Axis, limits: np.ndarray) -> list[tuple[float, str]]:
    """Ticks within the limits, and their labels."""
    places = axis.get_majorticklocs()
    texts = axis.get_major_formatter().format_ticks(list(places))
    low, high = sorted(limits)
    return [(x, text) for x, text in zip(places, texts, strict=True) if low <= x <= high and text]


# --- shapes ----------------------------------------------------------------------------------------------


def _shapes(artist: Artist, place: _Place) -> list[Shape]:
    """Shapes of an artist.

    Raises:
        TypeError: An artist of a kind that no figure has.
    """
    if isinstance(artist, Line2D):
        return _line(artist, place)
    if isinstance(artist, Text):
        box = artist.get_window_extent()
        ((x, y),) = place(np.array([[box.x0, box.y0]]))
        colour, opacity = _colour(artist.get_color())
        return [Shape("text", colour, None, "", 0, opacity, "", *_rounded(x, y), artist.get_text())]
    if isinstance(artist, PathCollection):
        offsets = place(np.asarray(artist.get_offsets()), artist.get_offset_transform())
        colour, opacity = _colour(artist.get_facecolor()[0])
        d = _outline(artist.get_paths()[0], float(np.sqrt(artist.get_sizes()[0])))
        return [Shape("marker", colour, None, d, 0, opacity, "", *_rounded(x, y)) for x, y in offsets]
    if isinstance(artist, Collection):
        transform = artist.get_transform()
        found = [
            shape
            for path in artist.get_paths()
            for shape in _filled(path, transform, artist.get_facecolor(), artist.get_edgecolor(), place)
        ]
        widths = np.resize(artist.get_linewidth(), len(found))
        return [shape._replace(width=round(w * PIXELS, 2)) for shape, w in zip(found, widths, strict=True)]
    if isinstance(artist, Patch):
        faces = [artist.get_facecolor()] if artist.get_fill() else []
        found = _filled(artist.get_path(), artist.get_transform(), faces, [artist.get_edgecolor()], place)
        return [shape._replace(width=round(artist.get_linewidth() * PIXELS, 2)) for shape in found]
    raise TypeError(f"a page cannot draw a {type(artist).__name__}")


def _line(line: Line2D, place: _Place) -> list[Shape]:
    """A line and its markers."""
    (colour, opacity), width = _colour(line.get_color(), line.get_alpha()), round(line.get_linewidth() * PIXELS, 2)
    shapes = []
    if line.get_linestyle() not in NOTHING:
        d = _d(line.get_path(), line.get_transform(), place)
        shapes = [Shape("line", colour, None, d, width, opacity, _dash(line))]
    if line.get_marker() not in NOTHING:
        d = marker_path(str(line.get_marker()), line.get_markersize())
        every = line.get_markevery()
        chosen = np.asarray(line.get_xydata())[:: every if isinstance(every, int) else 1]
        points = place(chosen, line.get_transform())
        shapes += [
            Shape("marker", colour, None, d, 0, opacity, "", *_rounded(x, y)) for x, y in points if 0 <= y <= 100
        ]
    return shapes


def _filled(path: Path, transform: Transform, faces: Any, edges: Any, place: _Place) -> list[Shape]:
    """An area, or its outline where it is not filled."""
    for kind, colours in (("area", faces), ("line", edges)):
        if len(colours) and to_rgba(colours[0])[3] > 0:
            colour, opacity = _colour(colours[0])
            return [Shape(kind, colour, None, _d(path, transform, place, closed=kind == "area"), 0, opacity)]
    return []


def _d(path: Path, transform: Transform, place: _Place, closed: bool = False) -> str:
    """A path in `UNITS`, without points that change nothing: on the one before, or between their neighbours."""
    parts = []
    for polygon in transform.transform_path(path).cleaned(remove_nans=True).to_polygons(closed_only=closed):
        points = np.rint(UNITS / 100 * place(np.asarray(polygon))).astype(int)
        new = np.append(True, (points[1:] != points[:-1]).any(1))
        points = points[new]
        before, after = points[1:-1] - points[:-2], points[2:] - points[1:-1]
        bend = (before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]) | ((before * after).sum(1) < 0)
        points = points[np.concatenate([[True], bend, [True]])] if len(points) > 2 else points
        parts.append("M" + " ".join(f"{x},{y}" for x, y in points) + ("z" if closed else ""))
    return "".join(parts)


def marker_path(marker: str, size: float) -> str:
    """A marker of matplotlib around (0, 0), in pixels, from its size in points."""
    style = MarkerStyle(marker)
    return _outline(style.get_path().transformed(style.get_transform()), size)


def _outline(path: Path, size: float) -> str:
    """A marker in pixels from its path of width 1; the only round one is a circle."""
    size *= PIXELS
    if path.codes is not None and Path.CURVE4 in np.asarray(path.codes):
        r = f"{size / 2:.3g}"
        return f"M-{r},0a{r},{r} 0 1,0 {2 * float(r):.3g},0a{r},{r} 0 1,0 -{2 * float(r):.3g},0z"
    polygons = path.transformed(Affine2D().scale(size, -size)).to_polygons(closed_only=False)
    return "".join(
        "M" + " ".join(f"{x:.3g},{y:.3g}" for x, y in np.asarray(polygon)) + "z" for polygon in polygons
    )


def swatch(handle: Artist) -> list[Shape]:
    """How an entry of a legend looks, in a box of 28 × 12 pixels."""
    if not isinstance(handle, Line2D):
        colour, opacity = _colour(handle.get_facecolor() if isinstance(handle, Patch) else INK)
        return [Shape("area", colour, None, "M4,1H24V11H4z", 0, opacity)]
    (colour, opacity), width = _colour(handle.get_color(), handle.get_alpha()), handle.get_linewidth() * PIXELS
    shapes = []
    if handle.get_linestyle() not in NOTHING:
        shapes = [Shape("line", colour, None, "M1,6H27", round(width, 2), opacity, _dash(handle))]
    if handle.get_marker() not in NOTHING:
        d = marker_path(str(handle.get_marker()), handle.get_markersize())
        shapes.append(Shape("marker", colour, None, d, 0, opacity, "", 14, 6))
    return shapes


def _dash(line: Line2D) -> str:
    return {"--": "dashed", ":": "dotted"}.get(str(line.get_linestyle()), "")


def _colour(colour: Any, alpha: float | None = None) -> tuple[str, float]:
    """Class of a colour and its opacity; a colour that is in no style is muted."""
    return CLASSES.get(to_hex(colour).lower(), "muted"), round(to_rgba(colour, alpha)[3], 3)


def _rounded(x: float, y: float) -> tuple[float, float]:
    return round(float(x), 2), round(float(y), 2)


# --- values ----------------------------------------------------------------------------------------------


def _values(
    series: Series, arms: Sequence[str], colours: Mapping[int, str], place: _Place, most: int
) -> dict[str, Any]:
    """Values of a series and where they are drawn, of at most `most` points."""
    n = len(series.x)
    few = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
    x, y, low, high = (np.asarray(values, float)[few] for values in (series.x, *series.y[:3]))
    across, down = place(np.stack([x, y], -1), place.axes.transData).round(1).T
    found = {
        "arm": arms.index(str(series.get_label())),
        "label": short(str(series.get_label())),
        "colour": next((colours[id(artist)] for artist in series if id(artist) in colours), "muted"),
        "what": series.statistic,
        "x": _plain(x),
        "y": _plain(y),
        "across": across.tolist(),
        "down": down.tolist(),
    }
    if np.isfinite([low, high]).all():
        found |= {"low": _plain(low), "high": _plain(high)}
    return found


def _plain(values: np.ndarray) -> list[float]:
    """Numbers with six significant digits."""
    return [int(x) if x == int(x) and abs(x) < 1e15 else float(f"{x:.6g}") for x in values.tolist()]
