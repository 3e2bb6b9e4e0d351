"""The table of runs, as wide and as high as the terminal."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from entropyfloor.extras import printable
from entropyfloor.runs.processes import terminated_as_interrupted
from entropyfloor.runs.run_reader import find_runs
from entropyfloor.watch.follow import Followed, Row

EVERY, SHARE = 1.0, 0.25
"""Seconds between two looks, and the largest share of the time that looking may take."""
STATES = {
    "running": "green",
    "failed": "bold red",
    "killed": "red",
    "damaged": "red",
    "unknown": "red",
    "interrupted": "yellow",
    "created": "dim",
    "finished": "dim",
}
"""Styles of the states. Where not all runs have room, those whose state is named first have it."""
NUMBERS = ("seed", "step", "speed", "left", "score", "entropy")
LEFT_OUT = ("reason", "domain", "seed", "task", "arm", "speed", "left")
"""Columns that a narrow terminal lacks, the first ones first."""
GAP, NARROWEST, PATHS = 2, 12, 0.25
"""Space between columns, least width of the paths, and share of the terminal that the other columns leave them."""
AROUND = 4
"""Lines of the terminal that are not rows: the summary, the head, how many more there are, and the cursor."""


def watch(paths: Sequence[Path], console: Console | None = None) -> None:
    """Show runs in the terminal until Ctrl-C or SIGTERM, from their files only.

    Args:
        paths: Directories of runs, or archives; runs that appear in them are shown too.
        console: The terminal; by default that of the standard output.

    Raises:
        ValueError: A path does not exist.
    """
    console = console or Console(highlight=False)
    runs: dict[Path, Followed] = {}
    live = Live(console=console, auto_refresh=False)
    with suppress(KeyboardInterrupt), terminated_as_interrupted(), live:
        while True:
            begun = time.perf_counter()
            rows = look(paths, runs)
            live.update(table(rows, console, max(0, console.height - AROUND)), refresh=True)
            time.sleep(max(EVERY, (time.perf_counter() - begun) * (1 / SHARE - 1)))


def snapshot(paths: Sequence[Path], console: Console | None = None) -> str:
    """The table of all runs as text, as wide as a terminal, and with no limit where there is none.

    Args:
        paths: Directories of runs, or archives.
        console: Where it will be printed; by default the standard output.

    Raises:
        ValueError: A path does not exist, or there is no run.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=10_000, highlight=False)
    with console.capture() as text:
        console.print(table(look(paths, {}, empty=False), console))
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def look(paths: Iterable[Path], runs: dict[Path, Followed], *, empty: bool = True) -> list[Row]:
    """A row for each run at or below `paths`.

    Args:
        paths: Directories or archives.
        runs: Runs that were looked at before; those that are gone are removed, new ones are added.
        empty: Whether there may be none.

    Raises:
        ValueError: A path does not exist, or there is no run where there must be one.
    """
    found = find_runs(*paths, empty=empty)
    for gone in runs.keys() - set(found):
        del runs[gone]
    runs.update({path: Followed(path) for path in found if path not in runs})
    return [runs[path].look() for path in found]


def table(rows: Sequence[Row], console: Console, most: int | None = None) -> RenderableType:
    """The table, with a line above it that counts the states.

    Args:
        rows: The runs.
        console: Its width decides which columns there are.
        most: Largest number of rows; by default all are shown.
    """
    if not rows:
        return Text("no run yet")
    order = list(STATES)
    shown = sorted(rows, key=lambda row: order.index(row.state) if row.state in order else 0)[:most]
    hidden = Counter(row.state for row in rows) - Counter(row.state for row in shown)
    parts: list[RenderableType] = [_counts(Counter(row.state for row in rows))]
    if shown:
        chosen = {row.path for row in shown}
        parts.append(_fitted([row for row in rows if row.path in chosen], console))
    if hidden:
        parts.append(Text.assemble(f"and {hidden.total()} more: ", _counts(hidden)))
    return Group(*parts)


def _counts(states: Counter[str]) -> Text:
    order = [*STATES, *states]
    parts = [Text(f"{states[state]} {state}", STATES.get(state, "")) for state in sorted(states, key=order.index)]
    return Text(" · ").join(parts)


def _fitted(rows: Sequence[Row], console: Console) -> Table:
    """The table, with as many columns as the console has room for."""
    above = _above([row.path for row in rows])
    lines = [_cells(row, above) for row in rows]
    unlimited = console.options.update(max_width=10**6)
    longest = max(len(line["run"]) for line in lines)
    columns = [name for name in lines[0] if name != "run" and any(line[name].plain for line in lines)]
    for name in (None, *LEFT_OUT):
        columns = [column for column in columns if column != name]
        room = console.width - GAP - Measurement.get(console, unlimited, _table(columns, lines)).maximum
        if room >= min(longest, console.width * PATHS):
            break
    room = max(room, NARROWEST)
    for line in lines:
        if len(line["run"]) > room:  # the end says more than the beginning
            line["run"] = Text(f"…{line['run'].plain[1 - room :]}")
    return _table(["run", *columns], lines)


def _table(columns: Sequence[str], lines: Sequence[Mapping[str, Text]]) -> Table:
    result = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in columns:
        result.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    for line in lines:
        result.add_row(*(line[name] for name in columns))
    return result


def _above(paths: Sequence[Path]) -> Path:
    """The directory that all of them are in."""
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def _cells(row: Row, above: Path) -> dict[str, Text]:
    entropy = Text("" if row.entropy is None else f"{row.entropy:.2f}")
    if row.floor is not None:
        entropy.append(f" of {row.floor:.2f}")
    if row.below:
        entropy.append(" below", "bold red")
    seed = "" if row.seed is None else str(row.seed)
    steps = "" if row.steps is None else f"/{row.steps:,}"
    left = "" if row.left is None else str(timedelta(seconds=round(row.left)))
    score = "" if row.score is None else f"{row.score[0]} {_number(row.score[1])}"
    plain = {
        "run": str(row.path.absolute().relative_to(above)),
        "domain": row.domain,
        "task": row.task,
        "arm": row.arm,
        "seed": seed,
    }
    return {
        **{name: Text(printable(text)) for name, text in plain.items()},
        "state": Text(row.state, STATES.get(row.state, "")),
        "step": Text(f"{row.step:,}{steps}"),
        "speed": Text("" if row.rate is None else _speed(row.rate)),
        "left": Text(left),
        "score": Text(score),
        "entropy": entropy,
        "reason": Text(printable(row.reason or "")),
    }


def _speed(rate: float) -> str:
    return f"{_number(rate)}/s" if rate >= 1 else f"{_number(1 / rate)} s"


def _number(value: float) -> str:
    """Four digits, or the whole number where it has more."""
    size = abs(value)
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}"
