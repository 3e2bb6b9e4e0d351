"""The page of a report: its figures, data and tables, and how a real browser shows it."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from browser import CHROMIUM, Browser
from entropyfloor.cli import main
from entropyfloor.experiments import paper
from entropyfloor.report import Published, html, write_report
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.report.figures.plots import MOST_POINTS, plots
from entropyfloor.report.figures.series import show
from entropyfloor.report.formats import duration
from entropyfloor.report.page import ROWS
from entropyfloor.report.statistics import Interval
from entropyfloor.report.tables import ablations
from html_reader import Page
from run_files import contents, dumped, write

HOSTILE = "</svg></script><script>alert(1)</script><!-- \"'& {{ 7 * 7 }} \\u003c"
ENVS = ("dmc/walker-walk", "gym/Ant-v4")


def runs(root, agents=("sac", "sac-era-exact"), seeds=3, envs=ENVS, points=4, score="return", **settings):
    """Run directories of random walks, so that no two values are the same."""
    rng = np.random.default_rng(0)
    steps = range(0, 1000 * points, 1000)
    for env in envs:
        for agent in agents:
            for seed in range(seeds):
                content = contents(seed)
                content["config.toml"] |= {"env": env, "agent": agent, **settings}
                content["status.json"]["step"] = steps[-1]
                content["metrics.jsonl"] = [
                    {"step": step, "seconds": step / 10, score: value, "steps_per_second": 10.0}
                    | {"realised_entropy": value / 90 - 2.5, "realised_entropy/min": -3.0, "floor": -3.0}
                    for step, value in zip(steps, rng.normal(1, 9, points).cumsum().tolist(), strict=True)
                ]
                del content["evaluation.json"]
                write(root / env.replace("/", "-") / f"{agent}-{seed}", dumped(content))
    return root


def csv_rows(path):
    """Rows of a CSV file."""
    return [*csv.DictReader(path.read_text().splitlines())]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report of two agents on two tasks."""
    home = tmp_path_factory.mktemp("page")
    write_report([runs(home / "runs")], home / "report")
    return home / "report"


@pytest.fixture(scope="module")
def page(reported):
    return Page(reported / "index.html")


# --- the file --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_page_of_long_curves_is_small(tmp_path):
    agents = [f"sac-{i}" for i in range(6)]
    path = write_report([runs(tmp_path / "runs", agents, 5, ENVS[:1], 1000)], tmp_path / "report")
    assert path.stat().st_size < 3e6
    page = Page(path)
    assert all(len(series["x"]) <= MOST_POINTS for panel in page.data for series in panel["series"])
    [score, _] = page.data
    assert score["series"][0]["x"][-1] == 999_000  # the last point stays
    rows = [*csv_rows(tmp_path / "report" / "dmc-walker-walk-return.csv")]
    assert len(rows) == 6 * 1000  # the file has all points
    assert (
        f"The pointer shows {MOST_POINTS} points of each longer curve; the CSV file has all." in path.read_text()
    )


@pytest.mark.slow
def test_a_page_of_many_agents_and_runs_says_what_the_files_beside_it_have(tmp_path):
    n, root = ROWS + 2, tmp_path / "runs"
    for i in range(n):
        runs(root / str(i), ("sac",), 1, ("dmc/walker-walk", "dmc/walker-run"), points=2, alpha=i / 8)
    cut = root / "0" / "dmc-walker-walk" / "sac-0" / "status.json"
    cut.write_text(cut.read_text().replace("finished", "failed"))
    path = write_report([root], tmp_path / "report")
    text, page = path.read_text(), Page(path)
    assert path.stat().st_size < 3e6
    assert f"Of {n} agents this page has {ROWS}, those with the highest last score" in text
    assert "none of the others break a floor" in text
    assert f"Of {n} agents these are {ROWS}, those with the highest IQM" in text
    assert f"The first {ROWS} runs, each at its own last evaluation" in text
    assert max(sum(len(row) == width for row in page.rows) for width in (8, 10)) <= 2 * (ROWS + 1)
    rows = csv_rows(tmp_path / "report" / "runs.csv")
    assert len(rows) == 2 * n
    assert {float(row["setting/alpha"]) for row in rows} == {i / 8 for i in range(n)}
    [failed] = [row for row in rows if row["state"] == "failed"]
    assert (failed["env"], failed["setting/alpha"]) == ("dmc/walker-walk", "0.0")
    assert failed["command"] == "entropyfloor train control"
    markers = {attributes["href"] for tag, attributes in page.elements if tag == "use"}
    ids = {f"#{attributes['id']}" for tag, attributes in page.elements if tag == "path" and "id" in attributes}
    assert markers == ids


