"""A reward function over batches, in a pool of processes that limits each check's time and memory.

Kept by design instead of pebble 5.2, which is as fast (200 math-verify checks on two cores: 0.95 s here, 1.03 s
there), but ends only the late process, not what it has started: process groups are not in its public interface.

Nothing here imports torch, so that such a process starts in a tenth of a second.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import NamedTuple

import numpy as np

from entropyfloor.language.rewards.answers import Row
from entropyfloor.language.rewards.worker import Function, Job, Worker, call, stop

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """Rewards of a batch of responses."""

    values: np.ndarray
    """`[B]` float64."""
    failures: dict[int, str]
    """Index of the response and reason, where the function failed and the reward is 0."""
    reasons: list[str]
    """`[B]`: the reason where the function returned a `Verdict`, else an empty text."""


class Reward:
    """A function of a response and its row; a failure costs one response, not the run.

        with Reward(Answer()) as reward:
            rewards = reward(responses, rows)

    If it raises, returns no finite number, takes longer than `seconds` or ends its process, that response gets 0.
    The reason is counted in `failures` and logged, once per call and kind. The function runs in processes that are
    spawned, not forked, since the parent has threads. A process that is stuck is killed with
    everything it started, and replaced. The processes stay for the next call and end with `close`, with the
    object, or with the parent. A script that makes a `Reward` needs `if __name__ == "__main__":`, which is a rule
    of `multiprocessing`. On Linux each process may allocate 4 GiB more than it starts with. A function that is an
    object with a method `prepare` has it called once in each process, before its time counts.

    Args:
        function: It must be importable by name, or be an object of such a class.
        workers: Number of processes; 0 calls the function in this process, without a time limit, which is for one
            that is known to be quick.
        seconds: Time limit for one response.
        quiet: Do not log failures.

    Raises:
        ValueError: A function that cannot be pickled, or a number out of range.
    """

    def __init__(
        self,
        function: Function,
        *,
        workers: int = 2,
        seconds: float = 5.0,
        quiet: bool = False,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0, for this process, or more")
        if not seconds > 0:
            raise ValueError(f"seconds={seconds} must be above 0")
        self.function, self.workers, self.seconds, self.quiet = function, workers, seconds, quiet
        self.failures: Counter[str] = Counter()
        """Number of failures of each kind, over all calls."""
        self._pool: list[Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, stop, self._pool)
        self._payload = b""
        if workers:
            try:
                self._payload = pickle.dumps(function)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"the reward function cannot be sent to another process ({error}): define it at the top level "
                    "of a module, or give workers=0, which has no time limit"
                ) from None

    def __call__(self, responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        """`[B]` float64: the reward of each response; see `score`."""
        return self.score(responses, rows).values

    def score(self, responses: Sequence[str], rows: Sequence[Row]) -> Scores:
        """Rewards with their failures and reasons.

        Args:
            responses: Responses.
            rows: The row of the problem of each response.

        Raises:
            ValueError: The lengths differ, or the processes cannot import the function.
            RuntimeError: The processes do not start.
        """
        if len(responses) != len(rows):
            raise ValueError(f"{len(responses)} responses and {len(rows)} rows: give one row for each response")
        jobs = [Job(*pair) for pair in zip(responses, rows, strict=True)]
        with self._lock:
            if self.workers:
                self._run(jobs)
            else:
                for job in jobs:
                    job.finish(*call(self.function, job.response, job.row))
            self._count([job for job in jobs if job.reason])
        return Scores(
            np.array([job.value for job in jobs], np.float64),
            {index: job.reason for index, job in enumerate(jobs) if job.reason},
            [job.explanation for job in jobs],
        )

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        with self._lock:
            stop(self._pool)

    def __enter__(self) -> Reward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, jobs: list[Job]) -> None:
        """Do all jobs, each worker one at a time."""
        waiting = deque(jobs)
        try:
            while waiting or any(worker.job for worker in self._pool):
                self._pool += [
                    Worker(self._payload) for _ in range(min(self.workers, len(waiting)) - len(self._pool))
                ]
                for worker in self._pool:
                    if waiting and worker.ready and not worker.job:
                        worker.give(waiting.popleft(), self.seconds)
                limit = min(worker.deadline for worker in self._pool if not worker.idle)
                busy = {worker.connection: worker for worker in self._pool if not worker.idle}
                for connection in wait(list(busy), max(0.0, limit - time.monotonic())):
                    busy[connection].listen()  # type: ignore[index]
                now = time.monotonic()
                for worker in [worker for worker in self._pool if worker.is_over(now)]:
                    self._pool.remove(worker)
                    worker.end()
                    if worker.job:
                        worker.job.finish(0.0, worker.failure(self.seconds))
                    elif worker.unread:  # it had died while idle: the job is not at fault
                        waiting.appendleft(worker.unread)
        except BaseException:  # Ctrl-C too: results that nobody has received must not reach the next call
            stop(self._pool)
            raise

    def _count(self, failed: list[Job]) -> None:
        kinds = Counter(job.kind for job in failed)
        self.failures.update(kinds)
        for kind, count in kinds.items() if not self.quiet else ():
            first = next(job for job in failed if job.kind == kind)
            log.warning(
                "reward: %s (%d in this batch, which get 0 for it; the first: %s, at the response %.200r)",
                kind,
                count,
                first.reason,
                first.response,
            )
