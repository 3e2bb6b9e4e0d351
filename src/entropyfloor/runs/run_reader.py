"""Reading a run directory, finished or not. Its files are checked here and nowhere else.

A damaged file raises a `ValueError` that names it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from entropyfloor.runs import archive, files, schema

CONFIG, METRICS, STATUS = "config.toml", "metrics.jsonl", "status.json"
MACHINE, EVALUATION = "machine.json", "evaluation.json"

LIMITS = {CONFIG: 2**20, METRICS: 2**30, STATUS: 2**20, MACHINE: 2**20, EVALUATION: 2**26}
"""Largest sizes in bytes: a larger file was not written by a run, and may not fit into memory."""

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
Line = dict[str, Any]
"""A line of the metrics: `step`, `seconds`, and quantities, of which those that are not finite are None."""


@dataclass(frozen=True)
class Record:
    """Contents of a run directory."""

    path: Path
    config: dict[str, Any]
    machine: dict[str, Any]
    status: dict[str, Any]
    """`state` (created, running, finished, interrupted, failed, killed, or unknown), `reason`, `step`, `time`."""
    clock: tuple[np.ndarray, np.ndarray] = field(repr=False)
    """Steps (int64) and wall seconds (float64) of the lines of the metrics, less those that a resume repeated."""
    columns: Columns = field(repr=False)
    """For each quantity the numbers of its lines and its values. Dicts would need ten times as much memory."""
    evaluation: dict[str, Any] = field(default_factory=dict, repr=False)
    """Results of `entropyfloor evaluate`, if it was called."""

    @property
    def names(self) -> set[str]:
        """Quantities that were logged at least once."""
        return set(self.columns)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps (int64) and values (float64, NaN where not finite) of a quantity; empty if it was never logged."""
        where, values = self.columns.get(name, (np.array([], np.int64), np.array([], np.float64)))
        return self.clock[0][where], values.copy()

    @cached_property
    def lines(self) -> list[Line]:
        """The metrics line by line; None where a value is not finite."""
        steps, seconds = (column.tolist() for column in self.clock)
        lines: list[Line] = [
            {"step": step, "seconds": second} for step, second in zip(steps, seconds, strict=True)
        ]
        for name, (where, values) in self.columns.items():
            for i, value in zip(where.tolist(), values.tolist(), strict=True):
                lines[i][name] = None if math.isnan(value) else value
        return lines


def read_run(path: Path) -> Record:
    """Read the run in `path`.

    Raises:
        ValueError: There is no run, or a file of it is damaged; the message names it.
    """
    path = Path(path)
    config = read_config(path)
    clock, columns = _columns(without_repeated(read_lines(path)))
    machine = _read_json(path / MACHINE, schema.machine)
    evaluation = _read_json(path / EVALUATION, schema.evaluation)
    status = read_status(path, logged=bool(columns))
    return Record(path, config, machine or {}, status, clock, columns, evaluation or {})


def read_status(path: Path, *, logged: bool) -> dict[str, Any]:
    """Status of the run in `path`, as `Record` has it.

    Args:
        path: Run directory.
        logged: Whether it has logged anything.

    Raises:
        ValueError: The file is damaged.
    """
    status = _read_json(path / STATUS, schema.status)
    if status is None:
        missing = {"state": "unknown", "reason": f"there is no {STATUS}"}  # it is written before the metrics are
        status = {"state": "created", "reason": None, "step": 0, "time": None, **(missing if logged else {})}
    if status["state"] == "running" and not _is_held(path):
        status |= {"state": "killed", "reason": "the process ended without writing its status"}
    return status


