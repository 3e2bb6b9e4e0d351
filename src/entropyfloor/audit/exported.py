"""Policies that were exported as ONNX or TorchScript: ours, rsl_rl's, or anybody's.

An ONNX file is a graph of operators, which ONNX Runtime computes. A TorchScript file is a program that may read
and write files, so it has to be trusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
    if file.suffix == ".onnx":
        forward, names, dim, said = _onnx(file)
    elif file.suffix in (".pt", ".pth"):
        forward, names, dim, said = _torchscript(file, trust)
    else:
        raise ValueError(f"{file} must end in .zip, .onnx, .pt or .pth")
    places = _places(outputs, names)
    kind: Any = distribution or said.get("distribution")
    if "logits" in places and kind is None:
        kind = "categorical"
    if kind is None:
        raise ValueError(f"{file} does not say its distribution: give --distribution normal, tanh or truncated")
    for name, given, counts in (("bounds", bounds, kind == "normal"), ("std", std, kind != "categorical")):
        if given is not None and not counts:
            raise ValueError(f"{name} says nothing about a {kind} policy: leave it out")
    if kind == "categorical":
        wanted = ["logits" if "logits" in places else "loc"]
    else:
        gaussian.check_distribution(kind)
        wanted = ["loc", *(name for name in ("scale", "log_scale") if name in places and std is None)][:2]
        if len(wanted) < 2 and std is None:
            raise ValueError(
                f"{file} gives no standard deviation: give --std, or --std-from a checkpoint of rsl_rl"
            )
    if wanted[0] not in places:
        raise ValueError(
            f"{file} gives {', '.join(names) or 'unnamed outputs'}: name them by --outputs, such as loc"
        )

    def parameters(observations: np.ndarray) -> tuple[np.ndarray, ...]:
        found = forward(observations)
        if max(places[name] for name in wanted) >= len(found):
            raise ValueError(
                f"{file} gives {len(found)} outputs, and {' and '.join(wanted)} are to be read: give --outputs, "
                "or --std where only the mean is there"
            )
        values = [found[places[name]] for name in wanted]
        if any(value.ndim != 2 or len(value) != len(observations) for value in values):
            shapes = ", ".join(str(list(value.shape)) for value in values)
            raise ValueError(f"{file} gives {shapes} for {len(observations)} observations: [N, D] each is read")
        if "log_scale" in wanted:
            values[1] = np.exp(values[1])
        if kind != "categorical":
            if std is not None:
                values.append(std)
            if values[1].shape[-1] not in (1, values[0].shape[-1]):
                raise ValueError(
                    f"{file} has {values[0].shape[-1]} actions, and std {values[1].shape[-1]} numbers"
                )
            values[1] = np.broadcast_to(values[1], values[0].shape)
        return tuple(values)

    low = high = None
    if kind == "normal" and bounds is not None:
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds={bounds[0]:g} {bounds[1]:g}: the first must be below the second")
        low, high = (np.array([end]) for end in bounds)
    try:
        floor, target = (float(said[name]) if name in said else None for name in ("floor", "target_entropy"))
    except ValueError as error:
        raise ValueError(f"{file} says a floor or a target that is no number: {error}") from None
    numbers = {} if target in (None, floor) else {"target_entropy": target}
    return FilePolicy(str(file), kind, parameters, dim, low, high, floor=floor, numbers=numbers)


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


Read = tuple[Callable[[np.ndarray], list[np.ndarray]], Sequence[str], int | None, Mapping[str, str]]
"""Function from observations to outputs, names of these, width of an observation, and what the file says."""


def _onnx(file: Path) -> Read:
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

    said = dict(session.get_modelmeta().custom_metadata_map)
    return forward, [output.name for output in session.get_outputs()], width, said


def _torchscript(file: Path, trust: bool) -> Read:
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

    return forward, ("loc", "scale"), None, {}
