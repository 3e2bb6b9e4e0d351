"""The documentation site: it is built without a warning, has every page, and asks no other site for anything."""

import functools
import http.server
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from browser import CHROMIUM, Browser
from entropyfloor.runs import QUANTITIES

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def test_every_page_is_in_the_navigation_once():
    listed = [
        page for section in CONFIG["nav"] for entry in section.values() for each in entry for page in each.values()
    ]
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


class References(HTMLParser):
    """What a page links to, and what a browser loads for it."""

    def __init__(self, page):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.names |= {named.get("id"), named.get("name")}
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        elif tag in ("script", "img", "iframe", "source") and named.get("src"):
            self.loaded.append(named["src"])
        elif tag == "link" and named.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(named["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly from a copy of the pages."""
    pytest.importorskip("zensical", reason="zensical is in the extra `docs`")
    pytest.importorskip("mkdocstrings_handlers", reason="mkdocstrings-python is in the extra `docs`")
    root = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", root)
    shutil.copytree(ROOT / "docs", root / "docs")
    (root / "src").symlink_to(ROOT / "src")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {page: References(page) for page in (root / "site").rglob("*.html")}


def test_links_lead_somewhere(site):
    broken = []
    for page, found in site.items():
        for link in (*found.links, *found.loaded):
            if re.match(r"[a-z]+:|/", link):  # another site; the root, which only the page 404 uses
                continue
            file, anchor = urldefrag(unquote(link))
            target = (page.parent / file).resolve() if file else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in site and anchor not in site[target].names):
                broken.append((page.parent.name, link))
    assert not broken


def test_pages_load_nothing_from_other_sites(site):
    assert len(site) > 30
    assert not [link for found in site.values() for link in found.loaded if re.match(r"[a-z]+:|//", link)]


@pytest.fixture(scope="module")
def address(site):
    """Where a server of the site listens."""
    root = min(site, key=lambda page: len(page.parts)).parent
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it(address, tmp_path):
    """Light, dark and narrow: nothing is asked of another site, the console is silent, no page is too wide."""
    browser = Browser(tmp_path)
    try:
        for page in ("", "choose/", "idea/", "api/torch/", "language/results/"):
            for width, dark in ((1280, False), (1280, True), (390, False)):
                browser.look(width, dark=dark)
                browser.open(address + page)
                assert browser.run("document.documentElement.scrollWidth") <= width
                assert not browser.complaints
                assert not [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))]
    finally:
        browser.close()


def test_public_names_have_an_entry(site):
    """The names of the API in its pages, each with its own anchor."""
    anchors = {name for page, found in site.items() if page.parent.parent.name == "api" for name in found.names}
    for name in (
        "torch.functional.era_truncated_normal",
        "torch.distributions.TanhNormal",
        "torch.tokens.era_token_scale",
        "jax.functional.era_softmax",
        "jax.nn.ERALinear",
        "targets.resolve",
        "vision.attach_era",
        "control.load.load_policy",
        "language.losses.policy_terms",
        "integrations.sb3.ERASACPolicy",
    ):
        assert f"entropyfloor.{name}" in anchors


def test_the_page_of_quantities_is_that_of_the_vocabulary():
    spec = importlib.util.spec_from_file_location("quantities", ROOT / "examples/quantities.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "`python examples/quantities.py` writes it"
    assert set(script.FIRST) <= set(QUANTITIES)


@pytest.mark.slow
def test_the_figures_of_the_idea_are_drawn(tmp_path):
    command = [sys.executable, "examples/idea.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn, committed = ({path.name for path in folder.iterdir()} for folder in (tmp_path, ROOT / "docs/idea"))
    assert drawn == committed
    assert all((tmp_path / name).stat().st_size > 20_000 for name in drawn)
