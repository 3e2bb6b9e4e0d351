"""Policies that were exported as ONNX or TorchScript, by this package, rsl_rl or others.

An ONNX file is a graph of operators, which ONNX Runtime computes. A TorchScript file is a program that may read
and write files, so it has to be trusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropyfloor.audit import gaussian
from entropyfloor.audit.file_policy import FilePolicy
from entropyfloor.extras import brief, require

NAMES = {
    "loc": ("loc", "mean", "mu", "actions", "action"),
    "scale": ("scale", "std", "sigma"),
    "log_scale": ("log_scale", "log_std"),
    "logits": ("logits",),
}
"""Meaning of an output, and names that it has in ONNX files; where two are there, the first counts."""
STD = re.compile(r"(?:.*\.)?(log_)?std(?:_param)?")
"""Names of the standard deviation in checkpoints of rsl_rl."""


def read(
    file: Path,
    *,
    distribution: gaussian.DistributionName | Literal["categorical"] | None = None,
    outputs: Sequence[str] = (),
    std: np.ndarray | None = None,
    bounds: tuple[float, float] | None = None,
    trust: bool = False,
) -> FilePolicy:
    """Read an ONNX or TorchScript file; arguments as of `policies.policy`, with `std` as an array.

    Raises:
        ValueError: The file cannot be read, is not trusted, or does not give what an entropy follows from.
        ImportError: ONNX Runtime is not installed.
    """
    if unknown := sorted(set(outputs) - {*NAMES, "other"}):
        raise ValueError(f"outputs={unknown[0]!r} must be one of {', '.join(NAMES)}, other")
    network = _open(file, trust)
    if network.metadata.get("agent") == "mnse":
        raise ValueError(f"{file} gives loc and scale of mnse before its mapping of actions: audit its run")
    places = _places(outputs, network.names)
    kind: Any = distribution or network.metadata.get("distribution")
    if "logits" in places and kind is None:
        kind = "categorical"
    if kind is None:
        raise ValueError(f"{file} does not say its distribution: give --distribution normal, tanh or truncated")
    for name, given, counts in (("bounds", bounds, kind == "normal"), ("std", std, kind != "categorical")):
        if given is not None and not counts:
            raise ValueError(f"{name} says nothing about a {kind} policy: leave it out")
    wanted = _wanted(file, kind, network, places, std)

    def parameters(observations: np.ndarray) -> tuple[np.ndarray, ...]:
        values = _chosen(file, network.forward(observations), {name: places[name] for name in wanted})
        if any(value.ndim != 2 or len(value) != len(observations) for value in values):
            shapes = ", ".join(str(list(value.shape)) for value in values)
            raise ValueError(f"{file} gives {shapes} for {len(observations)} observations: [N, D] each is read")
        if kind == "categorical":
            return tuple(values)
        loc, scale = values[0], values[1] if std is None else std
        if "log_scale" in wanted:
            scale = np.exp(scale)
        if scale.shape[-1] not in (1, loc.shape[-1]):
            raise ValueError(f"{file} has {loc.shape[-1]} actions, and std {scale.shape[-1]} numbers")
        return loc, np.broadcast_to(scale, loc.shape)

    if bounds is None and "agent" in network.metadata and kind == "normal":
        bounds = (-1.0, 1.0)  # a file of `entropyfloor export`
    low = high = None
    if bounds is not None:
        if not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise ValueError(
                f"bounds={bounds[0]:g} {bounds[1]:g}: the first must be below the second, both finite"
            )
        low, high = (np.array([end]) for end in bounds)
    floor, target = (_number(file, network.metadata.get(name)) for name in ("floor", "target_entropy"))
    numbers = {} if target in (None, floor) else {"target_entropy": target}
    return FilePolicy(
        str(file), kind, parameters, network.observation_dim, low, high, floor=floor, numbers=numbers
    )


def _wanted(
    file: Path, kind: str, network: Network, places: Mapping[str, int], std: np.ndarray | None
) -> list[str]:
    """Meanings of the outputs that the parameters of a distribution are read from."""
    if kind == "categorical":
        wanted = ["logits" if "logits" in places else "loc"]
    else:
        gaussian.check_distribution(kind)
        wanted = ["loc"]
        if std is None:
            wanted += [name for name in ("scale", "log_scale") if name in places][:1]
            if len(wanted) < 2:
                raise ValueError(
                    f"{file} gives no standard deviation: give --std, or --std-from a checkpoint of rsl_rl"
                )
    if wanted[0] not in places:
        names = ", ".join(network.names) or "unnamed outputs"
        raise ValueError(f"{file} gives {names}: name them by --outputs, such as loc")
    return wanted


def _chosen(file: Path, outputs: Sequence[np.ndarray], places: Mapping[str, int]) -> list[np.ndarray]:
    """The outputs at these places."""
    if max(places.values()) >= len(outputs):
        raise ValueError(
            f"{file} gives {len(outputs)} outputs, and {' and '.join(places)} are to be read: give --outputs, "
            "or --std where only the mean is there"
        )
    return [outputs[place] for place in places.values()]


def _number(file: Path, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise ValueError(f"{file} says a floor or a target that is no number: {error}") from None


def std_of(given: Sequence[float], checkpoint: Path | None) -> np.ndarray | None:
    """The standard deviation that was given, or that of a checkpoint of rsl_rl, whose weights alone are read.

    Raises:
        ValueError: Both are given, the checkpoint cannot be read, or it has no standard deviation, or several.
    """
    if given and checkpoint is not None:
        raise ValueError("--std and --std-from are two standard deviations: give one")
    if checkpoint is None:
        return np.array(given) if given else None
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # its type depends on what is wrong
        reason = f"{type(error).__name__}: {brief(error, 120)}"
        raise ValueError(f"std_from={checkpoint} cannot be read as weights ({reason}): give --std") from None
    found = dict(_stds(content))
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ValueError(f"std_from={checkpoint} must have one standard deviation, and has {names}: give --std")
    [(name, value)] = found.items()
    log = STD.fullmatch(name)[1]  # type: ignore[index]
    std: np.ndarray = (value.exp() if log else value).double().numpy()
    return std


def _stds(content: Any) -> list[tuple[str, Tensor]]:
    """Tensors of the nested mappings whose names are those of a standard deviation."""
    if not isinstance(content, Mapping):
        return []
    own = [(str(k), v) for k, v in content.items() if isinstance(v, Tensor) and STD.fullmatch(str(k))]
    return own + [pair for value in content.values() for pair in _stds(value)]


def _places(outputs: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Position of each meaning among the outputs."""
    if outputs:
        return {meaning: i for i, meaning in enumerate(outputs)}
    found = {}
    for meaning, usual in NAMES.items():
        if known := [name for name in usual if name in names]:
            found[meaning] = names.index(known[0])
    return found


