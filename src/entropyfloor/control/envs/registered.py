"""Environments that somebody registered with Gymnasium: found by their module, and again in another process.

`my.module:Env-v0` names the module that registers one. Where a program registered the class of an environment
itself, its run keeps what `describe` says of it, from which `again` registers it where the program is not there.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from operator import attrgetter
from types import ModuleType
from typing import Any

import gymnasium


def find(task: str) -> str:
    """The id of a task of Gymnasium, once the module that stands before a colon is imported.

    Raises:
        ImportError: There is no such module.
        ValueError: It cannot be imported.
    """
    module, colon, task_id = task.rpartition(":")
    if colon:
        _import(module)
    return task_id


def describe(name: str) -> str | None:
    """How `gym/Env-v0` was registered, as JSON; None where nothing needs to be said, or nothing would help.

    Only classes that can be imported, whose registration is all that is around them, are described.
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


def again(name: str, described: str) -> None:
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


def _class(place: str) -> type[gymnasium.Env[Any, Any]]:
    """The environment at `module:Class`; a class, as a run directory shall not name what else is called."""
    module, _, name = place.partition(":")
    if module in ("__main__", "__mp_main__"):
        raise ValueError(f"{place} is defined in a program, not in a module")
    try:
        found = attrgetter(name)(_import(module))
    except AttributeError:
        raise ValueError(f"module {module!r} has no {name!r}") from None
    if not (isinstance(found, type) and issubclass(found, gymnasium.Env)):
        raise ValueError(f"{place} is no environment: it must be a class below gymnasium.Env")
    return found


def _import(module: str) -> ModuleType:
    """A module that somebody named; it may lie in the current directory, as in a program that is started there."""
    if module not in sys.modules and not {"", here := os.getcwd()} & set(sys.path):
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        where = "in the current directory or on PYTHONPATH"
        raise ImportError(f"module {module!r} cannot be imported: {error} {where}") from error
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"module {module!r} cannot be imported: {told}") from error
