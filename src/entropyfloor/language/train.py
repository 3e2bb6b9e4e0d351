"""`train(LanguageConfig(...))`: a language model from settings to a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model import is_described
from entropyfloor.language.trainer import MODEL, Trainer
from entropyfloor.runs import Run
from entropyfloor.runs.processes import cores
from entropyfloor.runs.resume import config_of, each_seed, with_seeds

__all__ = ["LanguageConfig", "read_config", "resume", "train", "train_seeds"]

NAMES = ("domain", "env", "agent")
"""What a report calls the run: they follow from its settings."""


def train(config: LanguageConfig) -> Path:
    """Train a language model from the start.

    Returns:
        The run directory; `model` in it is the trained model, as transformers reads it.

    Raises:
        ValueError: Settings that cannot be, a model or data that is not there, or a directory that holds a run.
    """
    trainer = Trainer(config)  # before the directory: what cannot be built should leave nothing behind
    trainer.check_problems()
    config = trainer.config
    path = Path(str(config.out))
    names = dict(zip(NAMES, ("language", f"{config.task} {Path(config.model).name}", config.label), strict=True))
    trainer.fit(Run.create(path, {**names, **asdict(config)}))
    return path


def resume(path: Path, **places: str) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Args:
        path: A run directory.
        places: `data`, `test_data`: where the task's files are now, if they were moved.

    Returns:
        The run directory.

    Raises:
        ValueError: No run, a checkpoint that is damaged or of other settings, or other problems than before.
    """
    run = Run.open(path)
    config = replace(read_config(run.config), **places)  # type: ignore[arg-type]
    trainer = Trainer(config, described=description(run))
    if (checkpoint := run.resume()) is not None:
        trainer.check_data(checkpoint)
        trainer.restore(checkpoint)
    trainer.fit(run)
    return path


def description(run: Run) -> Path | None:
    """Where a run with a checkpoint describes its model; None where the model is built as at the beginning."""
    found = run.path / MODEL
    return found if run.checkpoints() and is_described(found) else None


def train_seeds(config: LanguageConfig, seeds: Sequence[int]) -> list[Path]:
    """Train several seeds, and go on with those that were begun before.

    On CPUs each is a process, one for each core (or `threads` cores); with an accelerator they take turns.
    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        config: Their settings; `out` is the directory of all of them, by default runs/language/….
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
    found = with_seeds(config, seeds, derived=("max_new_tokens",))
    return each_seed(found, train, resume, workers)


def read_config(settings: dict[str, Any]) -> LanguageConfig:
    """The config of a run that was begun with `settings`.

    Raises:
        ValueError: It is no run of a language model, or of another version, which has other settings.
    """
    return config_of(LanguageConfig, settings, "language", "a language model", NAMES)
