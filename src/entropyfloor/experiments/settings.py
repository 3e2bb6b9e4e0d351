"""Parses the settings of a plan as its commands will, so that wrong ones are refused before any run starts."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, field, make_dataclass, replace
from functools import cache
from itertools import dropwhile, takewhile
from typing import Any, get_type_hints

from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.runs.settings import describe

_hints = cache(get_type_hints)


def parse_settings(
    plan: Sequence[PlannedRun], name: str, kind_of: Callable[[PlannedRun], type[Any]]
) -> list[PlannedRun]:
    """The plan with each setting as the command line reads it: a number where the setting is one.

    Args:
        plan: Runs of a recipe.
        name: Name of the recipe.
        kind_of: Gives the class of a run's settings.

    Raises:
        ValueError: A setting that does not exist, or a value that it cannot have.
    """
    runs = []
    for run in plan:
        with naming_arm(name, run):
            runs.append(_parsed(run, kind_of(run)))
    return runs


@contextmanager
def naming_arm(recipe: str, run: PlannedRun) -> Iterator[None]:
    """Name the recipe and the arm of a run in what is wrong with its settings."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"recipe {recipe}, arm {run.arm}: {error}") from None


def _parsed(run: PlannedRun, kind: Any) -> PlannedRun:
    known = describe(kind)
    for name, value in run.settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"there is no setting {name!r}{f', did you mean {near[0]}' if near else ''}: {_see_help(run)}"
            )
        if known[name].types == (bool,) and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")
    if missing := [name for name, each in known.items() if each.default is MISSING and name not in run.settings]:
        raise ValueError(f"{missing[0]} has to be given: {_see_help(run)}")
    three_valued = frozenset(name for name, each in known.items() if {bool, type(None)} <= {*each.types})
    run = replace(run, three_valued=three_valued, known=frozenset(known))
    values = {name: _read(kind, name, option) for name, option in run.options.items()}
    resolved = kind(**values, seed=run.seed, out=str(run.out)).resolved()
    return replace(run, settings={name: getattr(resolved, name) for name in values})  # as the trainer stores them


def _see_help(run: PlannedRun) -> str:
    return f"see entropyfloor {' '.join(run.words)} --help"


@cache
def _read(kind: Any, name: str, option: str) -> Any:
    """The value of a setting from its option, such as `--steps=60`.

    A parser of all settings takes many times as long to build, and plans have hundreds of runs.

    Raises:
        ValueError: The parser refuses it; the message is the parser's, in one line.
    """
    import tyro

    default = field(default=describe(kind)[name].default)  # a switch has its negative form by this
    only = make_dataclass("Settings", [(name, _hints(kind)[name], default)])
    with redirect_stderr(io.StringIO()) as stderr:
        try:
            return getattr(tyro.cli(only, args=[option]), name)
        except SystemExit:
            raise ValueError(_message(stderr.getvalue())) from None


def _message(box: str) -> str:
    """The message in the box that the parser draws: the text between its title and the first rule."""
    _, *lines = (line.strip("│╭╮╰╯─ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines())
    below = dropwhile(_is_rule, lines)
    return " ".join(takewhile(lambda line: not _is_rule(line), below))


def _is_rule(line: str) -> bool:
    return not line.strip("-")
