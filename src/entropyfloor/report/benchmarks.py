"""The picture of an evaluation on benchmarks, from the file that it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from entropyfloor.report.figures.curves import benchmarks_figure, png, svg
from entropyfloor.runs import files


def draw_benchmarks(path: Path) -> Path | None:
    """Draw pass@k of each benchmark with several responses: `pass.png` and `pass.svg` beside `summary.json`.

    Args:
        path: A directory that `entropyfloor evaluate language` wrote.

    Returns:
        The picture; None where every benchmark has one response to a problem.
    """
    found = json.loads((path / "summary.json").read_text())
    curves = {
        one["title"]: np.array([[int(k), at["value"], *at["interval_95"]] for k, at in one["pass"].items()]).T
        for one in found["benchmarks"].values()
        if "pass" in one
    }
    if not curves:
        return None
    figure = benchmarks_figure(found["model"], curves)
    picture = path / "pass.png"
    files.replace(picture, png(figure))
    files.replace(picture.with_suffix(".svg"), svg(figure))
    return picture
