"""A language model judged on benchmarks, as the paper judges its own: on the model itself, nothing of ERA applied.

A directory of results holds

    config.toml             every setting
    machine.json            versions, hardware, command, commit, start
    <benchmark>.jsonl       append-only, one line a problem: prompt, responses, their answers and verdicts
    summary.json            scores with their intervals; written when all is there
    pass.png, pass.svg      pass@k, drawn by the command where some benchmark has several responses

The same command goes on with the problems that are missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import tomli_w

from entropyfloor.language.benchmarks import registry as benchmarks
from entropyfloor.language.benchmarks import scores
from entropyfloor.language.benchmarks.registry import INSTRUCTIONS, PUBLISHED, Benchmark, Kind, Problem
from entropyfloor.language.rewards import pool as rewards
from entropyfloor.language.rewards.pool import Answer, Reward
from entropyfloor.language.sampling import engines as generation
from entropyfloor.language.sampling.engines import DtypeName, Engine, EngineName, Request, Response, Sampling
from entropyfloor.runs import files, machine
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import check_same, is_begun
from entropyfloor.runs.run_reader import CONFIG, MACHINE
from entropyfloor.runs.settings import COUNT, NATURAL, SEED, SHARE, check

SUMMARY = "summary.json"
SILENT = 8
"""Problems after which a model that has said nothing at all is stopped."""
SECONDS = 30.0
"""That the judge has for an answer; the first one is also to import what it needs, on a busy machine."""
WHOLE = re.compile(r"\$?[+-]?[0-9]{1,100}\$?")
WHERE = frozenset({"out", "data_dir", "url", "batch_size", "device", "devices"})
"""Settings that may differ when the same is asked for again: they say where and how fast, not what."""


@dataclass(frozen=True)
class EvaluationConfig:
    """A model judged on benchmarks. What is left at None is the benchmark's own."""

    model: str
    """A directory with weights and tokenizer, a name on the hub, or what a server calls it."""
    benchmarks: str = ",".join(benchmarks.IN_DOMAIN)
    """Names with commas; out of domain there are arc_challenge, mmlu_pro and gpqa_diamond."""
    data_dir: str | None = None
    """A directory with <benchmark>.jsonl, .json or .parquet, or one such file; by default the hub is read."""
    limit: int | None = None
    """Only the first so many problems of each."""
    template: str = "qwen-math"
    """qwen-math, question, chat (the tokenizer's own), none, or a file or text with {question} in it."""
    samples: int | None = None
    """Responses to a problem where they are drawn: 16 on AIME and AMC, else 1; a greedy one is always alone."""
    temperature: float | None = None
    """0 is greedy: 0.7 on AIME and AMC, else 0."""
    top_p: float = 1.0
    """Draw from the likeliest tokens, up to this probability; the paper draws from all."""
    max_tokens: int = 8192
    """Longest response; shorter where the model's context leaves less room, which is told."""
    context: int | None = None
    """Tokens of prompt and response together, if not what the model's config says."""
    seed: int = 0
    """Every response has a seed that follows from it."""

    engine: EngineName = "transformers"
    """transformers (in this process), vllm (where it is installed), server (any that speaks OpenAI's protocol)."""
    url: str | None = None
    """Engine server: such as http://localhost:8000/v1; its key is OPENAI_API_KEY of the environment."""
    batch_size: int | None = None
    """Responses at a time: 16 with transformers, 32 with a server."""
    dtype: DtypeName = "auto"
    """Of the weights: auto, float32, bfloat16, float16; auto is their own on an accelerator, float32 on a CPU."""
    device: str = "auto"
    """Engine transformers: such as cuda:1 or cpu; auto takes an accelerator where there is one."""
    devices: int = 1
    """Engine vllm: GPUs that the model is split over."""
    out: str | None = None
    """Directory of the results; by default runs/evaluate/<model>-<template>."""

    def __post_init__(self) -> None:
        counts = ("limit", "samples", "max_tokens", "context", "batch_size", "devices")
        check(self, {**dict.fromkeys(counts, COUNT), "temperature": NATURAL, "top_p": SHARE, "seed": SEED})
        if not self.top_p:
            raise ValueError("top_p=0 leaves no token to draw: give --temperature 0 for the likeliest one")
        drawn = any(temperature for _, temperature in map(self.sampling, self.asked))
        if (self.samples or 1) > 1 and not drawn:
            raise ValueError(
                f"samples={self.samples} would all be the same, as they are greedy: give --temperature"
            )
        if self.data_dir and Path(self.data_dir).is_file() and len(self.asked) > 1:
            raise ValueError(f"data_dir={self.data_dir} is one file for {len(self.asked)} benchmarks: ask for one")

    @property
    def asked(self) -> list[Benchmark]:
        """The benchmarks themselves."""
        return benchmarks.named([name.strip() for name in self.benchmarks.split(",") if name.strip()])

    def sampling(self, benchmark: Benchmark) -> tuple[int, float]:
        """Responses to each of its problems, and their temperature."""
        temperature = benchmark.temperature if self.temperature is None else self.temperature
        return (self.samples or benchmark.samples) if temperature else 1, temperature

    def resolved(self) -> EvaluationConfig:
        """The same with a directory."""
        called = generation.template(self.template).name
        name = f"{self.model.rstrip('/').split('/')[-1]}-{called}"
        return replace(self, out=self.out or f"runs/evaluate/{name}")

    @property
    def record(self) -> dict[str, Any]:
        """What `config.toml` has, the words of the template included."""
        text = generation.template(self.template).text
        return asdict(self) | {"domain": "language", "kind": "evaluation", "template_text": text}


