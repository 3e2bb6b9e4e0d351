"""What works in this installation: versions, devices, extras, known-bad pairs of versions, measured floors.

It needs none of the extras: it also examines installations in which they are missing or broken.
"""

from __future__ import annotations

import json as jsonlib
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from platform import platform, python_version
from typing import Any, NamedTuple

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entropyfloor import __version__, torchvision_shim
from entropyfloor.extras import brief

PARTS = ("torch", "jax", "control", "control.envs", "vision", "language", "report")
"""Packages that are imported to see whether they work."""
BACKENDS = ("torch", "jax")
DEVELOPMENT = ("dev", "docs", "release")
"""Extras of people who work on this package: what they bring may have any version elsewhere."""
POLICY_FLOOR, CLASS_FLOOR = -3.0, 0.6
"""Floors of the self-check in nats: of a policy with six actions, and of a prediction among ten classes."""
TOLERANCE = 1e-4
"""Nats by which single precision may miss a floor."""


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


def doctor(json: bool = False) -> None:
    """Show what works here: versions, devices, extras, known-bad pairs of versions, and measured floors.

    Args:
        json: Print one JSON object.

    Raises:
        RuntimeError: A pair of versions is known to fail, a backend cannot compute, or a floor does not hold.
    """
    findings = examine()
    print(jsonlib.dumps(findings, indent=2) if json else as_text(findings))
    if findings["problems"]:
        raise RuntimeError("; ".join(findings["problems"]))


def examine() -> dict[str, Any]:
    """Everything that `doctor` shows, as plain values."""
    requirements, extras = _declared()
    pairs = [name for pair in (*KNOWN_BAD, *KNOWN_LIMITS) for name in (pair.first, pair.second)]
    versions = _versions([*requirements, *pairs, SAME_VERSION[0], *SAME_VERSION[1]])
    parts = {f"entropyfloor.{part}": _state(f"entropyfloor.{part}") for part in PARTS}
    backends, broken = _measured([name for name in BACKENDS if parts[f"entropyfloor.{name}"] == "ready"])
    hardware = _hardware()
    return {
        "versions": {"python": python_version(), **versions, "entropyfloor": __version__},
        "hardware": hardware,
        "parts": parts,
        "extras": {extra: missing(extra, requirements, versions) for extra in extras},
        "backends": backends,
        "hints": [
            *hints(hardware.get("gpu"), backends, os.environ, _cpu_flags()),
            *matching(KNOWN_LIMITS, versions),
            *untried(requirements, versions),
            *by_hand(versions),
        ],
        "problems": [*known_bad(versions), *broken, *broken_floors(backends)],
    }


def known_bad(versions: Mapping[str, str]) -> list[str]:
    """Pairs of installed versions that do not work together, each with its symptom and the remedy.

    Args:
        versions: Version of each installed distribution.
    """
    installed = _canonical(versions)
    library, plugins = SAME_VERSION
    return matching(KNOWN_BAD, versions) + [
        f"{plugin} {installed[plugin]} with {library} {installed[library]}: JAX leaves the plugin unused, and "
        f"computes on the CPU: pip install '{plugin}=={installed[library]}'"
        for plugin in plugins
        if plugin in installed and installed[plugin] != installed.get(library, installed[plugin])
    ]


def matching(pairs: Sequence[Pair], versions: Mapping[str, str]) -> list[str]:
    """A line for each pair whose two ranges hold the installed versions."""
    installed = _canonical(versions)
    return [
        f"{_named(pair.first, installed)} with {_named(pair.second, installed)}: {pair.symptom}: {pair.remedy}"
        for pair in pairs
        if _has(installed, pair.first) and _has(installed, pair.second)
    ]


