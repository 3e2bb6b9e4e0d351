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
    assert current(stored) == {**stored, "head": now, "backend": "native", "precision": "fp32"}
    assert stored["head"] == before


def test_the_setting_called_settings_is_networks():
    stored = {"domain": "control", "agent": "sac", "settings": "release"}
    assert current(stored) == {"domain": "control", "agent": "sac", "networks": "release"}


@pytest.mark.parametrize("before", ["clip", "hard-clip"])
def test_plain_heads_of_discrete_actions_are_the_softmax(before):
    stored = {"domain": "control", "agent": "ppo", "head": before}
    assert current({**stored, "min_entropy": 0.1})["head"] == "softmax"


@pytest.mark.parametrize("domain", ["vision", "language"])
def test_the_precision_called_no_is_fp32(domain):
    stored = {"domain": domain, "precision": "no"}
    assert current(stored) == {"domain": domain, "precision": "fp32"}
    assert stored["precision"] == "no"


@pytest.mark.parametrize("head", ["tanh", "clip", "softmax"])
def test_runs_with_the_marker_have_todays_names_already(head):
    settings = {"domain": "control", "agent": "ppo", "head": head}
    assert current({**settings, "names": 2}) == {**settings, "backend": "native", "precision": "fp32"}


@pytest.mark.parametrize(
    "stored",
    [
        {"domain": "language", "agent": "grpo", "head": "clip"},
        {"domain": "vision", "agent": "none", "names": "of the classes"},
        {"domain": "vision", "precision": "bf16"},
        {"domain": "language", "precision": ["no"]},
        {"domain": "control", "agent": "sb3-sac", "precision": "no"},
        {"domain": "control", "agent": "sb3-sac", "host": "stable-baselines3 2.9.2"},
        {"domain": "control", "agent": "sac", "head": ["clip"], "backend": "native", "precision": "fp32"},
        {},
    ],
)
def test_what_was_not_renamed_stays(stored):
    assert current(stored) == stored


RULES = {
    "advantages": "group",
    "smoothing": 0.05,
    "right_weight": 0.1,
    "era_signs": "positive",
    "era_tokens": "all",
    "controller": "none",
    "min_entropy": "auto",
    "min_entropy_decay": 0.0,
    "entropy_ema": 0.8,
    "margin": 0.03,
    "max_scale": 8.0,
    "band": 1.2,
    "bonus_step": 0.001,
    "bonus_max": 0.5,
}


@pytest.mark.parametrize(
    ("stored", "added"),
    [
        ({"domain": "control", "agent": "ppo", "head": "era"}, {"backend": "native", "precision": "fp32"}),
        (
            {"agent": "sac-era", "head": "era", "residual_entropy": 0.0},
            {
                "backend": "native",
                "precision": "fp32",
                "alpha_weight": "alpha",
                "clamp_target": True,
                "normalise_observations": False,
                "critics": 2,
            },
        ),
        ({"domain": "vision", "model": "resnet18"}, {"pretrained": False, "label_noise": 0.0}),
        ({"domain": "language", "model": "tiny"}, {"digits": 2, "chain_length": 5, **RULES}),
    ],
)
def test_settings_that_were_added_later_have_the_values_of_before(stored, added):
    assert current(stored) == {**stored, **added}
    changed = {name: f"not {value}" for name, value in added.items()}
    assert current({**stored, **changed}) == {**stored, **changed}
