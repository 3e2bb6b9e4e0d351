"""Checkpoints of a run: arrays and plain state, with their checksums, and no code."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from entropyfloor.runs import files

ARRAYS, STATE, SUMS = "arrays.safetensors", "state.json", "SHA256SUMS"
"""Files of a checkpoint; the last one has the format of `sha256sum`."""
FORMAT = 3
"""Format of a checkpoint: others are refused."""


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
            way_out = "Its checksums are right: use the versions in machine.json"
            raise _unusable(self.path, error, way_out) from error


def run_directory(path: Path) -> Path:
    """The directory of a run, from itself or from a directory in its `checkpoints`."""
    return path.absolute().parent.parent if (path / STATE).exists() else path


def dump(path: Path, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], settings: int) -> None:
    """Write arrays, plain state without code, and the checksums of both.

    The checksums are those of the files as they are read back: they tell what happens to them later.

    Raises:
        OSError: A file cannot be written; the disk is full, say.
    """
    header = {"format": FORMAT, "step": step, "settings": settings, "state": dict(state)}
    files.write(path / STATE, files.line(header))
    _write_arrays(path / ARRAYS, arrays)
    shutil.copymode(path / STATE, path / ARRAYS)  # safetensors makes a file that only its owner can read
    files.sync(path / ARRAYS)
    files.write(path / SUMS, _checksums(path))
    files.sync(path)


def _write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays from where they are: a copy of a replay may not fit into memory."""
    try:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, file)
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # what Rust says of the system's errors
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


def load(path: Path, settings: int, prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: Its directory.
        settings: Fingerprint of the settings of the run.
        prefixes: Read only the arrays whose names begin with one of these. The checksums cover all of them.

    Raises:
        ValueError: It is damaged, of another format, or of a run with other settings.
    """
    try:
        if _checksums(path) != files.read(path / SUMS):
            raise ValueError("the checksum of its files is wrong")
        header = json.loads(files.read(path / STATE))
        written, step, state = header["format"], header["step"], header["state"]
        if header["settings"] != settings:
            raise ValueError("it belongs to a run with other settings")
        if type(step) is not int or not isinstance(state, dict):
            raise TypeError(f"{STATE} has a step or a state of another type")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _unusable(path, error) from error
    if written != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {written}, this version reads {FORMAT}: use the version that wrote it"
        )
    try:
        return Checkpoint(step, _arrays(path / ARRAYS, prefixes), state, path)
    except (OSError, ValueError, SafetensorError) as error:
        raise _unusable(path, error) from error


def _arrays(file: Path, prefixes: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    with safe_open(file, framework="numpy", backend="pread") as stored:  # a map would count as memory
        names = [name for name in stored.keys() if prefixes is None or name.startswith(prefixes)]  # noqa: SIM118
        return {name: stored.get_tensor(name) for name in names}


def _unusable(
    path: Path, error: Exception, way_out: str = "Delete this directory to continue from the one before"
) -> ValueError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ValueError(f"checkpoint {path} cannot be used: {reason}. {way_out}")


def _checksums(path: Path) -> bytes:
    return "".join(f"{files.sha256(path / name)}  {name}\n" for name in (ARRAYS, STATE)).encode()


def fingerprint(config: Mapping[str, Any]) -> int:
    """Checksum of the settings without `out`, since a run directory may be moved."""
    settings = {name: value for name, value in config.items() if name != "out"}
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())