@pytest.mark.slow
def test_a_page_loads_nothing_and_runs_one_script(reported, page):
    text = (reported / "index.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    [policy] = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds == [*["application/json"] * (len(kinds) - 1), None]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "srcset", "style")]


def test_names_of_runs_are_shown_and_never_run(tmp_path):
    path = write_report([runs(tmp_path / "runs", (HOSTILE, "sac"), 1, (HOSTILE, "b"))], tmp_path / "report")
    page = Page(path)
    assert len(page.scripts) == len(page.data) + 1
    assert page.scripts[-1] == html.environment().globals["script"]
    for panel in page.data:
        assert {series["label"] for series in panel["series"]} == {HOSTILE, "sac"}
    assert HOSTILE in {row[0] for row in page.rows}
    assert "<script>alert" not in path.read_text()


def test_data_cannot_end_its_element_and_is_finite():
    text = html.data({"a": "</script>&<!--", "b": [1.5]})
    assert text == '{"a":"\\u003c/script\\u003e\\u0026\\u003c!--","b":[1.5]}'
    assert json.loads(text)["a"] == "</script>&<!--"
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON compliant"):
            html.data([value])


def test_one_seed_has_values_without_an_interval(tmp_path):
    path = write_report([runs(tmp_path / "runs", ("sac",), 1, ("a",))], tmp_path / "report")
    for panel in Page(path).data:
        assert not [series for series in panel["series"] if "low" in series]
    [row, *_] = csv_rows(tmp_path / "report" / "a-return.csv")
    assert (row["low"], row["high"], row["n"]) == ("", "", "1")


def test_the_values_of_a_page_are_those_of_the_csv_files(reported, page):
    rows = {}
    for env in ("dmc-walker-walk", "gym-Ant-v4"):
        for row in csv_rows(reported / f"{env}-return.csv"):
            rows.setdefault((env, row["label"]), []).append(row)
    scores = [panel for panel in page.data[4:] if len(panel["series"]) == 2]  # behind those over both tasks
    found = {
        (env, series["label"]): series
        for env, panel in zip(("dmc-walker-walk", "gym-Ant-v4"), scores, strict=True)
        for series in panel["series"]
    }
    assert found.keys() == rows.keys()
    for key, series in found.items():
        for name, column in (("x", "x"), ("y", "value"), ("low", "low"), ("high", "high")):
            np.testing.assert_allclose(series[name], [float(row[column]) for row in rows[key]], rtol=1e-5)


# --- panels ----------------------------------------------------------------------------------------------


def panel(draw):
    """A panel of a figure with the axes 0 to 10 and 0 to 100."""
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 100))
    draw(axes)
    figure.draw_without_rendering()
    [found] = plots(figure, ["a", "b"])
    return found


def test_shapes_lie_where_matplotlib_draws_them():
    def draw(axes):
        line = axes.plot([0, 5, 10], [0, 100, 50], color="#0072B2", ls="--", lw=3)
        band = axes.fill_between([0, 10], 0, 50, color="black", alpha=0.25, lw=0, zorder=0)
        show(axes, "b", [*line, band], [0, 5, 10], Interval(*np.array([[0, 100, 50]] * 3), 2))
        axes.scatter([10], [100], color="#8a8a8a")
        axes.text(0, 0, "here")

    found = panel(draw)
    band, line = found.paths
    assert (line.d, line.colour, line.dash, line.arm) == ("M0,1000 500,0 1000,500", "c0", "dashed", 1)
    assert line.width == 4.0  # pixels
    assert (band.kind, band.colour, band.opacity, band.arm) == ("area", "ink", 0.25, 1)
    assert {*re.findall(r"[0-9]+,[0-9]+", band.d)} == {"0,1000", "0,500", "1000,500", "1000,1000"}
    marker, text = sorted(found.marks, key=lambda mark: mark.kind)
    assert (marker.x, marker.y, marker.colour, marker.arm) == (100, 0, "muted", None)
    assert (text.text, text.x) == ("here", 0)
    [values] = found.values
    assert (values["arm"], values["colour"], values["x"], values["y"]) == (1, "c0", [0, 5, 10], [0, 100, 50])
    assert (values["across"], values["down"]) == ([0, 50, 100], [100, 0, 50])
    assert found.y_ticks[0] == (100, "0")
    assert found.x_ticks[-1] == (100, "10")
    assert found.gutter == "100"


def test_a_logarithmic_axis_is_one_on_the_page():
    def draw(axes):
        axes.set_yscale("log")
        axes.set_ylim(1, 100)
        axes.plot([0, 10], [10, 100])

    assert panel(draw).paths[0].d == "M0,500 1000,0"


