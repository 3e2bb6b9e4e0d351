"""The examples of README.md and docs/ run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(example, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them write
    exec(compile(example, "example", "exec"), {})


def test_there_are_examples_for_both_frameworks_and_every_room():
    written = "".join(str(parameter.values[0]) for parameter in EXAMPLES)
    for room in ("torch", "jax", "control", "vision", "language", "report"):
        assert f"entropyfloor.{room}" in written