def evaluate(config: EvaluationConfig) -> str:
    """Let a model answer benchmarks, judge its responses, and write both into a directory.

    Args:
        config: Settings.

    Returns:
        What was found, in words: each score with a 95 % interval over problems, which says nothing of other
        training seeds, beside what the paper has published.

    Raises:
        ValueError: A model, a benchmark or a template that is not there, a prompt that leaves no room, a model
            that says nothing, or results in the way that were begun with other settings.
        ImportError: A library is missing.
        ConnectionError: A server gives no answer.
        KeyboardInterrupt: Ctrl-C; every problem that was finished is on disk.
    """
    config = config.resolved()
    path = Path(str(config.out))
    check_same(path, {name: value for name, value in config.record.items() if name not in WHERE})
    data = Path(config.data_dir) if config.data_dir else None
    asked = {b: benchmarks.load(b, data, config.limit) for b in config.asked}
    results = {b: Results(path, b, problems, config.sampling(b)[0]) for b, problems in asked.items()}
    if any(result.missing for result in results.values()):
        engine = generation.engine(
            config.engine,
            config.model,
            generation.template(config.template),
            url=config.url,
            batch_size=config.batch_size,
            context=config.context,
            dtype=config.dtype,
            device=None if config.device == "auto" else config.device,
            devices=config.devices,
        )
        prompts = {b: _prompts(b, problems, engine) for b, problems in asked.items()}
        for benchmark, result in results.items():
            result.check_prompts(prompts[benchmark])
        if not is_begun(path):
            path.mkdir(parents=True, exist_ok=True)
            files.replace(path / MACHINE, _json(machine.describe()))
            known = {name: value for name, value in config.record.items() if value is not None}
            files.replace(path / CONFIG, tomli_w.dumps(known).encode())
        try:
            with Reward(Answer(), seconds=SECONDS) as equal:
                for benchmark, result in results.items():
                    _answer(config, benchmark, engine, equal, result, prompts[benchmark])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command goes on with what {path} does not have") from None
    judged = {b.name: summarise(b, result.lines, config) for b, result in results.items()}
    found: dict[str, Any] = {"model": config.model, "template": generation.template(config.template).name}
    if set(benchmarks.IN_DOMAIN) <= set(judged):
        found["average"] = float(np.mean([judged[name]["score"] for name in benchmarks.IN_DOMAIN]))
    found["benchmarks"] = judged
    files.replace(path / SUMMARY, _json(found))
    return _words(found, path)


# --- answering -------------------------------------------------------------------------------------------


