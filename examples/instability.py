"""The instability of the tanh-Gaussian policy with a learned δ̂ (arXiv 2510.08549, C.1.1), and policies without it.

    python examples/instability.py            # trains the runs that are missing, then draws
    python examples/instability.py --draw     # draws only

A learned δ̂ raises σ where the entropy is too low. The entropy of a tanh Gaussian *falls* as σ grows, once σ is
large or the mean is far out, so δ̂ grows without bound. The entropy of a truncated Gaussian rises with σ; the exact
head solves for it and needs no δ̂.
"""

import os

os.environ.setdefault("NPROC", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

from entropyfloor.control.config import configure
from entropyfloor.control.train import resume, train
from entropyfloor.jax import functional as F
from entropyfloor.runs import read_run

ARMS: dict[str, dict[str, Any]] = {
    "tanh, δ̂ learned": {
        "agent": "sac-era",
        "distribution": "tanh",
        "residual_entropy": "learned",
        "clamp_target": False,
    },
    "tanh, δ̂ learned, H0 + δ̂ clamped": {"agent": "sac-era", "distribution": "tanh", "residual_entropy": "learned"},
    "truncated, δ̂ learned": {"agent": "sac-era", "residual_entropy": "learned"},
    "truncated, exact head": {"agent": "sac-era-exact"},
}
COLOURS = ("#D55E00", "#E69F00", "#0072B2", "#009E73")


@dataclass
class Instability:
    """Train four policies with the same target, and draw their entropies and returns."""

    env: str = "dmc/walker-run"
    """Environment, `suite/task`."""
    steps: int = 40_000
    """Environment steps of each run; each action is applied twice."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each policy."""
    target_entropy: str = "0.25*A"
    """Target entropy H0, that of the paper's release."""
    out: Path = Path("runs/instability")
    """Directory of the runs."""
    figure: Path = Path("docs/control/instability")
    """File of the figure, without its suffix."""
    draw: bool = False
    """Draw the existing runs, and train nothing."""

    def path(self, arm: str, seed: int) -> Path:
        """Directory of a run."""
        name = arm.replace("δ̂", "delta").replace("H0 + delta", "target").replace(",", "").replace(" ", "-")
        return self.out / name / f"seed-{seed}"

    def train(self) -> None:
        """Train the runs that are not finished, one after the other."""
        for seed in self.seeds:
            for arm, options in ARMS.items():
                path = self.path(arm, seed)
                if not (path / "config.toml").exists():
                    train(configure(**self.settings(seed), **options, out=str(path)))
                elif read_run(path).status.get("state") != "finished":
                    resume(path)

    def settings(self, seed: int) -> dict[str, Any]:
        """Settings that all policies share: small and quick."""
        return {
            "env": self.env,
            "seed": seed,
            "steps": self.steps,
            "target_entropy": self.target_entropy,
            "networks": "release",
            "learning_rate": 1e-3,
            "action_repeat": 2,
            "hidden": 128,
            "batch_size": 128,
            "updates_per_step": 1,
            "random_steps": min(2_000, self.steps // 2),
            "eval_every": max(self.steps // 12, 2),
            "eval_episodes": 3,
            "checkpoint_every": max(self.steps // 4, 2),
        }

    def draw_figure(self) -> Path:
        """Draw entropy against σ (left), realised entropy (middle) and return (right)."""
        with matplotlib.rc_context(
            {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "entropyfloor"}
        ):
            figure = Figure(figsize=(13, 4.2), layout="constrained")
            left, middle, right = figure.subplots(1, 3)
            self.draw_curves(left)
            exact = read_run(self.path("truncated, exact head", self.seeds[0]))
            for colour, arm in zip(COLOURS, ARMS, strict=True):
                for quantity, axes in (("realised_entropy", middle), ("return", right)):
                    for seed in self.seeds:
                        steps, values = read_run(self.path(arm, seed)).series(quantity)
                        label = arm if seed == self.seeds[0] and axes is right else None
                        axes.plot(steps / 1000, values, color=colour, lw=1.2, alpha=0.85, label=label)
            _, floor = exact.series("floor")
            middle.axhline(floor[-1], color="#1a1a1a", ls="--", lw=1)
            middle.set_yscale("symlog", linthresh=10.0)  # one of the entropies diverges
            middle.set_ylim(top=100.0)
            middle.set(
                xlabel="environment steps (thousands)", title=f"Realised entropy (nats), target {floor[-1]:g}"
            )
            right.set(xlabel="environment steps (thousands)", title=f"Return, {exact.config['env']}")
            right.legend(frameon=False, fontsize=8.5)
            self.figure.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.figure.with_suffix(".png"), dpi=150)
            figure.savefig(self.figure.with_suffix(".svg"), metadata={"Date": None})
        return self.figure.with_suffix(".png")

    def draw_curves(self, axes: Any) -> None:
        """Draw the entropy of one coordinate against σ, for means in the middle and far out."""
        log_std = np.linspace(np.log(0.05), np.log(6.0), 200).astype(np.float32)
        for name, colour, entropy, bound in (
            ("tanh", COLOURS[0], F.tanh_normal_entropy, float),
            ("truncated", COLOURS[3], F.truncated_normal_entropy, np.tanh),
        ):
            for mean, style in ((0.0, "-"), (2.0, ":")):
                nats = entropy(np.full_like(log_std, bound(mean)), log_std)
                axes.plot(np.exp(log_std), nats, style, color=colour, label=f"{name}, mean {mean:g}")
        axes.set(xlabel="σ before bounding", title="Entropy of one action dimension (nats)", ylim=(-4, 1))
        axes.legend(frameon=False, fontsize=8.5)


def main(args: Instability) -> None:
    """Train, then draw."""
    if not args.draw:
        args.train()
    print(f"figure: {args.draw_figure().resolve()}")


if __name__ == "__main__":
    main(tyro.cli(Instability))
