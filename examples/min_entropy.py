"""What a minimum entropy does to a classifier: the paper's floor beside the calibrated one, and beside none.

    entropyfloor reproduce vision/cifar10-min-entropy --set data_dir=/where/cifar10/is
    entropyfloor reproduce vision/cifar10-regularisers --arms none --set data_dir=/where/cifar10/is
    python examples/min_entropy.py

Both are told the same number H0. The paper's constant (Eq. 15) puts its floor well above it, the calibrated one
exactly there; so at the same *realised* least entropy, in the last panel, they are to be compared across.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

from entropyfloor.report.statistics import mean_interval
from entropyfloor.runs import find_runs, read_run

PANELS = (
    ("top1", 100.0, "Top-1 accuracy (%)"),
    ("nll", 1.0, "NLL (nats)"),
    ("ece", 100.0, "Calibration error (%)"),
    ("realised_entropy/min", 1.0, "Least entropy of a test image (nats)"),
)
COLOURS = {"paper": "#D55E00", "calibrated": "#0072B2"}
MARKERS = {"paper": "s", "calibrated": "o"}
INK = "#1a1a1a"


@dataclass
class MinEntropy:
    """Draw finished runs of the two recipes."""

    runs: tuple[Path, ...] = (Path("runs/vision/cifar10-min-entropy"), Path("runs/vision/cifar10-regularisers"))
    """Directories that hold them; of the second recipe those without any regulariser, and those with ERA alone."""
    figure: Path = Path("docs/vision/min-entropy")
    """Where the picture goes, without its suffix."""

    def draw(self) -> Path:
        """A panel for each quantity, against H0: means over seeds with 95 % intervals."""
        found = self.read()
        with matplotlib.rc_context(
            {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "entropyfloor"}
        ):
            figure = Figure(figsize=(15, 3.9), layout="constrained")
            for axes, (name, factor, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
                for floor in COLOURS:
                    targets = sorted(target for kind, target in found if kind == floor)
                    ends = [mean_interval(factor * found[floor, target][name]) for target in targets]
                    mean, low, high = (
                        np.array([getattr(end, part) for end in ends]) for part in ("value", "low", "high")
                    )
                    around = np.stack([mean - low, high - mean])
                    look = {"color": COLOURS[floor], "marker": MARKERS[floor], "ms": 5, "capsize": 3}
                    axes.errorbar(targets, mean, np.where(np.isfinite(around), around, 0.0), label=floor, **look)
                if ("none", 0.0) in found:
                    end = mean_interval(factor * found["none", 0.0][name])
                    axes.axhline(end.value, color=INK, lw=1.2, ls=":", label="no floor")
                    if np.isfinite(end.low):
                        axes.axhspan(end.low, end.high, color=INK, alpha=0.08, lw=0)
                if name == "realised_entropy/min":
                    reach = [target for _, target in found]
                    axes.plot(reach, reach, color=INK, lw=0.8, zorder=0, label="$H_0$ itself")
                axes.set(xlabel="$H_0$ (nats)", title=title)
            axes.legend(frameon=False, fontsize=9)
            self.figure.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.figure.with_suffix(".png"), dpi=150, metadata={"Software": None})
            figure.savefig(self.figure.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        return self.figure.with_suffix(".png")

    def read(self) -> dict[tuple[str, float], dict[str, np.ndarray]]:
        """By kind of floor and H0: each quantity at the end, `[seeds]`; the least entropy of all epochs."""
        seeds: defaultdict[tuple[str, float], dict[int, dict[str, float]]] = defaultdict(dict)
        for record in map(read_run, find_runs(*self.runs)):
            config = record.config
            floored = "min_entropy" in config
            if record.status.get("state") != "finished" or config["agent"] != _alone(config):
                continue
            end = {name: float(record.series(name)[1][-1]) for name, _, _ in PANELS}
            end["realised_entropy/min"] = float(record.series("realised_entropy/min")[1].min())
            kind = (config["floor"], config["min_entropy"]) if floored else ("none", 0.0)
            seeds[kind][config["seed"]] = end
        return {
            kind: {name: np.array([end[name] for end in ends.values()]) for name, _, _ in PANELS}
            for kind, ends in seeds.items()
        }


def _alone(config: dict[str, object]) -> str:
    """What a run without any regulariser but ERA is called."""
    return f"era-{config['floor']}-{config['min_entropy']}" if "min_entropy" in config else "plain"


def main(args: MinEntropy) -> None:
    """Draw."""
    print(f"figure: {args.draw().resolve()}")


if __name__ == "__main__":
    main(tyro.cli(MinEntropy))
