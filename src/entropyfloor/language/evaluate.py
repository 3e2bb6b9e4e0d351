"""Evaluation of a language model on held-out problems of its task: during training, and of a run."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from entropyfloor.checks import check_counts
from entropyfloor.language.benchmarks import scores
from entropyfloor.language.load import read_trained
from entropyfloor.language.model.forward import device_of
from entropyfloor.language.prepare import adapt_task, as_evaluated, hyperparameters_of, sampling_of
from entropyfloor.language.sampling.rollout import Responses, joined, sample
from entropyfloor.language.tasks import Problem, Task
from entropyfloor.language.update import Hyperparameters, log_probs_of
from entropyfloor.runs.progress import Progress
from entropyfloor.torch import functional as F
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STREAM = 5
"""Stream of random numbers of evaluations; those of training are other ones."""


class Evaluation(NamedTuple):
    """Responses to held-out problems, with their rewards and entropies."""

    problems: Sequence[Problem]
    texts: Sequence[str]
    """Sampled responses; those to the same problem follow each other."""
    rewards: np.ndarray
    """`[problems, samples]`: rewards of the sampled responses."""
    greedy: np.ndarray
    """`[problems]`: rewards of the greedy responses."""
    entropies: np.ndarray
    """`[problems * samples]`: entropies of the responses, in nats: means over their tokens of highest entropy."""
    lengths: np.ndarray
    """`[problems * samples]`: lengths of the responses, in tokens."""

    @property
    def correct(self) -> np.ndarray:
        """`[problems, samples]`: whether a response is right."""
        correct: np.ndarray = self.rewards >= 1.0
        return correct

    def metrics(self) -> dict[str, float]:
        """Quantities as a run records them."""
        return {name: score.value for name, score in self.scores().items()} | {
            "realised_entropy": float(self.entropies.mean()),
            "realised_entropy/min": float(self.entropies.min()),
            "realised_entropy/q05": float(np.quantile(self.entropies, 0.05)),
            "response_length/eval": float(self.lengths.mean()),
        }

    def scores(self) -> dict[str, scores.Score]:
        """avg@k, greedy accuracy and pass@k, with 95 % intervals over problems."""
        correct = self.correct
        samples = correct.shape[1]
        curve = scores.pass_curve(samples, correct.sum(1))
        return {
            "avg_at_k": scores.accuracy(correct.mean(1)),
            "greedy": scores.accuracy(self.greedy >= 1.0),
            **{f"pass_at_{k}": score for k, score in curve.items()},
        }

    def examples(self) -> str:
        """The responses to the first four problems with their rewards, to be read."""
        lines, samples = [], self.rewards.shape[1]
        for i, problem in enumerate(self.problems[:4]):
            lines.append(problem.prompt)
            texts = self.texts[i * samples : (i + 1) * samples]
            lines += [f"  {reward:g}  {text}" for text, reward in zip(texts, self.rewards[i], strict=True)]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    hyperparameters: Hyperparameters,
    *,
    problems: int,
    samples: int,
    seed: int,
    temperature: float,
    sampling: Mapping[str, Any],
    advance: Callable[[int], object] | None = None,
) -> Evaluation:
    """Evaluate a model on the first held-out problems of a task, or on all where there are fewer.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        task: Problems and their rewards.
        hyperparameters: Temperature, precision and share of tokens by which entropies are measured.
        problems: Number of problems.
        samples: Sampled responses to each, beside the greedy one.
        seed: Seed of the responses.
        temperature: Temperature of sampling.
        sampling: Other arguments of `sample`; see `sampling_of`.
        advance: Called with the number of problems that are answered.
    """
    answered: list[Problem] = []

    def respond(problems: Sequence[Problem], samples: int, temperature: float) -> Responses:
        prompts, first = [problem.prompt for problem in problems for _ in range(samples)], len(answered) * samples
        return sample(model, tokenizer, prompts, seed=seed, first=first, temperature=temperature, **sampling)

    sampled: list[Responses] = []
    greedy: list[Responses] = []
    for part in _held_out(task, problems, sampling["batch_size"]):
        sampled.append(respond(part, samples, temperature))
        greedy.append(respond(part, 1, 0.0))
        answered += part
        if advance is not None:
            advance(len(answered))
    responses, likeliest = (joined(batches, int(tokenizer.pad_token_id or 0)) for batches in (sampled, greedy))
    _, entropies = log_probs_of(model, responses, hyperparameters)
    of_responses = F.response_entropy(entropies, responses.response_mask, hyperparameters.top_fraction)
    repeated = [problem for problem in answered for _ in range(samples)]
    return Evaluation(
        answered,
        responses.texts,
        task.rewards(repeated, responses.texts).reshape(len(answered), samples),
        task.rewards(answered, likeliest.texts),
        of_responses.cpu().numpy(),
        responses.response_mask.sum(1).cpu().numpy(),
    )


def _held_out(task: Task, limit: int, batch_size: int) -> Iterator[list[Problem]]:
    """At most `limit` held-out problems, in growing parts: a generated task may have more than can be listed.

    A larger draw begins with the problems of a smaller one, so each draw asks for twice as many. Responses are the
    same as if all were sampled at once, since batches are whole.
    """
    done, count = 0, batch_size
    while True:
        problems = task.problems("test", min(count, limit), 0, or_fewer=True)
        if done < len(problems):
            yield problems[done:]
        if len(problems) < count:
            return
        done, count = count, 2 * count


def evaluate(
    run: Path,
    *,
    problems: int = 256,
    samples: int = 64,
    temperature: float | None = None,
    temperatures: tuple[float, ...] = (),
    data: Path | None = None,
    test_data: Path | None = None,
) -> str:
    """Evaluate a language model on held-out problems of its task: avg@k, pass@k, greedy accuracy and entropy.

    The model is evaluated as it samples, without ERA. `evaluation.json` in the run has all numbers.

    Args:
        run: Run directory, whose last checkpoint is evaluated, or a directory in its `checkpoints`.
        problems: Number of held-out problems, always the same ones; all where there are fewer.
        samples: Responses to each problem; pass@k reaches up to this k.
        temperature: Temperature of sampling instead of the run's `eval_temperature`.
        temperatures: Further temperatures, for the front of avg@k against pass@k: one temperature does not compare
            policies of different entropy.
        data: File of training problems, if it was moved and a tenth of it is held out.
        test_data: File of held-out problems, if it was moved, or another one.

    Returns:
        A summary: each score with its 95 % interval over problems, which does not cover other seeds.

    Raises:
        ValueError: No run, no checkpoint, the task's files are not there, or an option that is out of range.
    """
    check_counts(problems=problems, samples=samples)
    trained = read_trained(run)
    config, task = as_evaluated(trained.config, data, test_data, temperature)
    for each in temperatures:
        if not 0 < each < math.inf:
            raise ValueError(f"temperatures: {each} must be positive and finite")
    if config.threads:
        torch.set_num_threads(config.threads)
    model, tokenizer = trained.model.to(device_of("auto")), trained.tokenizer  # type: ignore[arg-type]
    try:
        adapt_task(task, config, model, tokenizer)
        measured: dict[float, Evaluation] = {}

        def report(temperature: float, done: int) -> None:
            progress.report(done, f"answered at temperature {temperature:g}")

        with Progress(problems, unit="problems", every=1, evaluation="responding") as progress:
            for each in dict.fromkeys([config.eval_temperature, *temperatures]):
                progress.restart(0)
                measured[each] = evaluate_model(
                    model,
                    tokenizer,
                    task,
                    hyperparameters_of(config),
                    problems=problems,
                    samples=samples,
                    seed=derived(config.seed, STREAM, trained.step),
                    temperature=each,
                    sampling=sampling_of(config),
                    advance=partial(report, each),
                )
    finally:
        task.close()
    evaluation = measured[config.eval_temperature]
    summary = evaluation.scores()
    file = trained.run.keep_evaluation(
        {
            "step": trained.step,
            "problems": len(evaluation.problems),
            "asked": _checksum(evaluation.problems),
            "problem_keys": [_key(problem) for problem in evaluation.problems],
            "samples": samples,
            "temperature": config.eval_temperature,
            "values": evaluation.metrics(),
            "intervals_95": {name: [score.low, score.high] for name, score in summary.items()},
            "correct": evaluation.correct.sum(1).tolist(),
            "front": [
                {"temperature": each, "correct": of.correct.sum(1).tolist()}
                for each, of in sorted(measured.items())
            ],
        }
    )
    trained.run.keep_text("samples/evaluation.txt", evaluation.examples())
    count = f"{len(evaluation.problems):,} problems, {samples} responses each"
    lines = [f"step {trained.step}, {count} at temperature {config.eval_temperature:g}"]
    for name, (value, low, high) in summary.items():
        label = f"avg@{samples}" if name == "avg_at_k" else name.replace("_at_", "@")
        lines.append(f"{label:<22}{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] %")
    for each, of in sorted(measured.items() if temperatures else ()):
        average, solved = (of.scores()[name].value for name in ("avg_at_k", f"pass_at_{samples}"))
        label = f"temperature {each:g}"
        lines.append(f"{label:<22}avg@{samples} {100 * average:.1f} %, pass@{samples} {100 * solved:.1f} %")
    lines.append(f"{'entropy':<22}{evaluation.entropies.mean():.3f} nats, of the top tokens of a response")
    lines.append(f"{'written to':<22}{file}")
    return "\n".join(lines)


def _key(problem: Problem) -> str:
    """A name of the problem, by which a report pairs the responses of several models to it."""
    return hashlib.blake2b(_text(problem).encode(), digest_size=8).hexdigest()


def _checksum(problems: Sequence[Problem]) -> int:
    """A number for these problems in any order, by which a report compares only evaluations of the same ones."""
    return zlib.crc32("\0".join(sorted(map(_text, problems))).encode())


def _text(problem: Problem) -> str:
    return f"{problem.prompt}\0{problem.answer}"
