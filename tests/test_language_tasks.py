"""Tasks: what is made from a seed can be solved and judged, and files are read or refused with a reason."""

import json
import math
import operator
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.tasks import Arithmetic, Countdown, Modular, Problem, Questions, task_of
from entropyfloor.language.tasks.files import TURNS, problems_of
from entropyfloor.language.tasks.rows import at_level, read_rows

DATA = Path(os.environ.get("ENTROPYFLOOR_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "math").is_dir(), reason=f"no math in {DATA}, where ENTROPYFLOOR_DATA may point elsewhere"
)

TASKS = [
    Countdown(3),
    Countdown(4),
    Countdown(4, largest=99),
    Arithmetic(),
    Arithmetic(3),
    Modular(),
    Modular(3),
]
EACH = pytest.mark.parametrize("task", TASKS, ids=str)
SEEDS = st.integers(0, 2**31)
RNG = np.random.default_rng(0)


def problem_of(numbers, target):
    prompt = f"{','.join(map(str, numbers))}={target}:"
    row = {"prompt": prompt, "answer": str(target), "numbers": numbers, "target": target}
    return Problem(prompt, str(target), row)


# --- every generated task --------------------------------------------------------------------------------


@EACH
@given(seed=SEEDS)
def test_every_solution_earns_1(task, seed):
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        (problem,) = task.problems(split, 1, seed)
        solution = task.solution(problem, rng)
        assert task.reward(problem, solution) == 1
        assert task.reward(problem, f" {solution}\n") == 1
        assert set(problem.prompt + solution) <= set(task.alphabet)
        assert len(problem.prompt) <= task.max_prompt
        assert len(solution) < task.max_new_tokens  # its end is one more


@EACH
def test_those_that_wander_are_well_formed_and_may_miss(task):
    rng = np.random.default_rng(0)
    problems = task.problems("train", 150, 0)
    wandering = [task.solution(problem, rng, wander=True) for problem in problems]
    assert all(len(text) < task.max_new_tokens and set(text) <= set(task.alphabet) for text in wandering)
    right = np.mean([task.reward(*pair) for pair in zip(problems, wandering, strict=True)])
    assert right < 0.5
    for problem, text in zip(problems, wandering, strict=True):
        if isinstance(task, Countdown):  # right but for its target, which shows that each number is used once
            row, reached = problem.row, int(text.rpartition("=")[2])
            assert task.reward(problem_of(row["numbers"], reached), text) == 1
            assert (reached == row["target"]) == (task.reward(problem, text) == 1)
        else:
            last = text.rpartition("=")[2]
            assert task.reward(Problem(problem.prompt, last, problem.row), text) == 1


@EACH
def test_training_and_testing_share_nothing(task):
    def keys(split, seed):
        found = set()
        for problem in task.problems(split, 100, seed):
            if isinstance(task, Countdown):  # whatever the order of numbers
                found.add((*sorted(problem.row["numbers"]), problem.row["target"]))
            elif isinstance(task, Arithmetic):
                a, b = sorted((problem.row["a"], problem.row["b"]))
                found.add((a, problem.row["operator"], b))
            else:
                found.add(problem.prompt)
        assert len(found) == 100  # nor does a split repeat itself
        return found

    train, test = (set().union(*(keys(split, seed) for seed in range(3))) for split in ("train", "test"))
    assert not train & test
    assert len(train) > 100  # other seeds, other problems


@EACH
def test_a_seed_decides(task):
    first = task.problems("train", 20, 7)
    assert first == task.problems("train", 20, 7)
    assert first[:5] == task.problems("train", 5, 7)
    assert first != task.problems("train", 20, 8)
    assert task.problems("test", 0, 7) == []


@EACH
@given(data=st.data())
def test_noise_earns_nothing(task, data):
    problem = task.problems("train", 1, data.draw(SEEDS))[0]
    noise = data.draw(st.text(alphabet=task.alphabet, max_size=30) | st.text(max_size=10))
    if task.reward(problem, noise):  # the right answer by chance: possible, where a step is enough
        assert re.fullmatch(r"[-0-9+*/=,\s]+", noise)
        assert noise.strip().rpartition("=")[2] == problem.answer


@EACH
def test_malformed_responses_earn_nothing(task):
    for problem in task.problems("train", 20, 0):
        solution = task.solution(problem, RNG)
        damaged = [
            "",
            solution[:-1] + "?",
            solution + ",",
            "," + solution,
            solution + "=",
            "(" + solution,
            "١" + solution,
        ]
        damaged += [solution.replace(sign, sign * 2, 1) for sign in "+*/=" if sign in solution]
        damaged += [
            f"{solution},{solution[::-1]}",
            "9" * 10**6,
            "(" * 10**5,
        ]
        for text in damaged:
            assert task.reward(problem, text) == 0, (problem.prompt, text)


@EACH
def test_a_task_rewards_a_batch(task):
    problems = task.problems("train", 4, 0)
    texts = [task.solution(problem, RNG) for problem in problems[:2]] + ["", "="]
    rewards = task.rewards(problems, texts)
    assert rewards.tolist() == [1, 1, 0, 0]
    assert rewards.dtype == np.float64
    with pytest.raises(ValueError, match="zip"):
        task.rewards(problems, texts[:3])


@EACH
def test_generated_problems_come_from_no_file(task):
    assert task.prompts is None
    assert task.data_checksum is None
    assert "--warm-start-steps" in task.idle_hint
    with pytest.raises(ValueError, match="--template"):
        task.render(str)
    with pytest.raises(ValueError, match="--max-prompt"):
        task.leave_out({}, 1)
    task.close()


def test_tasks_and_benchmarks_are_imported_without_torch():
    names = ", ".join(
        f"entropyfloor.language.{name}" for name in ("tasks", "rewards", "judge", "benchmarks.evaluate")
    )
    code = f"import sys, {names}; print({{'torch', 'transformers', 'openai'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


# --- countdown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "target", "response", "expected"),
    [
        ((3, 7, 12), 15, "12-7=5,5*3=15", 1),
        ((3, 7, 12), 15, "12-7=5,3*5=15", 1),
        ((3, 7, 12), 15, "7-12=-5,-5*3=-15", 0),  # right, but not 15
        ((3, 7, 12), 8, "7-12=-5,3--5=8", 1),
        ((3, 7, 12), 15, "12-7=6,5*3=15", 0),  # a wrong step
        ((3, 7, 12), 15, "12-7=5,5*3=16", 0),
        ((3, 7, 12), 15, "12+3=15", 0),  # 7 is left
        ((3, 7, 12), 15, "12-7=5,12+3=15", 0),  # 12 twice
        ((3, 7, 12), 15, "12-7=5,5*3=15,15-0=15", 0),
        ((3, 7, 12), 15, "5*3=15,12-7=5", 0),  # 5 before it is there
        ((3, 7, 12), 15, "12-7=05,5*3=15", 0),
        ((3, 3), 9, "3*3=9", 1),
        ((3, 4), 9, "3*3=9", 0),  # there is one 3
        ((6, 3), 2, "6/3=2", 1),
        ((7, 3), 2, "7/3=2", 0),
        ((5, 5, 7), 7, "5-5=0,7/0=7", 0),
        ((5, 5, 7), 7, "5-5=0,7+0=7", 1),
        ((5, 5, 7), 7, "5-5=-0,7+0=7", 0),
    ],
)
def test_steps(numbers, target, response, expected):
    assert Countdown(len(numbers)).reward(problem_of(numbers, target), response) == expected


