"""The loop that writes: against transformers' own, against probabilities, and whatever a row is batched with."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import tiny_language
from entropyfloor.language.model.tiny import tiny
from entropyfloor.language.sampling import decoding
from entropyfloor.language.sampling.decoding import choose, decode
from entropyfloor.language.sampling.engines.base import Request, Sampling, template
from entropyfloor.language.sampling.engines.transformers import Transformers
from entropyfloor.language.sampling.rollout import sample
from entropyfloor.torch.seeding import derived

import transformers  # isort: skip  behind entropyfloor.language.model, which repairs torchvision

SIZES = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LINEAR = {"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2} | dict.fromkeys(
    ("linear_key_head_dim", "linear_value_head_dim"), 8
)
CONFIGS = {
    "rotary": lambda: transformers.Qwen2Config(**SIZES),
    "learned positions": lambda: transformers.GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4),
    "sliding window": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "convolution": lambda: transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "linear attention": lambda: transformers.Qwen3NextConfig(
        **SIZES, **LINEAR, layer_types=["linear_attention", "full_attention"], mlp_only_layers=[0, 1]
    ),
}
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [3, 4, 5], [20], [9, 8, 7, 6]]
ENDS = {1, 2, 3}


def model_of(kind, spread=0.2):
    """A model that is sure enough of itself for rounding to change no token, and repeats itself little."""
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    for name, token in {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}.items():
        setattr(config, name, token)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = transformers.GenerationConfig()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=spread)
    return model


@pytest.fixture(scope="module")
def model():
    return model_of("rotary")


@pytest.fixture
def read(model):
    """Shapes of what the model has read."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    hook.remove()


def drawn(model, prompts=PROMPTS, *, seeds=None, limit=20, **settings):
    seeds = range(len(prompts)) if seeds is None else seeds
    return decode(model, prompts, limits=[limit] * len(prompts), seeds=seeds, ends=ENDS, **settings)


# --- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(kind, movable, monkeypatch):
    if not movable:  # as with a cache that cannot be reordered
        monkeypatch.setattr(decoding.Batch, "movable", False)
    model = model_of(kind, spread=1.0)
    for prompt, (tokens, ended) in zip(PROMPTS, drawn(model, temperature=0.0), strict=True):
        alone = torch.tensor([prompt])
        expected = model.generate(
            alone,
            attention_mask=torch.ones_like(alone),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=sorted(ENDS),
            pad_token_id=0,
        )
        assert tokens == expected[0, len(prompt) :].tolist()
        assert ended == (tokens[-1] in ENDS)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}])
def test_a_row_is_the_same_whatever_it_is_batched_with(model, settings, monkeypatch):
    prompts = PROMPTS * 6
    whole = drawn(model, prompts, **settings)
    alone = [drawn(model, [p], seeds=[seed], **settings)[0] for seed, p in enumerate(prompts)]
    assert whole == alone
    assert {ended for _, ended in whole} == {True, False}
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    assert drawn(model, [prompts[i] for i in order], seeds=order, **settings) == [whole[i] for i in order]
    monkeypatch.setattr(decoding, "BLOCK", 3)
    assert drawn(model, prompts, **settings) == whole


def test_a_seed_is_a_row_of_its_own(model):
    first, again, other = drawn(model, [[3, 4, 5]] * 3, seeds=[0, 0, 1])
    assert first == again != other
    assert drawn(model, [[3, 4, 5]] * 3, seeds=[7, 0, 8])[1] == first


def test_a_prompt_is_read_once_and_the_ended_leave(model, read):
    found = drawn(model, [[3, 4, 5], [6, 7]] * 50, limit=40)
    assert read[0] == (2, 3)
    assert read[1][0] > 80
    lengths = np.array([len(tokens) for tokens, _ in found])
    for step, (rows, width) in enumerate(read[1:], 1):
        assert width == 1
        assert (lengths > step).sum() <= rows <= (lengths > step).sum() / decoding.SHRINK_BELOW + 1
    assert len(read) == lengths.max()


def test_each_row_has_a_limit_of_its_own(model):
    free = decode(model, PROMPTS, limits=[20] * 5, seeds=range(5), ends=())
    cut = decode(model, PROMPTS, limits=[1, 2, 3, 20, 5], seeds=range(5), ends=())
    assert [tokens for tokens, _ in cut] == [
        tokens[:n] for (tokens, _), n in zip(free, (1, 2, 3, 20, 5), strict=True)
    ]
    assert not any(ended for _, ended in cut)


def test_a_stop_ends_a_row(model):
    seen = []

    def stop(tokens):
        seen.append(list(tokens))
        return len(tokens) >= 2 and tokens[-1] % 2 == 0

    free, stopped = drawn(model), drawn(model, stop=stop)
    for (tokens, ended), (all_tokens, _) in zip(stopped, free, strict=True):
        assert tokens == all_tokens[: len(tokens)]
        assert ended
        assert tokens[-1] in ENDS or stop(tokens)
    assert not any(tokens[-1] in ENDS for tokens in seen)


