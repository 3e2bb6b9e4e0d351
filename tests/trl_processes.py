"""Updates of ERA in TRL with two groups of responses in a batch, in one process or in several: for a launcher.

    python tests/trl_processes.py MODEL FOLDER [name …]

`sharded` is a backward pass through the head of a model that FSDP2 has sharded.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from entropyfloor.integrations.trl import ERAGRPOTrainer
from entropyfloor.integrations.trl.head import HeadOptions, add_era_head
from tiny_trl import arguments, completions, trained

from transformers import AutoModelForCausalLM  # isort: skip

FLOOR = {"head": "era-floor", "omega_low": "auto", "omega_high": "auto", "min_entropy": 4.5, "gain": 1.0}
TWICE = {"num_iterations": 2, "max_steps": 2}
SETTINGS = {
    "on-policy": {},
    "iterations": TWICE,
    "accumulation": {"gradient_accumulation_steps": 2, **TWICE},
    "means over sequences": {"loss_type": "grpo", **TWICE},
    "kl": {"beta": 0.5, **TWICE},
    "forking": {"top_entropy_quantile": 0.3, **TWICE},
    "kl-cov": {"kl_cov": 0.2, **TWICE},
    "clip-cov": {"clip_cov": 0.1, **TWICE},
    "automatic": {"omega_low": "auto", "omega_high": "auto", "max_steps": 2},
    "era-floor": {**FLOOR, "max_steps": 3},
    "scaled forking tokens": {"era_tokens": "forking", **TWICE},
    "truncated": {"mask_truncated_completions": True, **TWICE},
}

SHARDED = {
    "sharded layers": lambda model: [*model.model.layers, model],
    "sharded head": lambda model: [*model.model.layers, model.lm_head, model],
}


def sharded(path, processes, parts):
    """Gradients of scores by a model, some parts of which are sharded by themselves; a process has some rows."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    add_era_head(model)
    tokens = torch.arange(4 * 9).view(4, 9) * 7 % 90 + 3
    labels = tokens.masked_fill(
        torch.tensor([[i >= 3 + row for i in range(9)] for row in range(4)]).logical_not(), -100
    )
    labels[:2] = -100  # half of the processes have nothing to score
    if processes > 1:
        for part in parts(model):
            fully_shard(part)
    own = torch.arange(4).view(processes, -1)[torch.distributed.get_rank() if processes > 1 else 0]
    scores = model(input_ids=tokens[own], labels=labels[own], era=HeadOptions(2.0, 1.0, None, False))
    weights = torch.linspace(-1, 1, 3)
    (processes * ((scores.log_probs * weights).sum() + scores.entropy.sum())).backward()  # FSDP takes the mean
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in gradients.items()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    model, folder, *names = sys.argv[1:]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for name in names or [*SETTINGS, *SHARDED]:
        if name in SHARDED:  # the group of processes is there from the other updates
            torch.save({"weights": sharded(model, processes, SHARDED[name])}, Path(folder) / f"{name}.pt")
            continue
        settings = SETTINGS[name]
        size = 8 // processes // settings.get("gradient_accumulation_steps", 1)
        args = arguments(Path(folder), per_device_train_batch_size=size, **settings)
        trainer, rollouts, _ = trained(ERAGRPOTrainer, model, args, rollout_func=completions)
        if trainer.accelerator.is_main_process:
            torch.save(
                {
                    "weights": trainer.model.state_dict(),
                    "scales": [rollout["era_scale"] for rollout in rollouts if "era_scale" in rollout],
                    "metrics": trainer.state.log_history[0],
                },
                Path(folder) / f"{name}.pt",
            )
