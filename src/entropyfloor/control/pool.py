"""Many environments of one task, stepped together: in this process, or in several."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.control.envs import make, registered
from entropyfloor.control.episodes import Env, Episodes, SimulatorError
from entropyfloor.control.seeding import TRAIN_EPISODES, episode


class PoolStep(NamedTuple):
    """Results of one action in each environment."""

    reward: np.ndarray  # [N], float32
    terminated: np.ndarray  # [N], bool
    truncated: np.ndarray  # [N], bool
    observation: np.ndarray  # [N, obs]: at the end of an episode its last one


class Pool:
    """Environments in this process, stepped in turn.

    Each plays episodes of its own, whose seeds follow from `seed`, the number of the environment and that of the
    episode: neither the size of the pool nor its processes change them.

    Args:
        envs: The environments.
        seed: Seed of the run.
        first: Number of the first environment.
    """

    def __init__(self, envs: Sequence[Env], seed: int, first: int = 0) -> None:
        seeds = [partial(episode, seed, TRAIN_EPISODES, first + i) for i in range(len(envs))]
        self._episodes = [Episodes(*pair) for pair in zip(envs, seeds, strict=True)]
        self._names = [str(first + i) for i in range(len(envs))]
        self.returns: list[float] = []
        """Returns of the episodes that ended since the list was last emptied."""

    @property
    def observations(self) -> np.ndarray:
        """What to act on next, `[N, obs]`."""
        return np.stack([episodes.observation for episodes in self._episodes])

    def step(self, actions: np.ndarray) -> PoolStep:
        """One action in each environment; those whose episode ends begin the next one."""
        steps = [episodes.step(action) for episodes, action in zip(self._episodes, actions, strict=True)]
        for episodes in self._episodes:
            self.returns += episodes.returns
            episodes.returns.clear()
        reward = np.array([step.reward for step in steps], np.float32)
        terminated = np.array([step.terminated for step in steps], bool)
        truncated = np.array([step.truncated for step in steps], bool)
        return PoolStep(reward, terminated, truncated, np.stack([step.observation for step in steps]))

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint, each with the number of its environment."""
        return {
            f"{number}/{name}": value
            for number, episodes in zip(self._names, self._episodes, strict=True)
            for name, value in episodes.arrays().items()
        }

    def state(self) -> list[dict[str, Any]]:
        """The rest of a checkpoint, one entry for each environment."""
        return [episodes.state() for episodes in self._episodes]

    def restore(self, state: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """Continue from the state and the arrays of another pool, by playing its episodes again.

        Raises:
            SimulatorError: The same seeds and actions lead to other observations.
        """
        for number, episodes, where in zip(self._names, self._episodes, state, strict=True):
            episodes.restore(where, {name: arrays[f"{number}/{name}"] for name in ("actions", "observation")})


class ProcessPool:
    """As `Pool`, with the environments shared out among processes, which step at the same time.

    Args:
        name: Name of the environment.
        options: Arguments of `envs.make`.
        num_envs: Number of environments.
        workers: Number of processes.
        seed: Seed of the run.
    """

    def __init__(self, name: str, options: dict[str, Any], num_envs: int, workers: int, seed: int) -> None:
        context = get_context("spawn")
        bounds = [num_envs * i // workers for i in range(workers + 1)]
        self._parts = [slice(*pair) for pair in pairwise(bounds)]
        self._pipes: list[Connection] = []
        described = registered.describe(name)
        for part in self._parts:
            pipe, other = context.Pipe()
            work = (other, name, described, options, seed, part.start, part.stop)
            context.Process(target=_serve, args=work, daemon=True, name="environments").start()
            other.close()
            self._pipes.append(pipe)
        self.observations: np.ndarray = np.concatenate(self._all("observations"))
        self.returns: list[float] = []

    def step(self, actions: np.ndarray) -> PoolStep:
        """One action in each environment; those whose episode ends begin the next one."""
        answers = self._all("step", *[(actions[part],) for part in self._parts])
        self.observations = np.concatenate([observations for _, observations, _ in answers])
        for _, _, returns in answers:
            self.returns += returns
        return PoolStep(*(np.concatenate(parts) for parts in zip(*(step for step, _, _ in answers), strict=True)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint, each with the number of its environment."""
        return {name: value for arrays in self._all("arrays") for name, value in arrays.items()}

    def state(self) -> list[dict[str, Any]]:
        """The rest of a checkpoint, one entry for each environment."""
        return [entry for entries in self._all("state") for entry in entries]

    def restore(self, state: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """Continue from the state and the arrays of another pool, by playing its episodes again."""
        own = {name: value for name, value in arrays.items() if name.partition("/")[0].isdigit()}
        self._all("restore", *[(state[part], own) for part in self._parts])
        self.observations = np.concatenate(self._all("observations"))

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()

    def _all(self, method: str, *args: tuple[Any, ...]) -> list[Any]:
        """Answers of all processes."""
        try:
            for pipe, arg in zip(self._pipes, args or [()] * len(self._pipes), strict=True):
                pipe.send((method, arg))
            answers = [pipe.recv() for pipe in self._pipes]
        except (EOFError, ConnectionError):
            raise SimulatorError("a process of environments ended by itself: does it have memory?") from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def pool_of(
    name: str, options: dict[str, Any], num_envs: int, seed: int, *, first: Env, workers: int = 1
) -> Pool | ProcessPool:
    """A pool of `num_envs` environments, in this process or in `workers`; `first` is one that is built already."""
    if workers > 1:
        return ProcessPool(name, options, num_envs, min(workers, num_envs), seed)
    return Pool([first, *(make(name, **options) for _ in range(num_envs - 1))], seed)


def _serve(
    pipe: Connection, name: str, described: str | None, options: dict[str, Any], seed: int, first: int, end: int
) -> None:
    """Answer calls of a pool until its pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    if described is not None:
        registered.register(name, described)
    pool: Pool | None = None
    try:
        while True:
            method, args = pipe.recv()
            try:
                pool = pool or Pool([make(name, **options) for _ in range(first, end)], seed, first)
                answer: Any = getattr(pool, method)
                answer = answer(*args) if callable(answer) else answer
                if method == "step":
                    answer = answer, pool.observations, list(pool.returns)
                    pool.returns.clear()
            except Exception as error:
                answer = error
            pipe.send(answer)
    except (EOFError, ConnectionError):  # the parent has closed the pipe, or has ended
        return
