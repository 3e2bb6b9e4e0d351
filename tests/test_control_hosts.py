"""The page on control hosts: what has no adapter runs on the library's own class, or on a copy of its interface.

The copies are minimal, written for these tests, and named after what they stand for.
"""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import hosts
import reference
from entropyfloor.integrations.heads import GaussianPolicy
from hosts import D

PAGE = hosts.PAGE.read_text()


class CopyOfCleanRLActor(nn.Module):
    """Names and shapes of CleanRL's SAC actor; LeanRL's has the scale of a vector of environments."""

    def __init__(self, *environments):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 16)
        self.fc_mean, self.fc_logstd = nn.Linear(16, D), nn.Linear(16, D)
        self.register_buffer("action_scale", torch.full((*environments, D), 2.0))
        self.register_buffer("action_bias", torch.full((*environments, D), 1.0))


class CopyOfCleanRLAgent(nn.Module):
    """Names and shapes of CleanRL's PPO agent."""

    def __init__(self, envs):
        super().__init__()
        size = math.prod(envs.single_action_space.shape)
        self.critic = nn.Linear(4, 1)
        self.actor_mean = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, size))
        self.actor_logstd = nn.Parameter(torch.zeros(1, size))


class CopyOfVectorEnv:
    single_action_space = gym.spaces.Box(-2, 2, (D,))


def layer_init(layer, std):
    nn.init.orthogonal_(layer.weight, std)
    return layer


def observed(rows=500):
    return torch.tensor(hosts.observations(rows, np.random.default_rng(0)))


def check_gradients(module, loss):
    loss.backward()
    for name, parameter in module.named_parameters():
        if "critic" not in name:
            assert 0 < parameter.grad.abs().max() < torch.inf, name


@pytest.mark.parametrize("environments", [(), (1,)], ids=["CleanRL", "LeanRL"])
def test_cleanrl_s_sac(environments):
    actor = hosts.example("CleanRL and LeanRL", Actor=CopyOfCleanRLActor)["ERAActor"](*environments)
    action, log_prob, mode = actor.get_action(torch.randn(4_000, 4))
    assert log_prob.shape == (4_000, 1)
    assert (action - 1).abs().max() <= 2
    assert (mode - 1).abs().max() <= 2
    assert -log_prob.mean().item() == pytest.approx(-1.5, abs=4 * log_prob.std().item() / math.sqrt(4_000))
    check_gradients(actor, action.sum() + log_prob.sum())


def test_cleanrl_s_ppo():
    names = {"Agent": CopyOfCleanRLAgent, "layer_init": layer_init}
    agent = hosts.example("CleanRL and LeanRL", 1, **names)["ERAAgent"](CopyOfVectorEnv)
    action, log_prob, entropy, value = agent.get_action_and_value(observed())
    assert value.shape == (500, 1)
    torch.testing.assert_close(entropy, torch.full((500,), -0.3 * D), atol=1e-4, rtol=0)
    again, same, _, _ = agent.get_action_and_value(observed(), action)
    torch.testing.assert_close(same, log_prob)
    assert again is action
    assert "actor_logstd" not in dict(agent.named_parameters())
    check_gradients(agent, agent.get_action_and_value(torch.randn(20, 4), torch.randn(20, D))[1].sum())


def test_holosoma():
    pytest.importorskip("holosoma")
    actor = hosts.example("holosoma")["ERAActor"](
        obs_indices={"state": {"start": 0, "end": 4, "size": 4}},
        obs_keys=["state"],
        n_act=D,
        num_envs=8,
        hidden_dim=32,
        log_std_max=0.0,
        log_std_min=-5.0,
        action_scale=torch.full((D,), 3.0),
    )
    entropy = actor.policy(observed()).entropy()
    torch.testing.assert_close(entropy, torch.full((500,), -1.5), atol=1e-4, rtol=0)
    action, log_prob = actor.get_actions_and_log_probs(torch.randn(8, 4))
    assert (action.shape, log_prob.shape) == ((8, D), (8,))
    assert action.abs().max() <= 3
    (action.sum() + log_prob.sum()).backward()
    assert (actor.fc_logstd.weight.grad.abs().amax(-1) > 0).all()
    assert (actor.fc_mu[0].weight.grad.abs().amax(-1) > 0).all()
    torch.testing.assert_close(
        actor.explore(observed(), deterministic=True), 3 * actor.policy(observed()).mode.detach()
    )


