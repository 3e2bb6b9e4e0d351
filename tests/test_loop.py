"""The frame of every training loop: signals, locks, the hint how to go on, and the finite check."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from entropyfloor.runs import Run, read_run
from entropyfloor.runs.loop import check_finite, resume_hint, training_loop


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"domain": "vision", "seed": 3})


def frame(run, **options):
    return training_loop([run], total=10, domain="vision", seed=3, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_loop_save_and_stop(run, number):
    steps = []

    def train():
        with frame(run) as loop:
            for step in range(1, 10):
                if loop.stopping:
                    break
                steps.append(step)
                if step == 2:
                    os.kill(os.getpid(), number)
            run.save(steps[-1], {"a": np.zeros(1)}, {})

    with pytest.raises(KeyboardInterrupt) as stop:
        train()
    assert steps == [1, 2]
    assert read_run(run.path).status["state"] == "interrupted"
    assert f"entropyfloor train vision --resume {run.path}" in str(stop.value)
    assert "saved at step 2" in str(stop.value)


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)])
def test_a_second_signal_stops_at_once(run, numbers):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    reached = []

    def train():
        with frame(run):
            os.kill(os.getpid(), numbers[0])
            os.kill(os.getpid(), numbers[0])  # passed on by a launcher: one Ctrl-C all the same
            time.sleep(1.1)
            reached.append("the grace second is over")
            os.kill(os.getpid(), numbers[1])
            pytest.fail("the second signal did not stop the loop")

    with pytest.raises(KeyboardInterrupt) as stop:
        train()
    assert "--resume" in str(stop.value)
    assert reached
    assert read_run(run.path).status["state"] == "interrupted"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_end_and_a_failure_leave_their_status(run):
    with frame(run) as loop:
        loop.progress.advance(10)
    assert read_run(run.path).status["state"] == "finished"
    with pytest.raises(ZeroDivisionError), training_loop([run], total=1, domain="vision", seed=0):
        _ = 1 / 0
    assert read_run(run.path).status["state"] == "failed"


def test_a_directory_that_is_being_written_is_refused(run):
    with (
        frame(run),
        pytest.raises(ValueError, match="another process is writing"),
        training_loop([Run.open(run.path)], total=1, domain="vision", seed=0),
    ):
        pass


def test_a_thread_that_cannot_handle_signals_trains_all_the_same(run):
    states = []

    def work():
        with frame(run) as loop:
            states.append(loop.stopping)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert states == [False]
    assert read_run(run.path).status["state"] == "finished"


def test_the_hint_names_every_run_and_the_step_that_all_have(tmp_path):
    runs = [Run.create(tmp_path / name, {"seed": 0}) for name in "ab"]
    assert "nothing is saved yet" in resume_hint(runs, "control")
    for run, step in zip(runs, (20, 10), strict=True):
        run.save(step, {"a": np.zeros(1)}, {})
    hint = resume_hint(runs, "control")
    assert "step 10;" in hint
    assert all(f"entropyfloor train control --resume {run.path}" in hint for run in runs)
    named = Run.create(tmp_path / "a run", {"seed": 0})
    assert shlex.split(resume_hint([named], "control"))[-1] == str(named.path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_networks(run, bad):
    metrics = {"grad_norm": bad, "loss/actor": bad, "reward": 1.0}
    with pytest.raises(FloatingPointError, match=r"loss/actor is .* at step 7") as error:
        check_finite(metrics, 7, run, lambda: {"weight": np.full(2, bad)})
    assert str(run.path / "failure" / "000000000007") in str(error.value)
    assert (run.path / "failure" / "000000000007" / "arrays.safetensors").exists()


def test_finite_numbers_cost_no_copy_of_the_networks(run):
    check_finite({"loss": 0.0}, 1, run, lambda: pytest.fail("the arrays are not needed"))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        check_finite({"loss": float("nan")}, 1, None, dict)


SEEDS = """
import signal, sys, time
from pathlib import Path
from entropyfloor.runs import Run
from entropyfloor.runs.loop import training_loop
from entropyfloor.runs.processes import each_in_its_process

def work(path):
    with training_loop([Run.create(Path(path), {"seed": 0})], total=1, domain="vision", seed=0) as loop:
        print("started", flush=True)
        while not (loop.stopping and sys.argv[1] == "saves"):
            time.sleep(0.01)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background process of a script ignores
    each_in_its_process(work, ["a", "b"], ["a", "b"], 2)
"""


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("does", "signals"),
    [("saves", [signal.SIGINT]), ("saves", [signal.SIGTERM]), ("hangs", [signal.SIGINT, signal.SIGTERM])],
)
def test_processes_are_asked_to_save_and_a_second_time_to_stop_at_once(does, signals, tmp_path):
    (tmp_path / "seeds.py").write_text(SEEDS)
    process = subprocess.Popen(
        [sys.executable, "seeds.py", does], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert [process.stdout.readline() for _ in range(2)] == [b"started\n"] * 2
    for number in signals:
        process.send_signal(number)
        time.sleep(1.5)
    out, err = process.communicate(timeout=90)
    assert process.returncode not in (0, -signal.SIGTERM), (out, err)
    states = [read_run(Path(tmp_path, name)).status["state"] for name in "ab"]
    assert states == ["interrupted"] * 2
