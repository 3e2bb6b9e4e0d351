"""The last layer of a model under ERA, inside of the model's own forward pass."""

from __future__ import annotations

import functools
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import FusedCausalLMOutput

from entropyfloor.language.model.forward import IGNORED, Head, head_of
from entropyfloor.torch import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeadOptions(NamedTuple):
    """Arguments of the head."""

    k: float
    """Scale of Eq. 16; 1 where no response is scaled."""
    temperature: float
    """Temperature of sampling."""
    top_k: int | None
    """Number of logits kept; None for all."""
    float32: bool
    """Whether the layer is computed in float32 under mixed precision, TRL's `cast_lm_head_to_fp32`."""


def add_era_head(model: PreTrainedModel) -> None:
    """Let `model(…, labels=labels, era=HeadOptions(…))` return log-probs at every scale of ERA, and entropies.

    TRL's `add_fused_lm_head` gives a model its own head in the same way. The head is in the forward pass of the
    model, where DDP and FSDP expect every use of a parameter, and each pass needs the same collectives, whatever
    the scales. Without `era` the forward pass is the one that the model has.

    Args:
        model: Causal language model, before it is wrapped for distributed training; with PEFT, the base model.

    Raises:
        ValueError: The last layer is not linear, or its logits are multiplied by a number that is not positive.
    """
    config: Any = model.config.get_text_config()
    usual = model.forward
    head_of(model)

    @functools.wraps(usual)
    def forward(self: Any, *args: Any, era: HeadOptions | None = None, **kwargs: Any) -> Any:
        if era is None:
            return usual(*args, **kwargs)
        labels = kwargs.pop("labels")
        kwargs.pop("fused_lm_head", None)
        output = self.base_model(*args, **kwargs | {"use_cache": False})
        scores = token_scores(output.last_hidden_state[:, :-1], head_of(self), labels[:, 1:], era)
        if kwargs.get("output_router_logits"):
            # GPT-OSS has their number in the model only, before transformers 5.6.
            number = getattr(config, "num_experts", None) or self.num_experts
            experts = number, config.num_experts_per_tok
            scores.aux_loss = load_balancing_loss_func(output.router_logits, *experts, kwargs["attention_mask"])
        return scores

    model.forward = MethodType(forward, model)


def token_scores(hidden: Tensor, head: Head, targets: Tensor, options: HeadOptions) -> FusedCausalLMOutput:
    """Log-probs `[B, L, S]` at S scales, and entropies `[B, L]` of the unscaled policy.

    Both are 0 where a target is ignored. The scales are those of `token_log_probs_all_scales`: 1, k and 1/k, from
    all logits, and with `top_k` also from the largest ones. Only targets are computed, as TRL does where it has
    Triton.

    Args:
        hidden: Last hidden states, `[B, L, D]`.
        head: The last layer.
        targets: Next tokens, `[B, L]`.
        options: Arguments of the head.
    """
    hidden, targets = hidden.to(head.weight.device), targets.to(head.weight.device)
    scored = targets != IGNORED
    kind = hidden.device.type
    weight, bias = _whole(head.weight), None if head.bias is None else _whole(head.bias)
    if torch.is_autocast_enabled(kind) and not options.float32:  # as a linear layer
        precision = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(precision), weight.to(precision)
    scaled = options.k > 1
    scale: dict[str, Any] = {"k": options.k} if scaled else {}
    at_scales = functools.partial(
        F.token_log_probs_all_scales if scaled else F.token_log_probs,
        hidden[scored],
        weight,
        targets[scored],
        **scale,
        bias=bias,
        **head.scaling(options.temperature),
    )
    with torch.autocast(kind, enabled=False):
        log_probs, entropy = at_scales()
        if not scaled:
            log_probs = log_probs.expand(3, -1)
        if options.top_k is not None:
            log_probs = torch.cat([log_probs, at_scales(top_k=options.top_k)[0]])
    # This keeps the graph to the model also where nothing is scored, so that all processes have a backward pass.
    all_log_probs = log_probs.new_zeros((*scored.shape, len(log_probs))).masked_scatter(
        scored[..., None], log_probs.T.contiguous()
    )
    return FusedCausalLMOutput(
        log_probs=all_log_probs, entropy=entropy.new_zeros(scored.shape).masked_scatter(scored, entropy)
    )


def log_probs_of(scores: Tensor, scale: Tensor, filtered: Tensor | None) -> Tensor:
    """Log-probs `[B, T]` at the scale of each response or token.

    Args:
        scores: Log-probs of `token_scores`.
        scale: From `choose_scale`, `[B]` or `[B, T]`.
        filtered: Responses that only keep the largest logits, `[B]`; for scores with `top_k`.
    """
    by_scale, scale = scores.movedim(-1, 0), scale.view(len(scale), -1)
    log_probs = F.log_probs_at(by_scale[:3], scale)
    if filtered is None:
        return log_probs
    return torch.where(filtered[:, None], F.log_probs_at(by_scale[3:], scale), log_probs)


def _whole(parameter: Tensor) -> Tensor:
    """A parameter that FSDP2 still has in shards, from all processes; its gradient is the mean of theirs."""
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
