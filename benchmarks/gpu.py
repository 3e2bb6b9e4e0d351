"""Speed and correctness on one accelerator, in less than eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts token-head sac --minutes 4
    python benchmarks/gpu.py --scale tiny

token-head: the last layer of a language model with Triton's kernels: errors, share of the rate of matrix products,
    time and memory beside the naive head, Liger, cut-cross-entropy and the paper's release, and the cost of ERA.
sac: updates of SAC, many seeds at once, with a plain head, ERA's and the exact one.
classifier: steps of ResNets with and without a floor, eager and compiled, and `era_softmax` beside log-softmax.
floors-torch, floors-jax: how far adversarial inputs, in three precisions, get below a floor on this device.
parallel: training with simulators on the device, several seeds at once: returns over time and steps, and speed.
    It needs Gymnasium and MuJoCo, and takes a task of MuJoCo Playground where that is installed. Compiling takes a
    minute or more: `--parts parallel` leaves more for training.

Each part is a process of its own with a share of the time; what a part does not use is left to those after it. A
row is written as soon as it is measured, to <out>/<date>-<gpu>.jsonl, and for people to the .txt beside it:
Ctrl-C, SIGTERM, a crash or the end of the time lose only what follows. What cannot be measured has a row with the
reason.

The sides of a comparison take turns in random order. Times are wall time and include waiting for the device, but
not the first turns, in which compilers work. They and ratios are medians over rounds with a 95 % bootstrap
interval. The share of the matrix limit counts three products, forward, for the hidden states and for the weight; a
head that does not keep the logits computes four.

The tiny scale checks that everything runs, on a CPU if there is nothing else. Its numbers mean nothing, and it
writes into build/benchmarks unless `--out` says otherwise. Needs NumPy, SciPy, psutil and safetensors, PyTorch and
JAX for that device, and timm for `classifier`; a part that lacks something is skipped.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from entropyfloor.extras import one_line
from entropyfloor.runs import machine
from gpu_parts.rows import VIOLATED, Plan, Row, UnavailableError

ROOT = Path(__file__).parents[1]
OUT = {"full": ROOT / "results" / "benchmarks", "tiny": ROOT / "build" / "benchmarks"}
DEVICES = "/dev/nvidiactl", "/dev/kfd"
"""Files of the drivers of NVIDIA's and AMD's GPUs, one of which the full scale needs."""
RESERVE = 0.1
"""Share of its time that a part keeps for what it has begun."""
LIBRARIES = ("triton", "liger-kernel", "cut-cross-entropy", "jax-cuda12-plugin", "jax-cuda13-plugin")
"""Packages in the header beside those of a run's `machine.json`."""
FAILED = "failed: "
"""Beginning of the reason where something went wrong."""


class Part(NamedTuple):
    """A part of the benchmark."""

    module: str
    share: float
    """Share of the time, of the parts that are asked for."""
    arguments: tuple[str, ...] = ()


PARTS = {
    "token-head": Part("token_head", 0.3),
    "sac": Part("sac", 0.27),
    "classifier": Part("classifier", 0.23),
    "floors-torch": Part("floors", 0.1, ("torch",)),
    "floors-jax": Part("floors", 0.1, ("jax",)),
    "parallel": Part("parallel", 0.4),
}