def test_gaps_and_artists_of_no_arm():
    def draw(axes):
        show(axes, "elsewhere", axes.plot([0, 1], [0, 1]), np.array([0, 1]), np.array([0, 1]))
        axes.plot([0, 5, 10], [50, math.nan, 50])

    found = panel(draw)
    assert not found.values
    assert [path.arm for path in found.paths] == [None, None]
    assert "nan" not in found.paths[1].d


# --- tables ----------------------------------------------------------------------------------------------


def test_ablations_have_the_settings_that_differ(tmp_path):
    for alpha in (0.25, 0.5):
        runs(tmp_path / "runs" / str(alpha), ("sac",), 3, ENVS[:1], alpha=alpha)
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    [at] = [i for i, row in enumerate(page.rows) if row[:2] == ["alpha", "n"]]
    assert [row[:2] for row in page.rows[at + 1 : at + 3]] == [["0.25", "3"], ["0.5", "3"]]
    results = {row[0]: row[3] for row in page.rows if row[0].startswith("sac, alpha=") and len(row) == 10}
    assert [row[2] for row in page.rows[at + 1 : at + 3]] == [*results.values()]


def test_an_interval_of_an_ablation_is_drawn_to_its_ends(tmp_path):
    """Intervals of three seeds are wider than the seeds are apart."""
    for alpha in (0.25, 0.5):
        runs(tmp_path / "runs" / str(alpha), ("sac",), 3, ENVS[:1], alpha=alpha)
    [found] = ablations(read_comparisons([tmp_path]).comparisons[0])
    ends = [float(mark[:-1]) for row in found.rows for mark in row["marks"]]
    assert min(ends) == pytest.approx(100 * 0.05 / 1.1, abs=0.1)
    assert max(ends) == pytest.approx(100 * 1.05 / 1.1, abs=0.1)


def test_the_largest_memory_of_a_run_is_a_cost(tmp_path):
    for seed, sizes in enumerate(({"peak_memory": 1.5, "peak_memory/device": 0.25}, {"peak_memory": 2.0}, {})):
        content = contents(seed)
        content["status.json"] |= sizes
        write(tmp_path / "runs" / str(seed), dumped(content))
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    [at] = [i for i, row in enumerate(page.rows) if row[:2] == ["Agent", "Runs"]]
    assert page.rows[at + 1][4] == "2.00 GiB, 0.25 GiB of a device"
    rows = csv_rows(tmp_path / "report" / "runs.csv")
    assert [row["peak_memory"] for row in rows] == ["1.5", "2.0", ""]


@pytest.mark.parametrize(("together", "all_of_them"), [(1, "2 min"), (3, "30 s")])
def test_runs_that_train_together_share_the_time_of_their_process(together, all_of_them, tmp_path):
    for seed in range(3):
        content = contents(seed)
        content["machine.json"] |= {"together": together}
        write(tmp_path / "runs" / str(seed), dumped(content))
    page = Page(write_report([tmp_path / "runs"], tmp_path / "report"))
    [at] = [i for i, row in enumerate(page.rows) if row[:2] == ["Agent", "Runs"]]
    assert page.rows[at + 1][2:4] == ["30 s", all_of_them]


def test_costs(page):
    [at, *_] = [i for i, row in enumerate(page.rows) if row[:2] == ["Agent", "Runs"]]
    machine = "a CPU, 2 cores, 23.5 GB of memory"
    assert page.rows[at + 1] == ["sac", "3", "5 min", "15 min", "not recorded", machine]
    assert [duration(x) for x in (3.4, 59.6, 3600, 5340, 360_000)] == [
        "3 s",
        "1 min",
        "1 h 0 min",
        "1 h 29 min",
        "100 h",
    ]


def test_what_the_paper_reports_stands_beside_the_runs(tmp_path):
    place = Published("fig-0", "A figure", "SAC 0.59", None)
    other = Published("fig-1", "Another", "low", "realised_entropy")
    root = runs(tmp_path / "runs", envs=ENVS[:1])
    path = write_report(
        [root], tmp_path / "report", published=lambda run: [place, other][: 1 + (run.config["agent"] == "sac")]
    )
    rows = {row[0]: row[1:] for row in Page(path).rows}
    title, published, ours = rows["fig-0"]
    assert (title, published) == ("A figure", "SAC 0.59")
    assert ours.startswith("Return:sac ")
    assert "sac-era-exact " in ours
    assert rows["fig-1"][2].startswith("Realised entropy, mean over states or images (nats):sac ")
    assert "sac-era-exact" not in rows["fig-1"][2]


