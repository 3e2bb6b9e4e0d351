"""Recipes, and the plans that are made of them."""

import pytest

import tiny_language
from entropyfloor.cli import main
from entropyfloor.control.config import configure
from entropyfloor.experiments import recipe
from entropyfloor.language.benchmarks import PUBLISHED
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.evaluate import EvaluationConfig
from entropyfloor.runs import read_run
from entropyfloor.vision.config import VisionConfig

SMALL = """
title = "Two agents on Pendulum"
source = "a test"
domain = "control"

[settings]
env = ["gym/Pendulum-v1"]
steps = 60
hidden = 8
batch_size = 8
random_steps = 20
eval_episodes = 1

[scales.cpu]
seeds = [0]

[arms.plain]
agent = "sac"

[arms.era]
agent = "sac-era-exact"
head = "era-floor"

[published.era]
return = "a lot"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


@pytest.mark.parametrize("name", recipe.names())
def test_every_run_of_every_recipe_can_be_configured(name, tmp_path):
    found = recipe.load(name)
    for scale in found.scales:
        plan = found.runs(scale, tmp_path)
        assert len({run.out for run in plan}) == len(plan)
        for run in plan:
            settings = dict(run.settings)
            if run.domain == "control":
                config = configure(settings.pop("agent"), **settings, seed=run.seed, out=str(run.out)).resolved()
                assert config.env.count("/") == 1
            elif found.does == "evaluate":
                assert any(row.checkpoint == settings["model"] for row in PUBLISHED)
                EvaluationConfig(**settings, seed=run.seed, out=str(run.out)).resolved()
            elif found.domain == "language":
                LanguageConfig(**settings, seed=run.seed, out=str(run.out)).resolved()
            else:
                VisionConfig(**settings, seed=run.seed, out=str(run.out)).resolved()
    assert set(found.published) <= set(found.arms)


def test_an_arm_goes_before_its_scale_and_what_is_set_before_all(tmp_path):
    found = recipe.Recipe(
        "x",
        "t",
        "s",
        "control",
        {"a": 1, "b": 1, "c": 1},
        {"cpu": {"seeds": [0], "b": 2, "c": 2}},
        {"arm": {"c": 3}},
    )
    (run,) = found.runs("cpu", tmp_path)
    assert run.settings == {"a": 1, "b": 2, "c": 3, "recipe": "x cpu arm"}
    (run,) = found.runs("cpu", tmp_path, seeds=[5], settings={"c": "4"})
    assert (run.seed, run.settings["c"], run.out) == (5, "4", tmp_path / "arm" / "seed-5")
    assert "--c=4" in run.command


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vision/cifar"], "recipe 'vision/cifar' must be one of control/"),
        (["absent.toml"], "recipe absent.toml cannot be read"),
        (["small.toml", "--scale", "paper"], "scale 'paper' must be one of cpu"),
        (["small.toml", "--arms", "none"], "arm at scale cpu 'none' must be one of plain, era"),
        (["small.toml", "--set", "steps"], "--set steps must be name=value"),
        (["small.toml", "--set", "seed=3"], "seed follows from the recipe"),
        (["broken.toml"], "recipe broken.toml: "),
        (["unknown.toml"], "unexpected keyword argument 'colour'"),
        (["seedless.toml"], "names no seeds"),
    ],
)
def test_what_cannot_be_reproduced_is_said(args, message, home, capsys):
    (home / "broken.toml").write_text("title = ")
    (home / "unknown.toml").write_text(f'colour = "red"\n{SMALL}')
    (home / "seedless.toml").write_text(SMALL.replace("seeds = [0]", ""))
    assert main(["reproduce", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", recipe.names())
def test_the_command_line_takes_a_command_as_it_stands(name, tmp_path, monkeypatch):
    """The first run of each scale, up to where training would begin."""
    found, seen = recipe.load(name), []
    for room in ("control", "vision", "language"):
        monkeypatch.setattr(f"entropyfloor.{room}.train.train", lambda config: seen.append(config) or tmp_path)
    monkeypatch.setattr("entropyfloor.language.evaluate.evaluate", seen.append)
    monkeypatch.setattr("entropyfloor.report.draw_benchmarks", lambda path: None)  # nothing was judged
    for scale in found.scales:
        run = found.runs(scale, tmp_path, settings={"download": True} if found.domain == "vision" else {})[0]
        assert main(run.command) == 0
        assert {name: getattr(seen[-1], name) for name in run.settings} == run.settings


def test_settings_are_read_as_toml_does():
    given_ = ["a=1", "b=0.5", "c=true", "d=/somewhere", "e=-A/2", 'f="1"']
    assert dict(map(recipe.setting, given_)) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "/somewhere",
        "e": "-A/2",
        "f": "1",
    }


def test_an_arm_may_start_from_another_and_a_run_have_several_devices(tmp_path):
    found = recipe.load("vision/cifar10")
    plan = {run.arm: run for run in found.runs("paper", tmp_path, seeds=[0])}
    assert plan["era-augmented"].settings["jsd"] == 12.0
    assert "like" not in plan["era-augmented"].settings
    assert plan["plain"].launcher[:2] == ["accelerate.commands.launch", "--num_processes=4"]


def test_recipes_are_listed(capsys):
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert "vision/cifar10 " in out
    assert "control/sac-dmc " in out


def test_a_recipe_is_carried_out_and_once_is_enough(home, capsys):
    assert main(["reproduce", "small.toml", "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(
        "entropyfloor train control --seed 0 --out runs/small/cpu/gym-Pendulum-v1/plain/seed-0"
    )
    assert main(["reproduce", "small.toml"]) == 0
    paths = [home / "runs/small/cpu/gym-Pendulum-v1" / arm / "seed-0" for arm in ("plain", "era")]
    before = [(path / "metrics.jsonl").read_bytes() for path in paths]
    assert [read_run(path).status["state"] for path in paths] == ["finished", "finished"]
    out = capsys.readouterr().out
    assert "report: entropyfloor report runs/small/cpu" in out
    assert "a test, era: return a lot" in out  # beside which one's own is to be seen
    assert main(["reproduce", "small.toml"]) == 0
    assert [(path / "metrics.jsonl").read_bytes() for path in paths] == before
    assert read_run(paths[0]).config["recipe"] == "small.toml cpu plain"
    capsys.readouterr()
    assert main(["reproduce", "small.toml", "--set", "steps=80"]) == 2  # not to be taken for the run of 60
    assert "was begun with steps=60 (now 80)" in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_the_others_are_done(home, capsys):
    (home / "small.toml").write_text(SMALL.replace('head = "era-floor"', 'target_entropy = "99"'))
    assert main(["reproduce", "small.toml", "--workers", "1"]) == 1
    assert "1 of 2 runs failed: see runs/small/cpu/gym-Pendulum-v1/era/seed-0-log.txt" in capsys.readouterr().err
    assert "target_entropy=99" in (home / "runs/small/cpu/gym-Pendulum-v1/era/seed-0-log.txt").read_text()
    assert read_run(home / "runs/small/cpu/gym-Pendulum-v1/plain/seed-0").status["state"] == "finished"


EVALUATION = """
title = "Two models on what is asked of them"
source = "a test"
domain = "language"
does = "evaluate"

[settings]
benchmarks = "math500"
template = "none"
max_tokens = 4
data_dir = "data"

[scales.cpu]
seeds = [0]

[arms.one]
model = "./one"

[arms.two]
model = "./two"
"""


def test_models_that_others_have_trained_are_scored(home, capsys):
    (home / "scores.toml").write_text(EVALUATION)
    for seed, name in enumerate(("one", "two")):
        tiny_language.save(home / name, seed=seed)
    tiny_language.write_rows(home / "data" / "math500.jsonl", [{"problem": "1+1=?", "answer": "2"}])
    for _ in range(2):  # what is there is not asked again
        assert main(["reproduce", "scores.toml", "--workers", "1"]) == 0
        out = capsys.readouterr().out
        assert "scores: runs/scores/cpu/two/seed-0, in words runs/scores/cpu/two/seed-0-log.txt" in out
        assert "report:" not in out
    assert (home / "runs/scores/cpu/one/seed-0/math500.jsonl").read_text().count("\n") == 1
    assert "MATH500" in (home / "runs/scores/cpu/two/seed-0-log.txt").read_text()
