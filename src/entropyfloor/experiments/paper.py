"""The figures and tables of the paper: recipes that draw each of them, what it reports, and what ours measured.

`recipes/paper.toml` says all this but what our runs measured. That is in `recipes/measured.toml`, which
`examples/paper.py` writes from `results/`.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from entropyfloor.experiments import recipe
from entropyfloor.experiments.recipe import SCALES, PlannedRun, Recipe

FIGURES, TABLES = 26, 6
"""Numbers of the paper's figures and tables."""
LENGTHS = {"control": ("steps", "steps"), "vision": ("epochs", "epochs"), "language": ("steps", "rollouts")}
"""The setting that says how long a run is, and its unit."""


class Part(NamedTuple):
    """What a recipe gives to a figure or a table."""

    recipe: Recipe
    arms: Sequence[str]

    def runs(self, scale: str, out: Path) -> list[PlannedRun]:
        """Its runs at a scale; see `Recipe.runs`."""
        return self.recipe.runs(scale, out, arms=self.arms)


@dataclass(frozen=True)
class Place:
    """A figure, a panel of one, or a table of the paper; `recipes/paper.toml` describes the fields."""

    name: str
    title: str
    section: str
    published: str
    recipes: Mapping[str, Sequence[str]]
    shows: Literal["results", "environments", "settings"] = "results"
    over_tasks: bool = False
    ours: Sequence[str] = ()
    quantity: str | None = None
    note: str = ""
    measured: str = "not run"
    hours: float = 0.0
    """Sum of the hours that our runs took, most of them on one CPU core each."""

    def parts(self, scale: str, only: Sequence[str] = ()) -> list[Part]:
        """The recipes that draw it at a scale, with their arms; `only` chooses some of these arms."""
        parts = []
        for name, needed in self.recipes.items():
            found = recipe.load(name)
            if scale in found.scales:
                known = found.arms_of(scale)
                arms = [arm for arm in needed or known if arm in known and (not only or arm in only)]
                parts += [Part(found, arms)] if arms else []
        return parts

    @property
    def scales(self) -> list[str]:
        """Scales at which some recipe draws it."""
        return [scale for scale in SCALES if self.shows == "results" and self.parts(scale)]

    @property
    def headline(self) -> str:
        """Its name and what it shows."""
        return f"{self.name:<9}{self.title} (Sec. {self.section})"

    @property
    def drawn_by(self) -> list[str]:
        """Its recipes, each with its arms."""
        return [f"{name}: {', '.join(arms) or 'all arms'}" for name, arms in self.recipes.items()]

    def size(self, scale: str) -> str:
        """Number and length of its runs at a scale."""
        runs = [run for part in self.parts(scale) for run in part.runs(scale, Path("runs"))]
        counts = Counter(_length(run) for run in runs)
        return " + ".join(
            f"{count} {'run' if count == 1 else 'runs'} {length}" for length, count in counts.items()
        )


@cache
def places() -> Mapping[str, Place]:
    """Every figure and table by its name, in the order of the paper."""
    measured = _read("measured.toml")
    return {name: Place(name, **entry, **measured.get(name, {})) for name, entry in _read("paper.toml").items()}


def find(name: str) -> list[Place]:
    """The figure or table of this name, `fig-3` with all its panels; none if the name is that of a recipe.

    Raises:
        ValueError: The paper has no such figure or table.
    """
    if "/" in name or not name.startswith(("fig", "table")) or name.endswith(".toml"):
        return []
    found = [place for known, place in places().items() if name in (known, known.rstrip("abc"))]
    if not found:
        raise ValueError(
            f"{name!r} is none of the paper's: it has fig-1 to fig-{FIGURES} and table-1 to table-{TABLES}, "
            f"which `entropyfloor reproduce` lists"
        )
    return found


def reproduced_by(recipe: str, path: Path) -> list[Place]:
    """Figures and tables whose results a run is compared with.

    Args:
        recipe: The recipe, the scale and the arm that the run came from, as its settings have them.
        path: Its directory: runs in `results/` are also known by where they are.
    """
    name, arm = recipe.partition(" ")[0], recipe.rpartition(" ")[2]
    return [
        place
        for place in places().values()
        if (name in place.recipes and arm in (place.recipes[name] or [arm]))
        or any(f"/{ours}/" in f"/{path.as_posix()}/" for ours in place.ours)
    ]


def listing() -> str:
    """All figures and tables as text, for a terminal."""
    return "\n\n".join(_listed(place) for place in places().values())


def _listed(place: Place) -> str:
    sizes = [f"{scale}: {place.size(scale)}" for scale in place.scales]
    cost = f" ({place.hours:.1f} hours)" if place.hours else ""
    rows = {
        "recipes": "; ".join(place.drawn_by) or "none: there is nothing to run",
        "cost": "; ".join(sizes),
        "published": place.published,
        "ours": f"{place.measured}{cost}" if place.scales else "",
        "note": place.note,
    }
    lines = [f"  {name:<11}{text}" for name, text in rows.items() if text]
    return "\n".join([place.headline, *lines])


def _length(run: PlannedRun) -> str:
    """Length of a run in words; runs of the same length are counted together."""
    if run.mode == "evaluate":
        return "of a trained model"
    setting, unit = LENGTHS[run.domain]
    length = run.settings[setting]
    return f"of {length:,} {unit.removesuffix('s') if length == 1 else unit}"


def _read(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("entropyfloor.recipes").joinpath(name).read_text())
