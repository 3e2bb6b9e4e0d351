"""Images with labels: where they come from, and how they are prepared.

A `Source` has names of classes, labels, and opens images. What is done to an image is timm's and torchvision's.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import AugMixDataset, create_transform
from torch import nn
from torch.utils.data import Dataset
from torchvision import datasets, transforms

from entropyfloor.extras import require
from entropyfloor.vision.images import OTHER_SUFFIXES, SUFFIXES, open_image, to_rgb

Augmentation = Literal["none", "light", "timm"]
SPLITS = {"train": ("train", "training"), "test": ("test", "val", "validation")}
"""What the folders of a dataset may be called."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, in [0, 1]."""
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10: Statistics = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100: Statistics = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Store(Protocol):
    """Where images are. A plain class, so that processes that prepare images can be handed one."""

    def open(self, index: int) -> Image.Image:
        """One of them."""

    def name(self, index: int) -> str:
        """What an error calls it."""


@dataclass(frozen=True)
class Arrays:
    """Images in memory, `[N, height, width]` or `[N, height, width, 3]` of bytes."""

    pixels: np.ndarray
    what: str

    def open(self, index: int) -> Image.Image:
        """One of them."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """By its number."""
        return f"{self.what} {index}"


@dataclass(frozen=True)
class Files:
    """Images in files."""

    paths: list[Path]

    def open(self, index: int) -> Image.Image:
        """One of them."""
        return open_image(self.paths[index])

    def name(self, index: int) -> str:
        """By its path."""
        return str(self.paths[index])


@dataclass(frozen=True)
class Tar:
    """Images in an uncompressed tar file, found by their position: processes share no file handle."""

    path: Path
    members: list[tuple[str, int, int]]
    """Name, position and size."""

    def open(self, index: int) -> Image.Image:
        """One of them."""
        _, position, size = self.members[index]
        with self.path.open("rb") as file:
            file.seek(position)
            return open_image(io.BytesIO(file.read(size)))

    def name(self, index: int) -> str:
        """By its name inside."""
        return f"{self.members[index][0]} in {self.path}"


@dataclass(frozen=True)
class Source:
    """Images with labels."""

    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    labels: Sequence[int]
    store: Store
    statistics: Statistics = IMAGENET

    def numbered_as(self, classes: Sequence[str]) -> Source:
        """The same images, labelled by the order of `classes`.

        Raises:
            ValueError: The names are not the same; the message says which ones.
        """
        if set(classes) != set(self.classes):
            unlike = difference(classes, self.classes)
            raise ValueError(f"the classes of the images are not those of the run: {unlike}")
        number = {name: i for i, name in enumerate(classes)}
        return replace(self, classes=tuple(classes), labels=[number[self.classes[i]] for i in self.labels])

    def read(self, index: int, *, fast: bool = False) -> Image.Image:
        """One of the images in mode RGB.

        Args:
            index: Which one.
            fast: Decode JPEG to an eighth of its size, which is enough to find out whether it is damaged.

        Raises:
            UnreadableImageError: The file is no image that can be read; the message names it.
        """
        try:
            with self.store.open(index) as image:
                if fast:
                    image.draft(image.mode, (1, 1))
                return to_rgb(image)
        except Exception as error:  # its kind is up to the format
            raise UnreadableImageError(
                f"{self.store.name(index)} cannot be read as an image ({error}): repair or remove it"
            ) from None


class UnreadableImageError(ValueError):
    """The message names the file.

    A process that prepares images hands on its whole traceback as the message: the last of it is what we said.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.split(f"{type(self).__name__}: ")[-1].rstrip())


