"""Writing a run directory, so that a kill at any moment loses nothing that was on disk."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from entropyfloor.extras import SAVED, require
from entropyfloor.runs import archive, checkpoint, files, machine, schema
from entropyfloor.runs.checkpoint import Checkpoint
from entropyfloor.runs.needs import KEPT
from entropyfloor.runs.run_reader import (
    CONFIG,
    EVALUATION,
    MACHINE,
    METRICS,
    STATUS,
    Line,
    read_config,
    read_lines,
    read_status,
)
from entropyfloor.runs.trackers import Track, tracking
from entropyfloor.runs.vocabulary import PEAKS, is_known

ERROR = "error.txt"

PATIENCE = 0.5
"""Seconds to wait for a lock: a report, or a run that is refused, holds it for a moment only."""


class Run:
    """A run directory that is being written. Build it with `Run.create` or `Run.open`.

    Examples:
        >>> run = Run.create(Path("runs/example"), {"domain": "control", "seed": 0})
        >>> with run.recording():
        ...     run.log(1000, {"return": 12.5, "realised_entropy": -3.0, "floor": -3.0})
        ...     run.save(1000, {"weight": np.zeros(3)}, {"episode": 1})
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self._settings = (path / CONFIG).read_bytes()
        self._step, self._seconds = 0, 0.0
        self._peaks: dict[str, float] = {}
        """Largest memory of the processes that wrote the run before."""
        self._since = time.perf_counter()
        self._size: int | None = None
        """Size of the metrics in bytes after the last line of this object."""
        self._resumed = False
        """Whether the next `recording` continues an earlier one."""
        self._track: Callable[[Line], None] | None = None
        """Copies a line to the trackers."""
        self._held: os.stat_result | None = None
        """Identity of the metrics file that this object has locked."""

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], *, not_results: Sequence[str] = (), together: int = 1
    ) -> Run:
        """Begin a run in a new directory, or in one that holds none.

        Args:
            path: Directory; must not hold a run yet.
            config: Every setting, as values that TOML can hold; settings that are None are left out.
            not_results: Names of the settings that do not change results, for the report.
            together: Number of runs that train together in this process, which share its time.

        Raises:
            ValueError: `path` holds a run already or cannot hold one, or a setting has a type that `read_config`
                refuses.
        """
        require("runs", "tomli_w")
        import tomli_w  # only a new run needs it

        known = {name: value for name, value in config.items() if value is not None}
        settings = tomli_w.dumps(schema.config(known)).encode()  # what could not be read again is not begun
        try:
            _check_free(path)
            path.mkdir(parents=True, exist_ok=True)
            (path / METRICS).touch()
            with _locked(path):
                _check_free(path)  # again: until now another process may have begun one
                about = {**machine.describe(), "not_results": list(not_results), "together": together}
                files.replace(path / MACHINE, files.line(about))
                files.replace(path / CONFIG, settings)  # last: a directory with a config is a run
        except OSError as error:
            raise ValueError(
                f"{path} cannot hold a run: {error.strerror or error}. Choose another directory"
            ) from error
        run = cls(path, known)
        run._size = 0
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the run in `path` to continue it.

        Raises:
            ValueError: There is no run in `path`, or it is in an archive.
        """
        config = read_config(path)
        if archive.split(path):
            raise ValueError(f"{path} is in an archive, without its checkpoints: give the directory of the run")
        return cls(path, config)

    def log(self, step: int, quantities: Mapping[str, float]) -> None:
        """Append one line to the metrics. Numbers that are not finite are written as null.

        Raises:
            ValueError: A name is not in the vocabulary.
        """
        if unknown := sorted(name for name in quantities if not is_known(name)):
            raise ValueError(f"unknown quantities {unknown}: name them in entropyfloor/runs/vocabulary.py first")
        plain = {name: float(value) for name, value in quantities.items()}
        line = self._append(step, {name: value if math.isfinite(value) else None for name, value in plain.items()})
        self._step = step
        if self._track is not None:
            self._track(line)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint beside the others, then rename it, then drop all but the last two.

        Args:
            step: Step of the run.
            arrays: Parameters, optimiser state, replay, …
            state: Values that JSON can hold: counters, states of generators, …

        Returns:
            Its directory.
        """
        self._check_there()
        home = self.path / "checkpoints"
        final, partial = home / f"{step:012d}", home / f".{step:012d}.partial"
        if final.exists():  # a run is deterministic; a resume repeats what came after it
            return final
        for leftover in home.glob(".*"):  # from a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            checkpoint.dump(partial, step, arrays, state, checkpoint.fingerprint(self.config))
        except BaseException:  # give a full disk its space back
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(final)
        self._step = max(self._step, step)
        files.sync(home)
        self._drop(self.checkpoints()[:-KEPT])
        return final

    def _drop(self, checkpoints: Sequence[Path]) -> None:
        for path in checkpoints:  # a kill in between leaves no half of one
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))

    def keep_evaluation(self, results: dict[str, Any]) -> Path:
        """Write the results of an evaluation, as values that JSON can hold, and return the file."""
        file = self.path / EVALUATION
        files.replace(file, files.line({**results, "machine": machine.describe()}))
        return file

    def keep_text(self, name: str, text: str) -> Path:
        """Write a text for people, such as samples, and return the file."""
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        files.replace(file, text.encode())
        return file

    def keep_failure(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Write arrays that explain a failure, in the form of a checkpoint from which nothing is resumed.

        Returns:
            Its directory.
        """
        failures = self.path / "failure"
        failures.mkdir(exist_ok=True)
        home = failures / f"{step:012d}"
        home.mkdir(exist_ok=True)
        checkpoint.dump(home, step, arrays, state, checkpoint.fingerprint(self.config))
        return home

    def checkpoints(self) -> list[Path]:
        """Directories of complete checkpoints, oldest first."""
        home = self.path / "checkpoints"
        return sorted(path for path in home.glob("[0-9]" * 12) if path.is_dir())

    def latest(self, limit: float = math.inf) -> Checkpoint | None:
        """The last checkpoint, or the last at a step of at most `limit`, or None.

        Raises:
            ValueError: It is damaged, of another format, or of a run with other settings.
        """
        saved = [path for path in self.checkpoints() if int(path.name) <= limit]
        return checkpoint.load(saved[-1], checkpoint.fingerprint(self.config)) if saved else None

    def resume(self, limit: float = math.inf) -> Checkpoint | None:
        """Continue from the last checkpoint at a step of at most `limit`, or from the start if there is none.

        Lines that were logged after it stay in the file. As soon as `recording` begins, readers drop them, and
        later checkpoints are removed, because the run repeats both.
        """
        with _locked(self.path):
            last = self.latest(limit)
            with (self.path / METRICS).open("r+b") as file:  # a kill may have cut the last line short
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
            lines = read_lines(self.path)
            self._seconds = max((line["seconds"] for line in lines), default=0.0)
            self._since = time.perf_counter()
            self._size = (self.path / METRICS).stat().st_size
            self._step = last.step if last else -1  # -1: no earlier line counts
            self._resumed = True
        return last

    @contextmanager
    def recording(self, track: Track | None = None) -> Iterator[None]:
        """Keep `status.json` up to date while the body trains, and lock the directory.

        Args:
            track: Tracker that gets what is logged, beside TensorBoard where that is installed; none for neither.

        Raises:
            ValueError: Another process is recording this run, or has done so since it was created or resumed.
            RuntimeError: The metrics or the settings were cut, deleted or replaced meanwhile.
        """
        with _locked(self.path) as held, ExitStack() as trackers:  # closed last: an upload may take its time
            if self._size not in (None, held.st_size):
                raise ValueError(f"another process has written {self.path} meanwhile: resume it")
            self._held = held
            try:
                self._check_there()
                if self._resumed:  # not before: a checkpoint that cannot be restored repeats nothing
                    self._drop([path for path in self.checkpoints() if int(path.name) > self._step])
                    self._append(self._step, {"event": "resumed"})
                    self._resumed = False
                with suppress(ValueError):  # a damaged status is replaced
                    before = read_status(self.path, logged=True)
                    self._peaks = {name: before[name] for name in PEAKS if name in before}
                self._status("running")
                (self.path / ERROR).unlink(missing_ok=True)  # of a failure that this run goes on from
                self._track = trackers.enter_context(tracking(self.path, self.config, track))
                yield
                self._check_there()
            except KeyboardInterrupt:
                self._status("interrupted", "stopped by the user")
                raise
            except BaseException as error:
                if self.path.exists():
                    error.add_note(f"{SAVED} {self.path}")
                with suppress(OSError):  # a full disk takes no status either: the first error is the one to report
                    self._status("failed", f"{type(error).__name__}: {error}")
                    files.replace(self.path / ERROR, traceback.format_exc().encode())
                raise
            finally:
                self._held = self._track = None
            self._status("finished")

    def _append(self, step: int, values: Line) -> Line:
        self._check_there()
        seconds = round(self._seconds + time.perf_counter() - self._since, 3)
        line = {"step": step, "seconds": seconds, **values}
        with (self.path / METRICS).open("ab") as file:  # in one write, so that only the last line may be cut
            file.write(files.line(line))
            file.flush()
            self._size = file.tell()
        return line

    def _check_there(self) -> None:
        """Refuse to write into a run whose files were cut, deleted or replaced while it is recorded."""
        if self._held is None:
            return
        for name, is_same in ((METRICS, self._has_held_metrics), (CONFIG, self._has_settings)):
            try:
                same = is_same()
            except (FileNotFoundError, NotADirectoryError):
                same = False
            if not same:
                what = f"{name} of {self.path}" if self.path.exists() else str(self.path)
                raise RuntimeError(
                    f"{what} was cut, deleted, moved or replaced while the run was writing it: the run stops. "
                    f"Put it back and resume the run, or begin again in another directory"
                )

    def _has_held_metrics(self) -> bool:
        assert self._held is not None
        status = (self.path / METRICS).stat()
        return os.path.samestat(self._held, status) and status.st_size >= (self._size or 0)

    def _has_settings(self) -> bool:
        return (self.path / CONFIG).read_bytes() == self._settings

    def _status(self, state: str, reason: str | None = None) -> None:
        step = max(self._step, 0)  # -1 without a checkpoint: see `resume`
        status: dict[str, Any] = {"state": state, "reason": reason, "step": step, "time": machine.now()}
        peaks = dict(self._peaks)
        if state != "running":  # it is known at the end only
            with suppress(Exception):  # whatever a driver says: the end of a run does not depend on a measurement
                for name, size in machine.peak_memory().items():
                    peaks[name] = max(round(size, 3), peaks.get(name, 0.0))
        files.replace(self.path / STATUS, files.line(status | peaks))


def _check_free(path: Path) -> None:
    """Refuse to begin a run where there is one, or the remains of one."""
    if (path / CONFIG).exists():
        raise ValueError(f"{path} holds a run already: choose another directory, resume it, or delete it")
    metrics, checkpoints = path / METRICS, path / "checkpoints"
    if checkpoints.exists() or (metrics.exists() and metrics.stat().st_size):
        raise ValueError(
            f"{path} holds metrics or checkpoints of a run without its {CONFIG}: choose another directory, or "
            f"delete it"
        )


@contextmanager
def _locked(path: Path) -> Iterator[os.stat_result]:
    """Lock the run in `path` for this process; the system unlocks it even when the process is killed.

    Yields:
        Identity of the metrics file, which is the file that is locked.

    Raises:
        ValueError: Another process holds the lock, or the run has no metrics.
    """
    try:
        file = (path / METRICS).open("r+b")
    except FileNotFoundError:
        raise ValueError(
            f"{path} has no {METRICS}: put it back, or make an empty one to continue without its metrics"
        ) from None
    with file:
        until = time.monotonic() + PATIENCE
        while not _lock(file):
            if time.monotonic() > until:
                raise ValueError(f"another process is writing {path}: wait for it or stop it")
            time.sleep(PATIENCE / 50)
        try:
            yield os.fstat(file.fileno())
        finally:  # processes that were forked meanwhile may still have the file open
            fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: BinaryIO) -> bool:
    """Lock a file, unless another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_checkpoint(path: Path, prefixes: tuple[str, ...] | None = None) -> tuple[Run, Checkpoint]:
    """A run with its last checkpoint, or with the one that `path` names.

    Args:
        path: A run directory, or a directory in its `checkpoints`.
        prefixes: Read only the arrays whose names begin with one of these.

    Raises:
        ValueError: There is no run or no checkpoint, or the checkpoint is damaged, of another format, or of a run
            with other settings.
    """
    run = Run.open(checkpoint.run_directory(path))
    last = run.checkpoints()[-1:] if run.path == path else [path]
    if not last:
        raise ValueError(f"{path} has no checkpoint yet: train on, or choose another run")
    return run, checkpoint.load(last[0], checkpoint.fingerprint(run.config), prefixes)
