"""TRL's GRPO trainer with ERA in the loss."""

from __future__ import annotations

import functools
import inspect
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import trl
from accelerate.utils import is_peft_model
from packaging.version import Version
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from entropyfloor.integrations.floor import controller_of, hyperparameters_of, load_state, save_state
from entropyfloor.integrations.trl.config import ERAGRPOConfig
from entropyfloor.integrations.trl.head import HeadOptions, add_era_head, log_probs_of
from entropyfloor.integrations.trl.loss import ScaledPolicy, loss_mask
from entropyfloor.language import losses, metrics, update
from entropyfloor.language.thresholds import thresholds_of_stages
from entropyfloor.torch import functional as F

TRIED = "1.15", "1.16"
"""Versions of TRL that the tests have passed with."""
STATE = "era_state.json"
"""File of a checkpoint with what resuming needs."""
OUTSIDE = "below", "above"
"""Places of a response outside of the thresholds."""


class Stage(NamedTuple):
    """What holds for a rollout."""

    omega_low: float
    """ω_low; under era-floor the floor."""
    omega_high: float
    top_k: int | None


class ERAGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer`, whose loss takes log-probs at scaled logits for some responses (Eq. 16).

    Arguments are those of `GRPOTrainer`. Only the ratio of the policy is scaled: entropies, the KL divergence to
    the reference, the comparison with the sampler, sampling and evaluation are those of the policy as it is.

    Raises:
        ImportError: An untried version of TRL.
        TypeError: `args` is no `ERAGRPOConfig`.
        ValueError: The model or a setting cannot be used with ERA.
    """

    _tag_names = ["trl", "grpo", "era"]  # noqa: RUF012  TRL has lists
    _name = "GRPO with ERA"
    _paper = {  # noqa: RUF012
        "title": "Entropy Regularizing Activation: Boosting Continuous Control, Large Language Models, and Image "
        "Classification with Activation as Entropy Constraints",
        "id": "2510.08549",
    }
    args: ERAGRPOConfig

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: ERAGRPOConfig | None = None, *others: Any, **more: Any
    ) -> None:
        check_version(trl.__version__)
        args = ERAGRPOConfig() if args is None else args
        if not isinstance(args, ERAGRPOConfig):
            raise TypeError(f"args is a {type(args).__name__}: it must be an ERAGRPOConfig")
        super().__init__(model, reward_funcs, args, *others, **more)
        if not args.inert:
            add_era_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        if args.kl_cov:
            self.epsilon_low = self.epsilon_high = math.inf  # KL-Cov has its penalty instead of bounds
        self.stage = Stage(0.0, math.inf, None)
        """Thresholds of the current rollout."""
        self.controller = controller_of(args, top_k="era_top_k")
        """What decides the scale of era-floor."""
        self.controller.check_reachable(self.model.config.get_text_config().vocab_size)
        self._initial_entropy: float | None = None
        self._observed = torch.zeros(4)
        """Sums over the current rollout: responses, tokens, and their entropies."""
        self._rollout_step = 0
        self._scores: list[tuple[Tensor, Tensor]] | None = None

    @property
    def on_policy(self) -> bool:
        """Whether no optimiser step has been made since the rollout."""
        return self.state.global_step == self._rollout_step

    def scoring(self, model: Any) -> Any:
        """The model as TRL calls it for log-probs, which then are those of `token_scores`."""
        if self.args.inert:
            return model
        k = self.hyperparameters.k
        options = HeadOptions(k, self.temperature, self.stage.top_k, self.args.cast_lm_head_to_fp32)
        return functools.partial(model, era=options)

    # --- the rollout --------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's rollout; where it has old log-probs, also scales, and old log-probs at them."""
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._rollout_step = self.state.global_step
        self.stage = self._stage()
        self._scores = []
        output = super()._generate_and_score_completions(inputs)
        scores, self._scores = self._scores, None
        if "old_per_token_logps" in output:  # TRL computes them first
            chosen = scores[0]
        elif self._needs_entropy:
            chosen = self._score(output)
        else:  # the loss has the same policy, and decides
            return output
        mask, advantages = loss_mask(output), output["advantages"]
        self._set_initial_entropy(chosen[1], mask)
        self.stage = self._stage()
        scale = output["era_scale"] = self.choose_scale(chosen[1], mask, advantages)
        self.log_rollout(chosen[1], mask, scale)
        if self.args.inert or "old_per_token_logps" not in output:
            return output
        filtered = None if self.stage.top_k is None else advantages > 0
        output["era_old_per_token_logps"] = log_probs_of(chosen[0], scale, filtered)
        if self.args.kl_cov or self.args.clip_cov:
            self._choose_tokens(output, mask)
        return output

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> tuple:
        """TRL's; in a rollout, what it computes with the policy is kept at all scales."""
        if self._scores is None or model is not self.model:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        kwargs["compute_entropy"] = True
        scored = super()._get_per_token_logps_and_entropies(self.scoring(model), *args, **kwargs)
        self._scores.append(scored[:2])
        log_probs = scored[0] if self.args.inert else scored[0][..., 0]
        return log_probs, *scored[1:]

    @torch.no_grad()
    def _score(self, rollout: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of a rollout by the policy."""
        score = super()._get_per_token_logps_and_entropies
        others = {name: rollout[name] for name in inspect.signature(score).parameters if name in rollout}
        tokens = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
        attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
        log_probs, entropies, _ = score(
            self.scoring(self.model),
            tokens,
            attention,
            rollout["completion_ids"].shape[1],
            batch_size=self.args.per_device_train_batch_size,
            compute_entropy=True,
            **others,
        )
        return log_probs, entropies

    # --- scales -------------------------------------------------------------------------------------------

    @property
    def hyperparameters(self) -> update.Hyperparameters:
        """Hyperparameters of the scales in the current rollout."""
        return hyperparameters_of(self.args, self.controller, *self.stage[:2])

    def choose_scale(self, entropies: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        """Scale `[B]` of each response, or `[B, T]` of forking tokens; 1 for responses that TRL masks."""
        hp = self.hyperparameters
        scale = torch.ones_like(entropies)
        if hp.era:
            scale = update.scales_of(entropies, mask, advantages, None, hp)
        scale = torch.where(mask.any(1)[:, None], scale, 1.0)
        return scale if hp.era_tokens == "forking" else scale[:, 0]

    def log_rollout(self, entropies: Tensor, mask: Tensor, scale: Tensor) -> None:
        """Log thresholds, and means over the responses of all processes that TRL does not mask."""
        of_responses, some = F.response_entropy(entropies, mask, self.args.top_fraction), mask.any(1)
        quantities = metrics.response_quantities(of_responses, scale, *self.stage[:2])
        sums = [(quantity * some).sum() for quantity in (some, *quantities.values())]
        sums += [mask.sum(), (entropies * mask).sum()]
        totals = self.accelerator.reduce(torch.stack([x.float() for x in sums]), reduction="sum").tolist()
        responses, *of_quantities, tokens, of_tokens = totals
        of_each = dict(zip(quantities, of_quantities, strict=True))
        self._observed += torch.tensor([responses, tokens, of_each["response_entropy"], of_tokens])
        of_each["response_entropy/between"] = responses - sum(of_each[f"response_entropy/{x}"] for x in OUTSIDE)
        means = {name: total / max(1.0, responses) for name, total in of_each.items()}
        means |= {"token_entropy": of_tokens / max(1.0, tokens), **metrics.thresholds(*self.stage[:2])}
        for name, value in means.items():
            self._metrics["train"][f"era/{name}"].append(value)

    def _stage(self) -> Stage:
        """What holds at this optimiser step; a floor and automatic thresholds are out of reach until known.

        Raises:
            ValueError: Automatic thresholds of a stage cross.
        """
        args, start = self.args, self.args.second_stage_steps
        if start is not None and start < 1:
            start *= self.state.max_steps
        is_second = start is not None and self.state.global_step >= start
        top_k = None if is_second else args.era_top_k  # only the paper's first stage drops logits
        if self._needs_entropy:
            return Stage(0.0, math.inf, top_k)
        if args.head == "era-floor":
            return Stage(self.controller.floor(self.state.global_step / self.state.max_steps), math.inf, top_k)
        first: Any = args.omega_low, args.omega_high
        second: Any = args.omega_low_2, args.omega_high_2
        stages = thresholds_of_stages(first, second, self._initial_entropy or 0.0)
        low, high = stages[is_second]
        return Stage(low, high, top_k)

    @property
    def _needs_entropy(self) -> bool:
        """Whether a controller or thresholds begin with an entropy that is not known yet."""
        if self.args.head == "era-floor":
            return self.controller.smoothed is None
        return "auto" in (self.args.omega_low, self.args.omega_high) and self._initial_entropy is None

    def _set_initial_entropy(self, entropies: Tensor, mask: Tensor) -> None:
        """The mean entropy of the first responses, of all processes; masked ones do not count."""
        if self._needs_entropy:
            of_responses = F.response_entropy(entropies, mask, self.args.top_fraction)
            sums = torch.stack([of_responses.sum(), mask.any(1).sum()])  # an empty response has the entropy 0
            total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
            entropy = total / count if count else None
            if self._initial_entropy is None:
                self._initial_entropy = entropy
            if self.args.head == "era-floor" and entropy is not None:
                self.controller.begin({"response_entropy": entropy})

    def _choose_tokens(self, rollout: dict[str, Any], mask: Tensor) -> None:
        """The tokens of KL-Cov or Clip-Cov, from the rollout of all processes."""
        accelerator, args = self.accelerator, self.args
        padded = (
            accelerator.pad_across_processes(x, dim=1) for x in (rollout["old_per_token_logps"], mask.long())
        )
        old, everywhere, advantages = (accelerator.gather(x) for x in (*padded, rollout["advantages"]))
        covariances = losses.token_covariances(old, advantages, everywhere)
        if args.kl_cov:
            chosen = losses.kl_cov_tokens(covariances, everywhere, args.kl_cov)
        else:
            generator = torch.Generator().manual_seed(args.seed + self.state.global_step)
            clipped = torch.zeros_like(everywhere)  # by the policy that sampled no ratio is clipped
            chosen = losses.clip_cov_tokens(covariances, clipped, everywhere, generator, fraction=args.clip_cov)
        first = accelerator.process_index * len(mask)
        own = chosen[first : first + len(mask), : mask.shape[1]]
        rollout["era_penalised" if args.kl_cov else "era_used"] = own if args.kl_cov else ~own

    def _observe(self) -> None:
        """Let the controller take note of a rollout after its updates; logs what they used."""
        responses, tokens, *entropies = self._observed.tolist()
        self._observed.zero_()
        if self.controller.first is None or not responses:
            return
        means = {"response_entropy": entropies[0] / responses, "token_entropy": entropies[1] / tokens}
        for name, value in self.controller.observe(means, self.stage.omega_low).items():
            self._metrics["train"][f"era/{name}"].append(value)

    # --- loss and checkpoints -----------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, of a micro-batch; after the last of a rollout the controller decides for the next."""
        loss = super().training_step(*args, **kwargs)
        if self._step % self.args.rollout_steps == 0:
            self._observe()
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss of the scaled policy in training, and of the policy itself in evaluation."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        policy = ScaledPolicy(self, model, inputs)
        return super()._compute_loss(policy, policy.inputs) + policy.loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._initial_entropy is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_state(folder / STATE, self.controller, self._initial_entropy)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / STATE).exists():
            self._initial_entropy = load_state(file, self.controller)


def check_version(version: str) -> None:
    """Refuse versions of TRL whose trainer may have other parts than those that are overridden here.

    Raises:
        ImportError: The version is not among `TRIED`.
    """
    if not any(Version(version).release[:2] == Version(tried).release for tried in TRIED):
        raise ImportError(
            f"TRL {version} is installed, and ERAGRPOTrainer works with {' and '.join(TRIED)}: "
            f"pip install 'trl=={TRIED[-1]}.*'"
        )
