"""Warm start: supervised learning before RL, on solutions of which some miss the answer, so that RL can improve.

The resulting model follows from a few settings and the seed. Runs that agree in these, such as the arms of a
comparison, can share it through a directory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from entropyfloor import __version__
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.encoding import encode
from entropyfloor.language.model.files import load_weights, weights_of
from entropyfloor.language.model.forward import IGNORED, head_of, hidden_states, rows_of
from entropyfloor.language.sampling.rollout import aligned
from entropyfloor.language.tasks import Task
from entropyfloor.runs import files
from entropyfloor.torch import functional as F
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STREAM = 1
"""Stream of random numbers; the trainer has other ones."""
SETTINGS = (
    *("task", "largest", "digits", "chain_length", "model", "layers", "hidden", "heads", "seed"),
    *("clip_grad", "weight_decay"),
    *("warm_start_steps", "warm_start_batch", "warm_start_learning_rate", "warm_start_random"),
)
"""Settings that the result follows from. The order is part of the names of files that exist, so it is listed."""


def warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    config: LanguageConfig,
    advance: Callable[[int], object],
) -> float:
    """Train a model in place on solutions, or load what a run with the same `SETTINGS` and beginning has saved.

    `advance` is called after each step with the number of steps done.

    Returns:
        Loss of the last step: the negative log-likelihood of a token, in nats.

    Raises:
        FloatingPointError: The loss is not finite.
        ValueError: The file of the other run is damaged.
    """
    file = file_of(config, model)
    if file is not None and file.exists():
        advance(config.warm_start_steps)
        return _load(model, file)
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), config.warm_start_learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.warm_start_steps)
    end = tokenizer.eos_token or ""
    for step in range(config.warm_start_steps):
        number = derived(config.seed, STREAM, step)
        rng = np.random.default_rng(number)
        problems = task.problems("train", config.warm_start_batch, number)
        wrong = rng.random(len(problems)) < config.warm_start_random
        solutions = [task.solution(p, rng, wander=w) + end for p, w in zip(problems, wrong, strict=True)]
        loss = imitation_loss(model, tokenizer, [problem.prompt for problem in problems], solutions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        advance(step + 1)
    model.eval()
    last = float(loss.detach())
    if not math.isfinite(last):
        raise FloatingPointError(
            f"the loss of the warm start is {last}: give a smaller --warm-start-learning-rate"
        )
    if file is not None:
        weights = {name: p.detach().cpu().contiguous() for name, p in weights_of(model).items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, save(weights, {"loss": repr(last)}))
    return last


def imitation_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the tokens of responses, in nats; each has its end of sequence."""
    rows = rows_of(model)
    before = encode(tokenizer, prompts, rows=rows)
    after = encode(tokenizer, responses, rows=rows, special=False)  # a response does not begin a text
    tokens, mask, width = aligned(before, after, int(tokenizer.pad_token_id or 0))
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    in_response = mask[:, width:]
    hidden, head = hidden_states(model, tokens, mask), head_of(model)
    log_probs, _ = F.token_log_probs(
        hidden[:, width - 1 : -1],
        head.weight,
        tokens[:, width:].masked_fill(~in_response, IGNORED),
        bias=head.bias,
        ignore_index=IGNORED,
        **head.scaling(),
    )
    return -log_probs.sum() / in_response.sum()


def file_of(config: LanguageConfig, model: PreTrainedModel) -> Path | None:
    """File that runs with these settings share, if they begin with the same model; None if they share none."""
    if config.warm_starts is None:
        return None
    settings = json.dumps({name: getattr(config, name) for name in SETTINGS} | {"version": __version__})
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    if config.model != "tiny":  # a path or a hub name says nothing of the weights that are there now
        for parameter in weights_of(model).values():
            digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return Path(config.warm_starts, f"{config.task}-seed-{config.seed}-{digest.hexdigest()}.safetensors")


def _load(model: PreTrainedModel, file: Path) -> float:
    """Load the weights of a file and return their loss."""
    try:
        with safe_open(file, "pt") as saved:
            load_weights(model, {name: saved.get_tensor(name) for name in saved.keys()})  # noqa: SIM118
            return float(saved.metadata()["loss"])
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and it is made again") from None
