"""Runs of every agent: what happens to them, and that nothing of it is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from entropyfloor.control.config import CONFIGS, PRESETS, configure
from entropyfloor.control.episodes import SimulatorError
from entropyfloor.control.train import _resume, _start, read_config, resume, train, train_seeds
from entropyfloor.runs import Run, read_run

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


def metrics_of(path):
    """What was logged, without the wall clock."""
    clock = ("seconds", "steps_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_run(path).lines]


def assert_same_run(one, other):
    assert metrics_of(one) == metrics_of(other)
    first, second = (Run.open(path).latest() for path in (one, other))
    assert (first.step, first.state) == (second.step, second.state)
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.dtype == second.arrays[name].dtype
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", PRESETS)
def test_a_run_directory_tells_its_settings_again(agent):
    config = configure(agent, env="gym/Reacher-v4", seed=3).resolved()
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    assert read_config({"domain": "control", **settings}) == config
    assert config.resolved() == config
    assert type(config) is CONFIGS[agent]


def test_unknown_settings_and_agents_are_named():
    with pytest.raises(ValueError, match=r"agent='td3' must be one of sac, "):
        configure("td3")
    with pytest.raises(ValueError, match=r"^ppo has no setting batch_size, tau: it has agent, "):
        configure("ppo", tau=0.1, batch_size=3)


# --- resuming --------------------------------------------------------------------------------------------

RUNS = {
    "obac": {"agent": "obac-era", "env": "gym/Reacher-v4", "steps": 400, "checkpoint_every": 250, **OFF_POLICY},
    "sac, era-batch, learned residual": {
        "agent": "sac-era",
        "head": "era-batch",
        "residual_entropy": "learned",
        "env": "gym/Reacher-v4",
        "steps": 400,
        "checkpoint_every": 250,
        **OFF_POLICY,
    },
    # CartPole's episodes end by themselves, in each environment at another time; 64 steps a rollout
    "ppo, discrete": {
        "agent": "ppo-era",
        "env": "gym/CartPole-v1",
        "steps": 512,
        "checkpoint_every": 256,
        **ON_POLICY,
    },
    "ppo, repeats": {
        "agent": "ppo",
        "env": "gym/Reacher-v4",
        "steps": 1024,
        "checkpoint_every": 500,
        "action_repeat": 2,
        **ON_POLICY,
    },
    "eapo": {"agent": "eapo", "env": "gym/Pendulum-v1", "steps": 512, "checkpoint_every": 256, **ON_POLICY},
}


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
    assert any("loss/actor" in line for line in metrics_of(whole) if line["step"] > int(first.name))
    assert any("train/return" in line for line in metrics_of(whole))
    assert_same_run(whole, part)


def command(*args, cache, **options):
    """The command in a process of its own; `cache` spares the second one the compilation of the first."""
    return subprocess.Popen(
        [sys.executable, "-m", "entropyfloor.cli", *args],
        env=os.environ
        | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def options_of(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sac-era-exact", "ppo-era"])
def test_ten_kills_change_nothing(agent, tmp_path, cache):
    """SIGKILL at ten random moments: the run ends as the one that was left alone."""
    sizes = {**OFF_POLICY, "steps": 3000} if agent.startswith("sac") else {**ON_POLICY, "steps": 30_000}
    settings = {"agent": agent, "env": "gym/Reacher-v4", "checkpoint_every": sizes["steps"] // 60, **sizes}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    process = command("train", "control", *options_of({**settings, "out": whole}), cache=cache)
    assert process.communicate(timeout=300)[1] == ""
    duration = time.monotonic() - begun
    moments, kills, start = random.Random(0), 0, options_of({**settings, "out": killed})
    while kills < 10:
        begun = (killed / "config.toml").exists()
        args = ["--resume", str(killed)] if begun else start
        process = command("train", "control", *args, cache=cache)
        try:
            process.communicate(timeout=moments.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:  # it was faster than the kill: once more from the start, to be killed ten times in all
            assert process.returncode == 0
            assert_same_run(whole, killed)
            shutil.rmtree(killed)
    if (killed / "config.toml").exists():
        process = command("train", "control", "--resume", str(killed), cache=cache)
        assert process.communicate(timeout=300)[1] == ""
        assert_same_run(whole, killed)


# --- checkpoints that cannot be used ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with two checkpoints."""
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100}
    return train(configure("sac", env="gym/Pendulum-v1", **settings, out=str(tmp_path_factory.mktemp("run"))))


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_checkpoint_of_other_settings_is_refused(copied, tmp_path):
    """The same shapes, another environment seed: nothing but the settings could tell."""
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "seed": 1}
    other = train(configure("sac", env="gym/Pendulum-v1", **settings, out=str(tmp_path / "other")))
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(other / "checkpoints", copied / "checkpoints")
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        resume(copied)
    assert read_run(copied).status["state"] == "finished"


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
        assert sorted(file.name for file in path.iterdir()) == ["arrays.safetensors", "state.json"]
        json.loads((path / "state.json").read_bytes())


# --- several seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["obac", "sac, era-batch, learned residual", "ppo, discrete"])
def test_seeds_in_lockstep_have_the_numbers_of_each_alone(name, tmp_path):
    """Compiled apart, they differ by rounding, and what grows of it in some updates."""
    settings = {**RUNS[name], "steps": 160, "checkpoint_every": 128, "log_every": 1}
    configs = [configure(**settings, seed=seed, out=str(tmp_path / f"{seed}")).resolved() for seed in (3, 4)]
    together = _start(configs)
    for config, path in zip(configs, together, strict=True):
        alone = train(replace(config, out=str(tmp_path / f"alone-{config.seed}")))
        lines, expected = metrics_of(path), metrics_of(alone)
        assert [set(line) for line in lines] == [set(line) for line in expected]
        assert any("loss/actor" in line for line in lines)
        for line, wanted in zip(lines, expected, strict=True):
            assert line == pytest.approx(wanted, rel=5e-3, abs=5e-3)
    assert metrics_of(together[0]) != metrics_of(together[1])
    for path in together:
        shutil.rmtree(Run.open(path).checkpoints()[-1])
        shutil.copytree(path, tmp_path / "again" / path.name)
    again = _resume([tmp_path / "again" / path.name for path in together])
    for path, other in zip(together, again, strict=True):
        assert metrics_of(path) == metrics_of(other)


