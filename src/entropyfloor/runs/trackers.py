"""Copies of a run's metrics for TensorBoard, trackio and Weights & Biases.

`metrics.jsonl` stays the record: a tracker that fails is left out with a warning, and the training goes on.
A resumed run repeats the lines after its last checkpoint. TensorBoard replaces them, and so does an offline run of
W&B, which is written anew. The others cannot take a line back, and keep the first: a run repeats the same numbers.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from entropyfloor.extras import brief, require
from entropyfloor.runs.run_reader import CONFIG, MACHINE, Line, read_lines, without_repeated

log = logging.getLogger(__name__)

Track = Literal["none", "trackio", "wandb"]
"""Tracker beside TensorBoard, whose files are written wherever it is installed; `none` turns that off too."""
PROJECT = "entropyfloor"
"""Project of the runs; for W&B the variable WANDB_PROJECT overrides it."""
CLOSING = 60.0
"""Most seconds that W&B may take to upload the rest at the end of a run."""


@dataclass(frozen=True)
class Past:
    """A run as its trackers find it when it is begun or resumed."""

    path: Path
    config: Mapping[str, Any]
    kept: list[Line]
    """Lines that were logged up to the checkpoint that the run continues from."""
    repeated: list[Line]
    """Lines that were logged after it, which the run will repeat."""

    @property
    def step(self) -> int:
        """Step that the run continues from, or -1 where it starts again."""
        return int(max((line["step"] for line in self.kept), default=-1))

    @cached_property
    def identity(self) -> str:
        """Name that no other run has, and that the run keeps when it is resumed or moved."""
        content = (self.path / CONFIG).read_bytes() + (self.path / MACHINE).read_bytes()
        return hashlib.sha256(content).hexdigest()[:12]

    @property
    def title(self) -> str:
        """What the run is, for people."""
        names = [str(self.config[name]) for name in ("env", "agent") if name in self.config]
        return " ".join([*names, f"seed {self.config.get('seed', 0)}"])


class Tracker(Protocol):
    """A copy of the metrics. It is built from the `Past` of a run, and continues it."""

    ahead: int
    """Number of lines that it holds beyond those that were kept; the run repeats them, and they are left out."""

    def log(self, line: Line) -> None:
        """Add a line."""

    def close(self, finished: bool) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in the run directory, one for each process that wrote the run."""

    def __init__(self, past: Past) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.ahead, self._event = 0, event_pb2.Event
        before = any(past.path.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered, so that a kill loses nothing: TensorBoard's own writer keeps events for two minutes.
        self._file = (past.path / name).open("wb", buffering=0)
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if before:  # it drops the events from this step on
            self._write(step=past.step + 1, session_log={"status": "START"})
        for line in [] if before else past.kept:
            self.log(line)

    def log(self, line: Line) -> None:
        """Add a line."""
        values = [{"tag": name, "simple_value": value} for name, value in numbers(line).items()]
        self._write(step=line["step"], summary={"value": values})

    def close(self, finished: bool) -> None:  # noqa: ARG002
        """Close the file."""
        self._file.close()

    def _write(self, **event: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **event).SerializeToString())


class Trackio:
    """A run of trackio, in its database on this machine."""

    def __init__(self, past: Past) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{past.title} {past.identity}"
        held = SQLiteStorage.get_log_count(PROJECT, name)
        begin = copy_context().run  # in its own context, because trackio ends the run that was begun before in one
        with redirect_stdout(io.StringIO()):
            self._run = begin(trackio.init, PROJECT, name, config=dict(past.config), resume="allow", embed=False)
        lines = [*past.kept, *past.repeated]
        self.ahead = max(held, len(lines)) - len(past.kept)
        for line in lines[held:]:  # of a time without this tracker, or lost by a kill
            self.log(line)

    def log(self, line: Line) -> None:
        """Add a line."""
        self._run.log(numbers(line), step=line["step"])

    def close(self, finished: bool) -> None:  # noqa: ARG002
        """Wait until the database has all lines."""
        with redirect_stdout(io.StringIO()):
            self._run.finish()


class Wandb:
    """A run of Weights & Biases; its files are in `wandb` of the run directory."""

    def __init__(self, past: Past) -> None:
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("nobody is logged in: call `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=past.identity,
            name=past.title,
            config=dict(past.config),
            dir=str(past.path),
            resume="allow",
            reinit="create_new",  # several seeds may train in one process
            settings=wandb.Settings(console="off", silent=True, finish_timeout=CLOSING),
        )
        if self._run.offline:  # a kill loses what it has not written yet
            here = Path(self._run.dir).parent
            for before in past.path.glob(f"wandb/offline-run-*-{past.identity}"):
                if before.resolve() != here.resolve():
                    shutil.rmtree(before)
            lines, self.ahead = past.kept, 0
        else:
            lines = [line for line in (*past.kept, *past.repeated) if line["step"] >= self._run.step]
            self.ahead = len(past.repeated)
        for line in lines:
            self.log(line)

    def log(self, line: Line) -> None:
        """Add a line."""
        self._run.log(numbers(line), step=line["step"])

    def close(self, finished: bool) -> None:
        """Wait until everything is written or uploaded."""
        self._run.finish(exit_code=0 if finished else 1)


KINDS: Mapping[str, Callable[[Past], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def check(track: Track | None) -> None:
    """Refuse a tracker that is not installed, before a run is begun.

    Raises:
        ImportError: It is not installed.
    """
    if track not in (None, "none"):
        require(track, track)


def numbers(line: Line) -> dict[str, float]:
    """The quantities of a line that are finite."""
    return {name: value for name, value in line.items() if name not in ("step", "seconds") and value is not None}


@contextmanager
def tracking(path: Path, config: Mapping[str, Any], track: Track | None) -> Iterator[Callable[[Line], None]]:
    """Copy the lines of a run to its trackers.

    Args:
        path: Run directory.
        config: Settings of the run, which the trackers show.
        track: Tracker beside TensorBoard.

    Yields:
        A function that takes each line of the metrics. Neither it nor this context raises what a tracker does.
    """
    names = ["tensorboard"] if track != "none" and find_spec("tensorboard") else []
    names += [] if track in (None, "none") else [track]
    if not names:
        yield lambda _: None
        return
    past = _past(path, config)
    trackers: dict[str, Tracker] = {}
    ahead: dict[str, int] = {}

    @contextmanager
    def surviving(name: str) -> Iterator[None]:
        """Leave a tracker out when it fails; whatever a library raises, it is no error of the training."""
        try:
            yield
        except (Exception, SystemExit) as error:
            trackers.pop(name, None)
            log.warning("%s: %s does not follow this run any more: %s", path, name, brief(error))

    def follow(line: Line) -> None:
        for name, tracker in [*trackers.items()]:
            if ahead[name]:
                ahead[name] -= 1
            else:
                with surviving(name):
                    tracker.log(line)

    for name in names:
        with surviving(name):
            tracker = KINDS[name](past)
            trackers[name], ahead[name] = tracker, tracker.ahead
    finished = False
    try:
        yield follow
        finished = True
    finally:
        for name, tracker in [*trackers.items()]:
            with surviving(name):
                tracker.close(finished)


def _past(path: Path, config: Mapping[str, Any]) -> Past:
    lines = read_lines(path)
    kept = without_repeated(lines)
    ends = [i for i, line in enumerate(lines) if "event" in line]
    farthest = max((without_repeated(lines[:end]) for end in [*ends, len(lines)]), key=len)
    return Past(path, config, kept, farthest[len(kept) :])
