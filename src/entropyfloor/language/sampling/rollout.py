"""Responses that a language model samples, and what the update needs to know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropyfloor.language.config import Precision
from entropyfloor.language.model import Policy, autocast, ends_of, rows_of
from entropyfloor.language.sampling.decoding import Written, decode
from entropyfloor.language.sampling.encoding import encode
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Responses(NamedTuple):
    """A batch of sampled responses, each behind its prompt."""

    tokens: Int[Tensor, "B P+T"]
    """Prompts, padded on the left, and responses, padded on the right."""
    mask: Bool[Tensor, "B P+T"]
    """What is not padding."""
    response_mask: Bool[Tensor, "B T"]
    """Tokens of the response, the end of the sequence among them."""
    texts: list[str]
    """Responses without their end."""
    ended: Bool[Tensor, " B"]
    """Whether the response ended by itself, before the limit."""

    @property
    def targets(self) -> Int[Tensor, "B T"]:
        """The tokens of the responses."""
        return self.tokens[:, -self.response_mask.shape[1] :]

    def rows(self, index: Tensor | slice) -> Responses:
        """Some of them."""
        numbers = torch.arange(len(self.texts))[index].tolist()
        return Responses(
            self.tokens[index],
            self.mask[index],
            self.response_mask[index],
            [self.texts[i] for i in numbers],
            self.ended[index],
        )


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int,
    first: int = 0,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 256,
    precision: Precision = "no",
    special: bool = True,
) -> Responses:
    """One response to each prompt, from the model itself: nothing is cut off its distribution.

    Args:
        model: Put into evaluation mode while it samples; its generation config says which tokens end a response.
        tokenizer: Has a token that pads.
        prompts: Several times the same one for several responses to it, best side by side: a batch reads it once.
        seed: The response to each prompt follows from it and the prompt's place.
        first: The place of the first prompt, where these are a part of more.
        max_new_tokens: Longest response, at least 1.
        temperature: Of the logits; 0 takes the likeliest token each time.
        batch_size: Sequences at a time.
        precision: What the model runs in; its logits are float32 in any case, as in the update.
        special: See `encode`.

    Raises:
        ValueError: There is no prompt, one without a token or with one that the model does not have, or no room
            for a response.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to respond to")
    before = encode(tokenizer, prompts, rows=rows_of(model), special=special)
    training = model.training
    model.eval()
    policy, ends = Policy(model), ends_of(model)
    written: list[Written] = []
    for some in parts(len(prompts), batch_size):
        places = range(some.start, some.stop)
        with autocast(model.device, precision):  # around all of it: weights are rounded once, not for each token
            written += decode(
                policy,
                before[some],
                limits=[max_new_tokens] * len(places),
                seeds=[derived(seed, first + place) for place in places],
                ends=ends,
                temperature=temperature,
            )
    model.train(training)
    after = [each.tokens for each in written]
    width, length = max(map(len, before)), max(map(len, after))
    tokens = torch.full((len(prompts), width + length), int(tokenizer.pad_token_id or 0))
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for i, (prompt, response) in enumerate(zip(before, after, strict=True)):
        span = slice(width - len(prompt), width + len(response))
        tokens[i, span] = torch.tensor(prompt + response)
        mask[i, span] = True
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    said = [each.tokens[: -1 if each.ended else None] for each in written]
    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
    ended = torch.tensor([each.ended for each in written], device=model.device)
    return Responses(tokens, mask, mask[:, width:], texts, ended)


def joined(drawn: Sequence[Responses], pad: int) -> Responses:
    """Several batches as one, padded to the longest prompt and response."""
    if len(drawn) == 1:
        return drawn[0]
    before = [each.tokens.shape[1] - each.response_mask.shape[1] for each in drawn]
    after = [each.response_mask.shape[1] for each in drawn]
    rooms = [(max(before) - b, max(after) - a) for b, a in zip(before, after, strict=True)]
    padded = torch.nn.functional.pad
    return Responses(
        torch.cat([padded(each.tokens, room, value=pad) for each, room in zip(drawn, rooms, strict=True)]),
        torch.cat([padded(each.mask, room) for each, room in zip(drawn, rooms, strict=True)]),
        torch.cat([padded(each.response_mask, (0, r)) for each, (_, r) in zip(drawn, rooms, strict=True)]),
        [text for each in drawn for text in each.texts],
        torch.cat([each.ended for each in drawn]),
    )


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
