"""Examples in docstrings run as they stand, in a namespace of their own, and every public name has one."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

API = Path(__file__).parents[1] / "docs" / "api"
ENTRY = re.compile(r"^::: entropyfloor\.(\S+)(?:\n    options:\n      members: \[(.*)\])?", re.MULTILINE)
HOSTS = {"rsl_rl": "rsl_rl", "sb3": "stable_baselines3"} | {
    name: name for name in ("brax", "keras", "sbx", "skrl", "torchrl", "trl")
}
"""What the adapters need."""
ELSEWHERE = {
    "audit.Audit",
    "audit.write_page",
    "control.load.Policy",
    "control.load.load_policy",
    "control.train.train",
    "integrations.trl.ERAGRPOTrainer",
    "language.load_language_model",
    "language.train.train",
    "report.write_report",
    "runs.Run",
    "runs.find_runs",
    "runs.read_run",
    "vision.Classifier",
    "vision.load_classifier",
    "vision.train.train",
}
"""Names whose examples train a model, or need one: their own tests do that."""


ENTRIES = [entry for page in sorted(API.glob("*.md")) for entry in ENTRY.findall(page.read_text())]
"""What the pages of the API document: modules, members of modules, and single names."""


def names(entry, members):
    """The names of an entry, each with what it is."""
    try:
        module = importlib.import_module(f"entropyfloor.{entry}")
    except ModuleNotFoundError:
        module = None
    if not inspect.ismodule(module):
        room, _, name = entry.rpartition(".")
        return {entry: getattr(importlib.import_module(f"entropyfloor.{room}"), name)}
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    exported = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return {f"{entry}.{name}": getattr(module, name) for name in (members.split(", ") if members else exported)}


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own
@pytest.mark.parametrize(("entry", "members"), ENTRIES)
def test_every_name_has_an_example_that_runs(entry, members, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    if host := HOSTS.get(entry.removeprefix("integrations.").split(".")[0]):
        pytest.importorskip(host)
    for name, value in names(entry, members).items():
        if name in ELSEWHERE or not callable(value):
            continue
        example = doctest.DocTestParser().get_doctest(inspect.getdoc(value), {}, name, None, None)
        assert 2 <= len(example.examples) <= 5, name
        messages = []
        doctest.DocTestRunner().run(example, out=messages.append)
        assert not messages, "".join(messages)


def test_only_public_names_are_excepted():
    documented = {f"{entry}.{name}".rstrip(".") for entry, members in ENTRIES for name in members.split(", ")}
    assert documented >= ELSEWHERE
