"""A step of the language trainer: what it samples and asks, and each update against full logits in float64."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

import reference
import tiny_language
from entropyfloor.language import prepare, update
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model.tiny import tiny
from entropyfloor.language.sampling import decoding, rollout
from entropyfloor.language.tasks import Problem
from entropyfloor.language.train import train
from entropyfloor.language.trainer import Trainer
from entropyfloor.language.warm_start import imitation_loss, warm_start
from tiny_language import Evens, config


class Parity(Evens):
    """Say anything: half of it is right."""

    def reward(self, problem, response):
        return float(sum(map(ord, response)) % 2)


TASK = Parity(max_new_tokens=7)


@pytest.fixture(autouse=True)
def parity(monkeypatch):
    monkeypatch.setattr(prepare, "task_of", lambda config, **_: TASK)


def moved(model, size, seed=0):
    """The model with some noise in its layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.model.layers.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return model


def trainer_of(tmp_path, **settings):
    """A trainer whose model is sure enough of itself for entropies, ratios and covariances of all sizes."""
    settings = {"prompts": 8, "temperature": 0.7, "warm_start_steps": 0, "clip_grad": 1e9} | settings
    trainer = tiny_language.trainer(tmp_path, **settings)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.mul_(15)
    moved(trainer.model, 0.3)
    return trainer


# --- each update against a reference ---------------------------------------------------------------------


def logits_of(model, responses, temperature):
    """`[B, T, V]` in float64, from the model's own forward pass."""
    logits = model(
        input_ids=responses.tokens,
        attention_mask=responses.mask,
        position_ids=(responses.mask.long().cumsum(1) - 1).clamp(min=0),
    ).logits
    return logits[:, -responses.response_mask.shape[1] - 1 : -1].double() / temperature


def at_targets(logits, responses):
    return logits.log_softmax(-1).gather(2, responses.targets[..., None])[..., 0]


def entropies_of(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def advantages_of(config, texts):
    """Of responses in their groups, from what they say."""
    rewards = np.array([TASK.reward(None, text) for text in texts]).reshape(-1, config.samples)
    centred = rewards - rewards.mean(1, keepdims=True)
    if config.loss != "dr-grpo":
        centred = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-6)
    return torch.tensor(centred.flatten())


def top(values, mask, share):
    """So many of the tokens of the batch, from the top."""
    count = max(1, int(share * int(mask.sum()) + 1e-9))
    ranked = values[mask].sort(descending=True).values
    if count < len(ranked):
        assert ranked[count - 1] - ranked[count] > 1e-4, "rounding may not decide: choose another share"
    return mask & (values >= ranked[count - 1])


def scales_of(config, entropies, mask, advantages, thresholds, failures):
    """`[B, T]`."""
    of_responses = reference.response_entropy(entropies.numpy(), mask.numpy(), config.top_fraction)
    low, high = thresholds
    options = {"omega_high": high, "k": config.k, "min_advantage": config.min_advantage, "signs": config.era_signs}
    low = low * failures if config.era_by_failures else low
    of_tokens = advantages[:, None].expand_as(entropies).numpy()
    s = torch.tensor(reference.era_token_scale(of_responses, of_tokens, low, **options))
    if config.era_tokens == "forking":
        return torch.stack(
            [torch.where(top(h, m, 0.2), row, 1.0) for h, m, row in zip(entropies, mask, s, strict=True)]
        )
    return s


