"""Thresholds that follow from the entropy that RL begins with, or from each other."""

import math
import re

import pytest

from entropyfloor.language.thresholds import thresholds_of_stages


def test_automatic_thresholds():
    first, second = thresholds_of_stages(("auto", "auto"), ("auto", math.inf), 2.0)
    assert (first, second) == ((1.5, 10.0), (pytest.approx(1.5 * 0.2 / 0.45), math.inf))
    assert thresholds_of_stages((0.45, 3.0), ("auto", 1.0), 0.0) == ((0.45, 3.0), (pytest.approx(0.2), 1.0))


@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        (
            ("auto", 1.0),
            ("auto", 9.0),
            "RL begins with an entropy of 2 nats, so auto gives ω_low=1.5, and ω_high=1",
        ),
        (
            (11.0, "auto"),
            ("auto", 9.0),
            "RL begins with an entropy of 2 nats, so auto gives ω_low=11, and ω_high=10",
        ),
        (("auto", "auto"), ("auto", 0.5), "RL begins with an entropy of 2 nats, so auto gives ω_low=0.666667"),
        ((0.45, 3.0), ("auto", 0.1), "ω_low is 0.45, so auto gives ω_low=0.2, and ω_high=0.1 is not above it"),
        ((0.45, "auto"), ("auto", 0.1), "ω_low is 0.45, so auto gives ω_low=0.2, and ω_high=0.1 is not above it"),
    ],
)
def test_thresholds_that_cross_name_what_they_follow_from(first, second, known):
    with pytest.raises(ValueError, match=re.escape(known)):
        thresholds_of_stages(first, second, 2.0)
