"""The loop on the device, against one in Python over the same simulator; resuming, seeds, devices, evaluation."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from control import assert_same_run
from entropyfloor.control import load_policy, seeding
from entropyfloor.control.agents.fast import View
from entropyfloor.control.config import configure
from entropyfloor.control.evaluate import evaluate
from entropyfloor.control.evaluator import Evaluator
from entropyfloor.control.export import export
from entropyfloor.control.normalise import VARIANCE_FLOOR, RunningMoments
from entropyfloor.control.on_device import DeviceTrainer, Moments, merge
from entropyfloor.control.parallel import learner
from entropyfloor.control.ring import Steps
from entropyfloor.control.train import _resume, _start, build, resume, train
from entropyfloor.report import write_report
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.resume import begin
from run_files import history
from tiny_simulator import AGENT, ENVS, LIMIT, ROWS, TINY, Point, install

pytestmark = pytest.mark.usefixtures("cache", "point")


@pytest.fixture
def point(monkeypatch):
    install(monkeypatch)


def trainer_of(**settings):
    return build([configure(AGENT, **{**TINY, **settings}).resolved()])


class Loop:
    """The environments of a trainer, one after another, by a simulator that is not vectorised."""

    def __init__(self, trainer):
        self.trainer, simulator = trainer, Point()
        self.reset, self.step = jax.jit(simulator.reset), jax.jit(simulator.step)
        self.host, self.act = (seeding.key(trainer.config.seed, name) for name in (seeding.HOST, seeding.ACT))
        self.states, self.noise = [None] * ENVS, np.zeros(ENVS, np.float32)
        self.ages, self.totals, self.ended = [0] * ENVS, [0.0] * ENVS, [True] * ENVS
        self.returns, self.moments = [], RunningMoments((3,))

    def advance(self):
        """One step of each, as `Steps` holds it."""
        at, actor = np.uint32(self.trainer.step), self.trainer.state.actor
        begin_key, random_key = jax.random.split(jax.random.fold_in(self.host, at))
        reset_key, noise_key = jax.random.split(begin_key)
        noise = jax.random.uniform(noise_key, (ENVS,), "float32", 0.1, 0.3)
        for i, key in enumerate(jax.random.key_data(jax.random.split(reset_key, ENVS))):
            if self.ended[i]:
                self.states[i], self.ages[i], self.totals[i], self.noise[i] = self.reset(key), 0, 0.0, noise[i]
        before = np.stack([state.obs for state in self.states])
        self.moments.update(before)
        actions = jax.random.uniform(random_key, (ENVS, 2), "float32", -1, 1)
        if at >= self.trainer.config.random_steps:
            view = View(self.moments.normalise(before), self.noise.copy())
            actions = self.trainer.agent.act(actor, view, jax.random.fold_in(self.act, at))
        self.states = [self.step(*pair) for pair in zip(self.states, actions, strict=True)]
        self.ages = [age + 1 for age in self.ages]
        terminated = np.array([bool(state.done) for state in self.states])
        truncated = np.array(self.ages) == LIMIT
        self.ended = terminated | truncated
        following, reward = (np.stack([getattr(s, name) for s in self.states]) for name in ("obs", "reward"))
        self.totals = [total + r for total, r in zip(self.totals, reward, strict=True)]
        self.returns += [total for total, ended in zip(self.totals, self.ended, strict=True) if ended]
        return before, actions, reward, terminated, truncated, following


@pytest.mark.slow
def test_it_stores_what_a_loop_in_python_does():
    """Random actions, then those of a policy that learns from it, with each environment's noise and moments."""
    trainer = trainer_of(log_every=ENVS)
    assert isinstance(trainer, DeviceTrainer)
    loop, ends, drawn = Loop(trainer), np.zeros(2, int), 0
    for i in range(25):
        noise = loop.noise.copy()
        wanted, state = loop.advance(), jax.tree.map(np.copy, trainer.state)
        drawn += (noise != loop.noise).sum()
        metrics, _ = trainer.advance()
        assert trainer.step == int(trainer.memory.ring.added) * ENVS == (i + 1) * ENVS
        assert (metrics is None) == (i < 9)
        for name, column, expected in zip(Steps._fields, trainer.memory.ring.steps, wanted, strict=True):
            np.testing.assert_allclose(
                column[i % ROWS], expected, rtol=1e-5, atol=1e-5, err_msg=f"{name} of step {i}"
            )
        np.testing.assert_array_equal(trainer.memory.players.noise, loop.noise)
        mean, variance = trainer.memory.moments.mean, trainer.memory.moments.variance
        np.testing.assert_allclose(mean, loop.moments.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance, loop.moments.variance, rtol=1e-5)
        ends += wanted[3].sum(), (wanted[4] & ~wanted[3]).sum()
    assert (ends > 2).all()  # episodes that terminated, and that were truncated
    assert drawn > 20
    collector = trainer.collectors[0]
    assert len(collector.returns) == len(loop.returns)
    assert np.sum(collector.returns) == pytest.approx(np.sum(loop.returns), rel=1e-5)
    np.testing.assert_allclose(
        collector.normalise.scaling()[1], np.sqrt(loop.moments.variance + VARIANCE_FLOOR), rtol=1e-5
    )
    # The last updates are those of the state before, from the replay and the moments of now.
    key = jax.random.fold_in(seeding.key(trainer.config.seed, seeding.UPDATE), np.uint32(trainer.step))
    data = trainer.memory.ring, loop.moments.scaling()
    wanted_state, _ = jax.jit(learner(trainer.config, trainer.agent))(state, data, key)
    for leaf, expected in zip(jax.tree.leaves(trainer.state), jax.tree.leaves(wanted_state), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_loop_is_left_where_there_is_something_to_do_and_compiled_once():
    trainer = trainer_of(log_every=7 * ENVS)
    ends = []
    while trainer.step < trainer.config.steps:
        trainer.advance()
        ends.append(trainer.step // ENVS)
    assert ends == [7, 14, 15, 21, 28, 30]  # each 7th step and the evaluations
    assert trainer._run._cache_size() == 1
    assert int(trainer.state.critic_optimiser[0].count) == 2 * 21


@pytest.mark.slow
def test_the_replay_is_written_in_place():
    trainer = trainer_of(replay_capacity=2**17, steps=2**17)
    arguments = trainer.state, trainer.memory, trainer._keys, (np.uint32(0), np.uint32(10 * ENVS))
    memory = trainer._run.lower(*arguments).compile().memory_analysis()
    replay = sum(column.nbytes for column in trainer.memory.ring.steps)
    assert memory.alias_size_in_bytes > replay > 4_000_000
    assert memory.temp_size_in_bytes < replay / 10


@pytest.mark.slow
def test_where_the_loop_is_left_changes_nothing():
    one, other = trainer_of(log_every=ENVS), trainer_of(log_every=30 * ENVS, eval_every=30 * ENVS)
    for trainer in (one, other):
        while trainer.step < trainer.config.steps:
            trainer.advance()
    for first, second in zip(*(jax.tree.leaves((t.state, t.memory)) for t in (one, other)), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        (AGENT, {}),
        ("fasttd3", {"normalise_observations": False, "actions_per_update": 2}),
        ("fastsac", {"policy_delay": 2}),
        ("fastsac-era", {"head": "era-batch", "residual_entropy": "learned"}),
    ],
)
def test_a_resumed_run_is_the_same_run_bit_for_bit(agent, settings, tmp_path):
    settings = {**TINY, **settings, "checkpoint_every": 16 * ENVS}
    whole, part = train(configure(agent, **settings, out=str(tmp_path / "whole"))), tmp_path / "part"
    first, last = Run.open(whole).checkpoints()
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / last.name)
    assert int(first.name) == 16 * ENVS
    resume(part)
    assert any("loss/actor" in line for line in history(part) if line["step"] > int(first.name))
    assert any("train/return" in line for line in history(whole))
    assert_same_run(whole, part)


