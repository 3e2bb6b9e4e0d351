"""The trainer: act, store, update; evaluate, log, save; continue exactly where a run stopped.

An exact continuation needs the simulator's state too, and simulators do not agree on how to save it. So every
episode has its own seed, which follows from the run's seed and the episode's number, and a checkpoint keeps the
actions since the episode began: replayed from its seed, they lead any deterministic simulator to the same state.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from gymnasium import spaces

from entropyfloor import targets
from entropyfloor.control import heads, networks
from entropyfloor.control.agents.sac import SAC
from entropyfloor.control.config import NETWORKS, ControlConfig
from entropyfloor.control.envs import make
from entropyfloor.control.progress import Progress
from entropyfloor.control.replay import Replay, Transition
from entropyfloor.control.rollout import Evaluator
from entropyfloor.runs import Checkpoint, Run

__all__ = ["ControlConfig", "Trainer", "build_agent", "resume", "train"]

T = TypeVar("T")
TRAIN_EPISODES, EVAL_EPISODES, HOST, ACT, UPDATE, INIT = range(6)
"""Streams of random numbers of one run; each follows from the seed and its own number."""


def train(config: ControlConfig) -> Path:
    """Train an agent from the start.

    Returns:
        The run directory.
    """
    config = config.resolved()
    trainer = Trainer(config)  # before the directory: what cannot be built should leave nothing behind
    assert config.out is not None
    run = Run.create(Path(config.out), {"domain": "control", **asdict(config)})
    trainer.fit(run)
    return Path(config.out)


def resume(path: Path) -> Path:
    """Continue the run in `path` from its last checkpoint, or from the start if it has none.

    Returns:
        The run directory.
    """
    run = Run.open(path)
    known = {k: v for k, v in run.config.items() if k in ControlConfig.__dataclass_fields__}
    trainer = Trainer(ControlConfig(**known).resolved())
    if (checkpoint := run.resume()) is not None:
        trainer.restore(checkpoint)
    del checkpoint  # its replay is copied
    trainer.fit(run)
    return path


def build_agent(config: ControlConfig, action_dim: int) -> SAC:
    """The agent that a resolved config describes."""
    target_entropy = targets.resolve(_set(config.target_entropy), action_dim)
    policy = heads.make_policy(
        _set(config.head),
        _set(config.distribution),
        action_dim=action_dim,
        target_entropy=target_entropy + config.residual_entropy,
        log_std_min=_set(config.log_std_min),
        log_std_max=_set(config.log_std_max),
    )
    nets, hidden = NETWORKS[config.settings], (config.hidden, config.hidden)
    return SAC(
        networks.GaussianActor(action_dim, hidden, nets["activation"], nets["actor_layer_norm"]),
        networks.Critics(hidden, nets["activation"], nets["critic_layer_norm"]),
        policy,
        actor_optimiser=optax.adam(config.learning_rate),
        critic_optimiser=optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
        alpha_optimiser=optax.adam(config.learning_rate),
        entropy=_set(config.entropy),
        target_entropy=target_entropy,
        initial_alpha=config.alpha,
        discount=config.discount,
        tau=config.tau,
    )


class Trainer:
    """One run in progress.

    Args:
        config: A resolved config.
    """

    def __init__(self, config: ControlConfig) -> None:
        limit_threads(config.threads)
        self.config = config
        options = {"action_repeat": config.action_repeat, "ignore_termination": config.ignore_termination}
        self.env, eval_env = (make(config.env, **options) for _ in range(2))  # type: ignore[arg-type]
        if not isinstance(self.env.action_space, spaces.Box):
            raise ValueError(f"{config.env} has discrete actions: {config.agent} needs continuous ones")
        (obs_dim,), (action_dim,) = self.env.observation_space.shape or (), self.env.action_space.shape

        self.rng = np.random.default_rng([config.seed, HOST])
        self.replay = Replay(min(config.replay_capacity, config.steps), obs_dim, action_dim, self.rng)
        self.agent = agent = build_agent(config, action_dim)
        self.state = agent.init(self._key(INIT), obs_dim, action_dim)
        self.evaluate = Evaluator(
            eval_env,
            agent.distribution,
            [self._episode_seed(EVAL_EPISODES, i) for i in range(config.eval_episodes)],
            _set(config.log_std_min),
        )
        self.promise = {}  # what the entropy is shown beside
        if heads.promises_floor(_set(config.head)):
            self.promise = {"floor": agent.target_entropy}
        elif config.entropy == "auto":
            self.promise = {"target_entropy": agent.target_entropy}

        act_key, update_key = self._key(ACT), self._key(UPDATE)
        self._act = jax.jit(
            lambda actor, observation, step: agent.distribution(actor, observation).sample(
                seed=jax.random.fold_in(act_key, step)
            )
        )
        self._update = jax.jit(
            lambda state, batches, step: agent.update_many(state, batches, jax.random.fold_in(update_key, step)),
            donate_argnums=0,
        )
        self.step = 0
        self.episode = 0
        self.actions: list[np.ndarray] = []  # of the episode in progress
        self.observation, _ = self.env.reset(seed=self._episode_seed(TRAIN_EPISODES, 0))

    def fit(self, run: Run) -> None:
        """Train to the end. Ctrl-C and SIGTERM save a checkpoint first; a second one stops at once."""
        config, metrics = self.config, {}
        clock = _Clock(self.step)
        with run.recording(), _interruptible() as interrupted, Progress(config.steps) as progress:
            if self.step == 0:
                self._evaluate(run, progress)
            while self.step < config.steps and not interrupted.is_set():
                self._interact()
                if self.step >= config.random_steps:
                    batches = self.replay.sample(config.updates_per_step, config.batch_size)
                    self.state, metrics = self._update(self.state, batches, np.uint32(self.step))
                    self._check_finite(metrics)
                progress.advance(self.step)
                if self._every(config.log_every) and metrics:
                    values = {name: float(value) for name, value in metrics.items()}
                    run.log(self.step, {**values, "steps_per_second": clock.rate(self.step)})
                if self._every(config.eval_every) or self.step >= config.steps:
                    self._evaluate(run, progress)
                if self._every(config.checkpoint_every):
                    self.save(run)
            if self.step > 0:
                self.save(run)
            if interrupted.is_set():
                raise KeyboardInterrupt(
                    f"saved at step {self.step:,}; continue with: entropyfloor train control --resume {run.path}"
                )

    def save(self, run: Run) -> None:
        """Write everything that `restore` needs, unless it is written."""
        arrays = {f"agent/{name}": np.asarray(leaf) for name, leaf in _named_leaves(self.state)}
        arrays |= {f"replay/{name}": column for name, column in self.replay.arrays().items()}
        arrays["actions"] = np.asarray(self.actions, np.float32).reshape(-1, *_shape(self.env.action_space))
        state = {"episode": self.episode, "added": self.replay.added, "rng": self.rng.bit_generator.state}
        run.save(self.step, arrays, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a run with the same config."""
        arrays, state = checkpoint.arrays, checkpoint.state
        leaves = []
        for name, leaf in _named_leaves(self.state):
            array = arrays[f"agent/{name}"]
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                found, needed = f"{array.dtype}{array.shape}", f"{leaf.dtype}{leaf.shape}"
                raise ValueError(f"checkpoint: {name} is {found}, this run needs {needed}")
            leaves.append(jax.numpy.asarray(array))
        self.state = jax.tree.unflatten(jax.tree.structure(self.state), leaves)
        self.replay.load({name: arrays[f"replay/{name}"] for name in Transition._fields}, state["added"])
        self.rng.bit_generator.state = state["rng"]
        self.step, self.episode, self.actions = checkpoint.step, state["episode"], list(arrays["actions"])
        self.observation, _ = self.env.reset(seed=self._episode_seed(TRAIN_EPISODES, self.episode))
        for action in self.actions:
            self.observation, *_ = self.env.step(action)

    def _interact(self) -> None:
        """Take one action, keep the transition, and begin the next episode if this one is over."""
        if self.step < self.config.random_steps:
            action = self.rng.uniform(-1.0, 1.0, _shape(self.env.action_space)).astype(np.float32)
        else:
            action = np.asarray(self._act(self.state.actor, self.observation, np.uint32(self.step)))
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.replay.add(Transition(self.observation, action, reward, terminated, observation))
        self.observation = observation
        self.actions.append(action)
        self.step += self.config.action_repeat
        if terminated or truncated:
            self.episode += 1
            self.actions = []
            self.observation, _ = self.env.reset(seed=self._episode_seed(TRAIN_EPISODES, self.episode))

    def _evaluate(self, run: Run, progress: Progress) -> None:
        metrics = self.evaluate(self.state.actor) | self.promise
        run.log(self.step, metrics)
        progress.report(self.step, metrics)

    def _every(self, interval: int) -> bool:
        """Whether the last action passed a multiple of `interval`."""
        return self.step % interval < self.config.action_repeat

    def _check_finite(self, metrics: dict[str, jax.Array]) -> None:
        for name in ("loss/critic", "loss/actor"):
            if not math.isfinite(value := float(metrics[name])):
                raise FloatingPointError(f"{name} is {value} at step {self.step}: the run stops here")

    def _key(self, stream: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), stream)

    def _episode_seed(self, stream: int, episode: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, stream, episode]).generate_state(1)[0])


def limit_threads(threads: int) -> None:
    """Keep XLA to `threads` CPU threads, unless `XLA_FLAGS` or `NPROC` says otherwise already.

    XLA reads both when it computes for the first time in a process: later calls change nothing.
    """
    if threads > 0:
        os.environ.setdefault("NPROC", str(threads))
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")


class _Clock:
    """Steps per second since the last question."""

    def __init__(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return rate


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that no step is torn; the second one acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: Any) -> None:
        event.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        restore()


def _named_leaves(tree: Any) -> list[tuple[str, jax.Array]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _shape(space: Any) -> tuple[int, ...]:
    return tuple(space.shape)


def _set(value: T | None) -> T:
    """What `resolved()` guarantees."""
    assert value is not None, "the config is not resolved"
    return value
