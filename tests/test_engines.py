"""Engines: the same plan has the same results on this machine, on a Ray cluster and by Slurm."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from entropyfloor.experiments import execute as execution
from entropyfloor.experiments import recipe
from entropyfloor.experiments.engines import local, slurm
from entropyfloor.experiments.engines.slurm import Job
from entropyfloor.experiments.execute import begin, execute
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.experiments.reproduce import reproduce
from entropyfloor.runs import Run, read_run

PLAN = """
title = "Four short runs"
source = "a test"
domain = "language"

[settings]
task = "arithmetic"
layers = 1
hidden = 16
heads = 2
warm_start_steps = 0
steps = 150
prompts = 2
samples = 2
eval_problems = 1
eval_samples = 1
eval_every = 50
checkpoint_every = 10
threads = 1

[scales.cpu]
seeds = [0, 1]

[arms.grpo]

[arms.era]
head = "era"
"""
PATIENCE = 180.0
"""Seconds that a test waits for another process."""


def plan(home: Path, out: str, steps: int = 150) -> list[PlannedRun]:
    (home / "four.toml").write_text(PLAN.replace("steps = 150", f"steps = {steps}"))
    return recipe.load(str(home / "four.toml")).runs("cpu", Path(out))


def wait_for(condition, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)
    return found


def check_same_results(runs: list[PlannedRun], others: list[PlannedRun]):
    """What two engines have measured, to the last bit."""
    for run, other in zip(runs, others, strict=True):
        one, two = read_run(run.out), read_run(other.out)
        assert one.status["state"] == two.status["state"] == "finished"
        assert set(one.columns) == set(two.columns)
        for name in set(one.columns) - {"tokens_per_second"}:
            for mine, theirs in zip(one.columns[name], two.columns[name], strict=True):
                np.testing.assert_array_equal(mine, theirs, err_msg=name)


def has_checkpoint(run: PlannedRun) -> bool:
    return any((run.out / "checkpoints").glob("[0-9]*")) and read_run(run.out).status["state"] == "running"


def command_of(run: PlannedRun) -> psutil.Process | None:
    """The process that trains a run."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "entropyfloor.experiments.watched" in words and str(run.out) in words:
            return process
    return None


def resumptions(run: PlannedRun) -> int:
    return (run.out / "metrics.jsonl").read_text().count('"event": "resumed"')


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_stops_with_the_process_that_started_it(home):
    """A kill leaves no run behind: the run saves, and the next process continues it."""
    run = plan(home, "runs")[0]
    code = f"""
from pathlib import Path
from entropyfloor.experiments import recipe
from entropyfloor.experiments.execute import execute
Path("runs/grpo").mkdir(parents=True)
execute(recipe.load({str(home / "four.toml")!r}).runs("cpu", Path("runs"))[0], Path.cwd())
"""
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        wait_for(lambda: has_checkpoint(run))
        training = command_of(run)
        starter.kill()
    training.wait(PATIENCE)
    assert read_run(run.out).status["state"] == "interrupted"
    assert execute(run, home) == "done"
    assert resumptions(run) == 1
    assert execute(run, home) == "finished before"


def test_a_node_without_the_directory_refuses(home):
    with pytest.raises(ValueError, match="all nodes share"):
        execute(plan(home, "runs")[0], home / "elsewhere")


@pytest.mark.slow
def test_a_run_that_is_still_written_is_waited_for(home, monkeypatch):
    """The process of a lost worker may still be saving."""
    run = plan(home, "runs")[0]
    first = begin(run, home)
    wait_for(lambda: has_checkpoint(run))
    threading.Timer(2.0, first.terminate).start()
    assert execute(run, home) == "done"
    assert resumptions(run) == 1
    assert first.wait() == 130
    first.stdin.close()


@pytest.fixture
def written(home):
    """A plan whose first run this process is writing."""
    runs = plan(home, "runs")
    run = Run.create(home / runs[0].out, {"domain": "language", "seed": 0})
    with ExitStack() as writing:
        writing.enter_context(run.recording("none"))
        yield runs, writing


