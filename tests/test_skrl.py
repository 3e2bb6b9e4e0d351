"""ERA in skrl: policies that its SAC and PPO trained."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("skrl")
pytest.importorskip("tensorboard")  # which skrl's agents import

from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.agents.torch.sac import SAC, SAC_CFG
from skrl.agents.torch.trpo.trpo import kl_divergence
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer

import hosts
from entropyfloor.integrations.skrl import ERAGaussianMixin
from entropyfloor.torch.distributions import TruncatedNormal
from hosts import D, Reach

UNBOUNDED = {"head": "era", "distribution": "normal"}


class Policy(ERAGaussianMixin, Model):
    def __init__(self, env, **era):
        Model.__init__(
            self, observation_space=env.observation_space, action_space=env.action_space, device=env.device
        )
        ERAGaussianMixin.__init__(self, **{"target_entropy": -1.5, **era})
        self.net = nn.Sequential(nn.Linear(self.num_observations, 16), nn.ELU(), nn.Linear(16, 2 * D))

    def compute(self, inputs, role):
        mean, raw = self.net(inputs["observations"]).chunk(2, -1)
        return mean, {"log_std": raw}


class Value(DeterministicMixin, Model):
    def __init__(self, env, size):
        Model.__init__(
            self, observation_space=env.observation_space, action_space=env.action_space, device=env.device
        )
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(size, 16), nn.ELU(), nn.Linear(16, 1))

    def compute(self, inputs, role):
        parts = [inputs["observations"]] + ([inputs["taken_actions"]] if self.net[0].in_features > 4 else [])
        return self.net(torch.cat(parts, -1)), {}


def trained(algorithm, **era):
    torch.manual_seed(0)
    env = wrap_env(Reach(action_space=gym.spaces.Box(-1.0, 1.0, (D,), np.float32)), verbose=False)
    if era:  # unbounded samples, which the environment refuses
        env = wrap_env(gym.wrappers.ClipAction(Reach()), verbose=False)
    models = {"policy": Policy(env, **era)}
    if algorithm is SAC:
        names = "critic_1", "critic_2", "target_critic_1", "target_critic_2"
        models |= {name: Value(env, 4 + D) for name in names}
        cfg = SAC_CFG(batch_size=16, learning_starts=16, learn_entropy=False, initial_entropy_value=0.0)
    else:
        models["value"] = Value(env, 4)
        cfg = PPO_CFG(rollouts=16, learning_epochs=2, mini_batches=2)
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    agent = algorithm(
        models=models,
        memory=RandomMemory(memory_size=64 if algorithm is SAC else 16, num_envs=1, device=env.device),
        cfg=cfg,
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=env.device,
    )
    trainer = {"timesteps": 48, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(cfg=trainer, env=env, agents=agent).train()
    return models["policy"]


@pytest.mark.parametrize(("algorithm", "era"), [(SAC, {}), (PPO, {}), (PPO, UNBOUNDED)])
def test_the_floor_holds_after_training_for_any_observation(algorithm, era):
    policy = trained(algorithm, **era)
    inputs = {"observations": torch.tensor(hosts.observations(500, np.random.default_rng(0)))}
    actions, outputs = policy.act(inputs)
    log_std, loc = (outputs[name].detach().numpy() for name in ("log_std", "mean_actions"))
    truncated = not era
    entropy = hosts.entropy(loc, log_std, truncated=truncated)
    np.testing.assert_allclose(entropy, -1.5, atol=1e-3)
    assert entropy.min() > -1.5 - 1e-4
    np.testing.assert_allclose(policy.get_entropy()[:, 0].detach(), entropy, atol=2e-4)
    density = hosts.log_prob(actions.detach(), loc, log_std, truncated=truncated)
    assert outputs["log_prob"].shape == (500, 1)
    np.testing.assert_allclose(outputs["log_prob"][:, 0].detach(), density, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(policy.distribution().stddev, outputs["log_std"].exp())


def test_gradients_reach_mean_and_raw_log_std():
    policy = trained(PPO)
    inputs = {"observations": torch.randn(20, 4), "taken_actions": torch.rand(20, D) - 0.5}
    policy.zero_grad()
    outputs = policy.act(inputs)[1]
    loc, log_std = (outputs[name].detach().numpy() for name in ("mean_actions", "log_std"))
    density = hosts.log_prob(inputs["taken_actions"], loc, log_std, truncated=True)  # not that of a new sample
    np.testing.assert_allclose(outputs["log_prob"][:, 0].detach(), density, rtol=1e-4, atol=2e-3)
    outputs["log_prob"].sum().backward()
    gradient = policy.net[-1].weight.grad
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().amax(-1) > 0).all()


def test_bounds_that_are_not_those_of_truncation_are_warned_of():
    def build(space, **era):
        return Policy(wrap_env(Reach(action_space=space), verbose=False), **era)

    with pytest.warns(UserWarning, match=r"actions are truncated to \[-1, 1\], and the space is Box\(-2.0, 2.0"):
        build(gym.spaces.Box(-2.0, 2.0, (D,)))
    with pytest.warns(UserWarning, match="RescaleAction"):
        build(gym.spaces.Box(np.float32([-1, -1, 0]), np.float32([1, 1, 1])))
    build(gym.spaces.Box(-2.0, 2.0, (D,)), **UNBOUNDED)
    build(gym.spaces.Box(-np.inf, np.inf, (D,)))  # as in Isaac Lab
    build(gym.spaces.Box(-1.0, 1.0, (D,)))


def test_what_is_no_continuous_policy_is_refused():
    class Environment:
        observation_space, device = gym.spaces.Box(-1.0, 1.0, (4,)), "cpu"
        action_space = gym.spaces.Discrete(3)

    with pytest.raises(TypeError, match=r"actions must be a Box, not Discrete\(3\): .*era_softmax"):
        Policy(Environment)

    class Forgetful(Policy):
        def compute(self, inputs, role):
            return super().compute(inputs, role)[0], {}

    class Global(Policy):
        def compute(self, inputs, role):
            return super().compute(inputs, role)[0], {"log_std": torch.zeros(D)}

    Environment.action_space = gym.spaces.Box(-1.0, 1.0, (D,))
    for policy in (Forgetful(Environment), Global(Environment), Global(Environment, **UNBOUNDED)):
        with pytest.raises(ValueError, match=r'compute must return mean, {"log_std": raw_log_std}, both outputs'):
            policy.act({"observations": torch.zeros(5, 4)})
        assert policy.get_entropy() == 0  # as skrl's, before it has acted


def test_a_network_may_be_named_policy():
    class Named(Policy):
        def __init__(self, env):
            super().__init__(env)
            self.policy = self.net

        def compute(self, inputs, role):
            mean, raw = self.policy(inputs["observations"]).chunk(2, -1)
            return mean, {"log_std": raw}

    policy = Named(wrap_env(Reach(action_space=gym.spaces.Box(-1.0, 1.0, (D,))), verbose=False))
    policy.act({"observations": torch.randn(5, 4)})
    torch.testing.assert_close(policy.get_entropy(), torch.full((5, 1), -1.5), atol=1e-4, rtol=0)


def test_the_divergence_of_trpo_is_that_of_gaussians_before_truncation():
    """As docs/control-hosts.md says; that of the policies that act is another."""
    torch.manual_seed(0)
    env = wrap_env(Reach(action_space=gym.spaces.Box(-1.0, 1.0, (D,))), verbose=False)
    inputs = {"observations": 10 * torch.randn(64, 4), "states": None}  # many means near a bound
    policies, gaussians, acting = [Policy(env) for _ in range(2)], [], []
    for policy in policies:
        outputs = policy.act(inputs)[1]
        gaussians.append(policy.distribution())
        acting.append(TruncatedNormal(outputs["mean_actions"], outputs["log_std"].exp()))
    found = kl_divergence(policy_1=policies[0], policy_2=policies[1], **inputs)
    torch.testing.assert_close(found, torch.distributions.kl_divergence(*gaussians).sum(-1).mean())
    actions = acting[0].sample((20_000,))
    true = (acting[0].log_prob(actions) - acting[1].log_prob(actions)).mean()
    assert abs(found - true) > 0.05 * true


def test_the_example_of_the_docs():
    spaces = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Box(-1, 1, (D,))
    policy = hosts.example("skrl")["Policy"](*spaces)
    policy.act({"observations": torch.randn(5, 4)})
    torch.testing.assert_close(policy.get_entropy(), torch.full((5, 1), -1.5), atol=1e-4, rtol=0)
