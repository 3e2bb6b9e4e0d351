"""A page as tests read it: its elements, texts, scripts and table cells."""

import json
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """What a page holds; an element that is not closed, or an attribute twice, fails."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.parts, self.scripts, self.rows = [], [], [], [], []
        self.feed(path.read_text())
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.parts.append(data)
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag):
        """Attributes of each element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self):
        """Data of each panel; a number that is not finite raises."""
        return [json.loads(script, parse_constant=pytest.fail) for script in self.scripts[:-1]]
