"""Reading a run directory, finished or not."""

from __future__ import annotations

import fcntl
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, METRICS, STATUS = "config.toml", "metrics.jsonl", "status.json"
MACHINE, EVALUATION = "machine.json", "evaluation.json"


@dataclass(frozen=True)
class Record:
    """What a run has written so far."""

    path: Path
    config: dict[str, Any]
    machine: dict[str, Any]
    status: dict[str, Any]
    """`state` (created, running, finished, interrupted, failed, killed), `reason`, `step`, `time`."""
    lines: list[dict[str, Any]] = field(repr=False)
    """The metrics, in order, without what a resume has superseded."""
    evaluation: dict[str, Any] = field(default_factory=dict, repr=False)
    """What `entropyfloor evaluate` has found, if it was called."""

    @property
    def names(self) -> set[str]:
        """Quantities that were logged at least once."""
        return {name for line in self.lines for name in line} - {"step", "seconds"}

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps (int64) and values (float64, NaN where not finite) of a quantity; empty if it was never logged."""
        found = [(line["step"], line[name]) for line in self.lines if name in line]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps, np.int64), np.array(values, np.float64)


def read_run(path: Path) -> Record:
    """Read the run in `path`.

    Raises:
        ValueError: There is no run, or a file of it is damaged; the message names it.
    """
    path = Path(path)
    config = read_config(path)
    status = _read_json(path / STATUS, {"state": "created", "reason": None, "step": 0, "time": None})
    if status["state"] == "running" and not _is_held(path):
        status |= {"state": "killed", "reason": "the process ended without a word"}
    machine, evaluation = (_read_json(path / name, {}) for name in (MACHINE, EVALUATION))
    return Record(path, config, machine, status, _standing(read_lines(path)), evaluation)


def find_runs(*paths: Path) -> list[Path]:
    """Run directories at or below `paths`, sorted.

    Raises:
        ValueError: A path that does not exist, or has no run below it.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path} is not a directory")
        below = {config.parent for config in path.rglob(CONFIG) if (config.parent / METRICS).exists()}
        if not below:
            raise ValueError(f"no run in {path}: a run directory holds {CONFIG} and {METRICS}")
        found |= below
    return sorted(found)


def read_config(path: Path) -> dict[str, Any]:
    """Settings of the run in `path`."""
    file = path / CONFIG
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"no run in {path}: there is no {CONFIG}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of the metrics; a last line that a kill cut short is ignored."""
    file = path / METRICS
    *lines, _ = file.read_bytes().split(b"\n")
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is damaged: {error}") from None
    return parsed


def _standing(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what was logged after the checkpoint that a resume went back to."""
    standing: list[dict[str, Any]] = []
    for line in lines:
        if line.get("event") == "resumed":
            standing = [earlier for earlier in standing if earlier["step"] <= line["step"]]
        else:
            standing.append(line)
    return standing


def _is_held(path: Path) -> bool:
    """Whether a process is writing this run: `Run.recording` holds a lock on the metrics."""
    with (path / METRICS).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _read_json(file: Path, default: dict[str, Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return content
