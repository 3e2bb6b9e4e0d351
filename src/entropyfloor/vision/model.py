"""Building the model of a config, and loading weights into it."""

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
from timm.layers import BatchNormAct2d, convert_splitbn_model
from timm.models import load_checkpoint, load_state_dict
from torch import Tensor, nn

from entropyfloor.extras import brief, is_out_of_memory
from entropyfloor.vision.attach import attach_era
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.registry import SUFFIX
from entropyfloor.vision.regularisers import TemperatureFloor

LABEL_NAMES = "label_names"
"""Entry in the metadata of weights: names of the classes as JSON, in the order of the outputs. timm's own name."""


def build_model(config: VisionConfig, classes: Sequence[str] | None = None) -> tuple[nn.Module, nn.Module]:
    """Build the model, and the layer behind it: `Identity`, or a minimum entropy by temperature.

    If the initial weights are for other classes, the last layer starts random, and a warning says so.

    Args:
        config: Settings.
        classes: Names of the classes, in the order of the outputs.

    Raises:
        ValueError: timm has no such model, the floor is out of reach, or the weights cannot be loaded or do not
            fit, or `split_bn` finds no batch norm, or a timm that drops the activations.
    """
    model = _pretrained(config) if config.pretrained else plain_model(config, drop_rate=config.dropout)[0]
    if config.checkpoint:
        _start_from(model, config.checkpoint, config.model, classes)
    if config.min_entropy is not None:
        attach_era(model, config.min_entropy, floor=config.floor, tau=config.tau, inverse=config.inverse)
    if config.split_bn:
        model = _with_split_norms(model, config)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # hints lack it
    output: nn.Module = nn.Identity()
    if config.temperature_floor is not None:
        output = TemperatureFloor(int(config.num_classes or 0), config.temperature_floor)
    return model, output


def _with_split_norms(model: nn.Module, config: VisionConfig) -> nn.Module:
    """The model with a batch norm for each copy of the images."""
    kinds = {type(module) for module in model.modules()}
    if not any(issubclass(kind, nn.BatchNorm2d) for kind in kinds):
        raise ValueError(f"split_bn splits batch norms, and {config.model} has none: leave it out")
    norm = convert_splitbn_model(BatchNormAct2d(1), config.aug_splits).eval()  # with ReLU
    if BatchNormAct2d in kinds and norm(-torch.ones(1, 1, 1, 1)).item() < 0:
        raise ValueError(
            f"with split_bn, timm {timm.__version__} drops the activations behind batch norms of {config.model}: "
            "install timm>=1.0.31, or choose a model such as resnet50, whose activations are layers of their own"
        )
    return convert_splitbn_model(model, config.aug_splits)


def _pretrained(config: VisionConfig) -> nn.Module:
    """timm's model with timm's weights; its last layer is random if they have another number of classes."""
    try:
        model, _ = plain_model(config, drop_rate=config.dropout, pretrained=True)
    except (OSError, RuntimeError) as error:  # no network, an error of the server, a bad file, or no weights
        raise ValueError(
            f"timm's weights for {config.model} cannot be loaded ({brief(error)}): give --checkpoint a file"
        ) from None
    known = model.pretrained_cfg["num_classes"]  # type: ignore[index]
    if known != config.num_classes:
        _warn_new_layer(f"timm's weights have {known} classes, the images have {config.num_classes}")
    return model


def _start_from(model: nn.Module, file: str, name: str, classes: Sequence[str] | None) -> None:
    """Load a file of weights, the last layer only if it is for the same classes."""
    if not Path(file).is_file():
        raise ValueError(f"checkpoint={file} does not exist, or is no file")
    try:
        if Path(file).suffix.lower() in (".npz", ".npy"):  # models have their own readers for them
            load_checkpoint(model, file)
            return
        weights, names = load_state_dict(file, weights_only=True), metadata_of(file).get(LABEL_NAMES)
        layers = model.pretrained_cfg["classifier"]  # type: ignore[index]
        heads = tuple(f"{layer}." for layer in ((layers,) if isinstance(layers, str) else layers))
        head = {key: value for key, value in model.state_dict().items() if key.startswith(heads)}
        classes_fit = names is None or classes is None or json.loads(names) == list(classes)
        fits = classes_fit and all(
            key in weights and weights[key].shape == value.shape for key, value in head.items()
        )
    except Exception as error:  # its type depends on the format
        reason = f"{type(error).__name__}: {brief(error)}"
        raise ValueError(f"checkpoint={file} cannot be read as weights of {name} ({reason})") from None
    load_weights(model, weights if fits else weights | head, f"checkpoint={file}", name)
    if not fits:
        _warn_new_layer(f"checkpoint={file} has other classes than the images")


def metadata_of(file: str) -> dict[str, str]:
    """Metadata of a file of weights; only safetensors have some."""
    if not file.endswith(".safetensors"):
        return {}
    with safe_open(file, "pt") as weights:
        return weights.metadata() or {}


def _warn_new_layer(reason: str) -> None:
    warnings.warn(f"the last layer is new: {reason}", stacklevel=4)


def plain_model(config: VisionConfig, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """timm's own model without a floor, and the arguments of `timm.create_model` that build it.

    Raises:
        ValueError: timm has no such model.
    """
    if config.model.endswith(SUFFIX):
        raise ValueError(f"model={config.model!r}: name the plain model, min_entropy puts the floor under it")
    if config.model not in timm.list_models():
        raise ValueError(f"timm has no model {config.model!r}: timm.list_models() lists its models")
    options: dict[str, Any] = {"num_classes": config.num_classes}
    sized = {**options, "img_size": config.input_size}
    try:
        return timm.create_model(config.model, **sized, **more), sized
    except TypeError:  # most models take images of any size and have no `img_size`
        return timm.create_model(config.model, **options, **more), options


def check_size(model: nn.Module, config: VisionConfig, device: torch.device) -> None:
    """Check the model on a black image, for batches of one image also in training mode.

    Args:
        model: Model in any mode; afterwards it is in evaluation mode.
        config: Resolved settings.
        device: Device of the model.

    Raises:
        ValueError: The model does not take images of this size, or needs larger batches.
    """
    size = int(config.input_size or 0)
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
    if config.batch_size == 1:
        batch = one.repeat(max(1, config.aug_splits), 1, 1, 1)
        try:
            with torch.no_grad():
                deepcopy(model).train()(batch)  # a copy, because batch norms would be updated
        except ValueError as error:
            raise ValueError(
                f"batch_size=1 is too small for the batch norm of {type(model).__name__} ({brief(error)}): "
                "choose at least 2"
            ) from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str, what: str = "the model") -> None:
    """Load all weights into a model.

    Args:
        model: The model.
        weights: Its state dict.
        where: Origin of the weights, for the message.
        what: Name of the model, for the message.

    Raises:
        ValueError: They are weights of another model; the message names the difference.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit {what}: {brief(error)}") from None
