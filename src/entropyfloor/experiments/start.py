"""From a name to runs: the studies of a figure, a table or a recipe, their plan, and their start."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from entropyfloor.experiments import recipe
from entropyfloor.experiments.engines import local
from entropyfloor.experiments.execute import log_file, state
from entropyfloor.experiments.paper import Part, Place
from entropyfloor.experiments.plan import Plan
from entropyfloor.experiments.recipe import SCALES, PlannedRun, Recipe, Settings
from entropyfloor.experiments.reproduce import reproduce
from entropyfloor.experiments.settings import naming_arm, parse_settings
from entropyfloor.runs.needs import Needs
from entropyfloor.runs.resume import is_begun

ALL = "all"
"""Name that stands for all recipes of this package."""
KindOf = Callable[[PlannedRun], type[Any]]
"""Gives the class of the settings of a run."""
MODEL = "model"
"""Directory of a run with the language model that it has trained."""
SHOWN = 4
"""Largest number of unfinished runs of a recipe that are named."""


@dataclass(frozen=True)
class Study:
    """Runs of one recipe in one directory."""

    recipe: Recipe
    out: Path
    runs: Sequence[PlannedRun]

    def parsed(self, kind_of: KindOf) -> Study:
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
    """The studies that draw a figure or a table, the one of a recipe, or those of all recipes.

    Args:
        name: Name of the figure, table or recipe, a recipe's file, or `ALL`.
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
    if not places and name != ALL:
        found = recipe.load(name)
        # A file may be anywhere; its runs are in runs/ all the same.
        parts = [part for part in Path(name.removesuffix(".toml")).parts if part not in (os.sep, os.pardir)]
        home = out or Path("runs", *parts, scale)
        return [Study(found, home, found.runs(scale, home, arms=arms, seeds=seeds, settings=settings))]

    def parts_with(only: Sequence[str]) -> Iterable[Part]:
        return (
            _all(scale, only) if name == ALL else (part for place in places for part in place.parts(scale, only))
        )

    known_arms = dict.fromkeys(arm for part in parts_with(()) for arm in part.arms)
    if known_arms and (unknown := [arm for arm in arms if arm not in known_arms]):
        which = "" if name == ALL else f": it has {', '.join(known_arms)}"
        raise ValueError(f"{name} has no arm {unknown[0]} at scale {scale}{which}")
    needed: dict[str, tuple[Recipe, list[str]]] = {}
    for part in parts_with(arms):
        _, known = needed.setdefault(part.recipe.name, (part.recipe, []))
        known += [arm for arm in part.arms if arm not in known]
    if not needed:
        scales = ", ".join(dict.fromkeys(scale for place in places for scale in place.scales) or SCALES)
        raise ValueError(f"{name} has no run at scale {scale}: it has the scales {scales}")
    homes = {each: out / each if out else Path("runs", each, scale) for each in needed}
    planned = []
    for home, (found, chosen) in zip(homes.values(), needed.values(), strict=True):
        runs = found.runs(scale, home, arms=chosen, seeds=seeds, settings=settings)
        planned.append(Study(found, home, [_evaluating(run, homes, scale) for run in runs]))
    if name != ALL:
        try:
            _check_models(planned, planned)
        except ValueError as error:
            raise ValueError(f"{error}: add its --seeds") from None
    return planned


def _all(scale: str, only: Sequence[str]) -> Iterator[Part]:
    """All recipes at a scale; `only` chooses some arms. Evaluations of models come last, behind their training."""
    for found in sorted(map(recipe.load, recipe.names()), key=lambda each: each.mode == "evaluate"):
        known = found.arms_of(scale) if scale in found.scales else []
        if arms := [arm for arm in known if not only or arm in only]:
            yield Part(found, arms)


def without_foreign(studies: Sequence[Study], settings: Settings, kind_of: KindOf) -> list[Study]:
    """The studies, each run without those of the settings that only others have; what no run has is kept.

    Args:
        studies: Studies that are carried out together.
        settings: Settings that were given for all of them.
        kind_of: Gives the class of a run's settings.

    Raises:
        ValueError: A run of an agent that does not exist.
    """
    kinds: dict[type[Any], None] = {}
    for study in studies:
        for run in study.runs:
            with naming_arm(study.recipe.name, run):
                kinds[kind_of(run)] = None
    names = {kind: {field.name for field in fields(kind)} for kind in kinds}
    known = {*settings} & set().union(*names.values())

    def own(run: PlannedRun) -> PlannedRun:
        foreign = known - names[kind_of(run)]
        return replace(run, settings={name: each for name, each in run.settings.items() if name not in foreign})

    return [replace(study, runs=[*map(own, study.runs)]) for study in studies]


def that_fit(studies: Sequence[Study], plan: Plan, *, here: bool) -> tuple[list[Study], Plan, list[str]]:
    """The studies that can be carried out, their plan, and why the others cannot.

    Args:
        studies: Studies of which each may evaluate what earlier ones train, and which need each other for nothing
            else.
        plan: The plan of all their runs, in their order.
        here: Whether this machine is to carry them out, whose memory, disk and packages are then what counts.
    """
    fitting: list[Study] = []
    kept: list[int] = []
    reasons: list[str] = []
    first = 0
    for study in studies:
        indices = range(first, first + len(study.runs))
        first = indices.stop
        part = plan.of(indices)
        unknown = [part.needs[i] for i in part.left if isinstance(part.needs[i], str)]
        try:
            _check_models([study], fitting)
            if here:
                part.check()
                plan.of([*kept, *indices]).check_disk()  # beside what the recipes before it write
                if unknown and study.recipe.mode == "train":
                    raise ValueError(unknown[0])
        except ValueError as error:
            reasons.append(f"{study.recipe.name} is left out: {error}")
        else:
            fitting.append(study)
            kept += indices
    return fitting, plan.of(kept), reasons


