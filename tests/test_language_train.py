"""The language trainer on a real small transformer: what it samples, what it learns, and that it resumes."""

import math
import os
import re
import shutil
import signal
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

import tiny_language
from commands import options_of
from entropyfloor.cli import main
from entropyfloor.experiments import recipe
from entropyfloor.language import prepare, update
from entropyfloor.language.benchmarks.registry import INSTRUCTIONS
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.evaluate import evaluate
from entropyfloor.language.export import export
from entropyfloor.language.model.files import describe, described, load, load_weights, weights_of
from entropyfloor.language.model.forward import Policy, ends_of, head_of, hidden_states
from entropyfloor.language.model.tiny import characters, tiny
from entropyfloor.language.prepare import complete, read_config, sampling_of
from entropyfloor.language.sampling import rollout
from entropyfloor.language.sampling.engines.base import TEMPLATES, template
from entropyfloor.language.sampling.engines.transformers import Transformers
from entropyfloor.language.sampling.rollout import joined, sample
from entropyfloor.language.tasks import Arithmetic, Questions
from entropyfloor.language.train import resume, train, train_seeds
from entropyfloor.language.trainer import Trainer
from entropyfloor.language.update import Batch
from entropyfloor.language.warm_start import file_of, warm_start
from entropyfloor.runs import Run, read_run
from entropyfloor.runs.resume import check_same
from entropyfloor.torch import functional as F
from run_files import history
from tiny_families import build
from tiny_language import TINY, Evens, config

from transformers import GenerationConfig  # isort: skip
from transformers.utils import logging  # isort: skip


@pytest.fixture
def evens(monkeypatch):
    monkeypatch.setattr(prepare, "task_of", lambda config, **_: Evens())


# --- models and responses --------------------------------------------------------------------------------


def test_characters_are_tokens():
    tokenizer = characters("ab \n+")
    assert tokenizer("a b+\n").input_ids == [2, 4, 3, 6, 5]
    assert tokenizer.decode([2, 4, 3, 6, 5, 1], skip_special_tokens=True) == "a b+\n"
    for wrong in ("aa", ["ab"], "é"):
        with pytest.raises(ValueError, match="must be different single ASCII characters"):
            characters(wrong)
    with pytest.raises(ValueError, match="hidden=10 must be a multiple of twice the number of heads, 4"):
        tiny("ab", layers=1, hidden=10, heads=2, length=8)


def test_responses_end_where_they_end():
    torch.manual_seed(0)
    model, tokenizer = tiny("0123", layers=1, hidden=16, heads=2, length=40)
    prompts = ["0", "0123"] * 40
    responses = sample(model, tokenizer, prompts, seed=0, max_new_tokens=12, batch_size=32)
    length = responses.response_mask.shape[1]
    assert responses.tokens.shape == responses.mask.shape == (80, 4 + length)
    assert 0 < int(responses.ended.sum()) < 80
    for row, mask, text, ended in zip(
        responses.targets, responses.response_mask, responses.texts, responses.ended, strict=True
    ):
        said = row[mask].tolist()
        assert (said[-1] == tokenizer.eos_token_id) == bool(ended)
        assert tokenizer.eos_token_id not in said[:-1]
        assert bool((row[~mask] == tokenizer.pad_token_id).all())
        assert text == tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_is_without_dropout_and_leaves_the_model_as_it_was(training):
    torch.manual_seed(0)
    model, tokenizer = tiny("0123", layers=1, hidden=16, heads=2, length=40)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape))  # attention matters
    model.model.layers[0].self_attn.attention_dropout = 0.9
    responses = []
    for noise in (0, 1):
        model.train(training)
        torch.manual_seed(noise)
        responses.append(sample(model, tokenizer, ["0123"] * 20, seed=0, max_new_tokens=8).texts)
        assert model.training is training
    assert responses[0] == responses[1]


