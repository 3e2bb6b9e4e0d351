"""A recipe: one experiment of the paper as a file, and the runs that it stands for at a scale.

    title, source           what it is, and where the paper has it
    domain                  which room: control, vision, language
    does                    train, if nothing is said, or evaluate: scores of models that somebody has trained
    [settings]              of every run
    [scales.<scale>]        paper, gpu, cpu: seeds, the arms to run (all, if none are named), `devices` of a run
                            (one, if nothing is said), other settings
    [arms.<arm>]            what is compared: settings in which the arms differ; `like` names an arm to start from
    [published.<arm>]       what the paper reports, word for word

An arm's settings go before its scale's, and these before the common ones. A list of environments stands for the
same runs in each of them. A recipe chooses what is trained, never where files are written.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from entropyfloor.runs import files as run_files
from entropyfloor.runs.settings import SEED_RANGE, Range

Settings = Mapping[str, Any]
DOMAINS = ("control", "vision", "language")
DEEDS = ("train", "evaluate")
SCALES = ("paper", "gpu", "cpu")
FOLLOW = ("seed", "seeds", "out", "resume", "recipe")
"""What follows from the plan of a recipe."""
WRITE = ("download", "warm_starts")
"""Settings that say where files are written, beside the runs: those of this package may, other files may not."""
DEVICES = Range(1, 1024, "between 1 and 1024")
LONGEST_NAME = 200
"""Bytes of a directory's name; file systems have room for 255."""


@dataclass(frozen=True)
class Planned:
    """A run that a recipe stands for."""

    arm: str
    seed: int
    out: Path
    domain: str
    settings: dict[str, Any] = field(repr=False)
    devices: int = 1
    does: str = "train"
    words: frozenset[str] = frozenset()
    """Settings whose True or False the command line takes as a word, as they may also be None."""

    @property
    def record(self) -> dict[str, Any]:
        """What `config.toml` has of it."""
        return {**self.settings, "seed": self.seed, "domain": self.domain}

    @property
    def launcher(self) -> list[str]:
        """Modules that Python runs before the arguments: with several devices, a process on each."""
        if self.devices == 1:
            return ["entropyfloor.cli"]
        return ["accelerate.commands.launch", f"--num_processes={self.devices}", "--module", "entropyfloor.cli"]

    @property
    def command(self) -> list[str]:
        """Arguments of `entropyfloor` that begin it."""
        words = [self.does, self.domain, "--seed", str(self.seed), "--out", str(self.out)]
        for name, value in self.settings.items():
            option = name.replace("_", "-")
            if isinstance(value, bool) and name not in self.words:
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words.append(f"--{option}={value}")
        return words


@dataclass(frozen=True)
class Recipe:
    """An experiment of the paper."""

    name: str
    title: str
    source: str
    domain: str
    settings: Settings
    scales: Mapping[str, Settings]
    arms: Mapping[str, Settings]
    published: Mapping[str, Settings] = field(default_factory=dict)
    does: str = "train"

    def __post_init__(self) -> None:
        where = f"recipe {self.name}"
        for key in ("title", "source", "domain", "does"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{where}: {key}={getattr(self, key)!r} must be text")
        _check_name(f"{where}: does", self.does, DEEDS)
        _check_name(f"{where}: domain", self.domain, DOMAINS)
        if self.does == "evaluate" and self.domain != "language":
            raise ValueError(f"{where}: only language models are evaluated by a recipe, not {self.domain}")
        _check_settings(f"{where}: [settings]", self.settings)
        arms = list(_tables(where, "arms", self.arms))
        for scale, content in _tables(where, "scales", self.scales):
            _check_name(f"{where}: scale", scale, SCALES)
            self._check_scale(f"{where}: [scales.{scale}]", content)
        for arm, content in arms:
            _check_directory(f"{where}: arm", arm)
            self._check_arm(f"{where}: [arms.{arm}]", content)
        list(_tables(where, "published", self.published))

    def _check_scale(self, where: str, content: Settings) -> None:
        if not content.get("seeds"):
            raise ValueError(f"{where} names no seeds")
        _check_seeds(f"{where}: seeds", content["seeds"])
        arms = content.get("arms", list(self.arms))
        if not isinstance(arms, list) or not arms:
            raise ValueError(f"{where}: arms={arms!r} must be a list of names, at least one")
        for arm in arms:
            _check_name(f"{where}: arm", arm, tuple(self.arms))
        if self.does == "train" and not _is_whole(content.get("devices", 1), DEVICES):
            raise ValueError(f"{where}: devices={content['devices']!r} must be a whole number {DEVICES.words}")
        _check_settings(where, {k: v for k, v in content.items() if k not in ("seeds", "arms")})

    def _check_arm(self, where: str, content: Settings) -> None:
        if "like" in content:
            _check_name(f"{where}: like", content["like"], tuple(self.arms))
            if "like" in self.arms[content["like"]]:
                raise ValueError(
                    f"{where}: like={content['like']!r} starts from another arm itself: name that one"
                )
        _check_settings(where, {k: v for k, v in content.items() if k != "like"})

    def runs(
        self,
        scale: str,
        out: Path,
        *,
        arms: Sequence[str] = (),
        seeds: Sequence[int] = (),
        settings: Settings | None = None,
    ) -> list[Planned]:
        """The runs at a scale, seed by seed, so that an early end leaves whole comparisons.

        Args:
            scale: paper, gpu or cpu, if the recipe has it.
            out: Where they go: `<out>/<arm>/seed-<seed>`, behind the environment where there are several.
            arms: Only these.
            seeds: Instead of the recipe's.
            settings: Instead of the recipe's, such as where the data is.

        Raises:
            ValueError: A scale or an arm that the recipe does not have, a setting that is for it to choose, or the
                same run twice.
        """
        _check_settings("--set", settings or {})
        _check_seeds("seeds", list(seeds))
        _check_name(f"{self.name}: scale", scale, tuple(self.scales))
        own = dict(self.scales[scale])
        own_seeds, known = own.pop("seeds"), own.pop("arms", list(self.arms))
        devices = own.pop("devices", 1) if self.does == "train" else 1  # an evaluation has them among its settings
        for arm in arms:
            _check_name(f"{self.name}: arm at scale {scale}", arm, known)
        plan = []
        for seed in seeds or own_seeds:
            for arm in arms or known:
                found = {**self.settings, **own, **self._arm(arm), **(settings or {})}
                envs = found.get("env")
                for env in envs if isinstance(envs, list) else [None]:
                    where = f"{self.name}: env"
                    place = out if env is None else out / _check_directory(where, env.replace("/", "-"))
                    one = found if env is None else {**found, "env": env}
                    if self.does == "train":
                        one = {**one, "recipe": f"{self.name} {scale} {arm}"}
                    path = place / arm / f"seed-{seed}"
                    plan.append(Planned(arm, seed, path, self.domain, one, devices, self.does))
        if twice := [path for path, times in Counter(run.out for run in plan).items() if times > 1]:
            raise ValueError(f"{self.name}: several runs would go to {twice[0]}: name each arm and env once")
        return plan

    def _arm(self, name: str) -> dict[str, Any]:
        found = dict(self.arms[name])
        return {**self.arms[found.pop("like")], **found} if "like" in found else found


def names() -> list[str]:
    """Every recipe, as `<domain>/<name>`."""
    return sorted(name for name, _ in _found())


def load(name: str) -> Recipe:
    """The recipe `<domain>/<name>`, or that in a file of one's own.

    Raises:
        ValueError: There is none, or it is not one; the message says what is wrong.
    """
    text = _text(name)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"recipe {name}: {error}") from None
    try:
        recipe = Recipe(name=name, **content)
    except TypeError as error:  # a key too many or too few
        raise ValueError(f"recipe {name}: {error}") from None
    if name.endswith(".toml"):
        _check_writes_nowhere(recipe)
    return recipe


