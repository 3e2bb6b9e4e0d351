"""What a language model is asked: tasks made from a seed, and questions with answers from files.

Countdown, arithmetic and modular chains need no download. Their prompts and solutions are a few dozen characters
from a small alphabet, so that a transformer of some 0.8M parameters, reading character by character, learns them.
Which problems are for training and which are held out is decided by the problem alone: no seed mixes them.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from entropyfloor.language.rewards.pool import Answer, Function, Reward, boxed, final_answer, is_correct
from entropyfloor.language.sampling.encoding import Turn
from entropyfloor.language.tasks.rows import (
    ANSWER_COLUMNS,
    QUESTION_COLUMNS,
    Row,
    at_level,
    column_of,
    letters_of,
    listed_of,
    read_rows,
    text_of,
    turns_of,
    value_of,
)

if TYPE_CHECKING:
    from entropyfloor.language.config import LanguageConfig

Split = Literal["train", "test"]
Form = Literal["steps", "expression"]

DIGITS = "0123456789"
HELD_OUT = 10
"""One problem in so many is for testing."""
LONGEST = 4000
"""Characters of a response to a made task that are looked at; those of a solution are far fewer."""
OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
INTEGER = r"(?:0|-?[1-9][0-9]*)"
STEP = re.compile(rf"({INTEGER})([-+*/])({INTEGER})=({INTEGER})")

log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One question."""

    prompt: str
    answer: str
    row: Row
    """Both, and what else is known of it; what rewards are given."""


class Task(Protocol):
    """What can be asked, answered and judged."""

    @property
    def name(self) -> str:
        """As a run is called after it."""

    @property
    def alphabet(self) -> str:
        """The characters of prompts and solutions."""

    @property
    def max_prompt(self) -> int:
        """Longest prompt, in characters."""

    @property
    def max_new_tokens(self) -> int:
        """Room for a solution and its end, in characters, or in tokens of a language model."""

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Different problems, the same for the same seed; the first of more are these.

        Args:
            split: Which are trained on, or held out.
            count: How many.
            seed: Of the choice.
            or_fewer: Take all where there are not so many.

        Raises:
            ValueError: There are not so many, or none.
        """

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """A response that earns 1, written step by step; to wander, one that is well formed and may miss."""

    def reward(self, problem: Problem, response: str) -> float:
        """1 for a right response, 0 for any other."""


def task_of(config: LanguageConfig) -> Task:
    """The task that a config asks for.

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
    if name != "file":
        raise ValueError(f"task={name!r} must be countdown-3, countdown-4, arithmetic, modular or file")
    if config.data is None:
        raise ValueError("task=file needs data, a jsonl, json or parquet file of questions with answers")
    return Questions.read(
        config.data,
        config.test_data,
        min_level=config.min_level,
        prompt=config.prompt,
        question=config.question_column,
        answer=config.answer_column,
        chat=config.template == "chat",
    )


@dataclass(frozen=True)
class TaskReward:
    """A task's reward as a function of response and row, for `Reward`."""

    task: Task

    def __call__(self, response: str, row: Row) -> float:
        """The reward of one response."""
        return self.task.reward(Problem(row["prompt"], row["answer"], row), response)


