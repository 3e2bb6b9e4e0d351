"""One line instead of a traceback: for an optional library that is missing, and for errors that say enough."""

import importlib

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


def one_line(error: BaseException) -> str:
    """What an error and its notes say, in one line, with the way out where memory is too small."""
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said.lower() for words in NO_MEMORY):
        reason = next(iter(said.splitlines()), "")
        said = f"memory is too small for this ({reason}): choose a smaller batch, model or replay"
    notes = [note for note in getattr(error, "__notes__", []) if "\n" not in note]  # JAX's own have several lines
    line = "; ".join([" ".join(said.split()), *notes])
    # A file that somebody else has written may hold what a terminal takes for a command.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
