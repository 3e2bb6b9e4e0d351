"""What stands for the model in TRL's loss: the policy whose log-probs are those at the scales of the responses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from entropyfloor.integrations.trl.head import log_probs_of
from entropyfloor.language import losses
from entropyfloor.torch import functional as F


class ScaledPolicy:
    """The model as `GRPOTrainer._compute_loss` calls it, once in each loss.

    TRL's loss compares the log-probs that it gets from the model with old ones, with those of the reference and
    with those of the sampler. Here it gets those at the scale of each response. Old ones have that scale too. To
    the others the difference of scaled and unscaled log-probs is added, with its gradient for the reference, so
    that TRL's differences are those of the unscaled policy. Entropies are unscaled.

    Args:
        trainer: The `ERAGRPOTrainer` whose loss this is.
        model: The model, as it is wrapped for distributed training.
        inputs: Micro-batch of a rollout.
    """

    def __init__(self, trainer: Any, model: Any, inputs: dict[str, Any]) -> None:
        self.trainer, self.model = trainer, trainer.scoring(model)
        self.inputs = dict(inputs)
        """The micro-batch for TRL's loss, which reads log-probs after it has called the model."""
        self.loss: Tensor | float = 0.0
        """Terms that TRL's loss lacks."""

    def __call__(self, **arguments: Any) -> FusedCausalLMOutput:
        """Output of the model, at the scales."""
        trainer, inputs, output = self.trainer, self.inputs, self.model(**arguments)
        length = inputs["completion_ids"].shape[1]
        mask, advantages = loss_mask(inputs), inputs["advantages"]
        scale = inputs.get("era_scale")
        if scale is None or not trainer.args.freeze_scale:
            # Without old log-probs the policy is still the one that sampled, and has the entropies of the rollout.
            entropies = output.entropy[:, -length:].detach()
            scale = trainer.choose_scale(entropies, mask, advantages)
            trainer.log_rollout(entropies, mask, scale)
        if trainer.args.inert:
            return output
        scores = output.log_probs[:, -length:]
        unscaled = scores[..., 0]
        scaled = log_probs_of(scores, scale, None if trainer.stage.top_k is None else advantages > 0)
        self._compare(unscaled, scaled, mask)
        if trainer.args.scale_advantages:
            inputs["advantages"] = F.scale_advantages(advantages, scale)
        if "era_used" in inputs:
            inputs["advantages"] = inputs["advantages"].view(len(mask), -1) * inputs["era_used"]
        return FusedCausalLMOutput(log_probs=scaled, entropy=output.entropy, aux_loss=output.aux_loss)

    def _compare(self, unscaled: Tensor, scaled: Tensor, mask: Tensor) -> None:
        """Replace what TRL compares the scaled log-probs with, and compute what it lacks."""
        trainer, inputs, difference = self.trainer, self.inputs, scaled - unscaled
        old: Any = inputs.get("old_per_token_logps")
        old_scaled: Any = inputs.get("era_old_per_token_logps")
        if old is not None:
            inputs.setdefault("sampling_per_token_logps", old)
            inputs["old_per_token_logps"] = old_scaled
        if "sampling_per_token_logps" in inputs:
            inputs["sampling_per_token_logps"] = inputs["sampling_per_token_logps"] + difference.detach()
        terms: list[Tensor] = []
        if trainer.beta:
            reference = inputs["ref_per_token_logps"]
            inputs["ref_per_token_logps"] = reference + difference
            if trainer.args.use_bias_correction_kl:  # TRL multiplies its KL divergence with the scaled ratio
                correction = self._ratios(unscaled, old, mask) - self._ratios(scaled, old_scaled, mask)
                terms.append(trainer.beta * correction * losses.kl_terms(unscaled, reference, mask))
        if "era_penalised" in inputs:
            # Rounding differs between two passes, and the gradient of |log r| is 0 only where log r is 0.
            before = unscaled.detach() if trainer.on_policy else old
            penalty = losses.kl_terms(unscaled, before, inputs["era_penalised"], "abs")
            terms.append(trainer.args.kl_cov_coef * penalty)
        if terms:
            self.loss = losses.weighted_sum(torch.stack(terms).sum(0), self._weights(mask))

    def _ratios(self, log_probs: Tensor, old: Tensor | None, mask: Tensor) -> Tensor:
        """Ratios of tokens, or of their responses: unclipped policy terms with the advantage -1."""
        old, level = log_probs.detach() if old is None else old, self.trainer.importance_sampling_level
        unclipped: dict[str, Any] = {"clip_low": math.inf, "clip_high": math.inf, "ratio": level}
        return losses.policy_terms(log_probs, old, -mask.to(log_probs.dtype), mask, **unclipped)

    def _weights(self, mask: Tensor) -> Tensor:
        """Weights of tokens in TRL's loss."""
        trainer, kind = self.trainer, self.trainer.loss_type
        steps = trainer.current_gradient_accumulation_steps
        if kind in ("grpo", "sapo"):
            return losses.token_weights(mask, "sequence", total=len(mask) * steps)
        if kind == "dr_grpo":
            length = trainer.max_completion_length
            return losses.token_weights(mask, "length", max_length=length, total=len(mask) * steps)
        if kind == "luspo":  # the sum over tokens, and the mean over responses
            return losses.token_weights(mask, total=len(mask) * steps)
        if kind == "bnpo":
            return losses.token_weights(mask, total=mask.sum() * steps)
        everywhere = self.inputs["num_items_in_batch"] / trainer.accelerator.num_processes
        return losses.token_weights(mask, total=everywhere * steps / trainer.args.steps_per_generation)


def loss_mask(inputs: dict[str, Any]) -> Tensor:
    """Tokens of the responses that the model has written, `[B, T]`: not those of tools."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()
