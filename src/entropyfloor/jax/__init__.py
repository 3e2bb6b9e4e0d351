"""The activations, modules and distributions for JAX."""

from entropyfloor.extras import require

require("jax", "jax", "flax")

from entropyfloor.jax import distributions, functional, nn, nnx  # noqa: E402

__all__ = ["distributions", "functional", "nn", "nnx"]
