"""From a question to responses: what a model is shown, and the engines that let it answer.

Sampling is from the model's own distribution, at a temperature: what else a checkpoint recommends for itself, such
as top-k or a repetition penalty, is left out, and nothing of ERA is applied. Each request has a seed of its own,
so that a response does not depend on what it is batched with, except for the rounding of batched matrix products.
"""

from __future__ import annotations

from entropyfloor.language import libraries  # noqa: F401

# isort: split

import importlib
import json
import logging
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.language.model import (
    NO_CODE,
    context_of,
    device_of,
    ends_of,
    reading,
    rows_of,
    without_bars,
)
from entropyfloor.language.sampling.decoding import Written, decode
from entropyfloor.language.sampling.encoding import encode, render, turn_end
from entropyfloor.language.support import check_sampling

log = logging.getLogger(__name__)

EngineName = Literal["transformers", "vllm", "server"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class Request(NamedTuple):
    """A prompt, and the seed of one response to it."""

    prompt: str
    seed: int


class Sampling(NamedTuple):
    """How responses are drawn."""

    temperature: float
    """0 takes the likeliest token."""
    top_p: float
    """Probability of the likeliest tokens that are drawn from; 1 for all."""
    max_tokens: int
    """Longest response; shorter where the context leaves less room."""


class Response(NamedTuple):
    """What a model answered."""

    text: str
    length: int
    """Tokens, without the one that ends it; a server counts in its own way."""
    cut: bool
    """Whether it reached the limit before its end."""


Answered = tuple[int, Response]
"""The place of a request among those that were asked, and the response to it."""


# --- prompts ---------------------------------------------------------------------------------------------


class Template(NamedTuple):
    """What stands around a question."""

    name: str
    text: str | None
    """With `{question}`, and `{instruction}` where the benchmark's instruction belongs; None is the chat template
    of the model's tokenizer."""
    stop: tuple[str, ...] = ()
    """A response ends before any of these."""

    def fill(self, question: str, instruction: str) -> str:
        """The prompt; of a chat template what the user says."""
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
    """A template by its name, from a file, or in so many words.

    Args:
        name: One of `TEMPLATES`, a file, or a text with `{question}` in it.

    Raises:
        ValueError: It is none of these, or a file without `{question}`.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    text, called = name, "own"
    if "{question}" not in name:
        file = Path(name)
        if not os.path.isfile(file):  # False, too, for a text that is too long for a name
            raise ValueError(
                f"template {name!r} must be one of {', '.join(TEMPLATES)}, a file, or a text with {{question}} in "
                f"it"
            )
        text, called = file.read_text(), file.name
        if "{question}" not in text:
            raise ValueError(f"template {name} has no {{question}} in it: every problem would be asked alike")
    return Template(called, text)


# --- engines ---------------------------------------------------------------------------------------------


class Engine(Protocol):
    """Something that answers."""

    def prompt(self, question: str, instruction: str) -> str:
        """What the model is shown."""

    def room(self, prompt: str) -> int | None:
        """Tokens that its context leaves for a response; None where only a server knows."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answered]:
        """One response to each request, as they come."""


def read_tokenizer(model: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and config of a model, by its path or its name on the hub.

    Raises:
        ValueError: There is none.
    """
    path = Path(model)
    if (path.is_absolute() or model.startswith(".")) and not path.exists():
        raise ValueError(f"model {model}: there is no such directory; give one, or a name on the hub")
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(
            f"model {model} has no config.json: give a directory that transformers' `save_pretrained` has written"
        )
    with reading(model, "cannot be loaded"):
        return AutoTokenizer.from_pretrained(model, **NO_CODE), AutoConfig.from_pretrained(model, **NO_CODE)


class _Tokens:
    """Prompts as tokens, and what ends a response: what the engines share that run a model themselves."""

    def __init__(self, model: str, template: Template, context: int | None) -> None:
        self.tokenizer, self.config = read_tokenizer(model)
        self.template = template
        self.rows: int | None = None
        if template.text is None and not self.tokenizer.chat_template:
            others = ", ".join(name for name in TEMPLATES if name != CHAT)
            raise ValueError(f"model {model}: its tokenizer has no chat template; choose another of {others}")
        self.context = context_of(self.config, context)
        # A stop that is one token of its own never shows in the text: it ends a response as the model's end does.
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
        said = self.template.fill(question, instruction)
        if self.template.text is not None:
            return said
        return render(self.tokenizer, [{"role": "user", "content": said}])

    def encode(self, prompt: str) -> list[int]:
        """A chat template has put the special tokens there itself."""
        special = self.template.text is not None
        return encode(self.tokenizer, [prompt], rows=self.rows, special=special)[0]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def room(self, prompt: str) -> int | None:
        return None if self.context is None else self.context - len(self.encode(prompt))

    def limit(self, length: int, max_tokens: int) -> int:
        """Tokens of a response behind a prompt of `length` tokens."""
        if self.context is not None and length >= self.context:
            raise ValueError(
                f"a prompt of {length} tokens leaves no room in a context of {self.context}: choose a shorter "
                f"template, or give --context if the model takes more than its config says"
            )
        return max_tokens if self.context is None else min(max_tokens, self.context - length)


class Transformers(_Tokens):
    """A model in this process, through transformers: batches padded on the left, with a cache of keys and values.

    Args:
        model: A directory, or a name on the hub.
        template: Around each question.
        batch_size: Responses at a time.
        context: Tokens of prompt and response together, if not what the model's config says.
        dtype: Of the weights; `auto` is the checkpoint's own on an accelerator, and float32 on a CPU.
        device: Such as cuda:1; by default the accelerator, if there is one.

    Raises:
        ValueError: No such model, or no chat template where one is asked for.
    """

    def __init__(
        self,
        model: str,
        template: Template,
        *,
        batch_size: int = 16,
        context: int | None = None,
        dtype: DtypeName = "auto",
        device: str | None = None,
    ) -> None:
        super().__init__(model, template, context)
        self._device = device_of(device or "auto")
        chosen = "float32" if dtype == "auto" and self._device.type == "cpu" else dtype
        with reading(model, "has no weights that can be loaded"), without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=chosen, **NO_CODE)
            self.ends |= ends_of(loaded)
        self._model = loaded.to(self._device).eval()
        self.rows = rows_of(self._model)
        check_sampling(self._model)
        self._batch_size = batch_size

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answered]:
        """See `Engine`."""
        for start in range(0, len(requests), self._batch_size):
            with out_of_memory_hint(f"give a --batch-size below {self._batch_size}; the same command goes on"):
                yield from enumerate(self._batch(requests[start : start + self._batch_size], sampling), start)

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        prompts = [self.encode(request.prompt) for request in requests]
        written = decode(
            self._model,
            prompts,
            limits=[self.limit(len(prompt), sampling.max_tokens) for prompt in prompts],
            seeds=[request.seed for request in requests],
            ends=self.ends,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=self._stops if self.stop else None,
        )
        return [self._response(each) for each in written]

    def _stops(self, tokens: list[int]) -> bool:
        # A stop is no longer than as many tokens as it has bytes; only those can be new.
        tail = self.decode(tokens[-max(len(stop.encode()) for stop in self.stop) - 1 :])
        return any(stop in tail for stop in self.stop)

    def _response(self, written: Written) -> Response:
        tokens = written.tokens[:-1] if written.tokens[-1] in self.ends else written.tokens
        return Response(_before(self.decode(tokens), self.stop), len(tokens), cut=not written.ended)


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class VLLM(_Tokens):
    """A model through vLLM, where that is installed.

    Args:
        model: A directory, or a name on the hub.
        template: Around each question.
        batch_size: Responses that are asked for, and come back, together; how many it works on at once it decides
            itself.
        context: As for `Transformers`; fewer take less memory.
        dtype: Of the weights.
        devices: GPUs that the model is split over.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: As for `Transformers`.
    """

    def __init__(
        self,
        model: str,
        template: Template,
        *,
        batch_size: int = 1024,
        context: int | None = None,
        dtype: DtypeName = "auto",
        devices: int = 1,
    ) -> None:
        try:
            vllm: Any = importlib.import_module("vllm")
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{error.name!r} is not installed: pip install vllm brings it where there is a GPU; or serve the "
                f"model elsewhere and give --engine server, or take --engine transformers"
            ) from None
        super().__init__(model, template, context)
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=model, dtype=dtype, max_model_len=context, tensor_parallel_size=devices, **NO_CODE
        )
        self._batch_size = batch_size

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answered]:
        """See `Engine`."""
        for start in range(0, len(requests), self._batch_size):
            batch = requests[start : start + self._batch_size]
            prompts = [self.encode(request.prompt) for request in batch]
            settings = [
                self._vllm.SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=self.limit(len(prompt), sampling.max_tokens),
                    seed=request.seed,
                    stop=self.stop or None,
                    stop_token_ids=sorted(self.ends),
                )
                for prompt, request in zip(prompts, batch, strict=True)
            ]
            inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
            for place, answered in enumerate(self._llm.generate(inputs, settings, use_tqdm=False), start):
                (one,) = answered.outputs
                tokens = list(one.token_ids)
                while tokens and tokens[-1] in self.ends:
                    tokens.pop()
                yield place, Response(one.text, len(tokens), one.finish_reason == "length")


NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Beyond OpenAI's protocol. What is not given servers take from the checkpoint, or from defaults of their own."""


class RefusedError(ValueError):
    """A server does not want a request as it is."""


class Server:
    """A model behind any server that speaks OpenAI's protocol, such as those of vLLM, SGLang and llama.cpp.

    Prompts go to `/completions` word for word; with the template `chat` the question goes to `/chat/completions`,
    and the server's own template is around it. Whether a special token such as <|im_end|> ends a response is up to
    the server and its generation config. What that recommends for sampling is asked to be left out (`NEUTRAL`); a
    server that knows no such fields is told without, which is logged. A key is read from the environment,
    `OPENAI_API_KEY`.

    Args:
        url: Such as http://localhost:8000/v1.
        model: What the server calls it.
        template: Around each question.
        batch_size: Requests under way at once.
        retries: How often a request is tried again when the server cannot be reached, is busy or fails.
        wait: Seconds before the first of them; twice as many before each that follows.
        timeout: Seconds that a response may take.

    Raises:
        ValueError: The address is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        template: Template,
        *,
        batch_size: int = 32,
        retries: int = 6,
        wait: float = 1.0,
        timeout: float = 3600.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url {url!r} must be that of a server, such as http://localhost:8000/v1")
        self._url, self._model, self._template = url.rstrip("/"), model, template
        self._batch_size, self._retries, self._wait, self._timeout = batch_size, retries, wait, timeout
        self._neutral = NEUTRAL

    def prompt(self, question: str, instruction: str) -> str:
        """See `Engine`."""
        return self._template.fill(question, instruction)

    def room(self, prompt: str) -> int | None:  # noqa: ARG002
        """Nobody knows but the server, which refuses what is too long."""
        return None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answered]:
        """See `Engine`. Where a request fails for good, what was answered until then comes before the error."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        answered: queue.SimpleQueue[tuple[int, Response | BaseException]] = queue.SimpleQueue()
        for place in range(len(requests)):
            waiting.put(place)
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    place = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    answered.put((place, self._ask(requests[place], sampling, stopped)))
                except BaseException as error:
                    answered.put((place, error))

        for _ in range(min(self._batch_size, len(requests))):
            threading.Thread(target=work, daemon=True).start()  # daemons: Ctrl-C waits for no answer
        left, failure = len(requests), None
        try:
            while left and not (failure and answered.empty()):
                place, found = answered.get()
                left -= 1
                if isinstance(found, Response):
                    yield place, found
                else:
                    failure = failure or found
                    stopped.set()
        finally:
            stopped.set()
        if failure:
            raise failure

    def _ask(self, request: Request, sampling: Sampling, stopped: threading.Event) -> Response:
        chat = self._template.text is None
        asked = {"messages": [{"role": "user", "content": request.prompt}]} if chat else {"prompt": request.prompt}
        body = {
            "model": self._model,
            **asked,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
            **({"stop": list(self._template.stop)} if self._template.stop else {}),
        }
        place = f"{self._url}/{'chat/completions' if chat else 'completions'}"
        try:
            found = self._post(place, body | self._neutral, stopped)
        except RefusedError as refused:
            if not any(name in str(refused) for name in NEUTRAL):
                raise
            if self._neutral:
                self._neutral = {}
                log.warning("%s does not know %s: what it takes for them is up to it", place, ", ".join(NEUTRAL))
            found = self._post(place, body, stopped)
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
            length = int(found["usage"]["completion_tokens"])
            return Response(_before(text or "", self._template.stop), length, choice["finish_reason"] == "length")
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(
                f"{place} does not speak OpenAI's protocol: no choice, finish_reason or usage in "
                f"{str(found)[:200]}"
            ) from None

    def _post(self, place: str, body: Mapping[str, Any], stopped: threading.Event) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        asked = urllib.request.Request(place, json.dumps(body).encode(), headers)
        for attempt in range(self._retries + 1):
            wait = self._wait * 2**attempt
            try:
                with urllib.request.urlopen(asked, timeout=self._timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:300].strip()
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise RefusedError(
                        f"{place} refuses with {error.code}: {said}. Does it serve {self._model}, is the prompt "
                        f"with --max-tokens longer than its context, or is OPENAI_API_KEY wrong?"
                    ) from None
                failure = f"{error.code} {said}"
                wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except (OSError, HTTPException, json.JSONDecodeError) as error:
                failure = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
            if attempt == self._retries or stopped.wait(wait):
                break
        raise ConnectionError(
            f"{place} gave no answer, asked {attempt + 1} times ({failure}): is the server up? The same command "
            f"goes on with what is missing"
        )


def _seconds(text: str | None) -> float:
    """Of a Retry-After, which may also be a date."""
    try:
        return min(float(text or 0), 300.0)
    except ValueError:
        return 0.0


def engine(
    name: EngineName,
    model: str,
    template: Template,
    *,
    url: str | None = None,
    batch_size: int | None = None,
    context: int | None = None,
    dtype: DtypeName = "auto",
    device: str | None = None,
    devices: int = 1,
) -> Engine:
    """An engine by its name; see `Transformers`, `VLLM` and `Server` for the arguments.

    Raises:
        ValueError: A model that does not exist, or a server without an address.
        ImportError: vLLM is asked for and not installed.
    """
    size: dict[str, int] = {} if batch_size is None else {"batch_size": batch_size}
    model = os.path.expanduser(model)  # a shell leaves --model=~/mine as it is
    if name == "server":
        if url is None:
            raise ValueError("--engine server needs --url, such as http://localhost:8000/v1")
        return Server(url, model, template, **size)
    if name == "vllm":
        return VLLM(model, template, context=context, dtype=dtype, devices=devices, **size)
    return Transformers(model, template, context=context, dtype=dtype, device=device, **size)
