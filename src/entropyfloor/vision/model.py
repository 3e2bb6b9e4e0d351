"""The model that a config asks for, and what its floor is given."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.layers import convert_splitbn_model
from timm.models import load_checkpoint, load_state_dict
from torch import Tensor, nn

from entropyfloor.extras import brief, is_out_of_memory
from entropyfloor.torch.nn import ERASoftmax
from entropyfloor.vision.attach import attach_era
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.registry import SUFFIX
from entropyfloor.vision.regularisers import TemperatureFloor

LABEL_NAMES = "label_names"
"""Where the metadata of weights name their classes, as JSON in the order of the outputs; timm's word."""


def build_model(config: VisionConfig, classes: Sequence[str] | None = None) -> tuple[nn.Module, nn.Module]:
    """The model, and what stands behind it: nothing, or a floor by temperature.

    A last layer that cannot be taken from the weights to start from is new, and a warning says so.

    Args:
        config: Settings.
        classes: Names of the classes, in the order of the outputs.

    Raises:
        ValueError: timm has no such model, the floor is out of reach, or the weights cannot be had or do not fit.
    """
    model = _pretrained(config) if config.pretrained else plain_model(config, drop_rate=config.dropout)[0]
    if config.checkpoint:
        _start_from(model, config.checkpoint, config.model, classes)
    if config.min_entropy is not None:
        attach_era(model, config.min_entropy, floor=config.floor, tau=config.tau, inverse=config.inverse)
    if config.split_bn:
        model = convert_splitbn_model(model, max(config.aug_splits, 2))
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # hints lack it
    output: nn.Module = nn.Identity()
    if config.temperature_floor is not None:
        output = TemperatureFloor(int(config.num_classes or 0), config.temperature_floor)
    return model, output


def _pretrained(config: VisionConfig) -> nn.Module:
    """timm's model with timm's weights; its last layer is random where these are of another number of classes."""
    try:
        model, _ = plain_model(config, drop_rate=config.dropout, pretrained=True)
    except (OSError, RuntimeError) as error:  # of the network, of a server, of a file; or there are no weights
        raise ValueError(
            f"timm's weights for {config.model} cannot be loaded ({brief(error)}): give --checkpoint a file"
        ) from None
    known = model.pretrained_cfg["num_classes"]  # type: ignore[index]
    if known != config.num_classes:
        _say_new(f"timm's weights know {known} classes, the images have {config.num_classes}")
    return model


def _start_from(model: nn.Module, file: str, name: str, classes: Sequence[str] | None) -> None:
    """Load a file of weights, its last layer only if it is of the same classes."""
    if not Path(file).is_file():
        raise ValueError(f"checkpoint={file} does not exist, or is no file")
    try:
        if Path(file).suffix.lower() in (".npz", ".npy"):  # each model has a reader of its own for them
            load_checkpoint(model, file)
            return
        weights, theirs = load_state_dict(file, weights_only=True), _label_names(file)
        known = model.pretrained_cfg["classifier"]  # type: ignore[index]
        heads = tuple(f"{layer}." for layer in ((known,) if isinstance(known, str) else known))
        head = {key: value for key, value in model.state_dict().items() if key.startswith(heads)}
        fits = all(key in weights and weights[key].shape == value.shape for key, value in head.items())
    except Exception as error:  # its kind is up to the format
        why = f"{type(error).__name__}: {brief(error)}"
        raise ValueError(f"checkpoint={file} cannot be read as weights of {name} ({why})") from None
    new = not fits or (theirs is not None and classes is not None and theirs != list(classes))
    load_weights(model, weights | head if new else weights, f"checkpoint={file}", name)
    if new:
        _say_new(f"checkpoint={file} has other classes than the images")


def _label_names(file: str) -> list[str] | None:
    """Names of the classes of a file of weights that `export` has written."""
    if not file.endswith(".safetensors"):
        return None
    with safe_open(file, "pt") as weights:
        names = (weights.metadata() or {}).get(LABEL_NAMES)
    return None if names is None else json.loads(names)


def _say_new(why: str) -> None:
    warnings.warn(f"the last layer is new: {why}", stacklevel=4)


def plain_model(config: VisionConfig, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """timm's own model without a floor, with random weights, and the arguments that say which one it is.

    Raises:
        ValueError: timm has no such model.
    """
    if config.model.endswith(SUFFIX):
        raise ValueError(f"model={config.model!r}: name the plain model, min_entropy puts the floor under it")
    if config.model not in timm.list_models():
        raise ValueError(f"timm has no model {config.model!r}: timm.list_models() names what it has")
    options: dict[str, Any] = {"num_classes": config.num_classes}
    sized = {**options, "img_size": config.input_size}
    try:
        return timm.create_model(config.model, **sized, **more), sized
    except TypeError:  # most models take images of any size, and no `img_size`
        return timm.create_model(config.model, **options, **more), options


def check_size(model: nn.Module, size: int, images: int, device: torch.device) -> None:
    """Give the model one black image, and where it learns from one at a time, let it do so.

    Args:
        model: In any mode; it is left in that of evaluation.
        size: Pixels of a side.
        images: How many it learns from at once.
        device: Where it is.

    Raises:
        ValueError: It does not take images of this size, or needs more of them at once.
    """
    one = torch.zeros(1, 3, size, size, device=device)
    try:
        with torch.no_grad():
            model.eval()(one)
    except (AssertionError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{type(model).__name__} does not take images of {size}×{size} pixels: {brief(error)}"
        ) from None
    if images == 1:
        try:
            with torch.no_grad():
                deepcopy(model).train()(one)  # a copy, as batch norms remember what they have seen
        except ValueError as error:
            raise ValueError(
                f"batch_size=1 is too small for the batch norm of {type(model).__name__} ({brief(error)}): "
                "choose at least 2"
            ) from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str, what: str = "the model") -> None:
    """Into `model`, all of them.

    Raises:
        ValueError: They are those of another model; the message names what differs.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit {what}: {brief(error)}") from None


class RawLogits:
    """While it is entered: what reached the floor in the last forward pass, None for a model without one."""

    def __init__(self, model: nn.Module) -> None:
        self.last: Tensor | None = None
        self._floor = next((module for module in model.modules() if isinstance(module, ERASoftmax)), None)

    def __enter__(self) -> None:
        if self._floor is not None:
            self._hook = self._floor.register_forward_pre_hook(self._keep)

    def __exit__(self, *_: object) -> None:
        if self._floor is not None:
            self._hook.remove()

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.last = inputs[0]
