"""Evaluation end to end: a tiny model that has learned five of six sums, and engines that say as told."""

import json
import re
import shutil
import tomllib
from dataclasses import fields, replace
from itertools import islice

import pytest

import tiny_language
from entropyfloor import cli
from entropyfloor.language.benchmarks import results
from entropyfloor.language.benchmarks.evaluate import EvaluationConfig, evaluate, seed_of
from entropyfloor.language.benchmarks.judge import judge
from entropyfloor.language.benchmarks.registry import BENCHMARKS
from entropyfloor.language.rewards import Answer, Reward
from entropyfloor.language.sampling.engines.base import Response, Sampling, template
from entropyfloor.language.sampling.engines.server import Server
from entropyfloor.language.sampling.engines.transformers import Transformers

pytest.importorskip("math_verify")

RIGHT = len(tiny_language.PROBLEMS) - 1
NAMES = ("aime24", "math500")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("language")
    tiny_language.taught(path / "model")
    rows = [{"problem": question, "answer": answer} for question, answer in tiny_language.PROBLEMS]
    for name in NAMES:
        tiny_language.write_rows(path / f"data/{name}.jsonl", rows)
    options = [{"question": f"Which is {i}?", "options": ["one", "two"], "answer": "AB"[i % 2]} for i in range(4)]
    tiny_language.write_rows(path / "data/ood/mmlu_pro.jsonl", options)
    return path


def config_of(home, out, **settings):
    known = {"benchmarks": ",".join(NAMES), "template": "{question}=", "max_tokens": 20, "temperature": None}
    return EvaluationConfig(
        model=str(home / "model"), data_dir=str(home / "data"), out=str(out), **(known | settings)
    )


