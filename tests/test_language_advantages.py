"""Advantages of language models against a few lines of NumPy each, and against what their papers say of them."""

import math

import numpy as np
import pytest
import torch

from entropyfloor.language.advantages import (
    advantages_in_band,
    equal_rewards,
    group_advantages,
    maxrl_advantages,
    reweighted_advantages,
    smoothing,
    weighted_advantages,
)

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("std", [True, False])
def test_advantages_of_a_group(std):
    rewards = RNG.random((5, 8))
    expected = rewards - rewards.mean(1, keepdims=True)
    if std:
        expected = expected / (rewards.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(group_advantages(torch.tensor(rewards), std=std), expected, rtol=1e-12)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0, 1e6 / 3])
@pytest.mark.parametrize("of", [group_advantages, lambda r: group_advantages(r, std=False), maxrl_advantages])
def test_equal_rewards_teach_nothing(reward, of):
    rewards = torch.full((3, 7), reward)
    rewards[1, 4] += 1.0
    assert equal_rewards(rewards).tolist() == [True, False, True]
    advantages = of(rewards)
    assert (advantages[[0, 2]] == 0).all()
    assert (advantages[1] != 0).all()


@pytest.mark.parametrize("of", [group_advantages, maxrl_advantages, weighted_advantages])
def test_rewards_that_cannot_be_compared(of):
    with pytest.raises(ValueError, match=r"\(3, 1\) must be \[groups, samples\] with two samples or more"):
        of(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="must be finite"):
        of(torch.tensor([[0.0, math.nan]]))


def test_a_vector_of_rewards_has_no_groups():
    with pytest.raises(ValueError, match="must be"):
        equal_rewards(torch.zeros(3))


def test_maxrl_divides_by_the_pass_rate():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = [[3.0, -1.0, -1.0, -1.0], [1 / 3, 1 / 3, 1 / 3, -1.0]]
    np.testing.assert_allclose(maxrl_advantages(rewards), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="rewards reach down to -1"):
        maxrl_advantages(torch.tensor([[1.0, -1.0]]))


def test_the_gradient_of_maxrl_is_that_of_a_truncated_likelihood():
    """Over all outcomes of n tosses of a coin, the mean of `Σ A ∇ log π / n` is that of -Σ_{k<n} (1-p)^k/k."""
    n, p = 4, 0.3
    outcomes = torch.tensor([[float(i >> j & 1) for j in range(n)] for i in range(2**n)], dtype=torch.float64)
    chance = (p**outcomes * (1 - p) ** (1 - outcomes)).prod(1)
    slope = outcomes / p - (1 - outcomes) / (1 - p)  # of log π in p
    estimate = (maxrl_advantages(outcomes, eps=0.0).nan_to_num() * slope).mean(1)
    expected = sum((1 - p) ** (k - 1) for k in range(1, n))
    assert float((chance * estimate).sum()) == pytest.approx(expected, rel=1e-12)


def test_w_reinforce_weighs_right_responses_less():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.5, 0.0]])
    expected = torch.tensor([[0.1, -1.0], [0.1, 0.1], [-0.45, -1.0]])
    torch.testing.assert_close(weighted_advantages(rewards), expected)
    torch.testing.assert_close(weighted_advantages(rewards, 1.0)[0], torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"weight=-0.1 of right responses"):
        weighted_advantages(rewards, -0.1)


def test_smoothing_favours_unlikely_right_responses_and_punishes_unlikely_wrong_ones():
    log_probs = torch.tensor([[-1.0, -3.0, math.nan], [-0.5, -0.1, -0.3], [-4.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    right = torch.tensor([True, False, False, True])
    found = smoothing(log_probs, mask, right, 0.5)
    torch.testing.assert_close(found, torch.tensor([1.0, -0.15, -2.0, 0.0]))
    with pytest.raises(ValueError, match="must be"):
        smoothing(log_probs, mask, right[:2])


def test_a_band_drops_one_side():
    advantages = torch.tensor([1.0, -2.0, 0.0, 0.5])
    assert advantages_in_band(advantages, 0.1, 0.2, 0.3).tolist() == [0.0, -2.0, 0.0, 0.0]
    assert advantages_in_band(advantages, 0.4, 0.2, 0.3).tolist() == [1.0, 0.0, 0.0, 0.5]
    for entropy in (0.2, 0.25, 0.3):
        assert torch.equal(advantages_in_band(advantages, entropy, 0.2, 0.3), advantages)
    with pytest.raises(ValueError, match=r"low=0.3 must be below high=0.3"):
        advantages_in_band(advantages, 0.1, 0.3, 0.3)


def test_weights_of_both_signs():
    advantages = torch.tensor([1.0, -2.0, 0.0])
    assert reweighted_advantages(advantages, -0.5).tolist() == [0.5, -3.0, 0.0]
    assert torch.equal(reweighted_advantages(advantages, 0.0), advantages)
    with pytest.raises(ValueError, match=r"alpha=1.5 must lie between -1 and 1"):
        reweighted_advantages(advantages, 1.5)
