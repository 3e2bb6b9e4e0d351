"""Normalised observations of SAC's family: whose moments they are, where they are applied, and how they resume."""

import shutil

import numpy as np
import pytest

from control import assert_same_run
from entropyfloor.control import load_policy, seeding
from entropyfloor.control.config import configure
from entropyfloor.control.envs import make
from entropyfloor.control.off_policy import OffPolicyCollector
from entropyfloor.control.train import build, resume, train
from entropyfloor.runs import Run, read_run

pytestmark = pytest.mark.usefixtures("cache")

TINY = {
    "networks": "simba",
    "hidden": 8,
    "critic_hidden": 8,
    "critic_blocks": 1,
    "batch_size": 16,
    "updates_per_step": 1,
    "random_steps": 20,
    "eval_episodes": 1,
}


@pytest.fixture
def played(tmp_path):
    """A trainer after 130 actions of Reacher, whose episodes take 50; what it acted in, and what it saw of it."""
    config = configure("sac", **TINY, env="gym/Reacher-v4", steps=1000, out=str(tmp_path))
    trainer = build([config.resolved()])
    raw, seen, act = [], [], trainer._act

    def recorded(actor, observation, *rest):
        seen.append((len(raw), observation))
        return act(actor, observation, *rest)

    trainer._act = recorded
    for _ in range(130):
        raw.append(trainer.collectors[0].episodes.observation)
        trainer.advance()
    return trainer, np.stack(raw), seen


def normalised(x, known):
    x, known = x.astype(np.float64), known.astype(np.float64)
    return ((x - known.mean(0)) / np.sqrt(known.var(0) + 1e-8)).clip(-10, 10)


@pytest.mark.slow
def test_the_moments_are_those_of_every_observation_that_was_acted_in(played):
    trainer, raw, _ = played
    arrays = trainer.collectors[0].arrays()
    assert arrays["moments/count"] == len(raw) == 130
    np.testing.assert_allclose(arrays["moments/mean"], raw.astype(np.float64).mean(0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(arrays["moments/variance"], raw.astype(np.float64).var(0), rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_it_acts_on_observations_normalised_with_themselves_included(played):
    _, raw, seen = played
    assert [count for count, _ in seen] == list(range(21, 131))  # before, actions were random
    for count, observation in seen:
        np.testing.assert_allclose(observation, normalised(raw[count - 1], raw[:count]), rtol=1e-5, atol=1e-6)
        assert observation.dtype == np.float32


def test_the_replay_is_raw_and_its_samples_are_normalised_by_what_is_known_now(played):
    trainer, raw, _ = played
    collector = trainer.collectors[0]
    np.testing.assert_array_equal(collector.replay.arrays()["observation"], raw)
    state = collector._rng.bit_generator.state
    batch = collector.sample(2, 8)
    collector._rng.bit_generator.state = state
    stored = collector.replay.sample(2, 8)
    for name in ("observation", "next_observation"):
        expected = normalised(getattr(stored, name), raw)
        np.testing.assert_allclose(getattr(batch, name), expected, rtol=1e-5, atol=1e-6)
        assert getattr(batch, name).dtype == np.float32
    for name in ("action", "reward", "terminated"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(stored, name))


def test_a_time_limit_is_stored_as_no_termination_with_the_last_observation_of_its_episode():
    collector = OffPolicyCollector(configure("sac", env="gym/Pendulum-v1", max_episode_steps=4).resolved())
    steps = [collector.play(collector.random_action()) for _ in range(9)]
    stored = collector.replay.arrays()
    assert [i for i, step in enumerate(steps) if step.truncated] == [3, 7]
    assert not stored["terminated"].any()
    np.testing.assert_array_equal(stored["next_observation"], [step.observation for step in steps])


def test_without_normalisation_there_are_no_moments(tmp_path):
    config = configure("sac", **TINY, normalise_observations=False, env="gym/Reacher-v4", out=str(tmp_path))
    collector = build([config.resolved()]).collectors[0]
    np.testing.assert_array_equal(collector.observe(), collector.episodes.observation)
    assert not any(name.startswith("moments") for name in collector.arrays())


RUNS = {
    "sac": {"agent": "sac", "env": "gym/Pendulum-v1"},
    "obac-era, bf16": {"agent": "obac-era", "env": "gym/Reacher-v4", "precision": "bf16", "replay_capacity": 70},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_run_bit_for_bit(name, tmp_path):
    every = {"steps": 300, "eval_every": 150, "log_every": 50, "checkpoint_every": 170, "seed": 3}
    whole = train(configure(**TINY, **RUNS[name], **every, out=str(tmp_path / "whole")))
    middle, end = Run.open(whole).checkpoints()
    assert (int(middle.name), int(end.name)) == (170, 300)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / end.name)
    assert Run.open(part).latest().arrays["moments/count"] == 170
    resume(part)
    assert_same_run(whole, part)
    assert Run.open(part).latest().arrays["moments/count"] == 300


@pytest.mark.slow
def test_an_evaluation_normalises_as_the_loaded_policy_does(tmp_path):
    every = {"steps": 60, "eval_every": 60, "log_every": 30, "seed": 1}
    run = train(configure("sac-era-exact", **TINY, env="gym/Reacher-v4", **every, out=str(tmp_path / "run")))
    policy, line = load_policy(run), read_run(run).lines[-1]
    env = make("gym/Reacher-v4")
    observation, _ = env.reset(seed=seeding.episode(1, seeding.EVAL_EPISODES, 0))
    total, states = 0.0, []
    for _ in range(50):
        states.append(observation)
        observation, reward, *_ = env.step(policy(observation))
        total += reward
    assert line["return"] == pytest.approx(total, rel=1e-5)
    assert line["realised_entropy"] == pytest.approx(policy.entropy(np.stack(states)).mean(), abs=1e-4)
    assert line["realised_entropy/min"] >= line["floor"] - 1e-3
    assert policy.normalise.moments.count == 60


@pytest.mark.slow
def test_simba_learns_to_swing_up(tmp_path):
    """Measured over the seeds 0 to 2: from -1682, -1844 and -1539 at the start to -173, -443 and -124."""
    sizes = {"hidden": 32, "critic_hidden": 64, "critic_blocks": 1, "batch_size": 128, "learning_rate": 1e-3}
    steps = {"steps": 4000, "eval_every": 4000, "eval_episodes": 5, "random_steps": 500, "updates_per_step": 1}
    every = {"log_every": 500, "checkpoint_every": 10_000}
    config = configure(
        "sac", networks="simba", env="gym/Pendulum-v1", **sizes, **steps, **every, out=str(tmp_path)
    )
    steps, returns = read_run(train(config)).series("return")
    assert steps.tolist() == [0, 4000]
    assert returns[0] < -1000
    assert returns[1] > -600
