"""Everything that a run of `entropyfloor train vision` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from entropyfloor.runs.settings import NATURAL, POSITIVE, SEED_RANGE, SHARE, THREADS, WORKERS, Effect, Range, check
from entropyfloor.vision.data import Augmentation

DatasetName = Literal["cifar10", "cifar100", "digits", "folder"]
Precision = Literal["no", "bf16", "fp16"]

NATIVE_SIZE = {"cifar10": 32, "cifar100": 32, "digits": 32, "folder": 224}
"""Pixels of a side, unless something else was said; digits of 8×8 are enlarged, as models halve them often."""
WHOLE = 2**31 - 1
"""The largest whole number that everything which counts with it can hold."""
WHOLE_COUNT = Range(1, WHOLE, "at least 1 and below 2**31")
SIZE = Range(1, 2**14, "between 1 and 16384")
WARMUP = Range(0, WHOLE, "at least 0 and below 2**31")
SPLITS = Range(0, 256, "between 0 and 256")
CROP = Range(0.1, 1, "between 0.1 and 1")
TAU = Range(math.e, math.inf, "finite and above e = 2.71828…", open=True)
CLASSES = Range(2, WHOLE, "at least 2 and below 2**31")


@dataclass(frozen=True)
class VisionConfig:
    """A run of an image classifier. What is left at None follows from the rest."""

    model: str = "resnet18"
    """Any classifier of timm. Weights start random; `--checkpoint` takes them from a file."""
    dataset: DatasetName = "digits"
    """cifar10, cifar100 (torchvision's), digits (scikit-learn's, no download), folder (ImageNet, or any)."""
    data_dir: Annotated[str, Effect.PLACE] = "data"
    """Where the dataset is. `folder`: train and test (or val), directories or tar files of class directories."""
    download: Annotated[bool, Effect.SPEED] = False
    """Fetch CIFAR where it is missing."""
    num_classes: Annotated[int | None, CLASSES] = None
    """Outputs of the model: as many as the dataset has classes, and checked against them."""
    input_size: Annotated[int | None, SIZE] = None
    """Pixels of a side: 32 for CIFAR and digits, 224 for folders."""
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    """Everything random follows from it."""
    epochs: Annotated[int, WHOLE_COUNT] = 200
    """Passes over the training images."""
    recipe: Annotated[str | None, Effect.IDENTITY] = None
    """A remark: the recipe that asked for the run, its scale and its arm."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Run directory; by default runs/vision/<dataset>-<model>/<name of the regularisers>/seed-<seed>."""

    min_entropy: Annotated[float | None, POSITIVE] = None
    """ERA: the floor under the entropy of every prediction, in nats. The paper: 0.6 (CIFAR-10), 1.2 (ImageNet)."""
    floor: Literal["calibrated", "paper"] = "calibrated"
    """ERA: what `min_entropy` is: the least entropy (ours), or the H0 of Eq. 15, whose floor is far above it."""
    tau: Annotated[float, TAU] = 4.0
    """ERA: τ of Eq. 15."""
    inverse: Literal["exact", "paper"] = "exact"
    """ERA: h⁻¹ itself, or the approximation that the paper prints and its release has."""
    temperature_floor: Annotated[float | None, POSITIVE] = None
    """The same floor by a temperature, to compare with, in nats."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """ε."""
    dropout: Annotated[float, SHARE] = 0.0
    """Before the last layer."""
    focal_gamma: Annotated[float, NATURAL] = 0.0
    """γ of the focal loss."""
    confidence_penalty: Annotated[float, NATURAL] = 0.0
    """β, what a nat of entropy is worth to the loss."""

    augmentation: Augmentation = "light"
    """none, light (padded crop and flip), or timm (random resized crop, flip, and colour jitter or a policy)."""
    auto_augment: str | None = None
    """A policy of timm, such as rand-m9-mstd0.5-inc1; needs augmentation timm."""
    erase: Annotated[float, SHARE] = 0.0
    """Probability of random erasing."""
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What erased pixels become."""
    mixup: Annotated[float, NATURAL] = 0.0
    """α of Mixup."""
    cutmix: Annotated[float, NATURAL] = 0.0
    """α of CutMix."""
    aug_splits: Annotated[int, SPLITS] = 0
    """Copies of each image in a batch, the first one clean (AugMix); 0 for one."""
    split_bn: bool = False
    """Batch norm of its own for each copy."""
    jsd: Annotated[float, NATURAL] = 0.0
    """Weight of the Jensen-Shannon divergence between the copies; timm's is 12."""
    crop: Annotated[float | None, CROP] = None
    """Share of a side that a test image is judged on: all of it below 96 pixels, else 0.875."""

    optimiser: str = "sgd"
    """Any of timm's, such as sgd (with Nesterov's momentum), adamw, lamb."""
    learning_rate: Annotated[float, POSITIVE] = 0.05
    """At the start, of the whole batch on all devices."""
    momentum: Annotated[float, SHARE] = 0.9
    """Of the optimisers that have one."""
    weight_decay: Annotated[float, NATURAL] = 2e-5
    """Not of biases and norms."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup_epochs: Annotated[int, WARMUP] = 0
    """In which it rises."""
    batch_size: Annotated[int, WHOLE_COUNT] = 128
    """Images in an update on each device."""
    clip_grad: Annotated[float | None, POSITIVE] = None
    """Gradients are scaled down to this norm."""
    ema: Annotated[float, SHARE] = 0.0
    """Decay of the average of the weights that is judged instead of them; 0 for none."""
    precision: Precision = "no"
    """Mixed precision: no, bf16, fp16 (on accelerators). The floor is computed in float32 in any case."""
    channels_last: Annotated[bool, Effect.SPEED] = False
    """Memory layout; faster on some devices."""
    compile: Annotated[bool, Effect.SPEED] = False
    """Through `torch.compile`."""
    checkpoint: str | None = None
    """Weights to start from, as timm reads them; those of the plain model fit the floored one. The last layer is
    new where they are of other classes."""
    pretrained: bool = False
    """Start from timm's weights for the model, with a new last layer for other classes than theirs."""

    ood: Literal["cifar10", "cifar100", "digits", "folder"] | None = None
    """A dataset of other things, whose test images the model should be unsure of."""
    ood_dir: Annotated[str | None, Effect.PLACE] = None
    """Where it is; by default `data_dir`."""
    checkpoint_every: Annotated[int, WHOLE_COUNT, Effect.SPEED] = 1
    """Epochs between checkpoints; the end always saves one."""
    workers: Annotated[int, WORKERS, Effect.SPEED] = 0
    """Processes that prepare images; 0 leaves it to the one that trains."""
    threads: Annotated[int, THREADS, Effect.SPEED] = 0
    """CPU threads of PyTorch; 0 leaves the choice to it."""

    def __post_init__(self) -> None:
        check(self)
        if self.pretrained and self.checkpoint is not None:
            raise ValueError(f"pretrained and checkpoint={self.checkpoint} are two beginnings: choose one")
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
        """The same run with nothing left at None that has a value; `num_classes` follows from the data."""
        size = self.input_size or NATIVE_SIZE[self.dataset]
        crop = self.crop or (1.0 if size < 96 else 0.875)
        out = self.out or f"runs/vision/{self.dataset}-{self.model}/{self.label}/seed-{self.seed}"
        return replace(self, input_size=size, crop=crop, out=out, ood_dir=self.ood_dir or self.data_dir)

    def moved(
        self, data_dir: Path | str | None = None, ood_dir: Path | str | None = None, **changes: Any
    ) -> VisionConfig:
        """The same run with its images elsewhere, and with changes that say what to do with them."""
        home = str(data_dir or self.data_dir)
        others = home if self.ood_dir == self.data_dir else self.ood_dir
        return replace(self, data_dir=home, ood_dir=others if ood_dir is None else str(ood_dir), **changes)

    def restarted(self) -> VisionConfig:
        """The same run without the weights that it began with: those of its checkpoint take their place."""
        return replace(self, checkpoint=None, pretrained=False)

    @property
    def label(self) -> str:
        """Names of the regularisers, `plain` where there is none."""
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
