"""From settings to a task, a model and hyperparameters; shared by training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.encoding import encode, render
from entropyfloor.language.losses import Mean
from entropyfloor.language.model import files
from entropyfloor.language.model.forward import context_of, rows_of
from entropyfloor.language.model.tiny import tiny
from entropyfloor.language.tasks import Task, task_of
from entropyfloor.language.update import Hyperparameters
from entropyfloor.runs.resume import config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL = "model"
"""Directory of a run with the description of its model and, at the end, its weights."""
NAMES = ("domain", "env", "agent")
"""Entries of `config.toml` that name the run in a report; they follow from its settings."""


def read_config(settings: Mapping[str, Any]) -> LanguageConfig:
    """The config of a run, from its `config.toml`.

    Raises:
        ValueError: It is no run of a language model, or has settings that this version does not know.
    """
    return config_of(LanguageConfig, settings, "language", "a language model", NAMES)


def complete(config: LanguageConfig, *, training: bool = True) -> tuple[LanguageConfig, Task]:
    """The config with every setting that follows from others, and its task; see `task_of`.

    Raises:
        ValueError: The files of the task cannot be used.
    """
    config = config.filled()
    task = task_of(config, training=training)
    return replace(config, max_new_tokens=config.max_new_tokens or task.max_new_tokens), task


def as_evaluated(
    config: LanguageConfig, data: Path | None, test_data: Path | None, temperature: float | None
) -> tuple[LanguageConfig, Task]:
    """The complete config and the task of a trained model, with other files or another temperature where given.

    Raises:
        ValueError: The task's files are not there, or no such temperature.
    """
    moved = {"data": data, "test_data": test_data}
    changes: dict[str, Any] = {name: str(place) for name, place in moved.items() if place is not None}
    if temperature is not None:
        changes["eval_temperature"] = temperature
    return complete(replace(config, **changes), training=False)


def build_model(
    config: LanguageConfig, task: Task | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run with these complete settings begins with, and its tokenizer.

    Raises:
        ValueError: There is no such model.
    """
    if config.model != "tiny":
        return files.load(config.model, config.stop_token, chat=config.template == "chat")
    task = task or task_of(config)
    return tiny(
        task.alphabet,
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        length=task.max_prompt + int(config.max_new_tokens or 0) + 1,
    )


def adapt_task(
    task: Task, config: LanguageConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Render chats, leave out prompts that are too long, and check that responses fit into the context.

    Raises:
        ValueError: The tokenizer has no chat template, or prompt and response do not fit into the context.
    """
    if config.template == "chat":
        task.render(partial(render, tokenizer))
    longest = task.max_prompt
    if task.prompts is not None:
        tokens = encode_prompts(config, model, tokenizer, task.prompts)
        lengths = dict(zip(task.prompts, map(len, tokens), strict=True))
        if config.max_prompt is not None:
            task.leave_out(lengths, config.max_prompt)
        longest = max(lengths[prompt] for prompt in task.prompts)
    context = context_of(model.config, config.context)
    if context is not None and longest + int(config.max_new_tokens or 0) > context:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={config.max_new_tokens} do not fit into the "
            f"context of {config.model}, {context}: give a smaller --max-new-tokens or --max-prompt, or "
            f"--context if the model takes more than its config says"
        )


def encode_prompts(
    config: LanguageConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[list[int]]:
    """Tokens of prompts, as the model reads them when it samples.

    Raises:
        ValueError: A prompt has a token that the model does not have.
    """
    return encode(tokenizer, prompts, rows=rows_of(model), special=sampling_of(config)["special"])


def sampling_of(config: LanguageConfig) -> dict[str, Any]:
    """Arguments of `sample` that are the same in training and evaluation."""
    return {
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.sample_batch,
        "precision": config.precision,
        "special": config.template is None,  # a chat template writes them itself
    }


def hyperparameters_of(config: LanguageConfig, **changes: Any) -> Hyperparameters:
    """Hyperparameters of an update, from complete settings.

    `changes` are those that change during training: the thresholds, `top_k`, and what a controller decides.
    """
    decided = ("omega_low", "omega_high", "top_k", *changes)  # by the trainer, as training goes on
    shared = {field.name for field in fields(Hyperparameters)} & {field.name for field in fields(config)}
    means = {"dr-grpo": "length", "gspo": "sequence"}
    mean = means.get(config.loss, config.aggregate.removesuffix("-mean"))
    return Hyperparameters(
        **{name: getattr(config, name) for name in shared.difference(decided)},
        surrogate="cispo" if config.loss == "cispo" else "clipped",
        ratio="sequence" if config.loss == "gspo" else "token",
        mean=cast(Mean, mean),
        max_length=config.max_new_tokens if mean == "length" else None,
        **{"era": config.head == "era"} | changes,
    )
