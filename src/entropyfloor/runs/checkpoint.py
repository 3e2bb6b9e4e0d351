"""Checkpoints of a run: arrays and plain state, with their checksums, and no code."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as dump_arrays

from entropyfloor.runs import files

ARRAYS, STATE, SUMS = "arrays.safetensors", "state.json", "SHA256SUMS"
"""Files of a checkpoint; the last one has the format of `sha256sum`."""
FORMAT, ARRAYS_CHECKED = 3, 2
"""Format of a checkpoint, and the earlier one in which only the arrays have a checksum. Others are refused."""


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


def run_directory(path: Path) -> Path:
    """The directory of a run, from itself or from a directory in its `checkpoints`."""
    return path.absolute().parent.parent if (path / STATE).exists() else path


def dump(path: Path, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], settings: int) -> None:
    """Write arrays, plain state without code, and the checksums of both."""
    header = {"format": FORMAT, "step": step, "settings": settings, "state": dict(state)}
    contents = {
        ARRAYS: dump_arrays({name: np.asarray(array, order="C") for name, array in arrays.items()}),
        STATE: files.line(header),
    }
    for name, data in {**contents, SUMS: _checksums(contents)}.items():
        files.write(path / name, data)
    files.sync(path)


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


def fingerprint(config: Mapping[str, Any]) -> int:
    """Checksum of the settings without `out`, since a run directory may be moved."""
    settings = {name: value for name, value in config.items() if name != "out"}
    return zlib.crc32(json.dumps(settings, sort_keys=True).encode())
