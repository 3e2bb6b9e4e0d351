"""A run directory survives what happens to it."""

import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from safetensors import SafetensorError

from entropyfloor.runs import Run, find_runs, machine, read_run
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import check_same
from entropyfloor.runs.vocabulary import QUANTITIES
from run_files import with_header

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


# --- beginning, and who may write ------------------------------------------------------------------------


def test_of_two_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    """Both are past their look at the directory before either has written its settings."""
    both = threading.Barrier(2)

    def meet():
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return {}

    def begin(seed):
        try:
            began.append(Run.create(tmp_path / "run", {"seed": seed}).config["seed"])
        except ValueError as error:
            refused.append(str(error))

    began, refused = [], []
    monkeypatch.setattr(machine, "describe", meet)
    threads = [threading.Thread(target=begin, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(began), len(refused)) == (1, 1)
    assert str(tmp_path / "run") in refused[0]
    assert read_run(tmp_path / "run").config == {"seed": began[0]}


def test_a_run_that_another_process_has_gone_on_with_is_not_written(run):
    other = Run.open(run.path)
    other.resume()
    with other.recording():
        other.log(1, {"return": 1.0})
    with pytest.raises(ValueError, match="another process has written"), run.recording():
        pass
    assert read_run(run.path).status["state"] == "finished"
    assert read_run(run.path).series("return")[0].tolist() == [1]


def test_a_kill_before_the_settings_are_written_leaves_a_directory_that_can_be_used(tmp_path, monkeypatch):
    def killed():
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(machine, "describe", killed)
        with pytest.raises(SystemExit):
            Run.create(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="no run in"):
        Run.open(tmp_path / "run")
    run = Run.create(tmp_path / "run", CONFIG)
    with run.recording():
        run.log(1, {"return": 1.0})
    assert read_run(run.path).status["state"] == "finished"


@pytest.mark.parametrize("left", ["metrics", "checkpoints"])
def test_what_is_left_of_a_run_is_not_mixed_with_a_new_one(run, left):
    run.log(1, {"return": 1.0}) if left == "metrics" else run.save(1, {}, {})
    (run.path / "config.toml").unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(run.path))} holds .*config\.toml"):
        Run.create(run.path, CONFIG)


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text(""), loop, lambda path: path.symlink_to("absent/absent/absent")]
)
@pytest.mark.parametrize("below", [False, True])
def test_a_place_that_cannot_hold_a_run_is_named(tmp_path, make, below):
    make(tmp_path / "place")
    path = tmp_path / "place" / "run" if below else tmp_path / "place"
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot hold a run"):
        Run.create(path, CONFIG)


def test_a_directory_of_somebody_else_is_named(tmp_path):
    tmp_path.chmod(0o500)
    before = os.geteuid()
    with suppress(PermissionError):  # root may write everywhere
        os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match="run cannot hold a run: Permission denied"):
            Run.create(tmp_path / "run", CONFIG)
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_who_holds_the_lock_for_a_moment_stops_no_writer(run, kind):
    """A report looks whether somebody writes; who begins a run where there is one looks for its settings."""
    with (run.path / "metrics.jsonl").open("rb") as file:
        fcntl.flock(file, kind)
        threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with run.recording():
            run.log(1, {"return": 1.0})
    assert read_run(run.path).status["state"] == "finished"


@pytest.mark.parametrize("value", ["a\x1bb", 2**64, [[[[[1]]]]]])
def test_what_could_not_be_read_again_is_not_begun(tmp_path, value):
    with pytest.raises(ValueError, match=r"^prompt is"):
        Run.create(tmp_path / "run", {"seed": 0, "prompt": value})
    assert not list(tmp_path.iterdir())


LOST = {
    "metrics.jsonl": lambda path: (path / "metrics.jsonl").unlink(),
    "another metrics.jsonl": lambda path: (path / "other").replace(path / "metrics.jsonl"),
    "cut metrics.jsonl": lambda path: os.truncate(path / "metrics.jsonl", 5),
    "config.toml": lambda path: (path / "config.toml").unlink(),
    "another config.toml": lambda path: (path / "config.toml").write_text("seed = 9\n"),
    "": lambda path: shutil.rmtree(path),
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
}


@pytest.mark.parametrize("what", LOST)
@pytest.mark.parametrize("then", ["log", "save", "end"])
def test_files_that_are_deleted_in_mid_run_are_told(run, what, then):
    go_on = {
        "log": lambda: run.log(2, {"return": 1.0}),
        "save": lambda: run.save(2, {"a": np.ones(2)}, {}),
        "end": lambda: None,
    }

    def train():
        with run.recording():
            run.log(1, {"return": 1.0})
            run.save(1, {"a": np.ones(2)}, {})
            (run.path / "other").write_bytes(b"")
            LOST[what](run.path)
            go_on[then]()

    with pytest.raises(RuntimeError, match="deleted, moved or replaced") as told:
        train()
    assert str(run.path) in str(told.value)
    if what in ("", "moved"):
        assert not run.path.exists()  # nor is it made anew
    else:
        assert what.split()[-1] in str(told.value)
        assert json.loads((run.path / "status.json").read_text())["state"] == "failed"


