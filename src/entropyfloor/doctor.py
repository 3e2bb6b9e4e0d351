"""What works in this installation: versions, devices, extras, known-bad pairs of versions, measured floors.

It needs none of the extras: it also examines installations in which they are missing or broken.
"""

from __future__ import annotations

import json as jsonlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from platform import platform, python_version
from typing import Any

import numpy as np

from entropyfloor import __version__, torchvision_shim
from entropyfloor.extras import brief
from entropyfloor.versions import (
    KNOWN_LIMITS,
    by_hand,
    declared,
    installed_versions,
    known_bad,
    matching,
    missing,
    untried,
)

PARTS = ("torch", "jax", "control", "control.envs", "vision", "language", "report")
"""Packages that are imported to see whether they work."""
HIDING = {"torch": ("CUDA_VISIBLE_DEVICES",), "jax": ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")}
"""Environment variables that may hide a GPU from a backend."""
BACKENDS = ("torch", "jax")
POLICY_FLOOR, CLASS_FLOOR = -3.0, 0.6
"""Floors of the self-check in nats: of a policy with six actions, and of a prediction among ten classes."""
TOLERANCE = 1e-4
"""Nats by which single precision may miss a floor."""


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
    requirements, extras = declared()
    versions = installed_versions(requirements)
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
    hidden = {name: [each for each in HIDING[name] if each in environment] for name in HIDING}
    found = [
        f"{name} computes on the CPU although there is a GPU ({gpu}): install its build for CUDA"
        + "".join(f", or unset {each}" for each in hidden[name])
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
            "them if entropyfloor.vision is imported before timm, and entropyfloor.language.load before "
            "transformers; detection does not; a torchvision from where torch came from has them"
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
