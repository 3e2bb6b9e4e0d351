"""Training image classifiers: `train(VisionConfig(...))` begins a run, `resume(path)` continues it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from entropyfloor.runs import Run
from entropyfloor.runs.processes import cores
from entropyfloor.runs.resume import begin, check_changeable, each_seed, with_seeds
from entropyfloor.vision.config import NAMES, VisionConfig, read_config
from entropyfloor.vision.data import Splits, open_ood, open_splits
from entropyfloor.vision.predict import accelerator_of
from entropyfloor.vision.regularisers import smoothing_out_of_reach
from entropyfloor.vision.sources import load
from entropyfloor.vision.trainer import Trainer

__all__ = ["VisionConfig", "resume", "train", "train_seeds"]


def train(config: VisionConfig) -> Path:
    """Train a classifier from the start.

    Returns:
        The run directory.

    Raises:
        ValueError: A setting is impossible, the images are not there, or the directory holds a run already.
    """
    config, images, accelerator = complete(config.resolved())
    trainer = Trainer(config, images, accelerator)  # before the directory: a refused config leaves nothing behind
    run = None
    if accelerator.is_main_process:
        _warn_of_smoothing(config)
        dataset = Path(config.data_dir).resolve().name if config.dataset == "folder" else config.dataset
        if config.label_noise:  # another task, for a report
            dataset += f" with {100 * config.label_noise:g} % label noise"
        names: Any = dict(zip(NAMES, ("vision", f"{dataset} {config.model}", config.label), strict=True))
        # Earlier versions did not have `pretrained`: it is written only where it is on.
        run = begin(config, **names, pretrained=config.pretrained or None)
    trainer.fit(run)
    return Path(str(config.out))


def resume(path: Path, **changes: Any) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Args:
        path: Run directory.
        changes: Settings that do not change results, such as `data_dir` or `workers`.

    Returns:
        The run directory.

    Raises:
        ValueError: There is no run, its checkpoint is damaged or of other settings, the images are not those that
            it began with, or a change of another setting.
    """
    run = Run.open(path)
    check_changeable(VisionConfig, changes)
    config = read_config(run.config).moved(**changes)
    config, images, accelerator = complete(config.restarted() if run.checkpoints() else config)
    trainer = Trainer(config, images, accelerator)
    checkpoint = run.resume() if accelerator.is_main_process else run.latest()
    if checkpoint is not None:
        trainer.check_data(checkpoint)
        trainer.restore(checkpoint)
    trainer.fit(run if accelerator.is_main_process else None)
    return path


def train_seeds(config: VisionConfig, seeds: Sequence[int]) -> list[Path]:
    """Train several seeds, and continue those that were begun before.

    On CPUs each seed is a process, one for each core (or `threads` cores); with an accelerator they take turns.
    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        config: Settings of all seeds; `out` is the directory of all of them, by default runs/vision/….
        seeds: Different seeds.

    Returns:
        The run directories, `<out>/seed-<seed>`.

    Raises:
        ValueError: The same seed twice, or a directory holds a run with other settings.
        RuntimeError: Some of the runs failed; the others are finished.
    """
    workers = 1
    if not torch.accelerator.is_available():
        config = replace(config, threads=config.threads or 1)
        workers = max(1, cores() // config.threads)
    # Once here, so that several processes do not download at a time.
    open_ood(config.resolved())
    images = load(config.dataset, Path(config.data_dir), "train", download=config.download)
    return each_seed(with_seeds(config.with_classes(images.classes), seeds), train, resume, workers)


def complete(config: VisionConfig) -> tuple[VisionConfig, Splits, Accelerator]:
    """The settings with nothing left open, the images of the run, and its device and processes.

    Raises:
        ValueError: The images are not there, or have another number of classes than `num_classes`, or the device
            does not support the precision.
    """
    config = config.filled()
    accelerator = accelerator_of(config)
    with accelerator.main_process_first():  # it may download
        images = open_splits(config)
    return config.with_classes(images.train.classes), images, accelerator


def _warn_of_smoothing(config: VisionConfig) -> None:
    """Warn if label smoothing asks for more confidence than the minimum entropy allows."""
    if config.min_entropy and config.label_smoothing:
        reason = smoothing_out_of_reach(
            int(config.num_classes or 0),
            config.min_entropy,
            config.label_smoothing,
            tau=config.tau,
            floor=config.floor,
            inverse=config.inverse,
        )
        if reason:
            warnings.warn(reason, stacklevel=3)
