"""era-floor and forking tokens in TRL: updates and controller beside ours, checkpoints, refusals."""

import pytest
import torch

pytest.importorskip("trl")

from entropyfloor.integrations.floor import load_state, save_state
from entropyfloor.integrations.trl import ERAGRPOConfig, ERAGRPOTrainer
from entropyfloor.language.advantages import maxrl_advantages
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.controllers import Controller
from tiny_trl import (
    IGNORED,
    WORDS,
    arguments,
    completions,
    largest_difference,
    logged,
    our_model,
    rewards,
    saved,
    trained,
)

from trl import GRPOConfig, GRPOTrainer, TrlParser  # isort: skip

pytestmark = IGNORED
AUTO = {"omega_low": "auto", "omega_high": "auto"}
SETTINGS = {"min_entropy": 4.5, "gain": 1.0, "integral_gain": 0.3, "min_entropy_decay": 0.1}
"""Above the entropies of a random model, so that the scale is above 1 after the first rollout."""
TWO_MICRO_BATCHES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Path of a saved random model."""
    return saved(tmp_path_factory.mktemp("models"))


def floor_arguments(path, **settings):
    return arguments(path, head="era-floor", **AUTO | settings)


def our_controller(decision=1.0, **settings):
    """The controller of our trainer."""
    controller = Controller(LanguageConfig(head="era-floor", **settings))
    controller.decision = decision
    return controller


EQUAL = {
    "plain": ({}, {}),
    "iterations": ({"num_iterations": 2}, {}),
    "accumulation on-policy": (TWO_MICRO_BATCHES, {}),
    "scaled advantages": ({"scale_advantages": True, "num_iterations": 2}, {"scale_advantages": True}),
    "both signs": ({"era_signs": "both", "min_advantage": 0.5}, {"era_signs": "both", "min_advantage": 0.5}),
    "forking tokens": ({"era_tokens": "forking", "num_iterations": 2}, {"era_tokens": "forking"}),
    "kl-cov": ({"kl_cov": 0.2, "num_iterations": 2}, {"kl_cov": 0.2}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
        {"mean": "sequence", "ratio": "sequence"},
    ),
}


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("name", EQUAL)
def test_a_step_is_that_of_our_trainer(model, tmp_path, name, scale):
    settings, hyperparameters = EQUAL[name]
    args = floor_arguments(tmp_path, **{"max_steps": settings.get("num_iterations", 1), **settings})
    trainer, rollouts, start = trained(ERAGRPOTrainer, model, args, run=False)
    trainer.controller.decision = scale
    trainer.train()
    changes = our_controller(scale).changes(trainer.stage.omega_low)
    expected, scaled = our_model(start, rollouts, args, **hyperparameters | changes)
    assert len(rollouts) == 1
    assert (scaled[0] > 0) == (scale > 1)
    assert logged(trainer, "era/scaled_share")[0] == pytest.approx(scaled[0])
    assert largest_difference(trainer.model, start) > 1e-3
    assert largest_difference(trainer.model, expected) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale_advantages": True, "num_iterations": 2},
        {"clip_cov": 0.1, "scale_advantages": True, "num_iterations": 2, "max_steps": 1},
    ],
)
def test_eras_scale_of_forking_tokens_is_that_of_our_trainer(model, tmp_path, settings):
    args = arguments(tmp_path, era_tokens="forking", **{"max_steps": settings.get("num_iterations", 1)} | settings)
    trainer, rollouts, start = trained(ERAGRPOTrainer, model, args)
    ours = {name: value for name, value in settings.items() if name in ("scale_advantages", "clip_cov")}
    expected, scaled = our_model(start, rollouts, args, era_tokens="forking", **ours)
    assert scaled[0] > 0
    assert largest_difference(trainer.model, start) > 1e-3
    assert largest_difference(trainer.model, expected) < 1e-5


def test_scale_1_is_trl(model, tmp_path):
    """Plain RL while the entropy is well above the floor."""
    theirs = trained(GRPOTrainer, model, arguments(tmp_path, GRPOConfig, max_steps=3))[0]
    ours, _, start = trained(ERAGRPOTrainer, model, floor_arguments(tmp_path, max_steps=3, min_entropy=0.1))
    assert logged(ours, "era/scale") == [1.0] * 3
    assert largest_difference(theirs.model, start) > 1e-4
    assert largest_difference(theirs.model, ours.model) < 1e-6


@pytest.mark.parametrize("min_entropy", [4.5, "auto"])
@pytest.mark.parametrize("more", [{}, TWO_MICRO_BATCHES, {"num_iterations": 2}], ids=["one", "two", "iterations"])
def test_several_rollouts_are_those_of_our_trainer(model, tmp_path, min_entropy, more):
    """Scales, floors and parameters, by our controller from the same entropies."""
    settings = SETTINGS | {"min_entropy": min_entropy} | ({"margin": 1.5} if min_entropy == "auto" else {})
    iterations = more.get("num_iterations", 1)
    args = floor_arguments(tmp_path, max_steps=4 * iterations, **settings, **more)
    trainer, rollouts, model = trained(ERAGRPOTrainer, model, args)
    assert len(rollouts) == 4
    controller, seen = our_controller(**settings), logged(trainer, "era/response_entropy")
    for i, (rollout, entropy) in enumerate(zip(rollouts, seen, strict=True)):
        entropies = {"response_entropy": entropy}
        if i == 0:
            controller.begin(entropies)
        floor = controller.floor(i / 4)
        model, _ = our_model(model, [rollout], args, **controller.changes(floor))
        for name, value in controller.observe(entropies, floor).items():
            assert logged(trainer, f"era/{name}")[i] == pytest.approx(value, rel=1e-4), (name, i)
    scales = logged(trainer, "era/scale")
    assert scales[0] == 1.0
    assert min(scales[1:]) > 1.02
    assert trainer.controller.state == pytest.approx(controller.state, rel=1e-4)
    assert largest_difference(trainer.model, model) < 2e-5


def test_a_resumed_run_continues_the_controller(model, tmp_path):
    settings = SETTINGS | {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trained(ERAGRPOTrainer, model, floor_arguments(tmp_path, **settings), rollout_func=completions)[0]
    args = floor_arguments(tmp_path, **settings)
    rest, rollouts, _ = trained(ERAGRPOTrainer, model, args, run=False, rollout_func=completions)
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(rollouts) == 2
    scales = logged(rest, "era/scale")
    assert scales[2] > 1
    assert scales[:3] == pytest.approx(logged(whole, "era/scale")[:3], rel=1e-6)
    controller = our_controller(**SETTINGS)
    for i, entropy in enumerate(logged(rest, "era/response_entropy")):
        if i == 0:
            controller.begin({"response_entropy": entropy})
        expected = controller.observe({"response_entropy": entropy}, controller.floor(i / 4))
        assert expected == pytest.approx({name: logged(rest, f"era/{name}")[i] for name in expected})
    assert rest.controller.state == pytest.approx(controller.state, rel=1e-5)


def test_a_run_of_era_can_be_resumed_with_a_floor(model, tmp_path):
    """The controller begins where the checkpoint has none, with the entropy that the run began with."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    begun, _, _ = trained(ERAGRPOTrainer, model, arguments(tmp_path, max_steps=2, **AUTO, **settings))
    args = floor_arguments(tmp_path, max_steps=4, margin=1.5, **settings)
    rest, _, _ = trained(ERAGRPOTrainer, model, args, run=False)
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    floor = 0.75 * logged(begun, "era/response_entropy")[0]
    assert logged(rest, "era/min_entropy") == [pytest.approx(floor, rel=1e-5)] * 2
    assert logged(rest, "era/scale")[0] == 1.0 < logged(rest, "era/scale")[1]


