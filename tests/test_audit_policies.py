"""Audits of policies: runs of ours, and files of other libraries, of which nothing is executed."""

import base64
import io
import json
import pickle
import re
import shutil
import zipfile
from functools import partial
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
import torch

from entropyfloor import audit
from entropyfloor.audit import control, exported, inert, policies, stable_baselines
from entropyfloor.cli import main
from entropyfloor.control.load import load_policy
from entropyfloor.control.train import configure, train

pytestmark = pytest.mark.filterwarnings(r"ignore:.torch\.jit:DeprecationWarning")  # still what policies come as

OBSERVATIONS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
SMALL = {"hidden": 16, "steps": 60, "random_steps": 20, "batch_size": 8, "eval_episodes": 1, "updates_per_step": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Directory with observations, runs and models."""
    path = tmp_path_factory.mktemp("audit")
    np.save(path / "observations.npy", OBSERVATIONS)
    np.save(path / "four.npy", np.pad(OBSERVATIONS, ((0, 0), (0, 1))))
    return path


def run_of(home, agent):
    out = home / agent
    if not out.exists():
        train(configure(agent, env="gym/Reacher-v5", out=str(out), **SMALL))
    return out


# --- runs of ours ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_compared_with_its_own_floor(home, cache, capsys):
    run = run_of(home, "sac-era-exact")
    samples = control.run(run, episodes=1, max_episode_steps=30)
    policy = load_policy(run)
    assert samples.floor == policy.floor == -1.0
    assert len(samples.entropy) == len(samples.labels) == 30
    assert samples.labels[-1] == "episode 0, step 29"
    assert audit.summarise(samples).holds
    assert samples.spread.values.shape == (30, 2)
    assert (
        main(["audit", str(run), "--episodes", "1", "--max-episode-steps", "5", "--out", str(home / "out")]) == 0
    )
    assert "the floor of -1 nats holds in all of 5 states" in capsys.readouterr().out


def test_the_exit_status_is_1_where_a_given_floor_is_broken(home, cache, capsys):
    words = ["audit", str(run_of(home, "sac-era-exact")), "--episodes", "1", "--max-episode-steps", "5"]
    assert main([*words, "--floor", "0.5", "--out", str(home / "out")]) == 1
    out, err = capsys.readouterr()
    assert "share of states below it" in out
    assert err.startswith("failed: ")
    assert "is broken by 1.500 nats at most, in 100 % of 5 states" in err
    assert json.loads((home / "out" / "audit.json").read_text())["broken_share"] == 1.0


@pytest.mark.slow
def test_an_exported_policy_has_the_entropy_of_its_run(home, cache):
    pytest.importorskip("onnxruntime")
    from entropyfloor.control.export import export

    run = run_of(home, "sac-era-exact")
    export(run, home / "ours.onnx")
    policy = load_policy(run)
    observations = np.random.default_rng(0).normal(size=(50, policy.observation_dim)).astype(np.float32)
    np.save(home / "ours.npy", observations)
    samples = policies.policy(home / "ours.onnx", observations=home / "ours.npy")
    assert samples.entropy == pytest.approx(policy.entropy(observations), abs=1e-5)
    assert samples.floor == -1.0
    assert samples.measured == "the truncated policy over actions in [-1, 1]"


# --- Stable-Baselines3 and SBX ---------------------------------------------------------------------------


def model_of(home, library, name, env, **options):
    """A model of a library that has hardly learned, and its file."""
    module = pytest.importorskip(library)
    rollout = {"n_steps": 16, "batch_size": 16} if name in ("PPO", "A2C") else {"learning_starts": 5}
    rollout.pop("batch_size", None) if name == "A2C" else None
    model = getattr(module, name)("MlpPolicy", env, seed=0, device="cpu", **rollout, **options)
    file = home / f"{library}-{name}-{env}-{len(options)}.zip"
    model.learn(16).save(file)
    return model, file


def log_prob_entropy(distribution, count=40_000):
    """Entropy of a distribution of Stable-Baselines3 by its own samples and log-probabilities."""
    return -torch.stack([distribution.log_prob(distribution.sample()) for _ in range(count // 20)]).mean(0).numpy()


def test_the_entropy_of_sac_is_that_of_its_own_samples(home):
    model, file = model_of(home, "stable_baselines3", "SAC", "Pendulum-v1", policy_kwargs={"net_arch": [16, 8]})
    samples = policies.policy(file, observations=home / "observations.npy")
    with torch.no_grad():
        actor = model.policy.actor
        mean, log_std, _ = actor.get_action_dist_params(torch.from_numpy(OBSERVATIONS))
        expected = log_prob_entropy(actor.action_dist.proba_distribution(mean, log_std))
    assert samples.entropy == pytest.approx(expected, abs=0.08)
    assert samples.numbers == {"target_entropy": -1.0}
    unit = audit.gaussian.spread("tanh", mean.numpy(), log_std.exp().numpy())
    assert samples.spread.values == pytest.approx(2.0 * unit, rel=1e-4)  # torques from -2 to 2
    assert samples.spread.unit == "the environment's action"


@pytest.mark.parametrize("activation", ["Tanh", "ELU"])
def test_the_entropy_of_ppo_is_that_of_its_gaussian(activation, home):
    pytest.importorskip("stable_baselines3")
    options = {"policy_kwargs": {"activation_fn": getattr(torch.nn, activation), "log_std_init": -1.0}}
    model, file = model_of(home, "stable_baselines3", "PPO", "Pendulum-v1", **options)
    samples = policies.policy(file, observations=home / "observations.npy")
    with torch.no_grad():
        distribution = model.policy.get_distribution(torch.from_numpy(OBSERVATIONS))
        expected, loc = distribution.entropy().numpy(), distribution.distribution.mean.numpy()
    assert samples.entropy == pytest.approx(expected, abs=1e-5)
    assert stable_baselines.read(file).at(OBSERVATIONS)[0] == pytest.approx(loc, abs=1e-6)
    assert samples.saturation.shares.shape == (50,)


def test_the_entropy_of_discrete_actions_is_that_of_its_categorical(home):
    model, file = model_of(home, "stable_baselines3", "A2C", "CartPole-v1")
    samples = policies.policy(file, observations=home / "four.npy")
    with torch.no_grad():
        expected = model.policy.get_distribution(torch.from_numpy(np.load(home / "four.npy"))).entropy().numpy()
    assert samples.entropy == pytest.approx(expected, abs=1e-6)
    assert samples.spread is None


def test_an_environment_is_played_by_the_mode_action(home):
    model, file = model_of(home, "stable_baselines3", "PPO", "Pendulum-v1")
    samples = policies.policy(file, env="gym/Pendulum-v1", episodes=1, seed=3)
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=3)
    visited = []
    for _ in range(200):
        visited.append(observation)
        observation, *_ = env.step(model.predict(observation, deterministic=True)[0])
    assert samples.labels[-1] == "episode 0, step 199"
    read = stable_baselines.read(file)
    _, found, labels = policies._visited(read, "gym/Pendulum-v1", 1, 3)
    assert len(labels) == 200
    assert found == pytest.approx(np.stack(visited), abs=2e-3)


REACH = {"sac": "truncated", "ppo": "normal", "truncated": "truncated"}


@pytest.mark.parametrize("head", [None, "era", "era-floor"])
@pytest.mark.parametrize("kind", REACH)
def test_a_policy_of_ours_is_compared_with_its_own_floor(kind, head, home):
    """A file of our policies for Stable-Baselines3: the numbers are those of the policy that saved it."""
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO, SAC

    from entropyfloor.integrations.sb3 import ERAPPOPolicy, ERASACPolicy
    from hosts import Reach, observations

    era = {"target_entropy": "-A/2", "net_arch": [16], "activation_fn": torch.nn.Tanh}
    era |= {"head": head} if head else {}
    if kind == "sac":
        model = SAC(ERASACPolicy, Reach(), policy_kwargs=era, ent_coef=0.0, buffer_size=10, device="cpu", seed=0)
        distribution = model.actor.action_dist
    else:
        era |= {"distribution": "truncated", "log_std_min": -6.0} if kind == "truncated" else {}
        model = PPO(ERAPPOPolicy, Reach(), policy_kwargs=era, device="cpu", seed=0)
        distribution = model.policy.action_dist
    file = home / f"ours-{kind}-{head}.zip"
    model.save(file)
    states = observations(50, np.random.default_rng(0))
    np.save(home / "reach.npy", states)
    with torch.no_grad():
        if kind == "sac":
            distribution.proba_distribution(*model.actor.get_action_dist_params(torch.tensor(states))[:2])
        else:
            distribution = model.policy.get_distribution(torch.tensor(states))
        expected, mode = distribution.entropy().numpy(), distribution.mode().numpy()
    samples = policies.policy(file, observations=home / "reach.npy")
    assert samples.measured.startswith(f"the {REACH[kind]} policy")
    assert samples.entropy == pytest.approx(expected, abs=1e-4)
    assert stable_baselines.read(file).at(states)[0] == pytest.approx(mode, abs=1e-5)
    assert samples.floor == -1.5
    assert samples.numbers == {}
    if head != "era" or kind == "ppo":  # the paper's floor is under the Gaussian before truncation
        assert audit.summarise(samples).holds


def test_a_discrete_policy_of_ours_is_compared_with_its_own_floor(home, capsys):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO

    from entropyfloor.integrations.sb3 import ERAPPOPolicy

    model = PPO(ERAPPOPolicy, "CartPole-v1", policy_kwargs={"target_entropy": 0.3}, device="cpu", seed=0)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(1e6)
    model.save(home / "discrete.zip")
    samples = policies.policy(home / "discrete.zip", observations=home / "four.npy")
    assert samples.floor == 0.3
    assert samples.entropy == pytest.approx(0.3, abs=1e-3)
    assert samples.saturation is None  # the raw logits are a million apart, those behind the floor are not
    command = ["audit", "policy", str(home / "discrete.zip"), "--observations", str(home / "four.npy")]
    assert main([*command, "--out", str(home / "discrete")]) == 0
    assert "the floor of 0.3 nats holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_entropy": 9.0}, "lower the target"),
        ({"target_entropy": "__import__('os')"}, "cannot be read"),
        ({"head": "own"}, "head='own' must be one of"),
        ({"head": "projection"}, "its head projection is one for comparisons: audit an ONNX file of it"),
        ({"target_entropy": None}, "it has no 'target_entropy'"),
    ],
)
def test_settings_of_ours_that_make_no_policy_are_refused(changes, message, home):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO

    from entropyfloor.integrations.sb3 import ERAPPOPolicy
    from hosts import Reach

    model = PPO(ERAPPOPolicy, Reach(), policy_kwargs={"target_entropy": -1.5}, device="cpu")
    model.save(home / "changed.zip")
    with zipfile.ZipFile(home / "changed.zip") as archive:
        data, weights = json.loads(archive.read("data")), archive.read("policy.pth")
    data["policy_kwargs"] |= changes
    with pytest.raises(ValueError, match=re.escape(message)):
        stable_baselines.read(zipped(home / "changed.zip", data, weights))


@pytest.fixture
def single():
    """JAX as SBX wants it, without 64 bits."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_sbx_is_read_without_its_pickles(name, home, single):
    model, file = model_of(home, "sbx", name, "Pendulum-v1")
    distribution = model.policy.actor_state.apply_fn(model.policy.actor_state.params, OBSERVATIONS)
    gaussian = distribution.distribution if name == "SAC" else distribution
    loc, scale = stable_baselines.read(file).at(OBSERVATIONS)
    assert loc == pytest.approx(np.asarray(gaussian.mean()), abs=1e-5)
    assert scale == pytest.approx(np.asarray(gaussian.stddev()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_a_policy_of_ours_in_sbx_is_compared_with_its_own_floor(name, home, single):
    pytest.importorskip("sbx")
    import sbx

    from entropyfloor.integrations.sbx import ERAActor, ERAPPOActor
    from hosts import Reach

    actor = partial(ERAActor if name == "SAC" else ERAPPOActor, target_entropy="-A/2", head="era-floor")
    options = {"buffer_size": 10} if name == "SAC" else {"n_steps": 16, "batch_size": 16}
    kwargs = {"net_arch": [16], "actor_class": actor}
    model = getattr(sbx, name)("MlpPolicy", Reach(), policy_kwargs=kwargs, seed=0, **options)
    model.save(home / f"ours-{name}.zip")
    observations = np.load(home / "four.npy")
    policy = model.policy.actor_state.apply_fn(model.policy.actor_state.params, observations)
    samples = policies.policy(home / f"ours-{name}.zip", observations=home / "four.npy")
    assert samples.floor == -1.5
    assert samples.entropy == pytest.approx(np.asarray(policy.entropy()), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "message"), [("TD3", "TD3Policy is deterministic"), ("DQN", "DQNPolicy is determ")]
)
def test_a_policy_without_entropy_is_named(name, message, home):
    _, file = model_of(home, "stable_baselines3", name, "CartPole-v1" if name == "DQN" else "Pendulum-v1")
    with pytest.raises(ValueError, match=message):
        stable_baselines.read(file)


def test_what_cannot_be_rebuilt_is_refused(home):
    pytest.importorskip("stable_baselines3")
    _, file = model_of(home, "stable_baselines3", "PPO", "Pendulum-v1", use_sde=True)
    with pytest.raises(ValueError, match="use_sde"):
        stable_baselines.read(file)


def test_masked_actions_are_refused(home):
    _, file = model_of(home, "stable_baselines3", "A2C", "CartPole-v1")
    with zipfile.ZipFile(file) as archive:
        data, weights = json.loads(archive.read("data")), archive.read("policy.pth")
    data["policy_class"]["__module__"] = "sb3_contrib.common.maskable.policies"
    with pytest.raises(ValueError, match="its actions are masked"):
        stable_baselines.read(zipped(home / "masked.zip", data, weights))


def test_features_that_the_weights_do_not_show_are_refused(home):
    torch_layers = pytest.importorskip("stable_baselines3.common.torch_layers")

    class Halved(torch_layers.FlattenExtractor):
        def forward(self, observations):
            return super().forward(observations) / 2

    Halved.__qualname__ = "Halved"
    options = {"policy_kwargs": {"features_extractor_class": Halved}}
    _, file = model_of(home, "stable_baselines3", "PPO", "Pendulum-v1", **options)
    with pytest.raises(ValueError, match=r"its features_extractor_class is .*Halved"):
        stable_baselines.read(file)


class Pictures(gymnasium.Env):
    """An environment of small images, in which PPO may have the policy of vectors."""

    observation_space = gymnasium.spaces.Box(0, 255, (5, 4, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((5, 4, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((5, 4, 3), np.uint8), 0.0, False, True, {}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("library", ["stable_baselines3", pytest.param("sbx", marks=pytest.mark.slow)])
def test_policies_of_vectors_on_images_are_refused(library, tmp_path, single):
    module = pytest.importorskip(library)
    module.PPO("MlpPolicy", Pictures(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "pictures.zip")
    with pytest.raises(ValueError, match="its observations are images, which the library prepares"):
        stable_baselines.read(tmp_path / "pictures.zip")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "message"), [("TD3", "its actor is deterministic"), ("CrossQ", "its network has BatchRenorm_0")]
)
def test_other_networks_of_sbx_are_refused(name, message, home, single):
    _, file = model_of(home, "sbx", name, "Pendulum-v1")
    with pytest.raises(ValueError, match=message):
        stable_baselines.read(file)


# --- nothing is executed ---------------------------------------------------------------------------------


class Evil:
    """An object whose pickle writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def zipped(file, data, weights):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", weights)
    return file


def box(written):
    """The entry of an action space whose pickle is evil."""
    return {
        ":type:": "<class 'gymnasium.spaces.box.Box'>",
        ":serialized:": base64.b64encode(pickle.dumps(Evil(written))).decode(),
    }


@pytest.mark.parametrize("place", ["data", "weights"])
def test_a_pickle_in_a_model_file_is_not_executed(place, tmp_path, capsys):
    written = tmp_path / "written"
    weights = io.BytesIO()
    torch.save(Evil(written) if place == "weights" else {}, weights)
    actions = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"} if place == "weights" else box(written)
    module = {"__module__": "stable_baselines3.sac.policies"}
    file = zipped(tmp_path / "evil.zip", {"action_space": actions, "policy_class": module}, weights.getvalue())
    np.save(tmp_path / "o.npy", OBSERVATIONS)
    assert main(["audit", "policy", str(file), "--observations", str(tmp_path / "o.npy")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {file} is no policy that can be measured")
    assert err.count("\n") == 1
    assert not written.exists()
    pickle.loads(pickle.dumps(Evil(written)))
    assert written.exists()  # the pickle does write, where it is executed


def test_an_inert_pickle_keeps_what_was_written(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for value in (array, np.asfortranarray(array), array.astype(">f8"), np.array([True, False])):
        for protocol in (3, 5):
            found = inert.array(inert.unpickle(pickle.dumps(value, protocol)))
            assert found.tolist() == value.tolist()
    written = tmp_path / "written"
    found = inert.unpickle(pickle.dumps({"a": [1, Evil(written)]}))
    assert found["a"][0] == 1
    assert not written.exists()
    with pytest.raises(ValueError, match="type O8"):
        inert.array(inert.unpickle(pickle.dumps(np.array([None]), 3)))
    with pytest.raises(ValueError, match="pickle is damaged"):
        inert.unpickle(b"no pickle")


@pytest.mark.parametrize(
    "data",
    [
        b"}()" + b"\x85" * 100_000 + b"K\x01s.",  # a key: Python hashes it recursively until the stack is full
        b"}(c_\n_\n)" + b"\x85" * 100_000 + b"RK\x01u.",  # inside of what a function would have made
        b"}(" + b"(" * 100_000 + b"t" * 100_000 + b"K\x01u.",
        b")\x94" + b"".join(b"h%c\x85\x94" % i for i in range(255)) + b"}(h\xffK\x01u.",  # through the memo
    ],
    ids=["key", "argument", "marks", "memo"],
)
def test_a_pickle_that_nests_without_end_is_refused(data):
    with pytest.raises(ValueError, match=r"^its pickle is nested more than 200 deep: no policy is$"):
        inert.unpickle(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_depth_is_that_of_the_nesting_and_not_of_the_length(protocol):
    value = 1.5
    for _ in range(inert.DEPTH):
        value = (value,)
    assert inert.unpickle(pickle.dumps(value, protocol)) == value
    with pytest.raises(ValueError, match="nested"):
        inert.unpickle(pickle.dumps((value,), protocol))
    long = [list(range(3000)), dict(zip(range(3000), range(3000), strict=True)), set(range(3000))]
    assert inert.unpickle(pickle.dumps(long, protocol))[:2] == long[:2]  # written in many instructions


def test_a_program_is_run_only_if_it_is_trusted(tmp_path, capsys):
    class Writes(torch.nn.Module):
        def forward(self, x: torch.Tensor, path: str = str(tmp_path / "written")):
            torch.save(x, path)
            return x[:, :2]

    file, observations = script(Writes(), tmp_path / "policy.pt"), tmp_path / "o.npy"
    np.save(observations, OBSERVATIONS)
    words = ["audit", "policy", str(file), "--observations", str(observations), "--distribution", "normal"]
    words += ["--std", "0.5", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "is a TorchScript program" in capsys.readouterr().err
    assert not (tmp_path / "written").exists()
    assert main([*words, "--trust"]) == 0
    assert (tmp_path / "written").exists()


# --- exported policies -----------------------------------------------------------------------------------


def script(module, file):
    torch.jit.script(module).save(str(file))
    return file


class Mean(torch.nn.Module):
    """A policy as rsl_rl exports it: the mean alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ELU(), torch.nn.Linear(8, 2))

    def forward(self, x: torch.Tensor):
        return self.mlp(x)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"model_state_dict": {"std": torch.tensor([0.3, 0.2]), "actor.0.weight": torch.ones(1)}, "iter": 3},
        {"model_state_dict": {"log_std": torch.tensor([0.3, 0.2]).log()}},
        {"actor_state_dict": {"distribution.std_param": torch.tensor([0.3, 0.2])}, "infos": None},
        {"actor_state_dict": {"distribution.log_std_param": torch.tensor([0.3, 0.2]).log()}},
    ],
)
def test_the_std_of_rsl_rl_is_read_from_its_checkpoint(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "model_3.pt")
    std = exported.std_of((), tmp_path / "model_3.pt")
    assert std == pytest.approx([0.3, 0.2])
    read = exported.read(script(Mean(), tmp_path / "p.pt"), distribution="normal", std=std, trust=True)
    samples = policies.measure(read, OBSERVATIONS, [""] * 50)
    assert samples.entropy == pytest.approx(np.log(0.3 * 0.2) + np.log(2 * np.pi * np.e), abs=1e-6)
    assert samples.saturation is None  # the file does not say where its actions are clipped


@pytest.mark.parametrize(
    "content", [{}, {"a": {"std": torch.ones(1)}, "b": {"log_std": torch.ones(1)}}, Evil("x")]
)
def test_a_checkpoint_without_one_std_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"std_from=.*give --std"):
        exported.std_of((), tmp_path / "model.pt")
    assert not Path("x").exists()


