"""Audit of a language model: of a run, or any other, in its own responses or in given ones."""

from __future__ import annotations

import entropyfloor.language.model  # noqa: F401  before transformers, so that a broken torchvision does no harm

# isort: split

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from entropyfloor.audit.samples import Further, Samples
from entropyfloor.checks import check_counts
from entropyfloor.extras import shortened
from entropyfloor.language.encoding import Turn, encode, render
from entropyfloor.language.evaluate import STREAM
from entropyfloor.language.load import read_trained
from entropyfloor.language.losses import forking_tokens
from entropyfloor.language.model import files
from entropyfloor.language.model.forward import Policy, context_of, device_of, rows_of
from entropyfloor.language.prepare import adapt_task, as_evaluated, hyperparameters_of, sampling_of
from entropyfloor.language.sampling.checks import check_logits, check_sampling
from entropyfloor.language.sampling.engines.base import template as template_of
from entropyfloor.language.sampling.rollout import Responses, aligned, sample
from entropyfloor.language.tasks.rows import QUESTION_COLUMNS, column_of, read_rows, reply_of, turns_of, value_of
from entropyfloor.language.update import Hyperparameters, log_probs_of
from entropyfloor.runs.settings import Precision
from entropyfloor.torch import functional as F
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESPONSE_COLUMNS = ("response", "completion", "output", "text")
"""Usual names of the column of responses, tried in this order."""


def run(
    run: Path,
    *,
    problems: int = 64,
    samples: int = 4,
    temperature: float | None = None,
    data: Path | None = None,
    test_data: Path | None = None,
) -> Samples:
    """Measure the responses of a run's model to held-out problems of its task, as it samples, without ERA.

    Args:
        run: Run directory, whose last checkpoint is measured, or a directory in its `checkpoints`.
        problems: Number of held-out problems; all where there are fewer.
        samples: Responses to each.
        temperature: Temperature of sampling instead of the run's `eval_temperature`. Entropies are at the run's
            `temperature`, as in training.
        data: File of training problems, if it was moved and a tenth of it is held out.
        test_data: File of held-out problems, if it was moved, or another one.

    Raises:
        ValueError: No run, no checkpoint, the task's files are not there, or an option that cannot be used.
    """
    check_counts(problems=problems, samples=samples)
    trained = read_trained(run)
    config, task = as_evaluated(trained.config, data, test_data, temperature)
    model, tokenizer = trained.model.to(device_of("auto")), trained.tokenizer  # type: ignore[arg-type]
    try:
        adapt_task(task, config, model, tokenizer)
        chosen = task.problems("test", problems, 0, or_fewer=True)
    finally:
        task.close()
    prompts = [problem.prompt for problem in chosen for _ in range(samples)]
    responses = sample(
        model,
        tokenizer,
        prompts,
        seed=derived(config.seed, STREAM, trained.step),
        temperature=config.eval_temperature,
        **sampling_of(config),
    )
    name = f"{run} ({config.model} on {config.task})"
    return measure(name, model, tokenizer, prompts, responses, hyperparameters_of(config))


def language_model(
    model: str,
    *,
    prompts: Path | None = None,
    rollouts: Path | None = None,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    template: str = "none",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    precision: Precision = "fp32",
    top_fraction: float = 0.2,
) -> Samples:
    """Measure a causal language model of transformers: in its own responses to prompts, or in given responses.

    Args:
        model: A directory, or a name on the hub.
        prompts: File of prompts: .txt, one each line, or .jsonl, .json or .parquet with a column problem,
            question, prompt or input.
        rollouts: File of responses, which the model reads instead of sampling: .jsonl, .json or .parquet with such
            a column, and a column response, completion, output or text. The end of sequence is not counted.
        samples: Responses to each prompt.
        max_new_tokens: Length of the longest response, in tokens.
        temperature: Temperature of sampling, and of the entropies.
        template: Text around each prompt: none, chat for that of the tokenizer, or another of evaluate benchmark.
        limit: Number of rows that are read; by default all.
        seed: Seed of the responses.
        batch_size: Number of responses at a time.
        precision: Precision of the model; its logits are float32 in any case.
        top_fraction: Share of the tokens of a response that its entropy is the mean of, those with the highest.

    Raises:
        ValueError: The model or the file cannot be read, the logits computed here would not be the model's own, or
            prompt and response do not fit into the context.
    """
    if (prompts is None) == (rollouts is None):
        raise ValueError("give either --prompts, for responses of the model, or --rollouts, responses to read")
    check_counts(samples=samples, max_new_tokens=max_new_tokens, batch_size=batch_size, limit=limit)
    defaults = inspect.signature(language_model).parameters
    sampling = {"samples": samples, "max_new_tokens": max_new_tokens, "seed": seed}
    unused = [f"{name}={value}" for name, value in sampling.items() if value != defaults[name].default]
    if rollouts is not None and unused:
        raise ValueError(f"{', '.join(unused)} would be ignored: with --rollouts nothing is sampled")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0: at 0 there is no entropy")
    chat = template_of(template).text is None
    path: Any = prompts or rollouts
    rows = _rows(path)[:limit]
    column = column_of(rows, None, QUESTION_COLUMNS, "prompts", str(path))
    net, tokenizer = files.load(model, chat=chat)
    net = net.to(device_of("auto")).eval()  # type: ignore[arg-type]
    check_logits(net, "measured")
    each = samples if rollouts is None else 1
    chats = [turns_of(value_of(row, column), chat=chat) for row in rows for _ in range(each)]
    asked = [_prompt(turns, template, tokenizer) for turns in chats]
    if rollouts is None:
        check_sampling(net, Policy(net))
        longest = max(map(len, encode(tokenizer, asked, rows=rows_of(net), special=not chat)))
        _check_context(net, longest, max_new_tokens)
        responses = sample(
            net,
            tokenizer,
            asked,
            seed=seed,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
            precision=precision,
            special=not chat,
        )
    else:
        answers = column_of(rows, None, RESPONSE_COLUMNS, "responses", str(path))
        texts = [reply_of(value_of(row, answers)) for row in rows]
        responses = _given(net, tokenizer, asked, texts, special=not chat)
    hyperparameters = Hyperparameters(
        temperature=temperature, precision=precision, micro_batch=batch_size, top_fraction=top_fraction
    )
    return measure(model, net, tokenizer, [turns[-1]["content"] for turns in chats], responses, hyperparameters)


