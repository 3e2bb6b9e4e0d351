"""A policy is loaded without its trainer, its simulator and its replay, and is the one that was trained."""

import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from control import assert_same_run, save_untrained
from entropyfloor.control import load_policy
from entropyfloor.control.config import configure
from entropyfloor.control.load import ACTING
from entropyfloor.control.train import resume, train
from entropyfloor.runs import Run
from entropyfloor.runs.directory import open_checkpoint
from entropyfloor.runs.resume import begin

pytestmark = pytest.mark.usefixtures("cache")

PARALLEL = {"num_envs": 1, "critic_hidden": 8, "replay_capacity": 100}
SIMBA = {"networks": "simba", "critic_hidden": 8}
RUNS = {
    "exact": {"agent": "sac-era-exact", "env": "gym/Reacher-v4"},
    "tanh": {"agent": "sac", "env": "gym/Reacher-v4"},
    "era-batch": {
        "agent": "sac-era",
        "head": "era-batch",
        "residual_entropy": "learned",
        "env": "gym/Reacher-v4",
    },
    "obac": {"agent": "obac-era", "env": "gym/Reacher-v4", "residual_entropy": 0.3},
    "mnse": {"agent": "mnse", "env": "gym/Reacher-v4"},
    "simba": {"agent": "sac-era-exact", "env": "gym/Reacher-v4", **SIMBA, "critics": 1},
    "simba, three blocks": {"agent": "obac", "env": "gym/Pendulum-v1", **SIMBA, "actor_blocks": 3},
    "simba, raw": {"agent": "mnse", "env": "gym/Reacher-v4", **SIMBA, "normalise_observations": False},
    "layers, normalised": {"agent": "sac", "env": "gym/Reacher-v4", "normalise_observations": True},
    "parallel, normalised": {"agent": "fastsac-era-exact", "env": "gym/Reacher-v4", **PARALLEL},
    "fasttd3": {"agent": "fasttd3", "env": "gym/Reacher-v4", **PARALLEL, "normalise_observations": False},
    "shares": {"agent": "fastsac", "head": "shares", "env": "gym/Reacher-v4", **PARALLEL},
    "normalised": {"agent": "ppo", "env": "gym/Pendulum-v1"},
    "ppo-era": {"agent": "ppo-era", "env": "gym/Reacher-v4", "normalise_observations": False},
    "discrete": {"agent": "ppo", "env": "gym/CartPole-v1"},
    "discrete, era": {"agent": "ppo-era-exact", "env": "gym/CartPole-v1"},
}
AIMS = {  # floor, target entropy
    "exact": (-1.0, -1.0),
    "tanh": (None, -1.0),
    "era-batch": (None, -1.0),
    "obac": (-1.0, -1.0),
    "mnse": (None, None),
    "simba": (-1.0, -1.0),
    "simba, three blocks": (None, -1.0),
    "simba, raw": (None, None),
    "layers, normalised": (None, -1.0),
    "parallel, normalised": (-1.0, -1.0),
    "fasttd3": (None, None),
    "shares": (None, 0.0),
    "normalised": (None, None),
    "ppo-era": (-0.6, -0.6),
    "discrete": (None, None),
    "discrete, era": (0.1 * np.log(2), 0.1 * np.log(2)),
}


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", RUNS)
def test_a_loaded_policy_is_the_one_that_the_trainer_acts_with(name, tmp_path):
    trainer = save_untrained(tmp_path, step=7, **RUNS[name])
    policy = load_policy(tmp_path)
    observations = np.random.default_rng(0).normal(size=(5, policy.observation_dim)).astype(np.float32)
    seen = trainer.collectors[0].normalise(observations)
    acting = trainer.agent.distribution(trainer.state.actor, seen)
    mode, entropy = jax.jit(lambda policy: (policy.mode(), policy.entropy()))(acting)
    is_discrete = name.startswith("discrete")
    expected = np.asarray(mode) if is_discrete else np.clip(mode, -1, 1)
    np.testing.assert_allclose(policy(observations), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(policy.entropy(observations), entropy, rtol=0, atol=1e-5)
    np.testing.assert_allclose(policy(observations[0]), expected[0], rtol=0, atol=1e-6)
    assert policy(observations).dtype == (np.int32 if is_discrete else np.float32)
    drawn = policy.sample(observations, seed=3)
    np.testing.assert_array_equal(drawn, policy.sample(observations, seed=3))
    assert drawn.shape == ((5,) if is_discrete else (5, policy.action_dim))
    assert set(drawn.tolist()) <= {0, 1} if is_discrete else (np.abs(drawn) <= 1).all()
    assert (policy.floor, policy.target_entropy) == pytest.approx(AIMS[name])
    assert (policy.step, policy.discrete) == (7, is_discrete)
    sizes = {"gym/Reacher-v4": (11, 2), "gym/Pendulum-v1": (3, 1), "gym/CartPole-v1": (4, 2)}
    assert (policy.observation_dim, policy.action_dim) == sizes[policy.config.env]
    if policy.floor is not None and name != "obac":  # which promises the Gaussian before truncation
        assert (policy.entropy(observations) > policy.floor - 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "simba", "normalised", "discrete, era"])