def test_a_policy_says_what_its_model_says():
    """Its head is applied here, with the soft cap of a model that has one, and its cache goes on."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 7, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=0.1, pad_token_id=0))
    for model in (tiny("01234", layers=2, hidden=16, heads=2, length=40)[0], capped):
        model.eval()
        tokens = torch.tensor([[2, 3, 4, 5], [6, 5, 4, 3]])
        with torch.no_grad():
            expected = model(tokens).logits
            first = Policy(model)(input_ids=tokens[:, :3], use_cache=True)
            then = Policy(model)(input_ids=tokens[:, 3:], past_key_values=first.past_key_values, use_cache=True)
        torch.testing.assert_close(first.logits[:, -1], expected[:, 2])
        torch.testing.assert_close(then.logits[:, -1], expected[:, 3])
    assert 0.05 < expected.abs().max() < 0.1


def test_padding_changes_no_log_probability():
    torch.manual_seed(0)
    model, tokenizer = tiny("0123", layers=2, hidden=16, heads=2, length=40)
    responses = sample(model, tokenizer, ["0", "0123"], seed=0, max_new_tokens=6)
    head = head_of(model)
    hidden = hidden_states(model, responses.tokens, responses.mask)
    for i, row in enumerate(responses.tokens):
        alone = row[responses.mask[i]][None]
        logits = model(input_ids=alone).logits[0].log_softmax(-1)
        count = int(responses.response_mask[i].sum())
        expected = logits[-count - 1 : -1].gather(1, alone[0, -count:, None])[:, 0]
        states = hidden[i, -responses.response_mask.shape[1] - 1 : -1][responses.response_mask[i]]
        found, _ = F.token_log_probs(states, head.weight, alone[0, -count:])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_batches_of_different_length_are_joined():
    torch.manual_seed(0)
    model, tokenizer = tiny("0123", layers=1, hidden=16, heads=2, length=40)
    short = sample(model, tokenizer, ["0"] * 3, seed=0, max_new_tokens=2)
    long = sample(model, tokenizer, ["0123"] * 2, seed=1, max_new_tokens=7)
    both = joined([short, long], tokenizer.pad_token_id)
    assert both.texts == short.texts + long.texts
    head = head_of(model)
    for one, rows in ((short, slice(0, 3)), (long, slice(3, 5))):
        part = both.rows(rows)
        for each, name in ((one, "alone"), (part, "joined")):
            length = each.response_mask.shape[1]
            hidden = hidden_states(model, each.tokens, each.mask)[:, -length - 1 : -1]
            targets = each.targets.masked_fill(~each.response_mask, -100)
            total = F.token_log_probs(hidden, head.weight, targets)[0].sum(1)
            if name == "alone":
                expected = total
        torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)


def test_a_model_is_loaded_by_its_path(tmp_path):
    model, tokenizer = tiny("0123 +\n", layers=1, hidden=16, heads=2, length=40)
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    again, tokenizer_again = load(str(tmp_path / "model"))
    text = " 01 +\n\n23 "
    tokens = tokenizer(text, return_tensors="pt").input_ids
    assert tokens.shape == (1, len(text))
    assert torch.equal(tokens, tokenizer_again(text, return_tensors="pt").input_ids)
    assert tokenizer_again.decode([*tokens[0], tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert len(tokenizer_again) == len(tokenizer)
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    assert again.generation_config.repetition_penalty is None  # the policy is the model itself
    assert head_of(again).weight is again.get_input_embeddings().weight
    with pytest.raises(ValueError, match="absent is no directory here, and no model of the hub could be loaded"):
        load(str(tmp_path / "absent"))


def test_a_response_ends_wherever_its_model_ends(tmp_path):
    """At the end of its tokenizer, at those of the checkpoint, and at the one that is asked for."""
    path = str(tiny_language.save(tmp_path))
    GenerationConfig(eos_token_id=[1, 7]).save_pretrained(path)
    model, tokenizer = load(path, stop_token="<|im_end|>")
    ends = {0, 1, 2, 7}
    assert ends_of(model) == ends
    responses = sample(model, tokenizer, ["1+1="] * 200, seed=0, max_new_tokens=60)
    occurred = set()
    for i, text in enumerate(responses.texts):
        said = responses.targets[i][responses.response_mask[i]].tolist()
        assert (said[-1] in ends) == bool(responses.ended[i])
        assert not ends & set(said[:-1])
        assert text == tokenizer.decode(said[:-1] if responses.ended[i] else said)
        occurred |= ends & set(said)
    assert occurred == ends
    describe(tmp_path / "described", model, tokenizer)
    assert ends_of(described(tmp_path / "described")[0]) == ends
    with pytest.raises(ValueError, match=r"stop_token='</s>' is 4 tokens of model=.*: it must be a single one"):
        load(path, stop_token="</s>")


# --- learning --------------------------------------------------------------------------------------------


def test_a_model_with_dropout_is_in_evaluation_mode_after_its_warm_start(tmp_path):
    """Or its first evaluation and rollout would be made with dropout, but not those of a resumed run."""
    trainer = tiny_language.trainer(tmp_path, warm_start_steps=1, warm_start_batch=2)
    warm_start(trainer.model, trainer.tokenizer, trainer.task, trainer.config, lambda done: None)
    assert not any(module.training for module in trainer.model.modules())


LEARN = {"warm_start_steps": 0, "steps": 30, "prompts": 8, "samples": 8, "learning_rate": 1e-2, "eval_every": 30}


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "grpo"},
        {"loss": "gspo"},
        {"loss": "dr-grpo", "minibatches": 2, "max_new_tokens": 3},
        {"head": "era", "omega_low": 1.2, "top_k": 20},
        {"kl_cov": 0.05, "minibatches": 2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_rewards_rise(settings, evens, tmp_path):
    path = train(config(tmp_path, **LEARN, **settings))
    _, reward = read_run(path).series("reward")
    assert reward[:3].mean() < 0.6
    assert reward[-3:].mean() > 0.9
    _, scores = read_run(path).series("avg_at_k")
    assert scores[-1] > 0.85


def test_era_keeps_the_entropy_that_grpo_loses(evens, tmp_path):
    found = {}
    for head in ("none", "era"):
        path = train(config(tmp_path / head, **LEARN, head=head, omega_low=2.4, omega_high=math.inf))
        found[head] = read_run(path).series("response_entropy")[1][-5:].mean()
    assert found["era"] > found["none"] + 0.1


def test_a_bonus_keeps_entropy_and_forking_tokens_are_fewer(evens, tmp_path):
    plain, bonus = (
        read_run(train(config(tmp_path / str(c), **LEARN, entropy_coef=c))).series("token_entropy")[1][-1]
        for c in (0.0, 0.5)
    )
    assert bonus > plain + 0.1


# --- one update ------------------------------------------------------------------------------------------

ARMS = [
    {},
    {"head": "era", "omega_low": 3.0, "omega_high": 4.0},
    {"head": "era", "omega_low": 3.0, "omega_high": 4.0, "scale_advantages": True, "kl_coef": 0.1},
    {"loss": "gspo", "minibatches": 2},
    {"loss": "dr-grpo"},
    {"aggregate": "sequence-mean"},
    {"forking": 0.2, "entropy_coef": 0.1},
    {"clip_cov": 0.1, "minibatches": 2},
    {"kl_cov": 0.1, "minibatches": 2},
]


@pytest.mark.slow_but_first
@pytest.mark.parametrize("settings", ARMS, ids=lambda settings: "-".join(settings) or "grpo")
def test_micro_batches_change_nothing(settings, evens, tmp_path):
    weights = []
    for size in (256, 3):
        path = train(config(tmp_path / str(size), steps=2, micro_batch=size, learning_rate=1e-3, **settings))
        trained = Run.open(path).latest().arrays
        weights.append(np.concatenate([trained[k].ravel() for k in sorted(trained) if k.startswith("model/")]))
    np.testing.assert_allclose(weights[1], weights[0], atol=2e-5)


def test_the_scale_is_that_of_the_response(evens, tmp_path):
    """ERA's log-probabilities are those of k z where the entropy is low and the advantage positive."""
    trainer = tiny_language.trainer(tmp_path, head="era", omega_low=2.3, omega_high=2.35, warm_start_steps=0)
    with torch.no_grad():
        batch, found = trainer._rollout()
        of_responses = F.response_entropy(batch.entropies, batch.responses.response_mask)
        low, high = of_responses < 2.3, of_responses > 2.35
        good = batch.advantages > 0
        expected = torch.where(good & low, 2.0, torch.where(good & high, 0.5, 1.0))
        assert torch.equal(batch.scale[:, 0], expected)
        assert found["scaled_share"] == pytest.approx(float((expected != 1).float().mean()))
        responses = batch.responses
        logits = trainer.model(
            input_ids=responses.tokens,
            attention_mask=responses.mask,
            position_ids=(responses.mask.long().cumsum(1) - 1).clamp(min=0),
        ).logits[:, -responses.response_mask.shape[1] - 1 : -1]
        scaled = (expected[:, None, None] * logits).log_softmax(-1).gather(2, responses.targets[..., None])[..., 0]
        mask = responses.response_mask
        torch.testing.assert_close(batch.old[mask], scaled[mask], atol=1e-5, rtol=1e-5)
        plain = logits.log_softmax(-1).gather(2, responses.targets[..., None])[..., 0]
        torch.testing.assert_close(batch.unscaled[mask], plain[mask], atol=1e-5, rtol=1e-5)


