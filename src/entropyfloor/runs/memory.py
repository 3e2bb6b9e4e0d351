"""Refuse what memory cannot hold, before it is allocated."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""What a container may use."""
SHARE = 0.9
"""Of the memory; the rest is for the system."""


def check_memory(count: int, each: int, what: str, option: str) -> None:
    """Refuse to begin what this machine's memory cannot hold.

    Args:
        count: How many there are to be.
        each: Bytes of each.
        what: Name of them, in the plural.
        option: The option, or options, by which there are fewer.

    Raises:
        ValueError: They need more than `SHARE` of the memory that there is.
    """
    limit = SHARE * _memory()
    if (needed := count * each) > limit:
        most = f" to at most {fits}" if (fits := int(limit / each)) else ""
        raise ValueError(
            f"{count:,} {what} need {needed / 2**30:,.1f} GiB, and this machine has {limit / 2**30:,.1f} GiB for "
            f"them: lower {option}{most}"
        )


def _memory() -> int:
    """Bytes that this process may use: those of the machine, or of the container that it is in."""
    total: int = psutil.virtual_memory().total
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(total, int(limit)) if limit.isdigit() else total