def test_a_checkpoint_serves_both_precisions(name, tmp_path):
    trainer = save_untrained(tmp_path / "fp32", **RUNS[name])
    run = Run.create(tmp_path / "bf16", {**Run.open(tmp_path / "fp32").config, "precision": "bf16"})
    checkpoint = Run.open(tmp_path / "fp32").latest()
    run.save(checkpoint.step, checkpoint.arrays, checkpoint.state)
    exact, policy = load_policy(tmp_path / "fp32"), load_policy(tmp_path / "bf16")
    assert (exact.config.precision, policy.config.precision) == ("fp32", "bf16")
    observations = np.random.default_rng(0).normal(size=(50, policy.observation_dim))
    seen = trainer.collectors[0].normalise(observations.astype(np.float32))
    one, other = (jax.tree.leaves(each.distribution(each.actor, seen)) for each in (exact, policy))
    assert not np.array_equal(one[0], other[0])
    for values, rounded in zip(one, other, strict=True):
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(values, rounded, rtol=0.05, atol=0.05)
    assert policy(observations).dtype == exact(observations).dtype
    if policy.floor is not None:
        assert (policy.entropy(observations) > policy.floor - 1e-4).all()


def test_one_of_several_checkpoints_is_loaded_by_its_directory(tmp_path):
    trainer = save_untrained(tmp_path, step=7, **RUNS["tanh"])
    trainer.step = 9
    trainer.state = trainer.state._replace(actor=jax.tree.map(lambda x: x + 1, trainer.state.actor))
    trainer.save([Run.open(tmp_path)])
    first, last = Run.open(tmp_path).checkpoints()
    observation = np.ones(11)
    assert (load_policy(first).step, load_policy(last).step, load_policy(tmp_path).step) == (7, 9, 9)
    np.testing.assert_array_equal(load_policy(tmp_path)(observation), load_policy(last)(observation))
    assert (load_policy(first)(observation) != load_policy(last)(observation)).all()


PROGRAM = """
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        packages = ("dm_control", "humanoid_bench", "envpool")
        if name.partition(".")[0] in packages or name == "entropyfloor.control.envs":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
from entropyfloor.control import load_policy
policy = load_policy(Path(sys.argv[1]))
policy([0.0] * policy.observation_dim)
print(*sorted(name for name in sys.modules if name.startswith("entropyfloor.control.")))
"""


@pytest.mark.slow
def test_neither_the_environment_nor_a_trainer_is_needed(tmp_path):
    save_untrained(tmp_path, **RUNS["exact"])
    moved = tmp_path / "moved"
    checkpoint = Run.open(tmp_path).latest()
    run = Run.create(moved, {**Run.open(tmp_path).config, "env": "gym/nowhere:NoSuch-v0"})
    run.save(checkpoint.step, checkpoint.arrays, checkpoint.state)
    done = subprocess.run([sys.executable, "-c", PROGRAM, moved], capture_output=True, text=True, check=True)
    imported = {name.removeprefix("entropyfloor.control.") for name in done.stdout.split()}
    assert "load" in imported
    assert not {"trainer", "off_policy", "on_policy", "train", "envs", "episodes", "evaluator"} & imported


