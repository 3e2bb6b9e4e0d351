"""A run directory: the one thing that every trainer writes and every report reads.

    config.toml             every setting
    machine.json            versions, hardware, command, commit, start
    metrics.jsonl           append-only, one line an event: step, wall seconds, quantities
    checkpoints/<step>/     arrays and plain state, no code, and their checksums; written beside, then renamed
    status.json             running, finished, interrupted or failed with the reason
    error.txt               where it failed, if it did

A kill at any moment leaves a directory that can be read and resumed. No framework is imported here.
"""

from entropyfloor.extras import require

require("runs", "safetensors", "psutil")

from entropyfloor.runs.checkpoint import Checkpoint  # noqa: E402
from entropyfloor.runs.directory import Run  # noqa: E402
from entropyfloor.runs.run_reader import Record, find_runs, read_run  # noqa: E402
from entropyfloor.runs.vocabulary import QUANTITIES, Quantity  # noqa: E402

__all__ = ["QUANTITIES", "Checkpoint", "Quantity", "Record", "Run", "find_runs", "read_run"]
