"""The loop of every control trainer: act and learn, evaluate, log, save; resume exactly where a run stopped.

A trainer holds one seed or several of the same settings. Several advance in lockstep: their states are stacked and
every computation is a `vmap` over them, which pays on accelerators. Each seed has its own run directory, and the
numbers that it would have had alone, up to rounding.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np

from entropyfloor.control import seeding
from entropyfloor.control.agents.build import aim, player
from entropyfloor.control.config import ControlConfig, required
from entropyfloor.control.envs import make
from entropyfloor.control.evaluator import Evaluator, Stopped
from entropyfloor.control.threads import limit_threads
from entropyfloor.runs import Checkpoint, Run, read_run
from entropyfloor.runs.loop import Loop, check_finite, training_loop

SEEDS = "seeds"
"""Name of the axis of several seeds, for collectives over them."""
_AIMS = (("floor", "floor"), ("target", "target_entropy"))
Metrics = dict[str, Any]
ConfigT = TypeVar("ConfigT", bound=ControlConfig)


class Collector(Protocol):
    """The data of one seed, on the host: simulators, replay or normalisers, random generators."""

    returns: list[float]
    """Returns of the episodes that ended since the last line of metrics."""

    def normalise(self, observations: np.ndarray) -> np.ndarray:
        """Observations `[..., obs]` as the networks take them."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint: with `state`, everything that `restore` needs."""

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON can hold it."""

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from the arrays and the state of another collector."""


CollectorT = TypeVar("CollectorT", bound=Collector)