def test_a_rollout_without_responses_is_not_observed(model, tmp_path):
    settings = {"mask_truncated_completions": True, "max_completion_length": 1}
    trainer, (rollout,), _ = trained(ERAGRPOTrainer, model, floor_arguments(tmp_path, **settings))
    assert not rollout["completion_mask"].any()
    assert trainer.controller.state is None


def test_the_entropy_stays_at_the_floor(model, tmp_path):
    """Where it falls far below without it."""
    settings = {"per_device_train_batch_size": 32, "num_generations": 16, "shuffle_dataset": False}
    settings |= {"max_steps": 100, "max_completion_length": 1, "learning_rate": 0.001}
    found = []
    for floor in (0.01, 3.0):
        args = floor_arguments(tmp_path, min_entropy=floor, **settings)
        trainer, _, _ = trained(ERAGRPOTrainer, model, args)
        found.append(sum(logged(trainer, "era/response_entropy")[-40:]) / 40)
    assert found[0] < 1.2
    assert 2.9 < found[1] < 3.4


def test_a_floor_above_that_of_a_uniform_choice_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"min_entropy=12 nats must be below ln \d+ = \d\.\d+"):
        trained(ERAGRPOTrainer, model, floor_arguments(tmp_path, min_entropy=12.0))


def test_a_resumed_run_takes_the_floor_that_is_given(tmp_path):
    """And where none is, the automatic one: 0.75 of the entropy that the run began with."""
    before, file = our_controller(min_entropy=0.8), tmp_path / "state.json"
    before.begin({"response_entropy": 2.0})
    before.observe({"response_entropy": 1.0}, 0.8)
    save_state(file, before, 2.0)
    for given, floor in ((0.5, 0.5), ("auto", 1.5)):
        resumed = our_controller(min_entropy=given)
        assert load_state(file, resumed) == 2.0
        assert resumed.state == before.state | {"first": floor}


