"""Settings of `entropyfloor train control`, and the named presets.

Each agent has a class of settings, such as `SACConfig`, which `configure` finds by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

from entropyfloor.control.config.base import ControlConfig, required
from entropyfloor.control.config.fast import FastConfig
from entropyfloor.control.config.ppo import PPOConfig
from entropyfloor.control.config.sac import MNSEConfig, OBACConfig, SACConfig
from entropyfloor.control.config.tdmpc2 import TDMPC2Config
from entropyfloor.runs.resume import config_of

__all__ = [
    "CONFIGS",
    "PRESETS",
    "ControlConfig",
    "FastConfig",
    "MNSEConfig",
    "OBACConfig",
    "PPOConfig",
    "SACConfig",
    "TDMPC2Config",
    "config_class",
    "configure",
    "read_config",
    "required",
]

_KINDS = (SACConfig, OBACConfig, MNSEConfig, FastConfig, TDMPC2Config, PPOConfig)

PRESETS: dict[str, dict[str, Any]] = {name: preset for kind in _KINDS for name, preset in kind.PRESETS.items()}
"""Head, distribution, entropy term and other settings of each preset."""

CONFIGS: dict[str, type[ControlConfig]] = {name: kind for kind in _KINDS for name in kind.PRESETS}
"""Class of each agent's settings."""


def config_class(agent: str = "sac-era-exact") -> type[ControlConfig]:
    """Class of an agent's settings, for a parser of a command line.

    Raises:
        ValueError: An agent that does not exist; a parser would name those of one class only.
    """
    if (kind := CONFIGS.get(str(agent))) is None:
        raise ValueError(f"agent={agent!r} must be one of {', '.join(CONFIGS)}")
    return kind


def configure(agent: str, **settings: Any) -> ControlConfig:
    """Settings of an agent by its name; `target_entropy` may be a number here.

    Examples:
        >>> from entropyfloor.control.train import configure
        >>> settings = configure("sac-era-exact", env="dmc/walker-run", seed=1)
        >>> settings.env, settings.seed
        ('dmc/walker-run', 1)

    Raises:
        ValueError: An agent that does not exist, a setting that it does not have, or a number out of range.
    """
    kind = config_class(agent)
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{agent} has no setting {', '.join(unknown)}: it has {', '.join(known)}")
    if isinstance(target := settings.get("target_entropy"), Real):
        settings["target_entropy"] = str(target)
    return kind(agent=agent, **settings)


def read_config(settings: Mapping[str, Any]) -> ControlConfig:
    """The resolved config of a run of any version.

    Args:
        settings: Content of its `config.toml`.

    Raises:
        ValueError: The run is not of a control agent, or has settings that this version does not have.
    """
    if (kind := CONFIGS.get(str(settings.get("agent")))) is None:
        what = f"domain={settings.get('domain')!r}, agent={settings.get('agent')!r}"
        raise ValueError(f"a run of {what} is no run of a control agent that this version knows")
    return config_of(kind, settings, "control", "a control agent", ("domain", "registered")).filled()
