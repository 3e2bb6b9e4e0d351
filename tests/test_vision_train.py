"""The vision trainer on real images: scikit-learn's digits, and folders made of them."""

import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import safetensors
import torch

import entropyfloor.vision
from commands import options_of
from digits import save_digits
from entropyfloor import targets
from entropyfloor.extras import one_line
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.resume import with_seeds
from entropyfloor.runs.settings import describe
from entropyfloor.torch.checkpoint import pack, tensors_below, unpack_optimiser
from entropyfloor.vision import data, detach_era, load_classifier, metrics, sources
from entropyfloor.vision.config import VisionConfig, read_config
from entropyfloor.vision.evaluate import evaluate
from entropyfloor.vision.export import export
from entropyfloor.vision.predict import logits_of, predict
from entropyfloor.vision.train import complete, resume, train, train_seeds
from entropyfloor.vision.trainer import Trainer
from run_files import history, with_header

# isort: split
import timm  # after our room, which sees to torchvision
from timm.loss import JsdCrossEntropy

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
    return save_digits(tmp_path_factory.mktemp("digits"), {0: "zero", 1: "one"})


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


def build(config):
    return Trainer(*complete(config))


def last(path):
    return read_run(path).lines[-1]


# --- learning --------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.parametrize(("floor", "inverse"), [("calibrated", "exact"), ("paper", "paper")])
def test_what_smoothing_cannot_reach_is_said_once(floor, inverse, folder, tmp_path):
    cap = targets.top1_cap(2, 0.6, 4.0, floor, inverse)
    said = rf"0\.9500, and the {floor} floor of 0\.6 nats caps it at {cap:.4f}: .*largest calibrated .*0\.1985"
    with pytest.warns(UserWarning, match=said) as told:
        path = run(folder, tmp_path, min_entropy=0.6, label_smoothing=0.1, floor=floor, inverse=inverse)
    assert len(told) == 1
    assert read_run(path).config["env"] == f"{folder.name} test_resnet"  # what is in the folder, for a report
    evaluate(path)  # has no loss, and says nothing
    run(folder, tmp_path / "again", min_entropy=0.19, label_smoothing=0.1)  # which is allowed, and says nothing


@pytest.mark.slow_but_first
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
    resume(halted, data_dir=str(moved), checkpoint_every=2)
    a, b = history(whole), history(halted)
    assert a == b
    assert [line["step"] for line in a] == [0, 1, 2, 3]
    ends = [(path / "checkpoints" / newest.name / "arrays.safetensors").read_bytes() for path in (whole, halted)]
    assert ends[0] == ends[1]


def test_the_state_of_an_optimiser_is_read_as_it_was_saved():
    """With tuples, which the state of Python's generator has in that of kron."""
    moments = {0: {"moment": torch.ones(2), "rng_state": (3, (1, 2), None)}}
    state, tensors = {"state": moments, "param_groups": [{"betas": (0.9, 0.99), "params": [0]}]}, {}
    packed = json.loads(json.dumps(pack(state, "optimiser", tensors)))
    assert unpack_optimiser(packed, tensors) == state


FLOORED = {"min_entropy": 0.3}
POLICY = {"augmentation": "timm", "auto_augment": "rand-m9-mstd0.5-inc1"}
COPIES = {**POLICY, "aug_splits": 3}


@pytest.fixture(scope="module")
def learned(folder, tmp_path_factory):
    """The weights after an epoch, and what was found, of each choice of settings once."""

    @cache
    def learn(items):
        path = run(folder, tmp_path_factory.mktemp("learned"), **dict(items))
        return tensors_below("model/", Run.open(path).latest().arrays), last(path)

    return lambda settings: learn(tuple(settings.items()))


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, {"seed": 1}),
        ({}, FLOORED),
        (FLOORED, {"tau": 6.0}),
        (FLOORED, {"floor": "paper"}),
        (FLOORED, {"inverse": "paper"}),
        ({}, {"temperature_floor": 0.3}),
        ({}, {"label_smoothing": 0.1}),
        ({}, {"dropout": 0.5}),
        ({}, {"focal_gamma": 2.0}),
        ({}, {"confidence_penalty": 0.1}),
        ({}, {"augmentation": "light"}),
        ({}, {"augmentation": "timm"}),
        ({"augmentation": "timm"}, POLICY),
        (POLICY, COPIES),
        (COPIES, {"split_bn": True}),
        (COPIES, {"jsd": 12.0}),
        ({}, {"erase": 1.0}),
        ({"erase": 1.0}, {"erase_mode": "const"}),
        ({}, {"mixup": 0.2}),
        ({}, {"cutmix": 1.0}),
        ({}, {"optimiser": "adamw"}),
        ({}, {"learning_rate": 0.04}),
        ({}, {"momentum": 0.8}),
        ({}, {"weight_decay": 0.01}),
        ({}, {"schedule": "constant"}),
        ({"epochs": 2}, {"warmup_epochs": 1}),
        ({}, {"clip_grad": 0.1}),
        ({}, {"precision": "bf16"}),
    ],
    ids=str,
)
def test_every_setting_changes_what_is_learned(settings, change, learned):
    (before, _), (after, found) = learned(settings), learned({**settings, **change})
    assert all(tensor.isfinite().all() for tensor in after.values())
    trained_ = [name for name in before if name.endswith("weight")]
    assert any(not torch.equal(before[name], after[name]) for name in trained_)
    if (floor := found.get("floor")) is not None:
        assert found["realised_entropy/min"] > floor - 1e-4


def batch(copies=1):
    images = torch.randint(256, (copies * 8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return images.byte(), torch.arange(8).remainder(2).repeat(copies)


def seen_by(trainer):
    """The images as they reach the model."""
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_copies_is_that_of_timm(smoothing, folder):
    settings = {**TINY, **COPIES, "jsd": 12.0, "label_smoothing": smoothing, "data_dir": str(folder)}
    trainer = build(VisionConfig(**settings))
    images, target = batch(copies=3)
    logits = deepcopy(trainer.model).train()(trainer.classifier.normalise(images))
    expected = JsdCrossEntropy(num_splits=3, alpha=12, smoothing=smoothing)(logits, target)
    trainer.learner.train()
    torch.testing.assert_close(trainer._update(images, target)[0], expected.detach())


def test_the_clean_copy_is_not_erased(folder):
    settings = {**TINY, **COPIES, "aug_splits": 2, "erase": 1.0, "erase_mode": "const", "data_dir": str(folder)}
    trainer = build(VisionConfig(**settings))
    images, target = batch(copies=2)
    seen, before = seen_by(trainer), trainer.classifier.normalise(images)
    trainer._update(images, target)
    assert torch.equal(seen[0][:8], before[:8])
    erased = (seen[0][8:] != before[8:]).flatten(1)
    assert erased.any(1).all()
    assert (seen[0][8:].flatten(1)[erased] == 0).all()


def test_the_gradient_is_no_longer_than_it_may_be(folder):
    trainer = build(VisionConfig(**TINY, clip_grad=0.1, data_dir=str(folder)))
    trainer._update(*batch())
    lengths = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()])
    assert lengths.norm() == pytest.approx(0.1, rel=1e-4)


