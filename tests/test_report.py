"""Reports: what is averaged with what, the intervals, and what the page says."""

import csv
import io
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from io import BytesIO
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from entropyfloor.cli import main
from entropyfloor.report import write_report
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.report.figures.language import (
    front_figure,
    pass_figure,
    responses_figure,
    shares_figure,
    thresholds_figure,
    tokens_figure,
)
from entropyfloor.report.figures.multiples import multiples_figure
from entropyfloor.report.figures.scores import (
    draw_score,
    entropy_figure,
    evaluation_figure,
    overview_figure,
    score_figure,
)
from entropyfloor.report.figures.style import looks, png, svg
from entropyfloor.report.formats import nats, plain, significant
from entropyfloor.report.page import _csv
from entropyfloor.report.pictures import MOST
from entropyfloor.report.summary import lead, sentence, verdict
from entropyfloor.runs import Run, read_run
from html_reader import Page
from run_files import contents, dumped, healthy, metrics
from run_files import write as write_files

NASTY = '<script>alert(1)</script> $a$ & "b"'
HEADS = {"sac": "clip", "sac-no-entropy": "clip", "sac-era": "era", "sac-era-exact": "era-exact"}


def write(
    root,
    agent="sac-era-exact",
    seed=0,
    *,
    env="dmc/walker-walk",
    returns=(10.0, 20.0, 30.0),
    mean=-3.0,
    least=-3.0,
    floor=-3.0,
    every=1000,
    error=None,
    name=None,
    **settings,
):
    """A real run directory; `least` is that of the last evaluation, and of those before it 0.1 more."""
    path = root / (name or f"{env}/{agent}/{seed}-{'-'.join(map(str, settings.values()))}")
    config = {"domain": "control", "agent": agent, "env": env, "seed": seed, "steps": 2000, "head": HEADS[agent]}
    run = Run.create(path, {**config, "out": str(path), **settings})
    try:
        with run.recording():
            for i, value in enumerate(returns):
                last = i == len(returns) - 1
                entropy = {"realised_entropy": mean, "realised_entropy/min": least + (0.0 if last else 0.1)}
                name = "target_entropy" if HEADS[agent] == "clip" else "floor"
                promised = {} if floor is None else {name: floor}
                run.log(i * every, {"return": value, **entropy, **promised})
                run.log(i * every, {"loss/actor": 1.0, "steps_per_second": 100.0 + i})
            if error is not None:
                raise error
    except (FloatingPointError, KeyboardInterrupt):
        pass
    return path


def compare(paths):
    """The comparisons of all runs at or below the paths."""
    return read_comparisons(paths).comparisons


def only(root):
    """The only comparison, and its looks."""
    [comparison] = compare([root])
    return comparison, looks([comparison])


def group(root):
    """The only group of the only comparison."""
    [found] = only(root)[0].groups
    return found


# --- what is averaged with what --------------------------------------------------------------------------


def test_runs_are_grouped_by_environment_and_agent(tmp_path):
    for env in ("gym/Ant-v4", "dmc/walker-walk"):
        for seed in (1, 0):
            write(tmp_path, "sac", seed, env=env, alpha=0.1 if env == "gym/Ant-v4" else 1.0, threads=seed)
            write(tmp_path, "sac-era", seed, env=env)
    comparisons = compare([tmp_path])
    assert [c.env for c in comparisons] == ["dmc/walker-walk", "gym/Ant-v4"]
    for comparison in comparisons:  # a setting that differs between environments is no difference within one
        assert [g.label for g in comparison.groups] == ["sac", "sac-era"]
        assert [[seed.number for seed in g.seeds] for g in comparison.groups] == [[0, 1], [0, 1]]


def test_settings_that_differ_are_in_the_label(tmp_path):
    for alpha in (0.1, 0.2):
        for seed in (0, 1):
            write(tmp_path, "sac", seed, alpha=alpha, returns=(alpha, alpha))
    write(tmp_path, "sac", 0, returns=(5.0, 5.0))
    write(tmp_path, "sac-era", 0, alpha=7.0)
    [comparison] = compare([tmp_path])
    labels = ["sac, alpha=0.1", "sac, alpha=0.2", "sac, alpha=unset", "sac-era"]
    assert [g.label for g in comparison.groups] == labels
    returns = [g.values("return")[:, -1].tolist() for g in comparison.groups]
    assert returns == [[0.1, 0.1], [0.2, 0.2], [5.0], [30.0]]


def without_list(path):
    """A run of before version 0.2: it does not say which of its settings do not change results."""
    change_machine(path, lambda machine: machine.pop("not_results", None))


def change_machine(path, change):
    """Rewrite `machine.json`."""
    machine = json.loads((path / "machine.json").read_text())
    change(machine)
    (path / "machine.json").write_text(json.dumps(machine))


NOT_RESULTS = ["seed", "out", "warp"]


def with_list(path, names=NOT_RESULTS):
    """A run that says which of its settings do not change results."""
    change_machine(path, lambda machine: machine.update(not_results=names))


@pytest.mark.parametrize(
    "different",
    [
        {"device": ("cpu", "cuda")},
        {"sample_batch": (64, 256), "micro_batch": (64, 128)},
        {"gradient_checkpointing": (False, True)},
        {"compile": (False, True), "channels_last": (True, False), "workers": (0, 4)},
    ],
)
def test_seeds_of_older_runs_may_differ_in_speed(different, tmp_path):
    for seed in range(2):
        without_list(write(tmp_path, seed=seed, **{name: values[seed] for name, values in different.items()}))
    assert [seed.number for seed in group(tmp_path).seeds] == [0, 1]


@pytest.mark.parametrize(("name", "values"), [("precision", ("bf16", "no")), ("data", ("a.jsonl", "b.jsonl"))])
def test_older_runs_may_not_differ_in_what_changes_results(name, values, tmp_path):
    for value in values:
        without_list(write(tmp_path, **{name: value}))
    labels = [group.label for group in compare([tmp_path])[0].groups]
    assert labels == [f"sac-era-exact, {name}={value}" for value in values]


def test_a_run_says_which_of_its_settings_do_not_change_results(tmp_path):
    for seed in range(2):
        with_list(write(tmp_path, seed=seed, warp=seed + 0.5))
    assert [seed.number for seed in group(tmp_path).seeds] == [0, 1]
    without_list(write(tmp_path, seed=2, warp=9.0, device="cuda"))  # the names of both kinds of runs count
    with_list(write(tmp_path, seed=3, warp=9.0, device="cpu"))
    assert [seed.number for seed in group(tmp_path).seeds] == [0, 1, 2, 3]
    page = Page(write_report([tmp_path], tmp_path / "report"))
    assert not [row for row in page.rows if row[0] in ("warp", "device")]


def test_a_setting_that_is_not_in_the_list_of_a_run_splits(tmp_path):
    for seed in range(2):
        with_list(write(tmp_path, seed=seed, device=("cpu", "cuda")[seed]))
    labels = [group.label for group in compare([tmp_path])[0].groups]
    assert labels == ["sac-era-exact, device=cpu", "sac-era-exact, device=cuda"]


@pytest.mark.parametrize("names", ["seed", {"seed": 1}, [["seed"]], [1], None, 3])
def test_a_damaged_list_of_settings_is_named(names, tmp_path):
    write(tmp_path / "runs", seed=0)
    damaged = write(tmp_path / "runs", seed=1)
    with_list(damaged, names)
    comparisons, [reason] = read_comparisons([tmp_path / "runs"])
    assert [run.number for run in comparisons[0].runs] == [0]
    assert f"{damaged}/machine.json is damaged: not_results" in reason


