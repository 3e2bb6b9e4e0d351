"""Controllers of the entropy of language models: each rule alone, on a simulated policy, and in the trainer."""

import math

import numpy as np
import pytest
import torch

import tiny_language
from entropyfloor.language import prepare
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.controllers import Controller, bonus_coefficient, entropic_alpha, floor_scale


@pytest.fixture(autouse=True)
def evens(monkeypatch):
    monkeypatch.setattr(prepare, "task_of", lambda config, **_: tiny_language.Evens())


def test_the_scale_is_one_above_the_floor():
    assert floor_scale(0.0, entropy=1.0, floor=0.8) == (1.0, 0.0)
    scale, memory = floor_scale(0.3, entropy=1.0, floor=0.7, gain=1.0, integral_gain=0.5, margin=0.1)
    assert scale == pytest.approx(math.exp(0.1))
    assert memory == pytest.approx(0.2)


def test_the_scale_rises_below_the_floor_up_to_its_limit():
    scale, memory = floor_scale(
        0.1, entropy=0.7, floor=0.8, gain=2.0, integral_gain=0.5, max_scale=8.0, margin=0.0
    )
    assert scale == pytest.approx(math.exp(0.3))
    assert memory == pytest.approx(0.15)
    assert floor_scale(2.0, entropy=0.0, floor=9.0, max_scale=4.0) == pytest.approx((4.0, math.log(4.0)))


@pytest.mark.parametrize("seed", range(3))
def test_a_floor_holds_for_a_policy_whose_entropy_falls(seed):
    """It loses 0.003 nats an update, gains 0.004 log s, and is measured with an error of 0.05, as on countdown."""
    controller = Controller(LanguageConfig(head="era-floor", min_entropy=0.8))
    rng, entropy, found = np.random.default_rng(seed), 1.1, []
    controller.begin({"response_entropy": entropy})
    for _ in range(2000):
        entropy += -0.003 + 0.004 * math.log(controller.decision)
        controller.observe({"response_entropy": entropy + rng.normal(0, 0.05)}, 0.8)
        found.append(entropy)
    assert np.mean(np.array(found) < 0.78) < 0.02
    assert np.mean(found[500:]) == pytest.approx(0.83, abs=0.01)
    assert max(found[500:]) < 0.95


def test_the_bonus_is_there_only_where_the_entropy_is_too_low():
    assert bonus_coefficient(0.0, entropy=0.1, target=0.2, step=0.01) == (0.01, 0.01)
    assert bonus_coefficient(0.05, entropy=0.3, target=0.2, step=0.01) == (0.0, pytest.approx(0.04))
    assert bonus_coefficient(0.0, entropy=0.3, target=0.2) == (0.0, 0.0)
    assert bonus_coefficient(0.5, entropy=0.1, target=0.2) == (0.5, 0.5)


def test_alpha_is_negative_where_the_entropy_is_too_low():
    alpha, memory = entropic_alpha(-0.1, entropy=0.1, target=0.3, gain=2.0, integral_gain=0.5)
    assert alpha == pytest.approx(-0.5)
    assert memory == pytest.approx(-0.2)
    assert entropic_alpha(0.0, entropy=9.0, target=0.3) == pytest.approx((1.0, 0.087))
    assert entropic_alpha(-1.0, entropy=0.0, target=9.0) == (-1.0, -1.0)


ENTROPIES = {"response_entropy": 2.0, "token_entropy": 1.0}


@pytest.mark.parametrize(
    ("settings", "first"),
    [({"head": "era-floor"}, 1.5), ({"controller": "skywork"}, 0.75), ({"controller": "entropic"}, 0.75)],
)
def test_an_automatic_floor_is_a_share_of_the_first_entropy_and_may_fall(settings, first):
    controller = Controller(LanguageConfig(**settings, min_entropy_decay=0.5))
    assert controller.floor(0.5) == 0.0
    controller.begin(ENTROPIES)
    assert [controller.floor(share) for share in (0.0, 0.5, 1.0)] == [first, 0.75 * first, 0.5 * first]