@pytest.mark.slow
def test_an_interrupted_run_is_saved_and_goes_on_with_the_evaluation_that_was_due(tmp_path, monkeypatch):
    settings = {**TINY, "checkpoint_every": 30 * ENVS}
    whole, part = train(configure(AGENT, **settings, out=str(tmp_path / "whole"))), tmp_path / "part"
    advance = DeviceTrainer.advance

    def interrupted(trainer):
        found = advance(trainer)
        if trainer.step == 15 * ENVS:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(DeviceTrainer, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt, match="saved at step 90;"):
        train(configure(AGENT, **settings, out=str(part)))
    assert read_run(part).series("return")[0].tolist() == [0]
    resume(part)
    assert_same_run(whole, part)


@pytest.mark.slow
def test_a_restored_replay_comes_from_the_host(monkeypatch, tmp_path):
    """One device need not have room for the replay of several."""
    config = configure(AGENT, **TINY, out=str(tmp_path / "run")).resolved()
    trainer, run = build([config]), begin(config, domain="control", names=2)
    trainer.step = ENVS
    trainer.save([run])
    place, kinds = trainer._place, set()

    def spy():
        kinds.update(map(type, jax.tree.leaves((trainer.state, trainer.memory))))
        place()

    monkeypatch.setattr(trainer, "_place", spy)
    trainer.restore([run.latest()])
    assert kinds == {np.ndarray}
    assert isinstance(trainer.memory.ring.steps.reward, jax.Array)


