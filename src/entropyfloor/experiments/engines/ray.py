"""Runs as tasks on a Ray cluster: the one that `RAY_ADDRESS` names, the one on this machine, or a new one here.

A run whose worker or node is lost continues from its last checkpoint on another one.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.experiments.execute import Ended, Outcome, execute, log_file
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.extras import brief, require
from entropyfloor.runs.processes import terminated_as_interrupted

RETRIES = 10
"""Times that a run is started again after the loss of its worker."""


def run(plan: Sequence[PlannedRun], directory: Path, workers: int | None, ended: Ended) -> None:
    """Execute a plan; Ctrl-C makes all runs save and stop.

    Args:
        plan: Runs in the order in which they are started.
        directory: Directory that relative paths start from, on a file system that all nodes share.
        workers: Number of runs at a time; by default as many as the cluster has cores and accelerators for.
        ended: Called with each run and its outcome.

    Raises:
        ImportError: Ray is not installed.
        ValueError: No node has what a run needs, or a node does not share the file system.
    """
    require("ray", "ray")
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        _check_resources(plan, ray.nodes())
        with terminated_as_interrupted():  # here, because Ray has its own treatment of SIGTERM
            _execute(plan, directory, workers or len(plan), ended)
    finally:
        if mine:
            ray.shutdown()


def _execute(plan: Sequence[PlannedRun], directory: Path, workers: int, ended: Ended) -> None:
    import ray

    task = ray.remote(_work)
    waiting = list(plan)
    running: dict[Any, PlannedRun] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                log_file(run, directory).parent.mkdir(parents=True, exist_ok=True)
                options = {"num_cpus": run.cpus, "num_gpus": run.accelerators, "max_retries": RETRIES}
                running[task.options(**options, name=str(run.out)).remote(run, directory)] = run
            for reference in ray.wait(list(running))[0]:
                run = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    with log_file(run, directory).open("a") as file:
                        print(f"Ray: {brief(error)}", file=file)
                    outcome = "failed"
                if not ended(run, outcome):
                    waiting.clear()
    finally:
        for reference in running:
            ray.cancel(reference)
        ray.wait(list(running), num_returns=len(running)) if running else None


def _work(run: PlannedRun, directory: Path) -> Outcome:
    """Execute a run in a worker; Ray cancels it by SIGINT, which is ignored in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return execute(run, directory)


def _check_resources(plan: Sequence[PlannedRun], nodes: Sequence[dict[str, Any]]) -> None:
    """Refuse runs for which no node is large enough: Ray would wait for one without end."""
    for run in plan:
        needs = {"CPU": run.cpus, "GPU": run.accelerators}
        if not any(all(node["Resources"].get(kind, 0) >= n for kind, n in needs.items()) for node in nodes):
            sizes = ", ".join(_words(node["Resources"]) for node in nodes)
            raise ValueError(f"{run.out} needs {_words(needs)} on a node, and the cluster has {sizes}")


def _words(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):.0f} cores and {resources.get('GPU', 0):.0f} accelerators"