class Results:
    """The lines of one benchmark, on disk.

    Args:
        path: The directory of the results.
        benchmark: Whose.
        problems: All that are asked.
        samples: Responses to each.

    Raises:
        ValueError: A line is damaged, or of another problem than is asked now; or the model has said nothing at
            all in `SILENT` problems, or in all of them. A last line that a kill cut short is ignored, and cut off
            before the next one is written.
    """

    def __init__(self, path: Path, benchmark: Benchmark, problems: Sequence[Problem], samples: int) -> None:
        self.file = path / f"{benchmark.name}.jsonl"
        self._problems = problems
        self._found: dict[int, dict[str, Any]] = {}
        *whole, _ = self.file.read_bytes().split(b"\n") if self.file.exists() else [b""]
        for number, line in enumerate(whole, start=1):
            try:
                found = json.loads(line)
                problem, answer, count = found["problem"], found["answer"], len(found["responses"])
                known = problem < len(problems) and answer == problems[problem].answer and count == samples
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.file}, line {number} is damaged: {error!r}") from None
            if not known:
                raise ValueError(f"{self.file}, line {number} answers another problem: the data has changed")
            self._found[problem] = found
        self._check_speech()

    @property
    def missing(self) -> list[Problem]:
        """Problems that are not answered yet."""
        return [problem for problem in self._problems if problem.number not in self._found]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What is there, in the order of the problems."""
        return [self._found[number] for number in sorted(self._found)]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse to go on with lines that asked otherwise.

        Raises:
            ValueError: A prompt differs from what is asked now.
        """
        for number, line in self._found.items():
            if line["prompt"] != prompts[number].text:
                raise ValueError(
                    f"{self.file}: problem {number} was asked in other words; the data, the tokenizer's chat "
                    f"template or this program has changed: give another --out"
                )

    @contextmanager
    def writing(self) -> Iterator[TextIO]:
        """The file, behind its last whole line, and no other process at it."""
        with self.file.open("a+b") as locked:
            try:
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is writing {self.file}: wait for it or stop it") from None
            locked.seek(0)
            locked.truncate(locked.read().rfind(b"\n") + 1)
            with self.file.open("a", encoding="utf-8") as file:
                yield file

    def add(self, file: TextIO, line: dict[str, Any]) -> None:
        """Write a problem's line, so that it is there whatever comes next.

        Raises:
            ValueError: The model says nothing; see `Results`.
        """
        file.write(_json(line).decode())
        file.flush()
        self._found[line["problem"]] = line
        self._check_speech()

    def _check_speech(self) -> None:
        """Refuse a model that says nothing, which is a setting that does not fit and no result."""
        enough = len(self._found) >= min(SILENT, len(self._problems))
        if enough and all(_empty(line) == 1 for line in self._found.values()):
            raise ValueError(
                f"{self.file}: the model has answered {len(self._found)} problems with nothing at all. Give "
                f"another --template, one that it was trained with, or look at what the server answers; and "
                f"another --out"
            )


class Prompt(NamedTuple):
    """What the model is shown of a problem."""

    text: str
    room: int | None
    """Tokens that its context leaves for a response; None where only a server knows."""


def _prompts(benchmark: Benchmark, problems: Sequence[Problem], engine: Engine) -> list[Prompt]:
    """What the model is shown, for every problem; all of them must leave room for a response."""
    texts = [engine.prompt(problem.question, INSTRUCTIONS[benchmark.kind]) for problem in problems]
    prompts = [Prompt(text, engine.room(text)) for text in texts]
    if full := [number for number, (_, room) in enumerate(prompts) if room is not None and room < 1]:
        raise ValueError(
            f"{benchmark.name}: the prompts of {len(full)} problems, such as number {full[0]}, leave no room in "
            f"the model's context: choose a shorter template, or give --context if the model takes more than its "
            f"config says"
        )
    return prompts