def test_the_moments_are_those_of_all_batches():
    """Features of any size, beside those of the host in float64."""
    batches = np.random.default_rng(0).normal(size=(50, 32, 4)) * [1e-3, 1.0, 1e3, 0.0] + [0.0, 3.0, 1e3, 0.1]
    moments, exact = trainer_of().memory.moments, RunningMoments((4,))
    moments = Moments(moments.batches, *jnp.broadcast_to(jnp.stack(moments[1:])[:, :1], (2, 4)))
    for batch in batches.astype(np.float32):
        moments = merge(moments, batch)
        exact.update(batch)
        np.testing.assert_allclose(moments.mean, exact.mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.variance, exact.variance, rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_seeds_in_lockstep_have_the_numbers_of_each_alone(tmp_path):
    configs = [configure(AGENT, **TINY, seed=seed, out=str(tmp_path / str(seed))).resolved() for seed in (3, 4)]
    together = _start(configs)
    for config, path in zip(configs, together, strict=True):
        alone = train(configure(AGENT, **TINY, seed=config.seed, out=str(tmp_path / f"alone-{config.seed}")))
        for line, wanted in zip(history(path), history(alone), strict=True):
            assert line == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert history(together[0]) != history(together[1])
    for path in together:
        shutil.copytree(path, tmp_path / "again" / path.name)
        shutil.rmtree(Run.open(tmp_path / "again" / path.name).checkpoints()[-1])
    for path, again in zip(together, _resume([tmp_path / "again" / path.name for path in together]), strict=True):
        assert history(path) == history(again)


@pytest.mark.slow
def test_a_quantity_that_is_not_finite_stops_the_run_and_is_kept(tmp_path):
    config = configure(AGENT, **TINY, out=str(tmp_path / "run")).resolved()
    trainer = build([config])
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), trainer.state.critics)
    trainer.state = trainer.state._replace(critics=broken)
    trainer._place()
    with pytest.raises(FloatingPointError, match=r"^loss/\w+ is nan at step 60: the run stops here"):
        trainer.fit([begin(config, domain="control", names=2)])
    (kept,) = (tmp_path / "run" / "failure").iterdir()
    arrays = load_file(kept / "arrays.safetensors")
    assert {"data/mean", "agent/log_alpha"} <= set(arrays)


@pytest.mark.slow
def test_its_runs_are_evaluated_loaded_exported_and_reported(tmp_path):
    run = train(configure(AGENT, **TINY, out=str(tmp_path / "run")))
    assert "5 episodes" in evaluate(run, episodes=5)
    policy = load_policy(run)
    observation = np.array([0.3, -0.2, 1.0])
    assert policy(observation).shape == (2,)
    assert policy.entropy(observation) == pytest.approx(policy.floor, abs=1e-3)
    assert "policy.onnx" in export(run, tmp_path / "policy.onnx")
    assert policy.normalise.moments is not None
    assert policy.normalise.moments.count == 30 * ENVS
    lines = [line for line in read_run(run).lines if "return" in line]
    assert [line["step"] for line in lines] == [0, 15 * ENVS, 30 * ENVS]
    assert all(line["realised_entropy/min"] > line["floor"] - 1e-3 for line in lines)
    assert write_report([run], out=tmp_path / "report").is_file()


