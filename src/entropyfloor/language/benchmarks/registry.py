"""Benchmarks of the paper's language models: their sources, how to read their rows, and the published scores.

No benchmark is part of this package: they are read from the hub by name, or from files.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from entropyfloor.extras import require
from entropyfloor.language.rewards import LETTERS, Row, boxed, text_of
from entropyfloor.language.tasks.rows import read_rows

Kind = Literal["math", "choice"]

SHUFFLE_SEED = 0
"""Seed of the order of GPQA's choices. It is a constant, so that A is the same choice in all evaluations."""
FOLDERS = ("", "math", "ood")
"""Folders of a data directory in which files are looked for."""
SUFFIXES = (".jsonl", ".json", ".parquet")

INSTRUCTIONS: dict[Kind, str] = {
    "math": r"Please reason step by step, and put your final answer within \boxed{}.",
    "choice": r"Please reason step by step, and put the letter of the right choice within \boxed{}.",
}


class Example(NamedTuple):
    """One question of a benchmark with its answer."""

    number: int
    """Index in the benchmark, from 0."""
    question: str
    """Question, with its choices behind it where there are any."""
    answer: str
    """Right answer, in LaTeX; a letter where there are choices."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its source, how to read its rows, and how the paper samples responses."""

    name: str
    title: str
    kind: Kind
    problems: int
    """Number of its problems."""
    hub: str
    """Name of its dataset on the hub."""
    subset: str | None
    """Subset of the dataset, if it has several."""
    split: str
    """Split of the dataset."""
    read: Callable[[Row], tuple[str, str]]
    """Function from a row to the question and the answer."""
    samples: int = 1
    """Number of responses to each problem."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    gated: bool = False
    """Whether its authors ask not to copy it: it is read from the hub, or from a file given by its name."""
    remark: str = ""
    """Remark for the summary."""


def named(names: Sequence[str]) -> list[Benchmark]:
    """Benchmarks by their names.

    Raises:
        ValueError: There is no name, a repeated one, or one that does not exist.
    """
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ValueError(f"benchmark {unknown[0]!r} must be one of {', '.join(BENCHMARKS)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"benchmarks={list(names)} must be different ones, at least one")
    return [BENCHMARKS[name] for name in names]


def load(benchmark: Benchmark, data: Path | None = None, limit: int | None = None) -> list[Example]:
    """Read the problems of a benchmark, in its order.

    Args:
        benchmark: The benchmark.
        data: A directory with `<name>.jsonl`, `.json` or `.parquet`, in itself or in its `math` and `ood`; or one
            such file. None reads the hub.
        limit: Number of problems to read, from the first; None reads all.

    Raises:
        ValueError: The data is missing, cannot be reached, or has a wrong row; the message says what to do.
        ImportError: The hub's library is not installed.
    """
    if data is None or (benchmark.gated and not data.is_file()):
        source, rows = benchmark.hub, _from_hub(benchmark)
    else:
        file = _find(benchmark, data)
        source, rows = str(file), read_rows(file)
    if not rows:
        raise ValueError(f"{source} has no problem")
    examples = []
    for number, row in enumerate(rows[:limit]):
        try:
            question, answer = benchmark.read(row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise ValueError(
                f"{source}, row {number} is none of {benchmark.name} ({type(error).__name__}: {error}): "
                f"it has {has}"
            ) from None
        examples.append(Example(number, question, answer))
    return examples


def _find(benchmark: Benchmark, data: Path) -> Path:
    if data.is_file():
        return data
    tried = [data / folder / f"{benchmark.name}{suffix}" for folder in FOLDERS for suffix in SUFFIXES]
    for file in tried:
        if file.is_file():
            return file
    raise ValueError(
        f"no {benchmark.name}.jsonl, .json or .parquet in {data}, nor in its math and ood: put it there, or give "
        f"no --data-dir to read {benchmark.hub} from the hub"
    )


def _from_hub(benchmark: Benchmark) -> list[dict[str, Any]]:
    require("language", "datasets")
    datasets: Any = importlib.import_module("datasets")
    try:
        rows = datasets.load_dataset(
            benchmark.hub, benchmark.subset, split=benchmark.split, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:  # from several libraries
        hint = (
            f"accept its terms at https://huggingface.co/datasets/{benchmark.hub} and log in with `hf auth login`"
            if benchmark.gated
            else f"without network, put {benchmark.name}.jsonl into a directory and give --data-dir"
        )
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{benchmark.hub} cannot be read from the hub ({first}): {hint}") from None
    return [dict(row) for row in rows]


# --- rows ------------------------------------------------------------------------------------------------


def _math(row: Row) -> tuple[str, str]:
    """Columns problem or question; answer, final_answer (a list of one), or the box of the solution."""
    question = row["problem"] if "problem" in row else row["question"]
    if "answer" in row:
        answer = row["answer"]
    elif "final_answer" in row:
        answer = row["final_answer"]
    else:
        answer = boxed(row["solution"])
        if answer is None:
            raise ValueError("nothing is boxed in the solution")
    if isinstance(answer, list):
        (answer,) = answer
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = text_of(answer)
    return _text(question), _latex(_text(answer))


def _latex(answer: str) -> str:
    """An answer in LaTeX: Minerva writes 58 numbers as 4.5e33, and three answers as Python code."""
    if number := re.fullmatch(r"([-+]?[0-9.]+)[eE]([-+]?[0-9]+)", answer):
        return rf"{number[1]} \times 10^{{{int(number[2])}}}"
    return re.sub(r"(\d)\./", r"\1/", answer.replace("np.", "\\"))


def _arc(row: Row) -> tuple[str, str]:
    """Rows of the hub, or chats whose question ends in lines such as `A) …`, which some trainers use."""
    if "choices" in row:
        labels, options = list(row["choices"]["label"]), list(row["choices"]["text"])
        return _choice(row["question"], options, labels.index(row["answerKey"]))
    (content,) = (turn["content"] for turn in row["prompt"] if turn["role"] == "user")
    parts = re.split(r"^([A-Z0-9])\) ", content, flags=re.MULTILINE)
    question, labels, options = parts[0], parts[1::2], parts[2::2]
    return _choice(question, options, labels.index(row["reward_model"]["ground_truth"]))


def _mmlu_pro(row: Row) -> tuple[str, str]:
    return _choice(row["question"], list(row["options"]), LETTERS.index(row["answer"]))


def _gpqa(row: Row) -> tuple[str, str]:
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    order = list(range(4))
    random.Random(f"{SHUFFLE_SEED} {row['Question']}").shuffle(order)
    return _choice(row["Question"], [options[i] for i in order], order.index(0))


def _choice(question: str, options: Sequence[str], right: int) -> tuple[str, str]:
    """The question with its choices below, lettered from A, and the letter of the right one."""
    if not 0 <= right < len(options) <= len(LETTERS):
        raise ValueError(f"the right choice is number {right} of {len(options)}")
    lines = [f"{letter}) {_text(option)}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([_text(question), "", *lines]), LETTERS[right]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value.strip()


# --- benchmarks and published scores ---------------------------------------------------------------------

_OLYMPIAD = "the hub's subset has 674 problems, the copy that is usual among evaluations of Qwen2.5-Math 675"

# "AIME'24, AIME'25, and AMC'23 are conducted with a decoding temperature of [0.7], and reported as the average
# accuracy over [16] sampled responses. MATH500, Minerva, and OlympiadBench are conducted with greedy sampling. The
# evaluation process is sampled on the original policy (before ERA)": section 5.3.1. The paper does not say how it
# samples out of domain.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime24", "AIME24", "math", 30, "HuggingFaceH4/aime_2024", None, "train", _math, 16, 0.7),
        Benchmark("aime25", "AIME25", "math", 30, "math-ai/aime25", None, "test", _math, 16, 0.7),
        Benchmark("amc23", "AMC", "math", 40, "math-ai/amc23", None, "test", _math, 16, 0.7),
        Benchmark("math500", "MATH500", "math", 500, "HuggingFaceH4/MATH-500", None, "test", _math),
        Benchmark("minerva", "Minerva", "math", 272, "math-ai/minervamath", None, "test", _math),
        Benchmark(
            *("olympiadbench", "Olympiad", "math", 675, "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
            _math,
            remark=_OLYMPIAD,
        ),
        Benchmark("arc_challenge", "ARC-C", "choice", 1172, "allenai/ai2_arc", "ARC-Challenge", "test", _arc),
        Benchmark("mmlu_pro", "MMLU-Pro", "choice", 12032, "TIGER-Lab/MMLU-Pro", None, "test", _mmlu_pro),
        Benchmark(
            *("gpqa_diamond", "GPQA-Diamond", "choice", 198, "Idavidrein/gpqa", "gpqa_diamond", "train"),
            _gpqa,
            gated=True,
            remark="its authors ask that its examples not be posted as plain text: keep these results to yourself",
        ),
    )
}
IN_DOMAIN = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.kind == "math")
"""Names of the six benchmarks of the paper's tables, in their order."""