def _answer(
    config: EvaluationConfig,
    benchmark: Benchmark,
    engine: Engine,
    equal: Reward,
    results: Results,
    prompts: Sequence[Prompt],
) -> None:
    """Ask what is missing; each problem is on disk once its last response is there."""
    samples, temperature = config.sampling(benchmark)
    missing, total = results.missing, len(prompts)
    if not missing:
        return
    sampling = Sampling(temperature, config.top_p, config.max_tokens)
    requests = [
        Request(prompts[problem.number].text, seed_of(config.seed, benchmark.name, problem.number, i))
        for problem in missing
        for i in range(samples)
    ]
    told, done = max(1, total // 10), total - len(missing)
    arrived: dict[int, dict[int, Response]] = {}
    with results.writing() as file, Progress(total, unit="problems", label=benchmark.name, every=1) as progress:
        progress.advance(done)
        for place, response in engine.generate(requests, sampling):
            at, sample = divmod(place, samples)
            arrived.setdefault(at, {})[sample] = response
            if len(arrived[at]) < samples:
                continue
            answers = [answer for _, answer in sorted(arrived.pop(at).items())]
            seeds = [request.seed for request in requests[at * samples : (at + 1) * samples]]
            problem = missing[at]
            results.add(file, _line(equal, benchmark, problem, prompts[problem.number], answers, seeds))
            done += 1
            if done % told == 0 or done == total:
                share = np.mean([np.mean(line["correct"]) for line in results.lines])
                progress.report(done, f"{100 * share:.1f} % right")
            progress.advance(done)


def _line(
    equal: Reward,
    benchmark: Benchmark,
    problem: Problem,
    prompt: Prompt,
    responses: Sequence[Response],
    seeds: Sequence[int],
) -> dict[str, Any]:
    texts = [response.text for response in responses]
    verdicts = judge(equal, benchmark.kind, problem.answer, texts)
    return {
        "problem": problem.number,
        "prompt": prompt.text,
        "room": prompt.room,
        "answer": problem.answer,
        "responses": texts,
        **verdicts._asdict(),
        "lengths": [response.length for response in responses],
        "cut": [response.cut for response in responses],
        "seeds": list(seeds),
    }


def _empty(line: Mapping[str, Any]) -> float:
    """Share of the responses to a problem that say nothing."""
    return float(np.mean([not text.strip() for text in line["responses"]]))


class Verdicts(NamedTuple):
    """What the responses to a problem are worth, one entry each."""

    answers: list[str | None]
    """Where several are equal, all have the words of one; None where nothing is boxed, or no letter is named."""
    correct: list[bool]
    undecided: list[bool]
    """Whether the judge failed or took too long; such a response counts as wrong."""


def judge(equal: Reward, kind: Kind, answer: str, responses: Sequence[str]) -> Verdicts:
    """Compare the responses to a problem with its answer, and with each other.

    Args:
        equal: Says whether a response has the answer of a row, in processes that may be ended.
        kind: Of the benchmark.
        answer: The right one.
        responses: All of them.
    """
    if kind == "choice":
        letters = [rewards.letter(response) for response in responses]
        return Verdicts(letters, [letter == answer for letter in letters], [False] * len(letters))
    said = [rewards.boxed(response) or None for response in responses]
    different = list(dict.fromkeys(text for text in said if text is not None))
    right, failed = _equal(equal, [(text, answer) for text in different])
    correct = {text for text, same in zip(different, right, strict=True) if same}
    undecided = {different[i] for i in failed}
    # Those that are right are equal. Of the others each is compared with each, but for what the judge choked on;
    # of whole numbers a look says as much.
    words = {text: answer if text in correct else _plain(text) for text in different}
    wrong = [text for text in different if text not in correct | undecided]
    pairs = [
        (b, a) for i, b in enumerate(wrong) for a in wrong[:i] if not (WHOLE.fullmatch(a) and WHOLE.fullmatch(b))
    ]
    for (later, first), same in zip(pairs, _equal(equal, pairs)[0], strict=True):
        if same:
            words[later] = words[first]
    return Verdicts(
        [None if text is None else words[text] for text in said],
        [text in correct for text in said],
        [text in undecided for text in said],
    )


def _equal(equal: Reward, pairs: Sequence[tuple[str, str]]) -> tuple[list[bool], list[int]]:
    """Whether both of each pair are worth the same, and which pairs nobody could tell of."""
    found = equal.score([f"\\boxed{{{a}}}" for a, _ in pairs], [{"answer": b} for _, b in pairs])
    return (found.total > 0).tolist(), [index for index, _, _ in found.failures]


def _plain(text: str) -> str:
    return str(int(text.strip("$"))) if WHOLE.fullmatch(text) else "".join(text.split())


def seed_of(seed: int, benchmark: str, problem: int, sample: int) -> int:
    """The seed of one response: 31 bits, which every engine takes."""
    digest = hashlib.sha256(f"{seed} {benchmark} {problem} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


# --- what came of it -------------------------------------------------------------------------------------


def summarise(
    benchmark: Benchmark, lines: Sequence[Mapping[str, Any]], config: EvaluationConfig
) -> dict[str, Any]:
    """Scores of a benchmark from its lines, as `summary.json` has them.

    `score`: the mean over problems of the share of right responses, which is avg@k, or with one response the
    accuracy; with its interval. `pass`: pass@k for k = 1, 2, 4, … up to the number of responses. `majority`: how
    often the commonest answer is right. `length`: mean tokens of a response. Shares of responses: `cut` at the
    limit, `empty`, `no_answer`, which nothing could be read from, and `undecided`, which the judge failed at and
    which count as wrong. `confined`: share of problems whose prompt left less room in the model's context than
    `max_tokens`.
    """
    samples, temperature = config.sampling(benchmark)
    counts = np.array([sum(line["correct"]) for line in lines])
    score = scores.accuracy(counts / samples)
    found: dict[str, Any] = {
        "title": benchmark.title,
        "problems": len(lines),
        "of": benchmark.problems,
        "samples": samples,
        "temperature": temperature,
        "score": score.value,
        "interval_95": [score.low, score.high],
    }
    if samples > 1:
        found["pass"] = {str(k): share.record for k, share in scores.pass_curve(samples, counts).items()}
        voted = [scores.majority(line["answers"], line["correct"]) for line in lines]
        found["majority"] = scores.accuracy(voted).record
    rooms = [config.max_tokens if line["room"] is None else line["room"] for line in lines]
    return found | {
        "length": float(np.mean([line["lengths"] for line in lines])),
        "cut": float(np.mean([line["cut"] for line in lines])),
        "empty": float(np.mean([_empty(line) for line in lines])),
        "undecided": float(np.mean([line["undecided"] for line in lines])),
        "no_answer": float(np.mean([answer is None for line in lines for answer in line["answers"]])),
        "confined": float(np.mean([room < config.max_tokens for room in rooms])),
    }


def _words(found: Mapping[str, Any], path: Path) -> str:
    """The summary for a reader: scores in per cent, then the paper's beside them."""
    lines = [f"{found['model']}, template {found['template']}"]
    for name, one in found["benchmarks"].items():
        low, high = one["interval_95"]
        kind = f"avg@{one['samples']}" if one["samples"] > 1 else "greedy" if not one["temperature"] else "avg@1"
        of = "" if one["problems"] == one["of"] else f" of {one['of']:,}"
        parts = [f"{kind}, {one['problems']:,}{of} problems"]
        if "pass" in one:
            most = one["samples"]
            parts.append(f"pass@{most} {_percent(one['pass'][str(most)]['value'])}")
            parts.append(f"majority {_percent(one['majority']['value'])}")
        parts.append(f"{one['length']:,.0f} tokens")
        shares = {"cut": "cut", "no_answer": "without an answer", "empty": "empty", "undecided": "undecided"}
        parts += [f"{_percent(one[share])} % {words}" for share, words in shares.items() if one[share]]
        score = f"{_percent(one['score'])} [{_percent(low)}, {_percent(high)}] %"
        lines.append(f"{one['title']:<14}{score:<22}{'; '.join(parts)}")
        if one["confined"]:
            lines.append(f"{'':<14}the model's context leaves less than --max-tokens to some of these responses")
        if remark := benchmarks.BENCHMARKS[name].remark:
            lines.append(f"{'':<14}{remark}")
    shown = [name for name in benchmarks.IN_DOMAIN if name in found["benchmarks"]]
    if shown:
        lines += ["", *_table(found, shown)]
    return "\n".join([*lines, "", f"written to    {path}"])


def _table(found: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    """This model above the rows of the paper, which are of all problems and of unknown templates and lengths."""
    titles = [benchmarks.BENCHMARKS[name].title for name in shown]
    index = [benchmarks.IN_DOMAIN.index(name) for name in shown]
    average = "average" in found
    head = f"{'per cent':<24}" + "".join(f"{title:>10}" for title in [*titles, *(["average"] if average else [])])
    own = [found["benchmarks"][name]["score"] for name in shown] + ([found["average"]] if average else [])
    rows = [head, f"{'this model':<24}" + "".join(f"{_percent(value):>10}" for value in own)]
    for row in PUBLISHED:
        values = [row.scores[i] for i in index] + ([row.average] if average else [])
        mark = "  the paper's of this checkpoint" if row.checkpoint == found["model"] else ""
        rows.append(f"{row.title:<24}" + "".join(f"{value:>10.1f}" for value in values) + mark)
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