class Torques(torch.nn.Module):
    """A policy that gives mean actions and standard deviations in the environment's own units."""

    def forward(self, x: torch.Tensor):
        return torch.tensor([[1.5, -0.25]]).expand(len(x), 2), torch.full((len(x), 2), 0.3)


class Asymmetric(gymnasium.Env):
    """An environment that remembers the actions that it was given."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    action_space = gymnasium.spaces.Box(np.array([-2.0, -1.0]), np.array([6.0, 0.0]), dtype=np.float64)
    taken: list = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.taken.append(action.tolist())
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.fixture
def asymmetric():
    """Its name; two steps are an episode."""
    gymnasium.register("Asymmetric-v0", Asymmetric, max_episode_steps=2)
    Asymmetric.taken.clear()
    yield "gym/Asymmetric-v0"
    del gymnasium.registry["Asymmetric-v0"]


def test_a_normal_policy_acts_in_the_units_of_the_environment(asymmetric, tmp_path):
    options = {"env": asymmetric, "episodes": 1, "distribution": "normal", "trust": True}
    file = script(Torques(), tmp_path / "p.pt")
    samples = policies.policy(file, **options)
    assert Asymmetric.taken == [[1.5, -0.25]] * 2
    expected = audit.gaussian.saturated(
        "normal", np.array([1.5, -0.25]), np.array([0.3]), np.array([-2.0, -1.0]), np.array([6.0, 0.0])
    )
    assert samples.saturation.shares == pytest.approx(expected)
    Asymmetric.taken.clear()
    policies.policy(file, **options, bounds=(-2.0, 2.0))  # of training, where actions were scaled to those here
    assert Asymmetric.taken == [[5.0, -0.5625]] * 2


def test_the_units_are_those_of_the_environment_with_its_wrappers(asymmetric, tmp_path):
    rescale = gymnasium.wrappers.RescaleAction.wrapper_spec(min_action=-1.0, max_action=1.0)
    gymnasium.registry["Asymmetric-v0"].additional_wrappers = (rescale,)
    options = {"env": asymmetric, "episodes": 1, "distribution": "normal", "trust": True}
    policies.policy(script(Torques(), tmp_path / "p.pt"), **options)
    assert Asymmetric.taken == [[6.0, -0.625]] * 2


@pytest.fixture
def export_of(tmp_path):
    """Writer of a normal policy as ONNX, with metadata."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    given, *out = (onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "loc", "scale"))
    nodes = [onnx.helper.make_node(kind, ["x"], [name]) for kind, name in (("Neg", "loc"), ("Sigmoid", "scale"))]
    graph = onnx.helper.make_graph(nodes, "g", [given], out)

    def write(**metadata):
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, tmp_path / "p.onnx")
        return tmp_path / "p.onnx"

    return write


