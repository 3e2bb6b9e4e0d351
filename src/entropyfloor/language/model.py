"""Causal language models and their tokenizers: somebody's weights, or a small model from nothing."""

from __future__ import annotations

from entropyfloor.language import libraries  # noqa: F401

# isort: split

import copy
import filecmp
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from transformers.utils import logging as transformers_logging

from entropyfloor.extras import brief, is_out_of_memory
from entropyfloor.language.config import Precision
from entropyfloor.language.sampling.encoding import turn_end
from entropyfloor.runs.files import sync

if TYPE_CHECKING:
    from jaxtyping import Float, Int

PAD, END = "<pad>", "<end>"
DESCRIPTION = ("config.json", "generation_config.json", "tokenizer_config.json")
"""What a model is described by, beside the files that its tokenizer adds."""
OBJECTS = (*DESCRIPTION, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
"""Files that hold a JSON object, of those that transformers reads; somebody may keep others beside them."""
NO_CODE = {"trust_remote_code": False}
"""For everything that loads: otherwise transformers asks on standard input whether to run code of the model."""

WAY = "give a directory with weights and tokenizer, or a name on the hub, and network or a cache that has it"


class Head(NamedTuple):
    """The last layer of a language model, as `token_log_probs` takes it."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None


def device_of(name: str) -> torch.device:
    """The device that is called so; `auto` is an accelerator where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which needs the driver, and a place for the numbers
    except (RuntimeError, AssertionError, ImportError) as error:  # AssertionError: PyTorch is built without CUDA
        raise ValueError(
            f"device={name} cannot be used here ({brief(error)}): give --device cpu, or auto for what there is"
        ) from None
    return device


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """What a model runs in: bf16 is mixed precision, no is the precision of its weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def context_of(config: PreTrainedConfig, given: int | None = None) -> int | None:
    """Tokens of prompt and response together: as given, or what the config says; None where it sets no limit."""
    return given or getattr(config.get_text_config(), "max_position_embeddings", None)


@contextmanager
def without_bars() -> Iterator[None]:
    """Files of weights are read and written without bars of transformers' own: there is one of ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def reading(name: str | Path, failed: str, way: str = WAY) -> Iterator[None]:
    """Turn any failure to read the files of a model into an error of one line.

    Args:
        name: A directory, or a name on the hub.
        failed: What a message says of it.
        way: The way out.

    Raises:
        ValueError: The body has failed, other than for lack of memory.
    """
    try:
        _check_files(Path(name))
        yield
    except Exception as error:  # libraries raise whatever they stumble over
        if is_out_of_memory(error):
            raise
        raise ValueError(f"model={name} {failed} ({brief(error)}): {way}") from None


def _check_files(path: Path) -> None:
    """Refuse `OBJECTS` that are damaged, by name: of some of them transformers would take no notice."""
    for file in filter(Path.is_file, map(path.joinpath, OBJECTS)):
        try:
            found = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file.name} is damaged: {brief(error)}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{file.name} is damaged: it holds a {type(found).__name__}, and no object")


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let each layer of a model that learns keep no more than its input for the way back.

    Raises:
        ValueError: The model does not know how.
    """
    now, before = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # transformers has renamed it
    getattr(model, now if hasattr(model, now) else before)({"use_reentrant": False})
    for layer in _checkpointed(model):
        layer._gradient_checkpointing_func = _as_it_acts(layer, layer._gradient_checkpointing_func)


def learning(model: PreTrainedModel) -> None:
    """Prepare `model` for an update without dropout, which would change the policy in each forward pass.

    Layers that are checkpointed only in training mode are put into it themselves, without their parts.
    """
    model.eval()
    for layer in _checkpointed(model):
        layer.training = True


def _checkpointed(model: PreTrainedModel) -> list[Any]:
    """Layers that keep only their input for the backward pass."""
    return [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and not isinstance(module, PreTrainedModel)
    ]


def _as_it_acts(layer: Any, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpoint in which `layer`, which has to be in training to be checkpointed, computes as in evaluation."""

    def checkpointed(forward: Callable[..., Any], *inputs: Any) -> Any:
        def acting(*inputs: Any) -> Any:
            layer.training = False
            try:
                return forward(*inputs)
            finally:
                layer.training = True

        return checkpoint(acting, *inputs)

    return checkpointed


