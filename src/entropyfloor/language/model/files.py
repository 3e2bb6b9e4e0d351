"""Files of causal language models and their tokenizers: loading, saving, describing."""

from __future__ import annotations

import copy
import filecmp
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from entropyfloor.extras import brief, is_out_of_memory
from entropyfloor.language.encoding import turn_end
from entropyfloor.language.model.forward import ends_of, rows_of
from entropyfloor.runs.files import sync

DESCRIPTION = ("config.json", "generation_config.json", "tokenizer_config.json")
"""Files that describe every model; its tokenizer adds others."""
OBJECTS = (*DESCRIPTION, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
"""Files of a model that must hold a JSON object; other files beside them may hold anything."""
NO_CODE = {"trust_remote_code": False}
"""Arguments of everything that loads: without them transformers asks on standard input whether to run code."""
HINT = "give a directory with weights and tokenizer, or a name on the hub, and network or a cache that has it"


@contextmanager
def without_bars() -> Iterator[None]:
    """Read and write weights without the progress bars of transformers."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def reading(name: str | Path, failed: str, hint: str = HINT) -> Iterator[None]:
    """Turn any failure to read the files of a model into an error of one line, with what `failed` and a hint.

    Raises:
        ValueError: The body failed, and not for lack of memory.
    """
    try:
        _check_files(Path(name))
        yield
    except Exception as error:  # libraries raise whatever they stumble over
        if is_out_of_memory(error):
            raise
        raise ValueError(f"model={name} {failed} ({brief(error)}): {hint}") from None


def _check_files(path: Path) -> None:
    """Refuse damaged `OBJECTS` by name: transformers would skip some of them silently."""
    for file in filter(Path.is_file, map(path.joinpath, OBJECTS)):
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file.name} is damaged: {brief(error)}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{file.name} is damaged: it holds a {type(content).__name__}, and no object")


def load(
    name: str, stop_token: str | None = None, *, chat: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in float32, and its tokenizer.

    Args:
        name: A name on the hub, or a directory.
        stop_token: Token that ends a response, beside the ends of the tokenizer and of the checkpoint.
        chat: Whether prompts are chats: a response also ends where the tokenizer's template ends a turn.

    Raises:
        ValueError: There is no such model, `stop_token` is no token of it, or it has no chat template.
    """
    name = os.path.expanduser(name)  # a shell leaves --model=~/mine as it is
    failed = "cannot be loaded"
    if not Path(name).exists():
        failed = "is no directory here, and no model of the hub could be loaded"
    with reading(name, failed), without_bars():
        tokenizer = tokenizer_of(name, padding_side="left")
        model = model_of(name, torch.float32)
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
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:  # it is masked: any token will do
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(ends))
    # Recommendations of a checkpoint, such as a repetition penalty, would make another policy of the model.
    model.generation_config = generation_config(tokenizer, ends)
    return model, tokenizer


def tokenizer_of(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the hub.

    Raises:
        ValueError: There is none. transformers makes one of special tokens alone then.
    """
    if str(name).endswith(".gguf"):
        raise ValueError(
            "a GGUF file is no model of transformers: load it with `gguf_file=` and save the model and its "
            "tokenizer in a directory, as examples/smollm2.py does"
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options, **NO_CODE)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("it has no tokenizer")
    return tokenizer


def model_of(name: str | Path, dtype: Any) -> PreTrainedModel:
    """The causal model in a directory or on the hub.

    Raises:
        ValueError: Weights are missing. transformers draws them at random then.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **NO_CODE)
    model: PreTrainedModel = loaded[0]
    report: dict[str, set[str]] = loaded[1]
    if missing := sorted(report["missing_keys"] & {weight for weight, _ in model.named_parameters()}):
        raise ValueError(
            f"weights are missing and would be random, {missing[0]} and {len(missing) - 1} others: the files are "
            "those of its base, without the last layer, or of another config"
        )
    return model


def generation_config(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> GenerationConfig:
    """Settings of sampling from the model itself until one of the tokens `ends`."""
    return GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)


def save(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    description: Path | None = None,
) -> None:
    """Write a model, and its tokenizer if one is given, into a directory that transformers can load.

    If `describe` has written `description`, its files are copied as they are: transformers may write a tokenizer
    that it has read in another form.
    """
    with _placed(path) as beside, without_bars():
        if description is not None and is_described(description):
            shutil.copytree(
                description, beside, ignore=shutil.ignore_patterns("*.safetensors*", ".*"), dirs_exist_ok=True
            )
        elif tokenizer is not None:
            tokenizer.save_pretrained(beside)
        model.save_pretrained(beside)


def describe(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what `save` writes, without the weights."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    with _placed(path) as beside:
        config.save_pretrained(beside)
        model.generation_config.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


@contextmanager
def _placed(path: Path) -> Iterator[Path]:
    """Yield a directory that is renamed to `path` once its files are whole, or moved into it if it exists.

    Files of `path` with the same content are not touched.
    """
    path = path.resolve()  # "." has no name
    # Inside `path` if it exists: it may be a mount point, or its parent may be read-only.
    beside = path / ".partial" if path.is_dir() else path.with_name(f".{path.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process
    beside.mkdir(parents=True)
    try:
        yield beside
        written = sorted(beside.iterdir(), key=lambda file: file.name in DESCRIPTION)  # last: see `is_described`
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
    """Whether `described` can read a model from `path`."""
    return all((path / name).exists() for name in DESCRIPTION)


def described(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `describe` has written, with random weights, and its tokenizer.

    Raises:
        ValueError: The description is damaged.
    """
    hint = "delete this directory, and it is written again from the model that the run began with"
    with reading(path, "is damaged", hint):
        config = AutoConfig.from_pretrained(path, **NO_CODE)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **NO_CODE)
        tokenizer = tokenizer_of(path, padding_side="left")
        model.generation_config = GenerationConfig.from_pretrained(path)
        ends_of(model)
    return model, tokenizer


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters, tied ones once, and persistent buffers, such as scales of layers."""
    persistent = model.state_dict().keys()
    return {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in persistent}}


@torch.no_grad()
def load_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Copy weights with the names of `weights_of` into a model.

    Raises:
        ValueError: One is missing or has another shape.
    """
    into = weights_of(model)
    if missing := sorted(into.keys() - weights.keys()):
        raise ValueError(f"the checkpoint has no {', '.join(missing[:3])}: it is of another model")
    for name, tensor in into.items():
        if weights[name].shape != tensor.shape:
            given, needed = list(weights[name].shape), list(tensor.shape)
            raise ValueError(f"{name} is {given} and should be {needed}: it is of another model")
        tensor.copy_(weights[name])
