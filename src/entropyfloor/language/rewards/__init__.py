"""Rewards: answer checking, and a process pool that limits the time and memory of each check.

The judges `is_correct`, `is_number`, `is_exact` and `is_choice` decide whether a response has the right answer. A
reward is any function `(response, row) -> number`, such as `Answer(is_correct)`; `Reward` applies it to batches.
"""

from entropyfloor.language.rewards.answers import (
    LETTERS,
    Row,
    Verdict,
    after_hashes,
    boxed,
    choices_of,
    final_answer,
    letter,
    numbers_in,
    text_of,
)
from entropyfloor.language.rewards.pool import Reward, Scores
from entropyfloor.language.rewards.verdicts import Answer, Format, is_choice, is_correct, is_exact, is_number
from entropyfloor.language.rewards.worker import Function

__all__ = [
    "LETTERS",
    "Answer",
    "Format",
    "Function",
    "Reward",
    "Row",
    "Scores",
    "Verdict",
    "after_hashes",
    "boxed",
    "choices_of",
    "final_answer",
    "is_choice",
    "is_correct",
    "is_exact",
    "is_number",
    "letter",
    "numbers_in",
    "text_of",
]
