"""Base class of the engines that run a model themselves: tokens of prompts, and what ends a response."""

from __future__ import annotations

import entropyfloor.language.model  # noqa: F401

# isort: split

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from entropyfloor.language.encoding import encode, render, turn_end
from entropyfloor.language.model.files import NO_CODE, reading, tokenizer_of
from entropyfloor.language.model.forward import context_of
from entropyfloor.language.sampling.engines.base import CHAT, TEMPLATES, Template


class LocalEngine:
    """Tokens of prompts, and what ends a response.

    Args:
        model: A directory, or a name on the hub.
        template: Text around each question.
        context: Number of tokens of prompt and response together, if it differs from the model's config.

    Raises:
        ValueError: There is no such model, or it has no chat template where one is needed.
    """

    def __init__(self, model: str, template: Template, context: int | None) -> None:
        self.tokenizer, self.config = read_tokenizer(model)
        self.template = template
        self.rows: int | None = None
        if template.text is None and not self.tokenizer.chat_template:
            others = ", ".join(name for name in TEMPLATES if name != CHAT)
            raise ValueError(f"model {model}: its tokenizer has no chat template; choose another of {others}")
        self.context = context_of(self.config, context)
        # A stop that is one token never shows in the text: it ends a response as the end of sequence does.
        self.ends = {self.tokenizer.eos_token_id} - {None}
        if template.text is None:
            self.ends |= turn_end(self.tokenizer)
        self.stop: list[str] = []
        for stop in template.stop:
            if stop in self.tokenizer.get_vocab():
                self.ends.add(self.tokenizer.convert_tokens_to_ids(stop))
            else:
                self.stop.append(stop)

    def prompt(self, question: str, instruction: str) -> str:
        """See `Engine`."""
        text = self.template.fill(question, instruction)
        if self.template.text is not None:
            return text
        return render(self.tokenizer, [{"role": "user", "content": text}])

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt; a chat template has written the special tokens itself."""
        special = self.template.text is not None
        return encode(self.tokenizer, [prompt], rows=self.rows, special=special)[0]

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def tokens_left(self, prompt: str) -> int | None:
        """See `Engine`."""
        return None if self.context is None else self.context - len(self.encode(prompt))

    def limit(self, length: int, max_tokens: int) -> int:
        """Number of tokens that a response may have behind a prompt of `length` tokens."""
        if self.context is not None and length >= self.context:
            raise ValueError(
                f"a prompt of {length} tokens leaves no room in a context of {self.context}: choose a shorter "
                f"template, or give --context if the model takes more than its config says"
            )
        return max_tokens if self.context is None else min(max_tokens, self.context - length)


def read_tokenizer(model: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """Read the tokenizer and the config of a model: a directory, or a name on the hub.

    Raises:
        ValueError: There is no such model.
    """
    path = Path(model)
    if (path.is_absolute() or model.startswith(".")) and not path.exists():
        raise ValueError(f"model {model}: there is no such directory; give one, or a name on the hub")
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(
            f"model {model} has no config.json: give a directory that transformers' `save_pretrained` has written"
        )
    with reading(model, "cannot be loaded"):
        return tokenizer_of(model), AutoConfig.from_pretrained(model, **NO_CODE)
