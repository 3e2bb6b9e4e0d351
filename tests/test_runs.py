"""A run directory survives what happens to it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from entropyfloor.runs import Run, find_runs, machine, read_run
from entropyfloor.runs.again import check_same
from entropyfloor.runs.progress import Progress

CONFIG = {"domain": "control", "agent": "sac", "seed": 3, "alpha": 1.0, "head": None}


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", CONFIG)


def test_what_is_written_is_read(run):
    with run.recording():
        assert read_run(run.path).status["state"] == "running"
        run.log(0, {"return": 1.5, "floor": -3.0})
        run.log(10, {"return": float("nan")})
    record = read_run(run.path)
    assert record.config == {name: value for name, value in CONFIG.items() if value is not None}
    assert record.status["state"] == "finished"
    assert record.status["step"] == 10
    assert record.names == {"return", "floor"}
    steps, values = record.series("return")
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_array_equal(values, [1.5, np.nan])
    assert record.series("alpha")[0].shape == (0,)
    assert {"versions", "hardware", "command", "commit", "started"} <= set(record.machine)
    assert find_runs(run.path.parent) == [run.path]


def test_a_name_outside_the_vocabulary_is_refused(run):
    with pytest.raises(ValueError, match=r"reutrn.*vocabulary"):
        run.log(0, {"reutrn": 1.0})


def test_a_second_run_does_not_overwrite_the_first(run):
    with pytest.raises(ValueError, match="holds a run already"):
        Run.create(run.path, CONFIG)


def test_one_process_at_a_time(run):
    with run.recording(), pytest.raises(ValueError, match="another process"), Run.open(run.path).recording():
        pass


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [(KeyboardInterrupt(), "interrupted", "user"), (FloatingPointError("loss is nan"), "failed", "loss is nan")],
)
def test_the_status_tells_how_it_ended(run, error, state, reason):
    with pytest.raises(type(error)), run.recording():
        raise error
    status = read_run(run.path).status
    assert status["state"] == state
    assert reason in status["reason"]


def test_a_half_written_line_is_ignored_and_a_resume_goes_on_behind_it(run):
    run.log(1, {"return": 1.0})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ret')
    assert read_run(run.path).series("return")[0].tolist() == [1]
    continued = Run.open(run.path)
    assert continued.resume() is None
    continued.log(1, {"return": 4.0})
    assert read_run(run.path).series("return")[1].tolist() == [4.0]


def test_a_damaged_line_in_the_middle_is_named(run):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "return": 1.0}\nnonsense\n{"step": 2, "return": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_run(run.path)


def test_a_resume_supersedes_what_was_logged_after_the_checkpoint(run):
    for step in (1, 2, 3):
        run.log(step, {"return": float(step)})
        if step == 2:
            run.save(step, {}, {})
    continued = Run.open(run.path)
    assert continued.resume().step == 2
    continued.log(3, {"return": 30.0})
    assert read_run(run.path).series("return")[1].tolist() == [1, 2, 30]
    seconds = [json.loads(line)["seconds"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)  # the wall clock goes on where it stopped


def test_checkpoints_return_what_was_saved_and_only_the_last_two_stay(run):
    rng = np.random.default_rng(7)
    arrays = {"a": rng.normal(size=(3, 2)), "b": np.arange(3, dtype=np.uint32), "c": np.float32(1.5)}
    for step in (1, 20, 300):
        run.save(step, arrays, {"rng": rng.bit_generator.state})
    assert [int(path.name) for path in run.checkpoints()] == [20, 300]
    checkpoint = run.latest()
    assert checkpoint.step == 300
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], array)
        assert checkpoint.arrays[name].dtype == array.dtype
        assert checkpoint.arrays[name].shape == array.shape
    restored = np.random.default_rng()
    restored.bit_generator.state = checkpoint.state["rng"]
    assert restored.random() == rng.random()


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("arrays.safetensors", flip, "checksum"),
        ("arrays.safetensors", lambda data: data[: len(data) // 2], "checksum"),
        ("state.json", lambda data: data[:5], "cannot be used"),
        ("state.json", lambda data: data.replace(b'"format": 2', b'"format": 9'), "format is 9"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_reason(run, file, damage, reason):
    path = run.save(5, {"a": np.ones(4)}, {}) / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=reason):
        run.latest()


def test_a_step_is_saved_once(run):
    path = run.save(5, {"a": np.ones(4)}, {})
    before = (path / "arrays.safetensors").stat().st_mtime_ns
    assert run.save(5, {"a": np.ones(4)}, {}) == path
    assert (path / "arrays.safetensors").stat().st_mtime_ns == before


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_one(run, monkeypatch):
    def killed(path, **_):
        (path / "state.json").unlink(missing_ok=True)
        raise SystemExit

    for step in (1, 2):
        run.save(step, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(SystemExit):
            run.save(3, {}, {})
    assert [int(path.name) for path in run.checkpoints()] == [2, 3]
    assert run.latest().step == 3
    run.save(4, {}, {})
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [f"{3:012d}", f"{4:012d}"]


def test_a_failure_leaves_its_traceback(run):
    with pytest.raises(ZeroDivisionError), run.recording():
        _ = 1 / 0
    assert "_ = 1 / 0" in (run.path / "error.txt").read_text()


def test_a_program_that_hangs_does_not_stop_a_run(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("subprocess.run", hang)
    assert machine.describe()["hardware"]["gpu"] is None


def test_a_half_written_checkpoint_does_not_count(run):
    run.save(1, {"a": np.ones(1)}, {})
    partial = run.path / "checkpoints" / ".000000000002.partial"
    partial.mkdir()
    (partial / "arrays.safetensors").write_bytes(b"half")
    assert run.latest().step == 1
    run.save(2, {"a": np.zeros(1)}, {})
    assert run.latest().step == 2


WRITER = """
import sys, numpy as np
from pathlib import Path
from entropyfloor.runs import Run
run = Run.create(Path(sys.argv[1]), {"seed": 0})
with run.recording():
    for step in range(10**9):
        run.log(step, {"return": float(step)})
        run.save(step, {"weight": np.full(5000, step)}, {"step": step})