def test_era_floor_may_go_on_from_a_run_with_thresholds(tmp_path):
    """Its automatic floor follows from the entropy that the run began with, not from today's."""
    file = tmp_path / "state.json"
    save_state(file, Controller(LanguageConfig(head="era")), 2.0)
    resumed = our_controller()
    load_state(file, resumed)
    assert resumed.floor(0.0) == 0.75 * 2.0
    assert resumed.state is None
    resumed.begin({"response_entropy": 0.5})  # the moving average begins with today's
    assert (resumed.floor(0.0), resumed.smoothed) == (0.75 * 2.0, 0.5)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"initial_entropy": "x"}', '{"initial_entropy": 2.0, "controller": {"first": 1.0}}'],
)
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json is damaged .*: resume from another checkpoint"):
        load_state(tmp_path / "state.json", our_controller())


# --- settings ---------------------------------------------------------------------------------------------


def test_defaults_are_those_of_our_trainer(tmp_path):
    args, ours = floor_arguments(tmp_path), LanguageConfig(head="era-floor")
    names = ("min_entropy", "min_entropy_decay", "gain", "integral_gain", "entropy_ema", "margin", "max_scale")
    assert {name: getattr(args, name) for name in names} == {name: getattr(ours, name) for name in names}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "none"}, "head='none' must be era or era-floor"),
        ({"head": "era", "margin": 0.1}, r"margin=0\.1 would be ignored without head='era-floor'"),
        ({"head": "era", "min_entropy": 0.5}, r"min_entropy=0\.5 would be ignored without head='era-floor'"),
        ({"head": "era", "gain": 1.0}, r"gain=1\.0 would be ignored without head='era-floor'"),
        ({"k": 3.0}, r"k=3\.0 would be ignored without head='era'"),
        ({"freeze_scale": False}, "freeze_scale=False would be ignored without head='era'"),
        ({"omega_low": 0.4}, "holds the entropy at min_entropy: leave out omega_low"),
        ({"second_stage_steps": 3, "era_top_k": 20}, "leave out second_stage_steps, era_top_k"),
        ({"era_tokens": "some"}, "era_tokens='some' must be one of all, forking"),
        ({"min_entropy": "some"}, "min_entropy='some' must be a number of nats, or 'auto'"),
        ({"min_entropy": 0.0}, r"min_entropy=0\.0 must be positive and finite"),
        ({"min_entropy_decay": 2.0}, r"min_entropy_decay=2\.0 must be between 0 and 1"),
        ({"max_scale": 1.0}, r"max_scale=1\.0 must be above 1"),
        ({"entropy_ema": -0.1}, r"entropy_ema=-0\.1 must be at least 0 and below 1"),
    ],
)
def test_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **AUTO | {"head": "era-floor"} | settings)


def test_the_command_line(tmp_path):
    (args,) = TrlParser(ERAGRPOConfig).parse_args_and_config(
        ["--output_dir", str(tmp_path), "--head", "era-floor", "--min_entropy", "0.3", "--use_cpu", "True"]
    )
    assert (args.head, args.min_entropy, args.gain, args.margin) == ("era-floor", 0.3, None, 0.03)


def test_advantages_of_maxrl_by_a_reward_function(model, tmp_path):
    """As docs/trl.md has it."""

    def divided(completions, **_):
        groups = torch.tensor(rewards(completions)).view(-1, 4)
        return (groups / groups.mean(1, keepdim=True)).flatten().tolist()

    args = floor_arguments(tmp_path, scale_rewards="none")
    _, (rollout,), _ = trained(ERAGRPOTrainer, model, args, reward_funcs=divided)
    texts = WORDS.batch_decode(rollout["completion_ids"], skip_special_tokens=True)
    expected = maxrl_advantages(torch.tensor(rewards(texts)).view(-1, 4)).flatten()
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(rollout["advantages"], expected, atol=1e-5, rtol=0)