@pytest.mark.parametrize(
    ("recipe", "path", "names"),
    [
        ("language/countdown cpu grpo", "runs/x", {"fig-1a", "fig-4"}),
        ("control/distributions paper tanh", "runs/x", {"fig-9"}),
        ("control/distributions paper none", "runs/x", set()),
        ("", "results/control/walker-run.runs.zip/sac/seed-0", {"fig-1b"}),
        ("", "runs/x", set()),
    ],
)
def test_runs_know_their_place_in_the_paper(recipe, path, names):
    found = {place.name for place in paper.reproduced_by(recipe, Path(path))}
    assert names <= found
    assert bool(names) == bool(found)


def test_the_command_has_the_paper_beside_the_runs(tmp_path):
    runs(tmp_path / "runs", ("sac",), envs=ENVS[:1], recipe="control/distributions cpu tanh")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    rows = Page(tmp_path / "report" / "index.html").rows
    [row] = [row for row in rows if row[0] == "fig-9"]
    assert row[2] == paper.places()["fig-9"].published


def test_agents_on_several_tasks_have_a_panel_each(reported, tmp_path):
    assert (reported / "all-tasks-return.svg").exists()
    rows = [*csv_rows(reported / "all-tasks-return.csv")]
    assert [*dict.fromkeys(row["panel"] for row in rows)] == [*ENVS]
    runs(tmp_path / "runs", ("sac",), 1, ENVS[:1])
    runs(tmp_path / "runs", ("sac-era",), 1, ENVS[1:])
    write_report([tmp_path / "runs"], tmp_path / "report")
    assert not [*(tmp_path / "report").glob("all-tasks*")]  # no agent has runs on both


def test_figures_of_several_tasks_are_those_of_their_domain(tmp_path):
    runs(tmp_path / "control", ("sac",), 1)
    runs(
        tmp_path / "language",
        ("grpo",),
        1,
        ("countdown-3 tiny", "chain tiny"),
        score="avg_at_k",
        domain="language",
    )
    write_report([tmp_path / "control", tmp_path / "language"], tmp_path / "report")
    for name, agent in (("return", "sac"), ("avg_at_k", "grpo")):
        for figure in (f"all-tasks-{name}", f"all-tasks-{name}-entropy"):
            assert {row["label"] for row in csv_rows(tmp_path / "report" / f"{figure}.csv")} == {agent}


# --- a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, reported):
    """The browser with the page of the report."""
    browser.look(1280)
    browser.open(reported / "index.html")
    yield browser
    assert not browser.complaints


FIGURES = "[...document.querySelectorAll('figure')]"
VISIBLE = "(each) => each.getBoundingClientRect().width > 0"  # `checkVisibility` counts groups that are hidden
READOUT = "document.querySelector('.values:not([hidden])')"


