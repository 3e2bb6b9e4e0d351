"""Losses of language models against a few lines of NumPy each, against TRL, in micro-batches and behind a mask."""

import math
from collections import defaultdict
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from entropyfloor.language.losses import (
    cispo_terms,
    clip_cov_tokens,
    clipped_tokens,
    entropy_terms,
    forking_tokens,
    kl_cov_tokens,
    kl_terms,
    policy_statistics,
    policy_terms,
    token_covariances,
    token_weights,
    weighted_sum,
)

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")

B, T = 7, 10
RNG = np.random.default_rng(1)
OLD = -RNG.exponential(1.5, (B, T))
NEW = OLD + 0.5 * RNG.standard_normal((B, T))  # most ratios are past a bound, on either side
ADVANTAGES = -RNG.standard_normal(B)
OF_TOKENS = ADVANTAGES[:, None] * RNG.choice([0.5, 1.0, 2.0], (B, T))
ENTROPIES = RNG.exponential(0.7, (B, T))
REFERENCE = NEW + 0.4 * RNG.standard_normal((B, T))
LENGTHS = np.array([10, 1, 0, 8, 10, 4, 8])  # 40 tokens
MASK = np.arange(T) < LENGTHS[:, None]
MASK[3, 2] = False  # the words of a tool stand amid those of the model
MASK[1] = False
MASK[1, 3] = True


def torched(*arrays):
    return [torch.tensor(x) for x in arrays]


def chosen(count, generator, *shape):
    """Bool array with `count` random True."""
    flat = np.zeros(math.prod(shape), bool)
    flat[generator.permutation(flat.size)[:count]] = True
    return flat.reshape(shape)


# --- the reference ---------------------------------------------------------------------------------------


def np_terms(new, old, advantages, mask, low=0.2, high=0.2, ratio="token"):
    out = np.zeros_like(new)
    for i in range(len(new)):
        tokens = np.flatnonzero(mask[i])
        d = (new - old)[i, tokens]
        r = np.exp(d) if ratio == "token" else np.exp(d.mean() if len(d) else 0.0) * np.ones(len(d))
        a = advantages[i, tokens] if advantages.ndim == 2 else advantages[i]
        # Told by cases instead of by minima: past the bound that acts, r is the bound.
        bound = np.where(a > 0, np.minimum(r, 1 + high), np.maximum(r, 1 - low))
        out[i, tokens] = -bound * a
    return out


def np_mean(terms, mask, mean, length=None):
    rows = [terms[i][mask[i]] for i in range(len(terms)) if mask[i].any()]
    if mean == "token":
        return np.concatenate(rows).mean()
    if mean == "sequence":
        return np.mean([row.mean() for row in rows])
    return np.mean([row.sum() / length for row in rows])


def np_top(values, mask, share):
    """A loop instead of a sort."""
    count, out, left = max(1, int(share * mask.sum() + 1e-9)), np.zeros_like(mask), np.where(mask, values, -np.inf)
    for _ in range(min(count, int(mask.sum()))):
        best = np.unravel_index(left.argmax(), left.shape)
        out[best], left[best] = True, -np.inf
    return out


def np_covariances(new, advantages, mask):
    a = np.broadcast_to(advantages[:, None], new.shape) if advantages.ndim == 1 else advantages
    return np.where(mask, (new - new[mask].mean()) * (a - a[mask].mean()), 0.0)


NP_KL = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: np.exp(-d) + d - 1,
    "abs": np.abs,
}


# --- every baseline, as the table of the module has it ---------------------------------------------------


def clip_cov(x, generator_seed=0):
    new, old, advantages, mask = x["new"].detach(), x["old"], x["advantages"], x["mask"]
    covariances = token_covariances(new, advantages, mask)
    clipped = clipped_tokens(new, old, advantages, mask)
    generator = torch.Generator().manual_seed(generator_seed)
    return clip_cov_tokens(covariances, clipped, mask, generator, fraction=0.1, low=0.1, high=1.0)


def kl_cov(x):
    return kl_cov_tokens(token_covariances(x["new"].detach(), x["advantages"], x["mask"]), x["mask"], 0.1)


def nothing(x):
    return x["mask"]


def forking(x):
    return forking_tokens(x["entropies"].detach(), x["mask"])


def plain(x, choice, **options):
    return policy_terms(x["new"], x["old"], x["advantages"], x["mask"], **options)