def test_seeds_in_processes_are_the_runs_of_each_and_go_on(tmp_path, cache):
    """Of each alone in a process of its own: this one computes in another precision."""
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 100, "env": "gym/Pendulum-v1"}
    config = configure("sac", **settings, out=str(tmp_path))
    paths = train_seeds(config, [0, 1])
    assert paths == [tmp_path / "seed-0", tmp_path / "seed-1"]
    alone = tmp_path / "alone"
    args = options_of({"agent": "sac", **settings, "seed": 1, "out": alone})
    assert command("train", "control", *args, cache=cache).communicate()[1] == ""
    assert_same_run(paths[1], alone)
    before = [(path / "metrics.jsonl").read_bytes() for path in paths]
    assert train_seeds(config, [0, 1]) == paths  # finished: nothing to do
    assert [(path / "metrics.jsonl").read_bytes() for path in paths] == before


def test_the_same_seed_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"seeds=\[1, 1\] must be different"):
        train_seeds(configure("sac", out=str(tmp_path)), [1, 1])


# --- what goes wrong -------------------------------------------------------------------------------------


class Fragile(gymnasium.Env):
    """Breaks down at its 130th step."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self):
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        self.count += 1
        if self.count == 130:
            raise ArithmeticError("the bodies fly apart")
        return np.zeros(3, np.float32), 0.0, False, self.count % 50 == 0, {}


@pytest.fixture
def fragile():
    gymnasium.register("Fragile-v0", Fragile)
    yield "gym/Fragile-v0"
    del gymnasium.registry["Fragile-v0"]


def test_a_simulator_that_breaks_is_named_and_nothing_is_lost(fragile, tmp_path):
    settings = {**OFF_POLICY, "steps": 200, "checkpoint_every": 60, "eval_every": 1000}
    with pytest.raises(SimulatorError, match=r"action 30 of episode 2: ArithmeticError: the bodies fly apart"):
        train(configure("sac", env=fragile, **settings, out=str(tmp_path / "run")))
    record = read_run(tmp_path / "run")
    assert record.status["state"] == "failed"
    assert "the bodies fly apart" in record.status["reason"]
    assert Run.open(record.path).latest().step == 120


@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_a_quantity_that_is_not_finite_stops_the_run_and_is_kept(agent, tmp_path):
    sizes = OFF_POLICY if agent == "sac" else ON_POLICY
    config = configure(
        agent, env="gym/Pendulum-v1", **sizes, steps=400, learning_rate=1e30, out=str(tmp_path / "run")
    )
    with pytest.raises(FloatingPointError, match=r"is (nan|inf|-inf) at step \d+: the run stops here"):
        train(config)
    (kept,) = (tmp_path / "run" / "failure").iterdir()
    header = json.loads((kept / "state.json").read_text())
    assert {"nan", "inf"} & set(header["state"]["quantities"].values())
    assert Run.open(tmp_path / "run").latest() is None or int(kept.name) > Run.open(tmp_path / "run").latest().step
    from safetensors.numpy import load_file

    arrays = load_file(kept / "arrays.safetensors")
    assert "data/reward" in arrays
    assert any(name.startswith("agent/actor/") for name in arrays)


def test_a_full_disk_is_named_and_what_was_saved_serves(tmp_path, cache):
    """A limit on the size of files stands for the disk: metrics grow past it before the run ends."""
    settings = {"agent": "sac", "env": "gym/Pendulum-v1", **OFF_POLICY, "log_every": 1, "steps": 1000}
    out = tmp_path / "run"
    args = options_of({**settings, "checkpoint_every": 150, "out": out})
    limited = 'ulimit -f 120; trap "" XFSZ; exec "$@"'  # kB: the first checkpoints fit, the last one does not
    nowhere = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}  # compiled programs would not fit either
    train = [sys.executable, "-m", "entropyfloor.cli", "train", "control", *args]
    process = subprocess.run(
        ["bash", "-c", limited, "bash", *train], env=nowhere, capture_output=True, text=True, timeout=200
    )
    errors = process.stderr
    assert process.returncode == 1, errors
    assert errors.startswith("failed: [Errno 27] File too large")
    assert f"what was saved is in {out}" in errors
    assert errors.count("\n") == 1
    assert read_run(out).status["state"] == "failed"
    reached = Run.open(out).latest().step
    assert 0 < reached < 1000
    process = command("train", "control", "--resume", str(out), cache=cache)
    assert process.communicate(timeout=200)[1] == ""
    assert Run.open(out).latest().step == 1000


def test_ctrl_c_before_the_first_step_says_that_there_is_nothing(tmp_path):
    config = configure("sac", env="gym/Pendulum-v1", **OFF_POLICY, out=str(tmp_path / "run")).resolved()
    from entropyfloor.control.train import build

    trainer = build([config])
    trainer.evaluators = [
        lambda actor: os.kill(os.getpid(), signal.SIGINT) or {"return": 0.0, "realised_entropy": 0.0}
    ]
    with pytest.raises(KeyboardInterrupt, match="before the first step"):
        trainer.fit([Run.create(tmp_path / "run", {})])
    assert Run.open(tmp_path / "run").checkpoints() == []
