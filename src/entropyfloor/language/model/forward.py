"""Forward passes of causal language models up to the last layer, which `token_log_probs` applies itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from entropyfloor.extras import brief
from entropyfloor.runs.settings import Precision

if TYPE_CHECKING:
    from jaxtyping import Float, Int

IGNORED = -100
"""Target at padding."""


class Head(NamedTuple):
    """The last layer of a language model, as `token_log_probs` takes it."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None
    factor: float = 1.0
    """Number that the model multiplies its logits by, before a soft cap."""

    def scaling(self, temperature: float = 1.0) -> dict[str, Any]:
        """Arguments `temperature` and `softcap` of `token_log_probs`, which has none for a factor."""
        # c tanh(f z / c) / T = c' tanh(z / c') / T' with c' = c / f and T' = T / f.
        softcap = None if self.softcap is None else self.softcap / self.factor
        return {"temperature": temperature / self.factor, "softcap": softcap}


def device_of(name: str) -> torch.device:
    """The device with a name; `auto` is an accelerator where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # needs the driver and memory
    except (RuntimeError, AssertionError, ImportError) as error:  # AssertionError: PyTorch is built without CUDA
        raise ValueError(
            f"device={name} cannot be used here ({brief(error)}): give --device cpu, or auto for what there is"
        ) from None
    return device


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which a model runs: mixed precision for bf16, the precision of its weights for fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def context_of(config: PreTrainedConfig, given: int | None = None) -> int | None:
    """Limit of prompt and response together, in tokens: as given, or that of the config, which may have none."""
    return given or getattr(config.get_text_config(), "max_position_embeddings", None)


def ends_of(model: PreTrainedModel) -> set[int]:
    """Tokens that end a response of a model; chat models often have several.

    Raises:
        ValueError: The generation config has something other than tokens.
    """
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(end, int) for end in ends):
        raise ValueError(f"the generation config has eos_token_id={given!r}: it must be tokens")
    return set(ends)


def rows_of(model: PreTrainedModel) -> int:
    """Number of tokens that a model can read; its tokenizer may have more."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def head_of(model: PreTrainedModel) -> Head:
    """The last layer of a model; where PEFT trains a copy of it (`modules_to_save`), the one in use.

    Raises:
        ValueError: It is not a linear layer, or its logits are multiplied by a number that is not positive.
    """
    layer: Any = model.get_output_embeddings()  # PEFT's wrapper has the attributes of the layer in use
    plain = layer.original_module if hasattr(layer, "modules_to_save") else layer
    if not isinstance(plain, torch.nn.Linear):
        raise ValueError(
            f"the last layer of {type(model).__name__} is {type(plain).__name__}: it must be a Linear"
        )
    config: Any = model.config.get_text_config()
    return Head(layer.weight, layer.bias, getattr(config, "final_logit_softcapping", None), logit_factor(config))


def logit_factor(config: Any) -> float:
    """The number that a model multiplies its logits by, 1 for most; families have their own names for it.

    Raises:
        ValueError: It is not positive.
    """
    if config.model_type == "mpt":  # its `logit_scale` has no effect in transformers
        return 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"):
        if (value := getattr(config, name, None)) is None:
            continue
        if not value > 0:
            raise ValueError(f"{name}={value} of the model's config, a factor of logits, must be positive")
        divides = name == "logits_scaling" and config.model_type != "hyperclovax"
        return 1 / value if divides else float(value)
    return 1.0


def hidden_states(
    model: PreTrainedModel, tokens: Int[Tensor, "B L"], mask: Float[Tensor, "B L"]
) -> Float[Tensor, "B L D"]:
    """Input of the last layer for left-padded sequences; positions count from the first real token."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    backbone: Any = model.get_decoder()
    hidden: Tensor = backbone(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)[0]
    return hidden


def logits_of(hidden: Float[Tensor, "*B D"], head: Head) -> Float[Tensor, "*B V"]:
    """Logits of the last layer, in the precision of its weights."""
    logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    logits = logits if head.factor == 1 else head.factor * logits
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


class Policy:
    """A model as `decode` calls it. Under mixed precision its logits still have the precision of its last layer.

    So have those of an update: rounding logits to bf16 changes them by up to 0.06, which makes another policy.

    Args:
        model: A causal language model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.device = model.device
        self._backbone: Any = model.get_decoder()
        self._head = head_of(model)

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits of the next token, and the cache."""
        output = self._backbone(**inputs)
        with torch.autocast(self.device.type, enabled=False):
            logits = logits_of(output[0][:, -1:], self._head)
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    __call__ = forward
