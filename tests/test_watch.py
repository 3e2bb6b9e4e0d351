"""`entropyfloor watch`: what it shows is what the files say, and it reads them once."""

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import run_files
from entropyfloor.cli import main
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.pack import pack
from entropyfloor.watch import snapshot, watch
from entropyfloor.watch.follow import WINDOW, Followed
from entropyfloor.watch.table import look

ROW = {
    "domain": "control",
    "task": "dmc/walker-walk",
    "arm": "sac-era-exact",
    "seed": 0,
    "step": 3000,
    "steps": 3000,
    "score": ("return", 3000.0),
    "entropy": -2.5,
    "floor": -3.0,
    "below": False,
}


def shown(row):
    return {name: getattr(row, name) for name in ROW}


def append(run, *lines):
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def terminal(width=200, height=40):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


# --- a run -------------------------------------------------------------------------------------------------


def test_a_row_says_what_the_record_says(tmp_path):
    row = Followed(run_files.healthy(tmp_path / "run")).look()
    assert shown(row) == ROW
    assert row.state == "finished"
    assert row.left is None


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_states_are_those_of_the_status(tmp_path, state):
    content = run_files.contents() | {"status.json": {**run_files.STATUS, "state": state, "reason": "it is so"}}
    row = Followed(run_files.write(tmp_path / "run", run_files.dumped(content))).look()
    assert (row.state, row.reason) == (state, "it is so")


def test_a_run_that_logged_anything_and_lost_its_status_is_as_a_report_has_it(tmp_path):
    content = run_files.contents() | {"metrics.jsonl": [{"step": 1, "seconds": 1.0, "loss/actor": 0.5}]}
    del content["status.json"], content["evaluation.json"]
    path = run_files.write(tmp_path / "run", run_files.dumped(content))
    assert Followed(path).look().state == read_run(path).status["state"] == "unknown"


def test_a_stopped_run_is_where_it_was_saved(tmp_path):
    """Later than its last line of metrics, if it was stopped between two."""
    content = run_files.contents() | {"status.json": {**run_files.STATUS, "state": "interrupted", "step": 3210}}
    assert Followed(run_files.write(tmp_path / "run", run_files.dumped(content))).look().step == 3210


def test_a_run_is_running_while_its_process_holds_it_and_then_killed(tmp_path):
    content = run_files.contents() | {"status.json": {**run_files.STATUS, "state": "running"}}
    content["config.toml"]["steps"] = 9000
    run = Followed(run_files.write(tmp_path / "run", run_files.dumped(content)))
    with (run.path / "metrics.jsonl").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        row = run.look()
        assert row.state == "running"
        assert row.rate == pytest.approx(3000 / 30.0)  # 3,000 steps in 30 s
        assert row.left == pytest.approx(60.0)
    assert run.look().state == "killed"
    assert run.look().left is None


def test_a_run_that_would_take_longer_than_a_century_does_not_end_the_watch(tmp_path):
    content = run_files.contents() | {"status.json": {**run_files.STATUS, "state": "running"}}
    content["config.toml"]["steps"] = 2**62
    run = run_files.write(tmp_path / "run", run_files.dumped(content))
    with (run / "metrics.jsonl").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "1 running" in snapshot([tmp_path])


def test_a_run_that_goes_on_is_followed(tmp_path):
    run = Run.create(tmp_path / "run", {"domain": "control", "seed": 0, "steps": 100})
    followed = Followed(run.path)
    assert followed.look().state == "created"
    with run.recording("none"):
        assert (followed.look().state, followed.look().step) == ("running", 0)
        run.log(50, {"return": 1.0})
        assert (followed.look().step, followed.look().score) == (50, ("return", 1.0))
    assert followed.look().state == "finished"


def test_lines_are_read_once(tmp_path):
    run = Followed(run_files.healthy(tmp_path / "run"))
    run.look()
    file = run.path / "metrics.jsonl"
    with file.open("r+b") as metrics:  # what was read is damaged now
        metrics.write(b"x" * (file.stat().st_size - 1))
    append(run.path, {"step": 4000, "seconds": 41.0, "return": 7.0})
    row = run.look()
    assert (row.state, row.step, row.score) == ("finished", 4000, ("return", 7.0))
    assert Followed(run.path).look().state == "damaged"


