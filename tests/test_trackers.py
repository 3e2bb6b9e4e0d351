"""Trackers hold each line once, however often a run is killed and resumed, and none of them stops a training."""

import logging
import re
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from entropyfloor.runs import Run, read_run, trackers
from entropyfloor.runs.trackers import Past

CONFIG = {"domain": "control", "env": "dmc/walker-run", "agent": "sac-era", "seed": 3}


def train(run, steps, *, stop=None, save=(20,), track=None, offset=0.0):
    """Log two lines at each step, save at some, and fail at one."""
    with run.recording(track):
        for step in steps:
            if step == stop:
                raise RuntimeError("a failure")
            run.log(step, {"loss": step + offset, "alpha": float("nan")})
            run.log(step, {"return": 10.0 * step + offset})
            if step in save:
                run.save(step, {"x": np.zeros(1)}, {})


def interrupted_and_resumed(path, track=None):
    """A run that failed at step 40, was continued from 20, failed at 30, and went on from 20 to 50."""
    with pytest.raises(RuntimeError):
        train(Run.create(path, CONFIG), range(0, 51, 10), stop=40, track=track)
    for stop, offset in ((30, 0.25), (None, 0.5)):
        run = Run.open(path)
        assert run.resume().step == 20
        try:
            train(run, range(30, 51, 10), stop=stop, track=track, offset=offset)
        except RuntimeError:
            assert stop
    return run


# --- TensorBoard -------------------------------------------------------------------------------------------


