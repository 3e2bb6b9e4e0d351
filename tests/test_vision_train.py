"""The vision trainer on real images: scikit-learn's digits, and folders made of them."""

import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import entropyfloor.vision
from entropyfloor.runs import Run, read_run
from entropyfloor.vision import data
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.evaluate import evaluate
from entropyfloor.vision.export import export, trained
from entropyfloor.vision.train import resume, train
from entropyfloor.vision.trainer import Trainer

# isort: split
import timm  # after our room, which sees to torchvision

SMALL = {
    "model": "test_resnet",
    "epochs": 1,
    "batch_size": 64,
    "threads": 1,
    "min_entropy": 0.3,
    "num_classes": 10,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 + 20 digits of two kinds as PNG files in class directories."""
    home = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 20), ("test", 10)):
        source = data.load("digits", home, split)
        for label in (0, 1):
            place = home / split / ("zero", "one")[label]
            place.mkdir(parents=True)
            for i in [i for i, found in enumerate(source.labels) if found == label][:count]:
                source.store.open(i).save(place / f"{i}.png")
    return home


TINY = {
    "model": "test_resnet",
    "dataset": "folder",
    "input_size": 32,
    "epochs": 1,
    "batch_size": 8,
    "threads": 1,
    "augmentation": "none",
}


def run(folder, tmp_path, **settings):
    return train(VisionConfig(**{**TINY, "data_dir": str(folder), "out": str(tmp_path / "run"), **settings}))


def last(path):
    return read_run(path).lines[-1]


# --- learning --------------------------------------------------------------------------------------------


def test_it_learns_and_the_floor_holds(tmp_path):
    path = train(VisionConfig(**{**SMALL, "epochs": 2}, out=str(tmp_path / "run")))
    found = last(path)
    assert found["top1"] > 0.6
    assert found["top5"] > 0.95
    assert found["floor"] == 0.3
    assert found["realised_entropy/min"] > 0.3 - 1e-4
    assert found["realised_entropy/min"] < 0.6  # which it comes near to
    record = read_run(path)
    assert (record.status["state"], record.status["step"]) == ("finished", 2)
    assert (record.config["num_classes"], record.config["input_size"]) == (10, 32)


def test_what_smoothing_cannot_reach_is_said_once(folder, tmp_path):
    with pytest.warns(UserWarning, match="caps it at .*: the optimum cannot be reached") as said:
        path = run(folder, tmp_path, min_entropy=0.6, label_smoothing=0.1)
    assert len(said) == 1
    assert read_run(path).config["env"] == f"{folder.name} test_resnet"  # what is in the folder, for a report
    evaluate(path)  # has no loss, and says nothing


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "lamb"])
def test_a_resumed_run_is_the_run_that_was_left_alone(optimiser, folder, tmp_path):
    settings = {
        "epochs": 3,
        "min_entropy": 0.2,
        "augmentation": "light",
        "dropout": 0.2,
        "mixup": 0.2,
        "erase": 0.5,
        "ema": 0.9,
        "optimiser": optimiser,
        "learning_rate": 1e-3,
        "warmup_epochs": 1,
        "ood": "digits",
    }
    whole = run(folder, tmp_path / "whole", **settings)
    home = shutil.copytree(folder, tmp_path / "here")
    halted = run(home, tmp_path / "halted", **settings)
    newest = sorted((halted / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    moved = home.rename(tmp_path / "there")
    resume(halted, data_dir=str(moved))
    a, b = (
        [
            {k: v for k, v in line.items() if k not in ("seconds", "images_per_second")}
            for line in read_run(path).lines
        ]
        for path in (whole, halted)
    )
    assert a == b
    assert [line["step"] for line in a] == [0, 1, 2, 3]
    ends = [(path / "checkpoints" / newest.name / "arrays.safetensors").read_bytes() for path in (whole, halted)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature_floor": 0.3},
        {"label_smoothing": 0.1, "min_entropy": 0.05},
        {"focal_gamma": 2.0},
        {"confidence_penalty": 0.1},
        {"cutmix": 1.0},
        {"augmentation": "timm", "auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.6},
        {
            "augmentation": "timm",
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "aug_splits": 3,
            "split_bn": True,
            "jsd": 12.0,
            "erase": 0.6,
        },
        {"precision": "bf16", "min_entropy": 0.3, "channels_last": True},
        {"schedule": "constant", "warmup_epochs": 1, "clip_grad": 1.0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_setting_trains(settings, folder, tmp_path):
    found = last(run(folder, tmp_path, **settings))
    assert np.isfinite(found["loss"])
    if (floor := found.get("floor")) is not None:
        assert found["realised_entropy/min"] > floor - 1e-4


def test_a_vision_transformer_is_told_the_size_of_the_images(folder, tmp_path):
    assert "loss" in last(run(folder, tmp_path, model="test_vit", min_entropy=0.1))


def test_other_things_are_told_apart(folder, tmp_path):
    assert 0 <= last(run(folder, tmp_path, ood="digits"))["auroc"] <= 1


def test_smoothing_that_the_floor_makes_unreachable_is_said_once(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"0\.9500.*0\.6 nats caps.*largest calibrated floor.*0\.1985") as told:
        run(folder, tmp_path, min_entropy=0.6, label_smoothing=0.1)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(folder, tmp_path / "again", min_entropy=0.19, label_smoothing=0.1)


def test_a_test_image_that_cannot_be_read_costs_no_training(folder, tmp_path):
    home = tmp_path / "images"
    shutil.copytree(folder, home)
    (home / "test" / "one" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        run(home, tmp_path, epochs=2)
    assert read_run(tmp_path / "run").lines == []  # it was found before training began


@pytest.mark.slow
def test_two_processes_train_one_model(folder, tmp_path):
    """With `accelerate`, on CPUs: the run is written once, the floor holds, and it goes on."""
    options = {**TINY, "data_dir": folder, "out": tmp_path / "run", "min_entropy": 0.1, "ema": 0.9, "epochs": 2}
    options["workers"] = 1  # which fork; beside JAX, as in this process, that is warned of
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--module"]
    command = [*launch, "entropyfloor.cli", "train", "vision"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    before = read_run(tmp_path / "run")
    assert [line["step"] for line in before.lines] == [0, 1, 2]
    assert before.lines[-1]["realised_entropy/min"] > 0.1 - 1e-4
    shutil.rmtree(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    resumed = [*command, "--resume", str(tmp_path / "run")]
    done = subprocess.run(resumed, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    after = read_run(tmp_path / "run")
    assert {k: v for k, v in after.lines[-1].items() if k not in ("seconds", "images_per_second")} == {
        k: v for k, v in before.lines[-1].items() if k not in ("seconds", "images_per_second")
    }


# --- weights that come and go ----------------------------------------------------------------------------


def test_weights_of_a_plain_model_start_a_floored_one(folder, tmp_path):
    trainer = Trainer(VisionConfig(**TINY, data_dir=str(folder)))
    torch.save(trainer.model.state_dict(), tmp_path / "plain.pth")
    config = VisionConfig(
        **TINY, data_dir=str(folder), seed=1, min_entropy=0.1, checkpoint=str(tmp_path / "plain.pth")
    )
    again = Trainer(config)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"min_entropy": 0.3},
        {"ema": 0.5, "min_entropy": 0.3, "floor": "paper", "inverse": "paper"},
        {"temperature_floor": 0.3},
        {"augmentation": "timm", "aug_splits": 2, "split_bn": True},
        {"model": "vit_tiny_patch16_224"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_was_trained_leaves_the_run(settings, folder, tmp_path):
    path = run(folder, tmp_path, **settings)
    model = trained(path)
    trainer = Trainer(VisionConfig(**{**TINY, "data_dir": str(folder), **settings}))
    trainer.restore(Run.open(path).latest())
    images = data.Normalise(data.IMAGENET)(torch.stack([image for image, _ in trainer.test_loader.dataset]))
    with torch.no_grad():
        expected = trainer.output(trainer.judged.eval()(images))
        assert torch.equal(model(images), expected)
        # and into plain timm, by the very lines that the command prints
        lines = export(path, tmp_path / "weights.safetensors").splitlines()
        there = {"timm": timm, "entropyfloor": entropyfloor}
        exec("\n".join(lines), there)
        plain = there["model"].eval()(images)
        if "temperature_floor" in settings:
            plain = trainer.output(plain)
        assert torch.equal(plain, expected)
    assert len(lines) == (2 if "min_entropy" in settings else 1)


def test_what_cannot_leave_the_run_is_said(folder, tmp_path):
    path = run(folder, tmp_path)
    with pytest.raises(ValueError, match=r"weights\.pt must end in \.safetensors"):
        export(path, tmp_path / "weights.pt")
    shutil.rmtree(path / "checkpoints")
    for leave in (trained, lambda path: export(path, tmp_path / "weights.safetensors")):
        with pytest.raises(ValueError, match="has no checkpoint yet"):
            leave(path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_weights_of_another_model_are_refused(folder, tmp_path):
    trainer = Trainer(VisionConfig(**TINY, data_dir=str(folder)))
    torch.save(trainer.model.state_dict(), tmp_path / "resnet.pth")
    config = VisionConfig(
        **{**TINY, "model": "test_vit"}, data_dir=str(folder), checkpoint=str(tmp_path / "resnet.pth")
    )
    with pytest.raises(ValueError, match=r"resnet\.pth does not fit test_vit"):
        Trainer(config)
    with pytest.raises(ValueError, match="does not exist"):
        Trainer(replace(config, checkpoint=str(tmp_path / "absent.pth")))


def test_a_checkpoint_of_other_settings_is_refused(folder, tmp_path):
    path = run(folder, tmp_path)
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace('model = "test_resnet"', 'model = "test_resnet2"'))
    with pytest.raises(ValueError, match="has no model 'test_resnet2'"):
        resume(path)
    (path / "config.toml").write_text(text.replace("dropout = 0.0", "dropout = 0.1"))
    with pytest.raises(ValueError, match="other settings"):
        resume(path)


# --- bad input -------------------------------------------------------------------------------------------


def test_a_corrupt_image_is_named_and_nothing_is_lost(folder, tmp_path):
    home = tmp_path / "images"
    shutil.copytree(folder, home)
    path = run(home, tmp_path, epochs=1, model="test_resnet")
    settings = {"data_dir": str(home), "out": str(tmp_path / "again")}
    broken = sorted((home / "train" / "one").iterdir())[3]
    healthy = broken.read_bytes()
    broken.write_bytes(healthy[:40])
    with pytest.raises(ValueError, match=f"{broken.name} cannot be read as an image"):
        train(VisionConfig(**TINY, **settings))
    assert read_run(tmp_path / "again").status["state"] == "failed"
    broken.write_bytes(healthy)
    resume(tmp_path / "again")
    assert last(tmp_path / "again")["loss"] == last(path)["loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1000}, r"num_classes=1000, but folder in .* has 2 classes"),
        ({"data_dir": "absent"}, "data_dir=absent is neither a directory nor a tar file"),
        ({"dataset": "cifar10", "data_dir": "absent"}, r"cifar10 is not in absent .*--download"),
        ({"model": "test_resnet_era"}, "name the plain model"),
        ({"batch_size": 64}, "40 images to train on are fewer than a batch of 64"),
        ({"model": "resnet5000"}, "timm has no model 'resnet5000'"),
        ({"min_entropy": 0.9}, r"min_entropy=0\.9 nats is outside"),
        ({"temperature_floor": 0.9}, r"min_entropy=0\.9 must be above 0 and below log 2"),
        ({"model": "test_vit", "input_size": 33}, "33"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(settings, message, folder, tmp_path):
    given = {**TINY, "data_dir": str(folder), "out": str(tmp_path / "run"), **settings}
    with pytest.raises(ValueError, match=message):
        train(VisionConfig(**given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_entropy": 0.1, "temperature_floor": 0.1}, "two floors"),
        ({"auto_augment": "rand-m9"}, "needs augmentation='timm'"),
        ({"aug_splits": 1, "augmentation": "timm"}, "aug_splits=1"),
        ({"jsd": 12.0}, "aug_splits of at least 2"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 must be between 0 and 1"),
        ({"dataset": "mnist"}, "dataset='mnist' must be one of cifar10"),
        ({"batch_size": 33, "mixup": 0.2}, "batch_size=33 must be even"),
        ({"ood": "digits"}, "ood='digits' is the dataset itself"),
        ({"epochs": "ten"}, "epochs='ten' must be one of int"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**settings)


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    with pytest.raises(FloatingPointError, match="in epoch 1: the run stops here"):
        run(folder, tmp_path, learning_rate=1e30, schedule="constant")
    kept = list((tmp_path / "run" / "failure").iterdir())
    assert len(kept) == 1


# --- data ------------------------------------------------------------------------------------------------


def test_a_directory_and_a_tar_file_of_it_are_the_same(folder, tmp_path):
    both, single = tmp_path / "both.tar", tmp_path / "single"
    single.mkdir()
    with tarfile.open(both, "w") as tar:
        tar.add(folder, "digits")
    for split in ("train", "test"):
        with tarfile.open(single / f"{split}.tar", "w") as tar:
            tar.add(folder / split, ".")
    for split in ("train", "test"):
        plain = data.load("folder", folder, split)
        for other in (data.load("folder", both, split), data.load("folder", single, split)):
            assert other.classes == plain.classes == ("one", "zero")
            assert list(other.labels) == list(plain.labels)
            for i in range(len(plain.labels)):
                assert np.array_equal(np.asarray(other.store.open(i)), np.asarray(plain.store.open(i)))


def test_digits_are_all_there():
    train_, test = (data.load("digits", ".", split) for split in ("train", "test"))
    assert (len(train_.labels), len(test.labels)) == (1438, 359)
    assert set(train_.labels) == set(test.labels) == set(range(10))


def test_cifar_is_read_as_torchvision_keeps_it(tmp_path, monkeypatch):
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 3, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, batch in zip(names, pixels, strict=True):
        (home / name).write_bytes(pickle.dumps({"data": batch, "labels": [0, 1, 2]}))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(ValueError, match="cifar10 is not in"):  # its checksums are not those of CIFAR-10
        data.load("cifar10", tmp_path, "train")
    monkeypatch.setattr(data.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(data.datasets.CIFAR10, "meta", {**data.datasets.CIFAR10.meta, "md5": None})
    source = data.load("cifar10", tmp_path, "train")
    assert (len(source.labels), source.classes) == (15, tuple("abcdefghij"))
    np.testing.assert_array_equal(
        np.asarray(source.store.open(4)), pixels[1, 1].reshape(3, 32, 32).transpose(1, 2, 0)
    )
    assert data.load("cifar10", tmp_path, "test").store.name(2) == "cifar10 test image 2"


def test_a_tar_file_without_test_images_is_not_taken_for_them(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder / "train", "train")
        tar.add(folder / "test", "eval")
    with pytest.raises(ValueError, match=r"all\.tar has no directory test or val or validation"):
        data.load("folder", tmp_path / "all.tar", "test")


def test_aug_mix_gives_copies_of_every_image(folder):
    source = data.load("folder", folder, "train")
    images = data.training_set(source, 32, "timm", auto_augment="rand-m9-mstd0.5-inc1", splits=3)
    pictures, labels = data.collate_splits([images[i] for i in range(4)])
    assert pictures.shape == (12, 3, 32, 32)
    assert labels.tolist() == [source.labels[i] for i in range(4)] * 3


def test_images_keep_their_colours():
    red = np.full((1, 32, 32, 3), (255, 0, 0), np.uint8)
    source = data.Source(("a",), [0], data.Arrays(red, "image"))
    image, _ = data.evaluation_set(source, 32, 1.0)[0]
    seen = data.Normalise(source.statistics)(image[None])[0]
    mean, std = data.IMAGENET
    expected = [(colour - m) / s for colour, m, s in zip((1.0, 0.0, 0.0), mean, std, strict=True)]
    torch.testing.assert_close(seen, torch.tensor(expected).view(3, 1, 1).expand(3, 32, 32))
