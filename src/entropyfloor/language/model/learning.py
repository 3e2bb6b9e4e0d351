"""Preparing models of transformers for updates: without dropout, and with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Turn on gradient checkpointing: each layer keeps only its input for the backward pass.

    Raises:
        ValueError: The model does not support it.
    """
    now, before = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # transformers has renamed it
    getattr(model, now if hasattr(model, now) else before)({"use_reentrant": False})
    for layer in _checkpointed(model):
        layer._gradient_checkpointing_func = _without_dropout(layer, layer._gradient_checkpointing_func)


def prepare_update(model: PreTrainedModel) -> None:
    """Prepare a model for an update without dropout, which would make another policy of each forward pass.

    Layers with gradient checkpointing use it in training mode only, so they alone, without their modules, are put
    into it.
    """
    model.eval()
    for layer in _checkpointed(model):
        layer.training = True


def _checkpointed(model: PreTrainedModel) -> list[Any]:
    """Layers with gradient checkpointing."""
    return [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and not isinstance(module, PreTrainedModel)
    ]


def _without_dropout(layer: Any, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpointing function in which `layer`, which is in training mode, computes as in evaluation mode."""

    def checkpointed(forward: Callable[..., Any], *inputs: Any) -> Any:
        def evaluated(*inputs: Any) -> Any:
            layer.training = False
            try:
                return forward(*inputs)
            finally:
                layer.training = True

        return checkpoint(evaluated, *inputs)

    return checkpointed