class Network(NamedTuple):
    """A network in a file."""

    forward: Callable[[np.ndarray], list[np.ndarray]]
    """From observations `[N, obs]` to outputs."""
    names: Sequence[str]
    """Names of the outputs."""
    observation_dim: int | None
    """None where the file does not say it."""
    metadata: Mapping[str, str]


def _open(file: Path, trust: bool) -> Network:
    if file.suffix == ".onnx":
        return _onnx(file)
    if file.suffix in (".pt", ".pth"):
        return _torchscript(file, trust)
    raise ValueError(f"{file} must end in .zip, .onnx, .pt or .pth")


def _onnx(file: Path) -> Network:
    require("onnx", "onnxruntime")
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only what is fatal: errors are raised, too
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the runtime's own types
        raise ValueError(f"{file} cannot be read as ONNX: {brief(error, 120)}") from None
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"{file} takes {len(inputs)} inputs: a policy of one vector of observations is read")
    [given] = inputs
    shape = given.shape or [None]  # where the file does not say the rank
    one = shape[0] == 1  # as exporters without a dynamic axis fix it
    width = shape[-1] if isinstance(shape[-1], int) else None

    def forward(observations: np.ndarray) -> list[np.ndarray]:
        parts = np.split(observations, len(observations)) if one else [observations]
        try:
            found = [session.run(None, {given.name: part}) for part in parts]
        except Exception as error:  # of the runtime's own types
            raise ValueError(f"{file} does not take {list(observations.shape)}: {brief(error, 120)}") from None
        return [np.concatenate([*map(np.atleast_1d, columns)]) for columns in zip(*found, strict=True)]

    names = [output.name for output in session.get_outputs()]
    return Network(forward, names, width, dict(session.get_modelmeta().custom_metadata_map))


def _torchscript(file: Path, trust: bool) -> Network:
    if not trust:
        raise ValueError(
            f"{file} is a TorchScript program, which may read and write files when it runs: give --trust if you "
            "know where it comes from, or export the policy as ONNX"
        )
    try:
        program = torch.jit.load(str(file), map_location="cpu").eval()
    except Exception as error:  # of whatever type the archive provokes
        raise ValueError(f"{file} cannot be read as TorchScript: {brief(error, 120)}") from None

    @torch.no_grad()
    def forward(observations: np.ndarray) -> list[np.ndarray]:
        try:
            found = program(torch.from_numpy(observations))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{file} does not take {list(observations.shape)}: {reason[:120]}") from None
        found = found if isinstance(found, tuple | list) else [found]
        if wrong := [type(value).__name__ for value in found if not isinstance(value, Tensor)]:
            raise ValueError(f"{file} gives a {wrong[0]}: one tensor or several are read")
        return [value.double().numpy() for value in found]

    return Network(forward, ("loc", "scale"), None, {})
