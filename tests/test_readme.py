"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them trains
    exec(compile(example, "README.md", "exec"), {})


def test_there_are_examples_for_both_frameworks():
    assert any("entropyfloor.torch" in e for e in EXAMPLES)
    assert any("entropyfloor.jax" in e for e in EXAMPLES)
