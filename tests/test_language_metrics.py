"""Metrics of a rollout, by hand."""

import math

import pytest
import torch

from entropyfloor.language.metrics import response_quantities, rollout_metrics, thresholds

ENTROPIES = torch.tensor([[1.0, 2.0, 3.0, 0.5], [0.25, 9.0, 9.0, 9.0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
RESPONSES = torch.tensor([3.0, 0.25])


@pytest.mark.parametrize("scale", [torch.tensor([1.0, 2.0]), torch.tensor([[1.0] * 4, [1.0, 1.0, 1.0, 0.5]])])
def test_metrics_of_a_rollout(scale):
    found = rollout_metrics(ENTROPIES, MASK, RESPONSES, scale, 0.5, 4.0)
    assert found == {
        "response_entropy": 1.625,
        "token_entropy": pytest.approx(6.75 / 5),
        "response_entropy/below": 0.5,
        "response_entropy/above": 0.0,
        "scaled_share": 0.5,
        "token_entropy/top": 3.0,
        "token_entropy/bottom": pytest.approx(3.75 / 4),
        "omega_low": 0.5,
        "omega_high": 4.0,
    }


def test_without_era_there_is_no_scale_and_no_threshold():
    found = rollout_metrics(ENTROPIES, MASK, RESPONSES, None, 0.5, 2.0)
    assert found["response_entropy/above"] == 0.5
    assert not {"scaled_share", "omega_low", "omega_high"} & {*found}
    assert thresholds(0.5, math.inf) == {"omega_low": 0.5}


def test_quantities_of_responses():
    found = response_quantities(RESPONSES, torch.tensor([1.0, 2.0]), 0.25, 3.0)
    assert {name: values.tolist() for name, values in found.items()} == {
        "response_entropy": [3.0, 0.25],
        "response_entropy/below": [False, False],
        "response_entropy/above": [False, False],
        "scaled_share": [False, True],
    }