class Published(NamedTuple):
    """A row of the paper's tables."""

    title: str
    checkpoint: str | None
    """Name on the hub, where it is public."""
    scores: tuple[float, ...]
    """Scores on `IN_DOMAIN`, in per cent."""
    average: float


# arXiv 2510.08549, Table 2 (7B) and Table 3 (GSPO, 1.5B).
PUBLISHED = (
    Published("7B base", "Qwen/Qwen2.5-Math-7B", (8.6, 6.3, 52.2, 50.8, 12.1, 17.2), 24.5),
    Published("7B base Instruct", "Qwen/Qwen2.5-Math-7B-Instruct", (13.3, 10.0, 57.1, 81.0, 32.7, 38.8), 38.8),
    Published(
        *("7B SimpleRL-Zero", "hkust-nlp/Qwen-2.5-Math-7B-SimpleRL-Zero"),
        *((26.7, 9.3, 60.0, 74.6, 27.6, 35.8), 39.0),
    ),
    Published(
        *("7B OpenReasoner-Zero", "Open-Reasoner-Zero/Open-Reasoner-Zero-7B"),
        *((15.4, 13.4, 56.5, 81.0, 32.7, 43.2), 40.4),
    ),
    Published("7B PRIME-Zero", "PRIME-RL/Eurus-2-7B-PRIME-Zero", (18.9, 11.7, 57.7, 79.0, 36.4, 40.6), 40.7),
    Published("7B Oat-Zero", "sail/Qwen2.5-Math-7B-Oat-Zero", (28.8, 10.8, 65.2, 79.6, 34.2, 39.9), 43.1),
    Published("7B 20 % forking", None, (29.0, 17.7, 63.6, 81.8, 39.7, 44.6), 46.1),
    Published("7B KL-Cov", None, (35.6, 13.1, 65.1, 81.0, 40.4, 44.1), 46.6),
    Published("7B Clip-Cov", None, (33.9, 13.7, 62.5, 78.4, 35.6, 40.3), 44.1),
    Published("7B GRPO", None, (34.4, 12.3, 69.5, 80.6, 36.8, 40.6), 45.7),
    Published("7B ERA", None, (37.5, 16.9, 72.8, 84.6, 42.6, 46.5), 50.2),
    Published("7B GSPO", None, (29.8, 13.7, 61.2, 85.1, 37.1, 35.1), 43.7),
    Published("7B GSPO + ERA", None, (33.3, 15.2, 63.8, 84.3, 40.8, 42.7), 46.7),
    Published("1.5B base", "Qwen/Qwen2.5-Math-1.5B", (4.3, 2.3, 26.4, 59.0, 24.3, 27.6), 24.0),
    Published("1.5B GRPO", None, (11.1, 6.0, 40.2, 66.4, 25.0, 30.1), 29.8),
    Published("1.5B ERA", None, (12.1, 6.8, 49.5, 70.6, 30.5, 34.7), 34.0),
)
"""Scores may differ from those of the checkpoints: the paper does not say the template and length of each row."""
