"""Benchmarks: rows of every shape that they come in, and the real files where they are."""

import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest

import tiny_language
from entropyfloor.language.benchmarks.registry import BENCHMARKS, IN_DOMAIN, PUBLISHED, load, named
from entropyfloor.language.rewards import is_correct, letter

SHARED = Path(os.environ.get("ENTROPYFLOOR_DATA", Path(__file__).parents[2] / "shared/data"))
LOCAL = [name for name, benchmark in BENCHMARKS.items() if not benchmark.gated]


@pytest.fixture
def shared():
    if not (SHARED / "math").is_dir():
        pytest.skip(f"no math in {SHARED}: ENTROPYFLOOR_DATA may point elsewhere")
    return SHARED


def written(path, name, rows, suffix=".jsonl"):
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"{name}{suffix}"
    if suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# --- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"problem": " 1+1? ", "answer": "2"}, "1+1?", "2"),
        ({"question": "1+1?", "answer": 2}, "1+1?", "2"),
        ({"problem": "1+1?", "question": "1+1?", "answer": 27.0}, "1+1?", "27"),
        ({"problem": "1/2?", "answer": 0.5}, "1/2?", "0.5"),
        ({"problem": "5?", "answer": ["5"]}, "5?", "5"),
        ({"question": "x?", "final_answer": ["$x^2$"], "solution": ["…"]}, "x?", "$x^2$"),
        ({"problem": "x?", "solution": r"so \boxed{1} no \boxed{\frac{1}{2}}."}, "x?", r"\frac{1}{2}"),
    ],
)
def test_mathematics_comes_in_many_columns(row, question, answer):
    assert BENCHMARKS["minerva"].read(row) == (question, answer)


@pytest.mark.parametrize("answer", [None, True, [], ["1", "2"], {"value": 1}, " ", math.nan])
def test_an_answer_that_is_none_is_refused(tmp_path, answer):
    file = tiny_language.write_rows(tmp_path / "math500.jsonl", [{"problem": "1+1?", "answer": answer}])
    with pytest.raises(ValueError, match="row 0 is none of math500"):
        load(BENCHMARKS["math500"], file)


HUB_ARC = {
    "id": "7",
    "question": "Which?",
    "choices": {"text": ["slow", "fast", "red"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
CHAT_ARC = {
    "prompt": [
        {"role": "system", "content": "Think.\nA) not a choice"},
        {"role": "user", "content": "Which?\n\n1) slow\n2) fast\n3) red\n"},
    ],
    "reward_model": {"ground_truth": "2"},
}


@pytest.mark.parametrize("row", [HUB_ARC, CHAT_ARC])
def test_choices_are_lettered_whatever_they_were_called(row):
    assert BENCHMARKS["arc_challenge"].read(row) == ("Which?\n\nA) slow\nB) fast\nC) red", "B")


def test_mmlu_pro_has_up_to_ten_choices():
    row = {"question": "Which?", "options": list("abcdefghij"), "answer": "J", "answer_index": 9}
    question, answer = BENCHMARKS["mmlu_pro"].read(row)
    assert question.endswith("\nI) i\nJ) j")
    assert answer == "J"


def test_the_choices_of_gpqa_are_shuffled_and_always_alike():
    rows = [
        {
            "Question": f"Which is {i}?",
            "Correct Answer": "right",
            **{f"Incorrect Answer {j}": f"w{j}" for j in (1, 2, 3)},
        }
        for i in range(400)
    ]
    read = [BENCHMARKS["gpqa_diamond"].read(row) for row in rows]
    assert read == [BENCHMARKS["gpqa_diamond"].read(row) for row in rows]
    for question, answer in read:
        assert f"\n{answer}) right" in question
    counts = Counter(answer for _, answer in read)
    assert set(counts) == set("ABCD")
    assert min(counts.values()) > 60


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        (r"4.5 \times 10^{33}", "4.5e33", True),
        (r"4.50\cdot 10^{33} \text{ erg/s}", "4.5e33", True),
        ("4.5e+33", r"4.5 \times 10^{33}", True),
        (r"4.6 \times 10^{33}", "4.5e33", False),
        (r"1.6 \times 10^{-19} \mathrm{~C}", "1.6e-19", True),
        (r"2.6 \times 10^{-19}", "1.6e-19", False),
        ("0", "1.6e-19", False),
        (r"10^{-5}", "1e-5", True),
        (r"\frac{1}{100000}", "1e-5", True),
        ("0.0000001", "0.0000002", False),
        ("10^3", "1000", True),
        ("210^3", "2000", False),
        (r"-10^{3}", "-1000", True),
        ("1{,}234", "1234", True),
        ("1,234.5", "1234.5", True),
        ("3986730", "3986729", False),
        ("123456.7", "123456.8", False),
        ("1.60", "1.6", True),
        (r"6.5 \mathrm{~m}/\mathrm{s}^{2}", "6.5", True),
        (r"\arcsin(10/13)", "np.arcsin(10/13)", True),
        (r"-\frac{1}{3}", "-1./3", True),
        ("10", "025", False),
        (str(2**100 + 1), str(2**100), False),
        (f"{2**100}.0", str(2**100), True),
        ("25", "025", True),
    ],
)
def test_numbers_are_compared_as_numbers(said, answer, right):
    pytest.importorskip("math_verify")
    _, wanted = BENCHMARKS["minerva"].read({"problem": "?", "answer": answer})
    assert is_correct(f"It is \\boxed{{{said}}}.", wanted) is right


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("folder", ["", "math"])
def test_files_are_found_by_name(tmp_path, suffix, folder):
    rows = [{"problem": f"{i}+{i}?", "answer": str(2 * i)} for i in range(5)]
    file = written(tmp_path / folder, "aime24", rows, suffix)
    problems = load(BENCHMARKS["aime24"], tmp_path)
    assert [problem.question for problem in problems] == [row["problem"] for row in rows]
    assert [problem.number for problem in problems] == list(range(5))
    assert load(BENCHMARKS["math500"], file, limit=2) == problems[:2]


def test_a_file_that_is_not_there_is_told_with_the_way_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"no aime24.jsonl, .json or .parquet in .*HuggingFaceH4/aime_2024 from the hub"
    ):
        load(BENCHMARKS["aime24"], tmp_path)


