"""Recipes: a file describes one experiment of the paper, and the runs that it has at each scale.

    title, source           title of the experiment, and its place in the paper
    domain                  control, vision or language
    mode                    train (default), or evaluate: scores of models that others have trained
    [settings]              settings of every run
    [scales.<scale>]        paper, gpu, cpu: seeds, `arms` to run (by default all), `devices` of a run (by default
                            one), other settings
    [arms.<arm>]            what is compared: settings in which the arms differ; `like` names an arm to extend
    [envs."<env>"]          settings in one environment of several
    [published.<arm>]       what the paper reports, word for word

An environment's settings override those of an arm, these its scale's, and these the common ones. A list of
environments stands for the same runs in each of them. A recipe chooses what is trained, never where files are
written.
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
MODES = ("train", "evaluate")
SCALES = ("paper", "gpu", "cpu")
RESUME = "--resume"
DERIVED = ("seed", "seeds", "out", "resume", "recipe")
"""Settings that follow from the recipe and cannot be set."""
WRITING = ("download", "warm_starts")
"""Settings that write files beside the runs: recipes of this package may have them, other files may not."""
DEVICES = Range(1, 1024, "between 1 and 1024")
LONGEST_NAME = 200
"""Largest number of bytes in a directory's name; file systems allow 255."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a recipe."""

    arm: str
    seed: int
    out: Path
    domain: str
    settings: dict[str, Any] = field(repr=False)
    devices: int = 1
    mode: str = "train"
    accelerators: int = 0
    """Number of accelerators that it wants: one for each device, none at the scale of a CPU."""
    three_valued: frozenset[str] = frozenset()
    """Names of settings that are True, False or None: their option takes the value as a word."""
    known: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of the settings that there are."""

    @property
    def record(self) -> dict[str, Any]:
        """Its entries of `config.toml`."""
        return {**self.settings, "seed": self.seed, "domain": self.domain}

    @property
    def cpus(self) -> int:
        """Number of cores that it wants."""
        return self.devices * max(1, int(self.settings.get("threads", 1)))

    @property
    def launcher(self) -> list[str]:
        """Arguments of `python -m` before those of `command`: with several devices, a process on each."""
        if self.devices == 1:
            return ["entropyfloor.cli"]
        return ["accelerate.commands.launch", f"--num_processes={self.devices}", "--module", "entropyfloor.cli"]

    @property
    def words(self) -> tuple[str, str]:
        """Name of the command: `train <domain>` or `evaluate benchmark`."""
        return self.mode, self.domain if self.mode == "train" else "benchmark"

    @property
    def command(self) -> list[str]:
        """Arguments of `entropyfloor` that start the run."""
        return [*self.words, "--seed", str(self.seed), "--out", str(self.out), *self.options.values()]

    @property
    def resume(self) -> list[str]:
        """Arguments that continue it; an evaluation continues by `command`."""
        return [*self.words, RESUME, str(self.out)] if self.mode == "train" else self.command

    @property
    def options(self) -> dict[str, str]:
        """The option of each setting, such as `--steps=60`."""
        return {name: self._option(name, value) for name, value in self.settings.items()}

    def _option(self, name: str, value: Any) -> str:
        option = name.replace("_", "-")
        if isinstance(value, bool) and name not in self.three_valued:
            return f"--{option}" if value else f"--no-{option}"
        return f"--{option}={value}"


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
    envs: Mapping[str, Settings] = field(default_factory=dict)
    mode: str = "train"

    def __post_init__(self) -> None:
        where = f"recipe {self.name}"
        for key in ("title", "source", "domain", "mode"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{where}: {key}={getattr(self, key)!r} must be text")
        _check_name(f"{where}: mode", self.mode, MODES)
        _check_name(f"{where}: domain", self.domain, DOMAINS)
        if self.mode == "evaluate" and self.domain != "language":
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
        tables = self.settings, *self.scales.values(), *self.arms.values()
        known = {name for table in tables for name in _environments(table)}
        for env, content in _tables(where, "envs", self.envs):
            _check_name(f"{where}: [envs]", env, sorted(known))
            _check_settings(f"{where}: [envs.{env}]", content)
            if "env" in content:
                raise ValueError(f"{where}: [envs.{env}]: env={content['env']!r} contradicts it: leave env out")

    def _check_scale(self, where: str, content: Settings) -> None:
        if not content.get("seeds"):
            raise ValueError(f"{where} names no seeds")
        _check_seeds(f"{where}: seeds", content["seeds"])
        arms = content.get("arms", list(self.arms))
        if not isinstance(arms, list) or not arms:
            raise ValueError(f"{where}: arms={arms!r} must be a list of names, at least one")
        for arm in arms:
            _check_name(f"{where}: arm", arm, tuple(self.arms))
        if self.mode == "train" and not _is_whole(content.get("devices", 1), DEVICES):
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
    ) -> list[PlannedRun]:
        """The runs at a scale, seed by seed, so that an early end leaves whole comparisons.

        Args:
            scale: One of the recipe's scales: paper, gpu or cpu.
            out: Directory of all runs: `<out>/<arm>/seed-<seed>`, or `<out>/<env>/<arm>/seed-<seed>` where the
                recipe lists environments.
            arms: Arms to run; by default those of the scale.
            seeds: Seeds instead of the recipe's.
            settings: Settings that override the recipe's, such as the directory of the data.

        Raises:
            ValueError: A scale or an arm that the recipe does not have, a setting that follows from the recipe, or
                the same run twice.
        """
        _check_settings("--set", settings or {})
        _check_seeds("seeds", list(seeds))
        _check_name(f"{self.name}: scale", scale, tuple(self.scales))
        own = dict(self.scales[scale])
        own_seeds, known = own.pop("seeds"), self.arms_of(scale)
        own.pop("arms", None)
        devices = own.pop("devices", 1) if self.mode == "train" else 1  # an evaluation has them among its settings
        for arm in arms:
            _check_name(f"{self.name}: arm at scale {scale}", arm, known)
        plan = []
        for seed in seeds or own_seeds:
            for arm in arms or known:
                merged = {**self.settings, **own, **self._arm(arm), **(settings or {})}
                several = isinstance(merged.get("env"), list)
                for env in _environments(merged) or [""]:
                    where = f"{self.name}: env"
                    home = out / _check_directory(where, env.replace("/", "-")) if several else out
                    chosen = {**merged, **self.envs.get(env, {}), **(settings or {})}
                    if several:
                        chosen["env"] = env
                    if self.mode == "train":
                        chosen = {**chosen, "recipe": f"{self.name} {scale} {arm}"}
                    path = home / arm / f"seed-{seed}"
                    wanted = devices if self.mode == "train" else chosen.get("devices", 1)
                    accelerators = 0 if scale == "cpu" else wanted
                    run = PlannedRun(arm, seed, path, self.domain, chosen, devices, self.mode, accelerators)
                    plan.append(run)
        if twice := [path for path, times in Counter(run.out for run in plan).items() if times > 1]:
            raise ValueError(f"{self.name}: several runs would go to {twice[0]}: name each arm and env once")
        return plan

    def arms_of(self, scale: str) -> list[str]:
        """Names of the arms that a scale runs."""
        return list(self.scales[scale].get("arms", self.arms))

    def _arm(self, name: str) -> dict[str, Any]:
        own = dict(self.arms[name])
        return {**self.arms[own.pop("like")], **own} if "like" in own else own


def names() -> list[str]:
    """Names of the recipes of this package, `<domain>/<name>`."""
    return sorted(name for name, _ in _package_recipes())


def listing() -> str:
    """The recipes of this package as text, for a terminal."""
    recipes = map(load, names())
    return "\n".join(f"{each.name:<32}{each.title}; {', '.join(each.scales)} ({each.source})" for each in recipes)


def load(name: str) -> Recipe:
    """Read the recipe `<domain>/<name>`, or a file whose name ends in `.toml`.

    Raises:
        ValueError: There is no such recipe, or a key of it is missing, unknown or wrong.
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
        known = dict(_package_recipes())
        _check_name("recipe", name, sorted(known))
        return known[name].read_text()
    try:
        return run_files.read(Path(name)).decode()
    except (OSError, ValueError) as error:
        raise ValueError(f"recipe {name} cannot be read: {error}") from None


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Settings from texts such as `steps=60`; a value that TOML cannot read is text.

    Raises:
        ValueError: There is no `=` in one, or two set the same.
    """
    read = [_setting(text) for text in texts]
    if twice := [name for name, times in Counter(name for name, _ in read).items() if times > 1]:
        raise ValueError(f"--set {twice[0]} was given twice: give one value")
    return dict(read)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text} must be name=value")
    try:
        read = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return name, value
    if set(read) != {"value"} or not isinstance(read["value"], bool | int | float | str | list):
        return name, value  # such as a date
    return name, read["value"]


def _package_recipes() -> Iterator[tuple[str, Traversable]]:
    for domain in files("entropyfloor.recipes").iterdir():
        if domain.is_dir():
            for file in domain.iterdir():
                if file.name.endswith(".toml"):
                    yield f"{domain.name}/{file.name.removesuffix('.toml')}", file


def _check_name(what: str, name: object, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{what} {name!r} must be one of {', '.join(known)}")


def _tables(where: str, key: str, value: object) -> Iterator[tuple[str, Settings]]:
    """Names and contents of the tables in a table.

    Raises:
        ValueError: One of them, or the outer one, is no table.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key}={value!r} must be a table, [{key}.<name>]")
    for name, content in value.items():
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: {key}.{name}={content!r} must be a table, [{key}.{name}]")
        yield name, content


