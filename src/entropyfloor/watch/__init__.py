"""A table of runs in the terminal, from their files alone: live by `watch([Path("runs")])`, once by `snapshot`."""

from entropyfloor.extras import require

require("runs", "rich")

from entropyfloor.watch.table import snapshot, watch  # noqa: E402

__all__ = ["snapshot", "watch"]
