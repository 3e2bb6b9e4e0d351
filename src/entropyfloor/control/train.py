"""`train(configure("sac-era-exact", env="dmc/walker-run"))`: from settings to a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax

from entropyfloor.control.config import CONFIGS, ControlConfig, PPOConfig, configure, set_
from entropyfloor.control.envs import registered
from entropyfloor.control.off_policy import OffPolicyTrainer
from entropyfloor.control.on_policy import OnPolicyTrainer
from entropyfloor.control.trainer import Trainer
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.processes import cores
from entropyfloor.runs.resume import each_seed, is_begun, with_seeds

__all__ = ["ControlConfig", "build", "configure", "resume", "train", "train_seeds"]


def train(config: ControlConfig) -> Path:
    """Train an agent from the start.

    Returns:
        The run directory.

    Raises:
        ValueError: Settings that cannot be, or a directory that holds a run already.
    """
    return _start([config.resolved()])[0]


def resume(path: Path) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Returns:
        The run directory.

    Raises:
        ValueError: No run, or a checkpoint that is damaged or of other settings.
    """
    return _resume([path])[0]


def train_seeds(config: ControlConfig, seeds: Sequence[int]) -> list[Path]:
    """Train several seeds, and go on with those that were begun before.

    On an accelerator they advance together in this process, on CPUs each is a process, one for each core. Either
    way a seed has the same numbers, up to rounding. A script that calls this needs `if __name__ == "__main__":`.

    Args:
        config: Their settings; `out` is the directory of all of them, by default runs/<env>/<agent>.
        seeds: Different ones.

    Returns:
        The run directories, `<out>/seed-<seed>`.

    Raises:
        ValueError: The same seed twice, or a run in the way that was begun with other settings.
        RuntimeError: Some of the runs failed; the others are finished.
    """
    found = with_seeds(config, seeds)
    if jax.default_backend() != "cpu":
        return _together(list(found.values()))
    begin = partial(_train_registered, registered.describe(config.env))
    return each_seed(found, begin, resume, workers=max(1, cores() // max(1, config.threads)))


def build(configs: Sequence[ControlConfig]) -> Trainer[Any, Any]:
    """The trainer of one or more resolved configs that differ in nothing but `seed` and `out`."""
    kind: Any = OnPolicyTrainer if isinstance(configs[0], PPOConfig) else OffPolicyTrainer
    return kind(configs)


def read_config(settings: dict[str, Any]) -> ControlConfig:
    """The resolved config of a run that was begun with `settings`.

    Raises:
        ValueError: It is no run of a control agent, or of another version, which has other settings.
    """
    if settings.get("domain") != "control" or settings.get("agent") not in CONFIGS:
        found = f"domain={settings.get('domain')!r}, agent={settings.get('agent')!r}"
        raise ValueError(f"a run of {found} is no run of a control agent that this version knows")
    known = CONFIGS[settings["agent"]].__dataclass_fields__
    if unknown := sorted(set(settings) - {*known, "domain", "registered"}):
        raise ValueError(f"this version does not know the settings {', '.join(unknown)} of the run")
    if "registered" in settings:
        registered.again(str(settings.get("env")), settings["registered"])
    return configure(
        settings["agent"], **{k: v for k, v in settings.items() if k in known and k != "agent"}
    ).resolved()


def load_config(run: Run) -> ControlConfig:
    """The config of a run.

    Raises:
        ValueError: It is no run of a control agent, or names a module in its own directory.
    """
    registered.check_outside(run.path, run.config)
    return read_config(run.config)


def _train_registered(described: str | None, config: ControlConfig) -> Path:
    """Train in a process of its own, which registers the environment as the parent's program did."""
    if described is not None:
        registered.again(config.env, described)
    return train(config)


def _start(configs: Sequence[ControlConfig]) -> list[Path]:
    trainer = build(configs)  # before the directory: what cannot be built should leave nothing behind
    paths = [Path(set_(config.out)) for config in configs]
    kept = {"domain": "control", "registered": registered.describe(configs[0].env)}
    runs = [Run.create(path, {**kept, **asdict(c)}) for path, c in zip(paths, configs, strict=True)]
    trainer.fit(runs)
    return paths


def _resume(paths: Sequence[Path]) -> list[Path]:
    runs = [Run.open(path) for path in paths]
    trainer = build([load_config(run) for run in runs])
    checkpoints = [run.resume() for run in runs]
    if saved := [checkpoint for checkpoint in checkpoints if checkpoint is not None]:
        if len(saved) < len(runs):
            raise ValueError("some of the seeds have no checkpoint yet: resume each of them alone")
        trainer.restore(saved)
    del checkpoints, saved  # their replays are copied
    trainer.fit(runs)
    return list(paths)


def _together(configs: Sequence[ControlConfig]) -> list[Path]:
    """All seeds in one process."""
    paths = [Path(set_(config.out)) for config in configs]
    begun = [path for path in paths if is_begun(path)]
    if not begun:
        return _start(configs)
    if len(begun) < len(paths):
        raise ValueError(f"{begun[0]} was begun and others were not: give only seeds that were begun together")
    if open_ := [path for path in paths if read_run(path).status.get("state") != "finished"]:
        _resume(open_)
    return paths
