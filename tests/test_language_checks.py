"""Families of language models: each is trained and sampled as what it is, or refused in one line."""

import re

import pytest
import torch

import tiny_language
from entropyfloor.language.model.forward import Head, head_of, hidden_states, logit_factor, logits_of
from entropyfloor.language.model.learning import checkpoint_layers, prepare_update
from entropyfloor.language.sampling.checks import check_sampling, check_training
from entropyfloor.language.warm_start import imitation_loss
from entropyfloor.torch import functional as F
from tiny_families import MAMBA, build

from transformers import AutoConfig  # isort: skip

LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
BOTH, SAMPLED, NEITHER = (True, True), (False, True), (False, False)
QUICK = [
    ("gpt2", {}, BOTH),
    ("gemma2", {"final_logit_softcapping": 0.1}, BOTH),
    ("phi", {}, BOTH),  # whose last layer has a bias
    ("qwen3_moe", {}, BOTH),
    ("falcon_h1", {**MAMBA, "lm_head_multiplier": 0.5}, BOTH),
    ("granite", {"logits_scaling": 4.0}, BOTH),
    ("cohere", {}, BOTH),
    ("bert", {}, SAMPLED),  # whose last layer has another behind the hidden states
    ("mamba", {}, NEITHER),  # keeps another kind of cache
    ("rwkv", {}, NEITHER),  # reads padding as if it were a prompt
    ("bart", {}, NEITHER),  # counts positions through padding
]
ALIKE = (
    *("gpt_neox", "gpt_bigcode", "gptj", "codegen", "ctrl", "llama", "mistral", "mixtral", "nanochat", "bitnet"),
    *("qwen2", "qwen2_moe", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "granitemoe", "olmo"),
    *("olmo2", "olmo3", "olmoe", "opt", "bloom", "mpt", "xglm", "biogpt", "stablelm", "starcoder2", "persimmon"),
    *("glm", "glm4", "helium", "nemotron", "smollm3", "gpt_oss", "lfm2", "jetmoe", "exaone4", "diffllama"),
)
SLOW = [
    *((family, {}, BOTH) for family in ALIKE),
    ("falcon", {"head_dim": None}, BOTH),
    ("falcon_h1", MAMBA, BOTH),
    ("bamba", {**MAMBA, "attn_layer_indices": [1]}, BOTH),
    ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, BOTH),
    ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4}, BOTH),
    ("deepseek_v2", LATENT | GROUPS | {"num_key_value_heads": 4}, BOTH),
    ("hyperclovax", {"logits_scaling": 2.0}, BOTH),
    ("cohere2", {}, BOTH),
    *((family, {}, SAMPLED) for family in ("electra", "llama4_text", "modernbert-decoder")),
    *((family, {}, NEITHER) for family in ("falcon_mamba", "mbart", "pegasus", "openai-gpt", "xlm", "roberta")),
    ("recurrent_gemma", {"num_hidden_layers": 3}, NEITHER),
    ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}, NEITHER),
    ("xlstm", {}, NEITHER),
]


def refused(check, model):
    """Whether it is, in one line that names the class of the model and ends with the way out."""
    try:
        check(model)
    except ValueError as error:
        return re.fullmatch(rf"{type(model).__name__} cannot be .* another architecture", str(error)) is not None
    return False


@torch.no_grad()
def difference(model):
    """Of log-probabilities of a padded batch, as an update computes them, from those of each sequence alone."""
    rows = [torch.arange(8, 17), torch.arange(20, 24)]
    tokens, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9)
    for i, row in enumerate(rows):
        tokens[i, 9 - len(row) :], mask[i, 9 - len(row) :] = row, 1
    batched = logits_of(hidden_states(model, tokens, mask.bool()), head_of(model)).log_softmax(-1)
    alone = [model(input_ids=row[None]).logits[0].log_softmax(-1) for row in rows]
    return max(float((batched[i, 9 - len(row) :] - alone[i]).abs().max()) for i, row in enumerate(rows))


