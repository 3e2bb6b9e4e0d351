"""Reading and writing files so that they are whole whenever the process or the machine stops."""

import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from entropyfloor.runs import archive


def read(path: Path, most: int | None = None) -> bytes:
    """Read a regular file, on disk or in an archive.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is a pipe, a device or a directory, on which a reader might wait for ever, or it has more
            than `most` bytes.
    """
    if inside := archive.split(path):
        return archive.read(*inside, most)
    size = _size(path)
    if most is not None and size > most:
        raise ValueError(f"{path.name} has {size:,} bytes, more than {most:,}")
    return path.read_bytes()


def sha256(path: Path) -> str:
    """Checksum of a regular file, which is read in parts: a large one takes no memory.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is a pipe, a device or a directory.
    """
    _size(path)  # refuses what is no regular file
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    """Bytes of a regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is no regular file")
    return status.st_size


def line(value: Any) -> bytes:
    """A value as a line of JSON."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Several processes may do so at once. They may be on several machines, so the partial file has a random name
    instead of a process number.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(beside, data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # it still exists only if something went wrong


def sync(path: Path) -> None:
    """Wait until a file is on disk, or a rename in a directory: it then survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
