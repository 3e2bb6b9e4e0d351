"""The FSDP engine of verl with a scale for the logits of each response (Eq. 16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from verl.utils import tensordict_utils
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

from entropyfloor.torch.tokens import top_k_logits

if TYPE_CHECKING:
    from tensordict import TensorDict

STRATEGIES = ["fsdp", "fsdp2"]
"""Kinds of FSDP that the engine is for."""
SCALE = "era_scale"
"""Field of a batch: the scale of each response, [B]."""
TOP_K = "era_top_k"
"""Field of a batch: the number of largest logits that are kept, [B]; 0 keeps all."""


@EngineRegistry.register("language_model", backend=STRATEGIES, device="cuda", vendor="nvidia")
class ERAEngine(FSDPEngineWithLMHead):
    """An engine whose log-probs are those at `era_scale`; a batch without this field is computed as by verl's.

    verl divides the logits by a temperature for each response already; here it is that of sampling by the scale.
    """

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs of the model, and what `prepare_model_outputs` needs, with the temperature of each response."""
        if SCALE in micro_batch:
            micro_batch = micro_batch.copy()
            micro_batch["temperature"] = micro_batch["temperature"] / micro_batch[SCALE]
        return super().prepare_model_inputs(micro_batch)

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Callable
    ) -> dict[str, Any]:
        """Log-probs of the tokens, with `era_top_k` where it is given."""
        if TOP_K in micro_batch and (k := int(micro_batch[TOP_K].max())):
            rows, targets = _rows_and_targets(output.logits, output_args, micro_batch)
            output.logits = top_k_logits(output.logits, k, rows=rows, targets=targets)
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)


def _rows_and_targets(
    logits: torch.Tensor, output_args: dict[str, Any], micro_batch: TensorDict
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows of logits are filtered, and the next token of each: [1, tokens] packed, or [B, T] padded."""
    filtered, input_ids = micro_batch[TOP_K] > 0, micro_batch["input_ids"]
    targets, offsets = output_args["input_ids_rmpad_rolled"], input_ids.offsets()
    if tensordict_utils.get_non_tensor_data(micro_batch, "use_remove_padding", True):
        return filtered.repeat_interleave(offsets.diff())[None], targets[None]
    nested = torch.nested.nested_tensor_from_jagged(targets, offsets)
    targets = torch.nested.to_padded_tensor(nested, 0, output_size=logits.shape[:-1])
    return filtered[:, None].expand_as(targets), targets
