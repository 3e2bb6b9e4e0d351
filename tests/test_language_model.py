"""Models of others: their files may be damaged, hold code, not belong together, or be written in a kill."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import tiny_language
from entropyfloor.cli import main
from entropyfloor.language.model import files
from entropyfloor.language.model.files import describe, described, load, save
from entropyfloor.language.model.forward import device_of, ends_of
from entropyfloor.language.sampling.checks import check_logits
from entropyfloor.language.sampling.engines.base import template
from entropyfloor.language.sampling.engines.transformers import Transformers
from entropyfloor.language.train import resume, train
from run_files import history
from tiny_families import build
from tiny_language import config

import transformers  # isort: skip
from transformers import GenerationConfig  # isort: skip


def engine(path):
    return Transformers(str(path), template("none"))


@pytest.fixture
def model(tmp_path):
    return tiny_language.save(tmp_path / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp("finished"), task="arithmetic"))


@pytest.fixture
def run(finished, tmp_path):
    """A finished run, to be done with as one likes."""
    return shutil.copytree(finished, tmp_path / "run")


# --- code ------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
Path({mark!r}).write_text("it ran")
from transformers import Qwen2Config as Config, Qwen2ForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""
AUTO = {
    "AutoConfig": "code.Config",
    "AutoModelForCausalLM": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", None],
}


def with_code(path, mark):
    """Files of a model that bring a program of their own, which leaves a mark where it runs."""
    auto = AUTO | {"AutoTokenizer": ["code.Tokenizer", None]}
    (path / "code.py").write_text(CODE.format(mark=str(mark)))
    for name in ("config.json", "tokenizer_config.json"):
        found = json.loads((path / name).read_text()) | {"auto_map": auto}
        if name == "config.json":
            found["model_type"] = "mine"
        (path / name).write_text(json.dumps(found))


READERS = {"load": lambda path: load(str(path)), "engine": engine, "described": described}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_no_code_of_a_model_runs_whatever_is_answered(read, model, tmp_path, monkeypatch):
    with_code(model, tmp_path / "mark")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"model=.*model .*contains custom code"):
        read(model)
    assert not (tmp_path / "mark").exists()


# --- damage ----------------------------------------------------------------------------------------------

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "noise": lambda data: b"\xff\x00\xfe" * 9,
    "deep": lambda data: b"[" * 100_000,
    "list": lambda data: b"[1]",
}
VALUES = [
    ("config.json", {"hidden_act": "x"}),
    ("config.json", {"num_hidden_layers": -1}),
    ("config.json", {"dtype": "x"}),
    ("config.json", {"model_type": "nothing"}),
    ("generation_config.json", {"eos_token_id": "x"}),
    ("generation_config.json", {"eos_token_id": {}}),
    ("tokenizer_config.json", {"tokenizer_class": 3}),
    ("tokenizer.json", {"model": {}}),
]


def is_refused(read, path):
    """In one line that names the directory, and a file of it if that is no JSON."""
    try:
        read(path)
    except ValueError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return False


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_damaged(name, damage, model):
    file = model / name
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    for read in READERS.values():
        with pytest.raises(ValueError, match=rf"^[^\n]*{model}[^\n]*{name.replace('.', '[.]')} is damaged[^\n]*$"):
            read(model)


def test_files_that_are_none_of_a_model_may_be_anything(model):
    (model / "modules.json").write_text("[1]")
    (model / "notes.json").write_text("{")
    for read in READERS.values():
        read(model)


@pytest.mark.parametrize(("name", "values"), VALUES, ids=str)
def test_values_that_cannot_be(name, values, model):
    found = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(found | values))
    assert is_refused(lambda path: load(str(path)), model)
    assert is_refused(engine, model)


def test_weights_that_are_cut_short(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert is_refused(lambda path: load(str(path)), model)
    assert is_refused(engine, model)


def test_a_model_without_its_last_layer_is_refused(model):
    """transformers would draw it at random."""
    load(str(model))[0].model.save_pretrained(model)
    for read in (READERS["load"], engine):
        with pytest.raises(ValueError, match=r"weights are missing and would be random, lm_head\.weight and 0"):
            read(model)


def test_a_directory_without_a_tokenizer_is_refused(model):
    """transformers would make one that knows no text."""
    for file in model.glob("tokenizer*"):
        file.unlink()
    for read in (READERS["load"], engine):
        with pytest.raises(ValueError, match="it has no tokenizer"):
            read(model)


def test_a_gguf_file_has_a_way_out(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="load it with `gguf_file=` and save the model"):
        load(str(tmp_path / "model.gguf"))


def test_weights_that_are_not_finite_are_named(model):
    loaded = load(str(model))[0]
    torch.nn.init.constant_(loaded.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="its logits are not finite, as if its weights were damaged"):
        check_logits(loaded, "measured")


@pytest.mark.parametrize("name", FILES)
def test_a_run_with_a_damaged_description_says_how_it_goes_on(name, run, tmp_path, capsys):
    (run / "model" / name).write_text("{")
    assert main(["evaluate", str(run), "--problems=2", "--samples=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'model'}" in line
    assert name in line
    assert "delete this directory" in line
    shutil.rmtree(run / "model")
    assert main(["evaluate", str(run), "--problems=2", "--samples=1"]) == 0


# --- kills -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL: nobody handles it."""


