"""Today's names of settings that earlier versions stored under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKER = "names"
"""Key of `config.toml` in runs that have today's names: `names = 2`. It is no setting."""
HEADS = {"clip": "tanh", "hard-clip": "clip"}
"""Control before `names = 2`: `clip` was the tanh bound on log σ, `hard-clip` the clip. For discrete actions, both
were the plain softmax."""


def current(settings: Mapping[str, Any], *, discrete: bool = False) -> dict[str, Any]:
    """Settings of a run of any version, with today's names and values, and without the marker.

    Args:
        settings: The content of `config.toml`.
        discrete: Whether the actions are discrete. A stored `min_entropy` says so too, as continuous actions have
            none.
    """
    renamed = dict(settings)
    if settings.get("domain", "control") != "control" or renamed.pop(MARKER, None) is not None:
        return renamed
    if "settings" in renamed:
        renamed["networks"] = renamed.pop("settings")
    head = settings.get("head")
    if isinstance(head, str) and head in HEADS:
        is_discrete = discrete or settings.get("min_entropy") is not None
        renamed["head"] = "softmax" if is_discrete else HEADS[head]
    return renamed