@pytest.mark.parametrize(
    "settings", [{"head": "era-floor"}, {"controller": "skywork"}, {"controller": "entropic"}]
)
def test_what_a_controller_remembers(settings):
    a, b = (Controller(LanguageConfig(**settings, min_entropy=1.9)) for _ in range(2))
    assert a.state is None
    a.begin(ENTROPIES)
    a.observe({"response_entropy": 0.6, "token_entropy": 0.5}, 1.9)
    b.state = a.state
    for controller in (a, b):
        controller.observe({"response_entropy": 0.7, "token_entropy": 0.8}, 1.9)
    assert a.state == b.state
    assert a.changes(1.9) == b.changes(1.9)
    assert a.state["memory"] != 0


def test_a_moving_average_keeps_its_weight_of_what_it_was():
    controller = Controller(LanguageConfig(head="era-floor", min_entropy=0.5, entropy_ema=0.9))
    controller.begin({"response_entropy": 2.0})
    assert controller.observe({"response_entropy": 1.0}, 0.5)["response_entropy/smoothed"] == pytest.approx(1.9)


@pytest.mark.parametrize(("entropy", "kept"), [(0.49, [0.0, -1.0]), (0.59, [1.0, -1.0]), (0.61, [1.0, 0.0])])
def test_a_band_ends_at_a_multiple_of_the_floor(entropy, kept):
    controller = Controller(LanguageConfig(controller="entrocraft", min_entropy=0.5, band=1.2))
    assert controller.weigh(torch.tensor([1.0, -1.0]), {"token_entropy": entropy}, 0.5).tolist() == kept


@pytest.mark.parametrize(
    "given", [{"max_scale": 1.0}, {"max_scale": math.inf}, {"entropy": math.nan}, {"floor": math.inf}]
)
def test_what_would_stay_in_the_memory_is_refused(given):
    ((name, _),) = given.items()
    with pytest.raises(ValueError, match=rf"{name}=.* must be finite"):
        floor_scale(0.0, **{"entropy": 1.0, "floor": 0.5, **given})


HIGH = 2.56
"""Just below ln 13, above the entropies of a random model."""


def test_era_floor_scales_positive_responses_whatever_their_entropy(tmp_path):
    """From the second rollout on, by the entropy of the one before; before that it is plain RL."""
    trainer = tiny_language.trainer(
        tmp_path, head="era-floor", warm_start_steps=0, min_entropy=HIGH, gain=1.0, margin=0.0, prompts=16
    )
    batch, metrics = trainer._rollout()
    assert (batch.scale == 1).all()
    entropy = metrics["response_entropy"]
    assert entropy < HIGH
    logged = trainer._train_step()
    assert logged["scale"] == 1.0
    assert logged["min_entropy"] == HIGH
    expected = math.exp(HIGH - logged["response_entropy"])
    trainer.step = 1
    batch, metrics = trainer._rollout()
    positive = batch.advantages > 0
    assert positive.any()
    torch.testing.assert_close(batch.scale[positive], torch.full_like(batch.scale[positive], expected))
    assert (batch.scale[~positive] == 1).all()
    assert metrics["omega_low"] == HIGH
    assert "omega_high" not in metrics


def test_a_band_and_weights_reach_the_advantages(tmp_path):
    settings = {"warm_start_steps": 0, "min_entropy": HIGH}
    plain = tiny_language.trainer(tmp_path / "plain", warm_start_steps=0)._rollout()[0].advantages
    band = tiny_language.trainer(tmp_path / "band", controller="entrocraft", **settings)
    assert torch.equal(band._rollout()[0].advantages, plain.clamp(max=0.0))
    weighed = tiny_language.trainer(tmp_path / "weighed", controller="entropic", gain=0.5, **settings)
    batch, metrics = weighed._rollout()
    alpha = 0.5 * (metrics["token_entropy"] - HIGH)
    torch.testing.assert_close(batch.advantages, torch.where(plain > 0, 1 + alpha, 1 - alpha) * plain)