def _check_settings(where: str, settings: object) -> None:
    """Refuse values that are not plain, and settings that follow from the recipe."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}={settings!r} must be a table")
    for name, value in settings.items():
        if name in DERIVED:
            raise ValueError(f"{where}: {name} follows from the recipe and cannot be set: see --seeds or --out")
        if name == "env" and isinstance(value, list) and value and all(isinstance(env, str) for env in value):
            continue
        if not isinstance(value, str | int | float):
            kinds = "text, a number, true or false" + (", or a list of names" if name == "env" else "")
            raise ValueError(f"{where}: {name}={value!r} must be {kinds}")


def _environments(settings: Settings) -> list[Any]:
    """The environments that settings name."""
    env = settings.get("env", [])
    return env if isinstance(env, list) else [env]


def _check_seeds(where: str, seeds: object) -> None:
    if not isinstance(seeds, list) or not all(_is_whole(seed, SEED_RANGE) for seed in seeds):
        raise ValueError(f"{where}={seeds!r} must be a list of whole numbers {SEED_RANGE.words}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{where}={seeds!r} must be different ones")


def _is_whole(value: object, limits: Range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in limits


def _check_directory(what: str, name: str) -> str:
    """Refuse a name that is not the name of one directory."""
    if name.startswith(".") or set(name) & set("/\\") or not name.isprintable() or not name.strip():
        raise ValueError(f"{what} {name!r} must be the name of a directory: no slashes, no dot in front")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{what} {name[:20]!r}… must have at most {LONGEST_NAME} bytes, it has {len(name.encode())}"
        )
    return name


def _check_writes_nowhere(recipe: Recipe) -> None:
    """Refuse a recipe that writes files beside its runs."""
    for where, settings in {
        "[settings]": recipe.settings,
        **{f"[scales.{name}]": content for name, content in recipe.scales.items()},
        **{f"[arms.{name}]": content for name, content in recipe.arms.items()},
        **{f"[envs.{name}]": content for name, content in recipe.envs.items()},
    }.items():
        if writing := [name for name in WRITING if settings.get(name, False) is not False]:
            raise ValueError(
                f"recipe {recipe.name}: {where}: {writing[0]} says where files are written: give it with --set, "
                f"not in a recipe of your own"
            )