def test_what_cannot_be_written_is_refused(model):
    with pytest.raises(ValueError, match="2 prompts have 1 limits and 2 seeds"):
        decode(model, [[3], [4]], limits=[1], seeds=[0, 1], ends=ENDS)
    for prompts, limit in (([[3], []], 1), ([[3], [4]], 0)):
        with pytest.raises(ValueError, match="at least one token, and every limit must be at least 1"):
            drawn(model, prompts, limit=limit)
    assert drawn(model, []) == []


# --- probabilities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (1.0, 0.9), (2.0, 0.6)])
def test_tokens_have_the_probabilities_of_the_model(temperature, top_p, dtype):
    logits = torch.tensor([1.0, -2.0, 0.53, 3.0, -torch.inf, 0.2], dtype=dtype)
    p = (logits.double() / temperature).softmax(-1).numpy()
    order = np.argsort(-p)
    p[order[1:][np.cumsum(p[order])[:-1] >= top_p]] = 0  # those in front of which the likeliest reach it already
    count = 10_000  # evenly spaced, so that each token is found as often as its probability says
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = np.bincount(choose(logits.expand(count, -1), uniform, temperature, top_p), minlength=6)
    np.testing.assert_allclose(found, p / p.sum() * count, atol=1.01)
    assert (found[p == 0] == 0).all()


def test_a_rare_token_of_a_large_vocabulary_keeps_its_probability():
    size, count, rare = 20_000, 100, 1e-10
    logits = torch.full((size,), float(np.log(rare)))
    logits[0] = 0.0
    uniform = 1 - (size * rare) * (torch.arange(count, 0, -1, dtype=torch.float64) - 0.5) / count
    found = choose(logits.expand(count, -1), uniform)
    expected = (np.arange(count) + 0.5) / count * size
    np.testing.assert_allclose(found, expected, atol=0.05 * size)  # rounding of the likely one moves them all
    assert len(set(np.diff(found).tolist()) - {199, 200, 201}) == 0


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_what_is_impossible_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for top_p in (1.0, 0.999, 0.5):
        assert int(choose(logits, torch.tensor([uniform], dtype=torch.float64), 1.0, top_p)) in (1, 2)


def test_written_tokens_have_the_probabilities_of_the_model(model):
    rows = 8000
    found = decode(model, [[3, 4, 5]] * rows, limits=[2] * rows, seeds=range(rows), ends=())
    first, second = np.array([tokens for tokens, _ in found]).T
    with torch.no_grad():
        p = model(torch.tensor([[3, 4, 5]])).logits[0, -1].softmax(-1).double().numpy()
        after = model(torch.tensor([[3, 4, 5, int(p.argmax())]])).logits[0, -1].softmax(-1).double().numpy()
    for tokens, expected in ((first, p), (second[first == p.argmax()], after)):
        counts = np.bincount(tokens, minlength=30)
        assert chisquare(counts, expected / expected.sum() * len(tokens)).pvalue > 0.01


# --- the two that write with it --------------------------------------------------------------------------


@pytest.mark.slow_but_first
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_training_and_evaluation_write_the_same(tmp_path, temperature):
    engine = Transformers(str(tiny_language.save(tmp_path, scale=20.0)), template("none"), batch_size=3)
    prompts = ["1+1=", "What is 2?", "1+1=", "7"] * 5
    requests = [Request(prompt, derived(5, i)) for i, prompt in enumerate(prompts)]
    answers = [answer for _, answer in engine.generate(requests, Sampling(temperature, 1.0, 30))]
    settings = {"max_new_tokens": 30, "temperature": temperature, "batch_size": 2}
    responses = sample(engine._model, engine.tokenizer, prompts, seed=5, **settings)
    assert [answer.text for answer in answers] == responses.texts
    assert [not answer.cut for answer in answers] == responses.ended.tolist()
    assert {answer.cut for answer in answers} == ({True, False} if temperature else {True})
    lengths = [answer.length + (not answer.cut) for answer in answers]  # the end is a token of the mask
    assert responses.response_mask.sum(1).tolist() == lengths


def test_responses_follow_from_the_seed_and_nothing_else():
    torch.manual_seed(0)
    model, tokenizer = tiny("0123", layers=1, hidden=16, heads=2, length=40)
    prompts = ["0", "0123", "22"] * 20
    whole = sample(model, tokenizer, prompts, seed=1, max_new_tokens=12)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    parts = sample(model, tokenizer, prompts, seed=1, max_new_tokens=12, batch_size=7)
    assert torch.equal(before, torch.get_rng_state())
    assert parts.texts == whole.texts
    for a, b in zip(parts[:3], whole[:3], strict=True):
        assert torch.equal(a, b)
    assert sample(model, tokenizer, prompts, seed=2, max_new_tokens=12).texts != whole.texts
    assert not any(x.is_inference() for x in (whole.tokens, whole.mask, whole.response_mask, whole.ended))
    with pytest.raises(ValueError, match="nothing to respond to"):
        sample(model, tokenizer, [], seed=0, max_new_tokens=1)


def test_a_row_that_has_ended_leaves_the_context_to_nobody():
    """It stays in the batch while most go on, and has no position left."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    small = transformers.GPT2LMHeadModel(config).eval()
    prompts = [[1] * 8, *([[2, 3]] * 9)]
    written = decode(small, prompts, limits=[1, *([6] * 9)], seeds=range(10), ends=())
    assert [len(each.tokens) for each in written] == [1, *([6] * 9)]