def test_heads_of_older_and_newer_runs_are_one_group(tmp_path):
    write(tmp_path, "sac", seed=0)  # with the head `clip`, which is `tanh` today
    write(tmp_path, "sac", seed=1, head="tanh", names=2, backend="native")
    write(tmp_path, "sac", seed=2, head="hard-clip")
    write(tmp_path, "sac", seed=3, head="clip", names=2, backend="native")
    [comparison] = compare([tmp_path])
    assert {g.label: [seed.number for seed in g.seeds] for g in comparison.groups} == {
        "sac, head=clip": [2, 3],
        "sac, head=tanh": [0, 1],
    }
    assert not [run for run in comparison.runs if "names" in run.record.config]


def test_a_seed_counts_once(tmp_path):
    one, two = write(tmp_path, name="one"), write(tmp_path, name="two")
    with pytest.raises(ValueError, match=f"{re.escape(str(one))} and {re.escape(str(two))}.*seed 0"):
        compare([tmp_path])
    assert len(group(one).seeds) == 1


def test_averages_are_taken_where_all_seeds_are(tmp_path):
    write(tmp_path, seed=0, returns=(1.0, 2.0, 3.0, 4.0))
    write(tmp_path, seed=1, returns=(5.0, 6.0))
    runs = group(tmp_path)
    assert runs.steps.tolist() == [0, 1000]
    assert runs.values("return").tolist() == [[1.0, 2.0], [5.0, 6.0]]
    [(steps, values)] = runs.curve("return").tails  # the longer one goes on alone, from where the average ends
    assert (steps.tolist(), values.tolist()) == ([1000, 2000, 3000], [2.0, 3.0, 4.0])


def test_a_run_that_breaks_down_is_used_up_to_there(tmp_path):
    write(tmp_path, seed=0, returns=(1.0, 2.0, math.nan, 4.0))
    runs = group(tmp_path)
    assert runs.steps.tolist() == [0, 1000]
    assert "return not finite at step 2,000" in runs.seeds[0].note


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no run in"):
        compare([tmp_path])
    empty = write(tmp_path / "empty", returns=())
    with pytest.raises(ValueError, match=f"no run was evaluated yet, {re.escape(str(empty))}"):
        compare([tmp_path])

    damaged = write(tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n')
    with pytest.raises(ValueError, match=re.escape(str(damaged))):
        compare([tmp_path])

    vision = tmp_path / "vision"
    Run.create(vision, {"domain": "vision", "seed": 0})
    with pytest.raises(ValueError, match=f"{re.escape(str(vision))} has no 'env'"):
        compare([vision])

    apart = tmp_path / "apart"
    write(apart, seed=0)
    early = Run.create(apart / "early", {**compare([apart])[0].runs[0].record.config, "seed": 1})
    early.log(1, {"return": 1.0, "realised_entropy": 0.0, "realised_entropy/min": 0.0})
    with pytest.raises(ValueError, match="no step at which all of these runs were evaluated"):
        compare([apart])

    moving = write(tmp_path / "moving")
    Run.open(moving).log(3000, {"floor": -2.0})
    with pytest.raises(ValueError, match=f"{re.escape(str(moving))}: the floor must be one"):
        compare([moving])


# --- runs that are not whole -----------------------------------------------------------------------------


def cut(path, keep):
    """Leave only the lines of the metrics that `keep` takes, by number."""
    file = path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(line for i, line in enumerate(lines) if keep(i)))
    return path


def table(comparisons):
    """Rows of `table.csv`."""
    return [*csv.DictReader(io.StringIO(_csv(comparisons), newline=""))]


