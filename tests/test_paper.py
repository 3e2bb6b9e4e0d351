"""The figures and tables of the paper: each has its place, and the page about them is current."""

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from entropyfloor import reproduction
from entropyfloor.cli import main
from entropyfloor.experiments import paper, plan, recipe
from entropyfloor.experiments.recipe import SCALES
from entropyfloor.extras import Status
from entropyfloor.runs import Run, find_runs
from entropyfloor.runs.needs import Needs
from run_files import MACHINE, STATUS, dumped, write

ROOT = Path(__file__).parents[1]
PLACES = paper.places()


@pytest.fixture
def uncounted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "needs_of", lambda runs: dict.fromkeys(range(len(runs)), "not counted"))


def test_every_figure_and_table_has_its_place():
    figures = [int(found[1]) for name in PLACES if (found := re.fullmatch(r"fig-(\d+)[a-c]?", name))]
    tables = [int(found[1]) for name in PLACES if (found := re.fullmatch(r"table-(\d+)", name))]
    assert list(dict.fromkeys(figures)) == list(range(1, paper.FIGURES + 1)) == sorted(set(figures))
    assert tables == list(range(1, paper.TABLES + 1))
    assert len(figures) + len(tables) == len(PLACES)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_place_is_drawn_by_recipes_that_there_are(place):
    for name, arms in place.recipes.items():
        found = recipe.load(name)
        assert set(arms) <= set(found.arms)
        assert any(set(arms) <= set(found.arms_of(scale)) for scale in found.scales)
    if place.shows == "results" and place.recipes:
        assert "paper" in place.scales
        assert all(place.parts(scale) for scale in place.scales)
    assert place.scales == [scale for scale in SCALES if scale in place.scales]
    of_benchmarks = place.name in ("fig-15", "fig-17", "fig-21")
    assert (place.measured == "not run") == (not place.ours and not of_benchmarks)
    for name in place.ours:
        assert find_runs(ROOT / "results" / name)


def test_every_recipe_of_the_paper_draws_something():
    """Those of our own experiments say so in their source."""
    used = {name for place in PLACES.values() for name in place.recipes}
    unused = [recipe.load(name) for name in recipe.names() if name not in used]
    assert [each.name for each in unused if not each.source.startswith("ours")] == []


def test_panels_are_found_together_and_alone():
    assert [place.name for place in paper.find("fig-3")] == ["fig-3a", "fig-3b"]
    assert [place.name for place in paper.find("fig-3b")] == ["fig-3b"]
    assert [place.name for place in paper.find("fig-10")] == ["fig-10"]
    assert paper.find("control/sac-dmc") == paper.find("figures.toml") == []


def test_arms_follow_the_scale():
    (at_paper,) = PLACES["table-2"].parts("gpu")
    assert (at_paper.recipe.name, at_paper.arms) == ("language/checkpoints", ["instruct-7b"])
    assert [part.recipe.name for part in PLACES["fig-4"].parts("cpu")] == ["language/countdown"]
    assert PLACES["fig-9"].parts("cpu", only=["tanh"])[0].arms == ["tanh"]
    assert PLACES["fig-9"].size("cpu") == "12 runs of 100,000 steps"


def test_the_page_and_the_table_of_ours_are_current():
    spec = importlib.util.spec_from_file_location("paper_page", ROOT / "examples/paper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = {name: found for name, place in PLACES.items() if (found := module.measured(place))}
    assert module.table_text(table) == module.MEASURED.read_text(), "run: make figures"
    assert module.page() == module.PAGE.read_text(), "run: make figures"


def test_all_are_listed(capsys):
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name:<9}" in f"\n{out}" for name in PLACES)
    for text in ("0.59 → 0.84", "not run", "`sac-era` 216 [53, 379]", " hours)", "320 runs of 1,000,000 steps"):
        assert text in out


def test_a_figure_has_the_runs_of_its_recipes(uncounted, capsys):
    outs = {}
    for name in ("fig-2", "fig-23", "control/sac-humanoid-bench"):
        assert main(["reproduce", name, "--seeds", "0", "--dry-run"]) == 0
        outs[name] = set(re.findall(r"--out (\S+)", capsys.readouterr().out))
    home = "runs/control/sac-humanoid-bench/cpu"
    shared = {f"{home}/{arm}/seed-0" for arm in ("sac", "sac-era")}
    assert shared <= outs["fig-23"] < outs["control/sac-humanoid-bench"]
    assert {out for out in outs["fig-2"] if out.startswith(home)} == shared


