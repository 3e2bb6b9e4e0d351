"""Evaluation of a trained policy: returns with intervals, its entropy beside its floor, and a film."""

from __future__ import annotations

import os
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entropyfloor.control import seeding
from entropyfloor.control.agents.build import aim, player
from entropyfloor.control.config import required
from entropyfloor.control.envs import make, registered
from entropyfloor.control.episodes import Env
from entropyfloor.control.evaluator import Evaluator
from entropyfloor.control.load import Policy, load_policy
from entropyfloor.control.threads import limit_threads
from entropyfloor.runs import Run
from entropyfloor.runs.checkpoint import run_directory
from entropyfloor.runs.progress import Progress
from entropyfloor.runs.statistics import bootstrap_interval


def evaluate(
    run: Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    video: Path | None = None,
    max_episode_steps: int | None = None,
) -> str:
    """Play episodes with a trained agent, without exploration, and write `evaluation.json` into the run.

    Args:
        run: Run directory, whose last checkpoint is evaluated, or a directory in its `checkpoints`.
        episodes: Number of episodes.
        seed: Seed of the episodes; training and its evaluations use others, whatever their seed.
        video: Film the first episode into this file, .mp4 (also where it has no ending) or .gif.
        max_episode_steps: Number of environment steps after which an episode is cut off, instead of the run's own
            limit.

    Returns:
        A summary: the mean return with a 95 % bootstrap interval over episodes, and the entropy of the acting
        policy over visited states beside its floor or target.

    Raises:
        ValueError: No run, no checkpoint, no episode, or a video of another kind.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    if video is not None:
        video = video if video.suffix else video.with_suffix(".mp4")
        if video.suffix not in (".mp4", ".gif"):
            raise ValueError(f"video={video} must end in .mp4 or .gif")
        if "DISPLAY" not in os.environ and find_library("EGL"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # the simulators read it when they are imported
    policy, evaluator, env = open_evaluator(run, max_episode_steps)

    played = []
    with Progress(episodes, unit="episodes", every=1, evaluation="") as progress:
        film = None if video is None else _Film(env, video, policy.config.action_repeat, progress)
        for i in range(episodes):
            number = seeding.episode(seed, seeding.PLAY_EPISODES, i)
            watch = film.take if film is not None and i == 0 else lambda: None
            played.append(evaluator.play(policy.actor, number, watch))
            progress.advance(i + 1)
    env.close()  # which frees what drew the film
    returns = np.array([episode.total for episode in played])
    entropy, _ = evaluator.measure(policy.actor, np.concatenate([episode.observations for episode in played]))
    low, high = bootstrap_interval(returns)
    aims = aim(policy.agent)
    results: dict[str, Any] = {
        "step": policy.step,
        "seed": seed,
        "return": {"mean": float(returns.mean()), "interval_95": [low, high], "episodes": returns.tolist()},
        "episode_length": float(np.mean([len(episode.observations) for episode in played])),
        "realised_entropy": {
            "mean": float(entropy.mean()),
            "min": float(entropy.min()),
            "q05": float(np.quantile(entropy, 0.05)),
        },
        **aims,
    }
    file = Run.open(run_directory(run)).keep_evaluation(results)
    lines = [
        f"step {policy.step:,}, {episodes} episodes",
        f"return            {returns.mean():.1f} [{low:.1f}, {high:.1f}], least {returns.min():.1f}, "
        f"most {returns.max():.1f}",
        f"realised entropy  {entropy.mean():.3f} nats on average, {entropy.min():.3f} at the least"
        + "".join(f" ({name.replace('_', ' ')} {value:.3f})" for name, value in aims.items()),
        f"written to        {file}",
    ]
    if film is not None:
        lines.append(film.save())
    return "\n".join(lines)


def open_evaluator(run: Path, max_episode_steps: int | None = None) -> tuple[Policy, Evaluator, Env]:
    """The policy of a run, and what plays it on an environment of its own.

    Args:
        run: Run directory, or a directory in its `checkpoints`.
        max_episode_steps: As in `evaluate`.

    Raises:
        ValueError: No run, or no checkpoint.
    """
    registered.register_again(Run.open(run_directory(run)))
    policy = load_policy(run)
    config = policy.config
    limit_threads(config.threads)
    limit = config.max_episode_steps if max_episode_steps is None else max_episode_steps
    env = make(config.env, **replace(config, max_episode_steps=limit).env_options())
    log_std_min = required(config.log_std_min)
    evaluator = Evaluator(
        env, policy.distribution, [], log_std_min, normalise=policy.normalise, player=player(policy.agent)
    )
    return policy, evaluator, env


class _Film:
    """Frames of an episode. Where they cannot be drawn, there is no film, and the evaluation goes on."""

    def __init__(self, env: Env, path: Path, action_repeat: int, progress: Progress) -> None:
        self._env, self._path, self._progress = env, path, progress
        self._rate = min(env.metadata.get("render_fps", 30) / action_repeat, 50)  # players show 50 frames a second
        self._frames: list[np.ndarray] = []
        self._failure: str | None = None

    def take(self) -> None:
        """Take a frame of the simulator."""
        if self._failure is None:
            try:
                self._frames.append(np.asarray(self._env.render()))
                self._progress.busy(0, "filming the first episode", f", {len(self._frames):,} frames")
            except Exception as error:
                self._failure = f"{type(error).__name__}: {error}"

    def save(self) -> str:
        """Write the file; returns a line that says where it is, or why there is none."""
        if self._failure is not None:  # of whatever kind: drivers fail in their own ways
            hint = "without a display, try MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            return f"no video          this machine cannot draw it ({self._failure}); {hint}"
        try:
            self._write()
        except Exception as error:
            return f"no video          {self._path} cannot be written ({type(error).__name__}: {error})"
        return f"video             {self._path}"

    def _write(self) -> None:
        from imageio import v3 as imageio

        self._path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.stack(self._frames)
        if self._path.suffix == ".gif":
            imageio.imwrite(self._path, frames, duration=1000 / self._rate, loop=0)
        else:
            imageio.imwrite(self._path, frames, plugin="pyav", codec="libx264", fps=round(self._rate))
