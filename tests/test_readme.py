"""The examples of README.md and docs/ run as they stand, and their commands are understood."""

import shlex
from pathlib import Path

import pytest

from entropyfloor import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [  # page, language, text
    (page.stem, *block.split("\n", 1)) for page in PAGES for block in page.read_text().split("```")[1::2]
]
EXAMPLES = [pytest.param(text, id=page) for page, language, text in BLOCKS if language == "python"]
COMMANDS = [line for _, _, text in BLOCKS for line in text.splitlines() if line.startswith("entropyfloor ")]


class Understood(BaseException):
    """A command has been parsed."""


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them write
    exec(compile(example, "example", "exec"), {})


def test_there_are_examples_for_both_frameworks_and_every_room():
    written = "".join(str(parameter.values[0]) for parameter in EXAMPLES)
    for room in ("torch", "jax", "control", "vision", "language", "report"):
        assert f"entropyfloor.{room}" in written


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    if words[0] in ("evaluate", "export") and not words[1].startswith("-") and words[1] != "benchmark":
        path = Path(words[1])  # the options follow from the run
        path.mkdir(parents=True)
        domain = next((name for name in ("vision", "language") if name in path.parts), "control")
        (path / "config.toml").write_text(f'domain = "{domain}"\n')
    assert cli._parse(cli._long_form(words))  # parsed, not carried out
