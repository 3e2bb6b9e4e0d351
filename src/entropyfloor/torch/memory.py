"""Memory of models, counted without having it: tensors of `without_memory` have shapes and no content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def without_memory() -> FakeTensorMode:
    """A context in which models are built, and computed with, as shapes alone."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def bytes_of(model: nn.Module) -> int:
    """Bytes of the parameters of a model; those that layers share count once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the parameters.

    Args:
        model: Model that `forward` calls.
        forward: Forward pass, with gradients.
    """
    parameters = {_storage(parameter) for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in parameters:
            saved[_storage(tensor)] = tensor  # held, or its number would be given again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: Tensor) -> int:
    """Number of the storage that a tensor is a view of."""
    return tensor.untyped_storage()._cdata
