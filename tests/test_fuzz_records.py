"""Run directories damaged at random: no traceback, no run left out without a word, no other number of the others.

The quick tests draw the same examples every time; those marked slow draw many more, and new ones.
"""

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from entropyfloor.cli import main
from entropyfloor.report import write_report
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.report.page import _csv
from entropyfloor.runs import read_run
from run_files import contents, dumped, healthy, write

FILES = ("config.toml", "metrics.jsonl", "status.json", "machine.json", "evaluation.json")

quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
drawn = settings(quick, max_examples=6)
thorough = settings(quick, max_examples=4000, derandomize=False, print_blob=True)
thoroughly_drawn = settings(thorough, max_examples=60)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from([10**400, -(10**400), 1e308, 2**63, 2**63 - 1, "=1+1", "\ud800", "\0", "running", "finished"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def replaced(draw):
    """One field of a file has another value, is gone, or there is one more."""
    name = draw(st.sampled_from(FILES[1:]))  # TOML knows fewer values, see `rewritten`
    content = contents(1)
    table = content[name]
    if isinstance(table, list):
        number = draw(st.integers(0, len(table) - 1))
        if draw(st.booleans()):
            table = table[number]
        else:
            table[number] = draw(values)
            return dumped(content)
    while True:
        field = draw(st.sampled_from([*table, "another"]))
        if isinstance(table.get(field), dict) and draw(st.booleans()):
            table[field] = table = dict(table[field])
            continue
        if draw(st.booleans()):
            table[field] = draw(values)
        else:
            table.pop(field, None)
        return dumped(content)


@st.composite
def torn(draw):
    """Bytes of a file are lost, doubled, changed, or others."""
    name = draw(st.sampled_from(FILES))
    files = dumped(contents(1))
    data = bytearray(files[name])
    for _ in range(draw(st.integers(1, 3))):
        start, length = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        part = data[start : start + length]
        kind = draw(st.sampled_from(["lose", "double", "flip", "insert", "end here"]))
        if kind == "flip" and part:
            part[0] ^= 1 << draw(st.integers(0, 7))
        new = {"lose": b"", "double": 2 * part, "insert": part + draw(st.binary(max_size=8))}.get(kind, part)
        data[start : len(data) if kind == "end here" else start + length] = new
    return {**files, name: bytes(data)}


@st.composite
def rewritten(draw):
    """A line of the config has another value, which TOML knows."""
    files = dumped(contents(1))
    lines = files["config.toml"].decode().splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    value = draw(
        st.sampled_from(
            ["nan", "-inf", "1e999", "[[[[[[1]]]]]]", "2026-11-21", "true", '"\\u0000"', "{a.b.c.d.e=1}"]
        )
        | st.integers().map(str)
        | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=5).map(json.dumps)
    )
    lines[number] = f"{lines[number].partition('=')[0]}= {value}"
    return {**files, "config.toml": "\n".join(lines).encode()}


damage = st.one_of(torn(), replaced(), rewritten())


@pytest.fixture
def root(tmp_path):
    """A directory with three whole runs, of the seeds 0, 2 and 3."""
    for seed in (0, 2, 3):
        healthy(tmp_path / "runs" / f"seed-{seed}", seed)
    return tmp_path / "runs"


def damaged(root, files):
    """The run of seed 1, with these files."""
    path = root / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    return write(path, files)


def tried(function, argument):
    """What a function returns, and the words with which it refuses; one of them is None."""
    try:
        return function(argument), None
    except ValueError as error:
        return None, str(error)


def check_reading(root, files):
    """The damaged run is refused by name or read right, and the other runs keep their numbers."""
    path = damaged(root, files)
    record, refusal = tried(read_run, path)
    if record:
        assert record.lines == numbers(files["metrics.jsonl"])
    else:
        assert str(path) in refusal
        assert len(refusal) < 1000
    found = read_comparisons([root])
    seeds = {run.record.path: run for comparison in found.comparisons for run in comparison.runs}
    assert (path in seeds) + sum(str(path) in reason for reason in found.left_out) == 1
    whole = sorted(seed for seed in seeds if seed != path)
    if len(whole) < 3:  # the damaged one has the number of another: both are left out
        assert "keep one" in "".join(found.left_out)
    for run in whole:
        assert not seeds[run].incomplete
        assert seeds[run].values["return"].tolist() == [1000.0 * i + int(run.name[-1]) for i in range(4)]
    for row in csv.DictReader(io.StringIO(_csv(found.comparisons), newline="")):
        if row["state"] == "finished" and row["path"] != str(path) and row["step"] == "3000":
            assert float(row["return"]) == 3000.0 + int(row["seed"])


def numbers(data):
    """The lines of metrics by a reader of three lines, for files that a resume has not touched."""
    lines = [json.loads(line) for line in data.split(b"\n")[:-1]]
    return [
        {
            "seconds": 0.0,
            **{k: None if v is None or v != v else float(v) for k, v in line.items() if k != "step"},
            "step": line["step"],
        }
        for line in lines
        if "event" not in line
    ]


def check_report(root, files, capsys):
    """A report is drawn, which says what is missing."""
    path = damaged(root, files)
    assert main(["report", str(root), "--out", str(root.parent / "report")]) == 0
    told = capsys.readouterr().err
    page = (root.parent / "report" / "index.html").read_text()
    assert str(path) in page
    assert (str(path) in told) == ("left out: " in told)


def check_commands(root, files, capsys):
    """Commands that need a checkpoint, which is not there, say so, or what is wrong with the run."""
    path = damaged(root, files)
    for command in (
        ["evaluate", str(path)],
        ["audit", str(path)],
        ["export", str(path), "--out", str(root / "model.safetensors")],
    ):
        assert main(command) in (2, 3)
        assert str(path) in capsys.readouterr().err
    assert not (root / "model.safetensors").exists()


def check_tables(root, files, capsys):
    """Each run has its line in what `watch` prints, and an archive holds it whole, or it is refused by name."""
    path = damaged(root, files)
    assert main(["watch", str(root), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in lines] == ["damaged", "seed-0", "seed-2", "seed-3"]
    for seed, line in zip((0, 2, 3), lines[1:], strict=True):
        assert ["finished", f"{3000 + seed:,}"] == [line.split()[i] for i in (5, 9)], line
    out = root.parent / "all.runs.zip"
    if main(["archive", str(root), "--out", str(out)]):
        assert str(path) in capsys.readouterr().err
        assert not out.exists()
    else:
        assert read_run(out / "damaged").lines == read_run(path).lines
        out.unlink()


@quick
@given(damage)
def test_reading(root, files):
    check_reading(root, files)


@pytest.mark.slow
@drawn
@given(damage)
def test_reports(root, capsys, files):
    check_report(root, files, capsys)


@settings(quick, max_examples=50)
@given(damage)
def test_commands(root, capsys, files):
    check_commands(root, files, capsys)


@settings(quick, max_examples=50)
@given(damage)
def test_tables(root, capsys, files):
    check_tables(root, files, capsys)


@quick
@given(st.sets(st.integers(0, 6), min_size=1), st.booleans())
def test_no_line_is_lost_unseen(root, lost, at_end):
    """An evaluation that a finished run has lost is told, and the others are averaged as if it were not there."""
    files = dumped(contents(1))
    lines = files["metrics.jsonl"].splitlines(keepends=True)
    kept = lines[: min(lost)] if at_end else [line for i, line in enumerate(lines) if i not in lost]
    path = damaged(root, {**files, "metrics.jsonl": b"".join(kept)})
    [comparison] = read_comparisons([root]).comparisons
    [group] = comparison.groups
    [run] = [run for run in comparison.runs if run.record.path == path]
    assert bool(run.incomplete) == any(b'"return"' in line for line in lines if line not in kept)
    assert group.steps.tolist() == [0, 1000, 2000, 3000]
    np.testing.assert_array_equal(len(group.seeds), 3 if run.incomplete else 4)


@quick
@given(st.integers(1, 1000))
def test_no_end_is_lost_unseen(root, lost):
    """The same, wherever the file ends."""
    files = dumped(contents(1))
    path = damaged(root, {**files, "metrics.jsonl": files["metrics.jsonl"][:-lost]})
    [comparison] = read_comparisons([root]).comparisons
    assert [run.record.path for run in comparison.runs if run.incomplete] == [path]


@pytest.mark.slow
@thorough
@given(damage)
def test_reading_thoroughly(root, files):
    check_reading(root, files)


@pytest.mark.slow
@thoroughly_drawn
@given(damage)
def test_reports_thoroughly(root, capsys, files):
    check_report(root, files, capsys)


def test_results_that_are_damaged_are_named(tmp_path):
    """A run of its own, not one that was made for these tests, with each of its files cut at each tenth."""
    with zipfile.ZipFile(Path(__file__).parent.parent / "results" / "demo.runs.zip") as archive:
        archive.extractall(tmp_path / "results")
    source = tmp_path / "results" / "sac-era-exact" / "seed-0"
    for name in FILES[:-1]:
        data = (source / name).read_bytes()
        for part in range(10):
            path = tmp_path / f"{name}-{part}"
            shutil.copytree(source, path)
            (path / name).write_bytes(data[: len(data) * part // 10])
            found, refusal = tried(read_comparisons, [path])
            if refusal:
                assert str(path) in refusal
            else:
                assert name == "config.toml" or found.comparisons[0].runs[0].incomplete
    write_report([source], tmp_path / "report")
