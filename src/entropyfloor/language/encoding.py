"""Encoding of prompts: chat templates, special tokens, and tokens outside of a model's embedding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "forty-two"
"""Placeholder answer, by which the end of a turn is located in a chat template."""

Turn = dict[str, str]
"""One turn of a chat: its `role` and its `content`."""

log = logging.getLogger(__name__)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, rows: int | None = None, special: bool = True
) -> list[list[int]]:
    """Encode prompts that a response will follow.

    Special tokens that the tokenizer adds stay, except a second beginning of the sequence and an end of the
    sequence behind the prompt; their removal is logged once.

    Args:
        tokenizer: Tokenizer of the model.
        prompts: Texts.
        rows: Number of tokens in the model's embedding; None skips the check.
        special: Whether the tokenizer adds special tokens; a chat template has written them itself.

    Returns:
        Token ids of each prompt.

    Raises:
        ValueError: A prompt has a token that is not in the embedding.
    """
    plain: list[list[int]] = tokenizer(list(prompts), add_special_tokens=False).input_ids
    encoded = plain
    if special:
        whole: list[list[int]] = tokenizer(list(prompts)).input_ids
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        encoded = [_once(tokens, own, begin, end) for tokens, own in zip(whole, plain, strict=True)]
        if encoded != whole:
            _warn_once(
                f"the tokenizer of {tokenizer.name_or_path} puts {tokenizer.bos_token} before prompts that begin "
                f"with it, or {tokenizer.eos_token} behind them: these are dropped"
            )
    if rows is not None:
        for prompt, tokens in zip(prompts, encoded, strict=True):
            if tokens and max(tokens) >= rows:
                raise ValueError(
                    f"token {max(tokens)} ({tokenizer.convert_ids_to_tokens(max(tokens))!r}) of the prompt "
                    f"{prompt[:80]!r} is outside of the model's embedding, which has {rows:,}: give the tokenizer "
                    f"that belongs to the model, or a prompt without it"
                )
    return encoded


def _once(tokens: list[int], own: list[int], begin: int | None, end: int | None) -> list[int]:
    """`tokens` with no more beginnings and ends of the sequence than the text's `own` tokens.

    Where the text has no beginning, the added one stays.
    """
    first = _leading(tokens, begin) - _leading(own, begin) if own[:1] == [begin] else 0
    tokens = tokens[first:]
    added_ends = _leading(tokens[::-1], end) - _leading(own[::-1], end)
    return tokens[: len(tokens) - added_ends]


def _leading(tokens: Sequence[int], token: int | None) -> int:
    """Number of times that `tokens` begin with `token`."""
    return next((at for at, other in enumerate(tokens) if other != token), len(tokens))


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, answer: bool = True) -> str:
    """Write a chat by the tokenizer's template.

    Args:
        tokenizer: Tokenizer of the model.
        turns: Turns of the chat.
        answer: Whether the beginning of the model's turn is written behind them.

    Raises:
        ValueError: The tokenizer has no template, or the template refuses these turns.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no chat template: give another template")
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=answer))
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} refuses the turns {roles} ({error}): repair the data, "
            f"or give another template"
        ) from None


def turn_end(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token that ends a turn in the chat template, if there is one; it may not be the end of sequence.

    Raises:
        ValueError: The tokenizer has no template.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    behind = render(tokenizer, turns, answer=False).partition(ANSWER)[2]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set([token for token in encode(tokenizer, [behind], special=False)[0] if token in special][:1])


@cache
def _warn_once(message: str) -> None:
    """Log a warning once per process."""
    log.warning("%s", message)
