"""`entropyfloor evaluate`: what a trained policy does, in numbers and in pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from entropyfloor.cli import main
from entropyfloor.control.config import configure
from entropyfloor.control.evaluate import evaluate
from entropyfloor.control.train import resume, train
from entropyfloor.runs import Run, machine

pytestmark = pytest.mark.usefixtures("cache")

SIZES = {"hidden": 8, "eval_episodes": 1, "steps": 64, "checkpoint_every": 64}
AGENTS = {
    "sac-era-exact": {"env": "gym/Reacher-v4", "batch_size": 8, "random_steps": 32, "updates_per_step": 1},
    "ppo-era": {"env": "gym/CartPole-v1", "rollout_steps": 64, "minibatch_size": 32, "epochs": 1},
    "sac": {
        "env": "dmc/walker-walk",
        "batch_size": 8,
        "random_steps": 32,
        "updates_per_step": 1,
        "action_repeat": 8,
    },
}


@pytest.fixture(scope="module", params=AGENTS)
def run(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / request.param
    return train(configure(request.param, **SIZES, **AGENTS[request.param], out=str(path)))


@pytest.mark.slow_but_first
def test_returns_come_with_their_interval_and_entropy_with_its_floor(run, capsys):
    assert main(["evaluate", str(run), "--episodes", "3"]) == 0
    told = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    returns = found["return"]["episodes"]
    assert len(returns) == 3
    assert len(set(returns)) > 1
    assert found["return"]["mean"] == pytest.approx(np.mean(returns))
    low, high = found["return"]["interval_95"]
    rounding = 1e-12 * max(map(abs, returns))  # the mean of three equal numbers may not be that number
    assert min(returns) - rounding <= low <= np.mean(returns) <= high <= max(returns) + rounding
    assert found["realised_entropy"]["min"] <= found["realised_entropy"]["q05"]
    assert f"{np.mean(returns):.1f} [{low:.1f}, {high:.1f}]" in told
    if run.name == "sac-era-exact":
        assert found["floor"] == -1.0
        assert found["realised_entropy"]["min"] >= -1.0 - 1e-3
        assert "(floor -1.000)" in told
    if run.name == "ppo-era":
        assert found["realised_entropy"]["min"] >= found["floor"] == pytest.approx(0.1 * np.log(2))
    evaluate(run, episodes=3)
    assert json.loads((run / "evaluation.json").read_text())["return"] == found["return"]
    evaluate(run, episodes=3, seed=5)
    assert json.loads((run / "evaluation.json").read_text())["return"] != found["return"] or run.name == "ppo-era"


FILMS = [("sac-era-exact", "mp4"), ("sac-era-exact", "gif"), ("ppo-era", "gif"), ("sac", "mp4")]


@pytest.mark.slow
@pytest.mark.parametrize(("run", "suffix"), FILMS, indirect=["run"])
def test_an_episode_is_filmed(run, suffix, tmp_path):
    """In a process of its own, as people do it: a simulator chooses how to draw when it is imported."""
    video = tmp_path / "films" / f"episode.{suffix}"
    named = video.with_suffix("") if suffix == "mp4" else video
    told = subprocess.run(
        [sys.executable, "-m", "entropyfloor.cli", "evaluate", run, "--episodes", "1", "--video", named],
        capture_output=True,
        text=True,
    )
    assert (told.returncode, told.stderr) == (0, "")
    if "this machine cannot draw it" in told.stdout:
        assert not video.exists()
        pytest.skip(told.stdout.splitlines()[-1])
    assert told.stdout.startswith("0/1 episodes · filming the first episode\n")
    length = json.loads((run / "evaluation.json").read_text())["episode_length"]
    frames = imageio.imread(video, index=None) if suffix == "gif" else imageio.imread(video, plugin="pyav")
    assert len(frames) == pytest.approx(length, abs=1 if suffix == "mp4" else 0)
    assert frames.ndim == 4
    assert frames.std() > 1  # not a black screen


@pytest.mark.parametrize(
    ("options", "message"),
    [({"episodes": 0}, "episodes=0 must be at least 1"), ({"video": "film.avi"}, r"must end in \.mp4 or \.gif")],
)
def test_what_cannot_be_done_is_said_before_anything_is_played(options, message, tmp_path):
    if "video" in options:
        options = {"video": tmp_path / options["video"]}
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, **options)


@pytest.mark.slow_but_first
def test_neither_trainer_nor_simulator_state_nor_memory_is_needed(run, tmp_path, monkeypatch):
    """The unfinished episode would lead elsewhere, by 1e-3, and the replay would not fit."""
    evaluate(run, episodes=1)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    checkpoint = Run.open(copy).latest()
    name = "observation" if "observation" in checkpoint.arrays else "0/observation"
    shutil.rmtree(copy / "checkpoints")
    drifted = {**checkpoint.arrays, name: checkpoint.arrays[name] + np.float32(1e-3)}
    Run.open(copy).save(checkpoint.step, drifted, checkpoint.state)
    monkeypatch.setattr(machine, "SHARE", 1e-12)
    (copy / "evaluation.json").unlink()
    evaluate(copy, episodes=1)
    here, there = (json.loads((path / "evaluation.json").read_text()) for path in (copy, run))
    assert {**here, "machine": None} == {**there, "machine": None}
    with pytest.raises(ValueError, match=r"and this machine has 0\.0 GiB"):
        resume(copy)


@pytest.mark.slow_but_first
def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        evaluate(copy)


@pytest.mark.slow_but_first
def test_a_limit_of_its_own_cuts_what_an_evaluation_plays(run):
    evaluate(run, episodes=1)
    whole = json.loads((run / "evaluation.json").read_text())["episode_length"]
    assert main(["evaluate", str(run), "--episodes", "1", "--max-episode-steps", "8"]) == 0
    cut = json.loads((run / "evaluation.json").read_text())["episode_length"]
    assert cut == (1 if run.name == "sac" else 8) < whole