# --- made from a seed ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Countdown:
    """Reach a target from some numbers, each used once, with + - * /.

    `3,7,12=15:` is solved by `12-7=5,5*3=15` in the form of steps: each takes two numbers that are there and puts
    its whole result in their place; the last result is the target. An expression, `(12-7)*3`, may have fractions
    on its way. Arithmetic is exact.

    Args:
        numbers: How many.
        largest: The largest of them.
        largest_target: Targets are from 1 to this.
        form: Of solutions, and the only one that is accepted.

    Raises:
        ValueError: A number is out of its range.
    """

    numbers: int = 3
    largest: int = 20
    largest_target: int = 99
    form: Form = "steps"

    def __post_init__(self) -> None:
        _at_least("numbers", self.numbers, 2)
        _at_least("largest", self.largest, 2)
        _at_least("largest_target", self.largest_target, 1)
        if self.form not in ("steps", "expression"):
            raise ValueError(f"form={self.form!r} must be steps or expression")

    @property
    def name(self) -> str:
        """`countdown-3`."""
        return f"countdown-{self.numbers}"

    @property
    def alphabet(self) -> str:
        """Digits, operators and what is between them."""
        return DIGITS + ("+-*/=,:" if self.form == "steps" else "+-*/=,:()")

    @property
    def largest_result(self) -> int:
        """Of a step of a derivation; a response may go beyond it."""
        return max(self.largest**2, self.largest_target)

    @property
    def max_prompt(self) -> int:
        """Longest prompt, in characters."""
        return self.numbers * (len(str(self.largest)) + 1) + len(str(self.largest_target)) + 1

    @property
    def max_new_tokens(self) -> int:
        """A step is `400*400=400,` at most, by default; an expression is shorter."""
        digits = len(str(self.largest_result))
        return (self.numbers - 1) * (3 * digits + 3) + 1

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Random numbers and what some derivation makes of them; in another order they are the same problem."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem] | None:
            numbers = [int(n) for n in rng.integers(1, self.largest + 1, self.numbers)]
            steps, target, expression = _derive(numbers, rng, self.largest_result)
            if not 1 <= target <= self.largest_target:
                return None
            prompt = f"{','.join(map(str, numbers))}={target}:"
            row = {"prompt": prompt, "answer": str(target), "numbers": numbers, "target": target}
            row["solution"] = steps if self.form == "steps" else expression
            return f"{sorted(numbers)} {target}", Problem(prompt, str(target), row)

        return _distinct(self.name, draw, split, count, seed, or_fewer=or_fewer)

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """The derivation that the target comes from; to wander, another one of the same numbers."""
        if not wander:
            return str(problem.row["solution"])
        steps, _, expression = _derive(problem.row["numbers"], rng, self.largest_result)
        return steps if self.form == "steps" else expression

    def reward(self, problem: Problem, response: str) -> float:
        """1 where every number is used exactly once, every step is right and the target is reached."""
        text, numbers, target = response.strip(), problem.row["numbers"], problem.row["target"]
        if len(text) > LONGEST:
            return 0.0
        reached = _after_steps(text, numbers) if self.form == "steps" else _of_expression(text, numbers, target)
        return float(reached == target)


