"""Rewards: answer checking, and a process pool that limits the time and memory of each check.

The judges `is_correct`, `is_number`, `is_exact` and `is_choice` say whether a response has an answer. A reward is
any function `(response, row) -> number`, such as `Answer(is_correct)` or one's own; `Reward` applies them to
batches, in processes that are ended when they take too long.

Nothing here needs torch, so that such a process starts in a second.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from entropyfloor.language.rewards.answers import (
    LETTERS,
    Verdict,
    after_hashes,
    boxed,
    final_answer,
    letter,
    numbers_in,
)
from entropyfloor.language.rewards.verdicts import is_choice, is_correct, is_exact, is_number
from entropyfloor.language.tasks.rows import Row, choices_of

__all__ = [
    "Answer",
    "Format",
    "Reward",
    "Scores",
    "Verdict",
    "after_hashes",
    "boxed",
    "final_answer",
    "is_choice",
    "is_correct",
    "is_exact",
    "is_number",
    "letter",
    "numbers_in",
]

Function = Callable[[str, Row], float | Verdict]
Judge = Callable[[str, str], bool]

JUDGE = "entropyfloor-judge"
"""Name of the processes that judge."""
MEMORY = 4 << 30
"""Bytes that a function may ask for: 9^9^9 written out takes more than there is."""
START_SECONDS = 300.0
"""How long a process may take to import what it needs."""

log = logging.getLogger(__name__)


# --- functions of a response and its row ------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """1 where a judge finds the row's answer in the response, else 0.

    Where the row has choices and its answer is one of their letters, `is_choice` judges instead of `is_correct`.
    """

    judge: Judge = is_correct
    column: str = "answer"
    """Of the row."""

    def __call__(self, response: str, row: Row) -> float:
        """The reward of one response."""
        answer, choices = str(row[self.column]), len(choices_of(row)[0])
        if self.judge is is_correct and 2 <= choices <= len(LETTERS) and letter(answer, choices):
            return float(is_choice(response, answer, choices))
        return float(self.judge(response, answer))

    def prepare(self) -> None:
        """Have the parser of mathematics ready: the first expression takes as long as a hundred others."""
        if self.judge is is_correct:
            is_correct(r"\boxed{x + \frac{1}{2}}", r"\frac{1}{2} + x")


@dataclass(frozen=True)
class Format:
    r"""1 where the response has a closed `\\boxed{}` that is not empty, or matches a pattern; else 0."""

    pattern: str | None = None
    """A regular expression that must match somewhere, such as `</think>.*\\\\boxed`; None asks for the box."""

    def __call__(self, response: str, row: Row) -> float:  # noqa: ARG002 - as all rewards are called
        """The reward of one response."""
        if self.pattern is None:
            return float(bool(boxed(response)))
        return float(re.search(self.pattern, response, re.DOTALL) is not None)


# --- batches ---------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What a batch of responses is worth."""

    total: np.ndarray
    """`[B]` float64, the weighted sum."""
    parts: dict[str, np.ndarray]
    """`[B]` of each function, before its weight."""
    failures: list[tuple[int, str, str]]
    """Sample, function and reason, where a function gave no number and the part is 0."""
    reasons: dict[str, list[str]]
    """`[B]` of each function: why, where it returns a `Verdict`, else nothing."""


