"""One line instead of a traceback: for an optional library that is missing, and for errors that say enough."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

REFUSED = (ValueError, ImportError)
"""Errors of what cannot be carried out."""
FAILED = (OSError, RuntimeError, FloatingPointError, OverflowError, MemoryError)
"""Errors of what was begun."""
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "unable to allocate",
    "resource_exhausted",
)
"""What PyTorch, NumPy and JAX say where memory is too small, each in an error of its own."""


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
            if error.name != module:  # the module is there; something it needs is not
                raise
            raise ImportError(
                f"{module!r} is not installed: pip install 'entropyfloor[{extra}]' brings it"
            ) from None


def brief(error: BaseException, most: int = 300) -> str:
    """The message of somebody else's error as a part of one line of ours, cut to `most` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's
    return named or any(words in str(error).lower() for words in NO_MEMORY)


@contextmanager
def out_of_memory_hint(way: str) -> Iterator[None]:
    """Add the way out to the error of a failed allocation; of several around each other the innermost one does."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) and not getattr(error, "__notes__", None):
            error.add_note(way)
        raise


def one_line(error: BaseException) -> str:
    """What an error and its notes say, in one line, with the way out where memory is too small."""
    said = str(error) or type(error).__name__
    if is_out_of_memory(error):
        said = f"memory is too small for this ({said.splitlines()[0]}): choose a smaller batch, model or replay"
    notes = [note for note in getattr(error, "__notes__", []) if "\n" not in note]  # JAX's own have several lines
    line = "; ".join([" ".join(said.split()), *notes])
    # A file that somebody else has written may hold what a terminal takes for a command.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
