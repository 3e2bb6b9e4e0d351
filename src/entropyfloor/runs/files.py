"""Files that are whole, whenever the process or the machine stops."""

import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read(path: Path, most: int | None = None) -> bytes:
    """What is in a file.

    Raises:
        OSError: There is none, or it cannot be read.
        ValueError: It is a pipe, a device or a directory, for which a reader might wait for ever, or has more than
            `most` bytes.
    """
    size = _size(path)
    if most is not None and size > most:
        raise ValueError(f"{path.name} has {size:,} bytes, more than {most:,}")
    return path.read_bytes()


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file as a buffer whose pages are read as they are needed, so that a large one takes no memory.

    Raises:
        OSError: There is none, or it cannot be read.
        ValueError: It is a pipe, a device or a directory, or it is empty.
    """
    if not _size(path):
        raise ValueError(f"{path.name} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _size(path: Path) -> int:
    """Bytes of a regular file."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is no regular file")
    return found.st_size


def write(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part; several processes may.

    They may be on several machines, so a process number is no name of its own for what is being written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(beside, data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # which is there only if something went wrong


def sync(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
