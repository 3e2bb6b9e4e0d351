"""A run of `trl_era.py` on sums as a run directory, which `entropyfloor report` draws beside runs of our trainer.

    python examples/trl_log.py --run runs/trl-era --out runs/language/smollm2/cpu/trl-era/seed-0

TRL's log gives the learning curves. Each checkpoint is evaluated as our trainer evaluates: the same held-out
problems and seeds as in the recipe `language/smollm2`. The wall seconds of the metrics are those of this program.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.evaluate import STREAM, evaluate_model
from entropyfloor.language.model import files
from entropyfloor.language.prepare import complete, hyperparameters_of, sampling_of
from entropyfloor.runs.resume import begin
from entropyfloor.torch.seeding import derived
from smollm2 import CACHE, checkpoint
from trl_era import SMALL, SUMS

NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "reward": "reward",
    "completions/mean_length": "response_length",
    "era/response_entropy": "response_entropy",
    "era/response_entropy/below": "response_entropy/below",
    "era/response_entropy/above": "response_entropy/above",
    "era/scaled_share": "scaled_share",
    "era/token_entropy": "token_entropy",
    "era/omega_low": "omega_low",
}
"""From TRL's names to ours."""
ONLY_ERA = {"response_entropy/below", "response_entropy/above", "scaled_share", "omega_low"}
"""Quantities that mean nothing where no threshold can be met."""


@dataclass
class Log:
    """Write a run directory."""

    run: Path = Path("runs/trl-era")
    """Output directory of `trl_era.py`."""
    out: Path = Path("runs/language/smollm2/cpu/trl-era/seed-0")
    """The new run directory."""
    model: str = "smollm2"
    """The model that it began with."""
    era: bool = True
    """Whether it was one with ERA."""
    seed: int = 0
    """Its seed."""
    threads: int = 1
    """CPU threads of PyTorch."""

    def write(self) -> None:
        """Write the run directory."""
        torch.set_num_threads(self.threads)
        state = json.loads((self.run / "trainer_state.json").read_text())
        config, task = complete(self.config(state["max_steps"], state["save_steps"]))
        env = f"{config.task} {Path(config.model).name}"
        run = begin(config, domain="language", env=env, agent=f"trl-{config.label}")
        training = {line["step"]: quantities(line, self.era) for line in state["log_history"] if "reward" in line}
        models = {int(path.name.partition("-")[2]): path for path in self.run.glob("checkpoint-*")}
        models[0] = checkpoint() if self.model == "smollm2" else Path(self.model)
        with run.recording():
            for step in sorted(training.keys() | models.keys()):
                if step in training:
                    run.log(step, training[step])
                if step in models:
                    model, tokenizer = files.load(str(models[step]))
                    evaluation = evaluate_model(
                        model.eval(),
                        tokenizer,
                        task,
                        hyperparameters_of(config),
                        problems=config.eval_problems,
                        samples=config.eval_samples,
                        seed=derived(config.seed, STREAM, step),
                        temperature=config.eval_temperature,
                        sampling=sampling_of(config),
                    )
                    run.log(step, evaluation.metrics())
        task.close()

    def config(self, steps: int, eval_every: int) -> LanguageConfig:
        """The settings by which our trainer does the same."""
        return LanguageConfig(
            task="reasoning_gym:chain_sum",
            task_config=SUMS,
            model=str(CACHE) if self.model == "smollm2" else self.model,
            warm_start_steps=0,
            prompts=8,
            samples=8,
            max_new_tokens=SMALL["max_completion_length"],
            steps=steps,
            learning_rate=SMALL["learning_rate"],
            head="era" if self.era else "none",
            omega_low=0.45,
            omega_high=3.0,
            precision="bf16",
            eval_every=eval_every,
            eval_problems=64,
            eval_samples=8,
            seed=self.seed,
            threads=self.threads,
            out=str(self.out),
        )


def quantities(line: dict, era: bool) -> dict[str, float]:
    """The quantities of a line of TRL's log, by our names."""
    found = {ours: line[theirs] for theirs, ours in NAMES.items() if era or ours not in ONLY_ERA}
    return found | {
        "usable_groups": 1 - line["frac_reward_zero_std"],
        "ended": 1 - line["completions/clipped_ratio"],
    }


if __name__ == "__main__":
    tyro.cli(Log).write()
