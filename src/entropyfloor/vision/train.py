"""`train(VisionConfig(...))`: an image classifier from settings to a run directory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from entropyfloor.runs import Run
from entropyfloor.runs.processes import cores
from entropyfloor.runs.resume import config_of, each_seed, with_seeds
from entropyfloor.vision import data
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.trainer import Trainer

__all__ = ["VisionConfig", "read_config", "resume", "train", "train_seeds"]


NAMES = ("domain", "env", "agent")
"""What a report calls the run: they follow from its settings."""


def train(config: VisionConfig) -> Path:
    """Train a classifier from the start.

    Returns:
        The run directory.

    Raises:
        ValueError: Settings that cannot be, data that is not there, or a directory that holds a run already.
    """
    trainer = Trainer(config)  # before the directory: what cannot be built should leave nothing behind
    path = Path(str(trainer.config.out))
    config = trainer.config
    if trainer.leads and trainer.out_of_reach:
        warnings.warn(trainer.out_of_reach, stacklevel=2)
    dataset = Path(config.data_dir).resolve().name if config.dataset == "folder" else config.dataset
    names = dict(zip(NAMES, ("vision", f"{dataset} {config.model}", config.label), strict=True))
    # A switch that older versions did not know is written down only where it is on.
    settings = {**names, **asdict(config), "pretrained": config.pretrained or None}
    run = Run.create(path, settings) if trainer.leads else None
    trainer.fit(run)
    return path


def resume(path: Path, **places: str) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Args:
        path: A run directory.
        places: `data_dir`, `ood_dir`: where the images are now, if they were moved.

    Returns:
        The run directory.

    Raises:
        ValueError: No run, a checkpoint that is damaged or of other settings, or other data than before.
    """
    run = Run.open(path)
    config = read_config(run.config).moved(**places)
    trainer = Trainer(config.restarted() if run.checkpoints() else config)
    checkpoint = run.resume() if trainer.leads else run.latest()
    if checkpoint is not None:
        trainer.check_data(checkpoint)
        trainer.restore(checkpoint)
    trainer.fit(run if trainer.leads else None)
    return path


def train_seeds(config: VisionConfig, seeds: Sequence[int]) -> list[Path]:
    """Train several seeds, and go on with those that were begun before.

    On CPUs each is a process, one for each core (or `threads` cores); with an accelerator they take turns.
    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        config: Their settings; `out` is the directory of all of them, by default runs/vision/….
        seeds: Different ones.

    Returns:
        The run directories, `<out>/seed-<seed>`.

    Raises:
        ValueError: The same seed twice, or a run in the way that was begun with other settings.
        RuntimeError: Some of the runs failed; the others are finished.
    """
    workers = 1
    if not torch.accelerator.is_available():
        config = replace(config, threads=config.threads or 1)
        workers = max(1, cores() // config.threads)
    found = with_seeds(config, seeds, derived=("num_classes",))
    if config.download:  # once, before several would
        data.load(config.dataset, Path(config.data_dir), "train", download=True)
    return each_seed(found, train, resume, workers)


def read_config(settings: dict[str, Any]) -> VisionConfig:
    """The config of a run that was begun with `settings`.

    Raises:
        ValueError: It is no run of a classifier, or of another version, which has other settings.
    """
    return config_of(VisionConfig, settings, "vision", "an image classifier", NAMES)
