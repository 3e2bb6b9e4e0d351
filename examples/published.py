"""Returns of TD-MPC2 beside those that its authors published.

    python examples/published.py --runs results/control/tdmpc2.runs.zip

The runs are those of `entropyfloor reproduce control/tdmpc2-dmc`. Every seed is a line: ours solid, and pale for
the episodes that training played; the authors' TD-MPC2 (5M parameters), SAC and DreamerV3 dotted.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro
from matplotlib.figure import Figure

from entropyfloor.runs import find_runs, read_run

COLOURS = {
    "tdmpc2": "#0072B2",
    "tdmpc2-era": "#D55E00",
    "tdmpc2-era-exact": "#009E73",
    "sac": "#888888",
    "dreamerv3": "#CC79A7",
}
Curves = dict[tuple[str, str], dict[int, list[tuple[int, float]]]]
"""From environment and method to seeds, and from a seed to steps and returns."""


@dataclass
class Published:
    """Draw runs of TD-MPC2 beside published returns, one panel for each environment."""

    runs: Path = Path("results/control/tdmpc2.runs.zip")
    """Directory above the runs, or their archive."""
    published: Path = Path("results/published/tdmpc2-dmc.csv")
    """Published returns, in environment steps."""
    figure: Path = Path("docs/control/tdmpc2/published")
    """File of the figure, without its suffix."""

    def ours(self, quantity: str = "return") -> Curves:
        """A quantity of every run that has logged it, by default the returns of its evaluations."""
        curves: Curves = defaultdict(dict)
        for run in map(read_run, find_runs(self.runs)):
            steps, returns = run.series(quantity)
            if steps.size:
                key = run.config["env"], run.config["agent"]
                curves[key][run.config["seed"]] = list(zip(steps.tolist(), returns.tolist(), strict=True))
        return curves

    def theirs(self) -> Curves:
        """Published returns."""
        curves: Curves = defaultdict(lambda: defaultdict(list))
        with self.published.open() as file:
            for row in csv.DictReader(file):
                points = curves[row["env"], row["method"]][int(row["seed"])]
                points.append((int(row["env_step"]), float(row["return"])))
        return curves

    def draw(self) -> Path:
        """Draw every seed, to the first published return at or after the end of ours, if there is one."""
        ours, training, theirs = self.ours(), self.ours("train/return"), self.theirs()
        if not ours:
            raise SystemExit(f"no run in {self.runs} has been evaluated yet")
        envs = sorted({env for env, _ in ours})
        with matplotlib.rc_context(
            {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "entropyfloor"}
        ):
            figure = Figure(figsize=(4.5 * len(envs), 3.8), layout="constrained")
            for axes, env in zip(figure.subplots(1, len(envs), squeeze=False)[0], envs, strict=True):
                longest = max(
                    points[-1][0] for (of, _), seeds in ours.items() if of == env for points in seeds.values()
                )
                published = (point for seeds in theirs.values() for points in seeds.values() for point in points)
                end = min((step for step, _ in published if step >= longest), default=longest)
                for curves, look, whose in (
                    (theirs, {"ls": ":", "marker": "."}, ", published"),
                    (training, {"lw": 0.8, "alpha": 0.4}, ", in training"),
                    (ours, {"marker": "o"}, ""),
                ):
                    for method in (method for of, method in curves if of == env):
                        seeds = ([p for p in points if p[0] <= end] for points in curves[env, method].values())
                        for i, points in enumerate(filter(None, seeds)):
                            label = f"{method}{whose}" if i == 0 else None
                            axes.plot(*zip(*points, strict=True), color=COLOURS[method], label=label, **look)
                axes.set(xlabel="environment steps", ylabel="return", title=env)
                axes.legend(frameon=False, fontsize=8)
            self.figure.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.figure.with_suffix(".png"), dpi=150)
            figure.savefig(self.figure.with_suffix(".svg"), metadata={"Date": None})
        return self.figure.with_suffix(".png")


if __name__ == "__main__":
    print(f"figure: {tyro.cli(Published).draw().resolve()}")