CUTS = {  # of 7 lines: an evaluation, and three times what training logged and an evaluation
    "the end": (lambda i: i < 3, 2000),
    "the last evaluation": (lambda i: i < 6, 3000),
    "the middle": (lambda i: i != 2, 1000),
    "the beginning": (lambda i: i > 0, 0),
    "everything": (lambda i: False, 0),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_finished_run_whose_metrics_were_cut_is_named_and_cuts_nobody_short(name, tmp_path):
    keep, lost = CUTS[name]
    whole = [healthy(tmp_path / f"whole-{seed}", seed) for seed in range(2)]
    short = cut(healthy(tmp_path / "short", 2), keep)
    [comparison] = compare([tmp_path])
    [used], [unused] = comparison.groups, comparison.unused
    assert [seed.record.path for seed in used.seeds] == whole
    assert used.steps.tolist() == [0, 1000, 2000, 3000]
    assert (unused.record.path, unused.state) == (short, "cut")
    assert "3,000" in unused.note
    assert f"{lost:,}" in unused.note
    rows = [(row["seed"], row["state"], row["step"]) for row in table([comparison])]
    assert rows == [("0", "finished", "3000"), ("1", "finished", "3000"), ("2", "cut", "")]


def test_what_is_left_of_a_cut_run_is_drawn_where_there_is_nothing_else(tmp_path):
    path = cut(healthy(tmp_path / "run"), lambda i: i < 3)
    page = Page(write_report([tmp_path], tmp_path / "report"))
    [line] = re.findall(r"seed 0: cut \(metrics.jsonl .*", "".join(page.parts))
    assert "step 1,000 of 3,000" in line
    assert str(path) in line
    [row] = table(compare([tmp_path]))
    assert (row["state"], row["step"], row["return"]) == ("cut", "1000", "1000.0")


def test_a_failed_evaluation_is_no_cut_file(tmp_path):
    healthy(tmp_path / "whole")
    content = contents(1)
    content["metrics.jsonl"][-1] = {"step": 3000, "seconds": 30.5, "return": None}
    write_files(tmp_path / "failed", dumped(content))
    [comparison] = compare([tmp_path])
    [unused] = comparison.unused
    assert unused.note.startswith("its evaluation at 3,000 failed")
    assert "metrics.jsonl" not in unused.note
    assert [(row["seed"], row["state"]) for row in table([comparison])] == [
        ("0", "finished"),
        ("1", "evaluation failed"),
    ]


def test_a_run_that_is_cut_after_a_failed_evaluation_is_cut(tmp_path):
    for seed in (0, 2):
        write_files(tmp_path / f"whole-{seed}", dumped(contents(seed)))
    content = contents(1)
    lines = [line for line in content["metrics.jsonl"] if line["step"] < 3000]
    (failed,) = (i for i, line in enumerate(lines) if line["step"] == 2000 and "return" in line)
    lines[failed] = {"step": 2000, "seconds": 20.5, "return": None}
    write_files(tmp_path / "cut", dumped(content | {"metrics.jsonl": lines}))
    [comparison] = compare([tmp_path])
    [unused] = comparison.unused
    assert unused.state == "cut"
    assert "its evaluation at 3,000 is lost; its evaluation at 2,000 failed" in unused.note


def test_a_last_line_without_its_end_is_a_cut(tmp_path):
    path = healthy(tmp_path / "run")
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    assert group(tmp_path).seeds[0].state == "cut"


def test_what_is_whole_is_not_cut(tmp_path):
    for seed, state in enumerate(("finished", "running", "interrupted", "failed")):
        content = contents(seed)
        content["status.json"]["state"] = state
        path = write_files(tmp_path / state, dumped(content))
        if state != "finished":
            cut(path, lambda i: i < 5)
    short = write(tmp_path / "other", alpha=9.0, returns=(1.0, 2.0))  # its steps are the 2,000 of its settings
    assert read_run(short).status["step"] == 1000
    [comparison] = compare([tmp_path])
    assert not [run for run in comparison.runs if run.incomplete]
    found = {run.record.path.name: run.state for run in comparison.runs if run.record.path != short}
    states = {name: name for name in ("finished", "interrupted", "failed")}
    assert found == {**states, "running": "killed"}


def test_results_are_whole():
    found = read_comparisons([Path(__file__).parent.parent / "results" / "control" / "beside-sb3"])
    assert found.left_out == []
    assert {run.state for comparison in found.comparisons for run in comparison.runs} == {"finished"}


def test_what_is_wrong_with_a_run_is_told_and_the_others_are_drawn(tmp_path, capsys):
    runs = tmp_path / "runs"
    for seed in range(2):
        healthy(runs / f"good-{seed}", seed)
    good = group(runs).values("return").tolist()
    reasons = {"torn": "metrics.jsonl, line 3 is damaged", "moving": "the floor must be one finite number"}
    reasons |= {"other": "domain='chess' must be one of", "nameless": "no 'seed' in its config"}
    reasons |= {"twin": "with seed 7: keep one", "lost": "there is no config.toml"}
    damaged = {name: contents(5 + i) for i, name in enumerate(reasons)}
    damaged["torn"]["metrics.jsonl"][2] = []
    damaged["moving"]["metrics.jsonl"][2]["floor"] = -2.0
    damaged["other"]["config.toml"]["domain"] = "chess"
    del damaged["nameless"]["config.toml"]["seed"]
    damaged["twin"]["config.toml"]["seed"] = 7
    del damaged["lost"]["config.toml"]
    for name, content in damaged.items():
        write_files(runs / name, dumped(content))
    healthy(runs / "its twin", 7)

    assert main(["report", str(runs), "--out", str(tmp_path / "report")]) == 0
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert out.startswith("page: file://")
    assert len(told) == len(reasons)
    page = "".join(Page(tmp_path / "report" / "index.html").parts)
    for name, reason in reasons.items():
        [line] = [line for line in told if line.startswith("left out: ") and str(runs / name) in line]
        assert reason in line
        assert line.removeprefix("left out: ") in page
    assert str(runs / "its twin") in page
    assert group(runs).values("return").tolist() == good


def test_where_nothing_can_be_drawn_the_reasons_are_the_error(tmp_path, capsys):
    for i in range(30):
        write_files(tmp_path / f"{i:02}", {**dumped(contents(i)), "status.json": b"{"})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/00/status.json is damaged")
    assert line.endswith("; 20 more")
    assert not (tmp_path / "report").exists()


def test_python_is_warned_of_what_was_left_out(tmp_path):
    healthy(tmp_path / "runs/good")
    bad = write_files(tmp_path / "runs/bad", {**dumped(contents(1)), "status.json": b"{"})
    with pytest.warns(UserWarning, match=f"left out: {re.escape(str(bad))}"):
        write_report([tmp_path / "runs"], tmp_path / "report")


def test_what_an_evaluation_says_otherwise_stops_one_figure_only(tmp_path):
    for seed, edge in enumerate((1.0, 2.0)):
        content = contents(seed)
        content["evaluation.json"]["step"] = content["metrics.jsonl"][-1]["step"]
        content["evaluation.json"]["entropy_histogram"] = {"edges": [0.0, edge], "counts": [3]}
        write_files(tmp_path / "runs" / str(seed), dumped(content))
    with pytest.warns(UserWarning, match="entropy_histogram on different edges") as told:
        write_report([tmp_path / "runs"], tmp_path / "report")
    assert str(tmp_path / "runs" / "1") in str(told[0].message)
    assert len(list((tmp_path / "report").glob("*.svg"))) == 3


@pytest.mark.parametrize("name", ["pass_at_x", "pass_at_0", "pass_at_" + "9" * 5000, "pass_at_-1", "pass_at_"])
def test_a_name_that_is_no_number_of_responses_is_no_pass_at_k(name, tmp_path):
    speaker(tmp_path)
    file = tmp_path / "grpo" / "0" / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"greedy"', f'"{name}"'.encode()))
    assert only(tmp_path)[0].groups[0].pass_at.steps.tolist() == [1, 2, 4]


@pytest.mark.parametrize(("value", "used"), [(1e99, True), (5e-324, True), (1e101, False), (-1e308, False)])
def test_numbers_that_no_panel_can_hold(value, used, tmp_path):
    for seed in range(3):
        write(tmp_path, seed=seed, returns=(1.0, value * (1 + seed / 9), 2.0))
    runs = group(tmp_path)
    assert runs.steps.tolist() == ([0, 1000, 2000] if used else [0])
    for run in runs.seeds:
        assert run.note is None if used else "return beyond 1e+100 at step 1,000" in run.note
    svg(score_figure(*only(tmp_path)))


# --- many runs, long names -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_finds_no_formula_in_the_table(start, tmp_path, monkeypatch):
    env = f"{start}cmd|' /C calc'!A0"
    content = contents()
    content["config.toml"]["env"] = env
    content["status.json"]["state"] = f"{start}2"
    for line in content["metrics.jsonl"]:
        line.update({"return": -6.0} if "return" in line else {})
    write_files(tmp_path / f"{start}1", dumped(content))
    monkeypatch.chdir(tmp_path)
    [row] = table(compare([Path(f"{start}1")]))
    assert row["path"] == f"'{start}1".replace("\r", "\\r")
    assert row["env"] == f"'{env}".replace("\r", "\\r")
    assert row["state"] == f"'{start}2".replace("\r", "\\r")
    assert float(row["return"]) == -6.0  # a number stays one
    assert not [cell for cell in row.values() if cell.startswith(start) and not re.fullmatch(r"-[0-9.]+", cell)]


@pytest.mark.slow
def test_figures_of_similar_names_have_files_of_their_own(tmp_path):
    alike = ["gym/Ant", "GYM-ant", "gym-Ant-2", "///", "学", "e" * 300, "e" * 299]
    for i, env in enumerate(alike):
        write(tmp_path / "runs", env=env, name=str(i), returns=(1.0 + i, 2.0 + i))
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    files = [path.name for path in (tmp_path / "report").glob("*.svg")]
    assert len({name.lower() for name in files}) == 2 * len(alike) + 3
    assert max(len(name) for name in files) < 130
    linked = {link["href"] for link in page.all("a") if link["href"].endswith(".svg")}
    assert linked == {name for name in files if name != "overview.svg"}


def test_two_domains_of_one_name_have_figures_of_their_own(tmp_path):
    write(tmp_path / "runs", env="digits resnet18")
    classifier(tmp_path / "runs", "era", 0, 0.6)
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    assert len(page.all("figure")) == 4
    assert len([*(tmp_path / "report").glob("digits-resnet18-*.svg")]) == 4


def test_long_labels_leave_room_for_the_panels(tmp_path):
    for i in range(2):
        write(tmp_path / "runs", env="e" * 3000, seed=i, target=f"{i}" * 3000, name=str(i))
    figure = score_figure(*only(tmp_path))
    png(figure)  # which warns where the panels collapse
    assert figure.axes[0].get_position().height > 0.3


def test_long_names_are_whole_inside_the_figure_and_on_no_other_text(tmp_path):
    name = "a-name-of-150-characters-" * 6
    for target in (f"{i} {name}" for i in range(3)):
        for env in (f"gym/{name}1", f"gym/{name}2"):
            write(tmp_path / "control", env=env, target=target, least=-90.0, name=f"{env}/{target}")
    for i in range(3):
        speaker(tmp_path / "language", f"grpo-{i}-{name}", low=0.4, high=0.6)
    control, language = (compare([tmp_path / each]) for each in ("control", "language"))
    look = looks([*control, *language])
    figures = [draw(control[0], look) for draw in (score_figure, entropy_figure, overview_figure)]
    figures += [thresholds_figure(language[0], look), multiples_figure(control, look, draw_score, "Return")]
    for figure in figures:
        figure.draw_without_rendering()
        titles = [figure.texts[0], *(axes._left_title for axes in figure.axes)]
        texts = [*titles, *(text for legend in figure.legends for text in legend.get_texts())]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        for i, box in enumerate(boxes):
            assert figure.bbox.padded(1).contains(box.x0, box.y0)
            assert figure.bbox.padded(1).contains(box.x1, box.y1)
            assert not [other for other in boxes[:i] if box.overlaps(other)]
        shown = "".join("".join(text.get_text() for text in texts).split())
        assert name in shown  # lines are broken inside it, and nothing is left out
        assert min(axes.get_position().height for axes in figure.axes) * figure.get_figheight() > 0.7


def test_a_long_label_of_a_curve_that_leaves_the_panel_takes_no_room(tmp_path):
    write(tmp_path / "runs")
    for i in range(8):
        write(tmp_path / "runs", "sac", target=f"{i}" + "x" * 150, least=-90.0)
    comparison, look = only(tmp_path)
    figure = entropy_figure(comparison, look)
    png(figure)  # which warns where the panels collapse
    [axes] = figure.axes
    assert axes.get_position().width > 0.7
    assert axes.get_position().height * figure.get_figheight() > 1.0
    assert {text.get_color() for text in axes.texts} == {look[label].colour for label in look if "=" in label}
    assert max(len(text.get_text()) for text in axes.texts) < 60


@pytest.mark.slow
def test_of_many_agents_the_best_are_drawn_and_all_are_in_the_tables(tmp_path):
    for i in range(MOST + 3):
        content = contents()
        content["config.toml"]["alpha"] = i / 8
        for line in content["metrics.jsonl"]:
            line.update({"return": float(-i)} if "return" in line else {})
        write_files(tmp_path / "runs" / str(i), dumped(content))
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    root = ElementTree.fromstring((tmp_path / "report" / "dmc-walker-walk-return.svg").read_text())
    texts = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    drawn = {f"sac-era-exact, alpha={i / 8} (n = 1)" for i in range(MOST)}
    assert {text for text in texts if text and text.startswith("sac")} == drawn
    assert f"At most {MOST} agents are drawn" in "".join(page.parts)
    labels = {row[0] for row in page.rows}
    assert {f"sac-era-exact, alpha={i / 8}" for i in range(MOST + 3)} <= labels
    assert len((tmp_path / "report" / "table.csv").read_text().splitlines()) == MOST + 4


SWEEP = """
import re, sys, time
from entropyfloor.report import write_report
write_report([sys.argv[1]], sys.argv[2])
# Not the ru_maxrss of getrusage, which is at least what the process had that started this one.
peak = re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]
print(time.process_time(), int(peak) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "seeds"), [(1000, 10), (10, 1000)])
def test_ten_thousand_runs(labels, seeds, tmp_path):
    content = contents()
    content["metrics.jsonl"] = [*metrics(0, range(0, 20_001, 1000))]
    content["status.json"]["step"] = 20_000
    for i in range(labels):
        for seed in range(seeds):
            content["config.toml"] = {f"setting_{k}": k / 8 for k in range(30)}
            content["config.toml"] |= {**contents()["config.toml"], "alpha": i / 8, "seed": seed}
            write_files(tmp_path / "runs" / f"{i}-{seed}", dumped(content))
    command = [sys.executable, "-c", SWEEP, str(tmp_path / "runs"), str(tmp_path / "report")]
    seconds, megabytes = map(float, subprocess.check_output(command, text=True).split())
    assert seconds < 30
    assert megabytes < 500


# --- floors, in words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "kept"), [(-2.0, True), (-3.0009, True), (-3.0011, False)])
def test_a_floor_is_kept_within_its_tolerance(tmp_path, least, kept):
    write(tmp_path, least=least)
    assert verdict(group(tmp_path)) == ("holds" if kept else "broken by 0.0011 nats")
    text = lead(compare([tmp_path]))
    assert ("holds" in text, "broken" in text) == (kept, not kept)


def test_a_floor_that_was_broken_once_is_broken(tmp_path):
    path = write(tmp_path)
    run = Run.open(path)
    run.log(3000, {"return": 1.0, "realised_entropy": -3.0, "realised_entropy/min": -4.5})
    run.log(4000, {"return": 1.0, "realised_entropy": -3.0, "realised_entropy/min": -3.0})
    assert verdict(group(tmp_path)) == "broken by 1.5 nats"


def test_sentences(tmp_path):
    for seed in range(3):
        write(tmp_path, "sac-era", seed, mean=-5.5, least=-7.3)
        write(tmp_path, "sac-era-exact", seed, least=-4.0 if seed == 1 else -3.0)
        write(tmp_path, "sac", seed, mean=-2.0, least=-9.0)
    write(tmp_path, "sac-no-entropy", mean=-12.0, least=-20.0, floor=None)
    [comparison] = compare([tmp_path])
    texts = [sentence(g, comparison.domain).replace("\N{MINUS SIGN}", "-") for g in comparison.groups]
    assert [text.split()[0] for text in texts] == ["sac", "sac-era", "sac-era-exact", "sac-no-entropy"]
    assert [re.findall(r"-[0-9.]+[0-9]", text) for text in texts] == [
        ["-3.00", "-2.00", "-9.00"],
        ["-3.00", "-5.50", "-7.30"],
        ["-3.00", "-3.00", "-4.00"],
        ["-12.00", "-20.00"],
    ]
    assert ["no floor" in text for text in texts] == [True, False, False, True]
    assert ["broken" in text for text in texts] == [False, True, True, False]
    assert "all 3 seeds" in texts[1]
    assert "1 of 3 seeds" in texts[2]
    assert [verdict(g) for g in comparison.groups] == [
        "no floor",
        "broken by 4.3 nats",
        "broken by 1 nats",
        "no floor",
    ]
    assert "2 floors" in lead([comparison])
    assert "None" in lead([comparison])


def test_numbers_have_sensible_digits():
    assert [nats(x) for x in (-3.004, -0.001, 2.0)] == ["\N{MINUS SIGN}3.00", "0.00", "2.00"]
    assert [plain(x) for x in (12345.6, 612.34, -0.126)] == ["12,346", "612.3", "\N{MINUS SIGN}0.13"]
    assert plain(1119.4, 1) == "1,119.4"
    assert [significant(x) for x in (4.319, 0.00123, 23.7)] == ["4.3", "0.0012", "24"]


# --- figures ---------------------------------------------------------------------------------------------


def fill(root):
    """Two environments, all agents, and runs that did not end well."""
    for seed in range(3):
        write(root, "sac-era", seed, mean=-5.5, least=-7.3, returns=(0.0, 90.0 + seed, 100.0 + 10 * seed))
        write(root, "sac-era-exact", seed)
        write(root, "sac", seed, mean=-2.0, least=-9.0)
    write(root, "sac-no-entropy", 0, mean=-20.0, least=-60.0, floor=None)
    ant = {"env": "gym/Ant-v4", "target": NASTY}
    write(root, "sac-era-exact", 0, name="ant-0", **ant)
    write(root, "sac-era-exact", 1, name="ant-1", returns=(1.0, 2.0), error=KeyboardInterrupt(), **ant)
    write(root, "sac-era-exact", 2, name="ant-2", returns=(), error=FloatingPointError(f"loss is {NASTY}"), **ant)
    write(root, "sac-era-exact", 0, name="ant-3", **ant | {"target": "-A"})


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Runs as above in `runs`, and their report in `report`."""
    home = tmp_path_factory.mktemp("report")
    fill(home / "runs")
    write_report([home / "runs"], home / "report")
    return home


def test_the_entropy_figure_shows_the_floor_the_mean_and_the_least(filled):
    [walker, _] = compare([filled])
    look = looks([walker])
    [axes] = entropy_figure(walker, look).axes
    drawn = {(line.get_color(), line.get_linestyle()): np.asarray(line.get_ydata()) for line in axes.lines}
    era = look["sac-era"].colour
    np.testing.assert_allclose(drawn[era, "-"], [-5.5] * 3)
    np.testing.assert_allclose(drawn[era, "--"], [-7.2, -7.2, -7.3])
    np.testing.assert_allclose(drawn["black", "-"], [-3.0, -3.0])
    bottom, top = axes.get_ylim()
    [shaded] = axes.patches
    assert (shaded.get_y(), shaded.get_y() + shaded.get_height()) == pytest.approx((bottom, -3.0))
    assert -60.0 < bottom < -7.3  # an agent without a floor may leave the panel, one with a floor may not
    assert top > -2.0
    assert [text.get_text() for text in axes.texts] == [
        "\N{BLACK DOWN-POINTING SMALL TRIANGLE} sac-no-entropy: least \N{MINUS SIGN}60"
    ]


def test_a_target_is_not_drawn_as_a_floor(tmp_path):
    write(tmp_path, "sac", floor=-4.5)
    figure = entropy_figure(*only(tmp_path))
    [line] = [line for line in figure.axes[0].lines if line.get_color() == "black"]
    assert line.get_linestyle() == ":"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "target, \N{MINUS SIGN}4.5 nats" in labels
    assert not [label for label in labels if "promised" in label]


def test_the_return_figure_shows_mean_interval_and_single_seeds(tmp_path):
    write(tmp_path, seed=0, returns=(1.0, 2.0, 3.0))
    write(tmp_path, seed=1, returns=(2.0, 2.0))
    write(tmp_path, seed=2, returns=(3.0, 5.0))
    figure = score_figure(*only(tmp_path))
    [axes] = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2.0, 3.0], [2.0, 3.0]]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    # standard errors 1/√3 and 1, t(0.975, 2) = 4.302653 from a printed table
    np.testing.assert_allclose([band.min(), band.max()], [3.0 - 4.302653, 3.0 + 4.302653], rtol=1e-5)
    bottom, top = axes.get_ylim()
    assert (bottom, top) == (-1.0, 7.0)  # half the range of the seeds below and above it, not the whole band
    assert figure.legends[0].get_texts()[0].get_text() == "sac-era-exact (n = 3)"