def load(
    name: str, stop_token: str | None = None, *, chat: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by hub name or path, in float32.

    Args:
        name: On the hub, or a directory.
        stop_token: Ends a response too, beside the tokenizer's end of sequence and what the checkpoint ends at.
        chat: Whether prompts are chats: a response also ends where the tokenizer's template ends a turn.

    Raises:
        ValueError: There is none, and the message says what was tried; or `stop_token` is no token of it, or it
            has no chat template.
    """
    name = os.path.expanduser(name)  # a shell leaves --model=~/mine as it is
    failed = "cannot be loaded"
    if not Path(name).exists():
        failed = "is no directory here, and no model of the hub could be loaded"
    with reading(name, failed), without_bars():
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", **NO_CODE)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **NO_CODE)
        ends = ends_of(model)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model={name}: its tokenizer has no end of sequence, so no response would ever end")
    ends.add(int(tokenizer.eos_token_id))
    if chat:
        ends |= turn_end(tokenizer)
    rows = rows_of(model)
    if stop_token is not None:
        stop = tokenizer(stop_token, add_special_tokens=False).input_ids
        if len(stop) != 1 or stop[0] == tokenizer.unk_token_id or stop[0] >= rows:
            raise ValueError(
                f"stop_token={stop_token!r} is {len(stop)} tokens of model={name}, or one that it does not know: "
                f"it must be a single one, of the {rows:,} that its embedding has"
            )
        ends.update(stop)
    if min(ends) >= rows:
        raise ValueError(
            f"model={name}: responses end at {sorted(ends)}, and its embedding has {rows:,} tokens, so none would "
            f"ever end: give the tokenizer that belongs to it, or --stop-token"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:  # masked, so any token will do
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(ends))
    # What a checkpoint recommends for sampling, such as a repetition penalty, would make another policy of it.
    model.generation_config = _generation(tokenizer, ends)
    return model, tokenizer


def ends_of(model: PreTrainedModel) -> set[int]:
    """Tokens at which a response of `model` ends; those that chat are often taught several.

    Raises:
        ValueError: Its generation config has something else there.
    """
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(end, int) for end in ends):
        raise ValueError(f"the generation config has eos_token_id={given!r}, which are no tokens")
    return set(ends)


def rows_of(model: PreTrainedModel) -> int:
    """Tokens that `model` can read; a tokenizer may have more."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def save(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write all of a model where transformers can load it; its tokenizer may be there already."""
    with _placed(path) as beside, without_bars():
        model.save_pretrained(beside)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)


def describe(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write everything about a model but its weights where transformers reads it, as `save` does."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    with _placed(path) as beside:
        config.save_pretrained(beside)
        model.generation_config.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


@contextmanager
def _placed(path: Path) -> Iterator[Path]:
    """A directory that is renamed to `path` once its files are whole; if `path` exists, they are moved into it.

    A file that exists with the same content stays.
    """
    path = path.resolve()  # "." has no name
    # Inside of `path` if it exists, which may be a mount point, or all that may be written to.
    beside = path / ".partial" if path.is_dir() else path.with_name(f".{path.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a kill
    beside.mkdir(parents=True)
    try:
        yield beside
        written = sorted(beside.iterdir(), key=lambda file: file.name in DESCRIPTION)  # which vouches for the rest
        for file in written:
            sync(file)
        if not path.exists():
            beside.rename(path)
            sync(path.parent)
            return
        for file in written:
            there = path / file.name
            if not (there.exists() and filecmp.cmp(file, there, shallow=False)):
                file.replace(there)
        sync(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def is_described(path: Path) -> bool:
    """Whether everything is there that `described` reads."""
    return all((path / name).exists() for name in DESCRIPTION)


def described(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the architecture that is described in `path`, with weights of no meaning, and its tokenizer.

    Raises:
        ValueError: There is no description, or it is damaged.
    """
    if missing := [name for name in DESCRIPTION if not (path / name).exists()]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}: a run writes them when it begins or goes on")
    way = "delete this directory, and it is written again from the model that the run began with"
    with reading(path, "is damaged", way):
        config = AutoConfig.from_pretrained(path, **NO_CODE)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **NO_CODE)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **NO_CODE)
        model.generation_config = GenerationConfig.from_pretrained(path)
        ends_of(model)
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
        ValueError: It is no linear layer.
    """
    layer: Any = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError(
            f"the last layer of {type(model).__name__} is {type(layer).__name__}: it must be a Linear"
        )
    return Head(layer.weight, layer.bias, getattr(model.config.get_text_config(), "final_logit_softcapping", None))


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


def logits_of(hidden: Float[Tensor, "*B D"], head: Head) -> Float[Tensor, "*B V"]:
    """What the last layer makes of what reaches it, in the precision of its weights."""
    logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


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
        with torch.autocast(self.device.type, enabled=False):
            logits = logits_of(found[0][:, -1:], self._head)
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)

    __call__ = forward
