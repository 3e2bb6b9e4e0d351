"""Statistics over tasks: which runs belong together, their numbers from runs in files, and the figure."""

import csv
from contextlib import redirect_stdout
from io import StringIO
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from entropyfloor.cli import main
from entropyfloor.report import write_report
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.report.figures.scores import overview_figure
from entropyfloor.report.figures.style import looks
from entropyfloor.report.figures.tasks import alt, overview_panels, tasks_figure
from entropyfloor.report.pictures import MOST, most, shared
from entropyfloor.report.tasks import aggregates
from run_files import MACHINE, STATUS, dumped, write
from test_report_statistics import OTHERS, RLIABLE, SCORES

TASKS = ("dmc/dog-run", "dmc/dog-trot", "dmc/dog-walk", "dmc/humanoid-run")


def trained(root, agent, env, seed, returns, *, every=1000, first=0, **settings):
    """A run that was evaluated every so many steps."""
    config = {"domain": "control", "agent": agent, "env": env, "seed": seed, "steps": 1000, **settings}
    steps = [first + every * i for i in range(len(returns))]
    entropy = {"realised_entropy": 1.0, "realised_entropy/min": 0.5}
    content = {
        "config.toml": config,
        "metrics.jsonl": [
            {"step": step, "seconds": 1.0, "return": float(value), **entropy}
            for step, value in zip(steps, returns, strict=True)
        ],
        "status.json": {**STATUS, "step": steps[-1]},
        "machine.json": MACHINE,
    }
    write(root / agent / "-".join(map(str, settings.values())) / env / str(seed), dumped(content))


def on_tasks(root, agent, scores, envs=TASKS, **settings):
    """Runs on tasks of DMC that end with these normalised returns; on each the first is a tenth of the last."""
    for env, of_task in zip(envs, scores, strict=True):
        for seed, score in enumerate(of_task):
            trained(root, agent, env, seed, [100 * score, 1000 * score], **settings)


def found(root, baseline=None):
    """All aggregates of the runs below a directory."""
    return aggregates(read_comparisons([root], baseline).comparisons)


