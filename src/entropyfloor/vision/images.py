"""Image files as 8-bit RGB, and which ones are read at all."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

_WANTED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_EXTENSIONS = Image.registered_extensions()  # which loads the plugins that this Pillow was built with
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
"""Formats that Pillow may take a file for, whatever its name: others start programs (EPS) or are hardly tested."""
SUFFIXES = frozenset(suffix for suffix, name in _EXTENSIONS.items() if name in FORMATS)
"""How the names of images end."""
OTHER_SUFFIXES = frozenset(_EXTENSIONS) - SUFFIXES
"""How the names of images that are not read end."""
_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose mode `I` has 16 bits: Pillow scales smaller ranges of PPM to them."""


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open one of `FORMATS`; the pixels are read later.

    Raises:
        OSError: The file is not there, is no regular file, or of none of the formats.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise OSError("it is no regular file")  # opening a pipe would wait for ever
    return Image.open(file, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode `RGB`: 16 bits scaled to 8, transparency dropped, any other colour space converted.

    Raises:
        ValueError: Pixels of 32 bits, whose range no file says, or a mode that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        scaled = np.rint(np.asarray(image) / 257)  # 65535 / 255; Pillow would clip
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range, not 8 or 16 bits")
    return image.convert("RGB")
