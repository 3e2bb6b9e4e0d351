"""The command `judge`: verdicts with their reasons on one answer, or on a file of them."""

import json

import pytest

from entropyfloor.cli import main
from entropyfloor.language.judge import Pair, judge, read_pairs

pytest.importorskip("math_verify")


def said(capsys, *args):
    """What the command prints, and what it says is wrong."""
    status = main(["judge", *args])
    found = capsys.readouterr()
    return status, found.out, found.err


def written(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ([r"so \boxed{0.5}", r"\frac12"], "correct: equal by algebra (the box has 0.5)"),
        ([r"\boxed{5}", "6"], "wrong: different numbers (the box has 5)"),
        (["-5", "-5.0"], "correct: the same number (there is no box"),
        (["-h(x)", "-h(x)"], "correct: the same text"),
        (["1011_3", "1011_2"], "wrong: base 3, not 2"),
        (["The answer is (B).", "B", "--choices", "4"], "correct: the letter B\n"),
        (["--choices=4", "B or C", "B"], "wrong: no letter from A to D is named\n"),
        (["", "5"], "wrong: the answer is empty"),
    ],
)
def test_an_answer_is_judged_and_the_reason_told(capsys, words, verdict):
    status, out, err = said(capsys, *words)
    assert (status, err) == (0, "")
    assert out.startswith(verdict)
    assert out.count("\n") == 1


def test_what_takes_for_ever_is_undecided():
    pairs = [Pair(r"\boxed{9^{9^{9^{9}}}}", "10"), Pair(r"\boxed{10}", "10")]
    undecided, right = judge(pairs, seconds=2.0)
    assert (undecided.correct, undecided.reason) == (False, "undecided: took too long: more than 2 s")
    assert right.correct


def test_pairs_of_a_file(capsys, tmp_path):
    odd = "\\boxed{a\nb\ud800}"
    lines = [{"said": r"\boxed{1/2}", "gold": 0.5}, "", {"said": 3, "gold": "4", "more": None}]
    lines.append({"said": odd, "gold": "5"})
    file = written(tmp_path / "pairs.jsonl", *lines)
    assert [pair[:2] for pair in read_pairs(file)] == [(r"\boxed{1/2}", "0.5"), ("3", "4"), (odd, "5")]
    status, out, err = said(capsys, "--pairs", str(file))
    assert (status, err) == (0, "")
    first, second, third, both = out.splitlines()
    assert first.startswith("1: correct: ")
    assert second.startswith("2: wrong: ")
    assert third.endswith(r"(the box has a b\ud800)")
    assert both == "1 of 3 are correct"
    status, out, _ = said(capsys, "--pairs", str(file), "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [set(one) for one in found] == [{"correct", "reason"}] * 3
    assert [one["correct"] for one in found] == [True, False, False]
    assert all(isinstance(one["reason"], str) and one["reason"] for one in found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"said": "1", "gold": ', "line 2 is damaged"),
        ("[" * 100_000, "line 2 is damaged"),
        ("[1, 2]", "line 2 holds a list: it must be an object with said and gold"),
        ({"said": "1"}, "line 2: gold is missing"),
        ({"said": None, "gold": "1"}, "line 2: said is None"),
        ({"said": True, "gold": "1"}, "line 2: said is True"),
        ('{"said": "1", "gold": NaN}', "line 2: gold is nan"),
        ({"said": "1", "gold": ["1"]}, r"line 2: gold is ['1']"),
        ({"said": "1", "gold": " "}, "line 2: gold is empty"),
    ],
)
def test_a_bad_line_is_told_by_its_number(capsys, tmp_path, line, message):
    file = written(tmp_path / "pairs.jsonl", {"said": "1", "gold": "1"}, line)
    status, out, err = said(capsys, "--pairs", str(file))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {file}, {message}")
    assert err.count("\n") == 1


def test_a_line_that_is_no_utf8_is_told(capsys, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b'{"said": "\xff", "gold": "1"}\n')
    status, _, err = said(capsys, "--pairs", str(file))
    assert status == 2
    assert "line 1 is damaged" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ANSWER and GOLD"),
        (["1"], "give two texts"),
        (["1", "2", "3"], "give two texts"),
        (["1", " "], "gold is empty"),
        (["B", "E", "--choices", "4"], "gold='E' is no letter from A to D"),
        (["B", "B", "--choices", "1"], "choices=1 must be from 2 to 26"),
        (["B", "B", "--choices", "27"], "choices=27 must be from 2 to 26"),
        (["--pairs", "nowhere.jsonl"], "nowhere.jsonl is no file"),
        (["1", "1", "--pairs", "nowhere.jsonl"], "give two texts"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(capsys, words, message):
    status, out, err = said(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_letter_that_is_none_of_the_choices_is_told_by_its_line(capsys, tmp_path):
    file = written(tmp_path / "pairs.jsonl", {"said": "B", "gold": "B"}, {"said": "B", "gold": "F"})
    assert said(capsys, "--pairs", str(file), "--choices", "6")[0] == 0
    status, _, err = said(capsys, "--pairs", str(file), "--choices", "4")
    assert status == 2
    assert f"{file}, line 2: gold='F' is no letter from A to D" in err


def test_a_file_without_pairs_is_refused(capsys, tmp_path):
    status, _, err = said(capsys, "--pairs", str(written(tmp_path / "pairs.jsonl", "", "")))
    assert (status, err) == (2, f"error: {tmp_path / 'pairs.jsonl'} has no pairs\n")
