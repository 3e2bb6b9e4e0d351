"""Preparation of images: augmentation, batches and normalisation, with timm and torchvision."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import AugMixDataset, auto_augment, create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from entropyfloor.vision.config import DatasetName, VisionConfig
from entropyfloor.vision.sources import Source, listed, load

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS: dict[DatasetName, Statistics] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "digits": IMAGENET,
    "folder": IMAGENET,
}
"""Mean and standard deviation of each channel by which the images of a dataset are normalised, in [0, 1]."""
LABEL_NOISE = 3
"""Stream of random numbers, after those of the trainer."""


class Splits(NamedTuple):
    """Images of a run."""

    train: Source
    test: Source
    ood: Source | None


def open_splits(config: VisionConfig) -> Splits:
    """Open the datasets of a resolved config. Noise is in the labels of training images only.

    Raises:
        ValueError: A dataset is not there, or its training and test images have different classes.
    """
    home = Path(config.data_dir)
    train = load(config.dataset, home, "train", download=config.download)
    test = load(config.dataset, home, "test", download=config.download)
    if train.classes != test.classes:
        odd = listed(sorted(set(train.classes) ^ set(test.classes)))
        raise ValueError(
            f"{len(train.classes)} classes to train on and {len(test.classes)} to test on: {odd} differ"
        )
    if config.label_noise:
        train = train.mislabelled(config.label_noise, np.random.default_rng([config.seed, LABEL_NOISE]))
    return Splits(train, test, open_ood(config))


def open_ood(config: VisionConfig) -> Source | None:
    """Open the out-of-distribution dataset of a resolved config, if it has one."""
    if config.ood is None:
        return None
    return load(config.ood, Path(str(config.ood_dir)), "test", download=config.download)


# --- batches ---------------------------------------------------------------------------------------------


def training_loader(
    source: Source, config: VisionConfig, device: torch.device, order: torch.Generator
) -> DataLoader[Any]:
    """Batches of training images in the order that `order` gives.

    Raises:
        ValueError: timm has no such augmentation policy.
    """
    return DataLoader(
        training_set(source, config),
        # Not `generator=`: the loader would seed its workers from it, in every process with the same numbers.
        sampler=RandomSampler(source.labels, generator=order),
        drop_last=True,  # a last batch of one image is too small for batch norm
        collate_fn=collate_splits if config.aug_splits else None,
        **_options(config, device),
    )


def evaluation_loader(source: Source, config: VisionConfig, device: torch.device) -> DataLoader[Any]:
    """Batches of test images in their order."""
    images = evaluation_set(source, int(config.input_size or 0), float(config.crop or 1))
    return DataLoader(images, **_options(config, device))


def _options(config: VisionConfig, device: torch.device) -> dict[str, Any]:
    return {
        "batch_size": config.batch_size,
        "num_workers": config.workers,
        "worker_init_fn": ignore_interrupts,
        "pin_memory": device.type == "cuda",
    }


def ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- transforms ------------------------------------------------------------------------------------------


class Images(Dataset[tuple[Any, int]]):
    """A source with a transform. timm's wrappers set the attribute `transform`."""

    def __init__(self, source: Source, transform: Callable[[Image.Image], Any]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image as bytes `[3, height, width]`, and its label.

        Raises:
            UnreadableImageError: The image cannot be read; the message names it.
        """
        return self.transform(self.source.read(index)), self.source.labels[index]


def training_set(source: Source, config: VisionConfig) -> Dataset[Any]:
    """Images with the augmentation of a resolved config, except random erasing, which works on batches.

    `none` resizes and crops the centre; `light` pads by an eighth, crops and flips; `timm` is timm's random
    resized crop, flip, and colour jitter or policy.

    Raises:
        ValueError: timm has no such policy.
    """
    size = int(config.input_size or 0)
    if config.augmentation != "timm":
        light = [transforms.RandomCrop(size, padding=size // 8), transforms.RandomHorizontalFlip()]
        return Images(source, centre_crop(size, augmentation=light if config.augmentation == "light" else []))
    policy, splits = config.auto_augment, config.aug_splits
    mean, _ = STATISTICS[config.dataset]  # the colour that a policy fills gaps with
    options: dict[str, Any] = {"mean": mean, "auto_augment": policy, "separate": splits > 0, "normalize": False}
    try:
        _, *parts = (policy or "").split("-")
        if not all(re.fullmatch(r"[a-z]+\d+(\.\d+)?", part) for part in parts):  # timm would ignore it
            raise ValueError(policy)
        transform = create_transform(size, is_training=True, interpolation="random", **options)
    except (AssertionError, ValueError):
        raise ValueError(
            f"auto_augment={policy!r} is no policy of timm: name one such as rand-m9-mstd0.5-inc1, "
            "augmix-m3-w3, 3a or original"
        ) from None
    images = Images(source, transform)
    return AugMixDataset(images, num_splits=splits) if splits else images


def evaluation_set(source: Source, input_size: int, crop: float) -> Dataset[Any]:
    """Images as the model is evaluated on them: the centre, `crop` of the height and the width, resized."""
    return Images(source, centre_crop(input_size, crop))


def centre_crop(size: int, crop: float = 1.0, augmentation: Sequence[Any] = ()) -> Callable[[Image.Image], Any]:
    """Transform of an image to bytes `[3, size, size]`: resize, crop the centre, augment."""
    bicubic = transforms.InterpolationMode.BICUBIC
    cut = [transforms.Resize(round(size / crop), bicubic), transforms.CenterCrop(size)]
    return transforms.Compose([*cut, *augmentation, transforms.PILToTensor()])


def collate_splits(batch: Sequence[tuple[Sequence[torch.Tensor], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of AugMix: the first copies of all images, then the second ones, …, as timm's loss takes them."""
    copies = zip(*(images for images, _ in batch), strict=True)
    columns = [torch.stack(copy) for copy in copies]
    labels = torch.tensor([label for _, label in batch])
    return torch.cat(columns), labels.repeat(len(columns))


class Normalise(nn.Module):
    """Normalisation of images `[batch, 3, height, width]`: from bytes to mean 0 and standard deviation 1.

    It runs on the device of the model, because bytes are a quarter of the traffic to it.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images in float32."""
        return (images.float() - self.mean) / self.std


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's `posterize`. Its strongest setting keeps no bits, which new versions of Pillow refuse: black."""
    return auto_augment.posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)


_NAMES = ("Posterize", "PosterizeIncreasing", "PosterizeOriginal")
auto_augment.NAME_TO_OP.update(dict.fromkeys(_NAMES, _posterize))
