"""The reference against the golden values of the mathematics."""

import math

import numpy as np
import pytest

import reference

close = pytest.approx


def test_era_gaussian():
    log_std = reference.era_gaussian([0.3, -1.2, 2.0], -1.5)
    assert log_std == close([-0.8596011551, -0.1918029434, -4.7054115011], abs=1e-10)
    assert reference.gaussian_entropy(log_std) == close(-1.5, abs=1e-12)
    lifted = reference.era_gaussian([9.0, 0, 0], -25.0, -5, 2)
    assert lifted == close([-5, 1.995650037, 1.995650037], abs=1e-9)


def test_era_gaussian_batch():
    log_std = reference.era_gaussian_batch([[0.3, -1.2, 2], [0, 0, 1]], -1.5)
    golden = [[-1.1296216644, -0.2520526629, -6.1834895637], [-0.8368443115, -0.8368443115, -2.2747786852]]
    np.testing.assert_allclose(log_std, golden, atol=1e-10)


@pytest.mark.parametrize(
    ("entropy", "golden"),
    [
        (reference.truncated_normal_entropy, [0.2089618945, 0.0789332925, -0.3459317458]),
        (reference.truncated_normal_entropy_by_quadrature, [0.2089618945, 0.0789332925, -0.3459317458]),
        (reference.tanh_normal_entropy, [0.1286041532, -0.0948372449, -0.5493915116]),
    ],
)
def test_bounded_entropies(entropy, golden):
    assert entropy(np.array([0, 0.5, 0.9]), math.log(0.3)) == close(golden, abs=1e-9)


def test_tanh_entropy_is_not_monotone_in_std():
    at = reference.tanh_normal_entropy(0.0, np.log([0.87, 2.0, 4.0]))
    assert at == close([0.684, -0.001, -2.35], abs=5e-3)


@pytest.mark.parametrize(
    ("inverse", "golden", "entropy"),
    [
        ("exact", [-1.8607414077, -3.45471706, -3.702384777, -3.843178976, -3.6044092504], 1.2283731231),
        ("paper", [-1.8723078532, -3.4700630251, -3.714431433, -3.8529073333, -3.6178812305], 1.2279044998),
    ],
)
def test_era_softmax(inverse, golden, entropy):
    logits = reference.era_softmax([3, 1, 0, -2, 0.5], 0.6, floor="paper", inverse=inverse)
    assert logits == close(golden, abs=1e-9)
    assert reference.categorical_entropy(logits) == close(entropy, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "floor", "golden"), [(10, 0.6, 0.5259718849), (100, 0.6, 0.5153551416), (1000, 1.2, 0.6986521775)]
)
def test_calibrated_constant(n, floor, golden):
    assert reference.calibrated_constant(n, floor) == close(golden, abs=1e-9)
