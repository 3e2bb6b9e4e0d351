"""One line instead of a traceback when an optional library is missing."""

import importlib


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