def test_thresholds_follow_from_the_entropy_that_rl_begins_with(evens, tmp_path):
    trainer = tiny_language.trainer(tmp_path, head="era", warm_start_steps=0)
    _, found = trainer._rollout()
    assert trainer.thresholds == pytest.approx((0.75 * found["response_entropy"], 5 * found["response_entropy"]))
    trainer = tiny_language.trainer(tmp_path, head="era", warm_start_steps=0, omega_low=0.3)
    trainer._rollout()
    assert trainer.thresholds[0] == 0.3


def test_the_second_stage_has_thresholds_of_its_own(evens, tmp_path):
    stages = {"head": "era", "steps": 4, "second_stage": 0.5, "omega_low": 0.45, "top_k": 20}
    record = read_run(train(config(tmp_path / "auto", **stages)))
    assert record.series("omega_low")[1].tolist() == pytest.approx([0.45, 0.45, 0.2, 0.2])
    assert len(record.series("omega_high")[0]) == 2  # infinite in the second
    record = read_run(train(config(tmp_path / "given", **stages, omega_low_2=0.3, omega_high_2=5.0)))
    assert record.series("omega_low")[1].tolist() == [0.45, 0.45, 0.3, 0.3]
    assert record.series("omega_high")[1].tolist()[2:] == [5.0, 5.0]


@pytest.mark.parametrize("settings", [{"omega_high": 0.1}, {"omega_high_2": 0.1}])
def test_thresholds_that_cross_are_refused_when_they_are_known(settings, evens, tmp_path):
    """That is before the first update, and not where the second stage begins."""
    trainer = tiny_language.trainer(tmp_path, head="era", second_stage=0.5, warm_start_steps=0, **settings)
    with pytest.raises(ValueError, match=r"RL begins with an entropy of 2\.[0-9]+ nats.*ω_high=0.1 is not above"):
        trainer._rollout()


