"""`entropyfloor evaluate RUN`: what it writes and says follows from the counts of right responses it keeps."""

import json
import re
from math import comb

import numpy as np
import pytest

import tiny_language
from entropyfloor.cli import main
from entropyfloor.language import evaluate as evaluation
from entropyfloor.language.benchmarks import scores
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.evaluate import evaluate, evaluate_model
from entropyfloor.language.export import export
from entropyfloor.language.prepare import sampling_of
from entropyfloor.language.sampling.engines.base import Request, Sampling, template
from entropyfloor.language.sampling.engines.transformers import Transformers
from entropyfloor.language.train import train
from entropyfloor.torch.seeding import derived
from tiny_language import PROBLEMS

pytest.importorskip("math_verify")

SAMPLES, TOKENS = 6, 10
SMALL = {"warm_start_steps": 0, "steps": 1, "prompts": 1, "samples": 2, "eval_samples": 1, "threads": 1}
UNKNOWN = [("6+6", "12"), ("7+7", "14"), ("8+1", "9")]


def file_of(path, problems):
    return tiny_language.write_rows(path, [{"question": q, "answer": a} for q, a in problems])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that knows five of the six `PROBLEMS`; its files of problems are gone."""
    home = tmp_path_factory.mktemp("run")
    gone = file_of(home / "gone.jsonl", UNKNOWN[:1])
    config = LanguageConfig(
        task="file",
        data=str(file_of(home / "data.jsonl", UNKNOWN[1:])),
        test_data=str(gone),
        model=str(tiny_language.taught(home / "taught")),
        prompt="{question}=",
        max_new_tokens=TOKENS,
        eval_temperature=1e-3,
        out=str(home / "run"),
        **SMALL,
    )
    path = train(config)
    for file in (gone, home / "data.jsonl"):
        file.unlink()
    return path


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    """What `evaluate` wrote about `PROBLEMS`, its `summary`, and the responses that it `shows`."""
    held = file_of(tmp_path_factory.mktemp("held") / "held.jsonl", PROBLEMS)
    summary = evaluate(run, problems=10, samples=SAMPLES, temperature=2.0, test_data=held)
    found = json.loads((run / "evaluation.json").read_text())
    return {**found, "summary": summary, "shows": (run / "samples" / "evaluation.txt").read_text()}


@pytest.fixture(scope="module")
def greedy(run, tmp_path_factory):
    """How many of the problems the likeliest response of the exported model solves."""
    path = tmp_path_factory.mktemp("exported")
    export(run, path)
    engine = Transformers(str(path), template("{question}="))
    requests = [Request(engine.prompt(question, ""), 0) for question, _ in PROBLEMS]
    said = [answer for _, answer in engine.generate(requests, Sampling(0.0, 1.0, TOKENS))]
    return sum(one.text == rf"\boxed{{{answer}}}" for one, (_, answer) in zip(said, PROBLEMS, strict=True))


@pytest.mark.slow
def test_values_and_intervals_are_those_of_the_counts(results, greedy):
    n, summary = len(PROBLEMS), results["summary"]
    assert [results[name] for name in ("step", "problems", "samples", "temperature")] == [1, n, SAMPLES, 2.0]
    counts = results["correct"]
    assert len({*counts} - {0, SAMPLES}) > 1  # otherwise much of what follows would be the same number
    shares = {f"pass_at_{k}": [1 - comb(SAMPLES - c, k) / comb(SAMPLES, k) for c in counts] for k in (1, 2, 4, 6)}
    shares |= {"avg_at_k": np.array(counts) / SAMPLES, "greedy": [1] * greedy + [0] * (n - greedy)}
    assert 0 < greedy < n
    assert set(results["intervals_95"]) == set(shares)
    for name, share in shares.items():
        value, (low, high) = results["values"][name], results["intervals_95"][name]
        assert (value, low, high) == pytest.approx(scores.accuracy(share), abs=1e-12)
        assert low <= value <= high
        assert low < high
        called = f"avg@{SAMPLES}" if name == "avg_at_k" else name.replace("_at_", "@")
        assert re.search(rf"^{called} +{100 * value:.1f} \[{100 * low:.1f}, {100 * high:.1f}\] %$", summary, re.M)
    assert f"{results['values']['realised_entropy']:.3f} nats" in summary
    assert f"step 1, {n} problems, {SAMPLES} responses each at temperature 2" in summary


@pytest.mark.slow
def test_the_responses_to_four_problems_can_be_read(results):
    _, *shown = re.split(r"^(\d\+\d)=\n", results["shows"], flags=re.MULTILINE)
    assert len({*shown[::2]} & {question for question, _ in PROBLEMS}) == 4
    earned = [re.findall("^  ([01])  ", part, re.MULTILINE) for part in shown[1::2]]
    assert [len(each) for each in earned] == [SAMPLES] * 4
    assert [each.count("1") for each in earned] == results["correct"][:4]


@pytest.mark.slow_but_first
@pytest.mark.parametrize(("last", "same"), [(PROBLEMS[-1], True), (("2+5", "100"), False)])
def test_at_the_runs_own_temperature_every_response_is_the_likeliest(run, results, greedy, tmp_path, last, same):
    evaluate(run, samples=2, test_data=file_of(tmp_path / "held.jsonl", [last, *PROBLEMS[:-1]]))
    found = json.loads((run / "evaluation.json").read_text())
    assert found["temperature"] == 1e-3
    assert sorted(found["correct"]) == [0] * (len(PROBLEMS) - greedy) + [2] * greedy
    assert (found["asked"] == results["asked"]) == same  # by which reports see what may be compared
    common = {*found["problem_keys"]} & {*results["problem_keys"]}  # by which they pair the problems
    assert len(common) == len(PROBLEMS) - (not same)


@pytest.mark.parametrize("option", ["problems", "samples"])
def test_a_number_below_one_is_refused(run, option):
    with pytest.raises(ValueError, match=f"{option}=-5 must be at least 1"):
        evaluate(run, **{option: -5})


def test_a_front_has_the_counts_at_every_temperature(run, tmp_path):
    held = file_of(tmp_path / "held.jsonl", PROBLEMS)
    summary = evaluate(run, samples=SAMPLES, temperature=2.0, temperatures=(4.0, 0.01, 2.0), test_data=held)
    found = json.loads((run / "evaluation.json").read_text())
    cold, same, hot = found["front"]
    assert [point["temperature"] for point in found["front"]] == [0.01, 2.0, 4.0]
    assert same["correct"] == found["correct"]
    assert sum(cold["correct"]) > sum(same["correct"]) > sum(hot["correct"])
    evaluate(run, samples=SAMPLES, temperature=4.0, test_data=held)
    alone = json.loads((run / "evaluation.json").read_text())
    assert alone["correct"] == hot["correct"]
    average, solved = np.mean(cold["correct"]) / SAMPLES, np.mean(np.array(cold["correct"]) > 0)
    line = rf"^temperature 0.01 +avg@6 {100 * average:.1f} %, pass@6 {100 * solved:.1f} %$"
    assert re.search(line, summary, re.M)
    with pytest.raises(ValueError, match=r"temperatures: 0\.0 must be positive"):
        evaluate(run, temperatures=(0.0,), test_data=held)


@pytest.mark.parametrize(
    ("options", "message"), [({}, r"gone\.jsonl"), ({"temperature": 0.0}, "eval_temperature=0.0 must be positive")]
)
def test_what_cannot_be_judged_is_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(run, **options)


@pytest.mark.slow
def test_a_directory_called_run_is_evaluated(run, tmp_path, monkeypatch, capsys):
    held = file_of(tmp_path / "held.jsonl", PROBLEMS)
    monkeypatch.chdir(run.parent)
    for words in (["run"], ["run", "run"]):
        assert main(["evaluate", *words, "--samples", "2", "--test-data", str(held)]) == 0
        assert "avg@2" in capsys.readouterr().out


# --- more than there are ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_evaluation_begins_before_all_problems_are_drawn(tmp_path, monkeypatch):
    """And says of them what it would say if they were drawn and sampled at once."""
    settings = {"task": "arithmetic", "digits": 1, "sample_batch": 2, "max_new_tokens": 6}
    trainer = tiny_language.trainer(tmp_path, **settings, warm_start_steps=0)
    everything = trainer.task.problems("test", 9_999_999, 0, or_fewer=True)
    events, problems, draw = [], type(trainer.task).problems, evaluation.sample

    def drawn(self, split, count, seed, **options):
        events.append(count)
        return problems(self, split, count, seed, **options)

    def sampled(*args, **options):
        events.append("sample")
        return draw(*args, **options)

    monkeypatch.setattr(type(trainer.task), "problems", drawn)
    monkeypatch.setattr(evaluation, "sample", sampled)
    stream = derived(trainer.config.seed, evaluation.STREAM, 0)
    model = (trainer.model, trainer.tokenizer, trainer.task, trainer.hyperparameters)
    settings = {"samples": 3, "seed": stream, "temperature": 1.0, "sampling": sampling_of(trainer.config)}
    answered = []
    whole = evaluate_model(*model, problems=9_999_999, **settings, advance=answered.append)
    assert events[:4] == [2, "sample", "sample", 4]
    assert list(whole.problems) == everything
    assert answered[-1] == len(everything) > 4

    asked = [problem.prompt for problem in everything for _ in range(3)]
    sizes = {"batch_size": 2, "max_new_tokens": 6}
    at_once = draw(trainer.model, trainer.tokenizer, asked, seed=stream, **sizes)
    assert whole.texts == at_once.texts
    assert np.array_equal(whole.lengths, at_once.response_mask.sum(1))
    for most in (1, 2, 3, 4, 5, len(everything), len(everything) + 1):
        fewer = evaluate_model(*model, problems=most, **settings)
        assert list(fewer.problems) == everything[:most]
        assert fewer.texts == whole.texts[: 3 * most]
        np.testing.assert_allclose(fewer.entropies, whole.entropies[: 3 * most], atol=1e-6)