def test_masked_dimensions_leave_the_floor_to_the_others():
    policy = hosts.example("TD-MPC2 and Newt with action masks")["masked_policy"]
    rng = np.random.default_rng(0)
    mean, raw = (torch.tensor(x) for x in hosts.outputs(rng, 5))
    mask = torch.ones(len(mean), 5)
    mask[::3, 2:] = mask[1::3, 3:] = 0.0
    loc, action, log_prob, entropy = policy(mean, raw, mask)
    assert (action[mask == 0] == 0).all()
    assert entropy.isfinite().all()
    assert (entropy > -0.5 * mask.sum(-1) - 2e-4).all()
    for row in range(0, len(mean), 7):  # the same as without the masked dimensions
        keep = mask[row].bool()
        alone = reference.era_truncated_normal(
            loc[row, keep].double().numpy(), raw[row, keep].double().numpy(), -0.5 * keep.sum().item()
        )
        expected = reference.truncated_normal_entropy(loc[row, keep].double().numpy(), alone).sum()
        assert entropy[row].item() == pytest.approx(expected, abs=5e-4)
    raw = torch.randn(40, 5, requires_grad=True)
    mask = mask[:40]
    _, action, log_prob, entropy = policy(torch.zeros(40, 5), raw, mask)
    (action.sum() + log_prob.sum()).backward()
    assert raw.grad.isfinite().all()
    assert (raw.grad[mask == 0] == 0).all()
    assert (raw.grad[mask == 1] != 0).all()
    expected = [
        hosts.log_prob(a[k].numpy(), np.zeros(int(k.sum())), s, truncated=True)
        for a, k, s in zip(
            action.detach(),
            mask.bool(),
            (
                reference.era_truncated_normal(np.zeros(int(k.sum())), r[k].double().numpy(), -0.5 * int(k.sum()))
                for r, k in zip(raw.detach(), mask.bool(), strict=True)
            ),
            strict=True,
        )
    ]
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-3, atol=5e-3)


class CopyOfNewtWorldModel(nn.Module):
    """What the policy prior of Newt's world model takes and keeps, for three tasks of two to five dimensions."""

    def __init__(self):
        super().__init__()
        self._pi, self._task_emb = nn.Linear(8 + 2, 2 * 5), nn.Embedding(3, 2)
        self.register_buffer("_action_masks", (torch.arange(5) < torch.tensor([[2], [3], [5]])).float())

    def task_emb(self, z, task):
        emb = self._task_emb(task)
        while emb.ndim < z.ndim:
            emb = emb.unsqueeze(-2)
        return torch.cat([z, emb.expand(*z.shape[:-1], -1)], dim=-1)


@pytest.mark.parametrize("shape", [(6,), (6, 4)], ids=["batch", "sequence"])
def test_newt_s_policy_prior(shape):
    pytest.importorskip("tensordict")
    heading, names = "TD-MPC2 and Newt with action masks", {"WorldModel": CopyOfNewtWorldModel}
    names["masked_policy"] = hosts.example(heading)["masked_policy"]
    model, task = hosts.example(heading, 1, **names)["ERAWorldModel"](), torch.arange(6) % 3
    action, info = model.pi(30 * torch.randn(*shape, 8), task)
    dimensions = torch.tensor([2, 3, 5])[task].view(6, *[1] * len(shape))
    assert action.shape == info["mean"].shape == (*shape, 5)
    torch.testing.assert_close(info["entropy"], (-0.5 * dimensions).expand(*shape, 1), atol=5e-4, rtol=0)
    assert ((action != 0).sum(-1, keepdim=True) == dimensions).all()
    action, info = model.pi(torch.randn(*shape, 8), task)  # not saturated
    (action.sum() + info["scaled_entropy"].sum()).backward()
    assert (model._pi.weight.grad.abs().amax(-1) > 0).all()


def test_the_figures_of_the_traps():
    std = math.exp(-0.5 - reference.LOG_SQRT_2PIE)
    assert f"the σ of an unbounded Gaussian is {std:.3f} in each dimension" in " ".join(PAGE.split())
    assert f"the term is {2 * std**2:.3f} A" in " ".join(PAGE.split())
    rng = np.random.default_rng(0)
    noise = std * rng.normal(size=(2, 200_000))
    assert np.square(noise[0] - noise[1]).mean() == pytest.approx(2 * std**2, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("head", "distribution"), [("era", "normal"), ("era", "truncated"), ("era-exact", "truncated")]
)
def test_half_precision_is_computed_in_float32(dtype, head, distribution):
    """Under autocast a network puts out half precision."""
    mean = torch.tensor([[-6.0, 4.0, 0.3]], dtype=dtype, requires_grad=True)
    raw = torch.tensor([[0.3, -0.7, 0.0]], dtype=dtype)
    policy, exact = GaussianPolicy(D, -1.5, head, distribution), mean.detach().double()
    loc, log_std = policy.parameters(mean, raw)
    torch.testing.assert_close(loc, policy.loc(exact).float())
    torch.testing.assert_close(log_std, policy.parameters(exact, raw.double())[1].float(), atol=1e-5, rtol=0)
    loc.sum().backward()
    assert (mean.grad != 0).all()  # tanh in bfloat16 has no gradient from a mean of 3.5 on
    torch.manual_seed(0)
    many = policy(mean.detach().expand(4_000, D), raw.expand(4_000, D))
    assert len(many.sample()[:, 0].unique()) > 3_900  # noise in bfloat16 has few values


def test_outputs_of_another_number_of_dimensions_are_refused():
    policy = GaussianPolicy(D, "-A/2")
    with pytest.raises(
        ValueError, match=r"mean \(5, 4\) and raw_log_std \(5, 4\) must end in action_dim=3: .* 6 num"
    ):
        policy(torch.zeros(5, 4), torch.zeros(5, 4))


def test_a_clamp_has_no_gradient_where_a_head_has():
    raw = torch.full((1, D), -30.0) + torch.arange(D)
    raw.requires_grad_()
    raw.clamp(-20, 2).sum().backward()
    assert (raw.grad == 0).all()
    raw.grad = None
    GaussianPolicy(D, "-A/2").parameters(torch.zeros(1, D), raw)[1][0, 0].backward()
    assert (raw.grad != 0).all()
