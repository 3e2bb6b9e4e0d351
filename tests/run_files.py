"""Run directories as files, so that tests can damage them; `Run` itself writes only whole ones."""

import hashlib
import json

import tomli_w

from entropyfloor.runs import read_run

CONFIG = {"domain": "control", "agent": "sac-era-exact", "env": "dmc/walker-walk", "steps": 3000, "alpha": 0.5}
STATUS = {"state": "finished", "reason": None, "step": 3000, "time": "2026-11-21T19:16:34+00:00"}
MACHINE = {
    "versions": {"python": "3.11.7", "numpy": "2.4.6"},
    "hardware": {"cpu": "a CPU", "cores": 2, "memory_gb": 23.5, "gpu": None},
    "system": "Linux",
    "command": "entropyfloor train control",
    "commit": None,
    "started": "2026-11-21T19:12:46+00:00",
    "not_results": ["seed", "out", "threads"],
}
EVALUATION = {
    "step": 3000,
    "values": {"auroc": 0.75, "nll": 1.5},
    "problems": 2,
    "samples": 8,
    "problem_keys": ["a", "b"],
    "correct": [3, 8],
    "temperature": 1.0,
    "entropy_histogram": {"edges": [0.0, 0.5, 1.0], "counts": [3, 100]},
    "calibration_histogram": {
        "edges": [0.0, 0.5, 1.0],
        "counts": [3, 100],
        "correct": [2, 80],
        "confidence": [1.0, 90.0],
    },
}


def metrics(seed, steps=range(0, 3001, 1000)):
    """Lines: of each step an evaluation and, but for the first, what training logged."""
    for step in steps:
        if step:
            trained = {"loss/actor": 1.5, "alpha": 0.5, "steps_per_second": 100.0 + seed}
            yield {"step": step, "seconds": step / 100, **trained}
        entropy = {"realised_entropy": -2.5, "realised_entropy/min": -3.0, "floor": -3.0}
        yield {"step": step, "seconds": step / 100 + 0.5, "return": float(step + seed), **entropy}


def contents(seed=0):
    """What the five files hold."""
    return {
        "config.toml": {**CONFIG, "seed": seed},
        "metrics.jsonl": [*metrics(seed)],
        "status.json": dict(STATUS),
        "machine.json": dict(MACHINE),
        "evaluation.json": dict(EVALUATION),
    }


def dumped(content):
    """Bytes of each file."""
    return {
        name: tomli_w.dumps(value).encode()
        if name == "config.toml"
        else "".join(f"{json.dumps(line)}\n" for line in (value if isinstance(value, list) else [value])).encode()
        for name, value in content.items()
    }


def write(path, files):
    """A run directory of these bytes."""
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def healthy(path, seed=0):
    """A run directory without a fault."""
    return write(path, dumped(contents(seed)))


def with_header(checkpoint, **values):
    """A checkpoint with other values in its state.json, and the checksums of that."""
    header = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(header | values))
    names = ("arrays.safetensors", "state.json")
    sums = (f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (checkpoint / "SHA256SUMS").write_text("".join(sums))


CLOCK = ("seconds", "steps_per_second", "tokens_per_second", "images_per_second")


def history(path):
    """What a run has logged, without what the clock says."""
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in read_run(path).lines]
