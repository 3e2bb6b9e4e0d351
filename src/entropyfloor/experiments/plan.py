"""What a plan takes: runs, time, memory and disk; and a refusal of what does not fit on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from entropyfloor.experiments.measure import arm_of, measure
from entropyfloor.experiments.recipe import PlannedRun
from entropyfloor.runs import machine
from entropyfloor.runs.needs import Needs

WAYS_OUT = {
    "replay": "--set replay_capacity=…",
    "activations": "--set micro_batch=… (language) or batch_size=… (vision)",
    "keys and values": "--set sample_batch=… or max_new_tokens=…",
}
"""Settings that lower what a run holds."""
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Runs that are to be started, with what they need."""

    runs: Sequence[PlannedRun]
    workers: int
    """Number of runs at a time, each a process that trains one seed."""
    needs: Mapping[int, Needs | str]
    """What each run that is left needs, by its index, or the reason why that is not known."""
    seconds: Mapping[int, float] | None = None
    """Seconds that whole runs take, of those that were measured; None without a measurement."""
    peak: float = 0.0
    """Largest memory that the process of a measured run took, in GiB; 0 without a measurement."""
    device_peak: float = 0.0
    """Largest memory of a device that a measured run took, in GiB; 0 where none used one."""
    states: Mapping[int, str] = field(default_factory=dict)
    """States of the runs that have begun, by their indices."""

    def of(self, indices: Sequence[int]) -> Plan:
        """The plan of some of its runs."""
        needs = {k: self.needs[i] for k, i in enumerate(indices) if i in self.needs}
        states = {k: self.states[i] for k, i in enumerate(indices) if i in self.states}
        return Plan([self.runs[i] for i in indices], self.workers, needs, states=states)

    @property
    def left(self) -> list[int]:
        """Indices of the runs that are not finished."""
        return [i for i in range(len(self.runs)) if self.states.get(i) != "finished"]

    @property
    def known(self) -> dict[int, Needs]:
        """Needs of the runs that are left, as far as they are known."""
        return {i: needs for i in self.left if isinstance(needs := self.needs[i], Needs)}

    @property
    def largest(self) -> Needs:
        """What the run needs that takes most memory."""
        return max(self.known.values(), key=lambda needs: needs.memory)

    @property
    def memory(self) -> int:
        """Bytes of memory that the largest runs need that go on at the same time."""
        return self._together(needs.memory for needs in self.known.values())

    @property
    def host(self) -> int:
        """The same, of the host, where the runs train on another device."""
        return self._together(needs.host for needs in self.known.values())

    @property
    def disk(self) -> int:
        """Bytes that the runs will write beside what they have written."""
        kept = sum(max(0, needs.disk - _written(self.runs[i].out)) for i, needs in self.known.items())
        return kept + self._together(needs.checkpoint for needs in self.known.values())

    def _together(self, sizes: Iterable[int]) -> int:
        """Sum of the largest, of as many as there are runs at a time."""
        return sum(sorted(sizes, reverse=True)[: self.workers])

    @property
    def time(self) -> float | None:
        """Seconds until all runs are trained, without evaluations; None where no run was measured."""
        if not self.seconds:
            return None
        trained = [self.runs[i] for i in self.left if self.runs[i].mode == "train"]
        rest = [self._seconds(run, self.seconds) * (1 - _share_done(run)) for run in trained]
        return max(sum(rest) / self.workers, max(rest, default=0.0))

    def _seconds(self, run: PlannedRun, measured: Mapping[int, float]) -> float:
        """Seconds of a whole run: the mean of what was measured of its arm and environment, or else of all."""
        same = [seconds for i, seconds in measured.items() if arm_of(self.runs[i]) == arm_of(run)]
        alike = same or [*measured.values()]
        return sum(alike) / len(alike)

    def timed(self) -> Plan:
        """The same plan after a short measurement of its runs; see `measure`."""
        left = self.left
        found = measure([self.runs[i] for i in left], self.workers)
        return replace(
            self,
            seconds={left[k]: each.seconds for k, each in found.items()},
            peak=max((each.memory for each in found.values()), default=0.0),
            device_peak=max((each.device for each in found.values()), default=0.0),
        )

    def lines(self) -> list[str]:
        """The plan in words."""
        left = self.left
        done = f", {finished} finished before" if (finished := len(self.runs) - len(left)) else ""
        begun = f", {some} of them begun" if (some := len(self.states.keys() & left)) else ""
        runs = f"{len(left)} to run{begun}{done}, {self.workers} at a time"
        return [f"runs    {runs}", *self._time(), *self._memory(), *self._disk(), *self._unknown()]

    def _time(self) -> list[str]:
        if self.seconds is None:
            return ["time    not known: --measure trains for up to a minute to find out"]
        if self.time is None:
            return ["time    not known: no run had trained long enough when the measurement ended"]
        how = f"{len(self.seconds)} of {len(self.runs)} runs trained for some seconds, {self.workers} at a time"
        return [f"time    about {_duration(self.time)} without evaluations and warm starts ({how})"]

    def _memory(self) -> list[str]:
        if not self.known:
            return []
        moment, parts = self.largest.peak
        listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size > 0.005 * GIB)
        where = f" of a device, and {_gib(self.largest.host)} of the host" if self.largest.host else ""
        estimate = f"memory  {_gib(self.memory)} GiB{where}; the largest run at its {moment}: {listed}"
        peak, device = (_gib(size * GIB) for size in (self.peak, self.device_peak))
        most = f"{device} GiB of a device, and {peak} of the host" if self.device_peak else f"{peak} GiB"
        measured = f"        measured: at most {most} in a run that trained for some seconds"
        return [estimate, *([measured] if self.peak else [])]

    def _disk(self) -> list[str]:
        if not self.known:
            return []
        return [f"disk    {_gib(self.disk)} GiB of {_gib(_free(self.runs[0].out))} GiB that are free"]

    def _unknown(self) -> list[str]:
        reasons = dict.fromkeys(reason for i in self.left if isinstance(reason := self.needs[i], str))
        return [f"unknown {reason}" for reason in reasons]

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            ValueError: The runs need more memory or disk than there is.
        """
        if not self.known:
            return
        device = machine.device_memory() if self.largest.host else None
        limit = machine.memory() if device is None else device
        self._check_memory(limit, "machine" if device is None else "device")
        if self.host > machine.memory():
            raise ValueError(
                f"writing checkpoints needs {_gib(self.host)} GiB of the host's memory, and this machine has "
                f"{_gib(machine.memory())} GiB for it: train where there is more"
            )
        self.check_disk()

    def check_disk(self) -> None:
        """Refuse what the disk does not hold.

        Raises:
            ValueError: The runs need more than is free.
        """
        if self.disk > (free := _free(self.runs[0].out)):
            raise ValueError(
                f"the runs will write {_gib(self.disk)} GiB, and {_gib(free)} GiB are free at {self.runs[0].out}: "
                f"give --out on another disk, or fewer --arms or --seeds"
            )

    def _check_memory(self, limit: int, where: str) -> None:
        if self.memory <= limit:
            return
        largest = self.largest
        moment, parts = largest.peak
        if largest.memory <= limit:
            fit = limit // largest.memory
            raise ValueError(
                f"{self.workers} runs at a time need {_gib(self.memory)} GiB, and this {where} has "
                f"{_gib(limit)} GiB for them: give --workers {fit}"
            )
        most = max(parts, key=lambda name: parts[name])
        over = largest.memory - limit
        enough = [name for name in WAYS_OUT if parts.get(name, 0) > over]
        way = WAYS_OUT[enough[0]] if enough else "a smaller model"
        raise ValueError(
            f"a run needs {_gib(largest.memory)} GiB at its {moment}, {_gib(parts[most])} GiB of them for {most}, "
            f"and this {where} has {_gib(limit)} GiB for it: give {way}, or a {where} with more"
        )


def _share_done(run: PlannedRun) -> float:
    """Share of a run that is done, by the step of its last checkpoint."""
    total = run.settings.get("epochs" if run.domain == "vision" else "steps")
    saved = sorted(run.out.glob("checkpoints/[0-9]*")) if total else []
    return min(1.0, int(saved[-1].name) / int(total)) if saved and total else 0.0


def _written(out: Path) -> int:
    """Bytes of a run's checkpoints."""
    size = 0
    for home, _, names in os.walk(out / "checkpoints"):
        for name in names:
            with suppress(FileNotFoundError):  # a command that writes the run removes older ones meanwhile
                size += Path(home, name).stat().st_size
    return size


def _free(path: Path) -> int:
    """Bytes that are free where a path is or would be."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}" if size < 10 * GIB else f"{size / GIB:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
