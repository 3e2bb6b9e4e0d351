"""From a name to runs: the studies of a figure, a table or a recipe, their plan, and their start."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entropyfloor.experiments import recipe
from entropyfloor.experiments.engines import local
from entropyfloor.experiments.execute import log_file, state
from entropyfloor.experiments.paper import Place
from entropyfloor.experiments.plan import Plan
from entropyfloor.experiments.recipe import PlannedRun, Recipe, Settings
from entropyfloor.experiments.reproduce import reproduce
from entropyfloor.experiments.settings import parse_settings
from entropyfloor.runs.needs import Needs

SHOWN = 4
"""Largest number of unfinished runs of a recipe that are named."""


@dataclass(frozen=True)
class Study:
    """Runs of one recipe in one directory."""

    recipe: Recipe
    out: Path
    runs: Sequence[PlannedRun]

    def parsed(self, kind_of: Callable[[PlannedRun], type[Any]]) -> Study:
        """The same with settings as the command line reads them; see `parse_settings`."""
        return replace(self, runs=parse_settings(self.runs, self.recipe.name, kind_of))


def check_options(workers: int | None, *, dry_run: bool, measure: bool, draw: bool) -> None:
    """Refuse options that mean nothing.

    Raises:
        ValueError: No worker, a measurement without a plan to show, or a plan of what starts nothing.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    if measure and not dry_run:
        raise ValueError("--measure belongs to --dry-run, which says how long the runs would take")
    if draw and dry_run:
        raise ValueError("--draw starts no run: leave --dry-run out")


def studies(
    name: str,
    places: Sequence[Place],
    scale: str,
    out: Path | None,
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
) -> list[Study]:
    """The studies that draw a figure or a table, or the one of a recipe.

    Args:
        name: Name of the figure, table or recipe, or a recipe's file.
        places: The figure with its panels, or the table; none for a recipe.
        scale: paper, gpu or cpu.
        out: Directory of the runs; for a figure, of a directory for each of its recipes. By default
            runs/<recipe>/<scale>, so that figures share their runs.
        arms: Arms to run; by default those that are needed.
        seeds: Seeds instead of the recipe's.
        settings: Settings that override the recipe's.

    Raises:
        ValueError: Nothing draws it at this scale, the recipe cannot be run so, or a model to evaluate is missing.
    """
    if not places:
        found = recipe.load(name)
        # A file may be anywhere; its runs are in runs/ all the same.
        parts = [part for part in Path(name.removesuffix(".toml")).parts if part not in (os.sep, os.pardir)]
        home = out or Path("runs", *parts, scale)
        return [Study(found, home, found.runs(scale, home, arms=arms, seeds=seeds, settings=settings))]
    needed: dict[str, tuple[Recipe, list[str]]] = {}
    for part in (part for place in places for part in place.parts(scale, arms)):
        _, known = needed.setdefault(part.recipe.name, (part.recipe, []))
        known += [arm for arm in part.arms if arm not in known]
    if not needed:
        scales = ", ".join(dict.fromkeys(scale for place in places for scale in place.scales))
        which = f" with the arms {', '.join(arms)}" if arms else ""
        raise ValueError(f"{name} has no run at scale {scale}{which}: it has the scales {scales}")
    if unknown := [arm for arm in arms if all(arm not in chosen for _, chosen in needed.values())]:
        raise ValueError(f"{name} has no arm {unknown[0]} at scale {scale}")
    homes = {name: out / name if out else Path("runs", name, scale) for name in needed}
    runs = {
        name: found.runs(scale, homes[name], arms=chosen, seeds=seeds, settings=settings)
        for name, (found, chosen) in needed.items()
    }
    models = [run.out / "model" for each in runs.values() for run in each if run.mode == "train"]
    return [
        Study(needed[name][0], homes[name], [_evaluating(run, homes, scale, models) for run in each])
        for name, each in runs.items()
    ]


