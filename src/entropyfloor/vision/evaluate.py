"""Evaluation of a trained classifier: accuracy, calibration and entropy with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.vision import metrics
from entropyfloor.vision.config import DatasetName, VisionConfig
from entropyfloor.vision.data import open_ood
from entropyfloor.vision.load import Trained, read_trained
from entropyfloor.vision.predict import OUT_OF_MEMORY_HINT, accelerator_of, evaluation_loaders, predict
from entropyfloor.vision.sources import Source, load

_SHOWN = {
    "top1": ("top-1", 100, "%"),
    "top5": ("top-5", 100, "%"),
    "nll": ("NLL", 1, "nats"),
    "brier": ("Brier score", 1, ""),
    "ece": ("calibration error", 100, "%"),
    "auroc": ("AUROC, other dataset", 1, ""),
    "realised_entropy": ("entropy", 1, "nats"),
    "saturation": ("saturated", 100, "%"),
}
"""Name, factor and unit of each quantity in the summary."""


def evaluate(
    run: Path, *, data_dir: Path | None = None, ood: DatasetName | None = None, ood_dir: Path | None = None
) -> str:
    """Evaluate a classifier on its test images: accuracy, calibration and entropy with intervals.

    Only the test images are read. The results are written to `evaluation.json` in the run. The 95 % bootstrap
    intervals are over test images; they do not say how other seeds would differ.

    Args:
        run: Run directory, whose last checkpoint is evaluated, or a directory in its `checkpoints`.
        data_dir: Directory of the dataset: by default that of the run.
        ood: Out-of-distribution dataset, for the AUROC of the largest probability: by default that of the run.
        ood_dir: Directory of the out-of-distribution dataset, by default that of the run: `data_dir`, or its own.

    Returns:
        A summary: each quantity with its interval, and the minimum entropy beside the floor.

    Raises:
        ValueError: There is no run or no checkpoint, or the images are not there or have other classes.
    """
    trained, config, test, predictions, ood_confidence = predictions_of(run, data_dir, ood, ood_dir)
    values = metrics.summarise(predictions, ood_confidence)
    intervals = metrics.intervals(predictions, ood_confidence)
    edges, counts = metrics.entropy_histogram(predictions.entropy, len(test.classes))
    results: dict[str, Any] = {
        "step": trained.step,
        "images": len(predictions.correct),
        "ood": Path(str(config.ood_dir)).name if config.ood == "folder" else config.ood,
        "values": values,
        "intervals_95": intervals,
        **config.floor_metric,
        "entropy_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "calibration_histogram": metrics.calibration_histogram(predictions),
    }
    file = trained.run.keep_evaluation(results)
    lines = [f"epoch {trained.step}, {len(predictions.correct):,} test images"]
    for name, (label, factor, unit) in _SHOWN.items():
        if name in values:
            value, low, high = (factor * x for x in (values[name], *intervals[name]))
            lines.append(f"{label:<22}{value:.4g} [{low:.4g}, {high:.4g}] {unit}".rstrip())
    aim = "".join(f" (floor {floor:g})" for floor in config.floor_metric.values())
    lines.append(f"{'least entropy':<22}{values['realised_entropy/min']:.4f} nats{aim}")
    lines.append(f"{'written to':<22}{file}")
    return "\n".join(lines)


def predictions_of(
    run: Path, data_dir: Path | None = None, ood: DatasetName | None = None, ood_dir: Path | None = None
) -> tuple[Trained, VisionConfig, Source, metrics.Predictions, Tensor | None]:
    """Predictions of a run's classifier for its test images, with the images and the resolved settings.

    The last value is the confidence on the out-of-distribution dataset, if there is one. Arguments are those of
    `evaluate`.

    Raises:
        ValueError: As `evaluate`.
    """
    trained = read_trained(run)
    config = trained.config.moved(data_dir, ood_dir, ood=ood or trained.config.ood)
    if ood_dir is not None and config.ood is None:
        raise ValueError(f"ood_dir={ood_dir} would be ignored without ood")
    test = load(config.dataset, Path(config.data_dir), "test", download=config.download)
    test = test.numbered_as(trained.label_names or test.classes)
    config = config.with_classes(test.classes)
    accelerator = accelerator_of(config, training=False)
    classifier = trained.build().to(accelerator.device)
    loaders = evaluation_loaders(test, open_ood(config), config, accelerator)
    with out_of_memory_hint(OUT_OF_MEMORY_HINT):
        predictions, ood_confidence = predict(classifier, accelerator, *loaders)
    return trained, config, test, predictions, ood_confidence
