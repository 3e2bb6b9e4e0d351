"""Judges of answers, and rewards that raise, hang or die without stopping a run.

No torch here: the processes that judge import this file to find the functions below.
"""

import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropyfloor.language.rewards import (
    Answer,
    Reward,
    Verdict,
    boxed,
    final_answer,
    is_correct,
    letter,
)
from entropyfloor.language.rewards.answers import choices_of
from entropyfloor.language.rewards.verdicts import by_letter

needs_math_verify = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")


# --- functions for other processes -----------------------------------------------------------------------


def obey(response, row):
    """Whatever the response says."""
    if response == "raise":
        raise KeyError("nothing here")
    if response == "exit":
        sys.exit("enough")
    if response == "sleep":
        time.sleep(1e6)
    if response == "compute":
        return 9 ** (9**9)  # no signal handler of Python's gets a word in
    if response == "die":
        os._exit(3)
    if response == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if response == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
        Path(row["file"]).write_text(str(child.pid))
        time.sleep(1e6)
    if response == "nan":
        return float("nan")
    if response == "text":
        return "good"
    if response == "memory":
        return len(bytearray(1 << 40))
    if response == "where":
        return os.getpid()
    if response == "modules":
        return float("torch" in sys.modules or "transformers" in sys.modules)
    return float(response) * row.get("times", 1)


class Unreadable:
    """It can be written, but not read."""

    def __call__(self, response, row):
        return 0.0

    def __reduce__(self):
        return Unreadable._missing, ()

    @staticmethod
    def _missing():
        raise ImportError("no such thing")


def judges():
    """Our processes, and theirs."""
    return [
        p for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())
    ]


@pytest.fixture
def reward():
    with Reward(obey, workers=2, seconds=3.0) as reward:
        yield reward
    assert judges() == []


# --- answers in texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} no, \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed {3}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{4} and \boxed{\frac{1}{", "4"),  # cut off by the limit of tokens
        (r"} \boxed{6}", "6"),
        (r"{ \boxed{8} ", "8"),
        ("5", None),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
    ],
)
def test_the_last_box_counts(text, expected):
    assert boxed(text) == expected


@given(st.text(alphabet="\\boxed{} 1", max_size=60))
def test_boxes_are_found_in_anything(text):
    found = boxed(text)
    if found is not None:
        assert f"{{{found}}}" in text.replace(" ", "") or found in text
    assert boxed(text + r" \boxed{12}") == "12" or text.endswith("\\")


def test_boxes_take_no_time():
    start = time.process_time()
    assert boxed(r"\boxed{" * 20_000) is None
    assert boxed(r"\boxed{" * 20_000 + "}" * 20_000) == ""
    assert letter("." * 100_000) is None
    for text in ("answer is ", "the correct answer is the option ", "A ", r"\text{", "B or "):
        letter(text * 10_000)
    letter(r"\boxed{A. " + "\n" * 50_000 + "x}")
    letter("The answer is A" + ", A" * 50_000 + "x")
    assert time.process_time() - start < 2


