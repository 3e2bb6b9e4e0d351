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
same runs in each of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]
DOMAINS = ("control", "vision", "language")
DEEDS = ("train", "evaluate")
SCALES = ("paper", "gpu", "cpu")


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
            if isinstance(value, bool):
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
        _check_name(f"{self.name}: does", self.does, DEEDS)
        if self.does == "evaluate" and self.domain != "language":
            raise ValueError(f"{self.name}: only language models are evaluated by a recipe, not {self.domain}")
        _check_name(f"{self.name}: domain", self.domain, DOMAINS)
        for scale, content in self.scales.items():
            _check_name(f"{self.name}: scale", scale, SCALES)
            if not content.get("seeds"):
                raise ValueError(f"{self.name}: [scales.{scale}] names no seeds")
            for arm in content.get("arms", ()):
                _check_name(f"{self.name}: arm of [scales.{scale}]", arm, tuple(self.arms))
        for arm, content in self.arms.items():
            if "like" in content:
                _check_name(f"{self.name}: [arms.{arm}] like", content["like"], tuple(self.arms))

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
            ValueError: A scale or an arm that the recipe does not have, or a setting that is for it to choose.
        """
        for name in ("seed", "out", "recipe"):
            if name in (settings or {}):
                raise ValueError(f"{name} follows from the recipe and cannot be set: see --{name}s or --out")
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
                    place = out if env is None else out / env.replace("/", "-")
                    one = found if env is None else {**found, "env": env}
                    if self.does == "train":
                        one = {**one, "recipe": f"{self.name} {scale} {arm}"}
                    path = place / arm / f"seed-{seed}"
                    plan.append(Planned(arm, seed, path, self.domain, one, devices, self.does))
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
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text()
        except OSError as error:
            raise ValueError(f"recipe {name} cannot be read: {error}") from None
    else:
        known = dict(_found())
        _check_name("recipe", name, sorted(known))
        text = known[name].read_text()
    try:
        return Recipe(name=name, **tomllib.loads(text))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ValueError(f"recipe {name}: {error}") from None


def setting(text: str) -> tuple[str, Any]:
    """`steps=60` as a name and a value, which is what TOML takes it for, else the text itself.

    Raises:
        ValueError: There is no `=` in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text} must be name=value")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _found() -> Iterator[tuple[str, Traversable]]:
    for domain in files("entropyfloor.recipes").iterdir():
        if domain.is_dir():
            for file in domain.iterdir():
                if file.name.endswith(".toml"):
                    yield f"{domain.name}/{file.name.removesuffix('.toml')}", file


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{what} {name!r} must be one of {', '.join(known)}")