def test_metrics_that_are_gone_are_named_on_a_resume(run):
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        Run.open(run.path).resume()


FULL = """
import resource, signal, sys, numpy as np
from pathlib import Path
from entropyfloor.cli import guarded
from entropyfloor.runs import Run
def work(args):
    run = Run.create(Path(args[0]), {"seed": 0})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with run.recording():
        run.save(1, {"a": np.ones(10)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4090, 4090))
        for step in range(2, 10**6):
            run.log(step, {"return": 1.0}) if args[1] == "log" else run.save(step, {"a": np.ones(1000)}, {})
sys.exit(guarded(lambda: work(sys.argv[1:])))
"""


@pytest.mark.parametrize("doing", ["log", "save"])
def test_a_disk_that_is_full_is_told_in_a_line_and_leaves_a_run_that_can_be_resumed(tmp_path, doing):
    path = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", FULL, path, doing], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("failed: ")
    assert str(path) in done.stderr
    run = Run.open(path)
    assert run.resume().step == 1
    with run.recording():
        run.log(2, {"return": 1.0})
    assert read_run(path).series("return")[0].tolist() == [2]
    assert [step.name for step in (path / "checkpoints").iterdir()] == [f"{1:012d}"]


# --- metrics, status, checkpoints ------------------------------------------------------------------------


def test_a_resumed_run_keeps_the_larger_memory(run, monkeypatch):
    for now, most in (({"peak_memory": 2.0, "peak_memory/device": 0.5}, 2.0), ({"peak_memory": 1.0}, 2.0)):
        monkeypatch.setattr(machine, "peak_memory", lambda now=now: now)
        with Run.open(run.path).recording():
            pass
        status = read_run(run.path).status
        assert (status["peak_memory"], status["peak_memory/device"]) == (most, 0.5)
    monkeypatch.setattr(machine, "peak_memory", lambda: {"peak_memory": 3.0})
    with Run.open(run.path).recording():
        assert read_run(run.path).status["peak_memory"] == 2.0  # a kill leaves this one
    assert read_run(run.path).status["peak_memory"] == 3.0


def test_the_status_has_the_largest_memory_of_the_process(run):
    """Also of memory that was given back, in GiB; a run that goes on does not say it yet."""
    with run.recording():
        held = np.ones(2**25)  # 256 MiB
        most = psutil.Process().memory_info().rss / 2**30
        del held
        assert "peak_memory" not in read_run(run.path).status
    status = read_run(run.path).status
    assert most - 0.01 < status["peak_memory"] < most + 20
    assert set(status) - {"state", "reason", "step", "time"} <= {*QUANTITIES}
    assert machine.peak_memory()["peak_memory"] == pytest.approx(status["peak_memory"], abs=0.1)


def test_a_system_that_counts_memory_otherwise_is_measured_too(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t1 kB\n")
    known = machine.peak_memory()["peak_memory"]
    for file in ("status", "absent"):
        monkeypatch.setattr(machine, "PROCESS", tmp_path / file)
        assert machine.peak_memory()["peak_memory"] > known / 2


def test_a_run_ends_although_its_memory_cannot_be_measured(run, monkeypatch):
    def broken():
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(machine, "peak_memory", broken)
    with run.recording():
        pass
    assert read_run(run.path).status["state"] == "finished"


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
    with continued.recording():
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
    assert read_run(run.path).series("return")[1].tolist() == [1, 2, 3]  # what cannot be restored repeats nothing
    with continued.recording():
        continued.log(3, {"return": 30.0})
    assert read_run(run.path).series("return")[1].tolist() == [1, 2, 30]
    seconds = [json.loads(line)["seconds"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)  # the wall clock goes on where it stopped


def test_a_resume_from_an_earlier_checkpoint_removes_the_later_ones(run):
    """Else a kill, and a resume from the later one, would leave a hole in the metrics."""
    for step in (1, 2):
        run.log(step, {"return": float(step)})
        run.save(step, {}, {})
    continued = Run.open(run.path)
    assert continued.resume(limit=1).step == 1
    assert [int(path.name) for path in run.checkpoints()] == [1, 2]
    with continued.recording():
        assert [int(path.name) for path in run.checkpoints()] == [1]
    assert Run.open(run.path).resume().step == 1


def test_a_run_that_is_resumed_without_a_checkpoint_can_be_read_while_it_goes_on(run):
    run.log(5, {"return": 1.0})
    begun_again = Run.open(run.path)
    assert begun_again.resume() is None
    with begun_again.recording():
        record = read_run(run.path)
        assert record.status["step"] == 0
        assert record.series("return")[1].tolist() == []


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
        ("state.json", lambda data: data[:5], "checksum"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_reason(run, file, damage, reason):
    path = run.save(5, {"a": np.ones(4)}, {}) / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=reason):
        run.latest()


def flips(data):
    for place, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        yield bytes(damaged)


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "SHA256SUMS"])
def test_no_flipped_bit_of_a_checkpoint_is_continued_from(run, name):
    path = run.save(5, {"a": np.arange(3.0)}, {"rng": np.random.default_rng(1).bit_generator.state})
    whole = (path / name).read_bytes()
    loaded = 0
    for damaged in flips(whole):
        (path / name).write_bytes(damaged)
        try:
            run.latest()
            loaded += 1
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  thousands of times
    assert loaded == 0
    (path / name).write_bytes(whole)
    assert run.latest().step == 5