def expected(config, now, before, reference_model, responses, advantages, thresholds, top_k, failures):
    """The loss of a minibatch, with its gradient, and what is to be logged of it.

    Args:
        config: Settings.
        now: The model that is updated, in float64.
        before: The model that sampled.
        reference_model: What a KL divergence is to.
        responses: Of the minibatch.
        advantages: Of them.
        thresholds: ω_low and ω_high; None without ERA.
        top_k: How many logits are kept where the advantage is positive; None for all.
        failures: Share of failures in the group of each response.
    """
    mask, T = responses.response_mask, config.temperature
    with torch.no_grad():
        z_old = logits_of(before, responses, T)
        z_reference = logits_of(reference_model, responses, T)
    z = logits_of(now, responses, T)
    entropies, old_entropies = entropies_of(z), entropies_of(z_old)
    new, old = at_targets(z, responses), at_targets(z_old, responses)
    scaled_new, scaled_old, A = new, old, advantages[:, None].expand_as(new)
    if thresholds is not None:
        decided = old_entropies if config.freeze_scale else entropies.detach()
        s = scales_of(config, decided, mask, advantages, thresholds, failures)
        s_old = scales_of(config, old_entropies, mask, advantages, thresholds, failures)
        if top_k is not None:
            good = (advantages > 0)[:, None, None]
            said = torch.nn.functional.one_hot(responses.targets, z.shape[-1]).bool()
            z, z_old = (
                torch.where((each >= each.sort(-1).values[..., [-top_k]]) | said | ~good, each, -torch.inf)
                for each in (z, z_old)
            )
        scaled_new = at_targets(s[..., None] * z, responses)
        scaled_old = at_targets(s_old[..., None] * z_old, responses)
        if config.scale_advantages:
            A = A / s

    def ratio_of(new, old):
        ratio = torch.ones_like(new)
        for i, tokens in enumerate(mask):
            d = (new - old)[i, tokens]
            ratio[i, tokens] = (d.mean().expand_as(d) if config.loss == "gspo" else d).exp()
        return ratio

    ratio = ratio_of(scaled_new, scaled_old)
    low, high = {"gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}.get(config.loss, (0.2, 0.2))
    low = low if config.clip_low is None else config.clip_low
    high = high if config.clip_high is None else config.clip_high
    if config.kl_cov:
        low = high = math.inf
    above, below = mask & (A > 0) & (ratio > 1 + high), mask & (A < 0) & (ratio < 1 - low)
    bounded = torch.where(above, 1 + high, torch.where(below, 1 - low, ratio))
    terms = -bounded * A
    if config.loss == "cispo":
        terms = -ratio.detach().clamp(1 - low, 1 + high) * A * scaled_new
    cov = (old - old[mask].mean()) * (advantages[:, None] - advantages[:, None].expand_as(old)[mask].mean())
    if config.clip_cov:  # all of them: which ones are drawn is a test of `losses`
        assert config.clip_cov == 1
        terms = terms.masked_fill((cov > 1) & (cov < 5) & ~above & ~below, 0.0)
    if config.forking < 1:
        terms = terms * top(old_entropies, mask, config.forking)
    if config.kl_cov:
        terms = terms + config.kl_cov_coef * top(cov, mask, config.kl_cov) * (new - old).abs()
    terms = terms - config.entropy_coef * entropies
    d = at_targets(z_reference, responses) - new
    terms = terms + config.kl_coef * (d.exp() - d - 1)

    def mean(values, kind=config.loss):
        each = [row[tokens] for row, tokens in zip(values.double(), mask, strict=True)]
        if kind == "dr-grpo":
            return sum(row.sum() for row in each) / (config.max_new_tokens * len(each))
        if kind == "gspo" or config.aggregate == "sequence-mean":
            return sum(row.mean() for row in each) / len(each)
        return torch.cat(each).mean()

    loss = mean(terms)
    gradient = torch.autograd.grad(loss, now.parameters())
    found = {
        "loss": loss,
        "grad_norm": flat(gradient).norm(),
    }
    logged = {
        "clip_fraction": above | below,
        "clip_fraction/low": below,
        "clip_fraction/high": above,
        "ratio": ratio_of(new, old),
        "approx_kl": (new - old).exp() - 1 - (new - old),
    }
    # a share of all, whatever the loss divides by
    weighed_by = "grpo" if config.loss == "dr-grpo" else config.loss
    found |= {name: mean(value, weighed_by) for name, value in logged.items()}
    return {name: float(value.detach()) for name, value in found.items()}, flat(gradient)


DEFAULTS = LanguageConfig()


def flat(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors])


