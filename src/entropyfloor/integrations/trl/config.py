"""Arguments of `ERAGRPOTrainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import GRPOConfig

from entropyfloor.integrations.floor import controller_of
from entropyfloor.language.config import LanguageConfig

RATIO_LOSSES = "grpo", "bnpo", "dr_grpo", "dapo"
"""TRL's losses that clip the ratio of each token or response, for which KL-Cov and Clip-Cov are defined."""


def option(default: Any, text: str) -> Any:
    """A field with its description, which TRL's command line prints."""
    return field(default=default, metadata={"help": text})


def threshold(name: str, value: float | str | None) -> float | str:
    """A number of nats or auto, also from a command line, where a field that may be a text is read as one.

    Raises:
        ValueError: It is neither.
    """
    if value is None or value == "auto":
        return "auto"
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name}={value!r} must be a number of nats, or 'auto'") from None


@dataclass
class ERAGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` with the arguments of ERA, which have the names and meanings of `LanguageConfig`.

    With `omega_low=0` and `omega_high=inf` in all stages training is TRL's own, bit for bit.

    Raises:
        ValueError: A value out of its range, thresholds that cross, or rules that exclude each other.

    Examples:
        >>> from entropyfloor.integrations.trl import ERAGRPOConfig
        >>> args = ERAGRPOConfig("runs/trl", bf16=False, omega_low=0.45, omega_high=3.0)
        >>> args.head, args.k
        ('era', 2.0)
    """

    head: Literal["era", "era-floor"] = option(
        "era",
        "era scales responses outside of the thresholds (Eq. 16), and era-floor all with positive advantage, by a "
        "number that holds their entropy at min_entropy.",
    )
    omega_low: float | str | None = option(
        "auto",
        "Threshold in nats: responses with less entropy are made more random. auto is 0.75 of the entropy that "
        "training begins with.",
    )
    omega_high: float | str | None = option(
        "auto",
        "Threshold in nats: responses with more entropy are made less random; inf for none. auto is 5 times the "
        "entropy that training begins with.",
    )
    k: float = option(2.0, "Scale of the logits below omega_low; 1/k is the one above omega_high.")
    top_fraction: float = option(
        0.2, "Share of a response's tokens, those of highest entropy, whose mean is the entropy of the response."
    )
    min_advantage: float = option(
        0.0, "Least positive advantage of a response whose logits are scaled; 1.0 mimics the authors' release."
    )
    era_signs: Literal["positive", "both"] = option(
        "positive", "Signs of the advantages of responses whose logits are scaled; positive in the paper."
    )
    era_tokens: Literal["all", "forking"] = option(
        "all", "Tokens whose logits are scaled: all of a response, or only those in its entropy, the top_fraction."
    )
    era_top_k: int | None = option(
        None,
        "Number of largest logits that the first stage keeps where advantages are positive; 20 in the paper. "
        "`top_k` is TRL's, of sampling.",
    )
    scale_advantages: bool = option(False, "Divide advantages by the scale of their response (Eq. 17).")
    freeze_scale: bool = option(
        True, "Decide the scale once for a rollout; without it each forward pass decides, as in the release."
    )
    second_stage_steps: float | None = option(
        None,
        "Optimiser steps after which the second stage begins; below 1 a share of all steps. Without it there is "
        "one stage.",
    )
    omega_low_2: float | str | None = option(
        "auto", "Second stage: omega_low; auto is 4/9 of that of the first stage."
    )
    omega_high_2: float = option(math.inf, "Second stage: omega_high; inf for none.")
    min_entropy: float | str | None = option(
        LanguageConfig.min_entropy,
        "era-floor: the floor in nats; auto is 0.75 of the entropy that training begins with.",
    )
    min_entropy_decay: float = option(
        LanguageConfig.min_entropy_decay,
        "era-floor: share of min_entropy that is gone at the end: it falls linearly.",
    )
    gain: float | None = option(LanguageConfig.gain, "era-floor: gain of the error in 1/nats; by default 20.")
    integral_gain: float | None = option(
        LanguageConfig.integral_gain, "era-floor: gain of the sum of errors in 1/nats; by default 0.5."
    )
    entropy_ema: float = option(
        LanguageConfig.entropy_ema, "era-floor: weight of the past in the moving average of the entropy."
    )
    margin: float = option(
        LanguageConfig.margin, "era-floor: distance above min_entropy at which the entropy is held, in nats."
    )
    max_scale: float = option(LanguageConfig.max_scale, "era-floor: largest scale of the logits.")
    kl_cov: float = option(
        0.0, "KL-Cov: share of the tokens that are penalised, those of highest covariance; 2e-3 in its paper."
    )
    kl_cov_coef: float = option(1.0, "KL-Cov: weight of the penalty.")
    clip_cov: float = option(
        0.0,
        "Clip-Cov: share of the tokens without a gradient, drawn from those of high covariance; 2e-4 in its "
        "paper.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("omega_low", "omega_high", "omega_low_2", "min_entropy"):
            setattr(self, name, threshold(name, getattr(self, name)))
        if self.era_top_k is not None and self.era_top_k < 1:
            raise ValueError(f"era_top_k={self.era_top_k} must be at least 1: None keeps all logits")
        if self.second_stage_steps is not None and not self.second_stage_steps > 0:
            raise ValueError(f"second_stage_steps={self.second_stage_steps} must be above 0: None is one stage")
        controller_of(self, top_k="era_top_k")
        if self.on_policy and not self.freeze_scale:
            raise ValueError(
                "freeze_scale=False does nothing without an optimiser step between a rollout and its losses: give "
                "num_iterations of at least 2, or steps_per_generation above gradient_accumulation_steps"
            )
        self._check_covariances()

    def _check_covariances(self) -> None:
        for name in ("kl_cov", "clip_cov"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1, a share of the tokens")
        if self.kl_cov and self.clip_cov:
            raise ValueError("kl_cov and clip_cov exclude each other: choose one")
        if not (self.kl_cov or self.clip_cov):
            return
        if self.loss_type not in RATIO_LOSSES:
            raise ValueError(
                f"kl_cov and clip_cov need a loss that clips ratios: loss_type={self.loss_type!r} must be one of "
                f"{', '.join(RATIO_LOSSES)}"
            )
        if self.clip_cov and self.importance_sampling_level == "sequence":
            raise ValueError(
                "clip_cov chooses tokens that give a gradient, and with importance_sampling_level='sequence' a "
                "response gives one as a whole: choose 'token'"
            )
        if self.on_policy:
            raise ValueError(
                "kl_cov and clip_cov do nothing where every ratio is 1: give num_iterations of at least 2, or "
                "steps_per_generation above gradient_accumulation_steps"
            )

    @property
    def on_policy(self) -> bool:
        """Whether no optimiser step is made between a rollout and its losses."""
        return self.gradient_accumulation_steps % self.rollout_steps == 0

    @property
    def rollout_steps(self) -> int:
        """Losses of micro-batches that share a rollout."""
        return self.steps_per_generation * self.num_iterations

    @property
    def inert(self) -> bool:
        """Whether no response can have a scale, and nothing else of ours is used."""
        never = self.head == "era" and all(low == 0 and high == math.inf for low, high in self._stages)
        return never and self.era_top_k is None and not self.kl_cov and not self.clip_cov

    @property
    def _stages(self) -> list[tuple[Any, Any]]:
        """Thresholds of the stages that there are."""
        first, second = (self.omega_low, self.omega_high), (self.omega_low_2, self.omega_high_2)
        return [first] if self.second_stage_steps is None else [first, second]