def test_texts():
    assert final_answer("a\n#### 1\nb #### 2 \nend") == "2"
    assert final_answer("none") == "none"
    assert final_answer("#### Step 1\nAdd.\n\\boxed{5}") == "5"  # a heading
    assert final_answer("\\boxed{4}\n#### 5") == "5"
    assert boxed(r"\boxed{5\ }") == "5"  # a control space, of which the backslash would be left
    assert [final_answer(text) for text in ("so\n#### 18", r"thus \boxed{2}", " 27.0 ")] == ["18", "2", "27.0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{\textbf{D}}", "D"),
        ("The answer is (B).", "B"),
        ("Answer: **J**", "J"),
        ("answer: A. No: the answer is B", "B"),
        ("(A)", "A"),
        ("A", "A"),
        ("A dog", None),
        (r"The answer is A, so \boxed{17}", None),
        ("answer a question", None),
        (r"\boxed{C) 12 J}", "C"),
        (r"\boxed{\text{C. Paris}}", "C"),
        (r"\boxed{A = 5}", None),
        ("The answer is (C). I am confident in the answer I gave.", "C"),
        ("The answer I arrive at is: the answer is (D).", "D"),
        ("Answer: I think the answer is C", "C"),
        ("The answer: I'm sure that answer (I) is right", "I"),
        ("The answer is I because it moves.", "I"),
        ("The answer is A as it moves.", "A"),
        ("Answer: A particle at rest", None),
        ("The answer: B is right", "B"),
        ("K", None),
        (r"\boxed{\text{Option C}}", "C"),
        (r"\boxed{\text{The answer is C}}", "C"),
        (r"\boxed{B. y}", "B"),
        (r"\boxed{\textbf{(B) }12}", "B"),
        (r"\boxed{\text{(B)}\ y}", "B"),
        (r"\boxed{$C$}", "C"),
        (r"\fbox{C}", "C"),
        ('"C"', "C"),
        ("$C$", "C"),
        ("C.", "C"),
        ("option (C)", "C"),
        ("The correct answer is option C", "C"),
        ("**Answer:** C", "C"),
        ("The best option is C", "C"),
        ("the answer choice is C", "C"),
        (r"The correct option is \textbf{C}", "C"),
        ("Therefore, (C) is the correct answer.", "C"),
        ("The answer is C because B is wrong", "C"),
        ("The answer is B, not C", "B"),
        ("The answer is B, C is wrong", "B"),
        ("The answer is B and I am sure", "B"),
        ("It is A or B. No: the answer is C.", "C"),
        ("B or C", None),
        (r"\boxed{B or C}", None),
        (r"\boxed{\text{B or C}}", None),
        (r"\boxed{B \text{ and } C}", None),
        (r"\boxed{B, C}", None),
        (r"\boxed{BC}", None),
        (r"\boxed{B. or C.}", None),
        ("The answer is (B) or (C)", None),
        ("The answer is B/C", None),
        ("The answer is A, B, C, D.", None),
        ("The answer is A, B and C.", None),
        ("The answer is A B C D", None),
        ("The answer is (A),(B),(C),(D)", None),
        ("The answer is B, C, D are wrong", "B"),
        (r"\boxed{A. B. C. D.}", None),
        (r"\boxed{A) w, B) x}", None),
        (r"\boxed{A: w; B: x}", None),
        (r"\boxed{\text{(D) All of (A), (B) and (C)}}", "D"),
        (r"\boxed{A. B. F. Skinner}", "A"),
        (r"\boxed{A. hepatitis B, hepatitis C}", "A"),
        (r"\boxed{A. Vitamin A, C. elegans}", "A"),
        (r"\boxed{D) (A), (B)}", "D"),
        ("Option B is wrong. Option D is too slow.", None),
        ("the answer is not B", None),
        ("I think", None),
        (r"\boxed{c}", None),
    ],
)
def test_letters(text, expected):
    assert letter(text) == expected


@pytest.mark.parametrize(("choices", "last"), [(2, "B"), (4, "D"), (10, "J"), (26, "Z")])
def test_there_are_as_many_letters_as_choices(choices, last):
    assert letter(last, choices) == letter(rf"\boxed{{{last}. y}}", choices) == last
    assert letter(f"The answer is {last}.", choices) == last
    assert choices == 26 or letter(chr(ord(last) + 1), choices) is None


# --- judges ----------------------------------------------------------------------------------------------


@needs_math_verify
@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{0.5}", r"\frac12", True),
        (r"\boxed{27}", "27.0", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{2n - 2}", "$2n-2$", True),
        (r"\boxed{5}", r"the answer is \boxed{5}", True),
        (r"\boxed{4} or \boxed{5}", "4", False),
        (r"\boxed{5} or \boxed{4}", "4", True),
        ("4", "4", False),
        (r"\boxed{}", "", False),
        (r"\boxed{4}", "5", False),
        (r"\boxed{-4}", "4", False),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", False),
        (r"\boxed{x}", "y", False),
        (r"\boxed{\frac{1}", "1", False),
    ],
)
def test_answers_are_compared_by_mathematics(response, answer, expected):
    assert is_correct(response, answer) is expected


@needs_math_verify
def test_nothing_is_said_about_time_limits(caplog):
    is_correct(r"\boxed{x + 1}", "1 + x")
    assert caplog.records == []


def test_choices():
    assert by_letter(r"\boxed{\text{(C)}}", "C")
    assert not by_letter(r"\boxed{C}", "D")
    assert not by_letter("nothing", "nothing")


