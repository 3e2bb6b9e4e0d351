"""Metrics of a classifier's predictions, with intervals. Entropies and losses are in nats.

`predict` reduces the logits of each sample to a few numbers; all metrics follow from them, in float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropyfloor.extras import require
from entropyfloor.runs.statistics import bootstrap_interval
from entropyfloor.torch import functional as F
from entropyfloor.torch.numerics import as_float

require("vision", "torchmetrics")

from torchmetrics.functional.classification import binary_auroc, binary_calibration_error  # noqa: E402

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

BINS = 15
"""Number of bins of the calibration error and of the histogram of confidences."""
ENTROPY_BINS = 50
"""Number of bins of the histogram of entropies."""
SATURATED = 10.0
"""Gap between the largest raw logits above which a floored head has hardly any gradient."""
ROUNDING = 1e-4
"""Tolerance for quantities outside their range, because of rounding in float32 with many classes."""


class Predictions(NamedTuple):
    """Numbers of each test sample, `[N]` each, on the CPU.

    Among equal logits the first class ranks first, as in `argmax`.
    """

    correct: Bool[Tensor, " N"]
    """Whether the most probable class is the right one."""
    correct5: Bool[Tensor, " N"]
    """Whether the right class is among the five most probable ones."""
    confidence: Float[Tensor, " N"]
    """Largest probability."""
    nll: Float[Tensor, " N"]
    """`-log p` of the right class."""
    brier: Float[Tensor, " N"]
    """`Σ_i (p_i - y_i)²` over the classes, y one-hot: 0 to 2 (Brier 1950)."""
    entropy: Float[Tensor, " N"]
    """Entropy of the predicted distribution."""
    gap: Float[Tensor, " N"]
    """Largest minus second largest logit before the floor."""


@torch.no_grad()
def predict(
    logits: Float[Tensor, "B n"], raw_logits: Float[Tensor, "B n"], target: Int[Tensor, " B"]
) -> Predictions:
    """Predictions of a batch, computed on its device; half precision is computed in float32.

    Args:
        logits: Logits of the model. Impossible classes may be -inf.
        raw_logits: Logits before the floor; the same for a model without one.
        target: The right classes.

    Raises:
        ValueError: No sample, fewer than two classes, shapes that do not fit, a class that does not exist, or
            logits that give no finite loss, as those of a diverged model.
    """
    logits, raw = as_float(logits, "logits"), as_float(raw_logits, "raw_logits")
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        raise ValueError(f"logits {tuple(logits.shape)} must be [samples, classes], with two classes at least")
    if raw.shape != logits.shape:
        raise ValueError(f"raw_logits {tuple(raw.shape)} must have the shape of logits, {tuple(logits.shape)}")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(f"target has dtype {target.dtype}: pass classes as integers")
    if target.shape != logits.shape[:1]:
        raise ValueError(f"target {tuple(target.shape)} must be {tuple(logits.shape[:1])}: a class a sample")
    n, right = logits.shape[1], target.long()[:, None]
    if bool(((right < 0) | (right >= n)).any()):
        raise ValueError(f"target has classes {int(right.min())} to {int(right.max())}: they must be 0 to {n - 1}")
    own = logits.gather(1, right)
    # Classes that rank before the right one. Unlike `topk` this breaks ties in the same way on every device.
    before = torch.arange(n, device=logits.device) < right
    ahead = ((logits > own) | ((logits == own) & before)).sum(1)
    p = logits.softmax(1)
    first, second = raw.topk(2, dim=1).values.unbind(1)
    predictions = Predictions(
        correct=ahead == 0,
        correct5=ahead < min(5, n),
        confidence=p.amax(1),
        nll=-logits.log_softmax(1).gather(1, right)[:, 0],
        brier=(p - torch.nn.functional.one_hot(right[:, 0], n)).square().sum(1),
        entropy=F.entropy_from_logits(logits),
        gap=first - second,
    )
    predictions = Predictions(*(field.cpu() for field in predictions))
    bad = ~(predictions.nll.isfinite() & predictions.entropy.isfinite()) | predictions.gap.isnan()
    if bool(bad.any()):
        raise ValueError(f"logits or raw_logits of {int(bad.sum())} of {len(bad)} samples are NaN or infinite")
    return predictions


@torch.no_grad()
def top_confidence(logits: Float[Tensor, "B n"]) -> Float[Tensor, " B"]:
    """Largest probability of out-of-distribution samples, which have no right class, on the CPU."""
    # Equal to `predict` to the last bit: under a floor many samples have the largest confidence that it allows,
    # and a difference in rounding would break ties.
    return as_float(logits, "logits").softmax(1).amax(1).cpu()


def concatenate(batches: Sequence[Predictions]) -> Predictions:
    """Predictions of all batches, in their order.

    Raises:
        ValueError: There is no batch.
    """
    if not batches:
        raise ValueError("batches is empty: there are no predictions to concatenate")
    return Predictions(*(torch.cat(field) for field in zip(*batches, strict=True)))


# --- numbers ---------------------------------------------------------------------------------------------


def summarise(predictions: Predictions, ood_confidence: Float[Tensor, " M"] | None = None) -> dict[str, float]:
    """Metrics of predictions.

    `top1`, `top5`: accuracies. `nll`, `brier`: means. `ece`: expected calibration error of the most probable
    class, `Σ_b (n_b / N) |accuracy_b - confidence_b|` over 15 bins of equal width (Guo et al. 2017, arXiv
    1706.04599, Eq. 3). `realised_entropy`: mean entropy; `/min`, `/q05`: its minimum and 5 % quantile.
    `saturation`: share of samples whose gap exceeds 10. With `ood_confidence` also `auroc`: the probability that a
    test sample has more confidence than an out-of-distribution sample, ties counting half (Hendrycks & Gimpel
    2017, arXiv 1610.02136).

    Args:
        predictions: Predictions for the test set.
        ood_confidence: Largest probabilities of out-of-distribution samples: see `top_confidence`.

    Raises:
        ValueError: No sample, fields of different length, or a value that is impossible.
    """
    confidence = _check(predictions)
    # torchmetrics would put confidences of exactly 1 into a sixteenth bin.
    certain = 1.0 - torch.finfo(torch.float64).eps
    ece = binary_calibration_error(confidence.clamp(max=certain), predictions.correct.long(), n_bins=BINS)
    entropy = predictions.entropy.double()
    values = {name: column.mean() for name, column in _columns(predictions).items()} | {
        "ece": ece,
        "realised_entropy/min": entropy.min(),
        "realised_entropy/q05": entropy.quantile(0.05),
    }
    if ood_confidence is not None:
        outside = _check_confidence(ood_confidence, "ood_confidence")
        is_test = torch.cat([torch.ones_like(confidence), torch.zeros_like(outside)])
        values["auroc"] = binary_auroc(torch.cat([confidence, outside]), is_test.long())
    return {name: float(value) for name, value in values.items()}


def entropy_histogram(
    entropy: Float[Tensor, " N"], num_classes: int
) -> tuple[Float[Tensor, "51"], Int[Tensor, "50"]]:
    """Histogram of entropies: edges over [0, log n] in nats, and counts.

    Raises:
        ValueError: No sample, fewer than two classes, or entropies outside [0, log n].
    """
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2")
    if entropy.ndim != 1 or not len(entropy):
        raise ValueError(f"entropy {tuple(entropy.shape)} must be [samples], with one sample at least")
    limit = math.log(num_classes)
    entropy = entropy.double()
    if not bool(((entropy >= -ROUNDING) & (entropy <= limit + ROUNDING)).all()):
        raise ValueError(
            f"entropy from {float(entropy.min()):.4f} to {float(entropy.max()):.4f} must be within 0 and "
            f"log {num_classes} = {limit:.4f}"
        )
    counts, edges = torch.histogram(entropy.clamp(0.0, limit), ENTROPY_BINS, range=(0.0, limit))
    return edges, counts.long()


def calibration_histogram(predictions: Predictions) -> dict[str, list[float]]:
    """Histogram of confidences in 15 bins of equal width, for a reliability diagram.

    Returns:
        `edges` over [0, 1], and for each bin `counts`, `correct` (number of right predictions) and `confidence`
        (sum of the largest probabilities). Histograms of several seeds can be added;
        `Σ |correct - confidence| / Σ counts` is the `ece` of `summarise`.

    Raises:
        ValueError: As `summarise`.
    """
    confidence = _check(predictions)
    index, edges = _binned(confidence)
    columns = torch.stack([torch.ones_like(confidence), predictions.correct.double(), confidence])
    sums = torch.zeros(3, BINS, dtype=torch.float64).index_add_(1, index, columns)
    names = ("counts", "correct", "confidence")
    return {"edges": edges.tolist(), **dict(zip(names, sums.tolist(), strict=True))}


# --- intervals -------------------------------------------------------------------------------------------


def intervals(
    predictions: Predictions,
    ood_confidence: Float[Tensor, " M"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics of `summarise` by a bootstrap over test samples: percentiles, but for `ece`.

    They describe how uncertain the metrics of *one trained model* are because the test set is finite, not how much
    training seeds differ. All metrics share the resamples, which is several times as fast as resampling for each.

    Noise never cancels in an absolute value, so a resample looks less calibrated than the sample does, and
    percentiles of `ece` may exclude it. Its interval is *ours*, from the resampled gaps g* between accuracy and
    confidence of the bins around those of the sample, g: with the estimate `Σ|g|` and the quantiles q at 97.5 %,
    `[max(0, Σ|g| - q(Σ|g* - g|)), Σ|g| + q(Σ sign(g) (g - g*))]`. It contains the estimate, and its coverage is at
    least 95 %: below by the triangle inequality, above because `|g| ≥ sign(γ) g` for a true gap γ.

    Args:
        predictions: Predictions for the test set.
        ood_confidence: Largest probabilities of out-of-distribution samples, drawn independently; adds `auroc`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws. The other intervals do not depend on `ood_confidence`.

    Returns:
        Lower and upper bounds of `top1`, `top5`, `nll`, `brier`, `ece`, `realised_entropy`, `saturation`, and
        `auroc`. The minimum entropy and its quantile have none: no resample can be below the sample's minimum.

    Raises:
        ValueError: As `summarise`, or fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    gaps, columns = _gaps(predictions), _columns(predictions)
    n, gap, table = len(gaps), gaps.mean(0), torch.stack([*columns.values()], dim=1)

    def metrics(drawn: np.ndarray, **_: int) -> np.ndarray:
        weights = _counts(drawn, n)
        noise = weights @ gaps / n - gap
        errors = noise.abs().sum(1), -(gap.sign() * noise).sum(1)
        return torch.column_stack([weights @ table / n, *errors]).numpy()

    low, high = bootstrap_interval(np.arange(n), metrics, resamples=resamples, seed=seed)
    *others, (_, below), (_, above) = zip(low.tolist(), high.tolist(), strict=True)
    bounds = dict(zip(columns, others, strict=True))
    error = float(gap.abs().sum())
    bounds["ece"] = max(0.0, error - below), min(1.0, error + max(0.0, above))
    if ood_confidence is not None:
        confidence = _check_confidence(predictions.confidence, "predictions.confidence")
        outside = _check_confidence(ood_confidence, "ood_confidence").sort().values

        def auroc(drawn: np.ndarray, ood: np.ndarray, **_: int) -> np.ndarray:
            return _auroc(confidence, outside, _counts(drawn, n), _counts(ood, len(outside))).numpy()

        rows = np.arange(n), np.arange(len(outside))
        bounds["auroc"] = bootstrap_interval(rows, auroc, resamples=resamples, seed=seed)
    return bounds


def _columns(predictions: Predictions) -> dict[str, Tensor]:
    """Numbers of each sample whose means are metrics, `[N]` each, in float64."""
    columns = {
        "top1": predictions.correct,
        "top5": predictions.correct5,
        "nll": predictions.nll,
        "brier": predictions.brier,
        "realised_entropy": predictions.entropy,
        "saturation": predictions.gap > SATURATED,
    }
    return {name: column.double() for name, column in columns.items()}


def _binned(confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each confidence's bin, with 1 in the last one, and the edges."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    return torch.bucketize(confidence, edges[1:-1], right=True), edges


def _gaps(predictions: Predictions) -> Tensor:
    """Correctness (0 or 1) minus confidence of each sample, in the column of its bin: `[N, BINS]`.

    Accuracy and confidence of a bin have the same denominator: Σ_b (n_b / N) |acc - conf| = Σ_b |Σ_i (y - c)| / N.
    """
    confidence = _check(predictions)
    index, _ = _binned(confidence)
    excess = predictions.correct.double() - confidence
    return torch.nn.functional.one_hot(index, BINS) * excess[:, None]


def _auroc(confidence: Tensor, outside: Tensor, weights: Tensor, ood_weights: Tensor) -> Tensor:
    """AUROC of weighted samples, `[R]`.

    Args:
        confidence: Confidences of test samples, `[N]`.
        outside: Those of out-of-distribution samples in increasing order, `[M]`.
        weights: Weights of the test samples, `[R, N]`.
        ood_weights: Weights of the out-of-distribution samples, `[R, M]`. A resample may give them in any order,
            as every sample is as likely to be drawn.
    """
    below, upto = (torch.searchsorted(outside, confidence, right=right) for right in (False, True))
    reached = torch.nn.functional.pad(ood_weights.cumsum(1), (1, 0))
    wins = 0.5 * (reached[:, below] + reached[:, upto])  # with less confidence, and half of those with the same
    return (weights * wins).sum(1) / (weights.sum(1) * reached[:, -1])


def _counts(drawn: np.ndarray, size: int) -> Tensor:
    """Number of times that each sample is drawn in each resample, `[R, size]` in float64."""
    numbers = drawn + size * np.arange(len(drawn))[:, None]  # one count for all resamples
    return torch.from_numpy(np.bincount(numbers.ravel(), minlength=len(drawn) * size)).view(-1, size).double()


# --- checks ----------------------------------------------------------------------------------------------


def _check(predictions: Predictions) -> Tensor:
    """The confidences in float64, after a check of all fields."""
    n = len(predictions.correct)
    for name, field in predictions._asdict().items():
        if field.shape != (n,):
            raise ValueError(f"predictions.{name} {tuple(field.shape)} must be [{n}], as predictions.correct is")
        if bool(field.isnan().any()) or (name != "gap" and bool(field.isinf().any())):
            raise ValueError(f"predictions.{name} has a number that is NaN or infinite")
    return _check_confidence(predictions.confidence, "predictions.confidence")


def _check_confidence(confidence: Tensor, name: str) -> Tensor:
    """The confidences in float64, at most 1 in spite of rounding."""
    if confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"{name} {tuple(confidence.shape)} must be [samples], with one sample at least")
    confidence = confidence.double()
    if not bool(((confidence >= 0) & (confidence <= 1 + ROUNDING)).all()):
        raise ValueError(
            f"{name} from {float(confidence.min()):.4f} to {float(confidence.max()):.4f} must be probabilities"
        )
    return confidence.clamp(max=1.0)