def test_prompts_are_short():
    problem = Countdown(3).problems("train", 1, 0)[0]
    assert re.fullmatch(r"\d+,\d+,\d+=\d+:", problem.prompt)
    assert Countdown(3).max_prompt + Countdown(3).max_new_tokens <= 40
    assert Countdown(4).max_prompt + Countdown(4).max_new_tokens <= 60
    assert Arithmetic().max_prompt + Arithmetic().max_new_tokens <= 60
    assert Modular().max_prompt + Modular().max_new_tokens <= 60


# --- arithmetic and chains -------------------------------------------------------------------------------


def test_arithmetic():
    problems = Arithmetic().problems("train", 200, 0)
    for prompt, answer, _ in problems:
        a, sign, b = re.fullmatch(r"(\d+)([-+*])(\d+):", prompt).groups()
        assert int(answer) == {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](int(a), int(b)) >= 0
    assert {problem.row["operator"] for problem in problems} == set("+-*")
    product = Problem("47*36:", "1692", {"a": 47, "operator": "*", "b": 36})
    assert Arithmetic().solution(product, RNG) == "47*30=1410,47*6=282,1410+282=1692"
    assert (
        Arithmetic().solution(Problem("47*30:", "1410", {"a": 47, "operator": "*", "b": 30}), RNG) == "47*30=1410"
    )
    assert Arithmetic().reward(product, "47*36=1692") == 1
    assert Arithmetic().reward(product, "1692") == 0


