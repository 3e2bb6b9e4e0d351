"""Checks at load that a model can be trained or sampled: every path must compute the model's own logits.

Which families scale their logits, count positions through padding or keep another kind of cache changes with every
release of transformers. So no names are looked up: a few tokens go through the model alone, padded, with a cache
and through the last layer, and the logits are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from entropyfloor.extras import brief, is_out_of_memory
from entropyfloor.language.model import Policy, head_of, hidden_states, logits_of, rows_of
from entropyfloor.language.sampling.decoding import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
LONG, SHORT = 5, 3
"""Tokens of two sequences that are compared; in a batch the shorter one is padded."""
ALLOWED = 3.0
"""Difference in square roots of the precision, of the largest logit: 1e-3 in float32; rounding makes 1e-5."""


@torch.no_grad()
def check_training(model: PreTrainedModel) -> None:
    """Refuse a model of which an update would see another policy than its own.

    Args:
        model: In evaluation mode, on its device.

    Raises:
        ValueError: Its last layer does not give its logits, or `check_sampling` refuses it.
    """
    head, long, used = head_of(model), _tokens(model), "trained"
    gap = LONG - SHORT

    def in_a_batch() -> Tensor:
        tokens = torch.stack([long, torch.cat([long[:gap], long[:SHORT]])])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[1, :gap] = False
        return logits_of(hidden_states(model, tokens, mask), head)

    alone = _asked(model, used, lambda: [model(input_ids=row[None]).logits[0] for row in (long, long[:SHORT])])
    batched = _asked(model, used, in_a_batch)
    _compare(model, used, alone[0], batched[0], "its last layer times what reaches it")
    _compare(model, used, alone[1], batched[1, gap:], "those of the same tokens behind padding")
    check_sampling(model, Policy(model), used)


@torch.no_grad()
def check_sampling(model: PreTrainedModel, policy: Any = None, used: str = "sampled from") -> None:
    """Refuse a model whose logits with a cache, in a batch, are not those that it has alone.

    Args:
        model: In evaluation mode, on its device.
        policy: What `decode` is given, if it is not the model itself.
        used: What it would be.

    Raises:
        ValueError: They are not, or it has no cache.
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

    alone = _asked(model, used, lambda: torch.stack([model(input_ids=row[None]).logits[0, -1] for row in rows]))
    _compare(model, used, alone, _asked(model, used, with_a_cache), "those of the same tokens one by one")


def _tokens(model: PreTrainedModel) -> Tensor:
    """Some, from the middle of the vocabulary: special ones stand at its ends."""
    rows = rows_of(model)
    return (rows // 2 + torch.arange(LONG, device=model.device)) % rows


def _asked(model: PreTrainedModel, used: str, question: Callable[[], T]) -> T:
    """The answer of `model`; what it fails at is a reason to refuse it."""
    try:
        return question()
    except Exception as error:  # of code that is not ours, in a way that it was not written for
        if is_out_of_memory(error):
            raise
        reason = f"it has no such interface ({type(error).__name__}: {brief(error)})"
        raise ValueError(_refusal(model, used, reason)) from None


def _compare(model: PreTrainedModel, used: str, alone: Tensor, other: Tensor, what: str) -> None:
    alone, other = alone.float(), other.float()
    most, apart = float(alone.abs().max()), float((alone - other).abs().max())
    if not apart <= ALLOWED * torch.finfo(model.dtype).eps ** 0.5 * most:
        reason = f"its logits, {most:.3g} at most, are up to {apart:.3g} away from {what}"
        raise ValueError(_refusal(model, used, reason))


def _refusal(model: PreTrainedModel, used: str, reason: str) -> str:
    return f"{type(model).__name__} cannot be {used} here: {reason}. Give a model of another architecture"