def test_two_seeds_are_shown_themselves(tmp_path):
    write(tmp_path, seed=0, returns=(1.0, 2.0, 3.0))
    write(tmp_path, seed=1, returns=(3.0, 2.5))
    [axes] = score_figure(*only(tmp_path)).axes
    curves = [line.get_ydata().tolist() for line in axes.lines]
    assert curves == [[2.0, 2.25], [2.0, 3.0], [1.0, 2.0], [3.0, 2.5]]  # the mean, what went further, the two
    assert not axes.collections


def test_every_label_looks_different(tmp_path):
    for i in range(13):
        write(tmp_path, alpha=float(i), returns=(1.0, 2.0))
    comparisons = compare([tmp_path])
    assert len(set(looks(comparisons).values())) == 13
    image = matplotlib.image.imread(BytesIO(png(overview_figure(comparisons[0], looks(comparisons)))))
    assert image.shape[1] == 2200


def test_in_a_crowd_intervals_stand_at_the_side(tmp_path):
    for i in range(7):
        for seed in range(3):
            write(tmp_path, seed=seed, alpha=float(i), returns=(1.0, i + seed), name=f"{i}-{seed}")
    comparison, look = only(tmp_path)
    assert len({each.colour for each in look.values()}) == 7
    [axes] = score_figure(comparison, look).axes
    assert not axes.collections  # no bands
    ends = [line for line in axes.lines if line.get_transform() != axes.transData and len(line.get_ydata()) == 2]
    # standard error 1/√3, t(0.975, 2) = 4.302653 from a printed table
    half = 4.302653 / math.sqrt(3)
    np.testing.assert_allclose(
        [line.get_ydata() for line in ends], [[i + 1 - half, i + 1 + half] for i in range(7)], rtol=1e-5
    )
    bottom, top = axes.get_ylim()
    assert bottom <= 1 - half
    assert top >= 7 + half


