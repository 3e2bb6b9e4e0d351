"""Seeds of a run: each stream of random numbers is seeded by the run's seed and numbers of its own."""

from __future__ import annotations

import random

import numpy as np
import torch


def derived(*numbers: int) -> int:
    """A seed derived from `numbers`. Trailing zeros do not count, so all streams should use as many numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed(*numbers: int) -> None:
    """Seed every generator that PyTorch, timm, torchvision and transformers draw from."""
    value = derived(*numbers)
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 - timm draws from NumPy's global generator
    torch.manual_seed(value)
