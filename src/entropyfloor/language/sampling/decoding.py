"""Decoding: a language model in this process continues prompts, from token ids to token ids.

Batches are padded on the left, keys and values are cached, a repeated prompt is read once, and rows that have
ended are removed from the batch. Kept by design instead of transformers' `generate`: each row has a seed of its
own, so that its tokens do not depend on its batch, except for the rounding of batched matrix products.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from entropyfloor.language.model.cache import grow_in_place

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SHRINK_BELOW = 0.8
"""Ended rows are removed once at most this share of a batch goes on: each removal copies the cache."""
BLOCK = 64
"""Number of uniform numbers that a row draws at a time: a call for each would take longer than a small model."""


class Written(NamedTuple):
    """Tokens that follow a prompt."""

    tokens: list[int]
    """Tokens, with the one that ends them."""
    ended: bool
    """Whether they ended by themselves, before the limit."""


@torch.no_grad()  # not inference_mode: tensors that a model caches in a forward pass must serve training, too
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
    """Continue each prompt, all in one batch.

    Args:
        model: A causal language model of transformers, or a `Policy` of one, in evaluation mode.
        prompts: Token ids of each prompt, at least one.
        limits: Largest number of new tokens for each prompt, at least 1.
        seeds: Seed of each response.
        ends: Tokens that end a response.
        temperature: See `choose`.
        top_p: See `choose`.
        stop: Function of the new tokens, called where the last one does not end the response; True ends it.

    Raises:
        ValueError: A prompt is empty, a limit is below 1, or the numbers of prompts, limits and seeds differ.
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
    rows = list(range(len(prompts)))  # index of the prompt of each row of the batch
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
        if batch.movable and len(going) <= SHRINK_BELOW * len(rows):
            batch.take(going)
            rows = [rows[at] for at in going]
        batch.append([written[row][-1] for row in rows], [row not in ended for row in rows])
    return [Written(tokens, ended[row]) for row, tokens in enumerate(written)]


def choose(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], temperature: float = 1.0, top_p: float = 1.0
) -> Int[Tensor, " B"]:
    """The next token of each row.

    Args:
        logits: Logits in any precision; probabilities are float32.
        uniform: A number in [0, 1) for each row, float64 on the CPU, which decides the token.
        temperature: Temperature of the logits; 0 takes the likeliest token.
        top_p: Probability of the likeliest tokens that are sampled from, including the one that reaches it; 1 for
            all.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.float() / temperature).softmax(-1)
    if p.device.type == "mps":
        p = p.cpu()  # it has no float64
    order = None
    if top_p < 1:
        p, order = p.sort(dim=-1, descending=True, stable=True)
        p = p.masked_fill(p.cumsum(-1, dtype=torch.float64) - p >= top_p, 0.0)
    # The sum needs float64: in float32 rare tokens would be lost, or drawn too often.
    cumulative = p.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulative, uniform.to(p.device)[:, None] * cumulative[:, -1:], right=True)
    tokens = tokens.clamp(max=p.shape[-1] - 1)
    return (tokens if order is None else order.gather(-1, tokens))[:, 0]


def _read(model: Any, prompts: Sequence[Sequence[int]]) -> Batch:
    """A batch that has read the prompts; repeated ones once, if the cache can be copied from row to row."""
    rows = {tokens: row for row, tokens in enumerate(dict.fromkeys(map(tuple, prompts)))}
    batch = Batch(model, list(rows))
    if len(rows) == len(prompts):
        return batch
    if not batch.movable:
        return Batch(model, prompts)
    batch.take([rows[tuple(prompt)] for prompt in prompts])
    return batch


class Batch:
    """Tokens that a model has read so far, padded on the left, with their cache of keys and values."""

    logits: Float[Tensor, "B V"]
    """Logits of the next token."""
    _position: Int[Tensor, "B 1"]

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache: Any = None
        # Logits of the last position only: those of a whole prompt would fill the memory.
        parameters = inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        pairs = list(zip(padding, prompts, strict=True))
        tokens = torch.tensor([[0] * pad + list(prompt) for pad, prompt in pairs], device=model.device)
        self._mask = torch.tensor([[0] * pad + [1] * len(prompt) for pad, prompt in pairs], device=model.device)
        self._forward(tokens, (self._mask.cumsum(1) - 1).clamp(min=0))
        grow_in_place(self._cache)

    @property
    def movable(self) -> bool:
        """Whether rows can be selected and copied."""
        # Every layer has this method of beam search; linear attention has no `batch_select_indices`.
        return hasattr(self._cache, "reorder_cache")

    def take(self, rows: Sequence[int]) -> None:
        """Continue with these rows; a row may be repeated."""
        index = torch.tensor(rows, device=self._mask.device)
        self._cache.reorder_cache(index)
        self.logits, self._mask, self._position = self.logits[index], self._mask[index], self._position[index]

    def append(self, tokens: Sequence[int], going: Sequence[bool]) -> None:
        """Read one more token in each row; the position of a row that does not go on stays within the context."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        ids, steps = (torch.tensor(values, device=self._mask.device)[:, None] for values in (tokens, going))
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