def test_files_are_whole_and_the_same_for_the_same_runs(filled, tmp_path):
    before = dict(matplotlib.rcParams)
    (tmp_path / "index.html").write_text("an older report")
    assert write_report([filled / "runs"], tmp_path) == tmp_path / "index.html"
    assert dict(matplotlib.rcParams) == before
    names = sorted(path.name for path in tmp_path.iterdir())
    stems = ["dmc-walker-walk-entropy", "dmc-walker-walk-return", "gym-Ant-v4-entropy", "gym-Ant-v4-return"]
    stems += ["overview"]
    figures = [f"{stem}{suffix}" for stem in stems for suffix in (".csv", ".png", ".svg")]
    assert names == sorted([*figures, "index.html", "runs.csv", "table.csv"])
    for name in names:
        content = (tmp_path / name).read_bytes()
        assert content == (filled / "report" / name).read_bytes(), name
        if name.endswith(".png"):
            assert matplotlib.image.imread(BytesIO(content)).shape[2] == 4
        if name.endswith(".svg"):
            texts = [e.text for e in ElementTree.fromstring(content).iter("{http://www.w3.org/2000/svg}text")]
            assert "Environment steps" in texts
            assert any("promised floor" in str(text) for text in texts) == ("return" not in name)


def test_svg_does_not_depend_on_what_was_drawn_before(tmp_path):
    write(tmp_path)
    comparison, look = only(tmp_path)
    first = svg(entropy_figure(comparison, look))
    svg(overview_figure(comparison, look))
    assert svg(entropy_figure(comparison, look)) == first


# --- the page --------------------------------------------------------------------------------------------


def test_the_page_says_what_happened(filled):
    page = Page(filled / "report" / "index.html")
    text = "".join(page.parts).replace("\N{MINUS SIGN}", "-")
    assert re.search("3 of 4 floors hold", text)
    assert re.search(r"sac-era has a floor of -3\.00 nats.*-5\.50.*-7\.30", text)
    assert "0.001 nats" in text
    # runs that ended badly, with the reason; what they say is shown, not run
    assert re.search("seed 1: interrupted .*1,000 of 2,000", text)
    assert f"seed 2: failed (FloatingPointError: loss is {NASTY}; " in text
    assert f"sac-era-exact, target={NASTY} has a floor" in text
    assert [script.get("type") for script in page.all("script")] == [*["application/json"] * 4, None]

    rows = [[cell.replace("\N{MINUS SIGN}", "-") for cell in row] for row in page.rows]
    # 100, 110, 120: s = 10, t(0.975, 2) = 4.302653
    iqm_cell = "110.0 [100.0, 120.0]"
    mean_cell = "110.0 [85.2, 134.8]"
    era = ["3", "2,000", mean_cell, iqm_cell, "-3.00", "-5.50", "-7.30", "broken by 4.3 nats"]
    assert ["sac-era", *era, "101.0 [101.0, 101.0]"] in rows
    assert [
        "sac-no-entropy",
        "1",
        "2,000",
        "30.0",
        "n < 3",
        "none",
        "-20.00",
        "-60.00",
        "no floor",
        "101.0",
    ] in rows
    assert "-3.00 (target)" in next(row for row in rows if row[0] == "sac")