# name: (choice over the whole batch, terms of some rows, mean)
BASELINES = {
    "grpo": (nothing, plain, "sequence"),
    "grpo-token": (nothing, plain, "token"),
    "dr-grpo": (nothing, plain, "length"),
    "clip-higher": (nothing, lambda x, c: plain(x, c, clip_high=0.28), "token"),
    "gspo": (nothing, lambda x, c: plain(x, c, ratio="sequence", clip_low=3e-4, clip_high=4e-4), "sequence"),
    "gspo-wide": (nothing, lambda x, c: plain(x, c, ratio="sequence", clip_low=0.02, clip_high=0.06), "sequence"),
    "forking": (forking, lambda x, c: plain(x, c) * c, "token"),
    "clip-cov": (clip_cov, lambda x, c: plain(x, c) * ~c, "token"),
    "kl-cov": (
        kl_cov,
        lambda x, c: plain(x, c, clip_low=math.inf, clip_high=math.inf) + kl_terms(x["new"], x["old"], c, "abs"),
        "token",
    ),
    "cispo": (
        nothing,
        lambda x, c: cispo_terms(x["new"], x["old"], x["advantages"], x["mask"], clip_low=0.3, clip_high=0.4),
        "token",
    ),
    "entropy": (nothing, lambda x, c: plain(x, c) + entropy_terms(x["entropies"], x["mask"], 0.3), "token"),
    "kl": (nothing, lambda x, c: plain(x, c) + 0.1 * kl_terms(x["new"], x["reference"], x["mask"]), "token"),
}


def np_baseline(name, new, old, advantages, mask, entropies, reference, choice):
    arguments = new, old, advantages, mask
    covariances = np_covariances(new, advantages, mask)
    terms = {
        "clip-higher": lambda: np_terms(*arguments, high=0.28),
        "gspo": lambda: np_terms(*arguments, 3e-4, 4e-4, "sequence"),
        "gspo-wide": lambda: np_terms(*arguments, 0.02, 0.06, "sequence"),
        "forking": lambda: np_terms(*arguments) * np_top(entropies, mask, 0.2),
        "clip-cov": lambda: np_terms(*arguments) * ~choice,
        "kl-cov": lambda: (
            np_terms(*arguments, np.inf, np.inf) + np_top(covariances, mask, 0.1) * np.abs(new - old)
        ),
        # Weights are no part of the gradient: they stay those of NEW, whatever `new` is.
        "cispo": lambda: -np.exp(NEW - OLD).clip(0.7, 1.4) * (advantages.T * np.ones((T, 1))).T * new,
        "entropy": lambda: np_terms(*arguments) - 0.3 * entropies,
        "kl": lambda: np_terms(*arguments) + 0.1 * (np.exp(reference - new) - (reference - new) - 1),
    }.get(name, lambda: np_terms(*arguments))()
    return np_mean(terms, mask, BASELINES[name][2], length=12)


def batch(advantages=ADVANTAGES, fill=None, mask=MASK, dtype=torch.float64):
    arrays = {"new": NEW, "old": OLD, "entropies": ENTROPIES, "reference": REFERENCE}
    if fill is not None:
        arrays = {name: np.where(mask, x, fill) for name, x in arrays.items()}
        advantages = np.where(mask, advantages, fill) if advantages.ndim == 2 else advantages
        advantages = np.where(mask.any(1), advantages, fill) if advantages.ndim == 1 else advantages
    x = {name: torch.tensor(value, dtype=dtype) for name, value in arrays.items()}
    x |= {"advantages": torch.tensor(advantages, dtype=dtype), "mask": torch.tensor(mask)}
    for name in ("new", "entropies"):
        x[name].requires_grad_()
    return x


def loss_and_grads(name, x, sizes=(B,)):
    """In micro-batches of these sizes; whatever belongs to the batch is made once."""
    choose, terms, mean = BASELINES[name]
    choice = choose(x)
    weights = token_weights(x["mask"], mean, max_length=12 if mean == "length" else None).double()
    value, start = 0.0, 0
    for size in sizes:
        rows = slice(start, start + size)
        part = {key: tensor[rows] for key, tensor in x.items()}
        loss = weighted_sum(terms(part, choice[rows]), weights[rows])
        loss.backward()
        value, start = value + loss.item(), start + size
    empty = torch.zeros(B, T, dtype=torch.float64)
    return value, [empty if x[k].grad is None else x[k].grad for k in ("new", "entropies")]


