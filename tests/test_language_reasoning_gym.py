"""Tasks of reasoning-gym: problems and scorers, errors of one line, and a run that resumes and is evaluated."""

import json
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import tiny_language
from entropyfloor.cli import main
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.evaluate import evaluate
from entropyfloor.language.tasks import ReasoningGym, reasoning_gym, task_of
from entropyfloor.language.tasks.base import is_held_out
from entropyfloor.language.train import resume, train
from entropyfloor.runs import read_run

needs_it = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
SUMS = '{"max_terms": 2, "max_digits": 2, "size": 300}'
SMALL = {"task": "reasoning_gym:chain_sum", "task_config": SUMS, "warm_start_steps": 0, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def sums():
    task = ReasoningGym("chain_sum", SUMS, prompt="{question}\n")
    yield task
    task.close()


@needs_it
def test_problems_are_those_of_the_library_and_a_tenth_is_held_out(sums):
    from reasoning_gym import create_dataset

    entries = list(create_dataset("chain_sum", max_terms=2, max_digits=2, size=300, seed=0))
    train, test = (sums.problems(split, 300, 0, or_fewer=True) for split in ("train", "test"))
    assert {p.prompt for p in (*train, *test)} == {f"{entry['question']}\n" for entry in entries}
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert len(test) > 10
    assert all(is_held_out(p.prompt) for p in test)
    assert not any(is_held_out(p.prompt) for p in train)
    assert sums.problems("train", 5, 3) == sums.problems("train", 9, 3)[:5] != sums.problems("train", 5, 4)
    assert all(eval(p.row["metadata"]["expression"]) == int(p.answer) for p in train)
    assert sums.name == "reasoning_gym:chain_sum"
    other = ReasoningGym("chain_sum", '{"max_terms": 2, "max_digits": 2, "size": 300, "seed": 1}')
    assert other.data_checksum != sums.data_checksum


@needs_it
def test_the_scorer_of_the_task_judges(sums):
    from reasoning_gym import create_dataset

    problem = sums.problems("test", 1, 0)[0]
    right, wrong = problem.answer, str(int(problem.answer) + 1)
    said = f"it is {right} or so"
    responses = [
        right,
        f" {right}.0\n",
        wrong,
        f"<answer>{wrong}</answer> No: <answer> {right} </answer>",
        said,
        "",
    ]
    partly = create_dataset("chain_sum").score_answer(said, dict(problem.row))
    assert 0 < partly < 1
    rewards = sums.rewards([problem] * len(responses), responses)
    np.testing.assert_array_equal(rewards, [1, 1, 0, 1, partly, 0])


@pytest.mark.slow
@needs_it
def test_a_task_without_one_right_answer_is_judged_too():
    task = ReasoningGym("graph_color", '{"size": 60}')
    problem = task.problems("train", 1, 0)[0]
    assert (problem.row["answer"], problem.answer) == (None, "")
    colours = problem.row["metadata"]["possible_answer"]
    rewards = task.rewards([problem] * 2, [json.dumps(colours), json.dumps(dict.fromkeys(colours, 1))])
    task.close()
    assert rewards[0] == 1 > rewards[1]


@needs_it
@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chainsum", "{}", "task=reasoning_gym:chainsum does not exist in reasoning-gym; it has chain_sum"),
        ("?", "{}", "it has ab, acre, .*, zebra_puzzles"),
        (
            "gcd",
            '{"digits": 2, "terms": 1}',
            "has digits, terms: gcd has the settings min_numbers, .*, seed",
        ),
        ("chain_sum", '{"min_digits": 0}', "cannot be used for chain_sum: min_digits must be positive"),
        ("chain_sum", '{"min_digits": "x"}', "cannot be used for chain_sum: '>' not supported"),
        ("chain_sum", "{min_digits: 1}", "task_config={min_digits: 1} is no JSON .*: give an object"),
        ("chain_sum", "[1]", r"task_config=\[1\] must be an object of JSON"),
    ],
)
def test_what_does_not_exist_is_named(name, config, message):
    with pytest.raises(ValueError, match=message) as error:
        ReasoningGym(name, config)
    assert "\n" not in str(error.value)