def test_a_normal_policy_that_this_package_exported_acts_in_the_unit_box(export_of):
    assert exported.read(export_of(), distribution="normal").low is None
    read = exported.read(export_of(distribution="normal", agent="ppo"))
    assert (read.low, read.high) == (-1.0, 1.0)
    assert policies.measure(read, OBSERVATIONS, [""] * 50).saturation is not None


def test_the_export_of_mnse_is_refused(export_of):
    with pytest.raises(ValueError, match=r"before its mapping of actions: audit its run"):
        exported.read(export_of(distribution="tanh", agent="mnse"))


class Both(Mean):
    """A policy that gives the mean and log σ."""

    def forward(self, x: torch.Tensor):
        mean = self.mlp(x)
        return mean, mean.clamp(-3.0, 0.0)


def test_outputs_are_those_that_are_named(tmp_path):
    file = script(Both(), tmp_path / "p.pt")
    read = exported.read(file, distribution="tanh", outputs=("loc", "log_scale"), trust=True)
    loc, scale = read.at(OBSERVATIONS)
    assert scale == pytest.approx(np.exp(loc.clip(-3.0, 0.0)), rel=1e-5)
    logits = exported.read(file, outputs=("logits", "other"), trust=True)
    assert logits.distribution == "categorical"
    assert policies.measure(logits, OBSERVATIONS, [""] * 50).entropy.max() <= np.log(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust": True}, "does not say its distribution"),
        ({"trust": True, "distribution": "cauchy", "std": np.ones(2)}, "distribution='cauchy' must be one of"),
        ({"trust": True, "distribution": "normal"}, "gives 1 outputs, and loc and scale are to be read"),
        ({"trust": True, "distribution": "normal", "std": np.ones(3)}, "has 2 actions, and std 3 numbers"),
        ({"trust": True, "outputs": ("mean",)}, "outputs='mean' must be one of"),
        ({"trust": True, "distribution": "normal", "std": np.ones(2), "bounds": (1.0, 1.0)}, "bounds=1 1"),
        (
            {"trust": True, "distribution": "normal", "std": np.ones(2), "bounds": (-np.inf, np.inf)},
            "bounds=-inf inf",
        ),
        ({"trust": True, "distribution": "tanh", "bounds": (-2.0, 2.0)}, "bounds says nothing about a tanh"),
        ({"trust": True, "distribution": "categorical", "std": np.ones(2)}, "std says nothing about a categ"),
    ],
)
def test_what_is_missing_is_named(options, message, tmp_path):
    file = script(Mean(), tmp_path / "p.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        exported.read(file, **options).at(OBSERVATIONS)


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    for name, message in {"p.pt": "as TorchScript", "p.onnx": "as ONNX", "p.zip": "no policy"}.items():
        (tmp_path / name).write_bytes(b"damaged")
        np.save(tmp_path / "o.npy", OBSERVATIONS)
        with pytest.raises(ValueError, match=message) as error:
            policies.policy(tmp_path / name, observations=tmp_path / "o.npy", trust=name == "p.pt")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["deflate", "encrypted", "method"])
