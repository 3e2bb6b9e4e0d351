"""Time of a step of `ERAGRPOTrainer` beside one of TRL's `GRPOTrainer`, on a CPU.

    python benchmarks/trl_overhead.py --model tiny smollm2 --precision fp32 bf16

A step has a rollout of given random responses, which are not sampled: rewards, old log-probs where TRL needs them
(`--iterations` above 1), the loss, its gradient and plain SGD. Sampling is the same for both, and would only add
time. Half of the responses are scaled. The second GRPOTrainer shows the noise.

Where TRL has no Triton, as on a CPU, its head also computes the logits of prompts; that of ERA does not. With
`--prompt 1` this difference is small.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1")

import argparse
import tempfile
import warnings
from pathlib import Path

import torch

from entropyfloor.integrations.trl import ERAGRPOConfig, ERAGRPOTrainer
from pairs import Side, compare, header

from datasets import Dataset  # isort: skip
from tokenizers import Tokenizer, models  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback  # isort: skip
from trl import GRPOConfig, GRPOTrainer  # isort: skip

GROUP = 4
MODELS = {
    "tiny": LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "smollm2": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
}
"""Random weights; the second has the sizes of SmolLM2-135M."""


def words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are numbers."""
    inner = Tokenizer(models.WordLevel({str(i): i for i in range(size)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="0", pad_token="0")


class Steps:
    """Optimiser steps of a trainer, one rollout a turn."""

    def __init__(
        self, trainer_class: type, config: LlamaConfig, args: GRPOConfig, prompt: int, length: int
    ) -> None:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)

        def responses(prompts: list[str], _: object) -> dict:
            shape = len(prompts), prompt + length
            tokens = torch.randint(1, config.vocab_size, shape, generator=generator).tolist()
            return {
                "prompt_ids": [row[:prompt] for row in tokens],
                "completion_ids": [row[prompt:] for row in tokens],
                "logprobs": None,
            }

        self.trainer = trainer_class(
            model=LlamaForCausalLM(config),
            reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["1"] * 8}),
            processing_class=words(config.vocab_size),
            rollout_func=responses,
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.train()  # prepares the model and the optimiser
        self.batch = next(iter(self.trainer.get_train_dataloader()))

    def turn(self) -> None:
        """The steps of one rollout."""
        trainer = self.trainer
        trainer._step = 0
        for _ in range(trainer.num_iterations):
            trainer.training_step(trainer.model_wrapped, self.batch, None)
            trainer.optimizer.step()
            trainer.model.zero_grad()


def main() -> None:
    """Compare trainers, setting by setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["tiny"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--iterations", nargs="+", type=int, default=[1, 2], help="TRL's num_iterations")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--length", type=int, default=64, help="tokens of a response")
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(header("torch", "transformers", "trl"), flush=True)
    sides = {
        "grpo": (GRPOTrainer, GRPOConfig),
        "again": (GRPOTrainer, GRPOConfig),
        "era": (ERAGRPOTrainer, ERAGRPOConfig),
    }
    for name in given.model:
        for precision in given.precision:
            for iterations in given.iterations:
                with tempfile.TemporaryDirectory() as folder:
                    steps = {
                        side: Steps(
                            trainer,
                            MODELS[name],
                            arguments(config, folder, precision, iterations, given),
                            given.prompt,
                            given.length,
                        )
                        for side, (trainer, config) in sides.items()
                    }
                turns = {side: Side(step.turn, iterations) for side, step in steps.items()}
                tokens = f"{given.responses} responses of {given.length} tokens"
                title = (
                    f"{name}, {precision}, num_iterations={iterations}, {tokens} after prompts of {given.prompt}"
                )
                compare(title, "steps", turns, [("again", "grpo"), ("era", "grpo")], given.rounds)


def arguments(
    config: type[GRPOConfig], folder: str, precision: str, iterations: int, given: argparse.Namespace
) -> GRPOConfig:
    """Settings of a run of one step."""
    scaled = {"omega_low": 1e6, "omega_high": float("inf")} if config is ERAGRPOConfig else {}
    return config(
        output_dir=str(Path(folder)),
        use_cpu=True,
        bf16=precision == "bf16",
        optim="sgd",
        learning_rate=1e-6,
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        max_steps=1,
        num_generations=GROUP,
        num_iterations=iterations,
        per_device_train_batch_size=given.responses,
        max_completion_length=given.length,
        disable_tqdm=True,
        **scaled,
    )


if __name__ == "__main__":
    main()
