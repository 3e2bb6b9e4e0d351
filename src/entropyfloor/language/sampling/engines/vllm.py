"""Engine of a model that vLLM runs in this process."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from entropyfloor.language.model.files import NO_CODE
from entropyfloor.language.sampling.engines.base import DtypeName, Request, Response, Sampling, Template
from entropyfloor.language.sampling.engines.local import LocalEngine


class VLLM(LocalEngine):
    """A model through vLLM, where that is installed.

    Args:
        model, template, context: See `LocalEngine`; a smaller context takes less memory.
        batch_size: Number of responses that are requested together; vLLM decides how many it generates at once.
        dtype: Precision of the weights.
        devices: Number of GPUs that the model is split over.

    Raises:
        ImportError: vLLM is not installed.
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

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """See `Engine`."""
        for start in range(0, len(requests), self._batch_size):
            batch = requests[start : start + self._batch_size]
            prompts = [self.encode(request.prompt) for request in batch]
            parameters = [
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
            for index, result in enumerate(self._llm.generate(inputs, parameters, use_tqdm=False), start):
                (output,) = result.outputs
                tokens = list(output.token_ids)
                while tokens and tokens[-1] in self.ends:
                    tokens.pop()
                yield index, Response(output.text, len(tokens), output.finish_reason == "length")