def test_a_row_that_is_none_is_told_by_its_number(tmp_path):
    file = written(tmp_path, "aime24", [{"problem": "1?", "answer": "1"}, {"text": "2?", "answer": "2"}])
    with pytest.raises(
        ValueError, match=r"aime24.jsonl, row 1 is none of aime24 \(KeyError: 'question'\): it has text, answer"
    ):
        load(BENCHMARKS["aime24"], file)
    written(tmp_path, "aime24", [{"problem": " ", "answer": "1"}])
    with pytest.raises(ValueError, match=r"row 0 .*is no text"):
        load(BENCHMARKS["aime24"], file)
    written(tmp_path, "mmlu_pro", [{"question": "1?", "options": ["a"], "answer": "B"}])
    with pytest.raises(ValueError, match="the right choice is number 1 of 1"):
        load(BENCHMARKS["mmlu_pro"], tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match="no rows"):
        load(BENCHMARKS["aime24"], file)


def test_names_are_checked():
    assert [benchmark.name for benchmark in named(["amc23", "aime24"])] == ["amc23", "aime24"]
    with pytest.raises(ValueError, match="benchmark 'aime26' must be one of aime24, "):
        named(["aime26"])
    for names in ([], ["amc23", "amc23"]):
        with pytest.raises(ValueError, match="different ones, at least one"):
            named(names)


def test_without_network_the_hub_says_what_to_do(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args, **kwargs):
        assert kwargs["trust_remote_code"] is False
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"aime_2024 cannot be read from the hub \(Couldn't reach it\): .*--data-dir"
    ):
        load(BENCHMARKS["aime24"])
    # A directory does not do for what is gated, whatever is in it; a file that is named outright does.
    row = {"Question": "?", "Correct Answer": "a", **{f"Incorrect Answer {j}": f"w{j}" for j in (1, 2, 3)}}
    file = written(tmp_path, "gpqa_diamond", [row])
    with pytest.raises(ValueError, match=r"accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa"):
        load(BENCHMARKS["gpqa_diamond"], tmp_path)
    assert len(load(BENCHMARKS["gpqa_diamond"], file)) == 1


# --- what was published ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.title)
def test_published_averages_are_those_of_their_scores(row):
    assert len(row.scores) == len(IN_DOMAIN)
    # The paper's own rounding; GRPO with forking tokens and the base models are off by as much.
    assert row.average == pytest.approx(sum(row.scores) / len(IN_DOMAIN), abs=0.11)


def test_the_protocol_is_the_papers():
    found = {name: (benchmark.samples, benchmark.temperature) for name, benchmark in BENCHMARKS.items()}
    assert all(found[name] == (16, 0.7) for name in ("aime24", "aime25", "amc23"))
    assert all(found[name] == (1, 0.0) for name in BENCHMARKS if name not in ("aime24", "aime25", "amc23"))


# --- the real files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_the_real_files_are_whole(shared, name):
    benchmark = BENCHMARKS[name]
    problems = load(benchmark, shared)
    assert len(problems) == benchmark.problems
    if benchmark.kind == "choice":
        for problem in problems:
            assert letter(f"\\boxed{{{problem.answer}}}") == problem.answer
            assert f"\n{problem.answer}) " in problem.question
    else:
        assert len({problem.question for problem in problems}) == len(problems)


@pytest.mark.parametrize("name", IN_DOMAIN)
def test_real_answers_are_worth_themselves_and_no_others(shared, name):
    """Some of them: all of them take minutes."""
    pytest.importorskip("math_verify")
    problems = load(BENCHMARKS[name], shared)
    for problem in problems[:: max(1, len(problems) // 30)]:
        assert is_correct(f"So it is \\boxed{{ {problem.answer}}}.", problem.answer), problem
        assert not is_correct(r"So it is \boxed{\pi^{7}}.", problem.answer), problem