def test_chains():
    problem = Problem("3+5*2-4%7:", "5", {"numbers": [3, 5, 2, 4], "operators": ["+", "*", "-"]})
    assert Modular(3).solution(problem, RNG) == "3+5=1,1*2=2,2-4=5"
    responses = {
        "3+5=1,1*2=2,2-4=5": 1,
        "3+5=4,4*2=4,4-4=5": 1,  # only the last result counts
        "3+5=1,1*2=2,2-4=4": 0,
        "3+5=1,2*2=2,2-4=5": 0,  # not from the result before
        "3+5=1,1*3=2,2-4=5": 0,  # not the chain
        "3+5=1,1+2=2,2-4=5": 0,
        "3+5=1,2-4=5": 0,
        "3+5=1,1*2=2,2-4=5,5-0=5": 0,
        "5": 0,
    }
    assert {text: Modular(3).reward(problem, text) for text in responses} == responses
    for prompt, answer, _ in Modular().problems("train", 50, 0) + Modular(3).problems("test", 50, 0):
        chain, modulus = prompt[:-1].split("%")
        value, *steps = re.findall(r"^\d+|[-+*]\d+", chain)
        value = int(value)
        for step in steps:
            value = {"+": operator.add, "-": operator.sub, "*": operator.mul}[step[0]](value, int(step[1:]))
        assert value % int(modulus) == int(answer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Countdown(1), "numbers=1 must be at least 2"),
        (lambda: Countdown(largest=1), "largest=1 must be at least 2"),
        (lambda: Arithmetic(0), "digits=0 must be at least 1"),
        (lambda: Modular(length=0), "length=0 must be at least 1"),
        (lambda: Modular().problems("dev", 1, 0), "split='dev' must be train or test"),
        (
            lambda: Arithmetic(1).problems("train", 200, 0),
            "no more than 1[0-9][0-9] problems to train with, and not 200",
        ),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_none_at_all_is_not_fewer(monkeypatch):
    monkeypatch.setattr("entropyfloor.language.tasks.base.is_held_out", lambda key: False)
    with pytest.raises(ValueError, match="no more than 0 problems to test with"):
        Arithmetic(1).problems("test", 5, 0, or_fewer=True)


def test_all_there_are_can_be_asked_for():
    sizes = []
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="no more than") as told:
            Arithmetic(1).problems(split, 200, 0)
        sizes.append(int(re.search("than ([0-9]+)", str(told.value))[1]))
        everything = Arithmetic(1).problems(split, sizes[-1], 1)
        assert len(everything) == sizes[-1]
        assert Arithmetic(1).problems(split, 200, 1, or_fewer=True) == everything
    assert sum(sizes) == 3 * 45  # pairs of 1 to 9, with each sign


# --- files -----------------------------------------------------------------------------------------------


ROWS = [{"problem": f"What is {i}?", "answer": str(i), "level": f"Level {i % 5 + 1}"} for i in range(60)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_every_kind_of_file(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    lines = written(tmp_path / "a.jsonl", ROWS)
    lines.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes() + b"\n\n")  # as some editors leave it
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    written(tmp_path / "b.json", ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "b.json", "a.parquet"):
        assert read_rows(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "none.jsonl is no file"),
        ("a.csv", b"x", r"a\.csv must end in \.jsonl, \.json or \.parquet"),
        ("a.jsonl", b"", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2', "line 2 is damaged"),
        ("a.jsonl", b'{"a": 1}\n\n\xff\xff\n', "line 3 is damaged"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2 holds a list"),
        ("a.json", b'[{"a": 1}, ', r"a\.json is damaged"),
        ("a.json", b"[1]", "row 0 holds a int"),
        ("a.parquet", b"PAR1 no", "cannot be read as parquet"),
    ],
)
def test_damaged_files(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Q", "answer": "so 2\n#### 1,018"}, ("Q", "1,018")),
        ({"problem": "P", "question": "Q", "answer": 27.0}, ("P", "27")),
        ({"question": "Q", "final_answer": ["$2n$"], "solution": ["long"]}, ("Q", "$2n$")),
        ({"question": "Q", "final_answer": ["1", "2"]}, ("Q", "1, 2")),
        ({"problem": "Q", "solution": r"thus \boxed{1.6}"}, ("Q", "1.6")),
        (
            {
                "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "Q"}],
                "reward_model": {"ground_truth": "34", "style": "rule"},
                "extra_info": {"answer": ""},
            },
            ("Q", "34"),
        ),
        ({"question": "Q", "options": ["x", "y"], "answer": "B"}, ("Q\nA. x\nB. y", "B")),
    ],
)
def test_columns_are_found(row, expected):
    ((prompt, answer, found),) = problems_of([row])
    assert (prompt, answer) == expected
    assert (found["prompt"], found["answer"]) == expected