def test_the_local_engine_goes_on_with_other_runs_while_one_is_still_written(home, written, monkeypatch):
    """A command that was killed a moment ago leaves runs that are saving."""
    runs, writing = written
    monkeypatch.setattr(local, "begin", lambda run, directory: None)  # as if it were finished
    order = []

    def ended(run, outcome):
        order.append((runs.index(run), outcome))
        if len(order) == 3:
            writing.close()  # the writer has saved
        return True

    local.run(runs, home, 1, ended)
    assert order == [(i, "finished before") for i in (1, 2, 3, 0)]


@pytest.mark.parametrize("engine", ["local", "execute"])
def test_a_run_that_another_process_keeps_writing_is_named_and_the_others_are_done(
    home, written, monkeypatch, engine
):
    runs, _ = written
    outcomes = {}
    for module in (local, execution):
        monkeypatch.setattr(module, "begin", lambda run, directory: None)
        monkeypatch.setattr(module, "SAVING", 0.1)
    if engine == "local":
        local.run(runs, home, 1, lambda run, outcome: outcomes.update({run.out: outcome}) or True)
    else:
        for run in runs:
            (home / run.out).parent.mkdir(parents=True, exist_ok=True)
        outcomes = {run.out: execute(run, home) for run in runs}
    assert [outcomes[run.out] for run in runs] == ["failed", *["finished before"] * 3]
    log = execution.log_file(runs[0], home).read_text()
    assert log.startswith(f"another process is writing {runs[0].out} and has not stopped within 0.1 s")


