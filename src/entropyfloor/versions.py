"""Installed versions: pairs that do not work together, versions that were not tried, and what extras lack.

Names of distributions are those of `packaging.utils.canonicalize_name`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DEVELOPMENT = ("dev", "docs", "release")
"""Extras of people who work on this package: what they bring may have any version elsewhere."""


class Pair(NamedTuple):
    """Two ranges of versions that do not work together."""

    first: str
    second: str
    symptom: str
    remedy: str


KNOWN_BAD = (
    Pair(
        "mujoco>=4",
        "dm_control<=1.0.50",
        "dm_control asks models for flex_vertedge, which MuJoCo 4 does not have",
        "pip install 'mujoco>=3.17,<4'",
    ),
    Pair(
        "verl<=0.9.1",
        "transformers>=5.11",
        "verl requires transformers below 5.11",
        "give verl an environment of its own, with constraints-verl.txt",
    ),
    Pair(
        "omegaconf<2.4",
        "antlr4-python3-runtime!=4.9.*",
        "the configuration of verl cannot be parsed ('Could not deserialize ATN')",
        "pip install 'antlr4-python3-runtime==4.9.3', which math-verify takes too",
    ),
    *(
        Pair(
            f"{package}<{first}",
            "numpy>=2",
            f"{package} was compiled for NumPy 1 ('numpy.dtype size changed')",
            f"pip install '{package}>={first}'",
        )
        for package, first in (
            ("pandas", "2.2.2"),
            ("scipy", "1.13"),
            ("scikit-learn", "1.4.2"),
            ("matplotlib", "3.8.4"),
        )
    ),
    *(  # each torchvision requires one minor version of torch
        Pair(
            f"torchvision!=0.{minor + 15}.*",
            f"torch==2.{minor}.*",
            "torchvision's compiled operators are for another torch",
            f"pip install 'torchvision==0.{minor + 15}.*'",
        )
        for minor in range(6, 15)
    ),
)
KNOWN_LIMITS = (
    Pair(
        "brax<=0.14.2",
        "jax>=0.10",
        "brax's own trainers call jax.device_put_replicated, which JAX has removed",
        "define it before training, as docs/control-hosts.md shows; our trainers do not need it",
    ),
)
"""Pairs that work but for a part."""
SAME_VERSION = ("jaxlib", ("jax-cuda12-plugin", "jax-cuda13-plugin"))
"""JAX leaves a plugin unused, and computes on the CPU, unless its version is that of jaxlib."""


def declared() -> tuple[list[str], list[str]]:
    """Requirements and extras of this package; none where it runs from sources that are not installed."""
    try:
        return requires("entropyfloor") or [], metadata("entropyfloor").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return [], []


def installed_versions(requirements: Sequence[str]) -> dict[str, str]:
    """Version of each installed distribution that a requirement or a pair names."""
    library, plugins = SAME_VERSION
    pairs = [text for pair in (*KNOWN_BAD, *KNOWN_LIMITS) for text in (pair.first, pair.second)]
    named = (*requirements, *pairs, library, *plugins)
    versions: dict[str, str] = {}
    for name in sorted({canonicalize_name(Requirement(text).name) for text in named}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def known_bad(installed: Mapping[str, str]) -> list[str]:
    """Pairs of installed versions that do not work together, each with its symptom and the remedy.

    Args:
        installed: Version of each installed distribution.
    """
    library, plugins = SAME_VERSION
    return matching(KNOWN_BAD, installed) + [
        f"{plugin} {installed[plugin]} with {library} {installed[library]}: JAX leaves the plugin unused, and "
        f"computes on the CPU: pip install '{plugin}=={installed[library]}'"
        for plugin in plugins
        if plugin in installed and installed[plugin] != installed.get(library, installed[plugin])
    ]


def matching(pairs: Sequence[Pair], installed: Mapping[str, str]) -> list[str]:
    """A line for each pair whose two ranges hold the installed versions."""
    return [
        f"{_named(pair.first, installed)} with {_named(pair.second, installed)}: {pair.symptom}: {pair.remedy}"
        for pair in pairs
        if _has(installed, pair.first) and _has(installed, pair.second)
    ]


def untried(requirements: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """Installed versions outside of the ranges that this package was tried with, whichever extra they belong to.

    Args:
        requirements: Those of this package, with markers.
        installed: Version of each installed distribution.
    """
    lines = {}
    for needed in map(Requirement, requirements):
        wanted = f"{needed.name}{needed.specifier}"
        ours = needed.marker and any(needed.marker.evaluate({"extra": extra}) for extra in DEVELOPMENT)
        if canonicalize_name(needed.name) in installed and not _has(installed, wanted) and not ours:
            lines[wanted] = f"{_named(wanted, installed)} was not tried with this package: pip install '{wanted}'"
    return list(lines.values())


def by_hand(installed: Mapping[str, str], python: tuple[int, ...] = sys.version_info[:2]) -> list[str]:
    """What pip leaves out on this Python although its extra is installed, and the command that brings it.

    Args:
        installed: Version of each installed distribution.
        python: Version of Python.
    """
    if python < (3, 13) or "mujoco" not in installed or "dm-control" in installed:
        return []
    return ["DeepMind Control is not installed, since pip cannot on Python 3.13: pip install --no-deps dm_control"]


def missing(extra: str, requirements: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """What an extra requires and is absent; `untried` names installed versions outside of the ranges.

    Args:
        extra: Name of the extra.
        requirements: Those of this package, with markers.
        installed: Version of each installed distribution.
    """
    needs = _needs(extra, [Requirement(text) for text in requirements])
    absent = (need for need in needs if canonicalize_name(need.name) not in installed)
    return list(dict.fromkeys(f"{need.name}{need.specifier}" for need in absent))


def _needs(extra: str, requirements: Sequence[Requirement]) -> Iterator[Requirement]:
    """Requirements of an extra, and of the extras that it brings."""
    for needed in requirements:
        if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
            continue
        if needed.name == "entropyfloor":
            for inner in sorted(needed.extras):
                yield from _needs(inner, requirements)
        else:
            yield needed


def _has(installed: Mapping[str, str], requirement: str) -> bool:
    needed = Requirement(requirement)
    found = installed.get(canonicalize_name(needed.name))
    return found is not None and needed.specifier.contains(found, prereleases=True)


def _named(requirement: str, installed: Mapping[str, str]) -> str:
    name = Requirement(requirement).name
    return f"{name} {installed[canonicalize_name(name)]}"
