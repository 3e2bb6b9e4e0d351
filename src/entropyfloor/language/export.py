"""Exporting a trained language model to transformers."""

from __future__ import annotations

from pathlib import Path

from entropyfloor.language.load import read_trained
from entropyfloor.language.model import files
from entropyfloor.language.prepare import MODEL


def export(run: Path, out: Path) -> str:
    """Write the language model of a run, with its tokenizer, where transformers can load it.

    Args:
        run: A run directory, whose last checkpoint is exported, or the directory of one of its checkpoints.
        out: A directory, made if it is not there.

    Returns:
        The line of Python that loads it.

    Raises:
        ValueError: There is no run of a language model or no checkpoint, or `out` is a file.
    """
    if out.is_file():
        raise ValueError(f"out={out} is a file: a language model is a directory of several")
    trained = read_trained(run)
    files.save(out, trained.model, trained.tokenizer, description=trained.run.path / MODEL)
    return f"model = transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