def _evaluating(run: PlannedRun, homes: Mapping[str, Path], scale: str) -> PlannedRun:
    """The run; if it evaluates a model that another recipe trains, with the place of this model.

    Args:
        run: Run of a figure.
        homes: Directories of the figure's recipes, instead of runs/<recipe>/<scale>.
        scale: Scale of the figure.
    """
    model = _model_of(run)
    for name, home in homes.items():
        if run.mode == "evaluate" and model.is_relative_to(usual := Path("runs", name, scale)):
            return replace(run, settings={**run.settings, "model": str(home / model.relative_to(usual))})
    return run


def _check_models(studies: Sequence[Study], training: Sequence[Study]) -> None:
    """Refuse evaluations of a trained model that is not there and that none of `training` makes.

    Raises:
        ValueError: There is such an evaluation.
    """
    trained = {run.out / MODEL for study in training for run in study.runs if run.mode == "train"}
    for run in (run for study in studies for run in study.runs if run.mode == "evaluate"):
        model = _model_of(run)
        if model.name == MODEL and model not in trained and not model.exists():
            raise ValueError(f"{run.out} evaluates {model}, which is not there and not trained")


def _model_of(run: PlannedRun) -> Path:
    """The model that a run evaluates; empty where it evaluates none."""
    return Path(str(run.settings.get("model", "")))


def readable(studies: Sequence[Study]) -> tuple[list[Study], dict[Path, str], dict[Path, str]]:
    """The studies without damaged runs, the states of the runs that have begun, and why others are damaged.

    The evaluation of a model that a damaged run has not written yet is left out with it.
    """
    states: dict[Path, str] = {}
    damaged: dict[Path, str] = {}
    for run in (run for study in studies for run in study.runs):
        try:
            if found := state(run):
                states[run.out] = found
        except (OSError, ValueError) as error:
            damaged[run.out] = str(error)

    def is_left_out(run: PlannedRun) -> bool:
        model = _model_of(run)
        return run.out in damaged or (model.parent in damaged and not model.exists())

    rest = [replace(study, runs=[run for run in study.runs if not is_left_out(run)]) for study in studies]
    return [study for study in rest if study.runs], states, damaged


def check_undamaged(damaged: Collection[Path]) -> None:
    """Fail for the runs that were left out.

    Raises:
        RuntimeError: There are some.
    """
    if damaged:
        raise RuntimeError(
            f"left out as damaged: {', '.join(map(str, damaged))}: move {'it' if len(damaged) == 1 else 'them'} "
            f"away, and the same command begins anew what is missing"
        )


def plan_of(
    studies: Sequence[Study],
    workers: int | None,
    needs_of: Callable[[Sequence[PlannedRun]], Mapping[int, Needs | str]],
    states: Mapping[Path, str],
) -> Plan:
    """The plan of all their runs on this machine, with the needs of those that are not finished."""
    runs = [run for study in studies for run in study.runs]
    begun = {i: states[run.out] for i, run in enumerate(runs) if run.out in states}
    plan = Plan(runs, workers or local.workers_of(runs), {}, states=begun)
    if not (left := plan.left):
        return plan
    counted = needs_of([runs[i] for i in left])
    return replace(plan, needs={left[k]: needs for k, needs in counted.items()})


def commands(plan: Plan) -> Iterator[str]:
    """A command of a shell for each run that is not finished: it begins the run, or continues it."""
    for i in plan.left:
        run = plan.runs[i]
        start = ["entropyfloor"] if run.devices == 1 else ["python", "-m", *run.launcher]
        yield shlex.join([*start, *(run.resume if i in plan.states else run.command)])


def run(studies: Sequence[Study], workers: int | None, engine: str, *, go_on: bool = False) -> Iterator[str]:
    """Carry out the studies one after the other, since one may evaluate what others have trained.

    Slurm only takes the jobs: evaluations wait until everything is trained.

    Args:
        studies: The studies.
        workers: Number of runs at a time; by default the engine's choice.
        engine: local, ray or slurm.
        go_on: Whether a study that fails does not stop the others.

    Yields:
        What the paper reports, and where the results are.

    Raises:
        RuntimeError: Some runs failed.
        OSError, ValueError: A study cannot be carried out, and `go_on` is False.
    """
    failed: dict[str, str] = {}
    training = [study for study in studies if study.recipe.mode == "train"]
    for study in studies:
        waits = engine == "slurm" and study.recipe.mode == "evaluate"
        if waits and not all(_is_finished(run) for other in training for run in other.runs):
            yield f"{study.recipe.name} waits for these jobs: call the same command again when they have ended"
            continue
        try:
            reproduce(study.runs, workers, engine)
        except (OSError, RuntimeError, ValueError) as error:
            if not go_on:
                raise
            failed[study.recipe.name] = str(error)
            continue
        for arm, reported in study.recipe.published.items():
            values = ", ".join(f"{quantity} {value}" for quantity, value in reported.items())
            yield f"{study.recipe.source}, {arm}: {values}"
        if study.recipe.mode == "evaluate":
            yield from (f"scores: {run.out}, log: {log_file(run)}" for run in study.runs)
    if shown := [study for study in training if study.recipe.name not in failed or _has_begun(study)]:
        yield f"report: entropyfloor report {shlex.join(str(study.out) for study in shown)}"
    if failed:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in failed.items()))


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


def _has_begun(study: Study) -> bool:
    return any(is_begun(run.out) for run in study.runs)


def _is_finished(run: PlannedRun) -> bool:
    return state(run) == "finished"
