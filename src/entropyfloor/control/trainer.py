"""The loop of every trainer: advance, evaluate, log, save; continue exactly where a run stopped.

A trainer holds one seed or several of the same settings. Several advance in lockstep: their states are stacked and
every computation is a `vmap` over them, which pays on accelerators. Each seed has its own run directory, and the
numbers that it would have had alone, up to rounding.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import parent_process
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np

from entropyfloor.control import seeding
from entropyfloor.control.config import ControlConfig, set_
from entropyfloor.control.envs import make
from entropyfloor.control.episodes import Env
from entropyfloor.control.evaluator import Evaluator, Stopped
from entropyfloor.runs import Checkpoint, Run, read_run
from entropyfloor.runs.progress import Progress

_AIMS = (("floor", "floor"), ("target", "target_entropy"))
Metrics = dict[str, Any]
ConfigT = TypeVar("ConfigT", bound=ControlConfig)


class Seed(Protocol):
    """What a trainer keeps on the host for one seed: simulators, what was collected, generators."""

    returns: list[float]
    """Of the episodes that ended since the last line of metrics."""

    def view(self, observations: np.ndarray) -> np.ndarray:
        """Observations `[..., obs]` as the networks take them."""

    def arrays(self) -> dict[str, np.ndarray]:
        """With `state`, everything that `restore` needs."""

    def state(self) -> dict[str, Any]:
        """What JSON can hold of the rest."""

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from where another one was."""


SeedT = TypeVar("SeedT", bound=Seed)