@pytest.mark.filterwarnings("ignore")  # of families in transformers
@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_families(family, options, expected):
    model = build(family, **options)
    assert (not refused(check_training, model), not refused(check_sampling, model)) == expected
    if expected == BOTH:
        assert difference(model) < 1e-4


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("bert", {}, "away from its last layer times"),
        ("bart", {}, "away from those of the same tokens behind padding"),
        ("mamba", {}, "AttributeError: 'MambaOutput' object has no attribute 'past_key_values'"),
    ],
)
def test_reasons(family, options, reason):
    with pytest.raises(
        ValueError, match=rf"^{family[:3]}.* cannot be trained here: .*{reason}".replace("^", "(?i)")
    ):
        check_training(build(family, **options))


def test_numbers_that_are_not_finite_are_refused():
    model = build("gpt2")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match="GPT2LMHeadModel cannot be trained: its logits are not finite"):
        check_training(model)


@pytest.mark.parametrize(
    ("family", "options", "factor"),
    [
        ("llama", {}, 1.0),
        ("cohere", {"logit_scale": 0.25}, 0.25),
        ("granite", {"logits_scaling": 8.0}, 0.125),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, 0.5),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, 1.0),
    ],
)
def test_factor_of_logits(family, options, factor):
    assert logit_factor(AutoConfig.for_model(family, **options)) == factor


def test_a_factor_of_logits_must_be_positive():
    with pytest.raises(ValueError, match=r"logits_scaling=0 of the model's config, .* must be positive"):
        logit_factor(AutoConfig.for_model("granite", logits_scaling=0))


def test_the_factor_stands_before_a_soft_cap():
    head = Head(torch.randn(9, 4), torch.randn(9), softcap=0.7, factor=0.3)
    hidden, targets = torch.randn(5, 4), torch.arange(5)
    found, _ = F.token_log_probs(hidden, head.weight, targets, bias=head.bias, **head.scaling(0.5))
    logits = 0.7 * torch.tanh(0.3 * (hidden @ head.weight.T + head.bias) / 0.7)
    torch.testing.assert_close(logits_of(hidden, head), logits)
    torch.testing.assert_close(found, (logits / 0.5).log_softmax(-1).gather(1, targets[:, None])[:, 0])


def test_the_factor_counts_in_a_warm_start():
    words = tiny_language.tokenizer()
    model = build("granite", vocab_size=len(words), logits_scaling=0.1)
    tokens = words(["Hi there"], return_tensors="pt").input_ids
    expected = torch.nn.functional.cross_entropy(model(input_ids=tokens).logits[0, 1:-1], tokens[0, 2:])
    torch.testing.assert_close(imitation_loss(model, words, ["Hi"], [" there"]), expected)


# --- dropout ---------------------------------------------------------------------------------------------

DROPS = [
    ("gpt2", dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)),  # modules, and scaled dot products
    ("opt", {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),  # functions, and whole layers
    ("bloom", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
]


@pytest.mark.parametrize(("family", "options"), DROPS, ids=[family for family, _ in DROPS])
def test_a_model_learns_as_it_acts(family, options):
    """Whatever drops; and layers that are to keep only their input do, with the same gradients."""
    tokens = torch.arange(8, 24).view(2, 8)
    plain = build(family, **dict.fromkeys(options, 0.0))
    expected = plain(input_ids=tokens).logits
    expected.square().sum().backward()
    held = {}
    for checkpointed in (False, True):
        model = build(family, **options)
        if checkpointed:
            checkpoint_layers(model)
        prepare_update(model)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x), x)[1], lambda x: x):
            logits = model(input_ids=tokens, use_cache=False).logits
        held[checkpointed] = len(kept)
        assert torch.equal(logits, expected)
        logits.square().sum().backward()
        for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, msg=name)
        model.eval()
        assert not any(module.training for module in model.modules())
    assert held[True] < held[False] / 2
