"""ERA in TorchRL: the floor and the gradients of actors in its losses for SAC and PPO."""

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm
from torch import nn

pytest.importorskip("torchrl")

from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, SACLoss, SoftUpdate
from torchrl.objectives.value import GAE

import hosts
from entropyfloor.integrations.torchrl import ERAParamExtractor
from hosts import D

ARMS = [("truncated", "era-exact"), ("truncated", "era-floor"), ("normal", "era"), ("normal", "era-floor")]


def actor_with(distribution, head):
    torch.manual_seed(0)
    extractor = ERAParamExtractor(D, "-A/2", head=head, distribution=distribution)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2 * D), extractor)
    return ProbabilisticActor(
        TensorDictModule(network, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=extractor.distribution_class,
        spec=Bounded(-1, 1, (D,)),
        return_log_prob=True,
    )


class Value(nn.Module):
    """Q(s, a)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4 + D, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1))


def transitions(rows):
    def state():
        return {"observation": torch.randn(rows, 4)}

    ended = {name: torch.zeros(rows, 1, dtype=torch.bool) for name in ("done", "terminated")}
    data = {
        **state(),
        "action": 2 * torch.rand(rows, D) - 1,
        "next": {**state(), **ended, "reward": torch.randn(rows, 1)},
    }
    return TensorDict(data, batch_size=[rows])


def check_floor(actor, distribution, head):
    observation = torch.tensor(hosts.observations(500, np.random.default_rng(0)))
    policy = actor.get_dist(TensorDict({"observation": observation}, batch_size=[500]))
    inner = policy if distribution == "truncated" else policy.base_dist
    loc, log_std = inner.loc.detach().numpy(), np.log(inner.scale.detach().double().numpy())
    entropy = hosts.entropy(loc, log_std, truncated=distribution == "truncated")
    assert entropy.min() > -1.5 - 1e-4
    np.testing.assert_allclose(policy.entropy().detach(), entropy, atol=2e-4)
    if head != "era-floor":
        assert entropy.max() < -1.5 + 1e-3
    action = policy.sample()
    density = hosts.log_prob(action, loc, log_std, truncated=distribution == "truncated")
    np.testing.assert_allclose(policy.log_prob(action).detach(), density, rtol=1e-4, atol=2e-3)


def check_gradients(actor):
    for name, parameter in actor.named_parameters():
        assert 0 < parameter.grad.abs().max() < torch.inf, name


@pytest.mark.parametrize(("distribution", "head"), ARMS[:2])
def test_sac(distribution, head):
    actor = actor_with(distribution, head)
    value = ValueOperator(Value(), in_keys=["observation", "action"])
    loss = SACLoss(actor, value, alpha_init=1e-8, fixed_alpha=True)
    loss.make_value_estimator(gamma=0.99)
    targets = SoftUpdate(loss, eps=0.99)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(20):
        losses = loss(transitions(64))
        optimiser.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"]).backward()
        optimiser.step()
        targets.step()
    assert losses["alpha"] == pytest.approx(1e-8)
    if head == "era-exact":  # from 64 samples
        assert losses["entropy"].item() == pytest.approx(-1.5, abs=0.5)
    check_floor(actor, distribution, head)


@pytest.mark.parametrize(("distribution", "head"), ARMS)
def test_ppo(distribution, head):
    actor = actor_with(distribution, head)
    critic = ValueOperator(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic, entropy_bonus=False)
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    data = transitions(64)
    with torch.no_grad():
        advantage(actor(data))
    for _ in range(10):
        losses = loss(data)
        optimiser.zero_grad()
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        optimiser.step()
    check_gradients(actor)
    check_floor(actor, distribution, head)


def test_actions_without_noise_are_the_mode():
    actor = actor_with("truncated", "era-exact")
    data = transitions(8)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = actor(data)["action"]
    torch.testing.assert_close(action, data["loc"])
    with set_exploration_type(ExplorationType.RANDOM):
        assert (actor(data)["action"] != data["loc"]).all()


def test_the_median_has_half_of_the_mass_on_either_side():
    actor, observation = actor_with("truncated", "era-floor"), hosts.observations(200, np.random.default_rng(0))
    data = TensorDict({"observation": torch.tensor(observation)}, batch_size=[200])
    with set_exploration_type(ExplorationType.MEDIAN), torch.no_grad():
        median = actor(data)["action"]
    loc, scale = (data[name].double().numpy() for name in ("loc", "scale"))
    mass = truncnorm((-1 - loc) / scale, (1 - loc) / scale, loc, scale).cdf(median)
    np.testing.assert_allclose(mass, 0.5, atol=1e-4)


def test_the_example_of_the_docs():
    actor = hosts.example("TorchRL")["actor"]
    policy = actor.get_dist(TensorDict({"observation": torch.randn(5, 4)}, batch_size=[5]))
    torch.testing.assert_close(policy.entropy(), torch.full((5,), -1.5), atol=1e-4, rtol=0)
