"""`train(configure("sac-era-exact", env="dmc/walker-run"))`: from settings to a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from entropyfloor.control.config import (
    ControlConfig,
    FastConfig,
    PPOConfig,
    TDMPC2Config,
    configure,
    read_config,
    required,
)
from entropyfloor.control.envs import registered
from entropyfloor.control.model_based import ModelBasedTrainer
from entropyfloor.control.off_policy import OffPolicyTrainer
from entropyfloor.control.on_device import DeviceTrainer
from entropyfloor.control.on_policy import OnPolicyTrainer
from entropyfloor.control.parallel import ParallelTrainer
from entropyfloor.control.trainer import Trainer
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.processes import cores
from entropyfloor.runs.resume import begin, check_changeable, each_seed, is_begun, with_seeds

__all__ = ["ControlConfig", "build", "configure", "resume", "train", "train_seeds"]


def train(config: ControlConfig) -> Path:
    """Train an agent from the start.

    Returns:
        The run directory.

    Raises:
        ValueError: Settings that do not go together, or a directory that holds a run already.
    """
    return _start([config.resolved()])[0]


def resume(path: Path, **changes: Any) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Args:
        path: A run directory.
        changes: Settings that do not change results, such as `threads`, with values for this process.

    Returns:
        The run directory.

    Raises:
        ValueError: No run, a checkpoint that is damaged or of other settings, or a change of another setting.
    """
    return _resume([path], **changes)[0]


def train_seeds(config: ControlConfig, seeds: Sequence[int]) -> list[Path]:
    """Train several seeds, and continue those that were begun before.

    On an accelerator they advance together in this process, and one that fails stops all of them: `resume`
    continues each of the others alone. On CPUs each is a process, one for each core. Either way a seed has the
    same numbers, up to rounding. A script that calls this needs `if __name__ == "__main__":`.

    Args:
        config: Settings of all seeds; `out` is the directory above theirs, by default runs/<env>/<agent>.
        seeds: Different seeds, at least one.

    Returns:
        The run directories, `<out>/seed-<seed>`.

    Raises:
        ValueError: The same seed twice, or a directory holds a run with other settings.
        RuntimeError: Some of the runs failed; the others are finished.
    """
    configs = with_seeds(config, seeds)
    if jax.default_backend() != "cpu":
        return _together(list(configs.values()))
    start = partial(_train_registered, registered.describe(config.env))
    return each_seed(configs, start, resume, workers=max(1, cores() // max(1, config.threads)))


def build(configs: Sequence[ControlConfig]) -> Trainer[Any, Any]:
    """The trainer of one or more resolved configs that differ in nothing but `seed` and `out`."""
    kinds: Any = {PPOConfig: OnPolicyTrainer, FastConfig: ParallelTrainer, TDMPC2Config: ModelBasedTrainer}
    kind = kinds.get(type(config := configs[0]), OffPolicyTrainer)
    if isinstance(config, FastConfig) and config.on_device:
        kind = DeviceTrainer
    trainer: Trainer[Any, Any] = kind(configs)
    return trainer


def _train_registered(described: str | None, config: ControlConfig) -> Path:
    """Train in a process of its own, which registers the environment as the parent's program did."""
    if described is not None:
        registered.register(config.env, described)
    return train(config)


def _start(configs: Sequence[ControlConfig]) -> list[Path]:
    trainer = build(configs)  # before the directory: what cannot be built should leave nothing behind
    described = registered.describe(configs[0].env)
    names: Any = {"domain": "control", "names": 2, "registered": described}
    trainer.fit([begin(config, together=len(configs), **names) for config in configs])
    return [Path(required(config.out)) for config in configs]


def _resume(paths: Sequence[Path], **changes: Any) -> list[Path]:
    runs = [Run.open(path) for path in paths]
    for run in runs:
        registered.register_again(run)
    configs = [read_config(run.config) for run in runs]
    check_changeable(type(configs[0]), changes)
    trainer = build([replace(config, **changes) for config in configs])
    step = _common_step(runs)
    checkpoints = [run.resume(step) for run in runs]
    if saved := [checkpoint for checkpoint in checkpoints if checkpoint is not None]:
        trainer.restore(saved)
    del checkpoints, saved  # their replays are copied
    trainer.fit(runs)
    return list(paths)


def _common_step(runs: Sequence[Run]) -> int:
    """The last step at which all seeds have a checkpoint; 0 if a kill came while they saved their first ones.

    Raises:
        ValueError: There is none.
    """
    steps = [[int(path.name) for path in run.checkpoints()] for run in runs]
    if common := set.intersection(*map(set, steps)):
        return max(common)
    if all(steps) or max(map(len, steps)) > 1:
        last = [each[-1] if each else 0 for each in steps]
        raise ValueError(f"the seeds have no checkpoint in common, their last steps are {last}: resume each alone")
    return 0


def _together(configs: Sequence[ControlConfig]) -> list[Path]:
    """Train all seeds in one process."""
    paths = [Path(required(config.out)) for config in configs]
    begun = [path for path in paths if is_begun(path)]
    if not begun:
        return _start(configs)
    if len(begun) < len(paths):
        raise ValueError(f"{begun[0]} was begun and others were not: give only seeds that were begun together")
    if open_ := [path for path in paths if read_run(path).status.get("state") != "finished"]:
        _resume(open_)
    return paths