@pytest.mark.parametrize("options", [{"options": list("wxyz")}, {"choices": {"text": list("wxyz")}}, {}])
@pytest.mark.parametrize(
    ("response", "gold", "earned"),
    [
        (r"\boxed{B. y}", "B", 1),
        (r"\boxed{\text{Option B}}", "B", 1),
        (r"\boxed{\text{(B)}}", "C", 0),
        (r"\boxed{B \text{ or } C}", "B", 0),
        (r"\boxed{B}", r"\text{(B)},", 1),
    ],
)
def test_letters_are_read_alike_in_training_and_evaluation(response, gold, earned, options):
    row = {"answer": gold, **options}
    assert Answer()(response, row) == earned
    assert by_letter(response, gold).correct == is_correct(response, gold) == bool(earned)


def test_choices_in_a_row_are_letters():
    row = {"answer": "B", "choices": list("wxyz")}
    assert Answer()("The answer is (B).", row) == 1  # as evaluation has it
    assert Answer()("The answer is (E).", row | {"answer": "E"}) == 0
    assert Answer()(r"\boxed{2}", {"answer": "2", "choices": list("1234")}) == 1
    assert Answer()(r"\boxed{L}", {"answer": "L", "choices": list(range(12))}) == 1


def test_the_text_of_a_choice_and_its_letter_are_right():
    row = {"answer": "Paris", "choices": ["Rome", "Paris"]}
    for said, earned in (("Paris", 1), ("B", 1), ("B. Paris", 1), ("A", 0), ("Rome", 0)):
        assert Answer()(rf"\boxed{{{said}}}", row) == earned
    assert Answer()(r"\boxed{B}", {"answer": "x", "choices": ["x", "x"]}) == 0  # none of them alone


def test_choices_by_their_letters():
    row = {"answer": "B", "options": {"A": "x", "B": "y"}}
    assert choices_of(row) == (["x", "y"], ["A", "B"])
    assert choices_of({"options": {**row["options"], "C": None}}) == choices_of(row)  # as parquet has them
    assert Answer()("The answer is (B).", row) == 1


