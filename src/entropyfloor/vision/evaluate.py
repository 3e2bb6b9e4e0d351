"""A trained classifier judged: accuracy, calibration and entropy with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.runs import Run
from entropyfloor.vision import metrics
from entropyfloor.vision.config import DatasetName
from entropyfloor.vision.train import read_config
from entropyfloor.vision.trainer import SMALLER, Trainer, recorded_classes

_SHOWN = {
    "top1": ("top-1", 100, "%"),
    "top5": ("top-5", 100, "%"),
    "nll": ("NLL", 1, "nats"),
    "brier": ("Brier score", 1, ""),
    "ece": ("calibration error", 100, "%"),
    "auroc": ("AUROC, other things", 1, ""),
    "realised_entropy": ("entropy", 1, "nats"),
    "saturation": ("saturated", 100, "%"),
}


def evaluate(
    path: Path, *, data_dir: Path | None = None, ood: DatasetName | None = None, ood_dir: Path | None = None
) -> str:
    """Judge the last checkpoint of a run on its test images, and write `evaluation.json` into the run.

    Args:
        path: A run directory.
        data_dir: Where the dataset is now, if it was moved.
        ood: A dataset of other things, if not that of the run.
        ood_dir: Where it is; by default where the dataset is.

    Returns:
        What was found, in words: each quantity with its 95 % bootstrap interval over test images, which says
        nothing of other seeds, and the least entropy beside the floor.

    Raises:
        ValueError: No run, no checkpoint, or the data is not there, or has other classes than the run.
    """
    run = Run.open(path)
    checkpoint = run.trained()
    config = read_config(run.config)
    config = config.restarted().moved(data_dir, ood_dir, ood=ood or config.ood)
    trainer = Trainer(config, recorded_classes(checkpoint))
    trainer.restore(checkpoint)
    with out_of_memory_hint(SMALLER):
        judged = trainer.judge()
    predictions, _ = judged
    values, intervals = metrics.summarise(*judged), metrics.intervals(*judged)
    edges, counts = metrics.entropy_histogram(predictions.entropy, int(trainer.config.num_classes or 0))
    found: dict[str, Any] = {
        "step": checkpoint.step,
        "images": len(predictions.correct),
        "ood": Path(str(trainer.config.ood_dir)).name if trainer.config.ood == "folder" else trainer.config.ood,
        "values": values,
        "intervals_95": intervals,
        **trainer.promise,
        "entropy_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "calibration_histogram": metrics.calibration_histogram(predictions),
    }
    file = run.keep_evaluation(found)
    lines = [f"epoch {checkpoint.step}, {len(predictions.correct):,} test images"]
    for name, (label, factor, unit) in _SHOWN.items():
        if name in values:
            value, low, high = (factor * x for x in (values[name], *intervals[name]))
            lines.append(f"{label:<22}{value:.4g} [{low:.4g}, {high:.4g}] {unit}".rstrip())
    aim = "".join(f" (floor {floor:g})" for floor in trainer.promise.values())
    lines.append(f"{'least entropy':<22}{values['realised_entropy/min']:.4f} nats{aim}")
    lines.append(f"{'written to':<22}{file}")
    return "\n".join(lines)
