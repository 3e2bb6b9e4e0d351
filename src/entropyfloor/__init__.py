"""Output activations that put a floor under the entropy of whatever a network outputs.

The method is ERA, Entropy Regularizing Activation (arXiv 2510.08549). The activations live in
`entropyfloor.torch` and `entropyfloor.jax`; importing this package imports neither framework.
"""

import importlib
from types import ModuleType

__version__ = "0.2.0"

_PACKAGES = ("audit", "control", "jax", "language", "report", "runs", "targets", "torch", "vision", "watch")


def __getattr__(name: str) -> ModuleType:
    """Import a package on first use, so that `entropyfloor.torch` works after `import entropyfloor`."""
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