def test_columns_can_be_named_in_a_config(tmp_path):
    data = str(
        written(tmp_path / "a.jsonl", [{"q": {"text": f"Q{i}"}, "a": str(i), "answer": "?"} for i in range(60)])
    )
    settings = {"task": "file", "data": data, "model": "x", "warm_start_steps": 0}
    task = task_of(LanguageConfig(**settings, question_column="q.text", answer_column="a"))
    (problem,) = task.problems("train", 1, 0)
    assert problem.prompt == f"Q{problem.answer}"
    with pytest.raises(ValueError, match="has no column 'b'; it has a, answer, q"):
        task_of(LanguageConfig(**settings, question_column="q.text", answer_column="b"))
    with pytest.raises(ValueError, match="question_column='q' would be ignored without task='file'"):
        LanguageConfig(question_column="q").resolved()


def test_columns_can_be_named(caplog):
    rows = [{"q": {"text": "Q"}, "a": "1"}, {"q": {"text": ""}, "a": "1"}, {"q": {"text": "R"}, "a": None}]
    (problem,) = problems_of(rows, "q.text", "a", prompt="Please: {question} Put it in \\boxed{}.", source="mine")
    assert problem.prompt == "Please: Q Put it in \\boxed{}."
    assert "mine: 2 of 3 rows have no question or no answer and are left out" in caplog.text
    with pytest.raises(ValueError, match=r"mine has no column 'b'; it has a, q"):
        problems_of(rows, "q.text", "b", source="mine")
    with pytest.raises(
        ValueError, match=r"no column for the question, which would be one of problem, .*; it has a, q"
    ):
        problems_of(rows)


COUNTRIES = [{"question": f"Q{i}", "choices": ["0", "x", "2", "y"], "answer": i % 4} for i in range(5)]  # as MMLU
SCIENCE = {
    "question": "Q",
    "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
    "answerKey": "3",
}  # ARC


def with_answers(*answers):
    return [{"question": f"Q{i}", "choices": ["7", "x"], "answer": answer} for i, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("rows", "letters"),
    [
        (COUNTRIES, "ABCDA"),
        (
            [{**row, "answer": float(row["answer"])} for row in COUNTRIES],
            "ABCDA",
        ),  # as a table with a NaN has them
        ([SCIENCE], "C"),
        ([{"question": "Q", "options": ["x", "y"], "answer": "B"}], "B"),
        (with_answers("B", 0), "BA"),
        (with_answers(7, "x"), "7x"),  # the choices themselves
        (with_answers("0", "1"), "01"),  # a text is what it says
        (with_answers(12, 7), ["12", "7"]),
    ],
)
def test_an_answer_beside_choices(rows, letters):
    found = problems_of(rows)
    assert [problem.answer for problem in found] == list(letters)
    assert [problem.row["answer"] for problem in found] == list(letters)
    if "x" in str(rows[0].get("choices")):
        assert "\nB. " in found[0].prompt


def test_more_choices_than_letters_are_refused():
    row = {"question": "Q", "choices": [str(i) for i in range(100, 130)], "answer": 28}
    with pytest.raises(ValueError, match="mine: a question has 30 choices: at most 26 have letters"):
        problems_of([row], source="mine")


@pytest.mark.parametrize(
    ("rows", "doubt"),
    [
        ([{"question": "Q", "choices": ["0", "1"], "answer": 1}], "choices as well as their indexes"),
        (with_answers(1, 2), "indexes that begin at 1"),
    ],
)
def test_an_index_that_may_be_something_else(rows, doubt):
    with pytest.raises(ValueError, match=f"mine: the answers in 'answer' may be {doubt}: write the letter"):
        problems_of(rows, source="mine")


@pytest.mark.parametrize("nothing", [math.nan, None, "", " ", [], [math.nan]])
def test_what_is_not_there_is_left_out_and_counted(nothing, caplog):
    rows = [
        {"question": "Q", "answer": 2.0},
        {"question": "R", "answer": nothing},
        {"question": nothing, "answer": 1},
    ]
    (problem,) = problems_of(rows, source="mine")
    assert problem.answer == "2"
    assert "mine: 2 of 3 rows have no question or no answer and are left out" in caplog.text