def cutting(write):
    """As `write`, but the process dies of it half way."""

    def cut(self, path, *args, **kwargs):
        write(self, path, *args, **kwargs)
        for file in Path(path).iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        raise Killed

    return cut


WRITERS = ("PreTrainedTokenizerBase", "GenerationConfig", "PreTrainedConfig", "PreTrainedModel")


@pytest.mark.slow_but_first
@pytest.mark.parametrize("writer", WRITERS)
def test_a_kill_while_a_model_is_written_leaves_a_run_that_goes_on(writer, run, tmp_path, monkeypatch):
    """As it begins, as it goes on and as it ends: what is there stays whole, and what is not is written again."""
    expected, kind = history(run), getattr(transformers, writer)
    cut = cutting(kind.save_pretrained)
    settings = {"task": "arithmetic"}
    with monkeypatch.context() as patch:
        patch.setattr(kind, "save_pretrained", cut)
        if writer != "PreTrainedModel":
            with pytest.raises(Killed):
                train(config(tmp_path / "begun", **settings))
        shutil.rmtree(run / "checkpoints" / f"{2:012d}", ignore_errors=True)  # one step is left to do
        with suppress(Killed):  # of what is written again
            resume(run)
    before = {file.name: file.read_bytes() for file in (run / "model").iterdir()}
    load(str(run / "model"))  # whole all the same
    assert history(resume(run)) == expected
    assert not list(run.glob(".*"))
    after = {file.name: file.read_bytes() for file in (run / "model").iterdir()}
    assert {name: after[name] for name in FILES} == {name: before[name] for name in FILES}
    if writer != "PreTrainedModel":
        begun = resume(tmp_path / "begun" / "run")
        assert history(begun) == expected
        load(str(begun / "model"))


def test_nothing_of_a_description_is_written_again(run, monkeypatch):
    """A run that goes on reads it, whatever else is killed meanwhile."""
    monkeypatch.setattr(files, "describe", lambda *_: pytest.fail("it is there"))
    shutil.rmtree(run / "checkpoints" / f"{2:012d}")
    resume(run)


def test_what_a_kill_left_beside_is_no_hindrance(model, tmp_path):
    left = tmp_path / ".kept.partial"
    left.mkdir()
    (left / "tokenizer.json").write_text("{")
    language_model, tokenizer = load(str(model))
    describe(tmp_path / "kept", language_model, tokenizer)
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    save(tmp_path / "kept", language_model, tokenizer)
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"
    again, _ = load(str(tmp_path / "kept"))
    assert all(
        torch.equal(weight, again.state_dict()[name]) for name, weight in language_model.state_dict().items()
    )
    assert not left.exists()


