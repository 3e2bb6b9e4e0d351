"""Tasks of a language model: problems generated from a seed, questions from files, and tasks of reasoning-gym.

Countdown, arithmetic and modular chains need no download. Their prompts and solutions are a few dozen characters
from a small alphabet, so that a transformer of some 0.9M parameters, reading character by character, learns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropyfloor.language.tasks.arithmetic import Arithmetic
from entropyfloor.language.tasks.base import Problem, Task
from entropyfloor.language.tasks.countdown import Countdown
from entropyfloor.language.tasks.files import Questions
from entropyfloor.language.tasks.modular import Modular
from entropyfloor.language.tasks.reasoning_gym import ReasoningGym

if TYPE_CHECKING:
    from entropyfloor.language.config import LanguageConfig

__all__ = ["Arithmetic", "Countdown", "Modular", "Problem", "Questions", "ReasoningGym", "Task", "task_of"]


def task_of(config: LanguageConfig, *, training: bool = True) -> Task:
    """The task of a run.

    Args:
        config: Settings of the run.
        training: Whether training problems are needed; without them a file of its own for tests is enough.

    Raises:
        ValueError: There is no such task, or its files cannot be used.
    """
    name = config.task
    if name in ("countdown-3", "countdown-4"):
        return Countdown(int(name[-1]), largest=config.largest)
    if name == "arithmetic":
        return Arithmetic(config.digits)
    if name == "modular":
        return Modular(config.chain_length)
    gym, _, of_gym = name.partition(":")
    if gym == "reasoning_gym":
        return ReasoningGym(
            of_gym, config.task_config or "{}", prompt=config.prompt, chat=config.template == "chat"
        )
    if name != "file":
        known = "countdown-3, countdown-4, arithmetic, modular, file or reasoning_gym:<name>"
        raise ValueError(f"task={name!r} must be {known}")
    if config.data is None:
        raise ValueError("task=file needs data, a jsonl, json or parquet file of questions with answers")
    return Questions.read(
        config.data if training or config.test_data is None else None,
        config.test_data,
        min_level=config.min_level,
        prompt=config.prompt,
        question=config.question_column,
        answer=config.answer_column,
        chat=config.template == "chat",
    )
