"""Parses the settings of a plan as its commands will, so that wrong ones are refused before any run starts."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from itertools import dropwhile, takewhile
from typing import Any, get_args, get_type_hints

from entropyfloor.experiments.recipe import PlannedRun


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
    parsed: dict[str, PlannedRun] = {}
    runs = []
    for run in plan:
        key = repr(run.settings)
        if key not in parsed:
            try:
                parsed[key] = _parsed(run, kind_of(run))
            except ValueError as error:
                raise ValueError(f"recipe {name}, arm {run.arm}: {error}") from None
        found = parsed[key]
        runs.append(replace(run, settings=found.settings, three_valued=found.three_valued, known=found.known))
    return runs


def _parsed(run: PlannedRun, kind: type[Any]) -> PlannedRun:
    known, hints = [field.name for field in fields(kind)], get_type_hints(kind)
    for name, value in run.settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"there is no setting {name!r}{f', did you mean {near[0]}' if near else ''}: see "
                f"entropyfloor {' '.join(run.words)} --help"
            )
        if hints[name] is bool and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")
    three_valued = frozenset(name for name in known if {bool, type(None)} <= set(get_args(hints[name])))
    run = replace(run, three_valued=three_valued, known=frozenset(known))
    config = _parse(kind, run.command[2:])
    config.resolved()
    return replace(run, settings={name: getattr(config, name) for name in run.settings})


def _parse(kind: type[Any], args: Sequence[str]) -> Any:
    """A config from arguments of the command line.

    Raises:
        ValueError: The parser refuses them; the message is the parser's, in one line.
    """
    import tyro

    with redirect_stderr(io.StringIO()) as stderr:
        try:
            return tyro.cli(kind, args=args)
        except SystemExit:
            raise ValueError(_message(stderr.getvalue())) from None


def _message(box: str) -> str:
    """The message in the box that the parser draws: the text between its title and the first rule."""
    _, *lines = (line.strip("│╭╮╰╯─ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines())
    below = dropwhile(_is_rule, lines)
    return " ".join(takewhile(lambda line: not _is_rule(line), below))


def _is_rule(line: str) -> bool:
    return not line.strip("-")
