"""Worker processes of `Reward`: each checks one response at a time, within limits of time and memory."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from entropyfloor.language.rewards.answers import Row, Verdict

Function = Callable[[str, Row], float | Verdict]
"""Reward of a response, given the row of its problem."""

JUDGE = "entropyfloor-judge"
"""Name of the worker processes."""
MEMORY = 4 << 30
"""Bytes that a function may allocate: 9^9^9 written out takes more than any machine has."""
START_SECONDS = 300.0
"""Time limit for a process to import what it needs."""


@dataclass
class Job:
    """A response to be checked, and the result."""

    response: str
    row: Row
    value: float = 0.0
    reason: str = ""
    """Why the function failed; empty where it did not."""
    explanation: str = ""
    """Reason of a verdict."""

    @property
    def kind(self) -> str:
        """The failure without its details, by which failures are counted."""
        return self.reason.partition(":")[0]

    def finish(self, value: float, reason: str, explanation: str = "") -> None:
        """Store the result."""
        self.value, self.reason, self.explanation = value, reason, explanation


@dataclass
class Worker:
    """A worker process as its parent sees it: starting, idle, or busy with a job."""

    payload: bytes
    """The function, pickled."""
    connection: Connection = field(init=False)
    process: Any = field(init=False)
    owner: int = field(default_factory=os.getpid)
    ready: bool = False
    job: Job | None = None
    unread: Job | None = None
    """A job that it could not be given because it had died while idle."""
    gone: bool = False
    """Whether its end of the connection is closed."""
    deadline: float = 0.0

    def __post_init__(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, self.payload), name=JUDGE, daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process closes the connection
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def idle(self) -> bool:
        """Whether it waits for a job."""
        return self.ready and not self.job and not self.gone

    def give(self, job: Job, seconds: float) -> None:
        """Send a job, with its time limit."""
        try:
            self.connection.send((seconds, job.response, job.row))
        except OSError:
            self.gone, self.unread = True, job
        else:
            self.job, self.deadline = job, time.monotonic() + seconds

    def listen(self) -> None:
        """Receive a result, or the message that the process is ready.

        Raises:
            ValueError: The process cannot import the function.
        """
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
                f"the reward function cannot be imported where it should run ({reason}): define it in a module, "
                "not in a notebook, or give workers=0"
            )
        else:
            self.ready = True

    def is_over(self, now: float) -> bool:
        """Whether it has died or exceeded its time limit.

        Raises:
            RuntimeError: It has while it started.
        """
        late = not self.idle and now >= self.deadline
        if (late or self.gone) and not self.ready:
            raise RuntimeError(
                f"a process for rewards {'died' if self.gone else f'took over {START_SECONDS:.0f} s'} while it "
                "started; the reason, if there is one, is on standard error"
            )
        return late or self.gone

    def failure(self, seconds: float) -> str:
        """Why its job has no result."""
        if self.gone:
            return f"ended its process: exit code {self.code}"
        return f"took too long: more than {seconds:g} s"

    def end(self) -> None:
        """Kill it and everything that it has started; a process that has ended already keeps its exit code."""
        if os.getpid() != self.owner:  # this is a fork of the parent, and the processes are not its own
            return
        if self.gone:
            self.process.join(1.0)
        if self.ready:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.code = self.process.exitcode
        self.process.close()
        self.connection.close()


def stop(pool: list[Worker]) -> None:
    """End all workers of a pool."""
    while pool:
        pool.pop().end()


def _run(connection: Connection, payload: bytes) -> None:
    """Main function of a worker process: report that it is ready, then do jobs until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    os.setpgrp()  # a group of its own, which is ended as a whole
    try:
        function = pickle.loads(payload)
        if hasattr(function, "prepare"):
            function.prepare()
    except BaseException as error:  # an import may raise anything
        connection.send((0.0, _summary(error), ""))
        return
    _limit_memory()
    connection.send((0.0, "", ""))
    while True:
        try:
            seconds, *job = connection.recv()
        except (EOFError, OSError):
            return
        _alarm(seconds + 1.0)
        result = call(function, *job)
        _alarm(0.0)
        connection.send(result)


def call(function: Function, response: str, row: Row) -> tuple[float, str, str]:
    """Apply a function to a response.

    Returns:
        The value, which is 0 after a failure; the reason of a failure; the reason of a verdict.
    """
    try:
        reward = function(response, row)
        value = float(reward)
    except Exception as error:
        return 0.0, f"raised {type(error).__name__}: {_summary(error)}", ""
    except SystemExit as error:
        return 0.0, f"raised SystemExit: {error.code!r:.200}", ""
    if not math.isfinite(value):
        return 0.0, f"returned no finite number: {value}", ""
    return value, "", reward.reason if isinstance(reward, Verdict) else ""


def _summary(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:200]


def _alarm(seconds: float) -> None:
    """End this process after `seconds` whatever it does, also where its parent is gone; 0 cancels the alarm."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory() -> None:
    """Let this process allocate `MEMORY` bytes more than it has."""
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = now + MEMORY if most == resource.RLIM_INFINITY else min(now + MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
