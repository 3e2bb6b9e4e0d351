"""Log-probs and entropies of tokens without their logits, against the reference; the kernels beside them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from conftest import weights
from entropyfloor.torch import functional as F
from entropyfloor.torch.kernels import tiles, tokens, triton_tokens
from entropyfloor.torch.kernels.bundles import Layer

rng = np.random.default_rng(0)
HIDDEN, WEIGHT, BIAS = rng.normal(size=(7, 5)), rng.normal(size=(11, 5)), rng.normal(size=11)
TARGETS = np.array([0, 10, 3, -100, 7, 4, 9])
SCALE = np.array([1.0, 2.0, 0.5, 2.0, 3.0, 1.0, 0.1])
ROWS = np.array([True, False, True, True, False, True, True])
IMPLS = pytest.mark.parametrize("impl", ["torch", "naive"])

CASES = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": SCALE},
    "number": {"scale": 2.0},
    "temperature": {"scale": SCALE, "temperature": 0.7},
    "softcap": {"scale": SCALE, "softcap": 2.0},
    "filter": {"scale": SCALE, "top_k": 3},
    "filter-some": {"top_k": 3, "top_k_rows": ROWS},
    "filter-none": {"scale": SCALE, "top_k": 30},
    "all": {"bias": True, "scale": SCALE, "temperature": 1.3, "softcap": 3.0, "top_k": 2, "top_k_rows": ROWS},
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles that divide neither the rows nor the vocabulary."""
    monkeypatch.setattr(tiles, "CPU_TILE", (3, 4))
    monkeypatch.setattr(tiles, "MATRIX_UNIT_TILE", (3, 4))


def tensors(options):
    """The options without the bias, arrays as tensors."""
    return {n: torch.tensor(x) if isinstance(x, np.ndarray) else x for n, x in options.items() if n != "bias"}


def arguments(options, dtype=torch.float64):
    """Leaves: hidden, weight, and the bias if there is one."""
    arrays = [HIDDEN, WEIGHT, *([BIAS] if options.get("bias") else [])]
    return [torch.tensor(a).to(dtype).requires_grad_() for a in arrays]


def both(function, leaves, options, targets=None, **more):
    """Log-probs and entropies as one tensor, [2, N]."""
    hidden, weight, *bias = leaves
    targets = torch.tensor(TARGETS) if targets is None else targets
    return torch.stack(
        function(hidden, weight, targets, bias=bias[0] if bias else None, **tensors(options), **more)
    )


def expected(options):
    """The reference as one function of the arrays."""
    options = {name: x for name, x in options.items() if name != "bias"}

    def function(hidden, weight, *bias):
        return np.stack(reference.token_log_probs(hidden, weight, TARGETS, *bias, **options))

    return function


@pytest.fixture(scope="module", params=CASES)
def case(request):
    options = CASES[request.param]
    function, arrays = expected(options), [HIDDEN, WEIGHT, *([BIAS] if options.get("bias") else [])]
    directions = [[rng.normal(size=a.shape) for a in arrays] for _ in range(3)]

    def at(step, direction):
        out = function(*(a + step * d for a, d in zip(arrays, direction, strict=True)))
        return (out * weights(out.shape)).sum()

    # By Richardson's extrapolation of central differences.
    slopes = []
    for direction in directions:
        coarse, fine = ((at(h, direction) - at(-h, direction)) / (2 * h) for h in (1e-3, 5e-4))
        slopes.append((4 * fine - coarse) / 3)
    return options, function(*arrays), directions, slopes


@IMPLS
def test_float64(impl, case):
    options, value, directions, slopes = case
    leaves = arguments(options)
    result = both(F.token_log_probs, leaves, options, impl=impl)
    np.testing.assert_allclose(result.detach(), value, rtol=0, atol=1e-12)
    grads = torch.autograd.grad((result * torch.tensor(weights(result.shape))).sum(), leaves)
    for direction, slope in zip(directions, slopes, strict=True):
        derivative = sum((grad.numpy() * d).sum() for grad, d in zip(grads, direction, strict=True))
        assert derivative == pytest.approx(slope, rel=1e-7, abs=1e-8)