def test_how_a_batch_reaches_the_model(folder):
    trainer = build(VisionConfig(**TINY, channels_last=True, compile=True, data_dir=str(folder)))
    assert isinstance(trainer.learner, torch._dynamo.eval_frame.OptimizedModule)
    trainer.learner = trainer.model  # what it compiles
    seen = seen_by(trainer)
    trainer._update(*batch())
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert trainer.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_rises_and_falls(schedule, folder, tmp_path):
    path = run(folder, tmp_path, epochs=4, warmup_epochs=1, schedule=schedule, learning_rate=0.1)
    rates = [line["learning_rate"] for line in read_run(path).lines[1:]]
    updates = 5 * np.arange(1, 5) - 1  # the last one of each epoch of 40 images
    falling = 0.05 * (1 + np.cos(np.pi * updates / 20)) if schedule == "cosine" else np.full(4, 0.1)
    expected = [1e-5 + (0.1 - 1e-5) * 4 / 5, *falling[1:]]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_learning_rate_does_not_fall_to_its_warm_up(folder):
    settings = {**TINY, "epochs": 2, "warmup_epochs": 1, "learning_rate": 1e-6, "data_dir": str(folder)}
    assert build(VisionConfig(**settings)).optimiser.param_groups[0]["lr"] == 1e-6


def test_each_epoch_has_its_own_order(folder, monkeypatch):
    orders = []
    for _ in range(2):
        trainer = build(VisionConfig(**TINY, data_dir=str(folder)))
        targets = []
        monkeypatch.setattr(trainer, "_update", lambda _, target: targets.append(target) or torch.zeros(2))
        for trainer.epoch in range(2):
            with Progress(10, unit="updates", label="", bar=False) as progress:
                trainer._train_epoch(None, progress)
        orders.append(torch.stack(targets).view(2, -1).tolist())
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert sum(orders[0][0]) == sum(orders[0][1]) == 20


def test_the_average_of_the_weights_is_judged(folder):
    config = VisionConfig(**{**TINY, "epochs": 2}, ema=0.5, min_entropy=0.3, data_dir=str(folder))
    trainer = build(config)
    begun = deepcopy(trainer.model.state_dict())
    trainer.fit(None)
    judged, now = trainer.classifier.model.state_dict(), trainer.model.state_dict()
    name = "conv1.0.weight"
    assert not torch.equal(judged[name], now[name])
    assert not torch.equal(judged[name], begun[name])
    images, target = (torch.cat(column) for column in zip(*trainer.test_loader, strict=True))
    with torch.no_grad():
        floored = trainer.classifier.model.eval()(trainer.classifier.normalise(images))
        raw = detach_era(deepcopy(trainer.classifier.model))(trainer.classifier.normalise(images))
    expected = metrics.predict(floored, raw, target)
    predictions, _ = predict(trainer.classifier, trainer.accelerator, trainer.test_loader, None)
    for found, value in zip(predictions, expected, strict=True):
        torch.testing.assert_close(found, value)
    assert not torch.allclose(expected.gap, metrics.predict(floored, floored, target).gap)


def test_a_vision_transformer_is_told_the_size_of_the_images(folder, tmp_path):
    assert "loss" in last(run(folder, tmp_path, model="test_vit", min_entropy=0.1))


def test_other_things_are_told_apart(folder, tmp_path):
    assert 0 <= last(run(folder, tmp_path, ood="digits"))["auroc"] <= 1


