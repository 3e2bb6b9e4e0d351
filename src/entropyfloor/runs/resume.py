"""Runs that are asked for again: gone on with if the settings are the same, refused if they are not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from entropyfloor.runs.processes import each_in_its_process
from entropyfloor.runs.run_reader import CONFIG, read_config, read_run

PLACES = ("data_dir", "ood_dir", "data", "test_data")
"""Settings that say where files are, which a run that is resumed may be told anew."""


class Config(Protocol):
    """Settings of a run: a dataclass with these and others."""

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def out(self) -> str | None: ...  # noqa: D102

    def resolved(self) -> Self:
        """The same with a directory, and nothing left open that can be said now."""


C = TypeVar("C", bound=Config)


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
    # A switch that the version before did not know was off.
    other = {
        name: now
        for name, now in settings.items()
        if name != "out" and before.get(name, False if now is False else None) != now
    }
    if not other:
        return
    way = "give the same settings, or another --out"
    if moved := " ".join(f"--{name.replace('_', '-')} {other[name]}" for name in PLACES if name in other):
        way += f"; if only files were moved, go on with --resume {path} {moved}"
    told = ", ".join(f"{name}={before.get(name)} (now {now})" for name, now in other.items())
    raise ValueError(f"{path} was begun with {told}: {way}")


def carry_on(path: Path, begin: Callable[[], object], resume: Callable[[Path], object]) -> None:
    """Begin the run in `path`, go on with it, or find it finished."""
    if not is_begun(path):
        begin()
    elif read_run(path).status.get("state") != "finished":
        resume(path)


def each_seed(
    found: Mapping[Path, C], begin: Callable[[C], object], resume: Callable[[Path], object], workers: int
) -> list[Path]:
    """Begin the runs of `with_seeds`, or go on with them, each in a process of its own.

    Args:
        found: Their configs by their directories.
        begin: From a config to a run; like `resume` a function of a module, as processes need it.
        resume: From its directory on.
        workers: Processes at a time.

    Returns:
        The run directories.

    Raises:
        RuntimeError: Some of the runs failed; the others are finished.
    """
    configs = list(found.values())
    one = partial(_one_seed, begin=begin, resume=resume)
    each_in_its_process(one, configs, [f"seed {config.seed}" for config in configs], workers)
    return list(found)


def _one_seed(config: Config, begin: Callable[[Any], object], resume: Callable[[Path], object]) -> None:
    carry_on(Path(str(config.out)), lambda: begin(config), resume)


def with_seeds(config: C, seeds: Sequence[int], derived: Collection[str] = ()) -> dict[Path, C]:
    """One config a seed, by its directory, `<out>/seed-<seed>`; refuse a run that is there with other settings.

    Args:
        config: Settings of all of them; `out` is the directory of all of them, by default the one above its own.
        seeds: Different ones.
        derived: Settings that, where they are None, follow from what only the run itself looks at.

    Raises:
        ValueError: No seed, one twice, or a run in the way that was begun with other settings.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds={list(seeds)} must be different ones, at least one")
    home = Path(config.out) if config.out else Path(str(config.resolved().out)).parent
    each = [replace(config, seed=seed, out=str(home / f"seed-{seed}")).resolved() for seed in seeds]  # type: ignore[type-var]
    found = {Path(str(config.out)): config for config in each}
    for path, config in found.items():
        asked = {k: v for k, v in asdict(config).items() if k not in derived or v is not None}  # type: ignore[call-overload]
        check_same(path, asked)
    return found


def config_of(kind: type[C], settings: Mapping[str, Any], domain: str, what: str, names: Collection[str]) -> C:
    """The config of a run that was begun with `settings`.

    Args:
        kind: Its class, a dataclass.
        settings: What `config.toml` has.
        domain: What it must be a run of.
        what: The same in words.
        names: Settings that only say how a report calls the run.

    Raises:
        ValueError: It is a run of something else, or of another version, which has other settings.
    """
    if settings.get("domain") != domain:
        raise ValueError(f"a run of domain={settings.get('domain')!r} is no run of {what}")
    known = {name: value for name, value in settings.items() if name not in names}
    if unknown := sorted(set(known) - {field.name for field in fields(kind)}):  # type: ignore[arg-type]
        raise ValueError(f"this version does not know the settings {', '.join(unknown)} of the run")
    return kind(**known)