def find_runs(*paths: Path, empty: bool = False) -> list[Path]:
    """Run directories at or below `paths`, sorted and without duplicates, with directories that cannot be entered.

    A directory is a run if it holds two or more of config, metrics and status, so that a run is found where one
    of them is missing. Archives are searched like directories.

    Args:
        paths: Directories or archives.
        empty: Whether a directory may have no run yet.

    Raises:
        ValueError: A path that does not exist, or has no run below it.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir() and archive.split(path) is None:
            raise ValueError(f"{path} is not a directory, and not in an archive of runs (*{archive.SUFFIX})")
        if not (below := _below(path)) and not empty:
            raise ValueError(f"no run in {path}: a run directory holds {CONFIG} and {METRICS}")
        found |= {os.path.realpath(run): run for run in below}
    return sorted(found.values())


def _below(path: Path) -> list[Path]:
    if inside := archive.split(path):
        return _in_archive(*inside)
    found: list[Path] = []
    unreadable: list[Path] = []
    walked: set[str] = set()
    waiting = [path]
    while waiting:  # links wait for the directories themselves, whose paths are the ones to show
        for here, folders, names in os.walk(
            waiting.pop(0), onerror=lambda error: unreadable.append(Path(error.filename))
        ):
            if (real := os.path.realpath(here)) in walked:
                folders.clear()
                continue
            walked.add(real)
            if len({CONFIG, METRICS, STATUS} & {*folders, *names}) >= 2:
                found.append(Path(here))
                folders[:] = [name for name in folders if name != "checkpoints"]  # thousands of files, and no run
            waiting += [Path(here, name) for name in folders if os.path.islink(os.path.join(here, name))]
            for name in names:
                if name.endswith(archive.SUFFIX):
                    found += _in_archive(Path(here, name))
    return found + unreadable


def _in_archive(file: Path, below: str = "") -> list[Path]:
    try:
        names = archive.names(file, below)
    except (OSError, ValueError):
        return [file]  # `read_run` says what is wrong with it
    held: defaultdict[Path, set[str]] = defaultdict(set)
    for name in names:
        held[(file / name).parent].add(Path(name).name)
    return [run for run, names in held.items() if len({CONFIG, METRICS, STATUS} & names) >= 2]


def read_config(path: Path) -> dict[str, Any]:
    """Settings of the run in `path`.

    Raises:
        ValueError: There is no config, or it is damaged.
    """
    file = path / CONFIG
    if (content := _read(file)) is None:
        raise ValueError(f"no run in {path}: there is no {CONFIG}")
    return _checked(file, lambda: schema.config(tomllib.loads(content.decode())))


def read_lines(path: Path) -> list[Line]:
    """Every whole line of the metrics; a last line that a kill cut short is ignored.

    Raises:
        ValueError: There are no metrics, or a line is damaged.
    """
    file = path / METRICS
    if (content := _read(file)) is None:
        raise ValueError(f"{file} is missing: nothing that the run logged is left")
    *lines, _ = content.split(b"\n")
    if (whole := _together(lines)) is not None:
        return whole
    parsed, parse = [], json.JSONDecoder().decode  # `json.loads` would guess the encoding of each line
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(schema.line(parse(line.decode())))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number} is damaged: {_reason(error)}") from None
    return parsed


def _together(lines: list[bytes]) -> list[Line] | None:
    """The lines from one call of the parser, which takes less time; None where one of them is damaged."""
    joined = b",".join(lines)
    if joined.count(b"{") != len(lines) or not all(line.startswith(b"{") for line in lines):
        return None
    try:  # as many tables as lines: each line begins one and, as none is inside another, ends it
        tables = json.loads(f"[{joined.decode()}]")
        return [*map(schema.line, tables)] if len(tables) == len(lines) else None
    except (ValueError, RecursionError):
        return None


def without_repeated(lines: Iterable[Line]) -> list[Line]:
    """The lines without those that were logged after a checkpoint that the run later resumed from."""
    valid: list[Line] = []
    for line in lines:
        if "event" in line:
            valid = [earlier for earlier in valid if earlier["step"] <= line["step"]]
        else:
            valid.append(line)
    return valid


def _columns(lines: list[Line]) -> tuple[tuple[np.ndarray, np.ndarray], Columns]:
    """The clock and the quantities of a `Record`. Quantities of the same lines share the array that says which."""
    same_names: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        same_names[tuple(line)].append(i)
    parts: defaultdict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for names, numbers in same_names.items():
        where = np.array(numbers, np.int32)
        values = np.array([[*lines[i].values()] for i in numbers], np.float64).T.copy()  # None is NaN
        for name, column in zip(names, values, strict=True):
            parts[name].append((where, column))
    columns = {name: _merged(each) for name, each in parts.items() if name not in schema.CLOCK}
    steps, seconds = (np.array([line[name] for line in lines], kind) for name, kind in schema.CLOCK.items())
    return (steps, seconds), columns


def _merged(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    where, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = where.argsort()
    return where[order], values[order]


def _is_held(path: Path) -> bool:
    """Whether a process is writing this run; `Run.recording` then holds a lock on the metrics."""
    if archive.split(path):
        return False
    with (path / METRICS).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


# --- files -----------------------------------------------------------------------------------------------


def _read(file: Path) -> bytes | None:
    """Contents of a file, or None if there is none."""
    try:
        return files.read(file, LIMITS[file.name])
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not file.is_symlink():
            return None
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _read_json(file: Path, check: Callable[[Any], dict[str, Any]]) -> dict[str, Any] | None:
    """Contents of a JSON file, or None if there is none."""
    content = _read(file)
    return None if content is None else _checked(file, lambda: check(json.loads(content)))


def _checked(file: Path, parse: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return parse()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
