"""TRL's GRPO with ERA: SmolLM2 on sums or word problems, within an hour of one core.

    python examples/trl_era.py
    python examples/trl_era.py --task words
    accelerate launch examples/trl_era.py --model Qwen/Qwen2.5-Math-7B --task dapo

The third line has the paper's settings on DAPO-Math-17k as far as TRL has them: without dynamic sampling, and the
length of the stages is a guess. It was not run; it reads `dapo_math_17k.parquet`. `examples/trl_log.py` turns the
log of a run into a run directory, which `entropyfloor report` draws beside those of our own trainer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from datasets import Dataset

from entropyfloor.integrations.trl import ERAGRPOConfig, ERAGRPOTrainer
from entropyfloor.language.tasks import Questions, ReasoningGym, Task
from smollm2 import checkpoint

SUMS = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}'
BOXED = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)
SMALL = {
    "per_device_train_batch_size": 64,  # 8 problems, 8 responses to each
    "max_steps": 60,
    "learning_rate": 1e-5,
    "max_completion_length": 16,
    "gradient_checkpointing": False,
    "save_steps": 20,  # `trl_log.py` evaluates these
}
LONGER = SMALL | {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}  # prompts of 70 tokens
LARGE = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 256,  # on 8 devices: 256 problems
    "max_steps": 600,
    "learning_rate": 1e-6,
    "max_completion_length": 8192,
    "epsilon": 1.0,
    "era_top_k": 20,
    "second_stage_steps": 0.7,  # a guess, as is `max_steps`
    "omega_low_2": 0.2,
}


@dataclass
class Example:
    """TRL's GRPO with ERA."""

    model: str = "smollm2"
    """Any causal language model, by hub name or path."""
    task: Literal["sums", "words", "dapo"] = "sums"
    """sums, words (word problems about families, friends and colleagues) or dapo."""
    era: bool = True
    """Whether thresholds are the paper's; without it no response reaches them, which is GRPO."""
    seed: int = 0
    """Seed of everything random."""
    steps: int | None = None
    """Number of updates, if it is not that of the task."""
    out: Path = Path("runs/trl-era")
    """Directory of logs and checkpoints."""

    def problems(self) -> Task:
        """The problems with their rewards."""
        if self.task == "dapo":
            return Questions.read("dapo_math_17k.parquet", prompt=BOXED)
        if self.task == "words":
            return ReasoningGym("aiw", prompt="{question}\nAnswer:")
        return ReasoningGym("chain_sum", SUMS)

    def arguments(self) -> ERAGRPOConfig:
        """The arguments of the trainer."""
        sizes = {"sums": SMALL, "words": LONGER, "dapo": LARGE}[self.task]
        return ERAGRPOConfig(
            **sizes | ({} if self.steps is None else {"max_steps": self.steps}),
            omega_low=0.45 if self.era else 0.0,
            omega_high=3.0 if self.era else 1e9,
            num_generations=8,
            lr_scheduler_type="constant",
            bf16=True,
            use_cpu=not torch.accelerator.is_available(),
            seed=self.seed,
            logging_steps=1,
            report_to="none",
            output_dir=str(self.out),
        )

    def train(self) -> None:
        """Train, or continue from the last checkpoint in `out`."""
        task = self.problems()
        problems = task.problems("train", 10**6, 0, or_fewer=True)

        def reward(completions: list[str], problem: list[int], **_: object) -> list[float]:
            return task.rewards([problems[number] for number in problem], completions).tolist()

        trainer = ERAGRPOTrainer(
            str(checkpoint()) if self.model == "smollm2" else self.model,
            reward,
            self.arguments(),
            Dataset.from_list([{"prompt": p.prompt, "problem": number} for number, p in enumerate(problems)]),
        )
        trainer.train(resume_from_checkpoint=any(self.out.glob("checkpoint-*")))
        trainer.save_state()
        task.close()


if __name__ == "__main__":
    tyro.cli(Example).train()