# --- runs ------------------------------------------------------------------------------------------------


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    "settings",
    [
        {"head": "era", "kl_coef": 0.1},
        {"clip_cov": 0.1, "minibatches": 2},
        {"head": "era-floor", "min_entropy": 2.5, "era_tokens": "forking", "minibatches": 2},
        {"controller": "skywork", "min_entropy": 2.56, "bonus_step": 0.1},
        {"controller": "entropic", "min_entropy": 2.0, "integral_gain": 1.0, "advantages": "ds-grpo"},
    ],
)
def test_a_resumed_run_is_the_run_that_was_left_alone(settings, evens, tmp_path, monkeypatch):
    settings = {**settings, "steps": 4}
    whole = train(config(tmp_path / "whole", **settings))
    step = Trainer._train_step

    def interrupted(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    part = config(tmp_path / "part", **settings)
    with pytest.raises(KeyboardInterrupt, match=r"saved at step 2; .* --resume .*part"):
        train(part)
    monkeypatch.setattr(Trainer, "_train_step", step)
    resume(tmp_path / "part" / "run")
    assert history(whole) == history(tmp_path / "part" / "run")
    a, b = (Run.open(path).latest().arrays for path in (whole, tmp_path / "part" / "run"))
    assert set(a) == set(b)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert model_files(whole) == model_files(tmp_path / "part" / "run")


def model_files(run):
    return {file.name: file.read_bytes() for file in (run / "model").iterdir()}


def test_a_signal_ends_a_run_after_the_step_that_is_computed(evens, tmp_path, monkeypatch, capfd):
    settings = {"steps": 5, "eval_every": 3}
    whole = train(config(tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        step = Trainer._train_step

        def signalled(self):
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self)

        patch.setattr(Trainer, "_train_step", signalled)
        with pytest.raises(KeyboardInterrupt, match=r"saved at step 3; .*--resume .*part"):
            train(config(tmp_path / "part", **settings))
    path = tmp_path / "part" / "run"
    assert read_run(path).status["state"] == "interrupted"
    assert [line["step"] for line in history(path) if "avg_at_k" in line] == [0, 3]
    assert not (path / "model" / "model.safetensors").exists()
    resume(path)
    assert history(path) == history(whole)
    assert model_files(path) == model_files(whole)


def test_a_signal_ends_a_warm_start_with_nothing_saved(evens, tmp_path, monkeypatch):
    solved = []

    def solution(self, problem, rng, *, wander=False):
        solved.append(problem)
        if len(solved) == 9:  # the first of the second step
            os.kill(os.getpid(), signal.SIGINT)
        return "0"

    with monkeypatch.context() as patch:
        patch.setattr(Evens, "solution", solution)
        with pytest.raises(KeyboardInterrupt, match="nothing is saved"):
            train(config(tmp_path))
    assert len(solved) == 16
    path = tmp_path / "run"
    assert not Run.open(path).checkpoints()
    assert read_run(resume(path)).status["state"] == "finished"


def test_a_resume_refuses_what_would_change_results(evens, tmp_path):
    path = train(config(tmp_path))
    with pytest.raises(ValueError, match="learning_rate"):
        resume(path, learning_rate=1.0)


def test_a_second_signal_stops_at_once(evens, tmp_path, monkeypatch):
    def signalled(self):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one stops before")

    monkeypatch.setattr(
        "entropyfloor.runs.loop.GRACE", -1.0
    )  # the second one comes at once and counts all the same
    monkeypatch.setattr(Trainer, "_train_step", signalled)
    with pytest.raises(KeyboardInterrupt, match="saved at step 0"):
        train(config(tmp_path))


def test_speed_and_memory_may_change_when_a_run_is_resumed(evens, tmp_path):
    settings = {"steps": 2, "checkpoint_every": 1, "learning_rate": 1e-3}
    path = train(config(tmp_path, **settings))
    weights = load(str(path / "model"))[0].state_dict()
    shutil.rmtree(path / "checkpoints" / f"{2:012d}")
    resume(path, micro_batch=3, sample_batch=5, gradient_checkpointing=True)
    for name, tensor in load(str(path / "model"))[0].state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=2e-5, rtol=1e-3)


def test_the_length_of_responses_is_known_before_a_trainer_is_built(tmp_path, monkeypatch):
    """So the same command finds runs that were begun: `max_new_tokens` of the task is in their settings."""
    settings = {"task": "arithmetic", "digits": 1, "out": str(tmp_path)}
    completed, task = complete(config(tmp_path, **settings))
    assert completed.max_new_tokens == task.max_new_tokens
    path = train(config(tmp_path, **settings | {"out": str(tmp_path / "seed-0")}))
    assert read_run(path).config["max_new_tokens"] == task.max_new_tokens
    monkeypatch.setattr(
        "entropyfloor.runs.resume.each_in_its_process", lambda work, configs, *_: list(map(work, configs))
    )
    before = history(path)
    assert train_seeds(config(tmp_path, **settings), [0]) == [path]
    assert history(path) == before  # it has finished
    with pytest.raises(ValueError, match="max_new_tokens="):
        train_seeds(config(tmp_path, **settings, max_new_tokens=3), [0])


@pytest.mark.parametrize("arm", ["grpo", "era"])
def test_a_run_of_an_earlier_version_is_continued_by_the_same_command(arm, tmp_path):
    with zipfile.ZipFile(Path(__file__).parents[1] / "results" / "language" / "longer.runs.zip") as archive:
        archive.extractall(tmp_path)
    path = tmp_path / arm / "seed-0"
    stored = read_run(path).config
    same = read_config(stored)
    assert "controller" not in stored
    check_same(path, asdict(same))
    with pytest.raises(ValueError, match=r"was begun with controller=none \(now entropic\): give the same"):
        check_same(path, asdict(same) | {"controller": "entropic"})


def test_a_run_of_no_step_can_be_evaluated(evens, tmp_path):
    path = train(config(tmp_path, steps=0))
    assert read_run(path).status["state"] == "finished"
    assert "step 0" in evaluate(path, problems=2, samples=2)


def test_samples_follow_from_seed_and_step_alone(evens, tmp_path):
    trainer = tiny_language.trainer(tmp_path, warm_start_steps=0)
    texts, evaluations = [], []
    for noise, trainer.step in enumerate((0, 0, 1)):
        torch.manual_seed(noise)
        texts.append(trainer._rollout()[0].responses.texts)
        evaluations.append(trainer.evaluate())
    assert texts[0] == texts[1] != texts[2]
    assert evaluations[0].texts == evaluations[1].texts != evaluations[2].texts


def test_what_is_trained_can_be_loaded_and_read(evens, tmp_path):
    path = train(config(tmp_path))
    model, tokenizer = load(str(path / "model"))
    trainer = Trainer(*complete(read_config(read_run(path).config)))
    trainer.restore(Run.open(path).latest())
    tokens = tokenizer("3?", return_tensors="pt").input_ids
    assert torch.equal(model(tokens).logits, trainer.model(tokens).logits)
    text = (path / "samples" / "000002.txt").read_text().splitlines()
    assert text[0].endswith("?")
    assert len(text) == 4 * 5


def test_a_number_that_is_not_finite_stops_the_run(evens, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_minibatch", lambda self, batch, **_: {"loss": math.nan})
    with pytest.raises(FloatingPointError, match="loss is nan at step 1: "):
        train(config(tmp_path))
    assert list((tmp_path / "run" / "failure").iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "file"}, "needs --data"),
        ({"task": "file", "data": "x.jsonl"}, "needs a --model that can speak"),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"kl_cov": 0.1}, "do nothing where every ratio is 1"),
        ({"kl_cov": 0.1, "clip_cov": 0.1, "minibatches": 2}, "choose one"),
        ({"warm_start_batch": 0}, "warm_start_batch=0 must be at least 1"),
        ({"largest": 10**9}, "largest=1000000000 must be between 2 and 999"),
        ({"minibatches": 3}, "prompts=4 must be a multiple of minibatches=3"),
        ({"head": "era", "omega_low": 2.0, "omega_high": 1.0}, "omega_low=2.0 must be below omega_high=1.0"),
        ({"head": "era", "omega_low_2": 2.0, "omega_high_2": 1.0}, "omega_low_2=2.0 must be below omega_high_2"),
        ({"head": "era", "omega_low": math.nan}, "omega_low=nan must be finite and at least 0"),
        ({"head": "era", "omega_high": math.nan, "omega_low": 1.0}, "omega_high=nan must be at least 0"),
        ({"head": "era", "min_advantage": -1.0}, "min_advantage=-1.0 must be finite and at least 0"),
        ({"forking": 0.0}, "forking=0.0 must be above 0 and at most 1"),
        ({"top_fraction": 0.0}, "top_fraction=0.0 must be above 0 and at most 1"),
        ({"loss": "gspo", "forking": 0.2}, "with loss='gspo' a response gives one as a whole"),
        ({"loss": "gspo", "clip_cov": 0.1, "minibatches": 2}, "with loss='gspo' a response gives one as a whole"),
        ({"eval_samples": 2048}, "eval_samples=2048 must be between 1 and 1024"),
        ({"k": 1.0}, "k=1.0 must be above 1"),
        ({"loss": "ppo"}, "loss='ppo' must be one of grpo, dr-grpo, gspo"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**{**TINY, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "era", "freeze_scale": False}, "freeze_scale=False does nothing with one update per rollout"),
        ({"head": "era", "loss": "dr-grpo", "min_advantage": 1.0}, r"=1 is above 0\.75, which is the largest"),
        (
            {"head": "era", "advantages": "w-reinforce", "min_advantage": 1.0},
            r"=1 is above 0\.1, which is the largest",
        ),
        ({"head": "era", "top_k": 20, "second_stage": 0.0}, "second_stage=0.0 leaves no first stage"),
        ({"k": 3.0, "top_k": 20}, "k=3.0, top_k=20 would be ignored without head='era'"),
        ({"min_advantage": 1.0}, "min_advantage=1.0 would be ignored without head='era'"),
        ({"scale_advantages": True}, "scale_advantages=True would be ignored without head='era'"),
        ({"freeze_scale": False}, "freeze_scale=False would be ignored without head='era'"),
        ({"kl_cov_coef": 0.5}, "kl_cov_coef=0.5 would be ignored without kl_cov"),
        ({"loss": "gspo", "aggregate": "sequence-mean"}, "would be ignored without loss='grpo'"),
        ({"loss": "dr-grpo", "aggregate": "sequence-mean"}, "would be ignored without loss='grpo'"),
        ({"data": "x", "min_level": 9}, "data='x', min_level=9 would be ignored without task='file'"),
        ({"stop_token": "="}, "stop_token='=' would be ignored without a model that is read"),
        ({"model": "mine", "hidden": 64}, "hidden=64.* would be ignored without model='tiny'"),
        ({"warm_start_steps": 0, "warm_starts": "x"}, "warm_starts='x' would be ignored without warm_start_steps"),
        ({"max_refills": 5}, "max_refills=5 would be ignored without dynamic_sampling"),
        ({"head": "era", "omega_low_2": 0.1}, "omega_low_2=0.1 would be ignored without second_stage"),
        ({"task": "arithmetic", "largest": 9}, "largest=9 would be ignored without task='countdown'"),
        ({"digits": 3}, "digits=3 would be ignored without task='arithmetic'"),
        ({"chain_length": 3}, "chain_length=3 would be ignored without task='modular'"),
    ],
)
def test_settings_that_would_be_ignored(settings, message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**{**TINY, **settings}).resolved()


