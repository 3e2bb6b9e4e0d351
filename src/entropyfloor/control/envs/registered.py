"""Environments of the user, registered with Gymnasium by a module, or again in another process.

`my.module:Env-v0` names the module that registers one. If a program registers the class of an environment itself,
its run keeps what `describe` returns, from which `register` registers the class without the program.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium

from entropyfloor.extras import brief
from entropyfloor.runs import Run


def find(task: str) -> str:
    """The id of a task of Gymnasium, after importing the module in front of the colon, if there is one.

    Raises:
        ImportError: There is no such module.
        ValueError: It cannot be imported.
    """
    module, colon, task_id = task.rpartition(":")
    if colon:
        _import(module)
    return task_id


def describe(name: str) -> str | None:
    """The registration of `gym/Env-v0`, as JSON.

    None for environments that every process has (Gymnasium's own, those named with their module), and for those
    that no other process can build: made by a function, defined in a program, or with more wrappers.
    """
    suite, _, task = name.partition("/")
    spec = gymnasium.registry.get(task) if suite == "gym" else None
    if spec is None or spec.additional_wrappers:
        return None
    place: Any = spec.entry_point
    if isinstance(place, type):
        place = f"{place.__module__}:{place.__qualname__}"
    if not isinstance(place, str) or place.startswith("gymnasium."):
        return None
    try:
        _class(place)
        return json.dumps(
            {"entry_point": place, "kwargs": dict(spec.kwargs), "max_episode_steps": spec.max_episode_steps}
        )
    except (ImportError, TypeError, ValueError):
        return None


def register(name: str, described: str) -> None:
    """Register `gym/Env-v0` as it was when `describe` said this of it, unless it is registered.

    Raises:
        ImportError: The module of its class is not there.
        ValueError: `described` is damaged, its module cannot be imported, or what it names is no environment.
    """
    task = name.removeprefix("gym/")
    if task in gymnasium.registry:
        return
    try:
        how = json.loads(described)
        place, kwargs, limit = str(how["entry_point"]), dict(how["kwargs"]), how["max_episode_steps"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"registered={described!r} does not say how {name!r} was registered") from None
    environment: Any = _class(place)
    if task not in gymnasium.registry:  # modules often register what they define
        gymnasium.register(task, environment, kwargs=kwargs, max_episode_steps=limit)


def register_again(run: Run) -> None:
    """Register the environment of a run as it was registered in the program that began the run.

    Raises:
        ImportError: The module of its class is not there.
        ValueError: The module lies in the run directory, from which no code is executed, or as `register`.
    """
    env, described = str(run.config.get("env")), run.config.get("registered")
    task, _, _ = env.removeprefix("gym/").rpartition(":")
    place, _, _ = _entry_point(str(described)).partition(":")
    for module in filter(None, (task, place)):
        if any(Path(file).resolve().is_relative_to(run.path.resolve()) for file in _files(module)):
            raise ValueError(f"module {module!r} lies in the run directory, where no code is executed: move it")
    if described is not None:
        register(env, str(described))


def _entry_point(described: str) -> str:
    try:
        return str(json.loads(described)["entry_point"])
    except (KeyError, TypeError, ValueError):
        return ""


def _files(module: str) -> Iterator[str]:
    """Files and directories that importing a module would read, its packages included."""
    path = [*sys.path, os.getcwd()]
    for part in module.split("."):
        spec = PathFinder.find_spec(part, path)  # by its last name: the whole one would need its packages imported
        if spec is None:
            return
        path = list(spec.submodule_search_locations or [])
        yield from (place for place in (spec.origin, *path) if place is not None)


def _class(place: str) -> type[gymnasium.Env[Any, Any]]:
    """The environment at `module:Class`: only a class, so that a run directory cannot have other things called."""
    module, _, name = place.partition(":")
    if module in ("__main__", "__mp_main__"):
        raise ValueError(f"{place} is defined in a program, not in a module")
    try:
        kind = attrgetter(name)(_import(module))
    except AttributeError:
        raise ValueError(f"module {module!r} has no {name!r}") from None
    if not (isinstance(kind, type) and issubclass(kind, gymnasium.Env)):
        raise ValueError(f"{place} is no environment: it must be a subclass of gymnasium.Env")
    return kind


def _import(module: str) -> ModuleType:
    """Import a module by its name; the current directory is searched last."""
    if module not in sys.modules and not {"", here := os.getcwd()} & set(sys.path):
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        where = "in the current directory or on PYTHONPATH"
        raise ImportError(f"module {module!r} cannot be imported: {error} {where}") from error
    except Exception as error:
        message = f"{type(error).__name__}: {brief(error)}"
        raise ValueError(f"module {module!r} cannot be imported: {message}") from error