@pytest.mark.slow
def test_a_browser_requests_the_page_and_nothing_else(shown, reported):
    assert shown.requests == [(reported / "index.html").resolve().as_uri()]
    assert shown.run(f"{FIGURES}.length") == 6
    assert shown.run(
        f"{FIGURES}.every((figure) => figure.querySelector('.line').getBoundingClientRect().width > 99)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_a_toggle_hides_an_arm_in_every_figure(shown, how):
    of_arm = f"[...figure.querySelectorAll(`[data-arm='${{arm}}']`)].filter({VISIBLE}).length"
    shapes = f"{FIGURES}.map((figure) => [0, 1].map((arm) => {of_arm}))"
    before = shown.run(shapes)
    assert all(first > 0 and second > 0 for first, second in before)
    if how == "mouse":
        shown.run("document.querySelector('button[data-arm=\"0\"]').click()")
    else:
        reached = "document.activeElement.dataset.arm"
        for _ in range(20):
            shown.press("Tab")
            if shown.run(reached) == "0":
                break
        assert shown.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        shown.press(" ")
    assert shown.run(shapes) == [[0, second] for _, second in before]
    pressed = "[...document.querySelectorAll('button[data-arm]')].map((each) => each.getAttribute('aria-pressed'))"
    assert shown.run(pressed) == ["false", "true"] * 3  # in each of the three legends
    shown.run("document.querySelectorAll('button[data-arm=\"0\"]')[2].click()")
    assert shown.run(shapes) == before


def numbers(text):
    return [float(x.replace(",", "")) for x in re.findall(r"-?[0-9][0-9,.]*", text.replace("\N{MINUS SIGN}", "-"))]


def expected(reported, step):
    """Mean and interval of both agents at a step, from the CSV file of the first task's return."""
    rows = csv_rows(reported / "dmc-walker-walk-return.csv")
    return {
        row["label"]: [float(row[name]) for name in ("value", "low", "high")]
        for row in rows
        if float(row["x"]) == step
    }


@pytest.mark.slow
def test_values_at_the_pointer_are_those_of_the_csv_file(shown, reported):
    plot = "document.querySelectorAll('[data-plot]')[4]"  # behind two figures of two tasks
    shown.run(f"{plot}.scrollIntoView({{block: 'center'}})")
    x, y, width, height = shown.run(
        f"(({{x, y, width, height}}) => [x, y, width, height])"
        f"({plot}.querySelector('.plot').getBoundingClientRect())"
    )
    place = shown.run(f"JSON.parse({plot}.querySelector('script').textContent).series[0].across[2]")
    shown.hover(x + width * place / 100 + 3, y + height / 2)
    title, labels, values = shown.run(
        f"[{READOUT}.querySelector('strong').textContent, "
        f"...['dt', 'dd'].map((tag) => [...{READOUT}.querySelectorAll(tag)].map((each) => each.textContent))]"
    )
    assert title == "Environment steps 2,000"
    found = {label: numbers(value) for label, value in zip(labels, values, strict=True)}
    assert found.keys() == {"sac", "sac-era-exact"}
    for label, row in expected(reported, 2000).items():
        np.testing.assert_allclose(found[label], row, rtol=1e-3)
    assert shown.run(f"{plot}.querySelectorAll('.dot').length") == 2
    shown.hover(5, 5)
    assert shown.run(READOUT) is None


@pytest.mark.slow
def test_values_at_the_arrow_keys_are_read_aloud(shown, reported):
    plot = "document.querySelectorAll('[data-plot]')[4]"
    assert shown.run(f"[{plot}.getAttribute('role'), {plot}.tabIndex, {plot}.getAttribute('aria-label')]") == [
        "slider",
        0,
        "Return, against Environment steps",
    ]
    shown.run(f"{plot}.focus({{focusVisible: true}})")
    shown.press("Home")
    shown.press("ArrowRight")
    text = shown.run(f"{plot}.getAttribute('aria-valuetext')")
    assert text.startswith("Environment steps 1,000: ")
    values = expected(reported, 1000)
    for part in text.partition(": ")[2].split("; "):
        label, _, rest = part.partition(" ")
        np.testing.assert_allclose(numbers(rest), values[label], rtol=1e-3)
    assert shown.run(f"{READOUT} !== null")
    shown.press("Escape")
    assert shown.run(READOUT) is None


@pytest.mark.slow
def test_a_narrow_page_does_not_scroll_sideways(shown, reported):
    shown.look(360, 740)
    shown.open(reported / "index.html")
    shown.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert shown.run("document.documentElement.scrollWidth") == 360
    beyond = (
        "[...document.querySelectorAll('body *')].filter((each) => !each.closest('.scroll') && "
        "each.getBoundingClientRect().right > 360.5 && each.checkVisibility())"
        ".map((each) => each.outerHTML.slice(0, 99))"
    )
    assert shown.run(beyond) == []


@pytest.mark.slow
def test_dark_pages_are_dark_and_print_is_not(shown):
    background = "getComputedStyle(document.body).backgroundColor"
    curve = "getComputedStyle(document.querySelector('.line.c0')).stroke"
    light = shown.run(f"[{background}, {curve}]")
    assert light[0] == "rgb(255, 255, 255)"
    shown.look(1280, dark=True)
    assert shown.run(background) == "rgb(22, 22, 22)"
    assert shown.run(curve) != light[1]
    shown.run("document.querySelector('button[data-arm=\"0\"]').click()")
    shown.look(1280, dark=True, media="print")
    assert shown.run(background) == light[0]
    buttons = "[...document.querySelectorAll('button')]"
    assert (
        shown.run(f"{buttons}.filter({VISIBLE}).map((each) => getComputedStyle(each).borderTopColor)")
        == ["rgba(0, 0, 0, 0)"] * 3
    )  # keys of the arms that are drawn


@pytest.mark.slow
def test_without_scripts_the_figures_are_there(shown, reported):
    shown.look(1280, script=False)
    shown.open(reported / "index.html")
    document = shown.call("DOM.getDocument", depth=0)["root"]["nodeId"]

    def count(selector):
        return len(shown.call("DOM.querySelectorAll", nodeId=document, selector=selector)["nodeIds"])

    assert count("svg.plot .line") > 10
    assert count("button:disabled") == 6
    assert count("[role=slider]") == 0
    shown.look(1280)
