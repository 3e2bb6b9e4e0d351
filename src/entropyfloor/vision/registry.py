"""`timm.create_model("resnet50_era", min_entropy=0.6)`: every model of timm with a minimum entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import model_entrypoint, register_model
from torch import nn

from entropyfloor.vision.attach import attach_era

SUFFIX = "_era"
__all__: list[str] = []
"""timm appends the names of the models that are registered here."""


def register() -> None:
    """Register the models with timm. A second call does nothing.

    A tag follows the name, as in `resnet50_era.a1_in1k`; pretrained weights are those of the plain model.
    """
    known = set(timm.list_models())
    for name in known:
        if not name.endswith(SUFFIX) and name + SUFFIX not in known:
            register_model(_entrypoint(name))


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    plain = model_entrypoint(name)

    def create(
        pretrained: bool = False,
        *,
        min_entropy: float,
        tau: float = 4.0,
        floor: str = "calibrated",
        inverse: str = "exact",
        **kwargs: Any,
    ) -> nn.Module:
        model = plain(pretrained=pretrained, **kwargs)
        return attach_era(model, min_entropy, tau=tau, floor=floor, inverse=inverse)

    create.__name__ = create.__qualname__ = name + SUFFIX
    create.__doc__ = f"{name} with a floor under the entropy of its predictions: see `attach_era`."
    return create
