"""Settings of runs that earlier versions began."""

import pytest

from entropyfloor.runs.renamed import current


@pytest.mark.parametrize(
    ("agent", "before", "now"),
    [
        ("sac", "clip", "tanh"),
        ("sac-no-entropy", "hard-clip", "clip"),
        ("obac", "clip", "tanh"),
        ("ppo", "hard-clip", "clip"),
        ("eapo", "clip", "tanh"),
        ("ppo-era", "era", "era"),
        ("sac", "projection", "projection"),
    ],
)
def test_heads_of_control_have_todays_names(agent, before, now):
    stored = {"domain": "control", "agent": agent, "head": before, "steps": 10}
    assert current(stored) == {**stored, "head": now}
    assert stored["head"] == before


@pytest.mark.parametrize("before", ["clip", "hard-clip"])
def test_plain_heads_of_discrete_actions_are_the_softmax(before):
    stored = {"domain": "control", "agent": "ppo", "head": before}
    assert current({**stored, "min_entropy": 0.1})["head"] == "softmax"
    assert current(stored, discrete=True)["head"] == "softmax"


def test_the_networks_of_control_were_called_settings():
    stored = {"domain": "control", "agent": "sac", "settings": "release"}
    assert current(stored) == {"domain": "control", "agent": "sac", "networks": "release"}
    assert current({"domain": "vision", "settings": "release"})["settings"] == "release"


@pytest.mark.parametrize("head", ["tanh", "clip", "softmax"])
def test_runs_with_the_marker_have_todays_names_already(head):
    settings = {"domain": "control", "agent": "ppo", "head": head}
    assert current({**settings, "names": 2}) == current({**settings, "names": 2}, discrete=True) == settings


@pytest.mark.parametrize(
    "stored",
    [
        {"domain": "language", "agent": "grpo", "head": "clip"},
        {"domain": "vision", "agent": "none", "names": "of the classes"},
        {"domain": "control", "agent": "sb3-sac", "host": "stable-baselines3 2.9.2"},
        {"domain": "control", "agent": "sac", "head": ["clip"]},
        {},
    ],
)
def test_what_was_not_renamed_stays(stored):
    assert current(stored) == stored