class Trainer(ABC, Generic[ConfigT, SeedT]):
    """Seeds in progress.

    Args:
        configs: Resolved configs that differ in nothing but `seed` and `out`.
    """

    agent: Any
    state: Any
    """Of the agent; where there are several seeds, stacked along a first axis."""
    seeds: list[SeedT]

    def __init__(self, configs: Sequence[ConfigT]) -> None:
        self.config, self.configs = configs[0], configs
        limit_threads(self.config.threads)
        self.step = 0
        self.evaluators: list[Evaluator] = []
        self._interrupted = threading.Event()
        self._evaluation_due = False  # the last evaluation was interrupted
        self._progress: Progress | None = None
        self._compiled = False
        self.promise: dict[str, float] = {}
        """What the realised entropy is shown beside."""

    def begin(
        self, agent: Any, seeds: list[SeedT], sizes: tuple[int, ...], update: Callable[[Any, Any, Any], Any]
    ) -> None:
        """Fresh states of all seeds, their evaluations, and what `advance` computes with.

        Args:
            agent: With `init`, `act` and `distribution`.
            seeds: The host's side, one for each config.
            sizes: What `agent.init` takes beside a key: the width of an observation, and of an action.
            update: `(state, data, key) → (state, metrics)`.
        """
        self.agent, self.seeds = agent, seeds
        keys = [seeding.key(config.seed, seeding.INIT) for config in self.configs]
        self.state = self.stack([agent.init(key, *sizes) for key in keys])
        self.evaluators = [
            make_evaluator(c, agent, s, self._interrupted.is_set) for c, s in zip(self.configs, seeds, strict=True)
        ]

        def keyed(function: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any, Any], Any]:
            return lambda state, data, key, step: function(state, data, jax.random.fold_in(key, step))

        self._act = self.across_seeds(keyed(agent.act))
        self._update = self.across_seeds(keyed(update), donate_argnums=0)
        self._act_keys, self._update_keys = self.keys(seeding.ACT), self.keys(seeding.UPDATE)

    def learn(self, data: Any) -> Metrics:
        """One call of `update`; the first one compiles it, which is shown instead of a speed."""
        compiled, self._compiled = self._compiled, True
        if self._progress is not None and not compiled:
            self._progress.busy(self.step, "compiling the first update, for up to a minute")
        self.state, metrics = self._update(self.state, data, self._update_keys, np.uint32(self.step))
        if self._progress is not None and not compiled:
            self._progress.restart(self.step)
        return metrics

    @abstractmethod
    def advance(self) -> tuple[Metrics | None, Any]:
        """Some steps in the environments, some of the optimisers.

        Returns:
            What the updates measured, if there were any, each `[]` or, of several seeds, `[seeds]`; and what they
            learned from, to look at if that is not finite.
        """

    def fit(self, runs: Sequence[Run]) -> None:
        """Train to the end. Ctrl-C and SIGTERM save checkpoints first; a second one stops at once."""
        config, logged = self.config, _Clock(self.step)
        alone = parent_process() is None  # or one of several processes that share a terminal
        label = f"{len(runs)} seeds" if len(runs) > 1 else "" if alone else f"seed {config.seed}"
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(run.recording())
            interrupted = self._interrupted
            interrupted.clear()
            stack.enter_context(_interruptible(interrupted))
            self._progress = progress = stack.enter_context(Progress(config.steps, label=label, bar=alone))
            if self.step == 0 or (self._evaluation_due and not all(map(self._is_evaluated, runs))):
                self._evaluate(runs, progress)
            while self.step < config.steps and not interrupted.is_set():
                before = self.step
                metrics, data = self.advance()
                if metrics is not None:
                    metrics = jax.device_get(metrics)  # once: single values of single seeds would take their time
                    self._check_finite(metrics, data, runs)
                progress.advance(self.step)
                if self._passed(before, config.log_every):
                    self._log(metrics, logged.rate(self.step), runs)
                if self._passed(before, config.eval_every) or self.step >= config.steps:
                    self._evaluate(runs, progress)
                if self._passed(before, config.checkpoint_every):
                    self.save(runs)
            if self.step > 0:
                self.save(runs)
            if interrupted.is_set():
                raise KeyboardInterrupt(self._way_on(runs))

    def save(self, runs: Sequence[Run]) -> None:
        """Write everything that `restore` needs, unless it is written."""
        for i, (run, seed) in enumerate(zip(runs, self.seeds, strict=True)):
            arrays = {f"agent/{name}": np.asarray(leaf) for name, leaf in named_leaves(self.pick(self.state, i))}
            due = {"evaluation_due": True} if self._evaluation_due else {}
            run.save(self.step, arrays | seed.arrays(), seed.state() | due)

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Continue from checkpoints of runs with the same configs, all at the same step.

        Raises:
            ValueError: A checkpoint does not fit, or they are not at the same step.
        """
        steps = sorted({checkpoint.step for checkpoint in checkpoints})
        if len(steps) > 1:
            raise ValueError(f"the seeds stopped at different steps, {steps}: resume each of them alone")
        self.step = steps[0]
        self._evaluation_due = any(checkpoint.state.get("evaluation_due") for checkpoint in checkpoints)
        states = []
        for i, (seed, checkpoint) in enumerate(zip(self.seeds, checkpoints, strict=True)):
            with checkpoint.restoring():
                states.append(self._agent_state(i, checkpoint))
                seed.restore(checkpoint.arrays, checkpoint.state)
        self.state = self.stack(states)

    # --- several seeds as one ----------------------------------------------------------------------------

    def across_seeds(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`function` of one seed, compiled; for several, every argument but the last has the seeds first."""
        if len(self.configs) == 1:
            return jax.jit(function, **options)

        def mapped(*args: Any) -> Any:
            return jax.vmap(function, in_axes=(*[0] * (len(args) - 1), None))(*args)

        return jax.jit(mapped, **options)

    def stack(self, trees: Sequence[Any]) -> Any:
        """One tree for all seeds."""
        return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def pick(self, tree: Any, i: int) -> Any:
        """The tree of seed `i`."""
        return tree if len(self.configs) == 1 else jax.tree.map(lambda leaf: leaf[i], tree)

    def keys(self, stream: int) -> Any:
        """A key for each seed."""
        keys = [seeding.key(config.seed, stream) for config in self.configs]
        return keys[0] if len(keys) == 1 else jax.numpy.stack(keys)

    # --- parts of the loop -------------------------------------------------------------------------------

    def _passed(self, before: int, interval: int) -> bool:
        """Whether the last advance passed a multiple of `interval`."""
        return self.step // interval > before // interval

    def _log(self, metrics: Metrics | None, rate: float, runs: Sequence[Run]) -> None:
        for i, (run, seed) in enumerate(zip(runs, self.seeds, strict=True)):
            line = {name: float(self.pick(value, i)) for name, value in (metrics or {}).items()}
            if seed.returns:
                line["train/return"] = float(np.mean(seed.returns))
                seed.returns.clear()
            run.log(self.step, {**line, "steps_per_second": rate})

    def _is_evaluated(self, run: Run) -> bool:
        return any(line["step"] == self.step and "return" in line for line in read_run(run.path).lines)

    def _evaluate(self, runs: Sequence[Run], progress: Progress) -> None:
        found = []
        try:
            for i, evaluator in enumerate(self.evaluators):
                found.append(evaluator(self.pick(self.state.actor, i)) | self.promise)
        except Stopped:  # a resume repeats all of it
            self._evaluation_due = True
            return
        except Exception:
            if self.step > 0:  # the same episodes would fail again: a resume goes on behind them
                self.save(runs)
            raise
        self._evaluation_due = False
        for run, line in zip(runs, found, strict=True):
            run.log(self.step, line)
        mean = {name: float(np.mean([line[name] for line in found])) for name in found[0]}
        aim = [f"{word} {mean[name]:.2f}" for word, name in _AIMS if name in mean]
        entropy = f"entropy {mean['realised_entropy']:.2f} ({', '.join(aim) or 'no floor'})"
        progress.report(self.step, f"return {mean['return']:.1f} · {entropy}")

    def _check_finite(self, metrics: Metrics, data: Any, runs: Sequence[Run]) -> None:
        """Stop where a quantity is not finite; keep the networks as the update left them, and its data."""
        for i, run in enumerate(runs):
            values = {name: float(self.pick(value, i)) for name, value in metrics.items()}
            if wrong := {name: value for name, value in values.items() if not math.isfinite(value)}:
                arrays = {f"agent/{name}": np.asarray(x) for name, x in named_leaves(self.pick(self.state, i))}
                arrays |= {f"data/{name}": np.asarray(x) for name, x in named_leaves(self.pick(data, i))}
                kept = run.keep_failure(self.step, arrays, {"quantities": {k: str(v) for k, v in values.items()}})
                # Where one loss is infinite, much else is: the loss is the name that says most.
                name, value = min(wrong.items(), key=lambda item: not item[0].startswith("loss/"))
                raise FloatingPointError(
                    f"{name} is {value} at step {self.step}: the run stops here. Networks and data are in {kept}"
                )

    def _agent_state(self, i: int, checkpoint: Checkpoint) -> Any:
        fresh = self.pick(self.state, i)
        leaves = []
        for name, leaf in named_leaves(fresh):
            array = checkpoint.arrays.get(f"agent/{name}")
            if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
                found = "missing" if array is None else f"{array.dtype}{array.shape}"
                raise ValueError(f"{name} is {found}, this run needs {leaf.dtype}{leaf.shape}")
            leaves.append(jax.numpy.asarray(array))
        return jax.tree.unflatten(jax.tree.structure(fresh), leaves)

    def _way_on(self, runs: Sequence[Run]) -> str:
        if self.step == 0:
            return "before the first step: there is nothing to continue"
        commands = "; ".join(f"entropyfloor train control --resume {run.path}" for run in runs)
        return f"saved at step {self.step:,}; continue with: {commands}"


