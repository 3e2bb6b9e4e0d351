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
def test_command(command, monkeypatch):
    parse = cli._parse

    def only_parse(*args):
        parse(*args)
        raise Understood

    monkeypatch.setattr(cli, "_parse", only_parse)
    with pytest.raises(Understood):
        cli.main(shlex.split(command)[1:])
