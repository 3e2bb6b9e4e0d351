"""README.md, CONTRIBUTING.md and docs/: examples run as they stand; commands, links and `make` targets exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from entropyfloor import cli
from entropyfloor.control.train import configure
from entropyfloor.control.train import train as train_control
from entropyfloor.experiments import recipe
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.train import train as train_language
from entropyfloor.runs import archive
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.train import train as train_vision

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
BLOCKS = [  # page, language, text
    (page, *block.split("\n", 1)) for page, text in TEXTS.items() for block in text.split("```")[1::2]
]
PROSE = {page: "".join(text.split("```")[::2]) for page, text in TEXTS.items()}
COMPILES = r" train\(|tdmpc2"  # an update or a plan: seconds
EXAMPLES = [
    pytest.param(text, id=page, marks=pytest.mark.slow if re.search(COMPILES, text) else ())
    for page, language, text in BLOCKS
    if language == "python"
]
COMMANDS = [line for _, _, text in BLOCKS for line in text.splitlines() if line.startswith("entropyfloor ")]
WORDS = r"`(entropyfloor\s(?:train\s\w+|evaluate\sbenchmark|\w+))[\s`]"
INLINE = sorted({" ".join(found.split()) for text in PROSE.values() for found in re.findall(WORDS, text)})
LINKS = [(page, link) for page, text in PROSE.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]


SHORT = {"hidden": 16, "steps": 20, "random_steps": 19, "eval_episodes": 1, "max_episode_steps": 20}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs that the examples load: those of the commands in README.md, made small."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    out = str(runs / "dmc-walker-run/sac-era-exact/seed-0")
    train_control(configure("sac-era-exact", env="dmc/walker-run", out=out, **SHORT))
    out = str(runs / "vision/digits-test_resnet/era-calibrated-0.6/seed-0")
    train_vision(VisionConfig(model="test_resnet", dataset="digits", min_entropy=0.6, epochs=1, out=out))
    out = str(runs / "language/countdown-3-tiny/grpo-era/seed-0")
    small = {"layers": 1, "hidden": 16, "heads": 2, "warm_start_steps": 2, "steps": 1, "prompts": 2, "samples": 2}
    train_language(LanguageConfig(head="era", eval_problems=2, eval_samples=2, out=out, **small))
    return runs


@pytest.fixture(scope="module")
def planned(trained):
    """The same, with the run of TD-MPC2 that an example plans with."""
    model = {"model_size": "1M", "samples": 8, "proposals": 4, "elites": 4, "iterations": 1}
    out = str(trained / "dmc-walker-walk/tdmpc2-era/seed-0")
    train_control(configure("tdmpc2-era", env="dmc/walker-walk", out=out, **SHORT, **model))
    return trained


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # some of them write
    if re.search(r"(load_\w+|control\.run)\(.*\"runs/", example):
        runs = request.getfixturevalue("planned" if "tdmpc2" in example else "trained")
        (tmp_path / "runs").symlink_to(runs)
    exec(compile(example, "example", "exec"), {})


def test_there_are_examples_for_both_frameworks_and_every_room():
    written = "".join(str(parameter.values[0]) for parameter in EXAMPLES)
    for room in ("torch", "jax", "control", "vision", "language", "report", "runs"):
        assert f"entropyfloor.{room}" in written
    for loader in ("control.load_policy", "vision.load_classifier", "language.load_language_model"):
        assert loader in written


@pytest.mark.parametrize("command", INLINE)
def test_commands_in_prose_exist(command):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split()[1:], "--help"])
    assert stopped.value.code == 0


def test_options_in_prose_exist(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [command.split()[1:] for command in INLINE]
    commands += [["train", "control", "--agent", agent] for agent in ("ppo", "obac", "fasttd3", "tdmpc2")]
    for domain in ("control", "vision", "language"):  # the options of `evaluate` follow from the run
        Path(domain).mkdir()
        Path(domain, "config.toml").write_text(f'domain = "{domain}"\n')
        commands += [["evaluate", domain], ["audit", domain]]
    commands += [["audit", kind] for kind in ("policy", "classifier")]
    for command in commands:
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
    known = {*re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out), "--help", "--module"}  # accelerate's
    written = {page: re.findall(r"`[^`]*`", text) for page, text in PROSE.items()}
    unknown = {page: set(re.findall(r"--[a-z][a-z-]*", " ".join(code))) - known for page, code in written.items()}
    assert not any(unknown.values()), unknown


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 900


@pytest.mark.parametrize(("page", "link"), [link for link in LINKS if ":" not in link[1]])
def test_relative_links_lead_somewhere(page, link):
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_results_exist(page):
    for place in re.findall(r"(?<![\w./])results/[\w./-]*\w", TEXTS[page]):
        inside = archive.split(ROOT / place)
        assert (ROOT / place).exists() or (inside and archive.names(*inside)), place


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXTS[page], re.MULTILINE)) <= targets


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    if words[0] in ("evaluate", "export", "audit") and "/" in words[1]:
        path = Path(words[1])  # the options follow from the run
        path.mkdir(parents=True)
        domain = next((name for name in ("vision", "language") if name in path.parts), "control")
        (path / "config.toml").write_text(f'domain = "{domain}"\n')
    assert cli._parse(cli._long_form(words))  # parsed, not carried out


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"reproduce \w+/", command)])
def test_recipes_have_the_arms_of_a_command(command, tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--arms", nargs="+", default=[])
    asked, _ = parser.parse_known_args(shlex.split(command)[2:])
    runs = recipe.load(asked.recipe).runs(asked.scale, tmp_path, arms=asked.arms, seeds=[0], settings={})
    assert {run.arm for run in runs} >= {*asked.arms}
    assert runs
