"""What hosts share with our trainer: settings, the controller of era-floor, what a checkpoint has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entropyfloor.language import update
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.controllers import Controller

RULE = ("k", "top_fraction", "min_advantage", "era_signs", "era_tokens")
"""Settings that a scale follows from."""
SETTINGS = (
    *("head", *RULE, "scale_advantages", "freeze_scale"),
    *("min_entropy", "min_entropy_decay", "gain", "integral_gain", "entropy_ema", "margin", "max_scale"),
)
"""Settings that mean the same as those of `LanguageConfig`; the last seven are of era-floor."""
THRESHOLDS = ("omega_low", "omega_high", "omega_low_2", "omega_high_2")
STAGES = (*THRESHOLDS, "second_stage_steps")
"""Settings of the thresholds, which era-floor does not have."""


def controller_of(settings: Any, *, top_k: str) -> Controller:
    """The controller of era-floor for settings of a host, which it checks; with head='era' it does nothing.

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
    if settings.second_stage_steps is None and (late := [name for name in THRESHOLDS[2:] if name in given]):
        raise ValueError(f"{', '.join(late)} would be ignored without second_stage_steps")
    shared = {name: getattr(settings, name) for name in SETTINGS if hasattr(settings, name)}
    if settings.head == "era":
        shared |= {name: getattr(settings, name) for name in THRESHOLDS}
        shared |= {"top_k": getattr(settings, top_k), "second_stage": 0.5}  # when it begins plays no part here
    # The host knows how many updates a rollout has, under names of its own.
    return Controller(LanguageConfig(**shared, minibatches=2).resolved())


def save_state(file: Path, controller: Controller, initial_entropy: float | None) -> None:
    """Write the entropy that automatic thresholds follow from, and the controller's memory."""
    file.write_text(json.dumps({"initial_entropy": initial_entropy, "controller": controller.state}))


def load_state(file: Path, controller: Controller) -> float | None:
    """Read what `save_state` wrote, from a run of either head, and return the entropy that the run began with.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        state = json.loads(file.read_text())
        initial_entropy = None if state["initial_entropy"] is None else float(state["initial_entropy"])
        controller.state = state.get("controller")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): resume from another checkpoint") from None
    if controller.rule == "era-floor" and initial_entropy is not None:
        controller.decide(initial_entropy)  # the checkpoint may have another floor, or none, from head='era'
    return initial_entropy


def hyperparameters_of(
    settings: Any, controller: Controller, omega_low: float, omega_high: float
) -> update.Hyperparameters:
    """Hyperparameters of the scales in a rollout; under era-floor `omega_low` is the floor.

    Where `era` is off in them, no response is scaled, and k is 1.
    """
    rule = {name: getattr(settings, name) for name in RULE if hasattr(settings, name)}
    thresholds = {"era": True, "omega_low": omega_low, "omega_high": omega_high}
    return update.Hyperparameters(**rule | thresholds | controller.changes(omega_low))