@pytest.mark.slow
def test_a_damaged_checkpoint_stops_only_its_own_run(home):
    """The command refuses it with the status of wrong settings, which would stop the whole plan."""
    runs = plan(home, "runs")[:2]
    damaged = Run.create(home / runs[0].out, {"domain": "language", "seed": 0})
    damaged.save(1, {"weights": np.zeros(3)}, {})
    [checkpoint] = damaged.checkpoints()
    next(checkpoint.glob("*.safetensors")).write_bytes(b"cut")
    outcomes = {}
    local.run(runs, home, 1, lambda run, outcome: outcomes.update({run.out: outcome}) or outcome != "refused")
    assert [outcomes[run.out] for run in runs] == ["failed", "done"]
    assert "checksum" in execution.log_file(runs[0], home).read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore:os.fork:RuntimeWarning",
)  # the last is of JAX, where other tests have imported it
def test_ray_loses_no_run_with_a_worker_and_a_node(home):
    """A killed worker and a removed node: every run is finished, none twice, with the local engine's bits."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    runs = plan(home, "ray", steps=500)  # long enough to break things in, also on a fast machine
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    failures = []

    def break_things() -> None:
        try:
            wait_for(lambda: has_checkpoint(runs[0]) and has_checkpoint(runs[1]))
            command_of(runs[0]).parent().kill()
            wait_for(lambda: resumptions(runs[0]) == 1)
            on_second = wait_for(lambda: [run for run in runs if has_checkpoint(run) and is_on(second, run)])
            cluster.remove_node(second, allow_graceful=False)
            wait_for(lambda: not command_of(on_second[0]) or resumptions(on_second[0]) > 0)
        except BaseException as error:
            failures.append(error)

    breaking = threading.Thread(target=break_things)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        breaking.start()
        reproduce(runs, engine="ray")
        breaking.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert not failures
    assert sum(map(resumptions, runs)) >= 2
    others = plan(home, "local", steps=500)
    reproduce(others, 2)
    assert sum(map(resumptions, others)) == 0
    check_same_results(runs, others)


def is_on(node, run: PlannedRun) -> bool:
    """Whether a run is trained on a node: below its raylet."""
    training = command_of(run)
    raylet = node.all_processes["raylet"][0].process.pid
    return training is not None and raylet in [parent.pid for parent in training.parents()]


def test_an_evaluation_wants_an_accelerator_for_each_of_its_devices(tmp_path):
    scores = recipe.load("language/scores")
    assert {run.accelerators for run in scores.runs("paper", tmp_path)} == {1}
    assert {run.accelerators for run in scores.runs("paper", tmp_path, settings={"devices": 4})} == {4}


def test_a_ray_cluster_without_what_a_run_needs_is_refused(home):
    ray = pytest.importorskip("entropyfloor.experiments.engines.ray")
    run = plan(home, "runs")[0]
    nodes = [{"Resources": {"CPU": 2.0}}, {"Resources": {"CPU": 8.0, "GPU": 1.0}}]
    ray._check_resources([run], nodes)
    run = dataclasses.replace(run, accelerators=2)
    with pytest.raises(ValueError, match=r"needs 1 cores and 2 accelerators on a node, and .* 2 cores"):
        ray._check_resources([run], nodes)


@pytest.mark.slow
def test_a_job_of_slurm_saves_before_its_time_limit(home):
    """`checkpoint` is what submitit calls then; the job, called again, continues."""
    pytest.importorskip("submitit")
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    run = plan(home, "runs", steps=1500)[0]  # so long that it cannot end before the limit
    run.out.parent.mkdir(parents=True)
    job = Job(run, home)
    again = []

    def limit() -> None:
        wait_for(lambda: has_checkpoint(run))
        again.append(job.checkpoint())

    timer = threading.Thread(target=limit)
    timer.start()
    with pytest.raises(RuntimeError, match="failed: see"):
        job()
    timer.join()
    assert read_run(run.out).status["state"] == "interrupted"
    again[0].function()
    assert read_run(run.out).status["state"] == "finished"
    assert resumptions(run) == 1
    other.communicate()


SLURM = {
    "srun": "",
    "sbatch": 'echo >> jobs; echo "Submitted batch job $(wc -l < jobs)"',
    "squeue": 'test -z "$SQUEUE_STATES" && cat queue',
}
"""Stand-ins for the commands of Slurm, which give numbers to jobs and execute none."""


def test_a_run_whose_job_is_still_queued_is_not_queued_again(home, monkeypatch):
    pytest.importorskip("submitit")
    for name, script in SLURM.items():
        path = home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncd {home}\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    runs = plan(home, "runs")

    def submit() -> list[str]:
        outcomes = []
        slurm.run(runs, home, None, lambda run, outcome: outcomes.append(outcome) or True)
        return outcomes

    assert submit() == ["submitted"] * 4
    (home / "queue").write_text("1_0\n1_2\n1_3\n")
    monkeypatch.setenv("SQUEUE_STATES", "all")  # would list jobs that have ended
    assert submit() == ["queued before", "queued before", "queued before", "submitted"]
    (home / "bin" / "squeue").unlink()
    with pytest.raises(RuntimeError, match="squeue is not installed: Slurm takes no jobs from this machine"):
        submit()
    monkeypatch.setattr(slurm, "state", lambda *_: "finished")
    assert submit() == ["finished before"] * 4  # nobody has to be asked


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs Slurm")
def test_slurm_does_what_the_local_engine_does(home):
    pytest.importorskip("submitit")
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("Slurm does not answer")
    runs = plan(home, "slurm-runs")
    reproduce(runs, engine="slurm")
    wait_for(lambda: has_checkpoint(runs[0]))
    reproduce(runs, engine="slurm")  # a second time: nothing is queued again
    assert len(list((home / "slurm").glob("*_submitted.pkl"))) == len(runs)
    wait_for(lambda: all(execution.state(run, home) == "finished" for run in runs), 600)
    assert sum(map(resumptions, runs)) == 0
    others = plan(home, "local")
    reproduce(others, 2)
    check_same_results(runs, others)


@pytest.mark.slow
def test_an_interrupt_makes_runs_on_ray_save(home):
    """Also where SIGINT, by which Ray cancels, is ignored, as in the background of a script."""
    pytest.importorskip("ray")
    runs = plan(home, "runs", steps=100_000)[:1]
    command = ["bash", "-c", 'trap "" INT; exec "$@"', "-", sys.executable, "-m", "entropyfloor.cli"]
    what = ["reproduce", "four.toml", "--out", "runs", "--arms", "grpo", "--seeds", "0", "--engine", "ray"]
    with subprocess.Popen([*command, *what], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: has_checkpoint(runs[0]))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 130
            assert "the same command continues" in process.stderr.read()
        finally:
            process.kill()
    assert read_run(runs[0].out).status["state"] == "interrupted"
