"""Audits of classifiers: of runs, and of models of timm on a folder of images."""

import json
import tarfile

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from entropyfloor import audit
from entropyfloor.audit import logits, vision
from entropyfloor.cli import main
from entropyfloor.vision import attach_era, load_classifier, metrics
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.data import evaluation_set
from entropyfloor.vision.evaluate import predictions_of
from entropyfloor.vision.train import train

import timm  # isort: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a floor."""
    out = tmp_path_factory.mktemp("vision") / "run"
    return train(VisionConfig(model="test_resnet", dataset="digits", min_entropy=0.6, epochs=1, out=str(out)))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images at two depths, and files that are none."""
    home = tmp_path_factory.mktemp("images")
    (home / "deep").mkdir()
    (home / ".hidden").mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(home / ("deep" if i % 2 else ".") / f"{i}.png")
        PIL.Image.fromarray(pixels).save(home / ".hidden" / f"{i}.png")
    (home / "notes.txt").write_text("none")
    return home


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a model that is sure of itself."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    with torch.no_grad():
        model.get_classifier().weight.mul_(1000)
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return file


@pytest.mark.slow
def test_a_run_is_compared_with_its_own_floor(trained, tmp_path, capsys):
    samples = vision.run(trained)
    predictions = predictions_of(trained)[3]
    assert samples.entropy == pytest.approx(predictions.entropy.numpy())
    assert samples.floor == 0.6
    assert audit.summarise(samples).holds
    assert samples.labels[0] == "digit 0 (4)"
    assert logits.SATURATED == metrics.SATURATED  # one limit here and in evaluations
    assert samples.further[0].values == pytest.approx(predictions.gap.numpy())
    assert samples.numbers["top1"] == pytest.approx(float(predictions.correct.double().mean()))
    assert main(["audit", str(trained), "--floor", "2.5", "--out", str(tmp_path)]) == 1
    assert "the floor of 2.5 nats is broken" in capsys.readouterr().err
    assert json.loads((tmp_path / "audit.json").read_text())["promised_floor"] == 0.6


def test_a_model_of_timm_is_measured_with_and_without_a_floor(images, weights, tmp_path, capsys):
    plain = vision.classifier("test_resnet", images, checkpoint=weights, input_size=32, crop=1.0)
    floored = vision.classifier(
        "test_resnet", images, checkpoint=weights, input_size=32, crop=1.0, min_entropy=0.5
    )
    assert [label.removeprefix(f"{images}/") for label in plain.labels] == [
        *("0.png", "2.png", "4.png", "deep/1.png", "deep/3.png", "deep/5.png")
    ]
    assert plain.entropy.min() < 0.5 - 1e-3 <= floored.entropy.min()
    assert (plain.floor, floored.floor) == (None, 0.5)
    assert plain.further[0].values == pytest.approx(floored.further[0].values)  # the gap before the floor
    words = ["audit", "classifier", "test_resnet", str(images), "--checkpoint", str(weights), "--input-size", "32"]
    assert main([*words, "--floor", "0.5", "--out", str(tmp_path)]) == 1
    assert "share of images below it" in capsys.readouterr().out


def test_a_tar_file_is_measured_like_its_directory(images, weights, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(images, "images")
    options = {"checkpoint": weights, "input_size": 32, "crop": 1.0}
    found = vision.classifier("test_resnet", tmp_path / "images.tar", **options)
    expected = vision.classifier("test_resnet", images, **options)
    np.testing.assert_allclose(np.sort(found.entropy), np.sort(expected.entropy), rtol=1e-5)


def test_the_logits_are_those_of_the_model(images, weights):
    model = timm.create_model("test_resnet", num_classes=7, checkpoint_path=str(weights)).eval()
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        logits = model(torch.stack([transform(PIL.Image.open(images / f"{i}.png")) for i in (0, 2, 4)]))
    expected = torch.distributions.Categorical(logits=logits).entropy().numpy()
    found = vision.classifier("test_resnet", images, checkpoint=weights, input_size=32, limit=None).entropy[:3]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_limit_takes_evenly_spread_images(images, weights):
    samples = vision.classifier("test_resnet", images, checkpoint=weights, input_size=32, limit=3)
    assert [label[-5:] for label in samples.labels] == ["0.png", "4.png", "5.png"]


@pytest.mark.parametrize("metadata", [None, {"mean": "[0.5]", "std": "[0.5]"}, {"mean": "half"}])
def test_weights_of_others_are_prepared_as_timm_does(metadata, tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors", metadata)
    assert vision._of_run(tmp_path / "model.safetensors") == {}


@pytest.mark.slow
def test_an_exported_classifier_has_the_entropies_of_its_run(trained, tmp_path):
    from entropyfloor.vision.export import export

    export(trained, tmp_path / "model.safetensors")
    classifier = load_classifier(trained)
    source = predictions_of(trained)[2]
    for i in range(4):
        source.read(i).save(tmp_path / f"{i}.png")
    samples = vision.classifier(
        *("test_resnet", tmp_path), checkpoint=tmp_path / "model.safetensors", min_entropy=0.6
    )
    bytes_of = evaluation_set(source, classifier.input_size, 1.0)
    with torch.no_grad():
        logits = classifier(classifier.normalise(torch.stack([bytes_of[i][0] for i in range(4)])))
    expected = torch.distributions.Categorical(logits=logits).entropy().numpy()
    assert samples.entropy == pytest.approx(expected, abs=1e-4)


def test_weights_that_execute_something_are_refused(images, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "written").touch, ()

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"checkpoint=.*evil.pth cannot be read as weights alone") as error:
        vision.classifier("test_resnet", images, checkpoint=tmp_path / "evil.pth")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("resnet18", {}, "does not fit resnet18|they are weights of another model"),
        ("test_resnet", {"limit": 0}, "limit=0 must be at least 1"),
        ("test_resnet", {"pretrained": True}, "needs weights"),
        ("test_resnet", {"min_entropy": 9.0}, "9.0"),
    ],
)
def test_a_refusal_names_what_is_wrong(model, changes, message, images, weights):
    with pytest.raises(ValueError, match=message) as error:
        vision.classifier(model, images, checkpoint=weights, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head", [3, torch.tensor(3.0)])
def test_a_head_that_is_no_matrix_is_refused(head, images, tmp_path):
    torch.save({"fc.weight": head}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="has no layer fc"):
        vision.classifier("test_resnet", images, checkpoint=tmp_path / "w.pth")


def test_too_little_memory_is_named(images, weights, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(vision, "logits_and_raw", full)
    with pytest.raises(torch.OutOfMemoryError) as error:
        vision.classifier("test_resnet", images, checkpoint=weights, input_size=32)
    assert error.value.__notes__ == [vision.OUT_OF_MEMORY_HINT]


def test_a_folder_without_images_is_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="has no image of a format that is read"):
        vision.classifier("test_resnet", tmp_path, checkpoint=weights)
    with pytest.raises(ValueError, match="must be a directory of images, or a tar file"):
        vision.classifier("test_resnet", tmp_path / "absent", checkpoint=weights)


def test_raw_logits_are_those_before_the_floor():
    from entropyfloor.vision.predict import logits_and_raw
    from entropyfloor.vision.regularisers import TemperatureFloor

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain, same = logits_and_raw(model, pixels)
        assert same is plain
        for floored in (torch.nn.Sequential(model, TemperatureFloor(7, 1.94)), attach_era(model, 1.0)):
            logits, raw = logits_and_raw(floored, pixels)
            assert torch.equal(raw, plain)
            assert not torch.equal(logits, plain)