def untried(requirements: Sequence[str], versions: Mapping[str, str]) -> list[str]:
    """Installed versions outside of the ranges that this package was tried with, whichever extra they belong to.

    Args:
        requirements: Those of this package, with markers.
        versions: Version of each installed distribution.
    """
    installed, lines = _canonical(versions), {}
    for needed in map(Requirement, requirements):
        wanted = f"{needed.name}{needed.specifier}"
        ours = needed.marker and any(needed.marker.evaluate({"extra": extra}) for extra in DEVELOPMENT)
        if canonicalize_name(needed.name) in installed and not _has(installed, wanted) and not ours:
            lines[wanted] = f"{_named(wanted, installed)} was not tried with this package: pip install '{wanted}'"
    return list(lines.values())


def by_hand(versions: Mapping[str, str], python: tuple[int, ...] = sys.version_info[:2]) -> list[str]:
    """What pip leaves out on this Python although its extra is installed, and the command that brings it.

    Args:
        versions: Version of each installed distribution.
        python: Version of Python.
    """
    installed = _canonical(versions)
    if python < (3, 13) or "mujoco" not in installed or "dm-control" in installed:
        return []
    return ["DeepMind Control is not installed, since pip cannot on Python 3.13: pip install --no-deps dm_control"]


def missing(extra: str, requirements: Sequence[str], versions: Mapping[str, str]) -> list[str]:
    """What an extra requires and is absent; `untried` names installed versions outside of the ranges.

    Args:
        extra: Name of the extra.
        requirements: Those of this package, with markers.
        versions: Version of each installed distribution.
    """
    installed = _canonical(versions)
    needs = _needs(extra, [Requirement(text) for text in requirements])
    absent = (need for need in needs if canonicalize_name(need.name) not in installed)
    return list(dict.fromkeys(f"{need.name}{need.specifier}" for need in absent))


def measure(backend: str) -> dict[str, Any]:
    """Devices of a backend, and the least entropies of 256 random policies and predictions with a floor.

    Args:
        backend: "torch" or "jax".
    """
    library: Any = import_module(backend)
    functional: Any = import_module(f"entropyfloor.{backend}.functional")
    distributions: Any = import_module(f"entropyfloor.{backend}.distributions")
    if backend == "torch":
        devices = [library.cuda.get_device_name(i) for i in range(library.cuda.device_count())]
        array = partial(library.tensor, device="cuda" if devices else "cpu")
    else:
        devices = [device.device_kind for device in library.devices() if device.platform != "cpu"]
        array = library.numpy.asarray

    rng = np.random.default_rng(0)
    loc, raw = rng.normal(0, 3, (2, 256, 6)).astype(np.float32)
    loc, raw = array(np.tanh(loc)), array(raw)
    log_std = functional.era_truncated_normal(loc, raw, POLICY_FLOOR)
    policy = distributions.TruncatedNormal(loc, math.e**log_std)
    logits = functional.era_softmax(array(rng.normal(0, 100, (256, 10)).astype(np.float32)), CLASS_FLOOR)
    return {
        "devices": devices or ["cpu"],
        "least_policy_entropy": float(policy.entropy().min()),
        "least_class_entropy": float(functional.entropy_from_logits(logits).min()),
    }