def test_countdown_has_three_numbers():
    short, long = (LanguageConfig(task=task, largest=9) for task in ("countdown", "countdown-3"))
    assert short.resolved() == long.resolved()


def test_tasks_of_other_sizes_have_warm_starts_of_their_own(tmp_path):
    sizes = [
        *({"task": "arithmetic"}, {"task": "arithmetic", "digits": 3}),
        *({"task": "modular"}, {"task": "modular", "chain_length": 3}),
        *({"task": "countdown-3"}, {"task": "countdown-3", "largest": 9}),
    ]
    assert len({file_of(LanguageConfig(**size, warm_starts=str(tmp_path)), None) for size in sizes}) == 6


def test_a_model_that_was_written_again_has_a_warm_start_of_its_own(tmp_path):
    base, _ = tiny("0123456789+-*=,:", layers=1, hidden=16, heads=2, length=16)
    settings = LanguageConfig(model="./base", warm_starts=str(tmp_path))
    before = file_of(settings, base.bfloat16())
    assert file_of(settings, base) == before
    with torch.no_grad():
        next(base.parameters()).mul_(1.5)
    assert file_of(settings, base) != before


def test_runs_share_a_warm_start(evens, tmp_path):
    """What is taken from another run is what would have been learnt, to the bit, and nothing else is taken."""
    alone = train(config(tmp_path / "alone"))
    settings = {"warm_starts": str(tmp_path / "warm")}
    first = train(config(tmp_path / "first", **settings))
    file = file_of(read_config(read_run(first).config), None)
    written = file.stat().st_mtime_ns
    second = train(config(tmp_path / "second", **settings))
    assert history(alone) == history(first) == history(second)
    train(config(tmp_path / "third", **settings, head="era"))  # another arm
    assert [*(tmp_path / "warm").iterdir()] == [file]
    assert file.stat().st_mtime_ns == written
    train(config(tmp_path / "fourth", **settings, seed=1))
    assert len([*(tmp_path / "warm").iterdir()]) == 2
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*: delete it, and it is made again"):
        train(config(tmp_path / "fifth", **settings))


