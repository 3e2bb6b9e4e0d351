"""Writing a run directory, so that a kill at any moment loses nothing that was on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as dump_arrays

from entropyfloor.extras import require
from entropyfloor.runs import archive, files, machine, schema
from entropyfloor.runs.needs import KEPT
from entropyfloor.runs.run_reader import CONFIG, EVALUATION, MACHINE, METRICS, STATUS, read_config, read_lines
from entropyfloor.runs.vocabulary import is_known

ERROR = "error.txt"
ARRAYS, STATE, SUMS = "arrays.safetensors", "state.json", "SHA256SUMS"
"""Files of a checkpoint; the last one has the format of `sha256sum`."""
FORMAT, ARRAYS_CHECKED = 3, 2
"""Format of a checkpoint, and the earlier one in which only the arrays have a checksum. Others are refused."""

PATIENCE = 0.5
"""Seconds to wait for a lock: a report, or a run that is refused, holds it for a moment only."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a trainer needs to continue."""

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    path: Path
    """Its directory."""

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Name the checkpoint in any error of the body, which restores a trainer from it.

        Raises:
            ValueError: An entry is missing, or the trainer cannot use it.
        """
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise _unusable(self.path, error) from error


class Run:
    """A run directory that is being written. Build it with `Run.create` or `Run.open`.

    Example:
        >>> run = Run.create(Path("runs/example"), {"domain": "control", "seed": 0})
        >>> with run.recording():
        ...     run.log(1000, {"return": 12.5, "realised_entropy": -3.0, "floor": -3.0})
        ...     run.save(1000, {"weight": np.zeros(3)}, {"episode": 1})
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self._settings = (path / CONFIG).read_bytes()
        self._step, self._seconds = 0, 0.0
        self._since = time.perf_counter()
        self._size: int | None = None
        """Size of the metrics in bytes after the last line of this object."""
        self._held: os.stat_result | None = None
        """Identity of the metrics file that this object has locked."""

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], *, not_results: Sequence[str] = ()) -> Run:
        """Begin a run in a new directory, or in one that holds none.

        Args:
            path: Directory; must not hold a run yet.
            config: Every setting, as values that TOML can hold; settings that are None are left out.
            not_results: Names of the settings that do not change results, for the report.

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
                files.replace(path / MACHINE, _json({**machine.describe(), "not_results": list(not_results)}))
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
        self._append(step, {name: value if math.isfinite(value) else None for name, value in plain.items()})
        self._step = step

    def save(
        self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], *, keep: int = KEPT
    ) -> Path:
        """Write a checkpoint beside the others, then rename it, then drop all but the last `keep`.

        Args:
            step: Step of the run.
            arrays: Parameters, optimiser state, replay, …
            state: Values that JSON can hold: counters, states of generators, …
            keep: Number of checkpoints that stay.

        Returns:
            Its directory.
        """
        self._check_there()
        home = self.path / "checkpoints"
        final, partial = home / f"{step:012d}", home / f".{step:012d}.partial"
        if final.exists():  # a run is deterministic: the same step is the same checkpoint
            return final
        for leftover in home.glob(".*"):  # from a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _dump(partial, step, arrays, state, _fingerprint(self.config))
        except BaseException:  # give a full disk its space back
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(final)
        self._step = max(self._step, step)
        files.sync(home)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old.rename(home / f".{old.name}.old"))  # a kill in between leaves no half of one
        return final

    def keep_evaluation(self, results: dict[str, Any]) -> Path:
        """Write the results of an evaluation, as values that JSON can hold, and return the file."""
        file = self.path / EVALUATION
        files.replace(file, _json({**results, "machine": machine.describe()}))
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
        _dump(home, step, arrays, state, _fingerprint(self.config))
        return home

    def checkpoints(self) -> list[Path]:
        """Directories of complete checkpoints, oldest first."""
        home = self.path / "checkpoints"
        return sorted(path for path in home.glob("[0-9]" * 12) if path.is_dir())

    def latest(self, prefixes: tuple[str, ...] | None = None) -> Checkpoint | None:
        """The last checkpoint, or None.

        Args:
            prefixes: Read only the arrays whose names begin with one of these. The checksums cover all of them.

        Raises:
            ValueError: It is damaged, of another format, or of a run with other settings.
        """
        saved = self.checkpoints()
        return _load(saved[-1], _fingerprint(self.config), prefixes) if saved else None

    def resume(self) -> Checkpoint | None:
        """Continue from the last checkpoint, or from the start if there is none.

        Lines that were logged after it stay in the file; readers drop them, because the run repeats them.
        """
        with _locked(self.path):
            checkpoint = self.latest()
            with (self.path / METRICS).open("r+b") as file:  # a kill may have cut the last line short
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
            lines = read_lines(self.path)
            self._seconds = max((line["seconds"] for line in lines), default=0.0)
            self._since = time.perf_counter()
            self._step = checkpoint.step if checkpoint else -1  # -1: no earlier line counts
            self._append(self._step, {"event": "resumed"})
        return checkpoint

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep `status.json` up to date while the body trains, and lock the directory.

        Raises:
            ValueError: Another process is recording this run, or has done so since it was created or resumed.
            RuntimeError: The metrics or the settings were cut, deleted or replaced meanwhile.
        """
        with _locked(self.path) as held:
            if self._size not in (None, held.st_size):
                raise ValueError(f"another process has written {self.path} meanwhile: resume it")
            self._held = held
            try:
                self._check_there()
                self._status("running")
                (self.path / ERROR).unlink(missing_ok=True)  # of a failure that this run goes on from
                yield
                self._check_there()
            except KeyboardInterrupt:
                self._status("interrupted", "stopped by the user")
                raise
            except BaseException as error:
                if self.path.exists():
                    error.add_note(f"what was saved is in {self.path}")
                with suppress(OSError):  # a full disk takes no status either: the first error is the one to report
                    self._status("failed", f"{type(error).__name__}: {error}")
                    files.replace(self.path / ERROR, traceback.format_exc().encode())
                raise
            finally:
                self._held = None
            self._status("finished")

    def _append(self, step: int, values: dict[str, Any]) -> None:
        self._check_there()
        seconds = round(self._seconds + time.perf_counter() - self._since, 3)
        with (self.path / METRICS).open("ab") as file:  # in one write, so that only the last line may be cut
            file.write(_json({"step": step, "seconds": seconds, **values}))
            file.flush()
            self._size = file.tell()

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
        status = {"state": state, "reason": reason, "step": self._step, "time": machine.now()}
        files.replace(self.path / STATUS, _json(status))


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


