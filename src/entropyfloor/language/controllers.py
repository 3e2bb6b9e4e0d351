"""Controllers of the entropy of a language model in RL: they watch each rollout and steer the updates after it.

Each rule is a pure function of plain floats: from its memory, a number that is 0 at first, and the entropy of a
rollout to what an update uses, and to its next memory. `Controller` holds the memory of a run. Entropies are in
nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropyfloor.language import advantages
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.thresholds import LOW_SHARE

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

STATE = ("first", "smoothed", "memory", "decision")
"""What a `Controller` remembers from rollout to rollout."""


def floor_scale(
    memory: float,
    entropy: float,
    floor: float,
    *,
    gain: float = 20.0,
    integral_gain: float = 0.5,
    max_scale: float = 8.0,
    margin: float = 0.03,
) -> tuple[float, float]:
    """Scale s of the logits of responses with positive advantage, so that the entropy stays at its floor.

    `log s = gain · e + m` and `m ← m + integral_gain · e` with `e = floor + margin - entropy`, both within
    [0, log max_scale]. So s = 1, plain RL, while the entropy is well above the floor. Near it the update at logits
    scaled by s has a bonus of weight `A (s - 1)` on a Rényi entropy (see `entropyfloor.torch.era_token_scale`).

    Args:
        memory: m.
        entropy: H_resp of Eq. 16, mean over the responses of a rollout.
        floor: The least entropy that is wanted.
        gain: Gain of the error, in 1 / nats.
        integral_gain: Gain of its sum, in 1 / nats.
        max_scale: Largest scale.
        margin: Distance above the floor at which the entropy is held, so that its fluctuations stay above.

    Returns:
        s, and the next m.

    Raises:
        ValueError: A number that is not finite, or a `max_scale` that is not above 1.

    Examples:
        >>> from entropyfloor.language import controllers
        >>> controllers.floor_scale(0.0, entropy=2.0, floor=1.0)  # far above the floor: plain RL
        (1.0, 0.0)
        >>> scale, _ = controllers.floor_scale(0.0, entropy=1.0, floor=1.0)
        >>> round(scale, 2)
        1.82
    """
    if not 1 < max_scale < math.inf:
        raise ValueError(f"max_scale={max_scale:g} must be finite and above 1")
    if not math.isfinite(memory + entropy + floor + margin):
        numbers = f"memory={memory:g}, entropy={entropy:g}, floor={floor:g} and margin={margin:g}"
        raise ValueError(f"{numbers} must be finite: another number would stay in the memory")
    largest, error = math.log(max_scale), floor + margin - entropy
    scale = math.exp(min(max(gain * error + memory, 0.0), largest))
    return scale, min(max(memory + integral_gain * error, 0.0), largest)


def bonus_coefficient(
    memory: float, entropy: float, target: float, *, step: float = 1e-3, largest: float = 0.5
) -> tuple[float, float]:
    """Weight of the entropy bonus by Skywork-OR1's rule (He et al. 2025, arXiv 2505.22312).

    The coefficient c rises by `step` after a rollout with less entropy than the target, and falls after others.
    The bonus is in the loss only after those with less. Step and limit are the defaults of the authors' code.

    Returns:
        The weight in the next update, which is c or 0, and c.

    Examples:
        >>> from entropyfloor.language import controllers
        >>> controllers.bonus_coefficient(0.01, entropy=0.5, target=1.0, step=0.01)
        (0.02, 0.02)
        >>> controllers.bonus_coefficient(0.02, entropy=1.5, target=1.0, step=0.01)
        (0.0, 0.01)
    """
    low = entropy < target
    coefficient = min(max(memory + (step if low else -step), 0.0), largest)
    return (coefficient if low else 0.0), coefficient


def entropic_alpha(
    memory: float, entropy: float, target: float, *, gain: float = 1.0, integral_gain: float = 0.01
) -> tuple[float, float]:
    """α of EntroPIC (arXiv 2511.15248): `α = gain · e + m`, `m ← m + integral_gain · e`, `e = entropy - target`.

    α weighs positive advantages up and negative ones down (`advantages.reweighted_advantages`), so it is below 0
    where the entropy is too low. Gains are those of Entrocraft's public code, which has EntroPIC as a baseline. α
    and m are held within [-1, 1], so that no advantage changes its sign.

    Returns:
        α, and the next m.

    Examples:
        >>> from entropyfloor.language import controllers
        >>> controllers.entropic_alpha(0.0, entropy=0.5, target=1.0)
        (-0.5, -0.005)
    """
    error = entropy - target
    return _within_one(gain * error + memory), _within_one(memory + integral_gain * error)


class Controller:
    """Holds the entropy of a run at `min_entropy`, by the rule that its settings name, if they name one.

    era-floor measures the entropy of responses, the rivals' rules the mean over all tokens, as in their sources.
    """

    def __init__(self, config: LanguageConfig) -> None:
        self.config, self.rule = config, "era-floor" if config.head == "era-floor" else config.controller
        self.first: float | None = None
        """`min_entropy` at the beginning; an automatic one is known after the first rollout."""
        self.smoothed: float | None = None
        """Moving average of the entropy, which varies with the problems that are drawn; None before a rollout."""
        self.memory, self.decision = 0.0, 1.0 if self.rule == "era-floor" else 0.0
        """Memory of the rule, and what the next update uses: the scale, or the weight of the bonus."""

    def check_reachable(self, vocabulary: int) -> None:
        """Refuse a `min_entropy` that no policy over a vocabulary of this size can exceed.

        Raises:
            ValueError: It is at least ln V, the entropy of a uniform distribution.
        """
        given, largest = self.config.min_entropy, math.log(vocabulary)
        if self.rule != "none" and given != "auto" and given >= largest:
            raise ValueError(
                f"min_entropy={given:g} nats must be below ln {vocabulary} = {largest:.4g}, the entropy of a "
                "uniform choice among the tokens of the model"
            )

    @property
    def state(self) -> dict[str, float] | None:
        """All that a resumed run needs; None before the first rollout."""
        return None if self.smoothed is None else {name: getattr(self, name) for name in STATE}

    @state.setter
    def state(self, state: Mapping[str, float] | None) -> None:
        if state is not None:
            self.first, self.smoothed, self.memory, self.decision = (float(state[name]) for name in STATE)

    def begin(self, entropies: Mapping[str, float]) -> None:
        """Take note of the first rollout; its entropy decides `min_entropy`, unless that is known already."""
        self.smoothed = self._measured(entropies)
        if self.first is None:
            self.decide(self.smoothed)

    def decide(self, initial_entropy: float) -> None:
        """Decide `min_entropy`, from the entropy that RL began with."""
        given = self.config.min_entropy
        self.first = LOW_SHARE * initial_entropy if given == "auto" else given

    def floor(self, progress: float) -> float:
        """`min_entropy` after this share of the training; 0 as long as it is not known."""
        return (self.first or 0.0) * (1.0 - self.config.min_entropy_decay * progress)

    def changes(self, floor: float) -> dict[str, Any]:
        """Hyperparameters of the update that the rule decides; `floor` takes the place of ω_low."""
        if self.rule == "era-floor":
            return {
                "era": self.decision > 1,
                "k": self.decision,
                "scale_all": True,
                "omega_low": floor,
                "omega_high": math.inf,
            }
        return {"entropy_coef": self.decision} if self.rule == "skywork" else {}

    def weigh(
        self, values: Float[Tensor, " B"], entropies: Mapping[str, float], floor: float
    ) -> Float[Tensor, " B"]:
        """The advantages of a rollout, as the rule changes them."""
        entropy = self._measured(entropies)
        if self.rule == "entrocraft":
            return advantages.advantages_in_band(values, entropy, floor, self.config.band * floor)
        if self.rule == "entropic":
            alpha, _ = entropic_alpha(self.memory, entropy, floor, **self._gains())
            return advantages.reweighted_advantages(values, alpha)
        return values

    def observe(self, entropies: Mapping[str, float], floor: float) -> dict[str, float]:
        """Take note of a rollout after its updates; returns what they used, as metrics."""
        config, entropy, used = self.config, self._measured(entropies), self.decision
        if self.rule == "era-floor":
            before = entropy if self.smoothed is None else self.smoothed
            self.smoothed = before + (1.0 - config.entropy_ema) * (entropy - before)
            options = self._gains() | {"max_scale": config.max_scale, "margin": config.margin}
            self.decision, self.memory = floor_scale(self.memory, self.smoothed, floor, **options)
            return {"min_entropy": floor, "response_entropy/smoothed": self.smoothed, "scale": used}
        if self.rule == "skywork":
            options = {"step": config.bonus_step, "largest": config.bonus_max}
            self.decision, self.memory = bonus_coefficient(self.memory, entropy, floor, **options)
            return {"min_entropy": floor, "entropy_coef": used}
        if self.rule == "entropic":
            alpha, self.memory = entropic_alpha(self.memory, entropy, floor, **self._gains())
            return {"min_entropy": floor, "advantage_weight": 1.0 + alpha}
        return {"min_entropy": floor} if self.rule == "entrocraft" else {}

    def _measured(self, entropies: Mapping[str, float]) -> float:
        return entropies["response_entropy" if self.rule == "era-floor" else "token_entropy"]

    def _gains(self) -> dict[str, float]:
        given = {name: getattr(self.config, name) for name in ("gain", "integral_gain")}
        return {name: value for name, value in given.items() if value is not None}


def _within_one(x: float) -> float:
    return min(max(x, -1.0), 1.0)