def _text(name: str) -> str:
    if not name.endswith(".toml"):
        known = dict(_found())
        _check_name("recipe", name, sorted(known))
        return known[name].read_text()
    try:
        return run_files.read(Path(name)).decode()
    except (OSError, ValueError) as error:
        raise ValueError(f"recipe {name} cannot be read: {error}") from None


def setting(text: str) -> tuple[str, Any]:
    """`steps=60` as a name and a value, which is what TOML takes it for, else the text itself.

    Raises:
        ValueError: There is no `=` in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text} must be name=value")
    try:
        found = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return name, value
    return name, found["value"] if set(found) == {"value"} else value


def _found() -> Iterator[tuple[str, Traversable]]:
    for domain in files("entropyfloor.recipes").iterdir():
        if domain.is_dir():
            for file in domain.iterdir():
                if file.name.endswith(".toml"):
                    yield f"{domain.name}/{file.name.removesuffix('.toml')}", file


def _check_name(what: str, name: object, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{what} {name!r} must be one of {', '.join(known)}")


def _tables(where: str, key: str, value: object) -> Iterator[tuple[str, Settings]]:
    """The tables in a table."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key}={value!r} must be a table, [{key}.<name>]")
    for name, content in value.items():
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: {key}.{name}={content!r} must be a table, [{key}.{name}]")
        yield name, content


def _check_settings(where: str, settings: object) -> None:
    """Plain values only, and nothing that says where a run goes."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}={settings!r} must be a table")
    for name, value in settings.items():
        if name in FOLLOW:
            raise ValueError(f"{where}: {name} follows from the recipe and cannot be set: see --seeds or --out")
        if name == "env" and isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            continue
        if not isinstance(value, str | int | float):
            kinds = "text, a number, true or false" + (", or a list of names" if name == "env" else "")
            raise ValueError(f"{where}: {name}={value!r} must be {kinds}")


def _check_seeds(where: str, seeds: object) -> None:
    if not isinstance(seeds, list) or not all(_is_whole(seed, SEED_RANGE) for seed in seeds):
        raise ValueError(f"{where}={seeds!r} must be a list of whole numbers {SEED_RANGE.words}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{where}={seeds!r} must be different ones")


def _is_whole(value: object, limits: Range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in limits


def _check_directory(what: str, name: str) -> str:
    """Refuse a name that would lead elsewhere than into one directory."""
    if name.startswith(".") or set(name) & set("/\\") or not name.isprintable() or not name.strip():
        raise ValueError(f"{what} {name!r} must be the name of a directory: no slashes, no dot in front")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{what} {name[:20]!r}… must have at most {LONGEST_NAME} bytes, it has {len(name.encode())}"
        )
    return name


def _check_writes_nowhere(recipe: Recipe) -> None:
    """Refuse a recipe of somebody's own that writes elsewhere than into the runs."""
    for where, settings in {
        "[settings]": recipe.settings,
        **{f"[scales.{name}]": content for name, content in recipe.scales.items()},
        **{f"[arms.{name}]": content for name, content in recipe.arms.items()},
    }.items():
        if found := [name for name in WRITE if settings.get(name, False) is not False]:
            raise ValueError(
                f"recipe {recipe.name}: {where}: {found[0]} says where files are written: give it with --set, "
                f"not in a recipe of your own"
            )
