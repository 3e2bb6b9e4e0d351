"""State of PyTorch objects in a checkpoint: named arrays, and everything else as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` for JSON: each tensor moves into `tensors`, under its path below `name`, and the path replaces it."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {str(key): pack(value, f"{name}/{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        packed = [pack(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]
        return {"tuple": packed} if isinstance(tree, tuple) else packed
    return tree


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`, except that keys become strings."""
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        if set(tree) == {"tuple"}:
            return tuple(_unpack(tree["tuple"], tensors))
        return {key: _unpack(value, tensors) for key, value in tree.items()}
    return [_unpack(value, tensors) for value in tree] if isinstance(tree, list) else tree


def unpack_optimiser(tree: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `state_dict` of an optimiser that `pack` returned."""
    state: dict[str, Any] = _unpack(tree, tensors)
    state["state"] = {int(number): moments for number, moments in state["state"].items()}
    return state


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors as NumPy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def tensors_below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors of the arrays whose names begin with `prefix`, which is removed."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
