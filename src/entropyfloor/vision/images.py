"""Reading image files of known formats as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

_WANTED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_EXTENSIONS = Image.registered_extensions()  # loads the plugins of this Pillow
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
"""Formats that are read, whatever the file's name. Others start programs (EPS) or are hardly tested."""
SUFFIXES = frozenset(suffix for suffix, name in _EXTENSIONS.items() if name in FORMATS)
"""Suffixes of images that are read."""
OTHER_SUFFIXES = frozenset(_EXTENSIONS) - SUFFIXES
"""Suffixes of image formats that are not read."""
_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose mode `I` has 16 bits; Pillow scales smaller ranges of PPM to 16 bits."""


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open one of `FORMATS`; the pixels are read later.

    Raises:
        OSError: The file does not exist, is no regular file, or has another format.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise OSError("it is no regular file")  # opening a pipe would wait forever
    return Image.open(file, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode `RGB`: 16 bits scaled to 8, transparency dropped, any other colour space converted.

    Raises:
        ValueError: The pixels have 32 bits and an unknown range, or a mode that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        scaled = np.rint(np.asarray(image) / 257)  # 65535 / 255; Pillow would clip
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range, not 8 or 16 bits")
    return image.convert("RGB")
