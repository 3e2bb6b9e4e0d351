"""Continuous and discrete control in JAX: environments, replay, agents and trainers."""

from typing import Any

from entropyfloor.extras import require

require("control", "jax", "flax", "optax")

__all__ = ["Policy", "load_policy"]


def __getattr__(name: str) -> Any:
    """Import `load` when one of its names is first used."""
    if name in __all__:
        from entropyfloor.control import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
