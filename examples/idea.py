"""The figures of the page on the idea: what the activations do, drawn by the activations themselves.

    python examples/idea.py

writes `docs/idea/*.svg`; `make figures` does so too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropyfloor import targets
from entropyfloor.torch import functional as F

PLAIN, PAPER, OURS, TARGET = "#666666", "#D55E00", "#0072B2", "#1a1a1a"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "entropyfloor",
}


@dataclass
class Idea:
    """Draw the figures."""

    out: Path = Path("docs/idea")
    """Directory of the figures."""

    def draw(self) -> list[Path]:
        """One file for each figure."""
        self.out.mkdir(parents=True, exist_ok=True)
        return [self._save(name, *panels) for name, panels in FIGURES.items()]

    def _save(self, name: str, *panels: Callable[[Axes], None]) -> Path:
        path = self.out / f"{name}.svg"
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
            for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                panel(axes)
                axes.legend(fontsize=8)
            figure.savefig(path, metadata={"Date": None})
        return path


def shares(axes: Axes) -> None:
    """σ of two dimensions, against the difference of their raw outputs."""
    difference = torch.linspace(-5, 5, 201)
    raw = torch.stack([difference, torch.zeros_like(difference)], -1)
    std = F.era_gaussian(raw, target_entropy=-1.0).exp()
    axes.plot(difference, std[:, 0], color=OURS, label="σ₁")
    axes.plot(difference, std[:, 1], color=PAPER, label="σ₂")
    axes.plot(difference, std.prod(-1).sqrt(), "--", color=TARGET, label="√(σ₁ σ₂)")
    axes.set(title="A Gaussian: one entropy, shared out", xlabel="raw₁ − raw₂", ylabel="standard deviation")


def modes(axes: Axes) -> None:
    """Entropy under both modes, against a common shift of the raw outputs."""
    shift = torch.linspace(-10, 6, 201)
    for mode, colour in (("pin", PAPER), ("floor", OURS)):
        log_std = F.era_gaussian(shift[:, None].expand(-1, 2), target_entropy=-1.0, mode=mode)
        axes.plot(shift, F.gaussian_entropy(log_std), color=colour, label=f'mode="{mode}"')
    axes.axhline(-1.0, ls=":", color=TARGET, label="target")
    axes.set(title="Pin or floor", xlabel="mean raw output", ylabel="entropy (nats)")


def softmax(axes: Axes) -> None:
    """Entropy of ten classes, against how far one logit is above the others."""
    gap = torch.linspace(0, 12, 201)
    logits = torch.cat([gap[:, None], torch.zeros(201, 9)], -1)
    axes.plot(gap, F.entropy_from_logits(logits), color=PLAIN, label="plain softmax")
    for floor, colour in (("paper", PAPER), ("calibrated", OURS)):
        entropy = F.entropy_from_logits(F.era_softmax(logits, 0.6, floor=floor))
        axes.plot(gap, entropy, color=colour, label=f'floor="{floor}"')
    axes.axhline(0.6, ls=":", color=TARGET, label="min_entropy = 0.6")
    axes.set(title="Ten classes", xlabel="one logit minus the others", ylabel="entropy (nats)")


def cap(axes: Axes) -> None:
    """The largest probability that a floor allows."""
    floors = [0.02 * step for step in range(1, 111)]
    for floor, colour in (("paper", PAPER), ("calibrated", OURS)):
        caps = [targets.top1_cap(10, nats, floor=floor) for nats in floors]
        axes.plot(floors, caps, color=colour, label=f'floor="{floor}"')
    axes.axhline(0.91, ls=":", color=TARGET, label="label smoothing 0.1 asks for 0.91")
    axes.set(title="Ten classes", xlabel="min_entropy (nats)", ylabel="largest probability", ylim=(0, 1.02))


def against_std(axes: Axes) -> None:
    """Entropy of both bounded Gaussians, against σ."""
    log_std = torch.linspace(math.log(0.05), math.log(10.0), 201)
    for loc, style in ((0.0, "-"), (0.9, "--")):
        tanh = F.tanh_normal_entropy(torch.tensor(math.atanh(loc)), log_std)
        truncated = F.truncated_normal_entropy(torch.tensor(loc), log_std)
        axes.plot(log_std.exp(), tanh, style, color=PAPER, label=f"tanh, median {loc:g}")
        axes.plot(log_std.exp(), truncated, style, color=OURS, label=f"truncated, peak {loc:g}")
    axes.axhline(math.log(2), ls=":", color=TARGET, label="log 2, uniform")
    axes.set(title="Bounded to [−1, 1]", xlabel="σ before bounding", ylabel="entropy (nats)", xscale="log")
    axes.set_ylim(-3, 1)


def acting(axes: Axes) -> None:
    """Entropy of the truncated policy that acts, against where its peak is."""
    loc = torch.linspace(-1, 1, 201)[:, None]
    raw = torch.zeros_like(loc)
    for head, log_std, colour in (
        ("era_gaussian", F.era_gaussian(raw, 0.25), PAPER),
        ("era_truncated_normal", F.era_truncated_normal(loc, raw, 0.25), OURS),
    ):
        axes.plot(loc, F.truncated_normal_entropy(loc, log_std), color=colour, label=head)
    axes.axhline(0.25, ls=":", color=TARGET, label="target")
    axes.set(title="One dimension, truncated", xlabel="peak of the policy", ylabel="entropy of what acts (nats)")
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])


def renyi(axes: Axes) -> None:
    """log π'_s of three tokens, and the two terms of the identity."""
    log_p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    scales = torch.linspace(0.3, 3.0, 109, dtype=torch.float64)
    scales = scales[(scales - 1).abs() > 1e-6]
    entropy = (scales[:, None] * log_p).logsumexp(-1) / (1 - scales)  # of order s
    for i, colour in enumerate((OURS, PAPER, PLAIN)):
        scaled = (scales[:, None] * log_p).log_softmax(-1)[:, i]
        axes.plot(scales, scaled, color=colour, label=f"log π′ₛ of a token with π = {log_p[i].exp():.1f}")
        both = scales * log_p[i] + (scales - 1) * entropy
        axes.plot(scales[::12], both[::12], "o", ms=4, color=colour)
    axes.plot([], [], "o", ms=4, color=TARGET, label="s log π + (s − 1) Hₛ")
    axes.set(title="Scaled logits", xlabel="scale s", ylabel="log-probability (nats)", ylim=(-8, 0.2))


def bonus(axes: Axes) -> None:
    """The Rényi entropies that the identity has."""
    scales = torch.linspace(0.3, 4.0, 109, dtype=torch.float64)
    for top, colour in ((0.5, OURS), (0.8, PAPER), (0.98, PLAIN)):
        rest = (1 - top) / 9
        sums = top**scales + 9 * rest**scales
        axes.plot(scales, sums.log() / (1 - scales), color=colour, label=f"ten tokens, the first has {top:g}")
    axes.set(title="Rényi entropy of order s", xlabel="scale s", ylabel="Hₛ (nats)", ylim=(0, None))


FIGURES = {
    "activations": (shares, modes),
    "constant": (softmax, cap),
    "bounded": (against_std, acting),
    "scaled": (renyi, bonus),
}


if __name__ == "__main__":
    print(*tyro.cli(Idea).draw(), sep="\n")
