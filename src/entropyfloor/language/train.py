"""`train(LanguageConfig(...))`: from settings to a run directory with a trained language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model.files import is_described
from entropyfloor.language.prepare import MODEL, NAMES, complete, read_config
from entropyfloor.language.trainer import Trainer
from entropyfloor.runs import Run
from entropyfloor.runs.processes import cores
from entropyfloor.runs.resume import begin, check_changeable, each_seed, with_seeds

__all__ = ["LanguageConfig", "resume", "train", "train_seeds"]


def train(config: LanguageConfig) -> Path:
    """Train a language model from the start.

    Returns:
        The run directory; `model` in it is the trained model, as transformers reads it.

    Raises:
        ValueError: Settings that cannot be, a model or data that is not there, or a directory that holds a run.
    """
    config, task = complete(config.resolved())
    trainer = Trainer(config, task)  # before the directory: what cannot be built should leave nothing behind
    trainer.check_problems()
    names = ("language", f"{config.task} {Path(config.model).name}", config.label)
    named: dict[str, Any] = dict(zip(NAMES, names, strict=True))
    run = begin(config, **named)
    trainer.fit(run)
    return run.path


def resume(path: Path, **changes: Any) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Args:
        path: A run directory.
        changes: Settings that may change: where files are now, and what changes speed and memory only.

    Returns:
        The run directory.

    Raises:
        ValueError: No run, a checkpoint that is damaged or of other settings, other problems than before, or a
            change of another setting.
    """
    run = Run.open(path)
    check_changeable(LanguageConfig, changes)
    config, task = complete(replace(read_config(run.config), **changes))
    description = path / MODEL
    begun = run.checkpoints() and is_described(description)
    trainer = Trainer(config, task, description if begun else None)
    if (checkpoint := run.resume()) is not None:
        trainer.check_data(checkpoint)
        trainer.restore(checkpoint)
    trainer.fit(run)
    return path


def train_seeds(config: LanguageConfig, seeds: Sequence[int]) -> list[Path]:
    """Train several seeds, and continue those that were begun before.

    On CPUs each is a process, one for each core (or `threads` cores); with an accelerator they take turns.
    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        config: Settings of all seeds; `out` is the directory above theirs, by default runs/language/….
        seeds: Different seeds.

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
    completed, task = complete(config.resolved())
    task.close()  # each run has its own
    return each_seed(with_seeds(replace(completed, out=config.out), seeds), train, resume, workers)
