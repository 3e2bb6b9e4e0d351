"""Audit of a policy in a file, of whatever library: its entropy at given observations, or in visited states."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from entropyfloor.audit import exported, gaussian, stable_baselines
from entropyfloor.audit.file_policy import FilePolicy
from entropyfloor.audit.logits import saturation_of_policy
from entropyfloor.audit.samples import Samples, Saturation, Spread
from entropyfloor.extras import brief
from entropyfloor.torch import functional as F


def policy(
    file: Path,
    *,
    observations: Path | None = None,
    env: str | None = None,
    episodes: int = 5,
    seed: int = 0,
    distribution: gaussian.DistributionName | Literal["categorical"] | None = None,
    outputs: tuple[str, ...] = (),
    std: tuple[float, ...] = (),
    std_from: Path | None = None,
    bounds: tuple[float, float] | None = None,
    trust: bool = False,
) -> Samples:
    """Measure a policy in a file: of Stable-Baselines3 or SBX (.zip), ONNX (.onnx), or TorchScript (.pt, .pth).

    Nothing that a .zip or .onnx holds is executed. The entropy of a `tanh` or `truncated` policy is that of the
    action in [-1, 1], of a `normal` one that of the Gaussian, before the environment clips it.

    Args:
        file: The policy.
        observations: File of observations as the policy's network takes them, after VecNormalize for example:
            .npy, .npz or .csv, one row each.
        env: Play this environment instead, by the mode action, such as gym/Pendulum-v1.
        episodes: Number of episodes in it.
        seed: Seed of the first episode.
        distribution: Distribution of the policy, where the file does not say it.
        outputs: What an ONNX or TorchScript file gives, in its order: loc, scale, log_scale, logits, or other. By
            default the names in the file, or loc and then scale.
        std: Standard deviation of each component of the action, or one for all, where the file gives only the
            mean.
        std_from: Checkpoint of rsl_rl to read it from.
        bounds: Range that the environment clips the actions of a normal policy to: by default that of each of its
            components in --env, or [-1, 1] for a file of entropyfloor export.
        trust: Run a TorchScript file, which is a program: it may read and write files.

    Raises:
        ValueError: The file, its policy or the observations cannot be read, or an option is missing; the message
            says which.
    """
    if not file.is_file():
        raise ValueError(f"{file} is no file: give a .zip, .onnx, .pt or .pth")
    if (observations is None) == (env is None):
        raise ValueError("give either --observations, a file, or --env, an environment to play")
    states = None if observations is None else read_observations(observations)
    if file.suffix == ".zip":
        if distribution or outputs or std or std_from or bounds:
            raise ValueError(f"{file} says itself what its distribution, outputs and bounds are: leave them out")
        read = stable_baselines.read(file)
    else:
        read = exported.read(
            file,
            distribution=distribution,
            outputs=outputs,
            std=exported.std_of(std, std_from),
            bounds=bounds,
            trust=trust,
        )
    if states is None:
        assert env is not None
        read, states, labels = _visited(read, env, episodes, seed)
    else:
        labels = [f"state {i}" for i in range(len(states))]
    return measure(read, states, labels)


def measure(read: FilePolicy, observations: np.ndarray, labels: list[str]) -> Samples:
    """The entropy of a policy at each observation."""
    parameters = read.at(observations)
    common: dict[str, Any] = {
        "model": read.model,
        "places": "states",
        "labels": labels,
        "floor": read.floor,
        "numbers": read.numbers,
    }
    if read.distribution == "categorical":
        [logits] = parameters
        if logits.shape[1] < 2:
            raise ValueError(f"{read.model} gives one logit: a policy over discrete actions has at least two")
        if not np.isfinite(logits).all():
            raise ValueError(f"{read.model} gives logits that are NaN or infinite: masked actions are not read")
        entropy = F.entropy_from_logits(torch.from_numpy(logits)).numpy()
        measured = "the policy over discrete actions"
        return Samples(measured=measured, entropy=entropy, **common, **saturation_of_policy(logits, read.floor))
    name, (loc, scale) = read.distribution, parameters
    if not (scale > 0).all():
        raise ValueError(f"{read.model} gives a standard deviation of {scale.min():g}: it must be above 0")
    known = read.low is not None and read.high is not None
    spread, unit = gaussian.spread(name, loc, scale), "the policy's action"
    saturated = None
    if name == "normal":
        space = "actions in the policy's own units, before they are clipped"
        if known:
            saturated = gaussian.saturated(name, loc, scale, read.low, read.high)  # type: ignore[arg-type]
    else:
        space = "actions in [-1, 1]"
        saturated = gaussian.saturated(name, loc, scale)
        unit = space
        if known:
            spread, unit = spread * 0.5 * (read.high - read.low), "the environment's action"  # type: ignore[operator]
    return Samples(
        measured=f"the {name} policy over {space}",
        entropy=gaussian.entropy(name, loc, scale),
        spread=Spread(spread, unit),
        saturation=None if saturated is None else Saturation(saturated, gaussian.MEANING),
        **common,
    )


# --- observations ----------------------------------------------------------------------------------------


def read_observations(file: Path) -> np.ndarray:
    """Observations `[N, obs]` in float32, from a .npy, .npz or .csv file.

    Raises:
        ValueError: There is no such file, or it holds something else.
    """
    readers = {".npy": _npy, ".npz": _npz, ".csv": _csv}
    if file.suffix not in readers or not file.is_file():
        raise ValueError(f"observations={file} must be a file that ends in .npy, .npz or .csv")
    try:
        array = readers[file.suffix](file)
        numbers: np.ndarray = np.asarray(array, np.float32)
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(f"observations={file} cannot be read: {brief(error)}") from None
    if numbers.ndim != 2 or not numbers.size:
        raise ValueError(f"observations={file} has shape {list(numbers.shape)}: it must be [N, obs], one row each")
    if not np.isfinite(numbers).all():
        raise ValueError(f"observations={file} has numbers that are NaN or infinite")
    return numbers


def _npy(file: Path) -> Any:
    return np.load(file, allow_pickle=False)  # which would execute what the file holds


def _npz(file: Path) -> Any:
    with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
        if not (names := list(arrays)):
            raise ValueError("it is empty")
        name = "observations" if "observations" in names else names[0]
        if name != "observations" and len(names) > 1:
            raise ValueError(f"it has {', '.join(names)}: name one of them observations")
        return arrays[name]


def _csv(file: Path) -> Any:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if not rows:
        raise ValueError("it is empty")
    numbers = [*map(_is_number, rows[0])]
    if any(numbers) and not all(numbers):
        raise ValueError("its first line has numbers and other cells: it must have all numbers, or only names")
    if not any(numbers):
        rows = rows[1:]
    return [[float(cell) for cell in row] for row in rows]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _visited(read: FilePolicy, env: str, episodes: int, seed: int) -> tuple[FilePolicy, np.ndarray, list[str]]:
    """The policy with the bounds of its actions, the states that its mode action visits, and their labels."""
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    from gymnasium.spaces import Discrete

    from entropyfloor.control.envs import make
    from entropyfloor.control.evaluator import Evaluator

    world = make(env)
    wanted = world.observation_space.shape[0]  # type: ignore[index]
    if read.observation_dim not in (None, wanted):
        raise ValueError(f"{env} observes {wanted} numbers, and {read.model} takes {read.observation_dim}")
    discrete, space = read.distribution == "categorical", world.action_space
    count: Any = space.n if isinstance(space, Discrete) else space.shape[0]  # type: ignore[index]
    takes = _actions(count, discrete=isinstance(space, Discrete))
    gives = _actions(read.at(np.zeros((1, wanted), np.float32))[0].shape[1], discrete=discrete)
    if takes != gives:
        raise ValueError(f"{env} takes {takes}, and {read.model} gives {gives}")
    if read.distribution == "normal" and read.low is None:
        own: Any = world.env.action_space  # of the environment as users make it, with its wrappers
        read = replace(read, low=own.low.ravel(), high=own.high.ravel())
    evaluator = Evaluator(
        world,
        lambda *_: None,  # type: ignore[arg-type]  # the file's policy acts, not one of ours
        [],
        log_std_min=0.0,
        player=lambda _: lambda _, observation: read.act(observation),
    )
    played = [evaluator.play(None, seed + i).observations for i in range(episodes)]
    world.close()
    labels = [f"episode {i}, step {t}" for i, states in enumerate(played) for t in range(len(states))]
    return read, np.concatenate(played), labels


def _actions(count: int, *, discrete: bool) -> str:
    return f"one of {count} actions" if discrete else f"{count}-dimensional actions"
