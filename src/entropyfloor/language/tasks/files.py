"""Questions with answers from files, judged by mathematics in processes of their own."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropyfloor.language.encoding import Turn
from entropyfloor.language.rewards import Answer, Function, Reward, Row, final_answer, text_of
from entropyfloor.language.tasks.base import Problem, Split, is_held_out
from entropyfloor.language.tasks.rows import (
    ANSWER_COLUMNS,
    QUESTION_COLUMNS,
    at_level,
    choice_lines,
    column_of,
    letters_of,
    read_rows,
    turns_of,
    value_of,
)

TURNS = "chat_turns"
"""Column of a problem's row with the turns of its chat, for a chat template."""

log = logging.getLogger(__name__)


class Questions:
    """Questions with answers, judged by mathematics in processes of their own.

    Args:
        train: Problems to train on; None where only `test` is needed.
        test: Problems to test on, which are removed from `train`; None holds out a tenth of `train`.
        reward: Reward of a response; by default 1 where `is_correct`. `Reward` calls it, so that a check that
            hangs cannot stop a run.
        name: Name of the task, used in the names of runs.
        seconds: Time limit of a check.

    Raises:
        ValueError: No problem is left to train or to test on.
    """

    max_new_tokens = 1024
    idle_hint = r"does --prompt ask for \boxed{}, and is --max-new-tokens enough for it?"

    def __init__(
        self,
        train: Sequence[Problem] | None,
        test: Sequence[Problem] | None = None,
        *,
        reward: Function | None = None,
        name: str = "file",
        seconds: float = 5.0,
    ) -> None:
        held_out = [p for p in train or () if is_held_out(_content(p))] if test is None else list(test)
        tested = set(map(_content, held_out))
        self.name = name
        self._problems: dict[str, list[Problem]] = {"test": _unique(held_out)}
        if train is not None:
            training = _unique(p for p in train if _content(p) not in tested)
            self._problems = {"train": training, **self._problems}
        self._check("give more, or test data of its own")
        self._reward = Reward(reward or Answer(), seconds=seconds)

    @classmethod
    def read(
        cls,
        train: str | Path | None,
        test: str | Path | None = None,
        *,
        min_level: int = 0,
        prompt: str = "{question}",
        question: str | None = None,
        answer: str | None = None,
        chat: bool = False,
        **options: Any,
    ) -> Questions:
        """Read the problems from files.

        Args:
            train: A jsonl, json or parquet file; None where only `test` is needed.
            test: Another one; None holds out a tenth of `train`.
            min_level: Lowest level of `train`, from a column `level` such as that of MATH; 0 keeps all rows.
            prompt: Text of each prompt; `{question}` stands for the question.
            question: Column of questions; None looks for `QUESTION_COLUMNS`.
            answer: Column of answers; None looks for `ANSWER_COLUMNS`.
            chat: Whether `render` will be given a chat template.
            options: Other arguments of the class.

        Raises:
            ValueError: A file, a column or a level is missing, or a file is damaged.
        """
        check_prompt(prompt)

        def problems(path: str | Path, least: int) -> list[Problem]:
            rows = read_rows(path)
            rows = at_level(rows, least, str(path)) if least else rows
            return problems_of(rows, question, answer, prompt=prompt, source=str(path), chat=chat)

        held_out = None if test is None else problems(test, 0)
        training = None if train is None else problems(train, min_level)
        return cls(training, held_out, **({"name": Path(train or test or "").stem} | options))

    @property
    def prompts(self) -> list[str]:
        """All prompts, for training and testing."""
        return [problem.prompt for problems in self._problems.values() for problem in problems]

    @property
    def data_checksum(self) -> int:
        """CRC-32 of all prompts, by which a resumed run recognises its data."""
        return zlib.crc32("\0".join(self.prompts).encode())

    @property
    def alphabet(self) -> str:
        """Characters of prompts and answers."""
        texts = (p.prompt + p.answer for problems in self._problems.values() for p in problems)
        return "".join(sorted({character for text in texts for character in text}))

    @property
    def max_prompt(self) -> int:
        """Length of the longest prompt, in characters."""
        return max(map(len, self.prompts))

    def render(self, template: Callable[[Sequence[Turn]], str]) -> None:
        """See `Task`."""

        def rendered(problem: Problem) -> Problem:
            prompt = template(problem.row[TURNS])
            return Problem(prompt, problem.answer, {**problem.row, "prompt": prompt})

        self._problems = {split: list(map(rendered, problems)) for split, problems in self._problems.items()}

    def leave_out(self, lengths: Mapping[str, int], most: int) -> None:
        """See `Task`; the number of dropped problems is logged."""
        for split, problems in self._problems.items():
            short = [problem for problem in problems if lengths[problem.prompt] <= most]
            if longer := len(problems) - len(short):
                message = "%s: %d of %d problems to %s with have prompts of more than %d tokens and are left out"
                log.warning(message, self.name, longer, len(problems), split, most)
            self._problems[split] = short
        self._check("allow longer prompts")

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """See `Task`."""
        problems = self._problems[split]
        if count > len(problems) and not or_fewer:
            raise ValueError(
                f"{self.name} has {len(problems)} problems to {split} with: ask for no more, not {count}"
            )
        order = np.random.default_rng([seed, split == "test"]).permutation(len(problems))
        return [problems[i] for i in order[:count]]

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:  # noqa: ARG002
        """See `Task`; there are no solutions, so this always raises."""
        raise ValueError(f"{self.name} has answers and no solutions to imitate: set warm_start_steps to 0")

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> np.ndarray:
        """See `Task`."""
        return self._reward(responses, [problem.row for problem in problems])

    def close(self) -> None:
        """See `Task`."""
        self._reward.close()

    def _check(self, hint: str) -> None:
        for split, problems in self._problems.items():
            if not problems:
                raise ValueError(f"{self.name} has no problem to {split} with: {hint}")


