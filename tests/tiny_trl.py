"""Short runs of TRL's trainers on random models, and the same updates by our trainer."""

import copy

import pytest
import torch

import entropyfloor.language.model  # noqa: F401  before transformers, so that a broken torchvision does no harm
from entropyfloor.integrations.trl import ERAGRPOConfig
from entropyfloor.integrations.trl.loss import loss_mask
from entropyfloor.language import update
from entropyfloor.language.sampling.rollout import Responses
from tiny_families import build
from tiny_language import tokenizer

from datasets import Dataset  # isort: skip
from transformers import AutoModelForCausalLM  # isort: skip

IGNORED = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),  # transformers
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
]
"""Marks of tests that train with TRL: warnings of the hosts themselves."""
WORDS = tokenizer()
PROMPTS = ["1+1=", "23+45=", "9=", "0*7=?"]
DATA = Dataset.from_dict({"prompt": PROMPTS})
MIDDLE = {"omega_low": 4.35, "omega_high": 4.45}
"""Thresholds in the middle of the entropies of a random model, so that responses are on all sides."""
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 8},
}


def rewards(completions, **_):
    """A number for a text, spread over [0, 1]."""
    return [sum(map(ord, text)) % 17 / 17 for text in completions]


def completions(prompts, _):
    """A rollout function of TRL: responses follow from their prompt and their place in its group."""
    counts, rows = {}, []
    for prompt in prompts:
        count = counts[prompt] = counts.get(prompt, 0) + 1
        generator = torch.Generator().manual_seed(100 * sum(map(ord, prompt)) + count)
        length = int(torch.randint(3, 8, (), generator=generator))
        rows.append(torch.randint(3, len(WORDS), (length,), generator=generator).tolist())
        if "?" in prompt:
            rows[-1].append(WORDS.eos_token_id)  # the others are truncated
    return {"prompt_ids": WORDS(prompts)["input_ids"], "completion_ids": rows, "logprobs": None}


def saved(folder, family="qwen2"):
    """Path of a random model of a family, saved below a folder once."""
    path = folder / family
    if not path.exists():
        model = build(family, vocab_size=len(WORDS), eos_token_id=0, **FAMILIES.get(family, {}))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(3)  # so that entropies differ
        model.save_pretrained(path)
        WORDS.save_pretrained(path)
    return path


def arguments(path, config=ERAGRPOConfig, **settings):
    """Arguments of a short run with plain SGD in float32."""
    return config(
        **{
            "output_dir": str(path / "run"),
            "use_cpu": True,
            "bf16": False,
            "optim": "sgd",
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "max_steps": 1,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 7,
            "disable_tqdm": True,
            "loss_type": "dapo",
            **(MIDDLE if config is ERAGRPOConfig else {}),
            **settings,
        }
    )


def trained(trainer_class, path, args, *, run=True, **more):
    """A trainer after its run, with the rollouts that it made, and the model that it began with."""
    rollouts = []

    class Recorded(trainer_class):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            rollouts.append(output)
            return output

    trainer = Recorded(
        **{
            "model": AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            "reward_funcs": rewards,
            "args": args,
            "train_dataset": DATA,
            "processing_class": WORDS,
            **more,
        }
    )
    start = copy.deepcopy(trainer.model)
    for module in start.modules():  # a forward pass that was given to a model is bound to it
        module.__dict__.pop("forward", None)
    if run:
        trainer.train()
    return trainer, rollouts, start


def logged(trainer, name):
    """Values of a quantity, one an optimiser step."""
    return [row[name] for row in trainer.state.log_history if name in row]


def our_model(start, rollouts, args, *, reference=None, **hyperparameters):
    """The model after our trainer's updates on these rollouts, with plain SGD, and the shares of scaled responses.

    With adapters the model is the one below them.
    """
    model = copy.deepcopy(start)
    if hyperparameters.get("kl_coef") and reference is None:
        reference = copy.deepcopy(start)
    thresholds = {"era": True, "omega_low": args.omega_low, "omega_high": args.omega_high}
    hp = update.Hyperparameters(**thresholds | hyperparameters)
    scaled = []
    for rollout in rollouts:
        tokens = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
        mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1).bool()
        of_response = loss_mask(rollout)
        responses = Responses(tokens, mask, of_response, [""] * len(tokens), of_response[:, 0])
        evaluated = update.evaluate_rollout(model, reference, responses, rollout["advantages"], hp)
        batch, metrics = update.batch_of(evaluated, hp)
        scaled.append(metrics.get("scaled_share", 0.0))
        for iteration in range(min(args.num_iterations, args.max_steps)):
            model.zero_grad()
            generator = torch.Generator().manual_seed(args.seed)
            for loss, _ in update.policy_losses(model, batch, hp, generator, on_policy=iteration == 0):
                loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.requires_grad:
                        weight -= args.learning_rate * weight.grad
    return model, scaled


def largest_difference(one, other):
    """Between parameters of two models."""
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return max((a - b).abs().max().item() for (name, a), (other_name, b) in pairs)
