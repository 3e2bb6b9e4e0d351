"""Settings of `entropyfloor train vision`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from entropyfloor.runs.resume import config_of
from entropyfloor.runs.settings import (
    NATURAL,
    POSITIVE,
    SEED_RANGE,
    SHARE,
    THREADS,
    WORKERS,
    CountsIf,
    Effect,
    Precision,
    Range,
    check,
    check_counted,
)
from entropyfloor.runs.trackers import Track

DatasetName = Literal["cifar10", "cifar100", "digits", "folder"]
Augmentation = Literal["none", "light", "timm"]

NATIVE_SIZE = {"cifar10": 32, "cifar100": 32, "digits": 32, "folder": 224}
"""Default `input_size`. Digits of 8×8 pixels are enlarged, because models halve the resolution several times."""
NAMES = ("domain", "env", "agent")
"""Entries of `config.toml` that name the run in a report; they follow from the settings."""
WHOLE = 2**31 - 1
"""Largest 32-bit integer, which libraries count images and pixels with."""
WHOLE_COUNT = Range(1, WHOLE, "at least 1 and below 2**31")
SIZE = Range(1, 2**14, "between 1 and 16384")
WARMUP = Range(0, WHOLE, "at least 0 and below 2**31")
SPLITS = Range(0, 256, "between 0 and 256")
CROP = Range(0.1, 1, "between 0.1 and 1")
TAU = Range(math.e, math.inf, "finite and above e = 2.71828…", open=True)
CLASSES = Range(2, WHOLE, "at least 2 and below 2**31")
ERA = CountsIf("min_entropy", lambda config: config.min_entropy is not None)
ERASED = CountsIf("erase", lambda config: config.erase > 0)
OOD = CountsIf("ood", lambda config: config.ood is not None or config.ood_dir == config.data_dir)
"""`ood_dir` is `data_dir` in resolved settings, also without `ood`."""


@dataclass(frozen=True)
class VisionConfig:
    """Settings of an image classifier's run. A setting left at None follows from the others.

    Examples:
        >>> from entropyfloor.vision.config import VisionConfig
        >>> VisionConfig(dataset="cifar10", min_entropy=0.6).resolved().floor
        'calibrated'
    """

    model: str = "resnet18"
    """Name of a timm classifier. Its weights start random, or from `--checkpoint` or `--pretrained`."""
    dataset: DatasetName = "digits"
    """Dataset: cifar10 or cifar100 (torchvision's), digits (scikit-learn's), or folder (ImageNet, or your own)."""
    data_dir: Annotated[str, Effect.PLACE] = "data"
    """Directory of the dataset. For `folder`: train and test (or val), as directories or tar files of classes."""
    download: Annotated[bool, Effect.SPEED] = False
    """Download CIFAR if it is missing."""
    num_classes: Annotated[int | None, CLASSES] = None
    """Number of classes: by default that of the dataset, and checked against it."""
    input_size: Annotated[int | None, SIZE] = None
    """Height and width of the images in pixels: by default 32 for CIFAR and digits, 224 for folders."""
    label_noise: Annotated[float, SHARE] = 0.0
    """Share of the training images that get a wrong label, chosen by `seed`; each other class is as likely."""
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    """Seed of all random numbers."""
    epochs: Annotated[int, WHOLE_COUNT] = 200
    """Number of passes over the training images."""
    recipe: Annotated[str | None, Effect.IDENTITY] = None
    """Remark for reports: the recipe of the run, its scale and its arm."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Run directory: by default runs/vision/<dataset>-<model>/<names of the regularisers>/seed-<seed>."""

    min_entropy: Annotated[float | None, POSITIVE] = None
    """ERA: minimum entropy of every prediction in nats. The paper uses 0.6 (CIFAR-10) and 1.2 (ImageNet)."""
    floor: Annotated[Literal["calibrated", "paper"], ERA] = "calibrated"
    """ERA: `min_entropy` is the floor itself (calibrated, ours), or H0 of Eq. 15, far below the floor (paper)."""
    tau: Annotated[float, TAU, ERA] = 4.0
    """ERA: temperature τ of Eq. 15."""
    inverse: Annotated[Literal["exact", "paper"], ERA] = "exact"
    """ERA: h⁻¹ computed exactly, or by the approximation of the paper and its released code."""
    temperature_floor: Annotated[float | None, POSITIVE] = None
    """Minimum entropy of every prediction in nats, reached by a temperature instead of ERA, for comparison."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Label smoothing ε: the share of each target that is spread over all classes."""
    dropout: Annotated[float, SHARE] = 0.0
    """Dropout probability before the last layer."""
    focal_gamma: Annotated[float, NATURAL] = 0.0
    """Focal loss: exponent γ. 0 is cross-entropy."""
    confidence_penalty: Annotated[float, NATURAL] = 0.0
    """Confidence penalty β: the loss falls by β for each nat of entropy."""

    augmentation: Augmentation = "light"
    """Augmentation: none, light (padded crop, flip), or timm (random resized crop, flip, colours or a policy)."""
    auto_augment: str | None = None
    """Augmentation policy of timm, such as rand-m9-mstd0.5-inc1. Needs augmentation timm."""
    erase: Annotated[float, SHARE] = 0.0
    """Random erasing: probability that a part of an image is erased."""
    erase_mode: Annotated[Literal["const", "rand", "pixel"], ERASED] = "pixel"
    """Random erasing: zeros (const), one random colour (rand), or a random colour for each pixel (pixel)."""
    mixup: Annotated[float, NATURAL] = 0.0
    """Mixup: parameter α of the Beta distribution. 0 turns it off."""
    cutmix: Annotated[float, NATURAL] = 0.0
    """CutMix: parameter α of the Beta distribution. 0 turns it off."""
    aug_splits: Annotated[int, SPLITS] = 0
    """AugMix: copies of each image in a batch, all cropped and flipped, all but the first augmented. 0: off."""
    split_bn: bool = False
    """AugMix: separate batch norms for the copies."""
    jsd: Annotated[float, NATURAL] = 0.0
    """AugMix: weight of the Jensen-Shannon divergence between the copies. timm uses 12."""
    crop: Annotated[float | None, CROP] = None
    """Share of a test image's height and width that is evaluated: by default 1 below 96 pixels, else 0.875."""

    optimiser: str = "sgd"
    """Optimiser of timm, such as sgd (with Nesterov momentum), adamw or lamb."""
    learning_rate: Annotated[float, POSITIVE] = 0.05
    """Initial learning rate, for the whole batch on all devices."""
    momentum: Annotated[float, SHARE] = 0.9
    """Momentum, for optimisers that have one."""
    weight_decay: Annotated[float, NATURAL] = 2e-5
    """Weight decay. Biases and norms have none."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule of the learning rate: cosine falls to 0, constant does not fall."""
    warmup_epochs: Annotated[int, WARMUP] = 0
    """Number of epochs in which the learning rate rises from 1e-5; a lower one is constant in them."""
    batch_size: Annotated[int, WHOLE_COUNT] = 128
    """Number of images in an update on each device."""
    clip_grad: Annotated[float | None, POSITIVE] = None
    """Maximum norm of the gradient; longer ones are scaled down."""
    ema: Annotated[float, SHARE] = 0.0
    """Decay of the moving average of the weights, which is evaluated instead of them. 0 turns it off."""
    precision: Precision | Literal["fp16"] = "fp32"
    """Number format of the model: fp32; or mixed precision, bf16 or fp16 (accelerators), with a float32 floor."""
    channels_last: Annotated[bool, Effect.SPEED] = False
    """Use the channels-last memory layout, which is faster on some devices."""
    compile: Annotated[bool, Effect.SPEED] = False
    """Compile the model with `torch.compile`."""
    checkpoint: str | None = None
    """File of weights to start from. The last layer starts random if they are for other classes."""
    pretrained: bool = False
    """Start from timm's weights for the model. The last layer starts random if they are for other classes."""

    ood: DatasetName | None = None
    """Out-of-distribution dataset, whose test images should be predicted with less confidence."""
    ood_dir: Annotated[str | None, Effect.PLACE, OOD] = None
    """Directory of the out-of-distribution dataset: by default `data_dir`."""
    checkpoint_every: Annotated[int, WHOLE_COUNT, Effect.SPEED] = 1
    """Number of epochs between checkpoints. The last epoch always saves one."""
    workers: Annotated[int, WORKERS, Effect.SPEED] = 0
    """Number of processes that prepare images; 0: the training process. Each number draws other augmentations."""
    threads: Annotated[int, THREADS, Effect.SPEED] = 0
    """Number of CPU threads of PyTorch. 0: PyTorch chooses."""
    track: Annotated[Track | None, Effect.SPEED] = None
    """Tracker beside TensorBoard, whose files are written where it is installed; none turns them off too."""

    def __post_init__(self) -> None:
        check(self)
        if self.pretrained and self.checkpoint is not None:
            raise ValueError(f"pretrained and checkpoint={self.checkpoint} are two initial weights: choose one")
        if self.min_entropy is not None and self.temperature_floor is not None:
            raise ValueError("min_entropy and temperature_floor are two floors: choose one")
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise ValueError(f"batch_size={self.batch_size} must be even: Mixup pairs the images of a batch")
        if self.ood is not None and (self.ood, self.ood_dir or self.data_dir) == (self.dataset, self.data_dir):
            raise ValueError(f"ood={self.ood!r} is the dataset itself: give another one, or --ood-dir")
        if self.auto_augment is not None and self.augmentation != "timm":
            raise ValueError(f"auto_augment={self.auto_augment!r} needs augmentation='timm'")
        if self.aug_splits == 1 or (
            self.aug_splits and (self.mixup or self.cutmix or self.augmentation != "timm")
        ):
            raise ValueError(
                f"aug_splits={self.aug_splits} must be 0 or at least 2, with augmentation='timm' and without Mixup"
            )
        if (self.jsd or self.split_bn) and not self.aug_splits:
            raise ValueError("jsd and split_bn compare the copies of an image: they need aug_splits of at least 2")

    def resolved(self) -> VisionConfig:
        """The same settings with defaults filled in, except `num_classes`, which follows from the dataset.

        Raises:
            ValueError: A setting would be ignored, or the learning rate would rise to the end.
        """
        check_counted(self)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        return self.filled()

    def filled(self) -> VisionConfig:
        """As `resolved`, without its checks: runs of earlier versions may have settings that are ignored."""
        size = self.input_size or NATIVE_SIZE[self.dataset]
        crop = self.crop or (1.0 if size < 96 else 0.875)
        out = self.out or f"runs/vision/{self.dataset}-{self.model}/{self.label}/seed-{self.seed}"
        return replace(self, input_size=size, crop=crop, out=out, ood_dir=self.ood_dir or self.data_dir)

    def moved(
        self, data_dir: Path | str | None = None, ood_dir: Path | str | None = None, **changes: Any
    ) -> VisionConfig:
        """The same settings with changes; `ood_dir` stays the same as `data_dir` where it was."""
        home = str(data_dir or self.data_dir)
        ood_home = home if self.ood_dir == self.data_dir else self.ood_dir
        return replace(self, data_dir=home, ood_dir=ood_home if ood_dir is None else str(ood_dir), **changes)

    def restarted(self) -> VisionConfig:
        """The same settings without initial weights, for a run whose weights come from a checkpoint."""
        return replace(self, checkpoint=None, pretrained=False)

    def with_classes(self, classes: Sequence[str]) -> VisionConfig:
        """The same settings with the number of the dataset's classes.

        Raises:
            ValueError: `num_classes` is another number.
        """
        if self.num_classes not in (None, len(classes)):
            raise ValueError(
                f"num_classes={self.num_classes}, but {self.dataset} in {self.data_dir} has {len(classes)} "
                "classes: leave it out, or choose other data"
            )
        return replace(self, num_classes=len(classes))

    @property
    def floor_metric(self) -> dict[str, float]:
        """The minimum entropy in nats as the metric `floor`, if there is one; for `paper` it is H0 of Eq. 15."""
        floor = self.min_entropy or self.temperature_floor
        return {} if floor is None else {"floor": floor}

    @property
    def label(self) -> str:
        """Names of the regularisers, or `plain`."""
        era = self.floor if self.min_entropy is not None else None
        known = {
            f"era-{era}-{self.min_entropy}": era,
            f"temperature-{self.temperature_floor}": self.temperature_floor,
            f"smoothing-{self.label_smoothing}": self.label_smoothing,
            f"dropout-{self.dropout}": self.dropout,
            f"focal-{self.focal_gamma}": self.focal_gamma,
            f"penalty-{self.confidence_penalty}": self.confidence_penalty,
        }
        return "-".join(name for name, used in known.items() if used) or "plain"


def read_config(settings: dict[str, Any]) -> VisionConfig:
    """The config of a run, from the entries of its `config.toml`.

    Raises:
        ValueError: It is not a run of an image classifier, or has settings that this version does not know.
    """
    return config_of(VisionConfig, settings, "vision", "an image classifier", NAMES)
