"""The command of an audit: measures a model, compares it with a floor, and writes the page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from entropyfloor.audit.page import table, write_page
from entropyfloor.audit.samples import Samples
from entropyfloor.audit.summary import check_floor, summarise


def command_of(
    measure: Callable[..., Samples], summary: str, naming: Callable[[], AbstractContextManager[None]]
) -> Callable[..., None]:
    """The command that the parser calls.

    Args:
        measure: Function that returns the samples; its arguments are options of the command.
        summary: Help of the command.
        naming: Context that names the model in a refusal that does not.
    """

    @wraps(measure)
    def deferred(*values: Any, **options: Any) -> Callable[[], Samples]:
        return partial(measure, *values, **options)

    def command(samples: Any, floor: float | None = None, out: Path = Path("audit")) -> None:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        check_floor(floor)  # measuring may take minutes
        if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
            raise ValueError(f"out={out} must be a directory, or a place for a new one")
        with naming():
            audit = summarise(samples(), floor)
        console.print(table(audit))  # first, so that a full disk does not cost the numbers
        page = write_page(audit, out)
        console.print(f"page: {page.resolve().as_uri()}\njson: {page.with_name('audit.json')}")
        audit.check()
        console.print(audit.verdict)

    options: Any = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=deferred)]
    command.__annotations__ |= {"samples": options, "floor": float | None, "out": Path}
    command.__doc__ = f"""{summary}

        Args:
            samples: What is measured.
            floor: Floor in nats that the entropy is compared with, by default the one that the model promises. The
                exit status is 1 if it is broken.
            out: Directory for the page, index.html, and the numbers, audit.json.
        """
    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(command)
