"""Archives: many run directories in one ZIP file, compressed by LZMA, which is read without unpacking it.

A path may lead into an archive: `results/sac.runs.zip/sac-era/seed-0/config.toml`.
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

SUFFIX = ".runs.zip"
DAMAGED = (
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
)
"""What `zipfile` raises for a file that it cannot read."""
CHUNK = 4096
"""Compressed bytes that are read at a time. LZMA makes up to 30 MB of them, whatever size the archive states."""


def split(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads to or into, and the path in it; None if there is none."""
    if SUFFIX not in str(path):  # a short cut: a large report asks for ten thousand files
        return None
    for parent in (path, *path.parents):
        if parent.name.endswith(SUFFIX) and parent.is_file():
            inside = path.relative_to(parent).as_posix()
            return parent, "" if inside == "." else inside
    return None


def read(archive: Path, name: str, most: int | None = None) -> bytes:
    """Read a file of an archive.

    Raises:
        FileNotFoundError: The archive has no such file.
        ValueError: The archive is damaged, or the file has more than `most` bytes.
    """
    file, members = _opened(archive)
    if name not in members:
        raise FileNotFoundError(f"{archive} has no {name}")
    info = members[name]
    if most is not None and info.file_size > most:
        raise ValueError(f"{info.filename} has {info.file_size:,} bytes, more than {most:,}")
    try:
        with file.open(info) as content:  # which ends at the stated size, and compares the checksum there
            return b"".join(iter(lambda: content.read(CHUNK), b""))
    except (*DAMAGED, OSError) as error:
        raise ValueError(f"{archive.name} cannot be read: {error}") from None


def names(archive: Path, below: str = "") -> list[str]:
    """Files of an archive, or of a directory in it, sorted.

    Raises:
        ValueError: The archive is damaged.
    """
    return sorted(name for name in _opened(archive)[1] if not below or name.startswith(f"{below}/"))


def packed(files: Mapping[str, bytes]) -> bytes:
    """An archive of files, by their paths in it. The same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as file:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_LZMA, 0o644 << 16
            file.writestr(info, files[name])
    return buffer.getvalue()


def _opened(archive: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    status = archive.stat()
    return _open(archive, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)  # a report reads some hundred files of each, and opening one reads its whole directory
def _open(archive: Path, *_version: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    try:
        file = zipfile.ZipFile(archive)
    except DAMAGED as error:
        raise ValueError(f"{archive} is damaged: {error}") from None
    members = {info.filename: info for info in file.infolist() if not info.is_dir()}
    for name in map(PurePosixPath, members):
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{archive} is damaged: {str(name)!r} leads out of it")
    return file, members