def test_a_bonus_reaches_the_next_update(tmp_path):
    settings = {"controller": "skywork", "warm_start_steps": 0, "bonus_step": 0.3, "bonus_max": 0.2}
    trainer = tiny_language.trainer(tmp_path, min_entropy=HIGH, **settings)
    assert trainer._train_step()["entropy_coef"] == 0.0
    trainer.step = 1
    assert trainer.hyperparameters.entropy_coef == 0.2
    assert trainer._train_step()["entropy_coef"] == 0.2


@pytest.mark.parametrize("settings", [{"head": "era-floor"}, {"controller": "entropic"}])
def test_a_floor_above_that_of_a_uniform_choice_is_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"min_entropy=9 nats must be below ln \d+ = \d\.\d+"):
        tiny_language.trainer(tmp_path, warm_start_steps=0, min_entropy=9.0, **settings)


def test_the_floor_falls_with_the_steps(tmp_path):
    settings = {"head": "era-floor", "min_entropy": 2.0, "min_entropy_decay": 0.5, "steps": 4}
    trainer = tiny_language.trainer(tmp_path, warm_start_steps=0, max_scale=1.5, **settings)
    trainer.controller.begin(ENTROPIES)
    for trainer.step, floor in enumerate([2.0, 1.75, 1.5, 1.25, 1.0]):
        assert trainer.hyperparameters.omega_low == floor
    trainer.controller.observe(ENTROPIES | {"response_entropy": -9.0}, 2.0)
    assert trainer.hyperparameters.k == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["maxrl", "w-reinforce", "ds-grpo"])
def test_advantages_of_rivals_reach_the_update(name, tmp_path):
    options = {"w-reinforce": {"right_weight": 0.3}, "ds-grpo": {"smoothing": 0.2}}.get(name, {})
    trainer = tiny_language.trainer(tmp_path, advantages=name, warm_start_steps=0, **options)
    batch, _ = trainer._rollout()
    plain = tiny_language.trainer(tmp_path / "plain", warm_start_steps=0)._rollout()[0].advantages
    right = plain > 0
    if name == "w-reinforce":
        assert torch.equal(batch.advantages, torch.where(right, 0.3, -1.0))
    elif name == "maxrl":
        grouped = batch.advantages.view(-1, trainer.config.samples)
        assert torch.equal(grouped.sign(), plain.sign().view_as(grouped))
        torch.testing.assert_close(grouped.sum(1), torch.zeros(len(grouped)), atol=1e-5, rtol=0)
    else:
        mask = batch.responses.response_mask
        mean = (batch.unscaled * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(batch.advantages - plain, torch.where(right, -0.2, 0.2) * mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "era", "controller": "skywork"}, "both steer the entropy"),
        ({"head": "era-floor", "omega_low": 0.4}, "give that instead of omega_low"),
        (
            {"head": "era-floor", "second_stage": 0.5},
            "give that instead of omega_low, omega_high and second_stage",
        ),
        ({"controller": "entrocraft", "min_entropy": 0.0}, r"min_entropy=0\.0 must be positive"),
        ({"head": "era", "top_k": 5, "advantages": "ds-grpo"}, "leave out top_k"),
        ({"controller": "skywork", "entropy_coef": 0.1}, "leave out entropy_coef"),
        ({"loss": "dr-grpo", "advantages": "maxrl"}, "has advantages of its own"),
        ({"loss": "cispo", "kl_cov": 0.1, "minibatches": 2}, "has a policy loss of its own"),
        ({"loss": "cispo", "clip_cov": 0.1, "minibatches": 2}, "has a policy loss of its own"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**settings)


def test_the_floor_of_a_controller_is_named_in_the_vocabulary():
    from entropyfloor.runs.vocabulary import is_known

    controller = Controller(LanguageConfig(head="era-floor"))
    controller.begin(ENTROPIES)
    assert all(is_known(name) for name in controller.observe(ENTROPIES, 1.0))
