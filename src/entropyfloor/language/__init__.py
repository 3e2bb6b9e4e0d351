"""Language models in RL: losses, tasks, rewards, sampling, a trainer, evaluation and benchmarks.

Importing this package imports neither torch nor transformers: the processes that check rewards need none of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropyfloor.language.load import load_language_model

__all__ = ["load_language_model"]


def __getattr__(name: str) -> Any:
    if name == "load_language_model":
        from entropyfloor.language.load import load_language_model

        return load_language_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
