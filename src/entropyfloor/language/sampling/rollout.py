"""Rollouts: responses sampled from a language model, as tensors for the update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.language.encoding import encode
from entropyfloor.language.model.forward import Policy, autocast, ends_of, rows_of
from entropyfloor.language.sampling.decoding import Written, decode
from entropyfloor.runs.settings import Precision
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Responses(NamedTuple):
    """A batch of sampled responses with their prompts."""

    tokens: Int[Tensor, "B P+T"]
    """Tokens of prompts, padded on the left, and of responses, padded on the right."""
    mask: Bool[Tensor, "B P+T"]
    """True except at padding."""
    response_mask: Bool[Tensor, "B T"]
    """True at tokens of the response, with its end of sequence."""
    texts: list[str]
    """Texts of the responses without the end of sequence."""
    ended: Bool[Tensor, " B"]
    """Whether the response ended by itself, before the limit."""

    @property
    def targets(self) -> Int[Tensor, "B T"]:
        """Tokens of the responses."""
        return self.tokens[:, -self.response_mask.shape[1] :]

    def rows(self, index: Tensor | slice) -> Responses:
        """Some of the responses."""
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
    precision: Precision = "fp32",
    special: bool = True,
) -> Responses:
    """Sample one response to each prompt, from the whole distribution of the model.

    Args:
        model: Model, in evaluation mode while it samples; its generation config names the tokens that end a
            response.
        tokenizer: Its tokenizer, with a padding token.
        prompts: Prompts; repeated ones should stand side by side, since a batch reads them once.
        seed: Seed; a response follows from it and the index of its prompt.
        first: Index of the first prompt, where these are a part of more.
        max_new_tokens: Length of the longest response, at least 1.
        temperature: Temperature of the logits; 0 takes the likeliest token.
        batch_size: Number of sequences at a time.
        precision: Precision of the model; its logits are float32 in any case, as in the update.
        special: See `encode`.

    Raises:
        ValueError: There is no prompt, a prompt is empty or has an unknown token, or `max_new_tokens` is below 1.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to respond to")
    prompt_tokens = encode(tokenizer, prompts, rows=rows_of(model), special=special)
    training = model.training
    model.eval()
    policy, ends = Policy(model), ends_of(model)
    written: list[Written] = []
    for batch in parts(len(prompts), batch_size):
        indices = range(batch.start, batch.stop)
        # Autocast around the loop: weights are rounded once, not for each token.
        with autocast(model.device, precision), out_of_memory_hint(f"give a --sample-batch below {batch_size}"):
            written += decode(
                policy,
                prompt_tokens[batch],
                limits=[max_new_tokens] * len(indices),
                seeds=[derived(seed, first + index) for index in indices],
                ends=ends,
                temperature=temperature,
            )
    model.train(training)
    tokens, mask, width = aligned(prompt_tokens, [row.tokens for row in written], int(tokenizer.pad_token_id or 0))
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    without_end = [row.tokens[: -1 if row.ended else None] for row in written]
    texts = tokenizer.batch_decode(without_end, skip_special_tokens=True)
    ended = torch.tensor([row.ended for row in written], device=model.device)
    return Responses(tokens, mask, mask[:, width:], texts, ended)


def aligned(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "B P+T"], Bool[Tensor, "B P+T"], int]:
    """Tokens of prompts and responses side by side, as `Responses` has them, with their mask, and P."""
    width, length = max(map(len, prompts)), max(map(len, responses))
    tokens = torch.full((len(prompts), width + length), pad)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        span = slice(width - len(prompt), width + len(response))
        tokens[i, span] = torch.tensor([*prompt, *response])
        mask[i, span] = True
    return tokens, mask, width


def joined(batches: Sequence[Responses], pad: int) -> Responses:
    """Several batches as one, padded to the longest prompt and response."""
    if len(batches) == 1:
        return batches[0]
    lengths = [batch.response_mask.shape[1] for batch in batches]
    widths = [batch.tokens.shape[1] - length for batch, length in zip(batches, lengths, strict=True)]
    padding = [(max(widths) - w, max(lengths) - n) for w, n in zip(widths, lengths, strict=True)]
    padded = torch.nn.functional.pad
    return Responses(
        torch.cat([padded(batch.tokens, sides, value=pad) for batch, sides in zip(batches, padding, strict=True)]),
        torch.cat([padded(batch.mask, sides) for batch, sides in zip(batches, padding, strict=True)]),
        torch.cat([padded(b.response_mask, (0, right)) for b, (_, right) in zip(batches, padding, strict=True)]),
        [text for batch in batches for text in batch.texts],
        torch.cat([batch.ended for batch in batches]),
    )


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
