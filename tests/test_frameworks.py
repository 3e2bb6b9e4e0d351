"""The page on training frameworks: its examples run, and the floor holds after what each framework does."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import hosts
import reference
from entropyfloor import targets
from entropyfloor.torch.functional import era_softmax
from entropyfloor.torch.nn import ERALinear
from entropyfloor.vision import attach_era, detach_era  # before timm: see the shim

import timm  # isort: skip
from timm.models import load_checkpoint  # isort: skip
from timm.optim import create_optimizer_v2  # isort: skip

PAGE = hosts.DOCS / "frameworks.md"
FLOOR = 0.6
LARGE = 1e4 * torch.randn(200, 8, generator=torch.Generator().manual_seed(1))


def example(heading, number=0, **names):
    return hosts.example(heading, number, page=PAGE, **names)


def source(heading):
    return hosts.sources(heading, PAGE)[0]


def entropy(logits):
    return reference.categorical_entropy(np.asarray(logits.detach() if torch.is_tensor(logits) else logits))


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def run(*command, **environment):
    """Run a command in one thread, and return what it printed last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# --- timm ------------------------------------------------------------------------------------------------


def test_a_script_of_timm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = example("timm")
    images = torch.randn(16, 3, 32, 32)
    for model in (names["model"], names["average"].module):
        assert isinstance(model.fc, ERALinear)
        with torch.no_grad():
            model.fc.weight.mul_(1e5)
        assert entropy(model.eval()(images)).min() > FLOOR - 1e-4
    plain = timm.create_model("test_resnet", num_classes=10)
    assert names["optimizer"].state
    assert [name for name, _ in names["model"].named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    load_checkpoint(plain, "last.pth.tar", use_ema=True, weights_only=False)
    resumed = attach_era(plain, FLOOR).eval()
    with torch.no_grad():
        detach_era(names["average"].module).fc.weight.div_(1e5)
        expected = attach_era(names["average"].module, FLOOR)(images)
    torch.testing.assert_close(resumed(images), expected, atol=1e-3, rtol=1e-3)


def test_layer_decay_treats_the_head_as_that_of_the_plain_model():
    def groups(model):
        optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.05, layer_decay=0.7)
        names = {id(p): name for name, p in model.named_parameters()}
        return [
            (g["weight_decay"], g["lr_scale"], [names[id(p)] for p in g["params"]]) for g in optimizer.param_groups
        ]

    plain, floored = (timm.create_model("test_vit", img_size=32, num_classes=10) for _ in range(2))
    assert groups(attach_era(floored, FLOOR)) == groups(plain)


@pytest.mark.parametrize("task", ["LogitDistillationTask", "TokenDistillationTask"])
def test_timm_distils_into_a_student_with_a_floor(task):
    tasks = pytest.importorskip("timm.task")  # which older versions do not have
    name = "test_vit" if task == "LogitDistillationTask" else "deit_tiny_distilled_patch16_224"
    student = attach_era(timm.create_model(name, img_size=32, num_classes=10), FLOOR)
    teacher = timm.create_model("test_resnet", num_classes=10)
    trained = getattr(tasks, task)(student, teacher, criterion=nn.CrossEntropyLoss(), verbose=False)
    trained(torch.randn(4, 3, 32, 32), torch.arange(4))["loss"].backward()
    heads = [layer for layer in student.modules() if hasattr(layer, "activation")]
    assert len(heads) == (1 if name == "test_vit" else 2)
    for head in heads:
        assert head.weight.grad.abs().max() > 0
        with torch.no_grad():
            head.weight.mul_(1e5)
    student.eval()
    assert entropy(student(torch.randn(16, 3, 32, 32))).min() > FLOOR - 1e-4


# --- Lightning -------------------------------------------------------------------------------------------

LIGHTNING = pytest.mark.filterwarnings(  # its own
    "ignore:.*:UserWarning:lightning",
    "ignore:.*:DeprecationWarning:lightning",
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
)


