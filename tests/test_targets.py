"""Rules, feasibility and calibration in plain floats."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import reference
from entropyfloor import targets
from entropyfloor.checks import check_number
from fuzz import hostile


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("-A/2", -3), ("-A", -6), ("A", 6), ("-0.3A", -1.8), ("0.25*A", 1.5), (" -3 ", -3), (-2.5, -2.5)],
)
def test_rules(rule, expected):
    assert targets.resolve(rule, action_dim=6) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["", "B/2", "-A/0", "A/", "nan", float("inf")])
def test_rules_that_cannot_be_read(rule):
    with pytest.raises(ValueError, match=r"target.entropy"):
        targets.resolve(rule, action_dim=6)


@given(st.text("+-0123456789.*/A eE_", max_size=12) | hostile, st.integers(1, 400))
@example("9" * 400 + "A", 6)
@example("A/0." + "0" * 400 + "1", 6)
def test_any_rule_is_a_number_or_is_refused(rule, action_dim):
    try:
        target = targets.resolve(rule, action_dim)
    except ValueError as error:
        refusal, target = str(error), 0.0
    else:
        refusal = "target"
    assert refusal.startswith("target")
    assert math.isfinite(target)


def test_truncated_entropy_is_the_references():
    for loc in (0.0, 0.5, 0.9, 1.0):
        for log_std in (-5.0, -1.0, 0.0, 2.0):
            ours = targets.truncated_normal_entropy(loc, log_std)
            assert ours == pytest.approx(float(reference.truncated_normal_entropy(loc, log_std)), abs=1e-12)
    assert targets.truncated_entropy_max(1, 0.0) == pytest.approx(0.5661, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "floor", "constant", "cap"),
    [(10, 0.6, 0.5259718849, 0.88724), (100, 0.6, 0.5153551416, 0.92655), (1000, 1.2, 0.6986521775, 0.87952)],
)
def test_calibration(n, floor, constant, cap):
    least, top = targets.softmax_kappa_range(n, floor, 4.0, "calibrated")
    assert top + (n - 1) * least == pytest.approx(constant, abs=1e-10)
    assert targets.top1_cap(n, floor) == pytest.approx(cap, abs=1e-5)


def test_the_papers_constant_takes_a_floor_of_zero():
    top = math.log(4.0) / 4.0
    found = targets.softmax_kappa_range(10, 0.0, 4.0, "paper")
    assert found == pytest.approx(((math.exp(-1.0) - top) / 9, top), rel=1e-12)


@pytest.mark.parametrize(("floor", "fewest"), [("calibrated", 2), ("paper", 3)])
def test_a_table_has_the_kappa_of_each_number_of_classes_that_can_keep_the_floor(floor, fewest):
    """Two classes have at most log 2 = 0.693 nats, and with the paper's constant 0.633."""
    table, top = targets.softmax_kappa_table(10, 0.65, 4.0, floor), math.log(4.0) / 4.0
    assert table[:fewest] == (top,) * fewest
    assert table[fewest:] == tuple(targets.softmax_kappa_range(m, 0.65, 4.0, floor)[0] for m in range(fewest, 11))


def test_caps_of_the_papers_constant():
    assert targets.top1_cap(10, 0.6, floor="paper") == pytest.approx(0.792, abs=5e-4)
    assert targets.top1_cap(1000, 1.2, floor="paper") == pytest.approx(0.726, abs=5e-4)


@pytest.mark.parametrize("inverse", targets.INVERSES)
@pytest.mark.parametrize("floor", ["calibrated", "paper"])
@pytest.mark.parametrize(("n", "min_entropy"), [(2, 0.4), (10, 0.6), (1000, 1.2)])
def test_the_cap_is_what_certainty_is_left_with(n, min_entropy, floor, inverse):
    certain = np.where(np.arange(n) == 0, 1e4, 0.0)
    z = reference.era_softmax(certain, min_entropy, floor=floor, inverse=inverse)
    assert targets.top1_cap(n, min_entropy, 4.0, floor, inverse) == pytest.approx(
        reference.softmax(z).max(), rel=1e-6
    )


@given(st.integers(2, 10_000), st.floats(0.01, 0.99))
def test_floor_for_top1_inverts_the_cap(n, share):
    floor = share * math.log(n)
    assert targets.min_entropy_for_top1(n, targets.top1_cap(n, floor)) == pytest.approx(floor, rel=1e-6)


