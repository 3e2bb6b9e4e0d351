"""Engines that respond to the questions of benchmarks: transformers, vLLM, or a server.

Sampling is from the model's own distribution, at a temperature. Sampling parameters that a checkpoint recommends,
such as top-k or a repetition penalty, are not used, and ERA is not applied. Each request has a seed of its own, so
that a response does not depend on its batch, except for the rounding of batched matrix products.
"""

from __future__ import annotations

import os

from entropyfloor.language.sampling.engines.base import DtypeName, Engine, EngineName, Template


def make_engine(
    name: EngineName,
    model: str,
    template: Template,
    *,
    url: str | None = None,
    batch_size: int | None = None,
    context: int | None = None,
    dtype: DtypeName = "auto",
    device: str = "auto",
    devices: int = 1,
) -> Engine:
    """An engine by its name; see `Transformers`, `VLLM` and `Server` for the arguments.

    Raises:
        ValueError: There is no such model, or a server has no address.
        ImportError: A library of the engine is not installed.
    """
    size: dict[str, int] = {} if batch_size is None else {"batch_size": batch_size}
    model = os.path.expanduser(model)  # a shell does not expand --model=~/mine
    if name == "server":
        from entropyfloor.language.sampling.engines.server import Server

        if url is None:
            raise ValueError("--engine server needs --url, such as http://localhost:8000/v1")
        return Server(url, model, template, **size)
    if name == "vllm":
        from entropyfloor.language.sampling.engines.vllm import VLLM

        return VLLM(model, template, context=context, dtype=dtype, devices=devices, **size)
    from entropyfloor.language.sampling.engines.transformers import Transformers

    return Transformers(model, template, context=context, dtype=dtype, device=device, **size)
