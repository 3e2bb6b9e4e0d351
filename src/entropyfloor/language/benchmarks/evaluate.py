"""Evaluation of a language model on benchmarks, as the paper evaluates: the model itself, without ERA.

A directory of results holds

    config.toml             every setting
    machine.json            versions, hardware, command, commit, start
    <benchmark>.jsonl       append-only, one line per problem: prompt, responses, their answers and verdicts
    summary.json            scores with their intervals; written when all problems are answered
    pass.png, pass.svg      pass@k, drawn by the command where some benchmark has several responses

The same command continues with the problems that are missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w

from entropyfloor.language.benchmarks import registry
from entropyfloor.language.benchmarks.judge import judge
from entropyfloor.language.benchmarks.registry import INSTRUCTIONS, Benchmark, Example
from entropyfloor.language.benchmarks.results import Prompt, Results, as_text, summarise, to_json
from entropyfloor.language.rewards import Answer, Reward
from entropyfloor.language.sampling.engines import base, make_engine
from entropyfloor.language.sampling.engines.base import DtypeName, Engine, EngineName, Request, Response, Sampling
from entropyfloor.runs import files, machine
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import check_same, is_begun
from entropyfloor.runs.run_reader import CONFIG, MACHINE
from entropyfloor.runs.settings import COUNT, NATURAL, SEED_RANGE, SHARE, Effect, changeable, check

SUMMARY = "summary.json"
SECONDS = 30.0
"""Time limit of the judge for an answer; the first one includes imports, perhaps on a busy machine."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of `entropyfloor evaluate benchmark`. None stands for the benchmark's own value."""

    model: str
    """Model to evaluate: a directory with weights and tokenizer, a name on the hub, or its name on a server."""
    benchmarks: str = ",".join(registry.IN_DOMAIN)
    """Benchmarks, separated by commas; arc_challenge, mmlu_pro and gpqa_diamond are out of domain."""
    data_dir: Annotated[str | None, Effect.PLACE] = None
    """Directory with <benchmark>.jsonl, .json or .parquet, or one such file; by default the hub is read."""
    limit: Annotated[int | None, COUNT] = None
    """Number of problems of each benchmark, from its first; by default all."""
    template: str = "qwen-math"
    """Prompt: qwen-math, question, chat (the tokenizer's template), none, or a file or text with {question}."""
    samples: Annotated[int | None, COUNT] = None
    """Sampled responses to a problem: by default 16 on AIME and AMC, else 1; greedy decoding gives one."""
    temperature: Annotated[float | None, NATURAL] = None
    """Sampling temperature; 0 is greedy. By default 0.7 on AIME and AMC, else 0."""
    top_p: Annotated[float, SHARE] = 1.0
    """Probability of the likeliest tokens that are sampled from; 1, as in the paper, samples from all."""
    max_tokens: Annotated[int, COUNT] = 8192
    """Longest response in tokens; shorter where the model's context leaves fewer, which the summary says."""
    context: Annotated[int | None, COUNT] = None
    """Tokens of prompt and response together, if the model takes another number than its config says."""
    seed: Annotated[int, SEED_RANGE] = 0
    """Random seed; each response has a seed that follows from it."""

    engine: EngineName = "transformers"
    """Engine: transformers (in this process), vllm (where it is installed), server (with OpenAI's protocol)."""
    url: Annotated[str | None, Effect.PLACE] = None
    """Engine server: address such as http://localhost:8000/v1; its key is OPENAI_API_KEY of the environment."""
    batch_size: Annotated[int | None, COUNT, Effect.SPEED] = None
    """Number of responses at a time; by default 16 with transformers, 32 with a server."""
    dtype: DtypeName = "auto"
    """Precision of the weights; auto is the checkpoint's own on an accelerator, and float32 on a CPU."""
    device: Annotated[str, Effect.SPEED] = "auto"
    """Engine transformers: device such as cuda:1 or cpu; auto takes an accelerator where there is one."""
    devices: Annotated[int, COUNT, Effect.SPEED] = 1
    """Engine vllm: number of GPUs that the model is split over."""
    out: Annotated[str | None, Effect.IDENTITY] = None
    """Directory of the results; by default runs/evaluate/<model>-<template>."""

    def __post_init__(self) -> None:
        check(self)
        if not self.top_p:
            raise ValueError("top_p=0 leaves no token to sample: give --temperature 0 for the likeliest one")
        random = any(temperature for _, temperature in map(self.sampling, self.chosen))
        if (self.samples or 1) > 1 and not random:
            raise ValueError(
                f"samples={self.samples} would all be the same, as they are greedy: give --temperature"
            )
        if self.data_dir and Path(self.data_dir).is_file() and len(self.chosen) > 1:
            raise ValueError(
                f"data_dir={self.data_dir} is one file for {len(self.chosen)} benchmarks: ask for one"
            )

    @property
    def chosen(self) -> list[Benchmark]:
        """The chosen benchmarks."""
        return registry.named([name.strip() for name in self.benchmarks.split(",") if name.strip()])

    def sampling(self, benchmark: Benchmark) -> tuple[int, float]:
        """Number of responses to each problem of a benchmark, and their temperature."""
        temperature = benchmark.temperature if self.temperature is None else self.temperature
        return (self.samples or benchmark.samples) if temperature else 1, temperature

    def resolved(self) -> EvaluationConfig:
        """The same settings with a directory."""
        name = f"{self.model.rstrip('/').split('/')[-1]}-{base.template(self.template).name}"
        return replace(self, out=self.out or f"runs/evaluate/{name}")

    @property
    def record(self) -> dict[str, Any]:
        """Content of `config.toml`, with the text of the template."""
        text = base.template(self.template).text
        return asdict(self) | {"domain": "language", "kind": "evaluation", "template_text": text}


