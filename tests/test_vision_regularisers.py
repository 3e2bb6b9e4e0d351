"""What ERA is compared with: losses against NumPy, and the floor by temperature."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.optimize import brentq

from entropyfloor.torch import functional as F
from entropyfloor.vision.regularisers import (
    TemperatureFloor,
    classification_loss,
    jensen_shannon,
    smoothing_out_of_reach,
    temperature_floor,
)

from timm.loss import JsdCrossEntropy  # isort: skip - after our room, which sees to torchvision

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((6, 5))
TARGET = np.array([0, 1, 2, 3, 4, 0])


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("epsilon", "gamma", "beta"), [(0, 0, 0), (0.1, 0, 0), (0, 2, 0), (0, 0.5, 0), (0, 0, 0.3), (0.2, 1.5, 0.1)]
)
def test_the_loss_is_what_it_says(epsilon, gamma, beta, soft):
    one_hot = np.eye(5)[TARGET]
    target = 0.7 * one_hot + 0.3 * one_hot[::-1] if soft else one_hot
    q, p = (1 - epsilon) * target + epsilon / 5, softmax(LOGITS)
    expected = -(q * (1 - p) ** gamma * np.log(p)).sum(-1).mean() + beta * (p * np.log(p)).sum(-1).mean()
    given_ = torch.tensor(target) if soft else torch.tensor(TARGET)
    options = {"label_smoothing": epsilon, "focal_gamma": gamma, "confidence_penalty": beta}
    found = classification_loss(torch.tensor(LOGITS), given_, **options)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_plain_loss_is_that_of_pytorch():
    z, y = torch.tensor(LOGITS), torch.tensor(TARGET)
    expected = torch.nn.functional.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(z, y, label_smoothing=0.1), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certainty_leaves_the_gradient_finite(gamma):
    z = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    for target in (0, 2):
        (grad,) = torch.autograd.grad(classification_loss(z, torch.tensor([target]), focal_gamma=gamma), z)
        assert grad.isfinite().all()


def test_jensen_shannon_is_that_of_timm():
    z = torch.tensor(LOGITS)
    plain = torch.nn.functional.cross_entropy(z[:2], torch.tensor(TARGET[:2]))
    theirs = JsdCrossEntropy(num_splits=3, alpha=12, smoothing=0)(z, torch.tensor(TARGET))
    torch.testing.assert_close(12 * jensen_shannon(z, 3) + plain, theirs)


@given(
    npst.arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from([1e-3, 0.1, 0.6, 1.5, 1.9]),
)
def test_the_floor_by_temperature_holds(z, floor):
    z = torch.tensor(z)
    out = temperature_floor(z, floor)
    assert (F.entropy_from_logits(out) >= floor - 2e-5).all()
    above = F.entropy_from_logits(z) >= floor
    torch.testing.assert_close(out[above].softmax(-1), z[above].softmax(-1))


def test_the_temperature_is_the_least_one():
    z, floor = np.array([4.0, 1.0, 0.0, -2.0]), 0.9
    root = brentq(lambda t: -(softmax(z / t) * np.log(softmax(z / t))).sum() - floor, 1.0, 100.0)
    out = temperature_floor(torch.tensor(z), floor)
    np.testing.assert_allclose(softmax(out.numpy()), softmax(z / root), rtol=1e-9)


def test_the_gradient_through_the_temperature():
    z = torch.tensor(LOGITS, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: temperature_floor(z, 0.9).log_softmax(-1), z)
    even = torch.zeros(2, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(temperature_floor(even, 0.5).log_softmax(-1)[:, 0].sum(), even)
    assert grad.isfinite().all()


@pytest.mark.parametrize("floor", [0.0, -1.0, 2.31, float("nan")])
def test_a_floor_out_of_reach_is_refused(floor):
    with pytest.raises(ValueError, match="must be above 0 and below log 10"):
        TemperatureFloor(10, floor)


def test_smoothing_out_of_reach():
    assert smoothing_out_of_reach(10, 0.3, 0.1) is None
    assert "caps it at 0.7916" in smoothing_out_of_reach(10, 0.6, 0.1, floor="paper")
    assert smoothing_out_of_reach(10, 0.285, 0.1, floor="paper") is None
    assert smoothing_out_of_reach(10, 0.285, 0.1, floor="paper", inverse="paper")
    said = smoothing_out_of_reach(10, 0.6, 0.1, floor="paper", inverse="paper")
    assert "0.9100" in said
    assert "caps it at 0.7880" in said
    largest = float(said.split("reaches it is ")[1].split()[0])
    assert smoothing_out_of_reach(10, largest - 1e-3, 0.1) is None
    assert smoothing_out_of_reach(10, largest + 1e-3, 0.1)