def broken_floors(backends: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Floors that do not hold in what `measure` returned for each backend."""
    return [
        f"{name}: an entropy of {found[key]:.4f} nats is below its floor of {floor}: please report it"
        for name, found in backends.items()
        for key, floor in (("least_policy_entropy", POLICY_FLOOR), ("least_class_entropy", CLASS_FLOOR))
        if not found[key] >= floor - TOLERANCE
    ]


def hints(
    gpu: str | None, backends: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str], cpu_flags: str
) -> list[str]:
    """What makes this machine slower than it has to be, or needs to be known.

    Args:
        gpu: Name of the GPU that the driver reports.
        backends: What `measure` returned for each.
        environment: Environment variables.
        cpu_flags: Features of the processor, as Linux lists them; empty where unknown.
    """
    found = [
        f"{name} computes on the CPU although there is a GPU ({gpu}): install its build for CUDA"
        for name, backend in backends.items()
        if gpu and backend["devices"] == ["cpu"]
    ]
    if "torch" in backends and not {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"} <= set(environment):
        found.append(
            "PyTorch's threads spin while they wait, and slow other processes down: for several processes on a "
            "CPU set OMP_NUM_THREADS=1 and OMP_WAIT_POLICY=passive"
        )
    if cpu_flags and "amx_bf16" not in cpu_flags.split():
        found.append("the CPU has no matrix units for bfloat16 (AMX), with which --precision bf16 is faster")
    if "torch" in backends and _without_operators():
        found.append(
            "torchvision has no compiled operators for this torch: classifiers and language models work without "
            "them, detection does not; a torchvision from where torch came from has them"
        )
    return found


def as_text(findings: Mapping[str, Any]) -> str:
    """The findings of `examine` as lines with two columns."""
    lines = [(name.replace("_", " "), value or "none found") for name, value in findings["hardware"].items()]
    lines += [*findings["versions"].items(), *findings["parts"].items()]
    whole = [extra for extra, lacking in findings["extras"].items() if not lacking]
    lines.append(("extras installed", ", ".join(whole) or "none"))
    lines += [
        (f"extra {extra}", f"lacks {', '.join(lacking)}: pip install 'entropyfloor[{extra}]'")
        for extra, lacking in findings["extras"].items()
        if lacking
    ]
    for name, found in findings["backends"].items():
        measured = (
            f"least entropy {found['least_policy_entropy']:.4f} of policies with the floor {POLICY_FLOOR}, "
            f"{found['least_class_entropy']:.4f} of predictions with the floor {CLASS_FLOOR}"
        )
        lines.append((f"{name} on {', '.join(found['devices'])}", measured))
    lines += [("hint", hint) for hint in findings["hints"]]
    lines += [("problem", problem) for problem in findings["problems"]]
    return "\n".join(f"{name:<23} {value}" for name, value in lines)


def _declared() -> tuple[list[str], list[str]]:
    """Requirements and extras of this package; none where it runs from sources that are not installed."""
    try:
        return requires("entropyfloor") or [], metadata("entropyfloor").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return [], []


def _versions(requirements: Sequence[str]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in sorted({canonicalize_name(Requirement(text).name) for text in requirements}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _state(module: str) -> str:
    """`ready`, or why a module cannot be imported: libraries that do not fit raise all kinds of errors."""
    try:
        import_module(module)
    except Exception as error:
        return brief(error)
    return "ready"


def _measured(names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What `measure` returns for each backend, and why others cannot compute."""
    backends, broken = {}, []
    for name in names:
        try:
            backends[name] = measure(name)
        except Exception as error:  # a GPU that this build has no kernels for, a driver that is too old, …
            broken.append(f"{name} is installed and cannot compute here: {brief(error)}")
    return backends, broken


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


def _canonical(versions: Mapping[str, str]) -> dict[str, str]:
    return {canonicalize_name(name): found for name, found in versions.items()}


def _has(installed: Mapping[str, str], requirement: str) -> bool:
    needed = Requirement(requirement)
    found = installed.get(canonicalize_name(needed.name))
    return found is not None and needed.specifier.contains(found, prereleases=True)


def _named(requirement: str, installed: Mapping[str, str]) -> str:
    name = Requirement(requirement).name
    return f"{name} {installed[canonicalize_name(name)]}"


def _hardware() -> dict[str, Any]:
    """As a run directory describes it, if what that needs is installed."""
    hardware = {"system": platform(), "free_disk_here": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"}
    try:
        return {**import_module("entropyfloor.runs.machine").describe()["hardware"], **hardware}
    except ImportError:
        return {"cores": os.cpu_count(), **hardware}


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")


def _without_operators() -> bool:
    try:
        return torchvision_shim.ensure()
    except Exception:  # a torchvision that is broken in another way: its part of `PARTS` says how
        return False
