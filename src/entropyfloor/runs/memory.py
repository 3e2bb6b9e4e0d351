"""Refusal of what memory cannot hold, before it is allocated."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of a container."""
SHARE = 0.9
"""Share of the memory that may be used; the rest is for the system."""


def check_memory(count: int, each: int, what: str, option: str) -> None:
    """Refuse to begin what this machine's memory cannot hold.

    Args:
        count: Number of items.
        each: Bytes of an item.
        what: Name of the items, in the plural.
        option: The option, or options, that make them fewer.

    Raises:
        ValueError: The items need more than `SHARE` of the memory.
    """
    limit = SHARE * _memory()
    if (needed := count * each) > limit:
        most = f" to at most {fits}" if (fits := int(limit / each)) else ""
        raise ValueError(
            f"{count:,} {what} need {needed / 2**30:,.1f} GiB, and this machine has {limit / 2**30:,.1f} GiB for "
            f"them: lower {option}{most}"
        )


def _memory() -> int:
    """Bytes that this process may use: those of the machine, or of its container."""
    total: int = psutil.virtual_memory().total
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(total, int(limit)) if limit.isdigit() else total
