"""The notebooks of docs/ run from the first cell to the last, on a CPU, and are stored without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    found = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_there_is_one_for_each_domain():
    assert [path.stem for path in NOTEBOOKS] == ["control", "language", "vision"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_text_and_no_outputs(path):
    found = json.loads(path.read_text())
    assert found["nbformat"] == 4
    assert [cell["cell_type"] for cell in found["cells"][:2]] == ["markdown", "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in found["cells"][1::2])
    assert f"pip install '.[{path.stem}" in cells(path, "markdown")[0]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code")):
        exec(compile(cell, f"{path.name}, code cell {number}", "exec"), names)
        assert capsys.readouterr().out or "train" in cell or "detach_era" in cell
