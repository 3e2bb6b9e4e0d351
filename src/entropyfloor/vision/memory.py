"""Batches that no memory holds, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from entropyfloor.vision.config import VisionConfig

PIXEL = 3 * 5
"""Bytes of a pixel of three channels: as it comes, and as a float32."""


def check_batch(config: VisionConfig) -> None:
    """Refuse a batch whose images alone are more than this machine can hold: what a model makes of them is more.

    Raises:
        ValueError: They are.
    """
    images, size = config.batch_size * max(1, config.aug_splits), int(config.input_size or 0)
    needed, there = images * size**2 * PIXEL, psutil.virtual_memory().available
    if needed > there:
        raise ValueError(
            f"a batch of {images} images of {size}×{size} pixels takes {needed / 2**30:,.1f} GB, and "
            f"{there / 2**30:,.1f} GB of memory are free: choose a smaller batch_size or input_size"
        )


@contextmanager
def told(config: VisionConfig) -> Iterator[None]:
    """Say what to do where an allocation fails.

    Raises:
        RuntimeError: One did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        raise RuntimeError(
            f"no memory for batch_size={config.batch_size} and input_size={config.input_size}, choose smaller "
            f"ones: {brief(error)}"
        ) from error


def is_exhausted(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def brief(error: BaseException, most: int = 300) -> str:
    """The message of somebody else's error in a line that can be read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
