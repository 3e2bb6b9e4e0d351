"""ERA in rsl_rl: floor, KL divergence, export, and the complaint about negative deviations."""

import numpy as np
import pytest
import torch

pytest.importorskip("rsl_rl")
pytest.importorskip("tensorboard")  # which rsl_rl imports

from rsl_rl.env import VecEnv
from rsl_rl.models import MLPModel
from rsl_rl.modules.distribution import HeteroscedasticGaussianDistribution
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
from torch.distributions import Normal

import hosts
import reference
from entropyfloor.audit import exported
from entropyfloor.integrations.rsl_rl import ERAGaussianDistribution, ERAGlobalGaussianDistribution
from hosts import D

CLASSES = ["ERAGaussianDistribution", "ERAGlobalGaussianDistribution"]


class Penalised(VecEnv):
    """Eight environments whose reward is a penalty of the action's rate."""

    def __init__(self):
        self.num_envs, self.num_actions, self.max_episode_length = 8, D, 20
        self.device, self.cfg = torch.device("cpu"), {}
        self.episode_length_buf = torch.zeros(8, dtype=torch.long)
        self.last = torch.zeros(8, D)

    def get_observations(self):
        return TensorDict({"policy": torch.randn(8, 4)}, batch_size=[8])

    def step(self, actions):
        reward, self.last = -(actions - self.last).square().sum(-1), actions.clone()
        self.episode_length_buf += 1
        done = self.episode_length_buf >= self.max_episode_length
        self.episode_length_buf[done] = 0
        return self.get_observations(), reward, done.long(), {"time_outs": done}


def settings(distribution_cfg):
    """Settings as a file of Isaac Lab or mjlab has them."""
    model = {"class_name": "MLPModel", "hidden_dims": [16], "activation": "elu"}
    algorithm = {"class_name": "PPO", "entropy_coef": 0.0, "schedule": "adaptive", "desired_kl": 0.01}
    return {
        "num_steps_per_env": 16,
        "save_interval": 10**6,
        "check_for_nan": True,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {**model, "distribution_cfg": distribution_cfg},
        "critic": dict(model),
        "algorithm": algorithm,
    }


def trained(name, iterations=2, **options):
    torch.manual_seed(0)
    cfg = {"class_name": f"entropyfloor.integrations.rsl_rl:{name}", "target_entropy": "-0.5*A", **options}
    runner = OnPolicyRunner(Penalised(), settings(cfg), device="cpu")
    runner.learn(iterations)
    return runner


def observed(rows, seed=0):
    values = torch.tensor(hosts.observations(rows, np.random.default_rng(seed)))
    return TensorDict({"policy": values}, batch_size=[rows])


@pytest.mark.parametrize(
    ("name", "head"), [(CLASSES[0], "era"), (CLASSES[0], "era-floor"), (CLASSES[1], "era-floor")]
)
def test_the_floor_holds_after_training_for_any_observation(name, head):
    actor = trained(name, head=head).alg.actor
    actions = actor(observed(500), stochastic_output=True)
    mean, std = (x.detach().double().numpy() for x in actor.output_distribution_params)
    entropy = reference.gaussian_entropy(np.log(std))
    assert entropy.min() > -1.5 - 1e-4
    np.testing.assert_allclose(actor.output_entropy.detach(), entropy, atol=1e-4)
    density = hosts.log_prob(actions, mean, np.log(std), truncated=False)
    np.testing.assert_allclose(actor.get_output_log_prob(actions).detach(), density, rtol=1e-4, atol=1e-3)
    if head == "era":
        assert entropy.max() < -1.5 + 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_a_new_actor_has_one_deviation_in_every_state_and_dimension(name):
    actor = trained(name, iterations=0).alg.actor
    actor(observed(50), stochastic_output=True)
    std = actor.output_distribution_params[1].detach()
    torch.testing.assert_close(std, std[0, 0].expand_as(std))