class Trainer(ABC, Generic[ConfigT, CollectorT]):
    """Trainer of one or more seeds of an agent.

    Args:
        configs: Resolved configs that differ in nothing but `seed` and `out`.
    """

    agent: Any
    state: Any
    """State of the agent; where there are several seeds, stacked along a first axis."""
    memory: Any = ()
    """What else is on the device, such as a replay; stacked as `state` is."""
    collectors: list[CollectorT]
    """One for each seed."""
    aim: dict[str, float]
    """The floor or the target that the realised entropy is shown beside."""

    def __init__(self, configs: Sequence[ConfigT]) -> None:
        self.config, self.configs = configs[0], configs
        limit_threads(self.config.threads)
        self.step = 0
        self.evaluators: list[Evaluator] = []
        self._evaluation_due = False  # the last evaluation was interrupted
        self._loop: Loop | None = None
        self._compiled = False

    def begin(
        self,
        agent: Any,
        collectors: list[CollectorT],
        sizes: tuple[int, ...],
        update: Callable[[Any, Any, Any], Any],
    ) -> None:
        """Build the states of all seeds, their evaluations, and what `advance` computes with.

        Args:
            agent: Agent with `init`, `act` and `distribution`.
            collectors: One for each config.
            sizes: Arguments of `agent.init` beside a key: the width of an observation, and of an action.
            update: `(state, data, key) → (state, metrics)`.
        """
        self.agent, self.collectors, self.aim = agent, collectors, aim(agent)
        keys = [seeding.key(config.seed, seeding.INIT) for config in self.configs]
        self.state = self.stack([agent.init(key, *sizes) for key in keys])
        self.evaluators = [self._evaluator(*pair) for pair in zip(self.configs, collectors, strict=True)]

        def keyed(function: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any, Any], Any]:
            return lambda state, data, key, step: function(state, data, jax.random.fold_in(key, step))

        self._act = self.across_seeds(keyed(agent.act))
        self._update = self.across_seeds(keyed(update), donate_argnums=0)
        self._act_keys, self._update_keys = self.keys(seeding.ACT), self.keys(seeding.UPDATE)

    def act(self, seen: Sequence[Any]) -> list[Any]:
        """What `agent.act` gives for what each seed sees, on the host."""
        acted = self._act(self.state.actor, self.stack(seen), self._act_keys, np.uint32(self.step))
        acted = jax.device_get(acted)
        return [self.pick(acted, i) for i in range(len(seen))]

    def learn(self, data: Any, number: int | None = None) -> Metrics:
        """Call `update` once; the first call compiles it, which is shown instead of a speed.

        Args:
            data: Data of the update.
            number: Number from which the update's random numbers follow; by default the step.
        """
        folded = np.uint32(self.step if number is None else number)
        with self.compiling("compiling the first update, for up to a minute"):
            self.state, metrics = self._update(self.state, data, self._update_keys, folded)
        return metrics

    @contextmanager
    def compiling(self, words: str) -> Iterator[None]:
        """Show these words instead of a speed while the first call of the body compiles."""
        compiled, self._compiled = self._compiled, True
        progress = None if compiled or self._loop is None else self._loop.progress
        if progress is not None:
            progress.busy(self.step, words)
        yield
        if progress is not None:
            progress.restart(self.step)

    @abstractmethod
    def advance(self) -> tuple[Metrics | None, Any]:
        """Take some steps in the environments, and some of the optimisers.

        Returns:
            Metrics of the updates, if there were any, each `[]` or, of several seeds, `[seeds]`; and the data of
            the updates, which is saved if a metric is not finite.
        """

    def fit(self, runs: Sequence[Run]) -> None:
        """Train to the end. Ctrl-C and SIGTERM save checkpoints first; a second one stops at once."""
        config, clock = self.config, _Clock(self.step)
        frame = training_loop(runs, total=config.steps, domain="control", seed=config.seed, track=config.track)
        with frame as loop:
            self._loop = loop
            if self._evaluation_due and all(map(self._is_evaluated, runs)):  # by a process that was killed later
                self._evaluation_due = False
            if self.step == 0 or self._evaluation_due:
                self._evaluate(runs, loop)
            while self.step < config.steps and not loop.stopping:
                before = self.step
                metrics, data = self.advance()
                if metrics is not None:
                    metrics = jax.device_get(metrics)  # once: single values of single seeds would take their time
                    self._check_finite(metrics, data, runs)
                loop.progress.advance(self.step)
                if self._passed(before, config.log_every):
                    self._log(metrics, clock.rate(self.step), runs)
                if self._passed(before, config.eval_every) or self.step >= config.steps:
                    self._evaluate(runs, loop)
                if self._passed(before, config.checkpoint_every):
                    self.save(runs)
            if self.step > 0:
                self.save(runs)

    def save(self, runs: Sequence[Run]) -> None:
        """Write everything that `restore` needs, unless it is written."""
        for i, (run, collector) in enumerate(zip(runs, self.collectors, strict=True)):
            arrays = named_arrays("agent", self.pick(self.state, i)) | collector.arrays()
            arrays |= named_arrays("memory", self.pick(self.memory, i))
            due = {"evaluation_due": True} if self._evaluation_due else {}
            run.save(self.step, arrays, collector.state() | due)

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Continue from checkpoints of runs with the same configs, all at the same step.

        Raises:
            ValueError: A checkpoint does not fit.
        """
        self.step = checkpoints[0].step
        self._evaluation_due = any(checkpoint.state.get("evaluation_due") for checkpoint in checkpoints)
        states, memories = [], []
        for i, (collector, checkpoint) in enumerate(zip(self.collectors, checkpoints, strict=True)):
            with checkpoint.restoring():
                shapes = jax.eval_shape(partial(self.pick, i=i), (self.state, self.memory))
                states.append(_restored("agent", shapes[0], checkpoint))
                memories.append(_restored("memory", shapes[1], checkpoint))
                collector.restore(checkpoint.arrays, checkpoint.state)
        self.state, self.memory = self.stack(states), self.stack(memories)

    # --- several seeds as one ----------------------------------------------------------------------------

    def across_seeds(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`function` of one seed, compiled; for several, every argument but the last has the seeds first."""
        if len(self.configs) == 1:
            return jax.jit(function, **options)

        def mapped(*args: Any) -> Any:
            return jax.vmap(function, in_axes=(*[0] * (len(args) - 1), None), axis_name=SEEDS)(*args)

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
        for i, (run, collector) in enumerate(zip(runs, self.collectors, strict=True)):
            line = self._values(metrics or {}, i)
            if collector.returns:
                line["train/return"] = float(np.mean(collector.returns))
                collector.returns.clear()
            run.log(self.step, {**line, "steps_per_second": rate})

    def _values(self, metrics: Metrics, i: int) -> dict[str, float]:
        """The metrics of seed `i`."""
        return {name: float(self.pick(value, i)) for name, value in metrics.items()}

    def _evaluator(
        self, config: ConfigT, collector: CollectorT, kind: Callable[..., Evaluator] = Evaluator
    ) -> Evaluator:
        """Evaluation of a seed, on an environment and episodes of its own."""
        episodes = [seeding.episode(config.seed, seeding.EVAL_EPISODES, i) for i in range(config.eval_episodes)]
        return kind(
            make(config.env, **config.env_options()),
            self.agent.distribution,
            episodes,
            required(config.log_std_min),
            normalise=collector.normalise,
            stopped=lambda: self._loop is not None and self._loop.stopping,
            player=player(self.agent),
        )

    def _is_evaluated(self, run: Run) -> bool:
        return any(line["step"] == self.step and "return" in line for line in read_run(run.path).lines)

    def _evaluate(self, runs: Sequence[Run], loop: Loop) -> None:
        lines: list[dict[str, float]] = []
        failure: Exception | None = None
        for i, evaluator in enumerate(self.evaluators):
            try:
                lines.append(evaluator(self.pick(self.state.actor, i)) | self.aim)
            except Stopped:  # a resume repeats all of it
                self._evaluation_due = True
                return
            except Exception as error:
                lines.append({"return": math.nan})
                failure = failure or error
        self._evaluation_due = False
        for run, line in zip(runs, lines, strict=True):
            run.log(self.step, line)
        if failure is not None:
            if self.step > 0:  # the same episodes would fail again: a resume continues after them
                self.save(runs)
            raise failure
        mean = {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}
        aims = [f"{word} {mean[name]:.2f}" for word, name in _AIMS if name in mean]
        entropy = f"entropy {mean['realised_entropy']:.2f} ({', '.join(aims) or 'no floor'})"
        loop.progress.report(self.step, f"return {mean['return']:.1f} · {entropy}")

    def _check_finite(self, metrics: Metrics, data: Any, runs: Sequence[Run]) -> None:
        for i, run in enumerate(runs):

            def arrays(i: int = i) -> dict[str, np.ndarray]:
                state, batch = self.pick(self.state, i), self.pick(data, i)
                return named_arrays("agent", state) | named_arrays("data", batch)

            check_finite(self._values(metrics, i), self.step, run, arrays)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their paths, such as `critics/params/Dense_0/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def named_arrays(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    """Leaves as arrays of a checkpoint."""
    return {f"{prefix}/{name}": np.asarray(leaf) for name, leaf in named_leaves(tree)}


def _restored(prefix: str, fresh: Any, checkpoint: Checkpoint) -> Any:
    """The tree of a checkpoint that was saved by `named_arrays(prefix, tree)` of one like `fresh`, on the host."""
    leaves = []
    for name, leaf in named_leaves(fresh):
        array = checkpoint.arrays.get(f"{prefix}/{name}")
        if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
            stored = "missing" if array is None else f"{array.dtype}{array.shape}"
            raise ValueError(f"{name} is {stored}, this run needs {leaf.dtype}{leaf.shape}")
        leaves.append(array)  # a device need not hold the whole of what several share
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


class _Clock:
    """Steps per second since the last call."""

    def __init__(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return rate
