"""A classifier that was trained, with what one needs to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.data import STATISTICS, Normalise, centre_crop
from entropyfloor.vision.images import to_rgb

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


class Classifier(nn.Module):
    """A model of timm with its minimum entropy: from normalised images `[B, 3, H, W]` to logits `[B, n]`.

    Args:
        model: The model, with ERA if the config asks for it.
        output: Layer behind the model: `Identity`, or a minimum entropy by temperature.
        config: Resolved settings of the run.
        label_names: Names of the classes; None for runs of early versions, which did not record them.

    Attributes:
        label_names: Names of the classes in the order of the outputs, or None.
        input_size: Height and width of the images in pixels.
        mean, std: Statistics of the three channels by which images are normalised, in [0, 1].
    """

    def __init__(
        self, model: nn.Module, output: nn.Module, config: VisionConfig, label_names: Sequence[str] | None
    ) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.label_names = None if label_names is None else tuple(label_names)
        self.input_size, self.crop = int(config.input_size or 0), float(config.crop or 1)
        self.mean, self.std = STATISTICS[config.dataset]
        self.normalise = Normalise((self.mean, self.std))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B n"]:
        """Logits whose softmax has at least the minimum entropy."""
        logits: Tensor = self.output(self.model(images))
        return logits

    def preprocess(self, images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
        """Images as the model is evaluated on them: resized, cropped and normalised, on the model's device."""
        transform = centre_crop(self.input_size, self.crop)
        pixels: UInt8[Tensor, "B 3 H W"] = torch.stack([transform(to_rgb(image)) for image in images])
        normalised: Tensor = self.normalise(pixels.to(self.normalise.mean.device))
        return normalised
