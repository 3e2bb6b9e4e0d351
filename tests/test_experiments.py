"""Recipes, and the plans that are made of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny_language
from control import compile_quickly
from entropyfloor import reproduction
from entropyfloor.cli import main
from entropyfloor.control.config import SACConfig, configure
from entropyfloor.experiments import recipe
from entropyfloor.experiments.reproduce import reproduce
from entropyfloor.experiments.settings import _message, parse_settings
from entropyfloor.extras import Status
from entropyfloor.language.benchmarks.evaluate import EvaluationConfig
from entropyfloor.language.benchmarks.registry import PUBLISHED
from entropyfloor.language.config import LanguageConfig
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.resume import begin, check_same
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
def home(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    for name, value in compile_quickly(cache).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def trained_models():
    """Where the recipes that train language models leave them."""
    for name in recipe.names():
        found = recipe.load(name)
        if found.domain == "language" and found.mode == "train":
            for scale in found.scales:
                yield from (f"{run.out}/model" for run in found.runs(scale, Path("runs", name, scale)))


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
            elif found.mode == "evaluate":
                public = {row.checkpoint for row in PUBLISHED}
                assert settings["model"] in public or settings["model"] in trained_models()
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


def test_a_success_at_pushing_is_within_the_support(tmp_path):
    runs = recipe.load("control/fastsac-humanoid-bench").runs("paper", tmp_path)
    assert {(run.settings["v_min"], run.settings["v_max"]) for run in runs if "push" in run.settings["env"]} == {
        (-1000, 1000)
    }


def test_an_environment_goes_before_an_arm(tmp_path):
    both = {"cpu": {"seeds": [0], "env": ["x/a", "x/b"]}}
    found = recipe.Recipe("x", "t", "s", "control", {}, both, {"arm": {"c": 3}}, envs={"x/b": {"c": 5}})
    assert [run.settings["c"] for run in found.runs("cpu", tmp_path)] == [3, 5]
    assert [run.settings["c"] for run in found.runs("cpu", tmp_path, settings={"c": 4})] == [4, 4]
    arms = {"arm": {"env": "x/b"}}
    (run,) = recipe.Recipe("x", "t", "s", "control", {}, {"cpu": {"seeds": [0]}}, arms, envs=found.envs).runs(
        "cpu", tmp_path
    )
    assert run.settings["c"] == 5
    (run,) = found.runs("cpu", tmp_path, settings={"env": "x/b"})
    assert (run.settings["c"], run.out) == (5, tmp_path / "arm" / "seed-0")


# --- what is refused before anything begins --------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vision/cifar"], "recipe 'vision/cifar' must be one of control/"),
        (["absent.toml"], "recipe absent.toml cannot be read"),
        (["small.toml", "--scale", "paper"], "scale 'paper' must be one of cpu"),
        (["small.toml", "--arms", "none"], "arm at scale cpu 'none' must be one of plain, era"),
        (["small.toml", "--arms", "era", "era"], "several runs would go to"),
        (["small.toml", "--seeds", "1", "1"], "must be different ones"),
        (["small.toml", "--seeds", str(2**32)], "between 0 and 2**32 - 1"),
        (["small.toml", "--workers", "0"], "--workers 0 must be at least 1"),
        (["small.toml", "--out", ""], "--out is empty"),
        (["small.toml", "--out="], "--out is empty"),
        ([""], "is empty"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_what_cannot_be_reproduced_is_said(args, how, message, home, capsys):
    refused([*args, *how], message, home, capsys)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "--set steps must be name=value"),
        ("seed=3", "--set: seed follows from the recipe"),
        ("out=elsewhere", "--set: out follows from the recipe"),
        ("resume=elsewhere", "--set: resume follows from the recipe"),
        ("stepz=3", "no setting 'stepz', did you mean steps"),
        ("=3", "no setting ''"),
        ("help=1", "no setting 'help'"),
        ("o-ut=x", "no setting 'o-ut'"),
        ("steps=many", "--steps"),
        ("steps=1.5", "--steps"),
        ("steps=10" + 30 * "0", "steps=10"),
        ("steps=" + 5000 * "9", "--steps"),
        ("steps=[1]", "steps=[1] must be text"),
        ("steps={a = 1}", "arm plain: Error parsing --steps: invalid literal"),
        ("steps=2026-01-01", "arm plain: Error parsing --steps: invalid literal"),
        ("hidden=[" + 5000 * "[", "--hidden"),
        ("learning_rate=nan", "learning_rate=nan"),
        ("learning_rate=", "--learning-rate"),
        ("threads=100000000000000000000", "threads=100000000000000000000"),
        ("ignore_termination=2", "ignore_termination=2 must be true or false"),
        ("head=none", "--head"),
        ("env=[]", "env=[]"),
        ("env=[1]", "env=[1]"),
        ("env=['.', 'gym/Pendulum-v1']", "env '.'"),
        ("env=['..', 'gym/Pendulum-v1']", "env '..'"),
        ("env=a\0b", "null bytes"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_setting_that_cannot_be_set_is_said(setting, how, message, home, capsys):
    refused(["small.toml", "--set", setting, *how], message, home, capsys)


RECIPES = {
    "title = ": "small.toml: ",
    SMALL[:200]: "small.toml: ",
    f'colour = "red"\n{SMALL}': "unexpected keyword argument 'colour'",
    f'name = "x"\n{SMALL}': "small.toml: ",
    SMALL.replace('title = "Two agents on Pendulum"', "title = 3"): "small.toml: title=3",
    SMALL.replace('domain = "control"', 'domain = ["control"]'): "small.toml: domain=['control']",
    SMALL.replace('domain = "control"', 'domain = "chess"'): "small.toml: domain 'chess' must be one of",
    SMALL.replace(
        'domain = "control"', 'domain = "control"\nmode = "evaluate"'
    ): "small.toml: only language models",
    SMALL.replace("[settings]", "[[settings]]"): "small.toml: [settings]=",
    SMALL.replace("seeds = [0]", ""): "[scales.cpu] names no seeds",
    SMALL.replace("seeds = [0]", "seeds = 3"): "[scales.cpu]: seeds=3",
    SMALL.replace("seeds = [0]", 'seeds = "03"'): "[scales.cpu]: seeds='03'",
    SMALL.replace("seeds = [0]", "seeds = [0, 1.5]"): "[scales.cpu]: seeds=[0, 1.5]",
    SMALL.replace("seeds = [0]", "seeds = [true]"): "[scales.cpu]: seeds=[True]",
    SMALL.replace("seeds = [0]", "seeds = [-1]"): "[scales.cpu]: seeds=[-1]",
    SMALL.replace("seeds = [0]", "seeds = [0, 0]"): "[scales.cpu]: seeds=[0, 0]",
    SMALL.replace("seeds = [0]", "seeds = [0]\ndevices = 0"): "[scales.cpu]: devices=0",
    SMALL.replace("seeds = [0]", 'seeds = [0]\ndevices = "2"'): "[scales.cpu]: devices='2'",
    SMALL.replace("seeds = [0]", "seeds = [0]\narms = []"): "[scales.cpu]: arms=[]",
    SMALL.replace("seeds = [0]", 'seeds = [0]\narms = "era"'): "[scales.cpu]: arms='era'",
    SMALL.replace("seeds = [0]", "seeds = [0]\narms = [[1]]"): "[scales.cpu]: arm [1]",
    SMALL.replace("[scales.cpu]", "[scales.huge]"): "scale 'huge' must be one of",
    SMALL.replace("[scales.cpu]\nseeds = [0]", "[scales]\ncpu = 3"): "scales.cpu=3",
    SMALL.replace("[scales.cpu]\nseeds = [0]", ""): "small.toml",
    SMALL.replace('[arms.era]\nagent = "sac-era-exact"', "[arms.era]\nlike = 3"): "[arms.era]: like 3",
    SMALL.replace('head = "era-floor"', 'like = "era"'): "[arms.era]: like='era' starts from another arm",
    SMALL.replace('head = "era-floor"', "head = {a = 1}"): "[arms.era]: head={'a': 1}",
    SMALL.replace('head = "era-floor"', "head = 1979-05-27"): "[arms.era]: head=",
    SMALL.replace(
        'head = "era-floor"', 'haed = "era-floor"'
    ): "arm era: there is no setting 'haed', did you mean head",
    SMALL.replace('head = "era-floor"', 'head = "non"'): "arm era: invalid choice 'non' for argument '--head'",
    SMALL.replace('head = "era-floor"', 'agent = "td3"'): "small.toml",
    SMALL.replace('agent = "sac-era-exact"', 'agent = "td3"'): "arm era: agent='td3' must be one of sac, ",
    SMALL.replace('head = "era-floor"', "tau = nan"): "arm era: tau=nan must be between 0 and 1",
    SMALL.replace('head = "era-floor"', "hidden = true"): "arm era: ",
    SMALL.replace('head = "era-floor"', 'out = "../x"'): "[arms.era]: out follows",
    SMALL.replace('head = "era-floor"', 'resume = "../x"'): "[arms.era]: resume follows",
    SMALL.replace("steps = 60", 'out = "../x"'): "[settings]: out follows",
    SMALL.replace("seeds = [0]", 'seeds = [0]\nout = "../x"'): "[scales.cpu]: out follows",
    SMALL.replace("steps = 60", 'warm_starts = "../x"'): "[settings]: warm_starts says where",
    SMALL.replace("steps = 60", "download = true"): "[settings]: download says where",
    SMALL.replace("[published.era]", "[published]\nera = 3\n[published.x]"): "published.era=3",
    SMALL.replace("[published.era]", "[envs.x]\nsteps = 3\n[published.era]"): "[envs] 'x' must be one of",
    **{
        SMALL.replace("[published.era]", f'[envs."gym/Pendulum-v1"]\n{line}\n[published.era]'): message
        for line, message in {
            "seed = 1": "[envs.gym/Pendulum-v1]: seed follows from the recipe",
            "download = true": "[envs.gym/Pendulum-v1]: download says where",
            'env = "x/c"': "[envs.gym/Pendulum-v1]: env='x/c' contradicts it",
        }.items()
    },
    SMALL.split("[arms.plain]")[0]: "small.toml",
    SMALL.split("[arms.plain]")[0] + "[arms]\n": "small.toml",
    SMALL.split("[arms.plain]")[0].replace("[settings]", "arms = 3\n[settings]"): "arms=3 must be a table",
    SMALL.split("[arms.plain]")[0].replace("[settings]", "arms = {x = 3}\n[settings]"): "arms.x=3 must be a table",
    "a" + 5000 * "[": "small.toml",
    "a = " + 5000 * "[": "small.toml",
    "a = " + 5000 * "9": "small.toml",
    "\0": "small.toml",
    **{
        SMALL.replace("[arms.era]", f'[arms."{name}"]'): "small.toml: arm "
        for name in (
            "../../x",
            "/tmp/x",
            "..",
            ".",
            "",
            " ",
            ".git",
            "a/b",
            "a\\\\b",
            "a\\u0000b",
            "a\\nb",
            300 * "x",
        )
    },
}


@pytest.mark.slow_but_first
@pytest.mark.parametrize("number", range(len(RECIPES)))
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_recipe_that_is_none_is_said(number, how, home, capsys):
    text, message = list(RECIPES.items())[number]
    (home / "small.toml").write_text(text)
    err = refused(["small.toml", *how], message, home, capsys)
    assert "small.toml" in err


def test_an_agent_that_does_not_exist_is_named_with_its_recipe_and_arm(home, capsys):
    (home / "small.toml").write_text(SMALL.replace('agent = "sac-era-exact"', 'agent = "td3"'))
    assert "small.toml" in refused(["small.toml"], "arm era: agent='td3' must be one of sac, ", home, capsys)


@pytest.mark.slow
def test_what_a_recipe_may_not_say_is_set_on_the_command_line(home, capsys):
    text = 'title = ""\nsource = ""\ndomain = "vision"\nsettings = {download = false}\narms = {one = {}}\n'
    (home / "small.toml").write_text(f"{text}[scales.cpu]\nseeds = [0]\n")
    for given_, said in (([], "--no-download"), (["--set", "download=true"], "--download")):
        assert main(["reproduce", "small.toml", "--dry-run", *given_]) == 0
        assert said in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path), lambda path: path]
)
def test_a_recipe_that_is_no_file_is_said(make, home, capsys):
    make("other.toml")
    refused(["other.toml"], "recipe other.toml cannot be read", home, capsys)


def test_a_recipe_that_is_no_text_is_said(home, capsys):
    (home / "other.toml").write_bytes(b"title = '\xff'")
    refused(["other.toml"], "recipe other.toml cannot be read", home, capsys)


def refused(args, message, home, capsys):
    """What one line says of a plan that cannot be, of which nothing is begun."""
    before = sorted(home.iterdir())
    assert main(["reproduce", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err
    assert sorted(home.iterdir()) == before
    return err


# --- what is carried out ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", ["..", "absolute"])
def test_runs_of_a_recipe_that_is_elsewhere_are_here_all_the_same(where, home, capsys, monkeypatch):
    (home / "here").mkdir()
    monkeypatch.chdir(home / "here")
    assert (
        main(["reproduce", str(home / "small.toml") if where == "absolute" else "../small.toml", "--dry-run"]) == 0
    )
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    for command in commands:
        out = command.split(" --out ")[1].split()[0]
        assert out.startswith("runs/")
        assert ".." not in out


def test_a_setting_that_may_also_be_none_is_given_as_a_word(home, capsys):
    (home / "small.toml").write_text(SMALL.replace("steps = 60", "steps = 60\nactor_layer_norm = false"))
    assert main(["reproduce", "small.toml", "--set", "target_entropy=-3", "--dry-run"]) == 0
    for command in capsys.readouterr().out.splitlines():
        assert "--actor-layer-norm=False" in command.split()
        assert "--target-entropy=-3" in command.split()


def test_a_setting_is_compared_as_the_run_will_have_it(home):
    """The text -3 and the number are one setting, or the same command would be refused the next time."""
    given_ = {"target_entropy": -3, "learning_rate": 1, "hidden": "8", "log_std_min": "None"}
    plan = recipe.load("small.toml").runs("cpu", home, settings=given_)
    for run in parse_settings(plan, "small.toml", lambda run: SACConfig):
        found = {name: run.record[name] for name in given_}
        filled = SACConfig(agent=run.settings["agent"]).resolved().log_std_min
        assert found == {"target_entropy": "-3", "learning_rate": 1.0, "hidden": 8, "log_std_min": filled}
        assert [type(value) for value in found.values()] == [str, float, int, float]


def test_a_whole_number_for_a_real_setting_is_the_same_setting(home):
    """Or the seeds of an arm would be two arms, where one was begun from Python."""
    whole, real = (VisionConfig(min_entropy=number).resolved() for number in (1, 1.0))
    assert (whole.label, whole.out) == (real.label, real.out)
    run = begin(VisionConfig(min_entropy=1, out=str(home / "run")).resolved(), domain="vision")
    assert type(read_run(run.path).config["min_entropy"]) is float


def test_a_name_that_stands_for_another_is_the_same_setting_the_next_time(home):
    given_ = {"task": "countdown", "out": str(home / "run")}
    begin(LanguageConfig(**given_).resolved(), domain="language")
    text = 'title = ""\nsource = ""\ndomain = "language"\n[settings]\ntask = "countdown"\n[arms.one]\n'
    (home / "words.toml").write_text(f"{text}[scales.cpu]\nseeds = [0]\n")
    (planned,) = parse_settings(
        recipe.load("words.toml").runs("cpu", home), "words.toml", lambda run: LanguageConfig
    )
    kept = {name: value for name, value in planned.record.items() if name != "recipe"}
    check_same(home / "run", kept)
    with pytest.raises(ValueError, match="task=countdown-3"):
        check_same(home / "run", {**kept, "task": "chain"})


def test_a_setting_without_a_default_has_to_be_given(home, capsys):
    text = 'title = ""\nsource = ""\ndomain = "language"\nmode = "evaluate"\nsettings = {}\narms = {one = {}}\n'
    (home / "small.toml").write_text(f"{text}[scales.cpu]\nseeds = [0]\n")
    message = "arm one: model has to be given: see entropyfloor evaluate benchmark --help"
    refused(["small.toml"], message, home, capsys)


def test_the_reason_of_a_parser_that_draws_in_colour_is_found():
    red, end = "\x1b[91m│\x1b[0m", "\x1b[31m──────\x1b[0m"
    lines = ("no such", "choice", end, "see --help")
    box = "\n".join(["╭─ Parsing error ─╮", *(f"{red} {line} {red}" for line in lines)])
    assert _message(box) == "no such choice"


LONG = """
title = "A run without an end"
source = "a test"
domain = "language"

