"""The machine: a description of it for every result, and a refusal of what its memory cannot hold."""

import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    *("entropyfloor", "numpy", "jax", "flax", "optax", "torch", "gymnasium", "mujoco", "dm_control"),
    *("mujoco-mjx", "playground"),
    *("timm", "transformers", "trl", "accelerate", "vllm", "math-verify"),
)
CGROUP = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of a container."""
PROCESS = Path("/proc/self/status")
"""What Linux says about this process."""
SHARE = 0.9
"""Share of the memory that may be used; the rest is for the system."""


def describe() -> dict[str, Any]:
    """Versions, hardware, command line, commit of this package's sources, and the time."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": _gpu(),
        },
        "system": platform.platform(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "started": now(),
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_memory(count: int, size: int, what: str, option: str, memory: int | None = None) -> None:
    """Refuse to begin what this machine's memory cannot hold.

    Args:
        count: Number of items.
        size: Bytes of an item.
        what: Name of the items, in the plural.
        option: The option, or options, that make them fewer.
        memory: Bytes of a device that holds them instead.

    Raises:
        ValueError: The items need more than `SHARE` of the memory.
    """
    where, total = ("machine", _memory()) if memory is None else ("device", memory)
    limit = SHARE * total
    if (needed := count * size) > limit:
        most = f" to at most {fits}" if (fits := int(limit / size)) else ""
        raise ValueError(
            f"{count:,} {what} need {needed / 2**30:,.1f} GiB, and this {where} has {limit / 2**30:,.1f} GiB for "
            f"them: lower {option}{most}"
        )


def memory() -> int:
    """Bytes that runs on this machine may use."""
    return int(SHARE * _memory())


def device_memory() -> int | None:
    """Bytes that runs may use of the first NVIDIA GPU; None if there is none, or it has no memory of its own."""
    totals = _output("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits") or ""
    total, *_ = totals.splitlines() or [""]
    return int(SHARE * int(total) * 2**20) if total.isdigit() else None


def peak_memory() -> dict[str, float]:
    """The largest memory that this process has had so far, in GiB, by the names of the vocabulary.

    That of a device is what Torch's CUDA or JAX allocated on the one with the most; where neither has begun to use
    one, there is no such entry. Other processes, such as workers that load data, are not counted.
    """
    found = {"peak_memory": _resident_peak() / 2**30}
    if device := max(_device_peaks(), default=0):
        found["peak_memory/device"] = device / 2**30
    return found


def _resident_peak() -> int:
    """Largest bytes of this process that were in memory."""
    lines = PROCESS.read_text().splitlines() if PROCESS.exists() else []
    for line in lines:  # what `getrusage` says includes the program that started this one
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def _device_peaks() -> list[int]:
    """Largest bytes on each device that this process uses; no framework is imported or begun for it."""
    found: list[int] = []
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found += [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    bridge = sys.modules.get("jax._src.xla_bridge")
    begun = getattr(bridge, "backends_are_initialized", bool)  # JAX says it nowhere else
    if begun():
        statistics = [device.memory_stats() for device in sys.modules["jax"].local_devices()]
        found += [each["peak_bytes_in_use"] for each in statistics if each and "peak_bytes_in_use" in each]
    return found


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    """The processor's name, which `platform.processor` does not know on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Names of NVIDIA GPUs, without importing a framework that would claim them."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def _commit() -> str | None:
    """Commit of the checkout that this file is in; marked where sources were changed since."""
    here = str(Path(__file__).parent)
    commit = _output("git", "-C", here, "rev-parse", "HEAD")
    if commit is None or _output("git", "-C", here, "ls-files", "__init__.py") is None:
        return None  # installed, perhaps inside somebody else's repository
    return commit + ("-modified" if _output("git", "-C", here, "status", "--porcelain", "-uno") else "")


def _output(*command: str) -> str | None:
    """Output of a program, or None if it is absent, fails or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _memory() -> int:
    """Bytes that this process may use: those of the machine, or of its container."""
    total: int = psutil.virtual_memory().total
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(total, int(limit)) if limit.isdigit() else total