def test_a_test_image_that_cannot_be_read_costs_no_training(folder, tmp_path):
    home = tmp_path / "images"
    shutil.copytree(folder, home)
    (home / "test" / "one" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        run(home, tmp_path, epochs=2)
    assert read_run(tmp_path / "run").lines == []  # it was found before training began


def interrupted(folder, tmp_path, monkeypatch, signals, **settings):
    """A run of four epochs whose second epoch is interrupted by SIGTERM."""
    updates, update = [], Trainer._update

    def send(self, *batch):
        updates.append(update(self, *batch))
        if len(updates) == 7:  # of five in an epoch
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
        return updates[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", send)
        with pytest.raises(KeyboardInterrupt, match=f"--resume {tmp_path / 'run'}") as error:
            run(folder, tmp_path, epochs=4, checkpoint_every=9, **settings)
    return tmp_path / "run", str(error.value)


@pytest.mark.slow
def test_a_signal_ends_the_run_after_the_epoch(folder, tmp_path, monkeypatch):
    settings = {"min_entropy": 0.2, "mixup": 0.2, "ema": 0.5, "optimiser": "adamw"}
    path, message = interrupted(folder, tmp_path, monkeypatch, 1, **settings)
    assert "saved at step 2" in message
    assert [line["step"] for line in read_run(path).lines] == [0, 1, 2]
    assert read_run(path).status["state"] == "interrupted"
    resume(path)
    whole = run(folder, tmp_path / "whole", epochs=4, checkpoint_every=9, **settings)
    assert history(path) == history(whole)
    name = "checkpoints/000000000004/arrays.safetensors"
    assert (path / name).read_bytes() == (whole / name).read_bytes()


def test_a_second_signal_ends_the_run_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("entropyfloor.runs.loop.GRACE", -1.0)
    path, message = interrupted(folder, tmp_path, monkeypatch, 2)
    assert "nothing is saved yet" in message
    assert [line["step"] for line in read_run(path).lines] == [0, 1]
    assert read_run(path).status["state"] == "interrupted"


TWO = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
"""Starts two processes. `accelerate launch` starts one on a machine without an accelerator."""
ON_CPUS = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
SIGNALLED = """
import os, signal, sys
import psutil
from entropyfloor.cli import main
from entropyfloor.vision.trainer import Trainer
update = Trainer._update
def send(self, *batch):
    if self.accelerator.process_index == int(sys.argv[1]):
        Trainer._update = update
        os.kill(os.getpid(), signal.SIGTERM)
        for child in psutil.Process().children():
            child.terminate()
    return update(self, *batch)
Trainer._update = send
sys.exit(main(sys.argv[2:]))
"""


def signalled(tmp_path, launcher, process, options):
    """Run `train vision` in a script that sends SIGTERM to a process and its children in the first update."""
    (tmp_path / "script.py").write_text(SIGNALLED)
    script = [*launcher, str(tmp_path / "script.py"), process]
    command = [sys.executable, *script, "train", "vision", *options_of(options)]
    return subprocess.run(command, env=ON_CPUS, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.parametrize(
    ("error", "saved"), [(ValueError("NaN"), [1]), (RuntimeError("DataLoader worker (pid 7) is killed"), [])]
)
def test_an_evaluation_that_would_not_fail_again_is_repeated(folder, tmp_path, monkeypatch, error, saved):
    def failing(*args):
        if read_run(tmp_path / "run").lines:
            raise error
        return predict(*args)

    monkeypatch.setattr("entropyfloor.vision.trainer.predict", failing)
    with pytest.raises(type(error)):
        run(folder, tmp_path, epochs=1)
    assert [int(path.name) for path in Run.open(tmp_path / "run").checkpoints()] == saved
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert [line["step"] for line in history(tmp_path / "run")] == [0, 1]
    [comparison] = read_comparisons([tmp_path / "run"]).comparisons
    [seed] = comparison.groups[0].seeds
    assert seed.incomplete == ("evaluation failed" if saved else "")


@pytest.mark.slow
def test_a_signal_that_ends_the_workers_too_is_no_failure(folder, tmp_path):
    options = {**TINY, "data_dir": folder, "out": tmp_path / "run", "epochs": 2, "workers": 1, "batch_size": 2}
    done = signalled(tmp_path, [], "0", options)
    assert done.returncode == 130, done.stderr
    assert read_run(tmp_path / "run").status["state"] == "interrupted"


@pytest.mark.slow
def test_processes_stop_together(folder, tmp_path):
    """A signal reaches only the process that writes nothing."""
    options = {**TINY, "data_dir": folder, "out": tmp_path / "run", "epochs": 3, "checkpoint_every": 9}
    done = signalled(tmp_path, TWO, "1", options)
    assert "saved at step 1" in done.stderr
    assert "accelerate launch --num_processes=2 --module entropyfloor.cli train vision --resume" in done.stderr
    assert "another process writes the run" in done.stderr
    assert read_run(tmp_path / "run").status["state"] == "interrupted"
    assert [line["step"] for line in read_run(tmp_path / "run").lines] == [0, 1]


@pytest.mark.slow
def test_two_processes_train_one_model(folder, tmp_path):
    """On CPUs: the run is written once, the floor holds, and it is resumed."""
    options = {**TINY, "data_dir": folder, "out": tmp_path / "run", "min_entropy": 0.1, "ema": 0.9, "epochs": 2}
    options["workers"] = 1  # which fork; beside JAX, as in this process, that is warned of
    command = [sys.executable, *TWO, "-m", "entropyfloor.cli", "train", "vision"]
    start = [*command, *options_of(options)]
    done = subprocess.run(start, env=ON_CPUS, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    before = history(tmp_path / "run")
    assert [line["step"] for line in before] == [0, 1, 2]
    assert "4/4 updates" in done.stdout  # half as many as of one process
    assert before[-1]["realised_entropy/min"] > 0.1 - 1e-4
    shutil.rmtree(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    resumed = [*command, "--resume", str(tmp_path / "run")]
    done = subprocess.run(resumed, env=ON_CPUS, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert history(tmp_path / "run")[-1] == before[-1]


def test_a_run_is_resumed_in_as_many_processes(folder, tmp_path):
    path = run(folder, tmp_path)
    forget(path, lambda state: state.update(processes=4))
    with pytest.raises(ValueError, match=rf"1 process.* a run of 4.* launch --num_processes=4 .*--resume {path}"):
        resume(path)
    forget(path, lambda state: state.pop("processes"))  # as earlier versions saved it
    resume(path)


def test_a_checkpoint_that_is_not_damaged_is_not_to_be_deleted(folder, tmp_path):
    path = run(folder, tmp_path)
    forget(path, lambda state: state.pop("optimiser"))
    with pytest.raises(ValueError, match=r"'optimiser' is missing\. Its checksums are right: use the ver"):
        resume(path)


# --- weights that come and go ----------------------------------------------------------------------------


def test_weights_of_a_plain_model_start_a_floored_one(folder, tmp_path):
    trainer = build(VisionConfig(**TINY, data_dir=str(folder)))
    torch.save(trainer.model.state_dict(), tmp_path / "plain.pth")
    config = VisionConfig(
        **TINY, data_dir=str(folder), seed=1, min_entropy=0.1, checkpoint=str(tmp_path / "plain.pth")
    )
    again = build(config)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


@pytest.mark.slow_but_first
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
    model = load_classifier(path)
    trainer = build(VisionConfig(**{**TINY, "data_dir": str(folder), **settings}))
    trainer.restore(Run.open(path).latest())
    images = data.Normalise(data.IMAGENET)(torch.stack([image for image, _ in trainer.test_loader.dataset]))
    with torch.no_grad():
        expected = trainer.classifier.eval()(images)
        assert torch.equal(model(images), expected)
        # and into plain timm, by the very lines that the command prints
        lines = export(path, tmp_path / "weights.safetensors").splitlines()
        there = {
            "timm": timm,
            "entropyfloor": entropyfloor,
            "json": json,
            "safetensors": safetensors,
            "torch": torch,
        }
        exec("\n".join(lines), there)
        assert torch.equal(there["model"].eval()(images), expected)
    assert ["attach_era" in line for line in lines].count(True) == ("min_entropy" in settings)
    assert there["class_map"] == {"one": 0, "zero": 1}


@pytest.mark.slow
def test_a_temperature_is_fitted_to_half_of_the_images(folder, tmp_path):
    path = run(folder, tmp_path, label_smoothing=0.1)
    script = Path(__file__).parents[1] / "examples/temperature_scaling.py"
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=True)
    [row] = [line.split() for line in done.stdout.splitlines() if "smoothing-0.1" in line]
    temperature, nll, with_it = (float(row[i]) for i in (5, 7, 9))
    assert math.exp(-3) <= temperature <= math.exp(3)
    assert nll > 0
    assert with_it > 0


def test_what_cannot_leave_the_run_is_said(folder, tmp_path):
    path = run(folder, tmp_path)
    with pytest.raises(ValueError, match=r"weights\.pt must end in \.safetensors"):
        export(path, tmp_path / "weights.pt")
    shutil.rmtree(path / "checkpoints")
    for leave in (load_classifier, lambda path: export(path, tmp_path / "weights.safetensors")):
        with pytest.raises(ValueError, match="has no checkpoint yet"):
            leave(path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_weights_of_another_model_are_refused(folder, tmp_path):
    trainer = build(VisionConfig(**TINY, data_dir=str(folder)))
    torch.save(trainer.model.state_dict(), tmp_path / "resnet.pth")
    config = VisionConfig(
        **{**TINY, "model": "test_vit"}, data_dir=str(folder), checkpoint=str(tmp_path / "resnet.pth")
    )
    with pytest.raises(ValueError, match=r"resnet\.pth does not fit test_vit"):
        build(config)
    with pytest.raises(ValueError, match="does not exist"):
        build(replace(config, checkpoint=str(tmp_path / "absent.pth")))


def test_a_checkpoint_of_other_settings_is_refused(folder, tmp_path):
    path = run(folder, tmp_path)
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace('model = "test_resnet"', 'model = "test_resnet2"'))
    with pytest.raises(ValueError, match="has no model 'test_resnet2'"):
        resume(path)
    (path / "config.toml").write_text(text.replace("dropout = 0.0", "dropout = 0.1"))
    with pytest.raises(ValueError, match="other settings"):
        resume(path)


# --- label noise -----------------------------------------------------------------------------------------


def test_noise_gives_a_share_of_the_images_another_class_evenly():
    source = sources.Source(tuple("abcde"), [i % 5 for i in range(10_000)], None)
    noisy = source.mislabelled(0.2, np.random.default_rng(0))
    before, after = np.array(source.labels), np.array(noisy.labels)
    assert (before != after).sum() == 2000
    assert set(noisy.labels) == set(range(5))
    shift = np.bincount((after - before) % 5, minlength=5)[1:]
    np.testing.assert_allclose(shift, 500, atol=4 * np.sqrt(2000 * 0.25 * 0.75))
    assert source.labels == [i % 5 for i in range(10_000)]
    assert noisy.store is source.store


def test_noise_is_in_training_labels_only_and_follows_the_seed(folder):
    def labels(**settings):
        config = VisionConfig(**{**TINY, "data_dir": str(folder), "ood": "digits", **settings}).resolved()
        return [list(source.labels) for source in data.open_splits(config)]

    clean, noisy, again, other = labels(), *(labels(label_noise=0.2, seed=seed) for seed in (0, 0, 1))
    assert noisy[1:] == clean[1:]
    assert sum(a != b for a, b in zip(clean[0], noisy[0], strict=True)) == 8  # of 40
    assert noisy == again
    assert noisy[0] != other[0]
    assert labels(label_noise=0.2, min_entropy=0.3) == noisy  # every arm of a seed has the same ones


def test_a_run_with_noise_resumes_with_the_same_labels_and_says_its_noise(folder, tmp_path):
    path = run(folder, tmp_path, label_noise=0.2, epochs=2)
    assert read_run(path).config["label_noise"] == 0.2
    assert read_run(path).config["env"] == f"{folder.name} with 20 % label noise test_resnet"
    part = tmp_path / "part"
    shutil.copytree(path, part)
    shutil.rmtree(part / "checkpoints" / Run.open(path).checkpoints()[-1].name)
    resume(part)
    one, other = (Run.open(each).latest().arrays for each in (path, part))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_the_accuracy_of_training_is_logged_unless_targets_are_mixed(folder, tmp_path):
    trainer = build(VisionConfig(**{**TINY, "data_dir": str(folder), "label_noise": 0.5}))
    predicted, labels, update = [], [], trainer._update
    trainer.learner.register_forward_hook(lambda _, __, logits: predicted.extend(logits.argmax(-1).tolist()))
    trainer._update = lambda images, target: (labels.extend(target.tolist()), update(images, target))[1]
    found = trainer._train_epoch(None, Progress(100))
    right = sum(one == other for one, other in zip(predicted, labels, strict=True))
    assert len(labels) == 40
    assert found["train/top1"] == pytest.approx(right / 40)
    assert "train/top1" not in last(run(folder, tmp_path, mixup=0.2))


# --- names of classes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Digits in folders that one sorts as 1, 10, 2 and another as 1, 2, 10; and a run on them."""
    home = save_digits(tmp_path_factory.mktemp("numbered"), {1: "1", 2: "2", 3: "10"})
    return home, run(home, home, epochs=1)


def test_names_of_classes_are_kept_in_the_order_of_the_outputs(numbered, tmp_path):
    home, path = numbered
    assert Run.open(path).latest().state["classes"] == ["1", "10", "2"]
    there = {"timm": timm, "json": json, "safetensors": safetensors}
    exec(export(path, tmp_path / "weights.safetensors"), there)
    with safetensors.safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["label_names"]) == ["1", "10", "2"]
    # timm's own loader, which sorts otherwise, with the class map that was printed
    theirs = timm.data.create_dataset("folder", str(home / "test"), class_map=there["class_map"])
    ours = sources.load("folder", home, "test")
    labels = {str(ours.store.name(i)): label for i, label in enumerate(ours.labels)}
    assert dict(theirs.reader.samples) == labels
    assert dict(timm.data.create_dataset("folder", str(home / "test")).reader.samples) != labels


def renamed(home, tmp_path):
    """The same images, one class under another name."""
    moved = shutil.copytree(home, tmp_path / "renamed", ignore=shutil.ignore_patterns("run"))
    for split in ("train", "test"):
        (moved / split / "2").rename(moved / split / "3")
    return moved


def test_other_names_of_classes_are_refused(numbered, tmp_path):
    home, path = numbered
    path = shutil.copytree(path, tmp_path / "run")
    moved = renamed(home, tmp_path)
    for judge in (lambda: evaluate(path, data_dir=moved), lambda: resume(path, data_dir=str(moved))):
        with pytest.raises(ValueError, match="are not those of the run: 2 missing and 3 new"):
            judge()
    assert not (path / "evaluation.json").exists()


def forget(path, change):
    """What a version without names, or another order, has left behind."""
    (checkpoint,) = (path / "checkpoints").iterdir()
    state = json.loads((checkpoint / "state.json").read_text())["state"]
    change(state)
    with_header(checkpoint, state=state)


def test_a_run_without_names_is_judged_and_resumed_as_before(numbered, tmp_path):
    home, path = numbered
    path = shutil.copytree(path, tmp_path / "run")
    forget(path, lambda state: state.pop("classes"))
    evaluate(path, data_dir=renamed(home, tmp_path))
    evaluated = read_run(path).evaluation["values"]["top1"]
    assert evaluated == pytest.approx(last(path)["top1"])
    resume(path, data_dir=str(home))
    assert "label_names" not in export(path, tmp_path / "weights.safetensors")


def test_another_order_of_the_same_names_is_mapped(numbered):
    home, _ = numbered
    source = sources.load("folder", home, "test")
    mapped = source.numbered_as(["2", "1", "10"])
    assert mapped.classes == ("2", "1", "10")
    assert [mapped.classes[i] for i in mapped.labels] == [source.classes[i] for i in source.labels]


def test_a_run_in_another_order_is_judged_by_names(numbered, tmp_path):
    home, path = numbered
    path = shutil.copytree(path, tmp_path / "run")
    forget(path, lambda state: state.update(classes=["2", "1", "10"]))
    evaluate(path, data_dir=home)
    trainer = build(read_config(Run.open(path).config))
    trainer.restore(Run.open(path).latest())
    batches = logits_of(trainer.classifier, trainer.accelerator, trainer.test_loader)
    logits = torch.cat([logits for logits, _, _ in batches])
    order = ["2", "1", "10"].index
    target = torch.tensor([order(trainer.classes[i]) for _, labels in trainer.test_loader for i in labels])
    expected = (logits.argmax(1) == target).double().mean()
    assert read_run(path).evaluation["values"]["top1"] == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="their order is another one"):
        resume(path, data_dir=str(home))


# --- weights of other classes ----------------------------------------------------------------------------


def start(folder, **settings):
    return build(VisionConfig(**{**TINY, "data_dir": str(folder), **settings}))


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """Weights of a model of a thousand classes."""
    model = timm.create_model("test_resnet", num_classes=1000)
    file = tmp_path_factory.mktemp("weights") / "thousand.pth"
    torch.save(model.state_dict(), file)
    return model.state_dict(), str(file)


@pytest.mark.parametrize("settings", [{}, {"min_entropy": 0.3}])
@pytest.mark.parametrize("way", ["checkpoint", "pretrained"])
def test_the_last_layer_is_new_for_other_classes_and_it_is_said(settings, way, folder, thousand, monkeypatch):
    weights, file = thousand
    begin = {"checkpoint": file} if way == "checkpoint" else {"pretrained": True}
    overlay = {"file": file, "num_classes": 1000}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, pretrained_cfg_overlay=overlay))
    with pytest.warns(UserWarning, match="the last layer is new") as told:
        trainer = start(folder, **begin, **settings)
    assert len(told) == 1
    for name, tensor in trainer.model.state_dict().items():
        if name.startswith("fc."):
            assert len(tensor) == 2
        else:
            assert torch.equal(tensor, weights[name])


def test_weights_of_the_same_number_of_other_classes_have_a_new_last_layer(folder, numbered, tmp_path):
    home = tmp_path / "animals"
    for split in ("train", "test"):
        for name, animal in (("1", "ant"), ("2", "bee"), ("10", "cat")):
            shutil.copytree(numbered[0] / split / name, home / split / animal)
    export(numbered[1], tmp_path / "weights.safetensors")
    begin = {"checkpoint": str(tmp_path / "weights.safetensors")}
    same = start(numbered[0], **begin)  # without a word
    with pytest.warns(UserWarning, match="the last layer is new"):
        other = start(home, **begin)
    before, after = same.model.state_dict(), other.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight", "fc.bias"]


def test_a_run_that_began_from_weights_goes_on_without_them(folder, thousand, tmp_path):
    file = shutil.copy(thousand[1], tmp_path / "start.pth")
    with pytest.warns(UserWarning, match="the last layer is new"):
        path = run(folder, tmp_path, checkpoint=str(file), epochs=2)
    assert "pretrained" not in read_run(path).config
    os.remove(file)
    shutil.rmtree(sorted((path / "checkpoints").iterdir())[-1])
    evaluate(path)
    load_classifier(path)
    resume(path)
    assert last(path)["step"] == 2


def test_a_switch_that_is_off_is_no_other_setting(folder, tmp_path):
    """Runs of versions that did not know it are gone on with by the command that began them."""
    settings = {**TINY, "data_dir": str(folder), "out": str(tmp_path)}
    path = run(folder, tmp_path, out=str(tmp_path / "seed-0"))
    assert "pretrained" not in read_run(path).config
    assert list(with_seeds(VisionConfig(**settings, num_classes=2), [0])) == [path]
    with pytest.raises(ValueError, match=r"pretrained=False \(now True\)"):
        with_seeds(VisionConfig(**settings, num_classes=2, pretrained=True), [0])


def test_seeds_begin_with_complete_settings(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("entropyfloor.vision.train.each_seed", lambda configs, *_: configs)
    config = VisionConfig(**TINY, data_dir=str(folder), out=str(tmp_path))
    configs = train_seeds(config, [0, 1])
    assert [(found.seed, found.num_classes, found.crop) for found in configs.values()] == [
        (0, 2, 1.0),
        (1, 2, 1.0),
    ]
    train(configs[tmp_path / "seed-0"])
    assert train_seeds(config, [0, 1]) == configs  # the run is recognised
    with pytest.raises(ValueError, match=r"num_classes=3, but folder in .* has 2 classes"):
        train_seeds(replace(config, num_classes=3), [0, 1])


@pytest.mark.slow
def test_seeds_in_processes_are_the_runs_of_each(folder, tmp_path):
    config = VisionConfig(**TINY, data_dir=str(folder), out=str(tmp_path))
    paths = train_seeds(config, [0, 1])
    assert paths == [tmp_path / "seed-0", tmp_path / "seed-1"]
    alone = run(folder, tmp_path, seed=1, out=str(tmp_path / "alone"))
    assert history(paths[1]) == history(alone)
    assert history(paths[0]) != history(alone)


def test_the_other_images_are_loaded_before_processes_begin(folder, tmp_path, monkeypatch):
    """They may have to be downloaded, and not by all processes at once."""
    order = []
    monkeypatch.setattr("entropyfloor.vision.train.each_seed", lambda *_: order.append("processes"))
    monkeypatch.setattr("entropyfloor.vision.train.open_ood", lambda config: order.append(config.ood_dir))
    train_seeds(VisionConfig(**TINY, data_dir=str(folder), out=str(tmp_path), ood="folder", ood_dir="/x"), [0, 1])
    assert order == ["/x", "processes"]


DAMAGED = {
    "text.pth": b"these are no weights\n",
    "text.safetensors": b"these are no weights\n",
    "empty.pth": b"",
    "cut.pth": lambda whole: whole[: len(whole) // 2],
    "list.pth": [1, 2, 3],
    "numbers.pth": {"fc.weight": 3},
    "text.npz": b"these are no weights\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_file_of_weights_is_refused_in_a_line(name, folder, thousand, tmp_path):
    content, file = DAMAGED[name], tmp_path / name
    if callable(content):
        with open(thousand[1], "rb") as whole:
            content = content(whole.read())
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(
        ValueError, match=rf"checkpoint=\S*{name} (cannot be read as weights|does not fit)"
    ) as error:
        start(folder, checkpoint=str(file))
    assert "\n" not in str(error.value)


def test_a_directory_is_no_file_of_weights(folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist, or is no file"):
        start(folder, checkpoint=str(tmp_path))


def test_weights_that_cannot_be_fetched(folder, monkeypatch):
    def fail(*_, pretrained=False, **__):
        raise (OSError("no network\n at all") if pretrained else AssertionError)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"timm's weights for test_resnet .*no network at all.*--checkpoint"):
        start(folder, pretrained=True)


def test_separate_norms_need_batch_norms_that_keep_their_activations(folder, monkeypatch):
    split = {**COPIES, "split_bn": True}
    with pytest.raises(ValueError, match="test_vit has none: leave it out"):
        start(folder, model="test_vit", **split)
    start(folder, model="test_efficientnet", **split)
    alone = torch.nn.BatchNorm2d.forward  # that of timm before 1.0.31
    monkeypatch.setattr("timm.layers.split_batchnorm.SplitBatchNorm2d.forward", alone)
    with pytest.raises(ValueError, match=r"drops the activations .* of test_efficientnet: install timm>=1\.0\.31"):
        start(folder, model="test_efficientnet", **split)
    start(folder, **split)  # whose activations are layers


def test_batch_norm_needs_two_images(folder):
    for one in ({}, {**COPIES, "split_bn": True}):
        with pytest.raises(ValueError, match="batch_size=1 is too small for the batch norm"):
            start(folder, batch_size=1, **one)
    # without batch norm, with several places to average, or with several copies of the image
    for one in ({"model": "test_vit"}, {"input_size": 64}, {**POLICY, "aug_splits": 2}):
        assert len(start(folder, batch_size=1, **one).train_loader) == 40


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: image[:40],
        lambda image: image[:20],  # within the header, which is a ValueError of its own
        lambda _: b"P6\n99999 99999\n255\n",  # a bomb, Pillow says
    ],
)
def test_a_corrupt_image_is_named_and_nothing_is_lost(damage, folder, tmp_path):
    home = tmp_path / "images"
    shutil.copytree(folder, home)
    path = run(home, tmp_path, epochs=1, model="test_resnet")
    settings = {"data_dir": str(home), "out": str(tmp_path / "again")}
    broken = sorted((home / "train" / "one").iterdir())[3]
    healthy = broken.read_bytes()
    broken.write_bytes(damage(healthy))
    with pytest.raises(ValueError, match=rf"^\S*/{broken.name} cannot be read as an image .* or remove it\n"):
        train(VisionConfig(**TINY, **settings))
    assert read_run(tmp_path / "again").status["state"] == "failed"
    assert [line["step"] for line in read_run(tmp_path / "again").lines] == [0]  # nothing was trained
    broken.write_bytes(healthy)
    resume(tmp_path / "again")
    assert last(tmp_path / "again")["loss"] == last(path)["loss"]


def test_all_corrupt_images_are_named_before_training(folder, tmp_path, monkeypatch):
    home = shutil.copytree(folder, tmp_path / "images")
    broken = sorted((home / "train" / "one").iterdir())[:8:3]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-30])
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *_: pytest.fail("training began"))
    with pytest.raises(ValueError, match=r"cannot be read as an image") as error:
        run(home, tmp_path, epochs=2)
    assert all(str(file) in str(error.value) for file in broken)
    assert "\n" not in str(error.value)