def test_half_a_line_is_read_when_it_is_whole(tmp_path):
    run = Followed(run_files.healthy(tmp_path / "run"))
    with (run.path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4000, "sec')
        metrics.flush()
        assert shown(run.look()) == ROW
        metrics.write('onds": 41.0, "return": 7.0}\n')
        metrics.flush()
        assert run.look().score == ("return", 7.0)


def test_a_resume_takes_lines_back(tmp_path):
    run = Followed(run_files.healthy(tmp_path / "run"))
    run.look()
    append(run.path, {"step": 1000, "seconds": 40.0, "event": "resumed"})
    row = run.look()
    assert (row.step, row.score, row.rate) == (1000, ("return", 1000.0), None)
    assert row.score[1] == read_run(run.path).series("return")[1][-1]


def test_the_last_evaluation_is_found_however_far_it_is_from_the_end(tmp_path):
    run = run_files.healthy(tmp_path / "run")
    lines = [{"step": 3000 + i, "seconds": 50.0 + i, "loss/actor": 1.5} for i in range(3000)]
    append(run, *lines)
    assert (run / "metrics.jsonl").stat().st_size > 8 * WINDOW
    row = Followed(run).look()
    assert (row.score, row.step, row.rate) == (("return", 3000.0), 5999, 1.0)


def test_a_resume_near_the_end_takes_back_what_is_far_from_it(tmp_path):
    run = run_files.healthy(tmp_path / "run")
    append(run, *({"step": 3000 + i, "seconds": 50.0 + i, "return": -1.0, "floor": 0.0} for i in range(1, 3000)))
    append(run, {"step": 2000, "seconds": 9000.0, "event": "resumed"})
    assert Followed(run).look().score == ("return", 2000.0)


@pytest.mark.parametrize(
    ("line", "below"),
    [
        ({"realised_entropy": -3.01}, True),
        ({"realised_entropy": -3.0005}, False),  # within the rounding that reports allow
        ({"realised_entropy": -2.0, "realised_entropy/min": -3.2}, True),
        ({"realised_entropy": -2.0, "realised_entropy/min": -3.0}, False),
        ({"realised_entropy": None, "realised_entropy/min": None}, False),
    ],
)
def test_an_entropy_below_its_floor_is_marked(tmp_path, line, below):
    content = run_files.contents() | {
        "metrics.jsonl": [{"step": 0, "seconds": 1.0, "return": 0.0, "floor": -3.0, **line}]
    }
    run = run_files.write(tmp_path / "run", run_files.dumped(content))
    assert Followed(run).look().below is below
    assert (" below" in snapshot([run])) is below


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", "config.toml"])
def test_a_damaged_run_is_named_until_it_is_repaired(tmp_path, name):
    run = Followed(run_files.healthy(tmp_path / "run"))
    healthy = (run.path / name).read_bytes()
    (run.path / name).write_bytes(b"{nonsense\n")
    row = run.look()
    assert row.state == "damaged"
    assert row.reason
    (run.path / name).write_bytes(healthy)
    assert shown(run.look()) == ROW


@pytest.mark.parametrize(("lines", "step"), [(1, 0), (7, 3000)])
def test_a_run_that_was_begun_again_is_read_from_its_beginning(lines, step, tmp_path):
    """However long it is: with as many lines it is known by its file."""
    run = Followed(run_files.healthy(tmp_path / "run"))
    run.look()
    content = run_files.contents(seed=5)
    content["metrics.jsonl"] = content["metrics.jsonl"][:lines]
    again = run_files.write(tmp_path / "again", run_files.dumped(content))
    shutil.rmtree(run.path)
    again.rename(run.path)
    row = run.look()
    assert (row.seed, row.step, row.score) == (5, step, ("return", step + 5.0))


def test_an_archive_is_read_like_a_directory(tmp_path):
    run_files.healthy(tmp_path / "runs" / "a")
    pack([tmp_path / "runs"], tmp_path / "all.runs.zip")
    run = Followed(tmp_path / "all.runs.zip" / "a")
    assert shown(run.look()) == ROW
    with (tmp_path / "runs" / "a" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4000, "seconds": 41.0, "return": 7.0}\n')
    pack([tmp_path / "runs"], tmp_path / "all.runs.zip")
    assert run.look().score == ("return", 7.0)


# --- all runs ----------------------------------------------------------------------------------------------


def test_runs_that_appear_are_shown_and_those_that_go_are_not(tmp_path):
    runs = {}
    assert look([tmp_path], runs) == []
    for name in ("a", "b"):
        run_files.healthy(tmp_path / name)
    assert [row.path.name for row in look([tmp_path], runs)] == ["a", "b"]
    followed = runs[tmp_path / "b"]
    shutil.rmtree(tmp_path / "a")
    assert [row.path.name for row in look([tmp_path], runs)] == ["b"]
    assert runs == {tmp_path / "b": followed}


def test_the_command_prints_a_table_into_a_pipe(tmp_path, capsys):
    for seed in range(2):
        run_files.healthy(tmp_path / "arm" / f"seed-{seed}", seed)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert head == "2 finished"
    assert names.split() == ["run", "domain", "task", "arm", "seed", "state", "step", "speed", "score", "entropy"]
    assert [row.split()[:9] for row in rows] == [
        [*f"seed-{i} control dmc/walker-walk sac-era-exact {i} finished 3,000/3,000 100.0/s".split(), "return"]
        for i in range(2)
    ]
    assert [row.split()[9:] for row in rows] == [[f"3,00{i}", "-2.50", "of", "-3.00"] for i in range(2)]


@pytest.mark.parametrize("words", [["nowhere"], ["empty"]])
def test_without_a_run_there_is_nothing_to_print(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["watch", *words, "--once"]) == 2
    assert re.match("error: (nowhere is not a directory|no run in empty)", capsys.readouterr().err)


def test_characters_that_a_terminal_would_obey_are_shown(tmp_path):
    (tmp_path / "runs").mkdir()
    run_files.healthy(tmp_path / "runs" / "x\x1b[2J")
    run_files.healthy(tmp_path / "runs" / "[red]b")
    content = run_files.contents() | {"status.json": {**run_files.STATUS, "state": "\x1b[31mred"}}
    run_files.write(tmp_path / "runs" / "third", run_files.dumped(content))
    text = snapshot([tmp_path / "runs"])
    assert "\x1b" not in text
    assert "x\\x1b[2J" in text
    assert "1 \\x1b[31mred" in text
    assert "[red]b" in text


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (200, "run domain task arm seed state step speed score entropy"),
        (120, "run arm state step speed score entropy"),
        (90, "run state step speed score entropy"),
        (80, "run state step score entropy"),
        (70, "run state step score entropy"),
    ],
)
def test_a_narrow_terminal_keeps_what_matters(tmp_path, width, columns):
    for seed in range(2):
        run_files.healthy(tmp_path / f"{seed}-is-the-long-name-of-a-comparison" / f"seed-{seed}", seed)
    lines = snapshot([tmp_path], terminal(width)).splitlines()
    assert lines[1].split() == columns.split()
    assert max(map(len, lines)) <= width
    assert [re.search("seed-.", line)[0] for line in lines[2:]] == ["seed-0", "seed-1"]