@pytest.fixture
def sums(tmp_path):
    """Settings of a file of sums, and of a model with 16 positions that can read them."""
    model, tokenizer = tiny("0123456789+*-=? \n", layers=1, hidden=16, heads=2, length=16)
    model.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{i} + {i}", "answer": "{2 * i}"}}\n' for i in range(100)))
    return {"task": "file", "data": str(data), "model": str(tmp_path / "short"), "warm_start_steps": 0}


@pytest.mark.slow
def test_a_run_outlives_its_data(sums, tmp_path):
    path = train(config(tmp_path, **sums, max_new_tokens=4, checkpoint_every=1, stop_token="="))
    found = history(path)
    moved = Path(sums["data"]).rename(tmp_path / "moved.jsonl")
    shutil.rmtree(tmp_path / "short")  # the model that it began with

    shutil.rmtree(path / "checkpoints" / f"{2:012d}")
    with pytest.raises(ValueError, match=r"data\.jsonl"):
        resume(path)
    other = tmp_path / "other.jsonl"
    other.write_text(moved.read_text().replace('"1 + 1"', '"1 * 2"'))
    with pytest.raises(ValueError, match="are not those that the run began with"):
        resume(path, data=str(other))
    assert history(resume(path, data=str(moved))) == found

    export(path, tmp_path / "exported")
    exported, kept = (load(str(home)) for home in (tmp_path / "exported", path / "model"))
    weights = exported[0].state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept[0].state_dict().items())
    assert exported[0].generation_config.to_dict() == kept[0].generation_config.to_dict()
    assert ends_of(exported[0]) == set(exported[1].convert_tokens_to_ids(["<end>", "="]))
    assert exported[1]("1 + 2").input_ids == kept[1]("1 + 2").input_ids
    assert "avg@2" in evaluate(path, problems=4, samples=2, data=moved)

    (path / "model" / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="short is no directory"):  # nor is there the model that it began with
        export(path, tmp_path / "again")


def test_what_a_model_keeps_beside_its_parameters_is_loaded_too():
    model, _ = tiny("01", layers=1, hidden=16, heads=2, length=4)
    model.register_buffer("scale", torch.tensor(0.5))
    model.register_buffer("angles", torch.tensor(0.5), persistent=False)
    weights = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    assert "scale" in weights
    assert "angles" not in weights
    other, _ = tiny("01", layers=1, hidden=16, heads=2, length=4)
    other.register_buffer("scale", torch.tensor(1.0))
    load_weights(other, weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(other).items())
    del weights["scale"]
    with pytest.raises(ValueError, match="has no scale: it is of another model"):
        load_weights(other, weights)


