"""Results of a benchmark: one line for each problem on disk, their summary, and the summary as text."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from entropyfloor.language.benchmarks import scores
from entropyfloor.language.benchmarks.judge import Verdicts
from entropyfloor.language.benchmarks.registry import BENCHMARKS, IN_DOMAIN, PUBLISHED, Benchmark, Example
from entropyfloor.language.sampling.engines.base import Response

SILENT = 8
"""Number of problems after which a model that has only given empty responses is stopped."""


class Prompt(NamedTuple):
    """The prompt of a problem."""

    text: str
    tokens_left: int | None
    """Number of tokens that the model's context leaves for a response; None where only a server knows."""


class Results:
    """Lines of one benchmark, on disk.

    A last line that a kill cut short is ignored, and removed before the next one is written.

    Args:
        path: Directory of the results.
        benchmark: The benchmark.
        examples: Its problems.
        samples: Number of responses to each problem.

    Raises:
        ValueError: A line is damaged or answers another problem, or all responses to `SILENT` problems, or to all
            problems, are empty.
    """

    def __init__(self, path: Path, benchmark: Benchmark, examples: Sequence[Example], samples: int) -> None:
        self.file = path / f"{benchmark.name}.jsonl"
        self._examples = examples
        self._lines: dict[int, dict[str, Any]] = {}
        *whole, _ = self.file.read_bytes().split(b"\n") if self.file.exists() else [b""]
        for number, text in enumerate(whole, start=1):
            try:
                line = json.loads(text)
                problem, answer, count = line["problem"], line["answer"], len(line["responses"])
                known = type(problem) is int and 0 <= problem < len(examples)
                known = known and answer == examples[problem].answer and count == samples
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{self.file}, line {number} is damaged: {error!r}") from None
            if not known:
                raise ValueError(f"{self.file}, line {number} answers another problem: the data has changed")
            self._lines[problem] = line
        self._check_silent()

    @property
    def missing(self) -> list[Example]:
        """Problems that are not answered yet."""
        return [example for example in self._examples if example.number not in self._lines]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Lines so far, in the order of the problems."""
        return [self._lines[number] for number in sorted(self._lines)]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse to continue lines with other prompts.

        Raises:
            ValueError: The prompt of a line differs from its present one.
        """
        for number, line in self._lines.items():
            if line["prompt"] != prompts[number].text:
                raise ValueError(
                    f"{self.file}: the prompt of problem {number} has changed, by the data, the tokenizer's chat "
                    f"template or this program: give another --out"
                )

    @contextmanager
    def writing(self) -> Iterator[TextIO]:
        """The file, opened behind its last whole line and locked against other processes."""
        with self.file.open("a+b") as locked:
            try:
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is writing {self.file}: wait for it or stop it") from None
            locked.seek(0)
            locked.truncate(locked.read().rfind(b"\n") + 1)
            with self.file.open("a", encoding="utf-8") as file:
                yield file

    def add(
        self,
        file: TextIO,
        example: Example,
        prompt: Prompt,
        responses: Sequence[Response],
        verdicts: Verdicts,
        seeds: Sequence[int],
    ) -> None:
        """Write the line of a problem into the opened file; see `writing`.

        Raises:
            ValueError: The model only gives empty responses; see `Results`.
        """
        line = {
            "problem": example.number,
            "prompt": prompt.text,
            "room": prompt.tokens_left,
            "answer": example.answer,
            "responses": [response.text for response in responses],
            **verdicts._asdict(),
            "lengths": [response.length for response in responses],
            "cut": [response.cut for response in responses],
            "seeds": list(seeds),
        }
        file.write(to_json(line).decode())
        file.flush()
        self._lines[example.number] = line
        self._check_silent()

    def _check_silent(self) -> None:
        """Refuse a model that only gives empty responses: a setting is wrong, and the score means nothing."""
        enough = len(self._lines) >= min(SILENT, len(self._examples))
        if enough and all(_empty_share(line) == 1 for line in self._lines.values()):
            raise ValueError(
                f"{self.file}: all responses to {len(self._lines)} problems are empty. Give another --template, "
                f"one that the model was trained with, or look at what the server answers; and another --out"
            )


