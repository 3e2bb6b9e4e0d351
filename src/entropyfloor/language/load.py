"""Loading what a run has trained, without its data, its optimiser or its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model import files
from entropyfloor.language.prepare import MODEL, build_model, read_config
from entropyfloor.runs import Run
from entropyfloor.runs.directory import open_checkpoint
from entropyfloor.torch.checkpoint import tensors_below

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Trained(NamedTuple):
    """The language model of a checkpoint, in evaluation mode, with its tokenizer and its run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    step: int
    """Step of the checkpoint."""
    run: Run
    config: LanguageConfig


def load_language_model(run: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the language model that a run has trained, for `generate` or anything else that transformers does.

    Args:
        run: A run directory, whose last checkpoint is loaded, or the directory of one of its checkpoints.

    Returns:
        The model, in float32, on the CPU and in evaluation mode, and its tokenizer.

    Raises:
        ValueError: There is no run of a language model or no checkpoint, or it is damaged.

    Examples:
        >>> model, tokenizer = load_language_model("runs/language/countdown-3-tiny/grpo/seed-0")  # doctest: +SKIP
        >>> prompt = tokenizer("3,7,12=15:", return_tensors="pt")  # doctest: +SKIP
        >>> tokenizer.decode(model.generate(**prompt, max_new_tokens=30)[0])  # doctest: +SKIP
    """
    trained = read_trained(Path(run))
    return trained.model, trained.tokenizer


def read_trained(path: Path) -> Trained:
    """Load the language model of a run or a checkpoint; see `load_language_model`."""
    run, checkpoint = open_checkpoint(path, ("model/",))
    config = read_config(run.config)
    description = run.path / MODEL
    if files.is_described(description):
        model, tokenizer = files.described(description)
    else:  # it was deleted, or an early version did not write it
        model, tokenizer = build_model(config)
    with checkpoint.restoring():
        files.load_weights(model, tensors_below("model/", checkpoint.arrays))
    return Trained(model.eval(), tokenizer, checkpoint.step, run, config)
