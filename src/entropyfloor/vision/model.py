"""The model that a config asks for, and what its floor is given."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import convert_splitbn_model
from timm.models import load_checkpoint
from torch import Tensor, nn

from entropyfloor.torch.nn import ERASoftmax
from entropyfloor.vision.attach import attach_era
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.registry import SUFFIX
from entropyfloor.vision.regularisers import TemperatureFloor


def build_model(config: VisionConfig) -> tuple[nn.Module, nn.Module]:
    """The model, and what stands behind it: nothing, or a floor by temperature.

    Raises:
        ValueError: timm has no such model, the floor is out of reach, or the checkpoint does not fit.
    """
    model, _ = plain_model(config, drop_rate=config.dropout)
    if config.checkpoint:
        try:
            load_checkpoint(model, config.checkpoint, weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"checkpoint={config.checkpoint} does not exist") from None
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"checkpoint={config.checkpoint} does not fit {config.model}: {error}") from None
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


def check_size(model: nn.Module, size: int, device: torch.device) -> None:
    """Give the model one black image.

    Raises:
        ValueError: It does not take images of this size.
    """
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"{type(model).__name__} does not take images of {size}×{size} pixels: {error}") from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Into `model`, all of them.

    Raises:
        ValueError: They are those of another model; the message names what differs.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit the model: {error}") from None


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
