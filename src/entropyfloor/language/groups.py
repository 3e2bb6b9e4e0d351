"""Groups of responses to training problems, sampled and rewarded for the updates of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from entropyfloor.extras import out_of_memory_hint
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.losses import equal_rewards
from entropyfloor.language.prepare import sampling_of
from entropyfloor.language.sampling.rollout import Responses, joined, sample
from entropyfloor.language.tasks import Problem, Task
from entropyfloor.torch.seeding import derived

if TYPE_CHECKING:
    from jaxtyping import Float
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBLEMS, SAMPLE = 2, 3
"""Streams of random numbers."""


def sample_groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, config: LanguageConfig, step: int
) -> tuple[Responses | None, Float[Tensor, "groups samples"], dict[str, float]]:
    """Sample the responses of a step, with their rewards.

    Args:
        model: The model that responds.
        tokenizer: Its tokenizer.
        task: Problems and their rewards.
        config: Complete settings.
        step: Number of the step, from which all randomness follows.

    Returns:
        Responses, group by group, their rewards, and metrics of all responses. The groups that dynamic sampling
        drops are missing; so are surplus ones. Responses are None where no group is left.
    """
    usable: list[Responses] = []
    usable_rewards: list[Tensor] = []
    all_rewards: list[Tensor] = []
    for refill in range(1 + (config.max_refills if config.dynamic_sampling else 0)):
        problems = draw_problems(task, config, step, refill)
        repeated = [problem for problem in problems for _ in range(config.samples)]
        seed = derived(config.seed, SAMPLE, step, refill)
        responses = respond(
            model, tokenizer, repeated, seed=seed, temperature=config.temperature, **sampling_of(config)
        )
        rewards = torch.tensor(task.rewards(repeated, responses.texts).tolist()).view(-1, config.samples)
        use = torch.ones(len(problems), dtype=torch.bool)
        if config.dynamic_sampling:
            use = ~equal_rewards(rewards)
        usable.append(responses.rows(use.repeat_interleave(config.samples)))
        usable_rewards.append(rewards[use])
        all_rewards.append(rewards)
        if sum(map(len, usable_rewards)) >= config.prompts:
            break
    everything, rewards = torch.cat(all_rewards), torch.cat(usable_rewards)
    share = (~equal_rewards(everything)).double().mean()
    metrics = {"usable_groups": float(share), "reward": float(everything.mean())}
    groups = min(len(rewards), config.prompts) // config.minibatches * config.minibatches
    if not groups:
        return None, rewards[:0], metrics
    chosen = joined(usable, int(tokenizer.pad_token_id or 0)).rows(slice(groups * config.samples))
    return chosen, rewards[:groups], metrics


def draw_problems(task: Task, config: LanguageConfig, step: int, refill: int = 0) -> list[Problem]:
    """Draw the training problems of a step."""
    return task.problems("train", config.prompts, derived(config.seed, PROBLEMS, step, refill))


def respond(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], **sampling: Any
) -> Responses:
    """Sample a response to each problem; `sampling` are the other arguments of `sample`."""
    with out_of_memory_hint(f"give a --sample-batch below {sampling['batch_size']}"):
        return sample(model, tokenizer, [problem.prompt for problem in problems], **sampling)
