"""Everything that a run of `entropyfloor train language` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from entropyfloor.runs.settings import COUNT, FINITE, NATURAL, POSITIVE, SHARE, Range, check

TaskName = Literal["countdown", "countdown-3", "countdown-4", "arithmetic", "modular", "file"]
LossName = Literal["grpo", "dr-grpo", "gspo"]
Precision = Literal["no", "bf16"]
Threshold = float | Literal["auto"]

ABOVE_ONE = Range(1, math.inf, "above 1", open=True)
SOME = Range(math.ulp(0), 1, "above 0 and at most 1")
RANGES = {
    **dict.fromkeys(("layers", "hidden", "heads", "prompts", "samples", "minibatches"), COUNT),
    "max_new_tokens": Range(1, 2**24, "between 1 and 2**24"),
    "largest": Range(2, math.inf, "at least 2"),
    **dict.fromkeys(("digits", "chain_length", "max_prompt", "context", "sample_batch", "micro_batch"), COUNT),
    **dict.fromkeys(("eval_every", "eval_problems", "checkpoint_every"), COUNT),
    "eval_samples": Range(1, 1024, "between 1 and 1024"),
    **dict.fromkeys(("warm_start_steps", "warm_start_batch", "steps", "max_refills", "min_level"), NATURAL),
    **dict.fromkeys(("weight_decay", "clip_low", "clip_high", "kl_coef", "kl_cov_coef", "warmup"), NATURAL),
    **dict.fromkeys(("omega_low", "omega_low_2", "min_advantage"), NATURAL),
    **dict.fromkeys(("warm_start_random", "kl_cov", "clip_cov", "second_stage"), SHARE),
    **dict.fromkeys(("forking", "top_fraction"), SOME),
    **dict.fromkeys(("learning_rate", "warm_start_learning_rate", "temperature", "eval_temperature"), POSITIVE),
    "clip_grad": POSITIVE,
    "entropy_coef": FINITE,
    "k": ABOVE_ONE,
    **dict.fromkeys(
        ("omega_high", "omega_high_2"), Range(0, math.inf, "at least 0, or inf for none", finite=False)
    ),
    "top_k": COUNT,
}
CLIP: dict[LossName, tuple[float, float]] = {"grpo": (0.2, 0.2), "dr-grpo": (0.2, 0.2), "gspo": (3e-4, 4e-4)}
"""Below and above 1, where nothing else is said."""


@dataclass(frozen=True)
class LanguageConfig:
    """A language model, warmed up by supervision and trained by RL. What is left at None follows from the rest."""

    task: TaskName = "countdown-3"
    """countdown (that is countdown-3), countdown-4, arithmetic, modular, which need no download; or file."""
    largest: int = 20
    """Task countdown: the largest of the numbers."""
    digits: int = 2
    """Task arithmetic: digits of the larger numbers."""
    chain_length: int = 5
    """Task modular: operations of a chain."""
    data: str | None = None
    """Task file: a jsonl, json or parquet file of questions with answers to train on."""
    test_data: str | None = None
    """Task file: one to be judged on; by default a tenth of `data`."""
    min_level: int = 0
    """Task file: only problems of at least this level; the paper trains on MATH from 3 on."""
    prompt: str = "{question}"
    """Task file: what the model is given; {question} stands for the question."""
    template: Literal["chat"] | None = None
    """Task file: chat puts the tokenizer's own chat template around the prompt, and whole chats into it."""
    question_column: str | None = None
    """Task file: what the column of questions is called, if not as usual; a dot goes into a column of columns."""
    answer_column: str | None = None
    """Task file: what the column of answers is called, if not as usual."""
    max_prompt: int | None = None
    """Task file: longest prompt in tokens; problems with longer ones are left out, and their number is told."""
    model: str = "tiny"
    """Any causal language model, by hub name or path; tiny is one of the Qwen2 architecture made from nothing."""
    stop_token: str | None = None
    """Ends a response beside what the model ends at, such as <|im_end|> where the prompt has turns."""
    context: int | None = None
    """Tokens of prompt and response together, if not what the model's config says."""
    layers: int = 4
    """Model tiny: transformer layers."""
    hidden: int = 128
    """Model tiny: width."""
    heads: int = 4
    """Model tiny: attention heads."""
    seed: int = 0
    """Everything random follows from it."""
    steps: int = 150
    """Rollouts, each followed by `minibatches` updates."""
    recipe: str | None = None
    """A remark: the recipe that asked for the run, its scale and its arm."""
    out: str | None = None
    """Run directory; by default runs/language/<task>-<model>/<name of what is compared>/seed-<seed>."""

    warm_start_steps: int = 400
    """Supervised updates on solutions before RL; 0 for none."""
    warm_start_batch: int = 128
    """Solutions in each of them."""
    warm_start_learning_rate: float = 1e-3
    """Of AdamW, falling as a cosine."""
    warm_start_random: float = 0.5
    """Share of derivations that are well formed but may miss the answer, so that something is left to learn."""
    warm_starts: str | None = None
    """Directory of models warmed up: what a run with the same warm start has left there is not done again."""

    prompts: int = 16
    """Problems in a rollout."""
    samples: int = 16
    """Responses to each problem: a group."""
    temperature: float = 1.0
    """Of sampling."""
    max_new_tokens: int | None = None
    """Longest response; the generated tasks know theirs."""
    dynamic_sampling: bool = False
    """Drop groups whose responses all earned the same, and fill the rollout up with others."""
    max_refills: int = 3
    """How often it is filled up at most."""
    minibatches: int = 1
    """Updates that share a rollout; with 1 every ratio is 1, and no clip or covariance does anything."""
    sample_batch: int = 256
    """Responses that are sampled at a time: what their keys and values take is memory."""
    micro_batch: int = 256
    """Responses in a forward pass; gradients add up, so it changes nothing but memory."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer and compute the rest again on the way back: less memory, more time."""

    loss: LossName = "grpo"
    """grpo, dr-grpo (no standard deviation, constant length), gspo (ratio of whole responses)."""
    aggregate: Literal["token-mean", "sequence-mean"] = "token-mean"
    """Loss grpo: the mean over all tokens of the batch, or over responses of their means."""
    clip_low: float | None = None
    """How far below 1 a ratio counts: 0.2, and 3e-4 for gspo; KL-Cov has no bounds."""
    clip_high: float | None = None
    """How far above: 0.2, and 4e-4 for gspo; clip-higher is 0.28."""
    entropy_coef: float = 0.0
    """What a nat of entropy is worth to the loss."""
    forking: float = 1.0
    """Share of tokens, those of highest entropy, that give a gradient; 0.2 for forking tokens."""
    kl_cov: float = 0.0
    """KL-Cov: share of tokens, those of highest covariance, with a penalty; the paper of KL-Cov has 2e-3."""
    kl_cov_coef: float = 1.0
    """KL-Cov: its weight."""
    clip_cov: float = 0.0
    """Clip-Cov: share of tokens, drawn among those of high covariance, that give no gradient; 2e-4."""
    kl_coef: float = 0.0
    """Weight of the KL divergence to the model as RL began with it."""

    head: Literal["none", "era"] = "none"
    """era: log-probabilities of the update are taken at scaled logits (Eq. 16)."""
    omega_low: Threshold = "auto"
    """ω_low: responses of less entropy are made more random. auto: 0.75 of the entropy that RL begins with.
    With head none the thresholds do no more than count responses."""
    omega_high: Threshold = "auto"
    """ω_high: those of more are made less random. auto: 5 times the entropy that RL begins with."""
    second_stage: float = 1.0
    """Share of `steps` after which the second pair of thresholds holds; 1 for never."""
    omega_low_2: Threshold = "auto"
    """ω_low of the second stage. auto: 4/9 of the first one's, as the paper's 0.2 is of its 0.45."""
    omega_high_2: float = math.inf
    """ω_high of the second stage."""
    k: float = 2.0
    """Scale of Eq. 16."""
    min_advantage: float = 0.0
    """Only positive advantages of at least this have their logits scaled; 1.0 mimics the release."""
    top_k: int | None = None
    """Logits of the update outside the largest so many are dropped where the advantage is positive: 20."""
    scale_advantages: bool = False
    """Divide advantages by the scale (Eq. 17)."""
    freeze_scale: bool = True
    """Decide the scale once a rollout; False decides it again in each forward pass, as the release does."""
    top_fraction: float = 0.2
    """Share of a response's tokens, those of highest entropy, whose mean is the entropy of the response."""

    learning_rate: float = 1e-4
    """Of AdamW in RL; a small model is destroyed by 4e-4."""
    weight_decay: float = 0.0
    """Of AdamW."""
    warmup: int = 0
    """Rollouts in which the learning rate rises; it is constant after."""
    clip_grad: float = 1.0
    """Gradients are scaled down to this norm."""
    precision: Precision = "no"
    """Mixed precision of the model in RL, as it samples and as it learns; its logits are float32 in any case."""
    device: str = "auto"
    """Such as cuda or cpu; auto takes an accelerator where there is one."""

    eval_every: int = 25
    """Rollouts between evaluations."""
    eval_problems: int = 64
    """Held-out problems of an evaluation, or all if they are fewer."""
    eval_samples: int = 16
    """Responses to each: avg@k and pass@k up to this k."""
    eval_temperature: float = 1.0
    """Of sampling; the policy that is judged is the original one, without ERA."""
    checkpoint_every: int = 50
    """Rollouts between checkpoints; the end always saves one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves the choice to it."""

    def __post_init__(self) -> None:
        check(self, RANGES)
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
        self._refuse_ignored()
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

    def _refuse_ignored(self) -> None:
        """What was given and would do nothing was meant to do something."""
        parts = {
            "task='file'": (
                self.task == "file",
                (
                    *("data", "test_data", "min_level", "prompt", "template", "question_column", "answer_column"),
                    "max_prompt",
                ),
            ),
            "a model that is read": (self.model != "tiny", ("stop_token",)),
            "model='tiny'": (self.model == "tiny", ("layers", "hidden", "heads")),
            "warm_start_steps": (
                self.warm_start_steps > 0,
                ("warm_start_batch", "warm_start_learning_rate", "warm_start_random", "warm_starts"),
            ),
            "dynamic_sampling": (self.dynamic_sampling, ("max_refills",)),
            "second_stage": (self.second_stage < 1, ("omega_low_2", "omega_high_2")),
            "task='countdown'": (self.task.startswith("countdown"), ("largest",)),
            "task='arithmetic'": (self.task == "arithmetic", ("digits",)),
            "task='modular'": (self.task == "modular", ("chain_length",)),
            "loss='grpo'": (self.loss == "grpo", ("aggregate",)),
            "kl_cov": (self.kl_cov > 0, ("kl_cov_coef",)),
            "head='era'": (
                self.head == "era",
                ("k", "min_advantage", "top_k", "scale_advantages", "freeze_scale"),
            ),
        }
        defaults = {field.name: field.default for field in fields(self)}
        for part, (is_there, names) in parts.items():
            given = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != defaults[name]]
            if given and not is_there:
                raise ValueError(f"{', '.join(given)} would be ignored without {part}")

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
