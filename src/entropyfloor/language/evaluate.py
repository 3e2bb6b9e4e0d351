"""A trained language model judged on problems of its task that it never saw, and given to others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropyfloor.language import model
from entropyfloor.language.tasks import Problem
from entropyfloor.language.train import description, read_config
from entropyfloor.language.trainer import MODEL, Trainer
from entropyfloor.runs import Run
from entropyfloor.runs.progress import Progress
from entropyfloor.torch.checkpoint import tensors_below

SHOWN = 4
"""Problems whose responses are written out to be read."""


def evaluate(
    path: Path,
    *,
    problems: int = 256,
    samples: int = 64,
    temperature: float | None = None,
    data: Path | None = None,
    test_data: Path | None = None,
) -> str:
    """Judge the last checkpoint of a run on held-out problems, and write `evaluation.json` into the run.

    The policy that is judged is the model itself, without ERA.

    Args:
        path: A run directory.
        problems: How many at most, always the same ones.
        samples: Responses to each; pass@k reaches up to this k.
        temperature: Of sampling, instead of the run's `eval_temperature`.
        data: Where the task's file is now, if it was moved.
        test_data: Where the file to be judged on is now.

    Returns:
        What was found, in words: each quantity with its 95 % interval over problems, which says nothing of other
        seeds.

    Raises:
        ValueError: No run, no checkpoint, the task's files are not there, or a temperature that is not above 0.
    """
    run = Run.open(path)
    checkpoint = run.trained()
    places = {"data": data, "test_data": test_data}
    given: Any = {name: str(place) for name, place in places.items() if place is not None}
    if temperature is not None:
        given["eval_temperature"] = temperature
    trainer = Trainer(replace(read_config(run.config), **given), described=description(run))
    try:
        trainer.restore(checkpoint)
        with Progress(problems, unit="problems", every=1) as progress:
            found = trainer.judge(problems, samples, progress.advance)
    finally:
        trainer.close()
    scores = found.scores()
    file = run.keep_evaluation(
        {
            "step": trainer.step,
            "problems": len(found.problems),
            "asked": _known_by(found.problems),
            "samples": samples,
            "temperature": trainer.config.eval_temperature,
            "values": found.values(),
            "intervals_95": {name: [score.low, score.high] for name, score in scores.items()},
            "correct": found.correct.sum(1).tolist(),
        }
    )
    run.keep_text("samples/evaluation.txt", found.told(SHOWN))
    drawn = f"{samples} responses each at temperature {trainer.config.eval_temperature:g}"
    lines = [f"step {trainer.step}, {len(found.problems):,} problems, {drawn}"]
    for name, (value, low, high) in scores.items():
        told = f"avg@{samples}" if name == "avg_at_k" else name.replace("_at_", "@")
        lines.append(f"{told:<22}{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] %")
    lines.append(f"{'entropy':<22}{found.entropies.mean():.3f} nats, of the top tokens of a response")
    lines.append(f"{'written to':<22}{file}")
    return "\n".join(lines)


def _known_by(problems: Sequence[Problem]) -> int:
    """A number for these problems, in whatever order: a report must not compare what other files were given to."""
    return zlib.crc32("\0".join(sorted(f"{problem.prompt}\0{problem.answer}" for problem in problems)).encode())


def export(path: Path, out: Path) -> str:
    """Write the model of a run's last checkpoint, with its tokenizer, where transformers can load it.

    Args:
        path: A run directory.
        out: A directory, made if it is not there.

    Returns:
        The line of Python that loads it.

    Raises:
        ValueError: No run, no checkpoint, a run of a version that did not describe its model, or `out` is a file.
    """
    if out.is_file():
        raise ValueError(f"out={out} is a file: a language model is a directory of several")
    run = Run.open(path)
    read_config(run.config)  # which refuses what is no language model
    weights = tensors_below("model/", run.trained().arrays)
    language_model, tokenizer = model.described(path / MODEL)
    model.load_weights(language_model, weights)
    model.save(out, language_model, tokenizer)
    return f"model = transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