def test_only_what_acts_is_read_and_the_rest_is_checked_all_the_same(tmp_path):
    save_untrained(tmp_path, **RUNS["exact"])
    run, checkpoint = open_checkpoint(tmp_path, ACTING)
    stored = run.latest().arrays
    assert set(checkpoint.arrays) == {name for name in stored if name.startswith("agent/actor/")}
    assert any(name.startswith("replay/") for name in stored)
    for name, array in checkpoint.arrays.items():
        np.testing.assert_array_equal(array, stored[name])
    file = checkpoint.path / "arrays.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        load_policy(tmp_path)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no run in .*nothing"):
        load_policy(tmp_path / "nothing")
    config = configure("sac", out=str(tmp_path / "empty")).resolved()
    begin(config, domain="control", names=2)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        load_policy(tmp_path / "empty")
    Run.create(tmp_path / "other", {"domain": "vision", "seed": 0}).save(1, {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="domain='vision'"):
        load_policy(tmp_path / "other")
    run = Run.open(tmp_path / "empty")
    run.save(1, {"agent/log_alpha": np.zeros(())}, {})
    with pytest.raises(ValueError, match=r"checkpoint .*000001 cannot be used"):
        load_policy(tmp_path / "empty")


def test_an_observation_of_another_size_is_refused(tmp_path):
    save_untrained(tmp_path, **RUNS["normalised"])
    policy = load_policy(tmp_path)
    for wrong in (np.zeros(4), np.zeros((2, 4)), np.zeros((1, 2, 3)), 0.0):
        with pytest.raises(ValueError, match=r"must be \[3\] or \[B, 3\], as gym/Pendulum-v1 observes"):
            policy(wrong)


# --- runs of earlier versions ----------------------------------------------------------------------------

OLD_NAMES = {"tanh": "clip", "clip": "hard-clip"}
OLD = {
    "sac": {
        "agent": "sac",
        "env": "gym/Pendulum-v1",
        "batch_size": 8,
        "random_steps": 20,
        "updates_per_step": 1,
        "networks": "release",
    },
    "ppo": {"agent": "ppo", "env": "gym/CartPole-v1", "rollout_steps": 20, "minibatch_size": 10, "epochs": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OLD)
def test_a_run_of_an_earlier_version_is_loaded_and_resumed(name, tmp_path):
    sizes = {"hidden": 8, "steps": 60, "checkpoint_every": 40, "eval_episodes": 1, "log_every": 10}
    whole = train(configure(**OLD[name], **sizes, out=str(tmp_path / "whole")))
    settings = Run.open(whole).config
    assert settings.pop("names") == 2
    assert settings.pop("precision") == "fp32"  # which is what a run without the setting was computed in
    settings["head"] = OLD_NAMES[settings["head"]]
    if "networks" in settings:
        settings["settings"] = settings.pop("networks")
    first = open_checkpoint(Run.open(whole).checkpoints()[0])[1]
    old = Run.create(tmp_path / "old", settings)
    shutil.copy(whole / "metrics.jsonl", old.path / "metrics.jsonl")
    old.save(first.step, first.arrays, first.state)
    stored = (old.path / "config.toml").read_bytes()
    policy, expected = load_policy(old.path), load_policy(first.path)
    observations = np.random.default_rng(0).normal(size=(6, policy.observation_dim))
    np.testing.assert_array_equal(policy(observations), expected(observations))
    np.testing.assert_array_equal(policy.entropy(observations), expected.entropy(observations))
    assert policy.config.head == load_policy(whole).config.head
    resume(old.path, threads=1)
    assert_same_run(whole, old.path)
    assert (old.path / "config.toml").read_bytes() == stored


def test_a_resume_refuses_other_settings_that_change_results(tmp_path):
    save_untrained(tmp_path, **RUNS["tanh"])
    with pytest.raises(ValueError, match="keeps its discount, nothing"):
        resume(tmp_path, discount=0.5, threads=1, nothing=0)


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs/gym-Reacher-v4/sac-era-exact/seed-0"
    save_untrained(path, **RUNS["exact"])
    lines = re.findall(r">>> (.*)", load_policy.__doc__)
    assert len(lines) == 5
    exec("\n".join(lines), {})
