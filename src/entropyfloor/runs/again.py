"""Runs that are asked for again: gone on with if the settings are the same, refused if they are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.runs.record import CONFIG, read_config, read_run


def is_begun(path: Path) -> bool:
    """Whether there is a run in `path`."""
    return (path / CONFIG).exists()


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to take the run in `path`, if there is one, for a run with other settings.

    Args:
        path: A run directory, or nothing yet.
        settings: What is asked for; None stands for a setting that is not there, `out` is no setting.

    Raises:
        ValueError: A setting differs; all that do are named, before and now.
    """
    if not is_begun(path):
        return
    before = read_config(path)
    if other := [
        f"{name}={before.get(name)} (now {now})"
        for name, now in settings.items()
        if name != "out" and before.get(name) != now
    ]:
        raise ValueError(f"{path} was begun with {', '.join(other)}: give the same settings, or another --out")


def carry_on(path: Path, begin: Callable[[], object], resume: Callable[[Path], object]) -> None:
    """Begin the run in `path`, go on with it, or find it finished."""
    if not is_begun(path):
        begin()
    elif read_run(path).status.get("state") != "finished":
        resume(path)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse none, or one twice.

    Raises:
        ValueError: So it is.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds={list(seeds)} must be different ones, at least one")