def make_env(config: ControlConfig) -> Env:
    """The environment of a config."""
    return make(
        config.env,
        action_repeat=config.action_repeat,
        ignore_termination=config.ignore_termination,
        backend=config.backend,
        max_episode_steps=config.max_episode_steps,
        env_args=config.env_arguments(),
    )


def make_evaluator(config: ControlConfig, agent: Any, seed: Seed, stopped: Callable[[], bool]) -> Evaluator:
    """Evaluation on an environment and episodes of its own."""
    episodes = [seeding.episode(config.seed, seeding.EVAL_EPISODES, i) for i in range(config.eval_episodes)]
    low = set_(config.log_std_min)
    return Evaluator(make_env(config), agent.distribution, episodes, low, view=seed.view, stopped=stopped)


def limit_threads(threads: int) -> None:
    """Keep XLA to `threads` CPU threads, unless `XLA_FLAGS` or `NPROC` says otherwise already.

    XLA reads both when it computes for the first time in a process: later calls change nothing.
    """
    if threads > 0:
        os.environ.setdefault("NPROC", str(threads))
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
        # To hand a small policy to another thread and back takes longer than to compute it.
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their paths, such as `critics/params/Dense_0/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


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
def _interruptible(event: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets the event, so that no step is torn; the second one acts as usual."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: Any) -> None:
        os.write(2, b"\nsaving first; once more stops at once\n")
        event.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