ARMS = {
    "grpo": {},
    "sequence-mean": {"aggregate": "sequence-mean"},
    "dr-grpo": {"loss": "dr-grpo"},
    "gspo": {"loss": "gspo"},
    "cispo": {"loss": "cispo", "clip_low": 0.1, "clip_high": 0.15},
    "gspo-wide": {"loss": "gspo", "clip_low": 0.05, "clip_high": 0.1},
    "clip-higher": {"clip_high": 0.4},
    "clip-lower": {"clip_low": 0.05},
    "kl-cov": {"kl_cov": 0.1, "kl_cov_coef": 0.7},
    "clip-cov": {"clip_cov": 1.0},
    "forking": {"forking": 0.28},
    "bonus": {"entropy_coef": 0.3},
    "reference": {"kl_coef": 0.5},
    "one-token": {"max_new_tokens": 1, "clip_low": 0.9, "clip_high": 4.0},
}
ERA = {"head": "era", "omega_low": 2.05, "omega_high": 2.2}
STAGES = {**ERA, "top_k": 4, "second_stage": 0.5, "omega_low_2": 2.0, "omega_high_2": 2.1}
HEADS = {"none": {}, "era": ERA, "first-stage": STAGES, "second-stage": STAGES}
OPTIONS = {
    "advantages": {"scale_advantages": True},
    "follows": {"freeze_scale": False},
    "release": {"freeze_scale": False, "top_k": 4, "min_advantage": 1.0},
    "k": {"k": 3.0},
    "least": {"min_advantage": 1.0},
    "fraction": {"top_fraction": 0.5},
    "both-signs": {"era_signs": "both"},
    "forking-scale": {"era_tokens": "forking", "scale_advantages": True},
    "by-failures": {"era_by_failures": True},
}
CASES = {f"{arm}-{head}": (ARMS[arm], HEADS[head]) for arm in ARMS for head in HEADS}
CASES |= {f"era-{option}": (OPTIONS[option], ERA) for option in OPTIONS}
FLOOR = {"head": "era-floor", "min_entropy": 0.5}
CASES |= {f"{arm}-floor": (ARMS[arm], FLOOR) for arm in ("grpo", "gspo-wide", "cispo")}
CASES |= {f"floor-{option}": (OPTIONS[option], FLOOR) for option in ("advantages", "both-signs", "forking-scale")}
STEERED = 1.7
"""Scale of era-floor."""


def slow_with_stages(name):
    """Of the losses, three with the stages of ERA are tested quickly."""
    slow = name.endswith("-stage") and not name.startswith(("grpo-", "gspo-", "cispo-"))
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("name", [slow_with_stages(name) for name in CASES])
def test_an_update_is_that_of_full_logits(name, tmp_path, monkeypatch):
    """Two minibatches, the second off-policy, in micro-batches; and every setting makes a difference to it."""
    of_arm, of_head = CASES[name]
    second = name.endswith("second-stage")
    trainer = trainer_of(tmp_path, minibatches=2, micro_batch=5, learning_rate=0.005, seed=2, **of_arm, **of_head)
    settings = trainer.config
    trainer.step = settings.steps // 2 if second else 0
    if settings.head == "era-floor":
        trainer.controller.decision = STEERED
    other = moved(copy.deepcopy(trainer.model), 0.1, seed=1)
    trainer.reference = other if settings.kl_coef else None
    found, models, gradients = [], [], []
    minibatch = Trainer._minibatch

    def spied(self, batch, **how):
        models.append(copy.deepcopy(self.model).double())
        found.append(minibatch(self, batch, **how))
        return found[-1]

    monkeypatch.setattr(Trainer, "_minibatch", spied)
    trainer.optimiser.register_step_pre_hook(
        lambda *_: gradients.append(flat(p.grad for p in trainer.model.parameters()))
    )
    batch, _ = trainer._rollout()
    logged = trainer._update(batch)

    def by_reference(settings, i):
        thresholds, top_k = None, None
        if settings.head == "era":
            thresholds = (2.0, 2.1) if second else (2.05, 2.2)
            top_k = None if second else settings.top_k
        if settings.head == "era-floor":
            settings, thresholds = replace(settings, k=STEERED), (math.inf, math.inf)
        rows = slice(16 * i, 16 * i + 16)
        advantages = advantages_of(settings, batch.responses.texts)[rows]
        right = np.array([TASK.reward(None, text) for text in batch.responses.texts]).reshape(-1, settings.samples)
        failures = np.repeat(1 - right.mean(1), settings.samples)[rows]
        responses, (before, *_), reference_model = (
            batch.responses.rows(rows),
            models,
            copy.deepcopy(other).double(),
        )
        of_era = thresholds, top_k, failures
        return expected(settings, models[i], before, reference_model, responses, advantages, *of_era)

    for i in (0, 1):
        metrics, gradient = by_reference(settings, i)
        assert found[i] == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        assert float((gradients[i] - gradient).norm()) < 1e-5 * float(gradient.norm())
    assert logged == pytest.approx({key: (found[0][key] + found[1][key]) / 2 for key in logged})
    for part in filter(None, (of_arm, of_head)):
        without = {key: getattr(DEFAULTS, key) for key in part if key != "max_new_tokens"}
        _, gradient = by_reference(replace(settings, **{"clip_low": None, "clip_high": None} | without), 1)
        assert float((gradients[1] - gradient).norm()) > 1e-2 * float(gradient.norm())


