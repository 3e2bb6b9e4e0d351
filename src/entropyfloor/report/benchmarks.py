"""Figure of an evaluation on benchmarks, from the file that it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from entropyfloor.report.figures.language import benchmarks_figure
from entropyfloor.report.figures.style import png, svg
from entropyfloor.runs import files


def draw_benchmarks(path: Path) -> Path | None:
    """Draw pass@k of each benchmark with several responses: `pass.png` and `pass.svg` beside `summary.json`.

    Args:
        path: A directory that `entropyfloor evaluate benchmark` wrote.

    Returns:
        Path of the figure; None where every benchmark has one response to a problem.
    """
    summary = json.loads((path / "summary.json").read_text())
    curves = {
        benchmark["title"]: np.array(
            [[int(k), score["value"], *score["interval_95"]] for k, score in benchmark["pass"].items()]
        ).T
        for benchmark in summary["benchmarks"].values()
        if "pass" in benchmark
    }
    if not curves:
        return None
    figure = benchmarks_figure(summary["model"], curves)
    picture = path / "pass.png"
    files.replace(picture, png(figure))
    files.replace(picture.with_suffix(".svg"), svg(figure))
    return picture
