"""The activations, modules and distributions for PyTorch."""

from entropyfloor.extras import require

require("torch", "torch")

from entropyfloor.torch import distributions, functional, nn, tokens  # noqa: E402

__all__ = ["distributions", "functional", "nn", "tokens"]
