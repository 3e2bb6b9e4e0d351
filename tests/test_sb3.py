"""ERA in Stable-Baselines3: the floor of policies that SB3 trained, and what its own tests ask of a policy."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecNormalize

import hosts
import reference
from entropyfloor.integrations.heads import GaussianPolicy
from entropyfloor.integrations.sb3 import ERAPPOPolicy, ERASACPolicy
from hosts import D, Reach

SMALL = {"seed": 0, "device": "cpu"}
SAC_SMALL = {**SMALL, "buffer_size": 500, "learning_starts": 20, "batch_size": 32, "ent_coef": 0.0}
PPO_SMALL = {**SMALL, "n_steps": 32, "batch_size": 16, "n_epochs": 2}


def sac(env=None, steps=60, **era):
    env = env or Reach()
    model = SAC(ERASACPolicy, env, policy_kwargs={"net_arch": [16], "target_entropy": -1.5, **era}, **SAC_SMALL)
    return model.learn(steps)


def ppo(env=None, steps=64, algorithm=PPO, **era):
    env = env or Reach()
    settings = PPO_SMALL if algorithm is PPO else {**SMALL, "n_steps": 32}
    era = {"target_entropy": "-0.5*A" if isinstance(env.action_space, gym.spaces.Box) else 0.5, **era}
    return algorithm(ERAPPOPolicy, env, policy_kwargs={"net_arch": [16], **era}, **settings).learn(steps)


def parameters(model, observations):
    """Loc and log σ of the policy that acts, before truncation."""
    batch = torch.tensor(observations)
    if isinstance(model, SAC):
        mean, raw, _ = model.actor.get_action_dist_params(batch)
        distribution = model.actor.action_dist.proba_distribution(mean, raw)
    else:
        distribution = model.policy.get_distribution(batch)
    inner = distribution.distribution
    loc = inner.base_dist.loc if hasattr(inner, "base_dist") else inner.loc
    return distribution, loc.detach().numpy(), distribution.log_std.detach().numpy()


ARMS = [
    (sac, {"head": "era-exact"}),
    (sac, {"head": "era-floor"}),
    (sac, {"head": "era"}),
    (ppo, {}),
    (ppo, {"head": "era-floor"}),
    (ppo, {"distribution": "truncated"}),
    (ppo, {"distribution": "truncated", "head": "era-floor"}),
]


@pytest.mark.parametrize(("train", "era"), ARMS)
def test_the_floor_holds_after_training_for_any_observation(train, era):
    model = train(**era)
    rng = np.random.default_rng(0)
    distribution, loc, log_std = parameters(model, hosts.observations(500, rng))
    truncated = train is sac or "distribution" in era
    exact = hosts.entropy(loc, log_std, truncated=truncated)
    assert np.isfinite(exact).all()
    np.testing.assert_allclose(distribution.entropy().detach(), exact, atol=2e-4)
    if era.get("head") == "era":  # the paper's promise is on the Gaussian before truncation
        assert hosts.entropy(loc, log_std, truncated=False).min() > -1.5 - 1e-4
        assert exact.min() < -1.5 - 0.1
    else:
        assert exact.min() > -1.5 - 1e-4
    actions = distribution.sample()
    density = hosts.log_prob(actions.detach(), loc, log_std, truncated=truncated)
    np.testing.assert_allclose(distribution.log_prob(actions).detach(), density, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("head", ["era", "era-exact", "era-floor"])
@pytest.mark.parametrize("distribution", ["truncated", "normal"])
def test_a_policy_is_that_of_the_reference(head, distribution):
    if (head, distribution) == ("era-exact", "normal"):
        with pytest.raises(ValueError, match="choose that, or head='era'"):
            GaussianPolicy(D, -1.5, head, distribution)
        return
    policy = GaussianPolicy(D, "-A/2", head, distribution)
    mean, raw = hosts.outputs(np.random.default_rng(1))
    loc, log_std = policy.parameters(torch.tensor(mean), torch.tensor(raw))
    mode = {"mode": "floor" if head == "era-floor" else "pin"}
    if policy.exact:
        assert reference.truncated_normal_entropy(loc, log_std).sum(-1).min() > -1.5 - 1e-4
        usual = np.abs(raw).max(-1) < 100
        expected = reference.era_truncated_normal(loc.numpy()[usual], raw[usual], -1.5, **mode)
        got = reference.truncated_normal_entropy(loc.numpy()[usual], log_std.numpy()[usual])
        wanted = reference.truncated_normal_entropy(loc.numpy()[usual], expected)
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    else:
        np.testing.assert_allclose(log_std, reference.era_gaussian(raw, -1.5, **mode), atol=1e-5)
    assert policy(torch.tensor(mean), torch.tensor(raw)).entropy().shape == (len(mean),)


def test_gradients_reach_every_layer_of_the_actor():
    model = sac(steps=0)
    actions, log_prob = model.actor.action_log_prob(torch.randn(32, 4))
    assert actions.abs().max() <= 1
    (actions.square().sum() + log_prob.sum()).backward()
    for name, parameter in model.actor.named_parameters():
        assert 0 < parameter.grad.abs().max() < torch.inf, name


@pytest.mark.parametrize("era", [{}, {"distribution": "truncated"}])
def test_gradients_reach_mean_and_raw_log_std_of_ppo(era):
    policy = ppo(steps=0, **era).policy
    values, log_prob, entropy = policy.evaluate_actions(torch.randn(32, 4), torch.rand(32, D) - 0.5)
    (values.sum() + log_prob.sum()).backward()
    gradient = policy.action_net.weight.grad
    assert gradient.shape == (2 * D, 16)
    assert (gradient.abs().amax(-1) > 0).all()
    assert "log_std" not in dict(policy.named_parameters())
    assert policy.log_std.shape == (32, D)
    torch.testing.assert_close(entropy, torch.full((32,), -1.5), atol=1e-4, rtol=0)


def test_sb3_logs_the_deviation_that_acts():
    model = ppo()
    assert model.logger.name_to_value["train/std"] == model.policy.log_std.exp().mean().item()
    assert model.policy.log_std.mean().item() == pytest.approx(-0.5 - reference.LOG_SQRT_2PIE, abs=1e-4)


@pytest.mark.parametrize(("train", "era"), ARMS)
def test_entropy_is_that_of_samples(train, era):
    model = train(steps=0, **era)
    distribution, _, _ = parameters(model, np.tile(hosts.observations(1, np.random.default_rng(4)), (20_000, 1)))
    sampled = -distribution.log_prob(distribution.sample())
    error = 4 * sampled.std().item() / math.sqrt(20_000)
    assert sampled.mean().item() == pytest.approx(distribution.entropy()[0].item(), abs=error)


@pytest.mark.parametrize("train", [sac, ppo])
def test_a_seed_repeats_a_run(train):
    first, second = (train(share_features_extractor=True).policy.parameters_to_vector() for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("train", "era"), ARMS)
def test_sb3_saves_and_loads(train, era, tmp_path):
    model = train(**era)
    observations = hosts.observations(20, np.random.default_rng(2))
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    again = type(model).load(tmp_path / "model", env=Reach(), device="cpu")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    for other in (again, policy):
        np.testing.assert_array_equal(
            model.predict(observations, deterministic=True)[0], other.predict(observations, deterministic=True)[0]
        )
        torch.manual_seed(5)
        sampled, _ = model.predict(observations)
        torch.manual_seed(5)
        np.testing.assert_array_equal(sampled, other.predict(observations)[0])
    again.learn(40)
    # As the documentation changes the target; it is kept when the model is saved again.
    target = {**model.policy_kwargs, "target_entropy": 0.4}
    type(model).load(tmp_path / "model", custom_objects={"policy_kwargs": target}).save(tmp_path / "other")
    assert type(model).load(tmp_path / "other").policy.era["target_entropy"] == 0.4
    fresh = train(steps=0, **era)
    fresh.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(
        fresh.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )


@pytest.mark.parametrize("era", [{}, {"head": "era"}])
def test_discrete_actions_keep_their_floor(era, tmp_path):
    env = Discretely()
    model = ppo(env, **era)
    observations = hosts.observations(500, np.random.default_rng(3))
    distribution = model.policy.get_distribution(torch.tensor(observations))
    entropy = reference.categorical_entropy(distribution.distribution.logits.detach())
    np.testing.assert_allclose(distribution.entropy().detach(), entropy, atol=1e-5)
    assert entropy.min() > (0.5 if not era else 0.75) - 1e-4
    with torch.no_grad():
        model.policy.action_net.weight.mul_(1e6)
    distribution = model.policy.get_distribution(torch.tensor(observations))
    entropy = reference.categorical_entropy(distribution.distribution.logits.detach())
    assert entropy.min() > 0.5 - 1e-4
    if not era:
        assert entropy.min() < 0.5 + 1e-3
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], again.predict(observations, deterministic=True)[0]
    )


class Discretely(Reach):
    """The same with five actions."""

    def __init__(self):
        super().__init__(action_space=gym.spaces.Discrete(5))


IMAGE = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)
NORMALISED = gym.spaces.Box(0, 1, (3, 36, 36), np.float32)
BOTH = gym.spaces.Dict({"image": IMAGE, "vector": gym.spaces.Box(-1, 1, (2,), np.float32)})


@pytest.mark.parametrize(
    ("space", "extractor"),
    [(IMAGE, NatureCNN), (NORMALISED, NatureCNN), (BOTH, CombinedExtractor)],
    ids=["image", "normalised image", "dict"],
)
@pytest.mark.parametrize("train", [sac, ppo])
def test_images_and_dictionaries(train, space, extractor):
    model = train(Reach(space), steps=32, normalize_images=space is not NORMALISED)
    assert model.policy.features_extractor_class is extractor
    action, _ = model.predict(space.sample())
    assert action.shape == (D,)
    batch = {name: np.stack([space[name].sample()] * 2) for name in space} if space is BOTH else None
    batch = np.stack([space.sample()] * 2) if batch is None else batch
    assert model.predict(batch)[0].shape == (2, D)


@pytest.mark.parametrize(("train", "era"), [(sac, {}), (ppo, {}), (ppo, {"distribution": "truncated"})])
def test_actions_have_the_shape_and_the_bounds_of_the_space(train, era):
    env = Reach(action_space=gym.spaces.Box(np.array([[0.0, -3.0]]), np.array([[5.0, -1.0]]), dtype=np.float64))
    model = train(env, target_entropy=0.0, **era)
    for deterministic in (True, False):
        action, _ = model.predict(env.reset()[0], deterministic=deterministic)
        assert action.shape == (1, 2)
        assert env.action_space.contains(action.astype(np.float64))
    actions, _ = model.predict(np.zeros((7, 4), np.float32))
    assert actions.shape == (7, 1, 2)


def test_normalised_vectors_of_environments():
    env = VecNormalize(make_vec_env(Reach, n_envs=3))
    for train in (sac, ppo):
        model = train(env, steps=96)
        returns, _ = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)
        assert len(returns) == 2


def test_a2c_takes_the_same_policy():
    model = ppo(algorithm=A2C)
    entropy = model.policy.get_distribution(torch.randn(9, 4)).entropy()
    torch.testing.assert_close(entropy, torch.full((9,), -1.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("train", "era", "message"),
    [
        (sac, {"target_entropy": 3.0}, "target_entropy=3.0 nats is above"),
        (sac, {"head": "clip"}, "head='clip' must be one of era, era-exact, era-floor"),
        (ppo, {"distribution": "tanh"}, "distribution='tanh' must be one of truncated, normal"),
        (ppo, {"head": "era-exact"}, "head='era-exact' is solved for distribution='truncated'"),
        (ppo, {"log_std_init": -1.0}, "log_std_init=-1.0: σ follows from target_entropy"),
    ],
)
def test_refusals(train, era, message):
    with pytest.raises(ValueError, match=message):
        train(**era)


@pytest.mark.parametrize(("algorithm", "policy"), [(SAC, ERASACPolicy), (PPO, ERAPPOPolicy)])
def test_state_dependent_exploration_is_refused(algorithm, policy):
    with pytest.raises(ValueError, match="use_sde=True: σ follows from target_entropy, so leave use_sde out"):
        algorithm(policy, Reach(), use_sde=True, policy_kwargs={"target_entropy": -1.5})


@pytest.mark.parametrize(
    ("algorithm", "policy", "message"),
    [
        (TD3, ERASACPolicy, "ERASACPolicy is for SAC: policies of TD3 and DDPG are deterministic"),
        (DDPG, ERASACPolicy, "ERASACPolicy is for SAC: policies of TD3 and DDPG are deterministic"),
        (SAC, ERAPPOPolicy, "ERAPPOPolicy is for PPO and A2C: SAC takes ERASACPolicy"),
        (TD3, ERAPPOPolicy, "ERAPPOPolicy is for PPO and A2C: SAC takes ERASACPolicy"),
        (DQN, ERAPPOPolicy, "ERAPPOPolicy is for PPO and A2C: SAC takes ERASACPolicy"),
    ],
)
def test_algorithms_that_a_policy_is_not_for(algorithm, policy, message):
    env, target = (Discretely(), 0.1) if algorithm is DQN else (Reach(), -1.5)
    with pytest.raises(AttributeError, match=message):
        algorithm(policy, env, buffer_size=10, policy_kwargs={"target_entropy": target})


@pytest.mark.parametrize(
    ("algorithm", "policy", "own"), [(SAC, ERASACPolicy, {"target_entropy": -1.5}), (PPO, ERAPPOPolicy, {})]
)
def test_a_floor_has_to_be_given_to_the_policy(algorithm, policy, own):
    with pytest.raises(ValueError, match="give the floor as policy_kwargs="):
        algorithm(policy, Reach(), **own)


def test_refusals_of_discrete_actions():
    with pytest.raises(ValueError, match=r"target_entropy=1\.7 is out of reach: .* log 5 = 1\.609"):
        ppo(Discretely(), target_entropy=1.7)
    with pytest.raises(ValueError, match=r"'-A/2' is no number: with 5 discrete actions .* log 5 = 1\.609"):
        ppo(Discretely(), target_entropy="-A/2")
    with pytest.raises(ValueError, match="leave out distribution, log_std_max: discrete actions have no σ"):
        ppo(Discretely(), target_entropy=0.1, distribution="truncated", log_std_max=-1.0)
    with pytest.raises(
        ValueError, match=r"actions must be a Box, not Discrete\(5\): for Discrete take ERAPPOPolicy"
    ):
        ERASACPolicy(IMAGE, gym.spaces.Discrete(5), lambda _: 1e-3, target_entropy=0.1)
    with pytest.raises(ValueError, match="has no ERA head"):
        ppo(Reach(action_space=gym.spaces.MultiDiscrete([2, 3])))


def test_one_action_dimension_is_warned_of():
    env = Reach(action_space=gym.spaces.Box(-1, 1, (1,), np.float32))
    with pytest.warns(UserWarning, match="use 'era-floor'"):
        sac(env, steps=0, target_entropy=-0.5)
    assert sac(env, steps=0, target_entropy=-0.5, head="era-floor")


def test_the_examples_of_the_docs():
    model = hosts.example("Stable-Baselines3")["model"]
    assert model.num_timesteps == 200
    assert model.actor.action_dist.policy.floor == -3.0
    names = hosts.example("Stable-Baselines3", 1)
    for model, floor in ((names["model"], -1.8), (names["discrete"], 0.1)):
        observation = model.policy.obs_to_tensor(np.zeros(model.observation_space.shape))[0]
        assert model.policy.get_distribution(observation.float()).entropy() > floor - 1e-4
        model.learn(256)