def test_training_images_are_checked_once_and_a_long_check_is_shown(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("entropyfloor.vision.trainer.MANY", 40)
    path = run(folder, tmp_path, epochs=2)
    shown = [line for line in capsys.readouterr().out.splitlines() if "checking" in line]
    assert shown == ["0/10 updates · checking that all 40 training images can be read"]
    shutil.rmtree(sorted((path / "checkpoints").iterdir())[-1])
    monkeypatch.setattr(sources, "Faults", lambda _: pytest.fail("the images were checked again"))
    resume(path)
    assert last(path)["step"] == 2


@pytest.mark.slow
def test_an_image_that_another_process_could_not_read_is_named_as_well(folder, tmp_path):
    """In an interpreter of its own: loaders fork, of which JAX, if it is imported, warns."""
    home = shutil.copytree(folder, tmp_path / "images")
    broken = next((home / "train" / "one").iterdir())
    broken.write_bytes(b"no picture")
    script = f"""
from pathlib import Path
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.train import resume, train
settings = { ({**TINY, "workers": 1, "data_dir": str(home), "out": str(tmp_path / "run")})!r}
for again in (lambda: train(VisionConfig(**settings)), lambda: resume(Path(settings["out"]))):
    try:
        again()
    except ValueError as error:
        print("said:", error)
        kept = error  # and with it the loader, whose processes are still there
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    said = [line for line in done.stdout.splitlines() if line.startswith("said:")]
    assert done.stderr == ""
    assert [line.startswith(f"said: {broken} cannot be read as an image (") for line in said] == [True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1000}, r"num_classes=1000, but folder in .* has 2 classes"),
        ({"data_dir": "absent"}, "data_dir=absent is neither a directory nor a tar file"),
        *(
            ({"dataset": name, "data_dir": "absent"}, rf"{name} is not in absent .*--download")
            for name in ("cifar10", "cifar100")
        ),
        ({"model": "test_resnet_era"}, "name the plain model"),
        ({"batch_size": 64}, "40 images to train on are fewer than a batch of 64"),
        ({"auto_augment": "rnd-m9", "augmentation": "timm"}, "auto_augment='rnd-m9' is no policy of timm"),
        ({"auto_augment": "rand-mx", "augmentation": "timm"}, "auto_augment='rand-mx' is no policy of timm"),
        ({"auto_augment": "rand-m9-foo", "augmentation": "timm"}, "'rand-m9-foo' is no policy of timm"),
        ({"auto_augment": "3a-m9", "augmentation": "timm"}, "auto_augment='3a-m9' is no policy of timm"),
        ({"optimiser": "sdg"}, "optimiser='sdg' cannot be built"),
        ({"optimiser": "bnbadam"}, "optimiser='bnbadam' cannot be built"),
        ({"optimiser": "adahessian"}, "optimiser='adahessian' needs second derivatives"),
        ({"optimiser": "adafactorbv"}, "the state of optimiser='adafactorbv' cannot be saved"),
        ({"floor": "paper"}, "floor='paper' would be ignored without min_entropy"),
        (
            {"aug_splits": 256, "batch_size": 800, "augmentation": "timm", "input_size": 16000},
            r"204,800 images of 16000×16000 pixels in a batch need [\d,.]+ GiB",
        ),
        ({"model": "resnet5000"}, "timm has no model 'resnet5000'"),
        ({"min_entropy": 0.9}, r"min_entropy=0\.9 nats is outside"),
        ({"temperature_floor": 0.9}, r"min_entropy=0\.9 must be above 0 and below log 2"),
        ({"model": "test_vit", "input_size": 33}, "33"),
        ({"precision": "fp16"}, "precision='fp16' is not for a device of type cpu: choose bf16 or fp32"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(settings, message, folder, tmp_path):
    given = {**TINY, "data_dir": str(folder), "out": str(tmp_path / "run"), **settings}
    with pytest.raises(ValueError, match=message):
        train(VisionConfig(**given))
    assert not (tmp_path / "run").exists()


def test_other_images_than_before_are_refused(folder, tmp_path):
    home = shutil.copytree(folder, tmp_path / "images")
    path = run(home, tmp_path, epochs=2)
    (home / "test" / "two").mkdir()
    moved = next((home / "test" / "one").iterdir())
    moved.rename(home / "test" / "two" / moved.name)
    with pytest.raises(ValueError, match="2 classes to train on and 3 to test on: two differ"):
        run(home, tmp_path / "again")
    (home / "test" / "two" / moved.name).rename(home / "test" / "zero" / moved.name)
    (home / "test" / "two").rmdir()
    shutil.rmtree(sorted((path / "checkpoints").iterdir())[-1])
    with pytest.raises(ValueError, match=r"images in data_dir=.* are not those that the run began with"):
        resume(path)


@pytest.mark.parametrize(
    ("settings", "crop"), [({}, 1.0), ({"dataset": "folder"}, 0.875), ({"dataset": "folder", "crop": 0.95}, 0.95)]
)
def test_the_share_of_an_image_that_is_judged(settings, crop):
    assert VisionConfig(**settings).resolved().crop == crop
    pixels = np.zeros((1, 100, 100, 3), np.uint8)
    pixels[:, 10:90, 10:90] = 255
    source = sources.Source(("a",), [0], sources.Arrays(pixels, "image"))
    edge = data.evaluation_set(source, 64, crop)[0][0][0, 32, 0]
    assert edge == (255 if crop < 0.8 else 0)


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
        ({"epochs": "ten"}, "epochs='ten' must be of type int"),
        ({"pretrained": True, "checkpoint": "x.pth"}, "pretrained and checkpoint=x.pth"),
        *(({name: ""}, f"{name}='' is empty") for name in ("out", "data_dir", "checkpoint", "model", "recipe")),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 6.0, "inverse": "paper"}, r"tau=6\.0, inverse='paper' would be ignored without min_entropy"),
        ({"erase_mode": "const"}, "erase_mode='const' would be ignored without erase"),
        ({"ood_dir": "there"}, "ood_dir='there' would be ignored without ood"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs=5 must be below epochs=5"),
    ],
)
def test_settings_without_effect_are_refused_and_those_of_earlier_runs_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**settings).resolved()
    assert VisionConfig(**settings).filled().input_size == 32


@pytest.mark.parametrize("settings", [{}, {"ood": "folder", "ood_dir": "there"}])
def test_resolved_settings_stay_the_same(settings):
    config = VisionConfig(**settings).resolved()
    assert config.resolved() == config


NUMBERS = [f.name for f in fields(VisionConfig) if {int, float} & {*describe(VisionConfig)[f.name].types}]
OUTSIDE = {"crop": [0, 0.01, 1.01], "tau": [0, 2.7], "label_smoothing": [1.1], "min_entropy": [0]}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_cannot_be(name):
    huge = [10**20] if get_type_hints(VisionConfig)[name] in (int, int | None) else []
    for value in (math.nan, math.inf, -math.inf, -1, *huge, *OUTSIDE.get(name, [])):
        with pytest.raises(ValueError, match=rf"^{name}={re.escape(str(value))} must be "):
            VisionConfig(**{name: value})


def test_an_allocation_that_fails_is_one_line(folder, monkeypatch, tmp_path):
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError(),
    ):
        monkeypatch.setattr(Trainer, "_update", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)) as told:
            run(folder, tmp_path / type(error).__name__)
        assert one_line(told.value).endswith(
            "choose a smaller batch_size or input_size; what was saved is in "
            f"{tmp_path / type(error).__name__ / 'run'}"
        )
    monkeypatch.setattr(Trainer, "_update", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match=r"^something else"):
        run(folder, tmp_path / "else")


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is .* at step 1: the run stops here"):
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
        plain = sources.load("folder", folder, split)
        for other in (sources.load("folder", both, split), sources.load("folder", single, split)):
            assert other.classes == plain.classes == ("one", "zero")
            assert list(other.labels) == list(plain.labels)
            for i in range(len(plain.labels)):
                assert np.array_equal(np.asarray(other.store.open(i)), np.asarray(plain.store.open(i)))


def picture(place, value=0):
    place.parent.mkdir(parents=True, exist_ok=True)
    sources.Image.new("L", (4, 4), value).save(place)


@pytest.fixture
def untidy(tmp_path):
    """Two classes, with links to directories, hidden names at every depth, and other files."""
    home = tmp_path / "untidy" / "train"
    picture(home / "cat" / "deep" / "1.PNG")
    picture(tmp_path / "elsewhere" / "more" / "2.png")
    picture(home / "dog" / "3.png")
    for hidden in (".thumbs/4.png", "cat/.ipynb_checkpoints/5.png", "cat/._1.png", "dog/deep/.x/y/6.png"):
        picture(home / hidden)
    (home / "cat" / "notes.txt").write_text("no picture")
    return home


def test_links_are_followed_and_hidden_names_are_left_out(untidy, tmp_path):
    (untidy / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (untidy / "dog" / "round").symlink_to(untidy / "dog")  # which goes round for ever
    source = sources.load("folder", untidy.parent, "train")
    assert source.classes == ("cat", "dog")
    found = [str(path.relative_to(untidy)) for path in source.store.paths]
    assert found == ["cat/deep/1.PNG", "cat/linked/more/2.png", "dog/3.png"]
    assert source.labels == [0, 0, 1]


@pytest.mark.parametrize("both", [True, False])
def test_hidden_names_in_a_tar_file_are_left_out(both, untidy, tmp_path):
    with tarfile.open(tmp_path / ("all.tar" if both else "train.tar"), "w") as tar:
        tar.add(untidy, "train" if both else ".")
    source = sources.load("folder", tmp_path / "all.tar" if both else tmp_path, "train")
    assert source.classes == ("cat", "dog")
    assert len(source.labels) == 2


@pytest.mark.parametrize("around", [".", "train", "my/data"])
@pytest.mark.parametrize(
    "names", [["cat/in/0.png", "cat/out/1.png", "dog/2.png", "3.png"], ["cat/0.png", "cat/deep/1.png"]]
)
def test_classes_of_a_tar_file_are_those_of_its_directory(around, names, tmp_path):
    for name in names:
        picture(tmp_path / "D" / "train" / name)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "train.tar", "w") as tar:
        tar.add(tmp_path / "D" / "train", around)
    plain, packed = (sources.load("folder", tmp_path / name, "train") for name in ("D", "packed"))
    assert (packed.classes, packed.labels) == (plain.classes, plain.labels)


@pytest.mark.parametrize("splits", [["train", "val", "test"], ["train", "val"], ["test"]])
def test_splits_of_one_tar_file_are_those_of_its_directory(splits, tmp_path):
    for split in splits:
        for name in ("cat/val/0.png", "cat/1.png", "dog/2.png", "train/3.png"):
            picture(tmp_path / "D" / split / name)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "D", "D")
    for split in ("train", "test") if "train" in splits else ("test",):
        plain, packed = (sources.load("folder", tmp_path / name, split) for name in ("D", "all.tar"))
        assert (packed.classes, packed.labels) == (plain.classes, plain.labels)
        paths = [str(path.relative_to(tmp_path)) for path in plain.store.paths]
        assert [name for name, _, _ in packed.store.members] == paths


@pytest.mark.parametrize("link", [os.link, lambda file, to: to.symlink_to(Path("..", "cat", file.name))])
def test_links_to_files_of_a_tar_file_are_followed(link, tmp_path):
    home = tmp_path / "D" / "train"
    picture(home / "cat" / "0.png", 200)
    picture(home / "dog" / "1.png")
    link(home / "cat" / "0.png", home / "dog" / "2.png")

    def packed():
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            tar.add(home, ".")
        return sources.load("folder", tmp_path, "train")

    assert packed().labels == [0, 1, 1]
    assert packed().read(2).getpixel((0, 0)) == (200, 200, 200)
    (home / "dog" / "3.png").symlink_to("2.png")
    (home / "notes.txt").symlink_to(home / "nowhere.txt")
    (home / "dog" / "more").symlink_to(home / "cat")
    assert packed().labels == [0, 1, 1, 1]
    assert packed().read(3).getpixel((0, 0)) == (200, 200, 200)
    (home / "dog" / "4.png").symlink_to(home / "cat" / "0.png")
    with pytest.raises(
        ValueError, match=r"has 1 link\(s\) to no file in it \(dog/4.png\): write it with tar --deref"
    ):
        packed()


@pytest.mark.parametrize(
    ("split", "names", "classes"),
    [
        ("train", ["data/train/cat/0.png", "data/train/dog/1.png", "data/test/a/2.png", "x.png"], ("cat", "dog")),
        (
            "train",
            ["data/train/cat/0.png", "data/train/dog/1.png", "data/test/a/2.png", "x/a.png"],
            ("cat", "dog"),
        ),
        ("train", ["train/train/0.png", "test/train/1.png"], ("train",)),
        ("train", ["test/train/cat/0.png", "test/train/val/1.png", "test/test/cat/2.png"], ("cat", "val")),
        ("test", ["test/train/cat/0.png", "test/train/val/1.png", "test/test/cat/2.png"], ("cat",)),
        ("test", ["train/cat/0.png", "val/test/1.png"], ("test",)),
        ("train", ["test/train/cat/0.png", "val/test/cat/1.png"], None),
    ],
)
def test_a_split_of_a_tar_file(split, names, classes, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in names:
            picture(tmp_path / name)
            tar.add(tmp_path / name, name)
    if classes is None:
        with pytest.raises(ValueError, match="has no directory train or training with class directories"):
            sources.load("folder", tmp_path / "all.tar", split)
    else:
        assert sources.load("folder", tmp_path / "all.tar", split).classes == classes


@pytest.mark.parametrize("stray", ["cover.png", "train/stray.png"])
@pytest.mark.parametrize("classes", [("cat", "dog"), ("cat",)])
def test_stray_images_around_the_classes_of_a_tar_file(classes, stray, tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in (*(f"train/{each}/0.png" for each in classes), stray):
            picture(tmp_path / "D" / name)
            tar.add(tmp_path / "D" / name, name)
    assert sources.load("folder", tmp_path, "train").classes == classes


@pytest.mark.parametrize("place", ["directory", "both", "single"])
def test_an_empty_class_is_named(place, untidy, tmp_path):
    (untidy / "eel").mkdir()
    (untidy / "emu").mkdir()
    (untidy / "emu" / "notes.txt").write_text("no picture")
    home = untidy.parent
    if place != "directory":
        home = tmp_path / ("all.tar" if place == "both" else "single")
        if place == "single":
            home.mkdir()
        with tarfile.open(home if place == "both" else home / "train.tar", "w") as tar:
            tar.add(untidy, "train" if place == "both" else ".")
    with pytest.raises(ValueError, match=r"has no image in eel, emu"):
        sources.load("folder", home, "train")


def test_images_that_are_not_read_are_counted(untidy):
    for name in ("a.tga", "b.TGA", "c.pdf"):
        (untidy / "cat" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out: 1 \.pdf, 2 \.tga"):
        assert len(sources.load("folder", untidy.parent, "train").labels) == 2


def test_a_name_that_is_no_text_is_refused(untidy):
    os.mkdir(os.fsencode(untidy) + b"/\xff")
    shutil.copy(untidy / "dog" / "3.png", os.fsencode(untidy) + b"/\xff/1.png")
    with pytest.raises(ValueError, match="a name that is no UTF-8"):
        sources.load("folder", untidy.parent, "train")


def test_digits_are_all_there():
    train_, test = (sources.load("digits", ".", split) for split in ("train", "test"))
    assert (len(train_.labels), len(test.labels)) == (1438, 359)
    assert set(train_.labels) == set(test.labels) == set(range(10))


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [("cifar10", sources.datasets.CIFAR10, "labels"), ("cifar100", sources.datasets.CIFAR100, "fine_labels")],
)
def test_cifar_is_read_as_torchvision_keeps_it(name, kind, labels, tmp_path, monkeypatch):
    home = tmp_path / kind.base_folder
    home.mkdir()
    files = [file for file, _ in kind.train_list + kind.test_list]
    pixels = np.random.default_rng(0).integers(0, 256, (len(files), 3, 3072), dtype=np.uint8)
    for file, batch in zip(files, pixels, strict=True):
        (home / file).write_bytes(pickle.dumps({"data": batch, labels: [0, 1, 2]}))
    (home / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: list("abcdefghij")}))
    with pytest.raises(ValueError, match=f"{name} is not in"):  # its checksums are not those of CIFAR
        sources.load(name, tmp_path, "train")
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    train_, test = (sources.load(name, tmp_path, split) for split in ("train", "test"))
    assert (len(train_.labels), train_.classes) == (3 * (len(files) - 1), tuple("abcdefghij"))
    assert test.store.name(2) == f"{name} test image 2"
    for source, batch in ((train_, pixels[0]), (test, pixels[-1])):
        expected = batch[1].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(source.store.open(1)), expected)


def test_a_tar_file_without_test_images_is_not_taken_for_them(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder / "train", "train")
        tar.add(folder / "test", "eval")
    with pytest.raises(ValueError, match=r"all\.tar has no directory test or val or validation"):
        sources.load("folder", tmp_path / "all.tar", "test")


def test_aug_mix_gives_copies_of_every_image(folder):
    source = sources.load("folder", folder, "train")
    images = data.training_set(source, VisionConfig(**TINY | COPIES))
    pictures, labels = data.collate_splits([images[i] for i in range(4)])
    assert pictures.shape == (12, 3, 32, 32)
    assert labels.tolist() == [source.labels[i] for i in range(4)] * 3


def test_a_policy_of_timm_survives_its_strongest_posterize():
    image = sources.Image.new("RGB", (4, 4), "red")
    posterized = timm.data.auto_augment.AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)(image)
    assert posterized.getcolors() == [(16, (0, 0, 0))]


def test_images_keep_their_colours():
    red = np.full((1, 32, 32, 3), (255, 0, 0), np.uint8)
    source = sources.Source(("a",), [0], sources.Arrays(red, "image"))
    image, _ = data.evaluation_set(source, 32, 1.0)[0]
    seen = data.Normalise(data.IMAGENET)(image[None])[0]
    mean, std = data.IMAGENET
    expected = [(colour - m) / s for colour, m, s in zip((1.0, 0.0, 0.0), mean, std, strict=True)]
    torch.testing.assert_close(seen, torch.tensor(expected).view(3, 1, 1).expand(3, 32, 32))