@needs_it
def test_a_prompt_has_a_place_for_the_question():
    with pytest.raises(ValueError, match=r"must have \{question\} in it"):
        ReasoningGym("chain_sum", prompt="Go!")


def test_a_missing_library_is_named(monkeypatch):
    reasoning_gym.dataset_of.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install 'entropyfloor\[reasoning\]' brings it"):
        ReasoningGym("chain_sum")


def test_settings_belong_to_the_task():
    ready = {"task": "reasoning_gym:gcd", "model": "x", "warm_start_steps": 0}
    assert LanguageConfig(**ready).resolved().out == "runs/language/reasoning_gym-gcd-x/grpo/seed-0"
    with pytest.raises(ValueError, match=r"task='reasoning_gym:gcd' has no solutions to begin with"):
        LanguageConfig(task="reasoning_gym:gcd")
    with pytest.raises(ValueError, match=r"task='chess' must be one of countdown, .*, file, reasoning_gym:<name>"):
        LanguageConfig(task="chess")
    with pytest.raises(ValueError, match="would be ignored without task='reasoning_gym:…'"):
        LanguageConfig(task_config=SUMS).resolved()


@pytest.mark.slow
@needs_it
def test_a_run_resumes_and_is_evaluated(tmp_path, monkeypatch):
    model = str(tiny_language.save(tmp_path / "model", chat=tiny_language.CHAT))
    settings = {**SMALL, "model": model, "template": "chat", "steps": 3, "checkpoint_every": 2}
    path = train(tiny_language.config(tmp_path, **settings))
    expected = entropies(path)
    shutil.rmtree(path / "checkpoints" / f"{3:012d}")
    resume(path)
    assert entropies(path) == expected
    shown = (path / "samples" / "000003.txt").read_text()
    assert shown.startswith("[State the final answer to the following arithmetic problem: ")
    assert "avg@2" in evaluate(path, problems=4, samples=2)
    reasoning_gym.dataset_of.cache_clear()
    monkeypatch.setattr("reasoning_gym.arithmetic.ChainSumDataset.__getitem__", other_problem)
    with pytest.raises(ValueError, match="the problems of reasoning_gym:chain_sum are not those"):
        resume(path)
    reasoning_gym.dataset_of.cache_clear()


def other_problem(self, index):
    return {"question": f"{index} + 1 =", "answer": str(index + 1), "metadata": {}}


def entropies(path):
    steps, values = read_run(path).series("response_entropy")
    assert steps.tolist() == [1, 2, 3]
    return values.tolist()


@pytest.mark.slow
@needs_it
def test_the_command_line_knows_it(tmp_path, capsys):
    model = tiny_language.save(tmp_path / "model")
    arguments = ["train", "language", "--warm-start-steps=0", f"--model={model}", f"--out={tmp_path / 'run'}"]
    capsys.readouterr()  # the bar of the model
    assert main([*arguments, "--task=reasoning_gym:chain_sums"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "it has chain_sum" in error
    small = ["--steps=1", "--prompts=2", "--samples=2", "--eval-problems=2", "--eval-samples=2", "--threads=1"]
    assert main([*arguments, *small, "--task=reasoning_gym:chain_sum", f"--task-config={SUMS}"]) == 2
    assert "do not fit into the context" in capsys.readouterr().err
    small.append("--max-new-tokens=4")
    assert main([*arguments, *small, "--task=reasoning_gym:chain_sum", f"--task-config={SUMS}"]) == 0


@needs_it
def test_task_of():
    task = task_of(LanguageConfig(**{**SMALL, "model": "x"}))
    assert isinstance(task, ReasoningGym)
    assert 200 < len(task.prompts) <= 300