def test_out_is_a_directory_for_each_recipe_of_a_figure(uncounted, capsys):
    assert main(["reproduce", "fig-10", "--seeds", "0", "--out", "x", "--dry-run"]) == 0
    outs = re.findall(r"--out (\S+)", capsys.readouterr().out)
    assert outs == [
        "x/control/batch-level/state/seed-0",
        "x/control/batch-level/batch/seed-0",
        "x/control/entropy-targets/sac-minus-0.5/seed-0",
    ]


def test_what_a_figure_trains_is_what_it_evaluates(uncounted, capsys):
    assert main(["reproduce", "fig-5", "--scale", "paper", "--out", "x", "--dry-run"]) == 0
    out = capsys.readouterr().out
    trained = re.findall(r"train language --seed 0 --out (\S+)", out)
    assert trained == ["x/language/dapo-7b/grpo/seed-0", "x/language/dapo-7b/era/seed-0"]
    assert re.findall(r"--model=(x\S+)", out) == [f"{each}/model" for each in trained]


def finished_run(run, last):
    """The files of a planned run that has finished, and whose last return is this one."""
    steps = run.settings["steps"]
    entropy = {"realised_entropy": 1.0, "realised_entropy/min": 0.5}
    metrics = [{"step": step, "seconds": 1.0, "return": last * step / steps, **entropy} for step in (0, steps)]
    content = {
        "config.toml": {"domain": run.domain, **run.settings, "seed": run.seed, "out": str(run.out)},
        "metrics.jsonl": metrics,
        "status.json": {**STATUS, "step": steps},
        "machine.json": MACHINE,
    }
    write(run.out, dumped(content))


@pytest.fixture
def tdmpc2_runs(tmp_path, monkeypatch):
    """Finished runs of the part of figure 2 that has two tasks on a CPU, but one."""
    monkeypatch.chdir(tmp_path)
    *planned, last = recipe.load("control/tdmpc2-dmc").runs("cpu", Path("x/control/tdmpc2-dmc"))
    for run in planned:
        finished_run(run, 800.0 if run.arm == "tdmpc2-era" else 500.0 + run.seed)
    return last


@pytest.mark.slow_but_first
@pytest.mark.parametrize("whole", [False, True])
def test_a_figure_over_tasks_is_drawn_from_the_runs_that_there_are(whole, tdmpc2_runs, capsys):
    if whole:
        finished_run(tdmpc2_runs, 800.0)
    assert main(["reproduce", "fig-2", "--out", "x", "--draw"]) == 0
    out, err = capsys.readouterr()
    assert "control/ppo-gym: 6 of 6 runs have not finished: ppo/seed-0, ppo-era/seed-0, " in err
    assert "control/ppo-gym has one task at this scale, gym/HalfCheetah-v4: statistics over tasks need two" in err
    lacking = "control/tdmpc2-dmc: 1 of 12 runs have not finished: dmc-walker-walk/tdmpc2-era/seed-2"
    assert (lacking in err) != whole
    title, _, plain, era, *more = out.splitlines()
    assert title == "normalised returns on dmc, 2 tasks"
    assert plain.split()[:4] == ["tdmpc2", "3", "0.50", "[0.50,"]
    assert era.split()[1:4] == (["3", "0.80", "[0.80,"] if whole else ["2", "to", "3"])
    assert (
        more[0] == "no interval with fewer than 3 seeds in a task: tdmpc2-era on dmc/walker-walk (n = 2)"
    ) != whole
    names = {path.name for path in Path("x/fig-2").iterdir()}
    assert {"dmc-tasks.png", "tasks.csv", "task-scores.csv", "index.html"} <= names


@pytest.mark.slow
def test_a_figure_over_tasks_is_drawn_when_its_runs_have_ended(uncounted, tdmpc2_runs, monkeypatch, capsys):
    monkeypatch.setattr("entropyfloor.experiments.start.reproduce", lambda *_: None)
    assert main(["reproduce", "fig-1b", "--out", "x"]) == 0
    out, err = capsys.readouterr()
    assert "normalised returns on dmc, 2 tasks" in out
    assert "control/sac-humanoid-bench: 4 of 4 runs have not finished" in err
    assert Path("x/fig-1b/index.html").exists()
    assert main(["reproduce", "fig-22", "--out", "y"]) == 0  # which is no figure over tasks
    assert not Path("y").exists()


