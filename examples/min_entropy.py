"""The effect of a minimum entropy on a classifier: the paper's floor, the calibrated floor, and no floor.

    entropyfloor reproduce vision/cifar10-min-entropy --set data_dir=/where/cifar10/is
    entropyfloor reproduce vision/cifar10-regularisers --arms none --set data_dir=/where/cifar10/is
    python examples/min_entropy.py

Both floors get the same number H0. The paper's constant (Eq. 15) puts its floor well above H0, the calibrated one
puts it exactly there. The last panel shows the realised least entropy, at which the two should be compared.
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
    """Draw the finished runs of two recipes."""

    runs: tuple[Path, ...] = (Path("runs/vision/cifar10-min-entropy"), Path("runs/vision/cifar10-regularisers"))
    """Directories of the runs. From the second, only runs without a regulariser or with ERA alone are drawn."""
    figure: Path = Path("docs/vision/min-entropy")
    """File of the figure, without its suffix."""

    def draw(self) -> Path:
        """Draw a panel for each quantity, against H0: means over seeds with 95 % intervals."""
        values = self.read()
        with matplotlib.rc_context(
            {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "entropyfloor"}
        ):
            figure = Figure(figsize=(15, 3.9), layout="constrained")
            for axes, (name, factor, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
                for floor in COLOURS:
                    targets = sorted(target for kind, target in values if kind == floor)
                    ends = [mean_interval(factor * values[floor, target][name]) for target in targets]
                    mean, low, high = (
                        np.array([getattr(end, part) for end in ends]) for part in ("value", "low", "high")
                    )
                    errors = np.stack([mean - low, high - mean])
                    style = {"color": COLOURS[floor], "marker": MARKERS[floor], "ms": 5, "capsize": 3}
                    axes.errorbar(targets, mean, np.where(np.isfinite(errors), errors, 0.0), label=floor, **style)
                if ("none", 0.0) in values:
                    end = mean_interval(factor * values["none", 0.0][name])
                    axes.axhline(end.value, color=INK, lw=1.2, ls=":", label="no floor")
                    if np.isfinite(end.low):
                        axes.axhspan(end.low, end.high, color=INK, alpha=0.08, lw=0)
                if name == "realised_entropy/min":
                    identity = [target for _, target in values]
                    axes.plot(identity, identity, color=INK, lw=0.8, zorder=0, label="$H_0$ itself")
                axes.set(xlabel="$H_0$ (nats)", title=title)
            axes.legend(frameon=False, fontsize=9)
            self.figure.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.figure.with_suffix(".png"), dpi=150, metadata={"Software": None})
            figure.savefig(self.figure.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        return self.figure.with_suffix(".png")

    def read(self) -> dict[tuple[str, float], dict[str, np.ndarray]]:
        """Read the runs.

        Returns:
            By kind of floor and H0: each quantity after the last epoch, `[seeds]`; the least entropy is over all
            epochs.
        """
        seeds: defaultdict[tuple[str, float], dict[int, dict[str, float]]] = defaultdict(dict)
        for record in map(read_run, find_runs(*self.runs)):
            config = record.config
            if record.status.get("state") != "finished" or config["agent"] != _era_only(config):
                continue
            end = {name: float(record.series(name)[1][-1]) for name, _, _ in PANELS}
            end["realised_entropy/min"] = float(record.series("realised_entropy/min")[1].min())
            kind = (config["floor"], config["min_entropy"]) if "min_entropy" in config else ("none", 0.0)
            seeds[kind][config["seed"]] = end
        return {
            kind: {name: np.array([end[name] for end in ends.values()]) for name, _, _ in PANELS}
            for kind, ends in seeds.items()
        }


def _era_only(config: dict[str, object]) -> str:
    """Name of a run that has no regulariser except ERA."""
    return f"era-{config['floor']}-{config['min_entropy']}" if "min_entropy" in config else "plain"


def main(args: MinEntropy) -> None:
    """Draw."""
    print(f"figure: {args.draw().resolve()}")


if __name__ == "__main__":
    main(tyro.cli(MinEntropy))