@given(st.floats(-690, -1.001))
def test_inverse_kappa_is_lamberts(log_kappa):
    kappa = math.exp(log_kappa)
    x = targets.inverse_kappa(kappa)
    assert x + math.log(-x) == pytest.approx(log_kappa, rel=1e-13)
    np.testing.assert_allclose(x, reference.inverse_exact(kappa), rtol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0.5, 4.0, "calibrated"), "num_classes=1 .* at least 2"),
        ((2.5, 0.5, 4.0, "calibrated"), "num_classes=2.5 must be a whole number"),
        ((math.inf, 0.5, 4.0, "calibrated"), "num_classes=inf must be a whole number"),
        ((math.nan, 0.5, 4.0, "calibrated"), "num_classes=nan must be a whole number"),
        ((10, 2.4, 4.0, "calibrated"), r"min_entropy=2.4 .*2\.30259.*choose a floor inside"),
        ((10, 2.25, 4.0, "paper"), r"min_entropy=2.25 .*2\.2429.*choose a floor inside"),
        ((10, 0.0, 4.0, "calibrated"), "min_entropy=0.0"),
        ((10, float("nan"), 4.0, "calibrated"), "min_entropy=nan"),
        ((10, 0.6, 2.7, "calibrated"), "tau=2.7 .* above e"),
        ((10, 0.6, float("nan"), "calibrated"), "tau=nan"),
        ((10, 0.6, "4", "calibrated"), "tau='4'"),
        ((10, 0.6, 4.0, "exact"), "floor='exact' must be"),
    ],
)
def test_discrete_targets_out_of_reach(arguments, message):
    for refusing in (targets.softmax_kappa_range, targets.softmax_kappa_table):
        with pytest.raises(ValueError, match=message):
            refusing(*arguments)


@pytest.mark.parametrize("floor", [-0.1, math.log(4), "nan"])
def test_a_floor_of_discrete_actions_is_below_their_largest_entropy(floor):
    with pytest.raises(ValueError, match=r"is out of reach: with 4 discrete actions .* log 4 = 1\.386"):
        targets.resolve_discrete(floor, num_actions=4)
    assert targets.resolve_discrete("0", num_actions=4) == 0.0


@pytest.mark.parametrize("num_classes", [0, 1, 2.5, math.inf])
def test_a_top_1_probability_belongs_to_a_whole_number_of_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes={num_classes} must be a whole number of at least 2"):
        targets.min_entropy_for_top1(num_classes, 0.5)


@pytest.mark.parametrize("inverse", targets.INVERSES)
@pytest.mark.parametrize(("n", "min_entropy", "kept"), [(10, 0.6, True), (1000, 1.2, True), (10, 2.2, False)])
def test_a_mean_of_floored_logits_keeps_low_floors(n, min_entropy, kept, inverse):
    """Against the entropies, in NumPy, of all corners of the box in which floored logits lie."""
    least, top = targets.softmax_kappa_range(n, min_entropy, 4.0, "calibrated", inverse)
    low, high = targets.INVERSES[inverse](least), targets.INVERSES[inverse](top)
    corners = np.where(np.arange(n) < np.arange(1, n)[:, None], high, low)
    p = np.exp(corners - np.logaddexp.reduce(corners, axis=1, keepdims=True))
    entropy = -(p * np.log(p)).sum(axis=1)
    assert entropy[0] == pytest.approx(min_entropy, abs=1e-9)
    assert (entropy.min() >= min_entropy - 1e-9) == kept
    assert targets.mean_keeps_floor(n, min_entropy, 4.0, "calibrated", inverse) == kept


@pytest.mark.parametrize("log_std", [3.0, 1.0, 0.0, -0.5, -0.9])
@pytest.mark.parametrize("tolerance", [1e-8, 1e-14])
def test_the_polynomial_of_the_truncated_entropy_is_as_exact_as_asked_for(log_std, tolerance):
    coefficients = targets.truncated_entropy_polynomial(log_std, tolerance)
    if coefficients is None:
        assert tolerance == 1e-14
        assert log_std < 0
        return
    loc = np.linspace(-1, 1, 2001)
    value = np.polynomial.Polynomial(coefficients)(loc**2)
    np.testing.assert_allclose(
        value, reference.truncated_normal_entropy(loc, log_std), rtol=0, atol=tolerance + 2e-15
    )
    assert len(coefficients) <= 11


def test_small_sigma_has_no_polynomial():
    assert targets.truncated_entropy_polynomial(-2.0, 1e-8) is None


@pytest.mark.parametrize("value", [None, "3", b"3.x", [1.0], {}, 1j, np.zeros(2), np.array("a")])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^tau.*: pass "):
        check_number("tau", value)


@pytest.mark.parametrize("value", [3, -0.5, np.float32(1.0), np.array(2.0)])
def test_numbers_are_taken(value):
    check_number("tau", value)
