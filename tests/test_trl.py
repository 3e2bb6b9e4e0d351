"""ERA in TRL: one step beside our trainer's update and beside TRL's own, on the same rollouts."""

import contextlib
import copy
import math
import subprocess
import sys

import pytest
import torch

pytest.importorskip("trl")

from entropyfloor.integrations.trl import ERAGRPOTrainer
from entropyfloor.integrations.trl.head import HeadOptions, add_era_head, log_probs_of, token_scores
from entropyfloor.integrations.trl.loss import loss_mask
from entropyfloor.language import losses
from entropyfloor.language.model.forward import Head, head_of
from tiny_trl import FAMILIES, IGNORED, arguments, largest_difference, logged, our_model, saved, trained

from transformers import AutoModelForCausalLM  # isort: skip
from trl import GRPOConfig, GRPOTrainer  # isort: skip
from trl.kernels import ChunkedLogProbFunction  # isort: skip

pytestmark = IGNORED


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of saved random models."""
    folder = tmp_path_factory.mktemp("models")
    return lambda family="qwen2": saved(folder, family)


TWICE = {"num_iterations": 2, "max_steps": 2}
NEVER = {"omega_low": 0.0, "omega_high": math.inf}
EQUAL = {
    "plain": ({}, {}),
    "mean over sequences": ({"loss_type": "grpo"}, {"mean": "sequence"}),
    "dr-grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {"mean": "length", "max_length": 7}),
    "gspo": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
            "num_iterations": 2,
        },
        {"mean": "sequence", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    ),
    "iterations": ({"num_iterations": 2, "epsilon_high": 0.28}, {"clip_high": 0.28}),
    "accumulation": (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
        {"micro_batch": 4},
    ),
    "accumulation on-policy": ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, {}),
    "kl": ({"beta": 0.5, "num_iterations": 2, "use_bias_correction_kl": False}, {"kl_coef": 0.5}),
    "temperature": ({"temperature": 0.7, "num_iterations": 2}, {"temperature": 0.7}),
    "scaled advantages": ({"scale_advantages": True, "num_iterations": 2}, {"scale_advantages": True}),
    "scaled advantages on-policy": ({"scale_advantages": True}, {"scale_advantages": True}),
    "both signs": ({"era_signs": "both", "num_iterations": 2}, {"era_signs": "both"}),
    "each pass decides": ({"freeze_scale": False, "num_iterations": 2}, {"freeze_scale": False}),
    "largest logits": ({"era_top_k": 5, "num_iterations": 2}, {"top_k": 5}),
    "largest logits on-policy": ({"era_top_k": 5}, {"top_k": 5}),
    "k and share": ({"k": 3.0, "top_fraction": 0.5, "num_iterations": 2}, {"k": 3.0, "top_fraction": 0.5}),
    "entropy bonus": ({"entropy_coef": 0.3}, {"entropy_coef": 0.3}),
    "clip-cov": ({"clip_cov": 0.1, "num_iterations": 2, "max_steps": 1}, {"clip_cov": 0.1}),
    "masked responses": ({"mask_truncated_completions": True, "max_completion_length": 50, **TWICE}, {}),
    "kl-cov": ({"kl_cov": 0.2, "num_iterations": 2}, {"kl_cov": 0.2}),
    "kl-cov without era": ({"kl_cov": 0.2, "num_iterations": 2, **NEVER}, {"kl_cov": 0.2}),
}


@pytest.mark.parametrize("name", EQUAL)
def test_a_step_is_that_of_our_trainer(models, tmp_path, name):
    settings, hyperparameters = EQUAL[name]
    args = arguments(tmp_path, **{"max_steps": settings.get("num_iterations", 1), **settings})
    trainer, rollouts, start = trained(ERAGRPOTrainer, models(), args)
    expected, scaled = our_model(start, rollouts, args, **hyperparameters)
    assert len(rollouts) == 1
    assert (scaled[0] > 0) == (args.omega_low > 0)
    if name == "masked responses":
        assert len(rollouts[0]["completion_mask"].any(1).unique()) == 2
    assert largest_difference(trainer.model, start) > 1e-3
    assert largest_difference(trainer.model, expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_families(models, tmp_path, family):
    args = arguments(tmp_path, num_iterations=2, max_steps=2)
    trainer, rollouts, start = trained(ERAGRPOTrainer, models(family), args)
    expected, scaled = our_model(start, rollouts, args)
    assert scaled[0] > 0
    assert largest_difference(trainer.model, start) > 1e-3
    assert largest_difference(trainer.model, expected) < 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_adapters(models, tmp_path, beta):
    """LoRA: the reference is the model without its adapter, which TRL scores with the same model."""
    args = arguments(tmp_path, num_iterations=2, max_steps=2, beta=beta, use_bias_correction_kl=False)
    adapter = pytest.importorskip("peft").LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    trainer, rollouts, start = trained(ERAGRPOTrainer, models(), args, peft_config=adapter)
    base = start.get_base_model()
    reference = AutoModelForCausalLM.from_pretrained(models(), dtype=torch.float32) if beta else None
    expected, scaled = our_model(base, rollouts, args, reference=reference, kl_coef=beta)
    assert scaled[0] > 0
    assert largest_difference(trainer.model.get_base_model(), base) > 1e-3
    assert largest_difference(trainer.model.get_base_model(), expected) < 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_last_layer_that_is_trained_beside_adapters(models, tmp_path, beta):
    """PEFT trains a copy of it; the reference has the original, which differs from the second rollout on."""
    args = arguments(tmp_path, num_iterations=2, max_steps=4, beta=beta, use_bias_correction_kl=False)
    adapter = pytest.importorskip("peft").LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer, rollouts, start = trained(ERAGRPOTrainer, models(), args, peft_config=adapter)
    base, found = start.get_base_model(), trainer.model.get_base_model()
    assert largest_difference(found.lm_head.original_module, base.lm_head.original_module) == 0
    for model in (base, found):
        model.lm_head = model.lm_head.modules_to_save["default"]
    reference = AutoModelForCausalLM.from_pretrained(models(), dtype=torch.float32) if beta else None
    expected, scaled = our_model(base, rollouts, args, reference=reference, kl_coef=beta)
    assert len(scaled) == 2
    assert min(scaled) > 0
    assert largest_difference(found.lm_head, base.lm_head) > 1e-3
    assert largest_difference(found, expected) < 1e-5


def test_the_last_layer_in_use_is_that_of_the_logits(models):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(models(), dtype=torch.float32), adapter)
    add_era_head(model.get_base_model())
    copied, tokens = model.get_base_model().lm_head.modules_to_save["default"], torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        copied.weight.mul_(1.5)

    def gradient(log_probs):
        model.zero_grad()
        log_probs.square().sum().backward()
        return copied.weight.grad

    found = []
    for disabled in (False, True):
        with model.disable_adapter() if disabled else contextlib.nullcontext():
            found.append(model(tokens, labels=tokens, era=HeadOptions(2.0, 1.0, None, False)).log_probs[..., 0])
            logits = model(tokens).logits[:, :-1]
        expected = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        torch.testing.assert_close(found[-1], expected)
        if not disabled:
            torch.testing.assert_close(gradient(found[0]), gradient(expected))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_gradient_checkpointing_changes_nothing(models, tmp_path):
    found = []
    for checkpointing in (False, True):
        args = arguments(tmp_path, num_iterations=2, max_steps=2, gradient_checkpointing=checkpointing)
        found.append(trained(ERAGRPOTrainer, models(), args)[0].model)
    assert largest_difference(*found) < 1e-7


def test_bias_correction_of_the_kl_divergence(models, tmp_path):
    """TRL multiplies the divergence with the ratio of the loss; it has to be that of the unscaled policy."""
    args = arguments(tmp_path, num_iterations=2, max_steps=2, beta=0.5, use_bias_correction_kl=True)
    trainer, rollouts, start = trained(ERAGRPOTrainer, models(), args)
    (rollout,) = rollouts
    model, mask = copy.deepcopy(start), loss_mask(rollout)
    assert (rollout["era_scale"] != 1).any()
    for _ in range(2):
        scores = our_scores(model, rollout)
        new, old = log_probs_of(scores.log_probs, rollout["era_scale"], None), rollout["era_old_per_token_logps"]
        unscaled, sampled = scores.log_probs[..., 0], rollout["old_per_token_logps"]
        kl = losses.kl_terms(unscaled, rollout["ref_per_token_logps"], mask) * (unscaled - sampled).exp()
        terms = losses.policy_terms(new, old, rollout["advantages"], mask) + 0.5 * kl
        model.zero_grad()
        losses.weighted_sum(terms, losses.token_weights(mask)).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= args.learning_rate * weight.grad
    assert largest_difference(trainer.model, start) > 1e-3
    assert largest_difference(trainer.model, model) < 1e-5


def our_scores(model, rollout):
    """Output of the head for the tokens of responses."""
    tokens = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    length = rollout["completion_ids"].shape[1]
    hidden = model.base_model(tokens, attention_mask=mask).last_hidden_state[:, -length - 1 : -1]
    targets = rollout["completion_ids"].masked_fill(rollout["completion_mask"] == 0, -100)
    return token_scores(hidden, head_of(model), targets, HeadOptions(2.0, 1.0, None, False))


# --- beside TRL ------------------------------------------------------------------------------------------

HARDLY = {"omega_low": 1e-6, "omega_high": 1e6}
AS_TRL = {
    **{
        f"{loss} {level}": {"loss_type": loss, "importance_sampling_level": level, **TWICE}
        for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
        for level in ("token", "sequence")
    },
    "on-policy": {"max_steps": 2},
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **TWICE},
    "misaligned": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "kl": {"beta": 0.5, **TWICE},
    "kl without correction": {"beta": 0.5, "use_bias_correction_kl": False, **TWICE},
    "clip-higher": {"epsilon_high": 0.28, **TWICE},
    "two-sided clip": {"delta": 1.5, **TWICE},
    "forking": {"top_entropy_quantile": 0.2, **TWICE},
    "entropy bonus": {"entropy_coef": 0.3, **TWICE},
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_target": 5.0, **TWICE},
    "off-policy mask": {"off_policy_mask_threshold": 0.1, **TWICE},
    "truncated": {"mask_truncated_completions": True, **TWICE},
    "head in float32": {"cast_lm_head_to_fp32": True, **TWICE},
}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "cohere", "granite", "phi", "gpt2"])
def test_other_families_without_scaled_responses(models, tmp_path, family):
    """Experts with their load-balancing loss, logits that are multiplied, a bias in the last layer."""
    theirs = trained(GRPOTrainer, models(family), arguments(tmp_path, GRPOConfig, **TWICE))[0]
    close, _, start = trained(ERAGRPOTrainer, models(family), arguments(tmp_path, **HARDLY | TWICE))
    assert largest_difference(theirs.model, start) > 1e-4
    assert largest_difference(theirs.model, close.model) < 1e-6
    assert bool(logged(close, "aux_loss")) == (family in ("mixtral", "qwen3_moe"))


@pytest.mark.parametrize("name", AS_TRL)
def test_without_scaled_responses_it_is_trl(models, tmp_path, name):
    """Bit for bit with TRL's head, where no threshold can be met; to rounding with ours."""
    theirs = trained(GRPOTrainer, models(), arguments(tmp_path, GRPOConfig, **AS_TRL[name]))[0]
    exact = trained(ERAGRPOTrainer, models(), arguments(tmp_path, **NEVER | AS_TRL[name]))[0]
    close, _, start = trained(ERAGRPOTrainer, models(), arguments(tmp_path, **HARDLY | AS_TRL[name]))
    assert largest_difference(theirs.model, start) > 1e-4
    assert largest_difference(theirs.model, exact.model) == 0
    assert largest_difference(theirs.model, close.model) < 1e-6
    for row, same, near in zip(*(t.state.log_history[:-1] for t in (theirs, exact, close)), strict=True):
        for quantity in set(row) - {"step_time"}:
            assert same[quantity] == row[quantity], quantity
            assert near[quantity] == pytest.approx(row[quantity], rel=1e-4, abs=1e-6), quantity