def judged(response, row):
    return Verdict(response == row["answer"], f"it says {response}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_verdict_is_a_reward_with_a_reason(workers):
    with Reward(judged, workers=workers) as reward:
        scores = reward.score(["a", "b"], [{"answer": "a"}] * 2)
    assert scores.values.tolist() == [1, 0]
    assert scores.reasons == ["it says a", "it says b"]


def test_failures_can_be_kept_out_of_the_log(caplog):
    reward = Reward(obey, workers=0, quiet=True)
    assert reward.score(["raise"], [{}]).failures[0].startswith("raised KeyError")
    assert reward.failures["raised KeyError"] == 1
    assert caplog.records == []


# --- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_rewards_are_in_the_order_of_the_responses(workers):
    with Reward(obey, workers=workers) as reward:
        responses, rows = [str(i) for i in range(30)], [{"times": i % 3} for i in range(30)]
        scores = reward.score(responses, rows)
        np.testing.assert_array_equal(scores.values, [i * (i % 3) for i in range(30)])
        np.testing.assert_array_equal(reward(responses, rows), scores.values)
        assert scores.values.dtype == np.float64
        assert scores.reasons == [""] * 30
        assert scores.failures == {}
        assert not reward.failures
        assert reward([], []).shape == (0,)


def test_each_failure_costs_its_sample(reward, caplog):
    """One that raises, sleeps, computes for ever, dies or is killed, and all others are judged."""
    responses = [
        "1",
        "raise",
        "2",
        "sleep",
        "3",
        "compute",
        "die",
        "4",
        "kill",
        "nan",
        "text",
        "memory",
        "5",
        "exit",
    ]
    scores = reward.score(responses, [{}] * len(responses))
    np.testing.assert_array_equal(scores.values, [float(x) if x.isdigit() else 0 for x in responses])
    reasons = {responses[index]: reason for index, reason in scores.failures.items()}
    assert set(reasons) == {x for x in responses if not x.isdigit()}
    assert reasons["raise"] == "raised KeyError: KeyError: 'nothing here'"
    assert reasons["sleep"] == reasons["compute"] == "took too long: more than 3 s"
    assert reasons["die"] == "ended its process: exit code 3"
    assert reasons["kill"] == "ended its process: exit code -9"
    assert reasons["nan"] == "returned no finite number: nan"
    assert reasons["text"].startswith("raised ValueError")
    assert reasons["exit"] == "raised SystemExit: 'enough'"
    if sys.platform == "linux":
        assert reasons["memory"].startswith("raised MemoryError")
    assert reward.failures["took too long"] == 2
    assert reward.failures["ended its process"] == 2
    assert reward.failures["raised KeyError"] == 1
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == len(reward.failures)  # once for each kind
    assert any("took too long (2 in this batch" in text and "'sleep'" in text for text in told)
    np.testing.assert_array_equal(reward(["6", "7"], [{}, {}]), [6, 7])
    assert len(judges()) <= 2


@needs_math_verify
def test_expressions_without_end():
    """What math-verify's own limit, a signal, does not stop."""
    with Reward(Answer(), workers=1, seconds=3.0) as reward:
        responses = [r"\boxed{\frac{20}{2}}", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{\frac{20}{2}}"]
        np.testing.assert_array_equal(reward(responses, [{"answer": "10"}] * 3), [1, 0, 1])
        assert sum(reward.failures.values()) == 1


def wait_for_end(pid):
    """Of a process that may be nobody's child, and so stay a zombie."""
    until = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the process is still there"
        time.sleep(0.1)


def test_processes_stay_are_light_and_end_with_the_rest(reward, tmp_path):
    first = reward(["where"] * 8, [{}] * 8)
    second = reward(["where"] * 8, [{}] * 8)
    assert set(second) <= {p.pid for p in judges()}
    assert set(first) & set(second)
    assert reward(["modules"], [{}]) == 0  # neither torch nor transformers
    reward(["child"], [{"file": str(tmp_path / "pid")}])
    wait_for_end(int((tmp_path / "pid").read_text()))
    mine = {p.pid for p in multiprocessing.active_children()}
    assert {p.pid for p in judges()} <= mine  # what a function had started went with it
    reward.close()
    assert judges() == []
    assert reward(["8"], [{}]) == 8  # it starts again


def test_outside_the_main_thread_and_without_close():
    found = []

    def work():
        reward = Reward(obey, workers=1, seconds=1.0)
        found.append(reward(["3", "sleep"], [{}, {}]).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    assert found == [[3.0, 0.0]]
    assert judges() == []


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from entropyfloor.language.rewards import Reward
from test_language_rewards import obey

if __name__ == "__main__":
    reward = Reward(obey, workers=1, seconds=1.0)
    print(int(reward(["where"], [{{}}])[0]), flush=True)
    if sys.argv[1] == "killed":
        import threading
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        reward(["compute"], [{{}}])
"""


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_no_process_is_left_behind(how, tmp_path):
    """Not by a program that forgets to close, nor by one that is killed while a function is stuck."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, file, how], capture_output=True, text=True, timeout=500)
    assert done.returncode == (0 if how == "ends" else -signal.SIGKILL)
    assert done.stderr == ""
    wait_for_end(int(done.stdout))


def test_an_interrupt_leaves_no_answers_behind(reward, monkeypatch):
    np.testing.assert_array_equal(reward(["1", "2"], [{}, {}]), [1, 2])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("entropyfloor.language.rewards.pool.wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reward(["3", "4"], [{}, {}])
    assert judges() == []
    np.testing.assert_array_equal(reward(["5", "6"], [{}, {}]), [5, 6])


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(ValueError, match=r"cannot be sent to another process .* top level of a module"):
        Reward(lambda response, row: 0.0)
    assert Reward(lambda response, row: 1.0, workers=0)(["a"], [{}]) == 1
    with Reward(Unreadable(), workers=1) as reward, pytest.raises(ValueError, match="cannot be imported where"):
        reward(["a"], [{}])
    assert judges() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -1}, "workers=-1 must be 0"),
        ({"seconds": 0.0}, "seconds=0.0 must be above 0"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Reward(obey, **arguments)


def test_a_row_for_each_response():
    with pytest.raises(ValueError, match="2 responses and 1 rows"):
        Reward(obey, workers=0)(["1", "2"], [{}])