class Reward:
    """A weighted sum of functions of a response and its row, which costs a failing sample and not the run.

        with Reward({"correct": Answer(is_correct), "format": Format()}, weights={"format": 0.1}) as reward:
            rewards = reward(responses, rows)

    A function that raises, returns no finite number, takes longer than `seconds` or ends its process gives 0 for
    that sample. The reason is counted in `failures` and logged, once a call for each kind. Functions run in
    processes that are started anew, not forked, as the parent has threads; one that is stuck is killed, with what
    it started, and replaced. They stay for the next call, and go with `close`, with the object, or with the
    parent. A script that makes a `Reward` needs `if __name__ == "__main__":`, as with all of `multiprocessing`.
    On Linux each may take 4 GiB more than it starts with. A function that is an object with a method `prepare` has
    it called once in each process, before its time counts.

    Args:
        functions: By name, or one alone, which is then called "reward". They must be found by name in a module
            that can be imported, or be objects of such a class.
        weights: By name; 1 where there is none.
        workers: Processes; 0 calls the functions here, without a limit of time. That is for functions that are
            known to be quick.
        seconds: A function may take for one sample.
        quiet: Count failures and return them, but do not log them.

    Raises:
        ValueError: No function, a weight without one, a function that cannot be pickled, or a number out of range.
    """

    def __init__(
        self,
        functions: Mapping[str, Function] | Function,
        *,
        weights: Mapping[str, float] | None = None,
        workers: int = 2,
        seconds: float = 5.0,
        quiet: bool = False,
    ) -> None:
        self.functions = dict(functions) if isinstance(functions, Mapping) else {"reward": functions}
        self.weights = dict.fromkeys(self.functions, 1.0) | dict(weights or {})
        if not self.functions:
            raise ValueError("functions is empty: give one reward at least")
        if unknown := set(self.weights) - set(self.functions):
            raise ValueError(f"weights has {sorted(unknown)}: there are the functions {sorted(self.functions)}")
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0, for this process, or more")
        if not seconds > 0:
            raise ValueError(f"seconds={seconds} must be above 0")
        self.workers, self.seconds, self.quiet = workers, seconds, quiet
        self.failures: Counter[str] = Counter()
        """How often each function failed, and how, over all calls."""
        self._pool: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _stop, self._pool)
        self._payload = b""
        if workers:
            try:
                self._payload = pickle.dumps(self.functions)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"a reward function cannot be sent to another process ({error}): define it at the top level "
                    "of a module, or give workers=0, which has no limit of time"
                ) from None

    def __call__(self, responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        """`[B]` float64: what each response is worth with its row; see `score`."""
        return self.score(responses, rows).total

    def score(self, responses: Sequence[str], rows: Sequence[Row]) -> Scores:
        """The same with its parts.

        Args:
            responses: Texts.
            rows: One for each response, such as a problem of a task.

        Raises:
            ValueError: Lengths that differ, or functions that the processes cannot import.
            RuntimeError: The processes do not start.
        """
        if len(responses) != len(rows):
            raise ValueError(f"{len(responses)} responses and {len(rows)} rows: there must be a row a response")
        jobs = [
            _Job(index, name, response, row)
            for index, (response, row) in enumerate(zip(responses, rows, strict=True))
            for name in self.functions
        ]
        with self._lock:
            if self.workers:
                self._run(jobs)
            else:
                for job in jobs:
                    job.finish(*_call(self.functions, *job.work))
            self._count([job for job in jobs if job.reason])
        parts = {name: np.zeros(len(responses)) for name in self.functions}
        reasons = {name: [""] * len(responses) for name in self.functions}
        for job in jobs:
            parts[job.name][job.index] = job.value
            reasons[job.name][job.index] = job.explanation
        total = sum((self.weights[name] * part for name, part in parts.items()), np.zeros(len(responses)))
        return Scores(total, parts, [(job.index, job.name, job.reason) for job in jobs if job.reason], reasons)

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        with self._lock:
            _stop(self._pool)

    def __enter__(self) -> Reward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, jobs: list[_Job]) -> None:
        """Hand out jobs one by one; a worker is starting, idle, or busy with one."""
        waiting = deque(jobs)
        try:
            while waiting or any(worker.job for worker in self._pool):
                self._pool += [
                    _Worker(self._payload) for _ in range(min(self.workers, len(waiting)) - len(self._pool))
                ]
                for worker in self._pool:
                    if waiting and worker.ready and not worker.job:
                        worker.give(waiting.popleft(), self.seconds)
                limit = min(worker.deadline for worker in self._pool if not worker.idle)
                busy = {worker.connection: worker for worker in self._pool if not worker.idle}
                for connection in wait(list(busy), max(0.0, limit - time.monotonic())):
                    busy[connection].listen()  # type: ignore[index]
                now = time.monotonic()
                for worker in [worker for worker in self._pool if worker.over(now)]:
                    self._pool.remove(worker)
                    worker.end()
                    if worker.job:
                        worker.job.finish(0.0, worker.epitaph(self.seconds))
                    elif worker.doubt:  # it died idle, before it read the job: that is not the sample's fault
                        waiting.appendleft(worker.doubt)
        except BaseException:  # Ctrl-C too: answers that nobody has read must not reach the next call
            _stop(self._pool)
            raise

    def _count(self, failed: list[_Job]) -> None:
        kinds = Counter(f"{job.name}: {job.kind}" for job in failed)
        self.failures.update(kinds)
        for kind, count in kinds.items() if not self.quiet else ():
            first = next(job for job in failed if f"{job.name}: {job.kind}" == kind)
            log.warning(
                "reward %s (%d in this batch, which get 0 for it; the first: %s, at the response %.200r)",
                kind,
                count,
                first.reason,
                first.response,
            )


