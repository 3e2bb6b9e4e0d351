"""What predictions are worth: against the definitions in float64 NumPy, and intervals against repeated draws."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import special, stats

from entropyfloor.runs import statistics
from entropyfloor.vision import metrics

FIELDS = metrics.Predictions._fields


def logits_of(n, samples=300, seed=0, scale=3.0, dtype=torch.float32):
    """Logits, others as raw logits, and classes that are often the likeliest one."""
    generator = torch.Generator().manual_seed(seed)
    logits, raw = scale * torch.randn(2, samples, n, generator=generator)
    return logits.to(dtype), raw.to(dtype), logits.softmax(1).multinomial(1, generator=generator)[:, 0]


def reference(logits, raw, target):
    """`predict`, one line a field."""
    z, raw, y = (x.double().numpy() if x.is_floating_point() else x.numpy() for x in (logits, raw, target))
    log_p, rows = special.log_softmax(z, axis=1), np.arange(len(y))
    p, ordered = np.exp(log_p), np.sort(raw, axis=1)
    ranks = np.argsort(-z, axis=1, kind="stable")
    return {
        "correct": z.argmax(1) == y,
        "correct5": (ranks[:, :5] == y[:, None]).any(1),
        "confidence": p.max(1),
        "nll": -log_p[rows, y],
        "brier": ((p - np.eye(z.shape[1])[y]) ** 2).sum(1),
        "entropy": special.entr(p).sum(1),
        "gap": ordered[:, -1] - ordered[:, -2],
    }


def reference_ece(confidence, correct):
    """Over [0, 1/15), …, [14/15, 1]."""
    bins = np.minimum(np.floor(confidence * 15), 14)
    parts = [(bins == b) for b in range(15) if (bins == b).any()]
    return sum(part.mean() * abs(correct[part].mean() - confidence[part].mean()) for part in parts)


def reference_auroc(inside, outside):
    """Share of pairs that are in order, ties counting half."""
    difference = inside[:, None] - outside[None]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


def numpy(predictions):
    return {name: field.numpy() for name, field in predictions._asdict().items()}


def made(correct, confidence=None, **fields):
    """Predictions that are made up; what is not given is 0."""
    correct = torch.as_tensor(correct)
    nothing = torch.zeros(len(correct))
    given = {"correct5": correct, "confidence": nothing if confidence is None else torch.as_tensor(confidence)}
    rest = dict.fromkeys(("nll", "brier", "entropy", "gap"), nothing)
    return metrics.Predictions(**{**rest, **given, **fields, "correct": correct})


# --- predictions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 7, 1000])
def test_predict_is_the_definition(n):
    logits, raw, target = logits_of(n)
    found = metrics.predict(logits, raw, target)
    for name, expected in reference(logits, raw, target).items():
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_but_the_inputs_rounding(dtype):
    logits, raw, target = logits_of(100, dtype=dtype)
    found = metrics.predict(logits, raw, target)
    for name, expected in reference(logits, raw, target).items():
        field = getattr(found, name)
        assert field.dtype == (torch.bool if name.startswith("correct") else torch.float32)
        np.testing.assert_allclose(field.numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_double_precision_stays():
    logits, raw, target = logits_of(10, dtype=torch.float64)
    found = metrics.predict(logits, raw, target)
    for name, expected in reference(logits, raw, target).items():
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=1e-12, atol=1e-13, err_msg=name)


def test_no_graph_is_kept():
    logits, raw, target = logits_of(4)
    found = metrics.predict(logits.requires_grad_(), raw.requires_grad_(), target)
    assert not any(field.requires_grad for field in found)
    assert not metrics.top_confidence(logits).requires_grad


@pytest.mark.parametrize("n", [2, 4, 5])
def test_the_right_class_is_among_the_five_likeliest_where_there_are_five(n):
    assert metrics.predict(*logits_of(n)).correct5.all()
    assert not metrics.predict(*logits_of(6)).correct5.all()


@pytest.mark.parametrize("n", [2, 5, 8, 40])
def test_a_tie_has_one_winner_and_the_first_class_is_it(n):
    row = torch.randint(3, (1, n), generator=torch.Generator().manual_seed(n)).float()
    found = metrics.predict(
        row.expand(n, n), row.expand(n, n), torch.arange(n)
    )  # every class once as the right one
    assert found.correct.nonzero().tolist() == [[int(row.argmax())]]
    assert found.correct5.sum() == min(5, n)
    for name, expected in reference(row.expand(n, n), row.expand(n, n), torch.arange(n)).items():
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, atol=1e-6, err_msg=name)


def test_perfect_predictor():
    target = torch.arange(7)
    logits = 1e4 * torch.eye(7)
    found = metrics.summarise(metrics.predict(logits, logits, target), torch.full((3,), 0.5))
    perfect = {"top1": 1, "top5": 1, "saturation": 1, "auroc": 1}
    assert found == pytest.approx({name: perfect.get(name, 0) for name in found}, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_uniform_predictor(n):
    target = torch.arange(n).repeat(3)
    logits = torch.full((3 * n, n), 2.5)
    found = metrics.summarise(metrics.predict(logits, logits, target), torch.full((4,), 1 / n))
    entropies = dict.fromkeys(
        ["nll", "realised_entropy", "realised_entropy/min", "realised_entropy/q05"], math.log(n)
    )
    rest = {"top1": 1 / n, "top5": min(5, n) / n, "brier": 1 - 1 / n, "ece": 0.0, "saturation": 0.0}
    auroc = {"auroc": found["auroc"]}  # 1/n may be rounded to either side: see the test of ties
    assert found == pytest.approx({**rest, **entropies, **auroc}, abs=3e-6)


def test_impossible_classes_have_no_weight():
    logits, raw, target = logits_of(4)
    more = [torch.cat([x, torch.full((len(x), 2), -math.inf)], dim=1) for x in (logits, raw)]
    expected, found = metrics.predict(logits, raw, target), metrics.predict(*more, target)
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)


def test_batches_are_the_whole():
    whole = logits_of(10)
    batches = [metrics.predict(*(x[part] for x in whole)) for part in (slice(0, 7), slice(7, 8), slice(8, 300))]
    joined, expected = metrics.concatenate(batches), metrics.predict(*whole)
    for name in FIELDS:
        torch.testing.assert_close(getattr(joined, name), getattr(expected, name), msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_top_confidence_is_that_of_the_predictions_to_the_last_bit(dtype):
    logits, raw, target = logits_of(10, samples=2000, scale=6.0, dtype=dtype)
    assert torch.equal(metrics.top_confidence(logits), metrics.predict(logits, raw, target).confidence)
    # Batches of other sizes round alike.
    assert torch.equal(
        torch.cat([metrics.top_confidence(b) for b in logits.split(7)]), metrics.top_confidence(logits)
    )


# --- numbers ---------------------------------------------------------------------------------------------


def test_summary_is_the_definition():
    predictions = metrics.predict(*logits_of(10, samples=400))
    # Among them confidences that the test set has too.
    elsewhere = torch.cat(
        [metrics.top_confidence(logits_of(10, seed=1, scale=1.0)[0]), predictions.confidence[:50]]
    )
    of = numpy(predictions)
    expected = {
        "top1": of["correct"].mean(),
        "top5": of["correct5"].mean(),
        "nll": of["nll"].mean(dtype=float),
        "brier": of["brier"].mean(dtype=float),
        "ece": reference_ece(of["confidence"].astype(float), of["correct"]),
        "realised_entropy": of["entropy"].mean(dtype=float),
        "realised_entropy/min": of["entropy"].min(),
        "realised_entropy/q05": np.quantile(of["entropy"].astype(float), 0.05),
        "saturation": (of["gap"] > 10).mean(),
        "auroc": reference_auroc(of["confidence"], elsewhere.numpy()),
    }
    found = metrics.summarise(predictions, elsewhere)
    assert found == pytest.approx(expected, abs=1e-6)
    assert all(type(value) is float for value in found.values())
    del expected["auroc"]
    assert metrics.summarise(predictions) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "scale"), [(2, 1.0), (10, 3.0), (100, 0.5)])
def test_ece_is_torchmetrics_multiclass(n, scale):
    from torchmetrics.functional.classification import multiclass_calibration_error  # after the room's own import

    logits, raw, target = logits_of(n, samples=2000, scale=scale)
    target[:300] = 0
    found = metrics.summarise(metrics.predict(logits, raw, target))["ece"]
    expected = multiclass_calibration_error(logits.softmax(1), target, n, n_bins=15, norm="l1")
    assert found > 0.001
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_a_certain_prediction_is_in_the_last_of_fifteen_bins():
    certain, sure = torch.ones(20), torch.full((20,), 0.95)
    predictions = made(torch.arange(40) >= 2, torch.cat([certain, sure]))  # 0.9 right, then all right
    assert metrics.summarise(predictions)["ece"] == pytest.approx(0.975 - 0.95, abs=1e-6)


@pytest.mark.parametrize("n", [2, 10, 1000])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_auroc_counts_ties_half(n, shift):
    tied = torch.full((n,), 0.5)
    predictions = made(torch.ones(n, dtype=torch.bool), tied)
    assert metrics.summarise(predictions, tied[1:] - 0.1 * shift)["auroc"] == pytest.approx((1 + shift) / 2)


def test_a_gap_of_ten_is_not_yet_saturated():
    gap = torch.tensor([9.0, 10.0, 10.1, math.inf])
    assert metrics.summarise(made([True] * 4, gap=gap))["saturation"] == 0.5


def test_histogram():
    bins = metrics.ENTROPY_BINS
    entropy = torch.cat(
        [metrics.predict(*logits_of(10)).entropy, torch.tensor([0.0, math.log(10), math.log(10) + 1e-6])]
    )
    edges, counts = metrics.entropy_histogram(entropy, 10)
    expected, expected_edges = np.histogram(entropy.double().clamp(0, math.log(10)), bins, range=(0, math.log(10)))
    np.testing.assert_allclose(edges, expected_edges, atol=1e-12)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == len(entropy)
    assert counts[-1] >= 2
    assert not counts.is_floating_point()


def test_the_calibration_histogram_adds_up():
    bins = metrics.BINS
    predictions = metrics.predict(*logits_of(10, samples=300, scale=4.0))
    found = metrics.calibration_histogram(predictions)
    edges = np.linspace(0, 1, bins + 1)
    np.testing.assert_allclose(found["edges"], edges)
    confidence, correct = predictions.confidence.double().numpy(), predictions.correct.numpy()
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = (confidence >= low) & ((confidence < high) | (i == bins - 1))
        assert found["counts"][i] == inside.sum()
        assert found["correct"][i] == correct[inside].sum()
        assert found["confidence"][i] == pytest.approx(confidence[inside].sum())
    assert sum(found["counts"]) == 300
    off = np.abs(np.subtract(found["correct"], found["confidence"])).sum() / 300
    assert off == pytest.approx(metrics.summarise(predictions)["ece"], abs=1e-6)


# --- intervals -------------------------------------------------------------------------------------------


def test_a_weight_is_a_repetition():
    predictions = metrics.predict(*logits_of(10, samples=200, scale=6.0))
    elsewhere = torch.cat([metrics.top_confidence(logits_of(10, 80, seed=1)[0]), predictions.confidence[:40]])
    elsewhere = elsewhere.double().sort().values  # which their weights belong to
    rng = np.random.default_rng(0)
    weights, ood_weights = (torch.tensor(rng.poisson(1.0, (3, n)) * 1.0) for n in (200, 120))
    weights[0], ood_weights[0] = 1.0, 1.0
    found = metrics._auroc(predictions.confidence.double(), elsewhere, weights, ood_weights)
    for i, (w, v) in enumerate(zip(weights.long(), ood_weights.long(), strict=True)):
        repeated = metrics.Predictions(*(field.repeat_interleave(w) for field in predictions))
        expected = metrics.summarise(repeated, elsewhere.repeat_interleave(v))
        assert float(found[i]) == pytest.approx(expected["auroc"], abs=1e-6)


def test_the_bootstrap_and_the_summary_agree_on_the_edges_of_bins():
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)
    confidence = torch.cat([edges, edges - 0.03]).abs()
    predictions = made(torch.arange(32) < 16, confidence)  # right on the edge, wrong below it
    found = metrics._gaps(predictions).mean(0).abs().sum()
    assert float(found) == pytest.approx(metrics.summarise(predictions)["ece"], abs=1e-12)


def test_resamples_are_as_large_as_the_sample():
    counts = metrics._counts(np.random.default_rng(0).integers(50, size=(400, 50)), 50)
    assert (counts.sum(1) == 50).all()
    assert len(counts.unique(dim=0)) == 400
    # A binomial count has variance 1 - 1/50 in each place.
    assert counts.mean(0).numpy() == pytest.approx(1.0, abs=5 / math.sqrt(400))
    assert float(counts.var(0).mean()) == pytest.approx(1 - 1 / 50, abs=0.05)


def test_intervals_are_around_what_is_found_and_as_wide_as_theory_says():
    predictions = metrics.predict(*logits_of(10, samples=1000, scale=6.0))
    elsewhere = metrics.top_confidence(logits_of(10, 500, seed=1, scale=1.0)[0])
    found, around = metrics.summarise(predictions, elsewhere), metrics.intervals(predictions, elsewhere)
    assert around.keys() == found.keys() - {"realised_entropy/min", "realised_entropy/q05"}
    for name, (low, high) in around.items():
        assert type(low) is type(high) is float
        assert low < found[name] < high, name
    for name, field in {"top1": "correct", "nll": "nll", "brier": "brier", "realised_entropy": "entropy"}.items():
        width = 2 * 1.96 * getattr(predictions, field).double().std() / math.sqrt(1000)
        low, high = around[name]
        assert high - low == pytest.approx(float(width), rel=0.15), name


def test_intervals_are_those_of_the_seed(monkeypatch):
    predictions = metrics.predict(*logits_of(10))
    elsewhere = metrics.top_confidence(logits_of(10, 70, seed=1)[0])
    once = metrics.intervals(predictions, elsewhere, resamples=50, seed=3)
    assert metrics.intervals(predictions, elsewhere, resamples=50, seed=3) == once
    other = metrics.intervals(predictions, elsewhere, resamples=50, seed=4)
    assert all(other[name] != once[name] for name in ("nll", "brier", "ece", "auroc", "realised_entropy"))
    # Neither samples from elsewhere nor the size of a chunk moves the others.
    alone = metrics.intervals(predictions, resamples=50, seed=3)
    assert {**alone, "auroc": once["auroc"]} == once
    monkeypatch.setattr(statistics, "CELLS", 7 * 300)
    chunked = metrics.intervals(predictions, elsewhere, resamples=50, seed=3)
    for name, bounds in alone.items():  # two samples are drawn chunk by chunk
        assert chunked[name] == pytest.approx(bounds, abs=1e-12)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    metrics.intervals(metrics.predict(*logits_of(10)), resamples=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_that_are_all_alike_leave_nothing_uncertain():
    predictions = made([True] * 20, [0.75] * 20, nll=torch.full((20,), 0.5))
    found = metrics.summarise(predictions, torch.tensor([0.25]))
    for name, bounds in metrics.intervals(predictions, torch.tensor([0.25]), resamples=10).items():
        assert bounds == pytest.approx((found[name], found[name]), abs=1e-7), name


@pytest.mark.slow_but_first
def test_intervals_cover_the_truth_as_often_as_they_say():
    """Accuracy 0.7, nll of mean 1, and scores from two normal distributions, whose AUROC is Φ(d / √2)."""
    share, repeats, size, p, d = 0.95, 400, 200, 0.7, 1.0
    truth = {"top1": p, "nll": 1.0, "auroc": stats.norm.cdf(d / math.sqrt(2))}
    covered = dict.fromkeys(truth, 0)
    rng = np.random.default_rng(0)
    for repeat in range(repeats):
        predictions = made(
            rng.random(size) < p,
            special.expit(rng.normal(d, 1, size)),
            nll=torch.as_tensor(rng.gamma(4.0, 0.25, size)),
        )
        elsewhere = torch.as_tensor(special.expit(rng.normal(0, 1, size // 2)))
        found = metrics.intervals(predictions, elsewhere, resamples=200, seed=repeat)
        for name, value in truth.items():
            covered[name] += found[name][0] <= value <= found[name][1]
    # Four standard errors of a share over the repeats: 95 % intervals that were those of 90 % would not pass.
    slack = 4 * math.sqrt(share * (1 - share) / repeats)
    for name, times in covered.items():
        assert times / repeats == pytest.approx(share, abs=slack), name


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_of_a_small_calibration_error_contains_it(seed):
    """Of a calibrated model, whose resamples are all less calibrated than the sample."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.1, 1, 300)
    predictions = made(rng.random(300) < confidence, confidence)
    found = metrics.summarise(predictions)["ece"]
    low, high = metrics.intervals(predictions, resamples=200)["ece"]
    assert 0 <= low <= found <= high <= 1
    counts = metrics._counts(rng.integers(300, size=(200, 300)), 300)
    resampled = (counts @ metrics._gaps(predictions) / 300).abs().sum(1)
    assert resampled.quantile(0.025) > 0.8 * found


