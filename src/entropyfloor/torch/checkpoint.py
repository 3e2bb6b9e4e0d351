"""State of PyTorch objects as a checkpoint holds it: named arrays, and the rest in what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["arrays_of", "pack", "tensors_below", "unpack", "unpack_optimiser"]


def pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON can hold it, with its tensors in `tensors` instead, named from `name` on."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {str(key): pack(value, f"{name}/{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [pack(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]
    return tree


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`, with lists for tuples and text for keys."""
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        return {key: unpack(value, tensors) for key, value in tree.items()}
    return [unpack(value, tensors) for value in tree] if isinstance(tree, list) else tree


def unpack_optimiser(tree: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `state_dict` of an optimiser, whose state is by the number of the parameter."""
    found: dict[str, Any] = unpack(tree, tensors)
    found["state"] = {int(number): moments for number, moments in found["state"].items()}
    return found


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """On the CPU, as NumPy has them."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def tensors_below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