def to_json(value: Any) -> bytes:
    """One line of JSON."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _empty_share(line: Mapping[str, Any]) -> float:
    """Share of empty responses to a problem."""
    return float(np.mean([not text.strip() for text in line["responses"]]))


# --- summary ---------------------------------------------------------------------------------------------


def summarise(
    benchmark: Benchmark,
    lines: Sequence[Mapping[str, Any]],
    *,
    samples: int,
    temperature: float,
    max_tokens: int,
) -> dict[str, Any]:
    """Scores of the lines of a benchmark, as `summary.json` has them.

    `score`: the mean over problems of the share of right responses (avg@k, or the accuracy of one response), with
    its interval. `pass`: pass@k for k = 1, 2, 4, … up to the number of responses. `majority`: how often the most
    common answer is right. `length`: mean number of tokens of a response. Shares of responses: `cut` at the limit,
    `empty`, `no_answer` without a readable answer, and `undecided`, where the judge failed, which counts as wrong.
    `confined`: share of problems whose prompt left fewer tokens in the model's context than `max_tokens`.
    """
    counts = np.array([sum(line["correct"]) for line in lines])
    score = scores.accuracy(counts / samples)
    summary: dict[str, Any] = {
        "title": benchmark.title,
        "problems": len(lines),
        "of": benchmark.problems,
        "samples": samples,
        "temperature": temperature,
        "score": score.value,
        "interval_95": [score.low, score.high],
    }
    if samples > 1:
        summary["pass"] = {str(k): share.record for k, share in scores.pass_curve(samples, counts).items()}
        voted = [scores.majority(line["answers"], line["correct"]) for line in lines]
        summary["majority"] = scores.accuracy(voted).record
    return summary | {
        "length": float(np.mean([line["lengths"] for line in lines])),
        "cut": float(np.mean([line["cut"] for line in lines])),
        "empty": float(np.mean([_empty_share(line) for line in lines])),
        "undecided": float(np.mean([line["undecided"] for line in lines])),
        "no_answer": float(np.mean([answer is None for line in lines for answer in line["answers"]])),
        "confined": float(np.mean([line["room"] is not None and line["room"] < max_tokens for line in lines])),
    }


def as_text(summary: Mapping[str, Any], path: Path) -> str:
    """The summary as text: scores in per cent, and the paper's scores below them."""
    lines = [f"{summary['model']}, template {summary['template']}"]
    for name, entry in summary["benchmarks"].items():
        samples, (low, high) = entry["samples"], entry["interval_95"]
        kind = f"avg@{samples}" if samples > 1 else "greedy" if not entry["temperature"] else "avg@1"
        total = "" if entry["problems"] == entry["of"] else f" of {entry['of']:,}"
        parts = [f"{kind}, {entry['problems']:,}{total} problems"]
        if "pass" in entry:
            parts.append(f"pass@{samples} {_percent(entry['pass'][str(samples)]['value'])}")
            parts.append(f"majority {_percent(entry['majority']['value'])}")
        parts.append(f"{entry['length']:,.0f} tokens")
        shares = {"cut": "cut", "no_answer": "without an answer", "empty": "empty", "undecided": "undecided"}
        parts += [f"{_percent(entry[share])} % {words}" for share, words in shares.items() if entry[share]]
        score = f"{_percent(entry['score'])} [{_percent(low)}, {_percent(high)}] %"
        lines.append(f"{entry['title']:<14}{score:<22}{'; '.join(parts)}")
        if entry["confined"]:
            lines.append(f"{'':<14}the model's context leaves less than --max-tokens to some of these responses")
        if remark := BENCHMARKS[name].remark:
            lines.append(f"{'':<14}{remark}")
    in_domain = [name for name in IN_DOMAIN if name in summary["benchmarks"]]
    if in_domain:
        lines += ["", *_table(summary, in_domain)]
    return "\n".join([*lines, "", f"written to    {path}"])


def _table(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """This model above the rows of the paper, which are for all problems and unknown templates and lengths."""
    titles = [BENCHMARKS[name].title for name in names]
    columns = [IN_DOMAIN.index(name) for name in names]
    average = "average" in summary
    head = f"{'per cent':<24}" + "".join(f"{title:>10}" for title in [*titles, *(["average"] if average else [])])
    own = [summary["benchmarks"][name]["score"] for name in names] + ([summary["average"]] if average else [])
    rows = [head, f"{'this model':<24}" + "".join(f"{_percent(value):>10}" for value in own)]
    for row in PUBLISHED:
        values = [row.scores[i] for i in columns] + ([row.average] if average else [])
        mark = "  the paper's of this checkpoint" if row.checkpoint == summary["model"] else ""
        rows.append(f"{row.title:<24}" + "".join(f"{value:>10.1f}" for value in values) + mark)
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