def test_the_page_stands_alone_and_can_be_read_aloud(filled):
    page = Page(filled / "report" / "index.html")
    figures = page.all("figure")
    assert len(figures) == 4
    for figure in figures:
        assert len(figure["aria-label"]) > 50
    loaded = ("src", "href", "srcset", "data", "action", "style")
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        if tag == "use":  # the markers of a curve, which the page draws once
            assert attributes.pop("href").removeprefix("#") in ids
        assert not [name for name in loaded if name in attributes and tag != "a"]
    for link in page.all("a"):  # to a part of the page, or to a file beside it
        place = link["href"]
        assert place.removeprefix("#") in ids if place[0] == "#" else (filled / "report" / place).is_file()
    style = "".join(page.parts)
    assert "url(" not in style
    assert "@import" not in style
    assert page.all("html") == [{"lang": "en"}]
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "http-equiv" in m)


def test_the_page_lists_settings_machines_and_commands(tmp_path):
    write(tmp_path / "runs", "sac", 0, alpha=0.5, tau=0.005)
    write(tmp_path / "runs", "sac-era", 0, alpha=0.7, tau=0.005)
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    assert ["tau", "0.005"] in page.rows
    assert ["Agent", "agent", "alpha", "head"] in page.rows
    assert ["sac-era", "sac-era", "0.7", "era"] in page.rows
    assert not [row for row in page.rows if row[0] in ("seed", "out")]
    text = "".join(page.parts)
    assert f"numpy {np.__version__}" in text
    assert "memory_gb" in text