def test_a_damaged_archive_is_refused(damage, tmp_path):
    file = tmp_path / "m.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", json.dumps([*range(5000)]))
    content = bytearray(file.read_bytes())
    entry = content.find(b"PK\x01\x02")
    if damage == "deflate":
        content[60:400] = bytes(byte ^ 0x5A for byte in content[60:400])
    elif damage == "encrypted":
        content[6] |= 1
        content[entry + 8] |= 1
    else:
        content[8] = content[entry + 10] = 99
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.zip is no policy that can be measured"):
        stable_baselines.read(file)


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return {"loc": x}


class Scalars(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x.sum(), x.sum()


class Masked(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return torch.cat([x, torch.full_like(x, -float("inf"))], 1)


class Single(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x[:, :1]


@pytest.mark.parametrize(
    ("module", "distribution", "message"),
    [
        (Named, "normal", "gives a dict: one tensor or several are read"),
        (Scalars, "normal", "gives [], [] for 50 observations: [N, D] each is read"),
        (Single, "categorical", "gives one logit"),
        (Masked, "categorical", "gives logits that are NaN or infinite: masked actions are not read"),
    ],
)
def test_outputs_that_are_no_parameters_are_refused(module, distribution, message, tmp_path):
    read = exported.read(script(module(), tmp_path / "p.pt"), distribution=distribution, trust=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        policies.measure(read, OBSERVATIONS, [""] * 50)


def test_an_onnx_file_need_not_say_the_shape_of_its_input(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    given, loc = (onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "loc"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["loc"])], "g", [given], [loc])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "p.onnx",
    )
    read = exported.read(tmp_path / "p.onnx", distribution="normal", std=np.ones(1))
    assert read.at(OBSERVATIONS)[0].tolist() == (-OBSERVATIONS).tolist()


def test_an_onnx_file_with_outputs_or_texts_of_another_kind_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    given, loc, scale = (onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "loc", "scale"))
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["loc"]),
        onnx.helper.make_node("ReduceMax", ["x"], ["scale"], keepdims=0),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [given], [loc, scale])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "p.onnx")
    with pytest.raises(ValueError, match=r"p\.onnx gives \[50, 3\], \[1\] for 50 observations"):
        exported.read(tmp_path / "p.onnx", distribution="normal").at(OBSERVATIONS)
    onnx.helper.set_model_props(model, {"floor": "low"})
    onnx.save(model, tmp_path / "p.onnx")
    with pytest.raises(ValueError, match=r"p\.onnx says a floor or a target that is no number"):
        exported.read(tmp_path / "p.onnx", distribution="normal")


