"""Response entropies, scales and advantages of token ERA, and its filter of logits."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_allclose

import reference
from entropyfloor.torch import functional as F

rng = np.random.default_rng(0)
ENTROPY = torch.tensor(rng.exponential(size=(5, 12)))
MASK = torch.tensor(rng.random((5, 12)) < [[1.0], [0.7], [0.4], [0.1], [0.0]])
RESPONSE = torch.tensor([0.1, 0.44, 0.45, 3.0, 3.1])
ADVANTAGES = torch.tensor([[1.0, 0.3, 0.0, -1.0, 2.0]] * 5)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.29, 0.5, 1.0])
def test_response_entropy(fraction):
    expected = reference.response_entropy(ENTROPY, MASK, fraction)
    assert_allclose(F.response_entropy(ENTROPY, MASK, fraction), expected, atol=1e-12)
    assert_allclose(F.response_entropy(ENTROPY, MASK.long(), fraction), expected, atol=1e-12)


@pytest.mark.parametrize("length", [1, 4, 5, 9, 10, 99, 100, 8192])
def test_as_many_tokens_count_as_the_paper_says(length):
    """For entropies 1, 2, … the mean of the n highest determines n."""
    mean = F.response_entropy(torch.arange(1.0, length + 1)[None], torch.ones(1, length))
    count = max(1, length // 5)
    assert mean.item() == length - (count - 1) / 2


def test_a_share_that_binary_numbers_miss_is_counted_as_written():
    mean = F.response_entropy(torch.arange(1.0, 101)[None], torch.ones(1, 100), 0.29)  # 0.29 · 100 < 29 in float64
    assert mean.item() == 100 - 14


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=st.floats(0, 12, width=32)), st.data())
def test_response_entropy_is_of_the_response_alone(entropy, data):
    mask = data.draw(arrays(bool, entropy.shape))
    expected = reference.response_entropy(entropy, mask)
    garbage = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
    padded = torch.tensor(np.where(mask, entropy, garbage), requires_grad=True)
    result = F.response_entropy(padded, torch.tensor(mask))
    assert_allclose(result.detach(), expected, atol=1e-5)
    (grad,) = torch.autograd.grad(result.sum(), padded)
    assert (grad[~torch.tensor(mask)] == 0).all()
    assert_allclose(grad.sum(1), mask.any(1), atol=1e-5)
    order = data.draw(st.permutations(range(entropy.shape[1])))
    again = F.response_entropy(padded.detach()[:, order], torch.tensor(mask)[:, order])
    assert_allclose(again, result.detach(), atol=1e-5)


def test_ties_and_empty_responses():
    mask = torch.ones(1, 10)
    assert F.response_entropy(torch.full((1, 10), 0.7), mask).item() == pytest.approx(0.7)
    assert F.response_entropy(torch.full((1, 10), torch.nan), 0 * mask).item() == 0
    assert F.response_entropy(torch.ones(2, 0), torch.ones(2, 0)).tolist() == [0, 0]


def test_half_precision_is_averaged_in_float32():
    low = ENTROPY.bfloat16()
    assert_allclose(F.response_entropy(low, MASK), reference.response_entropy(low.double(), MASK), rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.29, 0.5, 1.0])
def test_the_entropy_of_a_response_is_the_mean_over_its_top_tokens(fraction):
    top = F.top_tokens(ENTROPY, MASK, fraction)
    assert not top[~MASK].any()
    assert_allclose(
        (ENTROPY * top).sum(-1) / top.sum(-1).clamp(min=1), F.response_entropy(ENTROPY, MASK, fraction)
    )
    assert F.top_tokens(torch.ones(1, 10), torch.ones(1, 10), 0.2).tolist() == [[True] * 2 + [False] * 8]


@pytest.mark.parametrize(
    "options",
    [{}, {"omega_low": 0.2, "omega_high": np.inf}, {"k": 3.0, "omega_high": 1.0}, {"min_advantage": 1.0}],
)
def test_era_token_scale(options):
    scale = F.era_token_scale(RESPONSE, ADVANTAGES, **options)
    assert_allclose(scale, reference.era_token_scale(RESPONSE.numpy(), ADVANTAGES.numpy(), **options), rtol=1e-6)
    by_response = torch.stack([F.era_token_scale(RESPONSE, a, **options) for a in ADVANTAGES.T], 1)
    torch.testing.assert_close(by_response, scale)


def test_scales_of_both_signs_and_thresholds_of_single_responses():
    low = torch.tensor([0.1, 0.3, 0.5, 4.0, 0.0])
    options = {"omega_low": low, "omega_high": math.inf, "k": 4.0, "signs": "both", "min_advantage": 0.5}
    scale = F.era_token_scale(RESPONSE, ADVANTAGES, **options)
    expected = reference.era_token_scale(
        RESPONSE.numpy(), ADVANTAGES.numpy(), **options | {"omega_low": low.numpy()}
    )
    assert_allclose(scale, expected, rtol=1e-6)
    assert (scale[ADVANTAGES < 0] != 1).any()
    everything = F.era_token_scale(RESPONSE, ADVANTAGES, omega_low=math.inf, omega_high=math.inf)
    assert torch.equal(everything, torch.where(ADVANTAGES > 0, 2.0, 1.0))


def test_a_scaled_policy_is_a_weight_and_a_bonus_on_its_renyi_entropy():
    """`log π'_s = s log π + (s - 1) H_s`, with its gradient: what a scale adds to an update."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    logits.requires_grad_()
    for s in (0.5, 2.0, 3.7):
        scaled, plain = (s * logits).log_softmax(-1)[:, 7], logits.log_softmax(-1)[:, 7]
        renyi = (s * logits.log_softmax(-1)).logsumexp(-1) / (1 - s)
        of_reference = [reference.renyi_entropy(row, s) for row in logits.detach().numpy()]
        assert_allclose(renyi.detach(), of_reference, rtol=1e-12)
        identity = s * plain + (s - 1) * renyi
        torch.testing.assert_close(scaled, identity, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (scaled, identity))
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_scale_acts_on_positive_advantages_alone():
    assert F.era_token_scale(RESPONSE, ADVANTAGES).tolist() == [
        [2, 2, 1, 1, 2],
        [2, 2, 1, 1, 2],
        [1, 1, 1, 1, 1],  # ω_low and ω_high themselves are inside
        [1, 1, 1, 1, 1],
        [0.5, 0.5, 1, 1, 0.5],
    ]
    assert F.era_token_scale(RESPONSE, ADVANTAGES, min_advantage=1.0)[0].tolist() == [2, 1, 1, 1, 2]