@pytest.mark.parametrize("name", CLASSES)
def test_divergence_is_that_of_the_gaussians(name):
    actor = trained(name).alg.actor
    both = []
    for seed in (0, 1):
        actor(observed(50, seed), stochastic_output=True)
        both.append(actor.output_distribution_params)
    (m, s), (n, t) = ([x.detach().double().numpy() for x in params] for params in both)
    expected = (np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1)
    np.testing.assert_allclose(actor.get_kl_divergence(*both).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_export_and_checkpoints_keep_the_mean(name, tmp_path):
    runner = trained(name)
    observations = observed(20)
    mean = runner.alg.actor(observations).detach()
    script = torch.jit.script(runner.alg.actor.as_jit())
    torch.testing.assert_close(script(observations["policy"]), mean)
    torch.testing.assert_close(runner.alg.actor.as_onnx(verbose=False)(observations["policy"]).detach(), mean)
    runner.save(tmp_path / "model.pt")
    other = trained(name, iterations=0)
    other.load(tmp_path / "model.pt")
    torch.testing.assert_close(other.alg.actor(observations).detach(), mean, rtol=0, atol=0)


def test_an_audit_reads_the_std_that_acts_from_a_checkpoint(tmp_path):
    runner, other = trained(CLASSES[1]), trained(CLASSES[1], iterations=0)
    runner.save(tmp_path / "model.pt")
    other.load(tmp_path / "model.pt")
    found = exported.std_of((), tmp_path / "model.pt")
    for actor in (runner.alg.actor, other.alg.actor):
        actor(observed(1), stochastic_output=True)
        np.testing.assert_allclose(found, actor.output_std[0].detach(), rtol=1e-6)
    assert found.std() > 1e-4  # it has been learned


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_reach_mean_and_raw_log_std(name):
    actor = trained(name, iterations=1).alg.actor
    actions = actor(observed(50), stochastic_output=True)
    actor.zero_grad()
    actor.get_output_log_prob(actions + 0.1).sum().backward()
    gradients = [p.grad for p in (*actor.mlp[-1 if len(actor.mlp) == 3 else -2].parameters(),)]
    gradients += [p.grad for p in actor.distribution.parameters()]
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert (gradient.reshape(len(gradient), -1).abs().amax(-1) > 0).all()


def test_a_deviation_below_0_before_and_after():
    outputs = torch.tensor([[0.0] * D, [-0.1, -1e4, 1e4]], requires_grad=True)  # mean, and what becomes σ
    with pytest.raises(RuntimeError, match="normal expects all elements of std >= 0"):
        Normal(*outputs.detach(), validate_args=False).sample()  # as older versions of rsl_rl do
    host = HeteroscedasticGaussianDistribution(D)
    host.update(outputs)
    host.std[0].backward()
    assert host.std[0].item() == pytest.approx(1e-6)  # rsl_rl 5.5 clamps …
    assert outputs.grad.abs().max() == 0  # … and σ never comes back
    ours = ERAGaussianDistribution(D, "-0.5*A")
    ours.update(outputs)
    assert ours.std.min() >= np.exp(-8) * (1 - 1e-6)
    assert ours.std.max() <= 1
    assert ours.entropy >= -1.5 - 1e-4
    assert torch.isfinite(ours.sample()).all()
    moderate = torch.tensor([[0.0] * D, [-0.1, -0.2, 0.3]], requires_grad=True)
    ours.update(moderate)
    ours.std[0].backward()
    assert moderate.grad[1].abs().min() > 0


def test_refusals():
    with pytest.raises(ValueError, match="is above"):
        ERAGaussianDistribution(D, 10.0)
    with pytest.raises(
        ValueError, match=r"head='era-exact' is solved for truncated actions, .* choose era or era-floor"
    ):
        ERAGlobalGaussianDistribution(D, -1.0, head="era-exact")
    for kind in (ERAGaussianDistribution, ERAGlobalGaussianDistribution):
        with pytest.raises(ValueError, match="leave out init_std, std_type: σ follows from target_entropy"):
            kind(D, -1.0, init_std=1.0, std_type="log")


def test_the_example_of_the_docs():
    actor = settings(hosts.example("rsl_rl")["distribution_cfg"])["actor"]
    assert actor.pop("class_name") == MLPModel.__name__
    model = MLPModel(observed(5), {"actor": ["policy"]}, "actor", D, **actor)
    model(observed(5), stochastic_output=True)
    torch.testing.assert_close(model.output_entropy.detach(), torch.full((5,), -0.9), atol=1e-4, rtol=0)