def _evaluating(run: PlannedRun, homes: Mapping[str, Path], scale: str, models: Sequence[Path]) -> PlannedRun:
    """The run; if it evaluates a model that another recipe trains, with the place of this model.

    Args:
        run: Run of a figure.
        homes: Directories of the figure's recipes, instead of runs/<recipe>/<scale>.
        scale: Scale of the figure.
        models: Models that the figure trains.

    Raises:
        ValueError: The model is not there, and is not trained.
    """
    model = Path(str(run.settings.get("model", "")))
    for name, home in homes.items():
        if run.mode == "evaluate" and model.is_relative_to(usual := Path("runs", name, scale)):
            place = home / model.relative_to(usual)
            if place not in models and not place.exists():
                raise ValueError(
                    f"{run.out} evaluates {place}, which is not there and not trained: add its --seeds"
                )
            return replace(run, settings={**run.settings, "model": str(place)})
    return run


def plan_of(
    studies: Sequence[Study],
    workers: int | None,
    needs_of: Callable[[Sequence[PlannedRun]], Mapping[int, Needs | str]],
) -> Plan:
    """The plan of all their runs on this machine, with the needs of those that are not finished."""
    runs = [run for study in studies for run in study.runs]
    plan = Plan(runs, workers or local.workers_of(runs), {})
    if not (left := plan.left):
        return plan
    counted = needs_of([runs[i] for i in left])
    return replace(plan, needs={left[k]: needs for k, needs in counted.items()})


def commands(plan: Plan) -> Iterator[str]:
    """Its runs as words of a shell."""
    for run in plan.runs:
        start = ["entropyfloor"] if run.devices == 1 else ["python", "-m", *run.launcher]
        yield shlex.join([*start, *run.command])


def run(studies: Sequence[Study], workers: int | None, engine: str) -> Iterator[str]:
    """Carry out the studies one after the other, since one may evaluate what another has trained.

    Yields:
        What the paper reports, and where the results are.

    Raises:
        RuntimeError: Some runs failed.
    """
    for study in studies:
        reproduce(study.runs, workers, engine)
        for arm, reported in study.recipe.published.items():
            values = ", ".join(f"{quantity} {value}" for quantity, value in reported.items())
            yield f"{study.recipe.source}, {arm}: {values}"
        if study.recipe.mode == "evaluate":
            yield from (f"scores: {run.out}, log: {log_file(run)}" for run in study.runs)
        elif engine == "slurm" and study is not studies[-1] and not all(map(_is_finished, study.runs)):
            yield "the other runs wait for these jobs: call the same command again when they have ended"
            return
    if trained := [shlex.quote(str(study.out)) for study in studies if study.recipe.mode == "train"]:
        yield f"report: entropyfloor report {' '.join(trained)}"


def finished(studies: Sequence[Study]) -> list[Path]:
    """Directories of the runs that have finished."""
    return [run.out for study in studies for run in study.runs if _is_finished(run)]


def missing(studies: Sequence[Study], *, over_tasks: bool) -> Iterator[str]:
    """What there is not to draw from: runs that have not finished, of each recipe a line.

    Args:
        studies: The studies that draw a figure.
        over_tasks: Whether the figure is statistics over tasks, for which a recipe with one task is too little.
    """
    for study in studies:
        runs = [run for run in study.runs if run.mode == "train"]
        envs = list(dict.fromkeys(str(run.settings.get("env")) for run in runs))
        if over_tasks and len(envs) == 1:
            yield f"{study.recipe.name} has one task at this scale, {envs[0]}: statistics over tasks need two"
        if left := [str(run.out.relative_to(study.out)) for run in runs if not _is_finished(run)]:
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            listed = ", ".join(left[:SHOWN])
            yield f"{study.recipe.name}: {len(left)} of {len(runs)} runs have not finished: {listed}{more}"


def _is_finished(run: PlannedRun) -> bool:
    return state(run) == "finished"
