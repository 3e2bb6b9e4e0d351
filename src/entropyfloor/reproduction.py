"""What the command `reproduce` asks of the trainers: settings of planned runs, their needs, and tables of both."""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from entropyfloor.experiments.paper import Part, Place
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.extras import one_line
from entropyfloor.runs import machine
from entropyfloor.runs.needs import Needs
from entropyfloor.runs.processes import stop_with_parent


def settings_of(run: PlannedRun) -> Any:
    """The class of the settings of a planned run."""
    if run.domain == "control":
        from entropyfloor.control.config import config_class

        agent = run.settings.get("agent")
        return config_class() if agent is None else config_class(str(agent))
    module, name = {
        ("train", "vision"): ("vision.config", "VisionConfig"),
        ("train", "language"): ("language.config", "LanguageConfig"),
        ("evaluate", "language"): ("language.benchmarks.evaluate", "EvaluationConfig"),
    }[run.mode, run.domain]
    return getattr(importlib.import_module(f"entropyfloor.{module}"), name)


def needs_of(runs: Sequence[PlannedRun]) -> Mapping[int, Needs | str]:
    """What each run needs, by its index, or why that is not known.

    Another process counts: the libraries that it loads are then not in the way of the runs.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _begin) as pool:
        try:
            return pool.submit(_needs, runs).result()
        except BrokenProcessPool:
            return dict.fromkeys(range(len(runs)), "needs: the process that counts them ended by itself")


def _begin() -> None:
    """Leave an accelerator alone, and warnings to the runs; and end with the process that asks."""
    stop_with_parent()
    os.environ["JAX_PLATFORMS"] = "cpu"
    warnings.simplefilter("ignore")


def _needs(runs: Sequence[PlannedRun]) -> dict[int, Needs | str]:
    counted: dict[str, Needs | str] = {}
    keys = [repr((run.mode, run.domain, run.settings | {"recipe": None})) for run in runs]
    for key, run in zip(keys, runs, strict=True):
        if key not in counted:
            counted[key] = _needs_of_one(run)
    return {i: counted[key] for i, key in enumerate(keys)}


def _needs_of_one(run: PlannedRun) -> Needs | str:
    if run.mode == "evaluate":
        return "needs of evaluations: they are not counted"
    on_cpu = str(run.settings.get("device", "")).startswith("cpu") or machine.device_memory() is None
    try:
        config = settings_of(run)(**run.settings, seed=run.seed, out=str(run.out))
        needs: Needs = importlib.import_module(f"entropyfloor.{run.domain}.needs").needs(config, on_cpu=on_cpu)
    except Exception as error:  # a count that fails, for a model of any kind, stops no run
        return f"needs of {run.settings.get('env', run.arm)}: {one_line(error)}"
    return needs


# --- tables of the paper that have no results ------------------------------------------------------------


def shown(place: Place) -> str:
    """What a table of the paper shows of environments or of settings, by ours at the paper's scale."""
    parts = place.parts("paper")
    if not parts:
        return f"{place.published}: nothing is run"
    if place.shows == "settings":
        return "\n\n".join(_settings(part) for part in parts)
    envs = dict.fromkeys(run.settings["env"] for part in parts for run in part.runs("paper", Path("runs")))
    return "\n".join([_row("environment", "observation", "action", "steps"), *map(_environment, envs)])


def _environment(name: str) -> str:
    from entropyfloor.control.envs import make
    from entropyfloor.control.needs import without_warnings

    try:
        with without_warnings():
            env = make(name)
    except (ValueError, ImportError) as error:
        return f"{name:<42}{one_line(error)}"
    spaces = env.observation_space, env.action_space
    limit = getattr(env.unwrapped, "step_limit", None) or (env.spec and env.spec.max_episode_steps)
    env.close()
    return _row(name, *(str(math.prod(space.shape or ())) for space in spaces), str(limit or "none"))


def _row(name: str, *cells: str) -> str:
    return f"{name:<42}" + "".join(f"{cell:>14}" for cell in cells)


def _settings(part: Part) -> str:
    """Settings of the first arm."""
    run = part.runs("paper", Path("runs"))[0]
    config = settings_of(run)(**run.settings).resolved()
    hidden = ("seed", "out", "recipe", "env")
    rows = [f"  {name:<24}{value}" for name, value in asdict(config).items() if name not in hidden]
    return "\n".join([run.arm, *rows])
