"""Engine of a model behind a server that speaks OpenAI's protocol, through the `openai` client."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from entropyfloor.extras import require
from entropyfloor.language.sampling.engines.base import Request, Response, Sampling, Template, before_stop

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling parameters beyond OpenAI's protocol that turn off a checkpoint's or server's own defaults."""
LONGEST_WAIT = 300.0
"""Longest wait that a server's Retry-After is followed for, in seconds."""

log = logging.getLogger(__name__)


class RefusedError(ValueError):
    """The server refuses a request, and would refuse it again."""


class Server:
    """A model behind any server that speaks OpenAI's protocol, such as those of vLLM, SGLang and llama.cpp.

    Prompts go to `/completions` word for word; with the template `chat` the question goes to `/chat/completions`,
    and the server puts its own template around it. Whether a special token such as <|im_end|> ends a response is
    up to the server and its generation config. `NEUTRAL` asks it to leave out the sampling parameters that a
    checkpoint recommends; a server that does not know these fields is asked without them, which is logged. The key
    is `OPENAI_API_KEY` of the environment, which also names proxies.

    Retries are our own: those of the client wait 8 s at most, and a server that loads a model takes longer.

    Args:
        url: Address, such as http://localhost:8000/v1.
        model: Name of the model on the server.
        template: Text around each question.
        batch_size: Number of requests at a time.
        retries: Number of retries of a request when the server cannot be reached, is busy or fails.
        wait: Seconds before the first retry; each further wait is twice as long.
        timeout: Time limit of a response, in seconds.

    Raises:
        ValueError: `url` is no address.
        ImportError: The client is not installed.
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
        require("server", "openai")
        import openai

        key = os.environ.get("OPENAI_API_KEY")
        client = openai.OpenAI(base_url=url, api_key=key or "none", timeout=timeout, max_retries=0)
        self._chat = template.text is None
        completions: Any = client.chat.completions if self._chat else client.completions
        self._create: Callable[..., Any] = completions.with_raw_response.create
        self._headers = {} if key else {"Authorization": openai.Omit()}
        self._errors = openai.APIStatusError, openai.APIConnectionError
        self._endpoint = f"{url.rstrip('/')}/{'chat/completions' if self._chat else 'completions'}"
        self._model, self._template = model, template
        self._batch_size, self._retries, self._wait = batch_size, retries, wait
        self._neutral = NEUTRAL

    def prompt(self, question: str, instruction: str) -> str:
        """See `Engine`."""
        return self._template.fill(question, instruction)

    def tokens_left(self, prompt: str) -> int | None:  # noqa: ARG002
        """See `Engine`; the server refuses prompts that are too long."""
        return None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """See `Engine`. Where a request fails for good, the responses until then come before the error."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, Response | BaseException]] = queue.SimpleQueue()
        for index in range(len(requests)):
            waiting.put(index)
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results.put((index, self._ask(requests[index], sampling, stopped)))
                except BaseException as error:
                    results.put((index, error))

        for _ in range(min(self._batch_size, len(requests))):
            threading.Thread(target=work, daemon=True).start()  # daemons: Ctrl-C waits for no response
        left, failure = len(requests), None
        try:
            while left and not (failure and results.empty()):
                index, result = results.get()
                left -= 1
                if isinstance(result, Response):
                    yield index, result
                else:
                    failure = failure or result
                    stopped.set()
        finally:
            stopped.set()
        if failure:
            raise failure

    def _ask(self, request: Request, sampling: Sampling, stopped: threading.Event) -> Response:
        messages = [{"role": "user", "content": request.prompt}]
        body = {
            "model": self._model,
            **({"messages": messages} if self._chat else {"prompt": request.prompt}),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
            **({"stop": list(self._template.stop)} if self._template.stop else {}),
        }
        try:
            answer = self._post(body, self._neutral, stopped)
        except RefusedError as refused:
            if not any(name in str(refused) for name in NEUTRAL):
                raise
            if self._neutral:
                self._neutral = {}
                message = "%s does not know %s: it may sample with values of its own"
                log.warning(message, self._endpoint, ", ".join(NEUTRAL))
            answer = self._post(body, {}, stopped)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self._chat else choice["text"]
            length = int(answer["usage"]["completion_tokens"])
            cut = choice["finish_reason"] == "length"
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(
                f"{self._endpoint} does not speak OpenAI's protocol: no choice, finish_reason or usage in "
                f"{str(answer)[:200]}"
            ) from None
        return Response(before_stop(text or "", self._template.stop), length, cut)

    def _post(self, body: Mapping[str, Any], more: Mapping[str, Any], stopped: threading.Event) -> Any:
        """The server's answer as JSON, after retries."""
        for attempt in range(self._retries + 1):
            wait = self._wait * 2**attempt
            try:
                answer = self._create(**body, extra_body=more, extra_headers=self._headers)
                return answer.http_response.json()
            except self._errors as error:
                failure = f"{type(error.__cause__).__name__}: {error.__cause__}"
                if (response := getattr(error, "response", None)) is not None:
                    failure = f"{response.status_code}: {response.text[:300].strip()}"
                    if response.status_code not in (408, 409, 429) and response.status_code < 500:
                        raise RefusedError(
                            f"{self._endpoint} refuses with {failure}. Does it serve {self._model}, is the prompt "
                            f"with --max-tokens longer than its context, or is OPENAI_API_KEY wrong?"
                        ) from None
                    wait = max(wait, _seconds(response.headers.get("Retry-After")))
            except json.JSONDecodeError as error:
                failure = f"{type(error).__name__}: {error}"
            if attempt == self._retries or stopped.wait(wait):
                break
        raise ConnectionError(
            f"{self._endpoint} gave no answer, asked {attempt + 1} times ({failure}): is the server up? The same "
            f"command goes on with what is missing"
        )


def _seconds(text: str | None) -> float:
    """Seconds of a Retry-After; 0 where it is a date."""
    try:
        return min(float(text or 0), LONGEST_WAIT)
    except ValueError:
        return 0.0