class Images(Dataset[tuple[Any, int]]):
    """A source behind a transform; `transform` is an attribute, as timm's wrappers expect."""

    def __init__(self, source: Source, transform: Callable[[Image.Image], Any]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, prepared: bytes `[3, height, width]`; and its label.

        Raises:
            UnreadableImageError: The file is no image that can be read; the message names it.
        """
        return self.transform(self.source.read(index)), self.source.labels[index]


class Faults(Dataset[str]):
    """What keeps each image of a source from being read: a message, or nothing."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> str:
        """The message, empty for a healthy image."""
        try:
            self.source.read(index, fast=True)
        except UnreadableImageError as error:
            return str(error)
        return ""


# --- sources ---------------------------------------------------------------------------------------------


def load(dataset: str, root: Path, split: Literal["train", "test"], *, download: bool = False) -> Source:
    """Open a dataset.

    Args:
        dataset: `cifar10` and `cifar100` as torchvision keeps them, `digits` (scikit-learn's, which come with
            it), or `folder`: `root` holds `train` and `test` (or `val`), each a directory of class directories, or
            a tar file of it; or `root` is one tar file of both.
        root: Where the files are; `digits` needs none.
        split: Which part.
        download: Fetch what is missing (CIFAR only).

    Raises:
        ValueError: There is no such dataset, or nothing of it in `root`.
    """
    if dataset == "digits":
        return _digits(split)
    if dataset in ("cifar10", "cifar100"):
        return _cifar(dataset, root, split, download)
    if dataset == "folder":
        return _folder(root, split)
    raise ValueError(f"dataset={dataset!r} must be cifar10, cifar100, digits or folder")


def _digits(split: str) -> Source:
    """1,438 and 359 handwritten digits of 8×8 pixels; every fifth one is a test image."""
    require("vision", "sklearn")
    from sklearn.datasets import load_digits

    found = load_digits()
    test = np.arange(len(found.target)) % 5 == 4
    chosen = test if split == "test" else ~test
    pixels, labels = (found.images[chosen] * (255 / 16)).round().astype(np.uint8), found.target[chosen]
    return Source(tuple("0123456789"), labels.tolist(), Arrays(pixels, "digit"))


def _cifar(dataset: str, root: Path, split: str, download: bool) -> Source:
    kind, statistics = {
        "cifar10": (datasets.CIFAR10, CIFAR10),
        "cifar100": (datasets.CIFAR100, CIFAR100),
    }[dataset]
    try:
        found = kind(str(root), train=split == "train", download=download)
    except RuntimeError as error:
        raise ValueError(
            f"{dataset} is not in {root} ({error}): give --data-dir, or let --download fetch it"
        ) from None
    return Source(tuple(found.classes), found.targets, Arrays(found.data, f"{dataset} {split} image"), statistics)


def _folder(root: Path, split: str) -> Source:
    names = SPLITS[split]
    if root.suffix == ".tar" and root.is_file():
        return _tar(root, names)
    if not root.is_dir():
        raise ValueError(f"data_dir={root} is neither a directory nor a tar file")
    for name in names:
        if (root / name).is_dir():
            return _directory(root / name)
        if (root / f"{name}.tar").is_file():
            return _tar(root / f"{name}.tar")
    raise ValueError(f"{root} has no {' or '.join(names)}, neither as a directory nor as a tar file")


def _directory(home: Path) -> Source:
    """Class directories, in which images lie at any depth; links are followed, hidden names are left out."""
    folders = [entry.name for entry in os.scandir(home) if entry.is_dir() and not _is_hidden([entry.name])]
    files = sorted(_images(path for name in folders for path in _files_below(home / name)))
    names = [path.relative_to(home).parts[0] for path in files]
    return _labelled(names, folders, home, lambda: Files(files))


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files that are not hidden, in no order. A link to a directory that it lies in is not followed for ever."""
    real = folder.resolve()
    if real in above:
        return
    for entry in os.scandir(folder):
        if not _is_hidden([entry.name]):
            if entry.is_dir():
                yield from _files_below(folder / entry.name, above | {real})
            else:
                yield folder / entry.name


def _tar(path: Path, names: Sequence[str] = ()) -> Source:
    """Class directories in an uncompressed tar file; of both splits, those below one of `names`."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = {Path(m.name): m for m in tar if not _is_hidden(Path(m.name).parts)}
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as an uncompressed tar file: {error}") from None
    files = _images(file for file, m in members.items() if m.isfile() and _class(file.parent, names))
    if names and not files:  # all of it would be the training images too
        raise ValueError(f"{path} has no directory {' or '.join(names)} with class directories below it")
    files.sort(key=lambda file: members[file].name)
    used = {folder for file in files for folder in file.parents}
    classes = {file.parent for file in files}  # whose empty subdirectories are no classes
    empty = (f for f, m in members.items() if m.isdir() and f not in used and f.parent not in classes)
    folders = [_class(folder, names) for folder in empty]
    places = [(members[file].name, members[file].offset_data, members[file].size) for file in files]
    labels = [str(_class(file.parent, names)) for file in files]
    return _labelled(labels, [name for name in folders if name], path, lambda: Tar(path, places))


def _class(folder: Path, names: Sequence[str]) -> str | None:
    """The directory below one of `names`, or the last one where there are no names; None if there is none."""
    if not names:
        return folder.name or None
    place = next((i for i, part in enumerate(folder.parts) if part in names), len(folder.parts))
    return folder.parts[place + 1] if place + 1 < len(folder.parts) else None


def _is_hidden(parts: Sequence[str]) -> bool:
    """Whether a name begins with a dot, as those of thumbnails, notebooks and macOS do."""
    return any(part.startswith(".") for part in parts)


def _images(files: Iterator[Path]) -> list[Path]:
    """Those whose names end as images do; images that are not read are warned of."""
    kinds: dict[Path, str] = {file: file.suffix.lower() for file in files}
    if others := Counter(kind for kind in kinds.values() if kind in OTHER_SUFFIXES):
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        warnings.warn(f"files of formats that are not read are left out: {told}", stacklevel=2)
    return [file for file, kind in kinds.items() if kind in SUFFIXES]


def _labelled(names: Sequence[str], folders: Sequence[str], where: Path, store: Callable[[], Store]) -> Source:
    """A source of images whose classes are `names`; `folders` are names that images should have."""
    if not names:
        raise ValueError(f"{where} has no image in a class directory: it must look like {where}/cat/1.png")
    if empty := sorted(set(folders) - set(names)):
        raise ValueError(f"{where} has no image in {listed(empty)}: add some, or remove the empty directories")
    classes = tuple(sorted(set(names)))
    try:
        "".join(classes).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a class directory of {where} has a name that is no UTF-8: {error}") from None
    number = {name: i for i, name in enumerate(classes)}
    return Source(classes, [number[name] for name in names], store())


def difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Which names of classes are missing and which are new, in words; nothing where they are the same."""
    lost, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    told = [f"{listed(names)} {what}" for names, what in ((lost, "missing"), (new, "new")) if names]
    return " and ".join(told) or ("" if tuple(before) == tuple(now) else "their order is another one")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- preparation -----------------------------------------------------------------------------------------


class Normalise(nn.Module):
    """Bytes to the numbers that models take, `[batch, 3, height, width]`.

    For batches on the device that learns: bytes are a quarter of the traffic to it.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Each channel with mean 0 and standard deviation 1 over the dataset."""
        return (images.float() - self.mean) / self.std


def training_set(
    source: Source,
    input_size: int,
    augmentation: Augmentation,
    *,
    auto_augment: str | None = None,
    splits: int = 0,
) -> Dataset[Any]:
    """Images as the model learns from them. Random erasing, where wanted, is for whole batches.

    Args:
        source: Images.
        input_size: Pixels of a side.
        augmentation: `none` resizes and crops the centre, `light` pads by an eighth, crops and flips, `timm` is
            timm's: random resized crop, flip, and colour jitter or `auto_augment`.
        auto_augment: A policy of timm, such as `rand-m9-mstd0.5-inc1`.
        splits: Copies of each image in a batch, the first one clean (AugMix); 0 for one.

    Raises:
        ValueError: timm has no such policy.
    """
    if augmentation != "timm":
        light = [transforms.RandomCrop(input_size, padding=input_size // 8), transforms.RandomHorizontalFlip()]
        return Images(source, _prepare(input_size, 1.0, light if augmentation == "light" else []))
    mean, _ = source.statistics  # what a policy fills with
    options: dict[str, Any] = {
        "mean": mean,
        "auto_augment": auto_augment,
        "separate": splits > 0,
        "normalize": False,
    }
    try:
        _, *parts = (auto_augment or "").split("-")
        if not all(re.fullmatch(r"[a-z]+\d+(\.\d+)?", part) for part in parts):  # which timm would ignore
            raise ValueError(auto_augment)
        transform = create_transform(input_size, is_training=True, interpolation="random", **options)
    except (AssertionError, ValueError):
        raise ValueError(
            f"auto_augment={auto_augment!r} is no policy of timm: name one such as rand-m9-mstd0.5-inc1, "
            "augmix-m3-w3, 3a or original"
        ) from None
    images = Images(source, transform)
    return AugMixDataset(images, num_splits=splits) if splits else images


def evaluation_set(source: Source, input_size: int, crop: float) -> Dataset[Any]:
    """Images as the model is judged on them: the middle `crop` of each side, resized."""
    return Images(source, _prepare(input_size, crop))


def _prepare(size: int, crop: float, move: Sequence[Any] = ()) -> Callable[[Image.Image], Any]:
    bicubic = transforms.InterpolationMode.BICUBIC
    cut = [transforms.Resize(round(size / crop), bicubic), transforms.CenterCrop(size)]
    return transforms.Compose([*cut, *move, transforms.PILToTensor()])


def collate_splits(batch: Sequence[tuple[Sequence[torch.Tensor], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of AugMix: all first copies, then all second ones, …, as timm's loss takes them."""
    copies = zip(*(images for images, _ in batch), strict=True)
    columns = [torch.stack(copy) for copy in copies]
    labels = torch.tensor([label for _, label in batch])
    return torch.cat(columns), labels.repeat(len(columns))