def _dump(
    path: Path, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], settings: int
) -> None:
    """Write arrays, plain state without code, and the checksums of both."""
    header = {"format": FORMAT, "step": step, "settings": settings, "state": dict(state)}
    contents = {
        ARRAYS: dump_arrays({name: np.asarray(array, order="C") for name, array in arrays.items()}),
        STATE: _json(header),
    }
    for name, data in {**contents, SUMS: _checksums(contents)}.items():
        files.write(path / name, data)
    files.sync(path)


def open_checkpoint(path: Path, prefixes: tuple[str, ...] | None = None) -> tuple[Run, Checkpoint]:
    """A run with its last checkpoint, or with the one that `path` names.

    Args:
        path: A run directory, or a directory in its `checkpoints`.
        prefixes: Read only the arrays whose names begin with one of these.

    Raises:
        ValueError: There is no run or no checkpoint, or the checkpoint is damaged, of another format, or of a run
            with other settings.
    """
    run = Run.open(run_directory(path))
    last = run.checkpoints()[-1:] if run.path == path else [path]
    if not last:
        raise ValueError(f"{path} has no checkpoint yet: train on, or choose another run")
    return run, _load(last[0], _fingerprint(run.config), prefixes)


def run_directory(path: Path) -> Path:
    """The directory of a run, from itself or from a directory in its `checkpoints`."""
    return path.absolute().parent.parent if (path / STATE).exists() else path


def _load(path: Path, settings: int, prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    try:
        with files.mapped(path / ARRAYS) as arrays:
            contents: dict[str, Any] = {ARRAYS: arrays, STATE: files.read(path / STATE)}
            header = json.loads(contents[STATE])
            if header["format"] == ARRAYS_CHECKED:
                intact = zlib.crc32(arrays) == header["checksum"]
            elif header["format"] == FORMAT:
                intact = _checksums(contents) == files.read(path / SUMS)
            else:
                raise ValueError(
                    f"its format is {header['format']}, this version reads {ARRAYS_CHECKED} and {FORMAT}"
                )
        if not intact:
            raise ValueError("the checksum of its files is wrong")
        if header["settings"] != settings:
            raise ValueError("it belongs to a run with other settings")
        step, state = header["step"], header["state"]
        if type(step) is not int or not isinstance(state, dict):
            raise TypeError(f"{STATE} has a step or a state of another type")
        return Checkpoint(step, _arrays(path / ARRAYS, prefixes), state, path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise _unusable(path, error) from error


def _arrays(file: Path, prefixes: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    with safe_open(file, framework="numpy") as stored:
        names = [name for name in stored.keys() if prefixes is None or name.startswith(prefixes)]  # noqa: SIM118
        return {name: stored.get_tensor(name) for name in names}


def _unusable(path: Path, error: Exception) -> ValueError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ValueError(
        f"checkpoint {path} cannot be used: {reason}. Delete this directory to continue from the one before"
    )


def _checksums(contents: Mapping[str, bytes | mmap]) -> bytes:
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()]
    return "".join(lines).encode()


def _fingerprint(config: Mapping[str, Any]) -> int:
    """Checksum of the settings without `out`, since a run directory may be moved."""
    settings = {name: value for name, value in config.items() if name != "out"}
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