def test_nan_in_files_is_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Q", "answer": NaN}\n{"question": "R", "answer": 1.0}\n')
    assert [problem.answer for problem in problems_of(read_rows(tmp_path / "a.jsonl"))] == ["1"]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"question": ["Q", "R"], "answer": [math.nan, 1.0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [problem.answer for problem in problems_of(read_rows(tmp_path / "a.parquet"))] == ["1"]


def chat(*turns, answer="1"):
    messages = [dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns]
    return {"prompt": messages, "answer": answer}


FEW_SHOT = chat("system: S", "user: a", "assistant: b", "user: c")


def test_a_chat_of_several_turns_needs_a_template():
    with pytest.raises(ValueError, match=r"mine, row 1: a chat of several turns .*user, assistant, user.*chat"):
        problems_of([chat("user: a"), FEW_SHOT], source="mine")
    for wrong in (chat("user: a", "user: b"), chat("system: a", "system: b", "user: c")):
        with pytest.raises(ValueError, match="several turns"):
            problems_of([wrong])
    for whole in (False, True):
        with pytest.raises(ValueError, match="the last turn is of role 'assistant'"):
            problems_of([chat("user: a", "assistant: b")], chat=whole)
    (problem,) = problems_of([FEW_SHOT], chat=True, prompt="{question}!")
    assert problem.prompt == "c!"
    assert [turn["content"] for turn in problem.row[TURNS]] == ["S", "a", "b", "c!"]


def test_chats_that_end_alike_are_different_problems():
    rows = [chat(f"user: {i}", "assistant: b", "user: go on") for i in range(60)]
    task = Questions(problems_of(rows + rows[:9], chat=True))
    task.render(lambda turns: "|".join(turn["content"] for turn in turns))
    assert sorted(task.prompts) == sorted(f"{i}|b|go on" for i in range(60))


def test_system_messages_are_told_where_they_are_left_out(caplog):
    (problem,) = problems_of([chat("system: S", "user: a")], source="mine")
    assert problem.prompt == "a"
    assert "mine: 1 system messages are left out" in caplog.text


def test_messages_in_parts_are_their_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (problem,) = problems_of([{"prompt": [{"role": "user", "content": parts}], "answer": "1"}])
    assert problem.prompt == "a\nb"
    parts.append({"type": "image_url", "image_url": "x"})
    with pytest.raises(ValueError, match="row 0: a message has a part of type 'image_url'"):
        problems_of([{"prompt": [{"role": "user", "content": parts}], "answer": "1"}])


def test_questions_are_rendered(tmp_path):
    rows = [
        {**FEW_SHOT, "prompt": [*FEW_SHOT["prompt"][:3], {"role": "user", "content": str(i)}]} for i in range(60)
    ]
    task = Questions.read(written(tmp_path / "a.jsonl", rows), chat=True)
    plain = [problem.prompt for problem in task.problems("test", 99, 0, or_fewer=True)]
    task.render(lambda turns: "|".join(turn["content"] for turn in turns))
    found = task.problems("test", 99, 0, or_fewer=True)
    assert [problem.prompt for problem in found] == [f"S|a|b|{prompt}" for prompt in plain]
    assert [problem.row["prompt"] for problem in found] == [problem.prompt for problem in found]


def test_levels():
    assert [row["level"] for row in at_level(ROWS[:5], 4)] == ["Level 4", "Level 5"]
    assert len(at_level([{"level": 3}, {"level": "Level ?"}, {"level": None}], 3)) == 1
    with pytest.raises(ValueError, match="has no column 'level'; it has problem"):
        at_level([{"problem": "x"}], 3)
    with pytest.raises(ValueError, match="no row of level 6 or above: its highest is 5"):
        at_level(ROWS, 6)


def test_questions_of_files(tmp_path):
    train = written(tmp_path / "train.jsonl", [*ROWS, *ROWS[:10]])
    task = Questions.read(train, prompt="{question} Use \\boxed{}.")
    sizes = {}
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"train has [0-9]+ problems to") as told:
            task.problems(split, 100, 0)
        sizes[split] = int(re.search("has ([0-9]+)", str(told.value))[1])
    assert sum(sizes.values()) == 60  # and no question twice
    train_, test_ = (task.problems(split, size, 0) for split, size in sizes.items())
    assert not {p.prompt for p in train_} & {p.prompt for p in test_}
    assert task.problems("train", 5, 0) == train_[:5]
    assert task.problems("test", 100, 0, or_fewer=True) == test_
    assert task.problems("train", 5, 1) != train_[:5]
    assert set("What is 0?") <= set(task.alphabet)
    assert sorted(task.prompts) == sorted(problem.prompt for problem in train_ + test_)
    assert task.data_checksum == zlib.crc32("\0".join(task.prompts).encode())
    assert "--prompt" in task.idle_hint
    with pytest.raises(ValueError, match="set warm_start_steps to 0"):
        task.solution(train_[0], RNG)

    test = written(tmp_path / "test.jsonl", ROWS[:20])
    split = Questions.read(train, test, min_level=3)
    assert {p.answer for p in split.problems("test", 20, 0)} == {str(i) for i in range(20)}
    assert {int(p.answer) for p in split.problems("train", 24, 0)} == {i for i in range(20, 60) if i % 5 >= 2}


