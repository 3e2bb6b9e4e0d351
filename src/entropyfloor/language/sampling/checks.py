"""Checks that a model can be trained, sampled or measured: padding, a cache and our last layer keep its logits.

Some families have a last layer of another form, count positions through padding or keep another kind of cache, and
which ones changes with every release of transformers. So no names are listed: logits of a few tokens are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from entropyfloor.extras import brief, is_out_of_memory
from entropyfloor.language.model.forward import Policy, head_of, hidden_states, logits_of, rows_of
from entropyfloor.language.sampling.decoding import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
LONG, SHORT = 5, 3
"""Lengths of the two sequences that are compared; in a batch the shorter one is padded."""
TOLERANCE = 3.0
"""Limit of differences, in square roots of the machine epsilon, relative to the largest logit: 1e-3 in float32."""


def check_training(model: PreTrainedModel) -> None:
    """Refuse a model, in evaluation mode on its device, whose logits in an update would not be its own.

    Raises:
        ValueError: `check_logits` or `check_sampling` refuses it.
    """
    check_logits(model, "trained")
    check_sampling(model, Policy(model), "trained")


@torch.no_grad()
def check_logits(model: PreTrainedModel, use: str) -> None:
    """Refuse a model, in evaluation mode on its device, whose logits `token_log_probs` would not compute.

    `use` stands in the message.

    Raises:
        ValueError: Its last layer does not give its logits, or padding changes them.
    """
    head, long = head_of(model), _tokens(model)
    gap = LONG - SHORT

    def in_a_batch() -> Tensor:
        tokens = torch.stack([long, torch.cat([long[:gap], long[:SHORT]])])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[1, :gap] = False
        return logits_of(hidden_states(model, tokens, mask), head)

    alone = _logits(model, use, lambda: [model(input_ids=row[None]).logits[0] for row in (long, long[:SHORT])])
    batched = _logits(model, use, in_a_batch)
    _compare(model, use, alone[0], batched[0], "its last layer times the hidden states")
    _compare(model, use, alone[1], batched[1, gap:], "those of the same tokens behind padding")


@torch.no_grad()
def check_sampling(model: PreTrainedModel, policy: Any = None, use: str = "sampled from") -> None:
    """Refuse a model whose logits with a cache, in a batch, are not those of the same tokens alone.

    `policy` is the argument of `decode`, if that is not the model itself; `use` stands in the message.

    Raises:
        ValueError: The logits differ, or the model has no cache.
    """
    long = _tokens(model)
    rows = (long[:SHORT], long)

    def with_a_cache() -> Tensor:
        batch = Batch(policy or model, [row[:-1].tolist() for row in rows[::-1]])
        if batch.movable:
            batch.take([1, 0])
        else:
            batch = Batch(policy or model, [row[:-1].tolist() for row in rows])
        batch.append([int(row[-1]) for row in rows], [True, True])
        return batch.logits

    alone = _logits(model, use, lambda: torch.stack([model(input_ids=row[None]).logits[0, -1] for row in rows]))
    _compare(model, use, alone, _logits(model, use, with_a_cache), "those of the same tokens one by one")


def _tokens(model: PreTrainedModel) -> Tensor:
    """Tokens from the middle of the vocabulary: special ones are at its ends."""
    rows = rows_of(model)
    return (rows // 2 + torch.arange(LONG, device=model.device)) % rows


def _logits(model: PreTrainedModel, use: str, compute: Callable[[], T]) -> T:
    """Logits of a model; an error is a reason to refuse it."""
    try:
        return compute()
    except Exception as error:  # architectures fail in different ways
        if is_out_of_memory(error):
            raise
        reason = f"it has no such interface ({type(error).__name__}: {brief(error)})"
        raise ValueError(_refusal(model, use, reason)) from None


def _compare(model: PreTrainedModel, use: str, alone: Tensor, other: Tensor, name: str) -> None:
    if not alone.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} cannot be {use}: its logits are not finite, as if its weights were damaged"
        )
    alone, other = alone.float(), other.float()
    largest, difference = float(alone.abs().max()), float((alone - other).abs().max())
    if not difference <= TOLERANCE * torch.finfo(model.dtype).eps ** 0.5 * largest:
        reason = f"its logits, {largest:.3g} at most, are up to {difference:.3g} away from {name}"
        raise ValueError(_refusal(model, use, reason))


def _refusal(model: PreTrainedModel, use: str, reason: str) -> str:
    return f"{type(model).__name__} cannot be {use} here: {reason}. Give a model of another architecture"
