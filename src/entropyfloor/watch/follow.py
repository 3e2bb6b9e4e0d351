"""Following a run by its files: the first look reads the end of its metrics, each other one what is new."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from entropyfloor.extras import one_line, printable
from entropyfloor.runs import archive, files, schema
from entropyfloor.runs.run_reader import METRICS, STATUS, Line, read_config, read_status
from entropyfloor.runs.vocabulary import SCORES, TOLERANCE

RECENT = 20
"""Lines of the metrics over which speed is averaged."""
WINDOW = 2**14
"""Bytes at the end of the metrics that are read first."""
CENTURY = 100 * 365.25 * 86_400
"""Seconds."""
ENDED = ("finished", "failed", "interrupted")
"""States that last until the status is written again."""
ENTROPY, LEAST, FLOOR = "realised_entropy", "realised_entropy/min", "floor"


@dataclass(frozen=True)
class Row:
    """What is known of a run."""

    path: Path
    state: str
    """State of the status (see `Record`), or `damaged`."""
    domain: str = ""
    task: str = ""
    arm: str = ""
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    """Steps of the whole run, in the unit of its domain."""
    rate: float | None = None
    """Steps per second, of late."""
    score: tuple[str, float] | None = None
    """The last score and its quantity."""
    entropy: float | None = None
    """The last realised entropy, in nats, a mean over states, images or responses."""
    floor: float | None = None
    """Its floor in nats."""
    below: bool = False
    """Whether the entropy was below its floor at the last evaluation, in any state where that was measured."""
    reason: str | None = None
    """Why it failed, or what is damaged."""

    @property
    def left(self) -> float | None:
        """Seconds until it is finished at its speed, if it is running and they are not more than `CENTURY`."""
        if self.state != "running" or not self.rate or self.steps is None:
            return None
        left = max(0, self.steps - self.step) / self.rate
        return left if left <= CENTURY else None


class Followed:
    """A run that is looked at again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        inside = archive.split(path)
        self._archive = inside[0] if inside else None
        self._forget()

    def look(self) -> Row:
        """The run as it is now."""
        try:
            self._look_at_metrics()
            self._look_at_status()
            return self._row()
        except (OSError, ValueError, RecursionError) as error:
            self._forget()
            return Row(self.path, "damaged", reason=one_line(error))

    def _forget(self) -> None:
        self._config: dict[str, Any] = {}
        self._status: dict[str, Any] = {}
        self._versions: dict[str, tuple[int, ...]] = {}
        self._read = 0
        """Bytes of the metrics that were looked at."""
        self._forget_lines()

    def _forget_lines(self) -> None:
        self._step = 0
        self._logged = False
        self._clock: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._values: dict[str, list[tuple[int, float]]] = {}

    def _is_new(self, name: str) -> bool:
        """Whether a file is another one than at the last look.

        Raises:
            FileNotFoundError: It is not there.
        """
        status = (self._archive or self.path / name).stat()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        before, self._versions[name] = self._versions.get(name), version
        return before != version

    # --- metrics -----------------------------------------------------------------------------------------

    def _look_at_metrics(self) -> None:
        """Take the lines that were appended; of a run that was not looked at before, those at the end."""
        inode = self._versions.get(METRICS, (0,))[0]
        if not self._is_new(METRICS):
            return
        if self._archive:
            self._forget_lines()
            self._take(files.read(self.path / METRICS))
            return
        with (self.path / METRICS).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != inode or status.st_size < self._read:
                self._config = {}
                self._take_end(file, status.st_size)
            else:
                file.seek(self._read)
                self._read += self._take(file.read())

    def _take_end(self, file: BinaryIO, size: int) -> None:
        """Take so many of the last lines that an evaluation is among them, if there was one."""
        length = WINDOW
        while True:
            begin = max(0, size - length)
            file.seek(begin)
            content = file.read(size - begin)
            skipped = content.find(b"\n") + 1 if begin else 0
            self._forget_lines()
            self._read = begin + skipped + self._take(content[skipped:])
            if begin == 0 or any(map(self._values.get, SCORES.values())):
                return
            length *= 4

    def _take(self, content: bytes) -> int:
        """Take the whole lines of a part of the metrics, and return their length."""
        whole, end, _ = content.rpartition(b"\n")
        for line in whole.splitlines():
            self._take_line(schema.line(json.loads(line)))
        return len(whole + end)

    def _take_line(self, line: Line) -> None:
        step = max(line["step"], 0)
        self._step = step
        if "event" in line:  # resumed: what was logged after the checkpoint does not count
            self._clock.clear()
            for values in self._values.values():
                while values and values[-1][0] > line["step"]:
                    values.pop()
            return
        self._logged = True
        self._clock.append((step, line["seconds"]))
        for name in (*SCORES.values(), ENTROPY, LEAST, FLOOR):
            if line.get(name) is not None:
                self._values.setdefault(name, []).append((step, line[name]))

    # --- the row -----------------------------------------------------------------------------------------

    def _look_at_status(self) -> None:
        try:
            new = self._is_new(STATUS)
        except FileNotFoundError:
            new = True
        if new or not (self._archive or self._status["state"] in ENDED):
            self._status = read_status(self.path, logged=self._logged)

    def _row(self) -> Row:
        config = self._config = self._config or read_config(self.path)
        score = SCORES.get(str(config.get("domain")), "")
        value, entropy, floor, least = map(self._last, (score, ENTROPY, FLOOR, LEAST))
        lowest = entropy if least is None else least
        return Row(
            self.path,
            printable(self._status["state"]),
            domain=str(config.get("domain", "")),
            task=str(config.get("env", "")),
            arm=str(config.get("agent", "")),
            seed=config.get("seed"),
            # A run that was stopped has often saved later than its last line of metrics.
            step=max(self._step, self._status["step"] if self._status["state"] == "interrupted" else 0),
            steps=config.get("steps", config.get("epochs")),
            rate=self._rate(),
            score=None if value is None else (score, value),
            entropy=entropy,
            floor=floor,
            below=floor is not None and lowest is not None and lowest < floor - TOLERANCE,
            reason=self._status.get("reason"),
        )

    def _last(self, name: str) -> float | None:
        values = self._values.get(name)
        return values[-1][1] if values else None

    def _rate(self) -> float | None:
        if len(self._clock) < 2:
            return None
        (first, since), (last, until) = self._clock[0], self._clock[-1]
        return (last - first) / (until - since) if until > since and last > first else None
