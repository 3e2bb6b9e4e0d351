"""Examples in docstrings run as they stand, in a namespace of their own, and every public name has one."""

import doctest
import importlib

import pytest

PAGES = (
    "targets",
    *(f"{room}.{page}" for room in ("torch", "jax") for page in ("functional", "nn", "distributions")),
)
"""Modules whose every public name has an example."""
NAMES = (
    "control.config.configure",
    "control.envs.make",
    "vision.attach_era",
    "vision.detach_era",
    "integrations.rsl_rl.ERAGaussianDistribution",
    "integrations.sb3.ERAPPOPolicy",
    "integrations.sb3.ERASACPolicy",
    "integrations.torchrl.ERAParamExtractor",
)
"""Others; those that read a run are tested beside what they load."""
LIBRARIES = {"rsl_rl": "rsl_rl", "sb3": "stable_baselines3", "torchrl": "torchrl"}


def public(page):
    """The names that are public in a page."""
    module = importlib.import_module(f"entropyfloor.{page}")
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


@pytest.mark.parametrize("name", [*(f"{page}.{name}" for page in PAGES for name in public(page)), *NAMES])
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    room, _, last = name.rpartition(".")
    if library := LIBRARIES.get(room.rpartition(".")[2]):
        pytest.importorskip(library)
    documented = getattr(importlib.import_module(f"entropyfloor.{room}"), last).__doc__
    example = doctest.DocTestParser().get_doctest(documented, {}, name, None, None)
    assert 2 <= len(example.examples) <= 5
    messages = []
    doctest.DocTestRunner().run(example, out=messages.append)
    assert not messages, "".join(messages)