def test_an_update_needs_model_batch_and_hyperparameters_only():
    """No run and no optimiser; nothing is changed, and micro-batches add up."""
    torch.manual_seed(0)
    model, tokenizer = tiny("0123?", layers=1, hidden=16, heads=2, length=20)
    moved(model, 0.5)
    responses = rollout.sample(model, tokenizer, ["0?", "12?"] * 8, seed=0, max_new_tokens=6)
    advantages = torch.linspace(-1.0, 1.0, 16)
    found = {}
    for size in (256, 3):
        hyperparameters = update.Hyperparameters(
            micro_batch=size, era=True, omega_low=1.2, omega_high=1.6, top_k=4, clip_cov=0.5, entropy_coef=0.1
        )
        evaluated = update.evaluate_rollout(model, None, responses, advantages, hyperparameters)
        batch, metrics = update.batch_of(evaluated, hyperparameters)
        assert 0 < metrics["scaled_share"] < 1
        before, mode = flat(model.parameters()), model.training
        generator = torch.Generator().manual_seed(0)
        parts = list(update.policy_losses(model, batch, hyperparameters, generator, on_policy=False))
        assert len(parts) == math.ceil(16 / size)
        assert torch.equal(flat(model.parameters()), before)
        assert model.training == mode
        assert all(p.grad is None for p in model.parameters())
        gradient = flat(torch.autograd.grad(sum(loss for loss, _ in parts), model.parameters()))
        totals = {name: sum(float(values[name]) for _, values in parts) for name in parts[0][1]}
        found[size] = (totals, gradient)
    (metrics, gradient), (more, small) = found.values()
    assert more == pytest.approx(metrics, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(small, gradient, atol=1e-6, rtol=1e-4)


def test_advantages_are_compared_before_they_are_scaled(tmp_path):
    """With k = 4 an advantage of 1.5 is scaled to less than `min_advantage` = 1; it is scaled all the same."""
    for freeze in (True, False):
        trainer = trainer_of(
            tmp_path,
            **{**ERA, "omega_low": 3.0, "omega_high": 4.0, "k": 4.0},
            scale_advantages=True,
            min_advantage=1.0,
            freeze_scale=freeze,
            minibatches=2,
        )
        batch, _ = trainer._rollout()
        high = batch.advantages > 1
        assert 0 < high.sum() < len(high)
        now = update.forward(trainer.model, batch, trainer.hyperparameters)
        torch.testing.assert_close(now.advantages[:, 0], torch.where(high, batch.advantages / 4, batch.advantages))
        torch.testing.assert_close(now.log_probs, batch.old, atol=1e-5, rtol=1e-5)


def test_rounding_is_no_distance_from_the_policy_that_sampled(tmp_path):
    """KL-Cov's |log r| is flat in the first update, though a pass in other batches rounds differently."""
    found = []
    for kl_cov in (0.0, 1.0):
        trainer = trainer_of(tmp_path, minibatches=2, kl_cov=kl_cov)
        batch, _ = trainer._rollout()
        rounding = 1e-6 * torch.randn(batch.old.shape, generator=torch.Generator().manual_seed(0))
        batch = batch._replace(old=batch.old + rounding, unscaled=batch.unscaled + rounding)
        trainer.optimiser.register_step_pre_hook(
            lambda *_: found.append(flat(p.grad for p in trainer.model.parameters()))
        )
        trainer._update(batch)
    plain, _, penalised, _ = found
    torch.testing.assert_close(penalised, plain, rtol=1e-5, atol=1e-6)


# --- what else an update does ----------------------------------------------------------------------------


def weights(trainer):
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def test_the_learning_rate_rises_and_stays(tmp_path):
    trainer, rates = trainer_of(tmp_path, warmup=3, learning_rate=0.6, steps=5), []
    trainer.optimiser.register_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    batch, _ = trainer._rollout()
    for trainer.step in range(5):
        trainer._update(batch)
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.6, 0.6])


