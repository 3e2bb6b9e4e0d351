"""Trainer of language models: warm start, rollouts, updates, evaluations, checkpoints.

A step is a rollout and the updates that share it. Everything random in a step follows from the seed and the number
of the step, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.language import advantages, update
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.controllers import Controller
from entropyfloor.language.evaluate import STREAM, Evaluation, evaluate_model
from entropyfloor.language.model import files
from entropyfloor.language.model.forward import device_of, rows_of
from entropyfloor.language.model.learning import checkpoint_layers, prepare_update
from entropyfloor.language.prepare import (
    MODEL,
    adapt_task,
    build_model,
    encode_prompts,
    hyperparameters_of,
    sampling_of,
)
from entropyfloor.language.sampling.checks import check_training
from entropyfloor.language.sampling.rollout import Responses, joined, parts, sample
from entropyfloor.language.tasks import Problem, Task
from entropyfloor.language.thresholds import first_thresholds, second_thresholds, thresholds_of_stages
from entropyfloor.language.warm_start import warm_start
from entropyfloor.runs import Checkpoint, Run
from entropyfloor.runs.loop import Loop, check_finite, training_loop
from entropyfloor.torch.checkpoint import arrays_of, pack, tensors_below, unpack_optimiser
from entropyfloor.torch.seeding import derived, seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

INIT, PROBLEMS, SAMPLE, UPDATE = 0, 2, 3, 4
"""Streams of random numbers; the warm start and evaluations have other ones."""
IDLE_ROLLOUTS = 3
"""Number of first rollouts without different rewards in any group, after which a run warns."""


class Trainer:
    """Trainer of language models.

    Args:
        config: Complete settings.
        task: Task of the config.
        described: Directory with the description of the model, if its weights come from a checkpoint.

    Raises:
        ValueError: There is no such model, the responses do not fit into its context, or its vocabulary is too
            small for `min_entropy`.
    """

    def __init__(self, config: LanguageConfig, task: Task, described: Path | None = None) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.task, self.step = config, task, 0
        self.device = device_of(config.device)
        seed(config.seed, INIT)
        built = build_model(config, task) if described is None else files.described(described)
        self.model, self.tokenizer = built
        self.model.to(self.device).eval()  # type: ignore[arg-type]
        check_training(self.model)
        adapt_task(task, config, self.model, self.tokenizer)
        if config.gradient_checkpointing:
            checkpoint_layers(self.model)
        self.reference: PreTrainedModel | None = None
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.thresholds: tuple[float, float] | None = None
        """ω_low and ω_high of the first stage; automatic ones are known after the first rollout."""
        self.controller = Controller(config)
        self.controller.check_reachable(rows_of(self.model))
        self.idle = True
        """Whether no group has had different rewards since the beginning."""

    def check_problems(self) -> None:
        """Draw the problems of the first rollout and warm start, to see before training that there are enough.

        Raises:
            ValueError: There are too few, or one has a token that the model does not have.
        """
        try:
            config, what = self.config, "prompts"
            problems = self._problems()
            if config.warm_start_steps:
                what = "warm_start_batch"
                self.task.problems("train", config.warm_start_batch, 0)
        except ValueError as error:
            raise ValueError(f"{what}={getattr(config, what)}: {error}") from None
        encode_prompts(self.config, self.model, self.tokenizer, [problem.prompt for problem in problems])

    def fit(self, run: Run) -> None:
        """Train to the end, with an evaluation before RL and every `eval_every` steps.

        The first Ctrl-C or SIGTERM ends the loop after the step that is being computed, and saves. A warm start
        has no checkpoints, and stops at once.
        """
        config, total = self.config, self.config.warm_start_steps + self.config.steps
        frame = training_loop([run], total=total, domain="language", seed=config.seed, every=1, track=config.track)
        with closing(self.task), frame as loop:
            self._begin(run, loop)
            while self.step < config.steps and not loop.stopping:
                metrics = self._train_step()
                self.step += 1
                run.log(self.step, metrics)
                self._warn_if_idle(metrics)
                check_finite(metrics, self.step, run, self._arrays)
                loop.progress.advance(config.warm_start_steps + self.step)
                if self.step == config.steps or self.step % config.eval_every == 0:
                    self._evaluate(run, loop)
                if self.step % config.checkpoint_every == 0:
                    self.save(run)
            self.save(run)
            if self.step == config.steps:
                files.save(run.path / MODEL, self.model)

    def evaluate(self) -> Evaluation:
        """Evaluate the model as it samples, without ERA, on held-out problems, which are always the same."""
        config = self.config
        return evaluate_model(
            self.model,
            self.tokenizer,
            self.task,
            self.hyperparameters,
            problems=config.eval_problems,
            samples=config.eval_samples,
            seed=derived(config.seed, STREAM, self.step),
            temperature=config.eval_temperature,
            sampling=sampling_of(config),
        )

    def save(self, run: Run) -> None:
        """Write everything that `restore` needs."""
        tensors = {f"model/{name}": tensor for name, tensor in files.weights_of(self.model).items()}
        if self.reference is not None:
            tensors |= {f"reference/{name}": tensor for name, tensor in files.weights_of(self.reference).items()}
        state = {
            "optimiser": pack(self.optimiser.state_dict(), "optimiser", tensors),
            "thresholds": None if self.thresholds is None else [str(value) for value in self.thresholds],
            "controller": self.controller.state,
            "data": self.task.data_checksum,
        }
        run.save(self.step, arrays_of(tensors), state)

    def check_data(self, checkpoint: Checkpoint) -> None:
        """Refuse to continue with other problems than those of the run.

        Raises:
            ValueError: The problems differ.
        """
        checksum = self.task.data_checksum
        if checkpoint.state.get("data", checksum) != checksum:
            source = self.config.task if self.config.data is None else f"data={self.config.data}"
            raise ValueError(f"the problems of {source} are not those that the run began with")

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a run with the same settings.

        Raises:
            ValueError: The checkpoint cannot be used.
        """
        with checkpoint.restoring():
            files.load_weights(self.model, tensors_below("model/", checkpoint.arrays))
            if reference := tensors_below("reference/", checkpoint.arrays):
                self.reference = copy.deepcopy(self.model).eval()
                files.load_weights(self.reference, reference)
            everything = tensors_below("", checkpoint.arrays)
            self.optimiser.load_state_dict(unpack_optimiser(checkpoint.state["optimiser"], everything))
            if (thresholds := checkpoint.state["thresholds"]) is not None:
                self.thresholds = float(thresholds[0]), float(thresholds[1])
            self.controller.state = checkpoint.state.get("controller")
        self.step, self.idle = checkpoint.step, checkpoint.step == 0

    @property
    def hyperparameters(self) -> update.Hyperparameters:
        """Hyperparameters of this step; before the thresholds are known, no response is outside of them."""
        config = self.config
        second_stage = self.step >= config.second_stage * config.steps
        filtered = config.head == "era" and not second_stage  # only the paper's first stage drops logits
        low, high = self.thresholds or (0.0, math.inf)
        if second_stage and self.thresholds is not None:
            low, high = second_thresholds((config.omega_low_2, config.omega_high_2), low)
        stage = {"omega_low": low, "omega_high": high, "top_k": config.top_k if filtered else None}
        return hyperparameters_of(config, **stage | self.controller.changes(self.min_entropy))

    @property
    def min_entropy(self) -> float:
        """The floor of this step, if something holds the entropy at one."""
        return self.controller.floor(self.step / max(1, self.config.steps))

    # --- parts of a step --------------------------------------------------------------------------------

    def _begin(self, run: Run, loop: Loop) -> None:
        """Description of the model; before the first step also warm start, evaluation and a checkpoint."""
        config, begun = self.config, bool(run.checkpoints())

        def advance(done: int) -> None:
            if loop.stopping:  # there is nothing yet that could be saved
                raise KeyboardInterrupt
            loop.progress.advance(done)

        if not (begun and files.is_described(run.path / MODEL)):
            files.describe(run.path / MODEL, self.model, self.tokenizer)
        if not begun and config.warm_start_steps:
            loss = warm_start(self.model, self.tokenizer, self.task, config, advance)
            loop.progress.restart(config.warm_start_steps)
            run.log(0, {"loss/warm_start": loss})
        if not begun:
            self._evaluate(run, loop)
            self.save(run)
        if config.kl_coef and self.reference is None:
            self.reference = copy.deepcopy(self.model).eval()
        loop.progress.restart(config.warm_start_steps + self.step)

    def _train_step(self) -> dict[str, float]:
        started = time.perf_counter()
        with out_of_memory_hint(
            f"give a --micro-batch below {self.config.micro_batch}, or --gradient-checkpointing"
        ):
            batch, metrics = self._rollout()
            if batch is None:
                return metrics
            metrics |= self._update(batch)
            metrics |= self.controller.observe(metrics, self.min_entropy)
        metrics["tokens_per_second"] = metrics.pop("tokens") / (time.perf_counter() - started)
        return metrics

    def _rollout(self) -> tuple[update.Batch | None, dict[str, float]]:
        """Sampled responses with their advantages and scales; None where no group has different rewards."""
        config = self.config
        responses, rewards, metrics = self._sample_groups()
        if responses is None:
            return None, metrics
        values = self._advantages(rewards).flatten().to(self.device)
        failures = 1.0 - rewards.clamp(0.0, 1.0).mean(1).repeat_interleave(config.samples).to(self.device)
        rollout = update.evaluate_rollout(
            self.model, self.reference, responses, values, self.hyperparameters, failures
        )
        entropies = rollout.mean_entropies()
        if self.thresholds is None:
            self._set_thresholds(entropies["response_entropy"])
            self.controller.begin(entropies)
        if config.advantages == "ds-grpo":
            right, mask = rewards.flatten().to(self.device) >= 1, responses.response_mask
            values = values + advantages.smoothing(rollout.batch.unscaled, mask, right, config.smoothing)
        values = self.controller.weigh(values, entropies, self.min_entropy)
        rollout = rollout._replace(batch=rollout.batch._replace(advantages=values))
        batch, more = update.batch_of(rollout, self.hyperparameters)
        return batch, metrics | more

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Advantages that follow from rewards alone, `[groups, samples]`."""
        config = self.config
        if config.advantages == "maxrl":
            return advantages.maxrl_advantages(rewards)
        if config.advantages == "w-reinforce":
            return advantages.weighted_advantages(rewards, config.right_weight)
        return advantages.group_advantages(rewards, std=config.loss != "dr-grpo")

    def _sample_groups(self) -> tuple[Responses | None, Tensor, dict[str, float]]:
        """Responses, group by group, their rewards `[groups, samples]`, and metrics of all that were sampled.

        Groups that dynamic sampling drops, and surplus ones, are missing; without any group responses are None.
        """
        config = self.config
        usable: list[Responses] = []
        usable_rewards: list[Tensor] = []
        all_rewards: list[Tensor] = []
        for refill in range(1 + (config.max_refills if config.dynamic_sampling else 0)):
            repeated = [problem for problem in self._problems(refill) for _ in range(config.samples)]
            responses = sample(
                self.model,
                self.tokenizer,
                [problem.prompt for problem in repeated],
                seed=derived(config.seed, SAMPLE, self.step, refill),
                temperature=config.temperature,
                **sampling_of(config),
            )
            rewards = torch.tensor(self.task.rewards(repeated, responses.texts).tolist()).view(-1, config.samples)
            equal = advantages.equal_rewards(rewards)
            use = ~equal if config.dynamic_sampling else torch.ones_like(equal)
            usable.append(responses.rows(use.repeat_interleave(config.samples)))
            usable_rewards.append(rewards[use])
            all_rewards.append(rewards)
            if sum(map(len, usable_rewards)) >= config.prompts:
                break
        everything, rewards = torch.cat(all_rewards), torch.cat(usable_rewards)
        share = (~advantages.equal_rewards(everything)).double().mean()
        metrics = {"usable_groups": float(share), "reward": float(everything.mean())}
        groups = min(len(rewards), config.prompts) // config.minibatches * config.minibatches
        if not groups:
            return None, rewards[:0], metrics
        chosen = joined(usable, int(self.tokenizer.pad_token_id or 0)).rows(slice(groups * config.samples))
        return chosen, rewards[:groups], metrics

    def _problems(self, refill: int = 0) -> list[Problem]:
        """The training problems of this step."""
        seed = derived(self.config.seed, PROBLEMS, self.step, refill)
        return self.task.problems("train", self.config.prompts, seed)

    def _set_thresholds(self, initial_entropy: float) -> None:
        """Decide the thresholds of the run, from the entropy that RL begins with.

        Raises:
            ValueError: Those of a stage cross.
        """
        config = self.config
        given = (config.omega_low, config.omega_high), (config.omega_low_2, config.omega_high_2)
        if config.head == "era":
            first, _ = thresholds_of_stages(*given, initial_entropy)
        else:  # they only count responses
            first = first_thresholds(given[0], initial_entropy)
        self.thresholds = first

    def _update(self, batch: update.Batch) -> dict[str, float]:
        """The updates that share a rollout, and the means of their metrics."""
        config = self.config
        seed(config.seed, UPDATE, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = min(1.0, (self.step + 1) / max(1, config.warmup)) * config.learning_rate
        prepare_update(self.model)
        size = len(batch.advantages) // config.minibatches
        minibatches = [
            self._minibatch(batch.rows(rows), on_policy=rows.start == 0)
            for rows in parts(len(batch.advantages), size)
        ]
        self.model.eval()
        return {name: sum(m[name] for m in minibatches) / len(minibatches) for name in minibatches[0]}

    def _minibatch(self, batch: update.Batch, *, on_policy: bool) -> dict[str, float]:
        """One update, micro-batch by micro-batch."""
        total: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        hyperparameters = self.hyperparameters
        for loss, metrics in update.policy_losses(
            self.model, batch, hyperparameters, generator, on_policy=on_policy
        ):
            loss.backward()
            for name, value in metrics.items():
                total[name] = total.get(name, 0.0) + value
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {name: float(value) for name, value in total.items()} | {"grad_norm": float(norm)}

    def _evaluate(self, run: Run, loop: Loop) -> None:
        config, evaluation = self.config, self.evaluate()
        metrics, k = evaluation.metrics(), config.eval_samples
        run.log(self.step, metrics)
        run.keep_text(f"samples/{self.step:06d}.txt", evaluation.examples())
        shares = f"avg@{k} {100 * metrics['avg_at_k']:.1f} % · pass@{k} {100 * metrics[f'pass_at_{k}']:.1f} %"
        summary = f"{shares} · entropy {metrics['realised_entropy']:.2f}"
        loop.progress.report(config.warm_start_steps + self.step, summary)

    def _warn_if_idle(self, metrics: dict[str, float]) -> None:
        """Warn once if all responses to each problem have earned the same reward, so that nothing is learned."""
        self.idle = self.idle and not metrics["usable_groups"]
        if not (self.idle and self.step == IDLE_ROLLOUTS):
            return
        reward = metrics["reward"]
        hint = "the problems are too easy for this model" if reward >= 1 else self.task.idle_hint
        message = "no group of the first %d rollouts has different rewards (their mean is %g): %s"
        log.warning(message, IDLE_ROLLOUTS, reward, hint)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Weights of the model, for a failure to be examined."""
        return arrays_of({f"model/{name}": tensor for name, tensor in files.weights_of(self.model).items()})
