"""Causal language models and their tokenizers: somebody's weights, or a small model from nothing."""

from __future__ import annotations

from entropyfloor.language import libraries  # noqa: F401

# isort: split

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from entropyfloor.language.config import Precision

if TYPE_CHECKING:
    from jaxtyping import Float, Int

PAD, END = "<pad>", "<end>"


class Head(NamedTuple):
    """The last layer of a language model, as `token_log_probs` takes it."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None


def device_of(name: str) -> torch.device:
    """The device that is called so; `auto` is an accelerator where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """What a model runs in: bf16 is mixed precision, no is the precision of its weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def context_of(config: PreTrainedConfig, given: int | None = None) -> int | None:
    """Tokens of prompt and response together: as given, or what the config says; None where it sets no limit."""
    return given or getattr(config.get_text_config(), "max_position_embeddings", None)


@contextmanager
def without_bars() -> Iterator[None]:
    """Files of weights are read and written without bars of transformers' own: there is one of ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let each layer of a model in training keep no more than its input for the way back.

    Raises:
        ValueError: The model does not know how.
    """
    now, before = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # transformers has renamed it
    getattr(model, now if hasattr(model, now) else before)({"use_reentrant": False})


def load(name: str, stop_token: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by hub name or path, in float32.

    Args:
        name: On the hub, or a directory.
        stop_token: Ends a response too, beside the tokenizer's end of sequence and what the checkpoint ends at.

    Raises:
        ValueError: There is none, and the message says what was tried; or `stop_token` is no token of it.
    """
    name = os.path.expanduser(name)  # a shell leaves --model=~/mine as it is
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        where = (
            "is no directory here, and no model of the hub could be loaded"
            if not Path(name).exists()
            else "cannot be loaded"
        )
        raise ValueError(f"model={name} {where}: {error}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model={name}: its tokenizer has no end of sequence, so no response would ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    ends = {int(tokenizer.eos_token_id)} | ends_of(model)
    if stop_token is not None:
        tokens = tokenizer(stop_token, add_special_tokens=False).input_ids
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"stop_token={stop_token!r} is {len(tokens)} tokens of model={name}, or one that it does not "
                f"know: it must be a single one"
            )
        ends.update(tokens)
    # What a checkpoint recommends for sampling, such as a repetition penalty, would make another policy of it.
    model.generation_config = _generation(tokenizer, ends)
    return model, tokenizer


def ends_of(model: PreTrainedModel) -> set[int]:
    """Tokens at which a response of `model` ends; those that chat are often taught several."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def save(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write all of a model where transformers can load it."""
    with without_bars():
        model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def describe(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write everything about a model but its weights where transformers reads it."""
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    tokenizer.save_pretrained(path)


def described(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the architecture that is described in `path`, with weights of no meaning, and its tokenizer.

    Raises:
        ValueError: There is no description.
    """
    files = ("config.json", "generation_config.json", "tokenizer_config.json")
    if missing := [name for name in files if not (path / name).exists()]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}: a run writes them when it begins or goes on")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model.generation_config = GenerationConfig.from_pretrained(path)
    return model, tokenizer


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters, tied ones once, and what a model keeps beside them, such as scales of its layers."""
    kept = model.state_dict().keys()
    return {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in kept}}


@torch.no_grad()
def load_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Take everything of `weights_of` from `weights`.

    Raises:
        ValueError: Some of it is not there.
    """
    into = weights_of(model)
    if missing := sorted(into.keys() - weights.keys()):
        raise ValueError(f"the checkpoint has no {', '.join(missing[:3])}: it is of another model")
    for name, tensor in into.items():
        if weights[name].shape != tensor.shape:
            found, needed = (list(each.shape) for each in (weights[name], tensor))
            raise ValueError(f"{name} is {found} and should be {needed}: it is of another model")
        tensor.copy_(weights[name])


def tiny(
    alphabet: Sequence[str], *, layers: int, hidden: int, heads: int, length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A small model of the Qwen2 architecture with random weights, and a tokenizer of single characters.

    Args:
        alphabet: The characters that there are.
        layers: Transformer layers.
        hidden: Width; the inner width of a layer is three times that.
        heads: Attention heads; must divide `hidden`.
        length: Longest sequence, in tokens.

    Raises:
        ValueError: `heads` does not divide `hidden` into even parts.
    """
    if hidden % (2 * heads):
        raise ValueError(f"hidden={hidden} must be a multiple of twice the number of heads, {2 * heads}")
    tokenizer = characters(alphabet)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = _generation(tokenizer, {int(tokenizer.eos_token_id)})
    return model, tokenizer


def characters(alphabet: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer with one token for each character, one that pads and one that ends.

    It is one of bytes without merges, as Qwen2 has one with: whatever its files say, `AutoTokenizer`
    would make that of it, beside a model of this architecture.

    Raises:
        ValueError: Something in `alphabet` is no single ASCII character, or is there twice.
    """
    if len(set(alphabet)) < len(alphabet) or any(len(c) != 1 or not c.isascii() for c in alphabet):
        raise ValueError(f"alphabet={list(alphabet)} must be different single ASCII characters")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [bytes_.pre_tokenize_str(character)[0][0] for character in alphabet]  # a space is written Ġ
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate((PAD, END, *letters))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_, decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def head_of(model: PreTrainedModel) -> Head:
    """The last layer of `model`.

    Raises:
        ValueError: It is no linear layer, or the logits are scaled behind it in a way that is not known here.
    """
    layer: Any = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError(
            f"the last layer of {type(model).__name__} is {type(layer).__name__}: it must be a Linear"
        )
    config = model.config.get_text_config()
    for name in ("logit_scale", "logits_scaling", "output_multiplier_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(model).__name__} scales its logits ({name}), which is not supported")
    return Head(layer.weight, layer.bias, getattr(config, "final_logit_softcapping", None))


def _generation(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> GenerationConfig:
    """Until one of `ends`, and else as the model is."""
    return GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)


def hidden_states(
    model: PreTrainedModel, tokens: Int[Tensor, "B L"], mask: Float[Tensor, "B L"]
) -> Float[Tensor, "B L D"]:
    """What reaches the last layer, of left-padded sequences: positions count from the first real token."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    backbone: Any = model.get_decoder()
    found: Tensor = backbone(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)[0]
    return found


class Policy:
    """A model as `decode` calls it, whose logits have the precision of its head whatever it runs in.

    So has an update. Logits of a head in bf16 are rounded by up to 0.06, which makes another policy of them.

    Args:
        model: A causal language model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.device = model.device
        self._backbone: Any = model.get_decoder()
        self._head = head_of(model)

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits of what comes next, and the cache."""
        found = self._backbone(**inputs)
        weight, bias, softcap = self._head
        with torch.autocast(self.device.type, enabled=False):
            logits = torch.nn.functional.linear(found[0][:, -1:].to(weight.dtype), weight, bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)

    __call__ = forward
