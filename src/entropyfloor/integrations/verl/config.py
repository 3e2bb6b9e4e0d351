"""Settings of ERA in verl, the section `trainer.v1.era`, and what is refused beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from verl.trainer.ppo.utils import need_critic

from entropyfloor.integrations.floor import controller_of
from entropyfloor.integrations.verl.engine import STRATEGIES
from entropyfloor.language.config import LanguageConfig, Threshold
from entropyfloor.language.thresholds import thresholds_of_stages

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERSIONS = ("0.9.1",)
"""Versions of verl that the tests ran with."""
LOSSES = ("vanilla", "gspo")


@dataclass(frozen=True)
class ERAConfig:
    """Settings of ERA; those that `entropyfloor train language` has too mean the same. Entropies are in nats."""

    head: Literal["era", "era-floor"] = "era"
    """era scales responses outside of thresholds; era-floor those with positive advantage, to hold the entropy."""
    omega_low: Threshold = "auto"
    """ω_low of Eq. 16; auto is 0.75 of the entropy of the first rollout."""
    omega_high: Threshold = "auto"
    """ω_high of Eq. 16, inf for none; auto is 5 times the entropy of the first rollout."""
    k: float = 2.0
    """Scale k of Eq. 16."""
    top_fraction: float = 0.2
    """Share of a response's tokens, those of highest entropy, whose mean is the entropy of the response."""
    min_advantage: float = 0.0
    """Least positive advantage of a response whose logits are scaled."""
    era_signs: Literal["positive", "both"] = "positive"
    """Signs of the advantages of responses whose logits are scaled; positive in the paper."""
    top_k: int | None = None
    """Number of largest logits that the first stage keeps where advantages are positive; 20 in the paper."""
    scale_advantages: bool = False
    """Divide advantages by the scale (Eq. 17)."""
    second_stage_steps: int | None = None
    """Number of steps after which the thresholds of the second stage hold; None for never."""
    omega_low_2: Threshold = "auto"
    """Second stage: ω_low; auto is 4/9 of that of the first stage."""
    omega_high_2: float = math.inf
    """Second stage: ω_high; inf for none."""
    min_entropy: Threshold = LanguageConfig.min_entropy
    """era-floor: the floor; auto is 0.75 of the entropy of the first rollout."""
    min_entropy_decay: float = LanguageConfig.min_entropy_decay
    """era-floor: share of `min_entropy` that is gone at the end: it falls linearly."""
    gain: float | None = LanguageConfig.gain
    """era-floor: gain of the error in 1/nats; by default 20."""
    integral_gain: float | None = LanguageConfig.integral_gain
    """era-floor: gain of the sum of errors in 1/nats; by default 0.5."""
    entropy_ema: float = LanguageConfig.entropy_ema
    """era-floor: weight of the past in the moving average of the entropy."""
    margin: float = LanguageConfig.margin
    """era-floor: distance above `min_entropy` at which the entropy is held."""
    max_scale: float = LanguageConfig.max_scale
    """era-floor: largest scale of the logits."""

    def __post_init__(self) -> None:
        if self.second_stage_steps is not None and self.second_stage_steps < 1:
            raise ValueError(f"second_stage_steps={self.second_stage_steps} must be at least 1, or null for never")
        controller_of(self, top_k="top_k")

    def is_second_stage(self, step: int) -> bool:
        """Whether the second stage has begun in this step; the first step is 1."""
        return self.second_stage_steps is not None and step > self.second_stage_steps

    def thresholds(self, initial_entropy: float, step: int) -> tuple[float, float]:
        """ω_low and ω_high in a step; automatic ones follow from the mean H_resp that the run began with.

        Raises:
            ValueError: Those of a stage cross.
        """
        given = (self.omega_low, self.omega_high), (self.omega_low_2, self.omega_high_2)
        return thresholds_of_stages(*given, initial_entropy)[self.is_second_stage(step)]


def read(config: DictConfig) -> ERAConfig:
    """Settings of ERA in a config of verl.

    Raises:
        ValueError: A setting that does not exist or is out of range, or one of verl's that ERA cannot go with.
    """
    if problem := next(_problems(config), None):
        raise ValueError(problem)
    section = dict(config.trainer.v1.get("era") or {})
    known = {field.name for field in fields(ERAConfig)}
    if unknown := sorted(set(section) - known):
        raise ValueError(
            f"trainer.v1.era.{unknown[0]} does not exist: ERA's settings are {', '.join(sorted(known))}"
        )
    era = ERAConfig(**section)
    actor, engine = config.actor_rollout_ref.actor, config.actor_rollout_ref.actor.fsdp_config
    parallel = max(actor.ulysses_sequence_parallel_size, engine.ulysses_sequence_parallel_size) > 1
    if era.top_k is not None and (parallel or engine.pad_to_length):
        raise ValueError(
            "trainer.v1.era.top_k needs whole sequences without padding: set "
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size=1 and pad_to_length=False"
        )
    return era


def _problems(config: DictConfig) -> Iterator[str]:
    """Settings of verl that ERA cannot go with, each with the reason and the way out."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if (installed := version("verl")) not in VERSIONS:
        yield f"verl {installed} was not tried with ERA: install verl=={VERSIONS[-1]}"
    if actor.strategy not in STRATEGIES:
        yield (
            f"actor_rollout_ref.actor.strategy={actor.strategy} has no engine that scales logits: "
            f"choose {' or '.join(STRATEGIES)}"
        )
    if model.use_fused_kernels:
        yield "use_fused_kernels takes one temperature for all responses, and ERA scales each: set it to False"
    if config.algorithm.rollout_correction.get("bypass_mode"):
        yield "bypass_mode takes the sampler's log-probs for old ones, which are unscaled: set it to False"
    if actor.use_kl_loss:
        yield (
            "use_kl_loss would compare scaled log-probs with the reference's unscaled ones: set it to False; "
            "algorithm.use_kl_in_reward compares unscaled ones"
        )
    if actor.entropy_coeff or actor.calculate_entropy:
        yield (
            "entropy_coeff and calculate_entropy would use the entropy of scaled logits: set them to 0 and False; "
            "actor/entropy and response_entropy log the unscaled one"
        )
    if actor.policy_loss.loss_mode not in LOSSES:
        yield (
            f"loss_mode={actor.policy_loss.loss_mode} was not tried with scaled log-probs: "
            f"choose {' or '.join(LOSSES)}"
        )
    half = (actor.fsdp_config.get("mixed_precision") or {}).get("param_dtype", "bf16") not in ("fp32", "float32")
    exact = (
        actor.entropy_from_logits_with_chunking and not actor.entropy_checkpointing and model.use_remove_padding
    )
    if half and not exact:
        yield (
            "entropies would be rounded to bfloat16, by up to 0.15 nats a token: set "
            "actor_rollout_ref.actor.entropy_from_logits_with_chunking=True, entropy_checkpointing=False and "
            "actor_rollout_ref.model.use_remove_padding=True"
        )
    if need_critic(config):
        yield (
            "a critic gives each token an advantage, and ERA's scale belongs to a response: set "
            "algorithm.adv_estimator=grpo"
        )
    if config.distillation.enabled:
        yield "distillation would use scaled log-probs of the student: set distillation.enabled=False"
