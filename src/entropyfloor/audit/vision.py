"""Audit of a classifier: of a run, or any model of timm on a folder of images."""

from __future__ import annotations

import entropyfloor.vision  # noqa: F401  before timm, so that a broken torchvision does no harm

# isort: split

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from timm.data import create_transform, resolve_data_config
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from entropyfloor.audit.logits import gap_of, saturation
from entropyfloor.audit.samples import Samples
from entropyfloor.extras import brief, is_out_of_memory, out_of_memory_hint
from entropyfloor.torch import functional as F
from entropyfloor.vision.attach import attach_era
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.data import Images
from entropyfloor.vision.evaluate import predictions_of
from entropyfloor.vision.images import SUFFIXES
from entropyfloor.vision.model import build_model, load_weights, metadata_of, plain_model
from entropyfloor.vision.predict import OUT_OF_MEMORY_HINT, logits_and_raw
from entropyfloor.vision.sources import Files, Source, Store, open_tar

RAW = "logits before any floor"


def run(run: Path, *, data_dir: Path | None = None) -> Samples:
    """Measure the predictions of a run's classifier on its test images.

    Args:
        run: Run directory, whose last checkpoint is measured, or a directory in its `checkpoints`.
        data_dir: Directory of the dataset: by default that of the run.

    Raises:
        ValueError: There is no run or no checkpoint, or the images are not there or have other classes.
    """
    _, config, test, predictions, _ = predictions_of(run, data_dir)
    return Samples(
        f"{run} ({config.model} on {config.dataset})",
        "images",
        f"its predictions over {len(test.classes)} classes",
        predictions.entropy.double().numpy(),
        [f"{test.store.name(i)} ({test.classes[label]})" for i, label in enumerate(test.labels)],
        floor=next(iter(config.floor_metric.values()), None),
        numbers={"top1": float(predictions.correct.double().mean())},
        **saturation(predictions.gap.double().numpy(), RAW),
    )


def classifier(
    model: str,
    images: Path,
    *,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    min_entropy: float | None = None,
    input_size: int | None = None,
    crop: float | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    batch_size: int = 64,
    limit: int | None = None,
) -> Samples:
    """Measure the predictions of any classifier of timm on images. Only the weights of a checkpoint are read.

    Args:
        model: Name of the model in timm, such as resnet18.
        images: Directory of images, at any depth, or an uncompressed tar file of them.
        checkpoint: File of weights.
        pretrained: Take timm's own weights instead, which it may download.
        min_entropy: Put this floor under the predictions first, as attach_era does.
        input_size: Height and width of the images in pixels: by default those of the run that the weights were
            exported from, else those that timm evaluates the model with.
        crop: Share of height and width that is kept of an image; default as for `input_size`.
        mean: Mean of each channel in [0, 1] that images are normalised by; default as for `input_size`.
        std: Standard deviation of each channel; default as for `input_size`.
        batch_size: Number of images at a time.
        limit: Number of images, evenly spread over all of them; by default all.

    Raises:
        ValueError: timm has no such model, there are no weights or no images, or they cannot be read.
    """
    if (checkpoint is None) != pretrained:
        raise ValueError(f"{model} needs weights: give --checkpoint, a file, or --pretrained for those of timm")
    given = {"input_size": input_size, "crop_pct": crop, "mean": mean, "std": std}
    asked = _of_run(checkpoint) | {name: value for name, value in given.items() if value}
    net = _built(model, checkpoint, asked.get("input_size"))
    if "input_size" in asked:
        asked["input_size"] = (3, asked["input_size"], asked["input_size"])
    config = resolve_data_config(asked, model=net)
    if min_entropy is not None:
        attach_era(net, min_entropy)
    source, transform = _images(images), create_transform(**config, is_training=False)
    chosen = _chosen(len(source.labels), limit)
    batches = DataLoader(Subset(Images(source, transform), chosen), batch_size=batch_size)
    with out_of_memory_hint(OUT_OF_MEMORY_HINT):
        logits, raw = _predicted(net.eval(), batches)
    return Samples(
        f"{model} ({'weights of timm' if checkpoint is None else checkpoint})",
        "images",
        f"its predictions over {logits.shape[1]} classes",
        F.entropy_from_logits(logits).numpy(),
        [source.store.name(i) for i in chosen],
        floor=min_entropy,
        **saturation(gap_of(raw.numpy()), RAW),
    )


def _of_run(checkpoint: Path | None) -> dict[str, Any]:
    """How images are prepared for weights that were exported from a run, by timm's names; empty for others."""
    try:
        metadata = metadata_of(str(checkpoint))
        names = {"input_size": "input_size", "crop_pct": "crop", "mean": "mean", "std": "std"}
        recorded = {name: json.loads(metadata[ours]) for name, ours in names.items()}
    except (OSError, SafetensorError, KeyError, ValueError):  # others, or `_built` says what is wrong
        return {}
    return {**recorded, "interpolation": "bicubic", "crop_mode": "center"}


def _built(name: str, checkpoint: Path | None, input_size: int | None) -> nn.Module:
    """A model of timm with the weights of a file, or with timm's own."""
    plain: Any = plain_model(VisionConfig(model=name, input_size=input_size))[0]
    if checkpoint is None:
        classes = plain.pretrained_cfg["num_classes"]
        return build_model(VisionConfig(model=name, input_size=input_size, num_classes=classes, pretrained=True))[
            0
        ]
    if not checkpoint.is_file():
        raise ValueError(f"checkpoint={checkpoint} does not exist, or is no file")
    try:
        weights = load_state_dict(str(checkpoint), weights_only=True)  # never what a pickle would execute
    except Exception as error:  # its type depends on the format
        reason = f"{type(error).__name__}: {brief(error, 120)}"
        raise ValueError(f"checkpoint={checkpoint} cannot be read as weights alone ({reason})") from None
    layer = plain.pretrained_cfg["classifier"]
    head = weights.get(f"{layer if isinstance(layer, str) else layer[0]}.weight")
    if not (isinstance(head, Tensor) and head.ndim):
        raise ValueError(f"checkpoint={checkpoint} has no layer {layer}: they are weights of another model")
    model, _ = plain_model(VisionConfig(model=name, input_size=input_size, num_classes=len(head)))
    load_weights(model, weights, f"checkpoint={checkpoint}", name)
    return model


def _images(place: Path) -> Source:
    """Images below a directory, or of a tar file, in the order of their names."""
    if place.is_dir():
        paths = sorted(
            path
            for path in place.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(place).parts)
        )
        store: Store = Files(paths)
    elif place.suffix == ".tar" and place.is_file():
        store, paths, _ = open_tar(place)
    else:
        raise ValueError(f"images={place} must be a directory of images, or a tar file")
    if not paths:
        raise ValueError(f"images={place} has no image of a format that is read: {', '.join(sorted(SUFFIXES))}")
    return Source((), [0] * len(paths), store)


def _chosen(count: int, limit: int | None) -> list[int]:
    """Numbers of evenly spread images; all without a limit."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    chosen: list[int] = np.linspace(0, count - 1, min(limit or count, count)).round().astype(int).tolist()
    return chosen


@torch.no_grad()
def _predicted(net: nn.Module, batches: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Logits of all images, and those before the floor, in float64."""
    try:
        parts = [logits_and_raw(net, images) for images, _ in batches]
    except (AssertionError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        # Images of a size that the model does not take.
        raise ValueError(f"{type(net).__name__} does not take these images: {brief(error)}") from None
    logits, raw = (torch.cat(columns).double() for columns in zip(*parts, strict=True))
    return logits, raw
