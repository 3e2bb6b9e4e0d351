"""Settings of `entropyfloor train language`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from entropyfloor.runs.settings import (
    COUNT,
    NATURAL,
    POSITIVE,
    SEED_RANGE,
    SHARE,
    THREADS,
    CountsIf,
    Effect,
    Precision,
    Range,
    check,
    check_counted,
)
from entropyfloor.runs.trackers import Track

TaskName = Literal["countdown", "countdown-3", "countdown-4", "arithmetic", "modular", "file"]
LossName = Literal["grpo", "dr-grpo", "gspo", "cispo"]
Threshold = float | Literal["auto"]

BELOW_ONE = Range(0, math.nextafter(1, 0), "at least 0 and below 1")
ABOVE_ONE = Range(1, math.inf, "above 1", open=True)
FRACTION = Range(math.ulp(0), 1, "above 0 and at most 1")
LENGTH = Range(1, 2**24, "between 1 and 2**24")
LARGEST = Range(2, 999, "between 2 and 999")
EVAL_SAMPLES = Range(1, 1024, "between 1 and 1024")
UP_TO_INFINITY = Range(0, math.inf, "at least 0, or inf for none", finite=False)

FILE = CountsIf("task='file'", lambda config: config.task == "file")
COUNTDOWN = CountsIf("task='countdown'", lambda config: config.task.startswith("countdown"))
ARITHMETIC = CountsIf("task='arithmetic'", lambda config: config.task == "arithmetic")
REASONING_GYM = CountsIf("task='reasoning_gym:…'", lambda config: config.of_reasoning_gym)
QUESTIONS = CountsIf(
    "task='file' or 'reasoning_gym:…'", lambda config: config.task == "file" or config.of_reasoning_gym
)
MODULAR = CountsIf("task='modular'", lambda config: config.task == "modular")
READ_MODEL = CountsIf("a model that is read", lambda config: config.model != "tiny")
TINY = CountsIf("model='tiny'", lambda config: config.model == "tiny")
WARM_START = CountsIf("warm_start_steps", lambda config: config.warm_start_steps > 0)
DYNAMIC = CountsIf("dynamic_sampling", lambda config: config.dynamic_sampling)
SECOND_STAGE = CountsIf("second_stage", lambda config: config.second_stage < 1)
GRPO = CountsIf("loss='grpo'", lambda config: config.loss == "grpo")
KL_COV = CountsIf("kl_cov", lambda config: config.kl_cov > 0)
ERA = CountsIf("head='era'", lambda config: config.head == "era")
ANY_ERA = CountsIf("head='era' or 'era-floor'", lambda config: config.head != "none")
ERA_FLOOR = CountsIf("head='era-floor'", lambda config: config.head == "era-floor")
DS_GRPO = CountsIf("advantages='ds-grpo'", lambda config: config.advantages == "ds-grpo")
W_REINFORCE = CountsIf("advantages='w-reinforce'", lambda config: config.advantages == "w-reinforce")
CONTROLLED = CountsIf("head='era-floor' or a controller", lambda config: config.is_controlled)
PI = CountsIf(
    "head='era-floor' or controller='entropic'",
    lambda config: config.head == "era-floor" or config.controller == "entropic",
)
BAND = CountsIf("controller='entrocraft'", lambda config: config.controller == "entrocraft")
BONUS = CountsIf("controller='skywork'", lambda config: config.controller == "skywork")

CLIP: dict[LossName, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dr-grpo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "cispo": (1.0, 4.0),
}
"""Default distances of the bounds of ratios below and above 1."""


@dataclass(frozen=True)
class LanguageConfig:
    """Settings of `entropyfloor train language`. None stands for a value that follows from other settings.

    Examples:
        >>> from entropyfloor.language.config import LanguageConfig
        >>> LanguageConfig(task="countdown", head="era").resolved().task
        'countdown-3'
    """

    task: TaskName | str = "countdown-3"
    """Task: countdown (short for countdown-3), countdown-4, arithmetic, modular, file or reasoning_gym:<name>."""
    largest: Annotated[int, LARGEST, COUNTDOWN] = 20
    """Task countdown: largest number."""
    digits: Annotated[int, COUNT, ARITHMETIC] = 2
    """Task arithmetic: digits of the larger numbers."""
    chain_length: Annotated[int, COUNT, MODULAR] = 5
    """Task modular: number of operations in a chain."""
    data: Annotated[str | None, Effect.FILE, FILE] = None
    """Task file: a jsonl, json or parquet file with questions and answers to train on."""
    test_data: Annotated[str | None, Effect.FILE, FILE] = None
    """Task file: a file to evaluate on; by default a tenth of `data` is held out."""
    min_level: Annotated[int, NATURAL, FILE] = 0
    """Task file: lowest level of problems to train on; the paper trains on levels 3 to 5 of MATH."""
    task_config: Annotated[str | None, REASONING_GYM] = None
    """Task reasoning_gym: settings of the library's task as JSON, such as '{"min_digits": 1}'."""
    prompt: Annotated[str, QUESTIONS] = "{question}"
    """Questions: text of a prompt, in which {question} stands for the question."""
    template: Annotated[Literal["chat"] | None, QUESTIONS] = None
    """Questions: chat formats prompts by the tokenizer's own chat template, with all turns of a chat."""
    question_column: Annotated[str | None, FILE] = None
    """Task file: column of the questions, if it has no usual name; a dot separates nested columns."""
    answer_column: Annotated[str | None, FILE] = None
    """Task file: column of the answers, if it has no usual name."""
    max_prompt: Annotated[int | None, COUNT, QUESTIONS] = None
    """Questions: longest prompt in tokens; problems with longer ones are left out, which is logged."""
    model: str = "tiny"
    """Any causal language model, by hub name or path; tiny is a random model of the Qwen2 architecture."""
    stop_token: Annotated[str | None, READ_MODEL] = None
    """Token that ends a response, beside the model's own ends, such as <|im_end|> where a prompt has turns."""
    context: Annotated[int | None, COUNT] = None
    """Limit of prompt and response together in tokens, if it is not the one of the model's config."""
    layers: Annotated[int, COUNT, TINY] = 4
    """Model tiny: number of transformer layers."""
    hidden: Annotated[int, COUNT, TINY] = 128
    """Model tiny: width."""
    heads: Annotated[int, COUNT, TINY] = 4
    """Model tiny: number of attention heads."""
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    """Seed of everything random."""
    steps: Annotated[int, NATURAL] = 150
    """Number of rollouts, each followed by `minibatches` updates."""
    recipe: Annotated[str | None, Effect.IDENTITY] = None
    """Remark for reports: the recipe of the run, its scale and its arm."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Run directory; by default runs/language/<task>-<model>/<loss and its variants>/seed-<seed>."""

    warm_start_steps: Annotated[int, NATURAL] = 400
    """Warm start: number of supervised updates on solutions before RL; 0 for none."""
    warm_start_batch: Annotated[int, COUNT, WARM_START] = 128
    """Warm start: solutions in an update."""
    warm_start_learning_rate: Annotated[float, POSITIVE, WARM_START] = 1e-3
    """Warm start: learning rate of AdamW, which falls as a cosine."""
    warm_start_random: Annotated[float, SHARE, WARM_START] = 0.5
    """Warm start: share of derivations that are well formed but may miss the answer, so that RL can improve."""
    warm_starts: Annotated[str | None, Effect.PLACE, WARM_START] = None
    """Warm start: directory in which runs with the same warm start share the model that it results in."""

    prompts: Annotated[int, COUNT] = 16
    """Number of problems in a rollout."""
    samples: Annotated[int, COUNT] = 16
    """Number of responses to each problem, which form a group."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Temperature of sampling in training."""
    max_new_tokens: Annotated[int | None, LENGTH] = None
    """Longest response in tokens; by default what the task needs."""
    dynamic_sampling: bool = False
    """Drop groups whose responses all earn the same reward, and sample others instead."""
    max_refills: Annotated[int, NATURAL, DYNAMIC] = 3
    """Dynamic sampling: limit of additional samplings in a rollout."""
    minibatches: Annotated[int, COUNT] = 1
    """Number of updates that share a rollout; with 1 all ratios are 1: clips and covariances have no effect."""
    sample_batch: Annotated[int, COUNT, Effect.SPEED] = 256
    """Number of responses sampled at a time, which limits the memory of keys and values."""
    micro_batch: Annotated[int, COUNT, Effect.SPEED] = 256
    """Number of responses in a forward pass, which limits its memory; gradients add up."""
    gradient_checkpointing: Annotated[bool, Effect.SPEED] = False
    """Keep only the inputs of layers and compute them again in the backward pass: less memory, more time."""

    loss: LossName = "grpo"
    """Loss: grpo, dr-grpo (no standard deviation, constant length), gspo (ratio of whole responses) or cispo."""
    advantages: Literal["group", "maxrl", "ds-grpo", "w-reinforce"] = "group"
    """Advantages: GRPO's, or those of MaxRL, DS-GRPO or W-REINFORCE."""
    smoothing: Annotated[float, NATURAL, DS_GRPO] = 0.05
    """DS-GRPO: weight of the mean log-probability of a response in its advantage."""
    right_weight: Annotated[float, NATURAL, W_REINFORCE] = 0.1
    """W-REINFORCE: advantage of a right response; that of a wrong one is -1."""
    aggregate: Annotated[Literal["token-mean", "sequence-mean"], GRPO] = "token-mean"
    """Loss grpo: mean over all tokens of the batch, or over the means of the responses."""
    clip_low: Annotated[float | None, NATURAL] = None
    """Distance below 1 at which a ratio is clipped: 0.2, 3e-4 for gspo, 1 for cispo; `kl_cov` does not clip."""
    clip_high: Annotated[float | None, NATURAL] = None
    """Distance above 1 at which a ratio is clipped: 0.2, 4e-4 for gspo, 4 for cispo; `kl_cov` does not clip.

    Clip-higher is 0.28.
    """
    entropy_coef: float = 0.0
    """Weight of an entropy bonus in the loss."""
    forking: Annotated[float, FRACTION] = 1.0
    """Share of the tokens that give a gradient, those of highest entropy; 0.2 for forking tokens."""
    kl_cov: Annotated[float, SHARE] = 0.0
    """KL-Cov: share of the tokens that are penalised, those of highest covariance; 2e-3 in its paper."""
    kl_cov_coef: Annotated[float, NATURAL, KL_COV] = 1.0
    """KL-Cov: weight of the penalty."""
    clip_cov: Annotated[float, SHARE] = 0.0
    """Clip-Cov: share of the tokens without a gradient, drawn from those of high covariance; 2e-4 in its paper."""
    kl_coef: Annotated[float, NATURAL] = 0.0
    """Weight of the KL divergence to the model that RL begins with."""

    head: Literal["none", "era", "era-floor"] = "none"
    """Head of the loss: era takes log-probabilities at scaled logits (Eq. 16), and era-floor steers the scale."""
    omega_low: Annotated[Threshold, NATURAL] = "auto"
    """ω_low in nats: ERA makes responses with less entropy more random; otherwise their share is logged.

    `auto` is 0.75 of the entropy before RL.
    """
    omega_high: Annotated[Threshold, UP_TO_INFINITY] = "auto"
    """ω_high in nats: ERA makes responses with more entropy less random; otherwise their share is logged.

    `auto` is 5 times the entropy before RL.
    """
    second_stage: Annotated[float, SHARE] = 1.0
    """Share of `steps` after which the thresholds of the second stage hold; 1 for never."""
    omega_low_2: Annotated[Threshold, NATURAL, SECOND_STAGE] = "auto"
    """Second stage: ω_low; auto is 4/9 of that of the first stage, as in the paper (0.2 after 0.45)."""
    omega_high_2: Annotated[float, UP_TO_INFINITY, SECOND_STAGE] = math.inf
    """Second stage: ω_high; inf for none."""
    k: Annotated[float, ABOVE_ONE, ERA] = 2.0
    """ERA: scale k of Eq. 16."""
    min_advantage: Annotated[float, NATURAL, ANY_ERA] = 0.0
    """ERA: least positive advantage of a response whose logits are scaled; 1.0 mimics the authors' release."""
    era_signs: Annotated[Literal["positive", "both"], ANY_ERA] = "positive"
    """ERA: signs of the advantages of responses whose logits are scaled; positive in the paper."""
    era_tokens: Annotated[Literal["all", "forking"], ANY_ERA] = "all"
    """ERA: tokens whose logits are scaled: all of a response, or only those in its entropy, the `top_fraction`."""
    era_by_failures: Annotated[bool, ERA] = False
    """ERA: multiply ω_low by the share of failures in a group, so that solved problems have no threshold."""
    top_k: Annotated[int | None, COUNT, ERA] = None
    """ERA: number of largest logits that the first stage keeps where advantages are positive; 20 in the paper."""
    scale_advantages: Annotated[bool, ANY_ERA] = False
    """ERA: divide advantages by the scale (Eq. 17)."""
    freeze_scale: Annotated[bool, ERA] = True
    """ERA: decide the scale once for a rollout; without it each forward pass decides, as in the release."""
    top_fraction: Annotated[float, FRACTION] = 0.2
    """Share of a response's tokens, those of highest entropy, whose mean is the entropy of the response."""

    controller: Literal["none", "skywork", "entrocraft", "entropic"] = "none"
    """Controller of the entropy without ERA: Skywork-OR1's bonus, the band of Entrocraft, or EntroPIC."""
    min_entropy: Annotated[Threshold, POSITIVE, CONTROLLED] = "auto"
    """Floor of era-floor, or target of a controller, in nats; auto is 0.75 of the entropy before RL."""
    min_entropy_decay: Annotated[float, SHARE, CONTROLLED] = 0.0
    """Share of `min_entropy` that is gone at the end: it falls linearly; 0 for a constant floor."""
    gain: Annotated[float | None, NATURAL, PI] = None
    """Controller: gain of the error in 1/nats: 20 for era-floor, 1 for entropic."""
    integral_gain: Annotated[float | None, NATURAL, PI] = None
    """Controller: gain of the sum of errors in 1/nats: 0.5 for era-floor, 0.01 for entropic."""
    entropy_ema: Annotated[float, BELOW_ONE, ERA_FLOOR] = 0.8
    """ERA-floor: weight of the past in the moving average of the entropy, which varies with the problems drawn."""
    margin: Annotated[float, NATURAL, ERA_FLOOR] = 0.03
    """ERA-floor: distance above `min_entropy` at which the entropy is held, in nats, for its fluctuations."""
    max_scale: Annotated[float, ABOVE_ONE, ERA_FLOOR] = 8.0
    """ERA-floor: largest scale of the logits."""
    band: Annotated[float, ABOVE_ONE, BAND] = 1.2
    """Entrocraft: upper end of the band, in multiples of `min_entropy`, which is its lower end."""
    bonus_step: Annotated[float, POSITIVE, BONUS] = 1e-3
    """Skywork-OR1: change of the coefficient of the entropy bonus after each rollout."""
    bonus_max: Annotated[float, POSITIVE, BONUS] = 0.5
    """Skywork-OR1: largest coefficient of the entropy bonus."""

    learning_rate: Annotated[float, POSITIVE] = 1e-4
    """Learning rate of AdamW in RL; 4e-4 destroys a small model."""
    weight_decay: Annotated[float, NATURAL] = 0.0
    """Weight decay of AdamW."""
    warmup: Annotated[int, NATURAL] = 0
    """Number of rollouts in which the learning rate rises; it is constant afterwards."""
    clip_grad: Annotated[float, POSITIVE] = 1.0
    """Largest norm of a gradient; larger ones are scaled down."""
    precision: Precision = "fp32"
    """Number format of the model in sampling and learning: bf16 is mixed precision, with logits in float32."""
    device: Annotated[str, Effect.SPEED] = "auto"
    """Device such as cuda or cpu; auto takes an accelerator where there is one."""

    eval_every: Annotated[int, COUNT] = 25
    """Number of rollouts between evaluations."""
    eval_problems: Annotated[int, COUNT] = 64
    """Number of held-out problems in an evaluation; all where there are fewer."""
    eval_samples: Annotated[int, EVAL_SAMPLES] = 16
    """Number of responses to each held-out problem, the largest k of avg@k and pass@k."""
    eval_temperature: Annotated[float, POSITIVE] = 1.0
    """Temperature of sampling in evaluations, which sample from the model itself, without ERA."""
    checkpoint_every: Annotated[int, COUNT, Effect.SPEED] = 50
    """Number of rollouts between checkpoints; one more is saved at the end."""
    threads: Annotated[int, THREADS, Effect.SPEED] = 0
    """CPU threads of PyTorch; 0 lets PyTorch choose."""
    track: Annotated[Track | None, Effect.SPEED] = None
    """Tracker beside TensorBoard, whose files are written where it is installed; none turns them off too."""

    def __post_init__(self) -> None:
        check(self)
        if self.task not in get_args(TaskName) and not self.of_reasoning_gym:
            known = ", ".join(get_args(TaskName))
            raise ValueError(f"task={self.task!r} must be one of {known}, reasoning_gym:<name>")
        if self.task == "file" and self.data is None:
            raise ValueError("task='file' needs --data: a jsonl, json or parquet file of questions and answers")
        if QUESTIONS.holds(self) and (self.model == "tiny" or self.warm_start_steps):
            raise ValueError(
                f"task={self.task!r} has no solutions to begin with: it needs a --model that can speak, and "
                "--warm-start-steps 0"
            )
        if self.samples < 2:
            raise ValueError(f"samples={self.samples} must be at least 2: advantages compare responses of a group")
        if self.kl_cov and self.clip_cov:
            raise ValueError("kl_cov and clip_cov exclude each other: choose one")
        if (self.kl_cov or self.clip_cov) and self.minibatches == 1:
            raise ValueError(
                "kl_cov and clip_cov do nothing where every ratio is 1: give --minibatches of at least 2"
            )
        if self.loss == "gspo" and (self.forking < 1 or self.clip_cov):
            raise ValueError(
                "forking and clip_cov choose tokens that give a gradient, and with loss='gspo' a response gives "
                "one as a whole: choose another loss"
            )
        if self.loss == "cispo" and (self.kl_cov or self.clip_cov):
            raise ValueError(
                "loss='cispo' has a policy loss of its own: kl_cov and clip_cov are for losses that clip ratios"
            )
        if self.head != "none" and self.controller != "none":
            raise ValueError(
                f"head={self.head!r} and controller={self.controller!r} both steer the entropy: choose"
            )
        stages = self.omega_low, self.omega_high, self.second_stage
        if self.head == "era-floor" and stages != ("auto", "auto", 1):
            raise ValueError(
                "head='era-floor' holds the entropy at min_entropy: give that instead of omega_low, omega_high "
                "and second_stage"
            )
        if self.controller == "skywork" and self.entropy_coef:
            raise ValueError(
                "controller='skywork' decides the weight of the entropy bonus: leave out entropy_coef"
            )
        if self.advantages != "group" and self.loss == "dr-grpo":
            raise ValueError(
                f"loss='dr-grpo' has advantages of its own: advantages={self.advantages!r} needs grpo"
            )
        if self.advantages == "ds-grpo" and self.top_k is not None:
            raise ValueError(
                "top_k keeps logits where advantages are positive, and those of ds-grpo follow from the "
                "log-probabilities: leave out top_k"
            )
        if self.prompts % self.minibatches:
            raise ValueError(f"prompts={self.prompts} must be a multiple of minibatches={self.minibatches}")
        for low, high in (("omega_low", "omega_high"), ("omega_low_2", "omega_high_2")):
            thresholds = [getattr(self, name) for name in (low, high)]
            if "auto" not in thresholds and not thresholds[0] < thresholds[1]:
                raise ValueError(f"{low}={thresholds[0]} must be below {high}={thresholds[1]}")

    def resolved(self) -> LanguageConfig:
        """The same settings with values for None where they follow from others; `max_new_tokens` needs the task.

        Raises:
            ValueError: A setting would be ignored, or has no effect.
        """
        check_counted(self)
        if not self.second_stage:
            raise ValueError("second_stage=0.0 leaves no first stage: give more")
        if self.head != "none" and self.min_advantage > self._largest_advantage:
            raise ValueError(
                f"min_advantage={self.min_advantage:g} is above {self._largest_advantage:g}, which is the largest "
                "advantage for rewards of at most 1, so no response would be scaled: give less"
            )
        if not self.freeze_scale and self.minibatches == 1:
            raise ValueError(
                "freeze_scale=False does nothing with one update per rollout: give --minibatches of at least 2"
            )
        return self.filled()

    def filled(self) -> LanguageConfig:
        """As `resolved`, without its checks: runs of earlier versions may have such settings."""
        low, high = self._clip
        task = "countdown-3" if self.task == "countdown" else self.task
        name = self.model.rstrip("/").rsplit("/", 1)[-1]
        return replace(
            self,
            task=task,
            clip_low=low,
            clip_high=high,
            out=self.out or f"runs/language/{task.replace(':', '-')}-{name}/{self.label}/seed-{self.seed}",
        )

    @property
    def is_controlled(self) -> bool:
        """Whether something holds the entropy at `min_entropy`."""
        return self.head == "era-floor" or self.controller != "none"

    @property
    def of_reasoning_gym(self) -> bool:
        """Whether the task is one of the library reasoning-gym."""
        return self.task.startswith("reasoning_gym:")

    @property
    def _clip(self) -> tuple[float, float]:
        low, high = CLIP[self.loss]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def _largest_advantage(self) -> float:
        """Largest size of an advantage that ERA may scale, for rewards from 0 to 1; inf if it is not checked."""
        if self.loss == "dr-grpo":
            return 1 - 1 / self.samples
        if self.advantages == "w-reinforce":
            return max(self.right_weight, 1.0) if self.era_signs == "both" else self.right_weight
        return math.inf

    @property
    def label(self) -> str:
        """Name of what is compared: the loss and its variants."""
        clip, era = self._clip, self.head == "era"
        variants = {
            self.advantages: self.advantages != "group",
            self.head: self.head != "none",
            self.controller: self.controller != "none",
            f"floor-{self.min_entropy}": self.is_controlled and self.min_entropy != "auto",
            "falling": self.min_entropy_decay > 0,
            f"k-{self.k:g}": era and self.k != 2,
            "both-signs": self.era_signs == "both",
            "forking-scale": self.era_tokens == "forking",
            "by-failures": self.era_by_failures,
            "eq-17": self.scale_advantages,
            f"low-{self.omega_low}": era and self.omega_low != "auto",
            f"high-{self.omega_high}": era and self.omega_high not in ("auto", math.inf),
            "no-high": era and self.omega_high == math.inf,
            f"above-{self.min_advantage:g}": era and self.min_advantage > 0,
            "follows": era and not self.freeze_scale,
            f"top-{self.top_k}": era and self.top_k is not None,
            f"clip-{clip[0]:g}-{clip[1]:g}": clip != CLIP[self.loss] and not self.kl_cov,
            f"bonus-{self.entropy_coef}": self.entropy_coef,
            f"forking-{self.forking}": self.forking < 1,
            f"kl-cov-{self.kl_cov}": self.kl_cov,
            f"clip-cov-{self.clip_cov}": self.clip_cov,
            f"kl-{self.kl_coef}": self.kl_coef,
        }
        return "-".join([self.loss, *(name for name, used in variants.items() if used)])