@pytest.mark.parametrize(
    ("env", "distribution", "message"),
    [
        ("gym/Pendulum-v1", "normal", "takes 1-dimensional actions, and .* gives 2-dimensional actions"),
        ("gym/Pendulum-v1", "categorical", "takes 1-dimensional actions, and .* gives one of 2 actions"),
        ("gym/CartPole-v1", "normal", "takes one of 2 actions, and .* gives 2-dimensional actions"),
    ],
)
def test_an_environment_of_other_actions_is_refused(env, distribution, message, tmp_path):
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return x[:, :2]

    std = None if distribution == "categorical" else np.ones(2)
    read = exported.read(script(Two(), tmp_path / "p.pt"), distribution=distribution, std=std, trust=True)
    with pytest.raises(ValueError, match=message):
        policies._visited(read, env, 1, 0)


# --- observations ----------------------------------------------------------------------------------------


def test_observations_are_read_from_three_formats(tmp_path):
    np.savez(tmp_path / "o.npz", observations=OBSERVATIONS, actions=np.zeros(3))
    np.savez(tmp_path / "one.npz", OBSERVATIONS)
    lines = "\n".join(["x,y,z", *(",".join(map(str, row)) for row in OBSERVATIONS.tolist())])
    (tmp_path / "o.csv").write_text(lines)
    (tmp_path / "bare.csv").write_text(lines.partition("\n")[2])
    (tmp_path / "marked.csv").write_text(lines.partition("\n")[2], "utf-8-sig")  # as spreadsheets write it
    for name in ("o.npz", "one.npz", "o.csv", "bare.csv", "marked.csv"):
        assert np.array_equal(policies.read_observations(tmp_path / name), OBSERVATIONS)


