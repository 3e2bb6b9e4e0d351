"""Supervised learning before RL, from solutions of which some miss: there is something to reward and to improve.

A model warmed up is a function of a few settings and the seed. Runs that have these in common, such as the arms of
a comparison, can share it through a directory.
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
from entropyfloor.language import model as models
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.sampling.encoding import encode
from entropyfloor.language.tasks import Task
from entropyfloor.runs import files
from entropyfloor.torch import functional as F
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The target of padding."""
STREAM = 1
"""Of random numbers; the trainer's own have others."""
SETTINGS = (
    *("task", "largest", "digits", "chain_length", "model", "layers", "hidden", "heads", "seed"),
    *("clip_grad", "weight_decay"),
    *("warm_start_steps", "warm_start_batch", "warm_start_learning_rate", "warm_start_random"),
)
"""What a model warmed up follows from."""


def warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    config: LanguageConfig,
    advance: Callable[[int], object],
) -> float:
    """Teach a model what a solution looks like, or take what another run with these settings has taught it.

    Args:
        model: Trained in place.
        tokenizer: Its own.
        task: Whose solutions.
        config: Settings; those called `warm_start_*` say how.
        advance: Told the number of steps done, after each.

    Returns:
        Negative log-likelihood of a token at the end, in nats.

    Raises:
        FloatingPointError: It is not finite.
        ValueError: What the other run has left is damaged.
    """
    file = file_of(config)
    if file is not None and file.exists():
        advance(config.warm_start_steps)
        return _take(model, file)
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
        shown = [task.solution(p, rng, wander=w) + end for p, w in zip(problems, wrong, strict=True)]
        loss = imitation_loss(model, tokenizer, [problem.prompt for problem in problems], shown)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        advance(step + 1)
    last = float(loss.detach())
    if not math.isfinite(last):  # nobody is to take this for a beginning
        raise FloatingPointError(
            f"the loss of the warm start is {last}: give a smaller --warm-start-learning-rate"
        )
    if file is not None:
        weights = {name: p.detach().cpu().contiguous() for name, p in models.weights_of(model).items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, save(weights, {"loss": repr(last)}))
    return last


def imitation_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of a token of the responses, in nats.

    Args:
        model: A causal language model.
        tokenizer: Its own, with a token for padding.
        prompts: What the responses answer.
        responses: As many, with their end.
    """
    rows = models.rows_of(model)
    before = encode(tokenizer, prompts, rows=rows)
    after = encode(tokenizer, responses, rows=rows, special=False)  # what begins a text began the prompt
    start = max(map(len, before))  # where responses begin
    tokens = torch.full((len(before), start + max(map(len, after))), int(tokenizer.pad_token_id or 0))
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    targets = torch.full_like(tokens, IGNORED)
    for i, (prompt, response) in enumerate(zip(before, after, strict=True)):
        span = slice(start - len(prompt), start + len(response))
        tokens[i, span] = torch.tensor(prompt + response)
        mask[i, span] = True
        targets[i, start : start + len(response)] = torch.tensor(response)
    tokens, mask, targets = (x.to(model.device) for x in (tokens, mask, targets))
    hidden, head = models.hidden_states(model, tokens, mask), models.head_of(model)
    log_probs, _ = F.token_log_probs(
        hidden[:, start - 1 : -1],
        head.weight,
        targets[:, start:],
        bias=head.bias,
        softcap=head.softcap,
        ignore_index=IGNORED,
    )
    return -log_probs.sum() / (targets != IGNORED).sum()


def file_of(config: LanguageConfig) -> Path | None:
    """Where runs with these settings keep their warm start; None where they do not."""
    if config.warm_starts is None:
        return None
    settings = json.dumps({name: getattr(config, name) for name in SETTINGS} | {"version": __version__})
    digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
    return Path(config.warm_starts, f"{config.task}-seed-{config.seed}-{digest}.safetensors")


def _take(model: PreTrainedModel, file: Path) -> float:
    """Load the weights of `file` and return the loss they had."""
    try:
        with safe_open(file, "pt") as kept:
            models.load_weights(model, {name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
            return float(kept.metadata()["loss"])
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and it is made again") from None
