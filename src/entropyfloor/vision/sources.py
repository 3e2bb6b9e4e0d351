"""Labelled images of a dataset: `load("folder", Path("images"), "test")`."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from entropyfloor.extras import require
from entropyfloor.vision.images import OTHER_SUFFIXES, SUFFIXES, open_image, to_rgb

SPLITS = {"train": ("train", "training"), "test": ("test", "val", "validation")}
"""Names that the directories of a split may have."""
LINKS = 40
"""Most links from one to the next, as Linux follows them."""


class Store(Protocol):
    """Storage of images. It can be pickled, so that other processes can read the images."""

    def open(self, index: int) -> Image.Image:
        """Open an image."""

    def name(self, index: int) -> str:
        """Name of an image in error messages."""


@dataclass(frozen=True)
class Arrays:
    """Images in memory, `[N, height, width]` or `[N, height, width, 3]` of bytes."""

    pixels: np.ndarray
    what: str
    """Kind of image, for error messages."""

    def open(self, index: int) -> Image.Image:
        """Open an image."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """Kind and number of an image."""
        return f"{self.what} {index}"


@dataclass(frozen=True)
class Files:
    """Images in files."""

    paths: list[Path]

    def open(self, index: int) -> Image.Image:
        """Open an image."""
        return open_image(self.paths[index])

    def name(self, index: int) -> str:
        """Path of an image."""
        return str(self.paths[index])


@dataclass(frozen=True)
class Tar:
    """Images in an uncompressed tar file, read at their positions, so that processes share no file handle."""

    path: Path
    members: list[tuple[str, int, int]]
    """Name, position and size of each image."""

    def open(self, index: int) -> Image.Image:
        """Open an image."""
        _, position, size = self.members[index]
        with self.path.open("rb") as file:
            file.seek(position)
            return open_image(io.BytesIO(file.read(size)))

    def name(self, index: int) -> str:
        """Name of an image and of the tar file."""
        return f"{self.members[index][0]} in {self.path}"


@dataclass(frozen=True)
class Source:
    """Labelled images."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    labels: Sequence[int]
    store: Store

    def numbered_as(self, classes: Sequence[str]) -> Source:
        """The same images, labelled in the order of `classes`.

        Raises:
            ValueError: The names of the classes differ; the message says which ones.
        """
        if set(classes) != set(self.classes):
            raise ValueError(
                f"the classes of the images are not those of the run: {difference(classes, self.classes)}"
            )
        number = {name: i for i, name in enumerate(classes)}
        return replace(self, classes=tuple(classes), labels=[number[self.classes[i]] for i in self.labels])

    def mislabelled(self, share: float, rng: np.random.Generator) -> Source:
        """The same images, a share of them with a wrong label: symmetric noise, each other class is as likely.

        Args:
            share: Share of the images, rounded to a whole number of them.
            rng: Random numbers, which decide what images get what labels.
        """
        labels = np.array(self.labels)
        chosen = rng.permutation(len(labels))[: round(share * len(labels))]
        labels[chosen] = (labels[chosen] + rng.integers(1, len(self.classes), len(chosen))) % len(self.classes)
        return replace(self, labels=labels.tolist())

    def read(self, index: int, *, fast: bool = False) -> Image.Image:
        """Read an image in mode RGB.

        Args:
            index: Number of the image.
            fast: Decode JPEG to an eighth of its size, which is enough to find out whether it is damaged.

        Raises:
            UnreadableImageError: The image cannot be read; the message names it.
        """
        try:
            with self.store.open(index) as image:
                if fast:
                    image.draft(image.mode, (1, 1))
                return to_rgb(image)
        except Exception as error:  # its type depends on the format
            raise UnreadableImageError(
                f"{self.store.name(index)} cannot be read as an image ({error}): repair or remove it"
            ) from None


class UnreadableImageError(ValueError):
    """An image cannot be read; the message names it.

    The loader raises an error of another process again with the traceback as the message, which ends in ours.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.split(f"{type(self).__name__}: ")[-1].rstrip())


class Faults(Dataset[str]):
    """For each image of a source the error message if it cannot be read, else an empty string."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> str:
        """The message for an image."""
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
        split: Training or test images.
        download: Download CIFAR if it is missing.

    Raises:
        ValueError: There is no such dataset, or it is not in `root`.
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

    digits = load_digits()
    test = np.arange(len(digits.target)) % 5 == 4
    chosen = test if split == "test" else ~test
    pixels, labels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8), digits.target[chosen]
    return Source(tuple("0123456789"), labels.tolist(), Arrays(pixels, "digit"))


def _cifar(dataset: str, root: Path, split: str, download: bool) -> Source:
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    try:
        images = kind(str(root), train=split == "train", download=download)
    except RuntimeError as error:
        raise ValueError(
            f"{dataset} is not in {root} ({error}): give --data-dir, or let --download fetch it"
        ) from None
    return Source(tuple(images.classes), images.targets, Arrays(images.data, f"{dataset} {split} image"))


def _folder(root: Path, split: str) -> Source:
    names = SPLITS[split]
    if root.suffix == ".tar" and root.is_file():
        return _in_tar(root, names)
    if not root.is_dir():
        raise ValueError(f"data_dir={root} is neither a directory nor a tar file")
    for name in names:
        if (root / name).is_dir():
            return _directory(root / name)
        if (root / f"{name}.tar").is_file():
            return _in_tar(root / f"{name}.tar")
    raise ValueError(f"{root} has no {' or '.join(names)}, neither as a directory nor as a tar file")


