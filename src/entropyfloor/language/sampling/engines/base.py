"""Engine protocol, requests and responses, and prompt templates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

EngineName = Literal["transformers", "vllm", "server"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class Request(NamedTuple):
    """A prompt, and the seed of one response to it."""

    prompt: str
    seed: int


class Sampling(NamedTuple):
    """How responses are sampled."""

    temperature: float
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float
    """Probability of the likeliest tokens that are sampled from; 1 for all."""
    max_tokens: int
    """Length of the longest response, in tokens; shorter where the context leaves fewer."""


class Response(NamedTuple):
    """A response of a model."""

    text: str
    length: int
    """Number of tokens, without the one that ends the response; a server counts in its own way."""
    cut: bool
    """Whether the response was cut off at the limit."""


class Engine(Protocol):
    """A model that responds to prompts."""

    def prompt(self, question: str, instruction: str) -> str:
        """The prompt for a question."""

    def tokens_left(self, prompt: str) -> int | None:
        """Number of tokens that the context leaves for a response; None where only a server knows."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """One response to each request, behind the request's index, in the order in which they arrive."""


# --- prompts ---------------------------------------------------------------------------------------------


class Template(NamedTuple):
    """Text around a question."""

    name: str
    text: str | None
    """Text with `{question}`, and with `{instruction}` for the benchmark's instruction; None stands for the chat
    template of the model's tokenizer."""
    stop: tuple[str, ...] = ()
    """Texts before which a response ends."""

    def fill(self, question: str, instruction: str) -> str:
        """The prompt; for a chat template, the content of the user's turn."""
        text = "{question}\n{instruction}" if self.text is None else self.text
        return text.replace("{instruction}", instruction).replace("{question}", question)


CHAT = "chat"
TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "qwen-math",
            "<|im_start|>system\n{instruction}<|im_end|>\n"
            "<|im_start|>user\n{question}<|im_end|>\n"
            "<|im_start|>assistant\n",
            ("<|im_end|>", "<|endoftext|>"),
        ),
        Template("question", "Question:\n{question}\n{instruction}\n\nAnswer:\n", ("\n\nQuestion:",)),
        Template(CHAT, None),
        Template("none", "{question}"),
    )
}


def template(name: str) -> Template:
    """A template by its name, from a file, or from its text.

    Args:
        name: One of `TEMPLATES`, a file, or a text with `{question}` in it.

    Raises:
        ValueError: It is none of these, or a file without `{question}`.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    text, title = name, "own"
    if "{question}" not in name:
        file = Path(name)
        if not os.path.isfile(file):  # False, too, for a text that is too long for a file name
            raise ValueError(
                f"template {name!r} must be one of {', '.join(TEMPLATES)}, a file, or a text with {{question}} in "
                f"it"
            )
        text, title = file.read_text(), file.name
        if "{question}" not in text:
            raise ValueError(f"template {name} has no {{question}} in it: every problem would get the same prompt")
    return Template(title, text)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