@IMPLS
@pytest.mark.parametrize("name", ["bias", "all"])
def test_every_scale(impl, name):
    """Values at 1, k and 1/k, and gradients of any mixture of them."""
    options = {n: x for n, x in CASES[name].items() if n != "scale"}
    leaves, k = arguments(options), 1.7
    hidden, weight, bias = leaves
    result, entropy = F.token_log_probs_all_scales(
        hidden, weight, torch.tensor(TARGETS), k=k, bias=bias, impl=impl, **tensors(options)
    )
    single = [both(F.token_log_probs, leaves, {**options, "scale": s}, impl="naive") for s in (1.0, k, 1 / k)]
    right = torch.stack([one[0] for one in single])
    torch.testing.assert_close(result, right, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, single[0][1], rtol=0, atol=1e-12)
    mixture = torch.tensor(weights(result.shape))
    grads = torch.autograd.grad((result * mixture).sum() + entropy.sum(), leaves)
    rights = torch.autograd.grad((right * mixture).sum() + single[0][1].sum(), leaves)
    for grad, other in zip(grads, rights, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-12)


@IMPLS
def test_a_scale_chosen_after_the_entropy_is_as_good(impl):
    scale = torch.tensor([1.0, 2.0, 0.5, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    leaves = arguments({})
    before, entropy = F.token_log_probs(*leaves, torch.tensor(TARGETS), scale=scale, impl=impl)
    three, same = F.token_log_probs_all_scales(*leaves, torch.tensor(TARGETS), impl=impl)
    after = F.log_probs_at(three, scale)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(same, entropy)
    for grads in zip(*(torch.autograd.grad(x.sum(), leaves) for x in (after, before)), strict=True):
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", ["scale", "filter", "all"])
def test_gradcheck(name):
    options, rows = CASES[name], slice(2, 5)
    some = {n: x[rows] if isinstance(x, np.ndarray) else x for n, x in options.items()}
    hidden, *head = (leaf.detach() for leaf in arguments(options))
    leaves = [x.clone().requires_grad_() for x in (hidden[rows], *(x[:8] for x in head))]
    targets = torch.tensor(TARGETS)[rows]
    assert torch.autograd.gradcheck(
        lambda *leaves: both(F.token_log_probs, leaves, some, targets, impl="torch"), leaves, fast_mode=True
    )


@settings(max_examples=20)
@given(st.data())
def test_any_shape(data):
    """Rows, vocabulary, width, k and tiles, which divide one another or not."""
    count, width, vocabulary = (data.draw(st.integers(low, 9)) for low in (0, 1, 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    hidden, weight = (
        torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (count, vocabulary)
    )
    targets = torch.randint(vocabulary, (count,), generator=generator)
    scale = torch.rand(count, generator=generator, dtype=torch.float64) + 0.3
    options = {"scale": scale, "top_k": data.draw(st.sampled_from([None, 1, 2, 20]))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_TILE", (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))))
        sides = []
        for impl in ("torch", "naive"):
            out = torch.stack(F.token_log_probs(hidden, weight, targets, impl=impl, **options))
            assert out.shape == (2, count)
            grads = torch.autograd.grad((out * torch.tensor(weights(out.shape))).sum(), (hidden, weight))
            sides.append((out, *grads))
    for result, right in zip(*sides, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-9, atol=1e-9)
    assert (sides[0][0][0] <= 1e-12).all()
    assert (sides[0][0][1] <= np.log(vocabulary) + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["scale", "all"])
def test_low_precision_is_as_good_as_its_own_rounding(dtype, name):
    """At the rounded inputs, results have the error of float32 sums, and gradients that of one rounding."""
    options = CASES[name]
    leaves = arguments(options, dtype)
    result = both(F.token_log_probs, leaves, options, impl="torch")
    assert result.dtype == torch.float32
    rounded = [x.detach().double().requires_grad_() for x in leaves]
    right = both(F.token_log_probs, rounded, options, impl="naive")
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(result.double(), right, rtol=0, atol=64 * eps * right.abs().max().item())
    cotangent = torch.tensor(weights(result.shape))
    grads = torch.autograd.grad((result * cotangent.float()).sum(), leaves)
    rights = torch.autograd.grad((right * cotangent).sum(), rounded)
    for grad, other, leaf in zip(grads, rights, leaves, strict=True):
        assert grad.dtype == leaf.dtype
        atol = (0.51 * torch.finfo(dtype).eps + 64 * eps) * other.abs().max().item()
        torch.testing.assert_close(grad.double(), other, rtol=0, atol=atol)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("height", [32, 96])
@pytest.mark.parametrize("name", ["plain", "scale", "filter"])
def test_products_of_bfloat16_have_no_rounding_error_of_their_own(height, name, monkeypatch):
    """Sizes that the matrix units of a CPU multiply, rows in three tiles and in one."""
    monkeypatch.setattr(tiles, "MATRIX_UNIT_TILE", (height, 128))
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(96, 64, generator=generator), torch.randn(1000, 64, generator=generator) / 3
    leaves = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    targets = torch.randint(1000, (96,), generator=generator)
    rows = torch.arange(96) % 2 == 0
    options = {
        "plain": {},
        "scale": {"scale": torch.rand(96, generator=generator) + 0.5},
        "filter": {"top_k": 20, "top_k_rows": rows},
    }[name]
    result = torch.stack(F.token_log_probs(*leaves, targets, impl="torch", **options))
    right = torch.stack(F.token_log_probs(*exact, targets, impl="naive", **options))
    eps, half = torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(result.double(), right, rtol=0, atol=64 * eps * right.abs().max().item())
    cotangent = torch.tensor(weights(result.shape))
    grads = torch.autograd.grad((result * cotangent.float()).sum(), leaves)
    for grad, other in zip(grads, torch.autograd.grad((right * cotangent).sum(), exact), strict=True):
        # half a unit in the last place of each number, beside what float32 sums lose of the largest
        allowed = 0.51 * half * other.abs() + 64 * eps * other.abs().max()
        assert ((grad.double() - other).abs() <= allowed).all()


@pytest.mark.skipif(not tiles._has_matrix_units(), reason="this CPU has no matrix units")
def test_rounded_factors_are_rounded_only_inside():
    """The setting is what it was before, also after an error, and threads do not leave it behind."""
    matmul, left, right = torch.backends.mkldnn.matmul, torch.randn(64, 64), torch.randn(64, 64)
    before, plain = matmul.fp32_precision, left @ right
    with tiles._rounded_factors():
        rounded = left @ right
    torch.testing.assert_close(rounded, left.bfloat16().float() @ right.bfloat16().float(), rtol=0, atol=1e-4)
    assert (rounded - plain).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="inside"), tiles._rounded_factors():
        raise RuntimeError("inside")

    def run():
        for _ in range(50):
            with tiles._rounded_factors():
                assert matmul.fp32_precision == "bf16"

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run) for _ in range(4)]:
            done.result()
    assert matmul.fp32_precision == before
    assert torch.equal(left @ right, plain)


@pytest.mark.skipif(not tiles._has_matrix_units(), reason="this CPU has no matrix units")
def test_an_inherited_precision_is_still_inherited_afterwards(monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    matmul = torch.backends.mkldnn.matmul
    assert matmul.fp32_precision == "tf32"
    try:
        with tiles._rounded_factors():
            assert matmul.fp32_precision == "bf16"
        assert matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = "none"


@pytest.mark.parametrize(
    ("dtypes", "found", "kind"),
    [
        ((torch.bfloat16, torch.bfloat16), True, tiles.MatrixUnitTiles),
        ((torch.bfloat16, torch.bfloat16), False, tiles.Tiles),
        ((torch.bfloat16, torch.float32), True, tiles.Tiles),
        ((torch.float16, torch.float16), True, tiles.Tiles),
        ((torch.float32, torch.float32), True, tiles.Tiles),
    ],
)
def test_matrix_units_multiply_only_bfloat16(dtypes, found, kind, monkeypatch):
    monkeypatch.setattr(tiles, "_has_matrix_units", lambda: found)
    hidden, weight = (torch.ones(3, 2, dtype=dtype) for dtype in dtypes)
    assert type(tiles.Tiles.of(Layer(hidden, weight, None))) is kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_is_no_worse_than_the_naive_sum(dtype, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", (16, 512))
    monkeypatch.setattr(tiles, "MATRIX_UNIT_TILE", (16, 512))
    torch.manual_seed(0)
    hidden, weight = 3 * torch.randn(40, 64), torch.randn(5000, 64)
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    targets, scale = torch.randint(5000, (40,)), torch.tensor([1.0, 2.0, 0.5, 1.0]).repeat(10)

    def run(leaves, impl):
        out = torch.stack(F.token_log_probs(*leaves, targets, scale=scale, impl=impl))
        return out, *torch.autograd.grad((out * torch.tensor(weights(out.shape))).sum(), leaves)

    for ours, naive, right in zip(run(leaves, "torch"), run(leaves, "naive"), run(exact, "naive"), strict=True):
        error, allowed = ((x.double() - right).abs().max() for x in (ours, naive))
        assert error <= 2 * allowed


@IMPLS
def test_padding_cannot_change_a_result(impl):
    leaves, targets = arguments(CASES["all"]), torch.tensor(TARGETS)
    result = both(F.token_log_probs, leaves, CASES["all"], impl=impl)
    assert (result[:, 3] == 0).all()
    right = torch.autograd.grad(result.square().sum(), leaves)
    for garbage in (torch.nan, torch.inf, 1e30):
        spoiled = [leaves[0].detach().clone(), *leaves[1:]]
        spoiled[0][3] = garbage
        spoiled[0].requires_grad_()
        again = both(F.token_log_probs, spoiled, CASES["all"], targets, impl=impl)
        torch.testing.assert_close(again, result)
        for grad, other in zip(torch.autograd.grad(again.square().sum(), spoiled), right, strict=True):
            torch.testing.assert_close(grad, other)
    assert (right[0][3] == 0).all()
    log_probs, entropy = F.token_log_probs(
        *leaves[:2], torch.where(targets < 0, 0, targets), ignore_index=0, impl=impl
    )
    assert ((log_probs == 0) == torch.tensor(TARGETS <= 0)).all()
    assert ((entropy == 0) == torch.tensor(TARGETS <= 0)).all()


@IMPLS
@pytest.mark.parametrize("target", [11, -1])
def test_a_target_outside_of_the_vocabulary_is_not_silent(impl, target):
    targets = torch.tensor(TARGETS)
    targets[0] = target
    log_probs, entropy = F.token_log_probs(*arguments({}), targets, scale=2.0, impl=impl)
    assert log_probs[0].isnan()
    assert log_probs[1:].isfinite().all()
    assert entropy.isfinite().all()


@IMPLS
def test_a_filtered_target_keeps_its_log_prob_and_its_gradient(impl):
    leaves = arguments({})
    worst = (leaves[0] @ leaves[1].T).argmin(1)
    log_probs, _ = F.token_log_probs(*leaves, worst, top_k=2, impl=impl)
    assert (log_probs > -50).all()
    (grad,) = torch.autograd.grad(log_probs.sum(), leaves[0])
    assert (grad.abs().sum(1) > 0.1).all()


@pytest.mark.parametrize("target", range(6))
def test_of_equal_logits_the_target_is_kept(target):
    hidden, weight = torch.ones(1, 2, requires_grad=True), torch.ones(6, 2, requires_grad=True)
    log_probs, _ = F.token_log_probs(hidden, weight, torch.tensor([target]), top_k=3, impl="torch")
    assert log_probs.item() == pytest.approx(-np.log(3))
    (grad,) = torch.autograd.grad(log_probs.sum(), weight)
    assert (grad.abs().sum(1) > 0).sum() == 3
    assert grad[target, 0].item() == pytest.approx(2 / 3)


@IMPLS
def test_a_forbidden_token_counts_as_impossible(impl):
    """A bias of -inf, also over a whole tile."""
    leaves = arguments({"bias": True})
    with torch.no_grad():
        leaves[2][4:8] = -torch.inf
    targets = torch.tensor([0, 1, 2, 3, 8, 9, 10])
    result = both(F.token_log_probs, leaves, {"scale": SCALE}, targets, impl=impl)
    rest = [leaves[0], *(torch.cat([x[:4], x[8:]]) for x in leaves[1:])]
    right = both(F.token_log_probs, rest, {"scale": SCALE}, torch.arange(7), impl="naive")
    torch.testing.assert_close(result, right)
    for grads in zip(*(torch.autograd.grad(x.sum(), leaves[:2]) for x in (result, right)), strict=True):
        torch.testing.assert_close(*grads)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    for options in ({}, {"scale": 2.0}, {"scale": 0.5}, {"top_k": 1}):
        log_probs, entropy = F.token_log_probs(hidden, weight, torch.tensor([0, 1]), impl="torch", **options)
        assert log_probs.isfinite().all()
        assert entropy.tolist() == [0, 0]
        assert all(g.isfinite().all() for g in torch.autograd.grad((log_probs + entropy).sum(), (hidden, weight)))


def test_micro_batches_add_up_to_the_batch():
    leaves, options = arguments(CASES["all"]), CASES["all"]
    whole = both(F.token_log_probs, leaves, options, impl="torch")
    right = torch.autograd.grad(whole.sum(), leaves)
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    for rows in (slice(0, 2), slice(2, 3), slice(3, 7)):
        some = {name: x[rows] if isinstance(x, np.ndarray) else x for name, x in options.items()}
        inputs = [leaves[0][rows], *leaves[1:]]
        part = both(F.token_log_probs, inputs, some, torch.tensor(TARGETS)[rows], impl="torch")
        torch.testing.assert_close(part, whole[:, rows])
        for total, grad in zip(totals, torch.autograd.grad(part.sum(), leaves), strict=True):
            total += grad
    for total, grad in zip(totals, right, strict=True):
        torch.testing.assert_close(total, grad)


@IMPLS
def test_leading_axes_and_shared_scales(impl):
    hidden, weight = torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor(WEIGHT)
    targets, scale = torch.randint(11, (2, 3)), torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    call = partial(F.token_log_probs, impl=impl)
    log_probs, entropy = call(hidden, weight, targets, scale=scale, top_k=3, top_k_rows=targets > 4)
    for b, t in np.ndindex(2, 3):
        one = call(hidden[b, t], weight, targets[b, t], scale=scale[b, 0], top_k=3, top_k_rows=targets[b, t] > 4)
        torch.testing.assert_close(torch.stack(one), torch.stack([log_probs[b, t], entropy[b, t]]))
    three, _ = F.token_log_probs_all_scales(hidden, weight, targets, impl=impl)
    assert three.shape == (3, 2, 3)
    assert F.log_probs_at(three, scale).shape == (2, 3)


def test_a_tied_weight_gets_both_of_its_gradients():
    words = torch.randint(11, (7,))
    grads = []
    for impl in ("torch", "naive"):
        embedding = torch.nn.Embedding(11, 5, dtype=torch.float64)
        embedding.weight.data.copy_(torch.tensor(WEIGHT))
        log_probs, _ = F.token_log_probs(embedding(words), embedding.weight, torch.tensor(TARGETS), impl=impl)
        log_probs.sum().backward()
        grads.append(embedding.weight.grad)
    torch.testing.assert_close(*grads)


class Allocations(TorchDispatchMode):
    """The sizes of all tensors that operators return, also those inside of ours."""

    def __init__(self):
        super().__init__()
        self.sizes = []
        ours = torch.ops.entropyfloor
        self.bodies = {ours.sweep.default: tokens.sweep, ours.sweep_back.default: tokens.sweep_back}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.bodies:
            with self:
                return self.bodies[function](*args, **(kwargs or {}))
        out = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.sizes.append(x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"softcap": 2.0, "temperature": 0.5}])
def test_no_logits_are_ever_held(frozen, options, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", (16, 32))
    count, width, vocabulary = 64, 4, 512
    hidden = torch.randn(count, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=not frozen)
    targets, scale = torch.randint(vocabulary, (count,)), torch.rand(count) + 0.5

    def run(impl):
        with Allocations() as seen:
            log_probs, entropy = F.token_log_probs(hidden, weight, targets, scale=scale, impl=impl, **options)
            (log_probs + entropy).sum().backward()
        return max(seen.sizes)

    assert run("naive") == count * vocabulary
    assert run("torch") <= vocabulary * width  # the weight and its gradient
    assert (weight.grad is None) == frozen


def test_only_what_is_needed_is_computed(monkeypatch):
    """A frozen head costs no gradient, and log-probs alone need no entropy."""
    seen = []
    gradient = tiles._gradient
    monkeypatch.setattr(tiles, "_gradient", lambda *args: seen.append(args[5]) or gradient(*args))
    hidden, weight = arguments({})
    both(F.token_log_probs, [hidden, weight.detach()], {}, impl="torch")[0].sum().backward()
    assert weight.grad is None
    log_probs, _ = F.token_log_probs(hidden, weight, torch.tensor(TARGETS), scale=2.0, impl="torch")
    seen.clear()
    (grad,) = torch.autograd.grad(log_probs.sum(), weight)
    assert set(seen) == {(False, True, False)}
    assert grad.shape == weight.shape
    assert not F.token_log_probs(hidden.detach(), weight.detach(), torch.tensor(TARGETS))[0].requires_grad


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", ["plain", "all"])
def test_compiled(name):
    torch._dynamo.reset()
    options = CASES[name]

    targets, leaves, rest = torch.tensor(TARGETS), arguments(options), tensors(options)

    def function(hidden, weight, *bias):
        bias = bias[0] if bias else None
        return torch.stack(F.token_log_probs(hidden, weight, targets, bias=bias, impl="torch", **rest))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    sides = [(f(*leaves), *torch.autograd.grad(f(*leaves).sum(), leaves)) for f in (compiled, function)]
    for result, right in zip(*sides, strict=True):
        torch.testing.assert_close(result, right)


def test_transforms_of_functions():
    leaves = arguments({"bias": True})

    def loss(hidden, impl):
        return both(F.token_log_probs, [hidden, *leaves[1:]], {"scale": SCALE}, impl=impl).square().sum()

    (right,) = torch.autograd.grad(loss(leaves[0], "torch"), leaves[0])
    torch.testing.assert_close(torch.func.grad(loss)(leaves[0], "torch"), right)

    def one(hidden, target):
        return F.token_log_probs(hidden, leaves[1], target, impl="naive")[0]

    targets = torch.tensor(TARGETS)
    torch.testing.assert_close(
        torch.func.vmap(one)(leaves[0], targets), F.token_log_probs(*leaves[:2], targets, impl="torch")[0]
    )


def test_second_derivatives_are_refused():
    hidden, weight = arguments({})
    log_probs, _ = F.token_log_probs(hidden, weight, torch.tensor(TARGETS), impl="torch")
    (grad,) = torch.autograd.grad(log_probs.sum(), hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="impl='naive'"):
        grad.sum().backward()


@IMPLS
def test_autocast_changes_nothing(impl):
    leaves = arguments({"bias": True}, torch.float32)
    right = both(F.token_log_probs, leaves, {"scale": SCALE}, impl="torch")
    with torch.autocast("cpu", torch.bfloat16):
        result = both(F.token_log_probs, leaves, {"scale": SCALE}, impl=impl)
        mixed = F.token_log_probs(leaves[0].bfloat16(), leaves[1], torch.tensor(TARGETS), impl=impl)[0]
    torch.testing.assert_close(result, right)
    assert mixed.dtype == torch.float32


H, W, Y = (torch.tensor(x) for x in (HIDDEN, WEIGHT, TARGETS))
CALLS = {
    r"hidden \(7, 5\) and weight \(5, 11\)": lambda f: f(H, W.T, Y),
    "weight has dtype": lambda f: f(H, W.long(), Y),
    r"targets \(6,\)": lambda f: f(H, W, Y[:6]),
    "must be integers": lambda f: f(H, W, Y.double()),
    "bias": lambda f: f(H, W, Y, bias=H[:, 0]),
    "temperature=0.0": lambda f: f(H, W, Y, temperature=0.0),
    "softcap=-1.0": lambda f: f(H, W, Y, softcap=-1.0),
    "top_k=0": lambda f: f(H, W, Y, top_k=0),
    "top_k_rows selects": lambda f: f(H, W, Y, top_k_rows=Y > 0),
    r"top_k_rows \(3,\)": lambda f: f(H, W, Y, top_k=2, top_k_rows=Y[:3] > 0),
    r"top_k_rows \(7,\) of torch.uint8": lambda f: f(H, W, Y, top_k=2, top_k_rows=(Y > 0).byte()),
    "impl='fast'": lambda f: f(H, W, Y, impl="fast"),
    "impl='triton' cannot be used": lambda f: f(H, W, Y, impl="triton"),
    "not on cpu": lambda f: f(H.float(), W.float(), Y, impl="triton"),
}


@pytest.mark.parametrize("message", CALLS)
def test_errors(message, monkeypatch):
    monkeypatch.delattr(triton_tokens.triton, "knobs", raising=False)  # Triton has them since 3.4
    if message == "not on cpu" and (triton_tokens.triton is None or triton_tokens.problem("cpu") is None):
        pytest.skip("Triton interprets here, or is not installed")
    for function in (F.token_log_probs, F.token_log_probs_all_scales):
        with pytest.raises(ValueError, match=message):
            CALLS[message](function)


def test_a_module_is_no_weight():
    with pytest.raises(ValueError, match=r"weight is a Linear: .*lm_head\.weight"):
        F.token_log_probs(H, torch.nn.Linear(3, 5), Y)
    with pytest.raises(ValueError, match=r"hidden is a tuple: .*last_hidden_state"):
        F.token_log_probs((H,), W, Y)


def test_errors_of_scales():
    for scale in (-1.0, 0.0, torch.ones(3), torch.ones(7, 1)):
        with pytest.raises(ValueError, match="scale"):
            F.token_log_probs(H, W, Y, scale=scale)
    with pytest.raises(ValueError, match=r"k=0\.5"):
        F.token_log_probs_all_scales(H, W, Y, k=0.5)
    with pytest.raises(ValueError, match="three scales"):
        F.log_probs_at(torch.ones(2, 7), torch.ones(7))
    with pytest.raises(ValueError, match=r"scale\[:, None\]"):
        F.log_probs_at(torch.ones(3, 4, 4), torch.ones(4))


# Run with Triton's interpreter: compares values and gradients of the kernels with those of the naive logits.
INTERPRETED = """
import torch
from entropyfloor.torch import functional as F
from entropyfloor.torch.kernels import tiles
tiles.CPU_TILE = 2, 8
torch.manual_seed(0)
hidden, weight, bias = torch.randn(3, 5), torch.randn(11, 5), torch.randn(11)
targets, scale, mixture = torch.tensor([10, -100, 4]), torch.tensor([2.0, 1.0, 0.3]), torch.randn(3, 3)
forbidden = bias.clone()
forbidden[8:] = -torch.inf
for options in (
    {"dtype": torch.bfloat16},
    {"bias": forbidden, "temperature": 0.7, "targets": torch.tensor([0, -100, 4])},
    {"bias": bias, "softcap": 2.0, "temperature": 0.7},
    {"softcap": 2.0, "top_k": 3},
):
    dtype, labels = options.pop("dtype", torch.float32), options.pop("targets", targets)
    sides = []
    for impl in ("triton", "naive"):
        leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        one, entropy = F.token_log_probs(*leaves, labels, scale=scale, impl=impl, **options)
        three, _ = F.token_log_probs_all_scales(*leaves, labels, impl=impl, **options)
        losses = (one * mixture[0]).sum(), (one - entropy).sum(), (three * mixture).sum()
        grads = [g for loss in losses for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
        sides.append([one, entropy, three, *grads])
    for result, right in zip(*sides, strict=True):
        loose = 1e-2 if result.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(result, right, rtol=loose, atol=loose)
print("the same")
"""


@pytest.mark.slow
@pytest.mark.skipif(triton_tokens.triton is None, reason="Triton is not installed")
def test_the_kernels_say_the_same():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n"
