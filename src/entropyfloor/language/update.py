"""Updates of a language model by RL: functions from model, batch and hyperparameters to losses and metrics.

    rollout = evaluate_rollout(model, reference, responses, advantages, hyperparameters)
    batch, metrics = batch_of(rollout, hyperparameters)
    for loss, metrics in policy_losses(model, batch, hyperparameters, generator, on_policy=True):
        loss.backward()

Nothing here steps an optimiser or changes the mode of a model. ERA is in the log-probabilities of the loss only;
the policy that samples and is evaluated is the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from entropyfloor.language import losses
from entropyfloor.language.metrics import mean_entropies, rollout_metrics
from entropyfloor.language.model.forward import IGNORED, autocast, head_of, hidden_states
from entropyfloor.language.sampling.rollout import Responses, parts
from entropyfloor.runs.settings import Precision
from entropyfloor.torch import functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of an update. Those that `LanguageConfig` has too mean the same here."""

    temperature: float = 1.0
    precision: Precision = "fp32"
    micro_batch: int = 256
    top_fraction: float = 0.2

    surrogate: Literal["clipped", "cispo"] = "clipped"
    """Policy loss: `policy_terms` or `cispo_terms`."""
    ratio: losses.Ratio = "token"
    """Probability ratio of each token, or of whole responses."""
    mean: losses.Mean = "token"
    """Mean over tokens that the loss takes."""
    max_length: int | None = None
    """Constant length of the mean `length`."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    forking: float = 1.0
    kl_cov: float = 0.0
    kl_cov_coef: float = 1.0
    clip_cov: float = 0.0

    era: bool = False
    """Whether log-probabilities of the loss are those at scaled logits (Eq. 16)."""
    omega_low: float = 0.0
    """ω_low of this stage, in nats."""
    omega_high: float = math.inf
    """ω_high of this stage, in nats."""
    top_k: int | None = None
    """Number of logits that this stage keeps where the advantage is positive; None for all."""
    k: float = 2.0
    scale_all: bool = False
    """Whether responses are scaled by k whatever their entropy, as a controller of k wants it."""
    min_advantage: float = 0.0
    era_signs: Literal["positive", "both"] = "positive"
    era_tokens: Literal["all", "forking"] = "all"
    era_by_failures: bool = False
    scale_advantages: bool = False
    freeze_scale: bool = True

    @property
    def bounds(self) -> dict[str, Any]:
        """Arguments of `policy_terms`; KL-Cov has its penalty instead of bounds."""
        low, high = (math.inf, math.inf) if self.kl_cov else (self.clip_low, self.clip_high)
        return {"clip_low": low, "clip_high": high, "ratio": self.ratio}


class Batch(NamedTuple):
    """Responses as updates need them, evaluated by the policy that sampled them."""

    responses: Responses
    advantages: Float[Tensor, " B"]
    entropies: Float[Tensor, "B T"]
    """Entropies at each token, in nats."""
    unscaled: Float[Tensor, "B T"]
    """Log-probabilities."""
    old: Float[Tensor, "B T"]
    """The same at the scale of each response."""
    scale: Float[Tensor, "B T"]
    """Scale of each row of logits; 1 without ERA."""
    reference: Float[Tensor, "B T"] | None
    """Log-probabilities of the reference model."""
    failures: Float[Tensor, " B"] | None
    """Share of the failures in the group of each response."""

    def rows(self, index: Tensor | slice) -> Batch:
        """Some of the responses."""
        tensors = (tensor if tensor is None else tensor[index] for tensor in self[1:])
        return Batch._make((self.responses.rows(index), *tensors))


class Rollout(NamedTuple):
    """A batch whose scales are still to be decided."""

    batch: Batch
    """The batch at scale 1."""
    response_entropies: Float[Tensor, " B"]
    """Entropies of the responses, in nats."""
    all_scales: Float[Tensor, "3 B T"] | None
    """Log-probabilities at each scale that ERA chooses from."""

    def mean_entropies(self) -> dict[str, float]:
        """Mean entropies of responses and of all tokens, in nats, by their names in a run."""
        return mean_entropies(self.batch.entropies, self.batch.responses.response_mask, self.response_entropies)


class Forward(NamedTuple):
    """A forward pass at each token of responses, with gradients."""

    log_probs: Float[Tensor, "B T"]
    """Log-probabilities that the loss compares: at the scale of each response, with `top_k`."""
    unscaled: Float[Tensor, "B T"]
    """Log-probabilities of the policy itself."""
    entropies: Float[Tensor, "B T"]
    """Entropies of the policy."""
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"]
    """Advantages as the loss weighs them."""


class Tokens(NamedTuple):
    """Weights and choices of tokens, made over a whole minibatch."""

    weights: Float[Tensor, "B T"]
    """Weights of the loss."""
    shares: Float[Tensor, "B T"]
    """Weights of metrics, which add up to 1."""
    used: Bool[Tensor, "B T"]
    """Tokens that give a policy gradient."""
    penalised: Bool[Tensor, "B T"] | None
    """Tokens that KL-Cov penalises."""

    def rows(self, index: slice) -> Tokens:
        """Those of some responses."""
        return Tokens._make(tensor if tensor is None else tensor[index] for tensor in self)


# --- the rollout ------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_rollout(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    responses: Responses,
    advantages: Float[Tensor, " B"],
    hyperparameters: Hyperparameters,
    failures: Float[Tensor, " B"] | None = None,
) -> Rollout:
    """Evaluate responses by the policy that sampled them, in evaluation mode; thresholds are not used yet."""
    hp, all_scales = hyperparameters, None
    if hp.era:
        at_scales = partial(F.token_log_probs_all_scales, k=hp.k)
        all_scales, entropies = log_probs_of(policy, responses, hp, at_scales, advantages)
        unscaled = all_scales[0] if hp.top_k is None else log_probs_of(policy, responses, hp)[0]
    else:
        unscaled, entropies = log_probs_of(policy, responses, hp)
    of_reference = None if reference is None else log_probs_of(reference, responses, hp)[0]
    of_responses = F.response_entropy(entropies, responses.response_mask, hp.top_fraction)
    scale = torch.ones_like(entropies)
    batch = Batch(responses, advantages, entropies, unscaled, unscaled, scale, of_reference, failures)
    return Rollout(batch, of_responses, all_scales)


@torch.no_grad()
def batch_of(rollout: Rollout, hyperparameters: Hyperparameters) -> tuple[Batch, dict[str, float]]:
    """The scale of each response by the thresholds of this rollout, and the metrics of the rollout."""
    hp, batch, scale = hyperparameters, rollout.batch, None
    mask, of_responses = batch.responses.response_mask, rollout.response_entropies
    if rollout.all_scales is not None:
        scale = scales_of(batch.entropies, mask, batch.advantages, batch.failures, hp)
        batch = batch._replace(old=F.log_probs_at(rollout.all_scales, scale), scale=scale)
    metrics = rollout_metrics(batch.entropies, mask, of_responses, scale, hp.omega_low, hp.omega_high) | {
        "response_length": float(mask.sum(1).double().mean()),
        "ended": float(batch.responses.ended.double().mean()),
        "tokens": float(mask.sum()),
    }
    return batch, metrics


def scales_of(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    failures: Float[Tensor, " B"] | None,
    hyperparameters: Hyperparameters,
) -> Float[Tensor, "B T"]:
    """ERA's scale of each row of logits, from the entropies of a policy."""
    hp = hyperparameters
    low, high = (math.inf, math.inf) if hp.scale_all else (hp.omega_low, hp.omega_high)
    of_responses = F.response_entropy(entropies, mask, hp.top_fraction)
    scale = F.era_token_scale(
        of_responses,
        advantages,
        omega_low=low * failures if hp.era_by_failures and failures is not None else low,
        omega_high=high,
        k=hp.k,
        min_advantage=hp.min_advantage,
        signs=hp.era_signs,
    )[:, None].expand_as(entropies)
    if hp.era_tokens == "forking":
        scale = torch.where(F.top_tokens(entropies, mask, hp.top_fraction), scale, 1.0)
    return scale


