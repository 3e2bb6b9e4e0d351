"""The example for TRL, with a model of no size: it trains, and its log becomes a run that a report can draw."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import tiny_language
from entropyfloor.runs import read_run

ROOT = Path(__file__).parents[1]
LIBRARIES = "trl", "reasoning_gym", "entropyfloor.integrations"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, LIBRARIES)), reason="a library is not installed"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture
def examples(monkeypatch):
    """The modules `trl_era` and `trl_log`."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return import_module("trl_era"), import_module("trl_log")


@pytest.mark.parametrize("era", [True, False])
def test_a_run_of_trl_is_drawn_as_one_of_ours(examples, tmp_path, era):
    trl_era, trl_log = examples
    model = str(tiny_language.save(tmp_path / "model"))
    settings = {"model": model, "era": era, "seed": 3}
    example = trl_era.Example(out=tmp_path / "trl", steps=3, **settings)
    example.train()
    trl_log.Log(run=tmp_path / "trl", out=tmp_path / "run", **settings).write()
    run = read_run(tmp_path / "run")
    assert run.status["state"] == "finished"
    assert run.config["agent"] == ("trl-grpo-era-low-0.45-high-3.0" if era else "trl-grpo")
    assert (run.config["steps"], run.config["seed"]) == (3, 3)
    for name, steps in {"reward": [1, 2, 3], "response_entropy": [1, 2, 3], "avg_at_k": [0, 3]}.items():
        assert run.series(name)[0].tolist() == steps
    assert run.series("scaled_share")[0].tolist() == ([1, 2, 3] if era else [])
    assert run.series("response_entropy")[1][0] == pytest.approx(4.5, abs=0.2)  # log(98) = 4.58


def test_sizes_of_the_paper_s_run(examples):
    arguments = examples[0].Example(task="dapo").arguments()
    assert 8 * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 256 * 8
    assert (arguments.omega_low, arguments.omega_high, arguments.era_top_k) == (0.45, 3.0, 20)