def scalars(path):
    """Steps and values of each quantity, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_tensorboard_holds_what_the_metrics_hold(tmp_path):
    pytest.importorskip("tensorboard")
    run = interrupted_and_resumed(tmp_path / "run")
    steps, values = read_run(run.path).series("return")
    assert scalars(run.path) == {
        "return": list(zip(steps.tolist(), values.tolist(), strict=True)),
        "loss": [(0, 0.0), (10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5), (50, 50.5)],
    }


def test_tensorboard_gets_what_was_logged_without_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    with pytest.raises(RuntimeError):
        train(Run.create(tmp_path / "run", CONFIG), range(0, 51, 10), stop=40, track="none")
    assert not [*(tmp_path / "run").glob("events*")]
    run = Run.open(tmp_path / "run")
    run.resume()
    train(run, range(30, 51, 10))
    assert scalars(run.path)["return"] == [(step, 10.0 * step) for step in range(0, 51, 10)]


KILLED = """
import os, signal, sys
from pathlib import Path
from entropyfloor.runs import Run
run = Run.create(Path(sys.argv[1]), {"domain": "control", "seed": 0})
with run.recording(sys.argv[2] if len(sys.argv) > 2 else None):
    for step in range(3):
        run.log(step, {"return": float(step)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_event(tmp_path):
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert scalars(tmp_path / "run") == {"return": [(0, 0.0), (1, 1.0), (2, 2.0)]}


# --- trackio -----------------------------------------------------------------------------------------------


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Its database, in a directory of the test."""
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    return sqlite_storage.SQLiteStorage


def rows(storage, run):
    name = f"dmc/walker-run sac-era seed 3 {Past(run.path, run.config, [], []).identity}"
    return [(row["step"], row.get("loss"), row.get("return")) for row in storage.get_logs(trackers.PROJECT, name)]


def expected(*steps):
    return [row for step in steps for row in ((step, step, None), (step, None, 10 * step))]


def test_trackio_holds_each_line_once(tmp_path, trackio):
    run = interrupted_and_resumed(tmp_path / "run", "trackio")
    first, then = rows(trackio, run)[:8], rows(trackio, run)[8:]
    assert first == expected(0, 10, 20, 30)  # it keeps the first of a line that was repeated
    assert then == [
        (step, *values) for step in (40, 50) for values in ((step + 0.5, None), (None, 10 * step + 0.5))
    ]


def test_trackio_gets_what_was_logged_without_it(tmp_path, trackio):
    with pytest.raises(RuntimeError):
        train(Run.create(tmp_path / "run", CONFIG), range(0, 51, 10), stop=40)
    run = Run.open(tmp_path / "run")
    run.resume()
    train(run, range(30, 51, 10), track="trackio")
    assert rows(trackio, run) == expected(*range(0, 51, 10))


def test_seeds_that_train_in_one_process_have_runs_of_their_own(tmp_path, trackio):
    runs = [Run.create(tmp_path / str(seed), {**CONFIG, "started": seed}) for seed in range(2)]
    with runs[0].recording("trackio"), runs[1].recording("trackio"):
        for step in (0, 10):
            for i, run in enumerate(runs):
                run.log(step, {"return": float(step + i)})
    assert [rows(trackio, run) for run in runs] == [[(0, None, 0), (10, None, 10)], [(0, None, 1), (10, None, 11)]]


# --- Weights & Biases --------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """Its offline mode, whose files `history` reads."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    module = pytest.importorskip("wandb")
    yield module
    module.teardown()


def history(path):
    """Rows of all offline runs in a run directory: their files are LevelDB logs of protocol buffers."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process may still be writing
    for file in sorted(path.glob("wandb/offline-run-*/*.wandb")):
        data, at, part = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            part += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a whole record, or the end of one
                record = Record.FromString(part)
                part = b""
                if record.WhichOneof("record_type") == "history":
                    row = {"/".join(item.nested_key): float(item.value_json) for item in record.history.item}
                    yield int(row["_step"]), row["loss"], row["return"]


@pytest.mark.slow
def test_an_offline_run_of_wandb_holds_each_step_once(tmp_path, wandb):
    run = interrupted_and_resumed(tmp_path / "run", "wandb")
    assert [*history(run.path)] == [
        *((step, step, 10 * step) for step in (0, 10, 20)),
        *((step, step + 0.5, 10 * step + 0.5) for step in (30, 40, 50)),
    ]


@pytest.mark.slow
def test_seeds_in_one_process_are_runs_of_wandb(tmp_path, wandb):
    runs = [Run.create(tmp_path / str(seed), {**CONFIG, "started": seed}) for seed in range(2)]
    with runs[0].recording("wandb"), runs[1].recording("wandb"):
        for i, run in enumerate(runs):
            run.log(0, {"return": float(i), "loss": 0.0})
    assert [[*history(run.path)] for run in runs] == [[(0, 0.0, 0.0)], [(0, 0.0, 1.0)]]


@pytest.mark.slow
def test_who_is_not_logged_in_is_told_and_trains(tmp_path, monkeypatch, caplog):
    module = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    module.teardown()
    run = Run.create(tmp_path / "run", CONFIG)
    train(run, [0, 10], track="wandb")
    assert [line.message for line in caplog.records] == [
        f"{run.path}: wandb does not follow this run any more: nobody is logged in: call `wandb login`, or set "
        f"WANDB_MODE=offline"
    ]
    assert read_run(run.path).status["state"] == "finished"


# --- any of them -------------------------------------------------------------------------------------------


class Recorder:
    """A tracker that keeps its lines in a list, and fails where it is asked to."""

    ahead = 0

    def __init__(self, past, fails=""):
        self.lines, self.fails, self.closed = [], fails, None
        self._may_fail("begin")

    def _may_fail(self, where):
        if where in self.fails.split():
            raise OSError(28, "No space left on device")

    def log(self, line):
        self._may_fail(f"line{len(self.lines)}")
        self.lines.append(line)

    def close(self, finished):
        self.closed = finished
        self._may_fail("close")


@pytest.fixture
def recorder(monkeypatch):
    """A tracker in the place of trackio, and what it is given."""
    made = []

    def kinds(fails=""):
        def kind(past):
            made.append(Recorder(past, fails))
            return made[-1]

        monkeypatch.setattr(trackers, "KINDS", {**trackers.KINDS, "trackio": kind})
        monkeypatch.setattr(trackers, "find_spec", lambda name: None)
        return made

    return kinds


@pytest.mark.parametrize(("fails", "lines"), [("begin", None), ("line1", 1), ("close", 4)])
def test_a_tracker_that_fails_stops_no_training(tmp_path, recorder, caplog, fails, lines):
    made = recorder(fails)
    run = Run.create(tmp_path / "run", CONFIG)
    train(run, [0, 10], track="trackio")
    assert read_run(run.path).status["state"] == "finished"
    assert read_run(run.path).series("return")[1].tolist() == [0.0, 100.0]
    warnings = [line.message for line in caplog.records if line.levelno == logging.WARNING]
    assert warnings == [
        f"{run.path}: trackio does not follow this run any more: [Errno 28] No space left on device"
    ]
    assert lines is None or len(made[0].lines) == lines


@pytest.mark.parametrize("fault", ["raise TypeError('a wrong protobuf')", "raise SystemExit('a wrong protobuf')"])
def test_a_tensorboard_that_is_broken_at_import_stops_no_training(tmp_path, monkeypatch, caplog, fault):
    package = tmp_path / "site" / "tensorboard"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(fault)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    run = Run.create(tmp_path / "run", CONFIG)
    train(run, [0, 10])
    assert read_run(run.path).status["state"] == "finished"
    assert [line.message for line in caplog.records] == [
        f"{run.path}: tensorboard does not follow this run any more: a wrong protobuf"
    ]


@pytest.mark.parametrize(("error", "state"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_trackers_are_closed_however_a_run_ends_and_after_its_status(
    tmp_path, recorder, monkeypatch, error, state
):
    made, states = recorder(), []
    run = Run.create(tmp_path / "run", CONFIG)
    monkeypatch.setattr(
        Recorder, "close", lambda self, finished: states.append((read_run(run.path).status["state"], finished))
    )
    with pytest.raises(error), run.recording("trackio"):
        raise error
    assert len(made) == 1
    assert states == [(state, False)]


def test_a_run_that_ends_well_is_closed_as_finished(tmp_path, recorder):
    made = recorder()
    train(Run.create(tmp_path / "run", CONFIG), [0], track="trackio")
    assert made[0].closed is True


def test_none_is_written_nowhere(tmp_path, recorder):
    made = recorder()
    train(Run.create(tmp_path / "run", CONFIG), [0], track="none")
    train(Run.create(tmp_path / "other", CONFIG), [0])
    assert made == []


def test_what_is_not_installed_is_refused_before_a_run_is_begun(tmp_path, monkeypatch):
    from entropyfloor.runs.resume import begin
    from entropyfloor.vision.config import VisionConfig

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'entropyfloor[wandb]'")):
        begin(VisionConfig(out=str(tmp_path / "run"), track="wandb"), domain="vision")
    assert not (tmp_path / "run").exists()


def test_the_past_of_a_run_is_what_was_kept_and_what_will_be_repeated(tmp_path, monkeypatch, recorder):
    run = interrupted_and_resumed(tmp_path / "run", "none")
    past = trackers._past(run.path, run.config)
    assert [line["step"] for line in past.kept] == [0, 0, 10, 10, 20, 20, 30, 30, 40, 40, 50, 50]
    assert past.repeated == []
    run.resume()
    with run.recording("none"):
        past = trackers._past(run.path, run.config)
    assert past.step == 20
    assert [line["return"] for line in past.repeated if "return" in line] == [300.5, 400.5, 500.5]


def test_all_domains_have_the_setting_and_may_change_it():
    from entropyfloor.control.config import CONFIGS
    from entropyfloor.language.config import LanguageConfig
    from entropyfloor.runs.settings import changeable, not_results
    from entropyfloor.vision.config import VisionConfig

    for kind in (*CONFIGS.values(), VisionConfig, LanguageConfig):
        assert "track" in changeable(kind)
        assert "track" in not_results(kind)