@dataclass(frozen=True)
class Arithmetic:
    """`47*36:`, to be answered `47*30=1410,47*6=282,1410+282=1692`: sums, differences, products digit by digit.

    What counts is the last result; all steps must be well formed.

    Args:
        digits: Of the larger numbers.
        operators: Some of + - *.

    Raises:
        ValueError: A number is out of its range, or an operator unknown.
    """

    digits: int = 2
    operators: str = "+-*"

    def __post_init__(self) -> None:
        _at_least("digits", self.digits, 1)
        if not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(f"operators={self.operators!r} must be some of + - *")

    @property
    def name(self) -> str:
        """`arithmetic`."""
        return "arithmetic"

    @property
    def alphabet(self) -> str:
        """Digits, operators and what is between them."""
        return DIGITS + "+-*=,:"

    @property
    def max_prompt(self) -> int:
        """Longest prompt, in characters."""
        return 2 * self.digits + 2

    @property
    def max_new_tokens(self) -> int:
        """That of the largest numbers, and the end."""
        largest = 10**self.digits - 1
        return max(len(",".join(_arithmetic(largest, sign, largest))) for sign in (*self.operators, "+")) + 1

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Two numbers of up to `digits` digits; no difference is below 0, and 2+3 is no other problem than 3+2."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            a, b = (int(n) for n in rng.integers(1, 10**self.digits, 2))
            sign = self.operators[rng.integers(len(self.operators))]
            if sign == "-":
                a, b = max(a, b), min(a, b)
            prompt, answer = f"{a}{sign}{b}:", str(OPERATORS[sign](Fraction(a), Fraction(b)))
            row = {"prompt": prompt, "answer": answer, "a": a, "operator": sign, "b": b}
            return f"{max(a, b)}{sign}{min(a, b)}", Problem(prompt, answer, row)

        return _distinct(self.name, draw, split, count, seed, or_fewer=or_fewer)

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """Step by step; to wander, with any last result of as many digits."""
        steps = _arithmetic(problem.row["a"], problem.row["operator"], problem.row["b"])
        if wander:
            left, _, result = steps[-1].partition("=")
            steps[-1] = f"{left}={_any_number(len(result), rng)}"
        return ",".join(steps)

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the last result is right."""
        return float(_last_result(response) == problem.answer)


@dataclass(frozen=True)
class Modular:
    """`3+5*2-4%7:`, from left to right modulo 7, to be answered `3+5=1,1*2=2,2-4=5`.

    The steps must be those of the chain, each from the result before it; of the results only the last one counts.

    Args:
        length: Operations.
        modulus: Of all results.

    Raises:
        ValueError: A number is out of its range.
    """

    length: int = 5
    modulus: int = 7

    def __post_init__(self) -> None:
        _at_least("length", self.length, 1)
        _at_least("modulus", self.modulus, 2)

    @property
    def name(self) -> str:
        """`modular`."""
        return "modular"

    @property
    def alphabet(self) -> str:
        """Digits, operators and what is between them."""
        return DIGITS + "+-*=,%:"

    @property
    def max_prompt(self) -> int:
        """Longest prompt, in characters."""
        return self._width * (self.length + 1) + self.length + len(str(self.modulus)) + 2

    @property
    def max_new_tokens(self) -> int:
        """Longest solution, and its end."""
        return self.length * (3 * self._width + 3)

    @property
    def _width(self) -> int:
        return len(str(self.modulus - 1))

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Numbers below the modulus and operators, all equally likely."""

        def draw(rng: np.random.Generator) -> tuple[str, Problem]:
            numbers = [int(n) for n in rng.integers(self.modulus, size=self.length + 1)]
            signs = ["+-*"[i] for i in rng.integers(3, size=self.length)]
            chain = str(numbers[0]) + "".join(f"{s}{n}" for s, n in zip(signs, numbers[1:], strict=True))
            row: dict[str, Any] = {"prompt": f"{chain}%{self.modulus}:", "numbers": numbers, "operators": signs}
            row["answer"] = self._steps(row)[-1].partition("=")[2]
            return chain, Problem(row["prompt"], row["answer"], row)

        return _distinct(self.name, draw, split, count, seed, or_fewer=or_fewer)

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:
        """Step by step; to wander, with any result at one of them, and on from there."""
        if not wander:
            return ",".join(self._steps(problem.row))
        return ",".join(self._steps(problem.row, int(rng.integers(self.length)), int(rng.integers(self.modulus))))

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the last result is right, at the end of the chain's steps."""
        value, *rest = problem.row["numbers"]
        steps = response.strip().split(",")
        if len(steps) != len(rest):
            return 0.0
        for step, sign, number in zip(steps, problem.row["operators"], rest, strict=True):
            parsed = STEP.fullmatch(step)
            if parsed is None or parsed.group(1, 2, 3) != (str(value), sign, str(number)):
                return 0.0
            value = parsed[4]
        return float(value == problem.answer)

    def _steps(self, row: Row, astray: int | None = None, result: int = 0) -> list[str]:
        """The steps; at number `astray` the result is another one."""
        value, *rest = row["numbers"]
        steps = []
        for i, (sign, number) in enumerate(zip(row["operators"], rest, strict=True)):
            right = int(OPERATORS[sign](Fraction(value), Fraction(number)) % self.modulus)
            after = result if i == astray else right
            steps.append(f"{value}{sign}{number}={after}")
            value = after
        return steps


# --- from files ------------------------------------------------------------------------------------------


TURNS = "chat_turns"
"""Column of a problem's row: the turns of its chat, for a template."""