@pytest.mark.parametrize("there", ["", "kept", "."])
def test_a_model_is_written_wherever_it_is_asked_for(there, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "model")
    language_model, tokenizer = load(str(model))
    language_model.generation_config.eos_token_id = 7
    save(Path(there), language_model, tokenizer)
    assert ends_of(load(str(model / there))[0]) == {0, 7}


def test_nothing_is_written_beside_a_directory_that_exists(model, tmp_path):
    """It may be a mount point, or its parent may be read-only."""
    with files._placed(model) as found:
        assert found.parent == model
        (found / "config.json").write_text("{}")
    assert (model / "config.json").read_text() == "{}"
    assert not (model / ".partial").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


# --- what does not belong together -----------------------------------------------------------------------


def test_a_model_that_would_be_trained_as_another_is_refused_before_a_run_begins(tmp_path, capsys):
    for family in ("bert", "mamba"):
        path = tmp_path / family
        build(family, vocab_size=99).save_pretrained(path)
        tiny_language.tokenizer().save_pretrained(path)
        assert (
            main(["train", "language", f"--model={path}", "--task=arithmetic", f"--out={tmp_path / 'run'}"]) == 2
        )
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "cannot be trained here" in line
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="MambaForCausalLM cannot be sampled from here"):
        engine(tmp_path / "mamba")


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "meta", "gpu", ""])
def test_devices_that_are_not_there(name):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"^device={name} cannot be used here .*--device cpu, or auto"):
        device_of(name)


def test_devices_that_are_there():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type in ("cpu", "cuda", "mps", "xpu")


def test_tokens_outside_of_the_embedding(model):
    """A tokenizer often has more than its model."""
    tokenizer = tiny_language.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<stop>"]})
    tokenizer.save_pretrained(model)
    _, read = load(str(model))
    assert read.pad_token_id == read.eos_token_id == 0
    with pytest.raises(ValueError, match=r"stop_token='<stop>' is 1 tokens .* the 99 that its embedding has"):
        load(str(model), stop_token="<stop>")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(model)
    assert ends_of(load(str(model))[0]) == {0, 101}  # and that of the checkpoint is still one
    GenerationConfig(eos_token_id=None).save_pretrained(model)
    found = json.loads((model / "config.json").read_text()) | {"eos_token_id": None}
    (model / "config.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"responses end at \[101\], and its embedding has 99 tokens"):
        load(str(model))


def test_a_run_is_refused_before_it_begins(model, tmp_path):
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(60)]
    data = str(tiny_language.write_rows(tmp_path / "data.jsonl", rows))
    settings = {"task": "file", "data": data, "model": str(model), "warm_start_steps": 0, "max_new_tokens": 4}
    with pytest.raises(ValueError, match=r"prompts=64: data has 49 problems to train with"):
        train(config(tmp_path, **settings, prompts=64))
    with pytest.raises(ValueError, match=r"prompts=200: arithmetic has no more than"):
        train(config(tmp_path, task="arithmetic", digits=1, prompts=200, warm_start_steps=0))
    with pytest.raises(ValueError, match=r"warm_start_batch=200: arithmetic has no more than"):
        train(config(tmp_path, task="arithmetic", digits=1, warm_start_batch=200, warm_start_steps=1))
    tokenizer = tiny_language.tokenizer()
    tokenizer.add_tokens("<more>")
    tokenizer.save_pretrained(model)
    with pytest.raises(ValueError, match="token 99"):
        train(config(tmp_path, **settings, prompt="{question}<more>"))
    with pytest.raises(ValueError, match="device=cuda:99"):
        train(config(tmp_path, task="arithmetic", device="cuda:99"))
    assert not (tmp_path / "run").exists()
    tiny_language.trainer(tmp_path, **settings).task.close()
