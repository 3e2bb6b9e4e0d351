"""What runs need: computed numbers against exact ones, and against the peak memory of real runs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import tiny_language
from entropyfloor.control import needs as control_needs
from entropyfloor.control.config import configure
from entropyfloor.control.parallel import replay_rows
from entropyfloor.control.replay import Replay, transition_bytes
from entropyfloor.control.ring import step_bytes
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.needs import needs
from entropyfloor.language.tasks.files import Questions
from entropyfloor.torch.memory import bytes_of, saved_bytes, without_memory
from entropyfloor.vision import needs as vision_needs
from entropyfloor.vision.config import VisionConfig

PARAMETERS_7B, PARAMETERS_1_5B = 7_615_616_512, 1_543_714_304
"""Numbers that the authors of Qwen2.5 state as 7.61 and 1.54 billion."""


def language(model="Qwen/Qwen2.5-Math-7B", **settings):
    task = {"task": "file", "data": "x.jsonl", "warm_start_steps": 0, "max_prompt": 1024, "max_new_tokens": 3072}
    return LanguageConfig(**{**task, "model": model, "prompts": 8, "samples": 8, "sample_batch": 16, **settings})


def test_what_a_linear_layer_and_a_relu_keep():
    with without_memory():
        model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
        assert bytes_of(model) == 4 * (10 * 20 + 20 + 20 * 5 + 5)
        x = torch.zeros(7, 10)
        assert saved_bytes(model, lambda: model(x)) == 4 * 7 * (10 + 20)  # both inputs; ReLU's output is one


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("model", "parameters"), [("Qwen/Qwen2.5-Math-7B", PARAMETERS_7B), ("Qwen/Qwen2.5-Math-1.5B", PARAMETERS_1_5B)]
)
def test_weights_gradients_and_moments_of_the_papers_models(model, parameters):
    found = needs(language(model, micro_batch=1, gradient_checkpointing=True), on_cpu=False)
    update = found.moments["update"]
    assert update["weights"] == update["gradients"] == 4 * parameters
    assert update["moments of AdamW"] == 8 * parameters
    assert found.checkpoint == 12 * parameters
    assert 12 * parameters < found.host < 13 * parameters  # its arrays alone


def test_keys_and_values_of_7b_are_those_of_its_config():
    """2 x 28 layers x 4 heads x 128 wide, float32, for 16 responses; and one layer more for all 28 heads."""
    tokens = 1024 + 3072 + 64
    layer = 16 * tokens * 2 * 4 * 128 * 4
    assert needs(language(), on_cpu=False).moments["sampling"]["keys and values"] == layer * (28 + 1 + 7)


def test_responses_to_questions_of_a_file_are_as_long_as_they_may_be():
    long, default = (needs(language(max_new_tokens=n), on_cpu=False) for n in (Questions.max_new_tokens, None))
    assert default.moments == long.moments


@pytest.mark.slow
def test_activations_grow_with_the_micro_batch_and_fall_by_checkpointing():
    def activations(**settings):
        return needs(language("Qwen/Qwen2.5-Math-1.5B", **settings), on_cpu=False).moments["update"]["activations"]

    one = activations(micro_batch=1)
    assert activations(micro_batch=4) == pytest.approx(4 * one, rel=0.01)
    assert activations(micro_batch=1, precision="bf16") < one
    checkpointed = activations(micro_batch=1, gradient_checkpointing=True)
    inputs = 28 * 4096 * 1536 * 4  # of each layer
    assert inputs < checkpointed < inputs + 0.1 * one


def test_a_reference_model_is_counted():
    both, alone = needs(language(kl_coef=0.1), on_cpu=False), needs(language(), on_cpu=False)
    assert both.memory - alone.memory == 4 * PARAMETERS_7B
    assert both.checkpoint - alone.checkpoint == 4 * PARAMETERS_7B


def test_a_replay_is_what_its_arrays_take():
    replay = Replay(1000, 223, 38, np.random.default_rng(0))
    assert sum(column.nbytes for column in replay._storage) == 1000 * transition_bytes(223, 38)
    config = configure("sac", env="gym/Pendulum-v1", steps=4000, action_repeat=2, hidden=16)
    found = control_needs.needs(config, on_cpu=True)
    assert found.peak[1]["replay"] == 2000 * transition_bytes(3, 1)
    on_device = control_needs.needs(config, on_cpu=False)
    assert "replay" not in on_device.peak[1]
    assert on_device.host == control_needs.LIBRARIES + found.checkpoint


def test_the_replay_of_many_environments_is_on_the_device():
    config = configure("fasttd3", env="gym/Pendulum-v1", steps=4000, num_envs=8, replay_capacity=1600)
    for on_cpu in (True, False):
        training = control_needs.needs(config, on_cpu=on_cpu).moments["training"]
        assert training["replay"] == 1600 * (4 * (2 * 3 + 1 + 1) + 2)


def test_a_replay_on_the_device_has_room_for_all_steps():
    """Whatever the action repeat leaves of them: see `parallel.replay_rows`."""
    config = configure("fasttd3", env="gym/Pendulum-v1", steps=1600, num_envs=8, action_repeat=2)
    rows = replay_rows(config.resolved(), (3, 1), 1)
    training = control_needs.needs(config, on_cpu=False).moments["training"]
    assert training["replay"] == rows * 8 * step_bytes(3, 1)


@pytest.mark.parametrize("agent", ["obac", "mnse", "tdmpc2", "fastsac", "ppo", "eapo"])
def test_every_kind_of_agent_is_counted(agent):
    found = control_needs.needs(configure(agent, env="gym/Pendulum-v1", steps=4000), on_cpu=True)
    assert found.memory > control_needs.LIBRARIES
    assert found.checkpoint > 0 or agent in ("ppo", "eapo")


ARMS = {
    "language": [language("Qwen/Qwen2.5-Math-1.5B", **arm) for arm in ({}, {"entropy_coef": 0.1}, {"seed": 1})],
    "vision": [VisionConfig(model="resnet18", **arm) for arm in ({}, {"min_entropy": 0.3}, {"seed": 1})],
}


@pytest.mark.parametrize(("room", "count"), [("language", needs), ("vision", vision_needs.needs)])
def test_arms_of_the_same_sizes_are_counted_once(room, count):
    first, *others = (count(config, on_cpu=True) for config in ARMS[room])
    assert all(other is first for other in others)


def test_agents_of_the_same_sizes_are_counted_once(monkeypatch):
    counted = []
    monkeypatch.setattr(control_needs, "_counted", {})
    monkeypatch.setattr(control_needs, "_bytes_of_state", lambda *sizes: counted.append(sizes) or len(counted))

    def networks(agent, obs_dim=3, **settings):
        config = configure(agent, env="gym/Pendulum-v1", **settings).resolved()
        return control_needs._networks(config, obs_dim, 2)

    assert [networks("sac"), networks("sac-era-exact"), networks("sac", learning_rate=1e-3, seed=1)] == [1, 1, 1]
    others = [{"hidden": 8}, {"critics": 3}, {"obs_dim": 4}, {"networks": "simba"}]
    others += [{"agent": "obac"}, {"agent": "fastsac"}, {"agent": "tdmpc2"}, {"agent": "tdmpc2", "latent": 64}]
    found = [networks(**{"agent": "sac", **other}) for other in others]
    assert found == list(range(2, 2 + len(others)))


SHAPE = """
from entropyfloor.control.needs import _sizes
print(_sizes("gym/HalfCheetah-v5", "{}"))
"""


def test_an_environment_is_measured_without_a_word(tmp_path):
    """MuJoCo would print a warning, and write it into the working directory."""
    done = subprocess.run([sys.executable, "-c", SHAPE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(17, 6)\n", "")
    assert not list(tmp_path.iterdir())


def test_a_classifier_is_counted():
    config = VisionConfig(model="resnet18", dataset="cifar10", batch_size=32, ema=0.9)
    found = vision_needs.needs(config, on_cpu=True)
    weights = 4 * 11_181_642
    assert found.peak[1]["weights"] == found.peak[1]["moments and averages"] / 2 == weights
    assert found.checkpoint == 3 * weights
    twice = vision_needs.needs(VisionConfig(model="resnet18", dataset="cifar10", batch_size=64), on_cpu=False)
    activations = [each.moments["training"]["activations"] for each in (found, twice)]
    assert activations[1] == pytest.approx(2 * activations[0], rel=0.01)


def test_a_model_below_the_home_directory_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_language.save(tmp_path / "mine")
    sizes = [needs(language(model), on_cpu=True).memory for model in ("~/mine", str(tmp_path / "mine"))]
    assert sizes[0] == sizes[1]


PEAK = """
import json, re, sys
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.train import train
train(LanguageConfig(**json.loads(sys.argv[1])))
# Not the ru_maxrss of getrusage, which is at least what the process had that started this one.
print(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1])
"""

SMALL = {
    "task": "countdown-3",
    "steps": 1,
    "warm_start_steps": 0,
    "threads": 1,
    "eval_problems": 2,
    "eval_samples": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "moment"),
    [
        ({"hidden": 256, "prompts": 16, "samples": 16}, "update"),
        (
            {
                "layers": 6,
                "hidden": 1024,
                "heads": 8,
                "prompts": 4,
                "samples": 4,
                "micro_batch": 4,
                "precision": "bf16",
                "gradient_checkpointing": True,
            },
            "update",
        ),
    ],
    ids=["activations", "weights"],
)
def test_the_peak_of_a_real_run_is_the_computed_one_within_a_quarter(settings, moment, tmp_path):
    settings = {**SMALL, **settings, "out": str(tmp_path / "run")}
    done = subprocess.run([sys.executable, "-c", PEAK, json.dumps(settings)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = 1024 * int(done.stdout.split()[-1])
    computed = needs(LanguageConfig(**settings), on_cpu=True)
    assert computed.peak[0] == moment
    assert measured == pytest.approx(computed.memory, rel=0.25)
