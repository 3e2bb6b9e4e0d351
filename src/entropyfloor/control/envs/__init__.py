"""One constructor for every simulator.

What comes out of `make` is always the same: flat float32 observations, float32 actions in [-1, 1], one reward a
step, a time limit that truncates and never terminates. Nothing resets by itself: after `terminated` or
`truncated` the caller calls `reset`, so no transition can cross an episode.
"""

from entropyfloor.extras import require

require("control", "gymnasium", "mujoco")  # agents alone do without

from entropyfloor.control.envs.make import make, names  # noqa: E402

__all__ = ["make", "names"]
