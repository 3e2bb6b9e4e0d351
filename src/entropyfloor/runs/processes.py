"""Runs side by side, each in a process of its own: for CPUs with more cores than one run can use."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for_any
from typing import Any, TypeVar

from entropyfloor.extras import FAILED, REFUSED, one_line

T = TypeVar("T")


def cores() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def each_in_its_process(
    work: Callable[[T], object], items: Sequence[T], names: Sequence[str], workers: int
) -> None:
    """Call `work(item)` for each item in a process of its own; one that fails does not stop the others.

    Args:
        work: A function that can be pickled. SIGTERM asks it to save and stop.
        items: Arguments of the calls.
        names: Names of the items in messages.
        workers: Processes at a time.

    Raises:
        RuntimeError: Some calls failed; the message names them, and each has printed its reason.
    """
    context = get_context("spawn")
    waiting = [
        context.Process(target=_work, args=(work, item, name), name=name)
        for item, name in zip(items, names, strict=True)
    ]
    running: list[Any] = []
    failed: list[str] = []
    with terminated_as_interrupted():
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(waiting.pop(0))
                    running[-1].start()
                wait_for_any([process.sentinel for process in running])
                for process in [process for process in running if not process.is_alive()]:
                    running.remove(process)
                    if process.exitcode:
                        failed.append(process.name)
        finally:
            stop([process for process in running if process.pid is not None], lambda process: process.join())
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, of {len(items)} runs; the reasons are above")


def stop(processes: Sequence[Any], wait: Callable[[Any], object]) -> None:
    """Make each process save and stop, and wait for it; a second Ctrl-C stops those that are still saving.

    Args:
        processes: Processes of `subprocess` or `multiprocessing` that have been started.
        wait: Waits for the end of one.
    """

    def terminate() -> None:
        for process in processes:
            process.terminate()  # not SIGINT, which processes in the background of a script ignore
        for process in processes:
            wait(process)

    try:
        terminate()
    except KeyboardInterrupt:
        terminate()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C while the body runs, so that it ends as carefully."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _work(work: Callable[[T], object], item: T, name: str) -> None:
    os.setpgrp()  # Ctrl-C reaches it once, through the parent: twice would not let it save
    stop_with_parent()
    try:
        with terminated_as_interrupted():
            work(item)
    except KeyboardInterrupt as error:
        sys.exit(f"{name} stopped: {error}")
    except (*REFUSED, *FAILED) as error:
        sys.exit(f"{name} failed: {one_line(error)}")


def stop_with_parent() -> None:
    """Send SIGTERM to this process when its parent has ended, even by a kill."""

    def wait_for_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_parent, daemon=True).start()
