"""What a run of a language model needs, from its settings and the config of its model: no weights are read.

With P parameters in float32, weights and gradients take 4 P bytes each, and the moments of AdamW 8 P. Activations
are those that the backward pass of the longest micro-batch keeps, counted by a forward pass of shapes alone. The
last layer never has the logits of a batch: it needs a tile of them, and a second gradient of its weight.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model.cache import SPARE
from entropyfloor.language.model.forward import autocast, head_of, hidden_states
from entropyfloor.language.model.learning import checkpoint_layers, prepare_update
from entropyfloor.language.model.outline import outline
from entropyfloor.language.prepare import build_model
from entropyfloor.language.tasks import task_of
from entropyfloor.language.tasks.files import Questions
from entropyfloor.runs.needs import LINE, Needs
from entropyfloor.torch.kernels.tiles import CPU_TILE, TILE
from entropyfloor.torch.memory import bytes_of, saved_bytes, without_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARIES = 600 * 2**20
"""Bytes of Python, PyTorch and transformers in a process, measured on a CPU. CUDA's own are taken as much."""
PROMPT = 1024
"""Tokens of the longest prompt where the settings do not limit it."""
ROLLOUT = 50
"""Bytes of a token of a rollout: tokens, masks, entropies, log-probabilities at all scales."""
SAMPLED = 24
"""Bytes of a logit while a token is drawn: float32 logits and probabilities, and their sum in float64."""
BUFFERS = 4
"""Tiles of logits in float32 that the last layer has at a time."""
READ = (
    *("model", "layers", "hidden", "heads", "precision", "gradient_checkpointing", "kl_coef"),
    *("task", "largest", "digits", "chain_length", "task_config", "prompt", "template"),
    *("max_prompt", "max_new_tokens", "prompts", "samples", "sample_batch", "minibatches", "micro_batch"),
    *("steps", "eval_every", "eval_problems", "eval_samples"),
)
"""Settings that a count reads: arms of a comparison that differ in others are counted once."""


def needs(config: LanguageConfig, *, on_cpu: bool) -> Needs:
    """What a run with these settings needs; its responses are taken to be as long as they may be.

    Args:
        config: Settings.
        on_cpu: Whether it trains on the CPU.

    Raises:
        ValueError: The model cannot be found.
    """
    config = config.resolved()
    return _needs(on_cpu, **{name: getattr(config, name) for name in READ})


@cache
def _needs(on_cpu: bool, **settings: Any) -> Needs:
    config: Any = SimpleNamespace(**settings)  # without the settings that are not in the key of the cache
    with without_memory():
        model, prompt, new = _model(config)
        weights, count = bytes_of(model), 2 if config.kl_coef else 1
        length, responses = prompt + new, config.prompts * config.samples
        rows = min(config.sample_batch, max(responses, config.eval_problems * config.eval_samples))
        head, tile = head_of(model).weight, CPU_TILE if on_cpu else TILE
        always = {"libraries": LIBRARIES, "weights": count * weights, "moments of AdamW": 2 * weights}
        copies = {"bf16 copies of weights": _copies(model)} if config.precision == "bf16" else {}
        rollout = {"rollout": ROLLOUT * responses * length}
        size = min(config.micro_batch, responses // config.minibatches)
        sampling = {
            "keys and values": _cache(model, config, rows, length + SPARE),
            "logits of a token": SAMPLED * rows * len(head),
        }
        update = {
            "gradients": weights,
            "activations": _activations(model, config, size, length),
            "last layer": head.nbytes + 4 * BUFFERS * tile[0] * tile[1],
        }
    # On an accelerator AdamW computes with all parameters at once, on a CPU with one after the other.
    largest = max(parameter.nbytes for parameter in model.parameters())
    step = {"gradients": weights, "step of AdamW": 2 * largest if on_cpu else weights}
    checkpoint = (count + 2) * weights
    moments = {
        "sampling": always | copies | rollout | sampling,
        "update": always | copies | rollout | update,
        "step": always | rollout | step,
    }
    lines = LINE * (config.steps + config.steps // config.eval_every)
    return Needs(moments, 0 if on_cpu else LIBRARIES + checkpoint, checkpoint, weights + lines)


def _model(config: LanguageConfig) -> tuple[PreTrainedModel, int, int]:
    """The model as shapes, and the tokens of its longest prompt and response."""
    task = None if config.task == "file" else task_of(config)
    model = build_model(config, task)[0] if config.model == "tiny" else outline(config.model)
    longest = PROMPT if task is None or task.max_prompt is None else task.max_prompt
    new = config.max_new_tokens or (task or Questions).max_new_tokens
    return model, min(longest, config.max_prompt or longest), new


def _copies(model: PreTrainedModel) -> int:
    """Bytes of the copies in bfloat16 that mixed precision keeps of the layers below the last one."""
    decoder: Any = model.get_decoder()
    return sum(2 * layer.weight.numel() for layer in decoder.modules() if isinstance(layer, nn.Linear))


def _cache(model: PreTrainedModel, config: LanguageConfig, rows: int, length: int) -> int:
    """Bytes of keys and values, and of those of a layer that are copied for all heads or to a longer buffer."""
    decoder: Any = model.get_decoder()
    with torch.no_grad(), autocast(torch.device("cpu"), config.precision):
        cache = decoder(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=True).past_key_values
    layers = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized]
    sizes = model.config.get_text_config()
    shared = sizes.num_attention_heads // (
        getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads
    )
    return rows * (sum(layers) + (1 + shared) * max(layers, default=0))


def _activations(model: PreTrainedModel, config: LanguageConfig, rows: int, length: int) -> int:
    """Bytes that a backward pass keeps, and those of the layer that it is in.

    The copies of weights in bfloat16 are among those of a layer.
    """
    tokens, mask = torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.bool)

    def forward() -> Any:
        with autocast(torch.device("cpu"), config.precision):
            return hidden_states(model, tokens, mask)

    everything = saved_bytes(model, forward) - (_copies(model) if config.precision == "bf16" else 0)
    layer = everything // model.config.get_text_config().num_hidden_layers
    if not config.gradient_checkpointing:
        return everything + layer
    checkpoint_layers(model)
    prepare_update(model)
    return saved_bytes(model, forward) + 2 * layer
