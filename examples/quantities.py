"""The page of the logged quantities, from the vocabulary that every trainer takes their names from.

    python examples/quantities.py

writes `docs/quantities.md`; `make figures` does so too.
"""

from itertools import groupby
from pathlib import Path

from entropyfloor.runs import QUANTITIES

PAGE = Path(__file__).parents[1] / "docs/quantities.md"
HEAD = """\
# Logged quantities

All trainers use these names, in `metrics.jsonl` of the [run directory](run-directory.md#run-directory), in
TensorBoard, trackio and Weights & Biases. In control, `return`, `episode_length` and `realised_entropy` are those
of evaluations. `floor` is logged where the head has one; that of `era` holds before actions are bounded. SAC with
a learned α and the head `era-batch` control only the average entropy: they log `target_entropy` instead. A share
is between 0 and 1. What ERA logs in other trainers is on their pages: [TRL](trl.md#what-is-logged),
[verl](verl.md).
"""
FIRST = {
    "return": "Episodes",
    "realised_entropy": "Entropy of a policy or classifier",
    "loss/actor": "Learning in control",
    "top1": "Classifiers",
    "avg_at_k": "Language models",
    "images_per_second": "Speed",
}
"""The name in the vocabulary that each section begins with."""


def page() -> str:
    """The whole page."""
    title, titled = "", []
    for name, each in QUANTITIES.items():
        title = FIRST.get(name, title)
        titled.append((title, name, each))
    parts = [HEAD]
    for title, rows in groupby(titled, key=lambda row: row[0]):
        lines = [f"| `{name}` | {each.label} | {each.unit} |" for _, name, each in rows]
        if title == FIRST["avg_at_k"]:
            lines.insert(
                1, "| `pass_at_4`, of any number | Share of held-out problems that 4 responses solve, unbiased | |"
            )
        parts.append("\n".join([f"\n## {title}\n", "| name | meaning | unit |", "|---|---|---|", *lines, ""]))
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
