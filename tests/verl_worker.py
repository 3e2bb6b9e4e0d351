"""A training worker of verl on the CPU, the model and the batch that it trains on, and ours beside it."""

import os
import socket
import warnings
from functools import partial

import torch
import torch.distributed
from tensordict import TensorDict

import tiny_language
from entropyfloor.language import update
from entropyfloor.language.sampling.rollout import Responses
from entropyfloor.torch import tokens

from transformers import AutoModelForCausalLM  # isort: skip

VARIABLES = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "verl_cpu",
    "VERL_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "MASTER_ADDR": "127.0.0.1",
}
os.environ.update(VARIABLES)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl names each engine that is not installed
    from verl.trainer.config import CheckpointConfig
    from verl.utils import tensordict_utils
    from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import response_from_nested

    import verl  # noqa: F401

TEMPERATURE, LEARNING_RATE = 0.7, 0.5
PROMPTS, RESPONSES = (3, 5, 4, 6, 3, 5, 4, 6), (5, 1, 7, 4, 6, 3, 2, 7)
"""Lengths in tokens."""
MASKED = (2, 3)
"""A response and its token that is not the model's own, such as a tool's."""
OMEGA_LOW, OMEGA_HIGH = 3.0, 3.15
"""In nats: of the responses to `responses_of`, some are below, some between and some above."""
ADVANTAGES = torch.tensor([1.3, -0.4, 0.7, 0.7, 2.1, -1.1, 0.9, 0.0])


def free_port():
    """A port that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(rank=0, ranks=1, port=None):
    """Join the processes of a worker group."""
    port = port or free_port()
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)


def worker_of(model, *, packed=False, micro_batch=2, precision="fp32", lora_rank=0, **actor):
    """A worker with FSDP2 and plain SGD, and verl's own loss."""
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=str(model),
                use_remove_padding=packed,
                lora_rank=lora_rank,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "eager"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                model_dtype="fp32",
                mixed_precision={"param_dtype": precision, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                entropy_from_logits_with_chunking=precision != "fp32",
                use_torch_compile=False,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=micro_batch,
                infer_micro_batch_size_per_gpu=micro_batch,
            ),
            optimizer_config=FSDPOptimizerConfig(
                optimizer="SGD", lr=LEARNING_RATE, weight_decay=0.0, clip_grad=1e9, total_training_steps=10
            ),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    settings = {"strategy": "fsdp2", "ppo_mini_batch_size": 8, "ppo_micro_batch_size_per_gpu": 2, "rollout_n": 1}
    worker.set_loss_fn(partial(ppo_loss, config=FSDPActorConfig(**settings | actor)))
    return worker


def responses_of(seed=0):
    """Random prompts and responses, as our trainer has them."""
    generator = torch.Generator().manual_seed(seed)
    width, length = max(PROMPTS), max(RESPONSES)
    drawn = torch.randint(3, len(tiny_language.tokenizer()), (len(PROMPTS), width + length), generator=generator)
    positions = torch.arange(width + length)
    prompts, ends = torch.tensor(PROMPTS)[:, None], width + torch.tensor(RESPONSES)[:, None]
    mask = (positions >= width - prompts) & (positions < ends)
    drawn = drawn.masked_fill(~mask, 0)
    response_mask = mask[:, width:].clone()
    response_mask[MASKED] = False
    return Responses(drawn, mask, response_mask, [""] * len(drawn), torch.ones(len(drawn), dtype=torch.bool))


def nested(rows):
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def batch_of(responses, advantages=ADVANTAGES, **fields):
    """The same as verl has them: [B, tokens] without padding, and what its trainer adds."""
    width = responses.tokens.shape[1] - responses.response_mask.shape[1]
    rows = [row[keep] for row, keep in zip(responses.tokens, responses.mask, strict=True)]
    answers = [row[width:][keep[width:]] for row, keep in zip(responses.tokens, responses.mask, strict=True)]
    masks = [own[keep[width:]].long() for own, keep in zip(responses.response_mask, responses.mask, strict=True)]
    data = {
        "input_ids": nested(rows),
        "position_ids": nested(torch.arange(len(row)) for row in rows),
        "prompts": nested(row[: -len(answer)] for row, answer in zip(rows, answers, strict=True)),
        "responses": nested(answers),
        "response_mask": nested(masks),
        "loss_mask": nested(masks),
        "advantages": nested(a * own for a, own in zip(advantages, masks, strict=True)),
        **fields,
    }
    batch = TensorDict(data, batch_size=len(rows))
    tensordict_utils.assign_non_tensor(batch, temperature=TEMPERATURE, calculate_entropy=False, compute_loss=False)
    return batch


def infer(worker, batch, *, entropy=False):
    """Log-probs of the tokens of the responses, and their entropies, [B, T]."""
    batch = batch.copy()
    tensordict_utils.assign_non_tensor(batch, calculate_entropy=entropy)
    output = worker.infer_batch(batch)
    names = ["log_probs", *(["entropy"] if entropy else [])]
    found = [response_from_nested(output[name], batch["response_mask"]) for name in names]
    return found if entropy else found[0]


def train(worker, batch, *, mini_batch=8):
    """Updates on a batch, in its order; metrics of verl."""
    batch = batch.copy()
    tensordict_utils.assign_non_tensor(
        batch, mini_batch_size=mini_batch, global_batch_size=mini_batch, epochs=1, seed=0, compute_loss=True
    )
    return tensordict_utils.get(worker.train_mini_batch(batch), "metrics")


def parameters(worker):
    """Parameters of the whole model, by name."""
    return {name: value.full_tensor().detach().clone() for name, value in worker.engine.module.named_parameters()}


# --- ours ------------------------------------------------------------------------------------------------


def hyperparameters(**settings):
    """Of an update with thresholds that scale some of the responses up, some down, and leave some."""
    return update.Hyperparameters(
        **{
            "temperature": TEMPERATURE,
            "era": True,
            "omega_low": OMEGA_LOW,
            "omega_high": OMEGA_HIGH,
            "micro_batch": 3,
        }
        | settings
    )


def our_rollout(model, responses, hp, advantages=ADVANTAGES):
    """What our trainer makes of the same responses: the batch of its update."""
    policy = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    rollout = update.evaluate_rollout(policy, None, responses, advantages, hp)
    batch, metrics = update.batch_of(rollout, hp)
    return policy, batch, metrics


def our_update(policy, batch, hp, *, minibatches=1):
    """Our updates, by plain SGD: parameters by name."""
    optimiser = torch.optim.SGD(policy.parameters(), lr=LEARNING_RATE)
    size = len(batch.advantages) // minibatches
    for i in range(minibatches):
        rows = batch.rows(slice(i * size, (i + 1) * size))
        optimiser.zero_grad()
        for loss, _ in update.policy_losses(policy, rows, hp, torch.Generator(), on_policy=i == 0):
            loss.backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in policy.named_parameters()}


def era_fields(batch, hp):
    """Fields that ERA's trainer writes for a batch of ours."""
    top_k = torch.where(batch.advantages > 0, hp.top_k or 0, 0)
    advantages = batch.advantages
    if hp.scale_advantages:
        advantages = tokens.scale_advantages(advantages, batch.scale[:, 0])
    return {"era_scale": batch.scale[:, 0], "era_top_k": top_k}, advantages
