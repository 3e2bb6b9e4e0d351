"""Rewards: answer checking, and a process pool that limits the time and memory of each check.

The judge `is_correct` decides whether a response has the right answer. A reward is any function
`(response, row) -> number`, such as `Answer()`; `Reward` applies it to batches.
"""

from entropyfloor.language.rewards.answers import (
    LETTERS,
    Row,
    Verdict,
    boxed,
    choices_of,
    final_answer,
    letter,
    text_of,
)
from entropyfloor.language.rewards.pool import Reward
from entropyfloor.language.rewards.verdicts import Answer, is_correct
from entropyfloor.language.rewards.worker import Function

__all__ = ["LETTERS", "Answer", "Function", "Reward", "Row", "Verdict", "boxed", "choices_of", "final_answer"]
__all__ += ["is_correct", "letter", "text_of"]
