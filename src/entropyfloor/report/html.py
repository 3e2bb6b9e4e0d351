"""Pages in one file: their templates and style, and figures inside them."""

from __future__ import annotations

from base64 import b64encode

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str = "entropyfloor.report") -> Environment:
    """The templates of a package, which may include `style.css` and others of this one."""
    packages = dict.fromkeys((package, "entropyfloor.report"))
    return Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def source(image: bytes) -> str:
    """An SVG as the source of an image in the page."""
    return f"data:image/svg+xml;base64,{b64encode(image).decode()}"
