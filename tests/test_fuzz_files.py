"""Files from elsewhere that are damaged or hostile: each reader returns, or says in a line which file is wrong.

Archives of runs, questions, pairs to judge, results of benchmarks, images, weights of classifiers, and what
`audit` reads. `corpus/` has whole files, by reader, and hostile ones; all of them are read, and the whole ones
damaged.
"""

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropyfloor.audit import exported, stable_baselines
from entropyfloor.audit.language import _rows as audited_rows
from entropyfloor.audit.policies import read_observations
from entropyfloor.language.benchmarks.registry import BENCHMARKS, Example
from entropyfloor.language.benchmarks.results import Results
from entropyfloor.language.judge import read_pairs
from entropyfloor.language.tasks.files import Questions
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.vision import sources
from entropyfloor.vision.model import _start_from
from fuzz import FEW_AND_MANY, WORDS, damaged, json_values

CORPUS = Path(__file__).parent / "corpus"


def questions(path):
    found = Questions.read(path, min_level=1)
    found.close()
    assert found.data_checksum >= 0
    assert found.alphabet


def rollouts(path):
    assert all(isinstance(row, dict) for row in audited_rows(path))


def archives(path):
    return read_comparisons([path])


def images(path):
    """A tar file with class directories, as a split of a data set."""
    home = path.parent / "images"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    shutil.copy(path, home / "test.tar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of formats that are not read
        source = sources.load("folder", home, "test")
    for index in range(len(source.labels)):
        assert source.read(index).mode == "RGB"


def policies(path):
    if path.suffix == ".zip":
        read = stable_baselines.read(path)
    else:
        pytest.importorskip("onnxruntime")
        read = exported.read(path, distribution="normal", std=np.ones(1))
    return read.at(np.zeros((2, read.observation_dim or 1), np.float32))


def weights(path):
    return exported.std_of((), path)


def classifiers(path):
    """Weights that training or an audit starts from."""
    model = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(2, 3)))
    model.pretrained_cfg = {"classifier": "fc"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of a new layer for other classes
        _start_from(model, str(path), "a model", ["cat", "dog", "eel"])
    assert all(weight.shape in ((3, 2), (3,)) for weight in model.state_dict().values())


def results(path):
    """Lines of a benchmark with two problems and two responses each."""
    home = path.parent / "results"
    home.mkdir(exist_ok=True)
    shutil.copy(path, home / "aime25.jsonl")
    examples = [Example(i, "1 + 1?", str(i)) for i in range(2)]
    assert set(Results(home, BENCHMARKS["aime25"], examples, 2)._lines) <= {0, 1}


READERS = {
    "archives": archives,
    "classifiers": classifiers,
    "images": images,
    "observations": read_observations,
    "pairs": read_pairs,
    "policies": policies,
    "questions": questions,
    "results": results,
    "rollouts": rollouts,
    "weights": weights,
}
FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
WHOLE = [path for path in FILES if path.name.startswith("whole.")]


def read(kind, path):
    """Whether a file is taken; otherwise it must be refused by its name."""
    try:
        READERS[kind](path)
        return True
    except (ValueError, OSError) as error:
        refusal = str(error)
    name = {"images": "test.tar", "results": "aime25.jsonl"}.get(kind, path.stem)
    assert name in refusal, refusal
    return False


def test_there_is_a_whole_file_for_each_reader():
    assert {path.parent.name for path in WHOLE} == set(READERS)
    assert sum(path.stat().st_size for path in FILES) < 100_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_corpus_is_read_or_refused(file, tmp_path):
    path = tmp_path / file.parent.name / file.name
    path.parent.mkdir()
    shutil.copy(file, path)
    assert read(file.parent.name, path) is file.name.startswith(("whole.", "odd-"))


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: f"{file.parent.name}/{file.name}")
@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_a_damaged_file_is_read_or_refused(file, tried, tmp_path):
    path, whole = tmp_path / file.name, file.read_bytes()

    @tried
    @given(damaged(whole))
    def check(content):
        path.unlink(missing_ok=True)  # archives are remembered by size and time
        path.write_bytes(content)
        read(file.parent.name, path)

    check()


LINES = {
    "questions": {"problem": "1 + 1?", "answer": "2", "level": "Level 2", "options": ["1", "2"]},
    "pairs": {"said": "1/2", "gold": 0.5},
    "rollouts": {"prompt": "1 + 1?", "response": "2"},
    "results": {"problem": 0, "answer": "0", "responses": ["a", "b"]},
}
"""A line of each kind of file that has one object per line."""
entries = json_values | st.sampled_from([*WORDS, 10**400, -1, 1.5, [{"role": "user", "content": [{"type": "x"}]}]])


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_a_line_with_another_value_is_read_or_refused(kind, tried, tmp_path):
    path = tmp_path / "fuzz.jsonl"

    @tried
    @given(st.dictionaries(st.sampled_from([*LINES[kind], "reward_model", "choices"]), entries, min_size=1))
    def check(values):
        lines = [json.dumps(row) for row in (LINES[kind], {**LINES[kind], **values})]
        path.write_text("\n".join([*lines, ""]))
        read(kind, path)

    check()
