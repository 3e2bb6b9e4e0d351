"""Stored settings of earlier versions, as today's version has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKER = "names"
"""Key of `config.toml` in runs that have today's names: `names = 2`. It is no setting."""
HEADS = {"clip": "tanh", "hard-clip": "clip"}
"""Control before `names = 2`: `clip` was the tanh bound on log σ, `hard-clip` the clip. For discrete actions, both
were the plain softmax."""
ADDED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("control", "head", {"backend": "native", "precision": "fp32"}),
    (
        "control",
        "residual_entropy",
        {"alpha_weight": "alpha", "clamp_target": True, "normalise_observations": False, "critics": 2},
    ),
    ("vision", "model", {"pretrained": False, "label_noise": 0.0}),
    (
        "language",
        "model",
        {
            "digits": 2,
            "chain_length": 5,
            "advantages": "group",
            "smoothing": 0.05,
            "right_weight": 0.1,
            "era_signs": "positive",
            "era_tokens": "all",
            "controller": "none",
            "min_entropy": "auto",
            "min_entropy_decay": 0.0,
            "entropy_ema": 0.8,
            "margin": 0.03,
            "max_scale": 8.0,
            "band": 1.2,
            "bonus_step": 1e-3,
            "bonus_max": 0.5,
        },
    ),
)
"""Settings that were added when there were runs without them: the domain, a setting by which these runs are known,
and the values that say how they were made."""


def current(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run of any version, with today's names and values, without the marker, and with `ADDED`.

    Vision and language once called the precision fp32 `no`. In control, only discrete actions have a
    `min_entropy`. If a run stored none, `clip` and `tanh` mean the softmax, as today.

    Args:
        settings: The content of `config.toml`.
    """
    domain, renamed = settings.get("domain", "control"), dict(settings)
    for where, known_by, added in ADDED:
        if domain == where and known_by in settings:
            renamed = {**added, **renamed}
    if domain != "control":
        if settings.get("precision") == "no":
            renamed["precision"] = "fp32"
        return renamed
    if renamed.pop(MARKER, None) is not None:
        return renamed
    if "settings" in renamed:
        renamed["networks"] = renamed.pop("settings")
    head = settings.get("head")
    if isinstance(head, str) and head in HEADS:
        renamed["head"] = "softmax" if settings.get("min_entropy") is not None else HEADS[head]
    return renamed