def test_a_response_must_fit_into_the_model(sums, tmp_path):
    trainer = tiny_language.trainer(tmp_path, **sums, max_new_tokens=9)  # "99 + 99" has 7 tokens
    trainer.task.close()
    with pytest.raises(ValueError, match=r"a prompt of 7 tokens and max_new_tokens=10 do not fit .*short, 16: "):
        tiny_language.trainer(tmp_path, **sums, max_new_tokens=10)
    tiny_language.trainer(tmp_path, **sums, max_new_tokens=10, context=17).task.close()
    with pytest.raises(ValueError, match=r"max_new_tokens=9 do not fit .*short, 15: give"):
        tiny_language.trainer(tmp_path, **sums, max_new_tokens=9, context=15)


def test_prompts_that_are_too_long_are_left_out(sums, tmp_path, caplog):
    trainer = tiny_language.trainer(tmp_path, **sums, max_new_tokens=11, max_prompt=5)  # up to "9 + 9"
    trainer.task.close()
    found = [p.prompt for split in ("train", "test") for p in trainer.task.problems(split, 99, 0, or_fewer=True)]
    assert sorted(found) == [f"{i} + {i}" for i in range(10)]
    counts = re.findall("data: ([0-9]+) of ([0-9]+) problems to .* more than 5 tokens", caplog.text)
    assert np.array(counts, int).sum(0).tolist() == [90, 100]
    with pytest.raises(ValueError, match="data has no problem to train with: allow longer prompts"):
        tiny_language.trainer(tmp_path, **sums, max_new_tokens=11, max_prompt=4)


@pytest.mark.parametrize("name", ["language/dapo-7b", "language/math-1.5b"])
def test_recipes_of_mathematics_ask_for_a_box_and_fit_into_their_models(name, tmp_path, caplog):
    """Into 4096 positions, as Qwen2.5-Math says it has; the 8192 tokens of the larger one need to be asked for."""
    model = str(tiny_language.save(tmp_path / "model", context=4096))
    questions = [*(f"{i}+{i}?" for i in range(60)), "1" + 1000 * "+1"]
    rows = [{"question": question, "answer": "1", "level": 5} for question in questions]
    data = str(tiny_language.write_rows(tmp_path / "data.jsonl", rows))
    (planned, *_) = recipe.load(name).runs("paper", tmp_path, settings={"model": model, "data": data})
    planned_config = LanguageConfig(**planned.settings, out=str(tmp_path / "run"))
    trainer = Trainer(*complete(planned_config))
    trainer.task.close()
    assert "1 of" in caplog.text
    assert "more than 1024 tokens and are left out" in caplog.text
    (problem,) = trainer.task.problems("train", 1, 0)
    wrapped = TEMPLATES["qwen-math"].fill(problem.row["question"], INSTRUCTIONS["math"])
    assert problem.prompt == wrapped
    ends = trainer.tokenizer.convert_ids_to_tokens(sorted(ends_of(trainer.model)))
    assert set(ends) == set(TEMPLATES["qwen-math"].stop)
    with pytest.raises(ValueError, match="do not fit into the context"):
        Trainer(*complete(replace(planned_config, max_prompt=None)))


@pytest.mark.slow
def test_the_command_trains_goes_on_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = "runs/language/arithmetic-tiny/grpo-era-no-high/seed-0"
    small = options_of(TINY)
    assert main(["train", "language", *small, "--task=arithmetic", "--head=era", "--omega-high=inf"]) == 0
    out, err = capsys.readouterr()
    assert f"run: {run}" in out
    assert not err  # among it bars of transformers' own
    assert logging.is_progress_bar_enabled()  # which others may want
    assert main(["train", "language", "--resume", run]) == 0
    assert main(["report", "runs"]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert main(["evaluate", run, "--problems=5", "--samples=8", "--temperature=0.7"]) == 0
    summary = capsys.readouterr().out
    assert "step 2, 5 problems, 8 responses each at temperature 0.7" in summary
    assert "pass@8" in summary
    found = read_run(Path(run)).evaluation
    assert found["values"]["avg_at_k"] == sum(found["correct"]) / 40
    assert found["values"]["pass_at_1"] == pytest.approx(found["values"]["avg_at_k"])
    with pytest.raises(SystemExit):
        main(["evaluate", run, "--episodes=5"])
    assert "--episodes" in capsys.readouterr().err
    assert main(["export", run, "--out=mine"]) == 0
    assert "from_pretrained('mine')" in capsys.readouterr().out
    weights = load("mine")[0].state_dict()
    kept = load(f"{run}/model")[0].state_dict()
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    assert "avg@k (%)" in page
    assert "pass@4 (%)" in page
    assert main(["train", "language", "--resume", run, "--steps=3"]) == 2
    assert "--resume can be combined only with" in capsys.readouterr().err


def test_a_batch_is_taken_apart_by_rows(evens, tmp_path):
    trainer = tiny_language.trainer(tmp_path, warm_start_steps=0)
    batch, _ = trainer._rollout()
    part = batch.rows(slice(2, 5))
    assert isinstance(part, Batch)
    assert torch.equal(part.old, batch.old[2:5])
    assert part.responses.texts == batch.responses.texts[2:5]
    assert part.reference is None


# --- what people break -----------------------------------------------------------------------------------


@pytest.fixture
def chats(tmp_path):
    """Settings of a file of chats, and of a model whose tokenizer begins a text, as its chat template does."""
    begin = "<|im_start|>"
    turns = "{% for turn in messages %}[{{ turn.content }}]<|im_end|>{% endfor %}"
    path = tiny_language.save(tmp_path / "model")
    tokenizer = tiny_language.tokenizer(f"{begin}{turns}{{% if add_generation_prompt %}}>{{% endif %}}")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 1)]
    )
    tokenizer.save_pretrained(path)
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(60)]
    data = str(tiny_language.write_rows(tmp_path / "data.jsonl", rows))
    settings = {"task": "file", "data": data, "model": str(path), "warm_start_steps": 0, "max_new_tokens": 4}
    return {**settings, "template": "chat", "prompt": "{question}\nBox it."}


