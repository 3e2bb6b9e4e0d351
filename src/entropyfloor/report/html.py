"""Pages in one file: their templates, style and script, and figures inside them."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from entropyfloor.report.figures.style import COLOURS, MORE_COLOURS

_SCRIPT = files("entropyfloor.report").joinpath("templates", "page.js").read_text()


def environment(package: str = "entropyfloor.report") -> Environment:
    """The templates of a package, which may include `style.css` and others of this one."""
    packages = dict.fromkeys((package, "entropyfloor.report"))
    found = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["data"] = data
    # The only script that a browser runs in the page, whatever the names of runs say.
    digest = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
    markers: dict[str, str] = {}
    found.globals |= {"markers": markers, "marker": lambda d: markers.setdefault(d, f"marker-{len(markers)}")}
    found.globals |= {"script": Markup(_SCRIPT), "script_hash": digest, "colours": COLOURS + MORE_COLOURS}
    return found


def data(values: Any) -> Markup:
    """Values as JSON that cannot end the element of a page that holds it.

    Raises:
        ValueError: A number that is not finite.
    """
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
