"""Runs of every agent: what happens to them, and that nothing of it is lost."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from safetensors.numpy import load_file

from commands import options_of
from control import assert_same_run, command, compile_quickly
from entropyfloor.control import evaluator
from entropyfloor.control.config import CONFIGS, PRESETS, configure, read_config
from entropyfloor.control.envs import registered
from entropyfloor.control.episodes import SimulatorError
from entropyfloor.control.evaluate import evaluate
from entropyfloor.control.train import _resume, _start, build, resume, train, train_seeds
from entropyfloor.runs import Run, read_run
from run_files import history

pytestmark = pytest.mark.usefixtures("cache")

OFF_POLICY = {
    "hidden": 16,
    "batch_size": 16,
    "random_steps": 100,
    "updates_per_step": 1,
    "eval_episodes": 1,
    "eval_every": 200,
    "log_every": 50,
}
MODEL_BASED = {
    **OFF_POLICY,
    "encoder_hidden": 8,
    "latent": 16,
    "critics": 3,
    "horizon": 2,
    "samples": 16,
    "proposals": 4,
    "elites": 4,
}
ON_POLICY = {
    "hidden": 16,
    "rollout_steps": 32,
    "num_envs": 2,
    "minibatch_size": 16,
    "epochs": 2,
    "eval_episodes": 1,
    "eval_every": 200,
    "log_every": 50,
}
PARALLEL = {
    "hidden": 16,
    "critic_hidden": 16,
    "atoms": 11,
    "batch_size": 16,
    "num_envs": 4,
    "n_steps": 3,
    "random_steps": 100,
    "updates_per_step": 2,
    "policy_delay": 1,
    "eval_episodes": 1,
    "eval_every": 200,
    "log_every": 50,
}


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", PRESETS)
def test_a_run_directory_tells_its_settings_again(agent):
    config = configure(agent, env="gym/Reacher-v4", seed=3).resolved()
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    assert read_config({"domain": "control", "names": 2, **settings}) == config
    assert config.resolved() == config
    assert type(config) is CONFIGS[agent]


def test_unknown_settings_and_agents_are_named():
    with pytest.raises(ValueError, match=r"agent='td3' must be one of sac, "):
        configure("td3")
    with pytest.raises(ValueError, match=r"^ppo has no setting batch_size, tau: it has agent, "):
        configure("ppo", tau=0.1, batch_size=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5e3}, r"steps=5000\.0 must be of type int"),
        ({"learning_rate": "3e-4"}, "learning_rate='3e-4' must be of type int, float"),
        ({"head": "era2"}, "head='era2' must be one of tanh, "),
        ({"seed": 2**32}, r"seed=4294967296 must be between 0 and 2\*\*32 - 1"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        configure("sac", **settings)


NUMBERS = [
    (agent, field.name)
    for agent in ("obac", "fasttd3", "tdmpc2", "ppo")  # all settings of SAC are settings of OBAC
    for field in fields(CONFIGS[agent])
    if {"int", "float"} & set(re.findall(r"\w+", str(field.type)))
]


@pytest.mark.parametrize(("agent", "name"), NUMBERS)
def test_no_number_is_beyond_its_range(agent, name):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"^{name}={value} must be "):
            configure(agent, **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2**32}, r"steps=4294967296 must be between 1 and 2\*\*32 - 1"),
        ({"min_entropy": -0.1}, "min_entropy=-0.1 must be finite and at least 0"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 must be"),
        ({"target_entropy": "nan"}, "target_entropy=nan must be a finite number"),
        ({"log_std_min": 1.0, "log_std_max": 1.0}, "log_std_min=1.0 must be below log_std_max=1.0"),
        ({"env_args": "continuous=true"}, "env_args='continuous=true' must be a JSON object"),
        ({"env_args": "[" * 100_000}, "must be a JSON object"),
        ({"env_args": "[1]"}, r"env_args='\[1\]' must be a JSON object"),
    ],
)
def test_what_no_run_can_have_is_refused_when_it_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        configure("ppo", **settings).resolved()


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        ("sac", {"residual_entropy": 5.0, "env": "gym/Pendulum-v1"}, "has no use under head='tanh'"),
        ("ppo", {"min_entropy": 0.5, "env": "gym/Pendulum-v1"}, "is for discrete actions"),
        ("ppo-era", {"head": "era-batch", "env": "gym/Reacher-v4"}, "is for SAC and OBAC"),
        ("ppo", {"minibatch_size": 60, "env": "gym/Pendulum-v1"}, "must divide a rollout"),
        ("sac", {"env": "gym/CartPole-v1"}, "ppo takes both"),
        ("sac", {"steps": 5000, "env": "gym/Pendulum-v1"}, "steps=5000 must be above random_steps=5000"),
        ("fasttd3", {"env": "gym/CartPole-v1"}, "ppo takes both"),
        ("ppo-era", {"env": "gym/CartPole-v1", "target_entropy": "0.1"}, "CartPole-v1 needs min_entropy"),
        (
            "fasttd3",
            {"replay_capacity": 10**9, "steps": 10**9, "env": "gym/Reacher-v4"},
            "lower --replay-capacity to",
        ),
    ],
)
def test_what_would_have_no_effect_or_cannot_be_is_refused(agent, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(configure(agent, **settings, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_target_from_python_may_be_a_number():
    assert configure("sac-era", target_entropy=-3.0).target_entropy == "-3.0"


def test_a_run_of_another_domain_or_version_is_no_run_of_ours():
    with pytest.raises(ValueError, match="is no run of a control agent"):
        read_config({"domain": "vision", "agent": "resnet"})
    with pytest.raises(ValueError, match="does not know the settings colour"):
        read_config({"domain": "control", "agent": "sac", "colour": "red"})


# --- randomness ------------------------------------------------------------------------------------------


def test_each_step_acts_and_learns_with_random_numbers_of_its_own():
    trainer = build([configure("sac", env="gym/Pendulum-v1", hidden=16).resolved()])
    agent, observation = trainer.agent, trainer.collectors[0].observe()

    def update(state, data, key):
        return state, {"action": agent.act(state.actor, data, key)}

    trainer.begin(agent, trainer.collectors, (3, 1), update)
    found = []
    for trainer.step in (0, 1):
        found += *trainer.act([observation]), trainer.learn(observation)["action"]
    assert np.diff(np.sort(found, axis=0), axis=0).min() > 1e-3


# --- resuming --------------------------------------------------------------------------------------------

REACHER = {"env": "gym/Reacher-v4", "steps": 400, "checkpoint_every": 250}
CARTPOLE = {"env": "gym/CartPole-v1", "steps": 512, "checkpoint_every": 256}
LEARNED = {"head": "era-batch", "residual_entropy": "learned"}
RUNS = {
    "ppo, discrete": {"agent": "ppo-era", **ON_POLICY, **CARTPOLE},
    "obac": {"agent": "obac-era", **OFF_POLICY, **REACHER},
    "sac, era-batch, learned residual": {"agent": "sac-era", **LEARNED, **OFF_POLICY, **REACHER},
    "mnse": {"agent": "mnse", **OFF_POLICY, **REACHER},
    # its episodes of 50 steps end between the two checkpoints, one of which is in the middle of an episode
    "tdmpc2": {
        "agent": "tdmpc2",
        "episodic": True,
        **MODEL_BASED,
        **REACHER,
        "steps": 200,
        "checkpoint_every": 125,
    },
    "tdmpc2, exact, bf16": {
        "agent": "tdmpc2-era-exact",
        "precision": "bf16",
        "action_repeat": 2,
        **MODEL_BASED,
        **REACHER,
        "steps": 300,
        "checkpoint_every": 125,
    },
    # CartPole's episodes end by themselves, in each environment at another time; 64 steps a rollout
    "ppo, repeats": {
        "agent": "ppo",
        "action_repeat": 2,
        **ON_POLICY,
        **REACHER,
        "steps": 1024,
        "checkpoint_every": 500,
    },
    "eapo": {"agent": "eapo", **ON_POLICY, **CARTPOLE, "env": "gym/Pendulum-v1"},
    # Reacher's episodes take 50 steps; the replay has wrapped around when it is saved
    "fasttd3, repeats": {
        "agent": "fasttd3",
        "action_repeat": 2,
        "replay_capacity": 120,
        **PARALLEL,
        **REACHER,
        "steps": 600,
        "checkpoint_every": 320,
    },
    # two processes; episodes that terminate
    "fastsac, processes": {
        "agent": "fastsac",
        "head": "shares",
        "env_processes": 2,
        **PARALLEL,
        **REACHER,
        "env": "gym/Hopper-v4",
    },
    "fastsac-era, era-batch, learned residual": {
        "agent": "fastsac-era",
        **LEARNED,
        "actions_per_update": 2,
        "normalise_observations": False,
        **PARALLEL,
        **REACHER,
    },
    "sac, bf16": {"agent": "sac-era-exact", "precision": "bf16", **OFF_POLICY, **REACHER},
    "ppo, discrete, bf16": {"agent": "ppo-era-exact", "precision": "bf16", **ON_POLICY, **CARTPOLE},
}


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_run_bit_for_bit(name, tmp_path):
    whole = train(configure(**RUNS[name], seed=5, out=str(tmp_path / "whole")))
    first, *_, last = Run.open(whole).checkpoints()
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / last.name)
    assert 0 < int(first.name) < int(last.name)
    assert resume(part) == part
    assert read_run(part).status["state"] == "finished"
    assert any("loss/actor" in line for line in history(whole) if line["step"] > int(first.name))
    assert any("train/return" in line for line in history(whole))
    assert_same_run(whole, part)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some five minutes where nothing else runs, and every wait grows with the first run
@pytest.mark.parametrize("agent", ["sac-era-exact", "ppo-era"])
def test_ten_kills_change_nothing(agent, tmp_path, cache):
    """SIGKILL at ten random moments: the run ends as the one that was left alone."""
    sizes = {**OFF_POLICY, "steps": 3000} if agent.startswith("sac") else {**ON_POLICY, "steps": 30_000}
    settings = {"agent": agent, "env": "gym/Reacher-v4", "checkpoint_every": sizes["steps"] // 60, **sizes}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    process = command(*options_of({**settings, "out": whole}), cache=cache)
    assert process.communicate(timeout=300)[1] == ""
    duration = time.monotonic() - begun
    moments, kills, start, saved = random.Random(0), 0, options_of({**settings, "out": killed}), []
    while kills < 10:
        args = ["--resume", str(killed)] if (killed / "config.toml").exists() else start
        process = command(*args, cache=cache)
        try:
            process.communicate(timeout=moments.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            saved += [path.name for path in (killed / "checkpoints").glob("0*")]
        else:  # it was faster than the kill: once more from the start, to be killed ten times in all
            assert process.returncode == 0
            assert_same_run(whole, killed)
            shutil.rmtree(killed)
    if (killed / "config.toml").exists():
        process = command("--resume", str(killed), cache=cache)
        assert process.communicate(timeout=300)[1] == ""
        assert_same_run(whole, killed)
    assert saved  # else nothing was ever resumed


# --- checkpoints that cannot be used ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with two checkpoints."""
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100}
    return train(configure("sac", env="gym/Pendulum-v1", **settings, out=str(tmp_path_factory.mktemp("run"))))


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_refused(copied, tmp_path):
    """The same shapes, another environment seed: nothing but the settings could tell."""
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "seed": 1}
    other = train(configure("sac", env="gym/Pendulum-v1", **settings, out=str(tmp_path / "other")))
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(other / "checkpoints", copied / "checkpoints")
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        resume(copied)
    assert read_run(copied).status["state"] == "finished"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_the_one_before_serves(copied, finished):
    last = Run.open(copied).checkpoints()[-1]
    data = bytearray((last / "arrays.safetensors").read_bytes())
    data[-5] ^= 1
    (last / "arrays.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"checksum .* is wrong\. Delete this directory to continue"):
        resume(copied)
    shutil.rmtree(last)
    resume(copied)
    assert_same_run(copied, finished)


def test_checkpoints_hold_no_code(finished):
    for path in Run.open(finished).checkpoints():
        assert sorted(file.name for file in path.iterdir()) == ["SHA256SUMS", "arrays.safetensors", "state.json"]
        json.loads((path / "state.json").read_bytes())


# --- several seeds ---------------------------------------------------------------------------------------


ONE_SEQUENCE = {"samples": 1, "proposals": 1, "elites": 1}
"""Of several sequences in a plan, two that are worth nearly the same change places by rounding."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("obac", {}),
        ("tdmpc2", ONE_SEQUENCE),
        ("sac, era-batch, learned residual", {}),
        ("fasttd3, repeats", {}),
        ("ppo, discrete", {}),
    ],
)
def test_seeds_in_lockstep_have_the_numbers_of_each_alone(name, more, tmp_path):
    """Compiled apart, they differ by rounding, and what grows of it in some updates."""
    settings = {**RUNS[name], "steps": 160, "checkpoint_every": 128, "log_every": 1, **more}
    configs = [configure(**settings, seed=seed, out=str(tmp_path / f"{seed}")).resolved() for seed in (3, 4)]
    together = _start(configs)
    for config, path in zip(configs, together, strict=True):
        alone = train(replace(config, out=str(tmp_path / f"alone-{config.seed}")))
        lines, expected = history(path), history(alone)
        assert [set(line) for line in lines] == [set(line) for line in expected]
        assert any("loss/actor" in line for line in lines)
        for line, wanted in zip(lines, expected, strict=True):
            assert line == pytest.approx(wanted, rel=5e-3, abs=5e-3)
    assert history(together[0]) != history(together[1])
    for path in together:
        shutil.rmtree(Run.open(path).checkpoints()[-1])
        shutil.copytree(path, tmp_path / "again" / path.name)
    again = _resume([tmp_path / "again" / path.name for path in together])
    for path, other in zip(together, again, strict=True):
        assert history(path) == history(other)


@pytest.mark.slow
def test_on_an_accelerator_seeds_advance_together_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "env": "gym/Pendulum-v1"}
    config = configure("sac", **settings, out=str(tmp_path))
    paths = train_seeds(config, [0, 1])
    whole = [history(path) for path in paths]
    assert train_seeds(config, [0, 1]) == paths  # finished: nothing to do
    assert [history(path) for path in paths] == whole
    for path in paths:
        shutil.rmtree(Run.open(path).checkpoints()[-1])
        (path / "status.json").unlink()
    assert train_seeds(config, [0, 1]) == paths
    assert [history(path) for path in paths] == whole
    assert all(read_run(path).status["state"] == "finished" for path in paths)
    with pytest.raises(ValueError, match=r"seed-0 was begun and others were not: give only seeds"):
        train_seeds(config, [0, 1, 2])
    one, other = (Run.open(path).checkpoints() for path in paths)
    # A kill between the saves of two seeds: of their last checkpoints, and of their first.
    for killed in (other[1:], [*one[1:], *other]):
        for checkpoint in killed:
            shutil.rmtree(checkpoint)
        for path in paths:
            (path / "status.json").unlink()
        assert train_seeds(config, [0, 1]) == paths
        assert [history(path) for path in paths] == whole
    shutil.rmtree(paths[1] / "checkpoints")
    for path in paths:
        (path / "status.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in common, their last steps are \[200, 0\]: resume each"):
        train_seeds(config, [0, 1])


@pytest.mark.slow
def test_seeds_in_processes_are_the_runs_of_each_and_go_on(tmp_path, monkeypatch, cache):
    """Of each alone in a process of its own: this one computes in another precision."""
    for name, value in compile_quickly(cache).items():
        monkeypatch.setenv(name, value)
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "env": "gym/Pendulum-v1"}
    config = configure("sac", **settings, out=str(tmp_path))
    paths = train_seeds(config, [0, 1])
    assert paths == [tmp_path / "seed-0", tmp_path / "seed-1"]
    alone = tmp_path / "alone"
    args = options_of({"agent": "sac", **settings, "seed": 1, "out": alone})
    assert command(*args, cache=cache).communicate()[1] == ""
    assert_same_run(paths[1], alone)
    before = [(path / "metrics.jsonl").read_bytes() for path in paths]
    assert train_seeds(config, [0, 1]) == paths  # finished: nothing to do
    assert [(path / "metrics.jsonl").read_bytes() for path in paths] == before


def test_seeds_that_were_begun_with_other_settings_are_not_passed_off(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "seed-0")
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "env": "gym/Pendulum-v1"}
    config = configure("sac", **settings, discount=0.5, out=str(tmp_path))
    with pytest.raises(ValueError, match=r"seed-0 was begun with discount=0\.99 \(now 0\.5\): give the same"):
        train_seeds(config, [0])


@pytest.mark.slow
def test_a_seed_that_fails_does_not_stop_the_others_and_none_outlives_its_parent(tmp_path, cache):
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "learning_rate": 1e30}
    args = options_of({"agent": "sac", "env": "gym/Pendulum-v1", **settings, "out": tmp_path / "failing"})
    process = command(*args, "--seeds", "0", "1", "2", cache=cache)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 3
    for seed in range(3):
        assert f"seed {seed} failed: " in errors
        assert read_run(tmp_path / "failing" / f"seed-{seed}").status["state"] == "failed"
    assert "failed, of 3 runs; the reasons are above" in errors

    settings = {**OFF_POLICY, "steps": 10**7, "checkpoint_every": 10**6}
    args = options_of({"agent": "sac", "env": "gym/Pendulum-v1", **settings, "out": tmp_path / "long"})
    process = command(*args, "--seeds", "0", "1", cache=cache)
    runs = [tmp_path / "long" / f"seed-{seed}" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(
        (run / "metrics.jsonl").exists() and b"loss/" in (run / "metrics.jsonl").read_bytes() for run in runs
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate()
    while any(read_run(run).status["state"] == "running" for run in runs):
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    for run in runs:
        assert read_run(run).status["state"] == "interrupted"
        assert Run.open(run).latest().step > 100


def test_the_same_seed_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"seeds=\[1, 1\] must be different"):
        train_seeds(configure("sac", out=str(tmp_path)), [1, 1])


# --- what goes wrong -------------------------------------------------------------------------------------


class Fragile(gymnasium.Env):
    """Breaks down at its 130th step, or at its third reset, in the way that `how` says."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, how="raise"):
        self.count, self.resets, self.how = 0, 0, how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        broken = self.how.startswith("reset") and self.resets == int(self.how[-1])
        return np.full(3, np.nan if broken else 0, np.float32), {}

    def step(self, action):
        self.count += 1
        if self.count == 130 and self.how == "raise":
            raise ArithmeticError("the bodies fly apart")
        if self.count == 130:
            return np.full(3, np.nan, np.float32), 0.0, False, False, {}
        return np.zeros(3, np.float32), 0.0, False, self.count % 50 == 0, {}


@pytest.fixture
def fragile():
    hows = ("raise", "nan", "reset 1", "reset 3")
    for i, how in enumerate(hows):
        gymnasium.register(f"Fragile-v{i}", Fragile, kwargs={"how": how})
    yield "gym/Fragile-v0"
    for i in range(len(hows)):
        del gymnasium.registry[f"Fragile-v{i}"]


@pytest.mark.slow
def test_a_simulator_that_breaks_is_named_and_nothing_is_lost(fragile, tmp_path):
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 60, "eval_every": 1000}
    with pytest.raises(SimulatorError, match=r"action 30 of episode 2: ArithmeticError: the bodies fly apart"):
        train(configure("sac", env=fragile, **settings, out=str(tmp_path / "run")))
    record = read_run(tmp_path / "run")
    assert record.status["state"] == "failed"
    assert "the bodies fly apart" in record.status["reason"]
    assert Run.open(record.path).latest().step == 120


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_an_observation_that_is_not_finite_is_named_before_anything_learns_from_it(agent, fragile, tmp_path):
    sizes = OFF_POLICY if agent == "sac" else {**ON_POLICY, "num_envs": 1}
    settings = {**sizes, "steps": 300, "eval_every": 1000}
    with pytest.raises(SimulatorError, match=r"NaN at action 30 of episode 2"):
        train(configure(agent, env="gym/Fragile-v1", **settings, out=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("agent", "env", "episode"),
    [("ppo", "gym/Fragile-v2", 0), ("sac", "gym/Fragile-v2", 0), ("sac", "gym/Fragile-v3", 2)],
)
def test_a_first_observation_that_is_not_finite_is_the_environments(agent, env, episode, fragile, tmp_path):
    sizes = OFF_POLICY if agent == "sac" else {**ON_POLICY, "num_envs": 1}
    settings = {**sizes, "steps": 300, "eval_every": 1000}
    with pytest.raises(SimulatorError, match=rf"^the simulator gave NaN at the reset of episode {episode}\b"):
        train(configure(agent, env=env, **settings, out=str(tmp_path / "run")))


@pytest.mark.slow
def test_a_simulator_that_breaks_in_an_evaluation_loses_no_step(fragile, tmp_path):
    """Its evaluations play 50 steps each: the third one, at step 100, breaks down."""
    settings = {**OFF_POLICY, "steps": 110, "checkpoint_every": 1000, "eval_every": 50, "random_steps": 10}
    with pytest.raises(SimulatorError, match=r"action 30 of the evaluation from seed \d+: ArithmeticError"):
        train(configure("sac", env=fragile, **settings, out=str(tmp_path / "run")))
    assert Run.open(tmp_path / "run").latest().step == 100


@pytest.mark.slow
def test_a_task_of_numbered_states_is_played_and_evaluated(tmp_path):
    settings = {**ON_POLICY, "steps": 64, "log_every": 64}
    path = train(configure("ppo-era-exact", env="gym/FrozenLake-v1", **settings, out=str(tmp_path / "run")))
    _, least = read_run(path).series("realised_entropy/min")
    assert (least >= 0.1 * np.log(4) - 1e-4).all()


def test_a_simulator_that_has_changed_is_not_continued_as_if_it_had_not(copied):
    shutil.rmtree(Run.open(copied).checkpoints()[-1])
    (last,) = Run.open(copied).checkpoints()
    checkpoint = Run.open(copied).latest()
    moved = {**checkpoint.arrays, "observation": checkpoint.arrays["observation"] + 1e-6}
    shutil.rmtree(last)
    Run.open(copied).save(checkpoint.step, moved, checkpoint.state)
    with pytest.raises(SimulatorError, match="lead the simulator elsewhere"):
        resume(copied)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("agent", ["sac", "tdmpc2", "ppo"])
def test_a_quantity_that_is_not_finite_stops_the_run_and_is_kept(agent, tmp_path):
    sizes = {"sac": OFF_POLICY, "tdmpc2": MODEL_BASED, "ppo": ON_POLICY}[agent]
    config = configure(
        agent, env="gym/Pendulum-v1", **sizes, steps=400, learning_rate=1e30, out=str(tmp_path / "run")
    )
    # any quantity may be the first that is not finite
    message = r"[\w/]+ is (nan|inf|-inf) at step \d+: the run stops here"
    with pytest.raises(FloatingPointError, match=f"^{message}"):
        train(config)
    status = read_run(tmp_path / "run").status
    assert status["state"] == "failed"
    assert re.match(f"FloatingPointError: {message}", status["reason"])
    (kept,) = (tmp_path / "run" / "failure").iterdir()
    header = json.loads((kept / "state.json").read_text())
    assert {"nan", "inf"} & set(header["state"]["quantities"].values())
    assert Run.open(tmp_path / "run").latest() is None or int(kept.name) > Run.open(tmp_path / "run").latest().step
    arrays = load_file(kept / "arrays.safetensors")
    assert "data/reward" in arrays
    assert any(name.startswith("agent/actor/") for name in arrays)


@pytest.mark.slow
def test_a_full_disk_is_named_and_what_was_saved_serves(tmp_path, cache):
    """A limit on the size of files stands for the disk: metrics grow past it before the run ends."""
    settings = {"agent": "sac", "env": "gym/Pendulum-v1", **OFF_POLICY, "log_every": 1, "steps": 1000}
    out = tmp_path / "run"
    args = options_of({**settings, "checkpoint_every": 150, "out": out})
    limited = 'ulimit -f 120; trap "" XFSZ; exec "$@"'  # kB: the first checkpoints fit, the last one does not
    nowhere = os.environ | compile_quickly("")  # compiled ones would not fit either
    train = [sys.executable, "-m", "entropyfloor.cli", "train", "control", *args]
    process = subprocess.run(
        ["bash", "-c", limited, "bash", *train], env=nowhere, capture_output=True, text=True, timeout=200
    )
    errors = process.stderr
    assert process.returncode == 3, errors
    assert errors.startswith("failed: [Errno 27] File too large")
    assert f"what was saved is in {out}" in errors
    assert errors.count("\n") == 1
    assert read_run(out).status["state"] == "failed"
    reached = Run.open(out).latest().step
    assert 0 < reached < 1000
    process = command("--resume", str(out), cache=cache)
    assert process.communicate(timeout=200)[1] == ""
    assert Run.open(out).latest().step == 1000


def test_ctrl_c_before_the_first_step_says_that_nothing_is_saved(tmp_path):
    config = configure("sac", env="gym/Pendulum-v1", **OFF_POLICY, out=str(tmp_path / "run")).resolved()
    trainer = build([config])
    trainer.evaluators = [
        lambda actor: os.kill(os.getpid(), signal.SIGINT) or {"return": 0.0, "realised_entropy": 0.0}
    ]
    with pytest.raises(KeyboardInterrupt, match="nothing is saved yet"):
        trainer.fit([Run.create(tmp_path / "run", {})])
    assert Run.open(tmp_path / "run").checkpoints() == []


# --- episodes that do not end ----------------------------------------------------------------------------


@pytest.mark.slow
def test_an_episode_of_an_evaluation_that_does_not_end_is_refused(tmp_path, monkeypatch):
    """CliffWalking ends at its goal only, to which no untrained policy walks."""
    monkeypatch.setattr(evaluator, "ENDLESS", 300)
    settings = {"env": "gym/CliffWalking-v1", **ON_POLICY, "steps": 64, "out": str(tmp_path / "run")}
    with pytest.raises(SimulatorError, match=r"not ended after 300 actions: .* needs --max-episode-steps\b"):
        train(configure("ppo", **settings))
    path = train(configure("ppo", **{**settings, "out": str(tmp_path / "limited")}, max_episode_steps=400))
    _, lengths = read_run(path).series("episode_length")
    assert lengths.tolist() == [400, 400]
    assert read_run(path).config["max_episode_steps"] == 400


class Slow(gymnasium.Env):
    """Sends this process a signal at a step of an evaluation, which is the second environment that is built."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    built, at, played = 0, None, 0

    def __init__(self):
        Slow.built += 1
        self.evaluates = Slow.built % 2 == 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.state = np.clip(self.state + 0.1 * action, -1, 1)
        if self.evaluates:
            Slow.played += 1
            if Slow.played == Slow.at:
                os.kill(os.getpid(), signal.SIGTERM)
        return self.state, -float(self.state[0] ** 2), False, False, {}


@pytest.mark.slow
@pytest.mark.parametrize(("at", "step"), [(10, 0), (70, 100), (160, 300)])
def test_an_evaluation_that_is_interrupted_is_left_at_once_and_done_by_the_resume(at, step, tmp_path, monkeypatch):
    """Evaluations play 50 steps each, at the steps 0, 100, 200 and 300, which is the last."""
    gymnasium.register("Slow-v0", Slow)
    settings = {**OFF_POLICY, "steps": 300, "eval_every": 100, "checkpoint_every": 150, "max_episode_steps": 50}
    config = configure("sac", env="gym/Slow-v0", **settings)
    try:
        whole = train(replace(config, out=str(tmp_path / "whole")))
        monkeypatch.setattr(Slow, "at", at)
        monkeypatch.setattr(Slow, "played", 0)
        part = tmp_path / "part"
        with pytest.raises(
            KeyboardInterrupt, match="nothing is saved yet" if step == 0 else f"saved at step {step}"
        ):
            train(replace(config, out=str(part)))
        assert Slow.played == at
        assert read_run(part).status["state"] == "interrupted"
        assert read_run(part).series("return")[0].tolist() == list(range(0, step, 100))
        resume(part)
    finally:
        del gymnasium.registry["Slow-v0"]
    assert history(whole) == history(part)
    for name, array in Run.open(whole).latest().arrays.items():
        np.testing.assert_array_equal(array, Run.open(part).latest().arrays[name])


@pytest.mark.slow
def test_an_evaluation_that_was_made_before_a_kill_is_not_due_again(tmp_path, monkeypatch):
    """The interrupt saved a checkpoint that says so, and a second one of the same step is never written."""
    gymnasium.register("Slow-v0", Slow)
    settings = {**OFF_POLICY, "steps": 300, "eval_every": 100, "checkpoint_every": 150, "max_episode_steps": 50}
    config = configure("sac", env="gym/Slow-v0", **settings, out=str(tmp_path / "run"))
    try:
        monkeypatch.setattr(Slow, "at", 70)
        monkeypatch.setattr(Slow, "played", 0)
        with pytest.raises(KeyboardInterrupt):
            train(config)
        run = Run.open(tmp_path / "run")
        assert run.latest().state["evaluation_due"]
        with run.recording():
            run.log(100, {"return": 0.0, "realised_entropy": 0.0})
        resume(run.path)
    finally:
        del gymnasium.registry["Slow-v0"]
    first, last = Run.open(run.path).checkpoints()
    assert int(first.name) == 150
    shutil.rmtree(last)
    assert "evaluation_due" not in Run.open(run.path).latest().state


class Broken(Slow):
    """Breaks in every evaluation from the moment of the signal on."""

    broken = False

    def step(self, action):
        if self.evaluates and Broken.broken:
            raise ArithmeticError("the bodies fly apart")
        if self.evaluates and Slow.played + 1 == Slow.at:
            Broken.broken = True
        return super().step(action)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "step"), [(70, 100), (160, 300)])
def test_an_evaluation_that_is_due_and_always_fails_is_tried_once(at, step, tmp_path, monkeypatch):
    """It was interrupted at a step before the end, and at the last one."""
    gymnasium.register("Broken-v0", Broken)
    monkeypatch.setattr(Broken, "broken", False)
    monkeypatch.setattr(Slow, "at", at)
    monkeypatch.setattr(Slow, "played", 0)
    settings = {**OFF_POLICY, "steps": 300, "eval_every": 100, "checkpoint_every": 150, "max_episode_steps": 50}
    out = tmp_path / "run"
    try:
        with pytest.raises(KeyboardInterrupt, match=f"saved at step {step}"):
            train(configure("sac", env="gym/Broken-v0", **settings, out=str(out)))
        for failing in range(step, 301, 100):  # each evaluation that is left fails, and stops the run once
            with pytest.raises(SimulatorError, match="the bodies fly apart"):
                resume(out)
            assert Run.open(out).latest().step == failing
        resume(out)
    finally:
        del gymnasium.registry["Broken-v0"]
    record = read_run(out)
    assert record.status["state"] == "finished"
    steps, returns = record.series("return")
    assert steps[np.isfinite(returns)].tolist() == list(range(0, step, 100))


@pytest.mark.slow
def test_a_seed_whose_evaluation_fails_does_not_lose_that_of_another(tmp_path):
    settings = {**OFF_POLICY, "steps": 200, "eval_every": 100, "env": "gym/Pendulum-v1"}
    configs = [configure("sac", **settings, seed=i, out=str(tmp_path / f"{i}")).resolved() for i in range(2)]
    trainer, runs = build(configs), [Run.create(Path(config.out), asdict(config)) for config in configs]
    whole, calls = trainer.evaluators[0], []

    def breaks_at_100(actor):
        calls.append(trainer.step)
        if trainer.step == 100:
            raise SimulatorError("the bodies fly apart")
        return whole(actor)

    trainer.evaluators[0] = breaks_at_100
    with pytest.raises(SimulatorError, match="the bodies fly apart"):
        trainer.fit(runs)
    assert calls == [0, 100]
    for run, finite in zip(runs, ([True, False], [True, True]), strict=True):
        steps, returns = read_run(run.path).series("return")
        assert (steps.tolist(), np.isfinite(returns).tolist()) == ([0, 100], finite)
        assert run.latest().step == 100
        assert "evaluation_due" not in run.latest().state


# --- environments of one's own ---------------------------------------------------------------------------

PROGRAM = """
import sys
import gymnasium
from own_env import Own
from entropyfloor.control.train import configure, train

class Here(Own):
    pass

if __name__ == "__main__":
    gymnasium.register("Own-v0", Own, max_episode_steps=9, kwargs={"goal": 0.5})
    gymnasium.register("Here-v0", Here, max_episode_steps=9)
    sizes = dict(hidden=8, batch_size=8, random_steps=10, steps=20, checkpoint_every=10, eval_episodes=1)
    for name in ("Own", "Here"):
        train(configure("sac", env=f"gym/{name}-v0", out=name, **sizes))
"""

OWN = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Own(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, goal=0.0):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.full(2, action[0], np.float32), self.goal, False, False, {}

def make_own():
    raise SystemExit("a run directory called me")
"""


@pytest.mark.slow
def test_a_run_of_a_registered_environment_is_resumed_and_evaluated_by_the_command(tmp_path, monkeypatch, cache):
    """Where its class is in a module; one that is defined in the program itself needs the program."""
    (tmp_path / "own_env.py").write_text(OWN)
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    here = os.environ | compile_quickly(cache)
    subprocess.run([sys.executable, "program.py"], check=True, capture_output=True, env=here)
    shutil.copytree("Own", "whole")
    shutil.rmtree(Run.open(Path("Own")).checkpoints()[-1])
    commands = [
        ["train", "control", "--resume", "Own"],
        ["evaluate", "Own", "--episodes", "2"],
        ["evaluate", "Here"],
    ]
    program = f"from entropyfloor.cli import main; print(*[main(args) for args in {commands}])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=here)
    assert done.stdout.splitlines()[-1] == "0 0 2", done.stderr
    assert_same_run(Path("whole"), Path("Own"))
    assert json.loads(Path("Own/evaluation.json").read_text())["return"]["episodes"] == [4.5, 4.5]
    assert done.stderr.startswith("error: environment 'gym/Here-v0' does not exist")
    assert "gym/my.module:Here-v0" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("own_env:make_own", "own_env:make_own is no environment"),
        ("os:system", "os:system is no environment"),
        ("own_env:Nothing", "module 'own_env' has no 'Nothing'"),
        ("no_such_module:Own", "module 'no_such_module' cannot be imported"),
        (None, r"registered='\[\]' does not say how 'gym/Own-v0' was registered"),
    ],
)
def test_a_run_directory_cannot_call_what_is_no_environment(place, message, tmp_path, monkeypatch):
    (tmp_path / "own_env.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    how = json.dumps({"entry_point": place, "kwargs": {}, "max_episode_steps": None} if place else [])
    with pytest.raises((ValueError, ImportError), match=message):
        registered.register("gym/Own-v0", how)
    sys.modules.pop("own_env", None)


@pytest.mark.parametrize("way", ["env", "registered"])
@pytest.mark.parametrize("place", ["in it", "above it", "linked"])
def test_a_run_directory_starts_no_code_of_its_own(way, place, finished, tmp_path, monkeypatch):
    path = shutil.copytree(finished, tmp_path / "runs" / "hostile")
    (path / "trap.py").write_text(OWN + "\nraise SystemExit('a run directory started me')\n")
    module = {"in it": "trap", "above it": "runs.hostile.trap", "linked": "link.trap"}[place]
    (tmp_path / "link").symlink_to(path)
    config = (path / "config.toml").read_text()
    if way == "env":
        config = re.sub("(?m)^env = .*", f'env = "gym/{module}:Own-v0"', config)
    else:
        how = json.dumps({"entry_point": f"{module}:Own", "kwargs": {}, "max_episode_steps": 9})
        config = re.sub("(?m)^env = .*", f"env = \"gym/Own-v0\"\nregistered = '{how}'", config)
    (path / "config.toml").write_text(config)
    monkeypatch.chdir(path if place == "in it" else tmp_path)
    for start in (evaluate, resume):
        with pytest.raises(ValueError, match=f"module '{module}' lies in the run directory"):
            start(path)


def test_what_compiles_is_said_instead_of_a_speed(tmp_path, capsys):
    settings = {**OFF_POLICY, "steps": 200, "env": "gym/Pendulum-v1", "out": str(tmp_path / "run")}
    train(configure("sac", **settings))
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("0/200 steps · return ")
    assert second == "100/200 steps · compiling the first update, for up to a minute"
    assert re.search(r" · (?P<rate>[\d.,]+) steps/s · ", last)
