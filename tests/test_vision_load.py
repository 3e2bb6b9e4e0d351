"""A classifier of a run is loaded, evaluated and used without the images it was trained on."""

import doctest
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from digits import save_digits
from entropyfloor import vision
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.checkpoint import fingerprint
from entropyfloor.vision import data, load, sources
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.evaluate import evaluate
from entropyfloor.vision.train import complete, resume, train
from entropyfloor.vision.trainer import Trainer
from run_files import with_header

SETTINGS = {"model": "test_resnet", "dataset": "folder", "input_size": 32, "crop": 0.875, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits of three kinds as PNG files in class directories."""
    return save_digits(tmp_path_factory.mktemp("digits"), {0: "zero", 1: "one", 2: "two"}, train=16, test=8)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of two epochs with averaged weights, whose training images are gone; and its test images."""
    home = shutil.copytree(folder, tmp_path_factory.mktemp("images") / "images")
    out = tmp_path_factory.mktemp("runs") / "run"
    config = VisionConfig(
        **SETTINGS, epochs=2, threads=1, min_entropy=0.3, ema=0.5, data_dir=str(home), out=str(out)
    )
    train(config)
    shutil.rmtree(home / "train")
    return out, home


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def test_what_one_needs_to_use_it(run, trained):
    classifier = vision.load_classifier(run)
    assert isinstance(classifier, vision.Classifier)
    assert not classifier.training
    assert classifier.label_names == ("one", "two", "zero")
    assert classifier.input_size == 32
    assert (classifier.mean, classifier.std) == data.IMAGENET
    source = sources.load("folder", trained[1], "test")
    images = [source.store.open(i) for i in range(len(source.labels))]
    expected = torch.stack([image for image, _ in data.evaluation_set(source, 32, 0.875)])
    assert torch.equal(classifier.preprocess(images), data.Normalise(data.IMAGENET)(expected))
    logits = classifier(classifier.preprocess(images))
    assert torch.distributions.Categorical(logits=logits).entropy().min() > 0.3 - 1e-5
    correct = logits.argmax(1) == torch.tensor(source.labels)
    assert float(correct.double().mean()) == read_run(run).lines[-1]["top1"]
    plain = vision.detach_era(classifier.model)
    assert type(plain.get_classifier()) is torch.nn.Linear


def test_only_the_weights_that_are_evaluated_are_read(run, monkeypatch):
    names, open_checkpoint = [], load.open_checkpoint

    def opened(*args):
        run, checkpoint = open_checkpoint(*args)
        names.append(sorted({name.partition("/")[0] for name in checkpoint.arrays}))
        return run, checkpoint

    monkeypatch.setattr(load, "open_checkpoint", opened)
    classifier = vision.load_classifier(run)
    assert names == [["average"]]
    arrays = Run.open(run).latest().arrays
    assert {name.partition("/")[0] for name in arrays} == {"model", "average", "optimiser"}
    for name, weight in classifier.model.state_dict().items():
        assert np.array_equal(weight.numpy(), arrays[f"average/{name}"])


def test_a_checkpoint_of_a_run_can_be_named(run):
    first, last = sorted((run / "checkpoints").iterdir())
    for path, same in ((first, False), (last, True), (str(last), True)):
        weight = vision.load_classifier(path).model.get_classifier().weight
        assert torch.equal(weight, vision.load_classifier(run).model.get_classifier().weight) == same
    evaluate(first)
    assert read_run(run).evaluation["step"] == 1


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    "settings", [{}, {"temperature_floor": 0.2, "precision": "bf16", "ood": "digits"}], ids=len
)
def test_an_evaluation_without_training_images_is_that_of_training(settings, folder, tmp_path):
    home = shutil.copytree(folder, tmp_path / "images")
    config = VisionConfig(
        **SETTINGS, epochs=1, threads=1, data_dir=str(home), out=str(tmp_path / "run"), **settings
    )
    path = train(config)
    shutil.rmtree(home / "train")
    assert "epoch 1, 24 test images" in evaluate(path)
    values, logged = read_run(path).evaluation["values"], read_run(path).lines[-1]
    assert {name: logged[name] for name in values} == values
    assert ("auroc" in values) == ("ood" in settings)


def test_a_damaged_checkpoint_is_refused(run):
    for file in run.glob("checkpoints/*/arrays.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        vision.load_classifier(run)


def test_what_is_no_run_of_a_classifier_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="no run in"):
        vision.load_classifier(tmp_path)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('domain = "vision"', 'domain = "control"'))
    with pytest.raises(ValueError, match=r"domain='control'|other settings"):
        vision.load_classifier(run)


def with_setting(run, name, old, new):
    """A run that was trained with another setting."""
    text = (run / "config.toml").read_text()
    assert f"{name} = {old}\n" in text
    (run / "config.toml").write_text(text.replace(f"{name} = {old}\n", f"{name} = {new}\n"))
    for checkpoint in (run / "checkpoints").iterdir():
        with_header(checkpoint, settings=fingerprint(Run.open(run).config))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="half precision can be computed here")
def test_a_run_in_half_precision_is_evaluated_without_an_accelerator(run, trained):
    with_setting(run, "precision", '"fp32"', '"fp16"')
    with pytest.warns(
        UserWarning, match="precision='fp16' is not for a device of type cpu: predictions are made in"
    ):
        evaluate(run)
    assert read_run(run).evaluation["values"]["nll"] == pytest.approx(read_run(trained[0]).lines[-1]["nll"])


def test_a_setting_that_is_ignored_does_not_close_a_run(run, folder):
    with_setting(run, "erase_mode", '"pixel"', '"const"')
    evaluate(run)
    resume(run, data_dir=str(folder))
    with pytest.raises(ValueError, match="ood_dir=there would be ignored without ood"):
        evaluate(run, ood_dir="there")


def test_a_run_without_names_of_classes(run):
    for file in run.glob("checkpoints/*/state.json"):  # as early versions wrote it
        state = json.loads(file.read_text())["state"]
        del state["classes"]
        with_header(file.parent, state=state)
    assert vision.load_classifier(run).label_names is None


def test_the_example_runs(run, tmp_path, monkeypatch):
    path = tmp_path / "runs" / "vision" / "digits-resnet18" / "plain" / "seed-0"
    shutil.copytree(run, path)
    Image.new("L", (40, 30), 99).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    names = {"load_classifier": vision.load_classifier}
    for example in doctest.DocTestParser().get_examples(vision.load_classifier.__doc__):
        exec(example.source, names)
    assert names["name"] in ("one", "two", "zero")
    assert names["probabilities"].shape == (1, 3)


@pytest.mark.slow
def test_neither_trainer_nor_accelerate_is_imported(run):
    code = f"""
import sys
from entropyfloor.vision import load_classifier
load_classifier({str(run)!r})
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"accelerate", "entropyfloor.vision.trainer", "torchmetrics"} & set(done.stdout.split())


def test_settings_are_complete_before_a_trainer_is_built(folder):
    config, images, accelerator = complete(VisionConfig(**SETTINGS, data_dir=str(folder)))
    assert (config.num_classes, config.out) == (3, "runs/vision/folder-test_resnet/plain/seed-0")
    trainer = Trainer(config, images, accelerator)
    assert trainer.config is config
