"""A language model in progress: supervised warm start, rollouts, updates, evaluations, checkpoints.

A step is a rollout and the updates that share it. Everything random in a step follows from the seed and the number
of the step, so a run that is resumed is the run that was not interrupted. The policy that samples and is judged is
always the original one: ERA is in the log-probabilities of the update only.
"""

from __future__ import annotations

import copy
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.language import losses, model
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.evaluation import Judgement
from entropyfloor.language.sampling.encoding import encode, render
from entropyfloor.language.sampling.rollout import Responses, joined, parts, sample
from entropyfloor.language.support import check_training
from entropyfloor.language.tasks import Problem, Questions, Task, task_of
from entropyfloor.language.warm_start import IGNORED, warm_start
from entropyfloor.runs import Checkpoint, Run
from entropyfloor.runs.processes import terminated_as_interrupted
from entropyfloor.runs.progress import Progress
from entropyfloor.torch import functional as F
from entropyfloor.torch.checkpoint import arrays_of, pack, tensors_below, unpack_optimiser
from entropyfloor.torch.seeding import derived, seed

if TYPE_CHECKING:
    from jaxtyping import Float
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

INIT, PROBLEMS, SAMPLE, UPDATE, EVALUATE = 0, 2, 3, 4, 5
"""Streams of random numbers; 1 is that of the warm start."""
LOW_SHARE, HIGH_SHARE = 0.75, 5.0
"""Thresholds in entropies that RL began with; the paper's 0.45 and 3.0 are as far apart."""
LOW_SHARE_2 = 0.2 / 0.45
"""ω_low of the second stage in that of the first, as in the paper."""
MODEL = "model"
"""Directory of a run in which its model is described, and in the end is."""
FIRST = 3
"""Rollouts after which a run warns that no group had different rewards."""
SHOWN = 4
"""Problems of an evaluation whose responses are written out to be read."""


class Batch(NamedTuple):
    """A rollout, as updates need it: `[B]` or `[B, T]`."""

    responses: Responses
    advantages: Tensor
    entropies: Float[Tensor, "B T"]
    """Of the policy that sampled, at each token."""
    unscaled: Float[Tensor, "B T"]
    """Its log-probabilities."""
    old: Float[Tensor, "B T"]
    """The same at the scale of each response."""
    scale: Float[Tensor, "B 1"]
    reference: Float[Tensor, "B T"] | None

    def rows(self, index: Tensor | slice) -> Batch:
        """Some of the responses."""
        tensors = (each if each is None else each[index] for each in self[1:])
        return Batch._make((self.responses.rows(index), *tensors))


class Seen(NamedTuple):
    """What a forward pass says of each token of responses, with gradients."""

    log_probs: Float[Tensor, "B T"]
    """As the loss compares them: at the scale of each response, filtered in the first stage."""
    unscaled: Float[Tensor, "B T"]
    """Those of the policy itself."""
    entropies: Float[Tensor, "B T"]
    advantages: Tensor
    """As the loss weighs them, `[B]`."""


