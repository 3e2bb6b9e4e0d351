"""One-line messages: for optional libraries that are missing, and for errors that already say enough."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Status(IntEnum):
    """Exit statuses of the commands."""

    DONE = 0
    BROKEN_FLOOR = 1
    """An audit found an entropy below the floor."""
    REFUSED = 2
    """The command cannot be carried out: wrong words or settings, a missing file or library."""
    FAILED = 3
    """The command has begun and failed."""
    INTERRUPTED = 130
    """Ctrl-C or SIGTERM, after what was to be saved was saved."""
    CLOSED_PIPE = 141
    """The reader of the output has gone, as shells have it for SIGPIPE."""


class BrokenFloorError(RuntimeError):
    """A floor is broken; the message says by how much and in what share of the samples."""


REFUSED = (ValueError, ImportError)
"""Errors of a command that cannot be carried out."""
FAILED = (OSError, RuntimeError, FloatingPointError, OverflowError, MemoryError)
"""Errors of a command that has begun."""
SAVED = "what was saved is in"
"""Beginning of the note that a run adds to an error after it has begun."""
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "unable to allocate",
    "resource_exhausted",
)
"""Words of PyTorch, NumPy and JAX where memory is too small; each raises a type of its own."""


def require(extra: str, *modules: str) -> None:
    """Import `modules`, or say which extra to install.

    Args:
        extra: Name of the extra in `pyproject.toml` that brings the modules.
        modules: Top-level module names as they are imported.

    Raises:
        ImportError: One line that names the missing module and the command that installs it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:  # the module is installed; something that it imports is not
                raise
            command = f"pip install 'entropyfloor[{extra}]'"
            if module == "dm_control" and sys.version_info >= (3, 13):  # its labmaze has no wheel for 3.13
                command = "pip install --no-deps dm_control"
            raise ImportError(f"{module!r} is not installed: {command} brings it") from None


def brief(error: BaseException, most: int = 300) -> str:
    """The message of a library's error without line breaks, cut to `most` characters."""
    return shortened(str(error), most) or type(error).__name__


def shortened(text: str, most: int = 120) -> str:
    """A text in one line, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's
    return named or any(words in str(error).lower() for words in NO_MEMORY)


def has_begun(error: BaseException) -> bool:
    """Whether a run had begun when the error was raised, so that it is a failure of this run alone."""
    return any(note.startswith(SAVED) for note in getattr(error, "__notes__", ()))


@contextmanager
def out_of_memory_hint(hint: str) -> Iterator[None]:
    """Add a hint to the error of a failed allocation; of nested ones only the innermost adds its own."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) and not getattr(error, "__notes__", None):
            error.add_note(hint)
        raise


def one_line(error: BaseException) -> str:
    """The message of an error and its notes in one line, with a hint where memory is too small."""
    message = str(error) or type(error).__name__
    if is_out_of_memory(error):
        message = (
            f"memory is too small for this ({message.splitlines()[0]}): choose a smaller batch, model or replay"
        )
    notes = [note for note in getattr(error, "__notes__", []) if "\n" not in note]  # JAX's own have several lines
    line = "; ".join([" ".join(message.split()), *notes])
    return printable(line)


def printable(text: str) -> str:
    """A text in one line for a terminal: files from elsewhere may hold characters that it takes for commands."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