def test_what_does_not_fit_is_not_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    needs = Needs({"training": {"replay": 2**50}}, 0, checkpoint=1, result=1)
    monkeypatch.setattr(reproduction, "needs_of", lambda runs: dict.fromkeys(range(len(runs)), needs))
    monkeypatch.setattr(plan, "measure", lambda *_: pytest.fail("it was measured"))
    assert main(["reproduce", "fig-9", "--dry-run", "--measure"]) == 2
    assert "a run needs 1,048,576 GiB" in capsys.readouterr().err


def test_a_setting_applies_to_the_runs_that_have_it(uncounted, capsys):
    """Figure 2 has PPO too, which has no replay."""
    assert main(["reproduce", "fig-2", "--seeds", "0", "--set", "replay_capacity=5000", "--dry-run"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("entropyfloor train")]
    given = {"replay-capacity=5000" in line for line in commands if "ppo" not in line}
    assert given == {True}
    assert not any("replay-capacity" in line for line in commands if "ppo" in line)


@pytest.mark.slow
def test_all_recipes_that_fit_are_run_and_the_others_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    fits = Needs({"training": {"replay": 2**20}}, 0, checkpoint=1, result=1)
    by_domain = {
        "control": fits,
        "vision": fits._replace(moments={"training": {"replay": 2**50}}),
        "language": "no x",
    }
    monkeypatch.setattr(
        reproduction, "needs_of", lambda runs: {i: by_domain[r.domain] for i, r in enumerate(runs)}
    )
    assert main(["reproduce", "all", "--seeds", "0", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    outs = re.findall(r"--out (\S+)", out)
    recipes = [name for name in recipe.names() if "cpu" in recipe.load(name).scales]
    assert [*dict.fromkeys("/".join(each.split("/")[1:3]) for each in outs)] == [
        name for name in recipes if name.startswith("control/")
    ]
    assert "vision/cifar10 is left out: a run needs 1,048,576 GiB" in err
    assert "language/countdown is left out: no x\n" in err
    assert f"{len(outs)} to run" in err
    with monkeypatch.context() as full:
        full.setattr("entropyfloor.experiments.plan._free", lambda _: len(outs) - 1)  # a byte is missing
        assert main(["reproduce", "all", "--seeds", "0", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert f"{out.count('--out')} to run" in err
    assert len(outs) > out.count("--out") > 0
    assert "is left out: the runs will write" in err
    started = []

    def reproduce(runs, *_):
        started.append(runs[0].settings["recipe"].split()[0])
        if len(started) == 2:
            raise RuntimeError("1 of 1 runs failed: see a log")

    monkeypatch.setattr("entropyfloor.experiments.start.reproduce", reproduce)
    assert main(["reproduce", "all", "--seeds", "0"]) == Status.FAILED
    assert started == [name for name in recipes if name.startswith("control/")]  # one that fails stops no other
    out, err = capsys.readouterr()
    assert f"{started[1]}: 1 of 1 runs failed: see a log" in err
    [report] = [line for line in out.splitlines() if line.startswith("report:")]
    assert f"runs/{started[0]}/cpu" in report
    assert f"runs/{started[1]}/cpu" not in report  # it has no run


@pytest.mark.slow
def test_of_all_recipes_only_those_evaluate_whose_models_are_there_or_trained(uncounted, capsys):
    """No recipe trains here, so only the one that evaluates public models is left."""
    assert main(["reproduce", "all", "--scale", "paper", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert {"/".join(each.split("/")[1:3]) for each in re.findall(r"--out (\S+)", out)} == {"language/checkpoints"}
    assert "language/dapo-7b is left out: not counted\n" in err
    for name in ("out-of-domain", "scores"):
        assert re.search(rf"language/{name} is left out: .* which is not there and not trained\n", err)


def test_the_evaluation_of_a_model_is_left_out_with_its_damaged_run(uncounted, capsys):
    damaged = Path("runs/language/dapo-7b/paper/grpo/seed-0")
    Run.create(damaged, {"domain": "language", "seed": 0})
    (damaged / "metrics.jsonl").write_text("{}\n")
    assert main(["reproduce", "fig-5", "--scale", "paper", "--dry-run"]) == Status.FAILED
    out, err = capsys.readouterr()
    assert f"{damaged} is left out: {damaged}/metrics.jsonl, line 1 is damaged" in err
    outs = [Path(path).parts for path in re.findall(r"--out (\S+)", out)]
    assert {(parts[2], parts[-2]) for parts in outs} == {("dapo-7b", "era"), ("out-of-domain", "era")}


def test_jobs_of_slurm_are_waited_for_before_their_models_are_evaluated(uncounted, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("entropyfloor.experiments.start.reproduce", lambda runs, *_: started.append(runs[0].mode))
    assert main(["reproduce", "fig-5", "--scale", "paper", "--engine", "slurm"]) == 0
    assert started == ["train"]
    assert "language/out-of-domain waits for these jobs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["all", "--arms", "none-of-them"], "all has no arm none-of-them at scale cpu"),
        (["all", "--draw"], "--draw belongs to a figure or a table"),
        (["fig-2", "--set", "replay_capacitee=1"], "no setting 'replay_capacitee', did you mean replay_capacity"),
        (["fig-27"], "'fig-27' is none of the paper's"),
        (["figure"], "'figure' is none of the paper's"),
        (["fig-5"], "fig-5 has no run at scale cpu: it has the scales paper"),
        (["fig-9", "--arms", "sac"], "fig-9 has no arm sac at scale cpu: it has truncated, "),
        (["fig-9", "--arms", "tanh", "thn"], "fig-9 has no arm thn at scale cpu"),
        (
            ["fig-5", "--scale", "paper", "--seeds", "1"],
            "runs/language/dapo-7b/paper/grpo/seed-0/model, which is not there and not trained: add its --seeds",
        ),
        (["fig-9", "--measure"], "--measure belongs to --dry-run"),
        (["fig-2", "--draw", "--dry-run"], "--draw starts no run: leave --dry-run out"),
        (["fig-2", "--draw"], "no run of it has finished: leave --draw out to run it"),
        (["control/ppo-gym", "--draw"], "--draw belongs to a figure or a table"),
        (["fig-9", "--set", "stepz=1"], "no setting 'stepz'"),
    ],
)
def test_what_cannot_be_drawn_is_said(args, message, uncounted, capsys):
    assert main(["reproduce", *args]) == 2
    assert message in capsys.readouterr().err


def test_pictures_have_nothing_to_run(capsys):
    assert main(["reproduce", "fig-6"]) == 0
    assert capsys.readouterr().out == "nothing that is measured: nothing is run\n"


def test_tables_without_results_are_printed(capsys):
    assert main(["reproduce", "table-6"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\bbatch_size +256\b", out)
    assert re.search(r"random_steps +5000\b", out)
    assert re.search(r"minibatch_size +64\b", out) or re.search(r"minibatch\w* +\d+", out)


def test_a_run_that_cannot_be_counted_says_why(tmp_path):
    planned = recipe.load("control/sac-gym").runs("cpu", tmp_path, settings={"env": "gym/Absent-v0"})
    scored = recipe.load("language/scores").runs("paper", tmp_path)
    assert reproduction._needs_of_one(planned[0]).startswith("needs of gym/Absent-v0: ")
    assert "not counted" in reproduction._needs_of_one(scored[0])


@pytest.mark.slow
def test_needs_are_counted_in_another_process(tmp_path):
    planned = recipe.load("language/countdown").runs("cpu", tmp_path, arms=["grpo"], seeds=[0, 1])
    counted = reproduction.needs_of(planned)
    assert list(counted) == [0, 1]
    assert counted[0] == counted[1]
    assert counted[0].peak[0] == "update"


def is_spawned(process):
    return "spawn_main" in " ".join(process.cmdline())


@pytest.mark.slow
def test_the_process_that_counts_ends_with_the_one_that_asks(tmp_path):
    command = [sys.executable, "-m", "entropyfloor.cli", "reproduce", "control/sac-gym", "--dry-run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (counting := [child for child in psutil.Process(process.pid).children() if is_spawned(child)]):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
    _, left = psutil.wait_procs(counting, timeout=60)
    assert not left


def test_environments_are_measured(capsys):
    assert main(["reproduce", "table-4"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["dmc/dog-run"] == ["223", "38", "1000"]
    assert rows["dmc/humanoid-walk"] == ["67", "21", "1000"]
    assert rows["gym/Hopper-v4"] == ["11", "3", "1000"]
