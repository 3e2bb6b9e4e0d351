"""Continuous control in JAX: environments, replay, agents and the trainer."""

from entropyfloor.extras import require

require("control", "jax", "flax", "optax", "gymnasium", "mujoco")