@pytest.mark.parametrize(("excess", "most"), [(0.0, 1.0), (0.02, 1.0), (0.3, 0.999)])
def test_the_interval_of_the_calibration_error_covers_the_truth(excess, most):
    """Confidences that are too large by `excess`; where that is 0, so is the truth, at the end of its range."""
    rng, size, repeats = np.random.default_rng(0), 400, 200
    confidence = rng.uniform(0.4, 1, 10**6)
    index = np.minimum((15 * confidence).astype(int), 14)
    right = (confidence - excess).clip(0, 1)
    truth = np.abs(np.bincount(index, right - confidence)).sum() / 10**6
    covered = 0
    for repeat in range(repeats):
        confidence = rng.uniform(0.4, 1, size)
        predictions = made(rng.random(size) < confidence - excess, confidence)
        low, high = metrics.intervals(predictions, resamples=100, seed=repeat)["ece"]
        covered += low - 1e-9 <= truth <= high
    assert covered / repeats >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)
    assert covered / repeats <= most


# --- errors ----------------------------------------------------------------------------------------------

Z, RAW, Y = logits_of(4, samples=6)
NAN = torch.where(torch.arange(4) == 2, math.nan, Z)
CORRECT = torch.ones(6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Z[:0], RAW[:0], Y[:0]), r"logits \(0, 4\) must be"),
        ((Z[0], RAW[0], Y), r"logits \(4,\) must be"),
        ((Z[:, :1], RAW[:, :1], Y * 0), r"logits \(6, 1\) must be .* two classes"),
        ((Z, RAW[:, :3], Y), r"raw_logits \(6, 3\) must have the shape of logits, \(6, 4\)"),
        ((Z, RAW, Y[:5]), r"target \(5,\) must be \(6,\)"),
        ((Z, RAW, Y[:, None]), r"target \(6, 1\) must be \(6,\)"),
        ((Z, RAW, Y + 1), r"target has classes \d to 4: they must be 0 to 3"),
        ((Z, RAW, Y - 4), r"target has classes -\d to -1"),
        ((Z, RAW, Y.float()), "target has dtype torch.float32"),
        ((Z, RAW, Y == 0), "target has dtype torch.bool"),
        ((Z.long(), RAW, Y), "logits has dtype torch.int64"),
        ((Z, RAW.long(), Y), "raw_logits has dtype torch.int64"),
        ((NAN, RAW, Y), "6 of 6 samples are NaN or infinite"),
        ((Z, NAN, Y), "6 of 6 samples are NaN or infinite"),
        ((Z / 0, RAW, Y), "NaN or infinite"),
        ((torch.where(torch.arange(4) == Y[:, None], -math.inf, Z), RAW, Y), "NaN or infinite"),
    ],
)
def test_predict_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.predict(*arguments)