[settings]
task = "arithmetic"
layers = 1
hidden = 16
heads = 2
warm_start_steps = 0
steps = 1000000
prompts = 2
samples = 2
eval_problems = 1
eval_samples = 1
checkpoint_every = 1000000
threads = 1

[scales.cpu]
seeds = [0]

[arms.one]
"""


@pytest.mark.slow
def test_what_a_script_has_started_in_the_background_can_be_stopped(home):
    """There SIGINT is ignored, and whatever it starts inherits that."""
    (home / "long.toml").write_text(LONG)
    begin = f"trap '' INT; exec {sys.executable} -m entropyfloor.cli reproduce long.toml"
    run = home / "runs/long/cpu/one/seed-0"
    with subprocess.Popen(["bash", "-c", begin], stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 120
            while not (run / "checkpoints").exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            assert read_run(run).status["state"] == "running"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130
            assert "the same command" in process.stderr.read()
        finally:
            process.kill()
    assert read_run(run).status["state"] == "interrupted"


SLOW_TO_SAVE = """
import os, signal, time
from pathlib import Path

def save(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
    os.kill(os.getppid(), signal.SIGTERM)  # the second Ctrl-C

signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), signal.SIGTERM)  # the first
time.sleep(20)
Path("saved-in-its-own-time").touch()
"""


class SlowToSave(recipe.PlannedRun):
    launcher = ("slow_to_save",)


def test_a_second_interrupt_reaches_runs_that_are_saving(home):
    (home / "slow_to_save.py").write_text(SLOW_TO_SAVE)
    with pytest.raises(KeyboardInterrupt, match="the same command"):
        reproduce([SlowToSave("one", 0, home / "run", "control", {})], workers=1)
    assert not (home / "saved-in-its-own-time").exists()


@pytest.mark.parametrize("name", recipe.names())
def test_the_command_line_takes_a_command_as_it_stands(name, tmp_path, monkeypatch):
    """The first run of each scale, up to where training would begin."""
    found, seen = recipe.load(name), []
    for room in ("control", "vision", "language"):
        monkeypatch.setattr(f"entropyfloor.{room}.train.train", lambda config: seen.append(config) or tmp_path)
    monkeypatch.setattr("entropyfloor.language.benchmarks.evaluate.evaluate", seen.append)
    monkeypatch.setattr("entropyfloor.report.draw_benchmarks", lambda path: None)  # nothing was judged
    for scale in found.scales:
        run = found.runs(scale, tmp_path, settings={"download": True} if found.domain == "vision" else {})[0]
        assert run.command[:2] == (["train", found.domain] if found.mode == "train" else ["evaluate", "benchmark"])
        assert main(run.command) == 0
        assert {name: getattr(seen[-1], name) for name in run.settings} == run.settings


def test_settings_are_read_as_toml_does():
    given_ = ["a=1", "b=0.5", "c=true", "d=/somewhere", "e=-A/2", 'f="1"', "g=2024-01-01"]
    assert recipe.read_settings(given_) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "/somewhere",
        "e": "-A/2",
        "f": "1",
        "g": "2024-01-01",
    }
    with pytest.raises(ValueError, match="--set steps was given twice"):
        recipe.read_settings(["steps=1", "lr=2", "steps=3"])


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


@pytest.mark.slow
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


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_damaged_run_is_named_and_the_others_are_carried_out(how, home, capsys, monkeypatch):
    started = []
    monkeypatch.setattr("entropyfloor.experiments.start.reproduce", lambda runs, *_: started.extend(runs))
    monkeypatch.setattr(reproduction, "needs_of", lambda runs: dict.fromkeys(range(len(runs)), "not counted"))
    damaged, other = (f"runs/small/cpu/gym-Pendulum-v1/{arm}/seed-0" for arm in ("plain", "era"))
    Run.create(Path(damaged), {"domain": "control", "seed": 0})
    Path(damaged, "metrics.jsonl").write_text("{}\n")
    assert main(["reproduce", "small.toml", *how]) == Status.FAILED
    out, err = capsys.readouterr()
    assert f"{damaged} is left out: {damaged}/metrics.jsonl, line 1 is damaged" in err
    assert f"failed: left out as damaged: {damaged}: move it away" in err
    if how:
        assert f"--out {other} " in out
        assert damaged not in out
    else:
        assert [str(run.out) for run in started] == [other]


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_done(home, capsys):
    (home / "small.toml").write_text(SMALL.replace('head = "era-floor"', 'target_entropy = "99"'))
    assert main(["reproduce", "small.toml", "--workers", "1"]) == 3
    assert "1 of 2 runs failed: see runs/small/cpu/gym-Pendulum-v1/era/seed-0-log.txt" in capsys.readouterr().err
    assert "target_entropy=99" in (home / "runs/small/cpu/gym-Pendulum-v1/era/seed-0-log.txt").read_text()
    assert read_run(home / "runs/small/cpu/gym-Pendulum-v1/plain/seed-0").status["state"] == "finished"


EVALUATION = """
title = "Two models on what is asked of them"
source = "a test"
domain = "language"
mode = "evaluate"

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


@pytest.mark.slow
def test_models_that_others_have_trained_are_scored(home, capsys):
    (home / "scores.toml").write_text(EVALUATION)
    for seed, name in enumerate(("one", "two")):
        tiny_language.save(home / name, seed=seed)
    tiny_language.write_rows(home / "data" / "math500.jsonl", [{"problem": "1+1=?", "answer": "2"}])
    for _ in range(2):  # what is there is not asked again
        assert main(["reproduce", "scores.toml", "--workers", "1"]) == 0
        out = capsys.readouterr().out
        assert "scores: runs/scores/cpu/two/seed-0," in out
        assert "runs/scores/cpu/two/seed-0-log.txt" in out
        assert "report:" not in out
    assert (home / "runs/scores/cpu/one/seed-0/math500.jsonl").read_text().count("\n") == 1
    assert "MATH500" in (home / "runs/scores/cpu/two/seed-0-log.txt").read_text()