class Questions:
    """Questions with answers, judged by mathematics in processes of their own.

    Args:
        train: Rows to train on.
        test: Rows to be judged on, which are taken out of `train`; None holds a tenth of `train` out.
        reward: What a response is worth; `is_correct` by default. It is called through `Reward`, so that nothing
            hangs.
        name: As a run is called after it.
        seconds: A reward may take.

    Raises:
        ValueError: Nothing is left to train on, or to be judged on.
    """

    max_new_tokens = 1024

    def __init__(
        self,
        train: Sequence[Problem],
        test: Sequence[Problem] | None = None,
        *,
        reward: Function | None = None,
        name: str = "file",
        seconds: float = 5.0,
    ) -> None:
        held = [p for p in train if _is_held_out(_asked(p))] if test is None else list(test)
        asked = set(map(_asked, held))
        self.name = name
        self._problems = {"train": _unique(p for p in train if _asked(p) not in asked), "test": _unique(held)}
        self._check("give more, or test data of its own")
        self._reward = Reward(reward or Answer(is_correct), seconds=seconds)

    @classmethod
    def read(
        cls,
        train: str | Path,
        test: str | Path | None = None,
        *,
        min_level: int = 0,
        prompt: str = "{question}",
        question: str | None = None,
        answer: str | None = None,
        chat: bool = False,
        **options: Any,
    ) -> Questions:
        """From files.

        Args:
            train: jsonl, json or parquet.
            test: Another one; None holds a tenth of `train` out.
            min_level: Least level of `train`, as MATH has them in its column `level`; 0 asks for none.
            prompt: What is asked; `{question}` stands for the question.
            question: Column, found by itself where it is called as usual; see `QUESTION_COLUMNS`.
            answer: Column, found by itself; see `ANSWER_COLUMNS`.
            chat: Whether `render` will be given a chat template.
            options: Of the class.

        Raises:
            ValueError: A file, a column or a level is missing, or a file is damaged.
        """
        if "{question}" not in prompt:
            raise ValueError(f"prompt={prompt!r} must have {{question}} in it, where the question goes")

        def problems(path: str | Path, least: int) -> list[Problem]:
            rows = read_rows(path)
            rows = at_level(rows, least, str(path)) if least else rows
            return problems_of(rows, question, answer, prompt=prompt, source=str(path), chat=chat)

        held = None if test is None else problems(test, 0)
        return cls(problems(train, min_level), held, **({"name": Path(train).stem} | options))

    @property
    def prompts(self) -> list[str]:
        """All that is asked, to train and to test."""
        return [problem.prompt for problems in self._problems.values() for problem in problems]

    @property
    def alphabet(self) -> str:
        """The characters of prompts and answers."""
        return "".join(sorted({c for each in self._problems.values() for p in each for c in p.prompt + p.answer}))

    @property
    def max_prompt(self) -> int:
        """Longest prompt, in characters."""
        return max(map(len, self.prompts))

    def render(self, template: Callable[[Sequence[Turn]], str]) -> None:
        """Ask every problem as a chat.

        Args:
            template: From turns to a prompt.

        Raises:
            ValueError: It refuses some.
        """
        for split, problems in self._problems.items():
            found = []
            for problem in problems:
                prompt = template(problem.row[TURNS])
                found.append(Problem(prompt, problem.answer, {**problem.row, "prompt": prompt}))
            self._problems[split] = found

    def leave_out(self, lengths: Mapping[str, int], most: int) -> None:
        """Go on without the problems whose prompts are longer than `most`, and log how many they are.

        Args:
            lengths: Of each of `prompts`, such as tokens.
            most: What is not too long yet.

        Raises:
            ValueError: Nothing is left to train on, or to be judged on.
        """
        for split, problems in self._problems.items():
            kept = [problem for problem in problems if lengths[problem.prompt] <= most]
            if longer := len(problems) - len(kept):
                told = "%s: %d of %d problems to %s with have prompts of more than %d tokens and are left out"
                log.warning(told, self.name, longer, len(problems), split, most)
            self._problems[split] = kept
        self._check("allow longer prompts")

    def problems(self, split: Split, count: int, seed: int, *, or_fewer: bool = False) -> list[Problem]:
        """Some of them, at random, without repeating one.

        Raises:
            ValueError: There are not so many.
        """
        found = self._problems[split]
        if count > len(found) and not or_fewer:
            raise ValueError(
                f"{self.name} has {len(found)} problems to {split} with: ask for no more, not {count}"
            )
        order = np.random.default_rng([seed, split == "test"]).permutation(len(found))
        return [found[i] for i in order[:count]]

    def solution(self, problem: Problem, rng: np.random.Generator, *, wander: bool = False) -> str:  # noqa: ARG002
        """There are none.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.name} has answers and no solutions to imitate: set warm_start_steps to 0")

    def reward(self, problem: Problem, response: str) -> float:
        """1 for a right response, 0 for any other; for many at a time `rewards` is faster."""
        return float(self.rewards([problem], [response])[0])

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> np.ndarray:
        """`[B]`, of each response to its problem."""
        return self._reward(responses, [problem.row for problem in problems])

    def close(self) -> None:
        """End the processes that judge."""
        self._reward.close()

    def _check(self, way: str) -> None:
        for split, problems in self._problems.items():
            if not problems:
                raise ValueError(f"{self.name} has no problem to {split} with: {way}")


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

    A question may be a text or a list of messages, and gets its choices behind it where there is a column
    `options` or `choices`. An answer is what follows `####`, or what is boxed, or all of its text; beside choices
    an index from 0 is the letter of its choice. Rows without a question or an answer are left out; that is logged.

    Args:
        rows: From `read_rows`, say.
        question: Column; None finds it.
        answer: Column; None finds it.
        prompt: What is asked; `{question}` stands for the question.
        source: What a message calls the rows.
        chat: Whether a chat template will be given the turns, which are in the row's `TURNS`. Without one there
            is the user's turn alone.

    Raises:
        ValueError: A column is missing, and the message names those that there are; a chat of several turns
            without a template; a message with more than text in it; or answers that may be indexes or choices.
    """
    ask = column_of(rows, question, QUESTION_COLUMNS, "question", source)
    tell = column_of(rows, answer, ANSWER_COLUMNS, "answer", source)
    letter = letters_of(rows, tell, source)
    found, system = [], 0
    for number, row in enumerate(rows):
        try:
            turns = turns_of(value_of(row, ask), chat=chat)
        except ValueError as error:
            raise ValueError(f"{source}, row {number}: {error}") from None
        system += not chat and len(turns) > 1
        asked, told = turns[-1]["content"], letter(row) or final_answer(text_of(value_of(row, tell)))
        if asked and told:
            text = prompt.replace("{question}", asked + listed_of(row))
            chats = {TURNS: [*turns[:-1], {**turns[-1], "content": text}]} if chat else {}
            found.append(Problem(text, told, {**row, "prompt": text, "answer": told, **chats}))
    if missing := len(rows) - len(found):
        log.warning("%s: %d of %d rows have no question or no answer and are left out", source, missing, len(rows))
    if system:
        log.warning("%s: %d system messages are left out: give --template chat to have them", source, system)
    return found