def test_what_runs_has_room_first(tmp_path, monkeypatch):
    states = ["finished"] * 9 + ["failed"]
    for i, state in enumerate(states):
        content = run_files.contents(i) | {"status.json": {**run_files.STATUS, "state": state}}
        run_files.write(tmp_path / f"run-{i}", run_files.dumped(content))
    console = terminal(height=7)
    monkeypatch.setattr(time, "sleep", interrupt)
    watch([tmp_path], console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    rows = [line.split()[0] for line in lines if "run-" in line]
    assert rows == ["run-0", "run-1", "run-9"] * 2  # once more when it ends
    assert any(line.endswith("1 failed · 9 finished") for line in lines)
    assert any(line == "and 7 more: 7 finished" for line in lines)


@pytest.mark.parametrize("height", [1, 3, 4])
def test_a_terminal_of_a_few_lines_has_the_counts_alone(height, tmp_path, monkeypatch):
    for i in range(5):
        run_files.write(tmp_path / f"run-{i}", run_files.dumped(run_files.contents(i)))
    console = terminal(height=height)
    monkeypatch.setattr(time, "sleep", interrupt)
    watch([tmp_path], console)
    assert "run-" not in console.file.getvalue()
    assert "and 5 more: 5 finished" in console.file.getvalue()


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_empty_directory_is_watched(tmp_path, monkeypatch):
    console = terminal()
    monkeypatch.setattr(time, "sleep", interrupt)
    watch([tmp_path], console)
    assert "no run yet" in console.file.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_status_0_and_gives_the_cursor_back(tmp_path, number):
    run_files.healthy(tmp_path / "first")
    parent, child = pty.openpty()
    # A shell's background jobs ignore SIGINT. `preexec_fn` would fork, which JAX warns about where it is imported.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from entropyfloor.cli import main; sys.exit(main(['watch', sys.argv[1]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(child)
    try:
        output = read_until(parent, b"first")
        run_files.healthy(tmp_path / "second", 1)  # appears while it watches
        output += read_until(parent, b"second")
        process.send_signal(number)
        output += read_until(parent, b"\x1b[?25h")  # shows the cursor
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert b"Traceback" not in output


def read_until(handle, end, seconds=120):
    output, until = b"", time.monotonic() + seconds
    while end not in output and time.monotonic() < until:
        if select.select([handle], [], [], 1)[0]:
            output += os.read(handle, 4096)
    assert end in output, output
    return output