def test_the_scale_carries_no_gradient():
    entropy, advantages = RESPONSE.clone().requires_grad_(), ADVANTAGES.clone().requires_grad_()
    assert not F.era_token_scale(entropy, advantages).requires_grad


def test_scale_advantages():
    scale = F.era_token_scale(RESPONSE, ADVANTAGES)
    torch.testing.assert_close(F.scale_advantages(ADVANTAGES, scale), ADVANTAGES / scale)
    torch.testing.assert_close(F.scale_advantages(ADVANTAGES, scale[:, 0]), ADVANTAGES / scale[:, :1])
    torch.testing.assert_close(F.scale_advantages(ADVANTAGES[:, 0], scale), ADVANTAGES[:, :1] / scale)
    torch.testing.assert_close(F.scale_advantages(ADVANTAGES[:, 0], scale[:, 0]), ADVANTAGES[:, 0] / scale[:, 0])


@pytest.mark.parametrize("k", [1, 3, 7, 9])
def test_top_k_logits(k):
    logits, targets, rows = rng.normal(size=(6, 7)), rng.integers(7, size=6), np.arange(6) % 2 == 0
    expected = [
        reference.top_k_logits(z, k, row, target) for z, row, target in zip(logits, rows, targets, strict=True)
    ]
    result = F.top_k_logits(torch.tensor(logits), k, rows=torch.tensor(rows), targets=torch.tensor(targets))
    assert_allclose(result, expected)
    assert_allclose(F.top_k_logits(torch.tensor(logits), k), [reference.top_k_logits(z, k) for z in logits])


def test_of_equal_logits_the_target_is_kept():
    for target in range(6):
        kept = F.top_k_logits(torch.zeros(1, 6), 2, targets=torch.tensor([target]))[0].isfinite()
        assert kept.sum() == 2
        assert kept[target]


CALLS = {
    r"token_entropy \(5, 12\) and mask \(5, 3\)": lambda: F.response_entropy(ENTROPY, MASK[:, :3]),
    "top_fraction": lambda: F.response_entropy(ENTROPY, MASK, 0.0),
    "token_entropy has dtype": lambda: F.response_entropy(MASK.long(), MASK),
    "k=1.0": lambda: F.era_token_scale(RESPONSE, ADVANTAGES, k=1.0),
    "omega_low=3.0": lambda: F.era_token_scale(RESPONSE, ADVANTAGES, omega_low=3.0),
    "omega_high=nan": lambda: F.era_token_scale(RESPONSE, ADVANTAGES, omega_high=np.nan),
    "min_advantage=-1.0": lambda: F.era_token_scale(RESPONSE, ADVANTAGES, min_advantage=-1.0),
    r"advantages has dtype": lambda: F.era_token_scale(RESPONSE, ADVANTAGES.long()),
    r"response_entropy \(3, 1\) and advantages \(5, 5\)": lambda: F.era_token_scale(RESPONSE[:3], ADVANTAGES),
    r"scale \(5, 3\)": lambda: F.scale_advantages(ADVANTAGES, ADVANTAGES[:, :3]),
    "k=0": lambda: F.top_k_logits(ADVANTAGES, 0),
    "rows has dtype torch.uint8": lambda: F.top_k_logits(ADVANTAGES, 2, rows=torch.ones(5, dtype=torch.uint8)),
    r"targets \(2,\)": lambda: F.top_k_logits(ADVANTAGES, 2, targets=torch.tensor([0, 1])),
}


@pytest.mark.parametrize("message", CALLS)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        CALLS[message]()


FUNCTIONS = {
    "response_entropy": lambda entropy, mask, targets: F.response_entropy(entropy, mask),
    "era_token_scale": lambda entropy, mask, targets: F.era_token_scale(entropy[:, 0], entropy - 0.5),
    "scale_advantages": lambda entropy, mask, targets: F.scale_advantages(entropy, entropy[:, 0].exp()),
    "top_k_logits": lambda entropy, mask, targets: F.top_k_logits(entropy, 3, rows=mask[:, 0], targets=targets),
    "log_probs_at": lambda entropy, mask, targets: F.log_probs_at(entropy[:3], entropy[0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_eager_compiled_and_mapped(name):
    torch._dynamo.reset()
    function, targets = FUNCTIONS[name], torch.arange(5)
    eager = function(ENTROPY, MASK, targets)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ENTROPY, MASK, targets), eager)
    many = torch.stack([ENTROPY, ENTROPY.flip(1)]), torch.stack([MASK, MASK.flip(0)]), torch.stack([targets] * 2)
    each = torch.stack([function(*one) for one in zip(*many, strict=True)])
    torch.testing.assert_close(torch.func.vmap(function)(*many), each)