def rows(file):
    """Lines of a table by their labels."""
    with file.open() as lines:
        return {row["label"]: row for row in csv.DictReader(lines)}


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report on the scores of rliable, and the lines that the command printed."""
    root, shown = tmp_path_factory.mktemp("rliable"), StringIO()
    on_tasks(root / "runs", "sac-era", SCORES)
    on_tasks(root / "runs", "sac", OTHERS)
    with redirect_stdout(shown):
        main(["report", str(root / "runs"), "--out", str(root / "report"), "--baseline", "sac"])
    return root / "report", shown.getvalue().splitlines()


@pytest.mark.slow
def test_runs_in_files_have_the_statistics_of_rliable(reported):
    out, shown = reported
    assert shown[0] == "normalised returns on dmc, 4 tasks"
    assert shown[3].startswith("sac-era  5  0.72 [0.6")
    table = rows(out / "tasks.csv")
    assert list(table) == ["sac", "sac-era"]
    for statistic, known in RLIABLE.items():
        for label, (value, low, high) in zip(("sac-era", "sac"), known, strict=True):
            cells = [float(table[label][f"{statistic.__name__}{end}"]) for end in ("", "_low", "_high")]
            assert cells[0] == pytest.approx(value, abs=1e-12)
            assert cells[1:] == pytest.approx([low, high], abs=0.011)
    assert float(table["sac-era"]["improvement"]) == pytest.approx(0.755, abs=1e-12)
    assert float(table["sac-era"]["improvement_low"]) == pytest.approx(0.58, abs=0.015)
    assert (table["sac"]["improvement"], table["sac"]["baseline"]) == ("", "sac")
    with (out / "task-scores.csv").open() as file:
        scores = [*csv.DictReader(file)]
    assert len(scores) == 40
    for row in scores:
        expected = (SCORES if row["label"] == "sac-era" else OTHERS)[TASKS.index(row["env"])][int(row["seed"])]
        assert float(row["normalised"]) == pytest.approx(expected)
        assert (float(row["return"]), row["step"]) == (pytest.approx(1000 * expected), "1000")


def test_numbers_are_those_of_loops(tmp_path):
    """Every task counts alike, whatever its number of seeds."""
    rng = np.random.default_rng(0)
    own = [rng.uniform(0, 1.4, n).round(2) for n in (3, 4, 6)]
    other = [rng.uniform(0, 1.2, n).round(2) for n in (4, 3, 3)]
    on_tasks(tmp_path, "sac-era", own, TASKS[:3])
    on_tasks(tmp_path, "sac", other, TASKS[:3])
    [aggregate] = found(tmp_path, "sac")
    base, row = aggregate.rows
    assert (base.arm.label, row.arm.label, row.arm.seeds, aggregate.baseline) == (
        "sac",
        "sac-era",
        "3 to 6",
        base.arm,
    )

    means, gaps, wins = [], [], []
    for x, y in zip(own, other, strict=True):
        means.append(sum(x) / len(x))
        gaps.append(sum(max(0.0, 1 - score) for score in x) / len(x))
        wins.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(x, y)) / len(x) / len(y))
    repeated = sorted(score for x in own for score in x for _ in range(12 // len(x)))
    expected = {
        "median": sorted(means)[1],
        "iqm": sum(repeated[9:27]) / 18,
        "mean": sum(means) / 3,
        "optimality_gap": sum(gaps) / 3,
    }
    assert {name: float(each.value) for name, each in row.statistics.items()} == pytest.approx(expected)
    assert row.improvement.value == pytest.approx(sum(wins) / 3)
    for each in (*row.statistics.values(), row.improvement):
        assert each.low < each.value < each.high
        assert each.n == 3


def test_the_interval_narrows_with_seeds(tmp_path):
    widths = []
    for n in (3, 12, 48):
        scores = 0.5 + 0.1 * norm.ppf((np.arange(n) + 0.5) / n)
        for agent in ("sac", "sac-era"):
            on_tasks(tmp_path / str(n), agent, [scores, scores], TASKS[:2])
        interval = found(tmp_path / str(n))[0].rows[0].statistics["mean"]
        assert interval.value == pytest.approx(0.5)
        widths.append(float(interval.high - interval.low))
        assert widths[-1] == pytest.approx(2 * 1.96 * scores.std() / np.sqrt(2 * n), rel=0.1)
    assert widths[0] > 1.5 * widths[1] > 2.5 * widths[2]


@pytest.mark.slow
def test_two_seeds_have_values_and_no_interval(tmp_path):
    on_tasks(tmp_path / "runs", "sac", [[0.1, 0.3], [0.5, 0.5, 0.5]], TASKS[:2])
    on_tasks(tmp_path / "runs", "sac-era", [[0.2, 0.2, 0.2], [0.4, 0.5, 0.6]], TASKS[:2])
    [aggregate] = found(tmp_path / "runs", "sac")
    assert aggregate.remarks == ("no interval with fewer than 3 seeds in a task: sac on dmc/dog-run (n = 2)",)
    head, sac, era = aggregate.shown()
    assert head == ["Agent", "n", "Median", "IQM", "Mean", "Optimality gap", "P(better than sac)"]
    assert sac == ["sac", "2 to 3", "0.35", "0.40", "0.35", "0.65", ""]
    assert era[0:2] == ["sac-era", "3"]
    assert era[4].startswith("0.35 [")
    assert era[6] == "0.50"
    write_report([tmp_path / "runs"], tmp_path / "report", baseline="sac")
    line = rows(tmp_path / "report" / "tasks.csv")["sac"]
    assert (line["mean"], line["mean_low"], line["mean_high"]) == ("0.35", "", "")
    assert line["remarks"] == aggregate.remarks[0]


def test_scores_are_those_up_to_where_the_first_agent_ends(tmp_path):
    for env, n in product(TASKS[:2], range(3)):
        trained(tmp_path, "sac", env, n, [0, 100, 200, 300, 900])
        trained(tmp_path, "sac-era", env, n, [0, 500], every=3500 if env == TASKS[0] else 4000)
    [aggregate] = found(tmp_path)
    sac, era = aggregate.rows
    assert (sac.statistics["mean"].value, era.statistics["mean"].value) == (0.6, 0.5)
    assert aggregate.remarks == (f"scores on {TASKS[0]} are those up to step 3,500: sac went further",)
    assert {row["step"] for row in aggregate.scores()} == {3000, 3500, 4000}
    np.testing.assert_array_equal(sac.arm.curve[0], range(0, 4001, 1000))
    np.testing.assert_array_equal(era.arm.curve[0], [0])


# --- what belongs together -------------------------------------------------------------------------------


def test_a_score_after_the_common_end_is_named(tmp_path):
    for env in TASKS[:2]:
        trained(tmp_path, "sac", env, 0, [100], first=200)
        trained(tmp_path, "ppo", env, 0, [300], first=500)
    [aggregate] = found(tmp_path)
    late = "scores on {} without an evaluation up to step 200 are the first: ppo (step 500)"
    about = [remark for remark in aggregate.remarks if remark.startswith("scores on")]
    assert about == [late.format(env) for env in sorted(TASKS[:2])]


def test_arms_have_the_same_tasks_and_what_is_left_out_is_named(tmp_path):
    three = [[0.1, 0.2, 0.3]] * 3
    for agent in ("sac", "sac-era", "sac-era-exact"):
        on_tasks(tmp_path, agent, three, TASKS[:3])
    on_tasks(tmp_path, "sac-era", three[:1], TASKS[3:])
    on_tasks(tmp_path, "obac", three[:1], TASKS[:1])
    on_tasks(tmp_path, "ppo", three[:2], ["gym/Ant-v4", "gym/Hopper-v4"])  # alone in its suite
    [aggregate] = found(tmp_path, "ppo")
    assert (aggregate.name, aggregate.envs) == ("dmc, 3 tasks", TASKS[:3])
    assert [arm.label for arm in aggregate.arms] == ["sac", "sac-era", "sac-era-exact"]
    assert aggregate.remarks == (
        "obac is left out: no runs on dmc/dog-trot, dmc/dog-walk",
        "dmc/humanoid-run is left out: no runs of sac, sac-era-exact",
    )
    assert aggregate.baseline is None
    assert len(aggregate.shown()[0]) == 6


def test_a_baseline_of_one_task_only_is_named(tmp_path):
    on_tasks(tmp_path, "sac", SCORES[:2], TASKS[:2], learning_rate=1.0)
    on_tasks(tmp_path, "sac", SCORES[:1], TASKS[:1], learning_rate=2.0)
    on_tasks(tmp_path, "sac-era", SCORES[:2], TASKS[:2])
    [aggregate] = found(tmp_path, "sac, learning_rate=1.0")
    assert aggregate.baseline is None
    named = f"sac, learning_rate=1.0 on {TASKS[0]}, none on {TASKS[1]}"
    assert any(f"the baseline is not one arm on all tasks ({named})" in said for said in aggregate.remarks)


@pytest.mark.parametrize(("tasks", "envs", "arms"), [(3, 3, 3), (2, 4, 2)])
def test_most_pairs_of_agents_and_tasks_are_kept(tasks, envs, arms, tmp_path):
    """With three of four tasks 3·3 > 2·4 pairs, with two 3·2 < 2·4."""
    on_tasks(tmp_path, "sac", SCORES)
    on_tasks(tmp_path, "sac-era", SCORES)
    on_tasks(tmp_path, "obac", SCORES[:tasks], TASKS[:tasks])
    [aggregate] = found(tmp_path)
    assert (len(aggregate.envs), len(aggregate.arms)) == (envs, arms)
    assert ("obac" in aggregate.remarks[0]) == (len(aggregate.remarks) == 1)


@pytest.mark.slow
def test_agents_on_other_tasks_of_a_suite_are_an_aggregate_of_their_own(tmp_path):
    h1, hand = ([f"humanoid_bench/{robot}-{task}-v0" for task in ("run", "walk")] for robot in ("h1", "h1hand"))
    for agents, envs in ((("sac", "sac-era"), h1), (("fastsac", "fastsac-era"), hand)):
        for agent in agents:
            on_tasks(tmp_path / "runs", agent, SCORES[:2], envs)
    both = found(tmp_path / "runs")
    assert [[arm.label for arm in each.arms] for each in both] == [["sac", "sac-era"], ["fastsac", "fastsac-era"]]
    assert [each.remarks for each in both] == [(), ()]
    assert both[0].rows[0].statistics["mean"].value == pytest.approx(np.mean(SCORES[:2]) * 1000 / 700)
    write_report([tmp_path / "runs"], tmp_path / "report")
    pictures = sorted(path.name for path in (tmp_path / "report").glob("*-tasks.png"))
    assert pictures == ["humanoid-bench-2-tasks.png", "humanoid-bench-tasks.png"]


def test_an_arm_is_what_differs_on_some_task(tmp_path):
    """On the first task two settings are compared, on the other ones not; lengths belong to the tasks."""
    for env, steps in zip(TASKS[:2], (1000, 2000), strict=True):
        for tau in (0.005, 0.01) if env == TASKS[0] else (0.01,):
            on_tasks(tmp_path, "sac", SCORES[:1], [env], tau=tau, steps=steps)
        on_tasks(tmp_path, "sac-era", SCORES[:1], [env], tau=0.005, steps=steps)
    [aggregate] = found(tmp_path)
    assert [arm.label for arm in aggregate.arms] == ["sac, tau=0.01", "sac-era"]
    assert aggregate.remarks == (
        f"sac, tau=0.005 is left out: no runs on {TASKS[1]}",
        "settings that differ between tasks: steps",
    )


def test_a_task_without_a_scale_is_left_out(tmp_path):
    envs = ("gym/Ant-v4", "gym/Humanoid-v5", "gym/Hopper-v4")
    for agent, env, seed in product(("ppo", "ppo-era"), envs, range(3)):
        trained(tmp_path, agent, env, seed, [0.0, 3234.3 if "Hopper" in env else 3879.7])
    [aggregate] = found(tmp_path)
    assert aggregate.envs == ("gym/Ant-v4", "gym/Hopper-v4")
    assert aggregate.remarks == ("gym/Humanoid-v5 is left out: no source says which returns count as 0 and as 1",)
    assert aggregate.rows[0].statistics["iqm"].value == pytest.approx(1.0)


# --- files and figures -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_shown_and_nothing_is_left_where_there_is_nothing_over_tasks(tmp_path):
    out, runs = tmp_path / "report", tmp_path / "runs"
    on_tasks(runs / "both", "sac", SCORES[:2], TASKS[:2])
    on_tasks(runs / "both", "sac-era", SCORES[:2], TASKS[:2])
    write_report([runs / "both"], out)
    assert "Statistics over" in (out / "index.html").read_text()
    assert (out / "tasks.csv").exists()
    (out / "fronts.csv").write_text("of an earlier report")
    (out / "notes.csv").write_text("somebody's own")
    on_tasks(runs / "one", "sac", SCORES[:1], TASKS[:1])
    on_tasks(runs / "one", "sac-era", SCORES[:1], TASKS[:1])
    write_report([runs / "one"], out)
    tables = {"fronts.csv", "notes.csv", "table.csv", "task-scores.csv", "tasks.csv"}
    assert {path.name for path in out.glob("*.csv")} & tables == {"notes.csv", "table.csv"}
    assert "Statistics over" not in (out / "index.html").read_text()
    assert found(runs / "one") == []


@pytest.mark.slow
def test_the_page_and_the_overview_show_it(reported):
    out, _ = reported
    page, overview = ((out / name).read_text() for name in ("index.html", "overview.svg"))
    for text in (
        "dmc, 4 tasks",
        "P(better than sac)",
        "0.71 [0.6",
        ", ".join(TASKS),
        '<a href="dmc-tasks.png">PNG</a>',
        '<a href="#tasks-1">dmc, 4 tasks</a>',
    ):
        assert text in page, text
    assert {path.name for path in out.glob("dmc-tasks.*")} == {
        f"dmc-tasks.{kind}" for kind in ("csv", "png", "svg")
    }
    assert {line.split(",")[2] for line in (out / "dmc-tasks.csv").read_text().splitlines()[1:]} == {
        "IQM",
        "share above",
    }
    assert "IQM of normalised returns: dmc, 4 tasks" in overview
    assert "Performance profile: dmc, 4 tasks" in overview


def test_the_figure_shows_iqm_profile_and_bands(tmp_path):
    on_tasks(tmp_path, "sac", OTHERS)
    on_tasks(tmp_path, "sac-era", SCORES)
    comparisons = read_comparisons([tmp_path]).comparisons
    [aggregate] = aggregates(comparisons)
    look = looks(comparisons)
    curve, profile = tasks_figure(aggregate, look).axes
    for i, (label, scores, end) in enumerate([("sac", OTHERS, 0.56), ("sac-era", SCORES, 0.705)]):
        line, share = curve.lines[i], profile.lines[i]
        assert line.get_color() == share.get_color() == look[label].colour
        np.testing.assert_allclose(line.get_xydata(), [[0, end / 10], [1000, end]], atol=1e-9)
        for x, y in share.get_xydata():
            assert y == pytest.approx(np.mean(np.array(scores) > x))
    assert profile.get_xlim() == (0.0, 1.4)
    assert (len(curve.collections), len(profile.collections)) == (2, 2)
    low, high = (f(curve.collections[1].get_paths()[0].vertices[:, 1]) for f in (np.min, np.max))
    assert (low, high) == pytest.approx((0.065, 0.78), abs=0.011)
    assert "sac-era ended at 0.71 [0.6" in alt(aggregate)
    for panels in ((), overview_panels(aggregate)):
        figure = overview_figure(comparisons[0], look, panels)
        assert len(figure.axes) == 2 + len(panels)
        assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
            "sac (n = 5)",
            "sac-era (n = 5)",
        ]
        assert len(figure.legends[0].get_texts()) == len(
            overview_figure(comparisons[0], look).legends[0].get_texts()
        )


def test_in_a_crowd_there_are_no_bands(tmp_path):
    for tau in range(7):
        on_tasks(tmp_path, "sac", SCORES[:2], TASKS[:2], tau=tau / 10)
    comparisons = read_comparisons([tmp_path]).comparisons
    [aggregate] = aggregates(comparisons)
    for axes in tasks_figure(aggregate, looks(comparisons)).axes:
        assert (len(axes.lines), len(axes.collections)) == (7, 0)


@pytest.mark.slow
def test_agents_that_are_not_drawn_on_the_first_task_are_in_the_table(tmp_path):
    for agent, tau in product(("sac", "sac-era"), range(MOST)):
        trained(tmp_path / "runs", agent, TASKS[0], 0, [0, 100 + tau], tau=tau)
    for agent in ("sac", "sac-era"):
        trained(tmp_path / "runs", agent, TASKS[1], 0, [0, 100], tau=0)
    write_report([tmp_path / "runs"], tmp_path / "report")
    assert [*rows(tmp_path / "report" / "tasks.csv")] == ["sac, tau=0", "sac-era, tau=0"]


def test_the_baseline_is_drawn_and_listed_however_low_it_ended(tmp_path):
    for tau in range(MOST):
        on_tasks(tmp_path, "sac-era", [[0.7], [0.8]], TASKS[:2], tau=tau)
    on_tasks(tmp_path, "ppo", [[0.1], [0.2]], TASKS[:2])
    comparisons = read_comparisons([tmp_path], "ppo").comparisons
    [aggregate] = aggregates(comparisons)
    drawn = [most(comparison) for comparison in comparisons]
    for some in (*drawn, *shared(drawn)):
        assert len(some.groups) == MOST
        assert "ppo" in {group.label for group in some.groups}
    figure = tasks_figure(aggregate, looks(drawn))
    assert "ppo (n = 1)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "ppo" in [row.arm.label for row in aggregate.best(3)]


def test_an_agent_whose_tasks_were_evaluated_at_different_steps_has_no_curve(tmp_path):
    for env, n in product(TASKS[:2], range(3)):
        trained(tmp_path, "sac", env, n, [100, 200])
        trained(tmp_path, "ppo", env, n, [500], first=900 + TASKS.index(env))
    comparisons = read_comparisons([tmp_path]).comparisons
    [aggregate] = aggregates(comparisons)
    assert "no curve without a step at which all tasks were evaluated: ppo" in aggregate.remarks
    curve, profile = tasks_figure(aggregate, looks(comparisons)).axes
    assert (len(curve.lines), len(profile.lines)) == (1, 2)