SAVING = """
import sys
from pathlib import Path
import numpy as np
from entropyfloor.runs import Run, machine

run = Run.create(Path(sys.argv[1]), {"seed": 0})
run.save(1, {"a": np.ones(4)}, {})  # with what the first call imports
arrays = {"a": np.ones(2**28, np.uint8), "b": np.ones(2**18)}
peak = lambda: machine.peak_memory()["peak_memory"] * 1024
before = peak()
run.save(2, arrays, {})
saved = peak()
run.latest()
print(saved - before, peak() - before)
"""


def test_a_checkpoint_is_written_without_a_copy_and_read_with_one(tmp_path):
    """Of 258 MiB."""
    command = [sys.executable, "-c", SAVING, str(tmp_path / "run")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    written, read = map(float, printed.split())
    assert written < 16
    assert 250 < read < 258 + 16


TOO_LARGE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from entropyfloor.runs import Run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Run.create(Path(sys.argv[1]), {"seed": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    run.save(1, {"a": np.ones(2**16)}, {})
except OSError as error:
    print(error)
"""


def test_arrays_that_the_disk_does_not_take_are_the_errors_of_the_system(tmp_path):
    command = [sys.executable, "-c", TOO_LARGE, str(tmp_path / "run")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == "[Errno 27] File too large\n"
    assert [*(tmp_path / "run" / "checkpoints").iterdir()] == []


def test_what_cannot_be_stored_is_no_error_of_the_system(run):
    with pytest.raises(SafetensorError, match="object"):
        run.save(1, {"a": np.array([None])}, {})


def test_who_can_read_one_file_of_a_checkpoint_can_read_all(run):
    path = run.save(5, {"a": np.arange(3.0)}, {})
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1


def test_the_checksums_are_those_that_sha256sum_reads(run):
    path = run.save(5, {"a": np.arange(3.0)}, {})
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True, capture_output=True)


@pytest.mark.parametrize("header", [{"step": "5"}, {"step": True}, {"step": None}, {"state": []}, {"state": None}])
def test_types_in_the_state_of_a_checkpoint_are_checked(run, header):
    path = run.save(5, {"a": np.arange(3.0)}, {"episode": 2})
    with_header(path, **header)
    with pytest.raises(ValueError, match=rf"checkpoint {re.escape(str(path))} cannot be used: .* of another type"):
        run.latest()


def test_a_checkpoint_of_another_version_is_not_to_be_deleted(run):
    with_header(path := run.save(5, {"a": np.arange(3.0)}, {}), format=9)
    with pytest.raises(ValueError, match="has format 9, this version reads 3: use the version") as refusal:
        run.latest()
    assert str(path) in str(refusal.value)
    assert "elete" not in str(refusal.value)


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"[" * 100_000),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), os.mkfifo(file)),
        lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
        lambda file: (file.unlink(), file.symlink_to(file)),
    ],
)
def test_a_file_that_is_missing_or_none_is_one_error_with_the_path(run, name, damage):
    path = run.save(5, {"a": np.arange(3.0)}, {})
    damage(path / name)
    with pytest.raises(ValueError, match=rf"checkpoint {re.escape(str(path))} cannot be used"):
        run.latest()


@pytest.mark.parametrize(
    "error", [KeyError("optimiser"), TypeError("'int' object is not iterable"), ValueError("x")]
)
def test_a_state_that_a_trainer_cannot_use_is_named(run, error):
    path = run.save(5, {}, {})
    with (
        pytest.raises(ValueError, match=rf"checkpoint {re.escape(str(path))} cannot be used"),
        run.latest().restoring(),
    ):
        raise error


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


def test_a_failure_leaves_its_traceback_until_the_run_goes_on(run):
    with pytest.raises(ZeroDivisionError), run.recording():
        _ = 1 / 0
    assert "_ = 1 / 0" in (run.path / "error.txt").read_text()
    run.resume()
    with run.recording():
        assert not (run.path / "error.txt").exists()


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
        with subprocess.Popen([sys.executable, "-c", WRITER, path]) as writer:
            try:
                while len(list((path / "checkpoints").glob("0*"))) < 2:
                    assert writer.poll() is None
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.05))
            finally:
                writer.kill()
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
    with pytest.raises(ValueError, match=r"--resume \S*run --data-dir there$"):
        check_same(tmp_path / "run", {"seed": 0, "data_dir": "there"}, ["data_dir", "threads"])
    with pytest.raises(ValueError, match=r"--data-dir 'b c' --download$"):
        check_same(tmp_path / "run", {"seed": 0, "data_dir": "b c", "download": True}, ["data_dir", "download"])
    with pytest.raises(ValueError, match=r"another --out$"):
        check_same(tmp_path / "run", {"seed": 1, "data_dir": "there"}, ["data_dir"])


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