def _directory(home: Path) -> Source:
    """Images at any depth of class directories; links are followed, hidden names are left out."""
    folders = [entry.name for entry in os.scandir(home) if entry.is_dir() and not _is_hidden([entry.name])]
    files = sorted(_images(path for name in folders for path in _files_below(home / name)))
    names = [path.relative_to(home).parts[0] for path in files]
    return _labelled(names, folders, home, lambda: Files(files))


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files that are not hidden, in no order. A link to a directory above it is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for entry in os.scandir(folder):
        if not _is_hidden([entry.name]):
            if entry.is_dir():
                yield from _files_below(folder / entry.name, above | {real})
            else:
                yield folder / entry.name


def open_tar(path: Path) -> tuple[Tar, list[Path], list[Path]]:
    """Images of an uncompressed tar file at any depth, with their paths and those of the directories.

    Links to files of the tar file are followed, those to directories are not. Hidden names are left out.

    Raises:
        ValueError: It is no such file, or has links to images outside of it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {Path(member.name): member for member in tar}
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as an uncompressed tar file: {error}") from None
    shown = {place: _followed(place, members) for place in members if not _is_hidden(place.parts)}
    lost = [place for place, member in shown.items() if member is None and place.suffix.lower() in SUFFIXES]
    if lost:
        raise ValueError(
            f"{path} has {len(lost)} link(s) to no file in it ({listed(sorted(map(str, lost)))}): write it with "
            "tar --dereference"
        )
    found = {place: member for place, member in shown.items() if member is not None}
    files = sorted(_images(place for place, member in found.items() if member.isfile()), key=str)
    store = Tar(path, [(str(file), found[file].offset_data, found[file].size) for file in files])
    return store, files, [place for place, member in found.items() if member.isdir()]


def _followed(place: Path, members: Mapping[Path, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member at a place, or the file that its links lead to; None if the tar file does not have that."""
    member: tarfile.TarInfo | None = members[place]
    for _ in range(LINKS):
        if member is None or not (member.islnk() or member.issym()):
            break
        home = place.parent if member.issym() else Path()  # a hard link names its file from the top
        place = Path(os.path.normpath(home / member.linkname))
        member = members.get(place)
    return None if member is None or member.islnk() or member.issym() else member


def _in_tar(path: Path, names: Sequence[str] = ()) -> Source:
    """Images in class directories of a tar file, those below one of `names` if there are any."""
    store, files, folders = open_tar(path)
    home = _split_in(files, names) if names else _classes_in(files)
    if home is None:  # else the training images would be the test images, too
        raise ValueError(f"{path} has no directory {' or '.join(names)} with class directories below it")
    depth = len(home.parts)
    chosen = [
        i for i, file in enumerate(files) if len(file.parts) > depth + 1 and file.parts[:depth] == home.parts
    ]
    directories = [folder.name for folder in folders if folder.parent == home != folder]
    classes = [files[i].parts[depth] for i in chosen]
    return _labelled(classes, directories, path, lambda: Tar(path, [store.members[i] for i in chosen]))


def _split_in(files: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of `names` that has class directories; in one directory around all of them, or several."""
    home = Path()
    while True:
        inner: defaultdict[str, set[str]] = defaultdict(set)
        for parts in _below(files, home):
            if len(parts) > 2:  # an image in a directory of its own
                inner[parts[0]].add(parts[1])
        for name in names:
            # A directory with both splits is no split, whatever its name.
            if name in inner and not all(inner[name] & {*each} for each in SPLITS.values()):
                return home / name
        if len(inner) != 1:
            return None
        home /= next(iter(inner))


def _below(files: Sequence[Path], home: Path) -> Iterator[tuple[str, ...]]:
    """Parts of the paths below a directory, without its own."""
    depth = len(home.parts)
    return (file.parts[depth:] for file in files if file.parts[:depth] == home.parts)


def _classes_in(files: Sequence[Path]) -> Path:
    """The directory of the class directories: below directories that hold all images but stray ones."""
    home = Path()
    while True:
        below = list(_below(files, home))
        folders = {parts[0] for parts in below if len(parts) > 1}
        if len(folders) != 1:
            return home
        [name] = folders
        inner = {parts[1] for parts in below if len(parts) > 2}
        has_images = any(len(parts) == 2 for parts in below)
        is_split = any(name in each for each in SPLITS.values())
        if not inner or (has_images and len(inner) == 1 and not is_split):
            return home  # a single class, whose images may lie in a directory of their own too
        home /= name


def _is_hidden(parts: Sequence[str]) -> bool:
    """Whether a name begins with a dot, like the directories of thumbnails and notebooks."""
    return any(part.startswith(".") for part in parts)


def _images(files: Iterator[Path]) -> list[Path]:
    """The files with the suffix of an image format that is read; a warning counts other image formats."""
    kinds: dict[Path, str] = {file: file.suffix.lower() for file in files}
    if others := Counter(kind for kind in kinds.values() if kind in OTHER_SUFFIXES):
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        warnings.warn(f"files of formats that are not read are left out: {counts}", stacklevel=2)
    return [file for file, kind in kinds.items() if kind in SUFFIXES]


def _labelled(names: Sequence[str], folders: Sequence[str], where: Path, store: Callable[[], Store]) -> Source:
    """A source of images with these names of classes; each of `folders` must be the class of an image."""
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
    """Difference between two lists of classes in words; empty if they are the same."""
    missing, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    parts = [f"{listed(names)} {what}" for names, what in ((missing, "missing"), (new, "new")) if names]
    return " and ".join(parts) or ("" if tuple(before) == tuple(now) else "their order is another one")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