def test_observations_that_cannot_be_used_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", OBSERVATIONS[0])
    np.save(tmp_path / "nan.npy", OBSERVATIONS * np.nan)
    np.savez(tmp_path / "two.npz", a=OBSERVATIONS, b=OBSERVATIONS)
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "gap.csv").write_text("1,,3\n4,5,6\n")  # its first line has no names
    np.savez(tmp_path / "empty.npz")
    shutil.copy(tmp_path / "flat.npy", tmp_path / "o.txt")
    messages = {
        "object.npy": "cannot be read",
        "flat.npy": r"shape \[3\]",
        "nan.npy": "NaN",
        "two.npz": "it has a, b: name one",
        "ragged.csv": "cannot be read",
        "gap.csv": "its first line has numbers and other cells",
        "empty.csv": "it is empty",
        "empty.npz": "it is empty",
        "o.txt": "must be a file that ends in",
        "absent.npy": "must be a file that ends in",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as error:
            policies.read_observations(tmp_path / name)
        assert "\n" not in str(error.value)


def test_observations_of_another_width_are_refused(home):
    _, file = model_of(home, "stable_baselines3", "PPO", "Pendulum-v1")
    with pytest.raises(ValueError, match=r"observations have 4 numbers each, and .* takes 3"):
        policies.policy(file, observations=home / "four.npy")
    with pytest.raises(ValueError, match=r"observes 4 numbers, and .* takes 3"):
        policies.policy(file, env="gym/CartPole-v1")
    with pytest.raises(ValueError, match="give either --observations"):
        policies.policy(file)