# --- processes -------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A function of a sample."""

    index: int
    name: str
    response: str
    row: Row
    value: float = 0.0
    reason: str = ""
    """Why it failed."""
    explanation: str = ""
    """Why it has this value."""

    @property
    def work(self) -> tuple[str, str, Row]:
        return self.name, self.response, self.row

    @property
    def kind(self) -> str:
        """The reason without its details, to be counted by."""
        return self.reason.partition(":")[0]

    def finish(self, value: float, reason: str, explanation: str = "") -> None:
        self.value, self.reason, self.explanation = value, reason, explanation


@dataclass
class _Worker:
    """A process, seen from here."""

    payload: bytes
    connection: Connection = field(init=False)
    process: Any = field(init=False)
    owner: int = field(default_factory=os.getpid)
    ready: bool = False
    job: _Job | None = None
    doubt: _Job | None = None
    gone: bool = False
    deadline: float = 0.0

    def __post_init__(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.payload), name=JUDGE, daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen from here
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def idle(self) -> bool:
        return self.ready and not self.job and not self.gone

    def give(self, job: _Job, seconds: float) -> None:
        try:
            self.connection.send((seconds, *job.work))
        except OSError:
            self.gone, self.doubt = True, job
        else:
            self.job, self.deadline = job, time.monotonic() + seconds

    def listen(self) -> None:
        try:
            value, reason, explanation = self.connection.recv()
        except (EOFError, OSError):
            self.gone = True
            return
        if self.job:
            self.job.finish(value, reason, explanation)
            self.job = None
        elif reason:
            raise ValueError(
                f"a reward function cannot be imported where it should run ({reason}): define it in a module, not "
                "in a notebook, or give workers=0"
            )
        else:
            self.ready = True

    def over(self, now: float) -> bool:
        """Whether it has died, or has had its time."""
        late = not self.idle and now >= self.deadline
        if (late or self.gone) and not self.ready:
            raise RuntimeError(
                f"a process for rewards {'died' if self.gone else f'took over {START_SECONDS:.0f} s'} while it "
                "started; its reason, if it gave one, is on standard error"
            )
        return late or self.gone

    def epitaph(self, seconds: float) -> str:
        if self.gone:
            return f"ended its process: exit code {self.code}"
        return f"took too long: more than {seconds:g} s"

    def end(self) -> None:
        """Kill it, and all that it has started; one that has ended already keeps the code it ended with."""
        if os.getpid() != self.owner:  # a fork of the parent, whose processes these are not
            return
        if self.gone:
            self.process.join(1.0)
        if os.name == "posix" and self.ready:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.code = self.process.exitcode
        self.process.close()
        self.connection.close()


def _stop(pool: list[_Worker]) -> None:
    """End all of a pool."""
    while pool:
        pool.pop().end()


def _work(connection: Connection, payload: bytes) -> None:
    """What a process does: say that it is ready, then answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    if os.name == "posix":
        os.setpgrp()  # a group of its own, which ends as a whole
    try:
        functions = pickle.loads(payload)
        for function in functions.values():
            if hasattr(function, "prepare"):
                function.prepare()
    except BaseException as error:  # whatever an import may do
        connection.send((0.0, _told(error), ""))
        return
    _limit_memory()
    connection.send((0.0, "", ""))
    while True:
        try:
            seconds, *job = connection.recv()
        except (EOFError, OSError):
            return
        _alarm(seconds + 1.0)
        answer = _call(functions, *job)
        _alarm(0.0)
        connection.send(answer)


def _call(functions: Mapping[str, Function], name: str, response: str, row: Row) -> tuple[float, str, str]:
    """The value of a function, why it failed, in which case that is 0, and why it has the value that it has."""
    try:
        found = functions[name](response, row)
        value = float(found)
    except Exception as error:
        return 0.0, f"raised {type(error).__name__}: {_told(error)}", ""
    except SystemExit as error:
        return 0.0, f"raised SystemExit: {error.code!r:.200}", ""
    if not math.isfinite(value):
        return 0.0, f"returned no finite number: {value}", ""
    return value, "", found.reason if isinstance(found, Verdict) else ""


def _told(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:200]


def _alarm(seconds: float) -> None:
    """End this process by then, whatever it does, even where the parent has gone and cannot."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = now + MEMORY if most == resource.RLIM_INFINITY else min(now + MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