@pytest.mark.slow
def test_a_chat_is_trained_as_it_is_evaluated(chats, tmp_path):
    trainer = tiny_language.trainer(tmp_path, **chats)
    engine = Transformers(chats["model"], template("chat"))
    (problem,) = trainer.task.problems("train", 1, 0)
    assert problem.prompt == engine.prompt(problem.row["question"], "Box it.")
    prompts, options = [problem.prompt], sampling_of(trainer.config)
    responses = sample(trainer.model, trainer.tokenizer, prompts, seed=0, **options)
    width = responses.tokens.shape[1] - responses.response_mask.shape[1]
    assert responses.tokens[0, :width].tolist() == engine.encode(problem.prompt)
    assert ends_of(trainer.model) == engine.ends == {0, 2}  # where a turn ends, too
    trainer.task.close()
    path = train(config(tmp_path, **chats, checkpoint_every=1))
    expected, files = history(path), model_files(path)
    assert "chat_template.jinja" in files
    shutil.rmtree(path / "checkpoints" / f"{2:012d}")
    shutil.rmtree(chats["model"])
    assert history(resume(path)) == expected
    assert model_files(path) == files
    assert "avg@2" in evaluate(path, problems=4, samples=2)


def test_a_chat_needs_a_template(sums, tmp_path):
    with pytest.raises(ValueError, match="has no chat template"):
        tiny_language.trainer(tmp_path, **sums, template="chat", max_new_tokens=4)
    with pytest.raises(ValueError, match="template='chat' would be ignored without task='file'"):
        LanguageConfig(template="chat").resolved()


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("kind", "reward", "way"),
    [("file", 0.0, r"\boxed{}"), ("file", 1.0, "too easy"), ("arithmetic", 0.0, "--warm-start-steps")],
)
def test_rollouts_without_anything_to_learn_from_are_told(kind, reward, way, chats, tmp_path, monkeypatch, caplog):
    settings = chats if kind == "file" else {"task": kind, "warm_start_steps": 0}
    for task in (Arithmetic, Questions):
        monkeypatch.setattr(task, "rewards", lambda self, problems, _: np.full(len(problems), reward))
    train(config(tmp_path, **settings, steps=5))
    (line,) = [line for line in caplog.messages if "different rewards" in line]
    assert line.startswith(f"no group of the first 3 rollouts has different rewards (their mean is {reward:g})")
    assert way in line


def test_rollouts_with_something_to_learn_from_are_not(evens, tmp_path, caplog):
    train(config(tmp_path, steps=5))
    assert not [line for line in caplog.messages if "different rewards" in line]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_policy_of_an_update_is_the_one_that_sampled(checkpointed, tmp_path, monkeypatch):
    """A model with dropout: at a learning rate of nothing every ratio is 1, in all updates of a rollout."""
    model = tmp_path / "model"
    build("gpt2", vocab_size=99, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3).save_pretrained(model)
    tiny_language.tokenizer().save_pretrained(model)
    settings = {"model": str(model), "loss": "gspo", "minibatches": 2, "learning_rate": 1e-12}
    settings |= {"gradient_checkpointing": checkpointed, "max_new_tokens": 8, "warm_start_steps": 0}
    trainer = tiny_language.trainer(tmp_path, task="arithmetic", **settings)
    monkeypatch.setattr(Arithmetic, "reward", lambda self, problem, response: float(len(response) % 2))
    found = trainer._train_step()
    assert found["usable_groups"] > 0
    assert found["clip_fraction"] == 0
    assert found["ratio"] == pytest.approx(1, abs=1e-5)
    assert found["grad_norm"] > 0


@pytest.mark.parametrize(
    ("error", "part", "way"),
    [
        (MemoryError(), "decode", "give a --sample-batch below 256"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "decode", "give a --sample-batch below 256"),
        (torch.OutOfMemoryError("CUDA out of memory"), "hidden_states", "give a --micro-batch below 256"),
        (RuntimeError("something else"), "decode", None),
    ],
)
def test_a_memory_that_is_too_small_names_the_way_out(error, part, way, evens, tmp_path, monkeypatch):
    trainer = tiny_language.trainer(tmp_path, warm_start_steps=0)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(rollout if part == "decode" else update, part, fail)
    with pytest.raises(type(error)) as raised:
        trainer._train_step()
    notes = getattr(raised.value, "__notes__", [])
    assert [way in note for note in notes] == ([True] if way else [])