@pytest.mark.slow
def test_episodes_of_an_evaluation_are_those_that_are_played_one_by_one():
    trainer = trainer_of(eval_episodes=4)
    while trainer.step < 15 * ENVS:
        trainer.advance()
    at_once = trainer.evaluators[0]
    for seed, episode in zip(at_once._seeds, at_once.play_all(trainer.state.actor, at_once._seeds), strict=True):
        alone = Evaluator.play(at_once, trainer.state.actor, seed)
        assert episode.total == pytest.approx(alone.total, rel=1e-5)
        np.testing.assert_allclose(episode.observations, alone.observations, rtol=1e-4, atol=1e-5)
        assert 1 <= len(episode.observations) <= LIMIT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_repeat": 2}, "action_repeat=2: fastsac-era-exact applies each action once in playground/Point"),
        ({"env": "playground/Pint"}, "'playground/Pint' does not exist: did you mean playground/Point"),
        ({"backend": "envpool"}, "backend='envpool' was checked for"),
        ({"env_args": '{"action_repeat": 2}'}, "action_repeat=2: .*; a longer ctrl_dt makes their steps longer"),
        ({"env": "gym/Pendulum-v1", "num_envs": 5000}, "num_envs=5000 must be at most 4096 in gym/Pendulum-v1"),
    ],
)
def test_what_it_does_not_do_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(**settings)


def test_simulators_that_do_not_fit_are_refused_before_they_are_allocated(monkeypatch):
    class State(NamedTuple):
        obs: jax.Array
        reward: jax.Array
        done: jax.Array
        contacts: jax.Array

    reset = Point.reset
    monkeypatch.setattr(Point, "reset", lambda self, key: State(*reset(self, key), jnp.zeros(10_000)))
    monkeypatch.setattr("entropyfloor.runs.machine._memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"^100 simulators need .* lower --num-envs to at most \d\d$"):
        trainer_of(num_envs=100, replay_capacity=100)


@pytest.mark.parametrize(("name", "value"), [("num_envs", 6), ("batch_size", 18)])
def test_devices_have_equal_shares(name, value, monkeypatch):
    devices = 4 * jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    with pytest.raises(ValueError, match=f"^{name}={value} must be a multiple of the 4 devices$"):
        trainer_of(**{"num_envs": 8, name: value})


@pytest.mark.slow
def test_two_devices_give_what_one_gives(tmp_path):
    """Where actions are random, every bit; then updates, whose sums over a batch are rounded apart."""
    flags = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
    script, out = Path(__file__).with_name("tiny_simulator.py"), tmp_path / "out.npz"
    subprocess.run([sys.executable, script, out], env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=300)
    saved = np.load(out)
    names = [name.removeprefix("1/") for name in saved if name.startswith("1/")]
    assert {name.split("/")[0] for name in names} == {"random", "end"}
    for name in names:
        one, two = saved[f"1/{name}"], saved[f"2/{name}"]
        if name.startswith("random/"):
            np.testing.assert_array_equal(one, two, err_msg=name)
        else:
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_task_of_mujoco_playground_is_trained_and_evaluated(tmp_path):
    """In a process of its own: the other tests compute in float64 wherever they can, as its users do not."""
    pytest.importorskip("mujoco_playground", reason="MuJoCo Playground is not installed")
    settings = "--num-envs 4 --steps 80 --random-steps 40 --batch-size 8 --hidden 8 --critic-hidden 8 --atoms 11"
    others = "--updates-per-step 1 --log-every 40 --eval-every 80 --eval-episodes 2 --max-episode-steps 15"
    out = tmp_path / "run"
    task = ["--agent", "fastsac-era", "--head", "era-floor", "--env", "playground/CartpoleBalance"]
    command = ["train", "control", *task, *settings.split(), *others.split(), "--out", str(out)]
    for args in (command, ["evaluate", str(out), "--episodes", "2"]):
        done = subprocess.run([sys.executable, "-m", "entropyfloor.cli", *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warp" not in done.stdout
    lines = read_run(out).lines
    assert [line["episode_length"] for line in lines if "return" in line] == [15.0, 15.0]
    assert all(10 < line["return"] <= 15 for line in lines if "return" in line)
    assert any("loss/critic" in line for line in lines)
    steps = Run.open(out).latest().arrays
    assert steps["memory/ring/steps/truncated"].sum() == 4
    assert json.loads((out / "machine.json").read_text())["versions"]["playground"]