class Trainer:
    """Trainer of language models.

    Args:
        config: Settings; `self.config` is what they resolve to.
        described: Where the model is described, if its weights come from a checkpoint that is restored.

    Raises:
        ValueError: There is no such model or data, or the responses do not fit into the model.
    """

    def __init__(self, config: LanguageConfig, described: Path | None = None) -> None:
        config = config.resolved()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = model.device_of(config.device)
        self.task: Task = task_of(config)
        length = config.max_new_tokens or self.task.max_new_tokens
        self.config = replace(config, max_new_tokens=length)
        self.step = 0
        seed(config.seed, INIT)
        if described is not None:
            self.model, self.tokenizer = model.described(described)
        elif config.model == "tiny":
            sizes = {"layers": config.layers, "hidden": config.hidden, "heads": config.heads}
            self.model, self.tokenizer = model.tiny(
                self.task.alphabet, length=self.task.max_prompt + length + 1, **sizes
            )
        else:
            chat = config.template == "chat"
            self.model, self.tokenizer = model.load(config.model, config.stop_token, chat=chat)
        self.model.to(self.device).eval()  # type: ignore[arg-type]
        check_training(self.model)
        if config.template == "chat" and isinstance(self.task, Questions):
            self.task.render(partial(render, self.tokenizer))
        if config.gradient_checkpointing:
            model.checkpoint_layers(self.model)
        self._make_room()
        self.reference: PreTrainedModel | None = None
        self.optimiser = self._optimiser(config.learning_rate)
        self.thresholds: tuple[float, float] | None = None

    def check_problems(self) -> None:
        """Draw what a rollout asks, to see before anything is trained whether it can be asked.

        Raises:
            ValueError: There are not so many problems, or one has a token that the model does not have.
        """
        config = self.config
        try:
            asked = self.task.problems("train", config.prompts, derived(config.seed, PROBLEMS, self.step, 0))
        except ValueError as error:
            raise ValueError(f"prompts={config.prompts} for each rollout: {error}") from None
        self._encode([problem.prompt for problem in asked])

    def fit(self, run: Run) -> None:
        """Train to the end, with an evaluation before RL and every `eval_every` steps.

        Ctrl-C and SIGTERM stop at once: what follows the last checkpoint is done again.
        """
        config = self.config
        alone = parent_process() is None
        shown = Progress(
            config.warm_start_steps + config.steps,
            unit="steps",
            label="" if alone else f"seed {config.seed}",
            bar=alone,
            every=1,
        )
        with run.recording(), shown as progress, terminated_as_interrupted():
            try:
                if not (run.checkpoints() and model.is_described(run.path / MODEL)):
                    model.describe(run.path / MODEL, self.model, self.tokenizer)
                if self.step == 0 and not run.checkpoints():
                    if config.warm_start_steps:
                        loss = warm_start(self.model, self.tokenizer, self.task, config, progress.advance)
                        progress.restart(config.warm_start_steps)
                        run.log(0, {"loss/warm_start": loss})
                    self._evaluate(run, progress)
                    self.save(run)
                if config.kl_coef and self.reference is None:
                    self.reference = copy.deepcopy(self.model).eval()
                progress.restart(config.warm_start_steps + self.step)
                idle = self.step == 0
                while self.step < config.steps:
                    found = self._train_step()
                    self.step += 1
                    idle = idle and not found["usable_groups"]
                    if idle and self.step == FIRST:
                        self._say_idle(found["reward"])
                    run.log(self.step, found)
                    self._check_finite(found, run)
                    progress.advance(config.warm_start_steps + self.step)
                    last = self.step == config.steps
                    if last or self.step % config.eval_every == 0:
                        self._evaluate(run, progress)
                    if last or self.step % config.checkpoint_every == 0:
                        self.save(run)
                model.save(run.path / MODEL, self.model)
            except KeyboardInterrupt:
                way = f"continue with: entropyfloor train language --resume {run.path}"
                raise KeyboardInterrupt(f"in step {self.step + 1}: {way}") from None
            finally:
                self.close()

    def close(self) -> None:
        """End the processes that judge responses, if there are any."""
        if isinstance(self.task, Questions):
            self.task.close()

    def save(self, run: Run) -> None:
        """Write everything that `restore` needs."""
        tensors = {f"model/{name}": tensor for name, tensor in model.weights_of(self.model).items()}
        if self.reference is not None:
            tensors |= {f"reference/{name}": tensor for name, tensor in model.weights_of(self.reference).items()}
        state = {
            "optimiser": pack(self.optimiser.state_dict(), "optimiser", tensors),
            "thresholds": None if self.thresholds is None else [str(value) for value in self.thresholds],
            "data": self._data,
        }
        run.save(self.step, arrays_of(tensors), state)

    def check_data(self, checkpoint: Checkpoint) -> None:
        """Refuse to continue with other problems than those of the run.

        Raises:
            ValueError: They are others.
        """
        if checkpoint.state.get("data", self._data) != self._data:
            raise ValueError(f"the problems of data={self.config.data} are not those that the run began with")

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a run with the same settings."""
        with checkpoint.restoring():
            model.load_weights(self.model, tensors_below("model/", checkpoint.arrays))
            if reference := tensors_below("reference/", checkpoint.arrays):
                self.reference = copy.deepcopy(self.model).eval()
                model.load_weights(self.reference, reference)
            everything = tensors_below("", checkpoint.arrays)
            self.optimiser.load_state_dict(unpack_optimiser(checkpoint.state["optimiser"], everything))
            if (thresholds := checkpoint.state["thresholds"]) is not None:
                self.thresholds = float(thresholds[0]), float(thresholds[1])
        self.step = checkpoint.step

    @torch.no_grad()
    def judge(self, problems: int, samples: int, advance: Callable[[int], object] | None = None) -> Judgement:
        """What the model makes of so many held-out problems, always the same ones, or of all if they are fewer.

        Responses are sampled at `eval_temperature`; their entropies are those that the thresholds are about, at
        the temperature of training.

        Args:
            problems: How many.
            samples: Responses to each, beside the likeliest one.
            advance: Called with the number of problems that are answered.
        """
        config, stream = self.config, (EVALUATE, self.step)
        asked: list[Problem] = []
        several: list[Responses] = []
        likeliest: list[Responses] = []
        for some in self._held_out(problems):
            each = [problem for problem in some for _ in range(samples)]
            first = len(asked) * samples
            several.append(self._sample(each, config.eval_temperature, *stream, first=first))
            likeliest.append(self._sample(some, 0.0, *stream, first=len(asked)))
            asked += some
            if advance is not None:
                advance(len(asked))
        drawn, greedy = (joined(batches, self.tokenizer.pad_token_id) for batches in (several, likeliest))
        _, entropies = self._swept(self.model, drawn)
        of_responses = F.response_entropy(entropies, drawn.response_mask, config.top_fraction)
        return Judgement(
            asked,
            drawn.texts,
            self._rewards(asked, drawn, samples).numpy(),
            self._rewards(asked, greedy, 1)[:, 0].numpy(),
            of_responses.cpu().numpy(),
            drawn.response_mask.sum(1).cpu().numpy(),
        )

    def _held_out(self, most: int) -> Iterator[list[Problem]]:
        """At most so many problems, some at a time: of a made task there may be more than can be listed.

        The first of more are always the same, so each time twice as many are asked for. Responses are the same as
        if they were all sampled together, since whole batches are.
        """
        done, count = 0, self.config.sample_batch
        while True:
            found = self.task.problems("test", min(count, most), 0, or_fewer=True)
            if done < len(found):
                yield found[done:]
            if len(found) < count:
                return
            done, count = count, 2 * count

    # --- parts of a run ---------------------------------------------------------------------------------

    def _train_step(self) -> dict[str, float]:
        begun = time.perf_counter()
        with out_of_memory_hint(
            f"give a --micro-batch below {self.config.micro_batch}, or --gradient-checkpointing"
        ):
            batch, found = self._rollout()
            if batch is not None:
                found |= self._update(batch)
        if batch is not None:
            found["tokens_per_second"] = found.pop("tokens") / (time.perf_counter() - begun)
        return found

    def _rollout(self) -> tuple[Batch | None, dict[str, float]]:
        """Responses with their advantages and scales; None where no group is left to learn from."""
        config = self.config
        kept: list[Responses] = []
        rewards: list[Tensor] = []
        earned: list[Tensor] = []
        for refill in range(1 + (config.max_refills if config.dynamic_sampling else 0)):
            number = derived(config.seed, PROBLEMS, self.step, refill)
            problems = self.task.problems("train", config.prompts, number)
            asked = [p for p in problems for _ in range(config.samples)]
            drawn = self._sample(asked, config.temperature, SAMPLE, self.step, refill)
            earned.append(self._rewards(problems, drawn, config.samples))
            use = torch.ones(len(problems), dtype=torch.bool)
            if config.dynamic_sampling:
                use = ~losses.equal_rewards(earned[-1])
            kept.append(drawn.rows(use.repeat_interleave(config.samples)))
            rewards.append(earned[-1][use])
            if sum(map(len, rewards)) >= config.prompts:
                break
        everything = torch.cat(earned)
        usable = (~losses.equal_rewards(everything)).double().mean()
        found = {"usable_groups": float(usable), "reward": float(everything.mean())}
        whole = min(sum(map(len, rewards)), config.prompts) // config.minibatches * config.minibatches
        if not whole:
            return None, found
        responses = joined(kept, self.tokenizer.pad_token_id).rows(slice(whole * config.samples))
        advantages = losses.group_advantages(torch.cat(rewards)[:whole], std=config.loss != "dr-grpo").flatten()
        batch, more = self._prepare(responses, advantages.to(self.device))
        return batch, found | more

    @torch.no_grad()
    def _prepare(self, responses: Responses, advantages: Tensor) -> tuple[Batch, dict[str, float]]:
        """Log-probabilities, entropies and scales of the policy that sampled."""
        config, mask = self.config, responses.response_mask
        era = config.head == "era"
        if era:
            at_scales = partial(F.token_log_probs_all_scales, k=config.k)
            all_scales, entropies = self._swept(self.model, responses, at_scales, advantages)
            unscaled = all_scales[0] if self._top_k is None else self._swept(self.model, responses)[0]
        else:
            unscaled, entropies = self._swept(self.model, responses)
        reference = None if self.reference is None else self._swept(self.reference, responses)[0]
        of_responses = F.response_entropy(entropies, mask, config.top_fraction)
        if self.thresholds is None:
            self.thresholds = self._first_thresholds(float(of_responses.mean()))
        low, high = self._thresholds
        old, scale = unscaled, torch.ones_like(of_responses)
        found: dict[str, float] = {}
        if era:
            scale = F.era_token_scale(of_responses, advantages, **self._era)
            old = F.log_probs_at(all_scales, scale[:, None])
            found = {"omega_low": low, "scaled_share": float((scale != 1).double().mean())}
            if math.isfinite(high):
                found["omega_high"] = high
        forking = losses.forking_tokens(entropies, mask)
        found |= {
            "response_entropy": float(of_responses.mean()),
            "response_entropy/below": float((of_responses < low).double().mean()),
            "response_entropy/above": float((of_responses > high).double().mean()),
            "token_entropy": mean_over(entropies, mask),
            "token_entropy/top": mean_over(entropies, forking),
            "token_entropy/bottom": mean_over(entropies, mask & ~forking),
            "response_length": float(mask.sum(1).double().mean()),
            "ended": float(responses.ended.double().mean()),
            "tokens": float(mask.sum()),
        }
        return Batch(responses, advantages, entropies, unscaled, old, scale[:, None], reference), found

    def _update(self, batch: Batch) -> dict[str, float]:
        """The updates that share a rollout."""
        config = self.config
        seed(config.seed, UPDATE, self.step)
        self._set_learning_rate()
        model.learning(self.model)
        size = len(batch.advantages) // config.minibatches
        found: dict[str, list[float]] = {}
        for number, rows in enumerate(parts(len(batch.advantages), size)):
            for name, value in self._minibatch(batch.rows(rows), on_policy=number == 0).items():
                found.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _minibatch(self, batch: Batch, *, on_policy: bool) -> dict[str, float]:
        """One update; whatever is chosen or normalised over the batch is, before it is taken apart.

        On-policy, in the first update of a rollout, the policy is compared with itself: ratios are 1 and not 1 but
        for rounding, which would clip some of GSPO's and give KL-Cov's |log r|, flat at 0, its full slope.
        """
        config, mask = self.config, batch.responses.response_mask
        means = {"grpo": config.aggregate.removesuffix("-mean"), "dr-grpo": "length", "gspo": "sequence"}
        mean = means[config.loss]
        longest = config.max_new_tokens if mean == "length" else None
        weights = losses.token_weights(mask, mean, max_length=longest)  # type: ignore[arg-type]
        shares = weights if longest is None else losses.token_weights(mask)  # those of Dr. GRPO do not add up to 1
        used = mask
        if config.forking < 1:
            used = losses.forking_tokens(batch.entropies, mask, config.forking)
        penalised = None
        if config.kl_cov or config.clip_cov:
            covariances = losses.token_covariances(batch.unscaled, batch.advantages, mask)
            if config.kl_cov:
                penalised = losses.kl_cov_tokens(covariances, mask, config.kl_cov)
            else:
                generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
                clipped = torch.zeros_like(mask) if on_policy else self._clipped(batch)
                chosen = losses.clip_cov_tokens(covariances, clipped, mask, generator, fraction=config.clip_cov)
                used = used & ~chosen
        total: dict[str, Tensor] = {}
        for rows in parts(len(mask), config.micro_batch):
            part, w, share, m = batch.rows(rows), weights[rows], shares[rows], mask[rows]
            seen = self._seen(part, of_policy=not on_policy or part.reference is not None)
            old, unscaled = (seen.log_probs, seen.unscaled) if on_policy else (part.old, part.unscaled)
            terms = used[rows] * losses.policy_terms(seen.log_probs, old, seen.advantages, m, **self._bounds)
            if penalised is not None:
                kl = losses.kl_terms(seen.unscaled, unscaled, penalised[rows], "abs")
                terms = terms + config.kl_cov_coef * kl
            if config.entropy_coef:
                terms = terms + losses.entropy_terms(seen.entropies, m, config.entropy_coef)
            if part.reference is not None:
                terms = terms + config.kl_coef * losses.kl_terms(seen.unscaled, part.reference, m)
            loss = losses.weighted_sum(terms, w)
            loss.backward()
            found = losses.policy_statistics(seen.log_probs, old, seen.advantages, share, **self._bounds)
            if seen.unscaled is not seen.log_probs:  # clips are those of what the loss compares
                of_policy = losses.policy_statistics(
                    seen.unscaled, unscaled, seen.advantages, share, **self._bounds
                )
                found |= {name: of_policy[name] for name in ("ratio", "approx_kl")}
            for name, value in {"loss": loss.detach(), **found}.items():
                total[name] = total.get(name, 0.0) + value
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {name: float(value) for name, value in total.items()} | {"grad_norm": float(norm)}

    def _seen(self, batch: Batch, *, of_policy: bool = True) -> Seen:
        """Of the policy as it is now; its own log-probabilities may stay filtered unless `of_policy`."""
        config, scale, advantages = self.config, batch.scale, batch.advantages
        arguments = self._head(self.model, batch.responses, advantages)
        if config.head == "none":
            log_probs, entropies = F.token_log_probs(**arguments)
            return Seen(log_probs, log_probs, entropies, advantages)
        all_scales, entropies = F.token_log_probs_all_scales(k=config.k, **arguments)
        unscaled = all_scales[0]
        if of_policy and self._top_k is not None:
            unscaled, _ = F.token_log_probs(**arguments | {"top_k": None, "top_k_rows": None})
        if not config.freeze_scale:
            now = F.response_entropy(entropies.detach(), batch.responses.response_mask, config.top_fraction)
            scale = F.era_token_scale(now, advantages, **self._era)[:, None]
        if config.scale_advantages:
            advantages = F.scale_advantages(advantages, scale[:, 0])
        return Seen(F.log_probs_at(all_scales, scale), unscaled, entropies, advantages)

    @torch.no_grad()
    def _clipped(self, batch: Batch) -> Tensor:
        """Tokens of the batch that are past their bounds, as the loss compares them."""
        found = []
        for rows in parts(len(batch.old), self.config.micro_batch):
            part = batch.rows(rows)
            seen, mask = self._seen(part, of_policy=False), part.responses.response_mask
            found.append(losses.clipped_tokens(seen.log_probs, part.old, seen.advantages, mask, **self._bounds))
        return torch.cat(found)

    # --- the model and its head --------------------------------------------------------------------------

    def _head(self, of: PreTrainedModel, responses: Responses, advantages: Tensor | None = None) -> dict[str, Any]:
        """Arguments of `token_log_probs`: hidden states at each token of the responses, and the last layer.

        Where advantages are given, logits are dropped, if it is asked for, from the tokens that they favour.
        """
        with model.autocast(self.device, self.config.precision):
            hidden = model.hidden_states(of, responses.tokens, responses.mask)
        length = responses.response_mask.shape[1]
        head = model.head_of(of)
        found = {
            "hidden": hidden[:, -length - 1 : -1],
            "weight": head.weight,
            "bias": head.bias,
            "softcap": head.softcap,
            "targets": responses.targets.masked_fill(~responses.response_mask, IGNORED),
            "temperature": self.config.temperature,
            "ignore_index": IGNORED,
        }
        if self._top_k is not None and advantages is not None:
            found |= {"top_k": self._top_k, "top_k_rows": (advantages > 0)[:, None].expand(-1, length)}
        return found

    def _swept(
        self,
        of: PreTrainedModel,
        responses: Responses,
        sweep: Callable[..., tuple[Tensor, Tensor]] = F.token_log_probs,
        advantages: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[..., B, T]` and entropies of a whole rollout, by default at scale 1."""
        of.eval()
        found = []
        for rows in parts(len(responses.texts), self.config.micro_batch):
            favoured = None if advantages is None else advantages[rows]
            arguments = self._head(of, responses.rows(rows), favoured)
            found.append(sweep(**arguments))
        log_probs, entropies = zip(*found, strict=True)
        return torch.cat(log_probs, -2), torch.cat(entropies)

    @property
    def _second_stage(self) -> bool:
        return self.step >= self.config.second_stage * self.config.steps

    @property
    def _data(self) -> int | None:
        """By which the problems of a file are known again."""
        return zlib.crc32("\0".join(self.task.prompts).encode()) if isinstance(self.task, Questions) else None

    @property
    def _special(self) -> bool:
        """Whether the tokenizer adds what begins a text: a chat template has put it there itself."""
        return self.config.template is None

    @property
    def _top_k(self) -> int | None:
        """Only the first stage of the paper drops logits."""
        return None if self._second_stage or self.config.head == "none" else self.config.top_k

    def _first_thresholds(self, initial: float) -> tuple[float, float]:
        """Those of the first stage, which may follow from the entropy that RL begins with."""
        config = self.config
        low = LOW_SHARE * initial if config.omega_low == "auto" else config.omega_low
        high = HIGH_SHARE * initial if config.omega_high == "auto" else config.omega_high
        for one, other in ((low, high), self._second_thresholds(low)):
            if config.head == "era" and not one < other:
                raise ValueError(
                    f"RL begins with an entropy of {initial:g} nats, from which auto follows: ω_low={one:g}, and "
                    f"ω_high={other:g} is not above it: give both"
                )
        return low, high

    def _second_thresholds(self, low: float) -> tuple[float, float]:
        config = self.config
        return LOW_SHARE_2 * low if config.omega_low_2 == "auto" else config.omega_low_2, config.omega_high_2

    @property
    def _thresholds(self) -> tuple[float, float]:
        assert self.thresholds is not None
        return self._second_thresholds(self.thresholds[0]) if self._second_stage else self.thresholds

    @property
    def _era(self) -> dict[str, float]:
        low, high = self._thresholds
        return {
            "omega_low": low,
            "omega_high": high,
            "k": self.config.k,
            "min_advantage": self.config.min_advantage,
        }

    @property
    def _bounds(self) -> dict[str, Any]:
        """How ratios count; KL-Cov has its penalty instead of bounds."""
        config = self.config
        ratio = "sequence" if config.loss == "gspo" else "token"
        if config.kl_cov:
            return {"clip_low": math.inf, "clip_high": math.inf, "ratio": ratio}
        return {"clip_low": config.clip_low, "clip_high": config.clip_high, "ratio": ratio}

    def _make_room(self) -> None:
        """Leave out prompts that are too long, and refuse responses for which the context is too short."""
        config, longest = self.config, self.task.max_prompt
        if isinstance(self.task, Questions):
            prompts = self.task.prompts
            lengths = dict(zip(prompts, map(len, self._encode(prompts)), strict=True))
            if config.max_prompt is not None:
                self.task.leave_out(lengths, config.max_prompt)
            longest = max(lengths[prompt] for prompt in self.task.prompts)
        context = model.context_of(self.model.config, config.context)
        if context is not None and longest + int(config.max_new_tokens or 0) > context:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens={config.max_new_tokens} do not fit into the "
                f"context of {config.model}, {context}: give a smaller --max-new-tokens or --max-prompt, or "
                f"--context if the model takes more than its config says"
            )

    # --- the rest ----------------------------------------------------------------------------------------

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        return encode(self.tokenizer, prompts, rows=model.rows_of(self.model), special=self._special)

    def _sample(self, problems: Sequence[Problem], temperature: float, *stream: int, first: int = 0) -> Responses:
        with out_of_memory_hint(f"give a --sample-batch below {self.config.sample_batch}"):
            return sample(
                self.model,
                self.tokenizer,
                [problem.prompt for problem in problems],
                seed=derived(self.config.seed, *stream),
                first=first,
                max_new_tokens=int(self.config.max_new_tokens or 0),
                temperature=temperature,
                batch_size=self.config.sample_batch,
                precision=self.config.precision,
                special=self._special,
            )

    def _rewards(self, problems: Sequence[Problem], responses: Responses, samples: int) -> Float[Tensor, "P k"]:
        each = [problem for problem in problems for _ in range(samples)]
        return torch.tensor(self.task.rewards(each, responses.texts).tolist()).view(len(problems), samples)

    def _optimiser(self, learning_rate: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.model.parameters(), learning_rate, weight_decay=self.config.weight_decay)

    def _set_learning_rate(self) -> None:
        share = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        for group in self.optimiser.param_groups:
            group["lr"] = share * self.config.learning_rate

    def _evaluate(self, run: Run, progress: Progress) -> None:
        config = self.config
        judgement = self.judge(config.eval_problems, config.eval_samples)
        found = judgement.values()
        run.log(self.step, found)
        run.keep_text(f"samples/{self.step:06d}.txt", judgement.told(SHOWN))
        k = config.eval_samples
        shares = f"avg@{k} {100 * found['avg_at_k']:.1f} % · pass@{k} {100 * found[f'pass_at_{k}']:.1f} %"
        line = f"{shares} · entropy {found['realised_entropy']:.2f}"
        progress.report(config.warm_start_steps + self.step, line)

    def _say_idle(self, reward: float) -> None:
        """Warn that all responses to each problem earn the same, so that nothing is learned."""
        if isinstance(self.task, Questions):
            way = r"does --prompt ask for \boxed{}, and is --max-new-tokens enough for it?"
        else:
            way = "give a longer --warm-start-steps or a smaller task"
        if reward >= 1:
            way = "the problems are too easy for this model"
        told = "no group of the first %d rollouts has different rewards (their mean is %g): %s"
        log.warning(told, FIRST, reward, way)

    def _check_finite(self, found: dict[str, float], run: Run) -> None:
        """Stop where a number is not finite; keep the weights as the updates left them."""
        bad = {name: str(value) for name, value in found.items() if not math.isfinite(value)}
        if not bad:
            return
        arrays = arrays_of({f"model/{name}": tensor for name, tensor in model.weights_of(self.model).items()})
        kept = run.keep_failure(self.step, arrays, {"quantities": bad})
        told = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise FloatingPointError(f"{told} in step {self.step}: the run stops here. The weights are in {kept}")


def mean_over(values: Tensor, mask: Tensor) -> float:
    """Of the values where the mask is; 0 where it is nowhere."""
    return float(losses.weighted_sum(values, losses.token_weights(mask)))