@pytest.mark.parametrize("of_tokens", [False, True], ids=["A of responses", "A of tokens"])
@pytest.mark.parametrize("name", BASELINES)
def test_values_and_gradients_are_those_of_numpy(name, of_tokens):
    advantages = OF_TOKENS if of_tokens else ADVANTAGES
    x = batch(advantages)
    choice = BASELINES[name][0](x).numpy()
    value, grads = loss_and_grads(name, x)
    fixed = advantages, MASK

    def reference(new, entropies):
        # What a choice is made from is no part of the gradient, and no step of 1e-6 changes the choice.
        return np_baseline(name, new, OLD, *fixed, entropies, REFERENCE, choice)

    assert value == pytest.approx(reference(NEW, ENTROPIES), rel=1e-6)  # the weights are float32
    for k, grad in enumerate(grads):
        expected = np.zeros((B, T))
        for i in np.ndindex(B, T):
            step = np.zeros((B, T))
            step[i] = 1e-6
            ahead, behind = (
                reference(*[x + (j == k) * s * step for j, x in enumerate((NEW, ENTROPIES))]) for s in (1, -1)
            )
            expected[i] = (ahead - behind) / 2e-6
        np.testing.assert_allclose(grad.numpy(), expected, atol=2e-8)


@pytest.mark.parametrize("sizes", [(1,) * B, (3, 4), (2, 1, 4)])
@pytest.mark.parametrize("name", BASELINES)
def test_micro_batches_add_up_to_the_batch(name, sizes):
    whole, whole_grads = loss_and_grads(name, batch())
    value, grads = loss_and_grads(name, batch(), sizes)
    assert value == pytest.approx(whole, rel=1e-12)
    for grad, expected in zip(grads, whole_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_what_is_masked_changes_nothing(name, of_tokens, fill):
    advantages = OF_TOKENS if of_tokens else ADVANTAGES
    clean, clean_grads = loss_and_grads(name, batch(advantages, fill=0.0))
    value, grads = loss_and_grads(name, batch(advantages, fill=fill))
    assert math.isfinite(value)
    assert value == clean
    for grad, expected in zip(grads, clean_grads, strict=True):
        assert torch.equal(grad, expected)
        assert (grad[~torch.tensor(MASK)] == 0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_padding_on_any_side_changes_nothing(name):
    """More columns of padding, and more rows without tokens."""
    value, grads = loss_and_grads(name, batch())
    x = {key: tensor.detach() for key, tensor in batch().items()}
    wide = {key: torch.nn.functional.pad(v, (0, 5) if v.ndim == 2 else (0, 0)) for key, v in x.items()}
    tall = {key: torch.cat([v, torch.zeros_like(v[:2])]) for key, v in wide.items()}
    for key in ("new", "entropies"):
        tall[key].requires_grad_()
    padded, padded_grads = loss_and_grads(name, tall)
    assert padded == pytest.approx(value, rel=1e-12)
    for grad, expected in zip(padded_grads, grads, strict=True):
        torch.testing.assert_close(grad[:B, :T], expected, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_without_tokens(name):
    value, grads = loss_and_grads(name, batch(fill=math.nan, mask=np.zeros_like(MASK)))
    assert value == 0
    assert all((grad == 0).all() for grad in grads)


def test_a_response_of_one_token():
    new, old, advantage, mask = torched([[-1.0, 7.0]], [[-1.5, math.nan]], [-2.0], [[True, False]])
    for ratio in ("token", "sequence"):
        terms = policy_terms(new, old, advantage, mask, ratio=ratio)
        np.testing.assert_allclose(terms, [[2 * math.exp(0.5), 0]], rtol=1e-6)
        for mean, expected in (("token", 1.0), ("sequence", 1.0), ("length", 0.25)):
            weights = token_weights(mask, mean, max_length=4 if mean == "length" else None)
            assert weights.tolist() == [[expected, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float32(dtype):
    x = batch(dtype=dtype)
    terms = plain(x, None) + kl_terms(x["new"], x["reference"], x["mask"])
    assert terms.dtype == torch.float32
    assert weighted_sum(terms, token_weights(x["mask"])).dtype == torch.float32
    rounded = [x[key].detach().double().numpy() for key in ("new", "old", "advantages", "reference")]
    expected = np_terms(*rounded[:3], MASK) + MASK * NP_KL["k3"](rounded[0] - rounded[3])
    np.testing.assert_allclose(terms.detach(), expected, rtol=2e-6, atol=1e-6)


# --- terms -----------------------------------------------------------------------------------------------


def test_no_gradient_through_the_past():
    x = batch()
    for name in ("old", "advantages", "reference"):
        x[name].requires_grad_()
    covariances = token_covariances(x["new"], x["advantages"], x["mask"])
    assert not covariances.requires_grad
    terms = (
        plain(x, None) + kl_terms(x["new"], x["reference"], x["mask"]) + kl_terms(x["new"], x["old"], x["mask"])
    )
    terms.sum().backward()
    assert x["new"].grad is not None
    assert all(x[name].grad is None for name in ("old", "advantages", "reference"))


def test_on_policy_the_gradient_is_that_of_the_policy():
    """r = 1: whatever the clip, the gradient is that of -A log π, and of GSPO -A mean log π."""
    x = batch()
    expected = torch.where(x["mask"], -x["advantages"][:, None], 0.0).expand(B, T)
    for low, high, ratio in ((0.2, 0.2, "token"), (0.0, 0.0, "token"), (math.inf, math.inf, "token")):
        terms = policy_terms(
            x["new"], x["new"], x["advantages"], x["mask"], clip_low=low, clip_high=high, ratio=ratio
        )
        (grad,) = torch.autograd.grad(terms.sum(), x["new"])
        torch.testing.assert_close(grad, expected)
    terms = policy_terms(x["new"], x["new"], x["advantages"], x["mask"], ratio="sequence", clip_low=0, clip_high=0)
    (grad,) = torch.autograd.grad(terms.sum(), x["new"])
    torch.testing.assert_close(grad, expected)


def test_a_clipped_token_has_no_gradient():
    x = batch()
    options = {"clip_low": 0.1, "clip_high": 0.28}
    clipped = clipped_tokens(x["new"], x["old"], x["advantages"], x["mask"], **options).numpy()
    ratio = np.exp(NEW - OLD)
    a = np.broadcast_to(ADVANTAGES[:, None], MASK.shape)
    expected = MASK & (((a > 0) & (ratio > 1.28)) | ((a < 0) & (ratio < 0.9)))
    assert expected.any()
    np.testing.assert_array_equal(clipped, expected)
    (grad,) = torch.autograd.grad(plain(x, None, **options).sum(), x["new"])
    np.testing.assert_array_equal((grad == 0).numpy() & MASK, expected)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_ratios_that_would_overflow_stay_finite(advantage):
    new = torch.tensor([[-1000.0, -0.0, -60.0]], requires_grad=True)
    old, mask = torch.tensor([[-0.0, -1000.0, -60.0]]), torch.ones(1, 3, dtype=torch.bool)
    for ratio in ("token", "sequence"):
        loss = policy_terms(new, old, torch.tensor([advantage]), mask, ratio=ratio).sum()
        loss = loss + sum(kl_terms(new, old, mask, name).sum() for name in NP_KL)
        (grad,) = torch.autograd.grad(loss, new)
        assert loss.isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("estimator", NP_KL)
def test_kl_estimators(estimator):
    x = batch(fill=math.nan)
    found = kl_terms(x["new"], x["reference"], x["mask"], estimator)
    np.testing.assert_allclose(found.detach()[MASK], NP_KL[estimator](NEW - REFERENCE)[MASK], rtol=1e-9)
    assert (found[~torch.tensor(MASK)] == 0).all()


@pytest.mark.parametrize(("estimator", "mean_is_right"), [("k1", True), ("k2", False), ("k3", True)])
def test_what_the_kl_estimators_estimate(estimator, mean_is_right):
    """Exactly, over all six classes, each weighted with its probability."""
    generator = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 1, 6, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    log_p, log_q = z.log_softmax(-1), other.log_softmax(-1)
    p, everywhere = log_p.exp(), torch.ones(1, 6, dtype=torch.bool)
    terms = kl_terms(log_p, log_q, everywhere, estimator)
    forward, reverse = (p * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
    mean = (p * terms).sum()
    assert (abs(mean.item() - forward.item()) < 1e-12) == mean_is_right
    (as_a_loss,) = torch.autograd.grad((p.detach() * terms).sum(), z, retain_graph=True)
    expected = {"k1": 0 * forward, "k2": forward, "k3": reverse}[estimator]
    (gradient,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(as_a_loss, gradient, atol=1e-12, rtol=1e-9)


def test_the_entropy_bonus_raises_the_entropy():
    entropies = torch.tensor(ENTROPIES, requires_grad=True)
    mask = torch.tensor(MASK)
    weighted_sum(entropy_terms(entropies, mask, 0.3), token_weights(mask)).backward()
    np.testing.assert_allclose(entropies.grad, -0.3 * MASK / MASK.sum(), rtol=1e-6)


# --- choices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1e-6, 0.03, 0.2, 0.29, 1.0])
def test_forking_tokens(share):
    found = forking_tokens(torch.tensor(np.where(MASK, ENTROPIES, np.nan)), torch.tensor(MASK), share).numpy()
    np.testing.assert_array_equal(found, np_top(ENTROPIES, MASK, share))
    assert found.sum() == max(1, int(share * MASK.sum() + 1e-9))


def test_of_equal_entropies_the_first_tokens_are_taken():
    mask = torch.tensor([[False, True, True], [True, True, True]])
    found = forking_tokens(torch.zeros(2, 3), mask, 0.6)
    assert found.tolist() == [[False, True, True], [True, False, False]]
    many = forking_tokens(torch.zeros(50, 60), torch.ones(50, 60), 0.1)
    assert many.flatten()[:300].all()
    assert many.sum() == 300
    assert forking_tokens(torch.zeros(10, 10), torch.ones(10, 10), 0.29).sum() == 29


def test_nothing_is_chosen_where_there_is_nothing():
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    assert not forking_tokens(torch.ones(2, 3), nobody).any()
    assert not kl_cov_tokens(torch.ones(2, 3), nobody).any()
    assert not clip_cov_tokens(torch.full((2, 3), 2.0), nobody, nobody, torch.Generator()).any()


@pytest.mark.parametrize("of_tokens", [False, True])
def test_covariances(of_tokens):
    x = batch(OF_TOKENS if of_tokens else ADVANTAGES, fill=math.nan)
    found = token_covariances(x["new"], x["advantages"], x["mask"])
    expected = np_covariances(NEW, OF_TOKENS if of_tokens else ADVANTAGES, MASK)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    top = kl_cov_tokens(found, x["mask"], 0.1).numpy()
    np.testing.assert_array_equal(top, np_top(expected, MASK, 0.1))
    assert top.sum() == int(0.1 * MASK.sum())


def test_the_choice_of_clip_cov():
    covariances = torch.tensor(3 * RNG.standard_normal((40, 50)))
    mask, clipped = (torch.tensor(chosen(n, RNG, 40, 50)) for n in (1500, 300))
    eligible = mask & ~clipped & (covariances > 1) & (covariances < 5)
    counts = torch.zeros(40, 50)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        found = clip_cov_tokens(covariances, clipped, mask, generator, fraction=0.05)
        assert found.sum() == 75  # of all tokens, not of the eligible ones
        assert not (found & ~eligible).any()
        counts += found
    share = 75 / eligible.sum().item()
    assert counts[eligible].mean() / 200 == pytest.approx(share)
    assert counts[eligible].std() < 1.3 * math.sqrt(200 * share * (1 - share))  # each as likely as any other
    again = [clip_cov_tokens(covariances, clipped, mask, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)
    assert again[0].sum() == 1  # ⌊2e-4 · 1500⌋ is 0


def test_clip_cov_takes_what_there_is():
    mask = torch.ones(2, 5, dtype=torch.bool)
    clipped = torch.zeros_like(mask)
    covariances = torch.tensor([[0.0, 2.0, 6.0, 5.0, 1.0], [0.5, 3.0, -2.0, 9.0, 4.0]])
    clipped[1, 4] = True
    found = clip_cov_tokens(covariances, clipped, mask, torch.Generator(), fraction=1.0)
    assert found.nonzero().tolist() == [[0, 1], [1, 1]]
    nobody = clip_cov_tokens(torch.zeros(2, 5), clipped, mask, torch.Generator(), fraction=1.0)
    assert not nobody.any()


# --- weights and statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["token", "sequence", "length"])
def test_weights(mean):
    options = {"max_length": 12} if mean == "length" else {}
    weights = token_weights(torch.tensor(MASK), mean, **options)
    value = weighted_sum(torch.tensor(np.where(MASK, NEW, np.nan)), weights)
    assert value.item() == pytest.approx(np_mean(NEW, MASK, mean, 12), rel=1e-6)
    assert (weights[~torch.tensor(MASK)] == 0).all()
    for kind in (torch.int64, torch.float32):
        assert torch.equal(token_weights(torch.tensor(MASK).to(kind), mean, **options), weights)


@pytest.mark.parametrize("mean", ["token", "sequence", "length"])
def test_processes_share_a_total(mean):
    mask, options = torch.tensor(MASK), {"max_length": 12} if mean == "length" else {}
    total = mask.sum() if mean == "token" else mask.any(1).sum()
    parts = [token_weights(part, mean, total=total, **options) for part in (mask[:3], mask[3:])]
    torch.testing.assert_close(torch.cat(parts), token_weights(mask, mean, **options))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_statistics(ratio):
    x = batch(fill=math.nan)
    weights = token_weights(x["mask"]).double()
    options = {"clip_low": 0.02, "clip_high": 0.06, "ratio": ratio}
    arguments = [x["new"], x["old"], x["advantages"], weights]
    found = policy_statistics(*arguments, **options)
    d = np.where(MASK, NEW - OLD, 0.0)
    r = np.exp(d) if ratio == "token" else np.exp(d.sum(1) / MASK.sum(1).clip(1))[:, None] * np.ones((B, T))
    a = np.broadcast_to(ADVANTAGES[:, None], MASK.shape)
    low, high = (a < 0) & (r < 0.98), (a > 0) & (r > 1.06)
    expected = {
        "clip_fraction": (low | high)[MASK].mean(),
        "clip_fraction/low": low[MASK].mean(),
        "clip_fraction/high": high[MASK].mean(),
        "ratio": r[MASK].mean(),
        "approx_kl": (np.exp(d) - 1 - d)[MASK].mean(),
    }
    assert expected["clip_fraction/low"] > 0
    assert expected["clip_fraction/high"] > 0
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6)
    assert not any(value.requires_grad for value in found.values())
    halves = [policy_statistics(*(y[rows] for y in arguments), **options) for rows in (slice(3), slice(3, B))]
    for name, value in found.items():
        torch.testing.assert_close(sum(half[name] for half in halves), value)


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: plain(x | {"old": x["old"][:, 1:]}, None), r"\(7, 9\) and log_probs \(7, 10\)"),
        (lambda x: plain(x | {"mask": x["mask"][1:]}, None), r"mask \(6, 10\) and what it masks \(7, 10\)"),
        (lambda x: plain(x | {"advantages": x["advantages"][1:]}, None), r"must be \(7,\), one a response, or"),
        (lambda x: plain(x | {"new": x["new"][0]}, None), r"must be \[responses, tokens\]"),
        (lambda x: plain(x, None, clip_low=-0.1), "clip_low=-0.1 must be at least 0"),
        (lambda x: plain(x, None, clip_high=math.nan), "clip_high=nan must be at least 0"),
        (lambda x: plain(x, None, ratio="word"), "ratio='word' must be token or sequence"),
        (lambda x: kl_terms(x["new"], x["old"], x["mask"], "k4"), "estimator='k4' must be k1, k2, k3 or abs"),
        (lambda x: forking_tokens(x["entropies"], x["mask"], 0.0), "top_fraction=0.0 must be above 0"),
        (lambda x: kl_cov_tokens(x["entropies"], x["mask"], 20), "fraction=20 must be above 0 and at most 1"),
        (
            lambda x: clip_cov_tokens(x["new"], x["mask"], x["mask"], torch.Generator(), low=5, high=1),
            "low=5 must be below high=1",
        ),
        (lambda x: token_weights(x["mask"], "words"), "mean='words' must be token, sequence or length"),
        (lambda x: token_weights(x["mask"], "length"), "max_length=None must be given with mean='length'"),
        (lambda x: token_weights(x["mask"], max_length=3), "max_length=3 must be given with mean='length'"),
        (lambda x: token_weights(x["mask"], "length", max_length=0), "max_length=0 must be at least 1"),
        (lambda x: token_weights(x["mask"][0]), r"mask \(10,\) must be \[responses, tokens\]"),
        (lambda x: weighted_sum(x["new"], token_weights(x["mask"])[1:]), "weights .* and terms .* the same shape"),
        (lambda x: plain(x | {"new": x["mask"].long()}, None), "pass floating-point values"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(batch())


# --- beside TRL ------------------------------------------------------------------------------------------


def trl_loss(x, *, loss_type="dapo", level="token", low=0.2, high=0.2, top=1.0, beta=0.0, entropy_coef=0.0):
    """TRL's `GRPOTrainer._compute_loss` with a trainer that has only what the loss reads; no model runs."""
    from trl import GRPOTrainer

    accelerator = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda y: y,
        gather_for_metrics=lambda y: y,
        pad_across_processes=lambda y, **_: y,
        reduce=lambda y, **_: y,
    )
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        accelerator=accelerator,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=high,
        top_entropy_quantile=top,
        beta=beta,
        entropy_coef=entropy_coef,
        _entropy_bonus_enabled=entropy_coef != 0,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=12,
        _metrics=metrics,
        _get_per_token_logps_and_entropies=lambda *_, **__: (x["new"], x["entropies"], None),
    )
    trainer.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, trainer)
    mask = x["mask"].long()
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": x["advantages"],
        "old_per_token_logps": x["old"],
        "ref_per_token_logps": x["reference"],
        "num_items_in_batch": mask.sum().double(),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs), metrics["train"]


TRL = {
    "grpo": ({"loss_type": "grpo"}, lambda x: plain(x, None), "sequence"),
    "grpo-token": ({"loss_type": "bnpo"}, lambda x: plain(x, None), "token"),
    "dapo": ({"loss_type": "dapo", "high": 0.28}, lambda x: plain(x, None, clip_high=0.28), "token"),
    "dr-grpo": ({"loss_type": "dr_grpo"}, lambda x: plain(x, None), "length"),
    "gspo": (
        {"loss_type": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4},
        lambda x: plain(x, None, ratio="sequence", clip_low=3e-4, clip_high=4e-4),
        "sequence",
    ),
    "gspo-wide": (
        {"loss_type": "grpo", "level": "sequence", "low": 0.02, "high": 0.06},
        lambda x: plain(x, None, ratio="sequence", clip_low=0.02, clip_high=0.06),
        "sequence",
    ),
    "cispo": (  # TRL's bound is one of the ratio
        {"loss_type": "cispo", "high": 1.4},
        lambda x: cispo_terms(x["new"], x["old"], x["advantages"], x["mask"], clip_high=0.4),
        "token",
    ),
    "forking": ({"top": 0.2}, lambda x: plain(x, None) * forking(x), "token"),
    "kl": ({"beta": 0.1}, lambda x: plain(x, None) + 0.1 * kl_terms(x["new"], x["reference"], x["mask"]), "token"),
    "entropy": (
        {"entropy_coef": 0.3},
        lambda x: plain(x, None) + entropy_terms(x["entropies"], x["mask"], 0.3),
        "token",
    ),
}


@needs_trl
@pytest.mark.parametrize("name", TRL)
def test_losses_are_those_of_trl(name):
    """Without the response that has no token: TRL's mean over sequences counts it."""
    import entropyfloor.language.model  # noqa: F401  # a torchvision that TRL can import

    options, terms, mean = TRL[name]
    full = MASK.any(1)
    found, grads = [], []
    for ours in (True, False):
        x = {key: tensor.detach()[torch.tensor(full)] for key, tensor in batch().items()}
        x["new"].requires_grad_()
        x["entropies"].requires_grad_()
        if ours:
            weights = token_weights(x["mask"], mean, max_length=12 if mean == "length" else None)
            loss = weighted_sum(terms(x), weights.double())
            statistics = policy_statistics(
                x["new"],
                x["old"],
                x["advantages"],
                token_weights(x["mask"]),
                clip_low=options.get("low", 0.2),
                clip_high=options.get("high", 0.2),
            )
        else:
            loss, metrics = trl_loss(x, **options)
        loss.backward()
        found.append(loss.item())
        grads.append([x[key].grad if x[key].grad is not None else 0 * x[key] for key in ("new", "entropies")])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)
    if "level" not in options and name != "cispo":  # of a sequence TRL counts sequences
        assert statistics["clip_fraction"].item() == pytest.approx(metrics["clip_ratio/region_mean"][0])
        assert statistics["clip_fraction/low"].item() == pytest.approx(metrics["clip_ratio/low_mean"][0])
        assert statistics["clip_fraction/high"].item() == pytest.approx(metrics["clip_ratio/high_mean"][0])