@LIGHTNING
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_a_classifier_of_lightning(precision, tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names = example("Lightning")
    model, data = names["model"], names["data"]
    trainer = names["trainer"]
    if precision != "bf16-mixed":
        model = names["Classifier"]()
        options = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
        trainer = lightning.Trainer(precision=precision, **options)
        trainer.fit(model, data)
    with trainer.precision_plugin.forward_context():
        logits = model.net(trainer.precision_plugin.convert_input(LARGE))
    assert logits.dtype == torch.float32
    assert FLOOR - 1e-4 < entropy(logits).min() < FLOOR + 0.1
    [file] = tmp_path.rglob(f"epoch={trainer.max_epochs - 1}*.ckpt")
    again = names["Classifier"].load_from_checkpoint(file, weights_only=True)
    assert again.net[-1].min_entropy == FLOOR
    torch.testing.assert_close(again.net(LARGE), model.float().net(LARGE), rtol=0, atol=0)


@LIGHTNING
def test_a_policy_of_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names = example("Lightning", 1)
    model, observations = names["model"], LARGE[:, :4]
    with names["trainer"].precision_plugin.forward_context():
        policy = model(observations)
    assert policy.loc.dtype == torch.float32
    exact = hosts.entropy(policy.loc.detach(), policy.scale.log().detach(), truncated=True)
    np.testing.assert_allclose(exact, -1.5, atol=2e-4)
    [file] = tmp_path.rglob("epoch=1*.ckpt")
    again = names["Imitation"].load_from_checkpoint(file, weights_only=True)
    torch.testing.assert_close(again(observations).loc, model(observations).loc, rtol=0, atol=0)


# --- accelerate ------------------------------------------------------------------------------------------

CHECKS = """
import json
from entropyfloor.torch.nn import ERAGaussian
trained = {name: value.clone() for name, value in model.state_dict().items()}
torch.manual_seed(accelerator.process_index)
large = 1e4 * torch.randn(200, 8)
model.eval()
logits = accelerator.gather_for_metrics(model(large))
probabilities = logits.double().softmax(-1)
with torch.no_grad():
    model.module[-1].weight.zero_()
accelerator.load_state("state")
restored = all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
weights = accelerator.gather(trained["module.2.weight"][None])
statistics = accelerator.prepare(nn.Sequential(nn.Linear(8, 6), ERAGaussian(6, -3.0, batch_level=True)))
own = torch.randn(32, 8) + 3 * accelerator.process_index
statistics(own)
[running] = statistics.buffers()
before = running.item()
statistics.eval()(own)
line = json.dumps({
    "index": accelerator.process_index,
    "processes": accelerator.num_processes,
    "rows": len(logits),
    "type": str(logits.dtype),
    "entropy": -(probabilities * probabilities.log()).sum(-1).min().item(),
    "same": bool((weights == weights[0]).all()),
    "restored": restored,
    "running": [before, running.item()],
})
print(line + "\\n", end="")  # in one piece: two processes write to one pipe
"""


@pytest.mark.slow
@installed("accelerate")
def test_two_processes_of_accelerate(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{source('accelerate')}{CHECKS}")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    printed = run(sys.executable, *launch, str(script), ACCELERATE_USE_CPU="true")
    assert len(printed) == 2
    for process in printed:
        assert (process["processes"], process["rows"], process["type"]) == (2, 400, "torch.float32")
        assert process["entropy"] > FLOOR - 1e-4
        assert process["same"]
        assert process["restored"]
    (first, kept), (second, also) = (process["running"] for process in sorted(printed, key=lambda p: p["index"]))
    assert first != second
    assert first == kept == also


# --- Keras 3 ---------------------------------------------------------------------------------------------

KERAS = """
import json, os, sys, warnings
keras.utils.set_random_seed(0)
from entropyfloor.integrations.keras import ERAGaussian
large = 1e4 * np.random.default_rng(1).normal(size=(200, 8)).astype("float32")
def numpy(x):
    return np.asarray(keras.ops.convert_to_numpy(x), np.float64)
def least(model):
    logits = numpy(model.predict(large, verbose=0))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return float((-p * np.log(p)).sum(-1).min())
again = keras.models.load_model("model.keras")
other = keras.models.load_model(sys.argv[1]) if os.path.exists(sys.argv[1]) else again
inner = keras.Input((6,))
log_std = ERAGaussian(6, -3.0, mode="floor", log_std_max=0.5, name="head")
copied = ERAGaussian.from_config(log_std.get_config())
raw = 3 * np.random.default_rng(2).normal(size=(50, 6)).astype("float32")
refused = []
for build in (lambda: ERASoftmax(5, 1.7), lambda: ERAGaussian(6, 50.0), lambda: ERASoftmax(4, 0.6)(raw),
              lambda: ERAGaussian(6, -3.0, mode="pinned")):
    try:
        build()
    except ValueError as error:
        refused.append(str(error))
keras.config.set_dtype_policy("mixed_bfloat16")
half = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5), ERASoftmax(5, 0.6)])
half.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
half.fit(inputs, inputs[:, :5].argmax(-1), verbose=0)
model.save(f"{keras.backend.backend()}.keras")
beyond = ERASoftmax(5, 0.6, dtype="mixed_float16")(1e5 * np.eye(5, dtype="float32"))
keras.Sequential([keras.layers.Embedding(3, 5, mask_zero=True), ERASoftmax(5, 0.6)])(np.array([[1, 0]]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ERAGaussian(1, -0.5)
print(json.dumps({
    "backend": keras.backend.backend(),
    "entropy": [least(m) for m in (model, again, other, half)],
    "loaded": float(abs(numpy(model.predict(inputs, verbose=0)) - numpy(again.predict(inputs, verbose=0))).max()),
    "type": keras.backend.standardize_dtype(half(inputs).dtype),
    "shape": list(half.outputs[0].shape),
    "log_std": numpy(log_std(raw)).tolist(),
    "copied": bool((numpy(copied(raw)) == numpy(log_std(raw))).all()) and copied.name == "head",
    "raw": raw.tolist(),
    "refused": refused,
    "beyond": bool(np.isfinite(numpy(beyond)).all()),
    "warned": [str(warning.message) for warning in caught],
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keras")


def keras(backend, code, folder, *words):
    own = "ignore:__array__ implementation:DeprecationWarning"  # Keras's
    script = folder / "script.py"
    script.write_text(f"import os\nos.chdir({str(folder)!r})\n{code}")
    return run(sys.executable, "-W", "error", "-W", own, str(script), *words, KERAS_BACKEND=backend)


@installed("keras")
@pytest.mark.parametrize(("backend", "other"), [("torch", "jax"), ("jax", "torch")])
def test_keras(backend, other, folder):
    [done] = keras(backend, source("Keras 3") + KERAS, folder, f"{other}.keras")
    assert done["backend"] == backend
    assert all(FLOOR - 1e-4 < least < FLOOR + 0.1 for least in done["entropy"]), done["entropy"]
    assert done["loaded"] == 0
    assert (done["type"], done["shape"]) == ("float32", [None, 5])
    expected = reference.era_gaussian(np.array(done["raw"]), -3.0, log_std_max=0.5, mode="floor")
    np.testing.assert_allclose(done["log_std"], expected, atol=1e-5)
    assert done["copied"]
    assert done["beyond"]
    assert "use mode='floor'" in done["warned"][0]
    words = ["choose a floor inside", "lower the target", "num_classes=4", "must be 'pin' or 'floor'"]
    for message, word in zip(done["refused"], words, strict=True):
        assert word in message


@installed("keras")
def test_other_backends_of_keras_are_refused(folder):
    code = "try:\n    import entropyfloor.integrations.keras\nexcept ImportError as error:\n"
    code += "    import json\n    print(json.dumps({'said': str(error)}))\n"
    [done] = keras("numpy", code, folder)
    assert "Keras runs on numpy" in done["said"]
    assert "KERAS_BACKEND to torch or jax" in done["said"]


# --- flax.nnx --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nnx():
    names = example("flax.nnx")
    assert names["losses"][-1] < names["losses"][0] - 0.1
    logits = names["model"](jnp.asarray(LARGE.numpy()))
    assert FLOOR - 1e-4 < entropy(logits).min() < FLOOR + 0.1


# --- the traps -------------------------------------------------------------------------------------------


def test_what_comes_behind_a_head():
    logits = era_softmax(LARGE, FLOOR)
    assert entropy(logits / 0.5).min() < FLOOR - 0.1  # a temperature
    pairs = logits.view(2, 100, 8)
    assert reference.categorical_entropy(pairs.softmax(-1).mean(0).log()).min() > FLOOR - 1e-4
    assert targets.mean_keeps_floor(8, FLOOR)
    assert entropy(pairs.mean(0)).min() > FLOOR - 1e-4
    smoothed = 1 - 0.1 + 0.1 / 10
    assert targets.top1_cap(10, targets.min_entropy_for_top1(10, smoothed)) == pytest.approx(smoothed)


def test_a_last_layer_beside_adapters_keeps_its_floor():
    peft = pytest.importorskip("peft")
    model = attach_era(timm.create_model("test_vit", num_classes=8), FLOOR)
    beside = {"exclude_modules": ["head"], "modules_to_save": ["head"]}
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", **beside)).eval()
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        nn.init.normal_(parameter, std=3.0)  # as if trained, far from where it began
    images = torch.randn(8, 3, 160, 160)
    logits = model(images)
    assert FLOOR - 1e-4 < entropy(logits).min() < FLOOR + 1e-2
    torch.testing.assert_close(model.merge_and_unload()(images), logits, rtol=0, atol=1e-3)


# --- the versions ----------------------------------------------------------------------------------------

PACKAGES = {
    "control-hosts.md": {
        "Stable-Baselines3": "stable_baselines3",
        "SBX": "sbx-rl",
        "rsl_rl": "rsl-rl-lib",
        "TorchRL": "torchrl",
        "skrl": "skrl",
        "Brax": "brax",
    },
    "frameworks.md": {
        "timm": "timm",
        "Lightning": "lightning",
        "accelerate": "accelerate",
        "Keras 3": "keras",
        "flax.nnx": "flax",
        "flax.linen": "flax",
    },
}
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (hosts.DOCS.parent / "constraints.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PACKAGES)
def test_the_versions_of_the_table_are_the_pinned_ones(page):
    rows = re.findall(r"^\| \[?([^\]|]+)\]?.*\| (.*) \|$", (hosts.DOCS / page).read_text(), re.MULTILINE)
    named = {name.strip(): re.search(r"ran with (?:version|Brax) ([\d.]+\d)", state) for name, state in rows}
    found = {name: match[1] for name, match in named.items() if match}
    assert found == {name: PINNED[package] for name, package in PACKAGES[page].items()}