# --- the loss ---------------------------------------------------------------------------------------------


def policy_losses(
    policy: PreTrainedModel,
    batch: Batch,
    hyperparameters: Hyperparameters,
    generator: torch.Generator,
    *,
    on_policy: bool,
) -> Iterator[tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]]:
    """Yield loss and metrics of each micro-batch; they and their gradients add up to those of the minibatch.

    Choices and weights of tokens come from the whole minibatch before it is split; `generator` draws those of
    Clip-Cov. While the policy is still the one that sampled (`on_policy`), it is compared with itself: ratios are
    exactly 1, where rounding would clip some of GSPO's and give KL-Cov's |log r|, flat at 0, a slope.
    """
    tokens = choose_tokens(policy, batch, hyperparameters, generator, on_policy=on_policy)
    for rows in parts(len(batch.advantages), hyperparameters.micro_batch):
        yield policy_loss(policy, batch.rows(rows), tokens.rows(rows), hyperparameters, on_policy=on_policy)


def policy_loss(
    policy: PreTrainedModel,
    batch: Batch,
    tokens: Tokens,
    hyperparameters: Hyperparameters,
    *,
    on_policy: bool,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Loss of a micro-batch, with its gradient, and its metrics; see `policy_losses`."""
    hp, mask = hyperparameters, batch.responses.response_mask
    now = forward(policy, batch, hp, unfiltered=not on_policy or batch.reference is not None)
    old, unscaled = (now.log_probs, now.unscaled) if on_policy else (batch.old, batch.unscaled)
    if hp.surrogate == "cispo":
        clips = {"clip_low": hp.clip_low, "clip_high": hp.clip_high}
        terms = losses.cispo_terms(now.log_probs, old, now.advantages, mask, **clips)
    else:
        terms = losses.policy_terms(now.log_probs, old, now.advantages, mask, **hp.bounds)
    terms = tokens.used * terms
    if tokens.penalised is not None:
        terms = terms + hp.kl_cov_coef * losses.kl_terms(now.unscaled, unscaled, tokens.penalised, "abs")
    if hp.entropy_coef:
        terms = terms + losses.entropy_terms(now.entropies, mask, hp.entropy_coef)
    if batch.reference is not None:
        terms = terms + hp.kl_coef * losses.kl_terms(now.unscaled, batch.reference, mask)
    loss = losses.weighted_sum(terms, tokens.weights)
    metrics = losses.policy_statistics(now.log_probs, old, now.advantages, tokens.shares, **hp.bounds)
    if now.unscaled is not now.log_probs:  # clips are those of the loss, ratios and KL those of the policy
        of_policy = losses.policy_statistics(now.unscaled, unscaled, now.advantages, tokens.shares, **hp.bounds)
        metrics |= {name: of_policy[name] for name in ("ratio", "approx_kl")}
    return loss, {"loss": loss.detach(), **metrics}


def choose_tokens(
    policy: PreTrainedModel,
    batch: Batch,
    hyperparameters: Hyperparameters,
    generator: torch.Generator,
    *,
    on_policy: bool,
) -> Tokens:
    """Weights and choices of tokens in a minibatch; see `policy_losses`."""
    hp, mask = hyperparameters, batch.responses.response_mask
    weights = losses.token_weights(mask, hp.mean, max_length=hp.max_length)
    shares = weights if hp.mean != "length" else losses.token_weights(mask)  # those of Dr. GRPO do not add up to 1
    used = losses.forking_tokens(batch.entropies, mask, hp.forking) if hp.forking < 1 else mask
    penalised = None
    if hp.kl_cov or hp.clip_cov:
        covariances = losses.token_covariances(batch.unscaled, batch.advantages, mask)
        if hp.kl_cov:
            penalised = losses.kl_cov_tokens(covariances, mask, hp.kl_cov)
        else:
            clipped = torch.zeros_like(mask) if on_policy else clipped_tokens(policy, batch, hp)
            used = used & ~losses.clip_cov_tokens(covariances, clipped, mask, generator, fraction=hp.clip_cov)
    return Tokens(weights, shares, used, penalised)


@torch.no_grad()
def clipped_tokens(policy: PreTrainedModel, batch: Batch, hyperparameters: Hyperparameters) -> Bool[Tensor, "B T"]:
    """Tokens of a minibatch whose ratios are past their bounds, as the loss compares them."""
    clipped = []
    for rows in parts(len(batch.old), hyperparameters.micro_batch):
        part = batch.rows(rows)
        now, mask = forward(policy, part, hyperparameters, unfiltered=False), part.responses.response_mask
        bounds = hyperparameters.bounds
        clipped.append(losses.clipped_tokens(now.log_probs, part.old, now.advantages, mask, **bounds))
    return torch.cat(clipped)


# --- the model and its last layer -------------------------------------------------------------------------


def forward(
    policy: PreTrainedModel, batch: Batch, hyperparameters: Hyperparameters, *, unfiltered: bool = True
) -> Forward:
    """Log-probabilities and entropies of a micro-batch by the policy as it is now.

    `unfiltered` asks for log-probabilities of the policy itself that are free of `top_k`, which costs another pass
    through the last layer.
    """
    hp, scale, advantages = hyperparameters, batch.scale, batch.advantages
    arguments = head_arguments(policy, batch.responses, hp, advantages)
    if not hp.era:
        log_probs, entropies = F.token_log_probs(**arguments)
        return Forward(log_probs, log_probs, entropies, advantages)
    all_scales, entropies = F.token_log_probs_all_scales(k=hp.k, **arguments)
    unscaled = all_scales[0]
    if unfiltered and hp.top_k is not None:
        unscaled, _ = F.token_log_probs(**arguments | {"top_k": None, "top_k_rows": None})
    if not hp.freeze_scale:
        scale = scales_of(entropies.detach(), batch.responses.response_mask, advantages, batch.failures, hp)
    if hp.scale_advantages:
        advantages = F.scale_advantages(advantages, scale)
    return Forward(F.log_probs_at(all_scales, scale), unscaled, entropies, advantages)


def log_probs_of(
    policy: PreTrainedModel,
    responses: Responses,
    hyperparameters: Hyperparameters,
    last_layer: Callable[..., tuple[Tensor, Tensor]] = F.token_log_probs,
    advantages: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "*S B T"], Float[Tensor, "B T"]]:
    """Log-probabilities and entropies of all responses, micro-batch by micro-batch.

    `last_layer` is `token_log_probs`, or `token_log_probs_all_scales` with its scale; for `advantages` see
    `head_arguments`.
    """
    results = []
    for rows in parts(len(responses.texts), hyperparameters.micro_batch):
        some = None if advantages is None else advantages[rows]
        results.append(last_layer(**head_arguments(policy, responses.rows(rows), hyperparameters, some)))
    log_probs, entropies = zip(*results, strict=True)
    return torch.cat(log_probs, -2), torch.cat(entropies)


def head_arguments(
    policy: PreTrainedModel,
    responses: Responses,
    hyperparameters: Hyperparameters,
    advantages: Float[Tensor, " B"] | None = None,
) -> dict[str, Any]:
    """Arguments of `token_log_probs`: hidden states at each token of the responses, and the last layer.

    Where `advantages` are positive, only `top_k` logits stay; without advantages all do.
    """
    hp, length = hyperparameters, responses.response_mask.shape[1]
    with autocast(policy.device, hp.precision):
        hidden = hidden_states(policy, responses.tokens, responses.mask)
    head = head_of(policy)
    arguments: dict[str, Any] = {
        "hidden": hidden[:, -length - 1 : -1],
        "weight": head.weight,
        "bias": head.bias,
        "targets": responses.targets.masked_fill(~responses.response_mask, IGNORED),
        "ignore_index": IGNORED,
        **head.scaling(hp.temperature),
    }
    if hp.top_k is not None and advantages is not None:
        arguments |= {"top_k": hp.top_k, "top_k_rows": (advantages > 0)[:, None].expand(-1, length)}
    return arguments
