"""Plans: what runs take of time, memory and disk, and what is refused."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from entropyfloor.experiments import plan as plans
from entropyfloor.experiments import recipe, start
from entropyfloor.experiments.measure import Measured, _different_first, _pace, measure
from entropyfloor.experiments.plan import GIB, Plan
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.experiments.start import Study, plan_of, readable
from entropyfloor.runs import Run
from entropyfloor.runs.needs import Needs
from entropyfloor.runs.progress import PACE, Progress

NEEDS = Needs(
    {"sampling": {"weights": 3 * GIB, "libraries": GIB}, "update": {"weights": 3 * GIB, "gradients": 2 * GIB}},
    0,
    checkpoint=GIB,
    result=GIB // 2,
)


@pytest.fixture
def machine(monkeypatch):
    """A machine with 20 GiB of memory, 40 GiB of disk and no accelerator."""
    monkeypatch.setattr(plans.machine, "memory", lambda: 20 * GIB)
    monkeypatch.setattr(plans.machine, "device_memory", lambda: None)
    monkeypatch.setattr(plans, "_free", lambda path: 40 * GIB)


def runs(home, count=4, **settings):
    return [
        PlannedRun("one", seed, home / f"seed-{seed}", "control", {"steps": 100, **settings})
        for seed in range(count)
    ]


def plan(home, needs=NEEDS, workers=2, count=4, **settings):
    return Plan(runs(home, count, **settings), workers, dict.fromkeys(range(count), needs))


def begin(path, step, *, finished=False):
    """A run with a checkpoint of 4,000 bytes at a step."""
    run = Run.create(path, {"domain": "control", "seed": 0})
    with run.recording():
        run.save(step, {"x": np.zeros(1000, np.float32)}, {})
        if not finished:
            raise KeyboardInterrupt


def test_the_peak_is_that_of_the_worst_moment():
    assert NEEDS.peak[0] == "update"
    assert NEEDS.memory == 5 * GIB
    assert NEEDS.disk == 2.5 * GIB


def test_memory_is_that_of_runs_at_a_time_and_disk_that_of_all(tmp_path, machine):
    found = plan(tmp_path)
    assert found.memory == 10 * GIB
    assert found.disk == 4 * 2.5 * GIB + 2 * GIB
    found.check()
    assert plan(tmp_path, workers=9).memory == 20 * GIB  # of four runs no more than four go on


def test_what_is_there_already_does_not_count(tmp_path, machine):
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "seed-0", 25)
    begin(tmp_path / "seed-1", 100, finished=True)
    found = dataclasses.replace(plan(tmp_path), states={0: "interrupted", 1: "finished"})
    assert found.left == [0, 2, 3]
    written = sum(file.stat().st_size for file in (tmp_path / "seed-0/checkpoints").glob("*/*"))
    assert written > 4000
    assert found.disk == 3 * 2.5 * GIB + 2 * GIB - written
    assert "3 to run, 1 of them begun, 1 finished before, 2 at a time" in found.lines()[0]
    timed = dataclasses.replace(found, workers=1, seconds={2: 200.0})
    assert timed.time == 200.0 * (0.75 + 1 + 1)


def test_a_checkpoint_that_goes_while_it_is_looked_at_does_not_count(tmp_path):
    """As another command that writes the run removes it."""
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "seed-0", 25)
    before = plans._written(tmp_path / "seed-0")
    (tmp_path / "seed-0/checkpoints" / f"{25:012d}" / "gone").symlink_to("nowhere")
    assert plans._written(tmp_path / "seed-0") == before > 4000


def test_runs_that_were_not_measured_take_as_long_as_those_of_their_arm(tmp_path):
    planned = [PlannedRun(arm, 0, tmp_path / arm, "control", {"steps": 1}) for arm in ("a", "b", "a", "c")]
    found = Plan(planned, 1, dict.fromkeys(range(4), "unknown"), {0: 10.0, 1: 30.0})
    assert found.time == 10 + 30 + 10 + 20
    assert Plan(planned, 4, found.needs, {0: 10.0, 1: 30.0}).time == 30  # not before the longest
    assert Plan(planned, 4, found.needs).time is None


@pytest.mark.parametrize(
    ("needs", "settings", "message"),
    [
        (
            NEEDS,
            {"workers": 5, "count": 5},
            "5 runs at a time need 25 GiB, and this machine has 20 GiB for them: give --workers 4",
        ),
        (
            NEEDS._replace(moments={"training": {"replay": 30 * GIB, "libraries": GIB}}),
            {},
            "a run needs 31 GiB at its training, 30 GiB of them for replay, and this machine has 20 GiB for it: "
            "give --set replay_capacity=…, or a machine with more",
        ),
        (
            NEEDS._replace(checkpoint=20 * GIB),
            {"workers": 1},
            "the runs will write 182 GiB, and 40 GiB are free at",
        ),
        (NEEDS._replace(host=15 * GIB), {}, "writing checkpoints needs 30 GiB of the host's memory"),
    ],
)
def test_what_does_not_fit_is_refused(needs, settings, message, tmp_path, machine):
    with pytest.raises(ValueError, match=r"GiB") as refusal:
        plan(tmp_path, needs, **settings).check()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("parts", "way"),
    [
        ({"replay": 18, "networks": 9}, "--set replay_capacity=…"),
        ({"weights": 12, "keys and values": 14}, "--set sample_batch=… or max_new_tokens=…"),
        ({"weights": 26, "replay": 0}, "a smaller model"),  # PPO has none
        ({"weights": 24, "activations": 2}, "a smaller model"),  # fewer activations would not be enough
    ],
)
def test_the_way_out_is_one_that_helps(parts, way, tmp_path, machine):
    needs = NEEDS._replace(moments={"training": {name: size * GIB for name, size in parts.items()}})
    with pytest.raises(ValueError, match=f"give {re.escape(way)}, or a machine with more"):
        plan(tmp_path, needs).check()


def test_an_accelerator_has_memory_of_its_own(tmp_path, machine, monkeypatch):
    on_device = NEEDS._replace(host=GIB)
    plan(tmp_path, on_device).check()
    monkeypatch.setattr(plans.machine, "device_memory", lambda: 8 * GIB)
    with pytest.raises(ValueError, match=r"this device has 8\.00 GiB for them: give --workers 1"):
        plan(tmp_path, on_device).check()


def test_what_is_not_known_is_said_and_not_refused(tmp_path, machine):
    found = Plan(runs(tmp_path, 2), 1, {0: NEEDS, 1: "needs of x: it is not installed"})
    found.check()
    assert found.lines()[-1] == "unknown needs of x: it is not installed"
    assert "--measure" in found.lines()[1]
    assert Plan(runs(tmp_path, 1), 1, {0: "no"}).lines()[2:] == ["unknown no"]


# --- the measurement -------------------------------------------------------------------------------------


def test_a_pace_is_that_of_the_last_kind_of_work(tmp_path):
    file = tmp_path / "pace"
    assert _pace(file) == (None, 0.0)
    file.write_text("1.0 1.0 0 1000 0.5 0.0\n1.0 2.0 50 1000 0.5 0.0\n5.0 5.0 100 1000 0.5 0.0\n")
    assert _pace(file) == (None, 0.0)  # the updates have begun, and none is done
    with file.open("a") as more:
        more.write("5.0 9.0 120 1000 0.75 0.25\n5.0 9.5 13")  # a line that is being written
    whole = Measured(1000 * 4.0 / 20, 0.75, 0.25)  # whatever is done when the pace changes
    assert _pace(file) == (whole, 4.0)


def test_the_measured_memory_stands_below_the_estimate(tmp_path, monkeypatch):
    found = Plan(runs(tmp_path, 2), 1, {0: NEEDS, 1: NEEDS})
    assert not [line for line in found.lines() if "measured" in line]
    for device, most in ((0.0, "1.25 GiB"), (0.75, "0.75 GiB of a device, and 1.25 of the host")):
        trials = {0: Measured(60.0, 0.5, device), 1: Measured(60.0, 1.25, 0.0)}
        monkeypatch.setattr(plans, "measure", lambda runs, workers, trials=trials: trials)
        estimate, measured = [line for line in found.timed().lines() if line.startswith(("memory", " "))]
        assert estimate.startswith("memory")
        assert measured.strip() == f"measured: at most {most} in a run that trained for some seconds"


def test_evaluations_take_no_time_of_the_training(tmp_path):
    planned = runs(tmp_path, 2)
    planned[1] = dataclasses.replace(planned[1], mode="evaluate")
    assert Plan(planned, 1, dict.fromkeys(range(2), "unknown"), {0: 10.0}).time == 10


def test_arms_of_the_same_name_are_measured_in_each_recipe(tmp_path):
    planned = [
        PlannedRun("plain", seed, tmp_path / f"{name}-{seed}", "vision", {"recipe": f"vision/{name} cpu plain"})
        for name in ("imagenet", "cifar10")
        for seed in (0, 1, 2)
    ]
    assert _different_first(planned) == [0, 3]
    assert Plan(planned, 1, dict.fromkeys(range(6), "unknown"), {0: 10.0, 3: 1.0}).time == 3 * 10 + 3 * 1


def test_a_measurement_without_a_result_is_said(tmp_path, machine, monkeypatch):
    """Where the data are missing, for example, no run trains."""
    monkeypatch.setattr(plans, "measure", lambda *_: {})
    assert plan(tmp_path).timed().lines()[1] == (
        "time    not known: no run had trained long enough when the measurement ended"
    )


def test_needs_of_finished_runs_are_not_counted(tmp_path):
    planned = runs(tmp_path, 3)
    begin(tmp_path / "seed-1", 100, finished=True)
    study = Study(recipe.load("control/sac-gym"), tmp_path, planned)
    counted = []

    def count(some):
        counted.append([run.seed for run in some])
        return {i: NEEDS._replace(checkpoint=run.seed) for i, run in enumerate(some)}

    found = plan_of([study], 2, count, readable([study])[1])
    assert counted == [[0, 2]]
    assert {i: needs.checkpoint for i, needs in found.known.items()} == {0: 0, 2: 2}
    for seed in (0, 2):
        begin(tmp_path / f"seed-{seed}", 100, finished=True)
    done = plan_of([study], 2, count, readable([study])[1])
    assert done.lines()[0] == "runs    0 to run, 3 finished before, 2 at a time"
    assert done.of([1, 2]).left == []
    assert len(counted) == 1


def test_a_damaged_run_is_left_out_with_the_reason(tmp_path):
    study = Study(recipe.load("control/sac-gym"), tmp_path, runs(tmp_path, 3))
    for seed in (0, 1):
        begin(tmp_path / f"seed-{seed}", 100, finished=True)
    (tmp_path / "seed-1" / "status.json").write_text("{")
    studies, states, damaged = readable([study])
    assert [run.seed for run in studies[0].runs] == [0, 2]
    assert states == {tmp_path / "seed-0": "finished"}
    assert list(damaged) == [tmp_path / "seed-1"]
    assert f"{tmp_path / 'seed-1' / 'status.json'} is damaged" in damaged[tmp_path / "seed-1"]
    assert readable([dataclasses.replace(study, runs=study.runs[1:2])])[0] == []


@pytest.mark.parametrize(
    "error", [OSError("the disk is full"), RuntimeError("1 of 1 runs failed"), ValueError("x")]
)
def test_a_recipe_that_fails_does_not_stop_the_others(error, tmp_path, monkeypatch):
    """Where all are asked for; the end names it."""
    studies = [
        Study(recipe.load(name), tmp_path / name, runs(tmp_path / name, 1))
        for name in ("control/sac-gym", "control/ppo-gym")
    ]
    started = []

    def reproduce(planned, workers, engine):
        started.append(planned[0].out.parent.name)
        if len(started) == 1:
            raise error

    monkeypatch.setattr(start, "reproduce", reproduce)
    with pytest.raises(type(error), match=str(error)):
        list(start.run(studies, 1, "local"))
    started.clear()
    with pytest.raises(RuntimeError, match=f"^control/sac-gym: {error}$"):
        list(start.run(studies, 1, "local", go_on=True))
    assert started == ["sac-gym", "ppo-gym"]


@pytest.mark.parametrize("total", ["81920", "8192\n81920", "[N/A]"])
def test_memory_of_an_accelerator_is_known_or_not(total, monkeypatch):
    """Some share the memory of the host, and have no number."""
    monkeypatch.setattr(plans.machine, "_output", lambda *command: total)
    expected = {"81920": 80 * GIB, "8192\n81920": 8 * GIB}.get(total)
    assert plans.machine.device_memory() == (expected and int(0.9 * expected))


def test_progress_notes_its_pace_where_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv(PACE, str(tmp_path / "pace"))
    with Progress(10) as progress:
        progress.restart(0)
        progress.busy(0, "compiling")
        progress.restart(2)
        progress.advance(3)
        progress.advance(4)
    lines = [line.split() for line in (tmp_path / "pace").read_text().splitlines()]
    assert all(0.01 < float(memory) < 100 for *_, memory, _ in lines)
    assert [(done, total) for _, _, done, total, *_ in lines] == [
        ("0", "10"),
        ("2", "10"),
        ("3", "10"),
        ("4", "10"),
    ]
    assert len({since for since, *_ in lines}) == 2


def test_different_arms_are_measured_first(tmp_path):
    planned = [
        PlannedRun(arm, seed, tmp_path / f"{arm}-{seed}-{env}", "control", {"env": env})
        for seed in (0, 1)
        for env in ("x", "y")
        for arm in ("a", "b")
    ]
    assert _different_first(planned) == [0, 1, 2, 3]  # a and b in x, then in y; no second seed
    planned[1] = dataclasses.replace(planned[1], devices=2)  # a process on each is not one to be measured
    planned[2] = dataclasses.replace(planned[2], mode="evaluate")
    assert _different_first(planned) == [0, 3, 5, 6]


TINY = {
    "task": "arithmetic",
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "prompts": 2,
    "samples": 2,
    "steps": 10_000,
    "warm_start_steps": 50,
    "warm_starts": "elsewhere",
    "threads": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_measurement_that_is_stopped_leaves_no_process(number, tmp_path):
    code = f"""
from pathlib import Path
from entropyfloor.experiments.measure import measure
from entropyfloor.experiments.recipe import PlannedRun
measure([PlannedRun("one", 0, Path("run"), "language", {TINY})], 1)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (trials := psutil.Process(process.pid).children()) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
    gone, left = psutil.wait_procs(trials, timeout=60)
    assert gone
    assert not left
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_measurement_trains_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = PlannedRun(
        "one", 0, tmp_path / "run", "language", TINY, known=frozenset({"warm_start_steps", "eval_problems"})
    )
    found = measure([run], workers=1, budget=120)
    assert 10 < found[0].seconds < 100_000
    assert 0.1 < found[0].memory < 10
    assert list(tmp_path.iterdir()) == []
