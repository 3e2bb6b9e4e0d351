"""A trained policy at work: returns with intervals, its entropy beside its floor, and a film."""

from __future__ import annotations

import os
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from entropyfloor.control import seeding
from entropyfloor.control.config import set_
from entropyfloor.control.evaluator import Evaluator
from entropyfloor.control.train import build, load_config
from entropyfloor.control.trainer import make_env
from entropyfloor.runs import Run
from entropyfloor.runs.progress import Progress

RESAMPLES = 10_000
"""Of the bootstrap."""


def evaluate(
    path: Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    video: Path | None = None,
    max_episode_steps: int | None = None,
) -> str:
    """Play `episodes` with the mode action of the last checkpoint, and write `evaluation.json` into the run.

    Args:
        path: A run directory.
        episodes: How many.
        seed: Their seeds follow from it; training and its evaluations use others, whatever their seed.
        video: Film the first episode into this file, .mp4 (also where it has no ending) or .gif.
        max_episode_steps: Environment steps after which an episode is cut off, instead of the run's own limit.

    Returns:
        What was found, in words: the mean return with a 95 % bootstrap interval over episodes, and the entropy of
        the acting policy over visited states beside what was promised.

    Raises:
        ValueError: No run, no checkpoint, no episode, or a video of another kind.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    if video is not None:
        video = video if video.suffix else video.with_suffix(".mp4")
        if video.suffix not in (".mp4", ".gif"):
            raise ValueError(f"video={video} must end in .mp4 or .gif")
    if video is not None and "DISPLAY" not in os.environ and find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # the simulators read it when they are imported
    run = Run.open(path)
    config = load_config(run)
    checkpoint = run.trained()
    trainer = build([config])
    trainer.restore([checkpoint])
    env = make_env(config if max_episode_steps is None else replace(config, max_episode_steps=max_episode_steps))
    play = Evaluator(env, trainer.agent.distribution, [], set_(config.log_std_min), view=trainer.seeds[0].view)

    actor, played = trainer.state.actor, []
    with Progress(episodes, unit="episodes", every=1, evaluation="") as progress:
        film = _Film(env, video, config.action_repeat, progress)
        for i in range(episodes):
            number = seeding.episode(seed, seeding.PLAY_EPISODES, i)
            played.append(play.play(actor, number, film.take if video is not None and i == 0 else lambda: None))
            progress.advance(i + 1)
    env.close()  # which frees what drew the film
    returns = np.array([episode.total for episode in played])
    entropy, _ = play.measure(actor, np.concatenate([episode.observations for episode in played]))
    low, high = interval(returns)
    found: dict[str, Any] = {
        "step": checkpoint.step,
        "seed": seed,
        "return": {"mean": float(returns.mean()), "interval_95": [low, high], "episodes": returns.tolist()},
        "episode_length": float(np.mean([len(episode.observations) for episode in played])),
        "realised_entropy": {
            "mean": float(entropy.mean()),
            "min": float(entropy.min()),
            "q05": float(np.quantile(entropy, 0.05)),
        },
        **trainer.promise,
    }
    file = run.keep_evaluation(found)
    lines = [
        f"step {checkpoint.step:,}, {episodes} episodes",
        f"return            {returns.mean():.1f} [{low:.1f}, {high:.1f}], least {returns.min():.1f}, "
        f"most {returns.max():.1f}",
        f"realised entropy  {entropy.mean():.3f} nats on average, {entropy.min():.3f} at the least"
        + "".join(f" ({name.replace('_', ' ')} {value:.3f})" for name, value in trainer.promise.items()),
        f"written to        {file}",
    ]
    if video is not None:
        lines.append(film.save())
    return "\n".join(lines)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, by percentiles; of one value, that value twice."""
    index = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[index].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


class _Film:
    """Frames of an episode; a machine that cannot draw loses the film, not the evaluation."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], path: Path | None, action_repeat: int, progress: Progress
    ) -> None:
        self._env, self._path, self._progress = env, path, progress
        self._rate = min(env.metadata.get("render_fps", 30) / action_repeat, 50)  # as it was, or what players take
        self._frames: list[np.ndarray] = []
        self._failure: str | None = None

    def take(self) -> None:
        """A frame of where the simulator is."""
        if self._failure is None:
            try:
                self._frames.append(np.asarray(self._env.render()))
                self._progress.busy(0, "filming the first episode", f", {len(self._frames):,} frames")
            except Exception as error:
                self._failure = f"{type(error).__name__}: {error}"

    def save(self) -> str:
        """Write the file; a line that says where, or why not."""
        if self._failure is not None:  # of whatever kind: drivers fail in their own ways
            hint = "without a display, try MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            return f"no video         this machine cannot draw it ({self._failure}); {hint}"
        try:
            self._write()
        except Exception as error:
            return f"no video         {self._path} cannot be written ({type(error).__name__}: {error})"
        return f"video             {self._path}"

    def _write(self) -> None:
        from imageio import v3 as imageio

        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.stack(self._frames)
        if self._path.suffix == ".gif":
            imageio.imwrite(self._path, frames, duration=1000 / self._rate, loop=0)
        else:
            imageio.imwrite(self._path, frames, plugin="pyav", codec="libx264", fps=round(self._rate))