def test_gradients_are_scaled_down_to_a_norm(tmp_path):
    found = {}
    for clip in (1e9, 1e-2):
        trainer = trainer_of(tmp_path, clip_grad=clip)
        trainer.optimiser.register_step_pre_hook(
            lambda *_: found.update({clip: flat(p.grad for p in trainer.model.parameters())})
        )
        logged = trainer._update(trainer._rollout()[0])["grad_norm"]
        assert logged == pytest.approx(float(found[1e9].norm()), rel=1e-5)  # what it was before
    torch.testing.assert_close(found[1e-2], found[1e9] * 1e-2 / found[1e9].norm(), rtol=1e-4, atol=1e-8)


def test_weights_decay(tmp_path):
    after = []
    for decay in (0.0, 0.1):
        trainer = trainer_of(tmp_path, weight_decay=decay, learning_rate=1e-2)
        before = weights(trainer)
        trainer._update(trainer._rollout()[0])
        after.append(weights(trainer))
    torch.testing.assert_close(after[1], after[0] - 1e-2 * 0.1 * before, rtol=1e-5, atol=1e-6)


def test_checkpointing_computes_layers_twice_and_the_same_gradient(tmp_path):
    found, calls = [], []
    for checkpointing in (False, True):
        trainer = trainer_of(tmp_path, gradient_checkpointing=checkpointing, **ERA)
        trainer.optimiser.register_step_pre_hook(
            lambda *_: found.append(flat(p.grad for p in trainer.model.parameters()))
        )
        batch, _ = trainer._rollout()
        times = []
        trainer.model.model.layers[0].self_attn.register_forward_hook(lambda *_: times.append(1))
        trainer._update(batch)
        calls.append(len(times))
    assert calls == [1, 2]
    assert float(found[0].norm()) > 0
    torch.testing.assert_close(found[1], found[0])


def test_mixed_precision_samples_from_the_policy_that_is_updated(tmp_path, monkeypatch):
    """What was drawn has the log-prob that the update gives it, nearer than float32 would, in the same logits."""
    drawn = []

    def spied(logits, *how):
        tokens = choose(logits, *how)
        drawn.append((logits.dtype, (logits / 0.7).log_softmax(-1).gather(1, tokens[:, None])[:, 0]))
        return tokens

    choose = decoding.choose
    monkeypatch.setattr(decoding, "choose", spied)
    trainer = trainer_of(tmp_path, precision="bf16", prompts=2, max_new_tokens=1)
    batch, _ = trainer._rollout()
    ((dtype, sampled),) = drawn
    assert dtype == torch.float32
    full = replace(trainer.hyperparameters, precision="fp32")
    exact, _ = update.log_probs_of(trainer.model, batch.responses, full)
    error = (batch.unscaled - exact).abs().max()
    assert 1e-4 < error < 0.1
    assert (batch.unscaled[:, 0] - sampled).abs().max() < 0.1 * error


