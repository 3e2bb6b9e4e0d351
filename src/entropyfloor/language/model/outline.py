"""Models built from their config alone, for counting: their weights are never read."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from entropyfloor.language.model.files import NO_CODE, reading

_QWEN = {"model_type": "qwen2", "max_position_embeddings": 4096, "num_hidden_layers": 28}
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-Math-7B": {
        **_QWEN,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "tie_word_embeddings": False,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Qwen/Qwen2.5-Math-1.5B": {
        **_QWEN,
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "tie_word_embeddings": True,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
"""Sizes of the paper's models, as their authors' configs have them: counting needs no network."""


def outline(name: str) -> PreTrainedModel:
    """A model of the architecture and the sizes of the one with this name; its weights are random.

    Args:
        name: Hub name or path.

    Raises:
        ValueError: There is no such model, or no network to read its config from.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_config(_config(name), dtype=torch.float32, **NO_CODE)
    return model.eval()


def _config(name: str) -> PreTrainedConfig:
    if name in KNOWN:
        return AutoConfig.for_model(**KNOWN[name])
    with reading(name, "has no config that can be read"):
        return AutoConfig.from_pretrained(os.path.expanduser(name), **NO_CODE)  # a shell leaves --model=~/mine