@pytest.mark.parametrize("seed", range(3))
def test_the_head_under_mixed_precision_errs_less_than_that_of_trl(seed):
    """Log-probs, entropies and gradients of both, beside float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(256, 64, generator=generator), 0.3 * torch.randn(2000, 64, generator=generator)
    targets = torch.randint(2000, (256,), generator=generator)
    pull = torch.randn(256, generator=generator)

    def exact(h, w):
        log_probs = (h @ w.T).log_softmax(-1)
        return log_probs.gather(-1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)

    def of_ours(h, w):
        scores = token_scores(h, Head(w, None, None), targets, HeadOptions(2.0, 1.0, None, False))
        return scores.log_probs[:, 0], scores.entropy

    def of_trl(h, w):
        return ChunkedLogProbFunction.apply(h, w, None, targets, 1.0, 2**15, None, 1.0, ("log_probs", "entropy"))[
            :2
        ]

    def results(head, dtype=torch.float32):
        factors = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            log_probs, entropies = head(*factors)
        (log_probs * pull).mean().backward()
        return [x.detach().double() for x in (log_probs, entropies, *(factor.grad for factor in factors))]

    expected, mine, theirs = results(exact, torch.float64), results(of_ours), results(of_trl)
    for value, found, other in zip(expected, mine, theirs, strict=True):
        assert (found - value).norm() < (other - value).norm() < 0.01 * value.norm()


def test_a_large_vocabulary_needs_no_memory_for_its_logits():
    """512 tokens and 151,936 words have logits of 311 MB."""
    code = """
import resource, torch
from entropyfloor.integrations.trl.head import HeadOptions, token_scores
from entropyfloor.language.model.forward import Head

def run(size):
    weight = torch.randn(size, 16, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    targets = torch.randint(size, (1, 512))
    head, options = Head(weight, None, None), HeadOptions(2.0, 1.0, None, False)
    scores = token_scores(torch.randn(1, 512, 16), head, targets, options)
    scores.log_probs.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(-run(4096) + run(151936))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150  # MB