# --- what is asked and sampled ---------------------------------------------------------------------------


def test_who_is_asked_what_and_how(tmp_path, monkeypatch):
    """Training asks the train split, anew each time; judging the same of the test split, drawn and greedily."""
    asked, drawn = [], []
    draw = rollout.sample

    def problems(self, split, count, seed, *, or_fewer=False):
        asked.append((split, count, seed))
        return Evens.problems(self, split, count, seed)

    def spied(model, tokenizer, prompts, **how):
        drawn.append((prompts, how))
        return draw(model, tokenizer, prompts, **how)

    monkeypatch.setattr(Parity, "problems", problems)
    monkeypatch.setattr(Parity, "reward", lambda *_: 0.0)  # no group is ever of use
    monkeypatch.setattr("entropyfloor.language.trainer.sample", spied)
    monkeypatch.setattr("entropyfloor.language.evaluate.sample", spied)
    settings = {"temperature": 0.7, "eval_temperature": 0.9, "sample_batch": 5, "precision": "bf16"}
    settings |= {"warm_start_steps": 0, "dynamic_sampling": True, "max_refills": 2, "eval_problems": 3}
    train(config(tmp_path, **settings, steps=2, eval_every=1))

    evaluated, trained = (drawn[:2], drawn[5:7], drawn[10:]), (drawn[2:5], drawn[7:10])
    assert asked.pop(0) == asked[1]  # the first rollout's, to see whether there are so many before all else
    assert [split for split, _, _ in asked] == [*(["test"] + ["train"] * 3) * 2, "test"]
    assert {each for each in asked if each[0] == "test"} == {("test", 3, 0)}
    seeds = [seed for split, _, seed in asked if split == "train"]
    assert len(set(seeds)) == 6
    for pair in evaluated:
        assert [how["temperature"] for _, how in pair] == [0.9, 0.0]
        assert pair[0][0] == [prompt for prompt in pair[1][0] for _ in range(4)]
        assert pair[1][0] == evaluated[0][1][0]
    for each in trained:
        assert [how["temperature"] for _, how in each] == [0.7] * 3
        assert all(prompts[::4] == prompts[3::4] for prompts, _ in each)
    of_all = [how["seed"] for _, how in drawn]
    assert len(set(of_all)) == len(drawn) - 3  # only a greedy one shares its seed, with the one beside it
    for _, how in drawn:
        assert (how["batch_size"], how["precision"], how["max_new_tokens"]) == (5, "bf16", 7)