def lines_of(path, name="aime24"):
    return [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """An evaluation that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(config_of(home, out))


@pytest.fixture(scope="module")
def equal():
    with Reward(Answer(), seconds=60.0) as reward:
        yield reward


class Said(Server):
    """An engine that answers from a table, in place of what a model would say, and keeps what it was asked."""

    def __init__(self, answers, tokens_left=lambda prompt: None):
        super().__init__("http://nowhere", "said", template("none"))
        self._answers, self.tokens_left, self.asked, self.samplings = answers, tokens_left, [], []

    def generate(self, requests, sampling):
        self.samplings.append(sampling)
        for place, request in enumerate(requests):
            self.asked.append(request)
            yield place, self._answers(request)


def say(monkeypatch, answers, **options):
    engine = Said(answers, **options)

    def made(*args, **kwargs):
        engine.made = args, kwargs
        return engine

    monkeypatch.setattr("entropyfloor.language.benchmarks.evaluate.make_engine", made)
    return engine


# --- end to end ------------------------------------------------------------------------------------------


def test_a_taught_model_is_scored(whole):
    out, text = whole
    found = json.loads((out / "summary.json").read_text())["benchmarks"]
    for name, samples in (("aime24", 16), ("math500", 1)):
        assert found[name]["samples"] == samples
        assert found[name]["score"] == pytest.approx(RIGHT / 6, abs=0.02)
        assert found[name]["interval_95"][0] < RIGHT / 6 < found[name]["interval_95"][1]
        assert found[name]["length"] == pytest.approx(9, abs=0.5)
        assert (found[name]["empty"], found[name]["undecided"], found[name]["confined"]) == (0, 0, 0)
    assert list(found["aime24"]["pass"]) == ["1", "2", "4", "8", "16"]
    assert found["aime24"]["majority"]["value"] == pytest.approx(RIGHT / 6)
    assert "avg@16, 6 of 30 problems" in text
    assert "greedy, 6 of 500 problems" in text
    assert "7B ERA" in text
    assert "37.5      84.6" in text


def test_the_command_says_it_and_draws_it(whole, home, capsys):
    out, text = whole
    known = {"model": home / "model", "data-dir": home / "data", "benchmarks": ",".join(NAMES), "out": out}
    options = [f"--{name}={value}" for name, value in known.items()]
    assert cli.main(["evaluate", "language", *options, "--template={question}=", "--max-tokens=20"]) == 0
    said = capsys.readouterr().out
    assert text in said
    assert said.endswith(f"pass@k        {out / 'pass.png'}\n")
    assert (out / "pass.png").read_bytes().startswith(b"\x89PNG")
    drawn = (out / "pass.svg").read_text()
    assert ("AIME24" in drawn, "MATH500" in drawn) == (True, False)  # of which one response was drawn


def test_the_directory_has_everything(whole, home):
    out, _ = whole
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["template_text"] == "{question}="
    assert config["benchmarks"] == "aime24,math500"
    assert "versions" in json.loads((out / "machine.json").read_text())
    lines = lines_of(out)
    assert [line["problem"] for line in lines] == list(range(6))
    first = lines[0]
    assert first["prompt"] == "1+1="
    assert first["answer"] == "2"
    assert first["room"] == 64 - 4
    assert {len(first[name]) for name in ("responses", "answers", "correct", "lengths", "cut", "seeds")} == {16}
    assert first["responses"][0] == r"\boxed{2}"
    assert len(set(first["seeds"])) == 16


def test_the_same_command_again_answers_nothing(whole, home, monkeypatch):
    out, text = whole
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr("entropyfloor.language.benchmarks.evaluate.make_engine", None)  # it would be called
    assert evaluate(config_of(home, out)) == text
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_size_of_a_batch_and_a_repetition_change_nothing(whole, home, tmp_path):
    out, _ = whole
    evaluate(config_of(home, tmp_path, batch_size=5))
    for name in NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (out / f"{name}.jsonl").read_bytes()


def test_problems_are_on_disk_once_their_last_response_is_there(home, tmp_path, monkeypatch):
    """Whatever order they come in, and whatever fails in the end."""
    engine = say(monkeypatch, lambda request: Response(rf"\boxed{{{request.seed}}}", 1, cut=False))
    inner = engine.generate

    def generate(requests, sampling):
        *found, (place, _) = reversed(list(inner(requests, sampling)))
        assert place == 0
        yield from found
        raise ConnectionError("the first of them never came")

    engine.generate = generate
    config = config_of(home, tmp_path, benchmarks="aime24", limit=3, samples=4, temperature=1.0)
    with pytest.raises(ConnectionError):
        evaluate(config)
    lines = [json.loads(line) for line in (tmp_path / "aime24.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == [2, 1]
    for line in lines:
        seeds = [seed_of(0, "aime24", line["problem"], sample) for sample in range(4)]
        assert line["seeds"] == seeds
        assert line["responses"] == [rf"\boxed{{{seed}}}" for seed in seeds]
    del engine.asked[:]
    engine.generate = inner
    evaluate(config)
    assert len(engine.asked) == 4


class StoppedError(Exception):
    """In the middle of it."""


@pytest.mark.slow_but_first
@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoppedError])
def test_what_was_stopped_goes_on(whole, home, tmp_path, monkeypatch, stop):
    out, text = whole
    inner = Transformers.generate

    def generate(self, requests, sampling):
        yield from islice(inner(self, requests, sampling), 40)  # two problems and a half
        raise stop

    config = config_of(home, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Transformers, "generate", generate)
        with pytest.raises(stop, match="same command goes on" if stop is KeyboardInterrupt else None):
            evaluate(config)
    assert len(lines_of(tmp_path)) == 2
    assert not (tmp_path / "summary.json").exists()
    with (tmp_path / "aime24.jsonl").open("a") as file:
        file.write('{"problem": 2, "prompt": "4+')  # as a kill leaves it
    again = evaluate(replace(config, batch_size=3))
    assert again.replace(str(tmp_path), str(out)) == text
    for name in (*(f"{name}.jsonl" for name in NAMES), "summary.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


OTHERS = {
    "model": "another",
    "benchmarks": "aime24",
    "limit": 3,
    "template": "{question} =",
    "samples": 8,
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 21,
    "context": 63,
    "seed": 1,
    "engine": "vllm",
    "dtype": "bfloat16",
}
ELSEWHERE = {"url": "http://elsewhere", "batch_size": 3, "device": "cuda:7", "devices": 8}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_refused(whole, home, name):
    now = re.escape(str(OTHERS[name]))
    with pytest.raises(ValueError, match=rf"was begun with {name}=.* \(now {now}\).*another --out"):
        evaluate(replace(config_of(home, whole[0]), **{name: OTHERS[name]}))


def test_other_words_in_the_file_of_a_template_are_refused(home, tmp_path, monkeypatch):
    say(monkeypatch, lambda request: Response("A", 1, cut=False))
    file = tmp_path / "mine.txt"
    file.write_text("{question}")
    config = config_of(home, tmp_path / "out", benchmarks="mmlu_pro", template=str(file))
    evaluate(config)
    file.write_text("{question}!")
    with pytest.raises(ValueError, match=r"was begun with template_text=\{question\} \(now \{question\}!\)"):
        evaluate(config)


def test_where_and_how_fast_may_differ(whole, home, tmp_path):
    out, text = whole
    settings = {field.name for field in fields(EvaluationConfig)}
    assert settings == {*OTHERS, *ELSEWHERE, "data_dir", "out"}  # a new one belongs here or above
    shutil.copytree(home / "data", tmp_path / "moved")
    assert evaluate(replace(config_of(home, out), data_dir=str(tmp_path / "moved"), **ELSEWHERE)) == text


def test_other_data_is_refused(whole, home, tmp_path):
    out, _ = whole
    rows = [{"problem": question, "answer": "7"} for question, _ in tiny_language.PROBLEMS]
    for name in NAMES:
        tiny_language.write_rows(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(ValueError, match="line 1 answers another problem: the data has changed"):
        evaluate(replace(config_of(home, out), data_dir=str(tmp_path)))
    for name in NAMES:
        fewer = (home / "data" / f"{name}.jsonl").read_text().splitlines(keepends=True)[:2]
        (tmp_path / f"{name}.jsonl").write_text("".join(fewer))
    with pytest.raises(ValueError, match="line 3 answers another problem: the data has changed"):
        evaluate(replace(config_of(home, out), data_dir=str(tmp_path)))


def test_a_prompt_in_other_words_is_refused(home, tmp_path, monkeypatch):
    config = config_of(home, tmp_path / "out", benchmarks="math500")
    say(monkeypatch, lambda request: Response(r"\boxed{2}", 1, cut=False))
    evaluate(config)
    file = tmp_path / "out/math500.jsonl"
    file.write_text(file.read_text().replace('"1+1"', '"1 + 1"').rsplit("\n", 2)[0] + "\n")
    with pytest.raises(ValueError, match="the prompt of problem 0 has changed"):
        evaluate(config)


def test_a_damaged_line_is_told(home, tmp_path):
    tmp_path.joinpath("aime24.jsonl").write_text('{"problem": 0}\nnothing\n')
    with pytest.raises(ValueError, match="line 1 is damaged: KeyError"):
        evaluate(config_of(home, tmp_path))


def test_settings_reach_the_engine_and_each_request(home, tmp_path, monkeypatch):
    engine = say(monkeypatch, lambda request: Response("A", 1, cut=False))
    made = {"url": "http://u", "batch_size": 4, "context": 99, "dtype": "bfloat16", "device": "cpu", "devices": 2}
    drawn = {"samples": 3, "temperature": 0.6, "top_p": 0.9, "max_tokens": 77, "seed": 5, "limit": 2}
    config = config_of(home, tmp_path, benchmarks="mmlu_pro", engine="vllm", **made, **drawn)
    evaluate(config)
    assert engine.made == (("vllm", config.model, template("{question}=")), made)
    assert engine.samplings == [Sampling(temperature=0.6, top_p=0.9, max_tokens=77)]
    seeds = [seed_of(5, "mmlu_pro", problem, sample) for problem in range(2) for sample in range(3)]
    assert [request.seed for request in engine.asked] == seeds


def test_a_prompt_that_leaves_just_max_tokens_is_not_confined(home, tmp_path, monkeypatch):
    left = iter([20, 19, 21, 20])
    say(monkeypatch, lambda request: Response("A", 1, cut=False), tokens_left=lambda prompt: next(left))
    evaluate(config_of(home, tmp_path, benchmarks="mmlu_pro", max_tokens=20))
    assert json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["mmlu_pro"]["confined"] == 1 / 4


def test_choices_are_judged_by_their_letter(home, tmp_path, monkeypatch):
    said = iter([r"I say \boxed{A}", "The answer is (A).", r"\boxed{\text{B}}", "Who knows?"])
    engine = say(monkeypatch, lambda request: Response(next(said), 5, cut=True))
    text = evaluate(config_of(home, tmp_path, benchmarks="mmlu_pro", template="{question}|{instruction}"))
    lines = lines_of(tmp_path, "mmlu_pro")
    assert [line["correct"] for line in lines] == [[True], [False], [False], [False]]
    assert [line["answers"] for line in lines] == [["A"], ["A"], ["B"], [None]]
    assert engine.asked[0].prompt == "Which is 0?\n\nA) one\nB) two"
    assert "MMLU-Pro      25.0 [" in text
    assert "100.0 % cut; 25.0 % without an answer" in text
    assert "per cent" not in text  # the paper has no numbers out of domain


def test_the_average_is_of_all_six(tmp_path, monkeypatch):
    for name in ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"):
        tiny_language.write_rows(tmp_path / f"data/{name}.jsonl", [{"problem": "1?", "answer": "1"}] * 2)
    say(monkeypatch, lambda request: Response(r"\boxed{1}", 1, cut=False), tokens_left=lambda prompt: 100)
    config = EvaluationConfig(
        model="Qwen/Qwen2.5-Math-7B", data_dir=str(tmp_path / "data"), out=str(tmp_path / "o")
    )
    text = evaluate(config)
    assert json.loads((tmp_path / "o/summary.json").read_text())["average"] == 1
    assert "   average" in text
    assert "24.5  the paper's of this checkpoint" in text
    assert "674" in text  # what the hub has of OlympiadBench
    assert "leaves less than --max-tokens" in text


# --- what cannot go well ---------------------------------------------------------------------------------


def test_a_model_that_says_nothing_is_stopped(home, tmp_path, monkeypatch):
    engine = say(monkeypatch, lambda request: Response(" ", 1, cut=False))
    config = config_of(home, tmp_path, benchmarks="math500")
    with pytest.raises(ValueError, match=r"responses to 6 problems are empty.*another --template"):
        evaluate(config)
    monkeypatch.setattr(results, "SILENT", 2)
    with pytest.raises(ValueError, match="responses to 2 problems are empty"):
        evaluate(replace(config, out=str(tmp_path / "two")))
    with pytest.raises(ValueError, match="responses to 6 problems are empty"):
        evaluate(config)  # again, with nothing left to ask
    assert len(engine.asked) == 6 + 2
    assert not (tmp_path / "summary.json").exists()


def test_a_prompt_that_leaves_no_room_is_told_before_anything_is_asked(home, tmp_path):
    with pytest.raises(
        ValueError, match=r"aime24: the prompts of 6 problems, such as number 0, leave no room.*--context"
    ):
        evaluate(config_of(home, tmp_path / "out", template="{question}" + "=" * 70))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"benchmarks": "aime24,aime23"}, "benchmark 'aime23' must be one of"),
        ({"benchmarks": ""}, "benchmarks='' is empty"),
        ({"samples": 4, "temperature": 0.0}, "samples=4 would all be the same"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"top_p": 0.0}, "top_p=0 leaves no token"),
        ({"engine": "magic"}, "engine='magic' must be one of transformers, vllm, server"),
    ],
)
def test_settings_are_checked(home, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config_of(home, tmp_path, **settings)


def test_a_file_is_for_one_benchmark(home, tmp_path):
    file = str(home / "data/aime24.jsonl")
    with pytest.raises(ValueError, match="one file for 2 benchmarks"):
        replace(config_of(home, tmp_path), data_dir=file)
    replace(config_of(home, tmp_path, benchmarks="aime24"), data_dir=file)


def test_samples_and_temperatures_are_the_benchmarks_own_unless_told():
    def sampling(name, **settings):
        return EvaluationConfig(model="m", benchmarks=name, **settings).sampling(BENCHMARKS[name])

    assert sampling("aime24") == (16, 0.7)
    assert sampling("aime24", temperature=0.0) == (1, 0.0)
    assert sampling("aime24", samples=64) == (64, 0.7)
    assert sampling("math500") == (1, 0.0)
    both = EvaluationConfig(model="m", samples=64)
    assert [both.sampling(benchmark)[0] for benchmark in both.chosen] == [64, 64, 64, 1, 1, 1]
    assert sampling("math500", samples=4, temperature=1.0) == (4, 1.0)
    assert sampling("gpqa_diamond", temperature=0.6) == (1, 0.6)


def test_the_directory_is_named_after_model_and_template():
    assert (
        EvaluationConfig(model="Qwen/Qwen2.5-Math-7B").resolved().out == "runs/evaluate/Qwen2.5-Math-7B-qwen-math"
    )
    assert EvaluationConfig(model="a/b/").resolved().out == "runs/evaluate/b-qwen-math"


def test_the_command_line_reads_the_config():
    tyro = pytest.importorskip("tyro")
    words = ["--model", "m", "--benchmarks", "aime24,gpqa_diamond", "--samples", "32", "--engine", "server"]
    expected = EvaluationConfig(model="m", benchmarks="aime24,gpqa_diamond", samples=32, engine="server")
    assert tyro.cli(EvaluationConfig, args=words) == expected


# --- verdicts --------------------------------------------------------------------------------------------


def test_equal_answers_have_equal_words(equal):
    said = [r"\boxed{\frac12}", r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{3}", "no box", r"\boxed{+3}", r"\boxed{}"]
    found = judge(equal, "math", "7", said)
    assert found.answers[0] == found.answers[1] == found.answers[2]
    assert found.answers[3:] == ["3", None, "3", None]
    assert found.correct == [False] * 7
    assert found.undecided == [False] * 7
    found = judge(equal, "math", "0.5", said)
    assert found.answers == ["0.5", "0.5", "0.5", "3", None, "3", None]
    assert found.correct == [True, True, True, False, False, False, False]


def test_what_hangs_the_judge_is_undecided():
    said = r"\boxed{m l \ddot{\theta}(t)-m g \sin \theta(t)=f(t) \cos \theta(t)}"
    answer = r"\frac{d^{2} v_{o}}{d t^{2}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}"
    with Reward(Answer(), seconds=2.0) as reward:
        found = judge(reward, "math", answer, [f"\\boxed{{{answer}}}", said])
    assert found.correct == [True, False]
    assert found.undecided == [False, True]


def test_every_response_has_a_seed_of_its_own():
    seeds = {
        seed_of(seed, name, problem, sample)
        for seed in (0, 1)
        for name in NAMES
        for problem in range(30)
        for sample in range(16)
    }
    assert len(seeds) == 2 * 2 * 30 * 16
    assert all(0 <= seed < 2**31 for seed in seeds)