def test_the_table_holds_the_raw_numbers(filled):
    with (filled / "report" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    row = next(row for row in rows if row["label"] == "sac-era" and row["seed"] == "2")
    assert float(row["return"]) == 120.0
    assert (float(row["realised_entropy"]), float(row["least"]), float(row["floor"])) == (-5.5, -7.3, -3.0)
    assert (row["env"], row["step"], row["promise"]) == ("dmc/walker-walk", "2000", "floor")
    [failed] = [row for row in rows if row["state"] == "failed"]
    assert (failed["return"], failed["step"]) == ("", "")


# --- classifiers -----------------------------------------------------------------------------------------


def classifier(root, agent, seed, floor=None, counts=None, **logged):
    """A run of a classifier with two evaluations; `counts` adds results of `entropyfloor evaluate`."""
    config = {"domain": "vision", "env": "digits resnet18", "agent": agent, "epochs": 1}
    run = Run.create(root / agent / str(seed), {**config, "seed": seed})
    with run.recording():
        for epoch in range(2):
            entropy = {"realised_entropy": 0.9, "realised_entropy/min": 0.61}
            promised = {} if floor is None else {"floor": floor}
            run.log(epoch, {"top1": 0.5 + 0.01 * seed + 0.1 * epoch, **entropy, **promised, **logged})
    if counts:
        entropies = {"edges": [0.0, 0.5, 1.0], "counts": counts}
        reliability = {"edges": [0.0, 0.5, 1.0], "counts": [9, 100], "correct": [8, 80], "confidence": [4.0, 90.0]}
        histograms = {"entropy_histogram": entropies, "calibration_histogram": reliability}
        run.keep_evaluation({"step": 1, "values": {"auroc": 0.75, "nll": 9.0}, **histograms})


def test_figure_and_table_of_classifiers(tmp_path):
    for seed in range(2):
        classifier(tmp_path, "era", seed, 0.6, [0, 110 + seed], nll=1.0 + seed, ece=0.05)
        classifier(tmp_path, "plain", seed, None, [60, 50] if seed else None, nll=2.0)
    figure = evaluation_figure(*only(tmp_path))
    entropies, reliability = figure.axes
    [stairs] = entropies.patches  # one seed of plain was not evaluated
    np.testing.assert_allclose(stairs.get_data().values, [0.0, 100.0])
    curve, diagonal = reliability.lines
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([0.9], [0.8])  # 18 of a bin are too few
    assert list(diagonal.get_xdata()) == [0, 1]

    page = write_report([tmp_path], tmp_path / "report").read_text()
    assert (tmp_path / "report" / "digits-resnet18-evaluation.png").exists()
    assert re.search(r"\bera\b.* 0\.50 to 1\.00 nats", page)
    columns = re.search(r"More results at.*?</thead>", page, re.DOTALL)[0]
    assert re.findall("<th scope[^>]*>([^<]*)", columns) == ["Agent", "NLL (nats)", "Calibration error (%)"]
    lines = re.findall(r"<tr><th[^>]*>(?:era|plain)</th>(.*?)</tr>", page.split("More results at")[1], re.DOTALL)
    era, plain = lines[:2]
    nll, error = re.findall(r">([^<]+)</td>", era)
    assert nll.startswith("1.500 [")  # as training logged it
    assert error == "5.00 [5.00, 5.00]"
    assert "0.750" not in page  # AUROC, which training did not log: not every run was evaluated
    assert '<td class="number"></td>' in plain  # it has not logged its calibration
    rows = list(csv.DictReader((tmp_path / "report" / "table.csv").read_text().splitlines()))
    assert [(row["label"], row["nll"], row["ece"]) for row in rows] == [
        ("era", "1.0", "0.05"),
        ("era", "2.0", "0.05"),
        ("plain", "2.0", ""),
        ("plain", "2.0", ""),
    ]


def test_what_training_did_not_log_is_from_evaluate(tmp_path):
    for agent in ("era", "plain"):
        classifier(tmp_path, agent, 0, None, [0, 110], nll=1.0)
    page = write_report([tmp_path], tmp_path / "report").read_text()
    assert "AUROC, other dataset" in page
    assert "0.750" in page
    assert "9.000" not in page  # training logged another NLL


def test_histograms_on_different_edges_are_not_added_up(tmp_path):
    for seed, edges in enumerate(([0.0, 1.0], [0.0, 2.0])):
        classifier(tmp_path, "era", seed, 0.6)
        run = Run.open(tmp_path / "era" / str(seed))
        run.keep_evaluation({"step": 1, "entropy_histogram": {"edges": edges, "counts": [3]}})
    with pytest.raises(ValueError, match=r"era: .*entropy_histogram on different edges"):
        evaluation_figure(*only(tmp_path))


def test_a_histogram_of_an_earlier_checkpoint_is_not_drawn(tmp_path):
    classifier(tmp_path, "era", 0, 0.6)
    histogram = {"edges": [0.0, 1.0], "counts": [3]}
    for step, drawn in ((0, False), (1, True)):
        Run.open(tmp_path / "era" / "0").keep_evaluation({"step": step, "entropy_histogram": histogram})
        [group] = only(tmp_path)[0].groups
        assert (group.histogram("entropy_histogram") is not None) == drawn


def test_without_an_evaluation_nothing_is_drawn(tmp_path):
    classifier(tmp_path, "era", 0, 0.6)
    assert evaluation_figure(*only(tmp_path)) is None
    write_report([tmp_path], tmp_path / "report")
    assert not list((tmp_path / "report").glob("*evaluation*"))


# --- language models -------------------------------------------------------------------------------------


def speaker(
    root,
    agent="grpo",
    seed=0,
    *,
    entropy=lambda step: 0.5,
    low=None,
    high=None,
    steps=4,
    every=2,
    shares=(0.25, 0.125),
    samples=4,
):
    """A run of a language model; `low` and `high` are thresholds, or functions of the step."""
    config = {"domain": "language", "env": "countdown-3 tiny", "agent": agent, "steps": 150}
    run = Run.create(root / agent / str(seed), {**config, "seed": seed})
    with run.recording():
        for step in range(steps + 1):
            if step:
                at = {
                    name: value(step) if callable(value) else value
                    for name, value in (("omega_low", low), ("omega_high", high))
                    if value is not None
                }
                outside = dict(zip(("response_entropy/below", "response_entropy/above"), shares, strict=True))
                tokens = {"token_entropy/top": entropy(step), "token_entropy/bottom": 0.001 * step}
                rollout = {"reward": 0.125 * step, "response_entropy": entropy(step), **outside, **tokens}
                scaled = {"scaled_share": 0.25} if low is not None else {}
                run.log(step, {**rollout, **at, **scaled, "tokens_per_second": 1000.0 + 2 * seed})
            if step % every == 0:
                evaluated = {"realised_entropy": 0.5, "realised_entropy/min": 0.0, "greedy": 0.5}
                evaluated["response_length/eval"] = 12.5
                shared = {f"pass_at_{k}": 0.125 * k + 0.01 * seed for k in (1, 2, 4) if k <= samples}
                run.log(step, {"avg_at_k": 0.25 + 0.01 * step, **evaluated, **shared})
    return run


def test_learning_curves_of_language_models(tmp_path):
    speaker(tmp_path)
    figure = score_figure(*only(tmp_path))
    score, greedy, reward = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["avg@k (%)", "Greedy (%)", "Reward of rollouts"]
    np.testing.assert_allclose(score.lines[0].get_ydata(), [25.0, 27.0, 29.0])
    assert greedy.lines[0].get_ydata().tolist() == [50.0, 50.0, 50.0]
    assert reward.lines[0].get_xydata().tolist() == [[1, 0.125], [2, 0.25], [3, 0.375], [4, 0.5]]
    assert not [axes for axes in overview_figure(*only(tmp_path)).axes[1:] if not axes.lines]
    assert entropy_figure(*only(tmp_path)) is None  # as there is that of responses


@pytest.mark.parametrize(
    "other",
    [
        {},
        *({"samples": 32}, {"problems": 8}, {"temperature": 0.5}, {"asked": 2}, {"ood": "digits"}),
        *({"step": 2}, {"step": None}),
    ],
)
def test_pass_at_k_is_from_evaluate_where_all_conditions_are_the_same(other, tmp_path):
    for seed in range(2):
        for agent in ("grpo", "era"):
            speaker(tmp_path, agent, seed)
            values = {"pass_at_1": 0.25, "pass_at_64": 0.5 + 0.25 * seed}
            found = {"step": 4, "samples": 64, "problems": 9, "temperature": 1.0, "asked": 1, "values": values}
            if (agent, seed) == ("era", 1):
                found |= other
            Run.open(tmp_path / agent / str(seed)).keep_evaluation(found)
    for group in only(tmp_path)[0].groups:
        if other:
            assert group.pass_at.steps.tolist() == [1, 2, 4]
        else:
            assert group.pass_at.steps.tolist() == [1, 64]
            assert group.pass_at.values.tolist() == [[25, 50], [25, 75]]
            assert group.last("pass_at_1").tolist() == [0.25, 0.25]  # as the figure has it


def test_what_evaluations_log_is_not_averaged_and_a_short_seed_hides_nothing(tmp_path):
    speaker(tmp_path, steps=600, every=10)
    [grpo] = only(tmp_path)[0].groups
    assert grpo.curve("greedy").steps.tolist() == [*range(0, 601, 10)]
    speaker(tmp_path, seed=1, steps=10, every=10)
    [both] = only(tmp_path)[0].groups
    assert both.curve("response_entropy").values.shape == (2, 1)


def test_what_is_logged_often_is_averaged_over_blocks(tmp_path):
    speaker(tmp_path, entropy=float, steps=150, every=50)
    speaker(tmp_path, seed=1, entropy=lambda step: step + 3.0, steps=100, every=50)
    [grpo] = only(tmp_path)[0].groups
    curve = grpo.curve("response_entropy")
    assert curve.steps.tolist() == [3.0 * i + 2 for i in range(33)]  # 150 steps are 50 blocks of 3, 100 are 33.3
    np.testing.assert_allclose(curve.values[0], curve.steps)
    np.testing.assert_allclose(curve.values[1], curve.steps + 3)
    [(steps, values)] = curve.tails
    np.testing.assert_allclose(steps, values)
    assert (steps[0], steps[-1]) == (98, 149)
    # in the table: from the evaluation at 50 to that at 100
    assert grpo.last("response_entropy").tolist() == [75.5, 78.5]
    assert grpo.curve("avg_at_k").steps.tolist() == [0, 50, 100]
    assert grpo.curve("loss") is grpo.last("loss") is grpo.end("loss") is None


def test_entropy_of_responses_stands_beside_its_thresholds(tmp_path):
    for seed in range(3):
        moving = {"low": lambda step: 0.25 if step < 3 else 0.125, "high": 3.0}
        speaker(tmp_path, "grpo-era", seed, entropy=lambda step, seed=seed: 0.5 + 0.1 * seed, **moving)
        speaker(tmp_path, "grpo", seed, entropy=lambda step: 0.5 / step)
    comparison, look = only(tmp_path)
    [axes] = responses_figure(comparison, look).axes
    drawn = {line.get_color(): line.get_ydata().tolist() for line in axes.lines}
    np.testing.assert_allclose(drawn[look["grpo-era"].colour], [0.6] * 4)
    assert drawn[look["grpo"].colour] == [0.5, 0.25, 0.5 / 3, 0.125]
    assert drawn["black"] == [0.25, 0.25, 0.125, 0.125]
    assert [line for line in axes.lines if line.get_linestyle() == ":"] == []  # ω_high is far out of sight
    assert axes.get_yscale() == "log"  # 0.7 is more than 5 times 0.125
    assert len(axes.collections) == 2  # bands, and nothing shaded

    figure = thresholds_figure(comparison, look)
    plain_panel, era_panel = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["grpo (n = 3)", "grpo-era (n = 3)"]
    colours = [{line.get_color() for line in axes.lines} for axes in figure.axes]
    others = colours[0] & colours[1]
    assert [found - others for found in colours] == [{look["grpo"].colour}, {look["grpo-era"].colour, "black"}]
    assert plain_panel.get_ylim() == era_panel.get_ylim()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["the others", "ω_low"]
    assert len(plain_panel.collections) == 1
    _, shaded = era_panel.collections  # its band, and below ω_low
    low = {(1, 0.25), (2, 0.25), (3, 0.125), (4, 0.125)}
    assert {*map(tuple, shaded.get_paths()[0].vertices)} == {*low, *((step, 0) for step, _ in low)}


def test_omega_high_is_drawn_where_it_is_in_sight(tmp_path):
    speaker(tmp_path, "grpo-era", low=0.4, high=0.7)
    figure = responses_figure(*only(tmp_path))
    [axes] = figure.axes
    [high] = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert high.get_ydata().tolist() == [0.7] * 4
    bottom, top = axes.get_ylim()
    assert bottom < 0.4
    assert top > 0.7
    assert axes.get_yscale() == "linear"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["grpo-era (n = 1)", "ω_low", "ω_high"]
    assert thresholds_figure(*only(tmp_path)) is None  # one panel would be that figure again


def test_pass_at_k_is_drawn_over_k(tmp_path):
    for seed in range(3):
        speaker(tmp_path, seed=seed)
    speaker(tmp_path, "gspo", samples=2)
    comparison, look = only(tmp_path)
    [axes] = pass_figure(comparison, look).axes
    more, fewer = axes.lines
    np.testing.assert_allclose(more.get_xydata(), [[1, 13.5], [2, 26.0], [4, 51.0]])
    np.testing.assert_allclose(fewer.get_xydata(), [[1, 12.5], [2, 25.0]])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    columns = [column.name for column in comparison.also]
    assert [name for name in columns if name.startswith("pass")] == [
        "pass_at_2",
        "pass_at_4",
    ]  # each one's largest


def test_a_front_has_a_point_for_each_temperature(tmp_path):
    counts = {"grpo": [[4, 0, 0, 0], [2, 1, 0, 0]], "grpo-era": [[4, 4, 0, 0], [2, 2, 1, 1]]}
    for agent, (cold, hot) in counts.items():
        for seed in range(2):
            front = [{"temperature": 0.5, "correct": cold}, {"temperature": 1.0, "correct": hot}]
            conditions = {"step": 4, "problems": 4, "asked": 7, "samples": 4, "temperature": 1.0, "values": {}}
            speaker(tmp_path, agent, seed).keep_evaluation({**conditions, "front": front})
    comparison, look = only(tmp_path)
    [axes] = front_figure(comparison, look).axes
    assert axes.get_xlabel() == "avg@4 (%)"
    plain, era = (line.get_xydata().tolist() for line in axes.lines)
    assert plain == [[25.0, 25.0], [18.75, 50.0]]
    assert era == [[50.0, 50.0], [37.5, 100.0]]
    assert {text.get_text() for text in axes.texts} == {"0.5", "1"}
    speaker(tmp_path / "bare")
    assert front_figure(*only(tmp_path / "bare")) is None


def test_shares_of_responses_add_up(tmp_path):
    speaker(tmp_path, "grpo", 0)
    speaker(tmp_path, "grpo", 1, shares=(0.75, 0.125))
    speaker(tmp_path, "grpo-era", low=0.4)
    comparison, look = only(tmp_path)
    figure = shares_figure(comparison, look)
    areas = figure.axes[0].collections
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in areas]
    assert tops == [50.0, 87.5, 100.0]  # a half below, three eighths between
    assert {tuple(area.get_facecolor()[0][:3]) for area in areas} == {
        matplotlib.colors.to_rgb(look["grpo"].colour)
    }
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["below ω_low", "between", "above ω_high"]
    strengths = [area.get_facecolor()[0][3] for area in areas]
    assert [patch.get_facecolor()[3] for patch in legend.get_patches()] == strengths
    assert len({*strengths}) == 3


