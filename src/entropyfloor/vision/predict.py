"""Predictions of a classifier for a dataset, in training's evaluations and in `entropyfloor evaluate`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from entropyfloor.torch.nn import ERASoftmax
from entropyfloor.vision import metrics
from entropyfloor.vision.classifier import Classifier
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.data import evaluation_loader
from entropyfloor.vision.regularisers import TemperatureFloor
from entropyfloor.vision.sources import Source

FLOORS = (ERASoftmax, TemperatureFloor)
OUT_OF_MEMORY_HINT = "choose a smaller batch_size or input_size"


def accelerator_of(config: VisionConfig, *, training: bool = True) -> Accelerator:
    """Device, precision and processes of a run; also sets the number of CPU threads.

    Args:
        config: Settings.
        training: Refuse a precision that the device does not support; else predictions are made in fp32, with a
            warning.

    Raises:
        ValueError: The device does not support the precision of training.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    AcceleratorState._reset_state()  # one process may train several runs in different precisions
    accelerator = Accelerator(mixed_precision="no" if config.precision == "fp32" else config.precision)
    if config.precision != "fp32" and not accelerator.native_amp:  # it would be ignored
        reason = f"precision={config.precision!r} is not for a device of type {accelerator.device.type}"
        if training:
            raise ValueError(f"{reason}: choose bf16 or fp32")
        warnings.warn(f"{reason}: predictions are made in fp32", stacklevel=2)
        return accelerator_of(replace(config, precision="fp32"))
    return accelerator


def evaluation_loaders(
    test: Source, ood: Source | None, config: VisionConfig, accelerator: Accelerator
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Batches of test images and of out-of-distribution images, on the device of the accelerator."""

    def prepared(source: Source) -> Any:
        return accelerator.prepare(evaluation_loader(source, config, accelerator.device))

    return prepared(test), prepared(ood) if ood else None


def predict(
    classifier: Classifier, accelerator: Accelerator, test: DataLoader[Any], ood: DataLoader[Any] | None
) -> tuple[metrics.Predictions, Tensor | None]:
    """Predictions for test images, and the largest probabilities for out-of-distribution images."""
    batches = logits_of(classifier, accelerator, test)
    predictions = metrics.concatenate([metrics.predict(*batch) for batch in batches])
    if ood is None:
        return predictions, None
    confidence = [metrics.top_confidence(logits) for logits, _, _ in logits_of(classifier, accelerator, ood)]
    return predictions, torch.cat(confidence)


@torch.no_grad()
def logits_of(
    classifier: Classifier, accelerator: Accelerator, loader: DataLoader[Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits, logits before the floor, and labels of each batch, on the CPU.

    Args:
        classifier: The classifier; afterwards it is in evaluation mode.
        accelerator: Device, precision and processes.
        loader: Batches of bytes and labels, prepared by the accelerator.
    """
    classifier.eval()
    for images, target in loader:
        with accelerator.autocast():
            logits, raw = logits_and_raw(classifier, classifier.normalise(images))
        gathered = accelerator.gather_for_metrics((logits, raw, target))
        yield tuple(tensor.cpu() for tensor in gathered)


def logits_and_raw(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a model, and its logits before the floor: the same where there is none."""
    raw: list[Tensor] = []
    floor = next((module for module in model.modules() if isinstance(module, FLOORS)), nn.Identity())
    with floor.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0])):
        logits: Tensor = model(images)
    return logits, raw[-1] if raw else logits
