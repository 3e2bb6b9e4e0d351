"""Everything that a run of `entropyfloor train language` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from entropyfloor.runs.settings import (
    COUNT,
    NATURAL,
    POSITIVE,
    SEED_RANGE,
    SHARE,
    THREADS,
    CountsIf,
    Effect,
    Range,
    check,
    check_counted,
)

TaskName = Literal["countdown", "countdown-3", "countdown-4", "arithmetic", "modular", "file"]
LossName = Literal["grpo", "dr-grpo", "gspo"]
Precision = Literal["no", "bf16"]
Threshold = float | Literal["auto"]

ABOVE_ONE = Range(1, math.inf, "above 1", open=True)
SOME = Range(math.ulp(0), 1, "above 0 and at most 1")
LENGTH = Range(1, 2**24, "between 1 and 2**24")
AT_LEAST_2 = Range(2, math.inf, "at least 2")
EVAL_SAMPLES = Range(1, 1024, "between 1 and 1024")
UP_TO_INFINITY = Range(0, math.inf, "at least 0, or inf for none", finite=False)

FILE = CountsIf("task='file'", lambda config: config.task == "file")
COUNTDOWN = CountsIf("task='countdown'", lambda config: config.task.startswith("countdown"))
ARITHMETIC = CountsIf("task='arithmetic'", lambda config: config.task == "arithmetic")
MODULAR = CountsIf("task='modular'", lambda config: config.task == "modular")
READ_MODEL = CountsIf("a model that is read", lambda config: config.model != "tiny")
TINY = CountsIf("model='tiny'", lambda config: config.model == "tiny")
WARM_START = CountsIf("warm_start_steps", lambda config: config.warm_start_steps > 0)
DYNAMIC = CountsIf("dynamic_sampling", lambda config: config.dynamic_sampling)
SECOND_STAGE = CountsIf("second_stage", lambda config: config.second_stage < 1)
GRPO = CountsIf("loss='grpo'", lambda config: config.loss == "grpo")
KL_COV = CountsIf("kl_cov", lambda config: config.kl_cov > 0)
ERA = CountsIf("head='era'", lambda config: config.head == "era")

CLIP: dict[LossName, tuple[float, float]] = {"grpo": (0.2, 0.2), "dr-grpo": (0.2, 0.2), "gspo": (3e-4, 4e-4)}
"""Below and above 1, where nothing else is said."""


@dataclass(frozen=True)
class LanguageConfig:
    """A language model, warmed up by supervision and trained by RL. What is left at None follows from the rest."""

    task: TaskName = "countdown-3"
    """countdown (that is countdown-3), countdown-4, arithmetic, modular, which need no download; or file."""
    largest: Annotated[int, AT_LEAST_2, COUNTDOWN] = 20
    """Task countdown: the largest of the numbers."""
    digits: Annotated[int, COUNT, ARITHMETIC] = 2
    """Task arithmetic: digits of the larger numbers."""
    chain_length: Annotated[int, COUNT, MODULAR] = 5
    """Task modular: operations of a chain."""
    data: Annotated[str | None, Effect.PLACE, FILE] = None
    """Task file: a jsonl, json or parquet file of questions with answers to train on."""
    test_data: Annotated[str | None, Effect.PLACE, FILE] = None
    """Task file: one to be judged on; by default a tenth of `data`."""
    min_level: Annotated[int, NATURAL, FILE] = 0
    """Task file: only problems of at least this level; the paper trains on MATH from 3 on."""
    prompt: Annotated[str, FILE] = "{question}"
    """Task file: what the model is given; {question} stands for the question."""
    template: Annotated[Literal["chat"] | None, FILE] = None
    """Task file: chat puts the tokenizer's own chat template around the prompt, and whole chats into it."""
    question_column: Annotated[str | None, FILE] = None
    """Task file: what the column of questions is called, if not as usual; a dot goes into a column of columns."""
    answer_column: Annotated[str | None, FILE] = None
    """Task file: what the column of answers is called, if not as usual."""
    max_prompt: Annotated[int | None, COUNT, FILE] = None
    """Task file: longest prompt in tokens; problems with longer ones are left out, and their number is told."""
    model: str = "tiny"
    """Any causal language model, by hub name or path; tiny is one of the Qwen2 architecture made from nothing."""
    stop_token: Annotated[str | None, READ_MODEL] = None
    """Ends a response beside what the model ends at, such as <|im_end|> where the prompt has turns."""
    context: Annotated[int | None, COUNT] = None
    """Tokens of prompt and response together, if not what the model's config says."""
    layers: Annotated[int, COUNT, TINY] = 4
    """Model tiny: transformer layers."""
    hidden: Annotated[int, COUNT, TINY] = 128
    """Model tiny: width."""
    heads: Annotated[int, COUNT, TINY] = 4
    """Model tiny: attention heads."""
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    """Everything random follows from it."""
    steps: Annotated[int, NATURAL] = 150
    """Rollouts, each followed by `minibatches` updates."""
    recipe: Annotated[str | None, Effect.IDENTITY] = None
    """A remark: the recipe that asked for the run, its scale and its arm."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Run directory; by default runs/language/<task>-<model>/<name of what is compared>/seed-<seed>."""

    warm_start_steps: Annotated[int, NATURAL] = 400
    """Supervised updates on solutions before RL; 0 for none."""
    warm_start_batch: Annotated[int, NATURAL, WARM_START] = 128
    """Solutions in each of them."""
    warm_start_learning_rate: Annotated[float, POSITIVE, WARM_START] = 1e-3
    """Of AdamW, falling as a cosine."""
    warm_start_random: Annotated[float, SHARE, WARM_START] = 0.5
    """Share of derivations that are well formed but may miss the answer, so that something is left to learn."""
    warm_starts: Annotated[str | None, Effect.PLACE, WARM_START] = None
    """Directory of models warmed up: what a run with the same warm start has left there is not done again."""

    prompts: Annotated[int, COUNT] = 16
    """Problems in a rollout."""
    samples: Annotated[int, COUNT] = 16
    """Responses to each problem: a group."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Of sampling."""
    max_new_tokens: Annotated[int | None, LENGTH] = None
    """Longest response; the generated tasks know theirs."""
    dynamic_sampling: bool = False
    """Drop groups whose responses all earned the same, and fill the rollout up with others."""
    max_refills: Annotated[int, NATURAL, DYNAMIC] = 3
    """How often it is filled up at most."""
    minibatches: Annotated[int, COUNT] = 1
    """Updates that share a rollout; with 1 every ratio is 1, and no clip or covariance does anything."""
    sample_batch: Annotated[int, COUNT, Effect.SPEED] = 256
    """Responses that are sampled at a time: what their keys and values take is memory."""
    micro_batch: Annotated[int, COUNT, Effect.SPEED] = 256
    """Responses in a forward pass; gradients add up, so it changes nothing but memory."""
    gradient_checkpointing: Annotated[bool, Effect.SPEED] = False
    """Keep only what goes into each layer and compute the rest again on the way back: less memory, more time."""

    loss: LossName = "grpo"
    """grpo, dr-grpo (no standard deviation, constant length), gspo (ratio of whole responses)."""
    aggregate: Annotated[Literal["token-mean", "sequence-mean"], GRPO] = "token-mean"
    """Loss grpo: the mean over all tokens of the batch, or over responses of their means."""
    clip_low: Annotated[float | None, NATURAL] = None
    """How far below 1 a ratio counts: 0.2, and 3e-4 for gspo; KL-Cov has no bounds."""
    clip_high: Annotated[float | None, NATURAL] = None
    """How far above: 0.2, and 4e-4 for gspo; clip-higher is 0.28."""
    entropy_coef: float = 0.0
    """What a nat of entropy is worth to the loss."""
    forking: Annotated[float, SOME] = 1.0
    """Share of tokens, those of highest entropy, that give a gradient; 0.2 for forking tokens."""
    kl_cov: Annotated[float, SHARE] = 0.0
    """KL-Cov: share of tokens, those of highest covariance, with a penalty; the paper of KL-Cov has 2e-3."""
    kl_cov_coef: Annotated[float, NATURAL, KL_COV] = 1.0
    """KL-Cov: its weight."""
    clip_cov: Annotated[float, SHARE] = 0.0
    """Clip-Cov: share of tokens, drawn among those of high covariance, that give no gradient; 2e-4."""
    kl_coef: Annotated[float, NATURAL] = 0.0
    """Weight of the KL divergence to the model as RL began with it."""

    head: Literal["none", "era"] = "none"
    """era: log-probabilities of the update are taken at scaled logits (Eq. 16)."""
    omega_low: Annotated[Threshold, NATURAL] = "auto"
    """ω_low: responses of less entropy are made more random. auto: 0.75 of the entropy that RL begins with.
    With head none the thresholds do no more than count responses."""
    omega_high: Annotated[Threshold, UP_TO_INFINITY] = "auto"
    """ω_high: those of more are made less random. auto: 5 times the entropy that RL begins with."""
    second_stage: Annotated[float, SHARE] = 1.0
    """Share of `steps` after which the second pair of thresholds holds; 1 for never."""
    omega_low_2: Annotated[Threshold, NATURAL, SECOND_STAGE] = "auto"
    """ω_low of the second stage. auto: 4/9 of the first one's, as the paper's 0.2 is of its 0.45."""
    omega_high_2: Annotated[float, UP_TO_INFINITY, SECOND_STAGE] = math.inf
    """ω_high of the second stage."""
    k: Annotated[float, ABOVE_ONE, ERA] = 2.0
    """Scale of Eq. 16."""
    min_advantage: Annotated[float, NATURAL, ERA] = 0.0
    """Only positive advantages of at least this have their logits scaled; 1.0 mimics the release."""
    top_k: Annotated[int | None, COUNT, ERA] = None
    """Logits of the update outside the largest so many are dropped where the advantage is positive: 20."""
    scale_advantages: Annotated[bool, ERA] = False
    """Divide advantages by the scale (Eq. 17)."""
    freeze_scale: Annotated[bool, ERA] = True
    """Decide the scale once a rollout; False decides it again in each forward pass, as the release does."""
    top_fraction: Annotated[float, SOME] = 0.2
    """Share of a response's tokens, those of highest entropy, whose mean is the entropy of the response."""

    learning_rate: Annotated[float, POSITIVE] = 1e-4
    """Of AdamW in RL; a small model is destroyed by 4e-4."""
    weight_decay: Annotated[float, NATURAL] = 0.0
    """Of AdamW."""
    warmup: Annotated[int, NATURAL] = 0
    """Rollouts in which the learning rate rises; it is constant after."""
    clip_grad: Annotated[float, POSITIVE] = 1.0
    """Gradients are scaled down to this norm."""
    precision: Precision = "no"
    """Mixed precision of the model in RL, as it samples and as it learns; its logits are float32 in any case."""
    device: Annotated[str, Effect.SPEED] = "auto"
    """Such as cuda or cpu; auto takes an accelerator where there is one."""

    eval_every: Annotated[int, COUNT] = 25
    """Rollouts between evaluations."""
    eval_problems: Annotated[int, COUNT] = 64
    """Held-out problems of an evaluation, or all if they are fewer."""
    eval_samples: Annotated[int, EVAL_SAMPLES] = 16
    """Responses to each: avg@k and pass@k up to this k."""
    eval_temperature: Annotated[float, POSITIVE] = 1.0
    """Of sampling; the policy that is judged is the original one, without ERA."""
    checkpoint_every: Annotated[int, COUNT, Effect.SPEED] = 50
    """Rollouts between checkpoints; the end always saves one."""
    threads: Annotated[int, THREADS, Effect.SPEED] = 0
    """CPU threads of PyTorch; 0 leaves the choice to it."""

    def __post_init__(self) -> None:
        check(self)
        if self.task == "file" and self.data is None:
            raise ValueError("task='file' needs --data: a jsonl, json or parquet file of questions and answers")
        if self.task == "file" and (self.model == "tiny" or self.warm_start_steps):
            raise ValueError(
                "task='file' has no solutions to begin with: it needs a --model that can speak, and "
                "--warm-start-steps 0"
            )
        if self.samples < 2:
            raise ValueError(
                f"samples={self.samples} must be at least 2: an advantage compares the responses of a group"
            )
        if self.kl_cov and self.clip_cov:
            raise ValueError("kl_cov and clip_cov are two answers to one question: choose one")
        if (self.kl_cov or self.clip_cov) and self.minibatches == 1:
            raise ValueError(
                "kl_cov and clip_cov do nothing where every ratio is 1: give --minibatches of at least 2"
            )
        if self.loss == "gspo" and (self.forking < 1 or self.clip_cov):
            raise ValueError(
                "forking and clip_cov choose tokens that give a gradient, and with loss='gspo' a response gives "
                "one as a whole: choose another loss"
            )
        if self.prompts % self.minibatches:
            raise ValueError(f"prompts={self.prompts} must be a multiple of minibatches={self.minibatches}")
        for low, high in (("omega_low", "omega_high"), ("omega_low_2", "omega_high_2")):
            thresholds = [getattr(self, name) for name in (low, high)]
            if "auto" not in thresholds and not thresholds[0] < thresholds[1]:
                raise ValueError(f"{low}={thresholds[0]} must be below {high}={thresholds[1]}")

    def resolved(self) -> LanguageConfig:
        """The same run with nothing left at None that has a value; `max_new_tokens` follows from the task.

        Raises:
            ValueError: A setting would be ignored.
        """
        check_counted(self)
        low, high = self._clip
        task: TaskName = "countdown-3" if self.task == "countdown" else self.task
        name = self.model.rstrip("/").rsplit("/", 1)[-1]
        return replace(
            self,
            task=task,
            clip_low=low,
            clip_high=high,
            out=self.out or f"runs/language/{task}-{name}/{self.label}/seed-{self.seed}",
        )

    @property
    def _clip(self) -> tuple[float, float]:
        low, high = CLIP[self.loss]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def label(self) -> str:
        """What is compared: the loss, and what stands beside it."""
        clip, era = self._clip, self.head == "era"
        known = {
            "era": era,
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
        return "-".join([self.loss, *(name for name, used in known.items() if used)])