def test_files_that_are_not_enough(tmp_path):
    rows = written(tmp_path / "a.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match="a has no problem to train with"):
        Questions.read(rows, rows)
    with pytest.raises(ValueError, match=r"must have \{question\} in it"):
        Questions.read(rows, prompt="?")


def test_rewards_of_questions_do_not_hang():
    pytest.importorskip("math_verify")
    found = [Problem(f"Q{i}", "1/2", {"prompt": f"Q{i}", "answer": "1/2"}) for i in range(2)]
    task = Questions(found[:1], found[1:], seconds=2.0)
    try:
        responses = [r"\boxed{\frac{2}{4}}", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{2}"]
        assert task.rewards([found[0]] * 3, responses).tolist() == [1, 0, 0]
    finally:
        task.close()


def test_the_task_of_a_config(tmp_path):
    for asked, task in {
        LanguageConfig(task="countdown", largest=9).resolved(): Countdown(3, largest=9),
        LanguageConfig(task="countdown-4"): Countdown(4),
        LanguageConfig(task="arithmetic"): Arithmetic(),
        LanguageConfig(task="arithmetic", digits=3): Arithmetic(3),
        LanguageConfig(task="modular"): Modular(),
        LanguageConfig(task="modular", chain_length=3): Modular(3),
    }.items():
        assert task_of(asked) == task
    with pytest.raises(ValueError, match="task=file needs data"):
        task_of(SimpleNamespace(task="file", data=None))
    with pytest.raises(ValueError, match="task='chess' must be countdown-3"):
        task_of(SimpleNamespace(task="chess"))
    mine = str(written(tmp_path / "mine.jsonl", ROWS))
    assert task_of(LanguageConfig(task="file", data=mine, model="x", warm_start_steps=0)).name == "mine"


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "answer"),
    [
        ("aime24.jsonl", 30, None),
        ("aime25.jsonl", 30, "70"),
        ("amc23.jsonl", 40, "27"),
        ("math500.jsonl", 500, r"\left( 3, \frac{\pi}{2} \right)"),
        ("minerva.jsonl", 272, "1.6"),
        ("olympiadbench.jsonl", 675, "2"),
        ("math_train.jsonl", 7498, "16"),
        ("gsm8k_test.jsonl", 1319, "18"),
        ("dapo_math_17k.parquet", 17917, "34"),
        ("../ood/mmlu_pro.jsonl", 12032, "I"),
        ("../ood/arc_challenge.json", 1172, "C"),
    ],
)
def test_real_files(name, count, answer):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    found = problems_of(read_rows(DATA / "math" / name))
    assert len(found) == count
    assert answer is None or found[0].answer == answer
    assert not any("####" in problem.answer or "boxed" in problem.answer for problem in found)


@needs_data
def test_the_training_sets_of_the_paper():
    pytest.importorskip("pyarrow")
    dapo = Questions.read(DATA / "math" / "dapo_math_17k.parquet", DATA / "math" / "aime24.jsonl")
    with pytest.raises(ValueError, match=r"has 1[67][0-9]{3} problems to train"):
        dapo.problems("train", 20_000, 0)
    levels = Questions.read(DATA / "math" / "math_train.jsonl", DATA / "math" / "math500.jsonl", min_level=3)
    assert {p.row["level"] for p in levels.problems("train", 5000, 0)} == {"Level 3", "Level 4", "Level 5"}
