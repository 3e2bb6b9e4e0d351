"""How figures look: colours, markers, fonts, and their files.

Figures are built without `pyplot`, so nothing global changes, and are the same bytes for the same runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from entropyfloor.report.comparison import Comparison

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette for all kinds of colour vision, without yellow, which is pale on white, and without
black, which is the colour of floors."""
MORE_COLOURS = ("#332288", "#882255", "#7B4B2A", "#3D5AFE", "#7A9A01")
"""Colours of the seventh label and on. They come with another marker than those above, as not everybody can tell
eleven colours apart."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = (0, (3, 2))
INK, MUTED, BACKGROUND = "#1a1a1a", "#8a8a8a", "#c8c8c8"
LONGEST = 220
"""Characters of a label."""
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


def looks(comparisons: Sequence[Comparison]) -> dict[str, Look]:
    """One look a label; where the colours are used up, the markers tell them apart."""
    names = sorted({group.label for comparison in comparisons for group in comparison.groups})
    return dict(zip(names, all_looks(), strict=False))


def all_looks() -> Iterator[Look]:
    """Looks without end; the first ones are easiest to tell apart."""
    colours, n = COLOURS + MORE_COLOURS, len(COLOURS)
    return (Look(colours[i % len(colours)], MARKERS[i // n % len(MARKERS)]) for i in count())


def png(figure: Figure) -> bytes:
    """The figure at 200 dots an inch."""
    return _print(figure, FigureCanvasAgg(figure).print_png, 200, {"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure with text as text, and without a date."""
    return _print(figure, FigureCanvasSVG(figure).print_svg, figure.dpi, {"Date": None, "Creator": None})


def _print(figure: Figure, write: Callable[..., object], dpi: float, metadata: dict[str, None]) -> bytes:
    """What `Figure.savefig` writes; that draws everything once before, for the layout only."""
    file, before = BytesIO(), figure.dpi
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box, and the page has the text
        figure.dpi = dpi
        write(file, metadata=metadata)
        figure.dpi = before
    return file.getvalue()


def short(name: str, most: int = LONGEST) -> str:
    """A name, or its beginning and end where it has more than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2]} … {name[-most // 2 :]}"