def check_prompt(prompt: str) -> None:
    """Refuse a text of prompts without a place for the question.

    Raises:
        ValueError: `{question}` is not in it.
    """
    if "{question}" not in prompt:
        raise ValueError(f"prompt={prompt!r} must have {{question}} in it, where the question goes")


def problems_of(
    rows: Sequence[Row],
    question: str | None = None,
    answer: str | None = None,
    *,
    prompt: str = "{question}",
    source: str = "the data",
    chat: bool = False,
) -> list[Problem]:
    """Problems of rows, whatever their columns are called.

    A question is a text or a list of messages; its choices are written behind it where there is a column `options`
    or `choices`. An answer is read by `final_answer`; beside choices, an index from 0 is replaced by the letter of
    its choice. Rows without a question or an answer are left out, and their number is logged.

    Args:
        rows: Rows, for example from `read_rows`.
        question: Column of questions; None looks for `QUESTION_COLUMNS`.
        answer: Column of answers; None looks for `ANSWER_COLUMNS`.
        prompt: Text of each prompt; `{question}` stands for the question.
        source: Name of the data, for messages.
        chat: Whether a chat template will be given the turns, which are in the row's `TURNS`; without one the
            prompt is the user's turn alone.

    Raises:
        ValueError: A column is missing, and the message names the columns that exist; a chat of several turns has
            no template; a message is not text alone; answers may be indexes as well as choices; or there are
            more choices than letters.
    """
    question_column = column_of(rows, question, QUESTION_COLUMNS, "question", source)
    answer_column = column_of(rows, answer, ANSWER_COLUMNS, "answer", source)
    letter = letters_of(rows, answer_column, source)
    problems, dropped_system = [], 0
    for number, row in enumerate(rows):
        try:
            turns = turns_of(value_of(row, question_column), chat=chat)
        except ValueError as error:
            raise ValueError(f"{source}, row {number}: {error}") from None
        dropped_system += not chat and len(turns) > 1
        user = turns[-1]["content"]
        right = letter(row) or final_answer(text_of(value_of(row, answer_column)))
        if user and right:
            text = prompt.replace("{question}", user + choice_lines(row))
            if not _is_unicode(text + right):
                raise ValueError(f"{source}, row {number} has half a character (a lone surrogate): repair it")
            chats = {TURNS: [*turns[:-1], {**turns[-1], "content": text}]} if chat else {}
            problems.append(Problem(text, right, {**row, "prompt": text, "answer": right, **chats}))
    if missing := len(rows) - len(problems):
        log.warning("%s: %d of %d rows have no question or no answer and are left out", source, missing, len(rows))
    if dropped_system:
        message = "%s: %d system messages are left out: give --template chat to keep them"
        log.warning(message, source, dropped_system)
    return problems


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON may hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    """The problems without repetitions; of equal ones the first stays."""
    return list({_content(problem): problem for problem in reversed(list(problems))}.values())[::-1]


def _content(problem: Problem) -> str:
    """The whole question: all turns of a chat, of which `prompt` is only the last one until it is rendered."""
    turns = problem.row.get(TURNS)
    return problem.prompt if turns is None else "\n\n".join(turn["content"] for turn in turns)