"""


def test_a_kill_at_any_moment_leaves_a_run_that_can_be_read_and_resumed(tmp_path):
    rng = np.random.default_rng(0)
    for trial in range(4):
        path = tmp_path / str(trial)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], env={**os.environ, "PYTHONPATH": "src"})
        while not (path / "checkpoints").exists() or len(list((path / "checkpoints").glob("0*"))) < 2:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        steps, _ = read_run(path).series("return")
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
        assert read_run(path).status["state"] == "killed"
        run = Run.open(path)
        checkpoint = run.resume()
        assert len(steps) - 3 <= checkpoint.step <= len(steps)
        assert (checkpoint.arrays["weight"] == checkpoint.state["step"]).all()
        with run.recording():
            run.log(checkpoint.step + 1, {"return": 0.0})
        assert read_run(path).status["state"] == "finished"


def test_what_is_no_run_is_said_so(tmp_path):
    with pytest.raises(ValueError, match=r"there is no config\.toml"):
        Run.open(tmp_path)
    with pytest.raises(ValueError, match="no run in"):
        find_runs(tmp_path)
    with pytest.raises(ValueError, match="not a directory"):
        find_runs(tmp_path / "absent")
    (tmp_path / "config.toml").write_text("seed = ")
    with pytest.raises(ValueError, match=r"config\.toml is damaged"):
        Run.open(tmp_path)


def test_the_machine_is_described():
    found = machine.describe()
    assert found["versions"]["numpy"] == np.__version__
    assert found["hardware"]["cores"] == os.cpu_count()
    assert found["hardware"]["memory_gb"] > 0


def test_a_run_whose_files_were_moved_is_told_how_to_go_on(tmp_path):
    Run.create(tmp_path / "run", {"seed": 0, "data_dir": "here"})
    with pytest.raises(
        ValueError, match=r"if only files were moved, go on with --resume \S*run --data-dir there$"
    ):
        check_same(tmp_path / "run", {"seed": 0, "data_dir": "there"})
    with pytest.raises(ValueError, match=r"another --out$"):
        check_same(tmp_path / "run", {"seed": 1, "data_dir": "here"})


# --- progress --------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    passed = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: passed[0])
    return passed


def test_progress_tells_speed_and_the_time_left(clock, capsys):
    with Progress(10_000, label="seed 1") as progress:
        progress.report(2_000, "nothing yet")
        progress.advance(2_000)  # a run that goes on: what was done before took no time
        clock[0] = 10.0
        progress.advance(4_000)
        progress.report(4_000, "return 3.1")
        clock[0] = 800.0
        progress.report(6_000, "return 3.2")
        progress.restart(6_000)
        progress.report(6_000, "return 3.3")
        clock[0] += 9_000.0
        progress.report(9_000, "return 3.4")
    assert capsys.readouterr().out.splitlines() == [
        "seed 1 · 2,000/10,000 steps · nothing yet · starting",
        "seed 1 · 4,000/10,000 steps · return 3.1 · 200 steps/s · 0:00:30 left",
        "seed 1 · 6,000/10,000 steps · return 3.2 · 5.0 steps/s · 0:13:20 left",
        "seed 1 · 6,000/10,000 steps · return 3.3 · starting",
        "seed 1 · 9,000/10,000 steps · return 3.4 · 3.0 s/step · 0:50:00 left",
    ]


def test_a_terminal_shows_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(40, unit="problems", every=1) as progress:
        progress.advance(0)
        progress.report(0, "avg@4 50 %")
        clock[0] = 5.0
        progress.advance(10)
        progress.report(10, "avg@4 55 %")
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "10/40 problems · avg@4 55 % · 2.0 problems/s · 0:00:15 left" in said


def test_what_takes_its_time_is_said_once_and_a_terminal_shows_how_far_it_is(clock, capsys, monkeypatch):
    with Progress(40) as progress:
        progress.busy(10, "compiling", ", 1")
        progress.busy(10, "compiling", ", 2")
        progress.report(10, "return 3")
        progress.restart(10)
        clock[0] = 5.0
        progress.report(20, "return 4")
    assert capsys.readouterr().out.splitlines() == [
        "10/40 steps · compiling",
        "10/40 steps · return 3 · compiling, 2",
        "20/40 steps · return 4 · 2.0 steps/s · 0:00:10 left",
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(40, evaluation="") as progress:
        progress.busy(10, "filming", ", 2 frames")
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "10/40 steps · filming, 2 frames" in said


def test_a_reader_who_goes_ends_no_run():
    code = (
        "import sys\nfrom entropyfloor.runs.progress import Progress\n"
        "with Progress(10**6) as progress:\n"
        "    for i in range(5000):\n        progress.report(i, 'much to tell')\n"
        "print('done', file=sys.stderr)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert b"much to tell" in run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b"done\n"
        assert run.wait() == 0
