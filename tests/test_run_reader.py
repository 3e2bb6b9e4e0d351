"""Reading a run directory: every file of it and every field, damaged in every way."""

import json
import math
import os
import socket

import numpy as np
import pytest

from entropyfloor.report.comparison import read_comparisons
from entropyfloor.runs import find_runs, read_run
from entropyfloor.runs.run_reader import read_config
from run_files import contents, dumped, healthy, write

FILES = ("config.toml", "metrics.jsonl", "status.json", "machine.json", "evaluation.json")
HUGE = 10**400
"""More than a float holds."""


def deep(levels=100_000):
    """A list in a list, and so on."""
    return "[" * levels + "]" * levels


def nested(levels=100):
    """The same, of an amount that a parser reads and a printer does not."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


def left_out(root, damaged):
    """Whether the report of two runs has only the other one, and says why."""
    found = read_comparisons([root])
    [group] = [group for comparison in found.comparisons for group in comparison.groups]
    used = [seed.record.path for seed in group.seeds]
    assert root / "healthy" in used
    if damaged in used:
        assert found.left_out == []
        return False
    [reason] = found.left_out
    assert str(damaged) in reason
    return True


# --- whole files -----------------------------------------------------------------------------------------


def directory(file):
    file.unlink()
    file.mkdir()


def fifo(file):
    file.unlink()
    os.mkfifo(file)


def device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


def dangling(file):
    file.unlink()
    file.symlink_to("nowhere")


def looping(file):
    file.unlink()
    file.symlink_to(file.name)


def listening(file):
    file.unlink()
    os.chdir(file.parent)  # a socket's path has 100 characters at most
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(file.name)


def enormous(file):
    with file.open("ab") as data:
        data.truncate(2**40)  # which takes no room on the disk


def opaque(file):
    file.write_bytes(b"\xff\xfe\xfa" + file.read_bytes())


def zeros(file):
    file.write_bytes(bytes(len(file.read_bytes())) + b"\n")


def abyss(file):
    file.write_text(f"a = {deep()}\n" if file.suffix == ".toml" else f'{{"a": {deep()}}}\n')


def number(file):
    file.write_text("3\n")


def empty(file):
    file.write_bytes(b"")


def torn(file):
    file.write_bytes(file.read_bytes().rstrip()[:-1] + b"\n")


ALWAYS = (directory, fifo, device, dangling, looping, listening, enormous, opaque, zeros, abyss, number, torn)


@pytest.mark.parametrize("damage", ALWAYS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_is_named(name, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some damage changes it
    healthy(tmp_path / "healthy")
    file = healthy(tmp_path / "damaged", 1) / name
    damage(file)
    with pytest.raises(ValueError, match=r"is damaged|cannot be read") as error:
        read_run(file.parent)
    assert str(error.value).startswith(str(file))
    assert len(str(error.value)) < len(str(file)) + 250
    assert left_out(tmp_path, file.parent)


@pytest.mark.parametrize(
    ("name", "loss", "refused"),
    [
        ("config.toml", os.unlink, True),
        ("metrics.jsonl", os.unlink, True),
        ("status.json", os.unlink, False),
        ("machine.json", os.unlink, False),
        ("evaluation.json", os.unlink, False),
        ("status.json", empty, True),
        ("machine.json", empty, True),
        ("evaluation.json", empty, True),
    ],
)
def test_a_file_that_was_lost(name, loss, refused, tmp_path):
    healthy(tmp_path / "healthy")
    path = healthy(tmp_path / "damaged", 1)
    loss(path / name)
    assert left_out(tmp_path, path) == refused
    if refused:
        with pytest.raises(ValueError, match=name):
            read_run(path)


def test_a_run_without_its_status_is_not_taken_for_one_that_was_never_started(tmp_path):
    path = healthy(tmp_path / "run")
    (path / "status.json").unlink()
    assert read_run(path).status["state"] == "unknown"
    (path / "metrics.jsonl").write_bytes(b"")
    assert read_run(path).status["state"] == "created"


# --- fields ----------------------------------------------------------------------------------------------

MISSING = object()
NO_TEXT = (3, True, [], {}, math.nan)
NO_COUNT = ("3", True, 1.5, -1, 2**63, math.nan, [], {})
NO_NUMBER = ("3", True, [], {}, HUGE)
NO_HISTOGRAM = (
    *(3, "text", [], {}),
    {"edges": [0.0, 1.0]},
    {"counts": [1]},
    {"edges": [0.0, 1.0], "counts": [1, 2]},
    {"edges": [1.0, 0.0], "counts": [1]},
    {"edges": [0.0, math.nan], "counts": [1]},
    {"edges": [0.0, 1.0], "counts": [-1]},
    {"edges": [0.0, 1.0], "counts": [0]},
    {"edges": [0.0, 1.0], "counts": ["1"]},
    {"edges": [0.0, 1.0], "counts": 1},
)
FIELDS = [
    # file, field, what is refused, what is read as before
    ("config.toml", "domain", NO_TEXT, ()),
    ("config.toml", "agent", (*NO_TEXT, "a\0b", "a\x1bb"), ("",)),
    ("config.toml", "env", NO_TEXT, ("", "ünï")),
    ("config.toml", "seed", NO_COUNT, (7,)),
    ("config.toml", "steps", NO_COUNT, (MISSING, 5)),
    ("config.toml", "alpha", (nested(), 2**64), (MISSING, "text", -1.0, math.nan, [1, "a"], {"a": [1]})),
    ("status.json", "state", (MISSING, None, *NO_TEXT, nested()), ("paused",)),
    ("status.json", "step", (MISSING, None, *NO_COUNT, HUGE, nested()), ()),
    ("status.json", "reason", (*NO_TEXT, nested()), (MISSING, None, "text", "\0\ud800")),
    ("status.json", "time", NO_TEXT, (MISSING, None, "text")),
    (
        "machine.json",
        "hardware",
        (nested(), HUGE, {"cpu": HUGE}),
        (MISSING, None, "text", {}, {"gpu": ["a", "b"]}),
    ),
    ("machine.json", "versions", (nested(), "\0"), (MISSING, None, "text", {})),
    ("machine.json", "command", NO_TEXT, (MISSING, None, "\ud800")),
    ("machine.json", "commit", NO_TEXT, (MISSING, None)),
    ("machine.json", "started", NO_TEXT, (MISSING, None)),
    ("machine.json", "system", NO_TEXT, (MISSING, None)),
    ("machine.json", "another", (), (3, nested())),
    ("evaluation.json", "step", ("3", True, 1.5, -1, [], HUGE), (MISSING, None)),
    ("evaluation.json", "values", (3, [], *({"auroc": x} for x in (*NO_NUMBER, None, math.nan))), (MISSING, {})),
    ("evaluation.json", "problems", (nested(),), (MISSING, None, 3, "all")),
    ("evaluation.json", "entropy_histogram", NO_HISTOGRAM, (MISSING, None)),
    ("evaluation.json", "calibration_histogram", (*NO_HISTOGRAM, {"edges": [0, 1], "counts": [1]}), (MISSING,)),
    ("evaluation.json", "problem_keys", (None, 3, [1], ["a"], ["a", "a"], []), (MISSING, ["a", "b"])),
    ("evaluation.json", "correct", (None, [], [1], [1, 2, 3], [1, -1], [1, 1.5], [1, True]), (MISSING, [0, 8])),
    ("evaluation.json", "samples", (MISSING, None, "8", 7, 8.0, -1), (8, 9)),
    ("metrics.jsonl", "step", (MISSING, None, *(x for x in NO_COUNT if x != -1), -2, HUGE, nested()), ()),
    ("metrics.jsonl", "seconds", (None, *NO_NUMBER, math.nan), (MISSING, 3)),
    ("metrics.jsonl", "return", (*NO_NUMBER, nested()), (MISSING, None, math.nan, math.inf, 3, 1e300)),
    ("metrics.jsonl", "another", NO_NUMBER, (3.5, None)),
    ("metrics.jsonl", "event", ("paused", 3.0, None, []), ("resumed",)),
]
CASES = [
    (name, field, value, refused)
    for name, field, *both in FIELDS
    for refused, values in zip((True, False), both, strict=True)
    for value in values
]


def changed(content, field, value):
    """The same with another value, of the last line in a list."""
    if isinstance(content, list):
        return [*content[:-1], changed(content[-1], field, value)]
    others = {name: old for name, old in content.items() if name != field}
    return others if value is MISSING else {**others, field: value}


@pytest.mark.parametrize(("name", "field", "value", "refused"), CASES)
def test_every_field(name, field, value, refused, tmp_path):
    content = contents(1)
    content[name] = changed(content[name], field, value)
    path = write(tmp_path / "run", dumped(content))
    if not refused:
        assert read_run(path).path == path
        return
    with pytest.raises(ValueError, match=name) as error:
        read_run(path)
    assert field in str(error.value)
    assert str(path / name) in str(error.value)


@pytest.mark.parametrize("field", ["env", "agent", "seed"])
def test_a_run_that_does_not_say_what_it_is_is_left_out(field, tmp_path):
    content = contents(1)
    del content["config.toml"][field]
    healthy(tmp_path / "healthy")
    assert left_out(tmp_path, write(tmp_path / "damaged", dumped(content)))


def test_a_number_of_too_many_digits_is_named(tmp_path):
    path = healthy(tmp_path / "run")
    (path / "config.toml").write_text(f"steps = 0x{'f' * 9999}")  # which Python parses, and refuses to print
    with pytest.raises(ValueError, match=r"config\.toml is damaged: steps is"):
        read_config(path)


# --- what is read ----------------------------------------------------------------------------------------


def test_lines_and_series_are_those_of_the_file(tmp_path):
    content = contents()
    content["metrics.jsonl"] += [{"step": 4000, "seconds": 50, "return": None, "alpha": 3}]
    record = read_run(write(tmp_path / "run", dumped(content)))
    assert record.lines == content["metrics.jsonl"]
    steps, values = record.series("return")
    assert (steps.dtype, values.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(steps, [0, 1000, 2000, 3000, 4000])
    np.testing.assert_array_equal(values, [0, 1000, 2000, 3000, np.nan])
    assert record.series("alpha")[0].tolist() == [1000, 2000, 3000, 4000]
    values[:] = 7  # whoever changes what was given changes nothing else
    assert record.series("return")[1][1] == 1000
    assert "step" not in record.names


def test_damage_is_told_with_its_line(tmp_path):
    path = healthy(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4000, "seconds": 1.0, "return": "12"}) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 8 is damaged: 'return' is '12'"):
        read_run(path)


def test_a_run_has_its_own_path_and_not_that_of_a_link(tmp_path):
    for name in ("a", "z"):  # one of them is listed before the run, whatever the order
        (tmp_path / name).symlink_to(tmp_path / "m" / "run")
    run = healthy(tmp_path / "m" / "run")
    for name in ("b", "y"):
        (tmp_path / name).symlink_to(run)
    assert find_runs(tmp_path) == [run]


def test_a_run_is_found_once_and_with_one_file_lost(tmp_path):
    first, second = healthy(tmp_path / "a"), healthy(tmp_path / "b" / "c")
    (first / "config.toml").unlink()
    (second / "metrics.jsonl").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    other = tmp_path / "tool"  # which has a config as well, and is no run
    other.mkdir()
    (other / "config.toml").touch()
    assert find_runs(tmp_path, first) == [first, second]
    [found] = find_runs(tmp_path / "link")
    assert found.name == "c"
    (tmp_path / "b" / "above").symlink_to(tmp_path)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b").symlink_to(tmp_path / "b")
    assert [run.resolve() for run in find_runs(tmp_path / "links")] == [first, second]
    inside = healthy(second / "checkpoints" / "inside")
    assert inside not in find_runs(tmp_path)