@pytest.mark.parametrize("judge", [metrics.summarise, metrics.intervals])
@pytest.mark.parametrize(
    ("predictions", "ood", "message"),
    [
        (made(CORRECT[:0]), None, r"predictions.confidence \(0,\) must be .* one sample"),
        (made(CORRECT[:, None]), None, r"predictions.correct \(6, 1\) must be \[6\]"),
        (made(CORRECT, nll=torch.zeros(5)), None, r"predictions.nll \(5,\) must be \[6\]"),
        (made(CORRECT, entropy=torch.full((6,), math.nan)), None, "predictions.entropy has a number"),
        (made(CORRECT, gap=torch.full((6,), math.nan)), None, "predictions.gap has a number"),
        (made(CORRECT, nll=torch.full((6,), math.inf)), None, "predictions.nll has a number"),
        (made(CORRECT, torch.full((6,), 1.5)), None, "predictions.confidence from 1.5000 to 1.5000 must be prob"),
        (made(CORRECT), torch.zeros(0), r"ood_confidence \(0,\) must be"),
        (made(CORRECT), torch.zeros(2, 3), r"ood_confidence \(2, 3\) must be"),
        (made(CORRECT), torch.tensor([0.1, -3.0]), "ood_confidence from -3.0000 to 0.1000 must be probabilities"),
        (made(CORRECT), torch.tensor([math.nan]), "ood_confidence from nan"),
    ],
)
def test_summaries_name_what_is_wrong(judge, predictions, ood, message):
    with pytest.raises(ValueError, match=message):
        judge(predictions, ood)


def test_the_rest_names_what_is_wrong():
    with pytest.raises(ValueError, match="batches is empty"):
        metrics.concatenate([])
    with pytest.raises(ValueError, match="resamples=0 must be at least 1"):
        metrics.intervals(made(CORRECT), resamples=0)
    with pytest.raises(ValueError, match="num_classes=1 must be at least 2"):
        metrics.entropy_histogram(torch.zeros(3), 1)
    with pytest.raises(ValueError, match=r"entropy \(0,\) must be"):
        metrics.entropy_histogram(torch.zeros(0), 10)
    with pytest.raises(ValueError, match=r"entropy from 0.5000 to 0.9000 must be within 0 and log 2 = 0.6931"):
        metrics.entropy_histogram(torch.tensor([0.5, 0.9]), 2)
    with pytest.raises(ValueError, match="entropy from nan"):
        metrics.entropy_histogram(torch.tensor([math.nan]), 2)
