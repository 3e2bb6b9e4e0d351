"""Packing runs into an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entropyfloor.runs import archive, files
from entropyfloor.runs.run_reader import find_runs, read_run

PACKED = (".toml", ".json", ".jsonl")
"""Kinds of files that are packed: settings, metrics, status, machine and evaluations, but no checkpoints."""


def pack(paths: Sequence[Path], out: Path) -> int:
    """Write the runs at or below `paths` into one archive; the same runs give the same bytes.

    Args:
        paths: Directories of runs, or archives. Runs are named by their path in these; of two with the same name,
            one of them in an archive, that of the later path is packed.
        out: The archive. If it is one of `paths`, or below one, the others are added to it.

    Returns:
        Number of runs in the archive.

    Raises:
        ValueError: The name does not end as an archive's, a run is damaged or is still written, a path is itself
            a run, which has no name, or two directories have runs of the same name.
    """
    if not out.name.endswith(archive.SUFFIX):
        raise ValueError(f"{out} must end in {archive.SUFFIX}, by which an archive of runs is known")
    runs: dict[str, Path] = {}
    for path in paths:
        for run in find_runs(path):
            packed_before = _is_in(out, run) and not _is_in(out, path)
            inside = run.resolve().relative_to(out.resolve()) if packed_before else run.relative_to(path)
            if (name := inside.as_posix()) == ".":
                raise ValueError(f"{run} is a run: give the directory that it is in, so that it has a name")
            if read_run(run).status["state"] == "running":
                raise ValueError(f"{run} is still written: wait for its end")
            other = runs.get(name)
            if other and other.resolve() != run.resolve() and not (archive.split(other) or archive.split(run)):
                raise ValueError(f"{other} and {run} would both be {name}: give a directory that has both")
            if not (packed_before and name in runs):
                runs[name] = run
    content = {f"{name}/{file}": data for name, run in runs.items() for file, data in _files(run).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace(out, archive.packed(content))
    return len(runs)


def _is_in(out: Path, path: Path) -> bool:
    return out.resolve() in (path.resolve(), *path.resolve().parents)


def _files(run: Path) -> dict[str, bytes]:
    if found := archive.split(run):
        file, below = found
        below_it = map(Path, archive.names(file, below))  # also of runs that are in this one
        names = [name for name in below_it if name.parent == Path(below)]
        return {name.name: archive.read(file, name.as_posix()) for name in names}
    return {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in PACKED}
