"""The loop of FastTD3 and its kin: what is stored, noise and moments, memory, and that a run learns."""

import numpy as np
import pytest

from entropyfloor.control import parallel
from entropyfloor.control.config import configure
from entropyfloor.control.envs import make
from entropyfloor.control.normalise import RunningMoments
from entropyfloor.control.parallel import ParallelCollector
from entropyfloor.control.train import build, train
from entropyfloor.runs import read_run
from run_files import history

pytestmark = pytest.mark.usefixtures("cache")

TINY = {"hidden": 8, "critic_hidden": 8, "atoms": 11, "batch_size": 16, "num_envs": 6, "env": "gym/Hopper-v4"}


def collector_of(**settings):
    return ParallelCollector(configure("fasttd3", **{**TINY, **settings}).resolved())


def play(collector, count):
    """Some steps, with the noise before and after each."""
    found = []
    for _ in range(count):
        before = collector.noise
        found.append((before, collector.play(collector.random_actions()), collector.noise))
    return found


def test_noise_is_drawn_again_where_an_episode_ends_and_nowhere_else():
    collector = collector_of(noise_min=0.1, noise_max=0.3)
    ends = 0
    for before, steps, after in play(collector, 60):
        ended = steps.terminated | steps.truncated
        np.testing.assert_array_equal(before != after, ended)
        ends += ended.sum()
    assert ends > 5
    drawn = np.concatenate(
        [noise for _, _, noise in play(collector_of(noise_min=0.1, noise_max=0.3, seed=1), 400)]
    )
    assert 0.1 <= drawn.min() < 0.12
    assert 0.28 < drawn.max() <= 0.3
    assert (collector_of(noise_max=0.0, noise_min=0.0).noise == 0).all()


def test_what_is_stored_is_what_happened():
    """Of environment 2, played by hand: the last observation of an episode is its own, not the next one's."""
    collector = collector_of(max_episode_steps=7)
    found = [steps for _, steps, _ in play(collector, 30)]
    episode, env, observation = 0, make(TINY["env"], max_episode_steps=7), None
    for steps in found:
        if observation is None:
            seed = parallel.seeding.episode(0, parallel.seeding.TRAIN_EPISODES, 2, episode)
            observation, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(steps.observation[2], observation)
        following, reward, terminated, truncated, _ = env.step(steps.action[2])
        np.testing.assert_array_equal(steps.next_observation[2], following)
        assert steps.reward[2] == np.float32(reward)
        assert (steps.terminated[2], steps.truncated[2]) == (terminated, truncated)
        observation, episode = (None, episode + 1) if terminated or truncated else (following, episode)
    assert any(steps.truncated[2] for steps in found)
    assert episode == 4
    assert len(collector.returns) == 24


def test_observations_are_normalised_by_all_that_were_acted_on():
    collector, seen = collector_of(), []
    for _ in range(20):
        seen.append(collector._pool.observations)
        view = collector.observe()
        collector.play(collector.random_actions())
    moments = RunningMoments((11,))
    moments.update(np.concatenate(seen))
    np.testing.assert_allclose(view.observation, moments.normalise(seen[-1]), atol=1e-5)
    mean, deviation = collector.normalise.scaling()
    assert mean.dtype == deviation.dtype == np.float32
    np.testing.assert_allclose(mean, moments.mean, atol=1e-6)
    np.testing.assert_allclose(deviation, np.sqrt(moments.variance + 1e-8), rtol=1e-5)
    plain = collector_of(normalise_observations=False)
    np.testing.assert_array_equal(plain.observe().observation, plain._pool.observations)


@pytest.mark.slow
def test_steps_are_those_of_all_environments_and_updates_follow_them():
    settings = {
        "steps": 120,
        "random_steps": 36,
        "actions_per_update": 2,
        "updates_per_step": 4,
        "policy_delay": 2,
    }
    trainer = build([configure("fasttd3", **TINY, **settings, replay_capacity=50).resolved()])
    assert trainer.memory.steps.reward.shape == (9, 6)  # 54 transitions: as many rows as hold 50
    made = []
    for _ in range(4):
        metrics, _ = trainer.advance()
        made.append((trainer.step, int(trainer.memory.added), metrics is not None))
    assert made == [(12, 2, False), (24, 4, False), (36, 6, True), (48, 8, True)]
    assert int(trainer.state.critic_optimiser[0].count) == 8
    assert int(trainer.state.actor_optimiser[0].count) == 4


@pytest.mark.parametrize(("seeds", "most"), [(1, 8_490_566), (2, 2_830_188)])  # a checkpoint copies one
def test_a_replay_that_does_not_fit_is_refused_before_it_is_allocated(seeds, most, monkeypatch):
    monkeypatch.setattr("entropyfloor.runs.machine._memory", lambda: 10**9)
    config = configure("fasttd3", **TINY, steps=10**8, replay_capacity=10**7 * 6).resolved()
    with pytest.raises(
        ValueError, match=r"^60,000,000 transitions in the replay need [\d.]+ GiB, and this machine has"
    ) as error:
        ParallelCollector(config, seeds)
    assert str(error.value).endswith(f"lower --replay-capacity to at most {most}")


class Accelerator:
    platform = "gpu"

    def memory_stats(self):
        return {"bytes_limit": 10**6}


def test_a_device_has_memory_of_its_own(monkeypatch):
    monkeypatch.setattr(parallel.jax, "local_devices", lambda: [Accelerator()])
    message = r"need 0\.0 GiB, and this device has 0\.0 GiB for them: lower --replay-capacity to at most 8490$"
    with pytest.raises(ValueError, match=message):
        collector_of(replay_capacity=9_000)
    config = configure("fasttd3", **TINY, replay_capacity=9_000).resolved()
    assert parallel.replay_rows(config, (11, 3), seeds=1, devices=2 * [Accelerator()]) == 1_500


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path):
    settings = {
        **TINY,
        "steps": 120,
        "random_steps": 30,
        "updates_per_step": 2,
        "eval_episodes": 1,
        "log_every": 30,
    }
    paths = [
        train(configure("fastsac-era", **settings, env_processes=processes, out=str(tmp_path / str(processes))))
        for processes in (1, 2)
    ]
    lines, others = map(history, paths)
    assert lines == others
    assert any("loss/actor" in line for line in lines)


LEARN = {
    "env": "gym/Pendulum-v1",
    "hidden": 64,
    "critic_hidden": 128,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "num_envs": 4,
    "updates_per_step": 2,
    "policy_delay": 1,
    "random_steps": 1000,
    "v_min": -500.0,
    "v_max": 50.0,
    "discount": 0.97,
    "tau": 0.02,
    "weight_decay": 0.0,
    "steps": 12_000,
    "eval_every": 12_000,
    "eval_episodes": 10,
    "log_every": 1000,
    "checkpoint_every": 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["fasttd3", "fastsac", "fastsac-era"])
def test_it_learns_to_swing_up(agent, tmp_path):
    head = {"head": "era-floor"} if agent == "fastsac-era" else {}
    path = train(configure(agent, **LEARN, **head, out=str(tmp_path / agent)))
    _, returns = read_run(path).series("return")
    assert returns[0] < -1000
    assert returns[-1] > -400