# --- parts of made tasks ---------------------------------------------------------------------------------


def _distinct(
    name: str,
    draw: Callable[[np.random.Generator], tuple[str, Problem] | None],
    split: Split,
    count: int,
    seed: int,
    *,
    or_fewer: bool,
) -> list[Problem]:
    """Draw until there are so many of the split, which is decided by a problem's key."""
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be train or test")
    rng = np.random.default_rng([seed, split == "test"])
    found: dict[str, Problem] = {}
    misses = 0
    while len(found) < count:
        drawn = draw(rng)
        if drawn is None:
            continue
        if drawn[0] in found or _is_held_out(drawn[0]) != (split == "test"):
            misses += 1
            # Of n + 1 problems the last one is missed so often with a probability below e^-50.
            if misses > 1000 + 50 * HELD_OUT * (len(found) + 1):
                if found and or_fewer:
                    break
                raise ValueError(
                    f"{name} has no more than {len(found)} problems to {split} with, and not {count}: ask for "
                    "fewer, or make the task larger"
                )
            continue
        found[drawn[0]], misses = drawn[1], 0
    return list(found.values())


def _is_held_out(key: str) -> bool:
    """By a hash that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0


def _derive(numbers: Sequence[int], rng: np.random.Generator, most: int) -> tuple[str, int, str]:
    """A random derivation by whole, positive results, `most` at most: its steps, its last result, all as one."""
    there = [(int(n), str(n)) for n in numbers]
    steps = []
    while len(there) > 1:
        i, j = rng.permutation(len(there))[:2]
        (a, left), (b, right) = there[i], there[j]
        if a < b:
            a, b, left, right = b, a, right, left
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
        possible = [sign for sign, c in results.items() if 1 <= c <= most]  # a - b, or a / b where that is 0
        sign = possible[rng.integers(len(possible))]
        result = results[sign]
        steps.append(f"{a}{sign}{b}={result}")
        there = [x for k, x in enumerate(there) if k not in (i, j)]
        there.append((result, f"({left}{sign}{right})"))
    result, expression = there[0]
    return ",".join(steps), result, expression[1:-1]


def _after_steps(text: str, numbers: Sequence[int]) -> Fraction | None:
    """The last result of steps that use what is there, all of it; None where one of them is wrong."""
    there, result = Counter(numbers), None
    steps = text.split(",")
    if len(steps) != len(numbers) - 1:
        return None
    for step in steps:
        parsed = STEP.fullmatch(step)
        if parsed is None:
            return None
        a, b, c = (int(parsed[k]) for k in (1, 3, 4))
        there.subtract((a, b))
        if min(there[a], there[b]) < 0 or (parsed[2] == "/" and b == 0):
            return None
        result = OPERATORS[parsed[2]](Fraction(a), Fraction(b))
        if result != c:
            return None
        there[c] += 1
    return result


def _of_expression(text: str, numbers: Sequence[int], target: int) -> Fraction | None:
    """The value of an expression that uses the numbers, perhaps with `= target` behind it; None where it does not.

    Operators wait on a stack until one that binds less follows; there is no recursion that depth could exhaust.
    """
    text, equals, right = (boxed(text) or text).replace(" ", "").partition("=")
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)
    if "".join(tokens) != text or (equals and right != str(target)):
        return None
    if Counter(int(token) for token in tokens if token.isdigit()) != Counter(numbers):
        return None
    binds = {"+": 1, "-": 1, "*": 2, "/": 2}
    values: list[Fraction] = []
    waiting: list[str] = []

    def apply() -> bool:
        sign = waiting.pop()
        if sign == "(" or len(values) < 2:
            return False
        b, a = values.pop(), values.pop()
        if sign == "/" and b == 0:
            return False
        values.append(OPERATORS[sign](a, b))
        return True

    after_value = False  # a value or ")" was last, so that an operator or ")" may follow, and nothing else
    for token in tokens:
        if (token in binds or token == ")") != after_value:
            return None
        if token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting and waiting[-1] != "(":
                if not apply():
                    return None
            if not waiting:
                return None
            waiting.pop()
        elif token in binds:
            while waiting and binds.get(waiting[-1], 0) >= binds[token]:
                if not apply():
                    return None
            waiting.append(token)
            after_value = False
        else:
            values.append(Fraction(int(token)))
            after_value = True
    while waiting:
        if not apply():
            return None
    return values[0] if len(values) == 1 and after_value else None


def _arithmetic(a: int, sign: str, b: int) -> list[str]:
    """Steps: a product is the sum of those with each digit of b that is not 0."""
    if sign != "*":
        return [f"{a}{sign}{b}={a + b if sign == '+' else a - b}"]
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != "0"][::-1]
    steps = [f"{a}*{part}={a * part}" for part in parts]
    total = a * parts[0]
    for part in parts[1:]:
        steps.append(f"{total}+{a * part}={total + a * part}")
        total += a * part
    return steps


def _last_result(response: str) -> str | None:
    """The result of the last step; None where one is malformed."""
    text = response.strip()
    if len(text) > LONGEST or not all(STEP.fullmatch(step) for step in text.split(",")):
        return None
    return text.rpartition("=")[2]


def _any_number(digits: int, rng: np.random.Generator) -> int:
    return int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def _unique(problems: Any) -> list[Problem]:
    """Without those that ask what another one before asked."""
    return list({_asked(problem): problem for problem in reversed(list(problems))}.values())[::-1]


def _asked(problem: Problem) -> str:
    """All that a problem asks: every turn of a chat, of which `prompt` is the last until it is rendered."""
    turns = problem.row.get(TURNS)
    return problem.prompt if turns is None else "\n\n".join(turn["content"] for turn in turns)
