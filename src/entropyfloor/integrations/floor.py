"""What hosts share with our trainer: the settings that scales follow from, and the controller of era-floor."""

from __future__ import annotations

from typing import Any

from entropyfloor.language import update
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.controllers import Controller

FLOOR = ("min_entropy", "min_entropy_decay", "gain", "integral_gain", "entropy_ema", "margin", "max_scale")
"""Settings of era-floor."""
RULE = ("k", "top_fraction", "min_advantage", "era_signs", "era_tokens")
"""Settings that a scale follows from."""
OTHERS = ("scale_advantages", "freeze_scale")
"""Settings of what is done with scales."""
STAGES = ("omega_low", "omega_high", "second_stage_steps", "omega_low_2", "omega_high_2")
"""Settings of the thresholds, which era-floor does not have."""


def controller_of(settings: Any, *, top_k: str) -> Controller:
    """The controller of era-floor for settings of a host; with head='era' it does nothing.

    Args:
        settings: A dataclass whose fields of these names mean the same as those of `LanguageConfig`.
        top_k: Name of its field for the number of logits that the first stage keeps.

    Raises:
        ValueError: A value is out of its range, or would be ignored.
    """
    if settings.head not in ("era", "era-floor"):
        raise ValueError(f"head={settings.head!r} must be era or era-floor")
    defaults = type(settings)
    given = [name for name in (*STAGES, top_k) if getattr(settings, name) != getattr(defaults, name)]
    if settings.head == "era-floor" and given:
        raise ValueError(f"head='era-floor' holds the entropy at min_entropy: leave out {', '.join(given)}")
    names = ("head", *RULE, *OTHERS, *FLOOR)
    shared = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
    return Controller(LanguageConfig(**shared).resolved())


def hyperparameters_of(
    settings: Any, controller: Controller, omega_low: float, omega_high: float
) -> update.Hyperparameters:
    """Hyperparameters of the scales in a rollout; under era-floor `omega_low` is the floor.

    Where `era` is off in them, no response is scaled, and k is 1.
    """
    rule = {name: getattr(settings, name) for name in RULE if hasattr(settings, name)}
    thresholds = {"era": True, "omega_low": omega_low, "omega_high": omega_high}
    return update.Hyperparameters(**rule | thresholds | controller.changes(omega_low))
