"""Engine of a model in this process, loaded by transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.language.model.files import model_of, reading, without_bars
from entropyfloor.language.model.forward import device_of, ends_of, rows_of
from entropyfloor.language.sampling.checks import check_sampling
from entropyfloor.language.sampling.decoding import Written, decode
from entropyfloor.language.sampling.engines.base import (
    DtypeName,
    Request,
    Response,
    Sampling,
    Template,
    before_stop,
)
from entropyfloor.language.sampling.engines.local import LocalEngine


class Transformers(LocalEngine):
    """A model in this process: batches are padded on the left, and keys and values are cached.

    Args:
        model, template, context: See `LocalEngine`.
        batch_size: Number of responses that are generated together.
        dtype: Precision of the weights; `auto` is the checkpoint's own on an accelerator, and float32 on a CPU.
        device: Device, such as cuda:1; auto is the accelerator, if there is one.
    """

    def __init__(
        self,
        model: str,
        template: Template,
        *,
        batch_size: int = 16,
        context: int | None = None,
        dtype: DtypeName = "auto",
        device: str = "auto",
    ) -> None:
        super().__init__(model, template, context)
        self._device = device_of(device)
        chosen = "float32" if dtype == "auto" and self._device.type == "cpu" else dtype
        with reading(model, "has no weights that can be loaded"), without_bars():
            loaded: Any = model_of(model, chosen)
            self.ends |= ends_of(loaded)
        self._model = loaded.to(self._device).eval()
        self.rows = rows_of(self._model)
        check_sampling(self._model)
        self._batch_size = batch_size

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
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
        return [self._response(row) for row in written]

    def _stops(self, tokens: list[int]) -> bool:
        # A stop has no more tokens than bytes, so only that many can be new.
        tail = self.decode(tokens[-max(len(stop.encode()) for stop in self.stop) - 1 :])
        return any(stop in tail for stop in self.stop)

    def _response(self, written: Written) -> Response:
        tokens = written.tokens[:-1] if written.tokens[-1] in self.ends else written.tokens
        return Response(before_stop(self.decode(tokens), self.stop), len(tokens), cut=not written.ended)
