"""Responses that a language model samples, and what the update needs to know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

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


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> Responses:
    """One response to each prompt, from the model itself: nothing is cut off its distribution.

    The samples follow PyTorch's global generator.

    Args:
        model: Put into evaluation mode while it samples.
        tokenizer: Pads on the left.
        prompts: Several times the same one for several responses to it.
        max_new_tokens: Longest response.
        temperature: Of the logits; 0 takes the likeliest token each time.
        batch_size: Sequences at a time.
    """
    training = model.training
    model.eval()
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    drawn = []
    longest = max(len(ids) for ids in tokenizer(list(prompts)).input_ids)
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(
            list(prompts[start : start + batch_size]),
            return_tensors="pt",
            padding="max_length",
            max_length=longest,
        ).to(model.device)
        tokens = model.generate(  # type: ignore[operator]
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **(how or {"do_sample": False}),
        )
        missing = longest + max_new_tokens - tokens.shape[1]  # where all of a batch ended early
        drawn.append(
            (torch.nn.functional.pad(tokens, (0, missing), value=tokenizer.pad_token_id), batch.attention_mask)
        )
    model.train(training)
    tokens, prompt_mask = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    targets = tokens[:, longest:]
    ends = (targets == tokenizer.eos_token_id).long()
    response_mask = ends.cumsum(1) - ends == 0  # up to the first end
    length = int(response_mask.sum(1).max())
    tokens, response_mask = tokens[:, : longest + length], response_mask[:, :length]
    kept = torch.where(response_mask, tokens[:, longest:], tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(kept, skip_special_tokens=True)
    tokens = torch.cat([tokens[:, :longest], kept], 1)
    mask = torch.cat([prompt_mask.bool(), response_mask], 1)
    return Responses(tokens, mask, response_mask, texts, ends.any(1))


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