class Record:
    """The files of one benchmark, each line written at once.

    Args:
        directory: Directory of both files.
        header: Machine, versions and settings; the first line.
    """

    def __init__(self, directory: Path, header: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        gpu = header["hardware"]["gpu"] or ("cpu" if header["scale"] == "tiny" else "gpu")
        gpu = re.sub(r"[^a-z0-9]+", "-", gpu.splitlines()[0].lower()).strip("-")
        name, count = f"{header['started'][:10]}-{gpu}", 1
        while (directory / f"{name}.jsonl").exists():
            count += 1
            name = f"{header['started'][:10]}-{gpu}-{count}"
        self.path, self._lines = directory / f"{name}.txt", directory / f"{name}.jsonl"
        self._title: tuple[str, str] | None = None
        _append(self._lines, json.dumps({"header": header}))
        self.say(_header_text(header))

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Write a row."""
        _append(self._lines, json.dumps({"part": part, **row}))
        if self._title != (part, row["case"]):
            self._title = part, row["case"]
            self.say(f"\n{part}: {row['case']}")
        self.say(f"  {Row(**row).text()}")

    def say(self, text: str) -> None:
        """Write text for people, here and on the terminal."""
        _append(self.path, text)
        print(text, flush=True)


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        print(line, file=file)


def _header_text(header: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in header["versions"].items())
    hardware = header["hardware"]
    device = f"{hardware['gpu'] or 'no GPU'}, driver {header['driver']}, {hardware['cpu']}"
    scale = "" if header["scale"] == "full" else f"\nscale {header['scale']}: these numbers mean nothing"
    return f"{device}, {header['started']}, commit {header['commit']}\n{versions}{scale}"


def describe(scale: str, minutes: float, commit: str | None) -> dict[str, Any]:
    """The header."""
    header = machine.describe()
    for name in LIBRARIES:
        try:
            header["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    driver = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return header | {"commit": commit or header["commit"], "driver": driver, "scale": scale, "minutes": minutes}


# --- a part, in its own process -----------------------------------------------------------------------------


def serve(name: str, scale: str, seconds: float) -> int:
    """Measure one part, and print its rows as JSON.

    Returns:
        The exit status: 0 if the part ran or cannot run here, 1 if it failed.
    """
    # Whatever libraries print goes to the other stream, so that rows stay alone.
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    part = PARTS[name]
    plan = Plan(scale == "tiny", time.monotonic() + (1 - RESERVE) * seconds)

    def write(row: Row) -> None:
        print(json.dumps(row.plain(), allow_nan=False), file=rows, flush=True)

    try:
        for row in importlib.import_module(f"gpu_parts.{part.module}").rows(plan, *part.arguments):
            write(row)
    except (ImportError, UnavailableError) as error:
        write(Row("all", "all", skipped=one_line(error)))
    except Exception as error:
        traceback.print_exc()
        write(Row("all", "the rest", skipped=f"{FAILED}{type(error).__name__}: {one_line(error)}"))
        return 1
    return 0


# --- all parts ----------------------------------------------------------------------------------------------


def measure(name: str, scale: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of a part, from its own process, which is killed after `seconds` with all processes that it started."""
    command = [sys.executable, __file__, f"--serve={name}", f"--scale={scale}", f"--seconds={seconds}"]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if scale == "tiny":
        environment["TRITON_INTERPRET"] = "1"
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0)
    late, failed = threading.Event(), False

    def stop() -> None:
        late.set()
        kill(child)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        assert child.stdout is not None
        for row in map(json.loads, child.stdout):
            failed |= row.get("skipped", "").startswith(FAILED)
            yield row
        status = child.wait()
    finally:
        timer.cancel()
        kill(child)
        child.wait()
    if late.is_set():
        yield {"case": "all", "name": "the rest", "skipped": f"the part was stopped after its {seconds:.0f} s"}
    elif status and not failed:
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        yield {"case": "all", "name": "the rest", "skipped": f"{FAILED}{reason}"}


def kill(child: subprocess.Popen) -> None:
    """End a process and its children, compilers among them. Children that outlive it hold its output open."""
    with suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(child.pid, signal.SIGKILL)


def terminate(number: int, _: Any) -> None:
    """Stop, and name the signal."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all parts in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, help="for all parts together; by default 7.5, tiny 20")
    parser.add_argument("--scale", choices=OUT, default="full")
    parser.add_argument("--out", type=Path, help="directory of the two files")
    parser.add_argument("--commit", help="commit of the sources, where git cannot tell")
    parser.add_argument("--serve", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        return serve(args.serve, args.scale, args.seconds)
    start = time.monotonic()
    minutes = args.minutes or (7.5 if args.scale == "full" else 20)
    header = describe(args.scale, minutes, args.commit)
    if args.scale == "full" and not any(map(os.path.exists, DEVICES)):
        parser.error("there is no GPU here: --scale tiny (SCALE=tiny make bench-gpu) tries all parts on a CPU")
    record = Record(args.out or OUT[args.scale], header)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, terminate)
    total, share, failed = sum(PARTS[name].share for name in args.parts), 0.0, False
    try:
        for name in args.parts:
            share += PARTS[name].share
            seconds = start + 60 * minutes * share / (total or 1) - time.monotonic()
            for row in measure(name, args.scale, max(seconds, 0)):
                record.add(name, row)
                failed |= row.get("skipped", "").startswith(FAILED) or row.get("remark", "").startswith(VIOLATED)
        end = "finished"
    except KeyboardInterrupt as error:
        end = f"stopped by {error}"
    record.say(f"\n{end} after {time.monotonic() - start:.0f} s: {record.path}")
    return 130 if end != "finished" else int(failed)


if __name__ == "__main__":
    sys.exit(main())
