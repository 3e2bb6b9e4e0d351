"""Quantities and words of each kind of run: control, vision, language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from entropyfloor.runs.vocabulary import PASS_AT, SCORES

ENTROPIES = ("realised_entropy", "realised_entropy/min")


class Column(NamedTuple):
    """A quantity in a column of the table."""

    name: str
    label: str
    factor: float = 1.0
    decimals: int | None = 3
    drawn: bool = False
    """Whether its curve is drawn beside that of the score."""


def pass_at(k: int | str) -> Column:
    """The column of pass@k."""
    return Column(f"{PASS_AT}{k}", f"pass@{k} (%)", 100.0, 1)


@dataclass(frozen=True)
class Domain:
    """Quantities and words of a kind of run."""

    score: str
    """Quantity that says how good a run is; an evaluation logs it and `ENTROPIES`."""
    score_label: str
    step_label: str
    actor: str
    """Whose entropy is measured."""
    places: str
    """What its entropy is averaged over."""
    rate: str
    """Quantity that says how fast a run trains."""
    rate_label: str
    factor: float = 1.0
    """Multiplies the score where it is shown: 100 for a share that is shown in per cent."""
    decimals: int | None = None
    """Decimals of the score; None chooses them by its size."""
    also: tuple[Column, ...] = ()
    """Other quantities of the table."""
    baseline: str | None = None
    """Agent that the others are compared with, unless another one is asked for."""

    @property
    def measured(self) -> tuple[str, ...]:
        """Quantities that all are logged at a step that counts as an evaluation."""
        return (self.score, *ENTROPIES)


DOMAINS = {
    "control": Domain(
        SCORES["control"], "Return", "Environment steps", "acting policy", "states", "steps_per_second", "Steps/s"
    ),
    "vision": Domain(
        SCORES["vision"],
        "Top-1 accuracy (%)",
        "Epochs",
        "classifier",
        "test images",
        "images_per_second",
        "Images/s",
        factor=100.0,
        decimals=2,
        also=(
            Column("top5", "Top-5 (%)", 100.0, 2),
            Column("nll", "NLL (nats)"),
            Column("brier", "Brier score"),
            Column("ece", "Calibration error (%)", 100.0, 2),
            Column("auroc", "AUROC, other dataset"),
            Column("saturation", "Saturated (%)", 100.0, 2),
        ),
    ),
    "language": Domain(
        SCORES["language"],
        "avg@k (%)",
        "Rollouts",
        "sampling policy",
        "responses, their top tokens",
        "tokens_per_second",
        "Tokens/s",
        factor=100.0,
        decimals=1,
        also=(
            Column("greedy", "Greedy (%)", 100.0, 1, drawn=True),
            Column("reward", "Reward of rollouts", drawn=True),
            Column("response_entropy", "Response entropy (nats)"),
            Column("omega_low", "ω_low (nats)"),
            Column("scaled_share", "Responses scaled (%)", 100.0, 1),
            Column("response_length/eval", "Length (tokens)", 1.0, 1),
        ),
        baseline="grpo",
    ),
}
