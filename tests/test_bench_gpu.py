"""`make bench-gpu`: what it writes, and what it does where something is missing, fails, or takes too long."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "benchmarks" / "gpu.py")
sys.path.append(str(ROOT / "benchmarks"))  # after `tests`, which has files of the same names

from gpu import DEVICES, Record  # noqa: E402
from gpu_parts import floors  # noqa: E402
from gpu_parts.rows import Plan, Row, compare, failure  # noqa: E402
from pairs import Side  # noqa: E402

HEADER = {
    "versions": {"python": "3.12.3", "torch": "2.11.0"},
    "hardware": {"gpu": "NVIDIA H100 80GB HBM3", "cpu": "Xeon"},
    "driver": "580.1",
    "started": "2026-11-28T12:00:00+00:00",
    "commit": "abc",
    "scale": "full",
    "minutes": 7.5,
}


def start(out, *parts, path=None, minutes="5"):
    """The benchmark in tiny sizes, with modules from `path` in place of installed ones."""
    command = [sys.executable, SCRIPT, "--scale=tiny", f"--out={out}", f"--minutes={minutes}", "--parts", *parts]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT / "src")]))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def read(out):
    """The header and the rows."""
    (path,) = out.glob("*.jsonl")
    header, *rows = map(json.loads, path.read_text().splitlines())
    return header["header"], rows


def test_rows_are_in_both_files_at_once(tmp_path):
    record = Record(tmp_path, HEADER)
    one = {"case": "64 seeds", "name": "one / two", "quantity": "time", "value": 1.25, "low": 1, "high": 2}
    record.add("sac", one)
    record.add("sac", {"case": "64 seeds", "name": "three", "skipped": "out of memory"})
    header, rows = read(tmp_path)
    assert header == HEADER
    assert [row["name"] for row in rows] == ["one / two", "three"]
    text = (tmp_path / "2026-11-28-nvidia-h100-80gb-hbm3.txt").read_text()
    for words in ("NVIDIA H100 80GB HBM3, driver 580.1", "torch 2.11.0", "2026-11-28T12:00", "commit abc"):
        assert words in text
    assert text.count("sac: 64 seeds") == 1
    assert "1.25 [1, 2]" in text
    assert "skipped: out of memory" in text
    assert "mean nothing" not in text


def test_nothing_is_overwritten(tmp_path):
    for _ in range(3):
        Record(tmp_path, HEADER | {"scale": "tiny", "hardware": {"gpu": None, "cpu": "Xeon"}})
    assert {path.stem for path in tmp_path.iterdir()} == {f"2026-11-28-cpu{end}" for end in ("", "-2", "-3")}
    assert "these numbers mean nothing" in (tmp_path / "2026-11-28-cpu.txt").read_text()


def test_a_side_that_fails_is_left_out():
    def broken():
        raise MemoryError("unable to allocate")

    ticks = count()
    sides = {name: Side(turn, 1) for name, turn in (("one", int), ("two", int), ("three", broken))}
    plan = Plan(tiny=False, end=time.monotonic() + 60)
    pairs = [("one", "two"), ("one", "three")]
    rows = list(compare(plan, "case", sides, pairs, seconds=20, clock=lambda: next(ticks)))
    assert rows[0] == Row("case", "three", skipped="out of memory")
    assert rows[1:] == [
        Row("case", "one", "time", 1000, "ms", 1000, 1000, 10),
        Row("case", "two", "time", 1000, "ms", 1000, 1000, 10),
        Row("case", "one / two", "time", 1, "", 1, 1, 10),
    ]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_value_that_is_not_finite_is_a_remark(value):
    row = Row("case", "name", "below the floor", value, "nats", remark="VIOLATED: allowed 1e-05").plain()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert "value" not in row
    assert Row(**row).text().endswith(f"VIOLATED: allowed 1e-05; below the floor: {value}")
    assert Row("case", "name", "time", 2.0, "ms", 1.0, 3.0).plain()["value"] == 2


def test_the_reason_of_a_failure_is_one_line():
    assert failure(int) is None
    assert failure(lambda: int("a\nb")).startswith("ValueError: invalid literal for int() with base 10")
    assert failure(lambda: {}["x"]) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("found", "value", "remark"),
    [
        ([(-0.1, 1e-5, True), (9e-6, 1e-5, True)], 9e-6, "holds: allowed 1e-05, cases: 2"),
        ([(2e-5, 1e-5, True), (0.0, 1e-5, True)], 2e-5, "VIOLATED: allowed 1e-05, cases: 2"),
        ([(math.nan, 1e-5, True)], math.inf, "VIOLATED: allowed 1e-05, cases: 1"),
        ([(0.0, 1e-5, False)], 0.0, "VIOLATED: allowed 1e-05, cases: 1, gradients that are not finite"),
    ],
)
def test_a_floor_that_does_not_hold_is_named(found, value, remark):
    row = floors.worst("case", "era_softmax", lambda: iter(found))
    assert row == Row("case", "era_softmax", "below the floor", value, "nats", remark=remark)


def test_the_entropy_is_recomputed_from_what_a_function_returned():
    """An identity in place of the activation: its one-hot row has no entropy."""
    functional = SimpleNamespace(era_softmax=lambda logits, min_entropy: logits)
    identity = floors.Backend("none", functional, lambda f, x, _: (x, f(*x), True), (6,), (0.5,), (10,), ({},))
    violation, allowed, finite = next(floors.softmaxes(identity, "float32", {}))
    assert violation == pytest.approx(0.95 * math.log(10))
    assert (allowed, finite) == (1e-4, True)


def test_a_part_without_time_says_so():
    plan = Plan(tiny=False, end=time.monotonic() - 1)
    assert plan.late("case", "name") == [Row("case", "name", skipped="the time of this part is over")]
    assert Plan(tiny=False, end=time.monotonic() + 60).late("case") == []


@pytest.mark.skipif(any(map(os.path.exists, DEVICES)), reason="this machine has a GPU")
def test_the_full_scale_needs_a_gpu():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--scale tiny" in done.stderr


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("module", "reason", "status"),
    [
        ("raise ImportError('no plugin')", "no plugin", 0),
        ("raise RuntimeError('the driver is too old')", "failed: RuntimeError: the driver is too old", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "failed: SIGSEGV", 1),
        ("import sys; sys.exit(3)", "failed: exit status 3", 1),
    ],
)
def test_a_part_that_cannot_run_leaves_its_reason_and_the_other_parts(tmp_path, module, reason, status):
    (tmp_path / "jax.py").write_text(f"print('noise'); {module}")
    done = start(tmp_path / "out", "sac", "parallel", path=str(tmp_path))
    printed, errors = done.communicate(timeout=100)
    assert done.returncode == status, errors
    header, rows = read(tmp_path / "out")
    assert header["scale"] == "tiny"
    assert [row["part"] for row in rows] == ["sac", "parallel"]
    assert all(reason in row["skipped"] for row in rows)
    assert reason in printed
    assert "noise" not in printed


def test_a_part_is_stopped_when_its_time_is_over(tmp_path):
    (tmp_path / "jax.py").write_text("import time; time.sleep(300)")
    done = start(tmp_path / "out", "sac", "parallel", path=str(tmp_path), minutes="0.05")
    done.communicate(timeout=100)
    assert done.returncode == 0
    rows = read(tmp_path / "out")[1]
    assert rows[0]["skipped"].startswith("the part was stopped after its ")


def test_a_process_that_outlives_its_part_is_stopped_too(tmp_path):
    """It holds the pipe of the rows, as a forked process does."""
    (tmp_path / "jax.py").write_text("import os, time; os.fork() or time.sleep(300); os._exit(0)")
    done = start(tmp_path / "out", "sac", "parallel", path=str(tmp_path), minutes="0.05")
    done.communicate(timeout=30)
    assert done.returncode == 0
    assert [row["part"] for row in read(tmp_path / "out")[1]] == ["sac", "parallel"]


@pytest.mark.slow_but_first
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_written(tmp_path, number):
    begun = tmp_path / "begun"
    (tmp_path / "torch.py").write_text("raise ImportError('no plugin')")
    (tmp_path / "jax.py").write_text(f"import os, time; os.mkdir({str(begun)!r}); time.sleep(300)")
    done = start(tmp_path / "out", "classifier", "sac", path=str(tmp_path))
    while not begun.exists():
        assert done.poll() is None, done.communicate()
        time.sleep(0.05)
    done.send_signal(number)
    printed, errors = done.communicate(timeout=60)
    assert done.returncode == 130, errors
    assert f"stopped by {number.name}" in printed
    assert [row["part"] for row in read(tmp_path / "out")[1]] == ["classifier"]


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_every_part_runs_in_tiny_sizes(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--scale=tiny", f"--out={tmp_path}"], capture_output=True, text=True, timeout=1250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read(tmp_path)[1]
    measured = {(row["part"], row["name"]) for row in rows if "value" in row}
    for part, names in {
        "token-head": ("era / plain", "naive / era", "release / era", "torch / triton", "forward product"),
        "sac": ("sac-era, fp32 / plain head, fp32", "sac-era-exact, fp32 / plain head, fp32"),
        "classifier": ("floor / plain", "era_softmax / log-softmax"),
        "floors-torch": ("era_truncated_normal, pin", "era_softmax, tau 2.72"),
        "floors-jax": ("era_gaussian, floor", "era_softmax"),
        "parallel": ("loop",),
    }.items():
        assert {(part, name) for name in names} <= measured
    floors = [row["remark"] for row in rows if row.get("quantity") == "below the floor"]
    assert len(floors) > 40
    assert all(remark.startswith("holds: ") for remark in floors)
    errors = {row["name"]: row["value"] for row in rows if row.get("quantity") == "gradient of weight"}
    assert errors.keys() == {"triton", "torch"}
    assert max(errors.values()) < 3e-3  # bfloat16 rounds by up to 4e-3
