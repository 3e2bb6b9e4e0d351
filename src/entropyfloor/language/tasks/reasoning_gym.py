"""Tasks of the library reasoning-gym (arXiv 2505.24760): generated problems, judged by its own scorers."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from entropyfloor.extras import brief, require
from entropyfloor.language.rewards import Row
from entropyfloor.language.tasks.base import Problem
from entropyfloor.language.tasks.files import TURNS, Questions, check_prompt

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

DEFAULTS = {"seed": 0, "size": 2000}
"""Our defaults of keys that every config has; reasoning-gym would draw other problems every time."""


@dataclass(frozen=True)
class Scorer:
    """The score of a response by the scorer of its task, for `Reward`.

    What stands between the last `<answer>` and `</answer>` is the answer, or else the whole response.
    """

    name: str
    config: str = "{}"

    def __call__(self, response: str, row: Row) -> float:
        """Score from 0 to 1."""
        from reasoning_gym.utils import extract_answer

        tagged = extract_answer(response)
        answer = response.strip() if tagged is None else tagged
        return float(dataset_of(self.name, self.config).score_answer(answer, dict(row)))

    def prepare(self) -> None:
        """Load the task."""
        dataset_of(self.name, self.config)


class ReasoningGym(Questions):
    """Problems of a task of reasoning-gym, of which a tenth is held out.

    Args:
        name: Name of the task, such as chain_sum.
        config: Its settings as JSON. `size` is the number of problems before repeated ones are dropped, and `seed`
            decides which ones they are.
        prompt: Text of each prompt; `{question}` stands for the question.
        chat: Whether `render` will be given a chat template.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: There is no such task, or its settings cannot be.
    """

    idle_hint = "does --prompt ask for the answer alone, and is --max-new-tokens enough for it?"

    def __init__(self, name: str, config: str = "{}", *, prompt: str = "{question}", chat: bool = False) -> None:
        check_prompt(prompt)
        problems = []
        for entry in dataset_of(name, config):
            text = prompt.replace("{question}", entry["question"])
            turns = {TURNS: [{"role": "user", "content": text}]} if chat else {}
            row = {**entry, "prompt": text, **turns}  # what the scorer reads
            problems.append(Problem(text, entry["answer"] or "", row))  # None where there are several answers
        super().__init__(problems, reward=Scorer(name, config), name=f"reasoning_gym:{name}")


@cache
def dataset_of(name: str, config: str = "{}") -> ProceduralDataset:
    """The problems of a task of reasoning-gym, with their scorer.

    Args:
        name: Name of the task.
        config: Its settings as JSON.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: There is no such task, or its settings cannot be.
    """
    require("reasoning", "reasoning_gym")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        close = get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)
        raise ValueError(f"task=reasoning_gym:{name} does not exist in reasoning-gym; it has {', '.join(close)}")
    settings = {**DEFAULTS, **_settings(config)}
    keys = [field.name for field in fields(DATASETS[name][1])]
    if unknown := sorted(settings.keys() - set(keys)):
        raise ValueError(f"task_config has {', '.join(unknown)}: {name} has the settings {', '.join(keys)}")
    try:
        dataset = reasoning_gym.create_dataset(name, **settings)
        dataset[0]  # some settings fail only here
    except Exception as error:  # tasks check their settings in different ways
        raise ValueError(f"task_config={config} cannot be used for {name}: {brief(error)}") from None
    return dataset


def _settings(config: str) -> dict[str, Any]:
    try:
        settings = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"task_config={config} is no JSON ({error}): give an object") from None
    if not isinstance(settings, dict):
        raise ValueError(f'task_config={config} must be an object of JSON, such as {{"size": 500}}')
    return settings
