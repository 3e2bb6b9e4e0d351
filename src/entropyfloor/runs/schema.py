"""Schema of the files of a run directory: types, units and ranges of each known field.

Each function returns its argument, or raises a `ValueError` that names the field. Unknown fields pass, so that a
run of a later version can be read; where a report prints them they must be plain.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from datetime import date, time
from itertools import pairwise
from typing import Any, NamedTuple

from entropyfloor.runs.vocabulary import PEAKS

CLOCK = {"step": "int64", "seconds": "float64"}
"""Fields of every line of the metrics."""
LARGEST, FINITE = 1e100, sys.float_info.max
"""Limit of measured values, whose squares are finite; and limit of what a diverged run may log."""
RESUMED = "resumed"
"""Event of a line without quantities."""
DEPTH = 4
"""Largest depth of lists and tables in a config or in the description of a machine."""
HISTOGRAMS = {"entropy_histogram": (), "calibration_histogram": ("confidence", "correct")}
"""Histograms of an evaluation, with their fields beside `edges` and `counts`."""
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Not allowed in SVG or in UTF-8, and no part of a setting."""


class Kind(NamedTuple):
    """Type and range of a field."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or null."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.holds(value))


def is_number(value: Any, most: float = LARGEST) -> bool:
    """Whether it is a finite number; true and false are none."""
    return type(value) in (int, float) and abs(value) <= most


def _is_plain(value: Any, depth: int = DEPTH) -> bool:
    """Whether it can be printed: text, a number, a date, or a list or table of such."""
    if isinstance(value, str):
        return not UNPRINTABLE.search(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, dict | list):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(each, depth - 1) for each in inside)
    return value is None or isinstance(value, float | date | time)


def _is_histogram(value: Any) -> bool:
    """Whether its edges rise and each of its lists has one number for each bin."""
    if not isinstance(value, dict) or not all(
        isinstance(each, list) and all(map(is_number, each)) for each in value.values()
    ):
        return False
    edges, counts = value.get("edges", []), value.get("counts", [])
    rising = all(low < high for low, high in pairwise(edges))
    whole = all(len(each) == len(edges) - 1 for name, each in value.items() if name != "edges")
    return rising and whole and bool(counts) and min(counts) >= 0 and sum(counts) > 0


def _is_point(value: Any) -> bool:
    if not isinstance(value, dict) or not is_number(value.get("temperature")):
        return False
    return COUNTS.holds(value.get("correct"))


TEXT = Kind("text", lambda value: isinstance(value, str))
NAMES = Kind(
    "a list of names", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)
)
NAME = Kind("text that can be printed", lambda value: isinstance(value, str) and _is_plain(value))
NUMBER = Kind(f"a number, within {LARGEST:g}", is_number)
COUNT = Kind("a whole number from 0 to 2**63 - 1", lambda value: type(value) is int and 0 <= value < 2**63)
PLAIN = Kind(f"text, a number, a date, or a list or table of them, {DEPTH} deep at most", _is_plain)
VALUES = Kind(
    f"a table of numbers, within {LARGEST:g}",
    lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
)
COUNTS = Kind(
    "a list of whole numbers",
    lambda value: isinstance(value, list) and bool(value) and all(map(COUNT.holds, value)),
)
HISTOGRAM = Kind("a histogram: lists of numbers, edges that rise, and counts", _is_histogram)

FRONT = Kind(
    "a list of tables with a temperature and counts of right responses",
    lambda value: isinstance(value, list) and all(map(_is_point, value)),
)

CONFIG = {**dict.fromkeys(("domain", "env", "agent"), NAME), **dict.fromkeys(("seed", "steps", "epochs"), COUNT)}
STATUS = {
    "state": TEXT,
    "step": COUNT,
    "reason": TEXT.or_null(),
    "time": TEXT.or_null(),
    **dict.fromkeys(PEAKS, NUMBER),
}
MACHINE = {
    **dict.fromkeys(("hardware", "versions"), PLAIN),
    **dict.fromkeys(("system", "command", "commit", "started"), TEXT.or_null()),
    "not_results": NAMES,
    "together": COUNT,
}
EVALUATION = {
    "step": COUNT.or_null(),
    "values": VALUES,
    **dict.fromkeys(("problems", "asked", "samples", "temperature", "ood"), PLAIN),
    "problem_keys": NAMES,
    "correct": COUNTS,
    **dict.fromkeys(HISTOGRAMS, HISTOGRAM.or_null()),
    "front": FRONT,
}


def config(content: dict[str, Any]) -> dict[str, Any]:
    """Settings: all can be printed, and those that name a run are of their type."""
    return _fields(content, {**dict.fromkeys(content, PLAIN), **CONFIG})


def status(content: Any) -> dict[str, Any]:
    """Status of a run: `state`, `step`, and `reason` and `time`, which may be null."""
    return _fields(content, STATUS, ("state", "step"))


def machine(content: Any) -> dict[str, Any]:
    """Description of the machine of a run."""
    return _fields(content, MACHINE)


def evaluation(content: Any) -> dict[str, Any]:
    """Results of `entropyfloor evaluate`."""
    results = _fields(content, EVALUATION)
    for name, more in HISTOGRAMS.items():
        if (histogram := results.get(name)) is not None and (names := sorted({*more} - {*histogram})):
            raise ValueError(f"{name} has no {' and no '.join(names)}")
    counts = [point["correct"] for point in (*results.get("front", []), results) if "correct" in point]
    keys = [set(results["problem_keys"])] if "problem_keys" in results else []
    if len(lengths := sorted({len(each) for each in (*counts, *keys)})) > 1:
        numbers = " and ".join(map(str, lengths))
        raise ValueError(f"problem_keys, correct and front have {numbers} different problems")
    if counts and not COUNT.holds(results.get("samples")):
        raise ValueError(f"samples is {_shown(results.get('samples'))}, it must be {COUNT.words}")
    if counts and max(map(max, counts)) > results["samples"]:
        raise ValueError(
            f"correct is {max(map(max, counts))} for a problem, more than samples={results['samples']}"
        )
    return results


def line(content: Any) -> dict[str, Any]:
    """A line of the metrics: step, seconds, and numbers; null stands for one that is not finite."""
    if type(content) is not dict or type(step := content.get("step")) is not int or not -1 <= step < 2**63:
        raise ValueError(f"it must be a table with a step, a whole number from -1 to 2**63 - 1: {_shown(content)}")
    if not is_number(content.setdefault("seconds", 0.0)):
        raise ValueError(f"seconds={_shown(content['seconds'])} must be {NUMBER.words}")
    if content.get("event", RESUMED) != RESUMED:
        raise ValueError(f"event={_shown(content['event'])} is none that this version knows")
    for name, value in content.items():
        if type(value) is not float and value is not None and name != "event" and not is_number(value, FINITE):
            raise ValueError(f"{_shown(name)} is {_shown(value)}, it must be a number or null")
    return content


def _fields(content: Any, kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it must be a table: {_shown(content)}")
    for name, kind in kinds.items():
        if (name in content or name in required) and not kind.holds(content.get(name)):
            raise ValueError(f"{name} is {_shown(content.get(name))}, it must be {kind.words}")
    return content


def _shown(value: Any) -> str:
    """The beginning of its representation."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"