@pytest.mark.parametrize("last", [True, False])
def test_usable_groups_keep_their_own_rewards(last, tmp_path, monkeypatch):
    """Half of the groups are of use, the last or the first: after two drawings there are enough."""
    count = []

    def problems(self, split, wanted, seed, *, or_fewer=False):
        count.append(seed)
        return [Problem(f"{i}?", "", {"of use": (i >= wanted // 2) == last}) for i in range(wanted)]

    def reward(self, problem, response):
        return float(problem.row["of use"] and sum(map(ord, response)) % 2)

    monkeypatch.setattr(Parity, "problems", problems)
    monkeypatch.setattr(Parity, "reward", reward)
    trainer = trainer_of(tmp_path, dynamic_sampling=True, max_refills=5, prompts=4, samples=8)
    batch, found = trainer._rollout()
    assert len(count) == 2
    assert found["usable_groups"] == 0.5
    rewards = torch.tensor([sum(map(ord, text)) % 2 for text in batch.responses.texts]).view(4, 8).double()
    assert found["reward"] == pytest.approx(float(rewards.mean()) / 2)
    own = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(batch.advantages.double(), own.flatten(), atol=1e-5, rtol=1e-5)
    said = [
        trainer.tokenizer.decode(tokens[mask], skip_special_tokens=True)
        for tokens, mask in zip(batch.responses.targets, batch.responses.response_mask, strict=True)
    ]
    assert said == batch.responses.texts
    of_prompts = [trainer.tokenizer.decode(tokens[-9:-7]) for tokens in batch.responses.tokens]
    assert of_prompts == [f"{i}?" for i in ((2, 3, 2, 3) if last else (0, 1, 0, 1)) for _ in range(8)]


def test_what_is_logged_of_a_rollout(tmp_path):
    trainer = trainer_of(tmp_path, head="era", omega_low=1.8, omega_high=2.0, top_fraction=0.4)
    batch, found = trainer._rollout()
    responses, mask = batch.responses, batch.responses.response_mask.numpy()
    with torch.no_grad():
        entropies = entropies_of(logits_of(copy.deepcopy(trainer.model).double(), responses, 0.7)).numpy()
    of_responses = reference.response_entropy(entropies, mask, 0.4)
    advantages = advantages_of(trainer.config, responses.texts).numpy()
    of_tokens = np.sort(entropies[mask])[::-1]
    fifth = int(0.2 * len(of_tokens))
    low, high = of_responses < 1.8, of_responses > 2.0
    assert 0 < low.sum() < (low | high).sum() < len(low)
    rewards = np.array([TASK.reward(None, text) for text in responses.texts])
    grouped = rewards.reshape(8, 4)
    assert found == pytest.approx(
        {
            "omega_low": 1.8,
            "omega_high": 2.0,
            "response_entropy": of_responses.mean(),
            "response_entropy/below": low.mean(),
            "response_entropy/above": high.mean(),
            "scaled_share": ((low | high) & (advantages > 0)).mean(),
            "token_entropy": of_tokens.mean(),
            "token_entropy/top": of_tokens[:fifth].mean(),
            "token_entropy/bottom": of_tokens[fifth:].mean(),
            "response_length": mask.sum() / 32,
            "ended": np.mean([tokens[m][-1] == 1 for tokens, m in zip(responses.targets, mask, strict=True)]),
            "tokens": mask.sum(),
            "reward": rewards.mean(),
            "usable_groups": (grouped.min(1) < grouped.max(1)).mean(),
        },
        rel=1e-5,
    )


def test_responses_that_end_at_once(tmp_path):
    """They are their end alone, all earn the same, and nothing is learned, without an error."""
    trainer = trainer_of(tmp_path, head="era", minibatches=2, kl_cov=0.1)
    model = trainer.model
    head = torch.nn.Linear(16, len(trainer.tokenizer), bias=True)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(20.0 * torch.nn.functional.one_hot(torch.tensor(1), len(trainer.tokenizer)))
    model.set_output_embeddings(head)
    trainer.optimiser = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    before = weights(trainer)
    found = trainer._train_step()
    assert (found["response_length"], found["ended"], found["usable_groups"]) == (1, 1, 0)
    assert all(math.isfinite(value) for value in found.values())
    assert torch.equal(weights(trainer), before)


def test_only_prompts_begin_with_what_begins_a_text():
    """Llama's and Gemma's tokenizers put a token before everything; a response is not a beginning."""
    torch.manual_seed(0)
    model, tokenizer = tiny("0123?", layers=1, hidden=16, heads=2, length=20)
    expected = imitation_loss(model, tokenizer, ["<pad>01?", "<pad>2?"], ["3<end>", "012<end>"])
    begins = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    tokenizer.backend_tokenizer.post_processor = begins
    assert tokenizer("01?").input_ids == [0, 2, 3, 6]
    found = imitation_loss(model, tokenizer, ["01?", "2?"], ["3<end>", "012<end>"])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_warm_start_wanders(share, tmp_path, monkeypatch):
    wandered = []

    def solution(self, problem, rng, *, wander=False):
        wandered.append(wander)
        return "0"

    monkeypatch.setattr(Parity, "solution", solution)
    trainer = trainer_of(tmp_path, warm_start_random=share, warm_start_steps=2, warm_start_batch=64)
    warm_start(trainer.model, trainer.tokenizer, TASK, trainer.config, lambda step: None)
    assert len(wandered) == 128
    assert np.mean(wandered) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)