def evaluate(config: EvaluationConfig) -> str:
    """Generate responses to benchmarks, judge them, and write both into a directory.

    Args:
        config: Settings.

    Returns:
        The summary as text: each score with a 95 % interval over problems, which does not cover other training
        seeds, above the scores that the paper has published.

    Raises:
        ValueError: A model, a benchmark or a template does not exist, a prompt fills the context, all responses of
            the model are empty, or the directory holds results with other settings.
        ImportError: A library is missing.
        ConnectionError: A server gives no answer.
        KeyboardInterrupt: Ctrl-C; every finished problem is on disk.
    """
    config = config.resolved()
    path = Path(str(config.out))
    may_differ = changeable(EvaluationConfig)
    check_same(path, {name: value for name, value in config.record.items() if name not in may_differ})
    data = Path(config.data_dir) if config.data_dir else None
    examples = {b: registry.load(b, data, config.limit) for b in config.chosen}
    results = {b: Results(path, b, problems, config.sampling(b)[0]) for b, problems in examples.items()}
    template = base.template(config.template)
    if any(result.missing for result in results.values()):
        engine = make_engine(
            config.engine,
            config.model,
            template,
            url=config.url,
            batch_size=config.batch_size,
            context=config.context,
            dtype=config.dtype,
            device=config.device,
            devices=config.devices,
        )
        prompts = {b: _prompts(b, problems, engine) for b, problems in examples.items()}
        for benchmark, result in results.items():
            result.check_prompts(prompts[benchmark])
        if not is_begun(path):
            path.mkdir(parents=True, exist_ok=True)
            files.replace(path / MACHINE, to_json(machine.describe()))
            known = {name: value for name, value in config.record.items() if value is not None}
            files.replace(path / CONFIG, tomli_w.dumps(known).encode())
        try:
            with Reward(Answer(), seconds=SECONDS) as reward:
                for benchmark, result in results.items():
                    _answer(config, benchmark, engine, reward, result, prompts[benchmark])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command goes on with what {path} does not have") from None
    summaries = {}
    for benchmark, result in results.items():
        samples, temperature = config.sampling(benchmark)
        summaries[benchmark.name] = summarise(
            benchmark, result.lines, samples=samples, temperature=temperature, max_tokens=config.max_tokens
        )
    summary: dict[str, Any] = {"model": config.model, "template": template.name}
    if set(registry.IN_DOMAIN) <= set(summaries):
        summary["average"] = float(np.mean([summaries[name]["score"] for name in registry.IN_DOMAIN]))
    summary["benchmarks"] = summaries
    files.replace(path / SUMMARY, to_json(summary))
    return as_text(summary, path)


def _prompts(benchmark: Benchmark, examples: Sequence[Example], engine: Engine) -> list[Prompt]:
    """Prompts of all problems; each must leave tokens for a response."""
    texts = [engine.prompt(example.question, INSTRUCTIONS[benchmark.kind]) for example in examples]
    prompts = [Prompt(text, engine.tokens_left(text)) for text in texts]
    if full := [i for i, (_, tokens_left) in enumerate(prompts) if tokens_left is not None and tokens_left < 1]:
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
    reward: Reward,
    results: Results,
    prompts: Sequence[Prompt],
) -> None:
    """Generate and judge the missing responses; a problem is on disk once its last response has arrived."""
    samples, temperature = config.sampling(benchmark)
    missing, total = results.missing, len(prompts)
    if not missing:
        return
    sampling = Sampling(temperature, config.top_p, config.max_tokens)
    requests = [
        Request(prompts[example.number].text, seed_of(config.seed, benchmark.name, example.number, i))
        for example in missing
        for i in range(samples)
    ]
    report_every, done = max(1, total // 10), total - len(missing)
    arrived: dict[int, dict[int, Response]] = {}
    with results.writing() as file, Progress(total, unit="problems", label=benchmark.name, every=1) as progress:
        progress.advance(done)
        for index, response in engine.generate(requests, sampling):
            at, sample = divmod(index, samples)
            arrived.setdefault(at, {})[sample] = response
            if len(arrived[at]) < samples:
                continue
            responses = [response for _, response in sorted(arrived.pop(at).items())]
            seeds = [request.seed for request in requests[at * samples : (at + 1) * samples]]
            example = missing[at]
            verdicts = judge(reward, benchmark.kind, example.answer, [response.text for response in responses])
            results.add(file, example, prompts[example.number], responses, verdicts, seeds)
            done += 1
            if done % report_every == 0 or done == total:
                share = np.mean([np.mean(line["correct"]) for line in results.lines])
                progress.report(done, f"{100 * share:.1f} % right")
            progress.advance(done)


def seed_of(seed: int, benchmark: str, problem: int, sample: int) -> int:
    """Seed of one response: 31 bits, which every engine accepts."""
    digest = hashlib.sha256(f"{seed} {benchmark} {problem} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
