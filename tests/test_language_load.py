"""`load_language_model` and `export`: what a run has trained, without its data, its optimiser or its trainer."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import entropyfloor
import tiny_language
from entropyfloor.language import load as loading
from entropyfloor.language.evaluate import evaluate
from entropyfloor.language.export import export
from entropyfloor.language.load import load_language_model
from entropyfloor.language.model.files import load
from entropyfloor.language.train import train
from entropyfloor.runs import Run
from tiny_language import config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a file, with a reference model; the file and the model that it began with are gone."""
    home = tmp_path_factory.mktemp("trained")
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(60)]
    data = str(tiny_language.write_rows(home / "data.jsonl", rows))
    model = str(tiny_language.save(home / "model"))
    settings = {"task": "file", "data": data, "model": model, "warm_start_steps": 0, "max_new_tokens": 4}
    path = train(config(home, **settings, kl_coef=0.1, weight_decay=0.1, checkpoint_every=1))
    shutil.rmtree(model)
    (home / "data.jsonl").unlink()
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_model_of_a_run_or_of_a_checkpoint_is_loaded(run):
    assert entropyfloor.language.load_language_model is load_language_model
    for path, step in ((run, 2), (str(run), 2), (run / "checkpoints" / f"{1:012d}", 1)):
        model, tokenizer = load_language_model(path)
        assert not model.training
        file = run / "checkpoints" / f"{step:012d}" / "arrays.safetensors"
        with safe_open(file, "pt") as saved:
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, saved.get_tensor(f"model/{name}"))
    tokens = tokenizer("1+1", return_tensors="pt").input_ids
    final, _ = load(str(run / "model"))
    assert torch.equal(load_language_model(run)[0](tokens).logits, final(tokens).logits)
    assert model.generate(tokens, max_new_tokens=3).shape[1] <= tokens.shape[1] + 3


def test_only_the_weights_of_the_policy_are_read(run, monkeypatch):
    read, open_checkpoint = [], loading.open_checkpoint

    def spied(*args):
        run, checkpoint = open_checkpoint(*args)
        read.extend(checkpoint.arrays)
        return run, checkpoint

    monkeypatch.setattr(loading, "open_checkpoint", spied)
    load_language_model(run)
    assert read
    assert all(name.startswith("model/") for name in read)


@pytest.mark.slow
def test_no_trainer_is_imported(run):
    code = f"""
import sys, entropyfloor, entropyfloor.language
assert "torch" not in sys.modules
entropyfloor.language.load_language_model({str(run)!r})
assert not {{"entropyfloor.language.trainer", "entropyfloor.language.train"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_language_model_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_language_model(tmp_path / "nowhere")
    other = Run.create(tmp_path / "other", {"domain": "control", "seed": 0})
    other.save(1, {}, {})
    with pytest.raises(ValueError, match="domain='control'"):
        load_language_model(tmp_path / "other")
    file = run / "checkpoints" / f"{1:012d}" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="checksum"):
        load_language_model(file.parent)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint"):
        load_language_model(run)


def test_an_export_of_the_end_is_the_model_of_the_run(run, tmp_path):
    """Byte for byte, its tokenizer too."""
    assert str(tmp_path / "out") in export(run, tmp_path / "out")
    kept, exported = (
        {file.name: file.read_bytes() for file in home.iterdir()} for home in (run / "model", tmp_path / "out")
    )
    assert exported == kept
    export(run / "checkpoints" / f"{1:012d}", tmp_path / "earlier")
    assert (tmp_path / "earlier" / "model.safetensors").read_bytes() != kept["model.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        export(run, tmp_path / "file")


def test_a_checkpoint_is_evaluated(run, tmp_path):
    held = tiny_language.write_rows(tmp_path / "held.jsonl", [{"question": "7+1", "answer": "8"}])
    more = [{"question": "9+1", "answer": "10"}]
    summary = evaluate(
        run / "checkpoints" / f"{1:012d}",
        samples=2,
        data=tiny_language.write_rows(tmp_path / "data.jsonl", more),
        test_data=held,
    )
    assert summary.startswith("step 1, 1 problems, 2 responses each")
    assert json.loads((run / "evaluation.json").read_text())["step"] == 1
