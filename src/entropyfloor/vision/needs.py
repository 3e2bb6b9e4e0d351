"""What a run of a classifier needs, from its settings: neither images nor weights are read."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from entropyfloor.runs.needs import LINE, Needs
from entropyfloor.torch.memory import bytes_of, saved_bytes, without_memory
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.model import plain_model

LIBRARIES = 600 * 2**20
"""Bytes of Python, PyTorch and timm in a process. CUDA's own are taken as much."""
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "folder": 1000}
"""Classes of a dataset; a folder is taken for ImageNet."""
IMAGES = {"cifar10": 60_000 * 3072, "cifar100": 60_000 * 3072, "digits": 0, "folder": 0}
"""Bytes of the images of a dataset that is read as a whole."""
READ = (
    *("model", "input_size", "dropout", "precision", "optimiser", "ema"),
    *("dataset", "num_classes", "batch_size", "aug_splits", "workers", "epochs"),
)
"""Settings that a count reads: arms of a comparison that differ in others are counted once."""


def needs(config: VisionConfig, *, on_cpu: bool) -> Needs:
    """What each process of a run with these settings needs.

    Args:
        config: Settings.
        on_cpu: Whether it trains on the CPU.

    Raises:
        ValueError: timm has no such model.
    """
    config = config.resolved()
    return _needs(on_cpu, **{name: getattr(config, name) for name in READ})


@cache
def _needs(on_cpu: bool, **settings: Any) -> Needs:
    config: Any = SimpleNamespace(**settings)  # without the settings that are not in the key of the cache
    config.num_classes = config.num_classes or CLASSES[config.dataset]
    with without_memory():
        model, _ = plain_model(config, drop_rate=config.dropout)
        weights, activations = bytes_of(model), _activations(model.train(), config)
    averages = (1 if config.optimiser == "sgd" else 2) + bool(config.ema)
    checkpoint = (1 + averages) * weights
    always = {"libraries": LIBRARIES, "weights": weights, "moments and averages": averages * weights}
    training = always | {"gradients": weights, "activations": activations}
    workers = config.workers * LIBRARIES // 4  # they share the libraries
    host = LIBRARIES + IMAGES[config.dataset] + workers
    lines = LINE * config.epochs
    if not on_cpu:
        return Needs({"training": training}, host + checkpoint, checkpoint, lines)
    data = {"images": IMAGES[config.dataset] + workers}
    return Needs({"training": training | data}, 0, checkpoint, lines)


def _activations(model: torch.nn.Module, config: VisionConfig) -> int:
    """Bytes that a backward pass keeps of a batch."""
    size = int(config.input_size or 0)
    images = torch.zeros(config.batch_size * max(1, config.aug_splits), 3, size, size)

    def forward() -> Any:
        # bf16 stands for fp16 too: both have the same size
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "fp32"):
            return model(images)

    return saved_bytes(model, forward)