@torch.no_grad()
def measure(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Responses,
    hyperparameters: Hyperparameters,
) -> Samples:
    """The entropy of each response: the mean over its tokens of highest entropy, H_resp of Eq. 16.

    `prompts` are for the labels.
    """
    _, entropies = log_probs_of(model, responses, hyperparameters)
    mask, fraction = responses.response_mask, hyperparameters.top_fraction
    of_responses = F.response_entropy(entropies, mask, fraction)
    of_tokens = entropies[mask].double().cpu().numpy()
    top = forking_tokens(entropies, mask)
    others = {"token_entropy/top": mask & top, "token_entropy/bottom": mask & ~top}
    most = entropies.masked_fill(~mask, -1.0).argmax(1, keepdim=True)
    words = tokenizer.batch_decode(responses.targets.gather(1, most))
    return Samples(
        name,
        "responses",
        f"responses: the mean over the {100 * fraction:g} % of their tokens with the highest, H_resp",
        of_responses.double().cpu().numpy(),
        [
            f"{shortened(prompt)} ⟶ {shortened(text)} [most uncertain token: {word!r}]"
            for prompt, text, word in zip(prompts, responses.texts, words, strict=True)
        ],
        further=[Further("token_entropy", "Entropy of each token (nats)", of_tokens)],
        numbers={
            "token_entropy": float(entropies[mask].mean()),
            **{name: float(entropies[some].mean()) for name, some in others.items() if some.any()},
            "response_length/eval": float(mask.sum(1).double().mean()),
            "ended": float(responses.ended.double().mean()),
        },
    )


# --- prompts and responses -------------------------------------------------------------------------------


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file; each line of a .txt is a prompt."""
    if path.suffix != ".txt":
        return read_rows(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a .txt, .jsonl, .json or .parquet file")
    try:
        rows = [{"prompt": line} for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    if not rows:
        raise ValueError(f"{path} has no prompts")
    return rows


def _prompt(turns: Sequence[Turn], name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt as the model reads it, by the template of that name."""
    around = template_of(name)
    if around.text is None:
        return render(tokenizer, turns)
    return around.fill("\n".join(turn["content"] for turn in turns), "")


def _given(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    special: bool,
) -> Responses:
    """Given responses, as if the model had sampled them."""
    prompt_tokens = encode(tokenizer, prompts, rows=rows_of(model), special=special)
    response_tokens = encode(tokenizer, texts, rows=rows_of(model), special=False)
    both = list(zip(prompt_tokens, response_tokens, strict=True))
    if empty := [i for i, tokens in enumerate(both, 1) if not all(tokens)]:
        raise ValueError(
            f"{len(empty)} of the rollouts have an empty prompt or response, the first in row {empty[0]}: "
            "remove them"
        )
    longest, row = max((len(prompt) + len(response), i) for i, (prompt, response) in enumerate(both, 1))
    context = context_of(model.config)
    if context is not None and longest > context:
        raise ValueError(
            f"prompt and response in row {row} of the rollouts have {longest} tokens, and the context {context}: "
            "remove such rows"
        )
    tokens, mask, width = aligned(prompt_tokens, response_tokens, int(tokenizer.pad_token_id or 0))
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    return Responses(tokens, mask, mask[:, width:], list(texts), torch.ones(len(texts), dtype=torch.bool))


def _check_context(model: PreTrainedModel, prompt: int, response: int) -> None:
    context = context_of(model.config)
    if context is not None and prompt + response > context:
        raise ValueError(
            f"a prompt of {prompt} tokens and a response of {response} do not fit into the context of {context}: "
            "choose a smaller --max-new-tokens, or leave the row out"
        )
