"""The loop in which a language model of this process writes: from token ids to token ids.

Batches are padded on the left, keys and values are cached, a prompt that is there several times is read once, and
rows that have ended leave. Each row has a seed of its own, so that what it says does not depend on what it is
batched with, except for the rounding of batched matrix products.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

KEPT = 0.8
"""Ended rows leave once at most this share of a batch goes on. Not at each end: the cache is copied."""
BLOCK = 64
"""Uniform numbers that a row draws at a time, since a call for each would take longer than a small model."""


class Written(NamedTuple):
    """What follows a prompt."""

    tokens: list[int]
    """The one that ends it among them."""
    ended: bool
    """False where the limit came first."""


@torch.no_grad()  # not inference_mode: what a model keeps to itself of a forward pass must serve training too
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    seeds: Sequence[int],
    ends: Collection[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: Callable[[list[int]], bool] | None = None,
) -> list[Written]:
    """What the model writes behind each prompt, all in one batch.

    Args:
        model: A causal language model of transformers, or a `Policy` of one, in evaluation mode.
        prompts: Token ids, at least one each.
        limits: Most tokens that each may be followed by, at least 1.
        seeds: One for each prompt; tokens follow from it.
        ends: Tokens that end a response.
        temperature: See `choose`.
        top_p: See `choose`.
        stop: Given the tokens so far, where the last of them does not end it; True ends it there.

    Raises:
        ValueError: Nothing to read or to write, or not one limit and one seed for each prompt.
    """
    if not len(prompts) == len(limits) == len(seeds):
        raise ValueError(f"{len(prompts)} prompts have {len(limits)} limits and {len(seeds)} seeds: one each")
    if not all(prompts) or not all(limit >= 1 for limit in limits):
        raise ValueError("every prompt needs at least one token, and every limit must be at least 1")
    if not prompts:
        return []
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    written: list[list[int]] = [[] for _ in prompts]
    ended: dict[int, bool] = {}
    rows = list(range(len(prompts)))  # which prompt each row of the batch has begun with
    batch = _read(model, prompts)
    for step in range(max(limits)):
        if step % BLOCK == 0:
            uniforms = torch.stack([torch.rand(BLOCK, generator=g, dtype=torch.float64) for g in generators])
        chosen = choose(batch.logits, uniforms[rows, step % BLOCK], temperature, top_p)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row in ended:
                continue
            written[row].append(token)
            if token in ends or (stop is not None and stop(written[row])):
                ended[row] = True
            elif len(written[row]) == limits[row]:
                ended[row] = False
        going = [at for at, row in enumerate(rows) if row not in ended]
        if not going:
            break
        if batch.movable and len(going) <= KEPT * len(rows):
            batch.take(going)
            rows = [rows[at] for at in going]
        batch.append([written[row][-1] for row in rows], [row not in ended for row in rows])
    return [Written(tokens, ended[row]) for row, tokens in enumerate(written)]


def choose(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], temperature: float = 1.0, top_p: float = 1.0
) -> Int[Tensor, " B"]:
    """The next token of each row.

    Args:
        logits: In any precision; probabilities are float32.
        uniform: A number in [0, 1) for each row, in float64 on the CPU: by it the token is drawn.
        temperature: Of the logits; 0 takes the likeliest token.
        top_p: Probability of the likeliest tokens that are drawn from, among them the one that reaches it; 1 for
            all.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.float() / temperature).softmax(-1)
    if p.device.type == "mps":
        p = p.cpu()  # there is no float64 on it
    order = None
    if top_p < 1:
        p, order = p.sort(dim=-1, descending=True, stable=True)
        p = p.masked_fill(p.cumsum(-1, dtype=torch.float64) - p >= top_p, 0.0)
    # Only the sum is in float64: in float32 what is rare would be lost in it, or drawn too often.
    reached = p.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(reached, uniform.to(p.device)[:, None] * reached[:, -1:], right=True)
    found = found.clamp(max=p.shape[-1] - 1)
    return (found if order is None else order.gather(-1, found))[:, 0]


def _read(model: Any, prompts: Sequence[Sequence[int]]) -> Batch:
    """A batch that has read the prompts, each different one once if the cache can be copied from row to row."""
    place = {tokens: i for i, tokens in enumerate(dict.fromkeys(map(tuple, prompts)))}
    batch = Batch(model, list(place))
    if len(place) == len(prompts):
        return batch
    if not batch.movable:
        return Batch(model, prompts)
    batch.take([place[tuple(prompt)] for prompt in prompts])
    return batch


class Batch:
    """What a model has read so far, padded on the left."""

    logits: Float[Tensor, "B V"]
    """Of what comes next."""
    _position: Int[Tensor, "B 1"]

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache: Any = None
        # Logits of the last position alone: those of a whole prompt would fill the memory.
        takes = inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        gaps = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        pairs = list(zip(gaps, prompts, strict=True))
        tokens = torch.tensor([[0] * gap + list(prompt) for gap, prompt in pairs], device=model.device)
        self._mask = torch.tensor([[0] * gap + [1] * len(prompt) for gap, prompt in pairs], device=model.device)
        self._forward(tokens, (self._mask.cumsum(1) - 1).clamp(min=0))

    @property
    def movable(self) -> bool:
        """Whether rows can be taken."""
        # What beam search needs, and so every layer has; linear attention has no `batch_select_indices`.
        return hasattr(self._cache, "reorder_cache")

    def take(self, rows: Sequence[int]) -> None:
        """Go on with these rows; one may be there several times."""
        index = torch.tensor(rows, device=self._mask.device)
        self._cache.reorder_cache(index)
        self.logits, self._mask, self._position = self.logits[index], self._mask[index], self._position[index]

    def append(self, tokens: Sequence[int], going: Sequence[bool]) -> None:
        """Read one token more in each row; one that does not go on stays where it is, within the context."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        ids, steps = (torch.tensor(each, device=self._mask.device)[:, None] for each in (tokens, going))
        self._forward(ids, self._position + steps)

    def _forward(self, tokens: Tensor, position: Tensor) -> None:
        out = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=position,
            past_key_values=self._cache,
            use_cache=True,
            **self._last,
        )
        self.logits, self._cache, self._position = out.logits[:, -1], out.past_key_values, position[:, -1:]