def test_entropies_of_tokens(tmp_path):
    speaker(tmp_path, entropy=lambda step: 0.5 + 0.1 * step)
    top, bottom = tokens_figure(*only(tmp_path)).axes
    assert top.get_title("left") == "Entropy of the top 20 % of tokens (nats)"
    assert bottom.get_title("left") == "Entropy of the bottom 80 % (nats)"
    np.testing.assert_allclose(top.lines[0].get_ydata(), [0.6, 0.7, 0.8, 0.9])
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), [0.001, 0.002, 0.003, 0.004])


def test_the_page_of_language_models(tmp_path):
    for seed in range(2):
        speaker(tmp_path / "runs", "grpo-era", seed, low=0.4 + 0.1 * seed, high=3.0)
        speaker(tmp_path / "runs", "grpo", seed)
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    text = "".join(page.parts)
    assert re.search(r"grpo-era has no floor.*below 0\.45 nats", text)
    assert re.search(r"grpo has no floor.* 0\.50 nats on average", text)
    drawn = {path.stem for path in (tmp_path / "report").glob("*.svg")}
    kinds = ("avg_at_k", "entropy", "pass", "thresholds", "shares", "tokens")
    assert drawn == {"overview", *(f"countdown-3-tiny-{kind}" for kind in kinds)}
    alts = [str(figure["aria-label"]) for figure in page.all("figure")]
    for alt, parts in zip(
        alts,
        (
            ("grpo", "29.0 [29.0, 29.0]", "grpo-era"),
            ("grpo", "0.50 nats", "grpo-era", "0.50 nats", "ω_low at 0.45"),
            ("grpo-era", "0.50 nats", "ω_low at 0.45"),
            ("grpo", "25 % below", "12 % above"),
            ("grpo", "0.5 nats", "0.004"),
            ("grpo", "13.0 % for k = 1", "25.5 % for k = 2", "50.5 % for k = 4", "grpo-era"),
        ),
        strict=True,
    ):
        assert re.search(".*".join(map(re.escape, parts)), alt)
    assert [figure.get("class") for figure in page.all("figure")].count("wide") == 4
    head = next(row for row in page.rows if "Greedy (%)" in row)
    names = ["pass@4 (%)", "Greedy (%)", "Reward of rollouts", "Response entropy (nats)", "ω_low (nats)"]
    assert head == ["Agent", *names, "Responses scaled (%)", "Length (tokens)"]
    lines = [row for row in page.rows if row[0] in ("grpo", "grpo-era") and len(row) == len(head)]
    plain_line, era_line = lines[:2]
    assert era_line[1].startswith("50.5 [")
    assert era_line[2:] == [
        "50.0 [50.0, 50.0]",
        "0.438 [0.438, 0.438]",
        "0.500 [0.500, 0.500]",
        "0.450 [\N{MINUS SIGN}0.185, 1.085]",
        "25.0 [25.0, 25.0]",
        "12.5 [12.5, 12.5]",
    ]
    assert plain_line[-3:] == ["", "", "12.5 [12.5, 12.5]"]
    assert "1,001 [988, 1,014]" in next(row for row in page.rows if row[0] == "grpo")
    rows = list(csv.DictReader((tmp_path / "report" / "table.csv").read_text().splitlines()))
    assert [(row["label"], row["omega_low"], row["pass_at_4"]) for row in rows] == [
        ("grpo", "", "0.5"),
        ("grpo", "", "0.51"),
        ("grpo-era", "0.4", "0.5"),
        ("grpo-era", "0.5", "0.51"),
    ]


def test_a_language_model_that_was_only_evaluated_has_a_report(tmp_path):
    speaker(tmp_path, steps=0)
    comparison, look = only(tmp_path)
    assert entropy_figure(comparison, look) is not None
    for figure in (responses_figure, thresholds_figure, shares_figure, tokens_figure):
        assert figure(comparison, look) is None
    assert len(score_figure(comparison, look).axes) == 2  # no reward yet
    write_report([tmp_path], tmp_path / "report")


def test_a_number_that_is_not_finite_is_not_in_the_table(tmp_path):
    classifier(tmp_path, "era", 0, 0.6, nll=1.0, auroc=math.nan)
    page = write_report([tmp_path], tmp_path / "report").read_text()
    assert "NLL (nats)" in page
    assert "AUROC" not in page


def test_the_last_score_is_that_of_the_last_common_step(tmp_path):
    """Also where one seed was evaluated in between, and the other was not."""
    for seed, steps in ((0, (0, 10, 20, 30)), (1, (0, 10, 30))):
        config = {"domain": "control", "env": "dmc/walker-walk", "agent": "sac", "seed": seed, "steps": 30}
        run = Run.create(tmp_path / str(seed), config)
        with run.recording():
            for step in steps:
                run.log(step, {"return": float(step), "realised_entropy": 1.0, "realised_entropy/min": 0.5})
    [comparison] = read_comparisons([tmp_path]).comparisons
    [group] = comparison.groups
    assert group.last("return").tolist() == [30.0, 30.0]
