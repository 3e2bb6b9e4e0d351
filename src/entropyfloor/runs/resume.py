"""Beginning and resuming runs. The same command continues a run of the same settings and refuses one of others."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from entropyfloor.runs import trackers
from entropyfloor.runs.directory import Run
from entropyfloor.runs.processes import each_in_its_process
from entropyfloor.runs.renamed import current
from entropyfloor.runs.run_reader import CONFIG, read_config, read_run
from entropyfloor.runs.settings import changeable, not_results
from entropyfloor.runs.trackers import Track


class Config(Protocol):
    """Settings of a run: a dataclass with these and others."""

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def out(self) -> str | None: ...  # noqa: D102

    @property
    def track(self) -> Track | None: ...  # noqa: D102

    def resolved(self) -> Self:
        """The same settings with a directory, and with defaults that follow from other settings filled in."""


C = TypeVar("C", bound=Config)


def is_begun(path: Path) -> bool:
    """Whether there is a run in `path`."""
    return (path / CONFIG).exists()


def begin(config: Config, *, together: int = 1, **more: Any) -> Run:
    """Begin the run of a resolved config in its directory.

    Args:
        config: Settings, a dataclass.
        together: Number of runs that train together in this process, which share its time.
        more: Entries of `config.toml` beside the settings, such as `domain`, or instead of them; None leaves one
            out.

    Raises:
        ImportError: The tracker is not installed.
        ValueError: The directory holds a run already, or cannot hold one.
    """
    trackers.check(config.track)
    settings = {**more, **asdict(config), **more}  # type: ignore[call-overload]
    return Run.create(Path(str(config.out)), settings, not_results=not_results(type(config)), together=together)


def check_same(path: Path, settings: Mapping[str, Any], may_change: Collection[str] = ()) -> None:
    """Refuse to take the run in `path`, if there is one, for a run with other settings.

    Args:
        path: A run directory, or nothing yet.
        settings: Settings of the run that is asked for; None stands for a missing one, and `out` may differ.
        may_change: Names of the settings that `--resume` may change.

    Raises:
        ValueError: A setting differs; all that do are named, before and now.
    """
    if not is_begun(path):
        return
    before = current(read_config(path))
    # A switch that an earlier version did not have counts as off.
    other = {
        name: now
        for name, now in settings.items()
        if name != "out" and before.get(name, False if now is False else None) != now
    }
    if not other:
        return
    hint = "give the same settings, or another --out"
    if set(other) <= set(may_change):
        options = [word for name, value in other.items() for word in _option(name, value)]
        changes = shlex.join(["--resume", str(path), *options])
        hint += f"; or continue it with {changes}"
    differences = ", ".join(f"{name}={before.get(name)} (now {now})" for name, now in other.items())
    raise ValueError(f"{path} was begun with {differences}: {hint}")


def _option(name: str, value: Any) -> list[str]:
    """A setting as words of the command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def check_changeable(kind: Any, names: Collection[str]) -> None:
    """Refuse to resume a run with other values of these settings.

    Raises:
        ValueError: A setting that would change results, or that `kind`, the class of the settings, does not have.
    """
    if fixed := sorted(set(names) - set(changeable(kind))):
        raise ValueError(f"a resumed run keeps its {', '.join(fixed)}: begin another run")


def each_seed(
    configs: Mapping[Path, C], train: Callable[[C], object], resume: Callable[[Path], object], workers: int
) -> list[Path]:
    """Train the runs of `with_seeds`, or resume them, each in a process of its own.

    Args:
        configs: Configs by their run directories.
        train: Trains a config from the start; like `resume` a function of a module, as processes need it.
        resume: Continues the run in a directory.
        workers: Processes at a time.

    Returns:
        The run directories.

    Raises:
        RuntimeError: Some of the runs failed; the others are finished.
    """
    one_seed = partial(_train_or_resume, train=train, resume=resume)
    names = [f"seed {config.seed}" for config in configs.values()]
    each_in_its_process(one_seed, list(configs.values()), names, workers)
    return list(configs)


def _train_or_resume(config: Config, train: Callable[[Any], object], resume: Callable[[Path], object]) -> None:
    path = Path(str(config.out))
    if not is_begun(path):
        train(config)
    elif read_run(path).status.get("state") != "finished":
        resume(path)


def with_seeds(config: C, seeds: Sequence[int]) -> dict[Path, C]:
    """One config a seed, by its directory, `<out>/seed-<seed>`.

    Args:
        config: Settings of all seeds; `out` is the directory above theirs, by default the one above its own.
        seeds: Different seeds, at least one.

    Raises:
        ValueError: No seed, the same seed twice, or a directory holds a run with other settings.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds={list(seeds)} must be different ones, at least one")
    home = Path(config.out) if config.out else Path(str(config.resolved().out)).parent
    each = [replace(config, seed=seed, out=str(home / f"seed-{seed}")).resolved() for seed in seeds]  # type: ignore[type-var]
    for config in each:
        check_same(Path(str(config.out)), asdict(config), changeable(type(config)))  # type: ignore[call-overload]
    return {Path(str(config.out)): config for config in each}


def config_of(kind: type[C], settings: Mapping[str, Any], domain: str, what: str, names: Collection[str]) -> C:
    """The config of a run of any version, from its `config.toml`.

    Args:
        kind: Class of the config, a dataclass.
        settings: Entries of `config.toml`.
        domain: Domain that the run must have.
        what: The domain in words, for the message.
        names: Entries that are no settings: they name the run in a report.

    Raises:
        ValueError: The run has another domain, or settings that this version does not have.
    """
    if settings.get("domain") != domain:
        raise ValueError(f"a run of domain={settings.get('domain')!r} is no run of {what}")
    known = {name: value for name, value in current(settings).items() if name not in names}
    if unknown := sorted(set(known) - {field.name for field in fields(kind)}):  # type: ignore[arg-type]
        raise ValueError(f"this version does not know the settings {', '.join(unknown)} of the run")
    return kind(**known)
